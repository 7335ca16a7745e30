//! Durable workflows: create, start, stop, restart, delete, capture, resize, move.
//!
//! A workflow is a fixed list of named steps ([`plan`]). Each step may be run twice with the same result,
//! each has an undo (often nothing), and the row in SQL says whether it goes forward or, from which step, back.
//! After a crash of the control plane every workflow that goes forward is run again from its first step: steps
//! that are done already notice. When a step fails, the steps before it are undone in reverse and the computer
//! is left in a state its status names. One computer has at most one workflow; the database enforces it.
//!
//! ```text
//!   create    AwaitOrigin -> LaunchMachine -> AwaitRunning -> SetEnvironment
//!   start     LaunchMachine -> AwaitRunning -> SetEnvironment
//!   stop      AskStop -> AwaitStopped
//!   restart   AskStop -> AwaitStopped -> LaunchMachine -> AwaitRunning -> SetEnvironment
//!   delete    EndMachine -> RemoveFiles -> RemoveRow
//!   capture   Capture -> RecordCapture
//!   resize    DropMemory -> RecordSize
//!   move      CopyFiles -> SwitchRegion -> RemoveSource
//! ```
//!
//! Stop saves the memory and restart does not: it is a real reboot. Capture, resize and move take a
//! moment; the computer keeps its status meanwhile, and other verbs wait for them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use roost_api::{ApiError, ComputerId, ErrorCode, RegionName, Size, WorkflowId};
use roost_launch::{Abandoned, Capture, Keep, MachineState, Need, Report};
use roost_machine_proto::{BootSpec, DiskSpec, MachineSpec};
use roost_store::{
    ComputerRecord, Finish, Observed, Recorded, SnapshotPurpose, SnapshotStatus, WorkflowKind,
    WorkflowPayload, WorkflowRecord,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::servers::failed as failed_before;
use crate::{Control, Failure};

/// How long a machine gets to shut down cleanly before it is ended. Longer than the machine process's own
/// limit, which is the one that matters; this covers a process that hangs.
const STOP_LIMIT: Duration = Duration::from_secs(120);
/// The same for a machine that saves its memory: the largest one on a slow disk takes minutes, and ending it
/// would lose what it is saving.
const SUSPEND_LIMIT: Duration = Duration::from_secs(900);

const MIB: u64 = 1024 * 1024;
/// Real memory that a computer touches which continues from a template: most of it stays shared.
pub(crate) const WARM_MEMORY: u64 = 192 * MIB;
/// Real memory of a desktop that has just booted; also what one that saved its memory may bring back.
const BOOTED_MEMORY: u64 = 768 * MIB;
/// What a computer that continues from a snapshot needs beside the snapshot's memory.
const MEMORY_BESIDE_SNAPSHOT: u64 = 128 * MIB;
/// Room for what a computer writes while it starts.
pub(crate) const DISK_OF_START: u64 = 256 * MIB;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// The snapshot that the computer continues from is complete.
    AwaitOrigin,
    /// A machine process for this generation exists.
    LaunchMachine,
    /// It reported that the computer is usable.
    AwaitRunning,
    /// Every process that is started in the guest from now on has the computer's variables.
    SetEnvironment,
    /// Machines of older generations were asked to save their memory, or for a restart to shut down.
    AskStop,
    /// They are gone.
    AwaitStopped,
    /// No process of this computer is left.
    EndMachine,
    /// No file of this computer is left.
    RemoveFiles,
    /// No row of this computer is left.
    RemoveRow,
    /// The state of the computer is kept in files, and its disk lies on a new layer.
    Capture,
    /// The rows say so.
    RecordCapture,
    /// No memory is saved beside the disk.
    DropMemory,
    /// The row has the new size.
    RecordSize,
    /// All files of the computer are also in the other region.
    CopyFiles,
    /// The row names the other region.
    SwitchRegion,
    /// No file of the computer is left in the region it was in.
    RemoveSource,
}

/// The steps of each workflow, in order.
pub fn plan(kind: WorkflowKind) -> &'static [Step] {
    match kind {
        WorkflowKind::Create => {
            &[Step::AwaitOrigin, Step::LaunchMachine, Step::AwaitRunning, Step::SetEnvironment]
        }
        WorkflowKind::Start => &[Step::LaunchMachine, Step::AwaitRunning, Step::SetEnvironment],
        WorkflowKind::Stop => &[Step::AskStop, Step::AwaitStopped],
        WorkflowKind::Restart => &[
            Step::AskStop,
            Step::AwaitStopped,
            Step::LaunchMachine,
            Step::AwaitRunning,
            Step::SetEnvironment,
        ],
        WorkflowKind::Delete => &[Step::EndMachine, Step::RemoveFiles, Step::RemoveRow],
        WorkflowKind::Capture => &[Step::Capture, Step::RecordCapture],
        WorkflowKind::Resize => &[Step::DropMemory, Step::RecordSize],
        WorkflowKind::Move => &[Step::CopyFiles, Step::SwitchRegion, Step::RemoveSource],
    }
}

/// Lets tests fail or repeat steps. Outside tests it is [`NoHook`].
pub trait StepHook: Debug + Send + Sync + 'static {
    /// Called after a step did its work; an error makes the step fail all the same.
    fn after(&self, kind: WorkflowKind, step: Step) -> Result<(), String>;
    /// How often each step is run.
    fn runs(&self) -> usize;
}

#[derive(Debug)]
pub struct NoHook;

impl StepHook for NoHook {
    fn after(&self, _kind: WorkflowKind, _step: Step) -> Result<(), String> {
        Ok(())
    }

    fn runs(&self) -> usize {
        1
    }
}

/// The workflows this process is running.
#[derive(Debug)]
pub(crate) struct Engine {
    hook: Arc<dyn StepHook>,
    running: Mutex<HashMap<WorkflowId, Running>>,
    /// This server leaves: others go on.
    left: CancellationToken,
}

#[derive(Debug, Clone)]
struct Running {
    computer: ComputerId,
    kind: WorkflowKind,
    cancel: CancellationToken,
    done: watch::Receiver<Option<Result<(), ApiError>>>,
}

/// Waits for one run to end.
#[derive(Debug)]
pub(crate) struct Handle(Place);

#[derive(Debug)]
enum Place {
    Here(watch::Receiver<Option<Result<(), ApiError>>>),
    /// Another server runs it.
    Elsewhere(Control, Box<WorkflowRecord>),
}

impl Handle {
    fn here(done: watch::Receiver<Option<Result<(), ApiError>>>) -> Self {
        Self(Place::Here(done))
    }

    pub(crate) fn elsewhere(control: Control, workflow: WorkflowRecord) -> Self {
        Self(Place::Elsewhere(control, Box::new(workflow)))
    }

    /// How it ended; the error is for the caller to read.
    pub(crate) async fn ended(self) -> Result<(), ApiError> {
        match self.0 {
            Place::Here(mut done) => match done.wait_for(Option::is_some).await {
                Ok(result) => result.clone().unwrap_or(Ok(())),
                Err(_) => Err(interrupted()),
            },
            Place::Elsewhere(control, workflow) => control.outcome(&workflow).await,
        }
    }
}

fn interrupted() -> ApiError {
    let message = "the workflow was interrupted; it continues when the server is back";
    ApiError::new(ErrorCode::Unavailable, message)
}

impl Engine {
    pub(crate) fn new(hook: Arc<dyn StepHook>) -> Self {
        Self { hook, running: Mutex::default(), left: CancellationToken::new() }
    }

    /// Cancelled when this server leaves.
    pub(crate) fn left(&self) -> CancellationToken {
        self.left.clone()
    }

    /// Stops every run where it is; it is as after a crash.
    pub(crate) async fn leave(&self) {
        self.left.cancel();
        let running: Vec<Running> =
            self.running.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for run in running {
            // How it ended is not our matter any more.
            drop(Handle::here(run.done).ended().await);
        }
    }

    /// The run at work on `computer`, if any.
    pub(crate) fn handle(&self, computer: ComputerId) -> Option<Handle> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().find(|run| run.computer == computer).map(|run| Handle::here(run.done.clone()))
    }

    /// The runs that read layers.
    pub(crate) fn launching(&self) -> Vec<Handle> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running
            .values()
            .filter(|run| run.kind.reads_layers())
            .map(|run| Handle::here(run.done.clone()))
            .collect()
    }

    /// Asks the run at work on `computer` to give up, and returns what to wait for.
    pub(crate) fn cancel(&self, computer: ComputerId) -> Option<Handle> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().find(|run| run.computer == computer).map(|run| {
            run.cancel.cancel();
            Handle::here(run.done.clone())
        })
    }
}

impl Control {
    /// Runs a workflow in a task of its own, so that a caller who goes away does not stop it half-way. One that
    /// another server runs, or comes to run, is waited for.
    pub(crate) fn run_workflow(&self, workflow: WorkflowRecord) -> Handle {
        let (sender, done) = watch::channel(None);
        let cancel = CancellationToken::new();
        let (computer, kind) = (workflow.computer, workflow.kind);
        {
            let mut running = self.inner.engine.running.lock().unwrap_or_else(PoisonError::into_inner);
            match running.entry(workflow.id) {
                // Several look for what nobody runs.
                Entry::Occupied(run) => return Handle::here(run.get().done.clone()),
                Entry::Vacant(place) => {
                    place.insert(Running { computer, kind, cancel: cancel.clone(), done: done.clone() });
                }
            }
        }
        let control = self.clone();
        tokio::spawn(async move {
            let left = control.inner.engine.left();
            let result = left.run_until_cancelled(control.claim_and_drive(&workflow, &cancel)).await;
            let result = result.unwrap_or_else(|| Err(interrupted()));
            if let Err(error) = &result {
                let error = &error.message;
                tracing::warn!(%computer, kind = kind.as_str(), error, "workflow failed");
            }
            let engine = &control.inner.engine;
            engine.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&workflow.id);
            control.inner.hub.notify(computer);
            if let Some(WorkflowPayload::Capture { snapshot, .. }) = workflow.payload {
                control.inner.snapshot_hub.notify(snapshot);
            }
            if kind == WorkflowKind::Create && result.is_ok() {
                control.warm_for(computer).await;
            }
            // It may have been the last that needed a snapshot or a layer.
            control.inner.storage.changed();
            sender.send_replace(Some(result));
        });
        Handle::here(done)
    }

    async fn claim_and_drive(
        &self,
        workflow: &WorkflowRecord,
        cancel: &CancellationToken,
    ) -> Result<(), ApiError> {
        let mut changes = self.inner.hub.subscribe(workflow.computer);
        loop {
            // Also one that this server lost and that is nobody's again.
            if let Some(claimed) = self.persist(|| self.inner.store.claim_workflow(workflow.id)).await {
                if claimed.is_cancelled {
                    cancel.cancel();
                }
                if let Some(result) = self.drive(&claimed, cancel).await {
                    return result;
                }
                tracing::warn!(computer = %workflow.computer, kind = workflow.kind.as_str(),
                    "another server has taken a workflow over");
            }
            if let Some(result) = self.result(workflow).await {
                return result;
            }
            if changes.changed().await.is_err() {
                changes = self.inner.hub.subscribe(workflow.computer);
            }
        }
    }

    /// Forward through the plan, or back; then the row is closed. Database errors are tried again for ever:
    /// a workflow must not be forgotten because the disk was full for a minute. `None`: it is another server's now.
    async fn drive(
        &self,
        workflow: &WorkflowRecord,
        cancel: &CancellationToken,
    ) -> Option<Result<(), ApiError>> {
        let steps = plan(workflow.kind);
        let mut failed = workflow.error.clone().map(|error| {
            (workflow.step.min(steps.len() - 1), failed_before(error, workflow.error_code.as_deref()))
        });
        if failed.is_none() {
            for (index, step) in steps.iter().copied().enumerate() {
                tracing::debug!(computer = %workflow.computer, kind = workflow.kind.as_str(), ?step, "step");
                let result = tokio::select! {
                    biased;
                    () = cancel.cancelled() => {
                        Err(ApiError::new(ErrorCode::InvalidState, "it was given up: the computer is being deleted"))
                    }
                    result = self.step(workflow, step) => result,
                };
                if let Err(error) = result {
                    if !self.persist(|| self.inner.store.fail_workflow(workflow.id, index, &error)).await {
                        return None;
                    }
                    failed = Some((index, error));
                    break;
                }
                // Only read: how far it got is not written down, because every step notices what is done already.
                if !self.persist(|| self.inner.store.owns_workflow(workflow.id)).await {
                    return None;
                }
            }
        }
        let finish = match &failed {
            None => Finish::Done,
            Some((index, error)) => {
                for step in steps[..=*index].iter().rev().copied() {
                    self.undo(workflow, step, &error.message).await;
                }
                if workflow.kind == WorkflowKind::Stop && self.runs(workflow).await {
                    Finish::StillRunning
                } else {
                    Finish::Failed(error.message.clone())
                }
            }
        };
        if !self.persist(|| self.inner.store.finish_workflow(workflow, &finish)).await {
            return None;
        }
        Some(failed.map_or(Ok(()), |(_, error)| Err(error)))
    }

    pub(crate) async fn persist<'a, T, F, Fut>(&'a self, write: F) -> T
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<T, roost_store::StoreError>> + 'a,
    {
        let mut pause = Duration::from_millis(100);
        loop {
            match write().await {
                Ok(written) => return written,
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "failed to record or to read a workflow; trying again"
                ),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }

    async fn step(&self, workflow: &WorkflowRecord, step: Step) -> Result<(), ApiError> {
        let hook = &self.inner.engine.hook;
        for _ in 0..hook.runs() {
            self.perform(workflow, step).await.map_err(|failure| {
                tracing::warn!(computer = %workflow.computer, ?step, failure = &failure as &dyn std::error::Error,
                    "step failed");
                failure.public
            })?;
        }
        hook.after(workflow.kind, step).map_err(|error| ApiError::new(ErrorCode::Internal, error))
    }

    async fn perform(&self, workflow: &WorkflowRecord, step: Step) -> Result<(), Failure> {
        let computer = workflow.computer;
        match step {
            Step::AwaitOrigin => self.await_origin(computer).await,
            Step::LaunchMachine => {
                let record = self.record(computer).await?;
                let launcher = self.inner.regions.of(&record.region)?;
                let (spec, need) = self.machine_spec(&record).await?;
                // One that is there already takes nothing more.
                let there = launcher.watch(computer).next().await.is_some_and(|state| {
                    state.generation == record.generation && state.report != Report::Vanished
                });
                if !there {
                    launcher.admit(&need).await?;
                }
                launcher.launch(&spec).await?;
                self.inner.guests.forget(computer);
                self.observe(&record);
                Ok(())
            }
            Step::AwaitRunning => self.await_running(computer, workflow.generation).await,
            Step::SetEnvironment => self.give_environment(&self.record(computer).await?).await,
            Step::AskStop => {
                if self.runs_older(workflow).await {
                    let launcher = self.launcher_of(computer).await?;
                    match workflow.kind {
                        WorkflowKind::Stop => launcher.suspend(computer).await?,
                        _ => launcher.stop(computer).await?,
                    }
                }
                Ok(())
            }
            Step::AwaitStopped => {
                if self.runs_older(workflow).await {
                    let launcher = self.launcher_of(computer).await?;
                    let gone = launcher.watch(computer).filter(|state| {
                        let is_final = state.report.is_final();
                        async move { is_final }
                    });
                    let gone = std::pin::pin!(gone);
                    let limit = if workflow.kind == WorkflowKind::Stop { SUSPEND_LIMIT } else { STOP_LIMIT };
                    if tokio::time::timeout(limit, gone.into_future()).await.is_err() {
                        tracing::warn!(%computer, "the machine did not shut down in time and is ended");
                        launcher.end(computer).await?;
                    }
                }
                self.inner.guests.forget(computer);
                // A restart has its eyes on the next generation already, which has not begun.
                if workflow.kind == WorkflowKind::Stop {
                    // A report that is still on its way to the row must not come after this one.
                    self.inner.observers.caught_up(computer).await;
                    let store = &self.inner.store;
                    store.observe(computer, workflow.generation, Observed::Stopped, None, None).await?;
                }
                Ok(())
            }
            Step::EndMachine => {
                self.inner.observers.forget(computer).await;
                self.inner.guests.forget(computer);
                self.end_everywhere(computer).await
            }
            // Run again, it finds no row that says where they were.
            Step::RemoveFiles => {
                for launcher in self.inner.regions.all() {
                    launcher.remove(computer).await?;
                }
                Ok(())
            }
            Step::RemoveRow => Ok(self.inner.store.remove_computer(computer).await?),
            Step::Capture => {
                let capture = capture(workflow)?;
                let Some(keep) = self.to_record(&capture).await? else { return Ok(()) };
                self.inner.store.snapshot_progress(capture.snapshot, "capturing", 10).await?;
                self.inner.snapshot_hub.notify(capture.snapshot);
                self.launcher_of(computer).await?.capture(computer, &capture, keep).await?;
                Ok(())
            }
            Step::RecordCapture => {
                let capture = capture(workflow)?;
                let Some(keep) = self.to_record(&capture).await? else { return Ok(()) };
                // It is kept already and answers again.
                let captured = self.launcher_of(computer).await?.capture(computer, &capture, keep).await?;
                let recorded = Recorded {
                    disk_bytes: captured.disk_bytes,
                    memory_bytes: captured.memory_bytes,
                    pause_us: captured
                        .pause
                        .map(|pause| u64::try_from(pause.as_micros()).unwrap_or(u64::MAX)),
                };
                let store = &self.inner.store;
                store.record_capture(computer, capture.snapshot, capture.layer, &recorded).await?;
                self.inner.snapshot_hub.notify(capture.snapshot);
                self.inner.hub.wake();
                Ok(())
            }
            // Before the size: memory of another size must never be beside a disk.
            Step::DropMemory => Ok(self.launcher_of(computer).await?.drop_memory(computer).await?),
            Step::RecordSize => Ok(self.inner.store.resize_computer(computer, new_size(workflow)?).await?),
            Step::CopyFiles => self.copy_files(workflow).await,
            Step::SwitchRegion => self.switch_region(workflow).await,
            Step::RemoveSource => self.remove_elsewhere(workflow).await,
        }
    }

    /// Takes back what a step did, as far as something would be left over otherwise. The disk is never
    /// taken back: a computer whose start failed keeps its files, and its next start finds them. A restart that
    /// failed half-way is completed by force: nobody would be left to look after a machine that is neither. A
    /// stop is not: the memory that could not be saved is all there is of what the user did.
    async fn undo(&self, workflow: &WorkflowRecord, step: Step, reason: &str) {
        let computer = workflow.computer;
        match step {
            Step::AskStop if workflow.kind == WorkflowKind::Stop && self.runs(workflow).await => {}
            Step::LaunchMachine | Step::AskStop => {
                let mut pause = Duration::from_millis(100);
                while let Err(failure) = self.end_everywhere(computer).await {
                    tracing::error!(%computer, failure = &failure as &dyn std::error::Error,
                        "failed to end a machine; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(10));
                }
                // Its end, unless it had reported one itself. A report still under way must not come after.
                self.inner.observers.caught_up(computer).await;
                self.persist(|| async {
                    let record = self.inner.store.computer(computer).await?;
                    let ended = record.is_some_and(|record| {
                        matches!(record.observed, Observed::Failed | Observed::Stopped | Observed::Absent)
                    });
                    if !ended {
                        let generation = workflow.generation;
                        self.inner.store.observe(computer, generation, Observed::Absent, None, None).await?;
                    }
                    Ok(())
                })
                .await;
            }
            Step::Capture => {
                if let Ok(capture) = capture(workflow) {
                    self.abandon(computer, &capture, reason).await;
                }
            }
            Step::CopyFiles | Step::SwitchRegion | Step::RemoveSource => {
                self.surely_remove_elsewhere(workflow).await;
            }
            Step::AwaitOrigin
            | Step::AwaitRunning
            | Step::SetEnvironment
            | Step::AwaitStopped
            | Step::EndMachine
            | Step::RemoveFiles
            | Step::RemoveRow
            | Step::RecordCapture
            | Step::DropMemory
            | Step::RecordSize => {}
        }
    }

    /// Ends whatever machine the computer has. There is one at most, but for a row that is gone nobody knows where.
    async fn end_everywhere(&self, computer: ComputerId) -> Result<(), Failure> {
        for launcher in self.inner.regions.all() {
            launcher.end(computer).await?;
        }
        Ok(())
    }

    /// How a capture is to be kept; `None` where an earlier run of this workflow has recorded it. The snapshot may have
    /// been used and freed since; a second capture under its name would be of another state.
    async fn to_record(&self, capture: &Capture) -> Result<Option<Keep>, Failure> {
        let snapshot = self.inner.store.snapshot(capture.snapshot).await?;
        let creating = snapshot.filter(|snapshot| snapshot.status == SnapshotStatus::Creating);
        Ok(creating.map(|snapshot| match snapshot.purpose {
            SnapshotPurpose::Clone => Keep::Passing,
            SnapshotPurpose::Snapshot => Keep::Lasting,
        }))
    }

    /// Gives a capture up, unless it is recorded: then it is a fact that others may build on already.
    async fn abandon(&self, computer: ComputerId, capture: &Capture, reason: &str) {
        let mut pause = Duration::from_millis(100);
        loop {
            match self.try_abandon(computer, capture, reason).await {
                Ok(()) => break,
                Err(failure) => {
                    tracing::error!(%computer, failure = &failure as &dyn std::error::Error,
                        "failed to give a capture up; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(10));
                }
            }
        }
        self.inner.snapshot_hub.notify(capture.snapshot);
    }

    async fn try_abandon(
        &self,
        computer: ComputerId,
        capture: &Capture,
        reason: &str,
    ) -> Result<(), Failure> {
        let store = &self.inner.store;
        let found = store.snapshot(capture.snapshot).await?;
        if found.is_some_and(|found| found.status == SnapshotStatus::Ready) {
            return Ok(());
        }
        let layer = match self.launcher_of(computer).await?.abandon(computer, capture).await? {
            Abandoned::Untouched => None,
            Abandoned::LayerInUse { disk_bytes } => Some((capture.layer, disk_bytes)),
        };
        Ok(store.fail_capture(computer, capture.snapshot, layer, reason).await?)
    }

    /// Whether the machine that this workflow speaks to still runs.
    async fn runs(&self, workflow: &WorkflowRecord) -> bool {
        let now = self.newest_state(workflow.computer).await;
        now.is_some_and(|state| state.generation == workflow.generation && !state.report.is_final())
    }

    async fn newest_state(&self, computer: ComputerId) -> Option<MachineState> {
        // One that is gone, or in a region that is, has no machine that anybody here can speak to.
        self.launcher_of(computer).await.ok()?.watch(computer).next().await
    }

    /// Whether a machine runs that this workflow is to stop. A restart that is run again after a crash must
    /// not stop the machine it has already started.
    async fn runs_older(&self, workflow: &WorkflowRecord) -> bool {
        let now = self.newest_state(workflow.computer).await;
        now.is_some_and(|state| {
            let older = match workflow.kind {
                WorkflowKind::Restart => state.generation < workflow.generation,
                WorkflowKind::Create
                | WorkflowKind::Start
                | WorkflowKind::Stop
                | WorkflowKind::Delete
                | WorkflowKind::Capture
                | WorkflowKind::Resize
                | WorkflowKind::Move => true,
            };
            older && !state.report.is_final()
        })
    }

    async fn await_running(&self, computer: ComputerId, generation: u64) -> Result<(), Failure> {
        let mut changes = self.inner.hub.subscribe(computer);
        loop {
            let record = self.record(computer).await?;
            if record.generation == generation {
                match record.observed {
                    Observed::Running => return Ok(()),
                    Observed::Failed => return Err(start_failed(record.failure.as_deref())),
                    Observed::Stopped => {
                        return Err(start_failed(Some("the computer turned itself off while it booted")));
                    }
                    Observed::Absent | Observed::Preparing | Observed::Booting | Observed::Stopping => {}
                }
            }
            // The hub lives as long as this control plane.
            if changes.changed().await.is_err() {
                changes = self.inner.hub.subscribe(computer);
            }
        }
    }

    async fn await_origin(&self, computer: ComputerId) -> Result<(), Failure> {
        let Some(origin) = self.record(computer).await?.snapshot else { return Ok(()) };
        let mut changes = self.inner.snapshot_hub.subscribe(origin);
        loop {
            let snapshot =
                self.inner.store.snapshot(origin).await?.ok_or_else(Failure::snapshot_not_found)?;
            match snapshot.status {
                SnapshotStatus::Ready => return Ok(()),
                SnapshotStatus::Failed | SnapshotStatus::Deleted => {
                    return Err(origin_failed(snapshot.error.as_deref()));
                }
                SnapshotStatus::Creating => {}
            }
            // The hub lives as long as this control plane.
            if changes.changed().await.is_err() {
                changes = self.inner.snapshot_hub.subscribe(origin);
            }
        }
    }

    /// What to start, and what that will take.
    async fn machine_spec(&self, record: &ComputerRecord) -> Result<(MachineSpec, Need), Failure> {
        let template = self.inner.templates.build(&record.template_type, &record.template_digest)?;
        let template = template.ok_or_else(|| {
            Failure::new(
                ErrorCode::NoReadyMachine,
                format!(
                    "the template {} {} that this computer was made from is missing on this host; \
                     restore its directory below templates/",
                    record.template_type, record.template_digest
                ),
            )
        })?;
        let launcher = self.inner.regions.of(&record.region)?;
        let size_gib = record.disk_gib;
        // Until the first start has succeeded the disk is made anew: nothing of the user is on it.
        let (disk, memory) = if record.provisioned {
            (DiskSpec::Existing, BOOTED_MEMORY)
        } else if let Some(origin) = record.snapshot {
            let snapshot =
                self.inner.store.snapshot(origin).await?.ok_or_else(Failure::snapshot_not_found)?;
            let layer = snapshot.layer.ok_or_else(|| origin_failed(snapshot.error.as_deref()))?;
            let memory = snapshot.memory_bytes.map(|_| launcher.memory(origin));
            let need = snapshot.memory_bytes.map_or(BOOTED_MEMORY, |bytes| bytes + MEMORY_BESIDE_SNAPSHOT);
            (DiskSpec::New { base: launcher.layer(layer), size_gib, memory }, need)
        } else if let Some(layer) = record.layer {
            (DiskSpec::New { base: launcher.layer(layer), size_gib, memory: None }, BOOTED_MEMORY)
        } else {
            let (name, digest) = (&record.template_type, &record.template_digest);
            match self.inner.templates.warm(name, digest, record.size)? {
                Some(warm) => {
                    let memory = Some(warm.memory);
                    (DiskSpec::New { base: warm.disk, size_gib, memory }, WARM_MEMORY)
                }
                None => (DiskSpec::New { base: template.base, size_gib, memory: None }, BOOTED_MEMORY),
            }
        };
        let spec = MachineSpec {
            computer: record.id,
            generation: record.generation,
            hostname: record.slug.clone(),
            machine_id: record.id.as_uuid().simple().to_string(),
            vcpus: record.size.vcpus(),
            memory: record.size.memory(),
            disk,
            boot: BootSpec { kernel: template.kernel, initrd: template.initrd },
            accelerator: self.inner.config.accelerator,
            network: self.inner.config.network.clone(),
        };
        Ok((spec, Need { memory, disk: DISK_OF_START }))
    }

    /// Whether a region has room for one more: asked before anything is promised, and again when it starts.
    pub(crate) async fn admit(&self, region: &RegionName, start: Start) -> Result<(), Failure> {
        let memory = match start {
            Start::Warm => WARM_MEMORY,
            Start::Booted | Start::Snapshot { memory_bytes: None } => BOOTED_MEMORY,
            Start::Snapshot { memory_bytes: Some(bytes) } => bytes + MEMORY_BESIDE_SNAPSHOT,
        };
        Ok(self.inner.regions.of(region)?.admit(&Need { memory, disk: DISK_OF_START }).await?)
    }
}

/// What a computer is to start from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start {
    /// A template with memory.
    Warm,
    /// A disk, perhaps with memory of a size nobody knows yet.
    Booted,
    Snapshot {
        memory_bytes: Option<u64>,
    },
}

fn capture(workflow: &WorkflowRecord) -> Result<Capture, Failure> {
    match workflow.payload {
        Some(WorkflowPayload::Capture { snapshot, layer }) => Ok(Capture { snapshot, layer }),
        Some(WorkflowPayload::Resize { .. } | WorkflowPayload::Move { .. }) | None => {
            Err(without_payload(workflow))
        }
    }
}

fn new_size(workflow: &WorkflowRecord) -> Result<Size, Failure> {
    match workflow.payload {
        Some(WorkflowPayload::Resize { size }) => Ok(size),
        Some(WorkflowPayload::Capture { .. } | WorkflowPayload::Move { .. }) | None => {
            Err(without_payload(workflow))
        }
    }
}

pub(crate) fn without_payload(workflow: &WorkflowRecord) -> Failure {
    let what = format!("the {} workflow {} does not say what to do", workflow.kind.as_str(), workflow.id);
    Failure::internal(std::io::Error::other(what))
}

fn origin_failed(reason: Option<&str>) -> Failure {
    let reason = reason.unwrap_or("it is gone");
    let message = format!("the state to continue from could not be kept: {reason}");
    Failure::new(ErrorCode::StartFailed, message)
}

fn start_failed(reason: Option<&str>) -> Failure {
    let reason = reason.unwrap_or("no reason was reported");
    Failure::new(ErrorCode::StartFailed, format!("the computer failed to start: {reason}"))
}

/// The row's words for a report.
pub(crate) fn observed(report: &Report) -> Observed {
    match report {
        Report::Preparing => Observed::Preparing,
        Report::Booting => Observed::Booting,
        Report::Running => Observed::Running,
        Report::Stopping => Observed::Stopping,
        Report::Stopped => Observed::Stopped,
        Report::Failed { .. } | Report::Vanished => Observed::Failed,
    }
}
