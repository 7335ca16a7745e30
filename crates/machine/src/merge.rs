//! Making one layer of two.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::Signal;

#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("cannot run qemu-img: {0}; install the package qemu-utils")]
    Start(std::io::Error),
    #[error("qemu-img failed: {words}")]
    Failed {
        words: String,
        /// How it ended.
        code: Option<i32>,
    },
    #[error("qemu-img says what cannot be read: {0}")]
    Answer(#[from] serde_json::Error),
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

pub(crate) fn backing(layer: &Utf8Path) -> Result<Utf8PathBuf, MergeError> {
    // `-U`: running computers have it open, and nobody changes it.
    let answer = qemu_img(&["info", "-U", "--output=json", layer.as_str()])?;
    let info: serde_json::Value = serde_json::from_slice(&answer)?;
    let backing = info["backing-filename"].as_str().map(Utf8PathBuf::from);
    backing.ok_or_else(|| MergeError::NoLayer { path: layer.to_owned() })
}

/// Runs it to its end, which is no later than this process's.
pub(crate) fn qemu_img(arguments: &[&str]) -> Result<Vec<u8>, MergeError> {
    let mut command = Command::new("qemu-img");
    command.args(arguments).stdin(Stdio::null());
    let before_exec = || Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?);
    // SAFETY: the closure makes a system call only.
    unsafe { command.pre_exec(before_exec) };
    let output = command.output().map_err(MergeError::Start)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    // What `compare` finds is no error to it.
    let words = [output.stderr, output.stdout].map(|words| String::from_utf8_lossy(&words).trim().to_owned());
    let words = words.into_iter().find(|words| !words.is_empty()).unwrap_or_default();
    Err(MergeError::Failed { words, code: output.status.code() })
}
