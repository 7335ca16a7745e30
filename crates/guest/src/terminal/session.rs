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
    /// After which byte the size changed, and to which, for as long as that byte is kept.
    resizes: VecDeque<Resize>,
    /// The bytes that end at `end`.
    recent: VecDeque<u8>,
    /// Bytes that the program has written since it began.
    end: u64,
    /// How far each viewer is.
    places: BTreeMap<u64, u64>,
    next_viewer: u64,
    next_resize: u64,
    exit: Option<RunExit>,
}

/// A change of the size has its place among the bytes: what was written before it was written for the other size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Resize {
    number: u64,
    after: u64,
    size: Size,
}

impl State {
    fn new(size: Size) -> Self {
        Self {
            screen: Screen::new(size),
            size,
            resizes: VecDeque::new(),
            recent: VecDeque::new(),
            end: 0,
            places: BTreeMap::new(),
            next_viewer: 0,
            next_resize: 0,
            exit: None,
        }
    }

    fn start(&self) -> u64 {
        self.end - self.recent.len() as u64
    }

    fn write(&mut self, bytes: &[u8]) {
        self.screen.write(bytes);
        self.end += bytes.len() as u64;
        self.recent.extend(bytes);
        let beyond = self.recent.len().saturating_sub(RECENT);
        self.recent.drain(..beyond);
        while self.resizes.front().is_some_and(|resize| resize.after < self.start()) {
            self.resizes.pop_front();
        }
    }

    fn resize(&mut self, size: Size) {
        self.size = size;
        self.screen.resize(size);
        // Of several between the same two bytes the last one counts.
        self.resizes.pop_back_if(|resize| resize.after == self.end);
        self.resizes.push_back(Resize { number: self.next_resize, after: self.end, size });
        self.next_resize += 1;
    }

    /// The bytes from `place` to `until`, as many as go in one piece.
    fn since(&self, place: u64, until: u64) -> Bytes {
        let offset = usize::try_from(place - self.start()).unwrap_or(usize::MAX).min(self.recent.len());
        let length = usize::try_from(until - place).unwrap_or(usize::MAX).min(CHUNK);
        let mut piece = BytesMut::with_capacity((self.recent.len() - offset).min(length));
        piece.extend(self.recent.range(offset..).take(length));
        piece.freeze()
    }

    /// What is next for a viewer who has seen all up to `place` and the resizes before `next_resize`.
    fn next(&self, place: u64, next_resize: u64) -> Next {
        if place < self.start() {
            return Next::Picture;
        }
        let resize = self.resizes.iter().find(|resize| resize.number >= next_resize);
        match resize {
            Some(resize) if resize.after <= place => Next::Resize(*resize),
            _ if place < self.end => {
                Next::Data(self.since(place, resize.map_or(self.end, |resize| resize.after)))
            }
            _ => Next::Nothing,
        }
    }

    fn somebody_keeps_up(&self) -> bool {
        self.places.is_empty() || self.places.values().any(|place| self.end - place < RECENT as u64 / 2)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// What came after the viewer's place is forgotten.
    Picture,
    Resize(Resize),
    Data(Bytes),
    Nothing,
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
        let session = Arc::new(Self {
            id: Uuid::new_v4().to_string(),
            program,
            began: Instant::now(),
            pty,
            keyboard,
            state: Mutex::new(State::new(size)),
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
        state.resize(size);
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
        let (picture, size, place) = (state.screen.picture(), state.size, state.end);
        let next_resize = state.next_resize;
        state.places.insert(number, place);
        drop(state);
        self.viewers.send_modify(|count| *count += 1);
        let greeting = Shown::Attached(self.info());
        let mut pending = VecDeque::from([greeting]);
        pending.extend(in_pieces(picture));
        Viewer { session: self, number, news, size, place, next_resize, pending }
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
    next_resize: u64,
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
        match state.next(self.place, self.next_resize) {
            Next::Picture => {
                (self.place, self.next_resize) = (state.end, state.next_resize);
                if self.size != state.size {
                    self.size = state.size;
                    self.pending.push_back(Shown::Resized(self.size));
                }
                self.pending.extend(in_pieces(state.screen.picture()));
                self.pending.pop_front()
            }
            Next::Resize(resize) => {
                (self.next_resize, self.size) = (resize.number + 1, resize.size);
                Some(Shown::Resized(self.size))
            }
            Next::Data(piece) => {
                self.place += piece.len() as u64;
                Some(Shown::Data(piece))
            }
            Next::Nothing => state.exit.map(Shown::Exit),
        }
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

    const SIZE: Size = Size { rows: 4, columns: 10 };

    #[test]
    fn only_the_newest_bytes_are_kept() {
        let mut state = State::new(SIZE);
        let piece = vec![b'x'; RECENT / 2 + 1];
        state.write(&piece);
        assert_eq!((state.start(), state.end), (0, piece.len() as u64));
        state.write(&piece);
        assert_eq!((state.start(), state.recent.len()), (2, RECENT));
        assert_eq!(state.since(state.end, state.end), Bytes::new());
        assert_eq!(state.since(state.end - 3, state.end), "xxx");
        assert_eq!(state.since(state.start(), state.end).len(), CHUNK);
        assert_eq!(state.next(1, 0), Next::Picture);
    }

    #[test]
    fn a_resize_comes_between_what_was_written_before_it_and_after_it() {
        let mut state = State::new(SIZE);
        let (middle, last) = (Size { rows: 5, columns: 20 }, Size { rows: 6, columns: 30 });
        state.write(b"before");
        state.resize(Size { rows: 9, columns: 9 });
        state.resize(middle);
        state.write(b"between");
        state.resize(last);
        let resize = |number, after, size| Next::Resize(Resize { number, after, size });
        assert_eq!(state.next(0, 0), Next::Data("before".into()));
        assert_eq!(state.next(4, 0), Next::Data("re".into()));
        assert_eq!(state.next(6, 0), resize(1, 6, middle));
        // Who has seen the first of the two sees the other as well.
        assert_eq!(state.next(6, 1), resize(1, 6, middle));
        assert_eq!(state.next(6, 2), Next::Data("between".into()));
        assert_eq!(state.next(13, 2), resize(2, 13, last));
        assert_eq!(state.next(13, 3), Next::Nothing);
        // They are forgotten with the bytes around them.
        state.write(&vec![b'x'; RECENT]);
        assert_eq!(state.resizes.iter().map(|resize| resize.size).collect::<Vec<_>>(), [last]);
        state.write(b"x");
        assert!(state.resizes.is_empty());
    }

    #[test]
    fn the_fastest_viewer_decides_how_fast_it_goes() {
        let mut state = State::new(SIZE);
        state.write(&vec![b'x'; RECENT]);
        assert!(state.somebody_keeps_up(), "nobody watches");
        state.places.insert(0, 0);
        assert!(!state.somebody_keeps_up());
        state.places.insert(1, state.end);
        assert!(state.somebody_keeps_up());
    }
}
