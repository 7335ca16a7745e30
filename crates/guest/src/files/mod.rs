//! The files of the computer, below the roots that a call names.
//!
//! [`place`] decides where a path leads; nothing else opens one. What blocks runs on a thread of its own per call, and
//! speaks to the call through a short channel: who does not read holds the disk back, who does not write holds nothing.

mod archive;
mod error;
mod owner;
mod place;
mod search;
mod tree;
mod watch;
mod write;

use std::{
    ffi::OsStr,
    fs::{self, Metadata},
    io::{Read, Seek, SeekFrom},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use bytes::BytesMut;
use roost_guest_proto::v1::{
    ChangeModeRequest, FileContent, FileEvent, FileInfo, FileKind, FileList, FileMatch, FilePath,
    MakeDirectoryRequest, MoveFileRequest, ReadFileRequest, RemoveFileReply, SearchFilesRequest, UnpackReply,
    UploadStateReply, UploadStateRequest, WatchFilesRequest, WriteFileInput, WriteFileReply, WriteFileStart,
    files_server::Files, write_file_input::Input,
};
use rustix::fs::Mode;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use self::{
    error::FileError,
    owner::Owners,
    place::{Asked, Opened, proc_path},
    tree::Directory,
    write::Piece,
};

const CHUNK: usize = 64 * 1024;
const QUEUED: usize = 4;
const LIST_BATCH: usize = 256;

#[derive(Debug)]
pub(crate) struct FilesService {
    owners: Owners,
}

impl FilesService {
    pub(crate) fn new(desktop_user: String) -> Self {
        Self { owners: Owners::new(desktop_user) }
    }
}

type Replies<T> = ReceiverStream<Result<T, Status>>;

/// Work that blocks, and has one answer.
async fn answer<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<Response<T>, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| Status::internal(format!("a file operation failed: {error}")))?;
    Ok(Response::new(done?))
}

/// Work that blocks, and answers in pieces. It begins with `prepare`, whose refusal is the call's.
async fn stream<P: Send + 'static, T: Send + 'static>(
    prepare: impl FnOnce() -> Result<P, FileError> + Send + 'static,
    work: impl FnOnce(P, &Replier<T>) -> Result<(), FileError> + Send + 'static,
) -> Result<Response<Replies<T>>, Status> {
    let prepared = answer(prepare).await?.into_inner();
    let (sender, replies) = mpsc::channel(QUEUED);
    tokio::task::spawn_blocking(move || {
        let replier = Replier(sender);
        if let Err(error) = work(prepared, &replier) {
            // A caller that is gone does not read why.
            let _gone = replier.0.blocking_send(Err(error.into()));
        }
    });
    Ok(Response::new(ReceiverStream::new(replies)))
}

#[derive(Debug)]
struct Replier<T>(mpsc::Sender<Result<T, Status>>);

impl<T> Replier<T> {
    /// Waits until there is room; an error when nobody listens any more.
    fn send(&self, reply: T) -> Result<(), FileError> {
        self.0.blocking_send(Ok(reply)).map_err(|_| FileError::Incomplete)
    }
}

/// What is at `path`, which has `name`.
fn info(name: &OsStr, path: &Path, metadata: &Metadata) -> FileInfo {
    let kind = if metadata.is_file() {
        FileKind::File
    } else if metadata.is_dir() {
        FileKind::Directory
    } else if metadata.is_symlink() {
        FileKind::Symlink
    } else {
        FileKind::Unspecified
    };
    let link_target = match kind {
        // A link that is gone by now leads nowhere.
        FileKind::Symlink => fs::read_link(path).map(|target| target.as_os_str().as_bytes().to_vec()),
        _ => Ok(Vec::new()),
    };
    let modified_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    FileInfo {
        name: name.as_bytes().to_vec().into(),
        kind: kind.into(),
        size: metadata.len(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified_ns,
        link_target: link_target.unwrap_or_default().into(),
        inode: metadata.ino(),
    }
}

fn info_of(asked: &Asked) -> Result<FileInfo, FileError> {
    let place = asked.place()?;
    let metadata = fs::symlink_metadata(place.path());
    let metadata =
        metadata.map_err(|source| FileError::Io { action: "look at", path: asked.text(), source })?;
    Ok(info(&place.name, &place.path(), &metadata))
}

fn open_directory(file: FilePath) -> Result<(Asked, Opened, Directory), FileError> {
    let asked = Asked::new(file)?;
    let opened = asked.open()?;
    if !opened.metadata.is_dir() {
        return Err(FileError::NotADirectory(asked.text()));
    }
    let directory = Directory::at(&opened.descriptor);
    let directory =
        directory.map_err(|source| FileError::Io { action: "read", path: asked.text(), source })?;
    Ok((asked, opened, directory))
}

fn list(directory: &Directory, replies: &Replier<FileList>, asked: &Asked) -> Result<(), FileError> {
    let failed = |source| FileError::Io { action: "read", path: asked.text(), source };
    let mut entries = Vec::with_capacity(LIST_BATCH);
    for name in directory.names().map_err(failed)? {
        let path = directory.path(&name);
        // What goes while we look is not there.
        if let Ok(metadata) = fs::symlink_metadata(&path) {
            entries.push(info(&name, &path, &metadata));
        }
        if entries.len() == LIST_BATCH {
            replies.send(FileList { entries: std::mem::take(&mut entries) })?;
        }
    }
    replies.send(FileList { entries })
}

struct Reading {
    asked: Asked,
    file: fs::File,
    info: FileInfo,
    offset: u64,
    length: u64,
}

fn open_for_reading(request: ReadFileRequest) -> Result<Reading, FileError> {
    let asked = Asked::new(request.file.unwrap_or_default())?;
    let opened = asked.open()?;
    if opened.metadata.is_dir() {
        return Err(FileError::IsDirectory(asked.text()));
    }
    if !opened.metadata.is_file() {
        return Err(FileError::NotAFile(asked.text()));
    }
    let failed = |source| FileError::Io { action: "read", path: asked.text(), source };
    let mut file = opened.read().map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    file.seek(SeekFrom::Start(request.offset)).map_err(failed)?;
    let rest = metadata.len().saturating_sub(request.offset);
    let name = opened.real.file_name().unwrap_or_default();
    Ok(Reading {
        info: info(name, &opened.path(), &metadata),
        offset: request.offset,
        length: request.length.map_or(rest, |length| length.min(rest)),
        file,
        asked,
    })
}

fn read(reading: Reading, replies: &Replier<FileContent>) -> Result<(), FileError> {
    let Reading { asked, mut file, info, offset, length } = reading;
    replies.send(FileContent { info: Some(info), data: bytes::Bytes::new() })?;
    let mut left = length;
    while left > 0 {
        let mut piece = BytesMut::zeroed(usize::try_from(left).unwrap_or(CHUNK).min(CHUNK));
        let count = file.read(&mut piece).map_err(|source| FileError::Io {
            action: "read",
            path: asked.text(),
            source,
        })?;
        if count == 0 {
            // Others were promised more: it must not look complete.
            let at = offset + length - left;
            let message = format!("it has become shorter while it was read, and ends at {at}");
            let source = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, message);
            return Err(FileError::Io { action: "read", path: asked.text(), source });
        }
        left -= count as u64;
        piece.truncate(count);
        replies.send(FileContent { info: None, data: piece.freeze() })?;
    }
    Ok(())
}

/// The start of a call that writes, and its pieces as they come.
async fn incoming(
    mut input: Streaming<WriteFileInput>,
) -> Result<(WriteFileStart, mpsc::Receiver<Piece>), Status> {
    let start = match input.message().await? {
        Some(WriteFileInput { input: Some(Input::Start(start)) }) => start,
        _ => return Err(Status::invalid_argument("the first input must be the start")),
    };
    let (sender, pieces) = mpsc::channel(QUEUED);
    tokio::spawn(async move {
        // A call that breaks ends the pieces without a finish, which is how the other side knows.
        while let Ok(Some(WriteFileInput { input: Some(input) })) = input.message().await {
            let piece = match input {
                Input::Data(data) => Piece::Data(data),
                Input::Finish(_) => Piece::Finish,
                Input::Start(_) => return,
            };
            if sender.send(piece).await.is_err() {
                return;
            }
        }
    });
    Ok((start, pieces))
}

#[tonic::async_trait]
impl Files for FilesService {
    async fn stat_file(&self, request: Request<FilePath>) -> Result<Response<FileInfo>, Status> {
        let file = request.into_inner();
        answer(move || info_of(&Asked::new(file)?)).await
    }

    type ListFilesStream = Replies<FileList>;

    async fn list_files(
        &self,
        request: Request<FilePath>,
    ) -> Result<Response<Self::ListFilesStream>, Status> {
        let file = request.into_inner();
        let work = |(asked, _, directory): (Asked, Opened, Directory), replies: &Replier<FileList>| {
            list(&directory, replies, &asked)
        };
        stream(move || open_directory(file), work).await
    }

    type ReadFileStream = Replies<FileContent>;

    async fn read_file(
        &self,
        request: Request<ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let request = request.into_inner();
        stream(move || open_for_reading(request), read).await
    }

    async fn write_file(
        &self,
        request: Request<Streaming<WriteFileInput>>,
    ) -> Result<Response<WriteFileReply>, Status> {
        let (start, mut pieces) = incoming(request.into_inner()).await?;
        let owners = self.owners.clone();
        answer(move || write::write(start, &owners, &mut pieces)).await
    }

    async fn upload_state(
        &self,
        request: Request<UploadStateRequest>,
    ) -> Result<Response<UploadStateReply>, Status> {
        let request = request.into_inner();
        answer(move || Ok(UploadStateReply { received: write::upload_state(request)? })).await
    }

    async fn make_directory(
        &self,
        request: Request<MakeDirectoryRequest>,
    ) -> Result<Response<FileInfo>, Status> {
        let (request, owners) = (request.into_inner(), self.owners.clone());
        answer(move || info_of(&write::make_directory(request, &owners)?)).await
    }

    async fn move_file(&self, request: Request<MoveFileRequest>) -> Result<Response<FileInfo>, Status> {
        let (request, owners) = (request.into_inner(), self.owners.clone());
        answer(move || {
            let (from, to, _) = both(request)?;
            tree::rename(&from, &to, &owners)?;
            info_of(&to)
        })
        .await
    }

    async fn copy_file(&self, request: Request<MoveFileRequest>) -> Result<Response<FileInfo>, Status> {
        let (request, owners) = (request.into_inner(), self.owners.clone());
        answer(move || {
            let (from, to, recursive) = both(request)?;
            tree::copy(&from, &to, recursive, &owners)?;
            info_of(&to)
        })
        .await
    }

    async fn remove_file(&self, request: Request<FilePath>) -> Result<Response<RemoveFileReply>, Status> {
        let file = request.into_inner();
        answer(move || {
            tree::remove(&Asked::new(file)?)?;
            Ok(RemoveFileReply {})
        })
        .await
    }

    async fn change_mode(&self, request: Request<ChangeModeRequest>) -> Result<Response<FileInfo>, Status> {
        let ChangeModeRequest { file, mode } = request.into_inner();
        answer(move || {
            let asked = Asked::new(file.unwrap_or_default())?;
            let opened = asked.open()?;
            let changed =
                rustix::fs::chmod(proc_path(&opened.descriptor), Mode::from_raw_mode(mode & 0o7777));
            changed.map_err(|error| FileError::Io {
                action: "change the mode of",
                path: asked.text(),
                source: error.into(),
            })?;
            info_of(&asked)
        })
        .await
    }

    type PackStream = Replies<FileContent>;

    async fn pack(&self, request: Request<FilePath>) -> Result<Response<Self::PackStream>, Status> {
        let file = request.into_inner();
        stream(move || archive::Packing::new(file), archive::Packing::pack).await
    }

    async fn unpack(
        &self,
        request: Request<Streaming<WriteFileInput>>,
    ) -> Result<Response<UnpackReply>, Status> {
        let (start, pieces) = incoming(request.into_inner()).await?;
        let owners = self.owners.clone();
        answer(move || archive::unpack(start, &owners, pieces)).await
    }

    type SearchFilesStream = Replies<FileMatch>;

    async fn search_files(
        &self,
        request: Request<SearchFilesRequest>,
    ) -> Result<Response<Self::SearchFilesStream>, Status> {
        let request = request.into_inner();
        stream(move || search::Search::new(request), search::Search::run).await
    }

    type WatchFilesStream = Replies<FileEvent>;

    async fn watch_files(
        &self,
        request: Request<WatchFilesRequest>,
    ) -> Result<Response<Self::WatchFilesStream>, Status> {
        let request = request.into_inner();
        let watch = answer(move || watch::Watch::new(request)).await?.into_inner();
        let (sender, events) = mpsc::channel(QUEUED);
        tokio::spawn(crate::events::tell(watch, sender));
        Ok(Response::new(ReceiverStream::new(events)))
    }
}

fn both(request: MoveFileRequest) -> Result<(Asked, Asked, bool), FileError> {
    let from = request.from.unwrap_or_default();
    let roots = from.roots.clone();
    let from = Asked::new(from)?;
    let to = from.other(&request.to, &roots)?;
    Ok((from, to, request.recursive))
}
