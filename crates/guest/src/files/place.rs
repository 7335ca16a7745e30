//! Where a path leads, and that it leads nowhere it must not.
//!
//! Names on the way may be links, and may change while we look. So nothing is decided from a path: the kernel follows
//! it to a descriptor, the kernel says where that is, and whatever is done then is done to the descriptor, or to one
//! name in it that is not followed.

use std::{
    ffi::OsString,
    fs::{self, File, Metadata},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use roost_guest_proto::v1::FilePath;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::error::FileError;

const LONGEST_PATH: usize = 4095;
const TOO_LONG: &str = "it is too long";

/// A path of a call, and the directories it may lead into.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    path: PathBuf,
    /// As the kernel names them.
    roots: Vec<PathBuf>,
}

impl Asked {
    pub(super) fn new(file: FilePath) -> Result<Self, FileError> {
        let roots = file.roots.into_iter().map(PathBuf::from).collect::<Vec<_>>();
        let path = checked(&file.path)?;
        let plain = without_dots(&path);
        if !is_below_one_of(&plain, &roots) {
            return Err(FileError::Outside(file.path));
        }
        let roots = roots.into_iter().map(|root| fs::canonicalize(&root).unwrap_or(root)).collect();
        Ok(Self { path, roots })
    }

    /// Another path of the same call.
    pub(super) fn other(&self, path: &str, roots: &[String]) -> Result<Self, FileError> {
        Self::new(FilePath { path: path.to_owned(), roots: roots.to_vec() })
    }

    /// What plain names lead to from here; they may be bytes that are no text.
    pub(super) fn below(&self, names: &Path) -> Result<Self, FileError> {
        let path = self.path.join(names);
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(FileError::Path { path: path.display().to_string(), why: TOO_LONG });
        }
        Ok(self.at(path))
    }

    /// A path that the kernel has named.
    pub(super) fn other_real(&self, real: PathBuf) -> Self {
        self.at(real)
    }

    pub(super) fn text(&self) -> String {
        self.path.display().to_string()
    }

    fn at(&self, path: PathBuf) -> Self {
        Self { path, roots: self.roots.clone() }
    }

    fn allow(&self, real: &Path) -> Result<(), FileError> {
        if is_below_one_of(real, &self.roots) { Ok(()) } else { Err(FileError::Outside(self.text())) }
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> FileError {
        let path = self.text();
        move |source| FileError::Io { action, path, source }
    }

    /// What the path leads to when every link is followed.
    pub(super) fn open(&self) -> Result<Opened, FileError> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_MAGICLINKS;
        let opened = rustix::fs::openat2(CWD, &self.path, flags, Mode::empty(), resolve);
        let descriptor = opened.map_err(io::Error::from).map_err(self.failed("open"))?;
        let real = real_path(&descriptor).map_err(self.failed("locate"))?;
        self.allow(&real)?;
        let metadata = fs::metadata(proc_path(&descriptor)).map_err(self.failed("look at"))?;
        Ok(Opened { descriptor, real, metadata })
    }

    /// The last name of the path, not followed, and the directory it is in.
    pub(super) fn place(&self) -> Result<Place, FileError> {
        let (Some(parent), Some(Component::Normal(name))) =
            (self.path.parent(), self.path.components().next_back())
        else {
            // `..` at the end: whatever that is has a name of its own.
            let real = self.open()?.real;
            return match real.file_name() {
                Some(_) => self.at(real).place(),
                None => Err(FileError::Outside(self.text())),
            };
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat2(CWD, parent, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
        let directory = opened.map_err(io::Error::from).map_err(self.failed("open"))?;
        let real = real_path(&directory).map_err(self.failed("locate"))?;
        self.allow(&real.join(name))?;
        Ok(Place { directory, real, name: name.to_owned() })
    }

    /// Where a file of this path is written: what a link leads to, if that is there.
    pub(super) fn target(&self) -> Result<Place, FileError> {
        match self.open() {
            Ok(opened) if opened.metadata.is_file() => self.at(opened.real).place(),
            Ok(opened) if opened.metadata.is_dir() => Err(FileError::IsDirectory(self.text())),
            Ok(_) => Err(FileError::NotAFile(self.text())),
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => self.place(),
            Err(error) => Err(error),
        }
    }

    /// The path of the directory that this one is in.
    pub(super) fn parent(&self) -> Option<Self> {
        let parent = self.path.parent()?;
        let is_plain = matches!(parent.components().next_back(), Some(Component::Normal(_)));
        is_plain.then(|| self.at(parent.to_owned()))
    }

    /// Whether nothing but a root can be meant: it may be looked into, and not removed.
    pub(super) fn is_root(&self, real: &Path) -> bool {
        self.roots.iter().any(|root| root == real)
    }
}

fn checked(path: &str) -> Result<PathBuf, FileError> {
    let refuse = |why| Err(FileError::Path { path: path.to_owned(), why });
    if !path.starts_with('/') {
        return refuse("it does not begin with a slash");
    }
    if path.contains('\0') {
        return refuse("it contains a NUL byte");
    }
    if path.len() > LONGEST_PATH {
        return refuse(TOO_LONG);
    }
    Ok(PathBuf::from(path))
}

/// As a person reads it, without asking anybody.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    plain
}

fn is_below_one_of(path: &Path, roots: &[PathBuf]) -> bool {
    roots.iter().any(|root| path.starts_with(root))
}

/// The path that names an open descriptor to this process, whatever becomes of its own.
pub(super) fn proc_path(descriptor: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()))
}

fn real_path(descriptor: &impl AsFd) -> io::Result<PathBuf> {
    let path = fs::read_link(proc_path(descriptor))?;
    // The kernel's word for what has no place any more.
    if path.as_os_str().as_bytes().ends_with(b" (deleted)") && !path.exists() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(path)
}

/// Something that a path has led to.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) descriptor: OwnedFd,
    pub(super) real: PathBuf,
    pub(super) metadata: Metadata,
}

impl Opened {
    /// Its path for this process.
    pub(super) fn path(&self) -> PathBuf {
        proc_path(&self.descriptor)
    }

    /// The very same thing, for reading.
    pub(super) fn read(&self) -> io::Result<File> {
        File::open(self.path())
    }
}

/// A name in a directory.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    /// The directory's path.
    pub(super) real: PathBuf,
    pub(super) name: OsString,
}

impl Place {
    /// Its path for this process: the last name is not followed by what does not follow links.
    pub(super) fn path(&self) -> PathBuf {
        proc_path(&self.directory).join(&self.name)
    }

    pub(super) fn real(&self) -> PathBuf {
        self.real.join(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    fn asked(path: &Path, root: &Path) -> Result<Asked, FileError> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        Asked::new(FilePath { path: text(path), roots: vec![text(root)] })
    }

    #[test]
    fn only_absolute_paths_are_paths() {
        for path in ["", "a", "./a", "a/b", "/a\0b"] {
            let asked = Asked::new(FilePath { path: path.to_owned(), roots: vec!["/".to_owned()] });
            assert!(matches!(asked, Err(FileError::Path { .. })), "{path:?}");
        }
        let long = Asked::new(FilePath { path: "/x".repeat(3000), roots: vec!["/".to_owned()] });
        assert!(matches!(long, Err(FileError::Path { .. })));
    }

    #[test]
    fn no_way_leads_out() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().canonicalize().unwrap();
        let (root, secret) = (base.join("root"), base.join("secret"));
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::create_dir(base.join("root-beside")).unwrap();
        fs::create_dir(&secret).unwrap();
        fs::write(secret.join("file"), "x").unwrap();
        symlink(&secret, root.join("absolute")).unwrap();
        symlink("../secret", root.join("relative")).unwrap();
        symlink("../../secret/file", root.join("sub/file")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        symlink("/proc/self/cwd", root.join("sub/magic")).unwrap();
        let ways = [
            "../secret/file",
            "sub/../../secret/file",
            "absolute/file",
            "relative/file",
            "relative/../secret/file",
            "sub/file",
            "../root-beside",
            "..",
            "magic/etc/passwd",
            "sub/magic/x",
        ];
        for way in ways {
            let path = root.join(way);
            let opened = asked(&path, &root).and_then(|asked| asked.open());
            assert!(opened.is_err(), "{way} was opened");
            // A link at the end is a name like others where it is not followed.
            if way != "sub/file" {
                let place = asked(&path, &root).and_then(|asked| asked.place());
                assert!(place.is_err(), "{way} was found");
            }
            let target = asked(&path, &root).and_then(|asked| asked.target());
            assert!(target.is_err(), "{way} could be written");
        }
    }

    #[test]
    fn ways_that_stay_inside_are_fine() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/file"), "x").unwrap();
        symlink(root.join("sub"), root.join("link")).unwrap();
        symlink("sub/file", root.join("name")).unwrap();
        let real = |way: &str| asked(&root.join(way), &root).unwrap().open().unwrap().real;
        for way in ["sub/file", "link/file", "sub/../sub/./file", "name", "link/../sub/file"] {
            assert_eq!(real(way), root.join("sub/file"), "{way}");
        }
        let place = asked(&root.join("name"), &root).unwrap().place().unwrap();
        assert_eq!(place.real(), root.join("name"));
        let target = asked(&root.join("name"), &root).unwrap().target().unwrap();
        assert_eq!(target.real(), root.join("sub/file"));
        let new = asked(&root.join("link/new"), &root).unwrap().target().unwrap();
        assert_eq!(new.real(), root.join("sub/new"));
        let dots = asked(&root.join("sub/.."), &root).unwrap().open().unwrap();
        assert_eq!(dots.real, root);
    }

    /// One name of a path: what there is, what leads elsewhere, and nonsense.
    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            6 => prop::sample::select(&["a", "b", "file", "link", "out", ".", "..", "", "root", "outside"][..])
                .prop_map(str::to_owned),
            1 => "[ -~\n\t\u{1}\u{e9}\u{6771}]{0,6}".prop_filter("a name", |name| !name.contains('/')),
        ]
    }

    fn way() -> impl Strategy<Value = String> {
        prop::collection::vec(name(), 0..7).prop_map(|names| names.join("/"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Links lead anywhere and paths are anything: what is found is inside, and is what the kernel finds.
        #[test]
        fn whatever_is_asked_for_is_inside(
            links in prop::collection::vec((way(), way(), any::<bool>()), 0..6),
            ways in prop::collection::vec(way(), 1..12),
        ) {
            let directory = tempfile::tempdir().unwrap();
            let base = directory.path().canonicalize().unwrap();
            let root = base.join("root");
            for made in [root.join("a/b"), root.join("b"), base.join("outside/a"), base.join("root-beside")] {
                fs::create_dir_all(made).unwrap();
            }
            for file in [root.join("file"), root.join("a/file"), base.join("outside/file")] {
                fs::write(file, "x").unwrap();
            }
            for (at, to, is_absolute) in links {
                let to = if is_absolute { base.join(to.trim_start_matches('/')) } else { PathBuf::from(to) };
                // Some of them have no place, or lead nowhere that could be written down.
                let _planted = symlink(to, root.join(at.trim_start_matches('/')));
            }
            let is_inside = |path: &Path| path == root || path.starts_with(&root);
            for way in ways {
                let path = format!("{}/{way}", root.display());
                let Ok(asked) = asked(Path::new(&path), &root) else { continue };
                if let Ok(opened) = asked.open() {
                    prop_assert!(is_inside(&opened.real), "{way:?} leads to {:?}", opened.real);
                    prop_assert_eq!(&opened.real, &fs::canonicalize(&path).unwrap(), "{:?}", way);
                }
                for place in [asked.place(), asked.target()].into_iter().flatten() {
                    let (real, name) = (place.real(), place.name.clone());
                    prop_assert!(is_inside(&real), "{way:?} would be written to {real:?}");
                    prop_assert!(name != ".." && name != "." && !name.is_empty(), "{way:?}: {name:?}");
                    prop_assert_eq!(&fs::canonicalize(&place.real).unwrap(), &place.real);
                }
            }
        }

        #[test]
        fn no_text_breaks_it(path in any::<String>(), root in any::<String>()) {
            let file = FilePath { path, roots: vec![root, "/nowhere".to_owned()] };
            if let Ok(asked) = Asked::new(file) {
                let _outcome = (asked.open(), asked.place(), asked.target());
            }
        }
    }
}
