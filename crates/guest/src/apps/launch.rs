//! Starting desktop programs.
//!
//! They are started by the user's own systemd, from which they have the session's environment and the computer's
//! variables, and which looks after them: they outlive the agent and whoever asked for them.

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use tonic::Status;

use crate::{
    desktop::display::DisplayAddress,
    process::Account,
    system::environment::{SessionError, Variables, run_as},
};

const PATH: [&str; 5] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/games", "/usr/games"];

/// Whether there is such a program: a name that is looked up, or a whole path.
pub(super) fn is_program(name: &str) -> bool {
    let is_executable = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    match name {
        "" => false,
        name if name.starts_with('/') => is_executable(Path::new(name)),
        name if name.contains('/') => false,
        name => PATH.iter().any(|directory| is_executable(&Path::new(directory).join(name))),
    }
}

pub(super) async fn start(
    account: &Account,
    display: &DisplayAddress,
    name: &str,
    argv: &[String],
) -> Result<(), Status> {
    let unit = format!("--unit={}", unit(name));
    let home = format!("--working-directory={}", account.home);
    let path = format!("--setenv=PATH={}", PATH.join(":"));
    // `exec`: it has failed where there was no such program.
    let options = ["--user", "--collect", "--quiet", "--slice=app.slice", "--property=Type=exec"];
    let options = options.into_iter().chain([unit.as_str(), &home, &path, "--"]);
    let words = options.chain(argv.iter().map(String::as_str));
    run_as(account, display, &Variables::new(), "systemd-run", words).await.map_err(|error| match error {
        SessionError::Failed { message, .. } => {
            Status::failed_precondition(format!("{name} could not be started: {message}"))
        }
        error => Status::unavailable(format!("{name} could not be started: {error}")),
    })
}

/// A name of its own for each start: programs may run several times.
fn unit(name: &str) -> String {
    static STARTS: AtomicU32 = AtomicU32::new(0);
    let start = STARTS.fetch_add(1, Ordering::Relaxed);
    let safe = |char: char| if char.is_ascii_alphanumeric() { char } else { '_' };
    let name: String = name.chars().take(64).map(safe).collect();
    format!("app-roost-{name}-{}-{start}.service", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_files_that_can_be_run() {
        assert!(is_program("sh") && is_program("/bin/sh"));
        for name in ["", "no-such-program", "/etc/passwd", "bin/sh", "../bin/sh", "/bin"] {
            assert!(!is_program(name), "{name:?}");
        }
    }

    #[test]
    fn every_start_has_a_unit_of_its_own() {
        let (one, other) = (unit("org.x/y é"), unit("org.x/y é"));
        assert_ne!(one, other);
        assert!(one.starts_with("app-roost-org_x_y__-") && one.ends_with(".service"), "{one}");
    }
}
