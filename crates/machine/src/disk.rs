//! The active layer of the computer's disk: how it is made, and how it becomes a layer others may lie on, with a
//! new disk on top.
//!
//! A layer is made by linking the disk to the layer's name first and putting a new disk in its place then. So
//! whoever finds both names on one file knows that this has not happened, and that the file is not a layer yet.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use camino::{Utf8Path, Utf8PathBuf};
use roost_machine_proto::{DISK_FILE, DiskSpec};

use crate::directory::{Directory, remove_if_there, sync_parent};
use crate::tool;

/// The disk that will lie on the layer that the disk is becoming.
pub const NEXT: &str = "disk.next.qcow2";
/// What was the disk before the switch.
const BEFORE: &str = "disk.before.qcow2";

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(
        "{DISK_FILE} is missing: the computer's disk was removed or is on another host; restore it from a snapshot or delete the computer"
    )]
    Missing,
    #[error(
        "{DISK_FILE} is also a layer, because a snapshot was interrupted and nobody has tidied up after it; \
         restart the server, which does"
    )]
    IsLayer,
    #[error("the base image {base} cannot be read ({source}): build or import the template again")]
    Base { base: Utf8PathBuf, source: std::io::Error },
    #[error("cannot make the disk: {0}")]
    Tool(#[from] tool::ToolError),
    #[error("cannot make {DISK_FILE} durable: {0}")]
    Io(#[from] std::io::Error),
}

/// Makes the disk ready for a start. Safe to repeat after an interruption at any point: a new disk appears under
/// its name only when it is complete, and an existing one is never replaced.
pub async fn prepare(directory: &Directory, spec: &DiskSpec) -> Result<(), DiskError> {
    // Of a capture that was interrupted: either name is the disk's or the next disk's and nobody else's.
    remove_if_there(NEXT)?;
    remove_if_there(BEFORE)?;
    match spec {
        DiskSpec::Existing => match std::fs::metadata(DISK_FILE) {
            Ok(meta) if meta.nlink() == 1 => Ok(()),
            Ok(_) => Err(DiskError::IsLayer),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(DiskError::Missing),
            Err(error) => Err(error.into()),
        },
        DiskSpec::New { base, size_gib, .. } => {
            make_overlay(directory, base, Some(*size_gib)).await?;
            std::fs::rename(NEXT, DISK_FILE)?;
            Ok(sync_parent(Path::new(DISK_FILE))?)
        }
    }
}

/// A complete new disk named [`NEXT`] that lies on `base`, with its size or the one given.
pub async fn make_overlay(
    directory: &Directory,
    base: &Utf8Path,
    size_gib: Option<u32>,
) -> Result<(), DiskError> {
    File::open(base).map_err(|source| DiskError::Base { base: base.to_owned(), source })?;
    remove_if_there(NEXT)?;
    let size = size_gib.map(|size| format!("{size}G"));
    let mut overlay = vec!["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.as_str(), NEXT];
    overlay.extend(size.as_deref());
    tool::qemu_img(directory, &overlay).await?;
    Ok(File::open(NEXT)?.sync_all()?)
}

/// Whether the disk has left the name `layer`, under which it is kept, for a new one on top.
pub fn has_switched(layer: &Utf8Path) -> Result<bool, DiskError> {
    let (disk, layer) = (std::fs::metadata(DISK_FILE)?, std::fs::metadata(layer)?);
    Ok(disk.ino() != layer.ino() || disk.dev() != layer.dev())
}

/// Makes [`NEXT`] the disk, in one step; what was the disk has its layer's name, and [`BEFORE`] to go back to.
/// The guest must stand still.
pub fn switch() -> std::io::Result<()> {
    remove_if_there(BEFORE)?;
    std::fs::hard_link(DISK_FILE, BEFORE)?;
    std::fs::rename(NEXT, DISK_FILE)
}

/// Takes [`switch`] back.
pub fn switch_back() -> std::io::Result<()> {
    std::fs::rename(BEFORE, DISK_FILE)
}

/// Makes [`switch`] last.
pub fn settle(layer: &Utf8Path) -> std::io::Result<()> {
    remove_if_there(BEFORE)?;
    File::open(layer)?.sync_all()?;
    sync_parent(Path::new(DISK_FILE))
}
