//! The journal: what a filesystem that was not unmounted means to be.
//!
//! A mounted ext4 writes changes of metadata to the journal first and to their places some time later. A disk
//! frozen in between has old blocks in places whose new content is only in the journal. Nothing is
//! written here; instead a table says for each such block where its newest copy is.
//!
//! The journal is a ring of blocks in an inode. A transaction is any number of descriptors (each followed by
//! the blocks it describes) and of revocations (blocks whose older copies are void, since they
//! belong to something else now), then one commit. What has no valid commit did not happen. Numbers are
//! big-endian.
//!
//! The area of fast commits is not applied: the filesystem is then as of its last full commit.

use std::collections::{BTreeMap, HashSet};

use crate::{
    bytes::{array, u16_be, u32_be, u64_be},
    error::{BrowseError, corrupt, unsupported},
};

use super::{Volume, checksum::crc32c, file::FileReader};

const MAGIC: [u8; 4] = 0xc03b_3998_u32.to_be_bytes();
const HEADER: usize = 12;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_1: u32 = 3;
const SUPERBLOCK_2: u32 = 4;
const REVOCATION: u32 = 5;
const SUPERBLOCK: usize = 1024;

const FEATURE_64_BIT: u32 = 0x2;
const FEATURE_CHECKSUMS_2: u32 = 0x8;
const FEATURE_CHECKSUMS_3: u32 = 0x10;
const FEATURE_FAST_COMMIT: u32 = 0x20;
/// And revocations and commits that do not wait.
const FEATURES: u32 =
    0x1 | FEATURE_64_BIT | 0x4 | FEATURE_CHECKSUMS_2 | FEATURE_CHECKSUMS_3 | FEATURE_FAST_COMMIT;

const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;

/// mke2fs makes 1 GiB at most by itself, which is 2^18 blocks of 4 KiB and 2^20 of 1 KiB.
const BLOCKS: u64 = 1 << 21;
/// Revocations in one transaction, over 30 MiB of memory. The kernel makes one per freed block of metadata.
const REVOCATIONS: usize = 1 << 20;

/// Where the newest copies of blocks are.
#[derive(Debug, Default)]
pub(super) struct Replay {
    copies: BTreeMap<u64, Copy>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Copy {
    /// A block of the filesystem that belongs to the journal.
    pub(super) block: u64,
    /// The block begins with the journal's own magic number, which is zeroed in the copy.
    escaped: bool,
}

impl Copy {
    /// Restores the beginning of the block, where `part` covers it. `part` starts at `start` in the block.
    pub(super) fn unescape(&self, start: u64, part: &mut [u8]) {
        if self.escaped {
            let magic = MAGIC.iter().skip(usize::try_from(start).unwrap_or(MAGIC.len()));
            part.iter_mut().zip(magic).for_each(|(byte, magic)| *byte = *magic);
        }
    }
}

impl Replay {
    /// The first block in `first..=last` of which there is a copy.
    pub(super) fn first_in(&self, first: u64, last: u64) -> Option<(u64, Copy)> {
        self.copies.range(first..=last).next().map(|(block, copy)| (*block, *copy))
    }
}

/// Reads the whole journal of `volume`, which must not have a replay yet.
pub(super) fn read(volume: &Volume) -> Result<Replay, BrowseError> {
    match Journal::open(volume)? {
        None => Ok(Replay::default()),
        Some(journal) => journal.replay(),
    }
}

struct Journal<'a> {
    volume: &'a Volume,
    inode: super::Inode,
    block_size: usize,
    features: u32,
    seed: u32,
    /// The ring: its first block, and the one after its last.
    ring: std::ops::Range<u64>,
    /// The block the oldest transaction begins with, and the number of that transaction.
    start: u64,
    sequence: u32,
    /// The last run of blocks that was looked up, with its first block of the journal.
    run: Option<(u64, super::blocks::Run)>,
}

/// What a transaction wants, until it is known to be complete.
#[derive(Default)]
struct Transaction {
    copies: Vec<(u64, Copy)>,
    revoked: HashSet<u64>,
    /// A block is not what its descriptor says. That is nothing unusual before the commit is written.
    damaged: bool,
}

struct Tag {
    block: u64,
    flags: u32,
    checksum: u32,
    /// Bytes of the tag in the descriptor.
    length: usize,
}

impl<'a> Journal<'a> {
    /// `None` when there is nothing in it.
    fn open(volume: &'a Volume) -> Result<Option<Self>, BrowseError> {
        let inode = volume.inode(volume.superblock.journal)?;
        let mut head = [0; SUPERBLOCK];
        let mut reader = FileReader::new(volume, &inode)?;
        let mut read = 0;
        while read < SUPERBLOCK {
            match reader.fill(&mut head[read..])? {
                0 => return Err(corrupt("the journal is empty")),
                count => read += count,
            }
        }
        let number = |at| u32_be(&head, at).ok_or_else(|| corrupt("the journal is cut off"));
        let kind = number(4)?;
        if head[..4] != MAGIC || !matches!(kind, SUPERBLOCK_1 | SUPERBLOCK_2) {
            return Err(corrupt("the journal has no beginning"));
        }
        let features = if kind == SUPERBLOCK_2 { number(0x28)? } else { 0 };
        if features & !FEATURES != 0 {
            return Err(unsupported(format!("unknown features of the journal ({features:#x})")));
        }
        let start = u64::from(number(0x1c)?);
        if start == 0 {
            return Ok(None);
        }
        let block_size = volume.superblock.block_size;
        let blocks = u64::from(number(0x10)?);
        let fast = match number(0x54)? {
            // What the kernel takes for "not said".
            0 => 256,
            count => u64::from(count),
        };
        let end = if features & FEATURE_FAST_COMMIT == 0 { blocks } else { blocks.saturating_sub(fast) };
        let ring = u64::from(number(0x14)?)..end;
        if u64::from(number(0xc)?) != block_size
            || blocks > inode.size / block_size
            || ring.start == 0
            || !ring.contains(&start)
        {
            return Err(corrupt("the journal contradicts itself"));
        }
        if blocks > BLOCKS {
            return Err(unsupported(format!("a journal of {blocks} blocks")));
        }
        let identity: [u8; 16] = array(&head, 0x30).ok_or_else(|| corrupt("the journal is cut off"))?;
        Ok(Some(Self {
            volume,
            inode,
            block_size: usize::try_from(block_size).unwrap_or_default(),
            features,
            seed: crc32c(!0, &identity),
            ring,
            start,
            sequence: number(0x18)?,
            run: None,
        }))
    }

    fn replay(mut self) -> Result<Replay, BrowseError> {
        let mut replay = Replay::default();
        let mut transaction = Transaction::default();
        let mut block = vec![0; self.block_size];
        let mut data = vec![0; self.block_size];
        // The ring ends where older transactions begin; a damaged one ends after one turn.
        let mut left = self.ring.end - self.ring.start;
        let mut position = self.start;
        'ring: while left > 0 {
            self.read(position, &mut block)?;
            self.advance(&mut position, &mut left);
            if block[..4] != MAGIC || u32_be(&block, 8) != Some(self.sequence) {
                break;
            }
            match u32_be(&block, 4) {
                Some(DESCRIPTOR) if self.tail_is_valid(&mut block) => {
                    let mut rest = &block[HEADER..self.end_of_block()];
                    while let Some(tag) = self.tag(rest) {
                        if left == 0 {
                            break 'ring;
                        }
                        let place = self.read(position, &mut data)?;
                        self.advance(&mut position, &mut left);
                        transaction.damaged |= !self.data_is_valid(&tag, &data);
                        let copy = Copy { block: place, escaped: tag.flags & TAG_ESCAPED != 0 };
                        transaction.copies.push((tag.block, copy));
                        if tag.flags & TAG_LAST != 0 {
                            break;
                        }
                        rest = rest.get(tag.length..).unwrap_or_default();
                    }
                }
                Some(REVOCATION) if self.tail_is_valid(&mut block) => {
                    self.revocations(&block, &mut transaction.revoked)?;
                }
                Some(COMMIT) if self.commit_is_valid(&mut block) => {
                    let Transaction { copies, revoked, damaged } = std::mem::take(&mut transaction);
                    if damaged {
                        return Err(corrupt("a block in the journal is damaged"));
                    }
                    replay.copies.retain(|block, _| !revoked.contains(block));
                    replay.copies.extend(copies.into_iter().filter(|(block, _)| !revoked.contains(block)));
                    self.sequence = self.sequence.wrapping_add(1);
                }
                // A transaction that was being written.
                _ => break,
            }
        }
        Ok(replay)
    }

    /// Reads a block of the journal and tells which block of the filesystem it is.
    fn read(&mut self, position: u64, block: &mut [u8]) -> Result<u64, BrowseError> {
        let (first, run) = match self.run {
            Some((first, run)) if (first..first + run.blocks).contains(&position) => (first, run),
            _ => (position, self.volume.run(&self.inode, position)?),
        };
        self.run = Some((first, run));
        let place = run.start.ok_or_else(|| corrupt("the journal has a hole"))? + (position - first);
        self.volume.read(place * self.volume.superblock.block_size, block)?;
        Ok(place)
    }

    fn advance(&self, position: &mut u64, left: &mut u64) {
        *left -= 1;
        *position += 1;
        if *position == self.ring.end {
            *position = self.ring.start;
        }
    }

    fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }

    fn has_checksums(&self) -> bool {
        self.has(FEATURE_CHECKSUMS_2 | FEATURE_CHECKSUMS_3)
    }

    /// Descriptors and revocations end with a checksum, where there are any.
    fn end_of_block(&self) -> usize {
        if self.has_checksums() { self.block_size - 4 } else { self.block_size }
    }

    /// Checks the checksum at the end of a descriptor or of revocations. Zeroes it in `block`.
    fn tail_is_valid(&self, block: &mut [u8]) -> bool {
        self.checksum_is_valid(block, self.block_size - 4)
    }

    fn commit_is_valid(&self, block: &mut [u8]) -> bool {
        self.checksum_is_valid(block, 16)
    }

    fn checksum_is_valid(&self, block: &mut [u8], at: usize) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let told = u32_be(block, at);
        block[at..at + 4].fill(0);
        told == Some(crc32c(self.seed, block))
    }

    fn data_is_valid(&self, tag: &Tag, data: &[u8]) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let checksum = crc32c(crc32c(self.seed, &self.sequence.to_be_bytes()), data);
        tag.checksum == if self.has(FEATURE_CHECKSUMS_3) { checksum } else { checksum & 0xffff }
    }

    /// The tag at the beginning of `bytes`; `None` where they are too short for one.
    fn tag(&self, bytes: &[u8]) -> Option<Tag> {
        let low = u64::from(u32_be(bytes, 0)?);
        let (flags, high, checksum, mut length) = if self.has(FEATURE_CHECKSUMS_3) {
            (u32_be(bytes, 4)?, u32_be(bytes, 8)?, u32_be(bytes, 12)?, 16)
        } else {
            let large = self.has(FEATURE_64_BIT);
            let high = if large { u32_be(bytes, 8)? } else { 0 };
            let length = 8 + if large { 4 } else { 0 } + if self.has(FEATURE_CHECKSUMS_2) { 2 } else { 0 };
            (u16_be(bytes, 6)?.into(), high, u16_be(bytes, 4)?.into(), length)
        };
        let high = if self.has(FEATURE_64_BIT) { u64::from(high) << 32 } else { 0 };
        if flags & TAG_SAME_UUID == 0 {
            length += 16;
        }
        (length <= bytes.len()).then_some(Tag { block: high | low, flags, checksum, length })
    }

    fn revocations(&self, block: &[u8], revoked: &mut HashSet<u64>) -> Result<(), BrowseError> {
        let used = u32_be(block, HEADER).and_then(|used| usize::try_from(used).ok());
        let end = self.end_of_block();
        let records = used
            .filter(|used| *used <= end)
            .and_then(|used| block.get(HEADER + 4..used))
            .ok_or_else(|| corrupt("revocations in the journal are damaged"))?;
        let large = self.has(FEATURE_64_BIT);
        for record in records.chunks_exact(if large { 8 } else { 4 }) {
            revoked.extend(if large { u64_be(record, 0) } else { u32_be(record, 0).map(u64::from) });
        }
        if revoked.len() > REVOCATIONS {
            return Err(unsupported("more revocations in the journal than any kernel makes"));
        }
        Ok(())
    }
}
