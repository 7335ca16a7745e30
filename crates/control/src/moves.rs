//! Moving a stopped computer to another region: its files are copied, compared, and only then is it there.
//!
//! Until the row names the new region nothing has changed but for files there that nobody needs. Whichever region the
//! row names after an interruption, the computer is whole in that one, and what is in the other goes.

use std::time::Duration;

use roost_api::{ApiError, ComputerId, ErrorCode, Event, LayerId, MoveComputer, RegionName, Status};
use roost_launch::Need;
use roost_store::{Begin, ComputerRecord, EventScope, WorkflowKind, WorkflowPayload, WorkflowRecord};
use tokio::sync::watch;

use crate::snapshots::must_be_stopped;
use crate::status::status;
use crate::workflow::without_payload;
use crate::{Control, Failure};

/// How much further a move is, in percent, when it is told again.
const TOLD_EVERY: u8 = 10;

/// Why a computer cannot be moved now.
enum Refusal {
    /// Work of a moment is done on it: to be waited for.
    Moment,
    /// It has come to be elsewhere since we looked.
    Elsewhere,
    Status(Status),
    /// It has no files yet.
    Unprovisioned,
}

/// From where to where.
#[derive(Debug, Clone)]
pub(crate) struct Move {
    from: RegionName,
    to: RegionName,
}

impl Control {
    /// Brings a stopped computer to another region and returns when it is there.
    pub async fn move_computer(
        &self,
        id: ComputerId,
        request: MoveComputer,
    ) -> Result<ComputerRecord, Failure> {
        let named = request.region.as_deref().map(str::trim).filter(|name| !name.is_empty());
        let named = named.ok_or_else(|| {
            ApiError::field("region", "is required: the region to move to; GET /regions has those there are")
        })?;
        let to = self.wanted_region(Some(named))?;
        loop {
            let from = self.record(id).await?.region;
            let guard = |record: &ComputerRecord| {
                if record.intended.is_some_and(WorkflowKind::is_brief) {
                    return Err(Refusal::Moment);
                }
                let now = status(record);
                if record.intended.is_some() || now != Status::Stopped {
                    Err(Refusal::Status(now))
                } else if record.region != from {
                    Err(Refusal::Elsewhere)
                } else if !record.provisioned {
                    Err(Refusal::Unprovisioned)
                } else {
                    Ok(())
                }
            };
            if from == to {
                let record = self.record(id).await?;
                self.require_stopped(&record, "move")?;
                return Ok(record);
            }
            let payload = Some(WorkflowPayload::Move { from: from.clone(), to: to.clone() });
            match self.inner.store.begin_workflow(id, WorkflowKind::Move, payload, guard).await? {
                Begin::Begun(workflow) => {
                    tracing::info!(computer = %id, %from, %to, "moving");
                    self.run_workflow(workflow).ended().await.map_err(move_failure)?;
                    return self.record(id).await;
                }
                Begin::Missing => return Err(Failure::computer_not_found()),
                Begin::Refused(Refusal::Moment) => self.moment(id).await?,
                Begin::Refused(Refusal::Elsewhere) => {}
                Begin::Refused(Refusal::Status(now)) => return Err(must_be_stopped(now, "move")),
                Begin::Refused(Refusal::Unprovisioned) => {
                    let message = "the computer has never run, so there is nothing to move; start it once, or delete it";
                    return Err(Failure::new(ErrorCode::ResourceState, message));
                }
            }
        }
    }

    /// The first step: everything of the computer is also in the other region.
    pub(crate) async fn copy_files(&self, workflow: &WorkflowRecord) -> Result<(), Failure> {
        let Move { from, to } = to_move(workflow)?;
        let record = self.record(workflow.computer).await?;
        if record.region == to {
            return Ok(());
        }
        let (source, target) = (self.inner.regions.of(&from)?, self.inner.regions.of(&to)?);
        let files = source.source(record.id).await?;
        let disk = files.bytes.saturating_add(self.layer_bytes(record.layer).await?);
        target.admit(&Need { memory: 0, disk }).await?;
        let (progress, mut told) = watch::channel(0);
        let bring = target.bring(record.id, &files, &progress);
        let tell = async {
            let mut last = 0;
            // It never ends: whoever copies has the other end.
            while told.changed().await.is_ok() {
                let percent = (*told.borrow_and_update()).min(100);
                if percent >= last + TOLD_EVERY || (percent == 100 && last < 100) {
                    last = percent;
                    self.tell_progress(&record, &to, percent).await;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            brought = bring => brought?,
            () = tell => {}
        }
        Ok(())
    }

    async fn tell_progress(&self, record: &ComputerRecord, to: &RegionName, progress: u8) {
        let event = Event::MoveProgress { region: to.clone(), progress };
        // Whoever does not hear of it loses nothing: the end is recorded with the computer.
        if let Err(failure) = self.emit(&EventScope::of(record), &event).await {
            let failure = &failure as &dyn std::error::Error;
            tracing::warn!(computer = %record.id, failure, "failed to tell how far a move is");
        }
    }

    /// What a layer and those below it take, in bytes: a disk that lies on them will take no more than that in addition.
    async fn layer_bytes(&self, top: Option<LayerId>) -> Result<u64, Failure> {
        let layers = self.inner.store.layers().await?;
        let mut bytes = 0_u64;
        let mut next = top;
        while let Some(layer) = next.and_then(|id| layers.iter().find(|layer| layer.id == id)) {
            bytes = bytes.saturating_add(layer.disk_bytes);
            next = layer.parent;
        }
        Ok(bytes)
    }

    /// The second step: the row names the other region.
    pub(crate) async fn switch_region(&self, workflow: &WorkflowRecord) -> Result<(), Failure> {
        let Move { from, to } = to_move(workflow)?;
        self.inner.store.move_computer(workflow.computer, &from, &to).await?;
        self.inner.guests.forget(workflow.computer);
        self.inner.hub.wake();
        Ok(())
    }

    /// The last step, and the undo of all: no file of the computer is left in the region that its row does not name.
    pub(crate) async fn remove_elsewhere(&self, workflow: &WorkflowRecord) -> Result<(), Failure> {
        let Move { from, to } = to_move(workflow)?;
        let there = self.record(workflow.computer).await?.region;
        for region in [from, to] {
            if region != there {
                let launcher = self.inner.regions.of(&region)?;
                launcher.end(workflow.computer).await?;
                launcher.remove(workflow.computer).await?;
            }
        }
        Ok(())
    }

    /// The same, until it is so: nobody would come to tidy up later.
    pub(crate) async fn surely_remove_elsewhere(&self, workflow: &WorkflowRecord) {
        let computer = workflow.computer;
        let mut pause = Duration::from_millis(100);
        while let Err(failure) = self.remove_elsewhere(workflow).await {
            // The next start of a server that has the region finds what is left there.
            if matches!(failure.public.code, ErrorCode::NoReadyMachine | ErrorCode::NotFound) {
                tracing::warn!(%computer, failure = &failure as &dyn std::error::Error, "files of a move are left");
                return;
            }
            tracing::error!(%computer, failure = &failure as &dyn std::error::Error,
                "failed to remove what a move has left; trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }
}

fn to_move(workflow: &WorkflowRecord) -> Result<Move, Failure> {
    match &workflow.payload {
        Some(WorkflowPayload::Move { from, to }) => Ok(Move { from: from.clone(), to: to.clone() }),
        Some(WorkflowPayload::Capture { .. } | WorkflowPayload::Resize { .. }) | None => {
            Err(without_payload(workflow))
        }
    }
}

/// A region without room and a computer that cannot be copied say so; the computer is where it was.
fn move_failure(error: ApiError) -> Failure {
    match error.code {
        code @ (ErrorCode::NoReadyMachine | ErrorCode::ResourceState) => {
            Failure::new(code, format!("the computer could not be moved: {error}"))
        }
        // A delete has ended it.
        ErrorCode::InvalidState => Failure::new(error.code, error.message),
        _ => Failure::new(ErrorCode::Internal, error.message),
    }
}
