//! Files, as a host sees them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "each test program uses its part of the support")]
mod support;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::PathBuf,
};

use bytes::Bytes;
use futures_util::StreamExt;
use roost_guest_proto::v1::{
    ChangeModeRequest, FileChange, FileContent, FileInfo, FileKind, FilePath, FinishFile,
    MakeDirectoryRequest, MoveFileRequest, ReadFileRequest, SearchFilesRequest, UploadStateRequest,
    WatchFilesRequest, WriteFileInput, WriteFileReply, WriteFileStart, files_client::FilesClient,
    write_file_input::Input,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use support::{Agent, within};

struct World {
    client: FilesClient<Channel>,
    /// What may be reached.
    root: PathBuf,
    /// Beside it, and not to be reached.
    outside: PathBuf,
    _directory: tempfile::TempDir,
    _agent: Agent,
}

impl World {
    async fn new() -> Self {
        let agent = Agent::start(&[]);
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        let (root, outside) = (base.join("root"), base.join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        let client = FilesClient::new(agent.connect().await);
        Self { client, root, outside, _directory: directory, _agent: agent }
    }

    fn path(&self, name: &str) -> FilePath {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        FilePath { path: text(self.root.join(name)), roots: vec![text(self.root.clone())] }
    }

    fn client(&self) -> FilesClient<Channel> {
        self.client.clone()
    }

    async fn write(&self, start: WriteFileStart, content: &[u8]) -> Result<WriteFileReply, Status> {
        let pieces = content.chunks(10_000).map(|piece| Input::Data(Bytes::copy_from_slice(piece)));
        let inputs: Vec<_> = std::iter::once(Input::Start(start))
            .chain(pieces)
            .chain([Input::Finish(FinishFile {})])
            .map(|input| WriteFileInput { input: Some(input) })
            .collect();
        Ok(self.client().write_file(tokio_stream::iter(inputs)).await?.into_inner())
    }

    fn start(&self, name: &str) -> WriteFileStart {
        WriteFileStart { file: Some(self.path(name)), ..WriteFileStart::default() }
    }

    async fn read(
        &self,
        name: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<(FileInfo, Vec<u8>), Status> {
        let request = ReadFileRequest { file: Some(self.path(name)), offset, length };
        let mut content = self.client().read_file(request).await?.into_inner();
        let info = content.message().await?.unwrap().info.unwrap();
        Ok((info, rest(content).await?))
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(directory)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

async fn rest(mut content: Streaming<FileContent>) -> Result<Vec<u8>, Status> {
    let mut bytes = Vec::new();
    while let Some(piece) = content.message().await? {
        bytes.extend_from_slice(&piece.data);
    }
    Ok(bytes)
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    let status = result.unwrap_err();
    assert!(!status.message().is_empty());
    status.code()
}

#[tokio::test]
async fn what_is_written_is_read_and_parts_of_it_too() {
    let world = World::new().await;
    let content: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let start = WriteFileStart { make_directories: true, mode: Some(0o750), ..world.start("a b/\n/日.bin") };
    let written = world.write(start, &content).await.unwrap();
    assert_eq!(written.received, 1_000_000);
    let info = written.file.unwrap();
    assert_eq!((info.size, info.mode, info.kind()), (1_000_000, 0o750, FileKind::File));
    let (info, read) = world.read("a b/\n/日.bin", 0, None).await.unwrap();
    assert!(read == content && info.size == 1_000_000);
    let (info, part) = world.read("a b/\n/日.bin", 999_990, Some(100)).await.unwrap();
    assert!(part == content[999_990..] && info.size == 1_000_000);
    assert_eq!(world.read("a b/\n/日.bin", 5_000_000, None).await.unwrap().1, b"");
    assert_eq!(fs::metadata(world.root.join("a b")).unwrap().mode() & 0o777, 0o755);
}

#[tokio::test]
async fn a_file_keeps_its_mode_and_its_links_when_it_is_written_again() {
    let world = World::new().await;
    fs::write(world.root.join("file"), "old").unwrap();
    fs::set_permissions(world.root.join("file"), fs::Permissions::from_mode(0o4711)).unwrap();
    symlink("file", world.root.join("link")).unwrap();
    world.write(world.start("link"), b"new").await.unwrap();
    assert!(fs::symlink_metadata(world.root.join("link")).unwrap().is_symlink());
    assert_eq!(fs::read(world.root.join("file")).unwrap(), b"new");
    assert_eq!(fs::metadata(world.root.join("file")).unwrap().mode() & 0o7777, 0o4711);
    assert_eq!(world.names(""), ["file", "link"]);
}

#[tokio::test]
async fn a_transfer_that_breaks_leaves_the_old_file_and_nothing_else() {
    let world = World::new().await;
    fs::write(world.root.join("file"), "old").unwrap();
    let (inputs, input) = mpsc::channel(4);
    let call = tokio::spawn({
        let mut client = world.client();
        async move { client.write_file(ReceiverStream::new(input)).await }
    });
    let send = async |input| inputs.send(WriteFileInput { input: Some(input) }).await.unwrap();
    send(Input::Start(world.start("file"))).await;
    send(Input::Data(Bytes::from_static(b"half of the ne"))).await;
    within("the file to be begun", || world.names("").len() == 2).await;
    assert_eq!(fs::read(world.root.join("file")).unwrap(), b"old");
    drop(inputs);
    assert_eq!(code(call.await.unwrap()), Code::Cancelled);
    assert_eq!(world.names(""), ["file"]);
    assert_eq!(fs::read(world.root.join("file")).unwrap(), b"old");
}

#[tokio::test]
async fn an_upload_goes_on_where_it_was() {
    let world = World::new().await;
    let upload = |offset, total| WriteFileStart {
        upload: "0123-abcd".to_owned(),
        offset,
        total: Some(total),
        ..world.start("big")
    };
    let state = async |discard| {
        let request =
            UploadStateRequest { file: Some(world.path("big")), upload: "0123-abcd".to_owned(), discard };
        world.client().upload_state(request).await.unwrap().into_inner().received
    };
    assert_eq!(state(false).await, 0);
    let first = world.write(upload(0, 10), b"0123").await.unwrap();
    assert_eq!((first.received, first.file), (4, None));
    assert_eq!(state(false).await, 4);
    assert!(!world.root.join("big").exists());
    // A broken connection keeps what has arrived.
    let broken: Vec<_> = [Input::Start(upload(4, 10)), Input::Data(Bytes::from_static(b"45"))]
        .map(|input| WriteFileInput { input: Some(input) })
        .to_vec();
    assert_eq!(code(world.client().write_file(tokio_stream::iter(broken)).await), Code::Cancelled);
    assert_eq!(state(false).await, 6);
    assert_eq!(code(world.write(upload(4, 10), b"x").await), Code::OutOfRange);
    let last = world.write(upload(6, 10), b"6789").await.unwrap();
    assert_eq!((last.received, last.file.unwrap().size), (10, 10));
    assert_eq!(fs::read(world.root.join("big")).unwrap(), b"0123456789");
    assert_eq!((state(false).await, world.names("")), (0, vec!["big".to_owned()]));
    // More than it was to be is none of it; and it can be given up.
    assert_eq!(code(world.write(upload(0, 2), b"xyz").await), Code::InvalidArgument);
    world.write(upload(0, 9), b"xyz").await.unwrap();
    assert_eq!(state(true).await, 0);
    assert_eq!(world.names(""), ["big"]);
    for name in ["", "../../x", "short", "with/slash", "with space"] {
        let start = WriteFileStart { upload: name.to_owned(), total: Some(1), ..world.start("y") };
        let wanted = if name.is_empty() { Code::Ok } else { Code::InvalidArgument };
        let got = world.write(start, b"1").await.map_or_else(|status| status.code(), |_| Code::Ok);
        assert_eq!(got, wanted, "{name:?}");
    }
}

#[tokio::test]
async fn no_call_leads_out() {
    let world = World::new().await;
    symlink(&world.outside, world.root.join("out")).unwrap();
    symlink("../outside/secret", world.root.join("secret")).unwrap();
    fs::write(world.root.join("mine"), "mine").unwrap();
    let denied = Code::PermissionDenied;
    for way in ["out/secret", "secret", "../outside/secret", "out/../outside/secret"] {
        assert_eq!(code(world.read(way, 0, None).await), denied, "read {way}");
        assert_eq!(code(world.write(world.start(way), b"x").await), denied, "write {way}");
        let mode = ChangeModeRequest { file: Some(world.path(way)), mode: 0o777 };
        assert_eq!(code(world.client().change_mode(mode).await), denied, "chmod {way}");
        assert_eq!(code(world.client().pack(world.path(way)).await), denied, "pack {way}");
    }
    for way in ["out/new", "../outside/new", "out/sub/new"] {
        let start = WriteFileStart { make_directories: true, ..world.start(way) };
        assert_eq!(code(world.write(start, b"x").await), denied, "write {way}");
        let directory = MakeDirectoryRequest {
            directory: Some(world.path(way)),
            recursive: true,
            ..MakeDirectoryRequest::default()
        };
        assert_eq!(code(world.client().make_directory(directory).await), denied, "mkdir {way}");
        for copy in [false, true] {
            let request =
                MoveFileRequest { from: Some(world.path("mine")), to: world.path(way).path, recursive: true };
            let done = match copy {
                true => world.client().copy_file(request).await,
                false => world.client().move_file(request).await,
            };
            assert_eq!(code(done), denied, "to {way}");
        }
    }
    for way in ["out/secret", ".."] {
        assert_eq!(code(world.client().remove_file(world.path(way)).await), denied, "remove {way}");
    }
    for way in ["out/secret", "out", "out/.", ".."] {
        assert_eq!(code(world.client().list_files(world.path(way)).await), denied, "list {way}");
    }
    // A link is a name like others where it is not followed.
    world.client().remove_file(world.path("secret")).await.unwrap();
    world.client().remove_file(world.path("out")).await.unwrap();
    assert_eq!(fs::read(world.outside.join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(&world.outside).unwrap().count(), 1);
    assert_eq!(code(world.client().remove_file(world.path("")).await), Code::FailedPrecondition);
}

/// Somebody changes a directory into a link and back while files are written through it.
#[tokio::test]
async fn nobody_who_changes_names_meanwhile_leads_out() {
    let world = World::new().await;
    fs::create_dir(world.root.join("real")).unwrap();
    symlink("real", world.root.join("way")).unwrap();
    symlink("real", world.root.join("other-in")).unwrap();
    symlink(&world.outside, world.root.join("other-out")).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let changer = {
        let (root, stop) = (world.root.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for to in ["other-out", "other-in"] {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    let cwd = rustix::fs::CWD;
                    rustix::fs::renameat_with(cwd, root.join(to), cwd, root.join("way"), flags).unwrap();
                }
            }
        })
    };
    let (mut done, mut denied) = (0, 0);
    while done + denied < 400 {
        match world.write(world.start("way/file"), b"x").await {
            Ok(_) => done += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::PermissionDenied, "{status}");
                denied += 1;
            }
        }
        if let Ok((_, content)) = world.read("way/secret", 0, None).await {
            panic!("a secret was read: {content:?}");
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    changer.join().unwrap();
    assert_eq!(fs::read_dir(&world.outside).unwrap().count(), 1, "something was written outside");
}

#[tokio::test]
async fn a_file_is_as_old_as_it_is_said_to_be() {
    let world = World::new().await;
    for time in [1_234_567_890_123_456_000, -1_000_000_000, 0] {
        let start = WriteFileStart { modified_ns: Some(time), ..world.start("dated") };
        let written = world.write(start, b"x").await.unwrap().file.unwrap();
        assert_eq!(written.modified_ns, time);
    }
    let now = world.write(world.start("dated"), b"x").await.unwrap();
    assert!(now.file.unwrap().modified_ns > 1_234_567_890_123_456_000);
}

/// Everything that can be asked for, of paths that lead anywhere, one after the other: nothing outside is read or
/// changed, and every answer is one that a caller can act on.
#[tokio::test]
async fn no_order_of_calls_leads_out_or_breaks() {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    const NAMES: [&str; 12] =
        ["a", "b", "c", "x y", "new\nline", "..", ".", "", "out", "in", "../outside", ".12345678.roost-part"];
    let name = prop::sample::select(&NAMES[..]);
    let way = prop::collection::vec(name, 0..5).prop_map(|names| names.join("/"));
    let call = (0..12u8, way.clone(), way, any::<bool>(), 0..3u64);
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);

    let world = World::new().await;
    let plant = || {
        // Gone or changed by what was called before.
        let _planted = symlink(&world.outside, world.root.join("out"));
        let _planted = symlink("a", world.root.join("in"));
    };
    let before = fs::symlink_metadata(&world.outside).unwrap().mtime_nsec();
    let fine = [
        Code::InvalidArgument,
        Code::PermissionDenied,
        Code::NotFound,
        Code::AlreadyExists,
        Code::FailedPrecondition,
        Code::OutOfRange,
        Code::Cancelled,
    ];
    for round in 0..600 {
        plant();
        let (which, one, other, flag, number) = call.new_tree(&mut runner).unwrap().current();
        let mut client = world.client();
        let start = || WriteFileStart { make_directories: flag, ..world.start(&one) };
        let moving =
            MoveFileRequest { from: Some(world.path(&one)), to: world.path(&other).path, recursive: flag };
        let outcome = match which {
            0 => world.write(start(), b"content").await.map(drop),
            1 => {
                let upload = WriteFileStart {
                    upload: "12345678".to_owned(),
                    offset: number,
                    total: Some(number + 7),
                    ..start()
                };
                world.write(upload, b"content").await.map(drop)
            }
            2 => world.read(&one, number, flag.then_some(number)).await.map(|(_, content)| {
                assert_ne!(content, b"secret", "round {round}: {one:?}");
            }),
            3 => match client.list_files(world.path(&one)).await {
                Ok(lists) => lists.into_inner().next().await.unwrap().map(|list| {
                    let mut names = list.entries.iter().map(|entry| &entry.name[..]);
                    assert!(!names.any(|name| name == b"secret"), "round {round}: {one:?}");
                }),
                Err(status) => Err(status),
            },
            4 => {
                let request =
                    MakeDirectoryRequest { directory: Some(world.path(&one)), recursive: flag, mode: None };
                client.make_directory(request).await.map(drop)
            }
            5 => client.move_file(moving).await.map(drop),
            6 => client.copy_file(moving).await.map(drop),
            7 => client.remove_file(world.path(&one)).await.map(drop),
            8 => {
                let request = ChangeModeRequest { file: Some(world.path(&one)), mode: 0o755 };
                client.change_mode(request).await.map(drop)
            }
            9 => match client.pack(world.path(&one)).await {
                Ok(content) => rest(content.into_inner()).await.map(|archive| {
                    assert!(!archive.windows(6).any(|piece| piece == b"secret"), "round {round}: {one:?}");
                }),
                Err(status) => Err(status),
            },
            10 => {
                let request = SearchFilesRequest {
                    directory: Some(world.path(&one)),
                    name: "*".to_owned(),
                    content: if flag { "secret".to_owned() } else { String::new() },
                    most: 100,
                    ..SearchFilesRequest::default()
                };
                match client.search_files(request).await {
                    Ok(found) => match found.into_inner().next().await {
                        Some(Ok(found)) => {
                            assert!(!flag, "round {round}: {one:?} leads to {}", found.path);
                            Ok(())
                        }
                        Some(Err(status)) => Err(status),
                        None => Ok(()),
                    },
                    Err(status) => Err(status),
                }
            }
            _ => {
                let request = UploadStateRequest {
                    file: Some(world.path(&one)),
                    upload: "12345678".to_owned(),
                    discard: flag,
                };
                client.upload_state(request).await.map(drop)
            }
        };
        if let Err(status) = outcome {
            assert!(
                fine.contains(&status.code()),
                "round {round}: call {which} of {one:?}, {other:?}: {status:?}"
            );
            assert!(!status.message().is_empty());
        }
        assert!(world.root.is_dir(), "round {round}: call {which} of {one:?}, {other:?} took the root");
    }
    assert_eq!(fs::read(world.outside.join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(&world.outside).unwrap().count(), 1);
    assert_eq!(
        fs::symlink_metadata(&world.outside).unwrap().mtime_nsec(),
        before,
        "something was there meanwhile"
    );
}

#[tokio::test]
async fn directories_are_made_listed_copied_moved_and_removed() {
    let world = World::new().await;
    let directory = |name: &str, recursive| MakeDirectoryRequest {
        directory: Some(world.path(name)),
        recursive,
        mode: Some(0o700),
    };
    assert_eq!(code(world.client().make_directory(directory("a/b", false)).await), Code::NotFound);
    world.client().make_directory(directory("a/b", true)).await.unwrap();
    world.client().make_directory(directory("a/b", true)).await.unwrap();
    assert_eq!(code(world.client().make_directory(directory("a/b", false)).await), Code::AlreadyExists);
    assert_eq!(fs::metadata(world.root.join("a/b")).unwrap().mode() & 0o777, 0o700);
    fs::write(world.root.join("a/file"), "content").unwrap();
    symlink("file", world.root.join("a/link")).unwrap();
    let mut lists = world.client().list_files(world.path("a")).await.unwrap().into_inner();
    let mut entries = Vec::new();
    while let Some(list) = lists.message().await.unwrap() {
        entries.extend(list.entries);
    }
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    let shown: Vec<_> = entries.iter().map(|entry| (entry.name.to_vec(), entry.kind())).collect();
    assert_eq!(
        shown,
        [
            (b"b".to_vec(), FileKind::Directory),
            (b"file".to_vec(), FileKind::File),
            (b"link".to_vec(), FileKind::Symlink)
        ]
    );
    assert_eq!(entries[2].link_target, "file");
    let to = |from: &str, to: &str, recursive| MoveFileRequest {
        from: Some(world.path(from)),
        to: world.path(to).path,
        recursive,
    };
    assert_eq!(code(world.client().copy_file(to("a", "c", false)).await), Code::FailedPrecondition);
    assert_eq!(code(world.client().copy_file(to("a", "a/b/c", true)).await), Code::FailedPrecondition);
    world.client().copy_file(to("a", "new/c", true)).await.unwrap();
    assert_eq!(world.names("new/c"), ["b", "file", "link"]);
    assert_eq!(fs::read_link(world.root.join("new/c/link")).unwrap(), PathBuf::from("file"));
    assert_eq!(fs::metadata(world.root.join("new/c/b")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(code(world.client().copy_file(to("a", "new/c", true)).await), Code::AlreadyExists);
    world.client().move_file(to("new/c", "moved/deep/d", false)).await.unwrap();
    assert_eq!((world.names("new").len(), world.names("moved/deep/d").len()), (0, 3));
    assert_eq!(code(world.client().move_file(to("gone", "x", false)).await), Code::NotFound);
    assert_eq!(code(world.client().move_file(to("a", "a/b/x", false)).await), Code::FailedPrecondition);
    world.client().remove_file(world.path("moved")).await.unwrap();
    assert_eq!(world.names(""), ["a", "new"]);
    assert_eq!(code(world.read("a", 0, None).await), Code::FailedPrecondition);
    assert_eq!(code(world.write(world.start("a"), b"x").await), Code::FailedPrecondition);
    assert_eq!(code(world.client().list_files(world.path("a/file")).await), Code::FailedPrecondition);
}

#[tokio::test]
async fn what_is_no_file_is_not_waited_for() {
    let world = World::new().await;
    let pipe = world.root.join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert_eq!(code(world.read("pipe", 0, None).await), Code::FailedPrecondition);
    assert_eq!(code(world.write(world.start("pipe"), b"x").await), Code::FailedPrecondition);
    let packed = world.client().pack(world.path("")).await;
    assert!(!rest(packed.unwrap().into_inner()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_tree_is_the_same_after_a_journey_as_an_archive() {
    let world = World::new().await;
    let tree = world.root.join("tree");
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("sub/big"), vec![7; 300_000]).unwrap();
    fs::write(tree.join("run me"), "#!/bin/sh").unwrap();
    fs::set_permissions(tree.join("run me"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("../run me", tree.join("sub/link")).unwrap();
    let long = "n".repeat(200);
    fs::write(tree.join(&long), "long").unwrap();
    let packed = world.client().pack(world.path("tree")).await.unwrap().into_inner();
    let archive = rest(packed).await.unwrap();
    let unpack = async |archive: &[u8], to: &str| {
        let pieces = archive.chunks(65_000).map(|piece| Input::Data(Bytes::copy_from_slice(piece)));
        let inputs: Vec<_> = std::iter::once(Input::Start(world.start(to)))
            .chain(pieces)
            .chain([Input::Finish(FinishFile {})])
            .map(|input| WriteFileInput { input: Some(input) })
            .collect();
        Ok::<_, Status>(world.client().unpack(tokio_stream::iter(inputs)).await?.into_inner().entries)
    };
    assert_eq!(unpack(&archive, "copy").await.unwrap(), 7);
    let listing = |directory: &str| {
        support::command_output(
            "sh",
            &[
                "-c",
                &format!(
                    "cd '{}' && find . -printf '%p %y %m %l\\n' | sort && cat sub/big '{long}' | sha256sum",
                    world.root.join(directory).display()
                ),
            ],
        )
    };
    assert_eq!(listing("copy/tree"), listing("tree"));
    // Again, over what is there.
    unpack(&archive, "copy").await.unwrap();
    assert_eq!(listing("copy/tree"), listing("tree"));
    assert_eq!(code(unpack(&archive[..archive.len() / 2], "half").await), Code::InvalidArgument);
    assert_eq!(
        code(unpack(b"no archive at all, and longer than nothing", "none").await),
        Code::InvalidArgument
    );

    // Out of the archive, by its names or through links that it brings itself.
    let mut evil = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    evil.append_link(&mut header, "door", &world.outside).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    evil.append_data(&mut header, "door/new", &b"x"[..]).unwrap();
    let evil = evil.into_inner().unwrap();
    assert_eq!(code(unpack(&evil, "evil").await), Code::PermissionDenied);
    assert_eq!(fs::read_dir(&world.outside).unwrap().count(), 1);
}

#[tokio::test]
async fn names_and_lines_are_found() {
    let world = World::new().await;
    fs::create_dir_all(world.root.join("src/deep")).unwrap();
    fs::write(world.root.join("src/one.rs"), "fn main() {}\n// Needle here\nlast needle").unwrap();
    fs::write(world.root.join("src/deep/two.rs"), "nothing").unwrap();
    fs::write(world.root.join("src/deep/binary.rs"), b"needle\0").unwrap();
    fs::write(world.root.join("src/note.txt"), "needle").unwrap();
    symlink(&world.outside, world.root.join("src/out")).unwrap();
    let search = async |name: &str, content: &str, ignore_case, most| {
        let request = SearchFilesRequest {
            directory: Some(world.path("")),
            name: name.to_owned(),
            content: content.to_owned(),
            ignore_case,
            most,
        };
        let found = world.client().search_files(request).await.unwrap().into_inner();
        let found: Vec<_> = found.map(Result::unwrap).collect().await;
        let root = world.root.to_str().unwrap().to_owned();
        found
            .into_iter()
            .map(|one| (one.path.strip_prefix(&root).unwrap().to_owned(), one.line, one.text))
            .collect::<Vec<_>>()
    };
    let paths = |found: Vec<(String, u64, String)>| found.into_iter().map(|one| one.0).collect::<Vec<_>>();
    assert_eq!(
        paths(search("*.rs", "", false, 10).await),
        ["/src/deep/binary.rs", "/src/deep/two.rs", "/src/one.rs"]
    );
    assert_eq!(paths(search("T??.RS", "", true, 10).await), ["/src/deep/two.rs"]);
    assert_eq!(paths(search("*", "", false, 2).await).len(), 2);
    let lines = search("*.rs", "needle", true, 10).await;
    let expected = [(2, "// Needle here"), (3, "last needle")];
    assert_eq!(lines, expected.map(|(line, text)| ("/src/one.rs".to_owned(), line, text.to_owned())));
    assert_eq!(search("", "needle", false, 10).await.len(), 2);
    assert_eq!(paths(search("secret", "", false, 10).await), Vec::<String>::new());
}

#[tokio::test]
async fn changes_are_told_as_they_come() {
    let world = World::new().await;
    fs::create_dir(world.root.join("sub")).unwrap();
    let request = WatchFilesRequest { directory: Some(world.path("")), recursive: true };
    let mut events = world.client().watch_files(request).await.unwrap().into_inner();
    assert_eq!(events.message().await.unwrap().unwrap().change(), FileChange::Unspecified);
    let mut until = async |change: FileChange, name: &str| {
        let path = world.root.join(name);
        loop {
            let event = events.message().await.unwrap().unwrap();
            if event.change() == change && event.path == path.to_str().unwrap() {
                return event.is_directory;
            }
        }
    };
    fs::write(world.root.join("sub/file"), "x").unwrap();
    assert!(!until(FileChange::Created, "sub/file").await);
    fs::rename(world.root.join("sub/file"), world.root.join("moved")).unwrap();
    until(FileChange::MovedFrom, "sub/file").await;
    until(FileChange::MovedTo, "moved").await;
    fs::create_dir(world.root.join("new")).unwrap();
    assert!(until(FileChange::Created, "new").await);
    fs::write(world.root.join("new/inside"), "x").unwrap();
    until(FileChange::Created, "new/inside").await;
    fs::remove_file(world.root.join("moved")).unwrap();
    until(FileChange::Deleted, "moved").await;
}

#[tokio::test]
async fn a_large_directory_is_listed_whole() {
    let world = World::new().await;
    for number in 0..5000 {
        fs::write(world.root.join(format!("file {number}")), "").unwrap();
    }
    let lists = world.client().list_files(world.path("")).await.unwrap().into_inner();
    let count: usize = lists.map(|list| list.unwrap().entries.len()).collect::<Vec<_>>().await.iter().sum();
    assert_eq!(count, 5000);
}
