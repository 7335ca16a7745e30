//! Installing Debian packages, one set at a time.
//!
//! An installation is a task of the agent's own: it goes on when the call that asked for it ends, and while the
//! computer is saved and continued. What was interrupted by a reboot is repaired by the next installation before it
//! does anything else. What apt needs to know it takes from the guest's own configuration.

use std::{
    collections::HashMap,
    io,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use roost_guest_proto::v1::{
    InstallReply, InstallStep, Installed, Installing, install_reply::State as Reply,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    sync::watch,
};

/// An installation that takes longer stands still.
const LONGEST: Duration = Duration::from_secs(2 * 3600);
/// How long the lists of packages are good.
const FRESH: Duration = Duration::from_secs(3600);
/// What is told of a failure.
const MOST_ERRORS: usize = 4;
const LONGEST_ERROR: usize = 300;

/// Where the parts of the work begin, in percent of the whole.
const DOWNLOAD: u32 = 10;
const UNPACK: u32 = 50;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    Working { step: InstallStep, percent: u32 },
    Installed,
    Failed(String),
}

impl Progress {
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Working { .. } => false,
            Self::Installed | Self::Failed(_) => true,
        }
    }

    pub(super) fn into_reply(self) -> InstallReply {
        let state = match self {
            Self::Working { step, percent } => Reply::Installing(Installing { step: step.into(), percent }),
            Self::Installed => Reply::Installed(Installed {}),
            Self::Failed(reason) => Reply::Failed(reason),
        };
        InstallReply { state: Some(state) }
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Installer {
    /// What is at work or waits, by its packages.
    running: Arc<Mutex<HashMap<Vec<String>, watch::Receiver<Progress>>>>,
    /// Held by the one that is at work: when the lists of packages were fetched.
    lists: Arc<tokio::sync::Mutex<Option<SystemTime>>>,
}

impl Installer {
    /// Begins to install `packages`, or joins who does.
    pub(super) fn install(&self, mut packages: Vec<String>) -> watch::Receiver<Progress> {
        packages.sort();
        packages.dedup();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(progress) = running.get(&packages) {
            return progress.clone();
        }
        let waiting = Progress::Working { step: InstallStep::Waiting, percent: 0 };
        let (progress, receiver) = watch::channel(waiting);
        running.insert(packages.clone(), receiver.clone());
        let installer = self.clone();
        tokio::spawn(async move {
            let result = installer.work(&packages, &progress).await;
            // Whoever asks from here on begins anew.
            installer.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&packages);
            progress.send_replace(match result {
                Ok(()) => Progress::Installed,
                Err(reason) => Progress::Failed(reason),
            });
        });
        receiver
    }

    async fn work(&self, packages: &[String], progress: &watch::Sender<Progress>) -> Result<(), String> {
        let mut lists = self.lists.lock().await;
        if are_installed(packages).await {
            return Ok(());
        }
        let work = install(packages, &mut lists, progress);
        let late = || format!("it was not installed after {} minutes", LONGEST.as_secs() / 60);
        tokio::time::timeout(LONGEST, work).await.unwrap_or_else(|_| Err(late()))
    }
}

async fn are_installed(packages: &[String]) -> bool {
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}\\n"])
        .args(packages)
        .stdin(Stdio::null())
        .output();
    match query.await {
        Ok(output) => {
            let states = String::from_utf8_lossy(&output.stdout);
            output.status.success() && states.lines().all(|state| state == "installed")
        }
        Err(error) => {
            tracing::warn!(%error, "run dpkg-query");
            false
        }
    }
}

async fn install(
    packages: &[String],
    lists: &mut Option<SystemTime>,
    progress: &watch::Sender<Progress>,
) -> Result<(), String> {
    tell(progress, InstallStep::Preparing, 0);
    run("dpkg", &["--configure", "-a"], progress).await?;
    let were_fresh = lists.is_some_and(|at| at.elapsed().is_ok_and(|age| age < FRESH));
    if !were_fresh {
        update(lists, progress).await?;
    }
    match fetch_and_unpack(packages, progress).await {
        // The mirror may have moved on since.
        Err(_) if were_fresh => {
            update(lists, progress).await?;
            fetch_and_unpack(packages, progress).await
        }
        result => result,
    }
}

async fn update(lists: &mut Option<SystemTime>, progress: &watch::Sender<Progress>) -> Result<(), String> {
    // Without this it only warns of a mirror it cannot reach, and packages seem to be missing.
    run("apt-get", &["-q", "-o", "APT::Update::Error-Mode=any", "update"], progress).await?;
    *lists = Some(SystemTime::now());
    Ok(())
}

async fn fetch_and_unpack(packages: &[String], progress: &watch::Sender<Progress>) -> Result<(), String> {
    tell(progress, InstallStep::Downloading, DOWNLOAD);
    let mut words = vec!["-q", "-y", "--no-install-recommends", "-o", "APT::Status-Fd=1"];
    // Files of the user's stay as they are, and nobody is asked.
    words.extend(["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]);
    words.extend(["-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=600", "install", "--"]);
    words.extend(packages.iter().map(String::as_str));
    run("apt-get", &words, progress).await?;
    // What was downloaded is unpacked, and takes room on the disk.
    run("apt-get", &["-q", "clean"], progress).await
}

fn tell(progress: &watch::Sender<Progress>, step: InstallStep, percent: u32) {
    let now = Progress::Working { step, percent: percent.min(99) };
    progress.send_if_modified(|before| {
        let is_new = *before != now;
        *before = now;
        is_new
    });
}

/// Runs a program to its end; the error is the reason it gave.
async fn run(program: &str, words: &[&str], progress: &watch::Sender<Progress>) -> Result<(), String> {
    let failed = |error: io::Error| format!("{program} could not be run: {error}");
    let mut child = Command::new(program)
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let listen = async {
        let Some(stdout) = stdout else { return Ok(()) };
        let mut lines = BufReader::new(stdout).split(b'\n');
        while let Some(line) = lines.next_segment().await? {
            if let Some((step, percent)) = status(&String::from_utf8_lossy(&line)) {
                tell(progress, step, percent);
            }
        }
        Ok(())
    };
    let complaints = async {
        let mut errors = Vec::new();
        let Some(stderr) = stderr else { return Ok(errors) };
        let mut lines = BufReader::new(stderr).split(b'\n');
        while let Some(line) = lines.next_segment().await? {
            errors.extend(complaint(&String::from_utf8_lossy(&line)).filter(|_| errors.len() < MOST_ERRORS));
        }
        Ok(errors)
    };
    let ((), errors) = tokio::try_join!(listen, complaints).map_err(failed)?;
    let status = child.wait().await.map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    Err(if errors.is_empty() { format!("{program}: {status}") } else { errors.join("; ") })
}

/// What a line of apt's status says: `dlstatus:` or `pmstatus:`, an item, its percentage, and words.
fn status(line: &str) -> Option<(InstallStep, u32)> {
    let (kind, rest) = line.trim_start().split_once(':')?;
    // `42.1234`; nothing else in the line looks like it.
    let percent: u32 = rest.split(':').find_map(|field| {
        let (whole, fraction) = field.split_once('.')?;
        fraction.parse::<u32>().ok()?;
        whole.parse().ok()
    })?;
    let of = |from: u32, to: u32| from + (to - from) * percent.min(100) / 100;
    match kind {
        "dlstatus" => Some((InstallStep::Downloading, of(DOWNLOAD, UNPACK))),
        "pmstatus" => Some((InstallStep::Installing, of(UNPACK, 100))),
        _ => None,
    }
}

/// The error in a line of what apt or dpkg said.
fn complaint(line: &str) -> Option<String> {
    let line = line.trim();
    let error = line.strip_prefix("E: ").or_else(|| line.strip_prefix("dpkg: error: "))?;
    let end = error.floor_char_boundary(error.len().min(LONGEST_ERROR));
    Some(error[..end].to_owned())
}

/// Whether Debian could have a package of this name. It is never an option.
pub(super) fn is_package(name: &str) -> bool {
    let is_lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (2..=100).contains(&name.len())
        && name.bytes().next().is_some_and(is_lower)
        && name.bytes().all(|byte| is_lower(byte) || b"+-.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_status_is_read() {
        for (line, expected) in [
            ("dlstatus:3:50.0000:Retrieving file 3 of 9", Some((InstallStep::Downloading, 30))),
            ("pmstatus:geany:0.0000:Installing geany (amd64)", Some((InstallStep::Installing, 50))),
            ("pmstatus:lib:stdc++6:100.0000:Done", Some((InstallStep::Installing, 100))),
            ("pmstatus:dpkg-exec:nonsense:Running dpkg", None),
            ("Get:1 http://mirror trixie/main 3.5 kB", None),
            ("", None),
        ] {
            assert_eq!(status(line), expected, "{line}");
        }
    }

    #[test]
    fn a_reason_is_what_apt_calls_an_error() {
        assert_eq!(complaint("E: Unable to locate package x\r").unwrap(), "Unable to locate package x");
        assert_eq!(complaint("dpkg: error: is locked").unwrap(), "is locked");
        assert_eq!(complaint("W: only a warning"), None);
        assert!(complaint(&format!("E: {}", "é".repeat(1000))).unwrap().len() <= LONGEST_ERROR);
    }

    #[test]
    fn names_of_packages_are_no_options() {
        for name in ["geany", "libstdc++6", "python3.13", "0ad"] {
            assert!(is_package(name), "{name}");
        }
        for name in ["", "-y", "a", "Geany", "a b", "a=1", "a/sid", "../x", "é!"] {
            assert!(!is_package(name), "{name}");
        }
    }
}
