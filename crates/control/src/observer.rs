//! Takes in what machines report, and reconciles what workflows cannot promise.
//!
//! One task per machine follows its reports into the database and wakes who waits. At the start of the
//! control plane [`Control::reconcile`] holds rows, processes and files against each other.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use futures_util::StreamExt;
use roost_api::{ComputerId, RegionName};
use roost_launch::{MachineState, Report};
use roost_store::{ComputerRecord, Desired, Observed, WorkflowKind};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::workflow::observed;
use crate::{Control, Failure};

const VANISHED: &str = "the machine process ended without a word (it was killed, or the host restarted); \
                        start the computer again: its disk is kept";

#[derive(Debug, Default)]
pub(crate) struct Observers {
    running: Mutex<HashMap<ComputerId, Observer>>,
}

/// A task that is asked to end and never aborted: a write it had begun would go on in the database by itself
/// and could come after everything that is written from now on.
#[derive(Debug)]
struct Observer {
    task: JoinHandle<()>,
    end: CancellationToken,
}

impl Observer {
    async fn ended(self) {
        // It fails only by a panic, which has been logged.
        drop(self.task.await);
    }
}

impl Observers {
    fn take(&self, computer: ComputerId) -> Option<Observer> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&computer)
    }

    /// Whether a machine is followed. One that has ended is not.
    fn follows(&self, computer: ComputerId) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.get(&computer).is_some_and(|observer| !observer.task.is_finished())
    }

    /// Ends the following; what was being recorded is recorded when this returns.
    pub(crate) async fn forget(&self, computer: ComputerId) {
        if let Some(observer) = self.take(computer) {
            observer.end.cancel();
            observer.ended().await;
        }
    }

    /// Waits until everything a machine that has ended did report is recorded.
    pub(crate) async fn caught_up(&self, computer: ComputerId) {
        if let Some(observer) = self.take(computer) {
            observer.ended().await;
        }
    }
}

impl Control {
    /// Follows the computer's machine from now on, instead of an earlier one.
    pub(crate) fn observe(&self, record: &ComputerRecord) {
        let computer = record.id;
        let launcher = match self.inner.regions.of(&record.region) {
            Ok(launcher) => launcher.clone(),
            Err(failure) => {
                tracing::warn!(%computer, "its machine is not followed: {failure}");
                return;
            }
        };
        let control = self.clone();
        let end = CancellationToken::new();
        let ended = end.clone();
        let mut running = self.inner.observers.running.lock().unwrap_or_else(PoisonError::into_inner);
        let older = running.remove(&computer);
        let task = tokio::spawn(async move {
            if let Some(older) = older {
                older.end.cancel();
                older.ended().await;
            }
            let mut states = launcher.watch(computer);
            let mut sampling = None;
            while let Some(Some(state)) = ended.run_until_cancelled(states.next()).await {
                sampling = match state.report {
                    Report::Running => Some(sampling.unwrap_or_else(|| control.sample(computer))),
                    Report::Preparing | Report::Booting | Report::Stopping => None,
                    Report::Stopped | Report::Failed { .. } | Report::Vanished => None,
                };
                control.take_in(computer, &state).await;
            }
        });
        running.insert(computer, Observer { task, end });
    }

    async fn take_in(&self, computer: ComputerId, state: &MachineState) {
        tracing::info!(%computer, generation = state.generation, report = report_name(&state.report), "machine");
        let none: &[String] = &[];
        let failure = match &state.report {
            Report::Failed { reason, console } => Some((reason.as_str(), console.as_slice())),
            Report::Vanished => Some((VANISHED, none)),
            Report::Preparing | Report::Booting | Report::Running | Report::Stopping | Report::Stopped => {
                None
            }
        };
        let store = &self.inner.store;
        let memory_lost = state.memory_lost.as_deref();
        if let Some(reason) = memory_lost {
            tracing::warn!(%computer, reason, "booted although there was saved memory");
        }
        let recorded =
            store.observe(computer, state.generation, observed(&state.report), failure, memory_lost).await;
        if let Err(error) = recorded {
            tracing::error!(%computer, error = &error as &dyn std::error::Error, "failed to record a report");
        }
        if state.report.is_final() {
            self.inner.guests.forget(computer);
        }
        // It turned itself off: that is now what is wanted. Not while a workflow is at work, which knows.
        if state.report == Report::Stopped
            && let Err(error) =
                store.settle(computer, state.generation, Desired::Running, Desired::Stopped).await
        {
            tracing::error!(%computer, error = &error as &dyn std::error::Error, "failed to record a shutdown");
        }
        self.inner.hub.notify(computer);
    }

    /// Follows every machine that runs and is not followed here: whoever did it may be gone. Only what may be
    /// done beside other servers.
    pub(crate) async fn adopt(&self) -> Result<(), Failure> {
        let store = &self.inner.store;
        for record in store.all_computers().await? {
            let computer = record.id;
            let busy = record.intended.is_some_and(|kind| !kind.is_brief());
            let runs = record.desired == Desired::Running
                && match record.observed {
                    Observed::Preparing | Observed::Booting | Observed::Running | Observed::Stopping => true,
                    Observed::Absent | Observed::Stopped | Observed::Failed => false,
                };
            if busy || !runs || self.inner.observers.follows(computer) {
                continue;
            }
            let Ok(launcher) = self.inner.regions.of(&record.region) else { continue };
            match launcher.watch(computer).next().await {
                Some(state) if !state.report.is_final() => self.observe(&record),
                Some(mut state) => {
                    if state.report == Report::Vanished {
                        // Nobody saw its end.
                        store.end_lost_run(computer).await?;
                        // It left no word of which start it was. One that was begun since has another number.
                        state.generation = record.generation;
                    }
                    self.take_in(computer, &state).await;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Brings rows, processes and files together after a start of the control plane. No other server may be there.
    pub(crate) async fn reconcile(&self) -> Result<(), Failure> {
        let store = &self.inner.store;
        let mut known: HashMap<ComputerId, RegionName> = HashMap::new();
        let mut always_on = Vec::new();
        for record in store.all_computers().await? {
            let computer = record.id;
            known.insert(computer, record.region.clone());
            // A capture or a resize goes on beside a machine that is followed as ever.
            if record.intended.is_some_and(|kind| !kind.is_brief()) {
                continue; // its workflow is resumed below
            }
            let launcher = match self.inner.regions.of(&record.region) {
                Ok(launcher) => launcher,
                Err(failure) => {
                    tracing::warn!(%computer, "it is left as it is: {failure}");
                    continue;
                }
            };
            let found = launcher.watch(computer).next().await;
            let alive = found.as_ref().is_some_and(|state| !state.report.is_final());
            if !alive {
                // Nobody saw its end.
                store.end_lost_run(computer).await?;
            }
            match record.desired {
                Desired::Running if alive => self.observe(&record),
                Desired::Running => {
                    let vanished = found.as_ref().is_none_or(|state| state.report == Report::Vanished);
                    if vanished && record.observed != Observed::Failed {
                        // The host lost its processes. What is on the disk is what there is.
                        tracing::warn!(%computer, "no machine process was found; the computer is stopped");
                        store.observe(computer, record.generation, Observed::Absent, None, None).await?;
                        store.settle(computer, record.generation, Desired::Running, Desired::Stopped).await?;
                    } else if let Some(state) = found {
                        self.take_in(computer, &state).await;
                    }
                    // Also one whose end the last server has still seen.
                    if vanished && record.always_on {
                        always_on.push(computer);
                    }
                }
                Desired::Stopped if alive => {
                    tracing::warn!(%computer, "a machine runs that should be stopped; it is ended");
                    launcher.end(computer).await?;
                    store.observe(computer, record.generation, Observed::Stopped, None, None).await?;
                }
                Desired::Stopped => {}
                Desired::Deleted => {
                    if let roost_store::Begin::Begun(workflow) = store
                        .begin_workflow(computer, WorkflowKind::Delete, None, |_| Ok::<(), Failure>(()))
                        .await?
                    {
                        drop(self.run_workflow(workflow));
                    }
                }
            }
        }
        let workflows = store.active_workflows().await?;
        let busy: HashSet<ComputerId> = workflows.iter().map(|workflow| workflow.computer).collect();
        for (region, launcher) in self.inner.regions.iter() {
            for found in launcher.present().await? {
                if known.get(&found) != Some(region) && !busy.contains(&found) {
                    tracing::warn!(computer = %found, %region, "removing what is left of a computer that is not there");
                    launcher.end(found).await?;
                    launcher.remove(found).await?;
                }
            }
        }
        self.remove_unknown_storage(&workflows).await?;
        for workflow in workflows {
            tracing::info!(computer = %workflow.computer, kind = workflow.kind.as_str(), "resuming a workflow");
            drop(self.run_workflow(workflow));
        }
        for computer in always_on {
            let control = self.clone();
            tokio::spawn(async move {
                if let Err(failure) = control.start_computer(computer).await {
                    tracing::warn!(%computer, failure = &failure as &dyn std::error::Error,
                        "a computer that is always on could not be started");
                }
            });
        }
        Ok(())
    }
}

fn report_name(report: &Report) -> &'static str {
    match report {
        Report::Preparing => "preparing",
        Report::Booting => "booting",
        Report::Running => "running",
        Report::Stopping => "stopping",
        Report::Stopped => "stopped",
        Report::Failed { .. } => "failed",
        Report::Vanished => "vanished",
    }
}
