//! Files inside a computer.
//!
//! Contents are streamed both ways: nothing of them is kept here but what is on its way.

use std::convert::Infallible;
use std::io;

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, Multipart};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use roost_api::{
    ApiError, ArchiveFormat, Binary, ChangeFileMode, ComputerId, CopyFile, Data, DirectoryEntries,
    DirectoryEntry, ErrorBody, ErrorCode, ExportedFile, FileDone, FileList, FileMode, FilePathRequest,
    FileQuery, FileRow, FileStat, FoundFiles, MakeDirectory, PutFileQuery, RenameFile, SearchFiles,
    ShownMode, UnpackedArchive, UploadForm, UploadProgress, UploadedFile, UploadedFileRow, WatchFiles,
    WriteFileRequest, WriteFilesRequest, WrittenFile, WrittenFiles,
};
use roost_control::{
    Act, ComputerRecord, DEFAULT_DIRECTORY, FileChange, FileDownload, FileEvent, FileInfo, FileKind,
    FileUpload, modified_at,
};
use serde_json::json;
use tokio_util::io::{StreamReader, SyncIoBridge};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::snapshot_files::attachment;
use crate::envelope::Refusal;
use crate::extract::{Auth, PathName, Query, RawBody, Target, body_of_at_most, path_id};
use crate::{App, sse};

/// The largest content that an export has in its answer.
const MOST_INLINE: u64 = 10 * 1000 * 1000;
/// The largest body of routes whose content is in JSON: 10 MB as base64, and some names.
const MOST_JSON: usize = 16 * 1024 * 1024;

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, delete))
        .routes(routes!(list_alias))
        .routes(routes!(readdir))
        .routes(routes!(stat, stat_by_body))
        .routes(routes!(download))
        .routes(routes!(read))
        .routes(routes!(write))
        .routes(routes!(write_many))
        .routes(routes!(upload))
        .routes(routes!(put))
        .routes(routes!(upload_progress, discard_upload))
        .routes(routes!(unpack))
        .routes(routes!(export))
        .routes(routes!(mkdir))
        .routes(routes!(rename))
        .routes(routes!(copy))
        .routes(routes!(chmod))
        .routes(routes!(search))
        .routes(routes!(watch))
        // Forms are streamed; what they may hold is the control plane's to say.
        .layer(DefaultBodyLimit::disable())
}

/// A computer that runs, and whose files may be reached by this caller.
async fn running(parts: &mut Parts, app: &App) -> Result<ComputerRecord, Refusal> {
    let Target(record) = Target::from_request_parts(parts, app).await?;
    app.control.require_running(&record)?;
    Ok(record)
}

fn required(value: Option<String>, name: &str) -> Result<String, ApiError> {
    value.filter(|value| !value.is_empty()).ok_or_else(|| {
        ApiError::new(
            ErrorCode::MissingParam,
            format!("{name} is required: an absolute path in the computer"),
        )
    })
}

/// List a directory; `/workspace` by default
#[utoipa::path(get, path = "/computers/{id}/files", tag = "files", params(("id" = String, Path), FileQuery),
    responses((status = 200, body = FileList), (status = "default", body = ErrorBody)))]
async fn list(
    State(app): State<App>,
    Target(record): Target,
    Query(query): Query<FileQuery>,
) -> Result<Json<FileList>, Refusal> {
    app.control.require_running(&record)?;
    let path = query.path.filter(|path| !path.is_empty()).unwrap_or_else(|| DEFAULT_DIRECTORY.to_owned());
    let rows = app.control.list_files(record.id, &path).await?;
    Ok(Json(FileList::new(path, rows)))
}

/// The same under another name
#[utoipa::path(get, path = "/computers/{id}/files/list", tag = "files", params(("id" = String, Path), FileQuery),
    responses((status = 200, body = FileList), (status = "default", body = ErrorBody)))]
async fn list_alias(
    app: State<App>,
    target: Target,
    query: Query<FileQuery>,
) -> Result<Json<FileList>, Refusal> {
    list(app, target, query).await
}

/// The names in a directory
#[utoipa::path(get, path = "/computers/{id}/files/readdir", tag = "files",
    params(("id" = String, Path), FileQuery),
    responses((status = 200, body = Data<DirectoryEntries>), (status = "default", body = ErrorBody)))]
async fn readdir(
    app: State<App>,
    target: Target,
    query: Query<FileQuery>,
) -> Result<Json<Data<DirectoryEntries>>, Refusal> {
    let Json(list) = list(app, target, query).await?;
    let entry = |row: FileRow| DirectoryEntry {
        name: row.name,
        is_dir: row.is_dir,
        is_symlink: row.is_symlink,
        size: row.size,
        modified_at: row.modified_at,
    };
    Ok(Json(Data { data: DirectoryEntries { entries: list.files.into_iter().map(entry).collect() } }))
}

/// What a path is; a link is not followed
#[utoipa::path(get, path = "/computers/{id}/files/stat", tag = "files", params(("id" = String, Path), FileQuery),
    responses((status = 200, body = Data<FileStat>), (status = "default", body = ErrorBody)))]
async fn stat(
    State(app): State<App>,
    Target(record): Target,
    Query(query): Query<FileQuery>,
    headers: HeaderMap,
) -> Result<Json<Data<FileStat>>, Refusal> {
    app.control.require_running(&record)?;
    stat_of(&app, record.id, query.path, &headers).await
}

/// The same with the path in the body
#[utoipa::path(post, path = "/computers/{id}/files/stat", tag = "files", params(("id" = String, Path)),
    request_body = FilePathRequest,
    responses((status = 200, body = Data<FileStat>), (status = "default", body = ErrorBody)))]
async fn stat_by_body(
    State(app): State<App>,
    Target(record): Target,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Json<Data<FileStat>>, Refusal> {
    app.control.require_running(&record)?;
    stat_of(&app, record.id, body.parse::<FilePathRequest>()?.path, &headers).await
}

async fn stat_of(
    app: &App,
    id: ComputerId,
    path: Option<String>,
    headers: &HeaderMap,
) -> Result<Json<Data<FileStat>>, Refusal> {
    let path = required(path, "path")?;
    let info = app.control.stat_file(id, &path).await?;
    let target = String::from_utf8_lossy(&info.link_target).into_owned();
    let stat = FileStat {
        size: info.size,
        mode: shown_mode(info.mode, headers),
        is_dir: info.kind() == FileKind::Directory,
        is_symlink: info.kind() == FileKind::Symlink,
        symlink_target: (info.kind() == FileKind::Symlink).then_some(target),
        uid: info.uid,
        gid: info.gid,
        modified_at: modified_at(&info),
        path,
    };
    Ok(Json(Data { data: stat }))
}

/// One published client reads modes as text, the others as numbers.
fn shown_mode(bits: u32, headers: &HeaderMap) -> ShownMode {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    if agent.is_some_and(|agent| agent.starts_with("miosa-go/")) {
        ShownMode::Octal(format!("{bits:04o}"))
    } else {
        ShownMode::Bits(bits)
    }
}

/// Download a file, or a directory as an archive; takes `Range`
#[utoipa::path(get, path = "/computers/{id}/files/download", tag = "files",
    params(("id" = String, Path), FileQuery),
    responses(
        (status = 200, description = "All of it",
            content((inline(Binary) = "application/octet-stream"), (inline(Binary) = "application/x-tar"), (inline(Binary) = "application/zip"))),
        (status = 206, description = "The range", body = inline(Binary), content_type = "application/octet-stream"),
        (status = "default", body = ErrorBody)))]
async fn download(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let Query(query) = Query::<FileQuery>::from_request_parts(&mut parts, &app).await?;
    let (record, path) = match &query.ticket {
        Some(ticket) => {
            let id = path_id(&mut parts, &app).await?;
            let (record, path) = app.control.exported(id, ticket).await?;
            app.control.require_running(&record)?;
            (record, path)
        }
        None => (running(&mut parts, &app).await?, required(query.path, "path")?),
    };
    let opened = match query.archive {
        None => app.control.open_file(record.id, &path).await?,
        Some(_) => None,
    };
    match opened {
        Some(file) => serve(&app, &record, &path, &parts.headers, "application/octet-stream", file).await,
        None => archive(&app, &record, &path, query.archive.unwrap_or(ArchiveFormat::Tar)).await,
    }
}

/// Read a file as text, as it is
#[utoipa::path(get, path = "/computers/{id}/files/read", tag = "files", params(("id" = String, Path), FileQuery),
    responses((status = 200, body = String, content_type = "text/plain"), (status = "default", body = ErrorBody)))]
async fn read(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let record = running(&mut parts, &app).await?;
    let Query(query) = Query::<FileQuery>::from_request_parts(&mut parts, &app).await?;
    let path = required(query.path, "path")?;
    let file = app.control.read_file(record.id, &path, 0, None).await?;
    serve(&app, &record, &path, &parts.headers, "text/plain; charset=utf-8", file).await
}

/// A file, or the range of it that was asked for.
async fn serve(
    app: &App,
    record: &ComputerRecord,
    path: &str,
    headers: &HeaderMap,
    kind: &str,
    whole: FileDownload,
) -> Result<Response, Refusal> {
    let Some(info) = whole.info.clone() else {
        return Err(ApiError::new(ErrorCode::Internal, "a file without its size").into());
    };
    let tag = format!("\"{:x}-{:x}-{:x}\"", info.size, info.modified_ns, info.inode);
    let name = String::from_utf8_lossy(&info.name).into_owned();
    let common = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CONTENT_DISPOSITION, attachment(&name)),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, tag.clone()),
        // A program in the computer wrote it: no browser shall make a page of it.
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    let is_same = headers.get(header::IF_RANGE).is_none_or(|wanted| wanted.as_bytes() == tag.as_bytes());
    let range = headers.get(header::RANGE).filter(|_| is_same).and_then(|range| range.to_str().ok());
    let (status, length, content) = match range.map_or(Wanted::All, |range| wanted(range, info.size)) {
        Wanted::All => (StatusCode::OK, info.size, whole),
        Wanted::Part { first, last } => {
            drop(whole);
            let length = last - first + 1;
            let part = app.control.read_file(record.id, path, first, Some(length)).await?;
            if part.info.as_ref().is_none_or(|now| now.size <= last) {
                let message = "the file has become shorter meanwhile; try again";
                return Err(ApiError::new(ErrorCode::ResourceState, message).into());
            }
            (StatusCode::PARTIAL_CONTENT, length, part)
        }
        Wanted::Nothing => {
            let message = format!("the file has {} bytes; the range is not in it", info.size);
            let refused =
                Refusal::from(ApiError::new(ErrorCode::RangeNotSatisfiable, message)).into_response();
            let range = [(header::CONTENT_RANGE, format!("bytes */{}", info.size))];
            return Ok((range, refused).into_response());
        }
    };
    let mut response = (status, common, Body::from_stream(content.into_stream())).into_response();
    let more = response.headers_mut();
    more.insert(header::CONTENT_LENGTH, length.into());
    if let Wanted::Part { first, last } = range.map_or(Wanted::All, |range| wanted(range, info.size)) {
        let range = format!("bytes {first}-{last}/{}", info.size);
        if let Ok(range) = range.parse() {
            more.insert(header::CONTENT_RANGE, range);
        }
    }
    Ok(response)
}

/// What a `Range` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    /// Both are in the file.
    Part {
        first: u64,
        last: u64,
    },
    Nothing,
}

/// One range of bytes; several, and whatever is none, are answered with the whole (RFC 9110).
fn wanted(range: &str, size: u64) -> Wanted {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-'))
    else {
        return Wanted::All;
    };
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), _) if last.is_empty() && first < size => Wanted::Part { first, last: size - 1 },
        (Ok(first), Ok(last)) if first <= last && first < size => {
            Wanted::Part { first, last: last.min(size - 1) }
        }
        (Ok(first), Ok(last)) if first > last => Wanted::All,
        (Ok(_), Ok(_)) => Wanted::Nothing,
        (Ok(_), Err(_)) if last.is_empty() => Wanted::Nothing,
        (Err(_), Ok(0)) if first.is_empty() => Wanted::Nothing,
        (Err(_), Ok(_)) if first.is_empty() && size == 0 => Wanted::Nothing,
        (Err(_), Ok(count)) if first.is_empty() => {
            Wanted::Part { first: size.saturating_sub(count), last: size - 1 }
        }
        _ => Wanted::All,
    }
}

async fn archive(
    app: &App,
    record: &ComputerRecord,
    path: &str,
    format: ArchiveFormat,
) -> Result<Response, Refusal> {
    let packed = app.control.pack(record.id, path).await?;
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let (kind, extension) = match format {
        ArchiveFormat::Tar => ("application/x-tar", "tar"),
        ArchiveFormat::Zip => ("application/zip", "zip"),
    };
    let headers = [
        (header::CONTENT_TYPE, kind.to_owned()),
        (header::CONTENT_DISPOSITION, attachment(&format!("{name}.{extension}"))),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    let body = match format {
        ArchiveFormat::Tar => Body::from_stream(packed.into_stream()),
        ArchiveFormat::Zip => Body::from_stream(zipped(packed)),
    };
    Ok((headers, body).into_response())
}

/// The tar archive as a zip, made here because the computer's CPU may be emulated.
fn zipped(packed: FileDownload) -> impl Stream<Item = io::Result<Bytes>> {
    let (writer, reader) = tokio::io::duplex(256 * 1024);
    let tar = SyncIoBridge::new(StreamReader::new(packed.into_stream().map_err(io::Error::other).boxed()));
    let zip = SyncIoBridge::new(writer);
    let work = tokio::task::spawn_blocking(move || crate::zip::from_tar(tar, zip));
    let content = tokio_util::io::ReaderStream::new(reader);
    // The end of what was written says nothing of how it ended.
    let verdict = stream::once(async move {
        match work.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Err(error)),
            Err(error) => Some(Err(io::Error::other(error))),
        }
    });
    content.chain(verdict.filter_map(std::future::ready))
}

/// Write a file whose content is in the body
#[utoipa::path(post, path = "/computers/{id}/files/write", tag = "files", params(("id" = String, Path)),
    request_body = WriteFileRequest,
    responses((status = 200, body = WrittenFile), (status = "default", body = ErrorBody)))]
async fn write(State(app): State<App>, request: Request) -> Result<Json<WrittenFile>, Refusal> {
    let (mut parts, body) = request.into_parts();
    let record = running(&mut parts, &app).await?;
    let request = body_of_at_most(body, MOST_JSON).await?.parse::<WriteFileRequest>()?;
    Ok(Json(write_one(&app, record.id, request).await?))
}

async fn write_one(app: &App, id: ComputerId, request: WriteFileRequest) -> Result<WrittenFile, Refusal> {
    let path = required(request.path.clone(), "path")?;
    let content = content_of(&request)?;
    let upload =
        FileUpload { path: path.clone(), mode: request.mode.map(|mode| mode.0), ..FileUpload::default() };
    let content = stream::iter([Ok::<_, Infallible>(Bytes::from(content))]);
    let written = app.control.write_file(id, upload, content).await?;
    Ok(written_file(path, &written.file.unwrap_or_default()))
}

fn content_of(request: &WriteFileRequest) -> Result<Vec<u8>, ApiError> {
    match (&request.content_base64, &request.content) {
        (Some(encoded), _) => STANDARD
            .decode(encoded)
            .map_err(|error| ApiError::field("content_base64", format!("not base64: {error}"))),
        (None, Some(text)) => Ok(text.clone().into_bytes()),
        (None, None) => Err(ApiError::new(ErrorCode::MissingParam, "content or content_base64 is required")),
    }
}

fn written_file(path: String, info: &FileInfo) -> WrittenFile {
    WrittenFile {
        success: true,
        name: path.rsplit('/').next().unwrap_or_default().to_owned(),
        path,
        size: info.size,
        is_dir: false,
        modified_at: modified_at(info),
    }
}

/// Write several files, one after the other; all names and contents are looked at before the first is written
#[utoipa::path(post, path = "/computers/{id}/files/write-many", tag = "files", params(("id" = String, Path)),
    request_body = WriteFilesRequest,
    responses((status = 200, body = WrittenFiles), (status = "default", body = ErrorBody)))]
async fn write_many(State(app): State<App>, request: Request) -> Result<Json<WrittenFiles>, Refusal> {
    let (mut parts, body) = request.into_parts();
    let record = running(&mut parts, &app).await?;
    let WriteFilesRequest { files } = body_of_at_most(body, MOST_JSON).await?.parse()?;
    for file in &files {
        required(file.path.clone(), "path")?;
        content_of(file)?;
    }
    let written = files.len();
    for file in files {
        write_one(&app, record.id, file).await?;
    }
    Ok(Json(WrittenFiles { success: true, written }))
}

/// Upload a file as a form: `file`, and `path` (`/workspace/`), to which a final slash adds the file's name
#[utoipa::path(post, path = "/computers/{id}/files/upload", tag = "files", params(("id" = String, Path)),
    request_body(content_type = "multipart/form-data", content = UploadForm),
    responses((status = 201, body = UploadedFile), (status = "default", body = ErrorBody)))]
async fn upload(
    State(app): State<App>,
    request: Request,
) -> Result<(StatusCode, Json<UploadedFile>), Refusal> {
    let (mut parts, body) = request.into_parts();
    let record = running(&mut parts, &app).await?;
    let request = Request::from_parts(parts, body);
    let form = Multipart::from_request(request, &app).await;
    let mut form = form.map_err(|error| not_a_form(&error.body_text()))?;
    let mut path = None;
    // A file that comes before its path waits beside where it may go.
    let mut waiting: Option<(String, String, u64)> = None;
    let mut uploaded: Option<(String, String, u64)> = None;
    while let Some(field) = form.next_field().await.map_err(|error| not_a_form(&error.body_text()))? {
        match field.name() {
            Some("path") => {
                path = Some(field.text().await.map_err(|error| not_a_form(&error.body_text()))?);
            }
            Some("file") if uploaded.is_none() && waiting.is_none() => {
                let name = file_name(field.file_name().unwrap_or_default());
                match &path {
                    Some(path) => {
                        let path = destination(path, &name)?;
                        let size = receive(&app, record.id, &path, field).await?;
                        uploaded = Some((path, name, size));
                    }
                    None => {
                        let path = format!("/tmp/.roost-upload-{}", Uuid::new_v4());
                        let size = receive(&app, record.id, &path, field).await?;
                        waiting = Some((path, name, size));
                    }
                }
            }
            _ => {}
        }
    }
    if let Some((from, name, size)) = waiting {
        let moved = async {
            let path = destination(path.as_deref().unwrap_or("/workspace/"), &name)?;
            app.control.rename_file(record.id, &from, &path).await?;
            Ok::<_, Refusal>(path)
        };
        match moved.await {
            Ok(path) => uploaded = Some((path, name, size)),
            Err(refused) => {
                // What cannot go where it should goes away.
                drop(app.control.remove_file(record.id, &from).await);
                return Err(refused);
            }
        }
    }
    let (path, _, size_bytes) = uploaded.ok_or_else(|| {
        ApiError::new(ErrorCode::MissingFile, "the form has no part `file`: the content of the file")
    })?;
    let filename = path.rsplit('/').next().unwrap_or_default().to_owned();
    let file = UploadedFileRow { path, filename, size_bytes };
    Ok((StatusCode::CREATED, Json(UploadedFile { success: true, file })))
}

fn not_a_form(why: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidBody, format!("the body is not a whole multipart form: {why}"))
}

async fn receive(app: &App, id: ComputerId, path: &str, field: Field<'_>) -> Result<u64, Refusal> {
    // The part borrows the form; what writes the file may not, so pieces pass between them.
    let (sender, pieces) = tokio::sync::mpsc::channel(4);
    let upload = FileUpload { path: path.to_owned(), ..FileUpload::default() };
    let pieces = tokio_stream::wrappers::ReceiverStream::new(pieces);
    let write = app.control.write_file(id, upload, pieces);
    let mut field = field;
    let read = async move {
        loop {
            let piece = match field.chunk().await {
                Ok(Some(piece)) => Ok(piece),
                Ok(None) => return,
                Err(error) => Err(io::Error::other(error.body_text())),
            };
            let is_broken = piece.is_err();
            if sender.send(piece).await.is_err() || is_broken {
                return;
            }
        }
    };
    let (written, ()) = tokio::join!(write, read);
    Ok(written?.received)
}

/// The last name in what a client calls its file.
fn file_name(sent: &str) -> String {
    sent.rsplit(['/', '\\']).next().unwrap_or_default().to_owned()
}

fn destination(path: &str, name: &str) -> Result<String, ApiError> {
    if !path.ends_with('/') {
        return Ok(path.to_owned());
    }
    if name.is_empty() || name == "." || name == ".." {
        let message = "the file has no name, and the path is a directory; name the file in the path";
        return Err(ApiError::new(ErrorCode::InvalidPath, message));
    }
    Ok(format!("{path}{name}"))
}

/// Write a file of any size, which is the body as it is; or go on with an upload
#[utoipa::path(put, path = "/computers/{id}/files/content", tag = "files",
    params(("id" = String, Path), PutFileQuery),
    request_body(content_type = "application/octet-stream", content = inline(Binary)),
    responses((status = 200, description = "The file is there", body = WrittenFile),
        (status = 202, description = "The upload has more to come", body = UploadProgress),
        (status = "default", body = ErrorBody)))]
async fn put(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let (mut parts, body) = request.into_parts();
    let record = running(&mut parts, &app).await?;
    let Query(query) = Query::<PutFileQuery>::from_request_parts(&mut parts, &app).await?;
    let path = required(query.path, "path")?;
    let mode = query.mode.as_deref().map(str::parse::<FileMode>).transpose();
    let mode = mode.map_err(|error| ApiError::field("mode", error))?;
    if query.upload_id.is_none() && (query.offset.is_some() || query.total.is_some()) {
        return Err(ApiError::field("upload_id", "missing beside offset or total").into());
    }
    if query.upload_id.is_some() && query.total.is_none() {
        return Err(ApiError::field("total", "missing beside upload_id: how long the file is").into());
    }
    let upload = FileUpload {
        path: path.clone(),
        mode: mode.map(|mode| mode.0),
        upload: query.upload_id.clone(),
        offset: query.offset.unwrap_or_default(),
        total: query.total,
        modified_at: query.modified_at,
    };
    let written = app.control.write_file(record.id, upload, body.into_data_stream()).await?;
    match written.file {
        Some(info) => Ok(Json(written_file(path, &info)).into_response()),
        None => {
            let progress = UploadProgress {
                success: true,
                path,
                upload_id: query.upload_id.unwrap_or_default(),
                received: written.received,
                complete: false,
            };
            Ok((StatusCode::ACCEPTED, Json(progress)).into_response())
        }
    }
}

/// An upload of the caller's: whose file it is, and its id.
#[derive(Debug)]
struct Uploading {
    computer: ComputerId,
    path: String,
    upload: String,
}

impl FromRequestParts<App> for Uploading {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let record = running(parts, app).await?;
        let PathName(upload) = PathName::from_request_parts(parts, app).await?;
        let Query(query) = Query::<FileQuery>::from_request_parts(parts, app).await?;
        Ok(Self { computer: record.id, path: required(query.path, "path")?, upload })
    }
}

/// How much of an upload has arrived; 0 where nothing is known of it
#[utoipa::path(get, path = "/computers/{id}/files/uploads/{name}", tag = "files",
    params(("id" = String, Path), ("name" = String, Path, description = "The upload's id"), FileQuery),
    responses((status = 200, body = UploadProgress), (status = "default", body = ErrorBody)))]
async fn upload_progress(State(app): State<App>, asked: Uploading) -> Result<Json<UploadProgress>, Refusal> {
    Ok(Json(app.control.upload_state(asked.computer, &asked.path, &asked.upload, false).await?))
}

/// Forget an upload
#[utoipa::path(delete, path = "/computers/{id}/files/uploads/{name}", tag = "files",
    params(("id" = String, Path), ("name" = String, Path, description = "The upload's id"), FileQuery),
    responses((status = 200, body = UploadProgress), (status = "default", body = ErrorBody)))]
async fn discard_upload(State(app): State<App>, asked: Uploading) -> Result<Json<UploadProgress>, Refusal> {
    Ok(Json(app.control.upload_state(asked.computer, &asked.path, &asked.upload, true).await?))
}

/// Unpack a tar archive, which is the body, into a directory
#[utoipa::path(put, path = "/computers/{id}/files/archive", tag = "files",
    params(("id" = String, Path), FileQuery),
    request_body(content_type = "application/x-tar", content = inline(Binary)),
    responses((status = 200, body = UnpackedArchive), (status = "default", body = ErrorBody)))]
async fn unpack(State(app): State<App>, request: Request) -> Result<Json<UnpackedArchive>, Refusal> {
    let (mut parts, body) = request.into_parts();
    let record = running(&mut parts, &app).await?;
    let Query(query) = Query::<FileQuery>::from_request_parts(&mut parts, &app).await?;
    let path = required(query.path, "path")?;
    let entries = app.control.unpack(record.id, &path, body.into_data_stream()).await?;
    Ok(Json(UnpackedArchive { success: true, path, entries }))
}

/// A link to a file that needs no credential for half an hour, and its content where it is small
#[utoipa::path(post, path = "/computers/{id}/files/export", tag = "files", params(("id" = String, Path)),
    request_body = FilePathRequest,
    responses((status = 200, body = ExportedFile), (status = "default", body = ErrorBody)))]
async fn export(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<ExportedFile>, Refusal> {
    app.control.require_running(&record)?;
    let path = required(body.parse::<FilePathRequest>()?.path, "path")?;
    let file = app.control.read_file(record.id, &path, 0, None).await?;
    let info = file.info.clone().unwrap_or_default();
    let content_base64 = if info.size <= MOST_INLINE {
        let pieces: Vec<Bytes> = file
            .into_stream()
            .try_collect()
            .await
            .map_err(|error| ApiError::new(ErrorCode::AgentUnavailable, error.message()))?;
        Some(STANDARD.encode(pieces.concat()))
    } else {
        None
    };
    let (url, expires_at) = app.control.export_url(record.id, &path)?;
    Ok(Json(ExportedFile {
        success: true,
        filename: path.rsplit('/').next().unwrap_or_default().to_owned(),
        path,
        size_bytes: info.size,
        url,
        expires_at,
        content_base64,
    }))
}

/// Delete a file, or a directory with everything in it
#[utoipa::path(delete, path = "/computers/{id}/files", tag = "files", params(("id" = String, Path), FileQuery),
    request_body = Option<FilePathRequest>,
    responses((status = 200, body = FileDone), (status = "default", body = ErrorBody)))]
async fn delete(
    State(app): State<App>,
    Target(record): Target,
    Query(query): Query<FileQuery>,
    body: RawBody,
) -> Result<Json<FileDone>, Refusal> {
    app.control.require_running(&record)?;
    let path = required(body.parse::<FilePathRequest>()?.path.or(query.path), "path")?;
    app.control.remove_file(record.id, &path).await?;
    Ok(Json(FileDone::new(path)))
}

/// Make a directory
#[utoipa::path(post, path = "/computers/{id}/files/mkdir", tag = "files", params(("id" = String, Path)),
    request_body = MakeDirectory,
    responses((status = 200, body = FileDone), (status = "default", body = ErrorBody)))]
async fn mkdir(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<FileDone>, Refusal> {
    app.control.require_running(&record)?;
    let MakeDirectory { path, recursive, mode } = body.parse()?;
    let path = required(path, "path")?;
    let mode = mode.map(|mode| mode.0);
    app.control.make_directory(record.id, &path, recursive.unwrap_or(true), mode).await?;
    Ok(Json(FileDone::new(path)))
}

/// Give a file or directory another path
#[utoipa::path(post, path = "/computers/{id}/files/rename", tag = "files", params(("id" = String, Path)),
    request_body = RenameFile,
    responses((status = 200, body = FileDone), (status = "default", body = ErrorBody)))]
async fn rename(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<FileDone>, Refusal> {
    app.control.require_running(&record)?;
    let RenameFile { from, to } = body.parse()?;
    let (from, to) = (required(from, "from")?, required(to, "to")?);
    app.control.rename_file(record.id, &from, &to).await?;
    Ok(Json(FileDone::new(to)))
}

/// Copy a file, or a directory where `recursive` is true
#[utoipa::path(post, path = "/computers/{id}/files/copy", tag = "files", params(("id" = String, Path)),
    request_body = CopyFile,
    responses((status = 200, body = FileDone), (status = "default", body = ErrorBody)))]
async fn copy(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<FileDone>, Refusal> {
    app.control.require_running(&record)?;
    let CopyFile { from, to, recursive } = body.parse()?;
    let (from, to) = (required(from, "from")?, required(to, "to")?);
    app.control.copy_file(record.id, &from, &to, recursive.unwrap_or_default()).await?;
    Ok(Json(FileDone::new(to)))
}

/// Change the permission bits of a file or directory
#[utoipa::path(post, path = "/computers/{id}/files/chmod", tag = "files", params(("id" = String, Path)),
    request_body = ChangeFileMode,
    responses((status = 200, body = FileDone), (status = "default", body = ErrorBody)))]
async fn chmod(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<FileDone>, Refusal> {
    app.control.require_running(&record)?;
    let ChangeFileMode { path, mode } = body.parse()?;
    let path = required(path, "path")?;
    let mode = mode.ok_or_else(|| {
        ApiError::new(ErrorCode::MissingParam, "mode is required: octal digits such as \"0755\"")
    })?;
    app.control.change_mode(record.id, &path, mode.0).await?;
    Ok(Json(FileDone::new(path)))
}

/// Look for files by a pattern of their name, or by text in them
#[utoipa::path(get, path = "/computers/{id}/files/search", tag = "files",
    params(("id" = String, Path), SearchFiles),
    responses((status = 200, body = FoundFiles), (status = "default", body = ErrorBody)))]
async fn search(
    State(app): State<App>,
    Target(record): Target,
    Query(query): Query<SearchFiles>,
) -> Result<Json<FoundFiles>, Refusal> {
    app.control.require_running(&record)?;
    let is_some = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if !is_some(&query.name) && !is_some(&query.content) {
        return Err(ApiError::new(ErrorCode::MissingParam, "name or content is required").into());
    }
    Ok(Json(app.control.search_files(record.id, query).await?))
}

/// Follow what changes in a directory, as server-sent events
#[utoipa::path(get, path = "/computers/{id}/files/watch", tag = "files",
    params(("id" = String, Path), WatchFiles),
    responses((status = 200, description = "Events `created`, `modified`, `deleted`, `moved_from`, `moved_to`, \
            `attributes`, and `overflow` where some were lost", body = String, content_type = "text/event-stream"),
        (status = "default", body = ErrorBody)))]
async fn watch(
    State(app): State<App>,
    Auth(caller): Auth,
    Target(record): Target,
    Query(query): Query<WatchFiles>,
) -> Result<impl IntoResponse, Refusal> {
    app.control.require_running(&record)?;
    let path = query.path.filter(|path| !path.is_empty()).unwrap_or_else(|| DEFAULT_DIRECTORY.to_owned());
    let events = app.control.watch_files(record.id, &path, query.recursive.unwrap_or_default()).await?;
    let events = events.filter_map(|event| std::future::ready(event.ok().and_then(|event| shown(&event))));
    Ok(sse::respond(app.control.while_usable(caller, record.id, Act::Read, events)))
}

fn shown(event: &FileEvent) -> Option<Event> {
    let kind = match event.change() {
        FileChange::Created => "created",
        FileChange::Modified => "modified",
        FileChange::Deleted => "deleted",
        FileChange::MovedFrom => "moved_from",
        FileChange::MovedTo => "moved_to",
        FileChange::Attributes => "attributes",
        FileChange::Overflow => "overflow",
        FileChange::Unspecified => return None,
    };
    let data = json!({ "type": kind, "path": event.path, "is_dir": event.is_directory });
    Some(Event::default().event(kind).data(data.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_range_leads_out_of_a_file(
            range in "(bytes=)?[0-9]{0,21}-[0-9]{0,21}|.{0,20}",
            size in prop_oneof![0..20u64, any::<u64>()],
        ) {
            if let Wanted::Part { first, last } = wanted(&range, size) {
                prop_assert!(first <= last && last < size, "{range} of {size}: {first}-{last}");
            }
        }

        #[test]
        fn an_upload_has_one_name(path in any::<String>(), sent in any::<String>()) {
            let name = file_name(&sent);
            prop_assert!(!name.contains(['/', '\\']));
            if let Ok(to) = destination(&path, &name) {
                prop_assert!(!to.ends_with('/') && to.starts_with(&path));
                prop_assert!(!to.ends_with("/..") || path.ends_with("/.."));
            }
        }
    }

    #[test]
    fn ranges_are_read_as_http_says() {
        let part = |first, last| Wanted::Part { first, last };
        let cases = [
            ("bytes=0-0", 10, part(0, 0)),
            ("bytes=2-5", 10, part(2, 5)),
            ("bytes=2-", 10, part(2, 9)),
            ("bytes=2-99", 10, part(2, 9)),
            ("bytes=-3", 10, part(7, 9)),
            ("bytes=-99", 10, part(0, 9)),
            ("bytes=10-", 10, Wanted::Nothing),
            ("bytes=10-11", 10, Wanted::Nothing),
            ("bytes=-0", 10, Wanted::Nothing),
            ("bytes=0-", 0, Wanted::Nothing),
            ("bytes=-1", 0, Wanted::Nothing),
            ("bytes=5-2", 10, Wanted::All),
            ("bytes=a-b", 10, Wanted::All),
            ("bytes=0-1,3-4", 10, Wanted::All),
            ("lines=1-2", 10, Wanted::All),
            ("", 10, Wanted::All),
        ];
        for (range, size, expected) in cases {
            assert_eq!(wanted(range, size), expected, "{range} of {size}");
        }
    }

    #[test]
    fn an_upload_keeps_to_its_directory() {
        assert_eq!(file_name("../../etc/passwd"), "passwd");
        assert_eq!(file_name("C:\\x\\y.txt"), "y.txt");
        assert_eq!(destination("/workspace/", "a b").unwrap(), "/workspace/a b");
        assert_eq!(destination("/workspace/x", "a").unwrap(), "/workspace/x");
        for name in ["", ".", ".."] {
            assert!(destination("/workspace/", name).is_err(), "{name:?}");
        }
    }
}
