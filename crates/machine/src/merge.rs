//! Making one layer of two.

use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("cannot run qemu-img: {0}; install the package qemu-utils")]
    Start(std::io::Error),
    #[error("qemu-img failed: {0}")]
    Failed(String),
    #[error("{path} is not a layer on a layer")]
    NoLayer { path: Utf8PathBuf },
}

/// Copies into `upper` what it shows of the layer it lies on, and lays it on what that one lies on. Nobody else
/// may have `upper` open. After an interruption `upper` is of no use.
pub fn merge(upper: &Utf8Path) -> Result<(), MergeError> {
    let lower = backing(upper)?;
    let base = backing(&lower)?;
    qemu_img(&["rebase", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.as_str(), upper.as_str()]).map(drop)
}

fn backing(layer: &Utf8Path) -> Result<Utf8PathBuf, MergeError> {
    // `-U`: running computers have it open, and nobody changes it.
    let answer = qemu_img(&["info", "-U", "--output=json", layer.as_str()])?;
    let info: serde_json::Value =
        serde_json::from_slice(&answer).map_err(|error| MergeError::Failed(error.to_string()))?;
    let backing = info["backing-filename"].as_str().map(Utf8PathBuf::from);
    backing.ok_or_else(|| MergeError::NoLayer { path: layer.to_owned() })
}

fn qemu_img(arguments: &[&str]) -> Result<Vec<u8>, MergeError> {
    let output =
        Command::new("qemu-img").args(arguments).stdin(Stdio::null()).output().map_err(MergeError::Start)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(MergeError::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
