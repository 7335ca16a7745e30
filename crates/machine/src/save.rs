//! Saving a running computer: for a stop, for a template, or for a snapshot or clone while it goes on.
//!
//! ```text
//!   freeze (agent: sync, no more writes) -> QEMU: stop -> devices -> pages -> disk becomes a layer -> cont -> thaw
//!          |                                 [----------- the guest stands still ----------]
//!          +-- the agent is not there or refuses: memory and disk are one moment all the same
//! ```
//!
//! The freeze is for whoever will boot this disk without this memory: every file is then on it. A clone continues with
//! the memory at once, and its disk is as good as after a power cut should that fail. Nothing is final before the end:
//! at any failure the guest goes on as if nothing had been.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use roost_guest_proto::v1::{FreezeRequest, ThawRequest};
use roost_machine_proto::{CAPTURED_FILE, Captured, MEMORY_DIRECTORY};
use serde_json::json;

use crate::directory::{Directory, remove_if_there, sync_parent, write_whole};
use crate::disk::{self, DiskError};
use crate::link::Guest;
use crate::memory::{self, About, Form, GuestMemory, MemoryError, PAGE, Unfinished};
use crate::qemu::{disk_node, disk_options};
use crate::qmp::{Qmp, QmpError};

/// The guest may have much to write; under emulation, to a slow disk.
const FREEZE_DEADLINE: Duration = Duration::from_secs(45);
const THAW_DEADLINE: Duration = Duration::from_secs(10);
/// Room that stays free on the disk beside what is saved.
const ROOM: u64 = 64 * 1024 * 1024;
/// What a saved memory is called until it is complete.
const UNFINISHED: &str = "memory.unfinished";

/// What is to be saved, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    Suspend(Form),
    Capture {
        /// Where the memory goes.
        memory: Utf8PathBuf,
        /// The other name of the disk, by which it will be a layer.
        layer: Utf8PathBuf,
        /// A clone continues from it at once, and nobody later: the freeze is left out, and with it all waiting for
        /// the host's disk.
        passing: bool,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error("not enough room on the disk: saving the memory takes {needed} MiB, and {free} MiB are free")]
    NoRoom { needed: u64, free: u64 },
    #[error("{0}")]
    Qmp(#[from] QmpError),
    #[error("the memory cannot be saved: {0}")]
    Memory(#[from] MemoryError),
    #[error("the disk cannot become a layer: {0}")]
    Disk(#[from] DiskError),
    #[error("cannot {action} {path}: {source}")]
    File { action: &'static str, path: Utf8PathBuf, source: std::io::Error },
    #[error("the computer goes on, and its snapshot is lost: {0}")]
    AfterSwitch(Box<SaveError>),
    #[error("the work on the memory was cut short: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// What saving needs to know of the running computer.
#[derive(Debug, Clone)]
pub struct Saving {
    pub qmp: Qmp,
    pub qemu: u32,
    pub guest: Option<Guest>,
    pub about: About,
    /// The numbers of the disk now and of the next one.
    pub disk: u32,
    pub next_disk: u32,
}

/// What was saved, and the number of the disk that the guest has now.
#[derive(Debug)]
pub struct Saved {
    pub captured: Captured,
    pub disk: u32,
}

/// Saves and leaves the guest standing still: QEMU is to be ended then.
pub async fn suspend(saving: &Saving, form: Form) -> Result<Saved, SaveError> {
    let target = Utf8Path::new(MEMORY_DIRECTORY);
    let unfinished = Utf8Path::new(UNFINISHED);
    make_empty(unfinished)?;
    let attempt = async {
        check_room_for(saving).await?;
        freeze(saving).await;
        // The guest sees the end of this conversation before it sees the beginning of the next one.
        if let Some(guest) = &saving.guest {
            guest.hang_up();
        }
        let memory = pause_and_copy(saving, unfinished, form).await?;
        let bytes = finish(memory, true).await?;
        remove_all(target)?;
        std::fs::rename(unfinished, target).map_err(file("name", target))?;
        sync_parent(target.as_std_path()).map_err(file("sync", target))?;
        let captured = Captured { disk_bytes: 0, memory_bytes: Some(bytes), pause: None };
        Ok(Saved { captured, disk: saving.disk })
    };
    let outcome = attempt.await;
    if outcome.is_err() {
        go_on(saving, true).await;
        discard(unfinished);
    }
    outcome
}

/// Saves, makes the disk a layer, and lets the guest go on on the next disk.
pub async fn capture(
    saving: &Saving,
    directory: &Directory,
    memory: &Utf8Path,
    layer: &Utf8Path,
    passing: bool,
) -> Result<Saved, SaveError> {
    let home = memory.parent().unwrap_or(Utf8Path::new("."));
    let report = home.join(CAPTURED_FILE);
    // Asked again, because the first answer was lost.
    if let Some(captured) = read_report(&report)? {
        return Ok(Saved { captured, disk: saving.disk });
    }
    // The new disk will lie on the layer: what the guest has written since another one became it would be lost.
    if disk::has_switched(layer)? {
        return Err(DiskError::NotTheLayer { layer: layer.to_owned() }.into());
    }
    make_empty(home)?;
    make_empty(memory)?;
    let mut overlay_is_open = false;
    let attempt = async {
        let next = disk::name(saving.next_disk);
        disk::make_overlay(directory, layer, None, &next).await?;
        // Opened before the pause, and without what it lies on, which QEMU has open already.
        let mut options = disk_options(saving.next_disk);
        options["backing"] = serde_json::Value::Null;
        saving.qmp.execute("blockdev-add", options).await?;
        overlay_is_open = true;
        check_room_for(saving).await?;
        if !passing {
            freeze(saving).await;
        }
        let paused = Instant::now();
        let unfinished = pause_and_copy(saving, memory, Form::Difference).await?;
        disk::switch(&next).map_err(DiskError::from)?;
        let swap = json!({ "node": disk_node(saving.disk), "overlay": disk_node(saving.next_disk) });
        if let Err(error) = saving.qmp.execute("blockdev-snapshot", swap).await {
            disk::switch(&disk::name(saving.disk)).map_err(DiskError::from)?;
            return Err(error.into());
        }
        Ok((unfinished, paused))
    };
    let (unfinished, paused) = match attempt.await {
        Ok(saved) => saved,
        Err(error) => {
            go_on(saving, !passing).await;
            if overlay_is_open {
                let node = json!({ "node-name": disk_node(saving.next_disk) });
                if let Err(error) = saving.qmp.execute("blockdev-del", node).await {
                    tracing::warn!("the disk of a capture that failed stays open: {error}");
                }
            }
            discard(home);
            return Err(error);
        }
    };
    go_on(saving, !passing).await;
    let pause = paused.elapsed();
    // From here on the disk lies on the layer; what fails now loses the snapshot and not the computer.
    let completed = async {
        let memory_bytes = finish(unfinished, !passing).await?;
        disk::settle(layer).map_err(DiskError::from)?;
        let disk_bytes = allocated(layer)?;
        let captured = Captured { disk_bytes, memory_bytes: Some(memory_bytes), pause: Some(pause) };
        write_report(&report, &captured, !passing)?;
        tracing::info!(?pause, memory_bytes, "captured");
        Ok(Saved { captured, disk: saving.next_disk })
    };
    completed.await.map_err(|error: SaveError| SaveError::AfterSwitch(Box::new(error)))
}

/// The same for a computer that is not running: its saved memory, if it has one, is linked and not copied.
pub async fn capture_stopped(
    directory: &Directory,
    memory: &Utf8Path,
    layer: &Utf8Path,
) -> Result<Captured, SaveError> {
    let home = memory.parent().unwrap_or(Utf8Path::new("."));
    let report = home.join(CAPTURED_FILE);
    if let Some(done) = read_report(&report)? {
        return Ok(done);
    }
    make_empty(home)?;
    let saved = Utf8Path::new(MEMORY_DIRECTORY);
    let mut memory_bytes = None;
    if saved.exists() {
        make_empty(memory)?;
        let mut bytes = 0;
        for entry in saved.read_dir_utf8().map_err(file("list", saved))? {
            let entry = entry.map_err(file("list", saved))?;
            let target = memory.join(entry.file_name());
            bytes += allocated(entry.path())?;
            match std::fs::hard_link(entry.path(), &target) {
                // Of an earlier snapshot, and the launcher's since then.
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    std::fs::copy(entry.path(), &target).map_err(file("copy", &target))?;
                    File::open(&target).and_then(|copy| copy.sync_all()).map_err(file("sync", &target))?;
                }
                outcome => outcome.map_err(file("link", &target))?,
            }
        }
        memory_bytes = Some(bytes);
    }
    if !disk::has_switched(layer)? {
        let next = disk::name(0);
        disk::make_overlay(directory, layer, None, &next).await?;
        disk::switch(&next).map_err(DiskError::from)?;
        remove_if_there(&next).map_err(DiskError::from)?;
    }
    disk::settle(layer).map_err(DiskError::from)?;
    let captured = Captured { disk_bytes: allocated(layer)?, memory_bytes, pause: None };
    write_report(&report, &captured, true)?;
    Ok(captured)
}

async fn freeze(saving: &Saving) {
    let Some(guest) = &saving.guest else { return };
    let mut system = guest.system();
    match tokio::time::timeout(FREEZE_DEADLINE, system.freeze(FreezeRequest {})).await {
        Ok(Ok(_)) => {}
        Ok(Err(status)) => tracing::warn!("the guest's filesystems are not frozen: {}", status.message()),
        Err(_) => {
            tracing::warn!("the guest did not freeze its filesystems in {} s", FREEZE_DEADLINE.as_secs())
        }
    }
}

/// Asks before the guest notices anything. It may write more until it stands still, which is looked at again.
async fn check_room_for(saving: &Saving) -> Result<(), SaveError> {
    let blocks = saving.qmp.monitor("info ramblock").await?;
    let guest = GuestMemory::of(saving.qemu, &blocks).map_err(MemoryError::from)?;
    tokio::task::spawn_blocking(move || check_room(&guest)).await?
}

/// Stops the guest and copies its devices and memory. The caller lets it go on.
async fn pause_and_copy(saving: &Saving, into: &Utf8Path, form: Form) -> Result<Unfinished, SaveError> {
    saving.qmp.execute("stop", json!({})).await?;
    let blocks = saving.qmp.monitor("info ramblock").await?;
    let guest = GuestMemory::of(saving.qemu, &blocks).map_err(MemoryError::from)?;
    let devices = into.join(memory::DEVICES);
    // `live`: the disk stays QEMU's.
    let arguments = json!({ "filename": devices.as_str(), "live": false });
    saving.qmp.execute("xen-save-devices-state", arguments).await?;
    let (into, about) = (into.to_owned(), saving.about.clone());
    tokio::task::spawn_blocking(move || {
        check_room(&guest)?;
        Ok(memory::save(&into, &guest, form, about)?)
    })
    .await?
}

async fn finish(unfinished: Unfinished, durably: bool) -> Result<u64, SaveError> {
    Ok(tokio::task::spawn_blocking(move || unfinished.finish(durably)).await??)
}

/// The guest runs again and may write. What fails here is seen by those who use the computer; there is nothing
/// else to be done about it.
async fn go_on(saving: &Saving, is_frozen: bool) {
    if let Err(error) = saving.qmp.execute("cont", json!({})).await {
        tracing::error!("QEMU does not let the guest go on: {error}");
    }
    let Some(guest) = saving.guest.clone().filter(|_| is_frozen) else { return };
    tokio::spawn(async move {
        let mut system = guest.system();
        match tokio::time::timeout(THAW_DEADLINE, system.thaw(ThawRequest {})).await {
            Ok(Ok(_)) => {}
            Ok(Err(status)) => {
                tracing::warn!("the guest's filesystems thaw by themselves: {}", status.message());
            }
            Err(_) => tracing::warn!("the guest's filesystems thaw by themselves: no answer"),
        }
    });
}

fn check_room(guest: &GuestMemory) -> Result<(), SaveError> {
    let pages: u64 = guest.own_pages().map_err(MemoryError::from)?.iter().map(|run| run.pages).sum();
    let needed = pages * PAGE;
    let here = rustix::fs::statvfs(".").map_err(|error| SaveError::File {
        action: "ask for the free room of",
        path: ".".into(),
        source: error.into(),
    })?;
    let free = here.f_bavail * here.f_frsize;
    if free < needed + ROOM {
        return Err(SaveError::NoRoom { needed: (needed + ROOM) >> 20, free: free >> 20 });
    }
    Ok(())
}

fn read_report(path: &Utf8Path) -> Result<Option<Captured>, SaveError> {
    match std::fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(file("read", path)(source)),
    }
}

fn write_report(path: &Utf8Path, captured: &Captured, durably: bool) -> Result<(), SaveError> {
    let text = serde_json::to_vec_pretty(captured).map_err(|error| file("write", path)(error.into()))?;
    write_whole(path, &text, durably).map_err(file("write", path))
}

fn allocated(path: &Utf8Path) -> Result<u64, SaveError> {
    let meta = File::open(path).and_then(|file| file.metadata()).map_err(file("inspect", path))?;
    Ok(meta.blocks() * 512)
}

fn make_empty(directory: &Utf8Path) -> Result<(), SaveError> {
    remove_all(directory)?;
    std::fs::create_dir_all(directory).map_err(file("make", directory))
}

pub fn remove_all(directory: &Utf8Path) -> Result<(), SaveError> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file("remove", directory)(error)),
        _ => Ok(()),
    }
}

/// What is left over takes room and harms nothing: the next save removes it.
fn discard(directory: &Utf8Path) {
    if Path::new(directory).exists()
        && let Err(error) = remove_all(directory)
    {
        tracing::warn!("{error}");
    }
}

fn file(action: &'static str, path: &Utf8Path) -> impl FnOnce(std::io::Error) -> SaveError {
    let path = path.to_owned();
    move |source| SaveError::File { action, path, source }
}
