//! Reads the files in a frozen disk, without a virtual machine.
//!
//! ```text
//! Filesystem          paths, listings, files
//!  |- archive         folders as tar
//!  `- ext4            the filesystem, as it is once its journal is applied
//!      `- disk        qcow2 layers, one on top of the other, as one disk
//!          `- qcow2   one layer
//! ```
//!
//! A disk is what `disk.qcow2` of a computer is: layers of qcow2 with a template at the bottom and one ext4
//! filesystem, without partitions, on the whole. None of it is trusted. The filesystem was written by a guest, and
//! the qcow2 files by a QEMU that a guest may have broken out of: damaged or hostile bytes give an error or
//! wrong bytes of the same disk, never another file of the host, a panic, or work without end.
//!
//! Everything is read while it is asked for, and nothing is ever written. The layers must not be
//! written to while a [`Filesystem`] has them open; replacing one by `rename` is fine. All calls block.

mod archive;
mod bytes;
mod disk;
mod error;
mod ext4;
mod qcow2;

use std::{io::Write, ops::ControlFlow};

use camino::Utf8Path;

pub use archive::TarLimits;
pub use error::{BrowseError, Quantity};
pub use ext4::{Kind, check_path};

use ext4::{FileReader, Found, Inode, Volume, Work};

/// Bytes of a file that are in memory at a time.
const CHUNK: u64 = 256 << 10;
/// Names in one folder that a listing can have.
const ENTRIES: u64 = 100_000;

/// The filesystem of one disk. It can be used from many threads.
#[derive(Debug)]
pub struct Filesystem {
    volume: Volume,
}

/// A file, a folder or something else with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// With U+FFFD for what is not UTF-8.
    pub name: String,
    /// Absolute. It can be given back to [`Filesystem`], even if the name is not UTF-8.
    pub path: String,
    pub kind: Kind,
    /// Bytes: of a file its content, of a symlink its target, of a folder its list of names.
    pub size: u64,
    /// Permissions, like `0o755`; no type.
    pub mode: u32,
}

impl Filesystem {
    /// Opens the disk whose newest layer is `disk`. Every layer must be in or below one of the directories
    /// `allowed`, and should be the only thing there that may be read: a hostile layer can choose any qcow2
    /// file in them as the one below it.
    pub fn open(disk: &Utf8Path, allowed: &[&Utf8Path]) -> Result<Self, BrowseError> {
        Ok(Self { volume: Volume::open(disk::Disk::open(disk, allowed)?)? })
    }

    /// What is in the folder `path`, by name. Symlinks in it are not followed.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>, BrowseError> {
        let mut work = Work::default();
        let found = self.volume.find(path, &mut work)?;
        if found.inode.kind != Kind::Directory {
            return Err(BrowseError::NotADirectory { path: path.to_owned() });
        }
        let mut names = Vec::new();
        self.volume.entries::<()>(&found.inode, path, &mut work, |number, name| {
            if names.len() as u64 == ENTRIES {
                let what = Quantity::Entries;
                return Err(BrowseError::TooLarge { path: path.to_owned(), what, limit: ENTRIES });
            }
            names.push((name.to_vec(), number));
            Ok(ControlFlow::Continue(()))
        })?;
        names.sort_unstable();
        let folder = display_path(path, &found);
        let folder = if folder == "/" { "" } else { &folder };
        names
            .into_iter()
            .map(|(name, number)| {
                let name = String::from_utf8_lossy(&name).into_owned();
                let path = format!("{folder}/{name}");
                Ok(entry(&self.volume.inode(number)?, name, path))
            })
            .collect()
    }

    /// What `path` leads to, symlinks followed.
    pub fn metadata(&self, path: &str) -> Result<Entry, BrowseError> {
        let found = self.volume.find(path, &mut Work::default())?;
        let path = display_path(path, &found);
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(entry(&found.inode, name, path))
    }

    /// Writes the content of the file `path` and tells how many bytes that were. A file of more than `limit` bytes
    /// is an error before the first one.
    pub fn read(&self, path: &str, limit: u64, write: &mut dyn Write) -> Result<u64, BrowseError> {
        let Found { inode, .. } = self.volume.find(path, &mut Work::default())?;
        match inode.kind {
            Kind::File => {}
            Kind::Directory => return Err(BrowseError::IsADirectory { path: path.to_owned() }),
            Kind::Symlink | Kind::Other => {
                let reason = "it is a device, a socket or a pipe";
                return Err(BrowseError::InvalidPath { path: path.to_owned(), reason });
            }
        }
        if inode.size > limit {
            return Err(BrowseError::TooLarge { path: path.to_owned(), what: Quantity::Bytes, limit });
        }
        let mut reader = FileReader::new(&self.volume, &inode)?;
        let mut buffer = vec![0; bytes::at_most(CHUNK.min(inode.size), 1 << 20)];
        loop {
            match reader.fill(&mut buffer)? {
                0 => return Ok(inode.size),
                count => write.write_all(&buffer[..count]).map_err(|source| BrowseError::Write { source })?,
            }
        }
    }

    /// Writes a tar archive of the folder `path`: files, folders and symlinks, nothing else. Their names begin
    /// with the name of the folder; those in the root have nothing before them. A folder beyond
    /// `limits` is an error before the first byte.
    pub fn tar(&self, path: &str, limits: TarLimits, write: &mut dyn Write) -> Result<(), BrowseError> {
        let mut work = Work::default();
        let found = self.volume.find(path, &mut work)?;
        if found.inode.kind != Kind::Directory {
            return Err(BrowseError::NotADirectory { path: path.to_owned() });
        }
        // The name that was asked for, which may be that of a symlink; of `..` there is only the real one.
        let asked = names(path).next_back().filter(|name| *name != "..");
        let base = match (asked, found.names.last()) {
            // Whatever leads to the root, the root has no name.
            (_, None) => &[],
            (Some(asked), Some(_)) if !asked.contains(char::REPLACEMENT_CHARACTER) => asked.as_bytes(),
            (_, Some(real)) => real.as_slice(),
        };
        archive::write(&self.volume, &found, base, path, &mut work, limits, write)
    }
}

fn entry(inode: &Inode, name: String, path: String) -> Entry {
    Entry { name, path, kind: inode.kind, size: inode.size, mode: inode.mode }
}

fn names(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|name| !matches!(*name, "" | "."))
}

/// `path` in its shortest form. Where it goes back, only the way that was really taken is right.
fn display_path(path: &str, found: &Found) -> String {
    if names(path).any(|name| name == "..") {
        let names: Vec<_> = found.names.iter().map(|name| String::from_utf8_lossy(name)).collect();
        return format!("/{}", names.join("/"));
    }
    format!("/{}", names(path).collect::<Vec<_>>().join("/"))
}
