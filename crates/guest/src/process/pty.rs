//! Pseudo-terminals: the program's end is its three streams, ours is read and written like a socket.

use std::{
    io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use roost_guest_proto::v1::TerminalSize;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    pty::OpenptFlags,
    termios::Winsize,
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};
use tonic::Status;

use super::account::Account;
use crate::descriptor;

/// Rows and columns of a terminal, which no program expects to be none or absurdly many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

const MOST: u16 = 1000;

impl TryFrom<TerminalSize> for Size {
    type Error = Status;

    fn try_from(TerminalSize { rows, columns }: TerminalSize) -> Result<Self, Status> {
        let fits = |count: u32| u16::try_from(count).ok().filter(|count| (1..=MOST).contains(count));
        match (fits(rows), fits(columns)) {
            (Some(rows), Some(columns)) => Ok(Self { rows, columns }),
            _ => Err(Status::invalid_argument(format!(
                "{rows} rows and {columns} columns is no size of a terminal: both must be within 1-{MOST}"
            ))),
        }
    }
}

impl From<Size> for TerminalSize {
    fn from(size: Size) -> Self {
        Self { rows: size.rows.into(), columns: size.columns.into() }
    }
}

/// Our end. Clones are the same terminal; when the last one goes, the terminal hangs up.
#[derive(Debug, Clone)]
pub(crate) struct Pty(Arc<AsyncFd<OwnedFd>>);

impl Pty {
    /// A terminal of the user's, and the program's end of it.
    pub(super) fn open(size: Size, account: &Account) -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = rustix::pty::openpt(flags)?;
        rustix::pty::unlockpt(&ours)?;
        let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
        // Programs open their terminal by its name too. Only root can give it away, and only root needs to.
        if rustix::process::geteuid().is_root() {
            rustix::fs::fchown(&theirs, Some(account.uid), None)?;
            rustix::fs::fchmod(&theirs, Mode::RUSR | Mode::WUSR | Mode::WGRP)?;
        }
        rustix::fs::fcntl_setfl(&ours, OFlags::RDWR | OFlags::NONBLOCK)?;
        let ours = descriptor::watch_for(ours, Interest::READABLE | Interest::WRITABLE)?;
        let pty = Self(Arc::new(ours));
        pty.resize(size)?;
        Ok((pty, theirs))
    }

    /// The programs in it get SIGWINCH.
    pub(crate) fn resize(&self, size: Size) -> io::Result<()> {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.0.get_ref(), size)?)
    }
}

impl AsyncRead for Pty {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            match rustix::io::read(self.0.get_ref(), buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // Nobody has the other end open any more, and all that was written there has been read.
                Err(Errno::IO) => return Poll::Ready(Ok(())),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for Pty {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            match rustix::io::write(self.0.get_ref(), bytes) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // the terminal hangs up when all its clones are gone
    }
}
