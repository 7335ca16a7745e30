//! The files on the disk of a snapshot, without a computer.
//!
//! Reading blocks, so it is done on threads for that, a few at a time. A file or an archive passes through a short
//! queue: the thread waits for whoever takes the bytes, and ends when nobody does any more.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use futures_util::Stream;
use roost_api::{ApiError, ErrorCode, SnapshotEntry, SnapshotEntryKind, SnapshotTree};
use roost_browse::{BrowseError, Entry, Filesystem, Kind, TarLimits};
use roost_store::{SnapshotRecord, SnapshotStatus};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::snapshots::not_ready;
use crate::{Control, Failure};

/// Disks that are read at a time.
const READERS: usize = 4;
const LARGEST_FILE: u64 = 2 << 30;
const LARGEST_FOLDER: TarLimits = TarLimits { bytes: 1 << 30, entries: 50_000, directories: 5_000 };
/// Bytes that are passed on at once, and how many such pieces may wait.
const CHUNK: usize = 256 << 10;
const QUEUE: usize = 4;
/// A receiver that takes nothing for so long is taken for gone: others wait for its place.
const STALL: Duration = Duration::from_secs(60);
/// How often a disk is opened when a layer of it goes just then.
const OPENINGS: usize = 3;

/// Bounds how many disks are read at a time.
#[derive(Debug)]
pub(crate) struct Readers(Arc<Semaphore>);

impl Default for Readers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(READERS)))
    }
}

impl Readers {
    async fn place(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.0.clone().acquire_owned().await.map_err(Failure::internal)
    }
}

/// A file, or a folder as an archive.
#[derive(Debug)]
pub struct Download {
    /// Of the file or the folder; empty for the root. Any character but a slash may be in it.
    pub name: String,
    /// Bytes of the file; `None` for an archive.
    pub size: Option<u64>,
    pub chunks: Chunks,
}

/// The bytes of a [`Download`] while they are read. Dropping it ends the reading.
#[derive(Debug)]
pub struct Chunks {
    first: Option<Bytes>,
    queue: mpsc::Receiver<Bytes>,
    /// Until its result is known.
    reading: Option<JoinHandle<Result<(), BrowseError>>>,
}

impl Chunks {
    /// An error is in the log already; what was passed on before it is not the whole.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        futures_util::stream::try_unfold(self, |mut chunks| async move {
            let next = chunks.next().await.map_err(|error| {
                let source = &error as &dyn std::error::Error;
                tracing::warn!(source, "failed to read a disk to the end");
                io::Error::other("the disk could not be read to the end")
            })?;
            Ok(next.map(|bytes| (bytes, chunks)))
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if let Some(bytes) = self.first.take() {
            return Ok(Some(bytes));
        }
        if let Some(bytes) = self.queue.recv().await {
            return Ok(Some(bytes));
        }
        // Only the result tells the end of an archive from a thread that panicked.
        if let Some(reading) = self.reading.take() {
            reading.await.map_err(Failure::internal)?.map_err(failure)?;
        }
        Ok(None)
    }
}

impl Control {
    /// What is in a folder of a snapshot.
    pub async fn snapshot_tree(
        &self,
        snapshot: &SnapshotRecord,
        path: &str,
    ) -> Result<SnapshotTree, Failure> {
        let disk = self.frozen_disk(snapshot)?;
        roost_browse::check_path(path).map_err(failure)?;
        let place = self.inner.readers.place().await?;
        let tree = disk.tree(path.to_owned(), place).await;
        self.unless_deleted(snapshot, tree).await
    }

    /// A file of a snapshot, or an archive of a folder. What can be refused is refused before the first byte.
    pub async fn snapshot_file(&self, snapshot: &SnapshotRecord, path: &str) -> Result<Download, Failure> {
        let disk = self.frozen_disk(snapshot)?;
        roost_browse::check_path(path).map_err(failure)?;
        let place = self.inner.readers.place().await?;
        let download = disk.download(path.to_owned(), place).await;
        self.unless_deleted(snapshot, download).await
    }

    fn frozen_disk(&self, snapshot: &SnapshotRecord) -> Result<Disk, Failure> {
        self.require_ready(snapshot)?;
        let layer = snapshot.layer.ok_or_else(|| not_ready(snapshot.status))?;
        Ok(Disk {
            path: self.inner.regions.of(&snapshot.region)?.layer(layer),
            allowed: self.inner.config.disk_directories.clone(),
        })
    }

    /// The files of a snapshot may go while somebody looks for them.
    async fn unless_deleted<T>(
        &self,
        snapshot: &SnapshotRecord,
        result: Result<T, Failure>,
    ) -> Result<T, Failure> {
        if let Err(failure) = &result
            && failure.public.code == ErrorCode::Internal
        {
            let found = self.inner.store.snapshot(snapshot.id).await?;
            if found.is_none_or(|found| found.status == SnapshotStatus::Deleted) {
                return Err(Failure::snapshot_not_found());
            }
        }
        result
    }
}

/// The disk of a snapshot: its newest layer, and where the others may be.
#[derive(Debug)]
struct Disk {
    path: Utf8PathBuf,
    allowed: Vec<Utf8PathBuf>,
}

impl Disk {
    async fn tree(self, path: String, place: OwnedSemaphorePermit) -> Result<SnapshotTree, Failure> {
        blocking(move || {
            let _place = place;
            let filesystem = self.open()?;
            let entries = filesystem.list(&path)?.into_iter().map(entry_view).collect();
            Ok(SnapshotTree { path: filesystem.metadata(&path)?.path, entries })
        })
        .await
    }

    async fn download(self, path: String, place: OwnedSemaphorePermit) -> Result<Download, Failure> {
        let found = blocking(move || {
            let filesystem = self.open()?;
            let entry = filesystem.metadata(&path)?;
            // With the place: should the caller go away now, this thread still has it.
            Ok((filesystem, path, entry, place))
        });
        let (filesystem, path, entry, place) = found.await?;
        let folder = entry.kind == Kind::Directory;
        let (sender, queue) = mpsc::channel(QUEUE);
        let mut outlet = Outlet { buffer: Vec::new(), sender, runtime: Handle::current() };
        let reading = tokio::task::spawn_blocking(move || {
            let _place = place;
            if folder {
                filesystem.tar(&path, LARGEST_FOLDER, &mut outlet)?;
            } else {
                filesystem.read(&path, LARGEST_FILE, &mut outlet)?;
            }
            outlet.flush().map_err(|source| BrowseError::Write { source })
        });
        let mut chunks = Chunks { first: None, queue, reading: Some(reading) };
        chunks.first = chunks.next().await?;
        Ok(Download { name: entry.name, size: (!folder).then_some(entry.size), chunks })
    }

    fn open(&self) -> Result<Filesystem, BrowseError> {
        let allowed: Vec<&Utf8Path> = self.allowed.iter().map(Utf8PathBuf::as_path).collect();
        let mut openings = 1;
        loop {
            match Filesystem::open(&self.path, &allowed) {
                // The one on it was opened just before the two were merged; the merged one knows nothing of it.
                Err(BrowseError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && openings < OPENINGS =>
                {
                    openings += 1;
                }
                result => return result,
            }
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BrowseError> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(Failure::internal)?.map_err(failure)
}

/// Passes what is written on to the other end of a queue.
struct Outlet {
    buffer: Vec<u8>,
    sender: mpsc::Sender<Bytes>,
    runtime: Handle,
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let sending = async { tokio::time::timeout(STALL, self.sender.send(bytes)).await };
        match self.runtime.block_on(sending) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

fn entry_view(entry: Entry) -> SnapshotEntry {
    let kind = match entry.kind {
        Kind::File => SnapshotEntryKind::File,
        Kind::Directory => SnapshotEntryKind::Directory,
        Kind::Symlink => SnapshotEntryKind::Symlink,
        Kind::Other => SnapshotEntryKind::Other,
    };
    SnapshotEntry { name: entry.name, path: entry.path, kind, size: entry.size, mode: entry.mode }
}

/// The caller reads nothing of the files of the host.
fn failure(error: BrowseError) -> Failure {
    let code = match error {
        BrowseError::NotFound { .. } => ErrorCode::NotFound,
        BrowseError::NotADirectory { .. }
        | BrowseError::IsADirectory { .. }
        | BrowseError::InvalidPath { .. } => ErrorCode::InvalidPath,
        BrowseError::TooLarge { .. } => ErrorCode::TooLarge,
        BrowseError::Corrupt { .. } | BrowseError::Unsupported { .. } => {
            let message = "the disk of this snapshot is damaged, or its filesystem is not one that can be read \
                           here; restore the snapshot and look inside the computer";
            let public = ApiError::new(ErrorCode::DiskUnreadable, message);
            return Failure { public, source: Some(Box::new(error)) };
        }
        BrowseError::Refused { .. } | BrowseError::Io { .. } | BrowseError::Write { .. } => {
            let message = "the server could not read the disk of this snapshot; its log has the details under \
                           this request id";
            let public = ApiError::new(ErrorCode::Internal, message);
            return Failure { public, source: Some(Box::new(error)) };
        }
    };
    Failure::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use futures_util::StreamExt;

    use super::*;

    /// A disk with a few files on it, made as layers are.
    struct Place {
        directory: tempfile::TempDir,
        readers: Readers,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let content = directory.path().join("content");
            std::fs::create_dir_all(content.join("etc/deep")).unwrap();
            std::fs::write(content.join("etc/hostname"), "roost\n").unwrap();
            std::fs::write(content.join("etc/empty"), "").unwrap();
            std::fs::write(content.join("large"), vec![7; 5 << 20]).unwrap();
            std::os::unix::fs::symlink("/etc", content.join("link")).unwrap();
            let run = |program: &str, arguments: &[&str]| {
                let output = Command::new(program)
                    .args(arguments)
                    .current_dir(directory.path())
                    .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                    .output()
                    .unwrap();
                assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
            };
            run("mkfs.ext4", &["-q", "-d", "content", "raw", "16M"]);
            run("qemu-img", &["convert", "-O", "qcow2", "raw", "disk.qcow2"]);
            Self { directory, readers: Readers::default() }
        }

        fn disk(&self) -> Disk {
            let directory = Utf8PathBuf::try_from(self.directory.path().to_owned()).unwrap();
            Disk { path: directory.join("disk.qcow2"), allowed: vec![directory] }
        }

        async fn tree(&self, path: &str) -> Result<SnapshotTree, ErrorCode> {
            let place = self.readers.place().await.unwrap();
            self.disk().tree(path.to_owned(), place).await.map_err(|failure| failure.public.code)
        }

        async fn download(&self, path: &str) -> Result<Download, ErrorCode> {
            let place = self.readers.place().await.unwrap();
            self.disk().download(path.to_owned(), place).await.map_err(|failure| failure.public.code)
        }

        async fn bytes(&self, path: &str) -> Result<(String, Option<u64>, Vec<u8>), ErrorCode> {
            let download = self.download(path).await?;
            let chunks: Vec<_> = download.chunks.into_stream().collect().await;
            let bytes: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.unwrap()).collect();
            Ok((download.name, download.size, bytes))
        }
    }

    #[tokio::test]
    async fn files_of_a_real_disk() {
        let place = Place::new();
        let tree = place.tree("/./etc/").await.unwrap();
        let entries: Vec<_> =
            tree.entries.iter().map(|entry| (entry.path.as_str(), entry.kind, entry.size)).collect();
        assert_eq!(tree.path, "/etc");
        assert_eq!(entries[0].0, "/etc/deep");
        assert_eq!(entries[0].1, SnapshotEntryKind::Directory);
        assert_eq!(entries[2], ("/etc/hostname", SnapshotEntryKind::File, 6));

        for path in ["/etc/hostname", "/link/hostname", "/etc/../../../../etc/hostname"] {
            let found = place.bytes(path).await.unwrap();
            assert_eq!(found, ("hostname".to_owned(), Some(6), b"roost\n".to_vec()), "{path}");
        }
        assert_eq!(place.bytes("/etc/empty").await.unwrap(), ("empty".to_owned(), Some(0), Vec::new()));
        let (_, size, bytes) = place.bytes("/large").await.unwrap();
        assert_eq!((size, bytes.len()), (Some(5 << 20), 5 << 20));
        assert!(bytes.iter().all(|byte| *byte == 7));
        let (name, size, archive) = place.bytes("/etc").await.unwrap();
        assert_eq!((name.as_str(), size), ("etc", None));
        assert_eq!(archive.len() % 512, 0);
        assert!(archive.windows(6).any(|part| part == b"roost\n"));

        assert_eq!(place.tree("/none").await.unwrap_err(), ErrorCode::NotFound);
        assert_eq!(place.tree("/etc/hostname").await.unwrap_err(), ErrorCode::InvalidPath);
        assert_eq!(place.download("/none").await.unwrap_err(), ErrorCode::NotFound);
        assert_eq!(place.download("relative").await.unwrap_err(), ErrorCode::InvalidPath);
    }

    /// More than fits into the queue, so the thread is at work until it is told that nobody listens.
    #[tokio::test]
    async fn a_dropped_download_gives_its_place_back() {
        let place = Place::new();
        let mut held = Vec::new();
        for _ in 0..READERS {
            held.push(place.download("/large").await.unwrap());
        }
        assert_eq!(place.readers.0.available_permits(), 0);
        held.pop();
        tokio::time::timeout(Duration::from_secs(10), place.tree("/")).await.unwrap().unwrap();
        assert_eq!(place.readers.0.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_disk_that_cannot_be_read_tells_no_path_of_the_host() {
        let place = Place::new();
        let elsewhere = Disk { allowed: Vec::new(), ..place.disk() };
        std::fs::write(place.directory.path().join("zeroes"), [0; 4096]).unwrap();
        let damaged = Disk { path: place.disk().path.with_file_name("zeroes"), ..place.disk() };
        let missing = Disk { path: place.disk().path.with_file_name("missing"), ..place.disk() };
        let cases = [
            (elsewhere, ErrorCode::Internal),
            (damaged, ErrorCode::DiskUnreadable),
            (missing, ErrorCode::Internal),
        ];
        for (disk, code) in cases {
            let directory = place.directory.path().to_str().unwrap();
            let reader = place.readers.place().await.unwrap();
            let failure = disk.tree("/".to_owned(), reader).await.unwrap_err();
            assert_eq!(failure.public.code, code);
            assert!(!failure.public.message.contains(directory), "{failure}");
            assert!(failure.source.is_some());
        }
    }
}
