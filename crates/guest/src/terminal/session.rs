//! One terminal that stays: the program on it, what it shows, and who watches.
//!
//! What the program writes goes to the [`Screen`] and to a short memory of bytes. Each viewer has a place in that
//! stream and takes the bytes from there on; one whose place is forgotten already gets the screen again instead. The
//! program is read from as long as one viewer keeps up, or nobody watches: so a slow viewer costs the others
//! nothing, and memory is bounded whatever happens.

use std::{
    collections::{BTreeMap, VecDeque},
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use roost_guest_proto::v1::{AttachOutput, RunExit, SessionInfo, attach_output::Output};
use tokio::{io::AsyncReadExt, sync::watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::Status;
use uuid::Uuid;

use super::screen::Screen;
use crate::process::{Ends, Keyboard, Launch, Launched, Leader, Pty, Size, exit, hang_up, last_words};

/// Bytes that a viewer may be behind and still get all of them.
const RECENT: usize = 256 * 1024;
const CHUNK: usize = 32 * 1024;
/// How long a session stays that nobody watches.
pub(super) const UNWATCHED: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: String,
    program: String,
    began: Instant,
    pty: Pty,
    keyboard: Keyboard,
    state: Mutex<State>,
    /// Something changed that viewers want to see.
    news: watch::Sender<()>,
    /// A viewer has gone on, or gone.
    progress: watch::Sender<()>,
    viewers: watch::Sender<usize>,
    close: CancellationToken,
}

#[derive(Debug)]
struct State {
    screen: Screen,
    size: Size,
    /// The bytes that end at `end`.
    recent: VecDeque<u8>,
    /// Bytes that the program has written since it began.
    end: u64,
    /// How far each viewer is.
    places: BTreeMap<u64, u64>,
    next_viewer: u64,
    exit: Option<RunExit>,
}

impl State {
    fn start(&self) -> u64 {
        self.end - self.recent.len() as u64
    }

    fn write(&mut self, bytes: &[u8]) {
        self.screen.write(bytes);
        self.end += bytes.len() as u64;
        self.recent.extend(bytes);
        let beyond = self.recent.len().saturating_sub(RECENT);
        self.recent.drain(..beyond);
    }

    /// The bytes from `place` on, as many as go in one piece.
    fn since(&self, place: u64) -> Bytes {
        let offset = usize::try_from(place - self.start()).unwrap_or(usize::MAX).min(self.recent.len());
        let mut piece = BytesMut::with_capacity((self.recent.len() - offset).min(CHUNK));
        piece.extend(self.recent.range(offset..).take(CHUNK));
        piece.freeze()
    }

    fn somebody_keeps_up(&self) -> bool {
        self.places.is_empty() || self.places.values().any(|place| self.end - place < RECENT as u64 / 2)
    }
}

/// What the tasks of a session own.
#[derive(Debug)]
pub(super) struct Life {
    leader: Leader,
    _writer: AbortOnDropHandle<()>,
}

impl Session {
    pub(super) fn start(launch: Launch, size: Size) -> Result<(Arc<Self>, Life), Status> {
        let program = launch.argv[0].clone();
        let Launched { leader, ends } = launch.start()?;
        let Ends::Terminal(pty) = ends else {
            return Err(Status::internal("a session was started without a terminal"));
        };
        let (keyboard, writer) = Keyboard::new(pty.clone());
        let state = State {
            screen: Screen::new(size),
            size,
            recent: VecDeque::new(),
            end: 0,
            places: BTreeMap::new(),
            next_viewer: 0,
            exit: None,
        };
        let session = Arc::new(Self {
            id: Uuid::new_v4().to_string(),
            program,
            began: Instant::now(),
            pty,
            keyboard,
            state: Mutex::new(state),
            news: watch::Sender::new(()),
            progress: watch::Sender::new(()),
            viewers: watch::Sender::new(0),
            close: CancellationToken::new(),
        });
        Ok((session, Life { leader, _writer: writer }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn info(&self) -> SessionInfo {
        SessionInfo {
            id: self.id.clone(),
            size: Some(self.state().size.into()),
            program: self.program.clone(),
            age_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            viewers: u32::try_from(*self.viewers.borrow()).unwrap_or(u32::MAX),
        }
    }

    pub(super) async fn press(&self, keys: Bytes) {
        self.keyboard.enter(keys).await;
    }

    pub(super) fn resize(&self, size: Size) -> Result<(), Status> {
        let mut state = self.state();
        if state.size == size {
            return Ok(());
        }
        self.pty.resize(size).map_err(|error| Status::internal(format!("resize the terminal: {error}")))?;
        state.size = size;
        state.screen.resize(size);
        drop(state);
        self.news.send_replace(());
        Ok(())
    }

    pub(super) fn close(&self) {
        self.close.cancel();
    }

    /// The whole life of the session. `over` is called as soon as nobody shall find it any more.
    pub(super) async fn live(self: &Arc<Self>, life: Life, over: impl FnOnce()) {
        let Life { leader, _writer } = life;
        let leader_ended = CancellationToken::new();
        let reader = tokio::spawn(self.clone().read(leader_ended.clone()));
        let reader = AbortOnDropHandle::new(reader);
        let ended = tokio::select! {
            ended = leader.exited() => ended.map(|()| true),
            () = self.close.cancelled() => Ok(false),
            () = self.is_forgotten() => Ok(false),
        };
        over();
        let status = match ended {
            Ok(true) => leader.reap(),
            Ok(false) => hang_up(leader).await,
            Err(error) => Err(error),
        };
        leader_ended.cancel();
        if let Err(error) = reader.await {
            tracing::error!(%error, "the reader of a terminal failed");
        }
        let status = status.unwrap_or_else(|error| {
            tracing::warn!(%error, "learn how a terminal's program ended");
            ExitStatus::from_raw(0)
        });
        let lasted = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.state().exit = Some(exit(status, false, lasted));
        self.news.send_replace(());
    }

    /// Reads what the program writes, until nobody has the terminal open any more.
    async fn read(self: Arc<Self>, leader_ended: CancellationToken) {
        let mut progress = self.progress.subscribe();
        let mut pty = self.pty.clone();
        let mut left = last_words(leader_ended.clone());
        let mut buffer = BytesMut::with_capacity(CHUNK);
        loop {
            while !self.state().somebody_keeps_up() && !leader_ended.is_cancelled() {
                tokio::select! {
                    // The sender is ours.
                    _ = progress.changed() => {}
                    () = leader_ended.cancelled() => {}
                }
            }
            tokio::select! {
                read = pty.read_buf(&mut buffer) => if !read.is_ok_and(|count| left.count(count)) { return },
                () = left.silence() => return,
            }
            self.state().write(&buffer);
            buffer.clear();
            self.news.send_replace(());
        }
    }

    /// Returns when nobody has watched for long.
    async fn is_forgotten(&self) {
        let mut viewers = self.viewers.subscribe();
        loop {
            // Both ends are ours, so neither wait can fail.
            drop(viewers.wait_for(|count| *count == 0).await);
            tokio::select! {
                () = tokio::time::sleep(UNWATCHED) => return,
                somebody = viewers.wait_for(|count| *count > 0) => drop(somebody),
            }
        }
    }

    pub(super) fn enter(&self) -> Viewer<'_> {
        let news = self.news.subscribe();
        let mut state = self.state();
        let number = state.next_viewer;
        state.next_viewer += 1;
        let (picture, size, end) = (state.screen.picture(), state.size, state.end);
        state.places.insert(number, end);
        drop(state);
        self.viewers.send_modify(|count| *count += 1);
        let greeting = Shown::Attached(self.info());
        let mut pending = VecDeque::from([greeting]);
        pending.extend(in_pieces(picture));
        Viewer { session: self, number, news, size, place: end, pending }
    }
}

fn in_pieces(picture: Vec<u8>) -> impl Iterator<Item = Shown> {
    let picture = Bytes::from(picture);
    (0..picture.len())
        .step_by(CHUNK)
        .map(move |start| Shown::Data(picture.slice(start..picture.len().min(start + CHUNK))))
}

/// What a viewer is to see next.
#[derive(Debug)]
pub(super) enum Shown {
    Attached(SessionInfo),
    Data(Bytes),
    Resized(Size),
    /// The last one.
    Exit(RunExit),
}

impl From<Shown> for AttachOutput {
    fn from(shown: Shown) -> Self {
        let output = match shown {
            Shown::Attached(info) => Output::Attached(info),
            Shown::Data(data) => Output::Data(data),
            Shown::Resized(size) => Output::Resized(size.into()),
            Shown::Exit(exit) => Output::Exit(exit),
        };
        Self { output: Some(output) }
    }
}

#[derive(Debug)]
pub(super) struct Viewer<'a> {
    session: &'a Session,
    number: u64,
    news: watch::Receiver<()>,
    size: Size,
    place: u64,
    pending: VecDeque<Shown>,
}

impl Viewer<'_> {
    /// Asking for the next is what says that the last has arrived.
    pub(super) async fn next(&mut self) -> Shown {
        loop {
            self.news.mark_unchanged();
            if let Some(shown) = self.look() {
                return shown;
            }
            // The sender is the session's, which is borrowed.
            let _changed = self.news.changed().await;
        }
    }

    fn look(&mut self) -> Option<Shown> {
        if let Some(shown) = self.pending.pop_front() {
            return Some(shown);
        }
        let mut state = self.session.state();
        state.places.insert(self.number, self.place);
        self.session.progress.send_replace(());
        if self.size != state.size {
            self.size = state.size;
            return Some(Shown::Resized(self.size));
        }
        if self.place < state.start() {
            self.place = state.end;
            self.pending.extend(in_pieces(state.screen.picture()));
            return self.pending.pop_front();
        }
        if self.place < state.end {
            let piece = state.since(self.place);
            self.place += piece.len() as u64;
            return Some(Shown::Data(piece));
        }
        state.exit.map(Shown::Exit)
    }
}

impl Drop for Viewer<'_> {
    fn drop(&mut self) {
        self.session.state().places.remove(&self.number);
        self.session.progress.send_replace(());
        self.session.viewers.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let size = Size { rows: 4, columns: 10 };
        State {
            screen: Screen::new(size),
            size,
            recent: VecDeque::new(),
            end: 0,
            places: BTreeMap::new(),
            next_viewer: 0,
            exit: None,
        }
    }

    #[test]
    fn only_the_newest_bytes_are_kept() {
        let mut state = state();
        let piece = vec![b'x'; RECENT / 2 + 1];
        state.write(&piece);
        assert_eq!((state.start(), state.end), (0, piece.len() as u64));
        state.write(&piece);
        assert_eq!((state.start(), state.recent.len()), (2, RECENT));
        assert_eq!(state.since(state.end), Bytes::new());
        assert_eq!(state.since(state.end - 3), "xxx");
        assert_eq!(state.since(state.start()).len(), CHUNK);
    }

    #[test]
    fn the_fastest_viewer_decides_how_fast_it_goes() {
        let mut state = state();
        state.write(&vec![b'x'; RECENT]);
        assert!(state.somebody_keeps_up(), "nobody watches");
        state.places.insert(0, 0);
        assert!(!state.somebody_keeps_up());
        state.places.insert(1, state.end);
        assert!(state.somebody_keeps_up());
    }
}
