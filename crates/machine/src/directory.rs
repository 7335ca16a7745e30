//! The machine's directory: who may use it, what is read from it and what is left in it.
//!
//! The process makes it its working directory, so that every path below it is short: a unix socket's
//! address holds 108 bytes, and data directories may be deep.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use roost_machine_proto::{LOCK_FILE, MachineSpec, OUTCOME_FILE, Outcome, SPEC_FILE};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// How long a QEMU whose machine process was killed may take to die: it frees its guest's memory.
const ORPHAN_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("cannot enter the machine's directory {dir}: {source}")]
    Enter { dir: Utf8PathBuf, source: std::io::Error },
    #[error("cannot open {LOCK_FILE}: {0}")]
    OpenLock(std::io::Error),
    #[error("cannot lock {LOCK_FILE}: {0}")]
    Lock(std::io::Error),
    #[error(
        "process {pid} already runs this computer: stop it first, through its socket or with SIGTERM to {pid}"
    )]
    AlreadyRunning { pid: i32 },
    #[error("the QEMU of an earlier machine process still holds {LOCK_FILE} after {} s", ORPHAN_DEADLINE.as_secs())]
    OrphanQemu,
    #[error("cannot read {SPEC_FILE}: {0}")]
    ReadSpec(std::io::Error),
    #[error("{SPEC_FILE} is not a machine spec: {0}")]
    ParseSpec(serde_json::Error),
    #[error("cannot remove the old {OUTCOME_FILE}: {0}")]
    RemoveOutcome(std::io::Error),
}

/// The locked directory. The lock is shared with QEMU (it inherits the file), so that holding it proves
/// not only that no other machine process is there but also that no QEMU of an earlier one still writes
/// to the disk.
#[derive(Debug)]
pub struct Directory {
    lock: OwnedFd,
}

impl Directory {
    /// Changes the working directory of the process and takes the lock. A launcher that took the lock for
    /// us hands it over as `held`.
    pub fn enter(dir: &Utf8Path, held: Option<File>) -> Result<Self, DirectoryError> {
        std::env::set_current_dir(dir)
            .map_err(|source| DirectoryError::Enter { dir: dir.to_owned(), source })?;
        // Its launcher has locked it and written our pid into it.
        if let Some(file) = held {
            return Ok(Self { lock: file.into() });
        }
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(LOCK_FILE)
            .map_err(DirectoryError::OpenLock)?;
        lock(&mut file)?;
        write_pid(&mut file).map_err(DirectoryError::Lock)?;
        Ok(Self { lock: file.into() })
    }

    pub fn lock_file(&self) -> impl AsFd + '_ {
        &self.lock
    }

    pub fn read_spec(&self) -> Result<MachineSpec, DirectoryError> {
        let text = std::fs::read(SPEC_FILE).map_err(DirectoryError::ReadSpec)?;
        serde_json::from_slice(&text).map_err(DirectoryError::ParseSpec)
    }

    /// An outcome is there only after the end: one of an earlier process must not be taken for ours.
    pub fn remove_outcome(&self) -> Result<(), DirectoryError> {
        remove_if_there(OUTCOME_FILE).map_err(DirectoryError::RemoveOutcome)
    }

    pub fn write_outcome(&self, outcome: &Outcome) -> std::io::Result<()> {
        write_durably(OUTCOME_FILE, &serde_json::to_vec_pretty(outcome)?)
    }
}

fn lock(file: &mut File) -> Result<(), DirectoryError> {
    match rustix::fs::flock(&*file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(()),
        Err(Errno::WOULDBLOCK) => {}
        Err(error) => return Err(DirectoryError::Lock(error.into())),
    }
    if let Some(pid) = read_pid(file)
        && rustix::process::test_kill_process(pid) != Err(Errno::SRCH)
    {
        return Err(DirectoryError::AlreadyRunning { pid: pid.as_raw_nonzero().get() });
    }
    // The holder's process is gone, its QEMU is on the way: the kernel kills it with its parent.
    let (locked, wait) = std::sync::mpsc::channel();
    let waiting = file.try_clone().map_err(DirectoryError::Lock)?;
    std::thread::spawn(move || {
        let outcome = rustix::fs::flock(&waiting, FlockOperation::LockExclusive);
        if locked.send(outcome).is_err() {
            // The deadline has passed, and the process is ending.
        }
    });
    match wait.recv_timeout(ORPHAN_DEADLINE) {
        Ok(outcome) => outcome.map_err(|error| DirectoryError::Lock(error.into())),
        Err(_) => Err(DirectoryError::OrphanQemu),
    }
}

fn read_pid(file: &mut File) -> Option<rustix::process::Pid> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    rustix::process::Pid::from_raw(text.trim().parse().ok()?)
}

fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Old content or new content, never half, whatever happens to the host in between.
pub fn write_durably(path: impl AsRef<Path>, content: &[u8]) -> std::io::Result<()> {
    write_whole(path, content, true)
}

/// The same; what is not written durably may be lost, or half, after a crash of the host, but not of this process.
pub fn write_whole(path: impl AsRef<Path>, content: &[u8], durably: bool) -> std::io::Result<()> {
    let path = path.as_ref();
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".tmp");
    let mut file = File::create(&unfinished)?;
    file.write_all(content)?;
    if durably {
        file.sync_all()?;
    }
    std::fs::rename(&unfinished, path)?;
    if durably {
        sync_parent(path)?;
    }
    Ok(())
}

/// Makes a rename in the directory of `path` last.
pub fn sync_parent(path: &Path) -> std::io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

pub fn remove_if_there(path: impl AsRef<Path>) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_durable_write_replaces_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outcome.json");
        write_durably(&path, b"old").unwrap();
        write_durably(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_lock_held_by_a_living_process_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK_FILE);
        let open =
            || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let mut first = open();
        lock(&mut first).unwrap();
        write_pid(&mut first).unwrap();
        match lock(&mut open()) {
            Err(DirectoryError::AlreadyRunning { pid }) => {
                assert_eq!(u32::try_from(pid).unwrap(), std::process::id());
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_lock_left_by_a_dead_process_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK_FILE);
        let open =
            || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let mut orphan = open();
        rustix::fs::flock(&orphan, FlockOperation::LockExclusive).unwrap();
        writeln!(orphan, "{}", gone.id()).unwrap();
        let mut next = open();
        let waiting = std::thread::spawn(move || lock(&mut next));
        drop(orphan);
        waiting.join().unwrap().unwrap();
    }
}
