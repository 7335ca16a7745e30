//! What must be there before a build is worth starting.

use std::{env, fs, io::Read};

use camino::Utf8Path;

use crate::{
    apt::{self, Mirrors},
    command::{find, run},
    error::{ImageError, OnFile, Shortcoming},
    namespace::as_guest_root,
};

const TOOLS: [(&str, &str); 7] = [
    ("mmdebstrap", "mmdebstrap"),
    ("apt-get", "apt"),
    ("mkfs.ext4", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("qemu-img", "qemu-utils"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
];
const USER_TOOLS: [(&str, &str); 2] = [("newuidmap", "uidmap"), ("newgidmap", "uidmap")];

/// The root filesystem as files, as an image and as qcow2, and room for the packages.
pub(crate) const SPACE_FOR_PACKAGES: u64 = 5 << 30;
/// The image with an agent in it, and the qcow2.
const SPACE_FOR_AGENT: u64 = 2 << 30;

/// Checks everything any build needs and reports everything that is missing.
pub(crate) fn check(directory: &Utf8Path) -> Result<Mirrors, ImageError> {
    let root = rustix::process::geteuid().is_root();
    let mut missing = Vec::new();
    if env::consts::ARCH != "x86_64" {
        missing.push(Shortcoming::Architecture(env::consts::ARCH));
    }
    missing.extend(missing_tools(root, |tool| find(tool).is_some()));
    let tools_complete = missing.is_empty();
    if !Utf8Path::new(apt::KEYRING).exists() {
        missing.push(Shortcoming::Keyring);
    }
    missing.extend(check_space(directory, free_space(directory)?, SPACE_FOR_AGENT));
    if tools_complete {
        missing.extend(check_namespace(root));
    }
    let mirrors = apt::mirrors(Utf8Path::new(apt::DIRECTORY))?;
    if mirrors.is_none() {
        missing.push(Shortcoming::Mirror { directory: apt::DIRECTORY.into() });
    }
    match mirrors {
        Some(mirrors) if missing.is_empty() => Ok(mirrors),
        _ => Err(ImageError::NotReady(missing)),
    }
}

pub(crate) fn require_space(directory: &Utf8Path, need: u64) -> Result<(), ImageError> {
    match check_space(directory, free_space(directory)?, need) {
        None => Ok(()),
        Some(shortcoming) => Err(ImageError::NotReady(vec![shortcoming])),
    }
}

fn missing_tools(root: bool, is_there: impl Fn(&str) -> bool) -> Vec<Shortcoming> {
    let for_user = if root { &[][..] } else { &USER_TOOLS[..] };
    TOOLS
        .iter()
        .chain(for_user)
        .filter(|(tool, _)| !is_there(tool))
        .map(|&(tool, package)| Shortcoming::Tool { tool, package })
        .collect()
}

fn free_space(directory: &Utf8Path) -> Result<u64, ImageError> {
    let status = rustix::fs::statvfs(directory.as_std_path()).on("measure", directory)?;
    Ok(status.f_bavail * status.f_frsize)
}

fn check_space(directory: &Utf8Path, have: u64, need: u64) -> Option<Shortcoming> {
    (have < need).then(|| Shortcoming::DiskSpace {
        path: directory.to_owned(),
        need_mib: need >> 20,
        have_mib: have >> 20,
    })
}

/// Tries what the build will do, instead of reading the many settings that can forbid it.
fn check_namespace(root: bool) -> Option<Shortcoming> {
    // chown to the guest's user: works only with subordinate ids.
    let mut probe = as_guest_root("sh");
    probe.args(["-c", "mount -t tmpfs none /mnt && touch /mnt/a && chown 1000:1000 /mnt/a"]);
    let reason = match run(probe) {
        Ok(_) => return None,
        Err(ImageError::Command { stderr, .. }) => stderr,
        Err(error) => error.to_string(),
    };
    Some(if root { Shortcoming::Mount { reason } } else { Shortcoming::UserNamespace { reason } })
}

/// A program, not a directory, a script left over or an unfinished file.
pub(crate) fn check_agent(agent: &Utf8Path) -> Result<(), ImageError> {
    let read = || {
        let mut magic = [0; 4];
        fs::File::open(agent)?.read_exact(&mut magic)?;
        if &magic == b"\x7fELF" { Ok(()) } else { Err(std::io::Error::other("it is no ELF program")) }
    };
    read().map_err(|source| ImageError::Agent { path: agent.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_tool_is_named_with_its_package() {
        assert_eq!(missing_tools(true, |_| true), []);
        assert_eq!(missing_tools(true, |_| false).len(), TOOLS.len());
        assert_eq!(
            missing_tools(false, |tool| tool != "newuidmap" && tool != "mmdebstrap"),
            [
                Shortcoming::Tool { tool: "mmdebstrap", package: "mmdebstrap" },
                Shortcoming::Tool { tool: "newuidmap", package: "uidmap" },
            ]
        );
        let error = ImageError::NotReady(missing_tools(true, |tool| tool != "debugfs")).to_string();
        assert!(error.contains("apt install e2fsprogs"), "{error}");
    }

    #[test]
    fn too_little_space_says_how_much_and_where() {
        let path = Utf8Path::new("/data/templates");
        assert_eq!(check_space(path, 5 << 30, 5 << 30), None);
        let text = check_space(path, 100 << 20, 5 << 30).unwrap().to_string();
        assert!(
            text.contains("5120 MiB") && text.contains("100 MiB") && text.contains("/data/templates"),
            "{text}"
        );
    }

    #[test]
    fn an_agent_must_be_a_program() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = Utf8Path::from_path(file.path()).unwrap();
        assert!(check_agent(path).unwrap_err().to_string().contains(path.as_str()));
        fs::write(path, "#!/bin/sh\n").unwrap();
        assert!(matches!(check_agent(path), Err(ImageError::Agent { .. })));
        assert!(check_agent(Utf8Path::new("/proc/self/exe")).is_ok());
        assert!(check_agent(Utf8Path::new("/nowhere")).is_err());
    }
}
