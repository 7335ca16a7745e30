//! The superblock: what the rest of the filesystem looks like.

use crate::{
    bytes::{u16_le, u32_le},
    error::{BrowseError, corrupt, unsupported},
};

pub(super) const POSITION: u64 = 1024;
pub(super) const LENGTH: usize = 1024;

const MAGIC: u16 = 0xef53;
const COMPATIBLE_JOURNAL: u32 = 0x4;
const INCOMPATIBLE_RECOVER: u32 = 0x4;
const INCOMPATIBLE_64_BIT: u32 = 0x80;
/// Features that change what is read here and are understood, or that do not change it: types in directories,
/// recovery, extents, 64 bit, protection from mounting twice, flexible groups, large attributes, seed of
/// checksums, large directories, data in inodes, encryption and case folding. Where an inode makes use of
/// one of the last three, that inode says so.
const INCOMPATIBLE_KNOWN: u32 = 0x2
    | INCOMPATIBLE_RECOVER
    | 0x40
    | INCOMPATIBLE_64_BIT
    | 0x100
    | 0x200
    | 0x400
    | 0x2000
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000;

#[derive(Debug)]
pub(super) struct Superblock {
    /// Bytes; a power of two from 1 KiB to 64 KiB.
    pub(super) block_size: u64,
    /// Blocks in the filesystem. They fit on the disk.
    pub(super) blocks: u64,
    pub(super) groups: u64,
    /// Not zero.
    pub(super) inodes_per_group: u32,
    /// Bytes; a power of two, from 128 to a block.
    pub(super) inode_size: u64,
    /// Bytes: 32, or a power of two from 64 to 1024.
    pub(super) descriptor_size: u64,
    /// It was not unmounted, and there is a journal.
    pub(super) needs_recovery: bool,
    pub(super) journal: u32,
}

impl Superblock {
    pub(super) fn parse(bytes: &[u8; LENGTH], disk: u64) -> Result<Self, BrowseError> {
        let long = |at| u32_le(bytes, at).ok_or_else(|| corrupt("the superblock is cut off"));
        let short = |at| u16_le(bytes, at).ok_or_else(|| corrupt("the superblock is cut off"));
        if short(0x38)? != MAGIC {
            return Err(corrupt("there is no ext4 filesystem on it"));
        }
        let incompatible = long(0x60)?;
        let unknown = incompatible & !INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            return Err(unsupported(format!("unknown features of ext4 ({unknown:#x})")));
        }
        let impossible = |what: &str| corrupt(format!("the superblock tells an impossible {what}"));

        let block_size_log = long(0x18)?;
        if block_size_log > 6 {
            return Err(impossible("size of blocks"));
        }
        let block_size = 1024_u64 << block_size_log;
        let large = incompatible & INCOMPATIBLE_64_BIT != 0;
        let high = if large { u64::from(long(0x150)?) << 32 } else { 0 };
        let blocks = high | u64::from(long(4)?);
        if blocks.checked_mul(block_size).is_none_or(|size| size > disk) {
            return Err(impossible("size: the disk is smaller"));
        }
        let data_blocks = blocks.checked_sub(long(0x14)?.into()).ok_or_else(|| impossible("first block"))?;
        let blocks_per_group = u64::from(long(0x20)?);
        let inodes_per_group = long(0x28)?;
        if blocks_per_group == 0 || inodes_per_group == 0 {
            return Err(impossible("size of groups"));
        }
        // Filesystems of revision 0 do not tell the size of inodes.
        let inode_size = if long(0x4c)? == 0 { 128 } else { u64::from(short(0x58)?) };
        if !inode_size.is_power_of_two() || !(128..=block_size).contains(&inode_size) {
            return Err(impossible("size of inodes"));
        }
        let descriptor_size = if large { u64::from(short(0xfe)?) } else { 32 };
        if !descriptor_size.is_power_of_two() || !(32..=1024).contains(&descriptor_size) {
            return Err(impossible("size of group descriptors"));
        }
        Ok(Self {
            block_size,
            blocks,
            groups: data_blocks.div_ceil(blocks_per_group),
            inodes_per_group,
            inode_size,
            descriptor_size,
            needs_recovery: long(0x5c)? & COMPATIBLE_JOURNAL != 0 && incompatible & INCOMPATIBLE_RECOVER != 0,
            journal: long(0xe0)?,
        })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.blocks * self.block_size
    }
}
