//! Programs that work on the machine's files on this process's behalf and end by themselves.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::Stdio;

use rustix::io::FdFlags;
use rustix::process::Signal;
use tokio::process::Command;

use crate::directory::Directory;

const QEMU_IMG: &str = "qemu-img";

#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("cannot run {QEMU_IMG}: {0}; install the package qemu-utils")]
    Start(std::io::Error),
    #[error("{QEMU_IMG} failed: {0}")]
    Failed(String),
}

/// Runs `qemu-img` to its end. It holds the directory's lock, so that nobody who sees the lock free finds
/// it still writing, and dies with this process.
pub async fn qemu_img(directory: &Directory, arguments: &[&str]) -> Result<(), ToolError> {
    let lock = directory.lock_file().as_fd().as_raw_fd();
    let mut command = Command::new(QEMU_IMG);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // SAFETY: `directory` has it open until this function returns, and the child a copy.
        let lock = unsafe { BorrowedFd::borrow_raw(lock) };
        Ok(rustix::io::fcntl_setfd(lock, FdFlags::empty())?)
    };
    // SAFETY: the closure makes system calls only.
    unsafe { command.pre_exec(before_exec) };
    let output = command.output().await.map_err(ToolError::Start)?;
    if output.status.success() {
        return Ok(());
    }
    Err(ToolError::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
