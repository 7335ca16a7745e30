//! The computer's environment: variables that every process started from now on shall have.
//!
//! They are kept in three places, each for a reason:
//!
//! * in memory, for commands run through the agent;
//! * in `/etc/roost/env` (NUL-separated, for root only), so that an agent that starts anew has them, and in
//!   `/etc/roost/env.sh` (for the desktop user only), which login scripts and shells of the image read;
//! * in the activation environments of the user's systemd and D-Bus, from which services and most desktop
//!   programs start. They are set as soon as the desktop is up, and again whenever the set changes.
//!
//! Values may be secrets: they are never in an argument list and never in the log.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::Mode;
use tokio::{process::Command, sync::watch};
use tonic::Status;

use super::blocking;
use crate::{
    desktop::{display::DisplayAddress, readiness::Readiness},
    process::{Account, AccountError, find_account, session_environment},
};

pub(crate) type Variables = BTreeMap<String, String>;

const DIRECTORY: &str = "/etc/roost";

#[derive(Debug, Clone)]
pub(crate) struct Environment {
    current: Arc<watch::Sender<Arc<Variables>>>,
    /// Of the set. Changes of it and of the set are made one at a time, by the holder of the identity's lock.
    version: Arc<AtomicU64>,
    user: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvironmentError {
    #[error("`{0}` is no name for an environment variable: letters, digits and `_`, no digit first")]
    Name(String),
    #[error("the value of `{0}` contains a NUL byte, which no environment can hold")]
    Value(String),
    #[error("write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl From<EnvironmentError> for Status {
    fn from(error: EnvironmentError) -> Self {
        match error {
            EnvironmentError::Name(_) | EnvironmentError::Value(_) => {
                Status::invalid_argument(error.to_string())
            }
            EnvironmentError::Write { .. } => Status::internal(error.to_string()),
        }
    }
}

pub(super) fn check(variables: HashMap<String, String>) -> Result<Variables, EnvironmentError> {
    for (name, value) in &variables {
        if !is_name(name) {
            return Err(EnvironmentError::Name(name.clone()));
        }
        if value.contains('\0') {
            return Err(EnvironmentError::Value(name.clone()));
        }
    }
    Ok(variables.into_iter().collect())
}

fn is_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

impl Environment {
    /// The environment as it was before the agent ended, kept up to date in the user's session from now on.
    pub(crate) fn restore(user: String, display: DisplayAddress, readiness: Readiness) -> Self {
        let path = Path::new(DIRECTORY).join("env");
        let variables = match fs::read_to_string(&path) {
            Ok(text) => parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Variables::new(),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "start without the environment");
                Variables::new()
            }
        };
        let (current, changes) = watch::channel(Arc::new(variables));
        tokio::spawn(follow(changes, user.clone(), display, readiness));
        Self { current: Arc::new(current), version: Arc::default(), user }
    }

    /// From here on whatever set comes next is taken: the computer may be another one, with versions of its own.
    pub(super) fn start_anew(&self) {
        self.version.store(0, Ordering::Relaxed);
    }

    pub(crate) fn variables(&self) -> Arc<Variables> {
        self.current.borrow().clone()
    }

    /// Returns when new commands get the new set; the desktop follows. A set that is older than the one there is
    /// came late, and is left.
    pub(super) async fn replace(&self, version: u64, variables: Variables) -> Result<(), Status> {
        if version < self.version.load(Ordering::Relaxed) {
            return Ok(());
        }
        if *self.variables() == variables {
            self.version.store(version, Ordering::Relaxed);
            return Ok(());
        }
        let variables = Arc::new(variables);
        let (written, user) = (variables.clone(), self.user.clone());
        blocking(move || save(Path::new(DIRECTORY), &written, &user)).await?;
        self.current.send_replace(variables);
        self.version.store(version, Ordering::Relaxed);
        Ok(())
    }
}

fn save(directory: &Path, variables: &Variables, user: &str) -> Result<(), EnvironmentError> {
    let reader = match find_account(user) {
        Ok(account) => Some(account),
        Err(error) => {
            tracing::warn!(%error, "no shell will have the environment");
            None
        }
    };
    write_secret(&directory.join("env"), &format(variables), None)?;
    write_secret(&directory.join("env.sh"), &shell_script(variables), reader.as_ref())
}

fn write_secret(path: &Path, text: &str, owner: Option<&Account>) -> Result<(), EnvironmentError> {
    let new = path.with_added_extension("new");
    let write = || -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        // An earlier, interrupted write may have left it with other rights.
        rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR)?;
        file.write_all(text.as_bytes())?;
        if let Some(owner) = owner {
            rustix::fs::fchown(&file, Some(owner.uid), Some(owner.gid))?;
        }
        fs::rename(&new, path)
    };
    write().map_err(|source| EnvironmentError::Write { path: path.to_owned(), source })
}

/// As in `/proc/<pid>/environ`.
fn format(variables: &Variables) -> String {
    variables.iter().map(|(name, value)| format!("{name}={value}\0")).collect()
}

fn parse(text: &str) -> Variables {
    text.split_terminator('\0')
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn shell_script(variables: &Variables) -> String {
    variables
        .iter()
        .map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', r"'\''")))
        .collect()
}

/// Tells the user's session of every change, the latest only, whenever there is a session.
async fn follow(
    mut changes: watch::Receiver<Arc<Variables>>,
    user: String,
    display: DisplayAddress,
    mut readiness: Readiness,
) {
    let mut told = BTreeSet::new();
    loop {
        let desktop = readiness.ready().await;
        let variables = changes.borrow_and_update().clone();
        if !(variables.is_empty() && told.is_empty()) {
            match tell_session(&variables, &told, &user, &display).await {
                Ok(()) => told = variables.keys().cloned().collect(),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "set the session's environment");
                }
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            // A new session knows nothing yet.
            () = readiness.not(desktop) => told.clear(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error("run {program}: {source}")]
    Run { program: &'static str, source: io::Error },
    #[error("{program}: {status}: {message}")]
    Failed { program: &'static str, status: std::process::ExitStatus, message: String },
}

async fn tell_session(
    variables: &Variables,
    told: &BTreeSet<String>,
    user: &str,
    display: &DisplayAddress,
) -> Result<(), SessionError> {
    let account = find_account(user)?;
    let removed: Vec<&str> =
        told.iter().filter(|name| !variables.contains_key(*name)).map(String::as_str).collect();
    if !removed.is_empty() {
        let arguments = ["--user", "unset-environment"].into_iter().chain(removed.iter().copied());
        run_as(&account, display, &Variables::new(), "systemctl", arguments).await?;
        // D-Bus knows no removal; empty is the nearest to it.
        let empty = removed.iter().map(|name| ((*name).to_owned(), String::new())).collect();
        let names = removed.iter().copied();
        run_as(&account, display, &empty, "dbus-update-activation-environment", names).await?;
    }
    if !variables.is_empty() {
        // By name: the program takes the values from its own environment.
        let names = ["--systemd"].into_iter().chain(variables.keys().map(String::as_str));
        run_as(&account, display, variables, "dbus-update-activation-environment", names).await?;
    }
    Ok(())
}

/// Runs a program that speaks to the user's session, to its end.
pub(crate) async fn run_as(
    account: &Account,
    display: &DisplayAddress,
    variables: &Variables,
    program: &'static str,
    arguments: impl Iterator<Item = &str>,
) -> Result<(), SessionError> {
    let output = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(variables)
        .envs(session_environment(account, display))
        .env("PATH", "/usr/bin:/bin")
        .uid(account.uid.as_raw())
        .gid(account.gid.as_raw())
        .current_dir("/")
        .stdin(std::process::Stdio::null())
        .output()
        .await;
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let message = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
            Err(SessionError::Failed { program, status: output.status, message })
        }
        Err(source) => Err(SessionError::Run { program, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn names_and_values_are_checked() {
        assert!(check(variables(&[("_A1", "any\nthing = '\"$"), ("b", "")])).is_ok());
        for name in ["", "1A", "A-B", "A=B", "Ä", "A B", "A\n"] {
            assert!(matches!(check(variables(&[(name, "")])), Err(EnvironmentError::Name(_))), "{name}");
        }
        assert!(matches!(check(variables(&[("A", "\0")])), Err(EnvironmentError::Value(_))));
    }

    #[test]
    fn survives_its_file() {
        let set = check(variables(&[("A", "1\n2='x'"), ("B", ""), ("C", "=")])).unwrap();
        assert_eq!(parse(&format(&set)), set);
        assert_eq!(parse(""), Variables::new());
    }

    #[test]
    fn a_shell_reads_back_what_was_written() {
        let set = check(variables(&[("A", "it's $HOME \\ \"x\"\nnext"), ("B", "é")])).unwrap();
        let script = shell_script(&set) + "printf '%s|%s' \"$A\" \"$B\"";
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "it's $HOME \\ \"x\"\nnext|é");
    }

    #[test]
    fn secrets_are_for_their_reader_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("env");
        write_secret(&path, "A=1\0", None).unwrap();
        write_secret(&path, "A=2\0", None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap(), "A=2\0");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
