//! Makes a restored or freshly booted guest a computer of its own.
//!
//! A guest restored from a template has the template's random pool, clock, name and machine id, as has every
//! other computer restored from it. The random pool comes first: nothing that is made here or afterwards may
//! come from the shared one.
//!
//! Files are replaced by rename and only when they change. They are not flushed: this happens again after
//! every boot.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    ioctl,
    time::{ClockId, Timespec},
};
use tonic::Status;

/// A clock that is this close is left alone: setting it costs every program its timers.
const CLOCK_TOLERANCE_NS: i128 = 5_000_000;
const NS_PER_SECOND: i64 = 1_000_000_000;

#[derive(Debug)]
pub(super) struct Identity {
    hostname: Option<String>,
    machine_id: Option<String>,
    wall_clock: Option<Timespec>,
    entropy: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    #[error("`{0}` is no host name: 1-63 letters, digits and inner hyphens")]
    Hostname(String),
    #[error("`{0}` is no machine id: 32 lower-case hex digits")]
    MachineId(String),
    #[error("{0} ns is no wall clock: it must not be before 1970")]
    Clock(i64),
    #[error("add entropy to the kernel's pool: {0}")]
    Entropy(io::Error),
    #[error("set the clock: {0}")]
    SetClock(io::Error),
    #[error("set the host name: {0}")]
    SetHostname(io::Error),
    #[error("write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl From<IdentityError> for Status {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::Hostname(_) | IdentityError::MachineId(_) | IdentityError::Clock(_) => {
                Status::invalid_argument(error.to_string())
            }
            IdentityError::Entropy(_)
            | IdentityError::SetClock(_)
            | IdentityError::SetHostname(_)
            | IdentityError::Write { .. } => Status::internal(error.to_string()),
        }
    }
}

impl Identity {
    pub(super) fn check(
        hostname: String,
        machine_id: String,
        wall_clock_ns: i64,
        entropy: bytes::Bytes,
    ) -> Result<Self, IdentityError> {
        let hostname = match hostname {
            name if name.is_empty() => None,
            name if is_hostname(&name) => Some(name),
            name => return Err(IdentityError::Hostname(name)),
        };
        let machine_id = match machine_id {
            id if id.is_empty() => None,
            id if id.len() == 32 && id.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) => {
                Some(id)
            }
            id => return Err(IdentityError::MachineId(id)),
        };
        let wall_clock = match wall_clock_ns {
            0 => None,
            ns if ns < 0 => return Err(IdentityError::Clock(ns)),
            ns => Some(Timespec { tv_sec: ns / NS_PER_SECOND, tv_nsec: ns % NS_PER_SECOND }),
        };
        Ok(Self { hostname, machine_id, wall_clock, entropy: entropy.to_vec() })
    }

    pub(super) fn assume(self) -> Result<(), IdentityError> {
        if !self.entropy.is_empty() {
            mix_in(&self.entropy).map_err(IdentityError::Entropy)?;
        }
        if let Some(clock) = self.wall_clock {
            set_clock(clock).map_err(IdentityError::SetClock)?;
        }
        if let Some(name) = &self.hostname {
            if rustix::system::uname().nodename().to_bytes() != name.as_bytes() {
                rustix::system::sethostname(name.as_bytes())
                    .map_err(|error| IdentityError::SetHostname(error.into()))?;
            }
            write_hostname(Path::new("/etc"), name)?;
        }
        if let Some(id) = &self.machine_id {
            write_machine_id(Path::new("/"), id)?;
        }
        Ok(())
    }
}

/// One label, as in RFC 1123.
fn is_hostname(name: &str) -> bool {
    name.len() <= 63
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// The argument of `RNDADDENTROPY`, `struct rand_pool_info` in `linux/random.h`, with room for one piece.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    size: i32,
    bytes: [u8; POOL_PIECE],
}
const POOL_PIECE: usize = 64;

/// `_IOW('R', 3, int[2])` and `_IO('R', 7)`.
const RNDADDENTROPY: ioctl::Opcode = ioctl::opcode::write::<[i32; 2]>(b'R', 3);
const RNDRESEEDCRNG: ioctl::Opcode = ioctl::opcode::none(b'R', 7);

fn mix_in(entropy: &[u8]) -> io::Result<()> {
    let pool = rustix::fs::open("/dev/urandom", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    for piece in entropy.chunks(POOL_PIECE) {
        let mut bytes = [0; POOL_PIECE];
        bytes[..piece.len()].copy_from_slice(piece);
        let size = i32::try_from(piece.len()).map_err(io::Error::other)?;
        let info = PoolInfo { entropy_bits: size * 8, size, bytes };
        // SAFETY: the opcode takes a pointer to a `rand_pool_info` followed by `size` bytes, which is what
        // `PoolInfo` is; the kernel only reads it.
        unsafe { ioctl::ioctl(&pool, ioctl::Setter::<RNDADDENTROPY, PoolInfo>::new(info)) }?;
    }
    // SAFETY: the opcode takes no argument.
    unsafe { ioctl::ioctl(&pool, ioctl::NoArg::<RNDRESEEDCRNG>::new()) }?;
    Ok(())
}

fn set_clock(clock: Timespec) -> io::Result<()> {
    let ns = |time: Timespec| i128::from(time.tv_sec) * i128::from(NS_PER_SECOND) + i128::from(time.tv_nsec);
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    if (ns(now) - ns(clock)).abs() > CLOCK_TOLERANCE_NS {
        rustix::time::clock_settime(ClockId::Realtime, clock)?;
    }
    Ok(())
}

fn write_hostname(etc: &Path, name: &str) -> Result<(), IdentityError> {
    replace(&etc.join("hostname"), &format!("{name}\n"))?;
    let path = etc.join("hosts");
    let hosts = match fs::read_to_string(&path) {
        Ok(hosts) => hosts,
        Err(error) if error.kind() == io::ErrorKind::NotFound => "127.0.0.1\tlocalhost\n".to_owned(),
        Err(source) => return Err(IdentityError::Write { path, source }),
    };
    replace(&path, &hosts_with(&hosts, name))
}

/// The convention of Debian: 127.0.1.1 is the host's own name.
fn hosts_with(hosts: &str, name: &str) -> String {
    let own = format!("127.0.1.1\t{name}");
    let mut found = false;
    let mut lines = Vec::new();
    for line in hosts.lines() {
        if line.split_whitespace().next() != Some("127.0.1.1") {
            lines.push(line);
        } else if !found {
            found = true;
            lines.push(&own);
        }
    }
    if !found {
        lines.push(&own);
    }
    lines.join("\n") + "\n"
}

fn write_machine_id(root: &Path, id: &str) -> Result<(), IdentityError> {
    let text = format!("{id}\n");
    replace(&root.join("etc/machine-id"), &text)?;
    // Normally a link to the other, and then nothing is left to do.
    let dbus = root.join("var/lib/dbus/machine-id");
    match fs::symlink_metadata(&dbus) {
        Ok(kind) if kind.is_file() => replace(&dbus, &text),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(IdentityError::Write { path: dbus, source }),
    }
}

/// Puts a world-readable file in place of another, unless it says the same already.
fn replace(path: &Path, text: &str) -> Result<(), IdentityError> {
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    let failed = |source| IdentityError::Write { path: path.to_owned(), source };
    let new = path.with_extension("roost-new");
    fs::write(&new, text).map_err(failed)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).map_err(failed)?;
    match fs::rename(&new, path) {
        Ok(()) => Ok(()),
        // On its first boot systemd mounts a machine id of its own over the file: that is then the one to
        // change.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            fs::write(path, text).map_err(failed)?;
            fs::remove_file(&new).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_name_is_replaced_once_or_added() {
        let with = |hosts| hosts_with(hosts, "fox");
        assert_eq!(with("127.0.0.1 localhost\n"), "127.0.0.1 localhost\n127.0.1.1\tfox\n");
        assert_eq!(with("127.0.1.1 old.example old\n::1 x\n127.0.1.1 more\n"), "127.0.1.1\tfox\n::1 x\n");
        assert_eq!(with(""), "127.0.1.1\tfox\n");
    }

    #[test]
    fn nonsense_is_refused_before_anything_happens() {
        let check = |name: &str, id: &str, clock| {
            Identity::check(name.into(), id.into(), clock, bytes::Bytes::new()).is_ok()
        };
        assert!(check("", "", 0));
        assert!(check("a-fox-1", "0123456789abcdef0123456789abcdef", 1));
        for name in ["-fox", "fox-", "fox.den", "fox den", "füchse", &"x".repeat(64)] {
            assert!(!check(name, "", 0), "{name}");
        }
        for id in ["0123456789ABCDEF0123456789ABCDEF", "0", "0123456789abcdef0123456789abcde\n"] {
            assert!(!check("", id, 0), "{id}");
        }
        assert!(!check("", "", -1));
    }

    #[test]
    fn files_are_replaced_whole_and_a_link_of_dbus_is_kept() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::create_dir_all(root.path().join("var/lib/dbus")).unwrap();
        fs::write(root.path().join("etc/machine-id"), "uninitialized\n").unwrap();
        std::os::unix::fs::symlink("/etc/machine-id", root.path().join("var/lib/dbus/machine-id")).unwrap();
        let id = "0123456789abcdef0123456789abcdef";
        write_machine_id(root.path(), id).unwrap();
        write_hostname(&root.path().join("etc"), "fox").unwrap();
        let read = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();
        assert_eq!(read("etc/machine-id"), format!("{id}\n"));
        assert_eq!(read("etc/hostname"), "fox\n");
        assert_eq!(read("etc/hosts"), "127.0.0.1\tlocalhost\n127.0.1.1\tfox\n");
        assert!(root.path().join("var/lib/dbus/machine-id").is_symlink());
        assert_eq!(fs::read_dir(root.path().join("etc")).unwrap().count(), 3);
    }
}
