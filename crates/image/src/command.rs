//! Programs this crate runs.

use std::{
    env,
    ffi::OsString,
    process::{Command, Stdio},
};

use camino::Utf8PathBuf;

use crate::error::ImageError;

/// The places ordinary users often lack in PATH although the tools in them work for everybody.
const SYSTEM_PLACES: [&str; 2] = ["/usr/sbin", "/sbin"];

pub(crate) fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(SYSTEM_PLACES.map(Into::into));
    // Joining what was split cannot fail; the fallback keeps this function simple to call.
    env::join_paths(places).unwrap_or(path)
}

pub(crate) fn find(tool: &str) -> Option<Utf8PathBuf> {
    env::split_paths(&search_path())
        .filter_map(|place| Utf8PathBuf::from_path_buf(place.join(tool)).ok())
        .find(|path| path.is_file())
}

pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    // C.UTF-8: messages are matched and shown, so they must not depend on who builds.
    command.env("PATH", search_path()).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command
}

/// Runs it to its end. What it says on standard error becomes part of the error.
pub(crate) fn run(mut command: Command) -> Result<Vec<u8>, ImageError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|source| ImageError::Spawn { program, source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    Err(ImageError::Command {
        command: words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
