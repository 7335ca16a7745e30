//! The agent's connections to the X server of the desktop.
//!
//! There is one for all requests of the host ([`DisplayHandle`]), opened when it is first needed and again
//! for each new life of the server ([`super::readiness`] counts them). Everything here blocks and belongs on a blocking thread.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::BorrowedFd,
        unix::{fs::OpenOptionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    io::Errno,
};
use tonic::Status;
use x11rb::{
    connection::Connection,
    errors::{ConnectError, ConnectionError, ReplyError, ReplyOrIdError},
    protocol::{
        Event,
        xproto::{
            AtomEnum, ConnectionExt as _, CreateWindowAux, EventMask, PropMode, Screen, Timestamp, Window,
            WindowClass,
        },
    },
    rust_connection::{DefaultStream, RustConnection},
    wrapper::ConnectionExt as _,
};

use super::{
    capture::CaptureError,
    clipboard::ClipboardError,
    input::InputError,
    readiness::{Readiness, Stage},
    resize::ResizeError,
    watch::WatchError,
    windows::WindowError,
};

pub(super) const SOCKETS: &str = "/tmp/.X11-unix";
pub(super) const SOCKETS_PARENT: &str = "/tmp";
/// No cookie file is near this size.
const AUTHORITY_LIMIT: u64 = 64 * 1024;
const COOKIE: &[u8] = b"MIT-MAGIC-COOKIE-1";

/// Where the X server is, and the cookie that opens it.
#[derive(Debug, Clone)]
pub(crate) struct DisplayAddress {
    number: u16,
    authority: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum DisplayError {
    #[error("the desktop does not answer on display :{number}: {source}; is it still starting?")]
    Unreachable { number: u16, source: io::Error },
    #[error("there is no desktop on display :{number} yet: wait for it to start")]
    Absent { number: u16 },
    #[error("the desktop on display :{number} refused the agent: {source}")]
    Refused { number: u16, source: ConnectError },
    #[error("the connection to the desktop broke: {0}")]
    Lost(#[from] ConnectionError),
    #[error("the desktop refused a request: {0}")]
    Request(ReplyError),
    #[error("the X server lacks {0}")]
    Lacks(&'static str),
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Clipboard(#[from] ClipboardError),
    #[error(transparent)]
    Window(#[from] WindowError),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Resize(#[from] ResizeError),
}

impl From<ReplyError> for DisplayError {
    fn from(error: ReplyError) -> Self {
        match error {
            ReplyError::ConnectionError(error) => Self::Lost(error),
            error @ ReplyError::X11Error(_) => Self::Request(error),
        }
    }
}

impl From<DisplayError> for Status {
    fn from(error: DisplayError) -> Self {
        match error {
            DisplayError::Absent { .. }
            | DisplayError::Unreachable { .. }
            | DisplayError::Refused { .. }
            | DisplayError::Lost(_) => Status::unavailable(error.to_string()),
            DisplayError::Request(_) => Status::internal(error.to_string()),
            DisplayError::Lacks(_) => Status::unimplemented(error.to_string()),
            DisplayError::Capture(error) => error.into(),
            DisplayError::Input(error) => error.into(),
            DisplayError::Clipboard(error) => error.into(),
            DisplayError::Window(error) => error.into(),
            DisplayError::Watch(error) => error.into(),
            DisplayError::Resize(error) => error.into(),
        }
    }
}

impl DisplayAddress {
    pub(crate) fn new(number: u16, authority: PathBuf) -> Self {
        Self { number, authority }
    }

    /// As in `$DISPLAY`.
    pub(crate) fn name(&self) -> String {
        format!(":{}", self.number)
    }

    pub(crate) fn authority(&self) -> &Path {
        &self.authority
    }

    pub(super) fn connect(&self) -> Result<Display, DisplayError> {
        let number = self.number;
        let stream = UnixStream::connect(Path::new(SOCKETS).join(format!("X{number}")))
            .and_then(DefaultStream::from_unix_stream)
            .map_err(|source| DisplayError::Unreachable { number, source })?;
        // Without a cookie the server may still let root in; if not, it says so.
        let cookie = self.cookie().unwrap_or_default();
        let name = if cookie.is_empty() { Vec::new() } else { COOKIE.to_vec() };
        let connection = RustConnection::connect_to_stream_with_auth_info(stream.0, 0, name, cookie)
            .map_err(|source| DisplayError::Refused { number, source })?;
        let screen = connection.setup().roots.first().ok_or(DisplayError::Lacks("a screen"))?.clone();
        Ok(Display { root: screen.root, screen, connection })
    }

    fn cookie(&self) -> Option<Vec<u8>> {
        let mut data = Vec::new();
        // The file is in the user's hands: it may be a pipe, or endless.
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).ok()?;
        let file = File::options().read(true).custom_flags(flags).open(&self.authority).ok()?;
        file.take(AUTHORITY_LIMIT).read_to_end(&mut data).ok()?;
        cookie_for(&data, self.number)
    }
}

/// The entry for a display in a cookie file: family, address, display number, scheme and data, each but the
/// family with a length of two bytes before it, all big-endian.
fn cookie_for(mut data: &[u8], number: u16) -> Option<Vec<u8>> {
    fn field<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (length, rest) = data.split_first_chunk::<2>()?;
        let (field, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        *data = rest;
        Some(field)
    }
    loop {
        data = data.get(2..)?;
        let _address = field(&mut data)?;
        let display = field(&mut data)?;
        let scheme = field(&mut data)?;
        let cookie = field(&mut data)?;
        if scheme == COOKIE && (display.is_empty() || display == number.to_string().as_bytes()) {
            return Some(cookie.to_vec());
        }
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Display {
    pub(super) connection: RustConnection,
    pub(super) root: Window,
    pub(super) screen: Screen,
}

/// How long the X server may take to say what time it is.
const TIME_LIMIT: Duration = Duration::from_secs(10);

impl Display {
    /// A window that nobody sees, for what belongs to windows: selections, the time.
    pub(super) fn hidden_window(&self) -> Result<Window, DisplayError> {
        let connection = &self.connection;
        let window = connection.generate_id().map_err(id_error)?;
        let attributes = CreateWindowAux::new().event_mask(EventMask::PROPERTY_CHANGE);
        let (class, same) = (WindowClass::INPUT_ONLY, x11rb::COPY_FROM_PARENT);
        connection.create_window(0, window, self.root, 0, 0, 1, 1, 0, class, same, &attributes)?.check()?;
        Ok(window)
    }

    /// The X server's time, which it tells with the change of a property of our own window.
    pub(super) fn time(&self, window: Window) -> Result<Timestamp, DisplayError> {
        let (name, kind) = (AtomEnum::WM_NAME, AtomEnum::STRING);
        self.connection.change_property8(PropMode::REPLACE, window, name, kind, &[])?;
        self.connection.flush()?;
        let deadline = Instant::now() + TIME_LIMIT;
        while let Some(event) = self.next_event(deadline)? {
            if let Event::PropertyNotify(change) = event
                && change.window == window
            {
                return Ok(change.time);
            }
        }
        Err(DisplayError::Lacks("an answer in ten seconds"))
    }

    /// `None` when nothing has come until then.
    pub(super) fn next_event(&self, deadline: Instant) -> Result<Option<Event>, DisplayError> {
        self.wait_for_event(deadline, None)
    }

    /// The same; an error when the other end of a pipe is closed before.
    pub(super) fn next_event_or_closed(
        &self,
        deadline: Instant,
        pipe: BorrowedFd<'_>,
    ) -> Result<Option<Event>, DisplayError> {
        self.wait_for_event(deadline, Some(pipe))
    }

    fn wait_for_event(
        &self,
        deadline: Instant,
        pipe: Option<BorrowedFd<'_>>,
    ) -> Result<Option<Event>, DisplayError> {
        loop {
            if let Some(event) = self.connection.poll_for_event()? {
                return Ok(Some(event));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let (false, Ok(limit)) = (left.is_zero(), Timespec::try_from(left)) else { return Ok(None) };
            let server = PollFd::new(self.connection.stream(), PollFlags::IN);
            // Nothing is asked about the pipe: that its other end is closed is always told.
            let pipe = pipe.map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::empty()));
            let mut watched: Vec<_> = std::iter::once(server).chain(pipe).collect();
            let polled = poll(&mut watched, Some(&limit));
            if watched.get(1).is_some_and(|pipe| !pipe.revents().is_empty()) {
                return Err(WatchError::Dropped.into());
            }
            match polled {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(ConnectionError::IoError(error.into()).into()),
            }
        }
    }
}

pub(super) fn id_error(error: ReplyOrIdError) -> DisplayError {
    match error {
        ReplyOrIdError::IdsExhausted => DisplayError::Lacks("free resource ids"),
        ReplyOrIdError::ConnectionError(error) => error.into(),
        ReplyOrIdError::X11Error(error) => ReplyError::X11Error(error).into(),
    }
}

/// The connection for the host's requests, with what `T` keeps beside it.
#[derive(Debug)]
pub(super) struct DisplayHandle<T> {
    address: DisplayAddress,
    readiness: Readiness,
    /// With the life of the desktop that it belongs to.
    current: Mutex<Option<(u64, Arc<T>)>>,
    open: fn(Display) -> Result<T, DisplayError>,
}

impl<T> DisplayHandle<T> {
    pub(super) fn new(
        address: DisplayAddress,
        readiness: Readiness,
        open: fn(Display) -> Result<T, DisplayError>,
    ) -> Self {
        Self { address, readiness, current: Mutex::new(None), open }
    }

    pub(super) fn address(&self) -> &DisplayAddress {
        &self.address
    }

    /// The connection to the desktop of the moment. Does not wait for one: the server's socket may accept
    /// connections long before there is a server.
    pub(super) fn current(&self) -> Result<Arc<T>, DisplayError> {
        let (Stage::Starting(life) | Stage::Ready(life)) = self.readiness.stage() else {
            return Err(DisplayError::Absent { number: self.address.number });
        };
        // A panic under this lock leaves a whole value behind.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some((of, session)) if *of == life => Ok(session.clone()),
            Some(_) | None => {
                let session = Arc::new((self.open)(self.address.connect()?)?);
                *current = Some((life, session.clone()));
                Ok(session)
            }
        }
    }

    /// Of a connection that broke: the next request opens another.
    pub(super) fn forget(&self, lost: &Arc<T>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|(_, current)| Arc::ptr_eq(current, lost)) {
            *current = None;
        }
    }

    /// A connection of its own to the desktop of the moment, for who waits for events.
    pub(super) fn another(&self) -> Result<Display, DisplayError> {
        match self.readiness.stage() {
            Stage::Starting(_) | Stage::Ready(_) => self.address.connect(),
            Stage::Absent => Err(DisplayError::Absent { number: self.address.number }),
        }
    }

    pub(super) fn with<R>(
        &self,
        work: impl FnOnce(&Arc<T>) -> Result<R, DisplayError>,
    ) -> Result<R, DisplayError> {
        let session = self.current()?;
        let result = work(&session);
        if matches!(result, Err(DisplayError::Lost(_))) {
            self.forget(&session);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(display: &[u8], scheme: &[u8], cookie: &[u8]) -> Vec<u8> {
        let mut data = vec![1, 0];
        for field in [b"host".as_slice(), display, scheme, cookie] {
            data.extend(u16::try_from(field.len()).unwrap().to_be_bytes());
            data.extend(field);
        }
        data
    }

    #[test]
    fn picks_the_cookie_of_the_display() {
        let file = [
            entry(b"1", COOKIE, b"one"),
            entry(b"0", b"XDM-AUTHORIZATION-1", b"other"),
            entry(b"0", COOKIE, b"zero"),
        ]
        .concat();
        assert_eq!(cookie_for(&file, 0).unwrap(), b"zero");
        assert_eq!(cookie_for(&file, 1).unwrap(), b"one");
        assert_eq!(cookie_for(&file, 2), None);
        assert_eq!(cookie_for(&entry(b"", COOKIE, b"any"), 7).unwrap(), b"any");
        for cut in 0..file.len() {
            let _no_panic = cookie_for(&file[..cut], 0);
        }
    }
}
