//! Machines without a VM, for fast tests of logic. They boot at once, remember what was asked of them and
//! can be made to fail; they have no guest, unless a test gives them one. Disks, layers and memory are names in a table,
//! with the rules real ones have: a layer that something lies on cannot be removed, memory belongs to one state of a disk.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use roost_api::{ComputerId, LayerId, SnapshotId, Timestamp};
use roost_machine_proto::{DiskSpec, MachineSpec};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{
    Abandoned, Capacity, Capture, Captured, ConsoleLine, Environment, Keep, LaunchError, Launcher,
    MachineState, Need, Report, Source, Stored,
};

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
    storage: Mutex<Storage>,
    guest: Mutex<Option<Channel>>,
    guests: Mutex<HashMap<ComputerId, Channel>>,
}

#[derive(Debug, Default)]
struct Storage {
    /// What each computer's disk lies on.
    disks: HashMap<ComputerId, Utf8PathBuf>,
    /// Computers whose memory is saved beside their disk.
    memories: HashSet<ComputerId>,
    /// What each layer lies on.
    layers: HashMap<LayerId, Utf8PathBuf>,
    /// Whether each snapshot has memory.
    snapshots: HashMap<SnapshotId, bool>,
    /// What each guest was given.
    environments: HashMap<ComputerId, Environment>,
    /// What each guest has written to its console.
    consoles: HashMap<ComputerId, watch::Sender<Vec<ConsoleLine>>>,
    /// Why the next suspend or capture is refused.
    refusal: Option<String>,
    /// Why the next start is not admitted.
    full: Option<String>,
    /// Nothing that is brought here arrives.
    slow: bool,
}

impl Default for Simulated {
    fn default() -> Self {
        Self {
            machines: Mutex::default(),
            boot: Mutex::new(Boot::Succeeds),
            starts: Mutex::default(),
            storage: Mutex::default(),
            guest: Mutex::default(),
            guests: Mutex::default(),
        }
    }
}

impl Simulated {
    fn storage(&self) -> MutexGuard<'_, Storage> {
        self.storage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All machines without one of their own have this guest from now on.
    pub fn set_guest(&self, guest: Channel) {
        *self.guest.lock().unwrap_or_else(PoisonError::into_inner) = Some(guest);
    }

    /// The computer's machine has a guest of its own from now on.
    pub fn set_guest_of(&self, computer: ComputerId, guest: Channel) {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner).insert(computer, guest);
    }

    /// The next suspend or capture is refused, once.
    pub fn refuse(&self, reason: &str) {
        self.storage().refusal = Some(reason.to_owned());
    }

    /// What is brought here never arrives from now on, or does again.
    pub fn slow_down(&self, slow: bool) {
        self.storage().slow = slow;
    }

    /// No start is admitted from now on; `None`: again.
    pub fn fill(&self, reason: Option<&str>) {
        self.storage().full = reason.map(str::to_owned);
    }

    /// Whether memory is saved beside the computer's disk.
    pub fn has_memory(&self, computer: ComputerId) -> bool {
        self.storage().memories.contains(&computer)
    }

    /// A guest writes to its console.
    pub fn say(&self, computer: ComputerId, text: &str) {
        let line = ConsoleLine { at: Some(Timestamp::now()), text: text.to_owned() };
        self.storage().consoles.entry(computer).or_default().send_modify(|console| console.push(line));
    }

    /// The variables a guest has.
    pub fn environment(&self, computer: ComputerId) -> BTreeMap<String, String> {
        self.storage().environments.get(&computer).map(|held| held.variables.clone()).unwrap_or_default()
    }

    /// What a computer's disk lies on.
    pub fn disk_base(&self, computer: ComputerId) -> Option<Utf8PathBuf> {
        self.storage().disks.get(&computer).cloned()
    }

    /// Every disk and layer lies on something that is there.
    pub fn check_storage(&self) {
        let storage = self.storage();
        let bases = storage.disks.values().chain(storage.layers.values());
        for base in bases {
            if let Some(layer) = layer_of(base) {
                assert!(storage.layers.contains_key(&layer), "something lies on {layer}, which is gone");
            }
        }
    }

    fn is_running(&self, computer: ComputerId) -> bool {
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        machines.get(&computer).is_some_and(|machine| !machine.borrow().report.is_final())
    }

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

fn newest(console: &[ConsoleLine], count: usize) -> Vec<ConsoleLine> {
    console[console.len().saturating_sub(count)..].to_vec()
}

#[async_trait]
impl Launcher for Simulated {
    async fn launch(&self, spec: &MachineSpec) -> Result<(), LaunchError> {
        let report = match *self.boot.lock().unwrap_or_else(PoisonError::into_inner) {
            Boot::Succeeds => Report::Running,
            Boot::Fails => Report::Failed { reason: "it was made to fail".to_owned(), console: Vec::new() },
            Boot::Hangs => Report::Booting,
        };
        let state = MachineState { generation: spec.generation, report, memory_lost: None };
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = machines.get(&spec.computer) {
            let same = machine.borrow().generation == spec.generation;
            if same && machine.borrow().report != Report::Vanished {
                return Ok(());
            }
            machine.send_modify(|state| state.report = Report::Vanished);
        }
        self.starts.lock().unwrap_or_else(PoisonError::into_inner).push(spec.generation);
        let mut storage = self.storage();
        match &spec.disk {
            DiskSpec::New { base, memory, .. } => {
                if let Some(layer) = layer_of(base) {
                    assert!(storage.layers.contains_key(&layer), "started on {layer}, which is not there");
                }
                if let Some(snapshot) = memory.as_deref().and_then(snapshot_of) {
                    assert_eq!(storage.snapshots.get(&snapshot), Some(&true), "{snapshot} has no memory");
                }
                storage.disks.insert(spec.computer, base.clone());
            }
            DiskSpec::Existing => {
                assert!(storage.disks.contains_key(&spec.computer), "a disk is missing");
                storage.memories.remove(&spec.computer);
            }
        }
        machines.insert(spec.computer, watch::Sender::new(state));
        Ok(())
    }

    fn watch(&self, computer: ComputerId) -> BoxStream<'static, MachineState> {
        let machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(machine) = machines.get(&computer) else {
            let state = MachineState { generation: 0, report: Report::Vanished, memory_lost: None };
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

    async fn suspend(&self, computer: ComputerId) -> Result<(), LaunchError> {
        if !self.is_running(computer) {
            return Ok(());
        }
        {
            let mut storage = self.storage();
            if let Some(reason) = storage.refusal.take() {
                return Err(LaunchError::Refused { reason });
            }
            storage.memories.insert(computer);
        }
        self.stop(computer).await
    }

    async fn capture(
        &self,
        computer: ComputerId,
        capture: &Capture,
        _: Keep,
    ) -> Result<Captured, LaunchError> {
        let running = self.is_running(computer);
        let mut storage = self.storage();
        if let Some(memory) = storage.snapshots.get(&capture.snapshot) {
            return Ok(captured(*memory, running));
        }
        if let Some(reason) = storage.refusal.take() {
            return Err(LaunchError::Refused { reason });
        }
        let base = storage.disks.get(&computer).cloned();
        let base = base.ok_or(LaunchError::Refused { reason: "it has no disk".to_owned() })?;
        let memory = running || storage.memories.contains(&computer);
        storage.layers.insert(capture.layer, base);
        storage.disks.insert(computer, layer_path(capture.layer));
        storage.snapshots.insert(capture.snapshot, memory);
        Ok(captured(memory, running))
    }

    async fn abandon(&self, computer: ComputerId, capture: &Capture) -> Result<Abandoned, LaunchError> {
        let mut storage = self.storage();
        storage.snapshots.remove(&capture.snapshot);
        let path = layer_path(capture.layer);
        if storage.disks.get(&computer) == Some(&path) {
            return Ok(Abandoned::LayerInUse { disk_bytes: DISK_BYTES });
        }
        storage.layers.remove(&capture.layer);
        Ok(Abandoned::Untouched)
    }

    async fn publish(&self, computer: ComputerId, _target: &Utf8Path) -> Result<(), LaunchError> {
        self.stop(computer).await
    }

    fn layer(&self, layer: LayerId) -> Utf8PathBuf {
        layer_path(layer)
    }

    fn memory(&self, snapshot: SnapshotId) -> Utf8PathBuf {
        Utf8Path::new("/snapshots").join(snapshot.to_string())
    }

    async fn drop_memory(&self, computer: ComputerId) -> Result<(), LaunchError> {
        self.storage().memories.remove(&computer);
        Ok(())
    }

    async fn remove_layer(&self, layer: LayerId) -> Result<(), LaunchError> {
        let mut storage = self.storage();
        let path = layer_path(layer);
        let used = storage.disks.values().chain(storage.layers.values()).any(|base| *base == path);
        assert!(!used, "something lies on {layer}, which is being removed");
        storage.layers.remove(&layer);
        Ok(())
    }

    async fn remove_snapshot(&self, snapshot: SnapshotId) -> Result<(), LaunchError> {
        self.storage().snapshots.remove(&snapshot);
        Ok(())
    }

    async fn merge(&self, lower: LayerId, upper: LayerId) -> Result<u64, LaunchError> {
        let mut storage = self.storage();
        let base = storage.layers.get(&lower).cloned().expect("the lower layer is there");
        assert!(storage.layers.contains_key(&upper), "the upper layer is there");
        storage.layers.insert(upper, base);
        Ok(DISK_BYTES)
    }

    async fn stored(&self) -> Result<Stored, LaunchError> {
        let storage = self.storage();
        Ok(Stored {
            layers: storage.layers.keys().copied().collect(),
            snapshots: storage.snapshots.keys().copied().collect(),
        })
    }

    async fn admit(&self, _need: &Need) -> Result<(), LaunchError> {
        match &self.storage().full {
            Some(reason) => Err(LaunchError::NoRoom { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    async fn capacity(&self) -> Result<Capacity, LaunchError> {
        let free = if self.storage().full.is_some() { 0 } else { FREE_BYTES };
        Ok(Capacity { memory: free, memory_total: 2 * FREE_BYTES, disk: free })
    }

    /// What makes the computer is in the path: the other launcher has it from there.
    async fn source(&self, computer: ComputerId) -> Result<Source, LaunchError> {
        let storage = self.storage();
        let mut base = storage
            .disks
            .get(&computer)
            .cloned()
            .ok_or_else(|| LaunchError::Refused { reason: "it has no disk".to_owned() })?;
        while let Some(layer) = layer_of(&base) {
            base = storage.layers.get(&layer).cloned().expect("a layer is missing");
        }
        let layers = if storage.memories.contains(&computer) { WITH_MEMORY } else { "" };
        Ok(Source { directory: base, layers: layers.into(), bytes: DISK_BYTES })
    }

    async fn bring(
        &self,
        computer: ComputerId,
        source: &Source,
        progress: &watch::Sender<u8>,
    ) -> Result<(), LaunchError> {
        progress.send_replace(50);
        // From here on something is to be tidied up.
        let gone = MachineState { generation: 0, report: Report::Vanished, memory_lost: None };
        self.machines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(computer, watch::Sender::new(gone));
        let slow = self.storage().slow;
        if slow {
            std::future::pending::<()>().await;
        }
        let mut storage = self.storage();
        if let Some(reason) = storage.refusal.take() {
            return Err(LaunchError::Refused { reason });
        }
        storage.disks.insert(computer, source.directory.clone());
        if source.layers == WITH_MEMORY {
            storage.memories.insert(computer);
        }
        progress.send_replace(100);
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
        let mut storage = self.storage();
        storage.disks.remove(&computer);
        storage.memories.remove(&computer);
        storage.environments.remove(&computer);
        Ok(())
    }

    async fn present(&self) -> Result<Vec<ComputerId>, LaunchError> {
        Ok(self.machines.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect())
    }

    async fn console(&self, computer: ComputerId, lines: usize) -> Result<Vec<ConsoleLine>, LaunchError> {
        Ok(newest(&self.storage().consoles.entry(computer).or_default().borrow(), lines))
    }

    async fn follow_console(
        &self,
        computer: ComputerId,
        lines: usize,
    ) -> Result<BoxStream<'static, ConsoleLine>, LaunchError> {
        let console = self.storage().consoles.entry(computer).or_default().subscribe();
        let (said, told) = (console.borrow().clone(), console.borrow().len());
        let more = stream::unfold((console, told), |(mut console, told)| async move {
            let line = console.wait_for(|console| console.len() > told).await.ok()?[told].clone();
            Some((line, (console, told + 1)))
        });
        let ended = self.watch(computer).filter(|state| std::future::ready(state.report.is_final()));
        let ended = async move { std::pin::pin!(ended).next().await };
        Ok(stream::iter(newest(&said, lines)).chain(more).take_until(Box::pin(ended)).boxed())
    }

    async fn set_environment(
        &self,
        computer: ComputerId,
        environment: &Environment,
    ) -> Result<(), LaunchError> {
        if !self.is_running(computer) {
            let source = Box::new(tonic::Status::unavailable("a simulated machine that does not run"));
            return Err(LaunchError::Unreachable { source });
        }
        let mut storage = self.storage();
        let held = storage.environments.entry(computer).or_insert_with(|| environment.clone());
        if environment.version >= held.version {
            *held = environment.clone();
        }
        Ok(())
    }

    fn guest(&self, computer: ComputerId) -> Result<Channel, LaunchError> {
        if let Some(guest) = self.guests.lock().unwrap_or_else(PoisonError::into_inner).get(&computer) {
            return Ok(guest.clone());
        }
        if let Some(guest) = self.guest.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(guest);
        }
        let endpoint = Endpoint::from_static("http://guest.invalid");
        Ok(endpoint.connect_with_connector_lazy(tower::service_fn(|_: Uri| async {
            Err::<hyper_util::rt::TokioIo<tokio::io::DuplexStream>, _>(std::io::Error::other(
                "a simulated machine has no guest",
            ))
        })))
    }
}

const DISK_BYTES: u64 = 1024 * 1024;
/// Of memory and of the disk, where there is room.
const FREE_BYTES: u64 = 8 * 1024 * 1024 * 1024;
const LAYERS: &str = "/layers";
/// Says of a [`Source`] that memory is saved beside the disk.
const WITH_MEMORY: &str = "/with-memory";

fn layer_path(layer: LayerId) -> Utf8PathBuf {
    Utf8Path::new(LAYERS).join(layer.to_string())
}

/// The layer that a disk lies on, if it is not a template.
fn layer_of(base: &Utf8Path) -> Option<LayerId> {
    base.strip_prefix(LAYERS).ok()?.as_str().parse().ok()
}

fn snapshot_of(memory: &Utf8Path) -> Option<SnapshotId> {
    memory.strip_prefix("/snapshots").ok()?.as_str().parse().ok()
}

fn captured(memory: bool, running: bool) -> Captured {
    Captured {
        disk_bytes: DISK_BYTES,
        memory_bytes: memory.then_some(DISK_BYTES),
        pause: running.then_some(Duration::from_millis(1)),
    }
}
