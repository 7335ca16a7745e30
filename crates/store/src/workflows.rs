//! Durable workflows: which are at work, how far they are, how they ended.

use roost_api::{ApiError, ComputerId, Timestamp, WorkflowId};
use sqlx::Transaction;

use crate::computers::{json, load, signed};
use crate::env::{NewVariable, set_start_variables};
use crate::events::record_status;
use crate::quotas::{admit_move, admit_resize, admit_start};
use crate::record::{ComputerRecord, Desired, Observed, WorkflowKind, WorkflowPayload, WorkflowRecord};
use crate::{Db, Store, StoreError};

/// How [`Store::begin_workflow`] went.
#[derive(Debug)]
pub enum Begin<E, T = WorkflowRecord> {
    Begun(T),
    /// There is no such computer.
    Missing,
    /// The guard said no.
    Refused(E),
}

/// How a workflow ended, and what the computer's row takes over from it.
#[derive(Debug, Clone)]
pub enum Finish {
    Done,
    Failed(String),
    /// A stop that came to nothing: the machine runs on, and that is what is wanted again.
    StillRunning,
}

impl Store {
    /// Begins a workflow on a computer if `guard` allows it on the row as it is now. Guard, new desired
    /// state, new generation and workflow row are one transaction.
    pub async fn begin_workflow<E>(
        &self,
        computer: ComputerId,
        kind: WorkflowKind,
        payload: Option<WorkflowPayload>,
        guard: impl FnOnce(&ComputerRecord) -> Result<(), E>,
    ) -> Result<Begin<E>, StoreError> {
        self.begin_workflow_with(computer, kind, payload, &[], guard).await
    }

    /// The same with variables that the machine has until the next start.
    pub async fn begin_workflow_with<E>(
        &self,
        computer: ComputerId,
        kind: WorkflowKind,
        payload: Option<WorkflowPayload>,
        env: &[NewVariable],
        guard: impl FnOnce(&ComputerRecord) -> Result<(), E>,
    ) -> Result<Begin<E>, StoreError> {
        let mut tx = self.write().await?;
        let Some(record) = load(&mut tx, computer).await? else {
            return Ok(Begin::Missing);
        };
        if let Err(refusal) = guard(&record) {
            return Ok(Begin::Refused(refusal));
        }
        match (kind, &payload) {
            (WorkflowKind::Start, _) => admit_start(&mut tx, &record, self.clock.now()).await?,
            (_, Some(WorkflowPayload::Resize { size })) => admit_resize(&mut tx, &record, *size).await?,
            (_, Some(WorkflowPayload::Move { to, .. })) => admit_move(&mut tx, &record, to).await?,
            _ => {}
        }
        let desired = match kind {
            WorkflowKind::Create | WorkflowKind::Start | WorkflowKind::Restart => Some(Desired::Running),
            WorkflowKind::Stop => Some(Desired::Stopped),
            WorkflowKind::Delete => Some(Desired::Deleted),
            WorkflowKind::Capture | WorkflowKind::Resize | WorkflowKind::Move => None,
        };
        // A new generation belongs to a new machine process; everything else speaks to the one there is.
        let (generation, observed, memory_lost) = if kind.launches() {
            (record.generation + 1, Observed::Absent, None)
        } else {
            (record.generation, record.observed, record.memory_lost.clone())
        };
        if let Some(desired) = desired {
            sqlx::query(
                "UPDATE computers SET desired = $1, generation = $2, observed = $3, failure = NULL,
                     failure_console = '[]', updated_at = $4, memory_lost = $6 WHERE id = $5",
            )
            .bind(desired.as_str())
            .bind(signed(generation)?)
            .bind(observed.as_str())
            .bind(Timestamp::now().as_micros())
            .bind(computer.to_string())
            .bind(memory_lost)
            .execute(&mut *tx)
            .await?;
        }
        if kind.launches() {
            set_start_variables(&mut tx, computer, signed(generation)?, env).await?;
        }
        let workflow = insert_workflow(&mut tx, computer, kind, generation, payload).await?;
        let after = load(&mut tx, computer).await?;
        record_status(&mut tx, self.clock.now(), Some(&record), after.as_ref()).await?;
        tx.commit().await?;
        Ok(Begin::Begun(workflow))
    }

    /// Workflows that have not ended, oldest first.
    pub async fn active_workflows(&self) -> Result<Vec<WorkflowRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM workflows WHERE finished_at IS NULL ORDER BY created_at")
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(WorkflowRecord::from_row).collect()
    }

    /// The workflow at work on `computer`.
    pub async fn active_workflow(&self, computer: ComputerId) -> Result<Option<WorkflowRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM workflows WHERE computer_id = $1 AND finished_at IS NULL")
            .bind(computer.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(WorkflowRecord::from_row).transpose()
    }

    /// Whether this server still runs the workflow, or another has taken it over.
    pub async fn owns_workflow(&self, id: WorkflowId) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT 1 AS one FROM workflows WHERE id = $1 AND owner = $2")
            .bind(id.to_string())
            .bind(self.server.to_string())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.is_some())
    }

    /// From here on the workflow is undone from this step, also after a crash. False: it is another server's now.
    pub async fn fail_workflow(
        &self,
        id: WorkflowId,
        step: usize,
        error: &ApiError,
    ) -> Result<bool, StoreError> {
        let step = i64::try_from(step).map_err(|_| StoreError::Corrupt { what: format!("step {step}") })?;
        let failed = sqlx::query(
            "UPDATE workflows SET step = $1, error = $2, error_code = $3 WHERE id = $4 AND owner = $5",
        )
        .bind(step)
        .bind(&error.message)
        .bind(error.code.as_str())
        .bind(id.to_string())
        .bind(self.server.to_string())
        .execute(&self.pool)
        .await?;
        Ok(failed.rows_affected() > 0)
    }

    /// Ends a workflow and writes its result to the computer in the same transaction. False: it is another
    /// server's now, and nothing was written.
    pub async fn finish_workflow(
        &self,
        workflow: &WorkflowRecord,
        finish: &Finish,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let before = load(&mut tx, workflow.computer).await?;
        let now = Timestamp::now().as_micros();
        let finished = sqlx::query(
            "UPDATE workflows SET finished_at = $1 WHERE id = $2 AND owner = $3 AND finished_at IS NULL",
        )
        .bind(now)
        .bind(workflow.id.to_string())
        .bind(self.server.to_string())
        .execute(&mut *tx)
        .await?;
        if finished.rows_affected() == 0 {
            return Ok(false);
        }
        let computer = workflow.computer.to_string();
        match (finish, workflow.kind) {
            (Finish::Done, WorkflowKind::Create | WorkflowKind::Start | WorkflowKind::Restart) => {
                sqlx::query(
                    "UPDATE computers SET provisioned = 1, snapshot_id = NULL, failure = NULL,
                         failure_console = '[]', started_at = $1, ready_at = $1, updated_at = $1 WHERE id = $2",
                )
                .bind(now)
                .bind(computer)
                .execute(&mut *tx)
                .await?;
            }
            (Finish::Done, WorkflowKind::Stop) => {
                sqlx::query("UPDATE computers SET updated_at = $1 WHERE id = $2")
                    .bind(now)
                    .bind(computer)
                    .execute(&mut *tx)
                    .await?;
            }
            // The row is gone already; so should be the history of a computer that no longer exists.
            (Finish::Done, WorkflowKind::Delete) => {
                sqlx::query("DELETE FROM workflows WHERE id = $1")
                    .bind(workflow.id.to_string())
                    .execute(&mut *tx)
                    .await?;
            }
            // They change nothing that the computer's status tells; the snapshot has its own.
            (_, WorkflowKind::Capture | WorkflowKind::Resize | WorkflowKind::Move) => {}
            (Finish::StillRunning, _) => {
                sqlx::query("UPDATE computers SET desired = 'running', updated_at = $1 WHERE id = $2")
                    .bind(now)
                    .bind(computer)
                    .execute(&mut *tx)
                    .await?;
            }
            (Finish::Failed(reason), _) => {
                sqlx::query(
                    "UPDATE computers SET failure = COALESCE(failure, $1), updated_at = $2 WHERE id = $3",
                )
                .bind(reason)
                .bind(now)
                .bind(computer)
                .execute(&mut *tx)
                .await?;
            }
        }
        let after = load(&mut tx, workflow.computer).await?;
        record_status(&mut tx, self.clock.now(), before.as_ref(), after.as_ref()).await?;
        tx.commit().await?;
        Ok(true)
    }
}

pub(crate) async fn insert_workflow(
    tx: &mut Transaction<'static, Db>,
    computer: ComputerId,
    kind: WorkflowKind,
    generation: u64,
    payload: Option<WorkflowPayload>,
) -> Result<WorkflowRecord, StoreError> {
    let id = WorkflowId::new();
    let workflow = WorkflowRecord {
        id,
        computer,
        kind,
        generation,
        step: 0,
        error: None,
        error_code: None,
        payload,
        is_cancelled: false,
        is_finished: false,
    };
    sqlx::query(
        "INSERT INTO workflows (id, computer_id, kind, generation, step, created_at, payload)
         VALUES ($1, $2, $3, $4, 0, $5, $6)",
    )
    .bind(workflow.id.to_string())
    .bind(computer.to_string())
    .bind(kind.as_str())
    .bind(signed(generation)?)
    .bind(Timestamp::now().as_micros())
    .bind(workflow.payload.as_ref().map(json).transpose()?)
    .execute(&mut **tx)
    .await?;
    Ok(workflow)
}
