//! Directories: lists of names, and the way from a path to an inode.
//!
//! Directories with an index are read as the plain lists they are as well.

use std::ops::ControlFlow;

use crate::{
    bytes::{at_most, u16_le, u32_le},
    error::{BrowseError, Quantity, corrupt},
};

use super::{FileReader, Inode, Kind, ROOT, Volume};

/// Bytes of directories that one call may read: a million names of ordinary length, many times over. Without
/// it, a guest could make folders of terabytes out of the same block again and again.
const DIRECTORY_BYTES: u64 = 256 << 20;
/// Like the kernel.
const SYMLINKS: u32 = 40;
const PATH_BYTES: usize = 4096;
/// Names on the way, those in symlinks included.
const COMPONENTS: usize = 4096;

/// How much one call may still do.
#[derive(Debug)]
pub(crate) struct Work {
    directory_bytes: u64,
}

impl Default for Work {
    fn default() -> Self {
        Self { directory_bytes: DIRECTORY_BYTES }
    }
}

impl Work {
    fn spend(&mut self, bytes: u64, path: &str) -> Result<(), BrowseError> {
        let left = self.directory_bytes.checked_sub(bytes).ok_or_else(|| BrowseError::TooLarge {
            path: path.to_owned(),
            what: Quantity::DirectoryBytes,
            limit: DIRECTORY_BYTES,
        })?;
        self.directory_bytes = left;
        Ok(())
    }
}

/// What a path leads to.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) inode: Inode,
    /// The folders on the way and the thing itself, without symlinks; empty for the root.
    pub(crate) names: Vec<Vec<u8>>,
}

impl Volume {
    /// Calls `each` with inode number and name of every entry, in the order of the disk, without `.` and `..`.
    /// Names are not empty and have no `/` and no zero byte.
    pub(crate) fn entries<T>(
        &self,
        directory: &Inode,
        path: &str,
        work: &mut Work,
        mut each: impl FnMut(u32, &[u8]) -> Result<ControlFlow<T>, BrowseError>,
    ) -> Result<Option<T>, BrowseError> {
        let damaged = || corrupt(format!("the folder of inode {} is damaged", directory.number));
        let mut reader = FileReader::new(self, directory)?;
        let mut block = vec![0; at_most(self.superblock.block_size, 64 << 10)];
        loop {
            work.spend(block.len() as u64, path)?;
            if reader.skip_hole()? {
                continue;
            }
            let length = reader.fill(&mut block)?;
            if length == 0 {
                return Ok(None);
            }
            let mut rest = &block[..length];
            while !rest.is_empty() {
                let inode = u32_le(rest, 0).ok_or_else(damaged)?;
                let record = record_length(u16_le(rest, 4).ok_or_else(damaged)?, block.len());
                let name_length = usize::from(*rest.get(6).ok_or_else(damaged)?);
                if record < 8 || !record.is_multiple_of(4) || record > rest.len() {
                    return Err(damaged());
                }
                let (entry, after) = rest.split_at(record);
                rest = after;
                // Deleted, or a checksum or an index that old kernels take for deleted.
                if inode == 0 {
                    continue;
                }
                let name = entry.get(8..8 + name_length).ok_or_else(damaged)?;
                if name == b"." || name == b".." {
                    continue;
                }
                if name.is_empty() || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
                    return Err(damaged());
                }
                if let ControlFlow::Break(found) = each(inode, name)? {
                    return Ok(Some(found));
                }
            }
        }
    }

    /// Goes to an absolute path as the kernel does, with the root of the image as `/`. Symlinks are followed,
    /// the last one too.
    pub(crate) fn find(&self, path: &str, work: &mut Work) -> Result<Found, BrowseError> {
        let invalid = |reason| BrowseError::InvalidPath { path: path.to_owned(), reason };
        check_path(path)?;
        let root = Found { inode: self.inode(ROOT)?, names: Vec::new() };
        if root.inode.kind != Kind::Directory {
            return Err(corrupt("the root is not a folder"));
        }
        let mut above: Vec<Inode> = Vec::new();
        let mut here = root.inode.clone();
        let mut names: Vec<Vec<u8>> = Vec::new();
        // What is still to go, the next one last.
        let mut ahead = components(path.as_bytes());
        let (mut steps, mut symlinks) = (0, 0);
        while let Some(name) = ahead.pop() {
            steps += 1;
            if steps > COMPONENTS {
                return Err(invalid("it leads on and on"));
            }
            if here.kind != Kind::Directory {
                return Err(BrowseError::NotADirectory { path: path.to_owned() });
            }
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    if let Some(parent) = above.pop() {
                        here = parent;
                        names.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let number = self.lookup(&here, &name, path, work)?;
            let Some((number, name)) = number else {
                return Err(BrowseError::NotFound { path: path.to_owned() });
            };
            let inode = self.inode(number)?;
            if inode.kind != Kind::Symlink {
                above.push(std::mem::replace(&mut here, inode));
                names.push(name);
                continue;
            }
            symlinks += 1;
            if symlinks > SYMLINKS {
                return Err(invalid("too many symlinks"));
            }
            let target = self.target(&inode)?;
            if target.starts_with(b"/") {
                above.clear();
                names.clear();
                here = root.inode.clone();
            }
            ahead.append(&mut components(&target));
        }
        Ok(Found { inode: here, names })
    }

    /// A name that is not UTF-8 is listed with replacement characters, and found by them as well: there is no
    /// other way for it to arrive here.
    fn lookup(
        &self,
        directory: &Inode,
        name: &[u8],
        path: &str,
        work: &mut Work,
    ) -> Result<Option<(u32, Vec<u8>)>, BrowseError> {
        let replaced = std::str::from_utf8(name).is_ok_and(|name| name.contains(char::REPLACEMENT_CHARACTER));
        let mut similar = None;
        let exact = self.entries(directory, path, work, |inode, entry| {
            if entry == name {
                return Ok(ControlFlow::Break((inode, entry.to_vec())));
            }
            if replaced && similar.is_none() && String::from_utf8_lossy(entry).as_bytes() == name {
                similar = Some((inode, entry.to_vec()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(exact.or(similar))
    }
}

/// Whether `path` can be one at all, on any disk.
pub fn check_path(path: &str) -> Result<(), BrowseError> {
    let invalid = |reason| Err(BrowseError::InvalidPath { path: path.to_owned(), reason });
    if !path.starts_with('/') {
        return invalid("it does not begin with a slash");
    }
    if path.len() > PATH_BYTES {
        return invalid("it is too long");
    }
    if path.contains('\0') {
        return invalid("it contains a zero byte");
    }
    Ok(())
}

/// The names in a path, the last one first. A slash at the end asks for a folder, as `.` does.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec);
    let mut names: Vec<_> = names.collect();
    if path.ends_with(b"/") {
        names.push(b".".to_vec());
    }
    names.reverse();
    names
}

/// Records of blocks of 64 KiB can be longer than 16 bits say; the low bits, otherwise zero, continue them.
fn record_length(length: u16, block: usize) -> usize {
    match usize::from(length) {
        0 | 0xffff if block == 64 << 10 => block,
        length if block < 64 << 10 => length,
        length => length & 0xfffc | (length & 3) << 16,
    }
}
