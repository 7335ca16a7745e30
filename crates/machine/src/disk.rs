//! The active layer of the computer's disk.

use std::fs::File;
use std::path::Path;

use camino::Utf8PathBuf;
use roost_machine_proto::{DISK_FILE, DiskSpec};

use crate::directory::{Directory, remove_if_there, sync_parent};
use crate::tool;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(
        "{DISK_FILE} is missing: the computer's disk was removed or is on another host; restore it from a snapshot or delete the computer"
    )]
    Missing,
    #[error("the base image {base} cannot be read ({source}): build or import the template again")]
    Base { base: Utf8PathBuf, source: std::io::Error },
    #[error("cannot make the disk: {0}")]
    Tool(#[from] tool::ToolError),
    #[error("cannot make {DISK_FILE} durable: {0}")]
    Io(#[from] std::io::Error),
}

/// Makes sure that `disk.qcow2` is there. Safe to repeat after an interruption at any point: the disk
/// appears under its name only when it is complete, and a disk that has its name is never replaced.
pub async fn prepare(directory: &Directory, spec: &DiskSpec) -> Result<(), DiskError> {
    match spec {
        DiskSpec::Existing if Path::new(DISK_FILE).exists() => Ok(()),
        DiskSpec::Existing => Err(DiskError::Missing),
        DiskSpec::New { .. } if Path::new(DISK_FILE).exists() => Ok(()),
        DiskSpec::New { base, size_gib } => {
            File::open(base).map_err(|source| DiskError::Base { base: base.clone(), source })?;
            let unfinished = format!("{DISK_FILE}.tmp");
            remove_if_there(&unfinished)?;
            let size = format!("{size_gib}G");
            let overlay =
                ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.as_str(), &unfinished, &size];
            tool::qemu_img(directory, &overlay).await?;
            File::open(&unfinished)?.sync_all()?;
            std::fs::rename(&unfinished, DISK_FILE)?;
            Ok(sync_parent(Path::new(DISK_FILE))?)
        }
    }
}
