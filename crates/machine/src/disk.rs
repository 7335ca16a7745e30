//! The active layer of the computer's disk.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use camino::Utf8PathBuf;
use roost_machine_proto::{DISK_FILE, DiskSpec};
use tokio::process::Command;

use crate::directory::{remove_if_there, sync_parent};

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(
        "{DISK_FILE} is missing: the computer's disk was removed or is on another host; restore it from a snapshot or delete the computer"
    )]
    Missing,
    #[error("the base image {base} cannot be read ({source}): build or import the template again")]
    Base { base: Utf8PathBuf, source: std::io::Error },
    #[error("cannot run qemu-img: {0}; install the package qemu-utils")]
    NoQemuImg(std::io::Error),
    #[error("qemu-img could not make the disk: {0}")]
    QemuImg(String),
    #[error("cannot make {DISK_FILE} durable: {0}")]
    Io(#[from] std::io::Error),
}

/// Makes sure that `disk.qcow2` is there. Safe to repeat after an interruption at any point: the disk
/// appears under its name only when it is complete, and a disk that has its name is never replaced.
pub async fn prepare(spec: &DiskSpec) -> Result<(), DiskError> {
    match spec {
        DiskSpec::Existing if Path::new(DISK_FILE).exists() => Ok(()),
        DiskSpec::Existing => Err(DiskError::Missing),
        DiskSpec::New { .. } if Path::new(DISK_FILE).exists() => Ok(()),
        DiskSpec::New { base, size_gib } => {
            File::open(base).map_err(|source| DiskError::Base { base: base.clone(), source })?;
            let unfinished = format!("{DISK_FILE}.tmp");
            remove_if_there(&unfinished)?;
            let output = Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.as_str()])
                .args([unfinished.as_str(), &format!("{size_gib}G")])
                .stdin(Stdio::null())
                .kill_on_drop(true)
                .output()
                .await
                .map_err(DiskError::NoQemuImg)?;
            if !output.status.success() {
                return Err(DiskError::QemuImg(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
            }
            File::open(&unfinished)?.sync_all()?;
            std::fs::rename(&unfinished, DISK_FILE)?;
            Ok(sync_parent(Path::new(DISK_FILE))?)
        }
    }
}
