//! `roost machine`: the process of one computer, and short work on the files of computers. Not for people: the
//! server starts it.

use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use clap::{Args, Subcommand};
use roost_machine::Inherited;
use roost_machine_proto::DISK_FILE;

#[derive(Debug, Args)]
pub(crate) struct MachineArgs {
    /// Directory of the machine, with its spec.json
    #[arg(long, value_name = "DIR")]
    dir: Utf8PathBuf,
    /// Directory the machine reads from: templates, layers, snapshots; may be repeated
    #[arg(long = "read", value_name = "DIR")]
    reads: Vec<Utf8PathBuf>,
    /// Give up root and become this user
    #[arg(long, value_name = "UID")]
    as_user: Option<u32>,
    /// Standard input is the listening socket and this descriptor the lock of the directory
    #[arg(long, value_name = "FD")]
    lock_fd: Option<i32>,
    #[command(subcommand)]
    work: Option<Work>,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// Keep the state of a computer that is not running
    Capture {
        /// Where its saved memory goes, below the machine's directory
        #[arg(long)]
        memory: Utf8PathBuf,
        /// Where its disk is linked to become a layer
        #[arg(long)]
        layer: Utf8PathBuf,
    },
    /// Copy a computer that is not running from another machine's directory, onto no layer
    Fetch {
        #[arg(long)]
        from: Utf8PathBuf,
        /// Where the layers are that its disk may lie on
        #[arg(long)]
        layers: Utf8PathBuf,
    },
    /// Merge a copy of a layer, in the directory, with the layer it lies on
    Merge {
        #[arg(long)]
        copy: Utf8PathBuf,
    },
}

/// Runs on the main thread, which is the only one while root is given up, and which QEMU is bound to.
pub(crate) fn run(args: &MachineArgs) -> anyhow::Result<()> {
    crate::output::log(crate::output::LogFormat::Text);
    // It was started through /proc/self/exe, which would be its name in every list of processes.
    rustix::thread::set_name(c"roost-machine").context("failed to name the process")?;
    // Where the host's memory runs out all the same, a computer goes and not the server or a login.
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "500") {
        tracing::warn!("the kernel may end others before this computer when memory runs out: {error}");
    }
    let lock = args.lock_fd.map(inherit_lock).transpose().context("failed to take over the lock")?;
    if let Some(user) = args.as_user {
        let mut paths = vec![args.dir.as_path()];
        paths.extend(args.reads.iter().map(Utf8PathBuf::as_path));
        roost_launch::confine(user, &paths).context("failed to give up root")?;
    }
    match &args.work {
        None => {
            let inherited = match lock {
                Some(lock) => {
                    let listener = std::io::stdin().as_fd().try_clone_to_owned();
                    let listener = listener.context("failed to take over the socket")?.into();
                    Some(Inherited { lock, listener })
                }
                None => None,
            };
            Ok(roost_machine::run(&args.dir, inherited)?)
        }
        Some(Work::Capture { memory, layer }) => {
            let lock = lock.context("the launcher holds the lock, and gives it with --lock-fd")?;
            Ok(roost_machine::capture(&args.dir, lock, memory, layer)?)
        }
        Some(Work::Fetch { from, layers }) => {
            let lock = lock.context("the launcher holds the lock, and gives it with --lock-fd")?;
            // Whoever sees it free finds nobody at work: not us, and not what we start.
            rustix::io::fcntl_setfd(&lock, rustix::io::FdFlags::empty())?;
            fetch(from, &args.dir, layers)
        }
        Some(Work::Merge { copy }) => Ok(roost_machine::merge(copy)?),
    }
}

/// Copies, takes the copy off the layers, and compares: each is a third of the progress.
fn fetch(from: &Utf8Path, to: &Utf8Path, layers: &Utf8Path) -> anyhow::Result<()> {
    let mut last = 0;
    let mut tell = |percent: u8| -> std::io::Result<()> {
        if percent > last {
            last = percent;
            writeln!(std::io::stdout(), "{percent}")?;
        }
        Ok(())
    };
    let mut told = Ok(());
    roost_launch::copy_machine(from, to, &mut |percent| {
        if told.is_ok() {
            told = tell(percent / 3);
        }
    })?;
    told?;
    let disk = to.join(DISK_FILE);
    roost_machine::detach(&disk, layers)?;
    tell(66)?;
    roost_machine::require_same(&from.join(DISK_FILE), &disk)?;
    tell(100)?;
    Ok(())
}

fn inherit_lock(lock: i32) -> std::io::Result<std::fs::File> {
    // SAFETY: the launcher opened this descriptor for us, and nothing else in this process knows it.
    let lock = unsafe { OwnedFd::from_raw_fd(lock) };
    // Children get it only where they are meant to.
    rustix::io::fcntl_setfd(&lock, rustix::io::FdFlags::CLOEXEC)?;
    Ok(lock.into())
}
