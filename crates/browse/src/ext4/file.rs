//! The content of files, directories and symlinks, piece by piece.

use std::io;

use crate::{
    bytes::at_most,
    error::{BrowseError, corrupt},
};

use super::{Inode, Kind, Volume, blocks::Run};

/// What the kernel allows.
const SYMLINK: u64 = 4095;
/// Shorter targets are in the inode.
const SHORT_SYMLINK: u64 = 60;

/// Reads an inode's content from its beginning to its end: exactly as many bytes as its size, or an error.
#[derive(Debug)]
pub(crate) struct FileReader<'a> {
    volume: &'a Volume,
    inode: &'a Inode,
    position: u64,
    /// A run, and the block of the file it begins with.
    run: Option<(u64, Run)>,
}

impl<'a> FileReader<'a> {
    pub(crate) fn new(volume: &'a Volume, inode: &'a Inode) -> Result<Self, BrowseError> {
        inode.check_readable()?;
        Ok(Self { volume, inode, position: 0, run: None })
    }

    /// How many bytes were put into `buffer`; none at the end. Holes read as zeroes.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, BrowseError> {
        let Some((start, available)) = self.next()? else { return Ok(0) };
        let count = at_most(available, buffer.len());
        let buffer = &mut buffer[..count];
        match start {
            Some(start) => self.volume.read(start, buffer)?,
            None => buffer.fill(0),
        }
        self.position += count as u64;
        Ok(count)
    }

    /// Passes a hole, if there is one here, or a part of it. Tells whether it did.
    pub(super) fn skip_hole(&mut self) -> Result<bool, BrowseError> {
        let Some((None, available)) = self.next()? else { return Ok(false) };
        self.position += available;
        Ok(true)
    }

    /// Where the next bytes are on the disk, and how many follow there; `None` at the end.
    fn next(&mut self) -> Result<Option<(Option<u64>, u64)>, BrowseError> {
        let left = self.inode.size - self.position;
        if left == 0 {
            return Ok(None);
        }
        let block_size = self.volume.superblock.block_size;
        let block = self.position / block_size;
        let (first, run) = match self.run {
            Some((first, run)) if block < first + run.blocks => (first, run),
            _ => (block, self.volume.run(self.inode, block)?),
        };
        self.run = Some((first, run));
        let inside = self.position - first * block_size;
        let available = (run.blocks * block_size - inside).min(left);
        Ok(Some((run.start.map(|start| start * block_size + inside), available)))
    }
}

impl io::Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill(buffer).map_err(io::Error::other)
    }
}

impl Volume {
    /// What a symlink points to: not empty, not longer than the kernel allows, without zero bytes.
    pub(crate) fn target(&self, inode: &Inode) -> Result<Vec<u8>, BrowseError> {
        let damaged = || corrupt(format!("the symlink of inode {} is damaged", inode.number));
        if inode.kind != Kind::Symlink || inode.size > SYMLINK {
            return Err(damaged());
        }
        let mut reader = FileReader::new(self, inode)?;
        let length = at_most(inode.size, 4095);
        let target = if inode.size < SHORT_SYMLINK {
            inode.map[..length].to_vec()
        } else {
            let mut target = vec![0; length];
            let mut read = 0;
            while read < length {
                read += reader.fill(&mut target[read..])?;
            }
            target
        };
        if target.is_empty() || target.contains(&0) { Err(damaged()) } else { Ok(target) }
    }
}
