//! A disk that lies on layers becomes one that does not, with the same content: for a computer that moves to where
//! those layers are not.

use std::fs::File;

use camino::Utf8Path;

use crate::merge::{MergeError, backing, qemu_img};

#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    #[error(transparent)]
    Tool(#[from] MergeError),
    #[error("the copy is not what it is a copy of ({0}): is a disk of this host damaged?")]
    Different(String),
    #[error("cannot make the copy durable: {0}")]
    Io(#[from] std::io::Error),
}

/// Copies into `disk` what it shows of the layers below the directory `layers`, and lays it on what they lie on. Nobody
/// else may have `disk` open. After an interruption `disk` is of no use.
pub fn detach(disk: &Utf8Path, layers: &Utf8Path) -> Result<(), DetachError> {
    let mut base = backing(disk)?;
    if !base.starts_with(layers) {
        return Ok(());
    }
    while base.starts_with(layers) {
        base = backing(&base)?;
    }
    qemu_img(&["rebase", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.as_str(), disk.as_str()])?;
    Ok(File::open(disk)?.sync_all()?)
}

/// Whether a guest finds the same on both disks, byte by byte; an error says what differs.
pub fn require_same(one: &Utf8Path, other: &Utf8Path) -> Result<(), DetachError> {
    let compared = ["compare", "-U", "-f", "qcow2", "-F", "qcow2", one.as_str(), other.as_str()];
    match qemu_img(&compared) {
        Ok(_) => Ok(()),
        Err(MergeError::Failed { words, code: Some(DIFFERENT) }) => Err(DetachError::Different(words)),
        Err(error) => Err(error.into()),
    }
}

/// How `qemu-img compare` ends where the images differ.
const DIFFERENT: i32 = 1;
