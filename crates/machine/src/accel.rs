//! Which accelerator this host really has, and whether its QEMU is new enough.
//!
//! A `/dev/kvm` that opens proves nothing: there are hosts (nested virtualization without the needed parts)
//! where a stock kernel never gets past its first instructions under it. So the template's kernel is booted
//! under KVM until it starts its first program; one that does not get there in time means emulation. The
//! answer to that boot is cached for as long as host, QEMU and kernel stay the same, while whether
//! `/dev/kvm` can be opened is asked anew each time.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use roost_machine_proto::Accelerator;
use serde::{Deserialize, Serialize};

use crate::directory::write_durably;
use crate::qemu::PROGRAM;

const KVM: &str = "/dev/kvm";
/// Saving RAM to a file that can be mapped (`mapped-ram`) came with QEMU 9.
pub const OLDEST_QEMU: u32 = 9;
/// Working KVM takes about a second; the rest is for a busy host.
const BOOT_DEADLINE: Duration = Duration::from_secs(8);
/// What the kernel writes when it has come up: it starts its first program, or finds none and says so.
const SIGNS_OF_LIFE: [&str; 3] =
    ["Run /init as init process", "Kernel panic - not syncing", "Freeing unused kernel"];
/// More than any kernel says before its first program.
const OUTPUT_LIMIT: u64 = 1024 * 1024;

/// What to run computers with on this host, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub accelerator: Accelerator,
    /// A sentence for people.
    pub why: String,
    pub qemu: QemuVersion,
}

/// As QEMU tells it, compared by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuVersion {
    pub major: u32,
    pub minor: u32,
    /// The whole first line after the program's name, with the distribution's own version.
    pub full: String,
}

#[derive(Debug, thiserror::Error)]
pub enum QemuVersionError {
    #[error("cannot run {PROGRAM}: {0}; {INSTALL_QEMU}")]
    NotInstalled(std::io::Error),
    #[error("{PROGRAM} --version ended with {0}; {INSTALL_QEMU}")]
    Fails(std::process::ExitStatus),
    #[error("cannot tell QEMU's version from {0:?}")]
    Unreadable(String),
    #[error("QEMU {0} is too old, version {OLDEST_QEMU} or newer is needed; {INSTALL_QEMU}")]
    TooOld(QemuVersion),
}

const INSTALL_QEMU: &str = "install qemu-system-x86 and qemu-utils (Debian 13: `apt install qemu-system-x86 qemu-utils`; \
     Debian 12: enable bookworm-backports and `apt install -t bookworm-backports qemu-system-x86 qemu-utils`)";

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.full.fmt(f)
    }
}

/// The installed QEMU, if it is new enough.
pub fn qemu_version() -> Result<QemuVersion, QemuVersionError> {
    let output = Command::new(PROGRAM)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(QemuVersionError::NotInstalled)?;
    if !output.status.success() {
        return Err(QemuVersionError::Fails(output.status));
    }
    let version = parse_version(&String::from_utf8_lossy(&output.stdout))?;
    if version.major < OLDEST_QEMU { Err(QemuVersionError::TooOld(version)) } else { Ok(version) }
}

fn parse_version(text: &str) -> Result<QemuVersion, QemuVersionError> {
    let line = text.lines().next().unwrap_or_default();
    let parse = || {
        let full = line.strip_prefix("QEMU emulator version ")?;
        let mut numbers = full.split(|char: char| !char.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        Some(QemuVersion { major, minor, full: full.to_owned() })
    };
    parse().ok_or_else(|| QemuVersionError::Unreadable(line.to_owned()))
}

/// Chooses the accelerator. Takes some seconds when nothing is cached in `cache_file`; blocks the thread.
pub fn probe(
    kernel: &Utf8Path,
    initrd: &Utf8Path,
    cache_file: &Utf8Path,
) -> Result<Verdict, QemuVersionError> {
    let qemu = qemu_version()?;
    let verdict = |accelerator, why| Verdict { accelerator, why, qemu: qemu.clone() };
    match File::options().read(true).write(true).open(KVM) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(verdict(
                Accelerator::Tcg,
                format!("this host has no {KVM}; emulation works, more slowly"),
            ));
        }
        Err(error) => {
            let why =
                format!("{KVM} cannot be opened ({error}): add this user to the group kvm and log in again");
            return Ok(verdict(Accelerator::Tcg, why));
        }
    }
    let key = cache_key(&qemu, kernel, initrd);
    let booted = match read_cache(cache_file) {
        Some(cached) if key.as_ref() == Some(&cached.key) => cached.booted,
        _ => {
            let booted = boot_under_kvm(kernel, initrd);
            if let Some(key) = key {
                write_cache(cache_file, &Cached { key, booted: booted.clone() });
            }
            booted
        }
    };
    Ok(match booted {
        Booted::Yes { milliseconds } => {
            verdict(Accelerator::Kvm, format!("the template's kernel came up under KVM in {milliseconds} ms"))
        }
        Booted::No { why } => {
            verdict(Accelerator::Tcg, format!("KVM does not work here: {why}; using emulation"))
        }
    })
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "booted", rename_all = "snake_case")]
enum Booted {
    Yes { milliseconds: u64 },
    No { why: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct Cached {
    key: Key,
    #[serde(flatten)]
    booted: Booted,
}

/// Everything the answer depends on. A boot of the host is part of it: the same disk may come up on other
/// hardware, and one probe a boot is cheap.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    host_boot: String,
    qemu: String,
    kernel: FileKey,
    initrd: FileKey,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileKey {
    path: Utf8PathBuf,
    size: u64,
    modified_s: i64,
    modified_ns: i64,
}

/// `None` when it cannot be told: then nothing is cached.
fn cache_key(qemu: &QemuVersion, kernel: &Utf8Path, initrd: &Utf8Path) -> Option<Key> {
    let file_key = |path: &Utf8Path| {
        let path = path.canonicalize_utf8().ok()?;
        let metadata = path.metadata().ok()?;
        let (modified_s, modified_ns) = (metadata.mtime(), metadata.mtime_nsec());
        Some(FileKey { size: metadata.len(), path, modified_s, modified_ns })
    };
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(Key {
        host_boot: boot.trim().to_owned(),
        qemu: qemu.full.clone(),
        kernel: file_key(kernel)?,
        initrd: file_key(initrd)?,
    })
}

fn read_cache(path: &Utf8Path) -> Option<Cached> {
    // Missing or of another version of this program: both mean to probe.
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write_cache(path: &Utf8Path, cached: &Cached) {
    let written = serde_json::to_vec_pretty(cached)
        .map_err(std::io::Error::from)
        .and_then(|text| write_durably(path, &text));
    if let Err(error) = written {
        tracing::warn!("cannot keep the result of the KVM probe in {path}: {error}; it runs again next time");
    }
}

fn boot_under_kvm(kernel: &Utf8Path, initrd: &Utf8Path) -> Booted {
    let no = |why: String| Booted::No { why };
    let started = Instant::now();
    let child = Command::new(PROGRAM)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-sandbox", "on", "-machine", "q35"])
        .args(["-accel", "kvm", "-cpu", "host", "-m", "512M", "-no-reboot", "-serial", "stdio"])
        .args(["-kernel", kernel.as_str(), "-initrd", initrd.as_str()])
        .args(["-append", "console=ttyS0 panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut qemu = match child {
        Ok(child) => Killed(child),
        Err(error) => return no(format!("QEMU does not start ({error})")),
    };
    let stdout = qemu.0.stdout.take().expect("stdout is piped");
    let stderr = qemu.0.stderr.take().expect("stderr is piped");
    let (sender, outcome) = mpsc::channel();
    // Ends with QEMU, which this function does not outlive.
    let watching = std::thread::spawn(move || {
        let alive = came_up(stdout);
        let words = if alive { String::new() } else { last_line(stderr) };
        // Nobody listens after the deadline.
        drop(sender.send((alive, words)));
    });
    let seen = outcome.recv_timeout(BOOT_DEADLINE);
    drop(qemu);
    if watching.join().is_err() {
        tracing::warn!("the reader of the probe's console panicked");
    }
    match seen {
        Ok((true, _)) => {
            Booted::Yes { milliseconds: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX) }
        }
        Ok((false, words)) => no(format!("QEMU ended before the kernel was up ({words})")),
        Err(_) => no(format!("a kernel hangs under it (no sign of life in {} s)", BOOT_DEADLINE.as_secs())),
    }
}

fn came_up(console: impl Read) -> bool {
    let mut console = BufReader::new(console.take(OUTPUT_LIMIT));
    let mut line = Vec::new();
    loop {
        line.clear();
        match console.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return false,
            Ok(_) => {
                let line = String::from_utf8_lossy(&line);
                if SIGNS_OF_LIFE.iter().any(|sign| line.contains(sign)) {
                    return true;
                }
            }
        }
    }
}

fn last_line(stderr: impl Read) -> String {
    let mut text = Vec::new();
    match stderr.take(64 * 1024).read_to_end(&mut text) {
        Ok(_) => String::from_utf8_lossy(&text).lines().last().unwrap_or("it said nothing").to_owned(),
        Err(error) => error.to_string(),
    }
}

/// A child that does not outlive its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait().map(drop)) {
            tracing::debug!("ending the probe's QEMU: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let debian =
            "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright (c) 2003\n";
        let version = parse_version(debian).unwrap();
        assert_eq!((version.major, version.minor), (10, 0));
        assert_eq!(version.to_string(), "10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)");
        assert_eq!(parse_version("QEMU emulator version 7.2.22").unwrap().major, 7);
        for bad in ["", "qemu 7", "QEMU emulator version x"] {
            assert!(matches!(parse_version(bad), Err(QemuVersionError::Unreadable(_))));
        }
    }

    #[test]
    fn a_kernel_is_up_when_it_says_so() {
        assert!(came_up(&b"Linux version 6\r\n[    0.9] Run /init as init process\r\n"[..]));
        assert!(came_up(&b"[    0.9] Kernel panic - not syncing: VFS\r\n"[..]));
        assert!(!came_up(&b"SeaBIOS (version 1.16.3)\r\n"[..]));
    }

    #[test]
    fn the_cache_keeps_its_answer_and_survives_nonsense() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap().join("accel.json");
        assert!(read_cache(&path).is_none());
        std::fs::write(&path, "{").unwrap();
        assert!(read_cache(&path).is_none());
        let qemu = parse_version("QEMU emulator version 9.1.0").unwrap();
        let key = cache_key(&qemu, &path, &path).unwrap();
        let booted = Booted::No { why: "it hangs".to_owned() };
        write_cache(&path, &Cached { key, booted: booted.clone() });
        let cached = read_cache(&path).unwrap();
        assert_eq!(cached.booted, booted);
        assert_eq!(cached.key.qemu, "9.1.0");
    }
}
