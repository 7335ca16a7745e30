//! An ext4 filesystem that fills a whole disk, read without ever being written.
//!
//! Everything on the disk was written by a guest, which may be hostile. So nothing is allocated by a size
//! that the disk tells, every loop is bounded by something the caller pays for (bytes read, names listed),
//! and whatever contradicts itself is an error. Checksums of metadata are not verified: they say nothing
//! about intent, and a file that can still be read is better than none.
//!
//! A disk frozen while its computer ran is as after a loss of power; [`journal`] makes it consistent.

mod blocks;
mod checksum;
mod directory;
mod file;
mod inode;
mod journal;
mod superblock;

pub use directory::check_path;
pub(crate) use directory::{Found, Work};
pub(crate) use file::FileReader;
pub(crate) use inode::Inode;
pub use inode::Kind;

use crate::{
    bytes::{at_most, u32_le},
    disk::Disk,
    error::{BrowseError, corrupt},
};
use journal::Replay;
use superblock::Superblock;

pub(crate) const ROOT: u32 = 2;

#[derive(Debug)]
pub(crate) struct Volume {
    disk: Disk,
    superblock: Superblock,
    replay: Replay,
}

impl Volume {
    pub(crate) fn open(disk: Disk) -> Result<Self, BrowseError> {
        let mut bytes = [0; superblock::LENGTH];
        disk.read(superblock::POSITION, &mut bytes)?;
        let superblock = Superblock::parse(&bytes, disk.size())?;
        let mut volume = Self { disk, superblock, replay: Replay::default() };
        if volume.superblock.needs_recovery {
            volume.replay = journal::read(&volume)?;
            // The newest superblock may be in the journal too.
            volume.read(superblock::POSITION, &mut bytes)?;
            let newest = Superblock::parse(&bytes, volume.disk.size())?;
            if newest.block_size != volume.superblock.block_size {
                return Err(corrupt("the journal changes the size of blocks"));
            }
            volume.superblock = newest;
        }
        Ok(volume)
    }

    /// Reads bytes of the filesystem as they are once the journal is applied.
    fn read(&self, mut position: u64, mut buffer: &mut [u8]) -> Result<(), BrowseError> {
        let end = position.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.superblock.bytes()) {
            return Err(corrupt("something lies beyond the end of the filesystem"));
        }
        let block_size = self.superblock.block_size;
        while !buffer.is_empty() {
            let block = position / block_size;
            let last = (position + buffer.len() as u64 - 1) / block_size;
            let Some((logged, copy)) = self.replay.first_in(block, last) else {
                return self.disk.read(position, buffer);
            };
            let (part, rest) = if logged == block {
                let start = position % block_size;
                let (part, rest) = buffer.split_at_mut(at_most(block_size - start, buffer.len()));
                self.disk.read(copy.block * block_size + start, part)?;
                copy.unescape(start, part);
                (part, rest)
            } else {
                let (part, rest) = buffer.split_at_mut(at_most(logged * block_size - position, buffer.len()));
                self.disk.read(position, part)?;
                (part, rest)
            };
            position += part.len() as u64;
            buffer = rest;
        }
        Ok(())
    }

    pub(crate) fn inode(&self, number: u32) -> Result<Inode, BrowseError> {
        let superblock = &self.superblock;
        let damaged = || corrupt(format!("there is no inode {number}"));
        let index = number.checked_sub(1).ok_or_else(damaged)?;
        let group = u64::from(index / superblock.inodes_per_group);
        if group >= superblock.groups {
            return Err(damaged());
        }
        let mut descriptor = [0; 64];
        let descriptor = &mut descriptor[..if superblock.descriptor_size >= 64 { 64 } else { 32 }];
        // The descriptors are in the block after the superblock's.
        let first = if superblock.block_size == 1024 { 2 } else { 1 };
        self.read(first * superblock.block_size + group * superblock.descriptor_size, descriptor)?;
        let low = u32_le(descriptor, 8).unwrap_or_default();
        let high = u32_le(descriptor, 40).unwrap_or_default();
        let table = u64::from(high) << 32 | u64::from(low);
        let offset = u64::from(index % superblock.inodes_per_group) * superblock.inode_size;
        let position = table
            .checked_mul(superblock.block_size)
            .and_then(|start| start.checked_add(offset))
            .ok_or_else(damaged)?;
        let mut bytes = [0; 256];
        let bytes = &mut bytes[..at_most(superblock.inode_size, 256)];
        self.read(position, bytes)?;
        Inode::parse(number, bytes, superblock.block_size)
    }
}
