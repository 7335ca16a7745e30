//! The virtio-serial port as a sequence of byte streams.
//!
//! What the kernel's `virtio_console` driver gives: while no host process holds the other end, `read`
//! returns 0 at once, `write` would block, and `poll` reports `HUP` for as long as that lasts. Every change
//! of the host's end and every arrival of data wakes whoever polls. Three things follow.
//!
//! **Waiting costs nothing.** A level-triggered wait would spin on `HUP`, and tokio's own registration
//! remembers a `HUP` for ever. So the device sits in an edge-triggered epoll instance of its own, and tokio
//! waits for that instance: each change is seen once, an idle port is never looked at.
//!
//! **A connection begins at a preface.** Bytes of an earlier connection may still be queued when the host
//! comes back. They are thrown away until the HTTP/2 client preface appears.
//!
//! **A missed goodbye is noticed.** When the host's process is replaced while this guest is paused or
//! starved, close and reopen arrive together and no `HUP` is ever seen: the new preface would be taken for
//! the rest of a frame that was cut short. The device hands out data in the pieces in which the host wrote
//! it, never two of them in one read, so a new connection's preface always stands at the start of a read.
//! Finding one there, followed by what must follow it, ends the old connection and begins the next. (Somebody
//! who uploads a file full of prefaces can end their own connection this way; the host connects again.)

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::{
    event::{PollFd, PollFlags, epoll, poll},
    fs::{Mode, OFlags},
    io::Errno,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd};

use crate::descriptor;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A preface is followed by a SETTINGS frame: length (3 bytes), this type, ...
const SETTINGS_TYPE: u8 = 4;
/// More than the driver hands out at once (one page).
const READ_SIZE: usize = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error(
        "open {}: is the virtio-serial port in the machine's configuration, and no other agent using it?",
        path.display()
    )]
    Open { path: PathBuf, source: io::Error },
    #[error("watch {}", path.display())]
    Watch { path: PathBuf, source: io::Error },
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// The device. As a stream it is the current connection, and ends when that does; call
/// [`Port::next_connection`] before each. Reads and writes must come from one task.
#[derive(Debug)]
pub(crate) struct Port {
    path: PathBuf,
    device: OwnedFd,
    edges: AsyncFd<OwnedFd>,
    reading: Side,
    writing: Side,
    /// Read from the device and not yet handed on, from `consumed`.
    received: Vec<u8>,
    consumed: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No connection: what arrives is leftovers, up to the next preface.
    Between,
    /// In a connection whose preface has been handed on, or is about to be.
    Connected,
    /// The host's next connection has begun; its first bytes are in `received`.
    Superseded,
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    Read,
    Write,
}

/// What is known of one direction since the last look at the device.
#[derive(Debug, Default)]
struct Side {
    changed: bool,
    awaited: bool,
}

impl Port {
    pub(crate) fn open(path: PathBuf) -> Result<Self, PortError> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(device) => Self::over(device, path),
            Err(source) => Err(PortError::Open { path, source: source.into() }),
        }
    }

    fn over(device: OwnedFd, path: PathBuf) -> Result<Self, PortError> {
        let watch = || -> io::Result<AsyncFd<OwnedFd>> {
            let edges = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
            epoll::add(&edges, &device, epoll::EventData::new_u64(0), flags)?;
            descriptor::watch(edges)
        };
        match watch() {
            Ok(edges) => Ok(Self {
                path,
                device,
                edges,
                reading: Side::default(),
                writing: Side::default(),
                received: Vec::with_capacity(READ_SIZE),
                consumed: 0,
                state: State::Between,
            }),
            Err(source) => Err(PortError::Watch { path, source }),
        }
    }

    /// Waits until the host has opened its end and sent a preface; the stream then begins with it.
    pub(crate) async fn next_connection(&mut self) -> Result<(), PortError> {
        // What follows a superseded connection is the preface that superseded it.
        if self.state != State::Superseded {
            self.received.drain(..self.consumed);
        }
        self.consumed = 0;
        self.state = State::Between;
        loop {
            if let Some(start) = self.received.windows(PREFACE.len()).position(|window| window == PREFACE) {
                self.consumed = start;
                self.state = State::Connected;
                return Ok(());
            }
            // The end may be the beginning of a preface.
            let keep = self.received.len().min(PREFACE.len() - 1);
            self.received.drain(..self.received.len() - keep);
            match std::future::poll_fn(|context| self.poll_receive(context)).await {
                // The host's end is closed: nothing arrives before it opens, and that is an edge.
                Ok(0) => {
                    self.received.clear();
                    std::future::poll_fn(|context| self.poll_edge(context, Direction::Read))
                        .await
                        .map_err(|source| PortError::Watch { path: self.path.clone(), source })?;
                }
                Ok(_) => {}
                Err(source) => return Err(PortError::Read { path: self.path.clone(), source }),
            }
        }
    }

    /// Appends what one read of the device gives; 0 when the host's end is closed.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            self.received.reserve(READ_SIZE);
            match rustix::io::read(&self.device, rustix::buffer::spare_capacity(&mut self.received)) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => ready!(self.poll_edge(context, Direction::Read))?,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Waits for a change since the last look at the device.
    fn poll_edge(&mut self, context: &mut Context<'_>, direction: Direction) -> Poll<io::Result<()>> {
        loop {
            let side = match direction {
                Direction::Read => &mut self.reading,
                Direction::Write => &mut self.writing,
            };
            side.awaited = true;
            if std::mem::take(&mut side.changed) {
                side.awaited = false;
                return Poll::Ready(Ok(()));
            }
            let mut guard = ready!(self.edges.poll_read_ready(context))?;
            let mut events = Vec::with_capacity(1);
            epoll::wait(guard.get_inner(), rustix::buffer::spare_capacity(&mut events), Some(&NO_WAIT))?;
            match events.first().map(|event: &epoll::Event| event.flags) {
                Some(flags) => {
                    let both = epoll::EventFlags::HUP | epoll::EventFlags::ERR;
                    self.reading.changed |= flags.intersects(both | epoll::EventFlags::IN);
                    self.writing.changed |= flags.intersects(both | epoll::EventFlags::OUT);
                    // The edge just taken may be the one that the other direction waits for.
                    let other = match direction {
                        Direction::Read => &self.writing,
                        Direction::Write => &self.reading,
                    };
                    if other.awaited && other.changed {
                        context.waker().wake_by_ref();
                    }
                }
                None => guard.clear_ready(),
            }
        }
    }

    fn host_is_gone(&self) -> io::Result<bool> {
        let mut device = [PollFd::from_borrowed_fd(self.device.as_fd(), PollFlags::empty())];
        poll(&mut device, Some(&NO_WAIT))?;
        Ok(device[0].revents().contains(PollFlags::HUP))
    }

    fn begins_connection(data: &[u8]) -> bool {
        match data.strip_prefix(PREFACE) {
            Some([]) => true,
            Some(rest) => rest.get(3).is_none_or(|kind| *kind == SETTINGS_TYPE),
            None => false,
        }
    }
}

const NO_WAIT: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };

impl AsyncRead for Port {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let port = self.get_mut();
        match port.state {
            State::Between | State::Superseded => return Poll::Ready(Ok(())),
            State::Connected => {}
        }
        if port.consumed == port.received.len() {
            port.received.clear();
            port.consumed = 0;
            if ready!(port.poll_receive(context))? == 0 {
                port.state = State::Between;
                return Poll::Ready(Ok(()));
            }
            if Self::begins_connection(&port.received) {
                tracing::info!("the host has connected anew without a goodbye");
                port.state = State::Superseded;
                return Poll::Ready(Ok(()));
            }
        }
        let pending = &port.received[port.consumed..];
        let count = pending.len().min(buffer.remaining());
        buffer.put_slice(&pending[..count]);
        port.consumed += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let port = self.get_mut();
        loop {
            // A superseded connection's frames would be garbage to the new one.
            if port.state != State::Connected {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            match rustix::io::write(&port.device, data) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(Errno::INTR) => {}
                // A closed host end also "would block"; HTTP/2 may not read on while it cannot write, so
                // the end of the connection has to be found here.
                Err(Errno::WOULDBLOCK) if port.host_is_gone()? => {
                    port.state = State::Between;
                }
                Err(Errno::WOULDBLOCK) => ready!(port.poll_edge(context, Direction::Write))?,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The device stays open: closing it would throw away what the next connection has sent already.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
