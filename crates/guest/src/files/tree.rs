//! Directories with everything in them: walked by descriptors, so that nobody can lead us out half-way.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStringExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use super::{
    error::FileError,
    owner::Owners,
    place::{Asked, Place, proc_path},
    write,
};

/// Each level holds a descriptor.
const DEEPEST: usize = 200;

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory(OwnedFd);

/// A name in a directory, and what is there.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: OsString,
    pub(super) metadata: fs::Metadata,
}

impl Directory {
    pub(super) fn at(place: &impl AsFd) -> io::Result<Self> {
        Ok(Self(open(place, OsStr::new("."), OFlags::RDONLY | OFlags::DIRECTORY)?))
    }

    pub(super) fn child(&self, name: &OsStr) -> io::Result<Self> {
        Ok(Self(open(&self.0, name, OFlags::RDONLY | OFlags::DIRECTORY)?))
    }

    /// For reading; something else than a file is refused, not waited for.
    pub(super) fn file(&self, name: &OsStr) -> io::Result<File> {
        let file = File::from(open(&self.0, name, OFlags::RDONLY | OFlags::NONBLOCK)?);
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(file)
    }

    pub(super) fn path(&self, name: &OsStr) -> PathBuf {
        proc_path(&self.0).join(name)
    }

    pub(super) fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.0)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    }

    /// What there is, in the order of names; what goes while we look is left out.
    pub(super) fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut names = self.names()?;
        names.sort_unstable();
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            match fs::symlink_metadata(self.path(&name)) {
                Ok(metadata) => entries.push(Entry { name, metadata }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.0
    }
}

/// One name, not followed.
fn open(directory: &impl AsFd, name: &OsStr, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?)
}

/// What a walk does with each entry below a directory. Directories come before what is in them.
pub(super) trait Visit {
    /// `path` is relative to where the walk began; `Ok(false)` leaves out what is in a directory.
    fn visit(&mut self, directory: &Directory, path: &Path, entry: &Entry) -> Result<bool, FileError>;
}

pub(super) fn walk(directory: &Directory, path: &Path, visit: &mut dyn Visit) -> Result<(), FileError> {
    descend(directory, path, visit, 0)
}

fn descend(directory: &Directory, path: &Path, visit: &mut dyn Visit, depth: usize) -> Result<(), FileError> {
    let failed =
        |path: &Path, source| FileError::Io { action: "read", path: path.display().to_string(), source };
    if depth > DEEPEST {
        return Err(FileError::TooDeep(path.display().to_string()));
    }
    for entry in directory.entries().map_err(|error| failed(path, error))? {
        let path = path.join(&entry.name);
        if visit.visit(directory, &path, &entry)? && entry.metadata.is_dir() {
            match directory.child(&entry.name) {
                Ok(child) => descend(&child, &path, visit, depth + 1)?,
                // Gone, or another kind of thing by now.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(failed(&path, error)),
            }
        }
    }
    Ok(())
}

/// Copies a file, a link, or a directory with everything in it. Files are whole or not there.
pub(super) fn copy(from: &Asked, to: &Asked, recursive: bool, owners: &Owners) -> Result<(), FileError> {
    let source = from.place()?;
    let failed = |action, path: &Asked| {
        let path = path.text();
        move |source| FileError::Io { action, path, source }
    };
    let metadata = fs::symlink_metadata(source.path()).map_err(failed("look at", from))?;
    write::make_parents(to, owners)?;
    if metadata.is_dir() {
        if !recursive {
            return Err(FileError::IsDirectory(from.text()));
        }
        let target = to.place()?;
        if target.real().starts_with(source.real()) {
            return Err(FileError::IntoItself { from: from.text() });
        }
        if fs::symlink_metadata(target.path()).is_ok() {
            return Err(FileError::Exists(to.text()));
        }
        let directory = Directory::at(&source.directory)
            .and_then(|directory| directory.child(&source.name))
            .map_err(failed("open", from))?;
        return copy_directory(&directory, &target, &metadata, owners, to, 0);
    }
    let target = to.target()?;
    let directory = Directory::at(&source.directory).map_err(failed("open", from))?;
    let entry = Entry { name: source.name.clone(), metadata };
    copy_leaf(&directory, &entry, &target, owners).map_err(failed("copy to", to))
}

fn copy_leaf(directory: &Directory, entry: &Entry, target: &Place, owners: &Owners) -> io::Result<()> {
    let owner = owners.of_new(target)?;
    if entry.metadata.is_symlink() {
        let link = fs::read_link(directory.path(&entry.name))?;
        std::os::unix::fs::symlink(link, target.path())?;
        return owner.give_name(&target.path());
    }
    let mut file = directory.file(&entry.name)?;
    write::put(target, owner, entry.metadata.mode(), &mut file, None)
}

fn copy_directory(
    from: &Directory,
    to: &Place,
    metadata: &fs::Metadata,
    owners: &Owners,
    asked: &Asked,
    depth: usize,
) -> Result<(), FileError> {
    let failed = |source| FileError::Io { action: "copy to", path: asked.text(), source };
    if depth > DEEPEST {
        return Err(FileError::TooDeep(asked.text()));
    }
    fs::create_dir(to.path()).map_err(failed)?;
    let made = Directory::at(&to.directory).and_then(|parent| parent.child(&to.name)).map_err(failed)?;
    owners.of_new(to).and_then(|owner| owner.give(made.descriptor())).map_err(failed)?;
    for entry in from.entries().map_err(failed)? {
        let place = Place {
            directory: made.descriptor().try_clone().map_err(failed)?,
            real: to.real(),
            name: entry.name.clone(),
        };
        if entry.metadata.is_dir() {
            let child = from.child(&entry.name).map_err(failed)?;
            copy_directory(&child, &place, &entry.metadata, owners, asked, depth + 1)?;
        } else if entry.metadata.is_file() || entry.metadata.is_symlink() {
            copy_leaf(from, &entry, &place, owners).map_err(failed)?;
        }
    }
    // Last: a directory that may not be written to could not be filled.
    let mode = Mode::from_raw_mode(metadata.mode() & 0o7777);
    rustix::fs::fchmod(made.descriptor(), mode).map_err(|error| failed(error.into()))
}

/// Removes whatever the name is, a directory with everything in it.
pub(super) fn remove(asked: &Asked) -> Result<(), FileError> {
    let place = asked.place()?;
    if asked.is_root(&place.real()) {
        return Err(FileError::Root(asked.text()));
    }
    let remove = || {
        if fs::symlink_metadata(place.path())?.is_dir() {
            fs::remove_dir_all(place.path())
        } else {
            fs::remove_file(place.path())
        }
    };
    remove().map_err(|source| FileError::Io { action: "remove", path: asked.text(), source })
}

/// Gives a file or directory another name, also on another filesystem.
pub(super) fn rename(from: &Asked, to: &Asked, owners: &Owners) -> Result<(), FileError> {
    let source = from.place()?;
    if from.is_root(&source.real()) {
        return Err(FileError::Root(from.text()));
    }
    let failed = |error| FileError::Io { action: "rename", path: from.text(), source: error };
    fs::symlink_metadata(source.path()).map_err(failed)?;
    write::make_parents(to, owners)?;
    let target = to.place()?;
    if target.real() != source.real() && target.real().starts_with(source.real()) {
        return Err(FileError::IntoItself { from: from.text() });
    }
    match fs::rename(source.path(), target.path()) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy(from, to, true, owners)?;
            remove(from)
        }
        renamed => renamed.map_err(failed),
    }
}

/// Exactly `length` bytes, whatever becomes of the file meanwhile.
pub(super) struct Exactly<R> {
    inner: R,
    left: u64,
    has_ended: bool,
}

impl<R> Exactly<R> {
    pub(super) fn new(inner: R, length: u64) -> Self {
        Self { inner, left: length, has_ended: false }
    }
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..most];
        let mut count = 0;
        if !self.has_ended && most > 0 {
            count = self.inner.read(buffer)?;
            self.has_ended = count == 0;
        }
        if self.has_ended {
            buffer.fill(0);
            count = most;
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_shrinks_or_grows_is_as_long_as_it_was() {
        for (content, length, expected) in
            [(&b"abc"[..], 3, &b"abc"[..]), (b"abcdef", 3, b"abc"), (b"a", 3, b"a\0\0"), (b"", 0, b"")]
        {
            let mut read = Vec::new();
            Exactly::new(content, length).read_to_end(&mut read).unwrap();
            assert_eq!(read, expected);
        }
    }
}
