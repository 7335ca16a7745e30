//! One build, from lock to pointer.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
};

use camino::{Utf8Path, Utf8PathBuf};

use crate::{
    DESKTOP,
    apt::{self, Mirrors, Settings},
    digest::{Digest, DigestOf},
    error::{ImageError, OnFile},
    filesystem, kernel,
    namespace::remove_directory,
    packages::{self, Layout},
    preflight, recipe,
    template::{DISK, INITRD, KERNEL, Manifest, Template, Templates, set_mode, sync},
};

/// Parts of a base, beside the kernel and the initrd.
const FILESYSTEM: &str = "root.ext4";
const FACTS: &str = "facts";
const PACKAGE_LIST: &str = "package-list";
/// Directories of half-done work begin so, and nothing else does.
const WORK_PREFIX: &str = ".build-";

/// Which Debian packages a build uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packages {
    /// Those of the last build of the same recipe, if there was one.
    Cached,
    /// The newest the mirror has.
    Fresh,
}

/// The parts of a build, in order. Those whose result is cached are not reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Another build is running; this one continues when it has ended.
    Waiting,
    Packages,
    Filesystem,
    Agent,
    Disk,
}

impl Phase {
    /// For people: what is going on.
    pub fn title(self) -> &'static str {
        match self {
            Self::Waiting => "waiting for another build",
            Self::Packages => "installing Debian packages",
            Self::Filesystem => "making the filesystem",
            Self::Agent => "adding the agent",
            Self::Disk => "writing the disk image",
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    pub phase: Phase,
    /// Of this phase, where it is known.
    pub percent: Option<u8>,
    /// One line about what is being done; may be empty.
    pub detail: &'a str,
}

impl Templates {
    /// Builds `miosa-desktop` with this agent and makes it current. Takes a minute, or seconds when only
    /// the agent is new, or nothing when nothing is. Blocks the calling thread.
    pub fn build(
        &self,
        agent: &Utf8Path,
        packages: Packages,
        report: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Template, ImageError> {
        preflight::check_agent(agent)?;
        let home = self.root.join(DESKTOP);
        create_directories(&home)?;
        let _lock = lock(&home.join(".lock"), report)?;
        remove_leftovers(&home)?;

        let mirrors = preflight::check(&self.root)?;
        let settings = apt::settings()?;
        let recipe = recipe::digest();
        let base = self.base(&recipe, &mirrors, &settings, packages, report)?;

        let agent_digest =
            Digest::of_file(agent).map_err(|source| ImageError::Agent { path: agent.to_owned(), source })?;
        let digest = DigestOf::new("roost template 2")
            .part(base.identity.as_str())
            .part(agent_digest.as_str())
            .finish();
        if self.get(DESKTOP, &digest)?.is_none() {
            let work = home.join(format!("{WORK_PREFIX}{digest}"));
            make_template(&base, agent, &work, report)?;
            let disk = work.join(DISK);
            let manifest = Manifest {
                created: jiff::Timestamp::now(),
                debian: base.facts.debian.clone(),
                kernel: base.facts.kernel.clone(),
                packages: base.facts.packages,
                disk_bytes: fs::metadata(&disk).on("read", &disk)?.blocks() * 512,
                recipe,
                agent: agent_digest,
            };
            self.publish(DESKTOP, &digest, &work, &manifest)?;
        }
        self.set_current(DESKTOP, &digest)?;
        self.get(DESKTOP, &digest)?.ok_or_else(|| ImageError::Product {
            path: home.join(digest.as_str()),
            reason: "it was removed during the build".into(),
        })
    }

    /// The filesystem without an agent, from the cache or new.
    fn base(
        &self,
        recipe: &Digest,
        mirrors: &Mirrors,
        settings: &Settings,
        packages: Packages,
        report: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Base, ImageError> {
        let key = DigestOf::new("roost base 1")
            .part(recipe.as_str())
            .part(mirrors.sources())
            .part(settings.guest.join("\n"))
            .finish();
        let cache = self.root.join(".cache").join(DESKTOP);
        create_directories(&cache)?;
        remove_leftovers(&cache)?;
        let directory = cache.join(key.as_str());
        if packages == Packages::Cached
            && let Some(base) = Base::open(&directory)?
        {
            return Ok(base);
        }
        preflight::require_space(&self.root, preflight::SPACE_FOR_PACKAGES)?;

        let work = cache.join(format!("{WORK_PREFIX}{key}"));
        fs::create_dir(&work).on("create", &work)?;
        set_mode(&work, 0o755)?; // accounts of the guest must get through, whatever the umask
        let layout = Layout {
            root: work.join("root"),
            products: work.join("products"),
            log: self.root.join(DESKTOP).join("build.log"),
            directory: work.clone(),
        };
        if let Err(error) = make_base(&layout, mirrors, settings, report) {
            // The log is kept elsewhere, and a gigabyte of half a system serves nobody.
            return match remove_directory(&work) {
                Ok(()) => Err(error),
                Err(also) => {
                    tracing::warn!(%also, "the failed build could not be removed; the next one will do it");
                    Err(error)
                }
            };
        }

        // Only the newest base is worth its gigabyte: all others are of other recipes or older packages.
        for entry in cache.read_dir_utf8().on("list", &cache)? {
            let path = entry.on("list", &cache)?.into_path();
            if path != work {
                remove_directory(&path)?;
            }
        }
        fs::rename(&layout.products, &directory).on("rename to", &directory)?;
        sync(&cache)?;
        remove_directory(&work)?;
        Base::open(&directory)?.ok_or_else(|| ImageError::Product {
            path: directory,
            reason: "files are missing from it".into(),
        })
    }
}

fn make_base(
    layout: &Layout,
    mirrors: &Mirrors,
    settings: &Settings,
    report: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ImageError> {
    report(Progress { phase: Phase::Packages, percent: Some(0), detail: &mirrors.main });
    packages::install(layout, mirrors, settings, report)?;
    report(Progress { phase: Phase::Filesystem, percent: None, detail: "" });
    filesystem::make(&layout.root, &layout.products.join(FILESYSTEM))?;
    for file in [FILESYSTEM, KERNEL, INITRD, FACTS, PACKAGE_LIST] {
        sync(&layout.products.join(file))?;
    }
    sync(&layout.products)
}

/// The cached half of a template.
struct Base {
    directory: Utf8PathBuf,
    /// Of what is in it, not of what it was made from: an unchanged mirror gives an unchanged template.
    identity: Digest,
    facts: Facts,
}

impl Base {
    fn open(directory: &Utf8Path) -> Result<Option<Self>, ImageError> {
        let read = |file: &str| {
            let path = directory.join(file);
            match fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error).on("read", &path),
            }
        };
        let (Some(facts), Some(list)) = (read(FACTS)?, read(PACKAGE_LIST)?) else { return Ok(None) };
        let Some(facts) = Facts::parse(&facts) else {
            return Err(ImageError::Product {
                path: directory.join(FACTS),
                reason: "the recipe's setup must write `kernel`, `debian` and `packages` into it".into(),
            });
        };
        let key = directory.file_name().unwrap_or_default();
        let identity =
            DigestOf::new("roost base identity 1").part(key).part(&facts.kernel).part(list).finish();
        Ok(Some(Self { directory: directory.to_owned(), identity, facts }))
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Facts {
    kernel: String,
    debian: String,
    packages: u32,
}

impl Facts {
    fn parse(text: &str) -> Option<Self> {
        let fact = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::trim)
        };
        Some(Self {
            kernel: fact("kernel")?.to_owned(),
            debian: fact("debian")?.to_owned(),
            packages: fact("packages")?.parse().ok()?,
        })
    }
}

fn make_template(
    base: &Base,
    agent: &Utf8Path,
    work: &Utf8Path,
    report: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ImageError> {
    // Scratch files live in a directory of their own, so that what is published holds nothing else.
    let scratch = work.join("scratch");
    fs::create_dir_all(&scratch).on("create", &scratch)?;
    let (packed, kernel) = (base.directory.join(KERNEL), work.join(KERNEL));
    let packed = fs::read(&packed).on("read", &packed)?;
    let unpacked = kernel::unpack(&packed);
    if unpacked.is_none() {
        tracing::warn!("the kernel could not be unpacked: computers boot slower and take some ten MiB more");
    }
    fs::write(&kernel, unpacked.unwrap_or(packed)).on("write", &kernel)?;
    let initrd = work.join(INITRD);
    fs::copy(base.directory.join(INITRD), &initrd).on("copy to", &initrd)?;
    report(Progress { phase: Phase::Agent, percent: None, detail: agent.as_str() });
    filesystem::copy_sparse(&base.directory.join(FILESYSTEM), &scratch.join(FILESYSTEM))?;
    filesystem::insert_agent(&scratch, FILESYSTEM, agent)?;
    report(Progress { phase: Phase::Disk, percent: None, detail: "" });
    filesystem::to_qcow2(&scratch, FILESYSTEM, DISK)?;
    let disk = work.join(DISK);
    fs::rename(scratch.join(DISK), &disk).on("rename to", &disk)?;
    remove_directory(&scratch)
}

/// As [`fs::create_dir_all`], but what it creates is readable by everybody, whatever the umask.
fn create_directories(path: &Utf8Path) -> Result<(), ImageError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_directories(parent)?;
    }
    match fs::create_dir(path) {
        // Another build was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).on("create", path),
        Ok(()) => set_mode(path, 0o755),
    }
}

/// Held until dropped, and by no one after this process.
fn lock(path: &Utf8Path, report: &mut dyn FnMut(Progress<'_>)) -> Result<File, ImageError> {
    let file = File::options().create(true).truncate(false).write(true).open(path).on("open", path)?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::Error(error)) => return Err(error).on("lock", path),
        Err(TryLockError::WouldBlock) => {}
    }
    report(Progress { phase: Phase::Waiting, percent: None, detail: "" });
    file.lock().on("lock", path)?;
    Ok(file)
}

/// What a killed build left. Call with the lock held.
fn remove_leftovers(directory: &Utf8Path) -> Result<(), ImageError> {
    for entry in directory.read_dir_utf8().on("list", directory)? {
        let entry = entry.on("list", directory)?;
        if entry.file_name().starts_with(WORK_PREFIX) {
            tracing::info!(path = %entry.path(), "removing what an interrupted build left");
            remove_directory(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    fn temporary() -> (tempfile::TempDir, Utf8PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(directory.path()).unwrap().to_owned();
        (directory, path)
    }

    #[test]
    fn facts_must_be_complete() {
        let facts = Facts::parse("kernel 6.12-cloud\ndebian 13.1\npackages 390\n").unwrap();
        assert_eq!(facts, Facts { kernel: "6.12-cloud".into(), debian: "13.1".into(), packages: 390 });
        assert_eq!(Facts::parse("kernel 6.12\npackages 3\n"), None);
        assert_eq!(Facts::parse("kernel a\ndebian b\npackages many\n"), None);
    }

    #[test]
    fn a_second_build_waits_and_says_so() {
        let (_directory, path) = temporary();
        let path = path.join("lock");
        let first = lock(&path, &mut |_| panic!("nothing to wait for")).unwrap();
        let (said, hears) = mpsc::channel();
        let second =
            thread::spawn(move || lock(&path, &mut |progress| said.send(progress.phase).unwrap()).map(drop));
        assert_eq!(hears.recv().unwrap(), Phase::Waiting);
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap().unwrap();
    }

    #[test]
    fn leftovers_go_and_templates_stay() {
        let (_directory, path) = temporary();
        for name in [".build-abc/deep/er", "0123456789abcdef0123456789abcdef", ".cache"] {
            fs::create_dir_all(path.join(name)).unwrap();
        }
        remove_leftovers(&path).unwrap();
        let mut left: Vec<_> =
            path.read_dir_utf8().unwrap().map(|entry| entry.unwrap().file_name().to_owned()).collect();
        left.sort();
        assert_eq!(left, [".cache", "0123456789abcdef0123456789abcdef"]);
    }

    #[test]
    fn a_new_package_is_a_new_base() {
        let (_directory, path) = temporary();
        assert!(Base::open(&path).unwrap().is_none());
        fs::write(path.join(FACTS), "kernel 6\ndebian 13\npackages 1\n").unwrap();
        assert!(Base::open(&path).unwrap().is_none());
        fs::write(path.join(PACKAGE_LIST), "bash 5.2-1\n").unwrap();
        let one = Base::open(&path).unwrap().unwrap().identity;
        assert_eq!(one, Base::open(&path).unwrap().unwrap().identity);
        fs::write(path.join(PACKAGE_LIST), "bash 5.2-2\n").unwrap();
        assert_ne!(one, Base::open(&path).unwrap().unwrap().identity);
        fs::write(path.join(FACTS), "nonsense").unwrap();
        assert!(matches!(Base::open(&path), Err(ImageError::Product { .. })));
    }
}
