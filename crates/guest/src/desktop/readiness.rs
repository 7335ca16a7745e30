//! Whether the desktop can be used: the X server answers, and the panel and the desktop's background are on
//! the screen.
//!
//! One thread follows the desktop through its life. It sleeps in the kernel: on the directory of the X
//! sockets until the server appears, on the X connection until the windows are there, and then on the same
//! connection until the server goes away.

use std::{convert::Infallible, io, path::Path, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};
use tokio::sync::watch;
use x11rb::{
    connection::Connection,
    protocol::xproto::{
        AtomEnum, ChangeWindowAttributesAux, ConnectionExt as _, EventMask, MapState, Window,
    },
    rust_connection::RustConnection,
};

use super::display::{Display, DisplayAddress, DisplayError, SOCKETS, SOCKETS_PARENT};

/// Between the socket's appearance and the server's answer there is no event: try again, less and less often.
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(2);

x11rb::atom_manager! {
    Atoms: AtomsCookie {
        _NET_CLIENT_LIST,
        _NET_WM_WINDOW_TYPE,
        _NET_WM_WINDOW_TYPE_DOCK,
        _NET_WM_WINDOW_TYPE_DESKTOP,
    }
}

/// Which life of the desktop this is, and how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Absent,
    /// The X server answers. The number tells one start of it from the next.
    Starting(u64),
    Ready(u64),
}

#[derive(Debug, Clone)]
pub(crate) struct Readiness(watch::Receiver<Stage>);

impl Readiness {
    pub(crate) fn stage(&self) -> Stage {
        *self.0.borrow()
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.stage(), Stage::Ready(_))
    }

    /// Waits for a desktop that can be used, and tells which.
    pub(crate) async fn ready(&mut self) -> u64 {
        let ready = self.0.wait_for(|stage| matches!(stage, Stage::Ready(_))).await.map(|stage| *stage);
        match ready {
            Ok(Stage::Ready(life)) => life,
            // The thread that would tell is gone, so nobody will ever know.
            Ok(Stage::Absent | Stage::Starting(_)) | Err(_) => std::future::pending().await,
        }
    }

    /// Waits until it is another one.
    pub(crate) async fn not(&mut self, life: u64) {
        if self.0.wait_for(|stage| *stage != Stage::Ready(life)).await.is_err() {
            std::future::pending().await
        }
    }
}

pub(crate) fn watch(address: DisplayAddress) -> Readiness {
    let (stage, readiness) = watch::channel(Stage::Absent);
    std::thread::spawn(move || {
        let Err(error) = follow(&address, &stage);
        tracing::error!(%error, "watch the desktop: it will never be called ready");
    });
    Readiness(readiness)
}

fn follow(address: &DisplayAddress, stage: &watch::Sender<Stage>) -> io::Result<Infallible> {
    for life in 1.. {
        let display = reach(address)?;
        stage.send_replace(Stage::Starting(life));
        let ready = || {
            stage.send_replace(Stage::Ready(life));
        };
        let Err(error) = follow_display(&display, ready);
        stage.send_replace(Stage::Absent);
        tracing::info!(%error, "the desktop is gone");
    }
    unreachable!("no desktop starts that often")
}

/// Waits for the X server.
fn reach(address: &DisplayAddress) -> io::Result<Display> {
    let sockets = SocketWatch::new()?;
    let mut retry = FIRST_RETRY;
    loop {
        match address.connect() {
            Ok(display) => return Ok(display),
            Err(DisplayError::Unreachable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                retry = FIRST_RETRY;
                sockets.wait(None)?;
            }
            Err(error) => {
                tracing::debug!(%error, "the desktop does not answer yet");
                sockets.wait(Some(retry))?;
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
    }
}

/// Sees X sockets appear.
#[derive(Debug)]
struct SocketWatch(std::os::fd::OwnedFd);

impl SocketWatch {
    fn new() -> io::Result<Self> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let this = Self(watch);
        this.add_directory()?;
        Ok(this)
    }

    /// The directory, or its parent for as long as it is not there.
    fn add_directory(&self) -> io::Result<()> {
        let created =
            inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::ONLYDIR;
        loop {
            match inotify::add_watch(&self.0, SOCKETS, created) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            inotify::add_watch(&self.0, SOCKETS_PARENT, created)?;
            if !Path::new(SOCKETS).exists() {
                return Ok(());
            }
        }
    }

    /// Until something was created, or the time is up.
    fn wait(&self, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        let mut watched = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut watched, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = [0; 4096];
        loop {
            match rustix::io::read(&self.0, &mut events) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.add_directory()
    }
}

/// Ends when the connection does.
fn follow_display(display: &Display, ready: impl FnOnce()) -> Result<Infallible, DisplayError> {
    let Display { connection, root, .. } = display;
    let atoms = Atoms::new(connection)?.reply()?;
    let listen = |mask| ChangeWindowAttributesAux::new().event_mask(mask);
    connection.change_window_attributes(
        *root,
        &listen(EventMask::PROPERTY_CHANGE | EventMask::SUBSTRUCTURE_NOTIFY),
    )?;
    // Asked after the events were, so no change goes unseen between the two.
    while !is_complete(connection, *root, &atoms)? {
        connection.wait_for_event()?;
        while connection.poll_for_event()?.is_some() {}
    }
    connection.change_window_attributes(*root, &listen(EventMask::NO_EVENT))?;
    connection.flush()?;
    ready();
    tracing::info!("the desktop is ready");
    loop {
        connection.wait_for_event()?;
    }
}

fn is_complete(connection: &RustConnection, root: Window, atoms: &Atoms) -> Result<bool, DisplayError> {
    let clients =
        connection.get_property(false, root, atoms._NET_CLIENT_LIST, AtomEnum::WINDOW, 0, 1024)?.reply()?;
    let mut panel = false;
    let mut background = false;
    for window in clients.value32().into_iter().flatten() {
        // Before the question, so that the answer "not yet" is followed by an event.
        connection.change_window_attributes(
            window,
            &ChangeWindowAttributesAux::new().event_mask(EventMask::STRUCTURE_NOTIFY),
        )?;
        let kind =
            connection.get_property(false, window, atoms._NET_WM_WINDOW_TYPE, AtomEnum::ATOM, 0, 16)?;
        let attributes = connection.get_window_attributes(window)?;
        // A window may vanish between the list and the question.
        let (Ok(kind), Ok(attributes)) = (kind.reply(), attributes.reply()) else { continue };
        if attributes.map_state == MapState::VIEWABLE {
            let is = |wanted| kind.value32().into_iter().flatten().any(|kind| kind == wanted);
            panel |= is(atoms._NET_WM_WINDOW_TYPE_DOCK);
            background |= is(atoms._NET_WM_WINDOW_TYPE_DESKTOP);
        }
    }
    Ok(panel && background)
}
