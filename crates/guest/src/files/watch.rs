//! What changes in a directory, from inotify.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use roost_guest_proto::v1::{FileChange, FileEvent, WatchFilesRequest};
use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};
use tokio::io::unix::AsyncFd;
use tonic::Status;

use super::{
    error::FileError,
    open_directory,
    place::{Asked, proc_path},
    tree::Directory,
};
use crate::{descriptor, events::Source};

/// Directories that one call watches.
const MOST: usize = 4096;

pub(super) struct Watch {
    asked: Asked,
    inotify: AsyncFd<OwnedFd>,
    root: Directory,
    /// Where each watch is, below the root.
    directories: HashMap<i32, PathBuf>,
    recursive: bool,
}

impl Source for Watch {
    type Event = FileEvent;

    async fn next(&mut self) -> Result<Vec<FileEvent>, Status> {
        let changed = self.changed().await;
        changed.map_err(|source| FileError::Io { action: "watch", path: self.asked.text(), source }.into())
    }
}

impl Watch {
    pub(super) fn new(request: WatchFilesRequest) -> Result<Self, FileError> {
        let (asked, _, root) = open_directory(request.directory.unwrap_or_default())?;
        let begin = || -> io::Result<AsyncFd<OwnedFd>> {
            descriptor::watch(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?)
        };
        let failed = |source| FileError::Io { action: "watch", path: asked.text(), source };
        let inotify = begin().map_err(failed)?;
        let mut watch =
            Self { inotify, root, directories: HashMap::new(), recursive: request.recursive, asked };
        let begun = watch.root.child(OsStr::new(".")).and_then(|root| watch.add(&root, Path::new("")));
        match begun {
            Ok(()) => Ok(watch),
            Err(source) => Err(FileError::Io { action: "watch", path: watch.asked.text(), source }),
        }
    }

    /// The watch before the look, so that nothing is missed in between.
    fn add(&mut self, directory: &Directory, path: &Path) -> io::Result<()> {
        if self.directories.len() >= MOST {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                format!("more than {MOST} directories"),
            ));
        }
        let flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        let number = inotify::add_watch(self.inotify.get_ref(), proc_path(directory.descriptor()), flags)?;
        self.directories.insert(number, path.to_owned());
        if self.recursive {
            for entry in directory.entries()? {
                if entry.metadata.is_dir()
                    && let Ok(child) = directory.child(&entry.name)
                {
                    self.add(&child, &path.join(&entry.name))?;
                }
            }
        }
        Ok(())
    }

    async fn changed(&mut self) -> io::Result<Vec<FileEvent>> {
        loop {
            let raw = {
                let mut ready = self.inotify.readable().await?;
                let raw = read(self.inotify.get_ref())?;
                if raw.is_empty() {
                    ready.clear_ready();
                }
                raw
            };
            let events: Vec<FileEvent> = raw.into_iter().flat_map(|raw| self.events_of(raw)).collect();
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    fn events_of(&mut self, raw: Raw) -> Vec<FileEvent> {
        if raw.flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return vec![self.event(FileChange::Overflow, Path::new(""), true)];
        }
        let Some(directory) = self.directories.get(&raw.watch).cloned() else { return Vec::new() };
        if raw.flags.contains(ReadFlags::IGNORED) {
            self.directories.remove(&raw.watch);
            return Vec::new();
        }
        let Some(name) = raw.name else { return Vec::new() };
        let path = directory.join(OsStr::from_bytes(&name));
        let is_directory = raw.flags.contains(ReadFlags::ISDIR);
        let kinds = [
            (ReadFlags::CREATE, FileChange::Created),
            (ReadFlags::MODIFY, FileChange::Modified),
            (ReadFlags::DELETE, FileChange::Deleted),
            (ReadFlags::MOVED_FROM, FileChange::MovedFrom),
            (ReadFlags::MOVED_TO, FileChange::MovedTo),
            (ReadFlags::ATTRIB, FileChange::Attributes),
        ];
        let kind = kinds.into_iter().find(|(flag, _)| raw.flags.contains(*flag));
        let Some((flag, change)) = kind else { return Vec::new() };
        let mut events = vec![self.event(change, &path, is_directory)];
        let is_new = flag == ReadFlags::CREATE || flag == ReadFlags::MOVED_TO;
        if self.recursive && is_directory && is_new {
            events.extend(self.enter(&path));
        }
        events
    }

    /// Watches a new directory. What is in it already came before its watch, and is told now.
    fn enter(&mut self, path: &Path) -> Vec<FileEvent> {
        let mut open = self.root.child(OsStr::new("."));
        for name in path {
            open = open.and_then(|directory| directory.child(name));
        }
        // Gone again, most likely.
        let Ok(directory) = open else { return Vec::new() };
        if let Err(error) = self.add(&directory, path) {
            tracing::debug!(%error, "a new directory is not watched");
            return vec![self.event(FileChange::Overflow, path, true)];
        }
        let entries = directory.entries().unwrap_or_default();
        let event = |entry: &super::tree::Entry| {
            self.event(FileChange::Created, &path.join(&entry.name), entry.metadata.is_dir())
        };
        entries.iter().map(event).collect()
    }

    fn event(&self, change: FileChange, path: &Path, is_directory: bool) -> FileEvent {
        let path = Path::new(&self.asked.text()).join(path).to_string_lossy().into_owned();
        FileEvent { change: change.into(), path, is_directory }
    }
}

struct Raw {
    watch: i32,
    flags: ReadFlags,
    name: Option<Vec<u8>>,
}

/// What there is now; nothing where that is nothing.
fn read(inotify: &OwnedFd) -> io::Result<Vec<Raw>> {
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut reader = Reader::new(inotify, &mut buffer);
    let mut events = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => events.push(Raw {
                watch: event.wd(),
                flags: event.events(),
                name: event.file_name().map(|name| name.to_bytes().to_vec()),
            }),
            Err(Errno::AGAIN) => return Ok(events),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // One buffer at a time: a directory that changes all the time must not keep us here.
        if reader.is_buffer_empty() {
            return Ok(events);
        }
    }
}
