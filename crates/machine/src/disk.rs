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

/// What will be named `disk.qcow2` in the next moment.
const NEW: &str = "disk.new.qcow2";
/// How QEMU's own names of disks begin.
const NAMES: &str = "disk-";

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
    #[error("{layer} is another disk than the computer's: it was captured under this name before")]
    NotTheLayer { layer: Utf8PathBuf },
    #[error("the base image {base} cannot be read ({source}): build or import the template again")]
    Base { base: Utf8PathBuf, source: std::io::Error },
    #[error("cannot make the disk: {0}")]
    Tool(#[from] tool::ToolError),
    #[error("cannot make {DISK_FILE} durable: {0}")]
    Io(#[from] std::io::Error),
}

/// Makes the disk ready for a start, with the name of number 0 for QEMU. Safe to repeat after an interruption at
/// any point: a new disk appears under its name only when it is complete, and an existing one is never replaced.
pub async fn prepare(directory: &Directory, spec: &DiskSpec) -> Result<(), DiskError> {
    remove_names()?;
    match spec {
        DiskSpec::Existing => match std::fs::metadata(DISK_FILE) {
            Ok(meta) if meta.nlink() == 1 => {}
            Ok(_) => return Err(DiskError::IsLayer),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(DiskError::Missing),
            Err(error) => return Err(error.into()),
        },
        DiskSpec::New { base, size_gib, .. } => {
            make_overlay(directory, base, Some(*size_gib), NEW).await?;
            std::fs::rename(NEW, DISK_FILE)?;
            sync_parent(Path::new(DISK_FILE))?;
        }
    }
    Ok(std::fs::hard_link(DISK_FILE, name(0))?)
}

/// Another name of a disk, for QEMU: the disk of its start is number 0, each capture makes the next. QEMU opens a
/// disk anew, by its name, when it makes it read-only; this name means the same file as long as QEMU lives.
pub fn name(number: u32) -> String {
    format!("{NAMES}{number}.qcow2")
}

/// Names that a QEMU of an earlier process had, or a capture that was interrupted.
fn remove_names() -> std::io::Result<()> {
    remove_if_there(NEW)?;
    for entry in std::fs::read_dir(".")? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(NAMES)) {
            remove_if_there(entry.path())?;
        }
    }
    Ok(())
}

/// A complete new disk named `name` that lies on `base`, with its size or the one given.
pub async fn make_overlay(
    directory: &Directory,
    base: &Utf8Path,
    size_gib: Option<u32>,
    name: &str,
) -> Result<(), DiskError> {
    File::open(base).map_err(|source| DiskError::Base { base: base.to_owned(), source })?;
    remove_if_there(name)?;
    let size = size_gib.map(|size| format!("{size}G"));
    let mut overlay = vec!["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.as_str(), name];
    overlay.extend(size.as_deref());
    tool::qemu_img(directory, &overlay).await?;
    Ok(File::open(name)?.sync_all()?)
}

/// Whether the disk has left the name `layer`, under which it is kept, for a new one on top.
pub fn has_switched(layer: &Utf8Path) -> Result<bool, DiskError> {
    let (disk, layer) = (std::fs::metadata(DISK_FILE)?, std::fs::metadata(layer)?);
    Ok(disk.ino() != layer.ino() || disk.dev() != layer.dev())
}

/// Makes the file `name` the disk, in one step; what was the disk has its layer's name. The guest must stand
/// still.
pub fn switch(name: &str) -> std::io::Result<()> {
    remove_if_there(NEW)?;
    std::fs::hard_link(name, NEW)?;
    std::fs::rename(NEW, DISK_FILE)
}

/// Makes [`switch`] last.
pub fn settle(layer: &Utf8Path) -> std::io::Result<()> {
    File::open(layer)?.sync_all()?;
    sync_parent(Path::new(DISK_FILE))
}
