//! What is kept beside the machines: layers of disks and the memory of snapshots. Files only; which of them are
//! needed is the control plane's to know.
//!
//! Everything appears under its name by one rename when it is complete, readable for every machine and changed
//! by none. Directories can be passed and not listed: a machine finds what it is told the name of.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use roost_api::{LayerId, SnapshotId};
use roost_machine_proto::{CONSOLE_FILE, DISK_FILE, MEMORY_DIRECTORY};

use crate::local::{file, read_dir, sync};
use crate::{LaunchError, Stored};

const SUFFIX: &str = ".qcow2";
/// Where two layers are being merged.
const MERGING: &str = ".merging";

/// How much is copied at once.
const PIECE: u64 = 64 << 20;

#[derive(Debug)]
pub(crate) struct Storage {
    pub(crate) layers: Utf8PathBuf,
    pub(crate) snapshots: Utf8PathBuf,
}

impl Storage {
    /// `shared`: machines run as other users than this process.
    pub(crate) fn open(data: &Utf8Path, shared: bool) -> Result<Self, LaunchError> {
        let storage = Self { layers: data.join("layers"), snapshots: data.join("snapshots") };
        for directory in [&storage.layers, &storage.snapshots] {
            std::fs::create_dir_all(directory).map_err(file("make", directory))?;
            let mode = if shared { 0o711 } else { 0o700 };
            std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode))
                .map_err(file("set the permissions of", directory))?;
        }
        Ok(storage)
    }

    pub(crate) fn layer(&self, layer: LayerId) -> Utf8PathBuf {
        self.layers.join(format!("{layer}{SUFFIX}"))
    }

    pub(crate) fn snapshot(&self, snapshot: SnapshotId) -> Utf8PathBuf {
        self.snapshots.join(snapshot.to_string())
    }

    pub(crate) fn stored(&self) -> Result<Stored, LaunchError> {
        let names = |directory| -> Result<Vec<String>, LaunchError> {
            Ok(read_dir(directory)?.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        };
        let layers = names(&self.layers)?;
        let snapshots = names(&self.snapshots)?;
        Ok(Stored {
            layers: layers.iter().filter_map(|name| name.strip_suffix(SUFFIX)?.parse().ok()).collect(),
            snapshots: snapshots.iter().filter_map(|name| name.parse().ok()).collect(),
        })
    }

    /// An empty directory for a merge, whatever an interrupted one has left.
    pub(crate) fn merging(&self) -> Result<Utf8PathBuf, LaunchError> {
        let directory = self.layers.join(MERGING);
        remove_all(&directory)?;
        std::fs::DirBuilder::new().mode(0o700).create(&directory).map_err(file("make", &directory))?;
        Ok(directory)
    }
}

/// What a file takes on the disk.
pub(crate) fn allocated(path: &Utf8Path) -> Result<u64, LaunchError> {
    Ok(std::fs::metadata(path).map_err(file("inspect", path))?.blocks() * 512)
}

pub(crate) fn remove_all(path: &Utf8Path) -> Result<(), LaunchError> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(file("remove", path)(source)),
    }
}

/// Whether both names are one file.
pub(crate) fn is_same(one: &Utf8Path, other: &Utf8Path) -> Result<bool, LaunchError> {
    let inspect = |path: &Utf8Path| match std::fs::metadata(path) {
        Ok(meta) => Ok(Some((meta.dev(), meta.ino()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(file("inspect", path)(source)),
    };
    let one = inspect(one)?;
    Ok(one.is_some() && one == inspect(other)?)
}

/// Makes what a machine has written everybody's to read and, where the server is root, nobody's to change.
pub(crate) fn take_over(path: &Utf8Path, from_others: bool) -> Result<(), LaunchError> {
    let meta = std::fs::symlink_metadata(path).map_err(file("inspect", path))?;
    if meta.is_dir() {
        for entry in read_dir(path)? {
            let name = entry.file_name();
            let name = name.to_str().ok_or_else(|| {
                file("read a name in", path)(std::io::Error::from(std::io::ErrorKind::InvalidData))
            })?;
            take_over(&path.join(name), from_others)?;
        }
    }
    // A machine has its own directory to itself: what is not a file or a directory would lead elsewhere.
    let mode = match (meta.is_dir(), meta.is_file()) {
        (true, _) => 0o755,
        (_, true) => 0o444,
        _ => return Err(file("take over", path)(std::io::Error::from(std::io::ErrorKind::InvalidInput))),
    };
    if from_others {
        std::os::unix::fs::lchown(path, Some(0), Some(0)).map_err(file("take over", path))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(file("set the permissions of", path))
}

/// Moves a file, also to another filesystem; holes stay holes.
pub(crate) fn relocate(from: &Utf8Path, to: &Utf8Path) -> Result<(), LaunchError> {
    match std::fs::rename(from, to) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
            copy_sparse(from, to)?;
            std::fs::remove_file(from).map_err(file("remove", from))
        }
        Err(source) => Err(file("move", from)(source)),
    }
}

/// What [`copy_machine`] will copy, in bytes.
pub(crate) fn machine_bytes(directory: &Utf8Path) -> Result<u64, LaunchError> {
    machine_files(directory)?.iter().map(|name| allocated(&directory.join(name))).sum()
}

/// The files that make a computer that does not run: its disk, its memory, and what it said last.
fn machine_files(directory: &Utf8Path) -> Result<Vec<Utf8PathBuf>, LaunchError> {
    let mut files = vec![Utf8PathBuf::from(DISK_FILE)];
    if directory.join(CONSOLE_FILE).exists() {
        files.push(CONSOLE_FILE.into());
    }
    let memory = Utf8Path::new(MEMORY_DIRECTORY);
    if directory.join(memory).exists() {
        for entry in read_dir(&directory.join(memory))? {
            let name = entry.file_name();
            let name = name.to_str().ok_or_else(|| {
                file("read a name in", directory)(std::io::Error::from(std::io::ErrorKind::InvalidData))
            })?;
            files.push(memory.join(name));
        }
    }
    Ok(files)
}

/// Copies the files of a computer that does not run from one machine's directory to another; `progress` is told
/// after every piece how much is copied, in percent. Runs as the machine's user, who owns both.
pub fn copy_machine(from: &Utf8Path, to: &Utf8Path, progress: &mut dyn FnMut(u8)) -> Result<(), LaunchError> {
    let files = machine_files(from)?;
    let total = machine_bytes(from)?.max(1);
    let mut done = 0;
    for name in files {
        let target = to.join(&name);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(file("make", parent))?;
        }
        copy_with_holes(&from.join(&name), &target, &mut |bytes| {
            done += bytes;
            progress(u8::try_from((done * 100 / total).min(100)).unwrap_or(100));
        })?;
    }
    sync(to)
}

/// Copies a file with its holes, and makes the copy last.
pub(crate) fn copy_sparse(from: &Utf8Path, to: &Utf8Path) -> Result<(), LaunchError> {
    copy_with_holes(from, to, &mut |_| {})
}

/// The same; `copied` is told of every piece, in bytes.
fn copy_with_holes(from: &Utf8Path, to: &Utf8Path, copied: &mut dyn FnMut(u64)) -> Result<(), LaunchError> {
    let mut copy = || -> std::io::Result<()> {
        let mut source = File::open(from)?;
        let length = source.metadata()?.len();
        let mut target = File::create(to)?;
        target.set_len(length)?;
        let mut at = 0;
        while at < length {
            let start = match rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => break, // a hole to the end
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(&source, rustix::fs::SeekFrom::Hole(start))?;
            let end = end.min(start + PIECE);
            source.seek(SeekFrom::Start(start))?;
            target.seek(SeekFrom::Start(start))?;
            let length = std::io::copy(&mut (&mut source).take(end - start), &mut target)?;
            if length != end - start {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            copied(length);
            at = end;
        }
        target.flush()?;
        target.sync_all()
    };
    copy().map_err(file("copy", from))?;
    sync(to.parent().unwrap_or(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, Utf8PathBuf) {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = Utf8Path::from_path(directory.path()).unwrap().to_owned();
        (directory, path)
    }

    #[test]
    fn a_copy_has_the_content_and_the_holes() {
        use std::os::unix::fs::FileExt;
        let (_directory, path) = directory();
        let (from, to) = (path.join("from"), path.join("to"));
        let source = File::create(&from).unwrap();
        source.set_len(64 << 20).unwrap();
        source.write_all_at(b"early", 0).unwrap();
        source.write_all_at(&[7; 10_000], 33 << 20).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        assert!(allocated(&to).unwrap() < 1 << 20, "{}", allocated(&to).unwrap());
    }

    #[test]
    fn a_machine_is_copied_with_its_memory_and_nothing_else() {
        let (_directory, path) = directory();
        let (from, to) = (path.join("from"), path.join("to"));
        std::fs::create_dir_all(from.join("memory")).unwrap();
        std::fs::create_dir_all(from.join("captures/x")).unwrap();
        std::fs::create_dir(&to).unwrap();
        for name in ["disk.qcow2", "console.log", "memory/pages", "memory/runs", "spec.json", "captures/x/y"]
        {
            std::fs::write(from.join(name), vec![7; 100_000]).unwrap();
        }
        let mut told = Vec::new();
        copy_machine(&from, &to, &mut |percent| told.push(percent)).unwrap();
        for name in ["disk.qcow2", "console.log", "memory/pages", "memory/runs"] {
            assert_eq!(std::fs::read(to.join(name)).unwrap(), vec![7; 100_000], "{name}");
        }
        assert!(!to.join("spec.json").exists() && !to.join("captures").exists());
        assert!(told.is_sorted() && told.len() == 4 && told[3] >= 90, "{told:?}");
        std::fs::remove_file(from.join("disk.qcow2")).unwrap();
        assert!(copy_machine(&from, &to, &mut |_| {}).is_err(), "a computer without a disk");
    }

    #[test]
    fn what_leads_elsewhere_is_not_taken_over() {
        let (_directory, path) = directory();
        let inner = path.join("captured/memory");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(inner.join("pages"), "pages").unwrap();
        take_over(&path.join("captured"), false).unwrap();
        assert_eq!(std::fs::metadata(inner.join("pages")).unwrap().mode() & 0o777, 0o444);
        std::os::unix::fs::symlink("/etc/shadow", inner.join("devices")).unwrap();
        assert!(take_over(&path.join("captured"), false).is_err());
    }

    #[test]
    fn only_names_that_are_ids_are_stored() {
        let (_directory, path) = directory();
        let storage = Storage::open(&path, false).unwrap();
        let (layer, snapshot) = (LayerId::new(), SnapshotId::new());
        std::fs::write(storage.layer(layer), "").unwrap();
        std::fs::create_dir(storage.snapshot(snapshot)).unwrap();
        std::fs::write(storage.layers.join("note.txt"), "").unwrap();
        storage.merging().unwrap();
        storage.merging().unwrap();
        let stored = storage.stored().unwrap();
        assert_eq!((stored.layers, stored.snapshots), (vec![layer], vec![snapshot]));
    }
}
