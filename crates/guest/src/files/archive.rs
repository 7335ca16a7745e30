//! Directories as tar archives, both ways.

use std::{
    fs::{self, Metadata},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use bytes::{Buf, Bytes};
use roost_guest_proto::v1::{FileContent, FilePath, UnpackReply, WriteFileStart};
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;

use super::{
    CHUNK, Replier,
    error::FileError,
    owner::Owners,
    place::{Asked, Place},
    tree::{Directory, Entry, Exactly, Visit, walk},
    write::{self, Piece},
};

/// What is to be packed.
pub(super) struct Packing {
    asked: Asked,
    parent: Directory,
    entry: Entry,
}

impl Packing {
    pub(super) fn new(file: FilePath) -> Result<Self, FileError> {
        let asked = Asked::new(file)?;
        let failed = |source| FileError::Io { action: "read", path: asked.text(), source };
        // What a link leads to is packed, under that name.
        let real = asked.open()?.real;
        let place = asked.other_real(real).place()?;
        let parent = Directory::at(&place.directory).map_err(failed)?;
        let metadata = fs::symlink_metadata(place.path()).map_err(failed)?;
        Ok(Self { parent, entry: Entry { name: place.name, metadata }, asked })
    }

    pub(super) fn pack(self, replies: &Replier<FileContent>) -> Result<(), FileError> {
        let Self { asked, parent, entry } = self;
        let failed = |source| FileError::Io { action: "pack", path: asked.text(), source };
        let mut archive = Archive(Builder::new(BufWriter::with_capacity(CHUNK, Pieces(replies))));
        let path = PathBuf::from(&entry.name);
        archive.visit(&parent, &path, &entry)?;
        if entry.metadata.is_dir() {
            let directory = parent.child(&entry.name).map_err(failed)?;
            walk(&directory, &path, &mut archive)?;
        }
        archive.0.into_inner().and_then(|mut rest| rest.flush()).map_err(failed)
    }
}

/// Sends what is written to it.
struct Pieces<'a>(&'a Replier<FileContent>);

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let data = Bytes::copy_from_slice(bytes);
        let sent = self.0.send(FileContent { info: None, data });
        sent.map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error.to_string()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Archive<W: Write>(Builder<W>);

impl<W: Write> Visit for Archive<W> {
    fn visit(&mut self, directory: &Directory, path: &Path, entry: &Entry) -> Result<bool, FileError> {
        match self.append(directory, path, entry) {
            // Gone, or another kind of thing by now.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
                Ok(false)
            }
            Err(source) => Err(FileError::Io { action: "pack", path: path.display().to_string(), source }),
            Ok(()) => Ok(true),
        }
    }
}

impl<W: Write> Archive<W> {
    fn append(&mut self, directory: &Directory, path: &Path, entry: &Entry) -> io::Result<()> {
        let metadata = &entry.metadata;
        if metadata.is_dir() {
            let mut header = header(metadata, EntryType::Directory, 0);
            // Its slash says to all readers what it is.
            return self.0.append_data(&mut header, path.join(""), io::empty());
        }
        if metadata.is_symlink() {
            let target = fs::read_link(directory.path(&entry.name))?;
            let mut header = header(metadata, EntryType::Symlink, 0);
            return self.0.append_link(&mut header, path, target);
        }
        if metadata.is_file() {
            let file = directory.file(&entry.name)?;
            let metadata = file.metadata()?;
            let mut header = header(&metadata, EntryType::Regular, metadata.len());
            let content = io::BufReader::with_capacity(CHUNK, file);
            return self.0.append_data(&mut header, path, Exactly::new(content, metadata.len()));
        }
        // A socket, a device: nothing that could be packed.
        Ok(())
    }
}

fn header(metadata: &Metadata, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    // Tar knows no time before 1970.
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or_default());
    header.set_size(size);
    header
}

/// Unpacks into a directory, which is made if it is not there. What a program in the computer changes meanwhile leads
/// nowhere else: every name is looked at again.
pub(super) fn unpack(
    start: WriteFileStart,
    owners: &Owners,
    pieces: mpsc::Receiver<Piece>,
) -> Result<UnpackReply, FileError> {
    let base = Asked::new(start.file.unwrap_or_default())?;
    write::ensure_directory(&base, owners)?;
    let broken = |error: io::Error| FileError::Archive(error.to_string());
    let mut archive = tar::Archive::new(Incoming { pieces, rest: Bytes::new(), is_whole: false });
    let mut entries = 0;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let Some(relative) = inside(&entry.path().map_err(broken)?)? else { continue };
        unpack_one(&mut entry, &base.below(&relative)?, owners)?;
        entries += 1;
    }
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(broken)?;
    Ok(UnpackReply { entries })
}

fn unpack_one(entry: &mut tar::Entry<'_, Incoming>, asked: &Asked, owners: &Owners) -> Result<(), FileError> {
    let failed = |source| FileError::Io { action: "unpack", path: asked.text(), source };
    let mode = entry.header().mode().unwrap_or(0o644);
    let kind = entry.header().entry_type();
    match kind {
        EntryType::Directory => {
            write::ensure_directory(asked, owners)?;
            let opened = asked.open()?;
            let mode = rustix::fs::Mode::from_raw_mode(mode & 0o7777);
            rustix::fs::chmod(opened.path(), mode).map_err(|error| failed(error.into()))
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            write::make_parents(asked, owners)?;
            let place = asked.target()?;
            let owner = owners.of_new(&place).map_err(failed)?;
            let (length, time) = (entry.size(), entry.header().mtime().unwrap_or_default());
            write::put(&place, owner, mode, entry, Some(length)).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    FileError::Archive("it ends in the middle of a file".to_owned())
                }
                _ => failed(error),
            })?;
            set_time(&place, time);
            Ok(())
        }
        EntryType::Symlink => {
            let target = entry.link_name().map_err(failed)?;
            let target = target.ok_or_else(|| FileError::Archive("a link that leads nowhere".to_owned()))?;
            write::make_parents(asked, owners)?;
            let place = asked.place()?;
            match fs::remove_file(place.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            std::os::unix::fs::symlink(target, place.path()).map_err(failed)?;
            owners.of_new(&place).and_then(|owner| owner.give_name(&place.path())).map_err(failed)
        }
        other => Err(FileError::Archive(format!(
            "{} is a {other:?}; only files, directories and symbolic links can be unpacked",
            asked.text()
        ))),
    }
}

fn set_time(place: &Place, seconds: u64) {
    use rustix::fs::{AtFlags, Timespec, Timestamps};
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    // The content is what matters; a filesystem may not know such times.
    let _unknown = rustix::fs::utimensat(&place.directory, &place.name, &times, AtFlags::SYMLINK_NOFOLLOW);
}

/// A name from an archive as one below the directory; `None` for the directory itself.
fn inside(path: &Path) -> Result<Option<PathBuf>, FileError> {
    let mut names = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(FileError::Archive(format!("{path:?} leads out of the archive")));
            }
        }
    }
    Ok((!names.as_os_str().is_empty()).then_some(names))
}

/// The pieces of a call as something to read. Their end without a finish is an error, not an end.
struct Incoming {
    pieces: mpsc::Receiver<Piece>,
    rest: Bytes,
    is_whole: bool,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.is_whole {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.rest = data,
                Some(Piece::Finish) => self.is_whole = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the call ended before it")),
            }
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest.advance(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_archives_stay_inside() {
        let name = |path: &str| inside(Path::new(path));
        assert_eq!(name("a/./b//c").unwrap().as_deref(), Some(Path::new("a/b/c")));
        assert_eq!(name("./").unwrap(), None);
        for path in ["/etc/passwd", "../x", "a/../../x"] {
            assert!(name(path).is_err(), "{path}");
        }
    }
}
