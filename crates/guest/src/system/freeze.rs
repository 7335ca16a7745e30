//! Holds the guest's filesystems still, so that the host can save a disk on which every file is as its
//! program wrote it.
//!
//! The kernel does the work: `FIFREEZE` writes a filesystem out and makes every later writer wait. What is
//! frozen are the writable filesystems on block devices; the others have nothing on the host's disks.
//!
//! **Order.** A filesystem may live in a file of another one. Freezing and thawing it writes to that file, so
//! it is frozen before and thawed after the one below it, which was there first.
//!
//! **A lost host leaves no guest that cannot write.** After [`LIMIT`] of the guest's own time, which stands
//! still while the guest does, everything is thawed. The same is done at the start of an agent: the one before
//! it may have ended in between.
//!
//! **The agent writes no file while a filesystem is frozen**, or it would wait for itself. Freezing and what
//! writes files exclude each other (`SystemService::changing`), what writes thaws first, and nothing is logged
//! between the two: the other end of the log may be waiting for the disk.

use std::{
    ffi::OsString,
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, StatxFlags},
    io::Errno,
    ioctl,
};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::Instant,
};
use tonic::Status;

use super::{blocking, to_its_end};

/// How long a freeze lasts when nobody ends it.
const LIMIT: Duration = Duration::from_secs(60);

/// `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`.
const FIFREEZE: ioctl::Opcode = ioctl::opcode::read_write::<i32>(b'X', 119);
const FITHAW: ioctl::Opcode = ioctl::opcode::read_write::<i32>(b'X', 120);

#[derive(Debug, thiserror::Error)]
pub(super) enum FreezeError {
    #[error("read /proc/self/mountinfo: {0}")]
    Mounts(io::Error),
    #[error("/proc/self/mountinfo does not have the form that is documented for it")]
    Form,
    #[error("open the filesystem at {}, which has to be frozen or thawed: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "the filesystem at {} cannot be frozen, because other mounts hide it: unmount it or them",
        path.display()
    )]
    Hidden { path: PathBuf },
    #[error(
        "freeze the filesystem at {}: {source}; the guest's kernel log may say more. Nothing stays frozen",
        path.display()
    )]
    Freeze { path: PathBuf, source: io::Error },
    #[error(
        "thaw the filesystem at {}: {source}; until it is thawed (`fsfreeze --unfreeze`, or a restart) \
         nothing can write to it",
        path.display()
    )]
    Thaw { path: PathBuf, source: io::Error },
    #[error("{0}. After that: {1}")]
    Undo(Box<FreezeError>, Box<FreezeError>),
}

impl From<FreezeError> for Status {
    fn from(error: FreezeError) -> Self {
        match error {
            // Whoever wants to freeze can do without, or have the guest put right.
            FreezeError::Mounts(_)
            | FreezeError::Form
            | FreezeError::Open { .. }
            | FreezeError::Hidden { .. }
            | FreezeError::Freeze { .. } => Status::failed_precondition(error.to_string()),
            FreezeError::Thaw { .. } | FreezeError::Undo(..) => Status::internal(error.to_string()),
        }
    }
}

/// One filesystem, wherever it is mounted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Volume {
    /// Major and minor number, as text.
    device: String,
    /// In the order of mounting; never empty.
    mounts: Vec<Mount>,
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    path: PathBuf,
}

impl Volume {
    fn path(&self) -> PathBuf {
        self.mounts.first().map(|mount| mount.path.clone()).unwrap_or_default()
    }
}

/// What has to be frozen, in order, from the text of `/proc/self/mountinfo`; none if that has another form.
/// Each line is: mount id, parent, device, root, path, options, optional fields, `-`, type, source, options
/// of the filesystem.
fn volumes(mountinfo: &[u8]) -> Option<Vec<Volume>> {
    let mut volumes: Vec<Volume> = Vec::new();
    for line in mountinfo.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let end = 6 + fields.get(6..)?.iter().position(|field| *field == b"-")?;
        let (&id, &device, &path) = (fields.first()?, fields.get(2)?, fields.get(4)?);
        let (&kind, &source, &options) = (fields.get(end + 1)?, fields.get(end + 2)?, fields.get(end + 3)?);
        // A filesystem of a user's program can be frozen by nobody, and may not let even root in.
        let in_program = kind.starts_with(b"fuse");
        // The options of the mount do not matter: another mount, or a file still open, may be writable.
        let read_only = options.split(|byte| *byte == b',').any(|option| option == b"ro");
        if !source.starts_with(b"/dev/") || in_program || read_only {
            continue;
        }
        let mount = Mount {
            id: str::from_utf8(id).ok()?.parse().ok()?,
            path: OsString::from_vec(unescape(path)).into(),
        };
        let device = str::from_utf8(device).ok()?;
        match volumes.iter_mut().find(|volume| volume.device == device) {
            Some(volume) => volume.mounts.push(mount),
            None => volumes.push(Volume { device: device.to_owned(), mounts: vec![mount] }),
        }
    }
    // The kernel lists mounts in the order in which they were made. What counts is the first of each
    // filesystem: one mounted again later is none the higher for that.
    volumes.reverse();
    Some(volumes)
}

/// Blanks and backslashes are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digit = |place: usize| match after.get(place) {
            Some(digit @ b'0'..=b'7') => Some(u16::from(digit - b'0')),
            _ => None,
        };
        let code = match (byte, digit(0), digit(1), digit(2)) {
            (b'\\', Some(high), Some(middle), Some(low)) => u8::try_from(high * 64 + middle * 8 + low).ok(),
            _ => None,
        };
        match code {
            Some(code) => {
                text.push(code);
                rest = &after[3..];
            }
            None => {
                text.push(byte);
                rest = after;
            }
        }
    }
    text
}

/// What the kernel does; tests have one of their own.
pub(super) trait Filesystems: std::fmt::Debug + Send + Sync + 'static {
    type Open: std::fmt::Debug + Send + 'static;

    /// The text of `/proc/self/mountinfo`.
    fn mounts(&self) -> io::Result<Vec<u8>>;
    fn sync(&self);
    /// None: no path leads to it.
    fn open(&self, volume: &Volume) -> io::Result<Option<Self::Open>>;
    fn freeze(&self, open: &Self::Open) -> Result<(), Errno>;
    fn thaw(&self, open: &Self::Open) -> Result<(), Errno>;
}

#[derive(Debug)]
pub(super) struct Kernel;

impl Filesystems for Kernel {
    type Open = OwnedFd;

    fn mounts(&self) -> io::Result<Vec<u8>> {
        fs::read("/proc/self/mountinfo")
    }

    fn sync(&self) {
        rustix::fs::sync();
    }

    fn open(&self, volume: &Volume) -> io::Result<Option<OwnedFd>> {
        // A mount may have been made over this one's path, which then leads to another filesystem.
        for mount in &volume.mounts {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
            let open = match rustix::fs::open(&mount.path, flags, Mode::empty()) {
                Ok(open) => open,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            let facts = rustix::fs::statx(&open, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
            if facts.stx_mnt_id == mount.id {
                return Ok(Some(open));
            }
        }
        Ok(None)
    }

    fn freeze(&self, open: &OwnedFd) -> Result<(), Errno> {
        // SAFETY: the opcode's argument is not looked at.
        unsafe { ioctl::ioctl(open, ioctl::NoArg::<FIFREEZE>::new()) }
    }

    fn thaw(&self, open: &OwnedFd) -> Result<(), Errno> {
        // SAFETY: the opcode's argument is not looked at.
        unsafe { ioctl::ioctl(open, ioctl::NoArg::<FITHAW>::new()) }
    }
}

/// A filesystem held open: so it can be thawed whatever happens to its path, and is not unmounted before.
#[derive(Debug)]
struct Held<O> {
    path: PathBuf,
    open: O,
}

#[derive(Debug)]
struct State<O> {
    /// In the order of freezing; empty when nothing is frozen.
    frozen: Vec<Held<O>>,
    /// When that ends by itself.
    until: Option<Instant>,
    /// Something that this agent froze may not have been thawed.
    in_doubt: bool,
}

/// Cheap to clone.
#[derive(Debug)]
pub(super) struct Freezer<F: Filesystems = Kernel> {
    filesystems: Arc<F>,
    state: Arc<Mutex<State<F::Open>>>,
}

impl<F: Filesystems> Clone for Freezer<F> {
    fn clone(&self) -> Self {
        Self { filesystems: self.filesystems.clone(), state: self.state.clone() }
    }
}

impl Freezer {
    /// Thaws what an earlier agent may have left frozen. May wait for the disk.
    pub(super) fn new() -> Self {
        if let Err(error) = thaw_mounted(&Kernel) {
            tracing::warn!(%error, "thaw what an earlier agent may have frozen");
        }
        Self::over(Kernel)
    }
}

// Each method goes on when its call is dropped: a host that hangs up half-way must not leave a state that
// nobody knows.
impl<F: Filesystems> Freezer<F> {
    fn over(filesystems: F) -> Self {
        let state = State { frozen: Vec::new(), until: None, in_doubt: false };
        Self { filesystems: Arc::new(filesystems), state: Arc::new(Mutex::new(state)) }
    }

    /// Freezes everything; again, it changes nothing but the time.
    pub(super) async fn freeze(&self) -> Result<(), Status> {
        let freezer = self.clone();
        to_its_end(async move {
            let mut state = freezer.state.lock().await;
            state.until = None;
            let earlier = std::mem::take(&mut state.frozen);
            let filesystems = freezer.filesystems.clone();
            // Until it is known how it went.
            let in_doubt = std::mem::replace(&mut state.in_doubt, true);
            state.frozen = blocking(move || freeze_mounted(&*filesystems, earlier)).await?;
            state.in_doubt = in_doubt;
            let until = Instant::now() + LIMIT;
            state.until = Some(until);
            tokio::spawn(freezer.clone().expire(until));
            Ok(())
        })
        .await
    }

    /// Does nothing when nothing is frozen.
    pub(super) async fn thaw(&self) -> Result<(), Status> {
        let freezer = self.clone();
        to_its_end(async move {
            let state = freezer.state.lock().await;
            freezer.thaw_now(state).await
        })
        .await
    }

    /// What this agent froze. Where nothing is, the filesystems are not asked: that takes a guest that has just been
    /// restored longer than the rest of its new identity.
    pub(super) async fn thaw_own(&self) -> Result<(), Status> {
        let state = self.state.lock().await;
        let is_clear = state.frozen.is_empty() && !state.in_doubt;
        drop(state);
        if is_clear { Ok(()) } else { self.thaw().await }
    }

    async fn thaw_now(&self, mut state: MutexGuard<'_, State<F::Open>>) -> Result<(), Status> {
        state.until = None;
        let frozen = std::mem::take(&mut state.frozen);
        let filesystems = self.filesystems.clone();
        let in_doubt = std::mem::replace(&mut state.in_doubt, true);
        blocking(move || {
            if frozen.is_empty() || in_doubt {
                thaw_mounted(&*filesystems).and(thaw_held(&*filesystems, &frozen))
            } else {
                thaw_held(&*filesystems, &frozen)
            }
        })
        .await?;
        state.in_doubt = false;
        Ok(())
    }

    async fn expire(self, until: Instant) {
        tokio::time::sleep_until(until).await;
        let state = self.state.lock().await;
        // It was thawed since, or frozen again: then another one has the later time.
        if state.until != Some(until) {
            return;
        }
        match self.thaw_now(state).await {
            Ok(()) => tracing::warn!("thawed the filesystems: nobody had done so for {} s", LIMIT.as_secs()),
            Err(error) => tracing::error!(%error, "thaw the filesystems, which nobody had done"),
        }
    }
}

fn list(filesystems: &impl Filesystems) -> Result<Vec<Volume>, FreezeError> {
    volumes(&filesystems.mounts().map_err(FreezeError::Mounts)?).ok_or(FreezeError::Form)
}

/// On failure nothing is frozen, `earlier` neither.
fn freeze_mounted<F: Filesystems>(
    filesystems: &F,
    earlier: Vec<Held<F::Open>>,
) -> Result<Vec<Held<F::Open>>, FreezeError> {
    let mut frozen = Vec::new();
    let Err(error) = try_freeze(filesystems, earlier.is_empty(), &mut frozen) else { return Ok(frozen) };
    match thaw_held(filesystems, &frozen).and(thaw_held(filesystems, &earlier)) {
        Ok(()) => Err(error),
        Err(thaw) => Err(FreezeError::Undo(Box::new(error), Box::new(thaw))),
    }
}

fn try_freeze<F: Filesystems>(
    filesystems: &F,
    first: bool,
    frozen: &mut Vec<Held<F::Open>>,
) -> Result<(), FreezeError> {
    // Freezing writes everything out as well, but with all writers waiting: the less is left, the shorter.
    // What is frozen has nothing left.
    if first {
        filesystems.sync();
    }
    let mut open = Vec::new();
    for volume in list(filesystems)? {
        let path = volume.path();
        match filesystems.open(&volume) {
            Ok(Some(volume)) => open.push(Held { path, open: volume }),
            Ok(None) => return Err(FreezeError::Hidden { path }),
            Err(source) => return Err(FreezeError::Open { path, source }),
        }
    }
    for held in open {
        match filesystems.freeze(&held.open) {
            // Busy: it is frozen already.
            Ok(()) | Err(Errno::BUSY) => frozen.push(held),
            // A kind that cannot be frozen is as good as synced.
            Err(Errno::OPNOTSUPP) => {}
            Err(source) => return Err(FreezeError::Freeze { path: held.path, source: source.into() }),
        }
    }
    Ok(())
}

/// Thaws as much as can be, the last frozen first.
fn thaw_held<F: Filesystems>(filesystems: &F, frozen: &[Held<F::Open>]) -> Result<(), FreezeError> {
    let mut result = Ok(());
    for Held { path, open } in frozen.iter().rev() {
        match filesystems.thaw(open) {
            // Invalid: it is not frozen.
            Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
            Err(source) => {
                let error = FreezeError::Thaw { path: path.clone(), source: source.into() };
                result = result.and(Err(error));
            }
        }
    }
    result
}

/// Without knowing what is frozen. One that cannot be opened holds up no other.
fn thaw_mounted<F: Filesystems>(filesystems: &F) -> Result<(), FreezeError> {
    let mut result = Ok(());
    let mut held = Vec::new();
    for volume in list(filesystems)? {
        let path = volume.path();
        match filesystems.open(&volume) {
            Ok(Some(open)) => held.push(Held { path, open }),
            // What no path leads to was not frozen by this agent either.
            Ok(None) => {}
            Err(source) => result = Err(FreezeError::Open { path, source }),
        }
    }
    thaw_held(filesystems, &held).and(result)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path, sync::Mutex as StdMutex};

    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
23 22 0:21 / /proc rw,nosuid shared:12 - proc proc rw
24 22 0:24 / /run rw - tmpfs tmpfs rw,size=100k
25 22 254:16 / /mnt/my\\040data rw shared:1 master:2 - xfs /dev/vdb rw,attr2
26 22 7:0 / /snap ro - squashfs /dev/loop0 ro
27 25 7:1 / /mnt/my\\040data/inner rw - ext4 /dev/loop1 rw
28 22 254:0 /srv /also rw - ext4 /dev/vda rw,discard
29 22 0:50 / /home/user/far rw - fuse.sshfs /dev/far rw
30 22 0:51 / /nfs rw - nfs4 server:/dev/vda rw
";

    fn paths(mountinfo: &str) -> Option<Vec<String>> {
        let volumes = volumes(mountinfo.as_bytes())?;
        Some(volumes.iter().map(|volume| volume.path().display().to_string()).collect())
    }

    #[test]
    fn finds_writable_filesystems_on_devices_once_and_inner_ones_first() {
        assert_eq!(paths(MOUNTS).unwrap(), ["/mnt/my data/inner", "/mnt/my data", "/"]);
        let root = volumes(MOUNTS.as_bytes()).unwrap().pop().unwrap();
        let mounts: Vec<_> = root.mounts.iter().map(|mount| (mount.id, mount.path.as_path())).collect();
        assert_eq!(mounts, [(22, Path::new("/")), (28, Path::new("/also"))]);
    }

    #[test]
    fn a_mount_that_is_read_only_may_be_of_a_filesystem_that_is_not() {
        assert_eq!(paths("1 2 8:1 / /a ro - ext4 /dev/sda1 rw\n").unwrap(), ["/a"]);
        assert_eq!(paths("1 2 8:1 / /a rw - ext4 /dev/sda1 errors=continue,ro\n").unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_not_mountinfo_is_refused() {
        assert_eq!(paths("").unwrap(), [""; 0]);
        for text in [
            "no",
            "1 2 8:1 / /a rw ext4 /dev/sda1 rw",
            "1 2 8:1 / /a rw - ext4",
            "x 2 8:1 / /a rw - ext4 /dev/a rw",
        ] {
            assert_eq!(paths(text), None, "{text}");
        }
        assert!(volumes(&Kernel.mounts().unwrap()).is_some());
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(br"/a\040b\134\011\012"), b"/a b\\\t\n");
        assert_eq!(unescape(br"/a\04\9\777\"), br"/a\04\9\777\");
    }

    /// Filesystems that do what the kernel's would, and tell what was asked of them.
    #[derive(Debug, Default)]
    struct Imagined {
        mounts: StdMutex<String>,
        asked: StdMutex<Vec<String>>,
        frozen: StdMutex<BTreeMap<String, bool>>,
        failing: StdMutex<BTreeMap<String, Errno>>,
    }

    impl Imagined {
        fn with(mounts: &str) -> Freezer<Arc<Self>> {
            let filesystems = Self::default();
            *filesystems.mounts.lock().unwrap() = mounts.to_owned();
            Freezer::over(Arc::new(filesystems))
        }

        fn asked(&self) -> Vec<String> {
            std::mem::take(&mut *self.asked.lock().unwrap())
        }

        fn fail(&self, what: &str, error: Errno) {
            self.failing.lock().unwrap().insert(what.to_owned(), error);
        }

        fn turn(&self, verb: &str, path: &str, to: bool, already: Errno) -> Result<(), Errno> {
            let what = format!("{verb} {path}");
            self.asked.lock().unwrap().push(what.clone());
            if let Some(error) = self.failing.lock().unwrap().get(&what) {
                return Err(*error);
            }
            match self.frozen.lock().unwrap().insert(path.to_owned(), to).unwrap_or(false) {
                was if was == to => Err(already),
                _ => Ok(()),
            }
        }

        fn is_frozen(&self, path: &str) -> bool {
            self.frozen.lock().unwrap().get(path).copied().unwrap_or(false)
        }
    }

    impl Filesystems for Arc<Imagined> {
        type Open = String;

        fn mounts(&self) -> io::Result<Vec<u8>> {
            Ok(self.mounts.lock().unwrap().clone().into_bytes())
        }

        fn sync(&self) {
            self.asked.lock().unwrap().push("sync".to_owned());
        }

        fn open(&self, volume: &Volume) -> io::Result<Option<String>> {
            let path = volume.path().display().to_string();
            match self.failing.lock().unwrap().get(&format!("open {path}")) {
                Some(&Errno::NOENT) => Ok(None),
                Some(error) => Err((*error).into()),
                None => Ok(Some(path)),
            }
        }

        fn freeze(&self, open: &String) -> Result<(), Errno> {
            self.turn("freeze", open, true, Errno::BUSY)
        }

        fn thaw(&self, open: &String) -> Result<(), Errno> {
            self.turn("thaw", open, false, Errno::INVAL)
        }
    }

    const TWO: &str = "1 0 8:0 / / rw - ext4 /dev/a rw\n2 1 7:0 / /in rw - ext4 /dev/loop0 rw\n";

    #[tokio::test(start_paused = true)]
    async fn freezes_inwards_out_and_thaws_the_other_way_round() {
        let freezer = Imagined::with(TWO);
        freezer.freeze().await.unwrap();
        assert_eq!(freezer.filesystems.asked(), ["sync", "freeze /in", "freeze /"]);
        freezer.thaw().await.unwrap();
        assert_eq!(freezer.filesystems.asked(), ["thaw /", "thaw /in"]);
    }

    #[tokio::test(start_paused = true)]
    async fn freezing_again_changes_only_the_time() {
        let freezer = Imagined::with(TWO);
        freezer.freeze().await.unwrap();
        tokio::time::sleep(LIMIT - Duration::from_secs(1)).await;
        freezer.filesystems.asked();
        freezer.freeze().await.unwrap();
        assert_eq!(freezer.filesystems.asked(), ["freeze /in", "freeze /"]);
        tokio::time::sleep(LIMIT - Duration::from_secs(1)).await;
        assert!(freezer.filesystems.is_frozen("/") && freezer.filesystems.is_frozen("/in"));
        tokio::time::sleep(Duration::from_secs(2)).await;
        settle(&freezer).await;
        assert_eq!(freezer.filesystems.asked(), ["thaw /", "thaw /in"]);
        assert!(!freezer.filesystems.is_frozen("/") && !freezer.filesystems.is_frozen("/in"));
    }

    /// Waits for a thaw that has begun.
    async fn settle(freezer: &Freezer<Arc<Imagined>>) {
        tokio::task::yield_now().await;
        drop(freezer.state.lock().await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_thaw_takes_its_time_limit_with_it() {
        let freezer = Imagined::with(TWO);
        freezer.freeze().await.unwrap();
        tokio::time::sleep(LIMIT / 2).await;
        freezer.thaw().await.unwrap();
        freezer.freeze().await.unwrap();
        tokio::time::sleep(LIMIT * 3 / 4).await;
        settle(&freezer).await;
        assert!(freezer.filesystems.is_frozen("/"));
        freezer.thaw().await.unwrap();
        freezer.filesystems.asked();
        tokio::time::sleep(LIMIT * 2).await;
        settle(&freezer).await;
        assert_eq!(freezer.filesystems.asked(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn thawing_what_is_not_frozen_is_fine_and_finds_what_others_froze() {
        let freezer = Imagined::with(TWO);
        freezer.thaw().await.unwrap();
        freezer.filesystems.frozen.lock().unwrap().insert("/".to_owned(), true);
        freezer.thaw().await.unwrap();
        assert!(!freezer.filesystems.is_frozen("/"));
        freezer.filesystems.fail("open /in", Errno::NOENT);
        freezer.thaw().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn its_own_is_thawed_without_asking_for_more_unless_that_failed_before() {
        let freezer = Imagined::with(TWO);
        freezer.filesystems.fail("thaw /", Errno::IO);
        freezer.thaw_own().await.unwrap();
        freezer.freeze().await.unwrap();
        freezer.thaw_own().await.unwrap_err();
        assert!(freezer.filesystems.is_frozen("/"));
        freezer.filesystems.failing.lock().unwrap().clear();
        freezer.thaw_own().await.unwrap();
        assert!(!freezer.filesystems.is_frozen("/"));
        freezer.filesystems.asked();
        freezer.thaw_own().await.unwrap();
        assert_eq!(freezer.filesystems.asked(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_frozen_is_left_out_and_what_is_frozen_taken_over() {
        let freezer = Imagined::with(TWO);
        freezer.filesystems.fail("freeze /in", Errno::OPNOTSUPP);
        freezer.filesystems.frozen.lock().unwrap().insert("/".to_owned(), true);
        freezer.freeze().await.unwrap();
        freezer.filesystems.asked();
        freezer.thaw().await.unwrap();
        assert_eq!(freezer.filesystems.asked(), ["thaw /"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_freeze_leaves_nothing_frozen() {
        let freezer = Imagined::with(TWO);
        freezer.filesystems.fail("freeze /", Errno::IO);
        let status = freezer.freeze().await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert!(status.message().contains("at /: "), "{}", status.message());
        assert_eq!(freezer.filesystems.asked(), ["sync", "freeze /in", "freeze /", "thaw /in"]);
        assert!(!freezer.filesystems.is_frozen("/in"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_freeze_that_fails_ends_the_first() {
        let freezer = Imagined::with(TWO);
        freezer.freeze().await.unwrap();
        for (what, error) in [("open /in", Errno::NOENT), ("open /in", Errno::ACCESS)] {
            freezer.filesystems.fail(what, error);
            let status = freezer.freeze().await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::FailedPrecondition);
            assert!(!freezer.filesystems.is_frozen("/") && !freezer.filesystems.is_frozen("/in"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_thaw_holds_up_no_other_and_is_tried_again() {
        let freezer = Imagined::with(TWO);
        freezer.freeze().await.unwrap();
        freezer.filesystems.fail("thaw /", Errno::IO);
        assert_eq!(freezer.thaw().await.unwrap_err().code(), tonic::Code::Internal);
        assert!(!freezer.filesystems.is_frozen("/in"));
        freezer.filesystems.failing.lock().unwrap().clear();
        freezer.thaw().await.unwrap();
        assert!(!freezer.filesystems.is_frozen("/"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_freeze_whose_call_is_dropped_still_ends_by_itself() {
        let freezer = Imagined::with(TWO);
        let in_its_way = freezer.state.lock().await;
        assert!(tokio::time::timeout(Duration::from_secs(1), freezer.freeze()).await.is_err());
        assert_eq!(freezer.filesystems.asked(), [""; 0]);
        drop(in_its_way);
        settle(&freezer).await;
        assert!(freezer.filesystems.is_frozen("/"));
        tokio::time::sleep(LIMIT + Duration::from_secs(1)).await;
        settle(&freezer).await;
        assert!(!freezer.filesystems.is_frozen("/"));
    }

    /// The kernel's own part, on a disk in a file: `cargo test -p roost-guest -- --ignored real_filesystem`.
    #[test]
    #[ignore = "needs root, mkfs.ext4 and loop devices"]
    fn a_real_filesystem_is_frozen_and_thawed() {
        let directory = tempfile::tempdir().unwrap();
        let (disk, top) = (directory.path().join("disk"), directory.path().join("top"));
        fs::create_dir(&top).unwrap();
        fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
        let run = |program: &str, arguments: &[&Path]| {
            assert!(std::process::Command::new(program).args(arguments).status().unwrap().success());
        };
        run("mkfs.ext4", &[Path::new("-q"), &disk]);
        run("mount", &[&disk, &top]);
        let find = || {
            let volumes = volumes(&Kernel.mounts().unwrap()).unwrap();
            volumes.into_iter().find(|volume| volume.path() == top)
        };
        let volume = find().unwrap();
        let open = Kernel.open(&volume).unwrap().unwrap();
        assert_eq!(Kernel.thaw(&open), Err(Errno::INVAL));
        assert_eq!(Kernel.freeze(&open), Ok(()));
        assert_eq!(Kernel.freeze(&open), Err(Errno::BUSY));
        let file = top.join("file");
        let writer = std::thread::spawn(move || fs::write(file, "late"));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!writer.is_finished());
        assert_eq!(Kernel.thaw(&open), Ok(()));
        writer.join().unwrap().unwrap();
        // Another mount over it hides it.
        run("mount", &[Path::new("-t"), Path::new("tmpfs"), Path::new("none"), &top]);
        assert!(Kernel.open(&volume).unwrap().is_none());
        run("umount", &[&top]);
        drop(open);
        run("umount", &[&top]);
        assert!(find().is_none());
    }
}
