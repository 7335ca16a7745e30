//! Whose files are that this agent makes. It is root; they should not be root's because of that.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};

use rustix::fs::{Gid, Uid};

use super::place::Place;
use crate::process::find_account;

/// The home of root: what is made there is root's.
const ROOTS_OWN: &str = "/root";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
}

impl Owner {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { uid: Uid::from_raw(metadata.uid()), gid: Gid::from_raw(metadata.gid()) }
    }

    /// Only root can give files away; tests run as somebody else.
    pub(super) fn give(self, descriptor: impl std::os::fd::AsFd) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            rustix::fs::fchown(descriptor, Some(self.uid), Some(self.gid))?;
        }
        Ok(())
    }

    /// The same for a name, which is not followed.
    pub(super) fn give_name(self, path: &Path) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))?;
        }
        Ok(())
    }
}

/// Knows whose a new file is.
#[derive(Debug, Clone)]
pub(super) struct Owners {
    desktop_user: String,
}

impl Owners {
    pub(super) fn new(desktop_user: String) -> Self {
        Self { desktop_user }
    }

    pub(super) fn of_new(&self, place: &Place) -> io::Result<Owner> {
        let directory = fs::metadata(super::place::proc_path(&place.directory))?;
        if directory.uid() != 0 || place.real.starts_with(ROOTS_OWN) {
            return Ok(Owner::of(&directory));
        }
        match find_account(&self.desktop_user) {
            Ok(account) => Ok(Owner { uid: account.uid, gid: account.gid }),
            Err(error) => {
                tracing::warn!(%error, "a new file has the owner of its directory");
                Ok(Owner::of(&directory))
            }
        }
    }
}
