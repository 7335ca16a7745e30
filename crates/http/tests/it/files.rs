//! Files over the wire: forms, ranges, uploads in parts, links; against an agent that keeps them in a table.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Body;
use axum::http::{Method, Request as HttpRequest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::BodyExt;
use roost_guest_proto::v1::files_server::{Files, FilesServer};
use roost_guest_proto::v1::write_file_input::Input;
use roost_guest_proto::v1::{
    ChangeModeRequest, FileContent, FileEvent, FileInfo, FileKind, FileList, FileMatch, FilePath,
    MakeDirectoryRequest, MoveFileRequest, ReadFileRequest, RemoveFileReply, SearchFilesRequest, UnpackReply,
    UploadStateReply, UploadStateRequest, WatchFilesRequest, WriteFileInput, WriteFileReply,
};
use roost_guest_proto::{FILE_IS_DIRECTORY, FILE_OUTSIDE};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};
use tower::ServiceExt;

use crate::support::{Reply, Server};

type Answer<T> = Result<Response<T>, Status>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

type Content = Vec<u8>;
type Mode = u32;

/// Files by their paths; directories are what files are below.
#[derive(Debug, Clone, Default)]
struct Shelf {
    files: Arc<Mutex<BTreeMap<String, (Content, Mode)>>>,
    uploads: Arc<Mutex<BTreeMap<String, Content>>>,
}

impl Shelf {
    /// The guest of every computer that is made from now on.
    async fn of(server: &Server) -> Self {
        let shelf = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = tonic::transport::Server::builder().add_service(FilesServer::new(shelf.clone()));
        tokio::spawn(router.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        let channel: Channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        server.launcher.set_guest(channel);
        shelf
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, (Vec<u8>, u32)>> {
        self.files.lock().unwrap()
    }

    fn put(&self, path: &str, content: &[u8]) {
        self.files().insert(path.to_owned(), (content.to_vec(), 0o644));
    }

    fn content(&self, path: &str) -> Option<Vec<u8>> {
        self.files().get(path).map(|(content, _)| content.clone())
    }

    fn info(&self, path: &str) -> Result<FileInfo, Status> {
        let files = self.files();
        let (content, mode) = files.get(path).ok_or_else(|| Status::not_found("no such file"))?;
        Ok(FileInfo {
            name: path.rsplit('/').next().unwrap().to_owned().into(),
            kind: FileKind::File.into(),
            size: content.len() as u64,
            mode: *mode,
            modified_ns: 1_700_000_000_000_000_000,
            inode: 7,
            ..FileInfo::default()
        })
    }
}

fn allowed(file: Option<FilePath>) -> Result<String, Status> {
    let FilePath { path, roots } = file.unwrap();
    if !path.starts_with('/') {
        return Err(Status::invalid_argument("it does not begin with a slash"));
    }
    if !roots.iter().any(|root| path.starts_with(root)) {
        return Err(Status::permission_denied(format!("{FILE_OUTSIDE}: {path}")));
    }
    Ok(path)
}

fn not_needed<T>() -> Answer<T> {
    Err(Status::unimplemented("no test needs it"))
}

#[tonic::async_trait]
impl Files for Shelf {
    async fn stat_file(&self, request: Request<FilePath>) -> Answer<FileInfo> {
        Ok(Response::new(self.info(&allowed(Some(request.into_inner()))?)?))
    }

    type ListFilesStream = Replies<FileList>;

    async fn list_files(&self, request: Request<FilePath>) -> Answer<Self::ListFilesStream> {
        let directory = allowed(Some(request.into_inner()))? + "/";
        let paths: Vec<String> = self.files().keys().rev().cloned().collect();
        let below = paths.iter().filter(|path| path.starts_with(&directory));
        let lists: Vec<_> = below.map(|path| Ok(FileList { entries: vec![self.info(path)?] })).collect();
        Ok(Response::new(stream::iter(lists).boxed()))
    }

    type ReadFileStream = Replies<FileContent>;

    async fn read_file(&self, request: Request<ReadFileRequest>) -> Answer<Self::ReadFileStream> {
        let ReadFileRequest { file, offset, length } = request.into_inner();
        let path = allowed(file)?;
        if path == "/workspace" {
            return Err(Status::failed_precondition(format!("{path} {FILE_IS_DIRECTORY}")));
        }
        let info = self.info(&path)?;
        let content = self.content(&path).unwrap();
        let from = usize::try_from(offset).unwrap().min(content.len());
        let length = length.map_or(usize::MAX, |length| usize::try_from(length).unwrap());
        let part: Vec<u8> = content[from..].iter().take(length).copied().collect();
        let mut replies = vec![Ok(FileContent { info: Some(info), data: Bytes::new() })];
        replies
            .extend(part.chunks(3).map(|piece| Ok(FileContent { info: None, data: piece.to_vec().into() })));
        if path.ends_with("shrinks") {
            replies.push(Err(Status::internal("it has become shorter")));
        }
        Ok(Response::new(stream::iter(replies).boxed()))
    }

    async fn write_file(&self, request: Request<Streaming<WriteFileInput>>) -> Answer<WriteFileReply> {
        let mut input = request.into_inner();
        let Some(WriteFileInput { input: Some(Input::Start(start)) }) = input.message().await? else {
            return Err(Status::invalid_argument("no start"));
        };
        let path = allowed(start.file)?;
        let mut content = self.uploads.lock().unwrap().get(&start.upload).cloned().unwrap_or_default();
        if content.len() as u64 != start.offset {
            return Err(Status::out_of_range(format!("the upload has {} bytes", content.len())));
        }
        let mut is_finished = false;
        while let Ok(Some(WriteFileInput { input: Some(piece) })) = input.message().await {
            match piece {
                Input::Data(data) => content.extend_from_slice(&data),
                Input::Finish(_) => is_finished = true,
                Input::Start(_) => return Err(Status::invalid_argument("two starts")),
            }
        }
        let received = content.len() as u64;
        if is_finished && start.total.is_none_or(|total| total == received) {
            self.files().insert(path.clone(), (content, start.mode.unwrap_or(0o644)));
            return Ok(Response::new(WriteFileReply { file: Some(self.info(&path)?), received }));
        }
        if !start.upload.is_empty() {
            self.uploads.lock().unwrap().insert(start.upload, content);
        }
        match is_finished {
            true => Ok(Response::new(WriteFileReply { file: None, received })),
            false => Err(Status::cancelled("the call ended before the file did")),
        }
    }

    async fn upload_state(&self, request: Request<UploadStateRequest>) -> Answer<UploadStateReply> {
        let UploadStateRequest { file, upload, discard } = request.into_inner();
        allowed(file)?;
        let mut uploads = self.uploads.lock().unwrap();
        if discard {
            uploads.remove(&upload);
        }
        let received = uploads.get(&upload).map_or(0, |content| content.len() as u64);
        Ok(Response::new(UploadStateReply { received }))
    }

    async fn make_directory(&self, request: Request<MakeDirectoryRequest>) -> Answer<FileInfo> {
        let request = request.into_inner();
        allowed(request.directory)?;
        assert_eq!((request.recursive, request.mode), (true, Some(0o700)));
        Ok(Response::new(FileInfo::default()))
    }

    async fn move_file(&self, request: Request<MoveFileRequest>) -> Answer<FileInfo> {
        let MoveFileRequest { from, to, .. } = request.into_inner();
        let roots = from.clone().unwrap().roots;
        let (from, to) = (allowed(from)?, allowed(Some(FilePath { path: to, roots }))?);
        let file = self.files().remove(&from).ok_or_else(|| Status::not_found("no such file"))?;
        self.files().insert(to.clone(), file);
        Ok(Response::new(self.info(&to)?))
    }

    async fn copy_file(&self, request: Request<MoveFileRequest>) -> Answer<FileInfo> {
        let MoveFileRequest { from, to, .. } = request.into_inner();
        let file = self.files().get(&allowed(from)?).cloned().ok_or_else(|| Status::not_found("no file"))?;
        self.files().insert(to.clone(), file);
        Ok(Response::new(self.info(&to)?))
    }

    async fn remove_file(&self, request: Request<FilePath>) -> Answer<RemoveFileReply> {
        let removed = self.files().remove(&allowed(Some(request.into_inner()))?);
        removed.map(|_| Response::new(RemoveFileReply {})).ok_or_else(|| Status::not_found("no such file"))
    }

    async fn change_mode(&self, request: Request<ChangeModeRequest>) -> Answer<FileInfo> {
        let ChangeModeRequest { file, mode } = request.into_inner();
        let path = allowed(file)?;
        self.files().get_mut(&path).ok_or_else(|| Status::not_found("no such file"))?.1 = mode;
        Ok(Response::new(self.info(&path)?))
    }

    type PackStream = Replies<FileContent>;

    async fn pack(&self, request: Request<FilePath>) -> Answer<Self::PackStream> {
        let directory = allowed(Some(request.into_inner()))? + "/";
        let mut archive = tar::Builder::new(Vec::new());
        for (path, (content, mode)) in self.files().iter() {
            let Some(name) = path.strip_prefix(&directory) else { continue };
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(*mode);
            archive.append_data(&mut header, name, content.as_slice()).unwrap();
        }
        let archive = archive.into_inner().unwrap();
        let pieces: Vec<_> = archive
            .chunks(1000)
            .map(|piece| Ok(FileContent { info: None, data: piece.to_vec().into() }))
            .collect();
        Ok(Response::new(stream::iter(pieces).boxed()))
    }

    async fn unpack(&self, _: Request<Streaming<WriteFileInput>>) -> Answer<UnpackReply> {
        not_needed()
    }

    type SearchFilesStream = Replies<FileMatch>;

    async fn search_files(&self, _: Request<SearchFilesRequest>) -> Answer<Self::SearchFilesStream> {
        not_needed()
    }

    type WatchFilesStream = Replies<FileEvent>;

    async fn watch_files(&self, _: Request<WatchFilesRequest>) -> Answer<Self::WatchFilesStream> {
        not_needed()
    }
}

async fn furnished() -> (Server, String, Shelf) {
    let server = Server::new().await;
    let shelf = Shelf::of(&server).await;
    let id = server.computer().await;
    (server, format!("/computers/{id}/files"), shelf)
}

impl Server {
    /// A request whose body is bytes, and an answer that may be too.
    async fn bytes(
        &self,
        request: HttpRequest<Body>,
    ) -> (axum::http::response::Parts, Result<Bytes, String>) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).map_err(|error| error.to_string());
        (parts, body)
    }

    fn asks(&self, method: Method, path: &str) -> axum::http::request::Builder {
        HttpRequest::builder()
            .method(method)
            .uri(format!("/api/v1{path}"))
            .header("authorization", format!("Bearer {}", self.key))
    }
}

const BOUNDARY: &str = "--boundary";

fn form(parts: &[(&str, Option<&str>, &str)]) -> String {
    let mut form = String::new();
    for (name, file, content) in parts {
        let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
        form += &format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{content}\r\n"
        );
    }
    form + &format!("--{BOUNDARY}--\r\n")
}

async fn post_form(server: &Server, path: &str, form: &str) -> Reply {
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    server.send(Method::POST, path, Some(&server.key), &[("content-type", &kind)], form).await
}

#[tokio::test]
async fn a_form_puts_its_file_where_its_path_says_wherever_that_is_in_it() {
    let (server, files, shelf) = furnished().await;
    let upload = format!("{files}/upload");
    let path = ("path", None, "/workspace/dir/");
    let file = ("file", Some("../a b.txt"), "content");
    for parts in [[path, file], [file, path]] {
        shelf.files().clear();
        let reply = post_form(&server, &upload, &form(&parts)).await;
        assert_eq!(reply.status, 201, "{}", reply.body);
        let expected = json!({ "path": "/workspace/dir/a b.txt", "filename": "a b.txt", "size_bytes": 7 });
        assert_eq!(reply.json(), json!({ "success": true, "file": expected }));
        assert_eq!(shelf.content("/workspace/dir/a b.txt").unwrap(), b"content");
        assert_eq!(shelf.files().len(), 1, "something was left");
    }
    let reply = post_form(&server, &upload, &form(&[file])).await;
    assert_eq!(reply.json()["file"]["path"], json!("/workspace/a b.txt"));
    let refusals = [
        (form(&[path]), 400, "MISSING_FILE"),
        (form(&[("path", None, "/etc/x"), file]), 403, "FORBIDDEN_PATH"),
        (form(&[file, ("path", None, "/etc/x")]), 403, "FORBIDDEN_PATH"),
        (form(&[("path", None, "relative"), file]), 400, "INVALID_PATH"),
        (form(&[path, file])[..120].to_owned(), 400, "INVALID_BODY"),
        ("no form".to_owned(), 400, "INVALID_BODY"),
    ];
    for (body, status, code) in refusals {
        shelf.files().clear();
        let reply = post_form(&server, &upload, &body).await;
        assert_eq!((reply.status, &reply.json()["code"]), (status, &json!(code)), "{body}");
        assert!(shelf.files().is_empty(), "{body} left something");
    }
    let reply = server.send(Method::POST, &upload, Some(&server.key), &[], "x").await;
    assert_eq!(reply.json()["code"], json!("INVALID_BODY"));
}

#[tokio::test]
async fn files_are_written_and_read_as_the_clients_do() {
    let (server, files, shelf) = furnished().await;
    let content = STANDARD.encode(b"\x00\xff");
    let body = json!({ "path": "/home/user/b", "content_base64": content, "mode": "0600" });
    let (status, written) = server.post(&format!("{files}/write"), body).await;
    assert_eq!(status, 200, "{written}");
    assert_eq!(
        (&written["success"], &written["name"], &written["size"]),
        (&json!(true), &json!("b"), &json!(2))
    );
    assert_eq!((&written["is_dir"], &written["path"]), (&json!(false), &json!("/home/user/b")));
    assert_eq!(shelf.files()["/home/user/b"], (b"\x00\xff".to_vec(), 0o600));
    let many = json!({ "files": [
        { "path": "/tmp/1", "content": "one", "mode": 0o755 }, { "path": "/tmp/2", "content": "" },
    ] });
    let (status, written) = server.post(&format!("{files}/write-many"), many).await;
    assert_eq!((status, written), (200, json!({ "success": true, "written": 2 })));
    let half = json!({ "files": [{ "path": "/tmp/3", "content": "x" }, { "path": "/tmp/4" }] });
    assert_eq!(server.post(&format!("{files}/write-many"), half).await.0, 400);
    assert_eq!(shelf.content("/tmp/3"), None, "half of a request was carried out");

    let (status, stat) = server.post(&format!("{files}/stat"), json!({ "path": "/tmp/1" })).await;
    assert_eq!((status, &stat["data"]["mode"]), (200, &json!(0o755)));
    assert_eq!((&stat["data"]["symlink_target"], &stat["data"]["is_symlink"]), (&Value::Null, &json!(false)));
    let path = format!("{files}/stat?path=/tmp/1");
    let go = server.send(Method::GET, &path, Some(&server.key), &[("user-agent", "miosa-go/2.1")], "").await;
    assert_eq!(go.json()["data"]["mode"], json!("0755"));
    let (status, list) = server.get(&format!("{files}?path=/tmp")).await;
    assert_eq!(status, 200);
    assert_eq!((&list["files"], &list["path"]), (&list["data"], &json!("/tmp")));
    assert_eq!((&list["entries"][0]["path"], &list["entries"][1]["name"]), (&json!("/tmp/1"), &json!("2")));
    assert_eq!(list["files"][0]["modified_at"], json!("2023-11-14T22:13:20Z"));
    assert_eq!(server.get(&format!("{files}/list?path=/tmp")).await.1, list);
    let (_, names) = server.get(&format!("{files}/readdir?path=/tmp")).await;
    assert_eq!(names["data"]["entries"][0]["name"], json!("1"));
    let reply =
        server.send(Method::GET, &format!("{files}/read?path=/tmp/1"), Some(&server.key), &[], "").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "one"));

    let moved = json!({ "from": "/tmp/1", "to": "/tmp/5" });
    assert_eq!(server.post(&format!("{files}/rename"), moved).await.0, 200);
    assert_eq!(
        server.post(&format!("{files}/chmod"), json!({ "path": "/tmp/5", "mode": "0644" })).await.0,
        200
    );
    assert_eq!(shelf.files()["/tmp/5"].1, 0o644);
    let directory = json!({ "path": "/tmp/d", "mode": "0700" });
    assert_eq!(server.post(&format!("{files}/mkdir"), directory).await.0, 200);
    let (status, deleted) = server.call(Method::DELETE, &files, json!({ "path": "/tmp/5" })).await;
    assert_eq!((status, deleted), (200, json!({ "success": true, "path": "/tmp/5" })));
    assert_eq!(server.delete(&format!("{files}?path=/tmp/2&recursive=true")).await.0, 200);
    assert_eq!(server.delete(&format!("{files}?path=/tmp/2")).await.1["message"], json!("file not found"));
    let refusals = [
        (json!({}), 400, "MISSING_PARAM"),
        (json!({ "path": "x" }), 400, "INVALID_PATH"),
        (json!({ "path": "/etc/passwd" }), 403, "FORBIDDEN_PATH"),
        (json!({ "path": "/tmp/gone" }), 404, "NOT_FOUND"),
    ];
    for (body, status, code) in refusals {
        let (got, refused) = server.post(&format!("{files}/stat"), body).await;
        assert_eq!((got, &refused["code"]), (status, &json!(code)));
    }
    for mode in [json!("999"), json!(70000)] {
        let body = json!({ "path": "/tmp/x", "mode": mode });
        assert_eq!(server.post(&format!("{files}/chmod"), body).await.0, 422);
    }
}

#[tokio::test]
async fn parts_of_a_file_can_be_asked_for() {
    let (server, files, shelf) = furnished().await;
    shelf.put("/tmp/digits", b"0123456789");
    let path = format!("{files}/download?path=/tmp/digits");
    let get = async |headers: &[(&str, &str)]| {
        let mut request = server.asks(Method::GET, &path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        server.bytes(request.body(Body::empty()).unwrap()).await
    };
    let (parts, body) = get(&[]).await;
    assert_eq!((parts.status.as_u16(), body.unwrap().as_ref()), (200, &b"0123456789"[..]));
    assert_eq!(parts.headers["content-length"], "10");
    assert_eq!(parts.headers["content-type"], "application/octet-stream");
    assert!(parts.headers["content-disposition"].to_str().unwrap().contains("filename=\"digits\""));
    let tag = parts.headers["etag"].to_str().unwrap().to_owned();
    let (parts, body) = get(&[("range", "bytes=3-5"), ("if-range", &tag)]).await;
    assert_eq!((parts.status.as_u16(), body.unwrap().as_ref()), (206, &b"345"[..]));
    assert_eq!(
        (&parts.headers["content-range"], &parts.headers["content-length"]),
        (&"bytes 3-5/10".parse().unwrap(), &"3".parse().unwrap())
    );
    let (parts, body) = get(&[("range", "bytes=-2")]).await;
    assert_eq!((parts.status.as_u16(), body.unwrap().as_ref()), (206, &b"89"[..]));
    let (parts, body) = get(&[("range", "bytes=3-5"), ("if-range", "\"another\"")]).await;
    assert_eq!((parts.status.as_u16(), body.unwrap().len()), (200, 10));
    let (parts, _) = get(&[("range", "bytes=10-")]).await;
    assert_eq!(
        (parts.status.as_u16(), &parts.headers["content-range"]),
        (416, &"bytes */10".parse().unwrap())
    );
    // What ends too early does not look whole.
    shelf.put("/tmp/shrinks", b"0123456789");
    let request = server.asks(Method::GET, &format!("{files}/download?path=/tmp/shrinks"));
    let (parts, body) = server.bytes(request.body(Body::empty()).unwrap()).await;
    assert_eq!(parts.status.as_u16(), 200);
    body.unwrap_err();
}

#[tokio::test]
async fn an_upload_in_parts_is_there_when_it_is_whole() {
    let (server, files, shelf) = furnished().await;
    let put = async |query: &str, body: Body| {
        let request = server.asks(Method::PUT, &format!("{files}/content?{query}"));
        let (parts, body) = server.bytes(request.body(body).unwrap()).await;
        (parts.status.as_u16(), serde_json::from_slice::<Value>(&body.unwrap()).unwrap())
    };
    let (status, written) = put("path=/tmp/whole&mode=755", Body::from("all of it")).await;
    assert_eq!((status, &written["size"]), (200, &json!(9)));
    assert_eq!(shelf.files()["/tmp/whole"].1, 0o755);
    let query = |offset: u64| format!("path=/tmp/big&upload_id=upload-1&total=8&offset={offset}");
    let (status, progress) = put(&query(0), Body::from("0123")).await;
    assert_eq!((status, &progress["received"], &progress["complete"]), (202, &json!(4), &json!(false)));
    let state = format!("{files}/uploads/upload-1?path=/tmp/big");
    assert_eq!(server.get(&state).await.1["received"], json!(4));
    assert_eq!(put(&query(2), Body::from("x")).await.1["code"], json!("RESOURCE_STATE"));
    // The connection breaks.
    let pieces = [Ok(Bytes::from_static(b"45")), Err(std::io::Error::other("cut"))];
    let (status, broken) = put(&query(4), Body::from_stream(stream::iter(pieces))).await;
    assert_eq!((status, &broken["code"]), (400, &json!("INVALID_BODY")));
    assert_eq!(server.get(&state).await.1["received"], json!(6));
    assert_eq!(shelf.content("/tmp/big"), None);
    assert_eq!(put(&query(6), Body::from("67")).await.0, 200);
    assert_eq!(shelf.content("/tmp/big").unwrap(), b"01234567");
    let pieces = [Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("cut"))];
    assert_eq!(put("path=/tmp/whole", Body::from_stream(stream::iter(pieces))).await.0, 400);
    assert_eq!(shelf.content("/tmp/whole").unwrap(), b"all of it");
    for query in ["path=/tmp/x&offset=1", "path=/tmp/x&upload_id=upload-2", "path=/tmp/x&mode=9"] {
        assert_eq!(put(query, Body::from("x")).await.0, 422, "{query}");
    }
    assert_eq!(put("", Body::from("x")).await.0, 400);
}

#[tokio::test]
async fn a_link_opens_one_file_without_a_credential() {
    let (server, files, shelf) = furnished().await;
    shelf.put("/tmp/report", b"content");
    let (status, exported) = server.post(&format!("{files}/export"), json!({ "path": "/tmp/report" })).await;
    assert_eq!((status, &exported["size_bytes"]), (200, &json!(7)), "{exported}");
    assert_eq!(exported["content_base64"], json!(STANDARD.encode("content")));
    let link = exported["url"].as_str().unwrap().split_once("/api/v1").unwrap().1;
    let (status, _, body) = server.raw(Method::GET, link, None, "").await;
    assert_eq!((status, body.as_str()), (200, "content"));
    let other = format!("{link}&path=/tmp/other");
    assert_eq!(server.raw(Method::GET, &other, None, "").await.2, "content", "a link opened another path");
    assert_eq!(server.raw(Method::GET, &format!("{link}x"), None, "").await.0, 401);
    assert_eq!(server.raw(Method::GET, &format!("{files}/download?path=/tmp/report"), None, "").await.0, 401);
    let another = server.computer().await;
    let moved = link.replace(files.split('/').nth(2).unwrap(), &another);
    assert_eq!(server.raw(Method::GET, &moved, None, "").await.0, 401);
}

#[tokio::test]
async fn a_directory_comes_as_tar_or_zip() {
    let (server, files, shelf) = furnished().await;
    shelf.put("/workspace/one", b"1");
    shelf.put("/workspace/sub/two", &vec![b'2'; 100_000]);
    let get = async |query: &str| {
        let request = server.asks(Method::GET, &format!("{files}/download?path=/workspace{query}"));
        let (parts, body) = server.bytes(request.body(Body::empty()).unwrap()).await;
        (parts.headers["content-type"].to_str().unwrap().to_owned(), body.unwrap())
    };
    let (kind, archive) = get("").await;
    assert_eq!(kind, "application/x-tar");
    assert_eq!(tar::Archive::new(archive.as_ref()).entries().unwrap().count(), 2);
    let (kind, archive) = get("&archive=zip").await;
    assert_eq!(kind, "application/zip");
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(archive.to_vec())).unwrap();
    let mut two = zip.by_name("sub/two").unwrap();
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut two, &mut content).unwrap();
    assert!(content == vec![b'2'; 100_000]);
    assert!(archive.len() < 10_000, "it is not compressed");
}

#[tokio::test]
async fn files_are_for_computers_that_run() {
    let (server, files, _) = furnished().await;
    let computer = files.rsplit_once('/').unwrap().0.to_owned();
    assert_eq!(server.post(&format!("{computer}/stop"), json!({})).await.0, 200);
    for path in [format!("{files}?path=/tmp"), format!("{files}/download?path=/tmp/x")] {
        let (status, refused) = server.get(&path).await;
        assert_eq!((status, &refused["code"]), (409, &json!("COMPUTER_NOT_RUNNING")));
    }
}

/// Paths of any bytes at every route: refused or not found in words, and never by breaking.
#[tokio::test]
async fn no_path_breaks_a_route() {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let (server, files, shelf) = furnished().await;
    shelf.put("/workspace/file", b"content");
    let piece = prop_oneof![
        "/workspace/file|/workspace|/etc|\\.\\.|/|%|&|\\+|\u{0}|\u{1}|\u{e9}|\u{6771}"
            .prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..5),
    ];
    let path = prop::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat());
    let mut runner = TestRunner::deterministic();
    for _ in 0..150 {
        let path = path.new_tree(&mut runner).unwrap().current();
        let encoded: String = path.iter().map(|byte| format!("%{byte:02x}")).collect();
        let text = String::from_utf8_lossy(&path).into_owned();
        let mut asked = Vec::new();
        for route in ["", "/list", "/readdir", "/stat", "/download", "/read", "/search", "/uploads/12345678"]
        {
            asked.push((Method::GET, format!("{files}{route}?path={encoded}&name=x"), String::new()));
        }
        for (route, more) in
            [("/content", ""), ("/content", "&upload_id=12345678&total=1&offset=0"), ("/archive", "")]
        {
            asked.push((Method::PUT, format!("{files}{route}?path={encoded}{more}"), "x".to_owned()));
        }
        let body =
            json!({ "path": text, "from": text, "to": text, "mode": "0644", "content": text }).to_string();
        for route in ["/stat", "/write", "/rename", "/copy", "/chmod", "/export"] {
            asked.push((Method::POST, format!("{files}{route}"), body.clone()));
        }
        asked.push((Method::DELETE, files.clone(), body));
        for (method, path, body) in asked {
            let request = server.asks(method.clone(), &path).body(Body::from(body)).unwrap();
            let (parts, body) = server.bytes(request).await;
            let status = parts.status.as_u16();
            // The shelf unpacks nothing and looks for nothing.
            if path.contains("/archive") || path.contains("/search") {
                continue;
            }
            assert!(status < 500, "{method} {path} ({text:?}): {status} {body:?}");
            if status >= 400 {
                let refused: serde_json::Value = serde_json::from_slice(&body.unwrap()).unwrap();
                assert!(refused["code"].is_string() && refused["message"].is_string(), "{path}: {refused}");
            }
        }
    }
    assert_eq!(shelf.files().keys().filter(|path| path.starts_with("/etc")).count(), 0);
}
