//! Scripts that computers run once, and how far they are.
//!
//! As with apps, a change is written together with its event, and only where it is one: several servers may follow one
//! script, and one may follow it twice.

use roost_api::{ComputerId, Event, Timestamp};
use sqlx::{Row, Transaction};

use crate::computers::load;
use crate::events::{EventScope, insert_event};
use crate::record::{SetupState, optional_number, optional_time, parsed};
use crate::{Db, DbRow, Store, StoreError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetupRecord {
    pub state: SetupState,
    /// Sealed.
    pub script: String,
    pub exit_code: Option<i32>,
    /// Sealed.
    pub output: Option<String>,
    pub error: Option<String>,
    pub started_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
}

/// What became of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetupChange {
    Running,
    /// With this exit code and this output, which is sealed.
    Ended {
        exit_code: i32,
        output: String,
    },
    /// It did not come to its end: why.
    Failed(String),
}

impl Store {
    /// `None`: the computer has none.
    pub async fn setup(&self, computer: ComputerId) -> Result<Option<SetupRecord>, StoreError> {
        let row = sqlx::query(
            "SELECT s.*, c.setup_state FROM setups s JOIN computers c ON c.id = s.computer_id
             WHERE s.computer_id = $1",
        )
        .bind(computer.to_string())
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(SetupRecord::from_row).transpose()
    }

    /// The computers that run, and whose script has not ended. It begins when all apps are installed that are to be: both
    /// may want the package manager, and it may want them.
    pub async fn setting_up(&self) -> Result<Vec<ComputerId>, StoreError> {
        let rows = sqlx::query(
            "SELECT c.id FROM computers c
             WHERE c.desired = 'running' AND c.observed = 'running' AND (c.setup_state = 'running'
                 OR (c.setup_state = 'waiting' AND NOT EXISTS (SELECT 1 FROM installations i
                     WHERE i.computer_id = c.id AND i.state IN ('waiting', 'installing'))))",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| parsed(row, "id")).collect()
    }

    /// Records what became of a script that had not ended, with its event; whether it was news.
    pub async fn record_setup(&self, computer: ComputerId, change: &SetupChange) -> Result<bool, StoreError> {
        let (state, exit_code, output, error, event) = match change {
            SetupChange::Running => (SetupState::Running, None, None, None, None),
            SetupChange::Ended { exit_code, output } => {
                let state = if *exit_code == 0 { SetupState::Completed } else { SetupState::Failed };
                let event = Event::SetupEnded { exit_code: *exit_code };
                (state, Some(*exit_code), Some(output), None, Some(event))
            }
            SetupChange::Failed(why) => {
                (SetupState::Failed, None, None, Some(why), Some(Event::SetupFailed { message: why.clone() }))
            }
        };
        let mut tx = self.write().await?;
        let now = Timestamp::now().as_micros();
        let changed = sqlx::query(
            "UPDATE computers SET setup_state = $1, updated_at = $2 WHERE id = $3
                 AND (setup_state = 'waiting' OR (setup_state = 'running' AND $1 <> 'running'))",
        )
        .bind(state.as_str())
        .bind(now)
        .bind(computer.to_string())
        .execute(&mut *tx)
        .await?;
        if changed.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query(
            "UPDATE setups SET exit_code = $1, output = $2, error = $3, started_at = COALESCE(started_at, $4),
                 ended_at = $5 WHERE computer_id = $6",
        )
        .bind(exit_code.map(i64::from))
        .bind(output)
        .bind(error)
        .bind(now)
        .bind((state != SetupState::Running).then_some(now))
        .bind(computer.to_string())
        .execute(&mut *tx)
        .await?;
        if let (Some(record), Some(event)) = (load(&mut tx, computer).await?, event) {
            insert_event(&mut tx, &EventScope::of(&record), &event).await?;
        }
        tx.commit().await?;
        Ok(true)
    }
}

pub(crate) async fn insert_setup(
    tx: &mut Transaction<'static, Db>,
    computer: ComputerId,
    script: &str,
) -> Result<(), StoreError> {
    for statement in [
        "INSERT INTO setups (computer_id, script) VALUES ($1, $2)",
        "UPDATE computers SET setup_state = 'waiting' WHERE id = $1 AND $2 <> ''",
    ] {
        sqlx::query(statement).bind(computer.to_string()).bind(script).execute(&mut **tx).await?;
    }
    Ok(())
}

impl SetupRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            state: parsed(row, "setup_state")?,
            script: row.try_get("script")?,
            exit_code: optional_number(row, "exit_code")?,
            output: row.try_get("output")?,
            error: row.try_get("error")?,
            started_at: optional_time(row, "started_at")?,
            ended_at: optional_time(row, "ended_at")?,
        })
    }
}
