//! Which blocks hold the content of an inode: extents, or the block maps of ext2 and ext3.
//!
//! Each lookup starts at the inode anew and goes down five levels at most. That costs a little for files in
//! very many pieces, and no damaged tree can lead it in circles.

use crate::{
    bytes::{u16_le, u32_le},
    error::{BrowseError, corrupt},
};

use super::{Inode, Volume};

/// Blocks of a file that follow each other on the disk, or that are all zero.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// Where the first one is; `None` for a hole, and for blocks that are reserved but were never written:
    /// what is in those is what others deleted.
    pub(super) start: Option<u64>,
    /// At least one.
    pub(super) blocks: u64,
}

/// Beyond the last block of any file.
const END: u64 = 1 << 32;
const HEADER: usize = 12;
const ENTRY: usize = 12;
/// An extent longer than this is one that was never written; the rest is its length.
const WRITTEN: u64 = 1 << 15;

impl Volume {
    /// The run that begins with the block `logical` of the file, which must be below 2^32.
    pub(super) fn run(&self, inode: &Inode, logical: u64) -> Result<Run, BrowseError> {
        let run =
            if inode.has_extents() { self.extent(inode, logical)? } else { self.mapped(inode, logical)? };
        if let Some(start) = run.start
            && (start == 0 || start.checked_add(run.blocks).is_none_or(|end| end > self.superblock.blocks))
        {
            return Err(damaged(inode));
        }
        Ok(run)
    }

    fn extent(&self, inode: &Inode, logical: u64) -> Result<Run, BrowseError> {
        let mut node = inode.map.to_vec();
        let mut expected_depth = None;
        // Where the next thing in the tree begins, so that a hole is passed in one step.
        let mut end = END;
        loop {
            let header = |at| u16_le(&node, at).ok_or_else(|| damaged(inode));
            let (magic, entries, depth) = (header(0)?, header(2)?, header(6)?);
            let entries = node.get(HEADER..HEADER + usize::from(entries) * ENTRY);
            let (0xf30a, Some(entries), 0..=5) = (magic, entries, depth) else {
                return Err(damaged(inode));
            };
            if expected_depth.is_some_and(|expected| expected != depth) {
                return Err(damaged(inode));
            }
            let (entries, _) = entries.as_chunks::<ENTRY>();
            let first = |entry: &[u8; ENTRY]| u64::from(u32_le(entry, 0).unwrap_or_default());
            let next = entries.partition_point(|entry| first(entry) <= logical);
            if let Some(entry) = entries.get(next) {
                // In a tree that is not sorted, this may be anywhere; one block is always progress.
                end = end.min(first(entry)).max(logical + 1);
            }
            let hole = Run { start: None, blocks: end - logical };
            let Some(entry) = next.checked_sub(1).and_then(|index| entries.get(index)) else {
                return Ok(hole);
            };
            let Some(depth_below) = depth.checked_sub(1) else {
                let length = u64::from(u16_le(entry, 4).unwrap_or_default());
                let low = u32_le(entry, 8).unwrap_or_default();
                let high = u16_le(entry, 6).unwrap_or_default();
                let (length, written) =
                    if length > WRITTEN { (length - WRITTEN, false) } else { (length, true) };
                let inside = logical - first(entry);
                if inside >= length {
                    return Ok(hole);
                }
                let start = (u64::from(high) << 32 | u64::from(low)) + inside;
                return Ok(Run {
                    start: written.then_some(start),
                    blocks: (length - inside).min(end - logical),
                });
            };
            let low = u32_le(entry, 4).unwrap_or_default();
            let high = u16_le(entry, 8).unwrap_or_default();
            let child = u64::from(high) << 32 | u64::from(low);
            node = self.block(child).map_err(|error| in_map(inode, error))?;
            expected_depth = Some(depth_below);
        }
    }

    /// Twelve blocks are named in the inode; the next three names lead there over one, two and three
    /// blocks full of names.
    fn mapped(&self, inode: &Inode, logical: u64) -> Result<Run, BrowseError> {
        let per_block = self.superblock.block_size / 4;
        let name = |block: &[u8], index: u64| {
            usize::try_from(index)
                .ok()
                .and_then(|index| u32_le(block, index.checked_mul(4)?))
                .map(u64::from)
                .ok_or_else(|| damaged(inode))
        };
        if logical < 12 {
            let block = name(&inode.map, logical)?;
            return Ok(Run { start: (block != 0).then_some(block), blocks: 1 });
        }
        let mut index = logical - 12;
        for levels in 1..=3_u32 {
            let mut covered = per_block.pow(levels);
            if index >= covered {
                index -= covered;
                continue;
            }
            let mut block = name(&inode.map, 11 + u64::from(levels))?;
            while block != 0 && covered > 1 {
                covered /= per_block;
                let names = self.block(block).map_err(|error| in_map(inode, error))?;
                block = name(&names, index / covered)?;
                index %= covered;
            }
            // Nothing is there, at whatever level that was found: the hole is as large as that level.
            return Ok(match block {
                0 => Run { start: None, blocks: covered - index % covered },
                block => Run { start: Some(block), blocks: 1 },
            });
        }
        Ok(Run { start: None, blocks: END - logical })
    }

    fn block(&self, number: u64) -> Result<Vec<u8>, BrowseError> {
        let block_size = self.superblock.block_size;
        // At most 64 KiB.
        let mut block = vec![0; usize::try_from(block_size).unwrap_or_default()];
        let position = number.checked_mul(block_size).ok_or_else(|| corrupt("impossible block"))?;
        self.read(position, &mut block)?;
        Ok(block)
    }
}

fn damaged(inode: &Inode) -> BrowseError {
    corrupt(format!("the map of blocks of inode {} is damaged", inode.number))
}

fn in_map(inode: &Inode, error: BrowseError) -> BrowseError {
    match error {
        BrowseError::Corrupt { .. } => damaged(inode),
        error => error,
    }
}
