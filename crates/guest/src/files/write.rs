//! Writing files: beside their place first, and into it when they are whole.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use roost_guest_proto::v1::{MakeDirectoryRequest, UploadStateRequest, WriteFileReply, WriteFileStart};
use rustix::fs::{FlockOperation, OFlags};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    error::FileError,
    info,
    owner::{Owner, Owners},
    place::{Asked, Place, proc_path},
};

const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
const MODE_BITS: u32 = 0o7777;
/// What the names of unfinished files end with.
const PART: &str = ".roost-part";
/// An upload that nobody goes on with for so long is given up.
const STALE: Duration = Duration::from_secs(48 * 3600);

/// What comes after the start of a call that writes.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    Finish,
}

/// Writes a file, or goes on with an upload. Blocks.
pub(super) fn write(
    start: WriteFileStart,
    owners: &Owners,
    pieces: &mut mpsc::Receiver<Piece>,
) -> Result<WriteFileReply, FileError> {
    let asked = Asked::new(start.file.unwrap_or_default())?;
    if start.make_directories {
        make_parents(&asked, owners)?;
    }
    let place = asked.target()?;
    let failed = |action| {
        let path = asked.text();
        move |source| FileError::Io { action, path, source }
    };
    let before = fs::symlink_metadata(place.path()).ok().filter(Metadata::is_file);
    let owner = match &before {
        Some(before) => Owner::of(before),
        None => owners.of_new(&place).map_err(failed("look at the directory of"))?,
    };
    let mode = start.mode.or_else(|| before.map(|before| before.mode())).unwrap_or(FILE_MODE) & MODE_BITS;

    let mut part = match start.upload.as_str() {
        "" => Part::new(&place).map_err(failed("begin"))?,
        upload => Part::of_upload(&place, upload, start.offset, &asked)?,
    };
    let mut is_whole = false;
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Piece::Data(data) => {
                part.length += data.len() as u64;
                if start.total.is_some_and(|total| part.length > total) {
                    part.is_kept = false;
                    return Err(FileError::TooMuch);
                }
                part.file.write_all(&data).map_err(failed("write"))?;
            }
            Piece::Finish => {
                is_whole = true;
                break;
            }
        }
    }
    let is_complete = start.total.is_none_or(|total| part.length == total);
    if !is_whole {
        return Err(FileError::Incomplete);
    }
    if !is_complete {
        if !part.is_kept {
            return Err(FileError::Incomplete);
        }
        return Ok(WriteFileReply { file: None, received: part.length });
    }
    let received = part.length;
    if let Some(time) = start.modified_ns {
        set_time(&part.file, time).map_err(failed("set the time of"))?;
    }
    part.put(&place, owner, mode).map_err(failed("write"))?;
    let metadata = fs::symlink_metadata(place.path()).map_err(failed("look at"))?;
    Ok(WriteFileReply { file: Some(info(&place.name, &place.path(), &metadata)), received })
}

/// When it was changed, in nanoseconds since the Unix epoch.
fn set_time(file: &File, time: i64) -> io::Result<()> {
    let since = Duration::from_nanos(time.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let time = if time < 0 { epoch.checked_sub(since) } else { epoch.checked_add(since) };
    file.set_modified(time.ok_or(io::ErrorKind::InvalidInput)?)
}

/// A file with this content, which must be so long where that is known.
pub(super) fn put(
    place: &Place,
    owner: Owner,
    mode: u32,
    content: &mut dyn io::Read,
    length: Option<u64>,
) -> io::Result<()> {
    let mut part = Part::new(place)?;
    let copied = io::copy(content, &mut part.file)?;
    if length.is_some_and(|length| copied != length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    part.put(place, owner, mode & MODE_BITS)
}

/// How far an upload is.
pub(super) fn upload_state(request: UploadStateRequest) -> Result<u64, FileError> {
    let asked = Asked::new(request.file.unwrap_or_default())?;
    let name = part_name(&request.upload)?;
    let place = match asked.target() {
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(0),
        place => place?,
    };
    let path = proc_path(&place.directory).join(name);
    let received = match fs::symlink_metadata(&path) {
        Ok(metadata) if is_ours(&metadata) => metadata.len(),
        Ok(_) | Err(_) => return Ok(0),
    };
    if request.discard {
        let removed = fs::remove_file(path);
        removed.map_err(|source| FileError::Io {
            action: "remove the upload of",
            path: asked.text(),
            source,
        })?;
        return Ok(0);
    }
    Ok(received)
}

/// A file on its way. What it has is removed when it is dropped before it was put into its place, unless it is kept.
#[derive(Debug)]
struct Part {
    file: File,
    path: PathBuf,
    length: u64,
    is_kept: bool,
    is_placed: bool,
}

impl Part {
    fn new(place: &Place) -> io::Result<Self> {
        let name = OsString::from(format!(".{}{PART}", Uuid::new_v4()));
        let path = proc_path(&place.directory).join(name);
        let file = options().create_new(true).open(&path)?;
        Ok(Self { file, path, length: 0, is_kept: false, is_placed: false })
    }

    fn of_upload(place: &Place, upload: &str, offset: u64, asked: &Asked) -> Result<Self, FileError> {
        let failed =
            |source| FileError::Io { action: "go on with the upload of", path: asked.text(), source };
        let path = proc_path(&place.directory).join(part_name(upload)?);
        let file = match options().create_new(true).open(&path) {
            Ok(file) => {
                remove_stale(place);
                file
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                options().open(&path).map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        };
        if !is_ours(&file.metadata().map_err(failed)?) {
            return Err(failed(io::ErrorKind::PermissionDenied.into()));
        }
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(FileError::InUse),
            Err(error) => return Err(failed(error.into())),
        }
        let length = file.metadata().map_err(failed)?.len();
        let part = Self { file, path, length, is_kept: true, is_placed: false };
        if length != offset {
            return Err(FileError::Offset { received: length });
        }
        rustix::fs::seek(&part.file, rustix::fs::SeekFrom::End(0)).map_err(|error| failed(error.into()))?;
        Ok(part)
    }

    fn put(mut self, place: &Place, owner: Owner, mode: u32) -> io::Result<()> {
        owner.give(&self.file)?;
        // After the owner: giving a file away takes some bits from it.
        self.file.set_permissions(Permissions::from_mode(mode))?;
        // Else a crash could leave the new name and none of the content.
        self.file.sync_data()?;
        fs::rename(&self.path, place.path())?;
        self.is_placed = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.is_kept && !self.is_placed {
            // It may be gone with its directory.
            drop(fs::remove_file(&self.path));
        }
    }
}

fn options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    options.write(true).mode(0o600).custom_flags(flags.bits().cast_signed());
    options
}

/// Somebody else's file under our name is not written to.
fn is_ours(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.nlink() == 1 && metadata.uid() == rustix::process::geteuid().as_raw()
}

fn part_name(upload: &str) -> Result<String, FileError> {
    let is_plain = upload.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if is_plain && (8..=64).contains(&upload.len()) {
        Ok(format!(".{upload}{PART}"))
    } else {
        Err(FileError::Upload(upload.to_owned()))
    }
}

/// Uploads that were begun and forgotten.
fn remove_stale(place: &Place) {
    let Ok(entries) = fs::read_dir(proc_path(&place.directory)) else { return };
    let is_stale = |metadata: &Metadata| {
        let age = metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        is_ours(metadata) && age.is_some_and(|age| age > STALE)
    };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().ends_with(PART.as_bytes())
            && entry.metadata().is_ok_and(|metadata| is_stale(&metadata))
        {
            // Whoever goes on with it now keeps it open and loses nothing but its name.
            drop(fs::remove_file(entry.path()));
        }
    }
}

/// Makes the directories that `asked` is in.
pub(super) fn make_parents(asked: &Asked, owners: &Owners) -> Result<(), FileError> {
    match asked.parent() {
        Some(parent) => make_directories(&parent, owners, DIRECTORY_MODE),
        None => Ok(()),
    }
}

/// The directory itself, and those it is in.
pub(super) fn ensure_directory(asked: &Asked, owners: &Owners) -> Result<(), FileError> {
    make_directories(asked, owners, DIRECTORY_MODE)
}

fn make_directories(asked: &Asked, owners: &Owners, mode: u32) -> Result<(), FileError> {
    match asked.open() {
        Ok(opened) if opened.metadata.is_dir() => return Ok(()),
        Ok(_) => return Err(FileError::NotADirectory(asked.text())),
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(parent) = asked.parent() {
        make_directories(&parent, owners, DIRECTORY_MODE)?;
    }
    match make_one(asked, owners, mode) {
        // Somebody else was faster.
        Err(FileError::Exists(_)) => Ok(()),
        made => made,
    }
}

fn make_one(asked: &Asked, owners: &Owners, mode: u32) -> Result<(), FileError> {
    let failed = |source| FileError::Io { action: "make", path: asked.text(), source };
    let place = asked.place()?;
    let owner = owners.of_new(&place).map_err(failed)?;
    match fs::create_dir(place.path()) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(FileError::Exists(asked.text()));
        }
        Err(error) => return Err(failed(error)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(&place.directory, &place.name, flags, rustix::fs::Mode::empty());
    let made = made.map_err(|error| failed(error.into()))?;
    owner.give(&made).map_err(failed)?;
    rustix::fs::fchmod(&made, rustix::fs::Mode::from_raw_mode(mode & MODE_BITS))
        .map_err(|error| failed(error.into()))
}

/// One directory, and those it is in where that is wanted.
pub(super) fn make_directory(request: MakeDirectoryRequest, owners: &Owners) -> Result<Asked, FileError> {
    let asked = Asked::new(request.directory.unwrap_or_default())?;
    let mode = request.mode.unwrap_or(DIRECTORY_MODE);
    if request.recursive {
        make_directories(&asked, owners, mode)?;
    } else {
        make_one(&asked, owners, mode)?;
    }
    Ok(asked)
}
