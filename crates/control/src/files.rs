//! Files inside a computer, below the roots that the operator allows.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use roost_api::{
    ApiError, ComputerId, ErrorCode, FileRow, FileType, FoundFile, FoundFiles, SearchFiles, Timestamp,
    UploadProgress,
};
use roost_guest_proto::FILE_IS_DIRECTORY;
use roost_guest_proto::v1::files_client::FilesClient;
use roost_guest_proto::v1::write_file_input::Input;
use roost_guest_proto::v1::{
    ChangeModeRequest, FileContent, FileEvent, FileInfo, FileKind, FilePath, FinishFile,
    MakeDirectoryRequest, MoveFileRequest, ReadFileRequest, SearchFilesRequest, UploadStateRequest,
    WatchFilesRequest, WriteFileInput, WriteFileReply, WriteFileStart,
};
use serde::{Deserialize, Serialize};

use crate::guest::Guest;
use crate::{Control, Failure};

/// What files of computers may be reached, and how large one may be that is sent to a computer.
#[derive(Debug, Clone)]
pub struct FileConfig {
    /// Absolute paths.
    pub roots: Vec<String>,
    /// `None`: as large as the disk.
    pub most_bytes: Option<u64>,
}

impl Default for FileConfig {
    fn default() -> Self {
        let roots = ["/workspace", "/home", "/root", "/tmp", "/opt", "/srv"];
        Self { roots: roots.map(str::to_owned).to_vec(), most_bytes: None }
    }
}

/// Where a path that nobody names leads.
pub const DEFAULT_DIRECTORY: &str = "/workspace";

const PIECE: usize = 64 * 1024;
/// How long the link of an export holds.
const EXPORT_HOLDS: Duration = Duration::from_secs(30 * 60);
const EXPORT_CONTEXT: &str = "file export";

/// A file or archive on its way out of a computer.
#[derive(Debug)]
pub struct FileDownload {
    /// Absent for an archive.
    pub info: Option<FileInfo>,
    content: tonic::Streaming<FileContent>,
}

impl FileDownload {
    /// What comes, as it is read. An error means that there should have been more.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, tonic::Status>> + Send {
        self.content.filter_map(|content| {
            std::future::ready(match content {
                Ok(content) if content.data.is_empty() => None,
                Ok(content) => Some(Ok(content.data)),
                Err(status) => Some(Err(status)),
            })
        })
    }
}

/// How a file is to be written.
#[derive(Debug, Clone, Default)]
pub struct FileUpload {
    pub path: String,
    pub mode: Option<u32>,
    /// Its id, where the file may come in parts.
    pub upload: Option<String>,
    pub offset: u64,
    pub total: Option<u64>,
    /// `None`: now.
    pub modified_at: Option<Timestamp>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Exported {
    computer: ComputerId,
    path: String,
    /// Unix seconds.
    until: i64,
}

impl Control {
    async fn files(&self, id: ComputerId) -> Result<FilesClient<Guest>, Failure> {
        Ok(FilesClient::new(self.guest(id).await?))
    }

    fn file_path(&self, path: &str) -> FilePath {
        FilePath { path: path.to_owned(), roots: self.inner.config.files.roots.clone() }
    }

    /// A link itself, not what it leads to.
    pub async fn stat_file(&self, id: ComputerId, path: &str) -> Result<FileInfo, Failure> {
        let mut client = self.files(id).await?;
        Ok(client.stat_file(self.file_path(path)).await.map_err(of_file)?.into_inner())
    }

    /// The entries of a directory, by name.
    pub async fn list_files(&self, id: ComputerId, path: &str) -> Result<Vec<FileRow>, Failure> {
        let mut client = self.files(id).await?;
        let mut lists = client.list_files(self.file_path(path)).await.map_err(of_file)?.into_inner();
        let mut rows = Vec::new();
        while let Some(list) = lists.message().await.map_err(of_file)? {
            rows.extend(list.entries.into_iter().map(|info| row(path, info)));
        }
        rows.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(rows)
    }

    /// A file from `offset` on; what it is comes first.
    pub async fn read_file(
        &self,
        id: ComputerId,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<FileDownload, Failure> {
        let mut client = self.files(id).await?;
        let request = ReadFileRequest { file: Some(self.file_path(path)), offset, length };
        let mut content = client.read_file(request).await.map_err(of_file)?.into_inner();
        let first = content.message().await.map_err(of_file)?.and_then(|first| first.info);
        let info = first.ok_or_else(|| {
            Failure::new(ErrorCode::AgentUnavailable, "the computer did not say what the file is; try again")
        })?;
        Ok(FileDownload { info: Some(info), content })
    }

    /// A whole file; `None` where the path leads to a directory.
    pub async fn open_file(&self, id: ComputerId, path: &str) -> Result<Option<FileDownload>, Failure> {
        match self.read_file(id, path, 0, None).await {
            Err(failure) if failure.public.message.ends_with(FILE_IS_DIRECTORY) => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// A directory with everything in it as a tar archive.
    pub async fn pack(&self, id: ComputerId, path: &str) -> Result<FileDownload, Failure> {
        let mut client = self.files(id).await?;
        let content = client.pack(self.file_path(path)).await.map_err(of_file)?.into_inner();
        Ok(FileDownload { info: None, content })
    }

    /// Writes a file as its content comes. Unless it is an upload with an id, nothing of it is there before all is.
    pub async fn write_file<E>(
        &self,
        id: ComputerId,
        upload: FileUpload,
        content: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> Result<WriteFileReply, Failure>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let start = WriteFileStart {
            file: Some(self.file_path(&upload.path)),
            mode: upload.mode,
            make_directories: true,
            upload: upload.upload.unwrap_or_default(),
            offset: upload.offset,
            total: upload.total,
            modified_ns: upload.modified_at.map(|time| time.as_micros().saturating_mul(1000)),
        };
        let mut client = self.files(id).await?;
        let most = self.inner.config.files.most_bytes.unwrap_or(u64::MAX);
        let (content, broken) = inputs(start, content, most);
        let reply = client.write_file(content).await;
        finished(reply, broken).map(tonic::Response::into_inner)
    }

    /// Unpacks a tar archive into a directory, which is made where it is missing. Answers the number of entries.
    pub async fn unpack<E>(
        &self,
        id: ComputerId,
        path: &str,
        content: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> Result<u64, Failure>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let start = WriteFileStart { file: Some(self.file_path(path)), ..WriteFileStart::default() };
        let mut client = self.files(id).await?;
        let most = self.inner.config.files.most_bytes.unwrap_or(u64::MAX);
        let (content, broken) = inputs(start, content, most);
        let reply = client.unpack(content).await;
        finished(reply, broken).map(|reply| reply.into_inner().entries)
    }

    /// How far an upload is; with `discard` it is forgotten.
    pub async fn upload_state(
        &self,
        id: ComputerId,
        path: &str,
        upload: &str,
        discard: bool,
    ) -> Result<UploadProgress, Failure> {
        let mut client = self.files(id).await?;
        let request =
            UploadStateRequest { file: Some(self.file_path(path)), upload: upload.to_owned(), discard };
        let state = client.upload_state(request).await.map_err(of_file)?.into_inner();
        Ok(UploadProgress {
            success: true,
            path: path.to_owned(),
            upload_id: upload.to_owned(),
            received: state.received,
            complete: false,
        })
    }

    pub async fn make_directory(
        &self,
        id: ComputerId,
        path: &str,
        recursive: bool,
        mode: Option<u32>,
    ) -> Result<(), Failure> {
        let mut client = self.files(id).await?;
        let request = MakeDirectoryRequest { directory: Some(self.file_path(path)), recursive, mode };
        client.make_directory(request).await.map_err(of_file)?;
        Ok(())
    }

    pub async fn rename_file(&self, id: ComputerId, from: &str, to: &str) -> Result<(), Failure> {
        let mut client = self.files(id).await?;
        client.move_file(self.moving(from, to, true)).await.map_err(of_file)?;
        Ok(())
    }

    pub async fn copy_file(
        &self,
        id: ComputerId,
        from: &str,
        to: &str,
        recursive: bool,
    ) -> Result<(), Failure> {
        let mut client = self.files(id).await?;
        client.copy_file(self.moving(from, to, recursive)).await.map_err(of_file)?;
        Ok(())
    }

    fn moving(&self, from: &str, to: &str, recursive: bool) -> MoveFileRequest {
        MoveFileRequest { from: Some(self.file_path(from)), to: to.to_owned(), recursive }
    }

    pub async fn remove_file(&self, id: ComputerId, path: &str) -> Result<(), Failure> {
        let mut client = self.files(id).await?;
        client.remove_file(self.file_path(path)).await.map_err(of_file)?;
        Ok(())
    }

    pub async fn change_mode(&self, id: ComputerId, path: &str, mode: u32) -> Result<(), Failure> {
        let mut client = self.files(id).await?;
        let request = ChangeModeRequest { file: Some(self.file_path(path)), mode };
        client.change_mode(request).await.map_err(of_file)?;
        Ok(())
    }

    pub async fn search_files(&self, id: ComputerId, query: SearchFiles) -> Result<FoundFiles, Failure> {
        let limit = query.limit.unwrap_or(1000);
        if !(1..=10_000).contains(&limit) {
            return Err(ApiError::field("limit", format!("{limit} is not within 1-10000")).into());
        }
        let path = query.path.unwrap_or_else(|| DEFAULT_DIRECTORY.to_owned());
        let request = SearchFilesRequest {
            directory: Some(self.file_path(&path)),
            name: query.name.unwrap_or_default(),
            content: query.content.unwrap_or_default(),
            ignore_case: query.ignore_case.unwrap_or_default(),
            most: limit,
        };
        let mut client = self.files(id).await?;
        let mut found = client.search_files(request).await.map_err(of_file)?.into_inner();
        let mut matches = Vec::new();
        while let Some(one) = found.message().await.map_err(of_file)? {
            let info = one.info.unwrap_or_default();
            matches.push(FoundFile {
                path: one.path,
                kind: kind(&info),
                name: String::from_utf8_lossy(&info.name).into_owned(),
                size: info.size,
                line: (one.line > 0).then_some(one.line),
                text: (one.line > 0).then_some(one.text),
            });
        }
        let truncated = matches.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
        Ok(FoundFiles { path, total: matches.len(), truncated, matches })
    }

    /// What changes in a directory. Answers once the watch has begun.
    pub async fn watch_files(
        &self,
        id: ComputerId,
        path: &str,
        recursive: bool,
    ) -> Result<tonic::Streaming<FileEvent>, Failure> {
        let mut client = self.files(id).await?;
        let request = WatchFilesRequest { directory: Some(self.file_path(path)), recursive };
        let mut events = client.watch_files(request).await.map_err(of_file)?.into_inner();
        events.message().await.map_err(of_file)?;
        Ok(events)
    }

    /// A link to a file that needs no credential until it expires.
    pub fn export_url(&self, id: ComputerId, path: &str) -> Result<(String, Timestamp), Failure> {
        let holds = i64::try_from(EXPORT_HOLDS.as_micros()).unwrap_or(i64::MAX);
        let expires_at = Timestamp::from_micros(Timestamp::now().as_micros() + holds);
        let expires_at = expires_at.unwrap_or_else(Timestamp::now);
        let exported = Exported { computer: id, path: path.to_owned(), until: expires_at.as_seconds() };
        let plain = serde_json::to_vec(&exported).map_err(Failure::internal)?;
        let ticket = self.inner.config.seal_key.seal(EXPORT_CONTEXT, &plain)?;
        let origin = &self.inner.config.urls.origin;
        Ok((format!("{origin}/api/v1/computers/{id}/files/download?ticket={ticket}"), expires_at))
    }

    /// The computer and the path that a link is for.
    pub async fn exported(
        &self,
        id: ComputerId,
        ticket: &str,
    ) -> Result<(roost_store::ComputerRecord, String), Failure> {
        let plain = self.inner.config.seal_key.open(EXPORT_CONTEXT, ticket);
        let exported = plain.and_then(|plain| serde_json::from_slice::<Exported>(&plain).ok());
        let exported = exported
            .filter(|exported| exported.computer == id && exported.until >= Timestamp::now().as_seconds());
        let exported = exported.ok_or_else(|| {
            Failure::new(ErrorCode::InvalidToken, "the link is wrong or has expired; export the file again")
        })?;
        Ok((self.record(id).await?, exported.path))
    }
}

/// The messages of a call that writes. Only content that came to its end is finished; why it did not is told too.
fn inputs<S, E>(
    start: WriteFileStart,
    content: S,
    most: u64,
) -> (impl Stream<Item = WriteFileInput> + Send + 'static, Broken)
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    let (report, broken) = tokio::sync::oneshot::channel();
    let sending =
        Sending { content: Box::pin(content), report, rest: Bytes::new(), sent: start.offset, most };
    let pieces = stream::unfold(Some(sending), |sending| async {
        let mut sending = sending?;
        match sending.next().await {
            Ok(Some(data)) => Some((Input::Data(data), Some(sending))),
            Ok(None) => Some((Input::Finish(FinishFile {}), None)),
            Err(failure) => {
                // Whoever would hear it has an answer already.
                drop(sending.report.send(failure));
                None
            }
        }
    });
    let first = stream::once(std::future::ready(Input::Start(start)));
    (first.chain(pieces).map(|input| WriteFileInput { input: Some(input) }), broken)
}

type Broken = tokio::sync::oneshot::Receiver<Failure>;

/// What the agent said; or why the content did not come to its end, which is why it said so.
fn finished<T>(reply: Result<T, tonic::Status>, mut broken: Broken) -> Result<T, Failure> {
    match (reply, broken.try_recv()) {
        (Ok(reply), _) => Ok(reply),
        (Err(_), Ok(failure)) => Err(failure),
        (Err(status), Err(_)) => Err(of_file(status)),
    }
}

/// Content on its way to the guest, in pieces that are not too large.
struct Sending<S> {
    content: std::pin::Pin<Box<S>>,
    report: tokio::sync::oneshot::Sender<Failure>,
    rest: Bytes,
    sent: u64,
    most: u64,
}

impl<S, E> Sending<S>
where
    S: Stream<Item = Result<Bytes, E>>,
    E: std::error::Error + Send + Sync + 'static,
{
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while self.rest.is_empty() {
            match self.content.next().await {
                None => return Ok(None),
                Some(Ok(piece)) => self.rest = piece,
                Some(Err(error)) => {
                    let message = format!("the content could not be read to its end: {error}");
                    let public = ApiError::new(ErrorCode::InvalidBody, message);
                    return Err(Failure { public, source: Some(Box::new(error)) });
                }
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        self.sent += piece.len() as u64;
        if self.sent > self.most {
            let message =
                format!("the file is larger than {} bytes, the most that this server takes", self.most);
            return Err(Failure::new(ErrorCode::FileTooLarge, message));
        }
        Ok(Some(piece))
    }
}

fn row(directory: &str, info: FileInfo) -> FileRow {
    let name = String::from_utf8_lossy(&info.name).into_owned();
    FileRow {
        path: format!("{}/{name}", directory.trim_end_matches('/')),
        kind: kind(&info),
        size: info.size,
        size_bytes: info.size,
        is_dir: info.kind() == FileKind::Directory,
        is_symlink: info.kind() == FileKind::Symlink,
        mode: info.mode,
        uid: info.uid,
        gid: info.gid,
        modified_at: modified_at(&info),
        name,
    }
}

fn kind(info: &FileInfo) -> FileType {
    match info.kind() {
        FileKind::File => FileType::File,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Unspecified => FileType::Other,
    }
}

pub fn modified_at(info: &FileInfo) -> Timestamp {
    Timestamp::from_micros(info.modified_ns.div_euclid(1000)).unwrap_or(Timestamp::EPOCH)
}

/// What the agent said of a file, as the API says it.
fn of_file(status: tonic::Status) -> Failure {
    let public = match status.code() {
        tonic::Code::InvalidArgument => ApiError::new(ErrorCode::InvalidPath, status.message()),
        tonic::Code::PermissionDenied => ApiError::new(ErrorCode::ForbiddenPath, status.message()),
        tonic::Code::NotFound => ApiError::new(ErrorCode::NotFound, "file not found"),
        tonic::Code::AlreadyExists | tonic::Code::ResourceExhausted | tonic::Code::OutOfRange => {
            ApiError::new(ErrorCode::ResourceState, status.message())
        }
        tonic::Code::FailedPrecondition => ApiError::field("path", status.message()),
        _ => return Failure::from_guest(status),
    };
    Failure { public, source: Some(Box::new(status)) }
}
