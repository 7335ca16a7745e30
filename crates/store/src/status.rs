//! The public status: a pure function of desired, intended and observed. It lives beside the row, so that a change of
//! the row records what becomes of the status in the same transaction.

use roost_api::Status;

use crate::record::{ComputerRecord, Desired, Observed, WorkflowKind};

/// The status of a computer's row.
pub fn status(record: &ComputerRecord) -> Status {
    of(record.desired, record.intended, record.observed)
}

/// While a workflow is at work, its purpose is the status; otherwise the wish is held against what is so. Work
/// of a moment ([`WorkflowKind::is_brief`]) does not show.
pub fn of(desired: Desired, intended: Option<WorkflowKind>, observed: Observed) -> Status {
    match (intended, desired, observed) {
        (Some(WorkflowKind::Create), _, _) => Status::Provisioning,
        (Some(WorkflowKind::Start | WorkflowKind::Restart), _, _) => Status::Starting,
        (Some(WorkflowKind::Stop), _, _) => Status::Stopping,
        (Some(WorkflowKind::Delete), _, _) | (None, Desired::Deleted, _) => Status::Destroying,
        (Some(WorkflowKind::Capture | WorkflowKind::Resize | WorkflowKind::Move), desired, observed) => {
            of(desired, None, observed)
        }

        (None, Desired::Running, Observed::Running) => Status::Running,
        // It rebooted itself.
        (None, Desired::Running, Observed::Preparing | Observed::Booting) => Status::Starting,
        // It is turning itself off; the observer then changes the wish.
        (None, Desired::Running, Observed::Stopping) => Status::Stopping,
        (None, Desired::Running, Observed::Stopped) => Status::Stopped,
        (None, Desired::Running, Observed::Failed | Observed::Absent) => Status::Error,

        // However it came to its end, it is off and its disk is kept.
        (None, Desired::Stopped, Observed::Stopped | Observed::Failed | Observed::Absent) => Status::Stopped,
        // A process that should not be there; the observer is ending it.
        (
            None,
            Desired::Stopped,
            Observed::Preparing | Observed::Booting | Observed::Running | Observed::Stopping,
        ) => Status::Stopping,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ComputerFilter;
    use crate::computers::load;
    use crate::events::record_status;
    use crate::testing::{TestDatabase, computer};

    /// The whole table, so that a change of any cell is seen in review.
    #[test]
    fn every_combination() {
        use Observed::{Absent, Booting, Failed, Preparing, Running, Stopped, Stopping};
        let idle = |desired, observed| of(desired, None, observed);
        for observed in Observed::ALL.iter().copied() {
            for desired in Desired::ALL.iter().copied() {
                assert_eq!(of(desired, Some(WorkflowKind::Create), observed), Status::Provisioning);
                assert_eq!(of(desired, Some(WorkflowKind::Start), observed), Status::Starting);
                assert_eq!(of(desired, Some(WorkflowKind::Restart), observed), Status::Starting);
                assert_eq!(of(desired, Some(WorkflowKind::Stop), observed), Status::Stopping);
                assert_eq!(of(desired, Some(WorkflowKind::Delete), observed), Status::Destroying);
                for brief in [WorkflowKind::Capture, WorkflowKind::Resize, WorkflowKind::Move] {
                    assert_eq!(of(desired, Some(brief), observed), idle(desired, observed));
                }
            }
            assert_eq!(idle(Desired::Deleted, observed), Status::Destroying);
        }
        let table = [
            (Absent, Status::Error, Status::Stopped),
            (Preparing, Status::Starting, Status::Stopping),
            (Booting, Status::Starting, Status::Stopping),
            (Running, Status::Running, Status::Stopping),
            (Stopping, Status::Stopping, Status::Stopping),
            (Stopped, Status::Stopped, Status::Stopped),
            (Failed, Status::Error, Status::Stopped),
        ];
        assert_eq!(table.len(), Observed::ALL.len());
        for (observed, when_running_is_desired, when_stopped_is_desired) in table {
            assert_eq!(idle(Desired::Running, observed), when_running_is_desired, "{observed:?}");
            assert_eq!(idle(Desired::Stopped, observed), when_stopped_is_desired, "{observed:?}");
        }
    }

    /// `running` promises a machine that was seen running and that nobody is about to change.
    #[test]
    fn running_is_never_a_guess() {
        for intended in WorkflowKind::ALL.iter().copied().map(Some).chain([None]) {
            for desired in Desired::ALL.iter().copied() {
                for observed in Observed::ALL.iter().copied() {
                    if of(desired, intended, observed) == Status::Running {
                        assert!(intended.is_none_or(WorkflowKind::is_brief));
                        assert_eq!((desired, observed), (Desired::Running, Observed::Running));
                    }
                }
            }
        }
    }

    /// The column and the function say the same, for every combination and every filter of one status.
    #[tokio::test]
    async fn sql_finds_what_the_function_says() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        let reach = crate::Reach::whole(store.home().await.unwrap().tenant);
        let mut combinations = 0;
        for desired in Desired::ALL {
            for observed in Observed::ALL {
                for intended in WorkflowKind::ALL.iter().copied().map(Some).chain([None]) {
                    let workflow = computer(&store).await;
                    let mut tx = store.write().await.unwrap();
                    let before = load(&mut tx, workflow.computer).await.unwrap();
                    sqlx::query("UPDATE computers SET desired = $1, observed = $2 WHERE id = $3")
                        .bind(desired.as_str())
                        .bind(observed.as_str())
                        .bind(workflow.computer.to_string())
                        .execute(&mut *tx)
                        .await
                        .unwrap();
                    sqlx::query(
                        "UPDATE workflows SET kind = COALESCE($1, kind), finished_at = $2 WHERE id = $3",
                    )
                    .bind(intended.map(WorkflowKind::as_str))
                    .bind(intended.is_none().then_some(1_i64))
                    .bind(workflow.id.to_string())
                    .execute(&mut *tx)
                    .await
                    .unwrap();
                    let after = load(&mut tx, workflow.computer).await.unwrap();
                    record_status(&mut tx, store.now(), before.as_ref(), after.as_ref()).await.unwrap();
                    tx.commit().await.unwrap();
                    combinations += 1;
                }
            }
        }
        let all = store.computers(&reach, &ComputerFilter::default()).await.unwrap();
        assert_eq!(all.len(), combinations);
        for wanted in Status::ALL {
            let expected: Vec<_> =
                all.iter().filter(|record| status(record) == wanted).map(|record| record.id).collect();
            assert!(!expected.is_empty(), "{wanted}");
            let mut filter = ComputerFilter { statuses: Some(vec![wanted]), ..ComputerFilter::default() };
            let found = store.computers(&reach, &filter).await.unwrap();
            assert_eq!(found.iter().map(|record| record.id).collect::<Vec<_>>(), expected, "{wanted}");
            assert_eq!(store.count_computers(&reach, &filter).await.unwrap(), expected.len() as u64);
            // A page is a part of that, in its order.
            filter.page = Some((3, 1));
            let page = store.computers(&reach, &filter).await.unwrap();
            let page: Vec<_> = page.iter().map(|record| record.id).collect();
            assert_eq!(page, expected.into_iter().skip(1).take(3).collect::<Vec<_>>(), "{wanted}");
        }
        // What a database from before has no status of gets it.
        sqlx::query("UPDATE computers SET status = ''").execute(&store.pool).await.unwrap();
        store.write_missing_statuses().await.unwrap();
        for wanted in Status::ALL {
            let filter = ComputerFilter { statuses: Some(vec![wanted]), ..ComputerFilter::default() };
            let expected = all.iter().filter(|record| status(record) == wanted).count() as u64;
            assert_eq!(store.count_computers(&reach, &filter).await.unwrap(), expected, "{wanted}");
        }
        // Several at once, and none.
        let both = vec![Status::Running, Status::Stopped];
        let both = ComputerFilter { statuses: Some(both), ..ComputerFilter::default() };
        let expected =
            all.iter().filter(|record| matches!(status(record), Status::Running | Status::Stopped));
        assert_eq!(store.count_computers(&reach, &both).await.unwrap(), expected.count() as u64);
        let none = ComputerFilter { statuses: Some(Vec::new()), ..ComputerFilter::default() };
        assert!(store.computers(&reach, &none).await.unwrap().is_empty());
    }
}
