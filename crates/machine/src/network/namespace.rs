//! The user and network namespace that a child process enters between fork and exec.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

use super::{Rule, netlink};

/// The one user and group of the namespace. Not 0: a program executed by another user than 0 loses all
/// capabilities, so QEMU has none in its own namespace either.
const INSIDE_ID: u32 = 1000;

/// What a child does before it becomes another program: it dies with this process, has no privileges
/// to gain, and sees only its own network, whose rules are set.
///
/// Made before the fork, so that between fork and exec nothing is allocated.
#[derive(Debug)]
pub struct Namespace {
    parent: Pid,
    uid_map: Vec<u8>,
    gid_map: Vec<u8>,
    requests: Vec<netlink::Request>,
    inherit: Vec<RawFd>,
    /// Takes the number of the step that failed: an error from before exec is only an errno otherwise.
    failed_step: OwnedFd,
}

/// Tells what went wrong in the child.
#[derive(Debug)]
pub struct FailedStep {
    read: OwnedFd,
}

#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    #[error(
        "cannot make a user and network namespace ({0}): allow it to this user, on Debian with `sysctl \
         kernel.unprivileged_userns_clone=1`, on Ubuntu with `sysctl \
         kernel.apparmor_restrict_unprivileged_userns=0`, in a container with its runtime's options"
    )]
    Unshare(io::Error),
    #[error("cannot confine the process to its namespace while {step}: {source}")]
    Step { step: &'static str, source: io::Error },
    #[error("{0}")]
    Exec(io::Error),
}

impl Namespace {
    /// `inherit` stays open in the new program; it must outlive the spawn.
    pub fn new(rules: &[Rule], inherit: &[BorrowedFd<'_>]) -> io::Result<(Self, FailedStep)> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let map = |outside: u32| format!("{INSIDE_ID} {outside} 1\n").into_bytes();
        let namespace = Self {
            parent: rustix::process::getpid(),
            uid_map: map(rustix::process::geteuid().as_raw()),
            gid_map: map(rustix::process::getegid().as_raw()),
            requests: netlink::setup(rules),
            inherit: inherit.iter().map(|fd| fd.as_raw_fd()).collect(),
            failed_step: write,
        };
        Ok((namespace, FailedStep { read }))
    }

    /// To be called in the child, between fork and exec: makes system calls and nothing else.
    pub fn enter(&self) -> io::Result<()> {
        let mut step = 0;
        self.take_steps(&mut step).map_err(|errno| {
            // The error itself is reported by the caller, with or without this byte.
            let _told = rustix::io::write(&self.failed_step, &[step]);
            errno.into()
        })
    }

    fn take_steps(&self, step: &mut u8) -> rustix::io::Result<()> {
        *step = step::UNSHARE;
        // SAFETY: the child has one thread, and the file table is not unshared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) }?;
        *step = step::USER_MAP;
        write_file(c"/proc/self/setgroups", b"deny")?;
        write_file(c"/proc/self/uid_map", &self.uid_map)?;
        write_file(c"/proc/self/gid_map", &self.gid_map)?;
        *step = step::NETWORK;
        let socket = netlink::open()?;
        for (request, number) in self.requests.iter().zip(step::FIRST_REQUEST..) {
            *step = number;
            netlink::confirm(socket.as_fd(), request)?;
        }
        *step = step::CONFINE;
        // After the namespace: the kernel forgets it when credentials change.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(self.parent) {
            return Err(Errno::SRCH); // the parent died first, and nobody would have told us
        }
        rustix::thread::set_no_new_privs(true)?;
        for &fd in &self.inherit {
            // SAFETY: the maker of `self` keeps these open until the child is spawned.
            rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(fd) }, FdFlags::empty())?;
        }
        Ok(())
    }

    fn purpose(&self, request: u8) -> &'static str {
        self.requests.get(usize::from(request)).map_or("setting up", |request| request.purpose)
    }
}

impl FailedStep {
    /// The error of the spawn, explained. `namespace` is the parent's copy of what the child had.
    pub fn explain(self, namespace: &Namespace, source: io::Error) -> EnterError {
        let mut step = [0_u8];
        // The byte is in the pipe already: the spawn has failed.
        if rustix::io::ioctl_fionread(&self.read).is_ok_and(|waiting| waiting > 0)
            && rustix::io::read(&self.read, &mut step).is_ok()
        {
            return match step[0] {
                step::UNSHARE => EnterError::Unshare(source),
                step::USER_MAP => EnterError::Step { step: "mapping its user", source },
                step::NETWORK => EnterError::Step { step: "opening the routing interface", source },
                step::CONFINE => EnterError::Step { step: "tying its life to this process", source },
                number => EnterError::Step { step: namespace.purpose(number - step::FIRST_REQUEST), source },
            };
        }
        EnterError::Exec(source)
    }
}

mod step {
    pub const UNSHARE: u8 = 1;
    pub const USER_MAP: u8 = 2;
    pub const NETWORK: u8 = 3;
    pub const CONFINE: u8 = 4;
    pub const FIRST_REQUEST: u8 = 5;
}

fn write_file(path: &std::ffi::CStr, content: &[u8]) -> rustix::io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, content).map(drop)
}
