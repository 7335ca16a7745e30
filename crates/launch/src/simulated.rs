//! Machines without a VM, for fast tests of logic. They boot at once, remember what was asked of them and
//! can be made to fail; they have no guest.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use roost_api::ComputerId;
use roost_machine_proto::MachineSpec;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{LaunchError, Launcher, MachineState, Report};

/// What the next machines do when they are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    Succeeds,
    Fails,
    /// It never gets beyond booting.
    Hangs,
}

#[derive(Debug)]
pub struct Simulated {
    machines: Mutex<HashMap<ComputerId, watch::Sender<MachineState>>>,
    boot: Mutex<Boot>,
    starts: Mutex<Vec<u64>>,
}

impl Default for Simulated {
    fn default() -> Self {
        Self { machines: Mutex::default(), boot: Mutex::new(Boot::Succeeds), starts: Mutex::default() }
    }
}

impl Simulated {
    pub fn set_boot(&self, boot: Boot) {
        *self.boot.lock().unwrap_or_else(PoisonError::into_inner) = boot;
    }

    /// A machine reports something by itself, such as its end.
    pub fn report(&self, computer: ComputerId, report: Report) {
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = machines.get(&computer) {
            machine.send_modify(|state| state.report = report);
        }
    }

    /// The generations that were started, in order.
    pub fn starts(&self) -> Vec<u64> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The machines that run.
    pub fn running(&self) -> Vec<ComputerId> {
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        let running = machines.iter().filter(|(_, machine)| !machine.borrow().report.is_final());
        running.map(|(computer, _)| *computer).collect()
    }
}

#[async_trait]
impl Launcher for Simulated {
    async fn launch(&self, spec: &MachineSpec) -> Result<(), LaunchError> {
        let report = match *self.boot.lock().unwrap_or_else(PoisonError::into_inner) {
            Boot::Succeeds => Report::Running,
            Boot::Fails => Report::Failed { reason: "it was made to fail".to_owned(), console: Vec::new() },
            Boot::Hangs => Report::Booting,
        };
        let state = MachineState { generation: spec.generation, report };
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = machines.get(&spec.computer) {
            let same = machine.borrow().generation == spec.generation;
            if same && machine.borrow().report != Report::Vanished {
                return Ok(());
            }
            machine.send_modify(|state| state.report = Report::Vanished);
        }
        self.starts.lock().unwrap_or_else(PoisonError::into_inner).push(spec.generation);
        machines.insert(spec.computer, watch::Sender::new(state));
        Ok(())
    }

    fn watch(&self, computer: ComputerId) -> BoxStream<'static, MachineState> {
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(machine) = machines.get(&computer) else {
            let state = MachineState { generation: 0, report: Report::Vanished };
            return stream::iter([state]).boxed();
        };
        // Up to and including the first final report.
        stream::unfold(Some(WatchStream::new(machine.subscribe())), |states| async {
            let mut states = states?;
            let state = states.next().await?;
            let rest = (!state.report.is_final()).then_some(states);
            Some((state, rest))
        })
        .boxed()
    }

    async fn stop(&self, computer: ComputerId) -> Result<(), LaunchError> {
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = machines.get(&computer)
            && !machine.borrow().report.is_final()
        {
            machine.send_modify(|state| state.report = Report::Stopped);
        }
        Ok(())
    }

    async fn end(&self, computer: ComputerId) -> Result<(), LaunchError> {
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = machines.get(&computer)
            && !machine.borrow().report.is_final()
        {
            machine.send_modify(|state| state.report = Report::Vanished);
        }
        Ok(())
    }

    async fn remove(&self, computer: ComputerId) -> Result<(), LaunchError> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner).remove(&computer);
        Ok(())
    }

    async fn present(&self) -> Result<Vec<ComputerId>, LaunchError> {
        Ok(self.machines.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect())
    }

    async fn console(&self, _computer: ComputerId, _lines: usize) -> Result<Vec<String>, LaunchError> {
        Ok(Vec::new())
    }

    fn guest(&self, _computer: ComputerId) -> Result<Channel, LaunchError> {
        let endpoint = Endpoint::from_static("http://guest.invalid");
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(|_: Uri| async {
            Err::<hyper_util::rt::TokioIo<tokio::io::DuplexStream>, _>(std::io::Error::other(
                "a simulated machine has no guest",
            ))
        })))
    }
}
