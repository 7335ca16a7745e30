//! How a machine process started by root gives root up.
//!
//! Every machine gets a user id of its own, so that a guest that breaks out of QEMU reaches the files of its
//! own computer and nobody else's. Data directories often sit below a directory only root may enter (its
//! home); such a directory is covered, in a mount namespace of the process, by an empty one that holds
//! nothing but the paths the machine needs. As a side effect the machine cannot see the rest of it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid};
use rustix::mount::{MountFlags, MountPropagationFlags};

const TUN: &str = "/dev/net/tun";

#[derive(Debug, thiserror::Error)]
#[error("failed to {action}")]
pub struct ConfineError {
    action: String,
    #[source]
    source: std::io::Error,
}

/// Becomes `user` for good, keeping access to `paths`. Must run before the process has a second thread:
/// user ids and namespaces belong to threads.
pub fn confine(user: u32, paths: &[&Utf8Path]) -> Result<(), ConfineError> {
    let hidden: Vec<Hidden> =
        paths.iter().filter_map(|path| hidden(user, path).transpose()).collect::<Result<_, _>>()?;
    let tun_is_closed = std::fs::metadata(TUN).is_ok_and(|meta| meta.mode() & 0o006 != 0o006);
    if !hidden.is_empty() || tun_is_closed {
        own_mounts()?;
    }
    if !hidden.is_empty() {
        expose(&hidden)?;
    }
    if tun_is_closed {
        open_tun()?;
    }
    // Supplementary groups first: afterwards we may not any more. The group of /dev/kvm is the one kept.
    let kvm = std::fs::metadata("/dev/kvm").ok().map(|meta| Gid::from_raw(meta.gid()));
    rustix::thread::set_thread_groups(kvm.as_slice()).map_err(failed("drop the groups of root"))?;
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("become the machine's group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("become the machine's user"))?;
    // A process that changed its user may not open its own files in /proc, which user namespaces need.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
        .map_err(failed("stay inspectable after the change of user"))
}

/// A path below a directory that the user may not enter.
struct Hidden {
    path: Utf8PathBuf,
    /// The first such directory.
    barrier: Utf8PathBuf,
}

fn hidden(user: u32, path: &Utf8Path) -> Result<Option<Hidden>, ConfineError> {
    let path =
        path.canonicalize_utf8().map_err(|source| ConfineError { action: format!("find {path}"), source })?;
    let mut ancestors: Vec<&Utf8Path> = path.ancestors().skip(1).collect();
    ancestors.reverse();
    for directory in ancestors {
        let meta = std::fs::metadata(directory)
            .map_err(|source| ConfineError { action: format!("inspect {directory}"), source })?;
        let enter = if meta.uid() == user { 0o100 } else { 0o001 };
        if meta.mode() & enter == 0 {
            let barrier = directory.to_owned();
            return Ok(Some(Hidden { path, barrier }));
        }
    }
    Ok(None)
}

/// From here on what this process mounts is seen by nobody else.
fn own_mounts() -> Result<(), ConfineError> {
    // SAFETY: only the mount table is unshared; memory and file descriptors stay as they are.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .map_err(failed("make a mount namespace"))?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("make the mounts private"))
}

/// Where udev runs, everybody may open the device (a tap exists only in the network namespace of whoever
/// makes it). Where it does not, as in many containers, the machine gets a device of its own.
fn open_tun() -> Result<(), ConfineError> {
    let directory = "/dev/net";
    rustix::mount::mount(
        "roost",
        directory,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        Some(c"mode=0755,size=64k"),
    )
    .map_err(failed("cover /dev/net"))?;
    let device = rustix::fs::makedev(10, 200);
    rustix::fs::mknodat(rustix::fs::CWD, TUN, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device)
        .map_err(failed("make /dev/net/tun"))?;
    // Whatever the umask took away.
    rustix::fs::chmod(TUN, Mode::from_raw_mode(0o666)).map_err(failed("open /dev/net/tun"))
}

fn expose(hidden: &[Hidden]) -> Result<(), ConfineError> {
    // Opened in this namespace (a mount of another one cannot be bound), and before anything is covered.
    let open = |item: &Hidden| {
        rustix::fs::open(item.path.as_std_path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| ConfineError { action: format!("open {}", item.path), source: source.into() })
    };
    let handles: Vec<OwnedFd> = hidden.iter().map(open).collect::<Result<_, _>>()?;
    let mut covered: Vec<&Utf8Path> = Vec::new();
    for (item, handle) in hidden.iter().zip(handles) {
        if !covered.contains(&item.barrier.as_path()) {
            rustix::mount::mount(
                "roost",
                item.barrier.as_std_path(),
                "tmpfs",
                MountFlags::NOSUID | MountFlags::NODEV,
                Some(c"mode=0755,size=1m"),
            )
            .map_err(|source| ConfineError {
                action: format!("cover {}", item.barrier),
                source: source.into(),
            })?;
            covered.push(&item.barrier);
        }
        std::fs::create_dir_all(&item.path)
            .map_err(|source| ConfineError { action: format!("make {}", item.path), source })?;
        rustix::mount::mount_bind(format!("/proc/self/fd/{}", handle.as_raw_fd()), item.path.as_std_path())
            .map_err(|source| ConfineError { action: format!("bind {}", item.path), source: source.into() })?;
    }
    Ok(())
}

fn failed(action: &'static str) -> impl Fn(rustix::io::Errno) -> ConfineError {
    move |source| ConfineError { action: action.to_owned(), source: source.into() }
}
