//! Quotas: what one end user of a tenant may have at most.
//!
//! They are held in the transactions that make and start computers: writers go one after the other, so of two that come
//! at once the second one finds what the first has made. A computer that runs is counted as such from the request that
//! starts it until it is off.

use roost_api::{ComputerId, MicroCredits, Status, TenantId, Timestamp};
use sqlx::{Row, Transaction};

use crate::query::QueryBuilder;
use crate::record::{ComputerRecord, number, optional_number};
use crate::runs::RunRecord;
use crate::status::{STATE, states};
use crate::{Db, DbRow, NewComputer, Store, StoreError};

/// `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuotaRecord {
    pub computers: Option<u32>,
    /// Of those that run, or are about to.
    pub running: Option<u32>,
    pub storage_gib: Option<u32>,
    /// In a calendar month.
    pub cost: Option<MicroCredits>,
}

/// `None` leaves a limit as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuotaChange {
    pub computers: Option<Option<u32>>,
    pub running: Option<Option<u32>>,
    pub storage_gib: Option<Option<u32>>,
    pub cost: Option<Option<MicroCredits>>,
}

/// What an end user has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaUse {
    pub computers: u64,
    pub running: u64,
    pub storage_gib: u64,
    /// Since the month began.
    pub cost: MicroCredits,
}

/// What there is enough of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Computers(u32),
    Running(u32),
    StorageGib(u32),
    /// What was spent this month.
    Cost(MicroCredits),
}

/// A computer was not made or not started, because its end user has as much as they may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaReached {
    pub external_user_id: String,
    pub limit: Limit,
}

const QUOTA: &str = "SELECT * FROM quotas WHERE tenant_id = $1 AND external_user_id = $2";

/// In which a computer takes a place of those that run.
const RUNNING: [Status; 4] = [Status::Provisioning, Status::Starting, Status::Running, Status::Stopping];

impl Store {
    /// The quota, and what there is of what it limits. No quota is one without limits.
    pub async fn quota_use(
        &self,
        tenant: TenantId,
        user: &str,
    ) -> Result<(QuotaRecord, QuotaUse), StoreError> {
        let mut tx = self.pool.begin().await?;
        let quota = load(&mut tx, tenant, user).await?.unwrap_or_default();
        let (computers, storage_gib) = owned(&mut tx, tenant, user).await?;
        let used = QuotaUse {
            computers,
            running: running(&mut tx, tenant, user, None).await?,
            storage_gib,
            cost: spent(&mut tx, tenant, user, self.clock.now()).await?,
        };
        tx.commit().await?;
        Ok((quota, used))
    }

    /// What there is already stays, also above the new limits.
    pub async fn set_quota(
        &self,
        tenant: TenantId,
        user: &str,
        change: &QuotaChange,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let old = load(&mut tx, tenant, user).await?.unwrap_or_default();
        sqlx::query(
            "INSERT INTO quotas (tenant_id, external_user_id, max_computers, max_running, max_storage, max_cost,
                 updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (tenant_id, external_user_id) DO UPDATE SET max_computers = excluded.max_computers,
                 max_running = excluded.max_running, max_storage = excluded.max_storage,
                 max_cost = excluded.max_cost, updated_at = excluded.updated_at",
        )
        .bind(tenant.to_string())
        .bind(user)
        .bind(change.computers.unwrap_or(old.computers).map(i64::from))
        .bind(change.running.unwrap_or(old.running).map(i64::from))
        .bind(change.storage_gib.unwrap_or(old.storage_gib).map(i64::from))
        .bind(change.cost.unwrap_or(old.cost).map(|cost| cost.0))
        .bind(self.clock.now().as_micros())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    pub async fn remove_quota(&self, tenant: TenantId, user: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM quotas WHERE tenant_id = $1 AND external_user_id = $2")
            .bind(tenant.to_string())
            .bind(user)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// Refuses a computer that its end user may not have.
pub(crate) async fn admit_new(
    tx: &mut Transaction<'static, Db>,
    new: &NewComputer,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Some(user) = new.external_user_id.as_deref() else { return Ok(()) };
    let Some(quota) = load(tx, new.tenant_id, user).await? else { return Ok(()) };
    let (computers, storage) = owned(tx, new.tenant_id, user).await?;
    let reached = |limit| Err(QuotaReached { external_user_id: user.to_owned(), limit }.into());
    if let Some(most) = quota.computers
        && computers >= most.into()
    {
        return reached(Limit::Computers(most));
    }
    if let Some(most) = quota.storage_gib
        && storage + u64::from(new.disk_gib) > most.into()
    {
        return reached(Limit::StorageGib(most));
    }
    admit_run(tx, new.tenant_id, user, &quota, new.id, now).await
}

/// Refuses the start of a computer that its end user may not have running.
pub(crate) async fn admit_start(
    tx: &mut Transaction<'static, Db>,
    computer: &ComputerRecord,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Some(user) = computer.external_user_id.as_deref() else { return Ok(()) };
    let Some(quota) = load(tx, computer.tenant_id, user).await? else { return Ok(()) };
    admit_run(tx, computer.tenant_id, user, &quota, computer.id, now).await
}

async fn admit_run(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    user: &str,
    quota: &QuotaRecord,
    computer: ComputerId,
    now: Timestamp,
) -> Result<(), StoreError> {
    let reached = |limit| Err(QuotaReached { external_user_id: user.to_owned(), limit }.into());
    if let Some(most) = quota.running
        && running(tx, tenant, user, Some(computer)).await? >= most.into()
    {
        return reached(Limit::Running(most));
    }
    if let Some(most) = quota.cost
        && spent(tx, tenant, user, now).await? >= most
    {
        return reached(Limit::Cost(most));
    }
    Ok(())
}

/// Computers that run although their end user has spent what they may spend in a month, and how much that is.
pub(crate) async fn overspent(
    tx: &mut Transaction<'static, Db>,
    now: Timestamp,
) -> Result<Vec<(ComputerId, MicroCredits)>, StoreError> {
    let rows = sqlx::query(
        "SELECT r.*, q.max_cost FROM quotas q
         JOIN runs r ON r.tenant_id = q.tenant_id AND r.external_user_id = q.external_user_id
             AND r.ended_at IS NULL
         WHERE q.max_cost IS NOT NULL",
    )
    .fetch_all(&mut **tx)
    .await?;
    let mut found = Vec::new();
    for row in &rows {
        let (run, most) = (RunRecord::from_row(row)?, MicroCredits(number(row, "max_cost")?));
        let Some(user) = run.external_user_id.as_deref() else { continue };
        if spent(tx, run.tenant, user, now).await? >= most {
            found.push((run.computer, most));
        }
    }
    Ok(found)
}

async fn load(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    user: &str,
) -> Result<Option<QuotaRecord>, StoreError> {
    let row = sqlx::query(QUOTA).bind(tenant.to_string()).bind(user).fetch_optional(&mut **tx).await?;
    row.as_ref().map(QuotaRecord::from_row).transpose()
}

/// How many computers there are, and what their disks may grow to. What is being deleted is not counted.
async fn owned(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    user: &str,
) -> Result<(u64, u64), StoreError> {
    let row = sqlx::query(
        "SELECT COUNT(*) AS n, CAST(COALESCE(SUM(disk_gib), 0) AS BIGINT) AS gib FROM computers
         WHERE tenant_id = $1 AND external_user_id = $2 AND desired <> 'deleted'",
    )
    .bind(tenant.to_string())
    .bind(user)
    .fetch_one(&mut **tx)
    .await?;
    Ok((number(&row, "n")?, number(&row, "gib")?))
}

/// How many run, or are about to, beside one.
async fn running(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    user: &str,
    beside: Option<ComputerId>,
) -> Result<u64, StoreError> {
    let mut query = QueryBuilder::new(
        "SELECT COUNT(*) AS n FROM computers c
         LEFT JOIN workflows w ON w.computer_id = c.id AND w.finished_at IS NULL WHERE c.tenant_id = ",
    );
    query.push_bind(tenant.to_string()).push(" AND c.external_user_id = ").push_bind(user);
    if let Some(beside) = beside {
        query.push(" AND c.id <> ").push_bind(beside.to_string());
    }
    query.push(" AND ").push(STATE).push_in(states(&RUNNING));
    number(&query.build().fetch_one(&mut **tx).await?, "n")
}

/// What runs have cost since the month began.
async fn spent(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    user: &str,
    now: Timestamp,
) -> Result<MicroCredits, StoreError> {
    let start = now.start_of_month();
    let rows = sqlx::query(
        "SELECT * FROM runs WHERE tenant_id = $1 AND external_user_id = $2
             AND (ended_at IS NULL OR ended_at > $3)",
    )
    .bind(tenant.to_string())
    .bind(user)
    .bind(start.as_micros())
    .fetch_all(&mut **tx)
    .await?;
    let mut cost = 0;
    for row in &rows {
        let run = RunRecord::from_row(row)?;
        cost += run.price.of_time(run.micros_between(start, now, now)).0;
    }
    Ok(MicroCredits(cost))
}

impl QuotaRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            computers: optional_number(row, "max_computers")?,
            running: optional_number(row, "max_running")?,
            storage_gib: optional_number(row, "max_storage")?,
            cost: row.try_get::<Option<i64>, _>("max_cost")?.map(MicroCredits),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestDatabase, new_computer};
    use crate::{Begin, Finish, WorkflowKind};

    async fn of_ann(store: &Store) -> NewComputer {
        NewComputer { external_user_id: Some("ann".to_owned()), ..new_computer(store).await }
    }

    fn limit(result: Result<impl std::fmt::Debug, StoreError>) -> Limit {
        match result {
            Err(StoreError::Quota { reached }) => reached.limit,
            other => panic!("no limit was reached: {other:?}"),
        }
    }

    #[tokio::test]
    async fn what_comes_at_once_is_counted_one_by_one() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        let tenant = store.home().await.unwrap().tenant;
        let change = QuotaChange { computers: Some(Some(3)), ..QuotaChange::default() };
        store.set_quota(tenant, "ann", &change).await.unwrap();
        let mut made = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let (store, new) = (store.clone(), of_ann(&store).await);
            made.spawn(async move { store.insert_computer(&new).await });
        }
        let made = made.join_all().await;
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 3);
        for refused in made.into_iter().filter(Result::is_err) {
            assert_eq!(limit(refused), Limit::Computers(3));
        }
        // Somebody else's are others.
        let bob = NewComputer { external_user_id: Some("bob".to_owned()), ..new_computer(&store).await };
        store.insert_computer(&bob).await.unwrap();
        store.insert_computer(&new_computer(&store).await).await.unwrap();
        store.remove_quota(tenant, "ann").await.unwrap();
        store.insert_computer(&of_ann(&store).await).await.unwrap();
    }

    #[tokio::test]
    async fn a_place_is_taken_from_the_request_on_until_the_computer_is_off() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        let tenant = store.home().await.unwrap().tenant;
        let change =
            QuotaChange { running: Some(Some(1)), storage_gib: Some(Some(2)), ..QuotaChange::default() };
        store.set_quota(tenant, "ann", &change).await.unwrap();
        let (first, create) = store.insert_computer(&of_ann(&store).await).await.unwrap();
        assert_eq!(limit(store.insert_computer(&of_ann(&store).await).await), Limit::Running(1));
        store.finish_workflow(&create, &Finish::Failed("why".to_owned())).await.unwrap();
        // It failed, and takes no place; another does.
        let (_, second) = store.insert_computer(&of_ann(&store).await).await.unwrap();
        let start = async || {
            store.begin_workflow(first.id, WorkflowKind::Start, None, |_| Ok::<(), ()>(())).await
        };
        assert_eq!(limit(start().await), Limit::Running(1));
        store.finish_workflow(&second, &Finish::Failed("why".to_owned())).await.unwrap();
        assert!(matches!(start().await, Ok(Begin::Begun(_))));
        assert_eq!(limit(store.insert_computer(&of_ann(&store).await).await), Limit::StorageGib(2));
        let (quota, used) = store.quota_use(tenant, "ann").await.unwrap();
        assert_eq!((quota.running, quota.storage_gib, quota.computers), (Some(1), Some(2), None));
        let cost = MicroCredits(0);
        assert_eq!(used, QuotaUse { computers: 2, running: 1, storage_gib: 2, cost });
        // A refused request leaves nothing behind.
        assert_eq!(store.all_computers().await.unwrap().len(), 2);
    }
}
