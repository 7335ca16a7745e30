//! `roost machine`: the process of one computer.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use anyhow::Context;
use camino::Utf8PathBuf;
use clap::Args;
use roost_machine::Inherited;

#[derive(Debug, Args)]
pub(crate) struct MachineArgs {
    /// Directory of the machine, with its spec.json
    #[arg(long, value_name = "DIR")]
    dir: Utf8PathBuf,
    /// Directory of the templates
    #[arg(long, value_name = "DIR")]
    templates: Utf8PathBuf,
    /// Give up root and become this user
    #[arg(long, value_name = "UID")]
    as_user: Option<u32>,
    /// Standard input is the listening socket and this descriptor the lock of the directory
    #[arg(long, value_name = "FD")]
    lock_fd: Option<i32>,
}

/// Runs on the main thread, which is the only one while root is given up, and which QEMU is bound to.
pub(crate) fn run(args: &MachineArgs) -> anyhow::Result<()> {
    crate::output::log();
    // It was started through /proc/self/exe, which would be its name in every list of processes.
    rustix::thread::set_name(c"roost-machine").context("failed to name the process")?;
    let inherited =
        args.lock_fd.map(inherit).transpose().context("failed to take over what the launcher made")?;
    if let Some(user) = args.as_user {
        roost_launch::confine(user, &[&args.dir, &args.templates]).context("failed to give up root")?;
    }
    Ok(roost_machine::run(&args.dir, inherited)?)
}

fn inherit(lock: i32) -> std::io::Result<Inherited> {
    let listener = std::io::stdin().as_fd().try_clone_to_owned()?;
    // SAFETY: the launcher opened this descriptor for us, and nothing else in this process knows it.
    let lock = unsafe { OwnedFd::from_raw_fd(lock) };
    // Children get it only where they are meant to.
    rustix::io::fcntl_setfd(&lock, rustix::io::FdFlags::CLOEXEC)?;
    Ok(Inherited { lock: lock.into(), listener: listener.into() })
}
