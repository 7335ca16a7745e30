//! Programs that work on the machine's files on this process's behalf and end by themselves.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::Stdio;

use rustix::io::FdFlags;
use rustix::process::Signal;
use tokio::process::Command;

use crate::directory::Directory;

#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("cannot run {program}: {source}; install the package qemu-utils")]
    Start { program: &'static str, source: std::io::Error },
    #[error("{program} failed: {words}")]
    Failed { program: &'static str, words: String },
}

/// Runs `qemu-img` to its end. It holds the directory's lock, so that nobody who sees the lock free finds
/// it still writing, and dies with this process.
pub async fn qemu_img(directory: &Directory, arguments: &[&str]) -> Result<(), ToolError> {
    const PROGRAM: &str = "qemu-img";
    let lock = directory.lock_file().as_fd().as_raw_fd();
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // SAFETY: `directory` has it open until this function returns, and the child a copy.
        let lock = unsafe { BorrowedFd::borrow_raw(lock) };
        Ok(rustix::io::fcntl_setfd(lock, FdFlags::empty())?)
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(before_exec) };
    let output = command.output().await.map_err(|source| ToolError::Start { program: PROGRAM, source })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ToolError::Failed { program: PROGRAM, words })
}
