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
//!
//! **The host learns that the agent is a new one.** The host's end does not close when the agent ends, so the
//! host would wait for ever for answers of an agent that is no more. An agent that finds the port open and is
//! sent no preface answers with bytes that no HTTP/2 client can take for a frame, and the host connects again.
//!
//! Every write is a message to the emulated device, which costs far more than copying its bytes: writes are
//! gathered until HTTP/2 asks for a flush.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
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
/// As much as the driver takes at once.
const WRITE_SIZE: usize = 32 * 1024;
/// A host that has just connected sends its preface at once.
const PREFACE_LIMIT: Duration = Duration::from_secs(1);
/// Ends the frame that an earlier agent may have left unfinished, and then is the header of one that is too
/// large for anybody.
static NO_FRAME: [u8; 64 * 1024 + 16] = [0xff; 64 * 1024 + 16];

#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    #[error(
        "open {}: is the virtio-serial port in the machine's configuration, and no other agent using it?",
        path.display()
    )]
    Open { path: PathBuf, source: io::Error },
    #[error("watch {}", path.display())]
    Watch { path: PathBuf, source: io::Error },
    #[error("wait for a connection on {}", path.display())]
    Wait { path: PathBuf, source: io::Error },
}

/// What is done with the device; tests have one of their own.
pub(crate) trait Device: AsFd + Unpin {
    /// Appends what one read gives; 0 when the host's end is closed.
    fn read(&self, buffer: &mut Vec<u8>) -> Result<usize, Errno>;
    fn write(&self, data: &[u8]) -> Result<usize, Errno>;
    fn host_is_gone(&self) -> Result<bool, Errno>;
}

impl Device for OwnedFd {
    fn read(&self, buffer: &mut Vec<u8>) -> Result<usize, Errno> {
        rustix::io::read(self, rustix::buffer::spare_capacity(buffer))
    }

    fn write(&self, data: &[u8]) -> Result<usize, Errno> {
        rustix::io::write(self, data)
    }

    fn host_is_gone(&self) -> Result<bool, Errno> {
        let mut device = [PollFd::from_borrowed_fd(self.as_fd(), PollFlags::empty())];
        poll(&mut device, Some(&NO_WAIT))?;
        Ok(device[0].revents().contains(PollFlags::HUP))
    }
}

/// The device. As a stream it is the current connection, and ends when that does; call
/// [`Port::next_connection`] before each. Reads and writes must come from one task.
#[derive(Debug)]
pub(crate) struct Port<D = OwnedFd> {
    path: PathBuf,
    device: D,
    edges: AsyncFd<OwnedFd>,
    reading: Side,
    writing: Side,
    /// Read from the device and not yet handed on, from `consumed`.
    received: Vec<u8>,
    consumed: usize,
    /// Not yet written to the device, from `written`.
    outgoing: Vec<u8>,
    written: usize,
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
}

impl<D: Device> Port<D> {
    fn over(device: D, path: PathBuf) -> Result<Self, PortError> {
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
                outgoing: Vec::with_capacity(WRITE_SIZE),
                written: 0,
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
        self.outgoing.clear();
        self.written = 0;
        self.state = State::Between;
        // Only a host end that was open all the time can belong to an earlier connection.
        let mut rejection = Some(Instant::now() + PREFACE_LIMIT);
        loop {
            if let Some(start) = self.received.windows(PREFACE.len()).position(|window| window == PREFACE) {
                self.consumed = start;
                self.state = State::Connected;
                return Ok(());
            }
            // The end may be the beginning of a preface.
            let keep = self.received.len().min(PREFACE.len() - 1);
            self.received.drain(..self.received.len() - keep);
            match self.receive_until(rejection).await.map_err(|source| self.failed(source))? {
                Some(0) => {
                    self.received.clear();
                    rejection = None;
                    // The host's end is closed: nothing arrives before it opens, and that is an edge.
                    let edge = std::future::poll_fn(|context| self.poll_edge(context, Direction::Read)).await;
                    edge.map_err(|source| self.failed(source))?;
                }
                Some(_) => {}
                None => {
                    tracing::info!("the host is still connected to an earlier agent");
                    rejection = None;
                    self.reject().await.map_err(|source| self.failed(source))?;
                }
            }
        }
    }

    fn failed(&self, source: io::Error) -> PortError {
        PortError::Wait { path: self.path.clone(), source }
    }

    /// One read; none in time.
    async fn receive_until(&mut self, limit: Option<Instant>) -> io::Result<Option<usize>> {
        let receive = std::future::poll_fn(|context| self.poll_receive(context));
        match limit {
            None => receive.await.map(Some),
            Some(limit) => match tokio::time::timeout_at(limit.into(), receive).await {
                Ok(received) => received.map(Some),
                Err(_) => Ok(None),
            },
        }
    }

    /// Tells whoever is connected that this is not the agent it knows.
    async fn reject(&mut self) -> io::Result<()> {
        let mut left = &NO_FRAME[..];
        while !left.is_empty() && !self.device.host_is_gone()? {
            match self.device.write(left) {
                Ok(count) => left = &left[count..],
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => {
                    std::future::poll_fn(|context| self.poll_edge(context, Direction::Write)).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Appends what one read of the device gives; 0 when the host's end is closed.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            self.received.reserve(READ_SIZE);
            match self.device.read(&mut self.received) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => ready!(self.poll_edge(context, Direction::Read))?,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Writes what has been gathered.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.outgoing.len() {
            // A superseded connection's frames would be garbage to the new one.
            if self.state != State::Connected {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            match self.device.write(&self.outgoing[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                // A closed host end also "would block"; HTTP/2 may not read on while it cannot write, so
                // the end of the connection has to be found here.
                Err(Errno::WOULDBLOCK) if self.device.host_is_gone()? => self.state = State::Between,
                Err(Errno::WOULDBLOCK) => ready!(self.poll_edge(context, Direction::Write))?,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
        self.outgoing.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
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

    fn begins_connection(data: &[u8]) -> bool {
        match data.strip_prefix(PREFACE) {
            Some([]) => true,
            Some(rest) => rest.get(3).is_none_or(|kind| *kind == SETTINGS_TYPE),
            None => false,
        }
    }
}

const NO_WAIT: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };

impl<D: Device> AsyncRead for Port<D> {
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

impl<D: Device> AsyncWrite for Port<D> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let port = self.get_mut();
        if port.outgoing.len() == WRITE_SIZE {
            ready!(port.poll_send(context))?;
        }
        let count = data.len().min(WRITE_SIZE - port.outgoing.len());
        port.outgoing.extend_from_slice(&data[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(context)
    }

    /// The device stays open: closing it would throw away what the next connection has sent already.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        os::fd::BorrowedFd,
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicUsize, Ordering},
        },
    };

    use bytes::Bytes;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::transport::serve_connections;

    const SETTINGS: &[u8] = &[0, 0, 0, SETTINGS_TYPE, 0, 0, 0, 0, 0];

    /// A port and its host's end. Like the device, a packet socket keeps apart what was written apart.
    fn pair() -> (Port, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (device, host) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (Port::over(device, "test".into()).unwrap(), host)
    }

    fn send(host: &OwnedFd, data: &[u8]) {
        assert_eq!(rustix::io::write(host, data), Ok(data.len()));
    }

    async fn expect(port: &mut Port, data: &[u8]) {
        let mut read = vec![0; data.len()];
        port.read_exact(&mut read).await.unwrap();
        assert_eq!(read, data);
    }

    #[tokio::test]
    async fn leftovers_are_thrown_away_up_to_the_preface() {
        let (mut port, host) = pair();
        send(&host, b"rest of a frame PRI * HTTP/2.0\r\n");
        send(&host, b"PRI * HTTPRI");
        send(&host, b" * HTTP/2.0\r\n\r\nSM\r\n\r\nmore");
        port.next_connection().await.unwrap();
        expect(&mut port, PREFACE).await;
        expect(&mut port, b"more").await;
    }

    #[tokio::test]
    async fn a_new_connection_ends_the_old_one_and_loses_nothing() {
        for new in [&[PREFACE][..], &[PREFACE, SETTINGS, b"new"]] {
            let (mut port, host) = pair();
            send(&host, &[PREFACE, SETTINGS].concat());
            port.next_connection().await.unwrap();
            expect(&mut port, &[PREFACE, SETTINGS].concat()).await;
            send(&host, b"half a fra");
            send(&host, &new.concat());
            expect(&mut port, b"half a fra").await;
            assert_eq!(port.read(&mut [0]).await.unwrap(), 0);
            port.write_all(b"too late").await.unwrap();
            assert!(port.flush().await.is_err());
            port.next_connection().await.unwrap();
            expect(&mut port, &new.concat()).await;
        }
    }

    #[tokio::test]
    async fn a_preface_in_the_middle_of_data_is_data() {
        let (mut port, host) = pair();
        send(&host, PREFACE);
        port.next_connection().await.unwrap();
        expect(&mut port, PREFACE).await;
        for data in [[b"x", PREFACE].concat(), [PREFACE, b"GET / HTTP"].concat()] {
            send(&host, &data);
            expect(&mut port, &data).await;
        }
    }

    #[tokio::test]
    async fn writes_are_gathered_until_the_flush() {
        let (mut port, host) = pair();
        send(&host, PREFACE);
        port.next_connection().await.unwrap();
        port.write_all(b"header").await.unwrap();
        port.write_all(b"payload").await.unwrap();
        let mut buffer = [0; 100];
        assert_eq!(rustix::io::read(&host, &mut buffer), Err(Errno::WOULDBLOCK));
        port.flush().await.unwrap();
        assert_eq!(rustix::io::read(&host, &mut buffer), Ok(13));
    }

    #[tokio::test]
    async fn a_full_port_waits_for_the_host_and_still_reads() {
        let (mut port, host) = pair();
        send(&host, PREFACE);
        port.next_connection().await.unwrap();
        expect(&mut port, PREFACE).await;
        let data = vec![7; 4 << 20];
        let (mut reader, mut writer) = tokio::io::split(port);
        let write = tokio::spawn(async move {
            writer.write_all(&data).await.unwrap();
            writer.flush().await.unwrap();
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        send(&host, b"ping");
        let mut read = [0; 4];
        reader.read_exact(&mut read).await.unwrap();
        assert!(!write.is_finished());
        let mut received = 0;
        let mut buffer = vec![0; WRITE_SIZE];
        while received < 4 << 20 {
            match rustix::io::read(&host, &mut buffer[..]) {
                Ok(count) => received += count,
                Err(Errno::WOULDBLOCK) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
        write.await.unwrap();
    }

    #[tokio::test]
    async fn a_host_that_talks_to_an_earlier_agent_is_told() {
        let (mut port, host) = pair();
        send(&host, b"a frame for somebody else");
        let listen = tokio::spawn(async move { port.next_connection().await.map(|()| port) });
        let mut told = 0;
        let mut buffer = vec![0; NO_FRAME.len()];
        while told < NO_FRAME.len() {
            match rustix::io::read(&host, &mut buffer[..]) {
                Ok(count) => {
                    assert!(buffer[..count].iter().all(|byte| *byte == 0xff));
                    told += count;
                }
                Err(Errno::WOULDBLOCK) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => panic!("{error}"),
            }
        }
        send(&host, PREFACE);
        expect(&mut listen.await.unwrap().unwrap(), PREFACE).await;
    }

    /// A device whose host end closes and opens, as the driver shows it. An empty message is how the test
    /// makes the edge that either is.
    #[derive(Debug)]
    struct Reopened {
        socket: OwnedFd,
        seen: Arc<Seen>,
    }

    #[derive(Debug, Default)]
    struct Seen {
        closed: AtomicBool,
        looks: AtomicUsize,
        full: AtomicBool,
    }

    impl AsFd for Reopened {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.socket.as_fd()
        }
    }

    impl Device for Reopened {
        fn read(&self, buffer: &mut Vec<u8>) -> Result<usize, Errno> {
            self.seen.looks.fetch_add(1, Ordering::Relaxed);
            loop {
                match self.socket.read(buffer) {
                    Ok(0) => {}
                    Err(Errno::WOULDBLOCK) if self.host_is_gone()? => return Ok(0),
                    result => return result,
                }
            }
        }

        fn write(&self, data: &[u8]) -> Result<usize, Errno> {
            self.seen.looks.fetch_add(1, Ordering::Relaxed);
            let result = if self.host_is_gone()? { Err(Errno::WOULDBLOCK) } else { self.socket.write(data) };
            self.seen.full.store(result == Err(Errno::WOULDBLOCK), Ordering::Relaxed);
            result
        }

        fn host_is_gone(&self) -> Result<bool, Errno> {
            Ok(self.seen.closed.load(Ordering::Relaxed))
        }
    }

    struct Host {
        end: OwnedFd,
        seen: Arc<Seen>,
    }

    impl Host {
        /// What the guest has sent and nobody has read is thrown away.
        fn close(&self) {
            self.seen.closed.store(true, Ordering::Relaxed);
            while self.receive().is_some() {}
            rustix::net::send(&self.end, b"", SendFlags::empty()).unwrap();
        }

        fn open(&self) {
            self.seen.closed.store(false, Ordering::Relaxed);
            rustix::net::send(&self.end, b"", SendFlags::empty()).unwrap();
        }

        fn receive(&self) -> Option<Vec<u8>> {
            let mut buffer = vec![0; NO_FRAME.len()];
            match rustix::io::read(&self.end, &mut buffer[..]) {
                Ok(count) => Some(buffer[..count].to_vec()),
                Err(Errno::WOULDBLOCK) => None,
                Err(error) => panic!("{error}"),
            }
        }

        /// As much HTTP/2 as it takes to ask for `/` and to let the answer come without an end.
        fn ask(&self) {
            let settings = [0, 0, 6, SETTINGS_TYPE, 0, 0, 0, 0, 0, 0, 4, 0x3f, 0xff, 0xff, 0xff];
            let window = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0x3f, 0, 0, 0];
            let headers = [0, 0, 10, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 5];
            send(&self.end, &[PREFACE, &settings, &window, &headers, b"guest"].concat());
        }
    }

    async fn until(what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..1000 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("gave up waiting until {what}");
    }

    /// A host, and an agent stuck in the middle of an endless reply because the host reads nothing. The count
    /// is of replies that are being sent.
    async fn stuck() -> (Host, Arc<()>) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, end) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let seen = Arc::new(Seen::default());
        let port = Port::over(Reopened { socket, seen: seen.clone() }, "test".into()).unwrap();
        let replies = Arc::new(());
        let reply = replies.clone();
        let service = hyper::service::service_fn(move |_| {
            let reply = reply.clone();
            let pieces = futures_util::stream::repeat_with(move || {
                let _sent_as_long_as_this_lives = &reply;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b'x'; 32 * 1024])))
            });
            async move { Ok::<_, Infallible>(http::Response::new(StreamBody::new(pieces))) }
        });
        tokio::spawn(serve_connections(port, Arc::new(service)));
        let host = Host { end, seen };
        host.ask();
        until("the port is full", || host.seen.full.load(Ordering::Relaxed)).await;
        (host, replies)
    }

    /// The first that a new connection gets is its own: no rest of the old one, and no [`NO_FRAME`], which
    /// comes when a preface is late.
    async fn expect_a_reply(host: &Host) {
        let mut first = None;
        until("the agent replies", || {
            first = host.receive();
            first.is_some()
        })
        .await;
        assert_eq!(first.unwrap()[3..9], SETTINGS[3..9]);
        until("the reply flows", || host.receive().is_some_and(|data| data.ends_with(b"xxxx"))).await;
    }

    #[tokio::test]
    async fn a_host_that_goes_in_the_middle_of_a_reply_ends_it_and_the_next_is_served() {
        let (host, replies) = stuck().await;
        let idle = 2; // the test's and the service's
        assert_eq!(Arc::strong_count(&replies), idle + 1);
        for _ in 0..3 {
            host.close();
            until("the call has ended", || Arc::strong_count(&replies) == idle).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            let looks = host.seen.looks.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(host.seen.looks.load(Ordering::Relaxed), looks, "a closed port is not looked at");
            host.open();
            host.ask();
            expect_a_reply(&host).await;
            until("the port is full", || host.seen.full.load(Ordering::Relaxed)).await;
        }
    }

    /// As after a restore in which the guest runs only when the new host has connected already.
    #[tokio::test]
    async fn a_host_that_comes_back_unnoticed_in_the_middle_of_a_reply_is_served() {
        let (host, replies) = stuck().await;
        for _ in 0..3 {
            host.close();
            host.open();
            host.ask();
            expect_a_reply(&host).await;
            until("the port is full", || host.seen.full.load(Ordering::Relaxed)).await;
            assert_eq!(Arc::strong_count(&replies), 3, "the old call has ended");
        }
    }
}
