//! Durable workflows: create, start, stop, restart, delete.
//!
//! A workflow is a fixed list of named steps ([`plan`]). Each step may be run twice with the same result,
//! each has an undo (often nothing), and the row in SQL says how far it is. After a crash of the control
//! plane every unfinished workflow is run again from its first step: steps that are done already notice.
//! When a step fails, the steps before it are undone in reverse and the computer is left in a state its
//! status names. One computer has at most one workflow; the database enforces it.
//!
//! ```text
//!   create, start   LaunchMachine -> AwaitRunning
//!   stop            AskStop -> AwaitStopped
//!   restart         AskStop -> AwaitStopped -> LaunchMachine -> AwaitRunning
//!   delete          EndMachine -> RemoveFiles -> RemoveRow
//! ```

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use roost_api::{ComputerId, WorkflowId};
use roost_launch::Report;
use roost_machine_proto::{BootSpec, DiskSpec, MachineSpec};
use roost_store::{ComputerRecord, Finish, Observed, WorkflowKind, WorkflowRecord};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Control, Failure};

/// How long a machine gets to shut down cleanly before it is ended. Longer than the machine process's own
/// limit, which is the one that matters; this covers a process that hangs.
const STOP_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// A machine process for this generation exists.
    LaunchMachine,
    /// It reported that the computer is usable.
    AwaitRunning,
    /// Machines of older generations were asked to shut down.
    AskStop,
    /// They are gone.
    AwaitStopped,
    /// No process of this computer is left.
    EndMachine,
    /// No file of this computer is left.
    RemoveFiles,
    /// No row of this computer is left.
    RemoveRow,
}

/// The steps of each workflow, in order.
pub fn plan(kind: WorkflowKind) -> &'static [Step] {
    match kind {
        WorkflowKind::Create | WorkflowKind::Start => &[Step::LaunchMachine, Step::AwaitRunning],
        WorkflowKind::Stop => &[Step::AskStop, Step::AwaitStopped],
        WorkflowKind::Restart => {
            &[Step::AskStop, Step::AwaitStopped, Step::LaunchMachine, Step::AwaitRunning]
        }
        WorkflowKind::Delete => &[Step::EndMachine, Step::RemoveFiles, Step::RemoveRow],
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
}

#[derive(Debug, Clone)]
struct Running {
    computer: ComputerId,
    cancel: CancellationToken,
    done: watch::Receiver<Option<Result<(), String>>>,
}

/// Waits for one run to end.
#[derive(Debug)]
pub(crate) struct Handle(watch::Receiver<Option<Result<(), String>>>);

impl Handle {
    /// How it ended; the error is for the caller to read.
    pub(crate) async fn ended(mut self) -> Result<(), String> {
        match self.0.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err("the workflow was interrupted; it continues when the server is back".to_owned()),
        }
    }
}

impl Engine {
    pub(crate) fn new(hook: Arc<dyn StepHook>) -> Self {
        Self { hook, running: Mutex::default() }
    }

    /// The run at work on `computer`, if any.
    pub(crate) fn handle(&self, computer: ComputerId) -> Option<Handle> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().find(|run| run.computer == computer).map(|run| Handle(run.done.clone()))
    }

    /// Asks the run at work on `computer` to give up, and returns what to wait for.
    pub(crate) fn cancel(&self, computer: ComputerId) -> Option<Handle> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().find(|run| run.computer == computer).map(|run| {
            run.cancel.cancel();
            Handle(run.done.clone())
        })
    }
}

impl Control {
    /// Runs a workflow in a task of its own, so that a caller who goes away does not stop it half-way.
    pub(crate) fn run_workflow(&self, workflow: WorkflowRecord) -> Handle {
        let (sender, done) = watch::channel(None);
        let cancel = CancellationToken::new();
        let run = Running { computer: workflow.computer, cancel: cancel.clone(), done: done.clone() };
        let engine = &self.inner.engine;
        engine.running.lock().unwrap_or_else(PoisonError::into_inner).insert(workflow.id, run);
        let control = self.clone();
        tokio::spawn(async move {
            let result = control.drive(&workflow, &cancel).await;
            if let Err(error) = &result {
                tracing::warn!(computer = %workflow.computer, kind = workflow.kind.as_str(), error, "workflow failed");
            }
            let engine = &control.inner.engine;
            engine.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&workflow.id);
            control.inner.hub.notify(workflow.computer);
            sender.send_replace(Some(result));
        });
        Handle(done)
    }

    /// Forward through the plan, or back; then the row is closed. Database errors are tried again for ever:
    /// a workflow must not be forgotten because the disk was full for a minute.
    async fn drive(&self, workflow: &WorkflowRecord, cancel: &CancellationToken) -> Result<(), String> {
        let steps = plan(workflow.kind);
        let mut failed = workflow.error.clone().map(|error| (workflow.step.min(steps.len() - 1), error));
        if failed.is_none() {
            for (index, step) in steps.iter().copied().enumerate() {
                tracing::debug!(computer = %workflow.computer, kind = workflow.kind.as_str(), ?step, "step");
                let result = tokio::select! {
                    biased;
                    () = cancel.cancelled() => Err("it was given up for a delete".to_owned()),
                    result = self.step(workflow, step) => result,
                };
                if let Err(error) = result {
                    self.persist(|| self.inner.store.fail_workflow(workflow.id, &error)).await;
                    failed = Some((index, error));
                    break;
                }
                self.persist(|| self.inner.store.advance_workflow(workflow.id, index + 1)).await;
            }
        }
        let finish = match &failed {
            None => Finish::Done,
            Some((index, error)) => {
                for step in steps[..=*index].iter().rev().copied() {
                    self.undo(workflow, step).await;
                }
                Finish::Failed(error.clone())
            }
        };
        self.persist(|| self.inner.store.finish_workflow(workflow, &finish)).await;
        failed.map_or(Ok(()), |(_, error)| Err(error))
    }

    async fn persist<'a, F, Fut>(&'a self, write: F)
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<(), roost_store::StoreError>> + 'a,
    {
        let mut pause = Duration::from_millis(100);
        while let Err(error) = write().await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "failed to record a workflow; trying again"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }

    async fn step(&self, workflow: &WorkflowRecord, step: Step) -> Result<(), String> {
        let hook = &self.inner.engine.hook;
        for _ in 0..hook.runs() {
            self.perform(workflow, step).await.map_err(|failure| {
                tracing::warn!(computer = %workflow.computer, ?step, failure = &failure as &dyn std::error::Error,
                    "step failed");
                failure.public.message
            })?;
        }
        hook.after(workflow.kind, step)
    }

    async fn perform(&self, workflow: &WorkflowRecord, step: Step) -> Result<(), Failure> {
        let computer = workflow.computer;
        let launcher = &self.inner.launcher;
        match step {
            Step::LaunchMachine => {
                let record = self.record(computer).await?;
                let spec = self.machine_spec(&record)?;
                launcher.launch(&spec).await?;
                self.inner.guests.forget(computer);
                self.observe(computer);
                Ok(())
            }
            Step::AwaitRunning => self.await_running(computer, workflow.generation).await,
            Step::AskStop => {
                if self.runs_older(workflow).await {
                    launcher.stop(computer).await?;
                }
                Ok(())
            }
            Step::AwaitStopped => {
                if self.runs_older(workflow).await {
                    let gone = launcher.watch(computer).filter(|state| {
                        let is_final = state.report.is_final();
                        async move { is_final }
                    });
                    let gone = std::pin::pin!(gone);
                    if tokio::time::timeout(STOP_LIMIT, gone.into_future()).await.is_err() {
                        tracing::warn!(%computer, "the machine did not shut down in time and is ended");
                        launcher.end(computer).await?;
                    }
                }
                self.inner.guests.forget(computer);
                // A restart has its eyes on the next generation already, which has not begun.
                if workflow.kind == WorkflowKind::Stop {
                    // A report that is still on its way to the row must not come after this one.
                    self.inner.observers.caught_up(computer).await;
                    self.inner.store.observe(computer, workflow.generation, Observed::Stopped, None).await?;
                }
                Ok(())
            }
            Step::EndMachine => {
                self.inner.observers.forget(computer).await;
                self.inner.guests.forget(computer);
                Ok(launcher.end(computer).await?)
            }
            Step::RemoveFiles => Ok(launcher.remove(computer).await?),
            Step::RemoveRow => Ok(self.inner.store.remove_computer(computer).await?),
        }
    }

    /// Takes back what a step did, as far as something would be left over otherwise. The disk is never
    /// taken back: a computer whose start failed keeps its files, and its next start finds them. A stop that
    /// failed half-way is completed by force: nobody would be left to look after a machine that is neither.
    async fn undo(&self, workflow: &WorkflowRecord, step: Step) {
        match step {
            Step::LaunchMachine | Step::AskStop => {
                let mut pause = Duration::from_millis(100);
                while let Err(error) = self.inner.launcher.end(workflow.computer).await {
                    tracing::error!(computer = %workflow.computer, error = &error as &dyn std::error::Error,
                        "failed to end a machine; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(10));
                }
                // Its end, unless it had reported one itself. A report still under way must not come after.
                self.inner.observers.caught_up(workflow.computer).await;
                self.persist(|| async {
                    let record = self.inner.store.computer(workflow.computer).await?;
                    let ended = record.is_some_and(|record| {
                        matches!(record.observed, Observed::Failed | Observed::Stopped | Observed::Absent)
                    });
                    if !ended {
                        let (computer, generation) = (workflow.computer, workflow.generation);
                        self.inner.store.observe(computer, generation, Observed::Absent, None).await?;
                    }
                    Ok(())
                })
                .await;
            }
            Step::AwaitRunning
            | Step::AwaitStopped
            | Step::EndMachine
            | Step::RemoveFiles
            | Step::RemoveRow => {}
        }
    }

    /// Whether a machine runs that this workflow is to stop. A restart that is run again after a crash must
    /// not stop the machine it has already started.
    async fn runs_older(&self, workflow: &WorkflowRecord) -> bool {
        let now = self.inner.launcher.watch(workflow.computer).next().await;
        now.is_some_and(|state| {
            let older = match workflow.kind {
                WorkflowKind::Restart => state.generation < workflow.generation,
                WorkflowKind::Create | WorkflowKind::Start | WorkflowKind::Stop | WorkflowKind::Delete => {
                    true
                }
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

    fn machine_spec(&self, record: &ComputerRecord) -> Result<MachineSpec, Failure> {
        let template = self.inner.templates.build(&record.template_type, &record.template_digest)?;
        let template = template.ok_or_else(|| {
            Failure::new(
                roost_api::ErrorCode::NoReadyMachine,
                format!(
                    "the template {} {} that this computer was made from is missing on this host; \
                     restore its directory below templates/",
                    record.template_type, record.template_digest
                ),
            )
        })?;
        let disk = if record.provisioned {
            DiskSpec::Existing
        } else {
            DiskSpec::New { base: template.base, size_gib: record.size.disk_gib(), memory: None }
        };
        Ok(MachineSpec {
            computer: record.id,
            generation: record.generation,
            hostname: record.slug.clone(),
            machine_id: record.id.as_uuid().simple().to_string(),
            vcpus: record.size.vcpus(),
            memory: record.size.memory(),
            disk,
            boot: BootSpec { kernel: template.kernel, initrd: template.initrd },
            accelerator: self.inner.config.accelerator,
            env: std::collections::BTreeMap::new(),
            network: self.inner.config.network.clone(),
        })
    }
}

fn start_failed(reason: Option<&str>) -> Failure {
    let reason = reason.unwrap_or("no reason was reported");
    Failure::new(roost_api::ErrorCode::StartFailed, format!("the computer failed to start: {reason}"))
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
