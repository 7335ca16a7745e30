//! Makes a restored or freshly booted guest a computer of its own.
//!
//! A guest restored from a template has the template's random pool, clock, name and machine id, as has every
//! other computer restored from it. The random pool comes first: nothing that is made here or afterwards may
//! come from the shared one.
//!
//! What every computer gets of its own:
//!
//! * the random pool, the clock, the host name: here. Programs ask the kernel for the name, and the resolver
//!   of the image does so too (`nss-myhostname`), so `/etc/hosts` is left alone: a file to write costs a
//!   computer that has just begun more than all that is no file. A shell that runs already goes on showing the
//!   old name in its prompt.
//! * the machine id: here. D-Bus has no other: its file is a link to this one.
//! * SSH host keys: removed here when the machine id changes; the image makes new ones when sshd starts.
//!
//! What is the same in all computers that were restored from one image, and why:
//!
//! * `boot_id`: the kernel's own, made once per boot, and nothing can change it. So are the kernel's hash
//!   keys and address layout.
//! * the X server's cookie: X listens on a unix socket inside the guest only, so a cookie is of no use to
//!   any other computer; and with a new one, running programs could open no further windows.
//! * what running programs keep in memory: a random generator that was seeded once, and the machine id, if
//!   they have asked for it. systemd and the D-Bus daemons have; they use it as a name, and two computers never
//!   meet on one bus. The journal goes on under its old name, and is found under the new one too; an sshd is
//!   started anew by [`restart_sshd`].
//!
//! Files are written only when they change. They are not flushed: this happens again after every boot.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags},
    ioctl,
    mount::UnmountFlags,
    time::{ClockId, Timespec},
};
use tonic::Status;

/// A clock that is this close is left alone: setting it wakes every program that waits for a time of day, and
/// the way from the host makes it no more exact. Far below the 100 ms that are promised.
const CLOCK_TOLERANCE_NS: i128 = 5_000_000;
const NS_PER_SECOND: i128 = 1_000_000_000;

#[derive(Debug)]
pub(super) struct Identity {
    hostname: Option<String>,
    machine_id: Option<String>,
    wall_clock: Option<WallClock>,
    entropy: Vec<u8>,
}

/// What the host's clock said, and when that was received: until it is used, locks and disks may have been
/// waited for.
#[derive(Debug, Clone, Copy)]
struct WallClock {
    ns: i64,
    received: Instant,
}

impl WallClock {
    fn after(self, waited: Duration) -> i128 {
        i128::from(self.ns).saturating_add_unsigned(waited.as_nanos())
    }
}

/// Whether [`Identity::assume`] made another computer of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Became {
    Another,
    ItselfAgain,
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
    #[error("remove the SSH host keys, which no two computers may share, from {}: {source}", path.display())]
    HostKeys { path: PathBuf, source: io::Error },
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
            | IdentityError::HostKeys { .. }
            | IdentityError::Write { .. } => Status::internal(error.to_string()),
        }
    }
}

impl Identity {
    /// Call it as soon as the host's words have arrived: the clock in them goes on from here.
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
            ns => Some(WallClock { ns, received: Instant::now() }),
        };
        Ok(Self { hostname, machine_id, wall_clock, entropy: entropy.to_vec() })
    }

    pub(super) fn assume(self) -> Result<Became, IdentityError> {
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
        match &self.machine_id {
            Some(id) => become_machine(Path::new("/"), id),
            None => Ok(Became::ItselfAgain),
        }
    }
}

/// An sshd that runs has the host keys of an earlier identity in memory. Hardly ever does one run, and asking
/// systemd would cost a computer that has just begun more than everything else together.
pub(super) async fn restart_sshd() {
    if !Path::new("/run/sshd.pid").exists() {
        return;
    }
    let restart = ["--no-block", "try-restart", "ssh.service"];
    let systemctl =
        tokio::process::Command::new("systemctl").args(restart).stdin(Stdio::null()).output().await;
    match systemctl {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let message = String::from_utf8_lossy(&output.stderr);
            let (status, message) = (output.status, message.trim_end());
            tracing::warn!(%status, message, "start sshd anew for the new identity");
        }
        Err(error) => tracing::warn!(%error, "run systemctl to start sshd anew"),
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

fn set_clock(clock: WallClock) -> io::Result<()> {
    let ns = |time: Timespec| i128::from(time.tv_sec) * NS_PER_SECOND + i128::from(time.tv_nsec);
    let now = ns(rustix::time::clock_gettime(ClockId::Realtime));
    let right = clock.after(clock.received.elapsed());
    if (now - right).abs() > CLOCK_TOLERANCE_NS {
        let part = |part: i128| i64::try_from(part).map_err(io::Error::other);
        let right = Timespec { tv_sec: part(right / NS_PER_SECOND)?, tv_nsec: part(right % NS_PER_SECOND)? };
        rustix::time::clock_settime(ClockId::Realtime, right)?;
    }
    Ok(())
}

/// `/etc/hostname`, and `/etc/hosts` where it has the name.
fn write_hostname(etc: &Path, name: &str) -> Result<(), IdentityError> {
    replace(&etc.join("hostname"), &format!("{name}\n"))?;
    let path = etc.join("hosts");
    match fs::read_to_string(&path) {
        Ok(hosts) => replace(&path, &hosts_with(&hosts, name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(IdentityError::Write { path, source }),
    }
}

/// The convention of Debian: 127.0.1.1 is the host's own name, where the resolver has it from this file.
fn hosts_with(hosts: &str, name: &str) -> String {
    let own = format!("127.0.1.1\t{name}");
    let is_own = |line: &&str| line.split_whitespace().next() == Some("127.0.1.1");
    let Some(place) = hosts.lines().position(|line| is_own(&line)) else { return hosts.to_owned() };
    let mut lines: Vec<&str> = hosts.lines().filter(|line| !is_own(line)).collect();
    lines.insert(place, &own);
    lines.join("\n") + "\n"
}

fn become_machine(root: &Path, id: &str) -> Result<Became, IdentityError> {
    let known = fs::read_to_string(root.join("etc/machine-id")).unwrap_or_default();
    let known = known.trim_end();
    let became = if known == id { Became::ItselfAgain } else { Became::Another };
    if became == Became::Another {
        // Before the id, which says that it is done: this may be cut short.
        remove_host_keys(&root.join("etc/ssh"))?;
        if known.len() == id.len()
            && let Err(error) = name_journal(&root.join("run/log/journal"), known, id)
        {
            tracing::warn!(%error, "journalctl will not find what was logged so far");
        }
    }
    write_machine_id(root, id)?;
    Ok(became)
}

/// The journal goes on in the directory that is named after the machine id of the boot, and readers look into
/// that of today's only. Starting the journal anew would take a new computer longer than everything else.
fn name_journal(journals: &Path, known: &str, id: &str) -> io::Result<()> {
    if !journals.join(known).exists() {
        return Ok(());
    }
    match std::os::unix::fs::symlink(known, journals.join(id)) {
        // It has been this machine before.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        outcome => outcome,
    }
}

fn remove_host_keys(directory: &Path) -> Result<(), IdentityError> {
    let remove = || -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b"ssh_host_") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    match remove() {
        // There is no sshd, or it is being removed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(IdentityError::HostKeys { path: directory.to_owned(), source }),
        Ok(()) => Ok(()),
    }
}

fn write_machine_id(root: &Path, id: &str) -> Result<(), IdentityError> {
    let text = format!("{id}\n");
    let path = root.join("etc/machine-id");
    if !overwrite(&path, &text).unwrap_or(false) {
        replace(&path, &text)?;
    }
    // Normally D-Bus has a link to the other, and then nothing is left to do. systemd's is there when it could
    // not write the other at boot.
    for copy in ["var/lib/dbus/machine-id", "run/machine-id"] {
        let path = root.join(copy);
        match fs::symlink_metadata(&path) {
            Ok(kind) if kind.is_file() => replace(&path, &text)?,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(IdentityError::Write { path, source }),
        }
    }
    Ok(())
}

/// Writes over a file of the same length, which takes a fraction of what a new file takes. It is less than a page, so
/// no reader and no crash finds half of it. False: it has another length.
fn overwrite(path: &Path, text: &str) -> io::Result<bool> {
    let mut old = String::new();
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    file.read_to_string(&mut old)?;
    if old.len() != text.len() {
        return Ok(false);
    }
    if old != text {
        file.write_all_at(text.as_bytes(), 0)?;
    }
    Ok(true)
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
        // On its first boot systemd mounts a machine id of its own over the file, read-only: away with it, as
        // it would do itself when it commits that id. Who has it open keeps it.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            rustix::mount::unmount(path, UnmountFlags::DETACH).map_err(|error| failed(error.into()))?;
            fs::rename(&new, path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_name_is_replaced_where_it_is_kept() {
        let with = |hosts| hosts_with(hosts, "fox");
        assert_eq!(with("127.0.0.1 localhost\n"), "127.0.0.1 localhost\n");
        assert_eq!(
            with("::1 y\n127.0.1.1 old.example old\n::1 x\n127.0.1.1 more\n"),
            "::1 y\n127.0.1.1\tfox\n::1 x\n"
        );
        assert_eq!(with(""), "");
    }

    #[test]
    fn a_machine_id_is_written_over_another_but_not_into_a_file_of_another_length() {
        let root = root_with(&[("etc/machine-id", &format!("{OLD}\n"))]);
        let path = root.path().join("etc/machine-id");
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let before = inode(&path);
        write_machine_id(root.path(), NEW).unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap(), inode(&path)), (format!("{NEW}\n"), before));
        fs::write(&path, "uninitialized\n").unwrap();
        write_machine_id(root.path(), OLD).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{OLD}\n"));
        assert_ne!(inode(&path), before);
    }

    #[test]
    fn the_journal_is_found_under_every_name_the_machine_has_had() {
        let root = tempfile::tempdir().unwrap();
        let [first, second, third] = ["1", "2", "3"].map(|digit| digit.repeat(32));
        let journals = root.path().join("run/log/journal");
        fs::create_dir_all(journals.join(&first)).unwrap();
        fs::write(journals.join(&first).join("system.journal"), "log").unwrap();
        fs::create_dir_all(root.path().join("etc/ssh")).unwrap();
        fs::write(root.path().join("etc/machine-id"), format!("{first}\n")).unwrap();
        for id in [&second, &third, &first, &third] {
            become_machine(root.path(), id).unwrap();
            assert_eq!(fs::read(journals.join(id).join("system.journal")).unwrap(), b"log");
        }
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
        fs::write(root.path().join("etc/hosts"), "127.0.0.1\tlocalhost\n127.0.1.1\told\n").unwrap();
        write_hostname(&root.path().join("etc"), "fox").unwrap();
        let read = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();
        assert_eq!(read("etc/machine-id"), format!("{id}\n"));
        assert_eq!(read("etc/hostname"), "fox\n");
        assert_eq!(read("etc/hosts"), "127.0.0.1\tlocalhost\n127.0.1.1\tfox\n");
        assert!(root.path().join("var/lib/dbus/machine-id").is_symlink());
        assert_eq!(fs::read_dir(root.path().join("etc")).unwrap().count(), 3);
    }

    const OLD: &str = "00000000000000000000000000000001";
    const NEW: &str = "00000000000000000000000000000002";

    fn root_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn another_computer_has_other_host_keys_and_the_same_one_keeps_its_own() {
        let root = root_with(&[
            ("etc/machine-id", &format!("{OLD}\n")),
            ("etc/ssh/ssh_host_ed25519_key", "secret"),
            ("etc/ssh/ssh_host_ed25519_key.pub", "public"),
            ("etc/ssh/sshd_config", "kept"),
        ]);
        let ssh = || {
            let entries = fs::read_dir(root.path().join("etc/ssh")).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(become_machine(root.path(), OLD).unwrap(), Became::ItselfAgain);
        assert_eq!(ssh().len(), 3);
        assert_eq!(become_machine(root.path(), NEW).unwrap(), Became::Another);
        assert_eq!(ssh(), ["sshd_config"]);
        assert_eq!(fs::read_to_string(root.path().join("etc/machine-id")).unwrap(), format!("{NEW}\n"));
    }

    #[test]
    fn host_keys_that_cannot_be_removed_leave_the_old_identity() {
        let old = format!("{OLD}\n");
        let root = root_with(&[("etc/machine-id", &old), ("etc/ssh/ssh_host_odd/file", "")]);
        let error = become_machine(root.path(), NEW).unwrap_err();
        assert!(matches!(error, IdentityError::HostKeys { .. }), "{error}");
        assert_eq!(fs::read_to_string(root.path().join("etc/machine-id")).unwrap(), old);
    }

    #[test]
    fn a_first_boot_without_sshd_is_another_computer() {
        let root =
            root_with(&[("etc/machine-id", ""), ("run/machine-id", OLD), ("var/lib/dbus/machine-id", OLD)]);
        assert_eq!(become_machine(root.path(), NEW).unwrap(), Became::Another);
        for file in ["etc/machine-id", "run/machine-id", "var/lib/dbus/machine-id"] {
            assert_eq!(fs::read_to_string(root.path().join(file)).unwrap(), format!("{NEW}\n"), "{file}");
        }
    }

    /// `cargo test -p roost-guest -- --ignored mounted_over`.
    #[test]
    #[ignore = "needs root"]
    fn an_id_that_systemd_mounted_over_the_file_is_replaced() {
        let root = root_with(&[("etc/machine-id", "uninitialized\n"), ("run/machine-id", OLD)]);
        let (file, over) = (root.path().join("etc/machine-id"), root.path().join("run/machine-id"));
        let mount = |arguments: &[&std::ffi::OsStr]| {
            assert!(std::process::Command::new("mount").args(arguments).status().unwrap().success());
        };
        mount(&["--bind".as_ref(), over.as_ref(), file.as_ref()]);
        mount(&["-o".as_ref(), "remount,bind,ro".as_ref(), file.as_ref()]);
        assert_eq!(become_machine(root.path(), OLD).unwrap(), Became::ItselfAgain);
        assert_eq!(become_machine(root.path(), NEW).unwrap(), Became::Another);
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{NEW}\n"));
        assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(file.to_str().unwrap()));
        assert_eq!(fs::read_dir(root.path().join("etc")).unwrap().count(), 1);
    }

    #[test]
    fn the_clock_goes_on_while_the_guest_waits() {
        let clock = WallClock { ns: 1_500_000_000, received: Instant::now() };
        assert_eq!(clock.after(Duration::from_millis(700)), 2_200_000_000);
        let last = WallClock { ns: i64::MAX, received: Instant::now() };
        assert_eq!(last.after(Duration::from_nanos(1)), i128::from(i64::MAX) + 1);
    }
}
