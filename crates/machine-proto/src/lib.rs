//! The contract of the machine process: the spec file it is started with, the outcome file it leaves, and
//! the gRPC service it answers on in between (`proto/machine.proto`).
//!
//! All files are in the machine's directory, `<data>/machines/<computer id>/`.

mod console;

use std::time::Duration;

use camino::Utf8PathBuf;
use roost_api::{ComputerId, MemoryMib};
use serde::{Deserialize, Serialize};

pub use console::{ConsoleLine, LINE_LIMIT, readable, stamp};

#[expect(clippy::allow_attributes, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("roost.machine.v1");
}

/// Written by the launcher before it starts the process.
pub const SPEC_FILE: &str = "spec.json";
/// Written by the machine process when it ends: an [`Outcome`].
pub const OUTCOME_FILE: &str = "outcome.json";
/// The gRPC socket. It exists exactly while the process serves it (or was killed).
pub const SOCKET_FILE: &str = "machine.sock";
/// Held with `flock` for as long as the process lives, and its pid is in it.
pub const LOCK_FILE: &str = "machine.lock";
/// The active layer of the computer's disk.
pub const DISK_FILE: &str = "disk.qcow2";
/// The saved memory of a computer that was stopped: it belongs to exactly the content `disk.qcow2` has.
pub const MEMORY_DIRECTORY: &str = "memory";
/// Beside the memory of a capture: a [`Captured`]. Its being there means that the capture is complete.
pub const CAPTURED_FILE: &str = "captured.json";
/// Everything the guest wrote to its serial console, this boot and the one before (`console.log.1`).
pub const CONSOLE_FILE: &str = "console.log";
/// The log of the machine process itself.
pub const LOG_FILE: &str = "machine.log";

/// What one machine process is to run. One file, one boot: a new start gets a new spec.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct MachineSpec {
    pub computer: ComputerId,
    /// Grows with every start of this computer.
    pub generation: u64,
    pub hostname: String,
    /// 32 lower-case hex digits.
    pub machine_id: String,
    pub vcpus: u32,
    pub memory: MemoryMib,
    pub disk: DiskSpec,
    pub boot: BootSpec,
    pub accelerator: Accelerator,
    pub network: NetworkSpec,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DiskSpec {
    /// The first start: make `disk.qcow2` anew as an overlay on `base`, whatever an earlier try left. With
    /// `memory`, a directory of saved memory that was taken together with `base`, the computer continues from
    /// there; where that cannot be used it boots.
    New { base: Utf8PathBuf, size_gib: u32, memory: Option<Utf8PathBuf> },
    /// Any later start: `disk.qcow2` must be there. A missing one is an error, never a fresh disk. Memory saved
    /// beside it is continued, once.
    Existing,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct BootSpec {
    pub kernel: Utf8PathBuf,
    pub initrd: Utf8PathBuf,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    Kvm,
    Tcg,
}

/// The guest's way out. It never reaches the host's loopback; it reaches private networks (of the host or
/// behind it) only where the operator lists them.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct NetworkSpec {
    /// IPv4 networks in CIDR form that are reachable although they are private.
    pub allow: Vec<String>,
}

/// What a capture has kept.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
pub struct Captured {
    /// What the layer takes on the host's disk.
    pub disk_bytes: u64,
    /// `None` for a computer that was shut down.
    pub memory_bytes: Option<u64>,
    /// How long the guest stood still; `None` for one that was not running.
    pub pause: Option<Duration>,
}

/// How a machine process ended. A directory with a spec and without an outcome of the same generation
/// belongs to a process that still runs or was killed.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Outcome {
    pub generation: u64,
    pub result: MachineResult,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum MachineResult {
    /// Powered off, or its memory is saved in [`MEMORY_DIRECTORY`].
    Stopped,
    Failed {
        reason: String,
        console: Vec<String>,
    },
}
