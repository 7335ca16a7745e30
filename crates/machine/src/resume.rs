//! Continuing from a saved memory: filling a QEMU that stands still, and letting it go.

use camino::Utf8Path;
use roost_machine_proto::MEMORY_DIRECTORY;
use serde_json::json;
use tokio::sync::watch;

use crate::directory::sync_parent;
use crate::link::Port;
use crate::memory::{GuestMemory, MemoryError, SavedMemory};
use crate::qmp::{Qmp, QmpError};
use crate::save::remove_all;

/// What a memory that has been continued from is called until it is removed.
const USED: &str = "memory.used";

#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    #[error("{0}")]
    Memory(#[from] MemoryError),
    #[error("{0}")]
    Qmp(#[from] QmpError),
    #[error("QEMU does not take the state of its devices")]
    Devices,
    #[error("it cannot be marked as used: {0}")]
    Consume(std::io::Error),
    #[error("loading it was cut short: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Loads `memory` and lets the guest run. `loaded` tells how the loading of devices ended; `port` is opened,
/// because the guest has it open and nothing will say so.
pub async fn resume(
    qmp: &Qmp,
    qemu: u32,
    memory: SavedMemory,
    mut loaded: watch::Receiver<Option<bool>>,
    port: &watch::Sender<Port>,
) -> Result<(), ResumeError> {
    memory.check_qemu(&qmp.version().await?)?;
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    qmp.execute("migrate-set-capabilities", events).await?;
    let blocks = qmp.monitor("info ramblock").await?;
    let guest = GuestMemory::of(qemu, &blocks).map_err(MemoryError::from)?;
    let devices = memory.devices();
    tokio::task::spawn_blocking(move || memory.load(&guest)).await??;
    qmp.execute("migrate-incoming", json!({ "uri": format!("file:{devices}") })).await?;
    let completely = match loaded.wait_for(Option::is_some).await {
        Ok(outcome) => *outcome == Some(true),
        Err(_) => return Err(QmpError::Closed.into()),
    };
    if !completely {
        return Err(ResumeError::Devices);
    }
    // From the first instruction on the disk changes, and the memory no longer belongs to it.
    consume()?;
    port.send_replace(Port::Open(0));
    qmp.execute("cont", json!({})).await?;
    Ok(())
}

/// The memory beside the disk, if there is one, will not be continued from (again).
pub fn consume() -> Result<(), ResumeError> {
    let saved = Utf8Path::new(MEMORY_DIRECTORY);
    let used = Utf8Path::new(USED);
    // An earlier one, whose removal was interrupted.
    remove_all(used).map_err(|error| ResumeError::Consume(std::io::Error::other(error)))?;
    match std::fs::rename(saved, used) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ResumeError::Consume(error)),
    }
    sync_parent(saved.as_std_path()).map_err(ResumeError::Consume)?;
    std::thread::spawn(|| {
        if let Err(error) = remove_all(Utf8Path::new(USED)) {
            tracing::warn!("{error}");
        }
    });
    Ok(())
}
