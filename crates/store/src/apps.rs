//! Apps that were selected for computers, and how far their installation is.
//!
//! A change of a state is written together with its event, and only where it is a change: several servers may follow
//! one installation, and one may follow it twice.

use roost_api::{ComputerId, Event, InstallationStatus, Timestamp};
use sqlx::{Row, Transaction};

use crate::computers::{json, load};
use crate::events::{EventScope, insert_event};
use crate::record::{InstallationState, number, parsed, time};
use crate::{Db, DbRow, Store, StoreError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallationRecord {
    pub app: String,
    pub state: InstallationState,
    /// Percent.
    pub progress: u8,
    pub error: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What became of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstallationChange {
    /// How far it is, in percent.
    Progress(u8),
    Installed,
    Failed(String),
}

impl InstallationState {
    pub fn status(self) -> InstallationStatus {
        match self {
            InstallationState::Waiting => InstallationStatus::Waiting,
            InstallationState::Installing => InstallationStatus::Installing,
            InstallationState::Installed => InstallationStatus::Installed,
            InstallationState::Failed => InstallationStatus::Failed,
        }
    }
}

impl InstallationRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            app: row.try_get("app")?,
            state: parsed(row, "state")?,
            progress: number(row, "progress")?,
            error: row.try_get("error")?,
            created_at: time(row, "created_at")?,
            updated_at: time(row, "updated_at")?,
        })
    }
}

impl Store {
    /// In the order in which they are installed.
    pub async fn installations(&self, computer: ComputerId) -> Result<Vec<InstallationRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM installations WHERE computer_id = $1 ORDER BY position")
            .bind(computer.to_string())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(InstallationRecord::from_row).collect()
    }

    /// Selects apps for a computer: false where it is gone. One that waits or is being installed stays where it is, all
    /// others come last.
    pub async fn select_apps(&self, computer: ComputerId, apps: &[String]) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let Some(record) = load(&mut tx, computer).await? else { return Ok(false) };
        let mut selected = record.selected_apps;
        for app in apps {
            if !selected.contains(app) {
                selected.push(app.clone());
            }
        }
        sqlx::query("UPDATE computers SET selected_apps = $1, updated_at = $2 WHERE id = $3")
            .bind(json(&selected)?)
            .bind(Timestamp::now().as_micros())
            .bind(computer.to_string())
            .execute(&mut *tx)
            .await?;
        insert_installations(&mut tx, computer, apps).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// The computers that run and have something to install.
    pub async fn installing_computers(&self) -> Result<Vec<ComputerId>, StoreError> {
        let rows = sqlx::query(
            "SELECT DISTINCT i.computer_id FROM installations i JOIN computers c ON c.id = i.computer_id
             WHERE i.state IN ('waiting', 'installing') AND c.desired = 'running' AND c.observed = 'running'",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| parsed(row, "computer_id")).collect()
    }

    /// What is to be installed next.
    pub async fn next_installation(
        &self,
        computer: ComputerId,
    ) -> Result<Option<InstallationRecord>, StoreError> {
        let row = sqlx::query(
            "SELECT * FROM installations WHERE computer_id = $1 AND state IN ('waiting', 'installing')
             ORDER BY position LIMIT 1",
        )
        .bind(computer.to_string())
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(InstallationRecord::from_row).transpose()
    }

    /// Records what became of an installation that had not ended, with its event; whether it was news.
    pub async fn record_installation(
        &self,
        computer: ComputerId,
        app: &str,
        change: &InstallationChange,
    ) -> Result<bool, StoreError> {
        let (state, progress, error) = match change {
            InstallationChange::Progress(percent) => (InstallationState::Installing, Some(*percent), None),
            InstallationChange::Installed => (InstallationState::Installed, Some(100), None),
            InstallationChange::Failed(reason) => (InstallationState::Failed, None, Some(reason)),
        };
        let mut tx = self.write().await?;
        let changed = sqlx::query(
            "UPDATE installations SET state = $1, progress = COALESCE($2, progress), error = $3, updated_at = $4
             WHERE computer_id = $5 AND app = $6
                 AND (state = 'waiting' OR (state = 'installing' AND ($1 <> 'installing' OR progress < $2)))",
        )
        .bind(state.as_str())
        .bind(progress.map(i64::from))
        .bind(error)
        .bind(Timestamp::now().as_micros())
        .bind(computer.to_string())
        .bind(app)
        .execute(&mut *tx)
        .await?;
        if changed.rows_affected() == 0 {
            return Ok(false);
        }
        let Some(record) = load(&mut tx, computer).await? else { return Ok(false) };
        insert_event(&mut tx, &EventScope::of(&record), &event(app, change)).await?;
        tx.commit().await?;
        Ok(true)
    }
}

fn event(app: &str, change: &InstallationChange) -> Event {
    let app = app.to_owned();
    match change {
        InstallationChange::Progress(progress) => Event::AppInstalling { app, progress: *progress },
        InstallationChange::Installed => Event::AppInstalled { app },
        InstallationChange::Failed(reason) => Event::AppFailed { app, message: reason.clone() },
    }
}

/// Apps of a computer that are to be installed once it runs.
pub(crate) async fn insert_installations(
    tx: &mut Transaction<'static, Db>,
    computer: ComputerId,
    apps: &[String],
) -> Result<(), StoreError> {
    let now = Timestamp::now().as_micros();
    for app in apps {
        sqlx::query(
            "INSERT INTO installations (computer_id, app, position, state, progress, created_at, updated_at)
             SELECT $1, $2, COALESCE(MAX(position), 0) + 1, 'waiting', 0, $3, $3
                 FROM installations WHERE computer_id = $1
             ON CONFLICT (computer_id, app) DO UPDATE SET position = excluded.position, state = 'waiting',
                 progress = 0, error = NULL, updated_at = excluded.updated_at
                 WHERE installations.state IN ('installed', 'failed')",
        )
        .bind(computer.to_string())
        .bind(app)
        .bind(now)
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EventsOf;
    use crate::testing::{TestDatabase, computer};

    fn apps(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    async fn states(store: &Store, computer: ComputerId) -> Vec<(String, InstallationState, u8)> {
        let records = store.installations(computer).await.unwrap();
        records.into_iter().map(|record| (record.app, record.state, record.progress)).collect()
    }

    #[tokio::test]
    async fn an_installation_is_recorded_once_however_often_it_is_told() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        let computer = computer(&store).await.computer;
        assert!(store.select_apps(computer, &apps(&["one", "two"])).await.unwrap());
        assert!(!store.select_apps(ComputerId::new(), &apps(&["one"])).await.unwrap());
        let begun = store.event_bounds().await.unwrap().last;
        let tell = async |app: &str, change| store.record_installation(computer, app, &change).await.unwrap();
        assert!(tell("one", InstallationChange::Progress(0)).await);
        assert!(!tell("one", InstallationChange::Progress(0)).await);
        assert!(tell("one", InstallationChange::Progress(50)).await);
        assert!(!tell("one", InstallationChange::Progress(40)).await);
        assert!(tell("one", InstallationChange::Installed).await);
        assert!(!tell("one", InstallationChange::Failed("late".to_owned())).await);
        assert!(!tell("one", InstallationChange::Progress(60)).await);
        assert!(!tell("none", InstallationChange::Installed).await);
        assert!(tell("two", InstallationChange::Failed("why".to_owned())).await);
        let expected = [
            ("one".to_owned(), InstallationState::Installed, 100),
            ("two".to_owned(), InstallationState::Failed, 0),
        ];
        assert_eq!(states(&store, computer).await, expected);
        let events = store.events_after(begun, EventsOf::Computer(computer), 10).await.unwrap().events;
        let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["app.installing", "app.installing", "app.installed", "app.failed"]);
        assert_eq!(events[3].data["message"], "why");
    }

    #[tokio::test]
    async fn what_is_selected_again_is_tried_again_and_what_is_at_work_goes_on() {
        let database = TestDatabase::new().await;
        let store = database.store().await;
        let computer = computer(&store).await.computer;
        store.select_apps(computer, &apps(&["one", "two"])).await.unwrap();
        store.record_installation(computer, "one", &InstallationChange::Progress(30)).await.unwrap();
        store
            .record_installation(computer, "two", &InstallationChange::Failed("x".to_owned()))
            .await
            .unwrap();
        store.select_apps(computer, &apps(&["two", "one", "three"])).await.unwrap();
        let expected = [
            ("one".to_owned(), InstallationState::Installing, 30),
            ("two".to_owned(), InstallationState::Waiting, 0),
            ("three".to_owned(), InstallationState::Waiting, 0),
        ];
        assert_eq!(states(&store, computer).await, expected);
        assert_eq!(store.installations(computer).await.unwrap()[1].error, None);
        let next = store.next_installation(computer).await.unwrap().unwrap();
        assert_eq!(next.app, "one");
        let selected = store.computer(computer).await.unwrap().unwrap().selected_apps;
        assert_eq!(selected, ["one", "two", "three"]);
        // It does not run yet.
        assert_eq!(store.installing_computers().await.unwrap(), []);
        store.observe(computer, 1, crate::Observed::Running, None, None).await.unwrap();
        assert_eq!(store.installing_computers().await.unwrap(), [computer]);
    }
}
