//! Inodes: what is known of a file, apart from its name.

use crate::{
    bytes::{array, u16_le, u32_le},
    error::{BrowseError, corrupt, unsupported},
};

const ENCRYPTED: u32 = 0x800;
const EXTENTS: u32 = 0x8_0000;
const INLINE: u32 = 0x1000_0000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    /// A device, a socket or a pipe.
    Other,
}

#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub(crate) number: u32,
    pub(crate) kind: Kind,
    /// Permissions, with the bits for user id, group id and stickiness.
    pub(crate) mode: u32,
    pub(crate) user: u32,
    pub(crate) group: u32,
    /// Bytes. Blocks below it can be counted in 32 bits.
    pub(crate) size: u64,
    /// Seconds since 1970.
    pub(crate) modified: i64,
    flags: u32,
    /// Where the blocks are, or the target of a short symlink.
    pub(super) map: [u8; 60],
}

impl Inode {
    pub(super) fn parse(number: u32, bytes: &[u8], block_size: u64) -> Result<Self, BrowseError> {
        let damaged = || corrupt(format!("inode {number} is damaged"));
        let long = |at| u32_le(bytes, at).ok_or_else(damaged);
        let short = |at| u16_le(bytes, at).ok_or_else(damaged);
        let mode = u32::from(short(0)?);
        let kind = match mode >> 12 {
            0 => return Err(corrupt(format!("inode {number} is not in use"))),
            0o10 => Kind::File,
            0o04 => Kind::Directory,
            0o12 => Kind::Symlink,
            0o01 | 0o02 | 0o06 | 0o14 => Kind::Other,
            _ => return Err(damaged()),
        };
        let size = u64::from(long(0x6c)?) << 32 | u64::from(long(4)?);
        if size.div_ceil(block_size) > 1 << 32 {
            return Err(damaged());
        }
        // The low two bits of the extra word, if the inode has one, continue the seconds.
        let extra = match u16_le(bytes, 0x80) {
            Some(extra) if extra >= 12 => u32_le(bytes, 0x88).unwrap_or_default(),
            _ => 0,
        };
        let modified = i64::from(long(0x10)?.cast_signed()) + (i64::from(extra & 3) << 32);
        Ok(Self {
            number,
            kind,
            mode: mode & 0o7777,
            user: u32::from(short(0x78)?) << 16 | u32::from(short(2)?),
            group: u32::from(short(0x7a)?) << 16 | u32::from(short(0x18)?),
            size,
            modified,
            flags: long(0x20)?,
            map: array(bytes, 0x28).ok_or_else(damaged)?,
        })
    }

    pub(super) fn has_extents(&self) -> bool {
        self.flags & EXTENTS != 0
    }

    /// Refuses what is stored in a way that is not understood here.
    pub(super) fn check_readable(&self) -> Result<(), BrowseError> {
        if self.flags & ENCRYPTED != 0 {
            return Err(unsupported("the guest has encrypted it"));
        }
        if self.flags & INLINE != 0 {
            return Err(unsupported("data in inodes is not understood"));
        }
        Ok(())
    }
}
