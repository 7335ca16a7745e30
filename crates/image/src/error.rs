use std::io;

use camino::Utf8PathBuf;

/// Why there is no template. Every message says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Found before anything was done; all of them at once, so that one visit to the package manager is
    /// enough.
    #[error("this machine cannot build the image yet:{}", list(.0))]
    NotReady(Vec<Shortcoming>),
    #[error("the guest agent {path} cannot be used: {source}; build it first (package roost-guest)")]
    Agent { path: Utf8PathBuf, source: io::Error },
    #[error(
        "packages could not be fetched: {detail}\nCheck that this machine reaches its Debian mirror \
         (`apt-get update` must work), then try again. The whole log: {log}"
    )]
    Mirror { detail: String, log: Utf8PathBuf },
    #[error("the disk of {path} filled up during the build; free some space there and try again")]
    DiskFull { path: Utf8PathBuf },
    #[error("mmdebstrap ended with {status}; the whole log: {log}; its end:\n{tail}")]
    Packages { status: String, log: Utf8PathBuf, tail: String },
    #[error("`{command}` ended with {status}: {stderr}")]
    Command { command: String, status: String, stderr: String },
    #[error("cannot run `{program}`: {source}")]
    Spawn { program: String, source: io::Error },
    #[error("the agent in the finished filesystem is not the one put there; the disk may be faulty")]
    AgentDamaged,
    #[error("the build left an unusable {path}: {reason}")]
    Product { path: Utf8PathBuf, reason: String },
    #[error("cannot {action} {path}: {source}")]
    File { action: &'static str, path: Utf8PathBuf, source: io::Error },
    #[error("{path} is damaged: {source}; build the image again")]
    Manifest { path: Utf8PathBuf, source: serde_json::Error },
}

/// One thing this machine lacks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Shortcoming {
    #[error("images are built for x86-64 only; this machine is {0}")]
    Architecture(&'static str),
    #[error("`{tool}` is not installed; run: apt install {package}")]
    Tool { tool: &'static str, package: &'static str },
    #[error("Debian's signing keys are not installed; run: apt install debian-archive-keyring")]
    Keyring,
    #[error(
        "no entry in {directory} serves Debian's `main`, so there is no mirror to take packages from; \
         add Debian's archive to the apt sources"
    )]
    Mirror { directory: Utf8PathBuf },
    #[error("not enough disk space: {need_mib} MiB are needed in {path}, {have_mib} MiB are free")]
    DiskSpace { path: Utf8PathBuf, need_mib: u64, have_mib: u64 },
    #[error(
        "an ordinary user builds in a user namespace, and the kernel refused one ({reason}); allow it \
         (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, \
         kernel.apparmor_restrict_unprivileged_userns=0) and give this account subordinate ids \
         (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 NAME), or build as root"
    )]
    UserNamespace { reason: String },
    #[error("root here may not mount ({reason}), which building needs; run outside this container")]
    Mount { reason: String },
}

fn list(shortcomings: &[Shortcoming]) -> String {
    shortcomings.iter().map(|shortcoming| format!("\n  - {shortcoming}")).collect()
}

/// Names what was tried on which file when it fails.
pub(crate) trait OnFile<T> {
    fn on(self, action: &'static str, path: &camino::Utf8Path) -> Result<T, ImageError>;
}

impl<T> OnFile<T> for io::Result<T> {
    fn on(self, action: &'static str, path: &camino::Utf8Path) -> Result<T, ImageError> {
        self.map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull => ImageError::DiskFull { path: path.to_owned() },
            _ => ImageError::File { action, path: path.to_owned(), source },
        })
    }
}

impl<T> OnFile<T> for Result<T, rustix::io::Errno> {
    fn on(self, action: &'static str, path: &camino::Utf8Path) -> Result<T, ImageError> {
        self.map_err(io::Error::from).on(action, path)
    }
}
