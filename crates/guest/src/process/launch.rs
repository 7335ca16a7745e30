//! Starting a command: who it is, where it runs, what it inherits.
//!
//! The child becomes the leader of a new session and process group, takes the user's groups and ids, and
//! only then enters the directory, so that it gets nowhere the user could not. It inherits no descriptor
//! but its three streams, which are pipes or one terminal.

use std::{
    collections::BTreeMap,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, PidfdFlags, Signal},
};
use tokio::{io::unix::AsyncFd, net::unix::pipe};

use super::{
    account::Account,
    pty::{Pty, Size},
};
use crate::descriptor;

/// Everything that decides how the command starts.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) argv: Vec<String>,
    pub(crate) cwd: String,
    /// The whole environment.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) account: Account,
    pub(crate) streams: Streams,
}

/// What the command's three streams are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Streams {
    Pipes {
        /// Without it standard input is `/dev/null`.
        stdin: bool,
    },
    Terminal(Size),
}

#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) leader: Leader,
    pub(crate) ends: Ends,
}

/// Our ends of the command's streams.
#[derive(Debug)]
pub(crate) enum Ends {
    Pipes { stdin: Option<pipe::Sender>, stdout: pipe::Receiver, stderr: pipe::Receiver },
    Terminal(Pty),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("{0}: {name}", name = describe(.1))]
    Program(String, io::Error),
    #[error("enter the directory {0}: {name}", name = describe(.1))]
    Directory(String, io::Error),
    #[error("become the user `{0}`: {name}", name = describe(.1))]
    User(String, io::Error),
    #[error("start a process: {0}")]
    System(io::Error),
}

/// As a shell puts it.
fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "not found".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::NotADirectory => "not a directory".to_owned(),
        io::ErrorKind::ArgumentListTooLong => "argument list too long".to_owned(),
        _ => error.to_string(),
    }
}

/// What fails between fork and exec reaches us as an error number alone. These say which step failed; the
/// kernel's own numbers are below 4096.
const STEP_USER: i32 = 1 << 16;
const STEP_DIRECTORY: i32 = 2 << 16;
const STEP_MASK: i32 = 3 << 16;

impl Launch {
    pub(crate) fn start(self) -> Result<Launched, LaunchError> {
        let program = self.argv[0].clone();
        let mut command = Command::new(&program);
        command.args(&self.argv[1..]).env_clear().envs(&self.env);
        let terminal = match self.streams {
            Streams::Pipes { stdin } => {
                command.stdin(if stdin { Stdio::piped() } else { Stdio::null() });
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                None
            }
            Streams::Terminal(size) => {
                let mut terminal = || -> io::Result<Pty> {
                    let (ours, theirs) = Pty::open(size, &self.account)?;
                    command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
                    Ok(ours)
                };
                Some(terminal().map_err(LaunchError::System)?)
            }
        };
        let name = self.account.name.clone();
        let cwd = self.cwd.clone();
        let become_user = self.into_child_setup();
        // SAFETY: the closure only makes system calls on what it already owns; it neither allocates nor
        // takes locks, which a forked child of a threaded program must not do.
        unsafe { command.pre_exec(become_user) };
        let child = command.spawn().map_err(|error| {
            let number = error.raw_os_error().unwrap_or_default();
            let cause = || io::Error::from_raw_os_error(number & !STEP_MASK);
            match number & STEP_MASK {
                STEP_USER => LaunchError::User(name, cause()),
                STEP_DIRECTORY => LaunchError::Directory(cwd, cause()),
                _ => LaunchError::Program(program, error),
            }
        })?;
        // It holds the program's end of the terminal, whose last close is how we learn that nobody uses it.
        drop(command);
        adopt(child, terminal).map_err(LaunchError::System)
    }

    fn into_child_setup(self) -> impl FnMut() -> io::Result<()> + Send + Sync + 'static {
        let Self { account, cwd, streams, .. } = self;
        let switch = account.uid != rustix::process::geteuid() || account.uid.is_root();
        let cwd = std::ffi::CString::new(cwd);
        move || {
            let step = |step: i32| {
                move |error: rustix::io::Errno| io::Error::from_raw_os_error(step | error.raw_os_error())
            };
            rustix::process::setsid()?;
            if let Streams::Terminal(_) = streams {
                // So that Ctrl-C and the like reach the command, and `/dev/tty` is this terminal.
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            restore_kill_order();
            if switch {
                rustix::thread::set_thread_groups(&account.groups).map_err(step(STEP_USER))?;
                rustix::thread::set_thread_gid(account.gid).map_err(step(STEP_USER))?;
                rustix::thread::set_thread_uid(account.uid).map_err(step(STEP_USER))?;
            }
            // A command in the foreground does not outlive the agent that carries its output.
            rustix::process::set_parent_process_death_signal(Some(Signal::HUP))?;
            match &cwd {
                Ok(cwd) => rustix::process::chdir(cwd.as_c_str()).map_err(step(STEP_DIRECTORY)),
                Err(_) => Err(step(STEP_DIRECTORY)(rustix::io::Errno::INVAL)),
            }
        }
    }
}

/// The agent may be spared by the kernel's out-of-memory killer; what it starts must not be.
fn restore_kill_order() {
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    if let Ok(file) = file {
        // A kernel that refuses leaves the value as it is, which harms nothing but the order.
        let _unchanged = rustix::io::write(&file, b"0");
    }
}

fn adopt(mut child: Child, terminal: Option<Pty>) -> io::Result<Launched> {
    let stdin = child.stdin.take().map(OwnedFd::from);
    let stdout = child.stdout.take().map(OwnedFd::from);
    let stderr = child.stderr.take().map(OwnedFd::from);
    let leader = Leader::new(child)?;
    let missing = || io::Error::other("a stream that was asked for is missing");
    let ends = match terminal {
        Some(terminal) => Ends::Terminal(terminal),
        None => Ends::Pipes {
            stdin: stdin.map(pipe::Sender::from_owned_fd).transpose()?,
            stdout: pipe::Receiver::from_owned_fd(stdout.ok_or_else(missing)?)?,
            stderr: pipe::Receiver::from_owned_fd(stderr.ok_or_else(missing)?)?,
        },
    };
    Ok(Launched { leader, ends })
}

/// The started process. Until it is reaped its number cannot be given to another, so signals to its group
/// reach nobody else.
#[derive(Debug)]
pub(crate) struct Leader {
    child: Child,
    pid: Pid,
    exited: AsyncFd<OwnedFd>,
}

impl Leader {
    fn new(mut child: Child) -> io::Result<Self> {
        let pid = Pid::from_child(&child);
        let watch = || descriptor::watch(rustix::process::pidfd_open(pid, PidfdFlags::empty())?);
        match watch() {
            Ok(exited) => Ok(Self { child, pid, exited }),
            // Out of descriptors: a process nobody can watch must not run.
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the leader, without reaping it.
    pub(crate) async fn exited(&self) -> io::Result<()> {
        self.exited.readable().await.map(|mut ready| ready.retain_ready())
    }

    pub(crate) fn signal_group(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::kill_process_group(self.pid, signal) {
            // All gone already.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns at once after [`Leader::exited`].
    pub(crate) fn reap(mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}
