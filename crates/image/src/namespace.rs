//! The surroundings in which the guest's files are made.

use std::{fs, io, process::Command};

use camino::Utf8Path;

use crate::{
    command::{command, run},
    error::{ImageError, OnFile},
};

/// A command that runs as root over the guest's accounts, in mount and process namespaces of its own.
///
/// Whatever it mounts is gone with it. When this process dies, even by SIGKILL, the kernel ends the command
/// and everything it started.
pub(crate) fn as_guest_root(program: &str) -> Command {
    let mut outer = command("setpriv");
    outer.args(["--pdeathsig", "KILL", "unshare"]);
    if !rustix::process::geteuid().is_root() {
        outer.args(["--map-root-user", "--map-auto"]);
    }
    outer.args(["--mount", "--pid", "--fork", "--kill-child", "--", program]);
    outer
}

/// Removes a directory in which there may be files of the guest's accounts.
pub(crate) fn remove_directory(path: &Utf8Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let mut remove = as_guest_root("rm");
            remove.args(["-rf", "--", path.as_str()]);
            run(remove).map(drop)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.on("remove", path),
    }
}
