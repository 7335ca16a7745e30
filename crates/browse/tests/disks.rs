//! Real images: made by `mkfs.ext4` and `debugfs` (e2fsprogs), put into qcow2 by `qemu-img` (qemu-utils), and then
//! read without either.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, symlink},
    },
    process::{Command, Stdio},
};

use camino::{Utf8Path, Utf8PathBuf};
use roost_browse::{BrowseError, Entry, Filesystem, Kind, Quantity, TarLimits};

const LIMITS: TarLimits = TarLimits { bytes: 64 << 20, entries: 1000, directories: 100 };

/// A directory with images in it.
struct Place {
    path: Utf8PathBuf,
    _directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(directory.path()).unwrap().canonicalize_utf8().unwrap();
        Self { path, _directory: directory }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.run_with(program, arguments, "")
    }

    fn run_with(&self, program: &str, arguments: &[&str], input: &str) -> String {
        let mut child = Command::new(program)
            .args(arguments)
            .current_dir(&self.path)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn debugfs(&self, image: &str, commands: &str) {
        self.run_with("debugfs", &["-w", "-f", "-", image], commands);
    }

    /// A raw image of `size` with what `fill` puts into its root.
    fn filesystem(&self, image: &str, size: &str, options: &[&str], fill: impl FnOnce(&Utf8Path)) {
        let content = self.path.join(format!("{image}.content"));
        fs::create_dir(&content).unwrap();
        fill(&content);
        let mut arguments = vec!["-q", "-d", content.as_str()];
        arguments.extend(options);
        arguments.extend([image, size]);
        self.run("mkfs.ext4", &arguments);
        fs::remove_dir_all(content).unwrap();
    }

    fn convert(&self, options: &[&str], from: &str, to: &str) {
        let mut arguments = vec!["convert", "-O", "qcow2"];
        arguments.extend(options);
        arguments.extend([from, to]);
        self.run("qemu-img", &arguments);
    }

    fn try_open(&self, disk: &str) -> Result<Filesystem, BrowseError> {
        Filesystem::open(&self.path.join(disk), &[&self.path])
    }

    fn open(&self, disk: &str) -> Filesystem {
        self.try_open(disk).unwrap()
    }
}

fn read(filesystem: &Filesystem, path: &str) -> Result<Vec<u8>, BrowseError> {
    let mut bytes = Vec::new();
    let told = filesystem.read(path, 64 << 20, &mut bytes)?;
    assert_eq!(told, bytes.len() as u64);
    Ok(bytes)
}

fn names(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.name.as_str()).collect()
}

/// What a tar archive has in it: type and content, or target.
fn unpack(archive: &[u8]) -> BTreeMap<Vec<u8>, (tar::EntryType, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if let Some(target) = entry.link_name_bytes() {
            content = target.into_owned();
        }
        (entry.path_bytes().into_owned(), (entry.header().entry_type(), content))
    });
    entries.collect()
}

/// Not random, but without a pattern that could hide a block in the wrong place.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..length).map(|_| random.next().to_le_bytes()[3]).collect()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
}

fn sample(root: &Utf8Path) {
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/b/c/deep"), "deep down").unwrap();
    fs::write(root.join("a/noise"), noise(3_000_000, 1)).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("with space"), "space").unwrap();
    fs::write(root.join("with\nnewline"), "newline").unwrap();
    fs::write(root.as_std_path().join(std::ffi::OsStr::from_bytes(b"latin\xe9")), "latin").unwrap();
    symlink("b/c/deep", root.join("a/relative")).unwrap();
    symlink("/a/b", root.join("absolute")).unwrap();
    symlink("/../../../etc/passwd", root.join("outside")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink(format!("/{}a/b/c/deep", "./".repeat(60)), root.join("long")).unwrap();
}

#[test]
fn files_and_folders_are_found_whatever_the_clusters_are() {
    let place = Place::new();
    place.filesystem("raw", "32M", &[], sample);
    let variants: [(&str, &[&str]); 6] = [
        ("plain", &[]),
        ("old", &["-o", "compat=0.10"]),
        ("small", &["-o", "cluster_size=512"]),
        ("large", &["-o", "cluster_size=2M"]),
        ("deflate", &["-c"]),
        ("zstd", &["-c", "-o", "compression_type=zstd"]),
    ];
    for (name, options) in variants {
        place.convert(options, "raw", name);
        let filesystem = place.open(name);
        let root = filesystem.list("/").unwrap();
        let expected = ["a", "absolute", "empty", "latin\u{fffd}", "long", "loop", "lost+found", "outside"];
        assert_eq!(names(&root)[..8], expected, "{name}");
        assert_eq!(names(&root)[8..], ["with\nnewline", "with space"], "{name}");
        assert_eq!((root[0].kind, root[0].path.as_str()), (Kind::Directory, "/a"));
        assert_eq!((root[1].kind, root[1].size), (Kind::Symlink, 4));
        assert_eq!(root[2], filesystem.metadata("/empty").unwrap());

        assert_eq!(read(&filesystem, "/a/b/c/deep").unwrap(), b"deep down");
        assert!(read(&filesystem, "/a/noise").unwrap() == noise(3_000_000, 1), "{name}");
        assert_eq!(read(&filesystem, "/empty").unwrap(), b"");
        assert_eq!(read(&filesystem, "/with space").unwrap(), b"space");
        assert_eq!(read(&filesystem, "/with\nnewline").unwrap(), b"newline");
        // The name as it was listed is as good as the real one.
        assert_eq!(read(&filesystem, &root[3].path).unwrap(), b"latin");
    }
}

#[test]
fn paths_and_symlinks_stay_in_the_image() {
    let place = Place::new();
    place.filesystem("raw", "16M", &["-b", "1024"], sample);
    place.convert(&[], "raw", "disk");
    let filesystem = place.open("disk");
    for path in ["/a/relative", "/absolute/c/deep", "//a/./b//c/deep", "/../../a/b/../b/c/deep", "/long"] {
        assert_eq!(read(&filesystem, path).unwrap(), b"deep down", "{path}");
    }
    // Back from where the symlink leads, not from where it is.
    assert_eq!(names(&filesystem.list("/absolute/..").unwrap()), ["b", "noise", "relative"]);
    assert_eq!(filesystem.list("/absolute/..").unwrap()[0].path, "/a/b");
    assert_eq!(filesystem.list("/absolute").unwrap()[0].path, "/absolute/c");
    assert_eq!(filesystem.metadata("/").unwrap().path, "/");
    assert_eq!(filesystem.metadata("/absolute").unwrap().kind, Kind::Directory);

    // The host has this file; the image does not.
    assert!(matches!(read(&filesystem, "/outside"), Err(BrowseError::NotFound { .. })));
    assert!(matches!(read(&filesystem, "/loop"), Err(BrowseError::InvalidPath { .. })));
    assert!(matches!(read(&filesystem, "/nothing"), Err(BrowseError::NotFound { .. })));
    assert!(matches!(read(&filesystem, "/a"), Err(BrowseError::IsADirectory { .. })));
    assert!(matches!(read(&filesystem, "/empty/"), Err(BrowseError::NotADirectory { .. })));
    assert!(matches!(read(&filesystem, "/empty/x"), Err(BrowseError::NotADirectory { .. })));
    assert!(matches!(filesystem.list("/empty"), Err(BrowseError::NotADirectory { .. })));
    for path in ["", "a", "../a", "/a\0", &"/a/..".repeat(1000)] {
        assert!(matches!(filesystem.list(path), Err(BrowseError::InvalidPath { .. })), "{path:?}");
    }
}

#[test]
fn layers_are_one_disk() {
    let place = Place::new();
    place.filesystem("raw", "32M", &[], sample);
    place.convert(&["-c", "-o", "compression_type=zstd"], "raw", "base");
    fs::write(place.path.join("new"), noise(500_000, 2)).unwrap();
    place.debugfs("raw", "rm /a/noise\nwrite new /second\n");
    place.convert(&["-B", "base", "-F", "qcow2"], "raw", "middle");
    fs::write(place.path.join("new"), noise(700_000, 3)).unwrap();
    place.debugfs("raw", "write new /third\nrm /empty\n");
    let middle = place.path.join("middle");
    place.convert(&["-B", middle.as_str(), "-F", "qcow2", "-o", "cluster_size=4k"], "raw", "top");

    let base = place.open("base");
    assert!(read(&base, "/a/noise").unwrap() == noise(3_000_000, 1));
    let filesystem = place.open("top");
    assert!(read(&filesystem, "/second").unwrap() == noise(500_000, 2));
    assert!(read(&filesystem, "/third").unwrap() == noise(700_000, 3));
    assert!(matches!(read(&filesystem, "/a/noise"), Err(BrowseError::NotFound { .. })));
    assert!(matches!(read(&filesystem, "/empty"), Err(BrowseError::NotFound { .. })));
    assert_eq!(read(&filesystem, "/a/b/c/deep").unwrap(), b"deep down");

    // What QEMU itself writes into a layer: a block of the file, then zeroes over the rest.
    let block = place.run("debugfs", &["-R", "blocks /third", "raw"]);
    let block: u64 = block.split_whitespace().next().unwrap().parse().unwrap();
    let block_size = if place.run("dumpe2fs", &["-h", "raw"]).contains("Block size:               4096") {
        4096
    } else {
        1024
    };
    place.run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "top", "-F", "qcow2", "written"]);
    let write = format!("write -P 0x5a {} 1k", block * block_size);
    place.run("qemu-io", &["-c", &write, "written"]);
    place.run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-b", "written", "-F", "qcow2", "-o", "cluster_size=1k", "zeroed"],
    );
    let zero = format!("write -z {} 1k", block * block_size);
    place.run("qemu-io", &["-c", &zero, "zeroed"]);
    assert_eq!(read(&place.open("written"), "/third").unwrap()[..1024], [0x5a; 1024]);
    assert_eq!(read(&place.open("zeroed"), "/third").unwrap()[..1024], [0; 1024]);
    assert_eq!(read(&place.open("zeroed"), "/third").unwrap()[1024..], noise(700_000, 3)[1024..]);

    // An open disk does not notice that a layer is replaced.
    let open = place.open("written");
    fs::rename(place.path.join("base"), place.path.join("old")).unwrap();
    fs::write(place.path.join("base"), "nothing").unwrap();
    assert_eq!(read(&open, "/a/b/c/deep").unwrap(), b"deep down");
    assert!(matches!(place.try_open("written"), Err(BrowseError::Corrupt { .. })));
}

#[test]
fn holes_are_zeroes_and_reserved_blocks_are_not_what_was_deleted() {
    let place = Place::new();
    place.filesystem("raw", "64M", &[], |root| {
        let file = fs::File::create(root.join("sparse")).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"middle", 20_000_000).unwrap();
        file.set_len(30_000_000).unwrap();
        fs::File::create(root.join("huge")).unwrap().set_len(5 << 30).unwrap();
        fs::write(root.join("secret"), noise(8_000_000, 4)).unwrap();
        fs::write(root.join("reserved"), "seen").unwrap();
    });
    place.debugfs("raw", "rm /secret\nfallocate /reserved 1 1999\nsif /reserved size 2000000\n");
    place.convert(&[], "raw", "disk");
    let filesystem = place.open("disk");

    let mut expected = vec![0; 30_000_000];
    expected[..5].copy_from_slice(b"begin");
    expected[20_000_000..20_000_006].copy_from_slice(b"middle");
    assert!(read(&filesystem, "/sparse").unwrap() == expected);

    let reserved = read(&filesystem, "/reserved").unwrap();
    assert_eq!(reserved.len(), 2_000_000);
    assert_eq!(reserved[..4], *b"seen");
    assert!(reserved[4..].iter().all(|byte| *byte == 0), "deleted data is shown");

    let mut written = Vec::new();
    let error = filesystem.read("/huge", 2 << 30, &mut written).unwrap_err();
    assert!(matches!(error, BrowseError::TooLarge { what: Quantity::Bytes, limit: 0x8000_0000, .. }));
    assert!(written.is_empty());
    assert_eq!(filesystem.read("/huge", 5 << 30, &mut io::sink()).unwrap(), 5 << 30);

    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    assert!(matches!(filesystem.read("/huge", 5 << 30, &mut Closed), Err(BrowseError::Write { .. })));
    assert!(matches!(filesystem.tar("/", LIMITS, &mut Closed), Err(BrowseError::TooLarge { .. })));
}

#[test]
fn large_folders_and_old_block_maps_are_read() {
    let place = Place::new();
    let name = |number| format!("{number:04}{}", "n".repeat(150));
    for (raw, options) in
        [("indexed", &["-b", "1024"][..]), ("mapped", &["-b", "1024", "-O", "^extent,^64bit"])]
    {
        place.filesystem(raw, "64M", options, |root| {
            for number in 0..2000 {
                fs::write(root.join(name(number)), number.to_string()).unwrap();
            }
            // Beyond what two levels of a map reach, with holes.
            let file = fs::File::create(root.join("file")).unwrap();
            for position in [0, 11_000, 200_000, 40_000_000, 70_000_000] {
                file.write_all_at(&noise(30_000, position), position).unwrap();
            }
        });
        let disk = format!("{raw}.qcow2");
        place.convert(&[], raw, &disk);
        let filesystem = place.open(&disk);
        assert_eq!(filesystem.list("/").unwrap().len(), 2002);
        for number in [0, 999, 1999] {
            assert_eq!(
                read(&filesystem, &format!("/{}", name(number))).unwrap(),
                number.to_string().as_bytes()
            );
        }
        let mut bytes = Vec::new();
        filesystem.read("/file", 1 << 30, &mut bytes).unwrap();
        assert_eq!(bytes.len(), 70_030_000);
        for position in [11_000, 200_000, 40_000_000, 70_000_000] {
            let start = usize::try_from(position).unwrap();
            assert!(bytes[start..start + 30_000] == noise(30_000, position), "{raw} at {position}");
        }
        assert!(bytes[300_000..39_000_000].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn the_journal_is_applied() {
    let place = Place::new();
    let old = vec![b'o'; 4096];
    // It begins as the journal's own blocks do, which the journal must disguise.
    let new = [&[0xc0, 0x3b, 0x39, 0x98][..], &[b'n'; 4092]].concat();
    fs::write(place.path.join("new"), &new).unwrap();
    fs::write(place.path.join("torn"), [b't'; 4096]).unwrap();
    let variants = [
        ("v3", "jo -c -v 3", "64bit"),
        ("v2", "jo -c -v 2", "64bit"),
        ("v1", "jo", "64bit"),
        ("v3-32", "jo -c -v 3", "^64bit"),
        ("v1-32", "jo", "^64bit,^metadata_csum"),
    ];
    for (name, open, features) in variants {
        let raw = format!("{name}.raw");
        place.filesystem(&raw, "16M", &["-b", "4096", "-O", features], |root| {
            for file in ["changed", "revoked", "again"] {
                fs::write(root.join(file), &old).unwrap();
            }
        });
        let block =
            |path: &str| place.run("debugfs", &["-R", &format!("blocks {path}"), &raw]).trim().to_owned();
        let (changed, revoked, again) = (block("/changed"), block("/revoked"), block("/again"));
        place.debugfs(
            &raw,
            &format!(
                "{open}\njw -b {changed} new\njw -b {revoked} new\njw -b {again} torn\njw -r {revoked},{again}\n\
                 jw -b {again} new\njw -c -b {changed} torn\njc\n"
            ),
        );
        place.convert(&[], &raw, name);
        let filesystem = place.open(name);
        assert!(read(&filesystem, "/changed").unwrap() == new, "{name}: the last commit counts");
        assert!(read(&filesystem, "/revoked").unwrap() == old, "{name}: a revoked block is as it was");
        assert!(read(&filesystem, "/again").unwrap() == new, "{name}: written again after that");

        // The same that e2fsck makes of it.
        Command::new("/usr/sbin/e2fsck").args(["-fy", place.path.join(&raw).as_str()]).output().unwrap();
        let checked = format!("{name}.checked");
        place.convert(&[], &raw, &checked);
        let checked = place.open(&checked);
        for path in ["/changed", "/revoked", "/again"] {
            assert!(read(&filesystem, path).unwrap() == read(&checked, path).unwrap(), "{name}: {path}");
        }
    }
}

#[test]
fn a_folder_becomes_an_archive_or_an_error_before_the_first_byte() {
    let place = Place::new();
    let long = "n".repeat(200);
    place.filesystem("raw", "32M", &[], |root| {
        sample(root);
        fs::create_dir_all(root.join(&long).join(&long)).unwrap();
        fs::write(root.join(&long).join(&long).join("file"), "far").unwrap();
        symlink(format!("..//{long}"), root.join("a/far")).unwrap();
        symlink("..//b/.", root.join("a/literal")).unwrap();
        let pipe = root.join("a/pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    });
    place.convert(&[], "raw", "disk");
    let filesystem = place.open("disk");
    let tar = |path: &str, limits| {
        let mut bytes = Vec::new();
        let result = filesystem.tar(path, limits, &mut bytes);
        (bytes, result)
    };

    let (bytes, result) = tar("/a", LIMITS);
    result.unwrap();
    let found = unpack(&bytes);
    let names: Vec<_> = found.keys().map(|name| str::from_utf8(name).unwrap()).collect();
    assert_eq!(names, ["a/", "a/b/", "a/b/c/", "a/b/c/deep", "a/far", "a/literal", "a/noise", "a/relative"]);
    assert_eq!(found[&b"a/b/c/deep"[..]].1, b"deep down");
    assert!(found[&b"a/noise"[..]].1 == noise(3_000_000, 1));
    assert_eq!(found[&b"a/literal"[..]], (tar::EntryType::Symlink, b"..//b/.".to_vec()));
    assert_eq!(found[&b"a/far"[..]].1, format!("..//{long}").as_bytes());

    let (bytes, result) = tar("/", LIMITS);
    result.unwrap();
    let found = unpack(&bytes);
    assert_eq!(found[&b"latin\xe9"[..]].1, b"latin");
    assert_eq!(found[&b"with\nnewline"[..]].1, b"newline");
    assert_eq!(found[format!("{long}/{long}/file").as_bytes()].1, b"far");

    // By the name of the symlink.
    let (bytes, result) = tar("/absolute", LIMITS);
    result.unwrap();
    assert_eq!(unpack(&bytes).keys().next().unwrap(), b"absolute/");

    // What GNU tar makes of it is what was put in.
    let (bytes, _) = tar("/a", LIMITS);
    fs::write(place.path.join("a.tar"), bytes).unwrap();
    place.run("tar", &["-xf", "a.tar"]);
    assert_eq!(fs::read_link(place.path.join("a/literal")).unwrap().as_os_str(), "..//b/.");
    assert!(fs::read(place.path.join("a/noise")).unwrap() == noise(3_000_000, 1));

    // Exactly as much as there is, and one less.
    let exact = TarLimits { bytes: 3_000_009, entries: 8, directories: 3 };
    tar("/a", exact).1.unwrap();
    for (limits, expected) in [
        (TarLimits { bytes: 3_000_008, ..exact }, Quantity::Bytes),
        (TarLimits { entries: 7, ..exact }, Quantity::Entries),
        (TarLimits { directories: 2, ..exact }, Quantity::Directories),
    ] {
        let (bytes, result) = tar("/a", limits);
        assert!(matches!(result, Err(BrowseError::TooLarge { what, .. }) if what == expected), "{result:?}");
        assert!(bytes.is_empty());
    }
    assert!(matches!(tar("/empty", LIMITS).1, Err(BrowseError::NotADirectory { .. })));
}

#[test]
fn a_folder_inside_itself_is_an_error() {
    let place = Place::new();
    place.filesystem("raw", "16M", &[], sample);
    place.debugfs("raw", "link /a /a/b/c/up\n");
    place.convert(&[], "raw", "disk");
    let filesystem = place.open("disk");
    let mut bytes = Vec::new();
    assert!(matches!(filesystem.tar("/", LIMITS, &mut bytes), Err(BrowseError::Corrupt { .. })));
    assert!(matches!(filesystem.tar("/a", LIMITS, &mut bytes), Err(BrowseError::Corrupt { .. })));
    assert!(bytes.is_empty());
}

#[test]
fn a_layer_cannot_reach_other_files_of_the_host() {
    let outside = Place::new();
    outside.filesystem("raw", "16M", &[], sample);
    outside.convert(&[], "raw", "secret");
    let place = Place::new();
    place.filesystem("raw", "16M", &[], sample);
    place.convert(&[], "raw", "base");
    let secret = outside.path.join("secret");

    let overlay = |backing: &str| {
        let _ = fs::remove_file(place.path.join("disk"));
        // QEMU refuses to make some of these names; a hostile one need not.
        place.run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-u", "-b", &"x".repeat(300), "-F", "qcow2", "disk", "16M"],
        );
        let disk = fs::File::options().read(true).write(true).open(place.path.join("disk")).unwrap();
        let mut start = [0; 8];
        disk.read_exact_at(&mut start, 8).unwrap();
        disk.write_all_at(backing.as_bytes(), u64::from_be_bytes(start)).unwrap();
        disk.write_all_at(&u32::try_from(backing.len()).unwrap().to_be_bytes(), 16).unwrap();
        place.try_open("disk")
    };
    overlay("base").unwrap();
    overlay(place.path.join("base").as_str()).unwrap();
    overlay("./x/../base").unwrap_err();

    symlink(&secret, place.path.join("link")).unwrap();
    symlink(&outside.path, place.path.join("directory")).unwrap();
    symlink("base", place.path.join("inside")).unwrap();
    overlay("inside").unwrap();
    assert!(Command::new("mkfifo").arg(place.path.join("pipe")).status().unwrap().success());
    let up = format!("../{}/secret", outside.path.file_name().unwrap());
    let json = format!(r#"json:{{"driver":"qcow2","file.filename":"{secret}"}}"#);
    let url = format!("file:{secret}");
    for name in [
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/mem",
        secret.as_str(),
        &up,
        "link",
        "directory/secret",
        "pipe",
        ".",
        "disk",
        "./disk",
        "nbd:localhost:1",
        &json,
        &url,
        "base\0",
    ] {
        let error = overlay(name).unwrap_err();
        assert!(matches!(error, BrowseError::Refused { .. }), "{name:?}: {error:?}");
    }
    // A file that is allowed must be qcow2: another one may be somebody's key.
    fs::write(place.path.join("key"), "key ".repeat(1000)).unwrap();
    assert!(matches!(overlay("key"), Err(BrowseError::Corrupt { .. })));
    assert!(matches!(overlay("missing"), Err(BrowseError::Io { .. })));
    assert!(matches!(overlay(""), Err(BrowseError::Corrupt { .. })));

    place.run("qemu-img", &["rebase", "-u", "-b", "raw", "-F", "raw", "disk"]);
    assert!(matches!(place.try_open("disk"), Err(BrowseError::Refused { .. })));

    // The newest layer must be where it is allowed as well.
    let error = Filesystem::open(&secret, &[&place.path]).unwrap_err();
    assert!(matches!(error, BrowseError::Refused { .. }));
    assert!(matches!(
        Filesystem::open(&place.path.join("link"), &[&place.path]),
        Err(BrowseError::Refused { .. })
    ));
    assert!(matches!(Filesystem::open(&place.path.join("base"), &[]), Err(BrowseError::Refused { .. })));
    Filesystem::open(&place.path.join("link"), &[&place.path, &outside.path]).unwrap();
}

#[test]
fn data_elsewhere_and_chains_without_end_are_refused() {
    let place = Place::new();
    place.filesystem("raw", "16M", &[], sample);
    place.convert(&["-o", "data_file=data"], "raw", "external");
    assert!(matches!(place.try_open("external"), Err(BrowseError::Refused { .. })));
    place.convert(&["-o", "extended_l2=on"], "raw", "extended");
    assert!(matches!(place.try_open("extended"), Err(BrowseError::Unsupported { .. })));

    place.convert(&[], "raw", "0");
    for number in 1..=64 {
        let below = (number - 1).to_string();
        let name = number.to_string();
        place.run(
            "qemu-img",
            &["create", "-q", "-u", "-f", "qcow2", "-b", &below, "-F", "qcow2", &name, "16M"],
        );
    }
    assert_eq!(read(&place.open("63"), "/a/b/c/deep").unwrap(), b"deep down");
    assert!(matches!(place.try_open("64"), Err(BrowseError::Refused { .. })));
}

/// Everything that can be done with a disk, whatever comes of it.
fn look_everywhere(place: &Place, disk: &str) -> bool {
    let Ok(filesystem) = place.try_open(disk) else { return false };
    let mut folders = vec!["/".to_owned()];
    // Not all: a damaged folder may be inside itself.
    let mut left = 400;
    while let Some(folder) = folders.pop() {
        for entry in filesystem.list(&folder).unwrap_or_default() {
            if left == 0 {
                folders.clear();
                break;
            }
            left -= 1;
            match entry.kind {
                Kind::Directory => folders.push(entry.path),
                _ => {
                    let _ = filesystem.metadata(&entry.path);
                    let _ = filesystem.read(&entry.path, 8 << 20, &mut io::sink());
                }
            }
        }
    }
    let limits = TarLimits { bytes: 16 << 20, entries: 500, directories: 50 };
    filesystem.tar("/", limits, &mut io::sink()).is_ok()
}

/// Changes some bytes of `original` again and again, most of them in `hot`, and looks at what that makes.
fn shake(place: &Place, original: &[u8], hot: &[std::ops::Range<usize>], rounds: u64, seed: u64) {
    let mut intact = 0;
    for round in 0..rounds {
        let mut random = Random(seed ^ round << 32);
        let mut bytes = original.to_vec();
        for _ in 0..=random.below(12) {
            let place = match hot.get(random.below(hot.len() + 1)) {
                Some(range) => range.start + random.below(range.len()),
                None => random.below(bytes.len()),
            };
            bytes[place] = match random.below(4) {
                0 => 0,
                1 => 0xff,
                _ => bytes[place] ^ 1 << random.below(8),
            };
        }
        if random.below(20) == 0 {
            bytes.truncate(random.below(bytes.len()));
        }
        fs::write(place.path.join("shaken"), bytes).unwrap();
        intact += u64::from(look_everywhere(place, "shaken"));
    }
    // Otherwise the bytes that were changed were never those that matter, or always.
    assert!(0 < intact && intact < rounds, "{intact} of {rounds} survived");
}

fn shakable(root: &Utf8Path) {
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/noise"), noise(200_000, 5)).unwrap();
    fs::write(root.join("a/zeroes"), vec![0; 300_000]).unwrap();
    symlink("a/b", root.join("short")).unwrap();
    symlink(format!("{}a", "./".repeat(80)), root.join("long")).unwrap();
    for number in 0..100 {
        fs::write(root.join(format!("a/b/{number}{}", "n".repeat(50))), number.to_string()).unwrap();
    }
}

#[test]
fn a_damaged_qcow2_file_is_an_error_or_wrong_bytes() {
    let place = Place::new();
    place.filesystem("raw", "4M", &["-b", "1024"], shakable);
    for (seed, options) in
        [(1, &["-o", "cluster_size=4k"][..]), (2, &["-c"]), (3, &["-c", "-o", "compression_type=zstd"])]
    {
        place.convert(options, "raw", "disk");
        let bytes = fs::read(place.path.join("disk")).unwrap();
        let entry =
            |at: usize| usize::try_from(u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap();
        let l1 = entry(40);
        let l2 = entry(l1) & 0x00ff_ffff_ffff_fe00;
        let entries = (4 << 20 >> u32::from_be_bytes(bytes[20..24].try_into().unwrap())) * 8;
        let hot = [0..112, l1..l1 + 16, l2..(l2 + entries).min(bytes.len())];
        shake(&place, &bytes, &hot, 300, seed);
    }
    for garbage in [vec![], vec![0; 100_000], noise(100_000, 6), b"QFI\xfb".to_vec()] {
        fs::write(place.path.join("garbage"), garbage).unwrap();
        assert!(matches!(place.try_open("garbage"), Err(BrowseError::Corrupt { .. })));
    }
}

#[test]
fn a_damaged_filesystem_is_an_error_or_wrong_bytes() {
    let place = Place::new();
    for (seed, options) in
        [(4, &["-b", "1024", "-O", "64bit"][..]), (5, &["-b", "1024", "-O", "^extent,^64bit"])]
    {
        let raw = format!("raw{seed}");
        place.filesystem(&raw, "8M", options, shakable);
        place.debugfs(&raw, "jo\njw -b 3000,3001 /dev/zero\njw -r 3000\njc\n");
        place.convert(&["-o", "cluster_size=64k"], &raw, "disk");
        let bytes = fs::read(place.path.join("disk")).unwrap();
        // Where a block of the filesystem is in the file, by its content.
        let image = fs::read(place.path.join(&raw)).unwrap();
        let find = |number: usize| {
            let block = &image[number * 1024..(number + 1) * 1024];
            let found = bytes.chunks_exact(1024).position(|chunk| chunk == block).unwrap() * 1024;
            found..found + 1024
        };
        let number = |text: &str| -> usize {
            text.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap()
        };
        let blocks = |path: &str| -> Vec<usize> {
            let blocks = place.run("debugfs", &["-R", &format!("blocks {path}"), &raw]);
            blocks.split_whitespace().map(number).collect()
        };
        let imap = place.run("debugfs", &["-R", "imap /a", &raw]);
        let inodes = imap.split("at block ").nth(1).unwrap().split(',').next().unwrap();
        let mut hot = vec![find(1), find(2), find(number(inodes)), find(number(inodes) - 1)];
        hot.extend(blocks("/a/b").into_iter().take(3).map(find));
        hot.extend(blocks("<8>").into_iter().take(4).map(find));
        shake(&place, &bytes, &hot, 400, seed);
    }
}
