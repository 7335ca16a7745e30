//! The machine process: one QEMU, its disk, its network and its channel to the guest.
//!
//! ```text
//!            machine.sock (gRPC)                       QMP, console (inherited sockets)
//!  clients ----------------------> serve --- gate ---+      +------------------------- QEMU
//!                 Watch, Console     |               |      |                           |
//!                 Stop               v               v      v                           |
//!                                 vm (one task) <-- link: HTTP/2 over channel.sock -----+ virtio-serial
//!                                    |
//!                              state::step: pure
//! ```
//!
//! [`run`] is `roost machine <dir>`. It reads `spec.json`, boots the computer, serves `machine.sock` until
//! the computer has ended, leaves `outcome.json` and returns. It needs nothing from whoever started it and
//! outlives it; whoever comes later connects to the socket and finds everything as it is.
//!
//! * [`state`](mod@state) decides; `vm` owns the computer and acts; `serve`, `link`, `qmp` bring events.
//! * `network` keeps the guest away from the host and its networks.
//! * QEMU cannot outlive this process: the kernel kills it with the thread that started it. The lock of the
//!   directory is held by both, so the next process starts only when the disk has no other writer.
//!
//! [`accel`] is not part of the process: it is what `roost doctor` and the server ask before any computer
//! exists.

pub mod accel;
mod console;
mod detach;
mod directory;
mod disk;
mod lines;
mod link;
mod memory;
mod merge;
mod network;
mod qemu;
mod qmp;
mod resume;
mod save;
mod serve;
mod state;
mod task;
mod tool;
mod vm;

use std::sync::{Arc, Mutex};

use camino::Utf8Path;
use roost_machine_proto::v1::{Observation, Phase};
use roost_machine_proto::{CONSOLE_FILE, MachineResult, MachineSpec, OUTCOME_FILE, Outcome, SOCKET_FILE};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use detach::{DetachError, detach, require_same};
pub use directory::DirectoryError;
pub use memory::MemoryError;
pub use merge::MergeError;
pub use qemu::hardware;

/// Why there was nothing to run. How a computer ended that did run is in `outcome.json` and not here.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("cannot start the asynchronous runtime: {0}")]
    Runtime(std::io::Error),
    #[error("cannot catch signals: {0}")]
    Signals(std::io::Error),
    #[error("cannot keep the guest's console in {CONSOLE_FILE}: {0}")]
    Console(std::io::Error),
    #[error("cannot serve {SOCKET_FILE}: {0}")]
    Socket(std::io::Error),
    #[error("cannot write {OUTCOME_FILE}: {0}")]
    Outcome(std::io::Error),
    /// Without more words: the launcher passes the reason on to whoever asked.
    #[error("{0}")]
    Capture(String),
}

/// What a launcher made before it started the process, so that there is never a moment in which the process
/// is there and neither its lock nor its socket is.
#[derive(Debug)]
pub struct Inherited {
    /// `machine.lock`, locked.
    pub lock: std::fs::File,
    /// Bound to `machine.sock`.
    pub listener: std::os::unix::net::UnixListener,
}

/// Runs the computer whose directory is `dir` until it has stopped or failed, and records which in
/// `outcome.json`.
///
/// Takes the whole process: its working directory, its umask, SIGTERM and SIGINT (both ask for a clean
/// stop). QEMU lives no longer than the calling thread.
///
/// Without `inherited` the process takes the lock and makes the socket itself.
pub fn run(dir: &Utf8Path, inherited: Option<Inherited>) -> Result<(), MachineError> {
    // The sockets and files of a computer are its owner's only.
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o077));
    let (lock, listener) = match inherited {
        Some(Inherited { lock, listener }) => (Some(lock), Some(listener)),
        None => (None, None),
    };
    let directory = directory::Directory::enter(dir, lock)?;
    let spec = directory.read_spec()?;
    directory.remove_outcome()?;
    tracing::info!(
        computer = %spec.computer,
        generation = spec.generation,
        vcpus = spec.vcpus,
        memory_mib = spec.memory.0,
        accelerator = ?spec.accelerator,
        "machine process {} starts",
        std::process::id()
    );
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(MachineError::Runtime)?;
    let outcome = runtime.block_on(run_spec(&spec, &directory, listener));
    if let Err(error) = &outcome
        && !matches!(error, MachineError::Outcome(_))
    {
        let result = MachineResult::Failed { reason: error.to_string(), console: Vec::new() };
        directory
            .write_outcome(&Outcome { generation: spec.generation, result })
            .map_err(MachineError::Outcome)?;
    }
    outcome
}

/// Keeps the state of the computer whose directory is `dir`, and which is not running, as [`run`] would on
/// request: its disk becomes the layer that is linked at `layer`, its saved memory is linked in `memory`.
pub fn capture(
    dir: &Utf8Path,
    lock: std::fs::File,
    memory: &Utf8Path,
    layer: &Utf8Path,
) -> Result<(), MachineError> {
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o077));
    let directory = directory::Directory::enter(dir, Some(lock))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(MachineError::Runtime)?;
    runtime
        .block_on(save::capture_stopped(&directory, memory, layer))
        .map(drop)
        .map_err(|error| MachineError::Capture(error.to_string()))
}

/// Merges the layer `upper`, a copy of which is in `copy`, with the one it lies on: `copy` holds both then.
pub fn merge(copy: &Utf8Path) -> Result<(), MergeError> {
    merge::merge(copy)
}

/// Whether the saved memory in `directory` is whole and fits machines with this [`hardware`]. Reads all of it.
pub fn verify_memory(directory: &Utf8Path, hardware: &str) -> Result<(), MemoryError> {
    let memory = memory::SavedMemory::find(directory, hardware)?;
    memory.ok_or_else(|| MemoryError::Missing { directory: directory.to_owned() })?.verify()
}

async fn run_spec(
    spec: &MachineSpec,
    directory: &directory::Directory,
    listener: Option<std::os::unix::net::UnixListener>,
) -> Result<(), MachineError> {
    let (stop, stop_asked) = mpsc::channel(1);
    let (saves, saves_asked) = mpsc::channel(8);
    let mut terminate = signal(SignalKind::terminate()).map_err(MachineError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(MachineError::Signals)?;
    let signalled = stop.clone();
    let _signals = task::Task::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("asked to stop by a signal");
            if signalled.send(()).await.is_err() {
                return;
            }
        }
    });

    let console = console::Console::open(CONSOLE_FILE).map_err(MachineError::Console)?;
    let publisher = vm::Publisher {
        observation: watch::Sender::new(observation(spec.generation, Phase::Preparing)),
        gate: watch::Sender::new(None),
        console: Arc::new(Mutex::new(console)),
    };
    let served = serve::Served {
        observation: publisher.observation.subscribe(),
        gate: publisher.gate.subscribe(),
        console: publisher.console.clone(),
        stop,
        saves,
    };
    let listener = match listener {
        Some(listener) => {
            listener.set_nonblocking(true).map_err(MachineError::Socket)?;
            UnixListener::from_std(listener).map_err(MachineError::Socket)?
        }
        None => {
            directory::remove_if_there(SOCKET_FILE).map_err(MachineError::Socket)?;
            UnixListener::bind(SOCKET_FILE).map_err(MachineError::Socket)?
        }
    };
    let end = CancellationToken::new();
    let mut serving = task::Task::spawn(serve::serve(listener, served, end.clone()));

    let result = vm::run(spec, directory, &publisher, stop_asked, saves_asked).await;

    let mut last = publisher.observation.borrow().clone();
    last.set_phase(Phase::Stopped);
    match &result {
        MachineResult::Stopped => tracing::info!("the computer has stopped"),
        MachineResult::Failed { reason, console } => {
            tracing::error!("the computer has failed: {reason}");
            last.set_phase(Phase::Failed);
            last.reason.clone_from(reason);
            last.console.clone_from(console);
        }
    }
    let written = directory.write_outcome(&Outcome { generation: spec.generation, result });
    // Told even if it could not be written: those who listen now need no file.
    publisher.observation.send_replace(last);
    end.cancel();
    serving.join().await;
    directory::remove_if_there(SOCKET_FILE).map_err(MachineError::Socket)?;
    written.map_err(MachineError::Outcome)
}

fn observation(generation: u64, phase: Phase) -> Observation {
    Observation { generation, phase: phase.into(), ..Observation::default() }
}
