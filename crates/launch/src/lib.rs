//! Where machine processes run.
//!
//! The control plane knows machines only through [`Launcher`]: it hands over a spec, watches what becomes of
//! it, and gets a channel to the guest. [`Local`] spawns the processes on this host. A cluster engine would
//! be another implementation: "run this process somewhere with this much CPU and memory".
//!
//! This crate knows nothing about HTTP, SQL or QEMU.

mod confine;
mod local;
mod room;
#[cfg(feature = "simulated")]
pub mod simulated;
mod storage;

use std::collections::BTreeMap;
use std::fmt::Debug;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use futures_util::stream::BoxStream;
use roost_api::{ComputerId, LayerId, SnapshotId};
use roost_machine_proto::MachineSpec;
use tokio::sync::watch;
use tonic::transport::Channel;

pub use confine::{ConfineError, confine};
pub use local::{Local, LocalConfig};
pub use roost_machine_proto::{Captured, ConsoleLine};
pub use storage::copy_machine;

/// What a machine process reported, and of which start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineState {
    pub generation: u64,
    pub report: Report,
    /// Why it booted although there was saved memory to continue from.
    pub memory_lost: Option<String>,
}

/// The names under which a captured state is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capture {
    /// Of the memory, if there is any.
    pub snapshot: SnapshotId,
    /// Of what was the computer's disk until then.
    pub layer: LayerId,
}

/// How long what is captured is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// As a snapshot: it is there after a crash of the host.
    Lasting,
    /// Until a clone has begun with it, at once. After a crash of the host the clone has its disk.
    Passing,
}

/// What became of a capture that was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abandoned {
    /// The computer's disk is what it was.
    Untouched,
    /// The computer's disk lies on the layer already: it must be kept as long as the computer needs it.
    LayerInUse { disk_bytes: u64 },
}

/// What a start will need of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Real memory, in bytes: not the size the guest is promised, which is mostly never touched.
    pub memory: u64,
    /// Room on the disk, in bytes.
    pub disk: u64,
}

/// The files of a computer that is to move, for the launcher that it moves to. Both see the same paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub directory: Utf8PathBuf,
    /// Where the layers are that its disk may lie on.
    pub layers: Utf8PathBuf,
    /// What is to be copied of the directory, in bytes.
    pub bytes: u64,
}

/// What starts may still take of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Real memory, in bytes, beyond what is kept free.
    pub memory: u64,
    /// All the memory that the host has, in bytes.
    pub memory_total: u64,
    /// Room on the disk, in bytes, beyond what is kept free.
    pub disk: u64,
}

/// The environment variables of a computer. Their values are secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Environment {
    pub version: u64,
    pub variables: BTreeMap<String, String>,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment")
            .field("version", &self.version)
            .field("names", &self.variables.keys())
            .finish_non_exhaustive()
    }
}

/// What is kept beside the machines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    pub layers: Vec<LayerId>,
    pub snapshots: Vec<SnapshotId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    Preparing,
    Booting,
    Running,
    Stopping,
    /// Ended as asked (by us or from inside the guest); the disk is complete.
    Stopped,
    Failed {
        reason: String,
        console: Vec<String>,
    },
    /// There is no process and it left no word: it was never started, or it was killed.
    Vanished,
}

impl Report {
    /// Whether nothing more will come of this start.
    pub fn is_final(&self) -> bool {
        match self {
            Report::Preparing | Report::Booting | Report::Running | Report::Stopping => false,
            Report::Stopped | Report::Failed { .. } | Report::Vanished => true,
        }
    }
}

/// Runs machine processes. Every method may be repeated, and be called again after a crash of the caller.
#[async_trait]
pub trait Launcher: Debug + Send + Sync + 'static {
    /// Starts a process for `spec`. Does nothing when one of this generation runs or has ended; ends one of
    /// an older generation first.
    async fn launch(&self, spec: &MachineSpec) -> Result<(), LaunchError>;

    /// What is so now, then every change, up to and including the first final report.
    fn watch(&self, computer: ComputerId) -> BoxStream<'static, MachineState>;

    /// Asks for a clean shutdown; the end is seen on [`Launcher::watch`]. Without a process it does nothing.
    async fn stop(&self, computer: ComputerId) -> Result<(), LaunchError>;

    /// Saves the memory beside the disk; the end is seen on [`Launcher::watch`]. [`LaunchError::Refused`]: the
    /// computer runs on. Without a process it does nothing.
    async fn suspend(&self, computer: ComputerId) -> Result<(), LaunchError>;

    /// Keeps the state of the computer, running or stopped, as a snapshot and a layer; the computer goes on on a
    /// new disk on top of the layer. Done already: answers again. [`LaunchError::Refused`] and
    /// [`LaunchError::NoRoom`]: nothing has changed, [`Launcher::abandon`] tidies up.
    async fn capture(
        &self,
        computer: ComputerId,
        capture: &Capture,
        keep: Keep,
    ) -> Result<Captured, LaunchError>;

    /// Gives a capture up that failed or was interrupted anywhere: removes what nobody needs.
    async fn abandon(&self, computer: ComputerId, capture: &Capture) -> Result<Abandoned, LaunchError>;

    /// Suspends a running machine and makes its memory and disk a template for others in the directory `target`,
    /// which appears when it is complete (one that is there already wins). The machine ends.
    async fn publish(&self, computer: ComputerId, target: &Utf8Path) -> Result<(), LaunchError>;

    /// Where a layer is, for the spec of a machine whose disk lies on it.
    fn layer(&self, layer: LayerId) -> Utf8PathBuf;

    /// Where the memory of a snapshot is, for the spec of a machine that continues from it.
    fn memory(&self, snapshot: SnapshotId) -> Utf8PathBuf;

    /// Forgets the memory of a computer that is not running: its next start boots.
    async fn drop_memory(&self, computer: ComputerId) -> Result<(), LaunchError>;

    async fn remove_layer(&self, layer: LayerId) -> Result<(), LaunchError>;

    async fn remove_snapshot(&self, snapshot: SnapshotId) -> Result<(), LaunchError>;

    /// Makes `upper`, which lies on `lower`, hold what both hold, on what `lower` lies on. Machines that run
    /// keep what they have open; nobody else may lie on `lower`. May be interrupted and repeated. Answers what
    /// `upper` takes on the disk then.
    async fn merge(&self, lower: LayerId, upper: LayerId) -> Result<u64, LaunchError>;

    /// Every layer and snapshot that has files.
    async fn stored(&self) -> Result<Stored, LaunchError>;

    /// Whether the host has room for a start: [`LaunchError::NoRoom`] says what is missing.
    async fn admit(&self, need: &Need) -> Result<(), LaunchError>;

    /// What starts may still take.
    async fn capacity(&self) -> Result<Capacity, LaunchError>;

    /// Where the files of a computer that does not run are.
    async fn source(&self, computer: ComputerId) -> Result<Source, LaunchError>;

    /// Copies a computer here that does not run: its disk as one that lies on no layer, with the same content, and
    /// its memory. Begins anew where an earlier attempt was interrupted; the source stays as it is. Tells on
    /// `progress` how far it is, in percent. Dropped, it ends, and what it has left goes with [`Launcher::end`] and
    /// [`Launcher::remove`].
    async fn bring(
        &self,
        computer: ComputerId,
        source: &Source,
        progress: &watch::Sender<u8>,
    ) -> Result<(), LaunchError>;

    /// Kills the process and everything it started, and waits until they are gone.
    async fn end(&self, computer: ComputerId) -> Result<(), LaunchError>;

    /// Removes every file of the machine. Its process must have ended.
    async fn remove(&self, computer: ComputerId) -> Result<(), LaunchError>;

    /// The machines that have files on this launcher.
    async fn present(&self) -> Result<Vec<ComputerId>, LaunchError>;

    /// The newest lines of the guest's console; also after the process ended.
    async fn console(&self, computer: ComputerId, lines: usize) -> Result<Vec<ConsoleLine>, LaunchError>;

    /// The newest lines, then each when the guest has written it, until the process ends. Without a process it ends
    /// at once.
    async fn follow_console(
        &self,
        computer: ComputerId,
        lines: usize,
    ) -> Result<BoxStream<'static, ConsoleLine>, LaunchError>;

    /// Gives a running guest its environment variables. One that has a newer version already keeps that.
    async fn set_environment(
        &self,
        computer: ComputerId,
        environment: &Environment,
    ) -> Result<(), LaunchError>;

    /// A channel to the guest's services. It connects when it is used, and again when the process is new.
    fn guest(&self, computer: ComputerId) -> Result<Channel, LaunchError>;
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("failed to {action} {path}")]
    File { action: &'static str, path: Utf8PathBuf, source: std::io::Error },
    #[error("failed to start the machine process {program}")]
    Spawn { program: Utf8PathBuf, source: std::io::Error },
    #[error("the spec of the machine cannot be read: {path}")]
    Spec { path: Utf8PathBuf, source: serde_json::Error },
    #[error("the machine process does not answer")]
    Unreachable {
        #[source]
        source: Box<tonic::Status>,
    },
    /// The machine said no, for a reason the user can act on; it is as it was.
    #[error("{reason}")]
    Refused { reason: String },
    /// Real memory or disk of the host would run out.
    #[error("{reason}")]
    NoRoom { reason: String },
    #[error("a background task was cancelled")]
    Cancelled,
}
