//! Where machine processes run.
//!
//! The control plane knows machines only through [`Launcher`]: it hands over a spec, watches what becomes of
//! it, and gets a channel to the guest. [`Local`] spawns the processes on this host. A cluster engine would
//! be another implementation: "run this process somewhere with this much CPU and memory".
//!
//! This crate knows nothing about HTTP, SQL or QEMU.

mod confine;
mod local;
#[cfg(feature = "simulated")]
pub mod simulated;

use std::fmt::Debug;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use futures_util::stream::BoxStream;
use roost_api::ComputerId;
use roost_machine_proto::MachineSpec;
use tonic::transport::Channel;

pub use confine::{ConfineError, confine};
pub use local::{Local, LocalConfig};

/// What a machine process reported, and of which start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineState {
    pub generation: u64,
    pub report: Report,
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

    /// Kills the process and everything it started, and waits until they are gone.
    async fn end(&self, computer: ComputerId) -> Result<(), LaunchError>;

    /// Removes every file of the machine. Its process must have ended.
    async fn remove(&self, computer: ComputerId) -> Result<(), LaunchError>;

    /// The machines that have files on this launcher.
    async fn present(&self) -> Result<Vec<ComputerId>, LaunchError>;

    /// The newest lines of the guest's console; also after the process ended.
    async fn console(&self, computer: ComputerId, lines: usize) -> Result<Vec<String>, LaunchError>;

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
    #[error("a background task was cancelled")]
    Cancelled,
}
