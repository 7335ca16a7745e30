//! slirp4netns: the way out of the namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::LINK;
use crate::lines::Tail;
use crate::task::Task;

const READY_DEADLINE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error("cannot open the namespace of QEMU: {0}")]
    Namespace(io::Error),
    #[error("cannot run slirp4netns: {0}; install the package slirp4netns")]
    Spawn(io::Error),
    #[error("cannot set up the pipes of slirp4netns: {0}")]
    Pipe(#[from] io::Error),
}

/// Keeps a slirp4netns running for one namespace. It ends when this is dropped, and when this process ends
/// in whatever way: it watches a pipe whose other end only this process has.
#[derive(Debug)]
pub struct Uplink {
    _keeper: Task<()>,
}

#[derive(Debug)]
struct Namespaces {
    user: OwnedFd,
    network: OwnedFd,
}

impl Uplink {
    /// `pid` is a child that is not reaped yet and has entered its namespaces.
    pub fn start(pid: u32) -> Result<Self, UplinkError> {
        let open = |name: &str| -> Result<OwnedFd, UplinkError> {
            Ok(File::open(format!("/proc/{pid}/ns/{name}")).map_err(UplinkError::Namespace)?.into())
        };
        let namespaces = Namespaces { user: open("user")?, network: open("net")? };
        let first = Slirp::start(&namespaces)?;
        Ok(Self { _keeper: Task::spawn(keep(namespaces, first)) })
    }
}

async fn keep(namespaces: Namespaces, first: Slirp) {
    let mut slirp = first;
    let mut pause = FIRST_PAUSE;
    loop {
        match slirp.ready().await {
            Ok(()) => {
                tracing::info!("the guest's network is up");
                pause = FIRST_PAUSE;
            }
            Err(error) => tracing::warn!("slirp4netns did not get ready: {error}"),
        }
        let end = slirp.wait().await;
        tracing::warn!("slirp4netns ended ({end}): the guest has no network for {} s", pause.as_secs());
        slirp = loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            match Slirp::start(&namespaces) {
                Ok(slirp) => break slirp,
                Err(error) => tracing::warn!("the guest still has no network: {error}"),
            }
        };
    }
}

#[derive(Debug)]
struct Slirp {
    child: Child,
    ready: pipe::Receiver,
    stderr: Task<Tail>,
    /// Closed with us, which is how slirp4netns notices.
    _alive: OwnedFd,
}

impl Slirp {
    fn start(namespaces: &Namespaces) -> Result<Self, UplinkError> {
        let (ready, tell_ready) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let (until, alive) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let inherit = [&namespaces.user, &namespaces.network, &tell_ready, &until].map(AsRawFd::as_raw_fd);
        let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let mut command = Command::new("slirp4netns");
        command
            .args(["--configure", "--mtu=65520", "--disable-host-loopback"])
            .arg(format!("--cidr={LINK}"))
            // Not `--enable-sandbox`: that becomes user 0 of the namespace, which has no such user.
            .arg("--enable-seccomp")
            .arg(format!("--ready-fd={}", tell_ready.as_raw_fd()))
            .arg(format!("--exit-fd={}", until.as_raw_fd()))
            .arg(format!("--userns-path={}", path(&namespaces.user)))
            .args(["--netns-type=path", &path(&namespaces.network), "tap0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // It stays until QEMU has ended, whatever signal our process group gets.
            .process_group(0)
            .kill_on_drop(true);
        let before_exec = move || {
            rustix::thread::set_no_new_privs(true)?;
            for fd in inherit {
                // SAFETY: the descriptors are open in the parent until the child is spawned.
                let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
                rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: the closure makes system calls only.
        unsafe { command.pre_exec(before_exec) };
        let mut child = command.spawn().map_err(UplinkError::Spawn)?;
        let stderr = child.stderr.take().expect("stderr is piped");
        let stderr = Task::spawn(Tail::read(stderr, |line| tracing::debug!("slirp4netns: {line}")));
        rustix::io::ioctl_fionbio(&ready, true).map_err(io::Error::from)?;
        Ok(Self { child, ready: pipe::Receiver::from_owned_fd(ready)?, stderr, _alive: alive })
    }

    /// `tap0` is there, with its address and the default route.
    async fn ready(&mut self) -> io::Result<()> {
        let mut byte = [0];
        match tokio::time::timeout(READY_DEADLINE, self.ready.read_exact(&mut byte)).await {
            Ok(read) => read.map(drop),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no sign within the deadline")),
        }
    }

    /// How it ended, in its own words where it had any.
    async fn wait(mut self) -> String {
        let status = match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => return error.to_string(),
        };
        match self.stderr.join().await.last() {
            Some(line) => format!("{status}: {line}"),
            None => status,
        }
    }
}
