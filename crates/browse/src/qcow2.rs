//! One qcow2 file: its header, and where in the file the bytes of the disk are.
//!
//! The file is not trusted: whoever wrote it may want this process to read another file, to take all memory or
//! to work for ever. So no table is held in memory (an entry is read when it is needed), every offset is
//! checked against the length of the file, and a data file of its own is refused. What the name of the
//! backing file may be is the business of [`crate::disk`].
//!
//! Supported is what QEMU makes by default and what `qemu-img convert -c` makes: versions 2 and 3, zeroes,
//! deflate and zstd. Encryption and extended L2 entries are not.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, PoisonError},
};

use camino::{Utf8Path, Utf8PathBuf};
use flate2::{Decompress, FlushDecompress};
use ruzstd::decoding::StreamingDecoder;

use crate::{
    bytes::{at_most, u32_be, u64_be},
    error::{BrowseError, OnFile, corrupt, refused, unsupported},
};

const MAGIC: u32 = 0x5146_49fb; // "QFI", 0xfb
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// What the format allows for the name of a backing file.
const BACKING_NAME: usize = 1023;
/// More than any qcow2 writer makes for clusters of at most 2 MiB. The decoder holds that much in memory.
const ZSTD_WINDOW: u64 = 8 << 20;
const ADDRESS: u64 = 0x00ff_ffff_ffff_fe00;

#[derive(Debug)]
pub(crate) struct Layer {
    file: File,
    path: Utf8PathBuf,
    /// Bytes in the file when it was opened.
    length: u64,
    /// Bytes of the disk.
    size: u64,
    cluster_bits: u32,
    version: u32,
    compression: Compression,
    l1: u64,
    /// The last entry of the L1 table that was read: its index and itself. It covers half a gigabyte.
    last: Mutex<Option<(u64, u64)>>,
}

#[derive(Debug, Clone, Copy)]
enum Compression {
    Deflate,
    Zstd,
}

/// The file below a layer, as the layer's header names it.
#[derive(Debug)]
pub(crate) struct Backing {
    pub(crate) name: String,
    pub(crate) format: Option<String>,
}

/// Where the bytes of one cluster are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    /// In the layer below.
    Below,
    Zero,
    /// In the file, at this offset.
    Data(u64),
    Compressed {
        offset: u64,
        length: u64,
    },
}

impl Layer {
    pub(crate) fn open(file: File, path: &Utf8Path) -> Result<(Self, Option<Backing>), BrowseError> {
        let length = file.metadata().on("read the length of", path)?.len();
        // Header and extensions are in the first cluster; QEMU puts the name of the backing file there too.
        let mut head = Vec::new();
        (&file).take(64 << 10).read_to_end(&mut head).on("read", path)?;
        let damaged = |what: &str| corrupt(format!("{path}: {what}"));
        let short = || damaged("the file is too short");
        let number = |at| u32_be(&head, at).ok_or_else(short);
        let long = |at| u64_be(&head, at).ok_or_else(short);

        if number(0)? != MAGIC {
            return Err(damaged("this is not a qcow2 file"));
        }
        let version = number(4)?;
        if !(2..=3).contains(&version) {
            return Err(unsupported(format!("{path}: qcow2 of version {version}")));
        }
        let cluster_bits = number(20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(damaged("impossible cluster size"));
        }
        if number(32)? != 0 {
            return Err(unsupported(format!("{path}: the disk is encrypted")));
        }
        let (features, header_length) = if version == 2 { (0, 72) } else { (long(72)?, number(100)?) };
        let compression = compression(features, header_length, &head, path)?;

        let cluster = 1_u64 << cluster_bits;
        let size = long(24)?;
        let l1 = long(40)?;
        // One entry of L1 stands for one L2 table, which is one cluster of entries of eight bytes.
        let entries = size.div_ceil(cluster << (cluster_bits - 3));
        let end = l1.checked_add(entries * 8);
        if u64::from(number(36)?) < entries
            || !l1.is_multiple_of(cluster)
            || end.is_none_or(|end| end > length)
        {
            return Err(damaged("its first table does not fit"));
        }
        let backing = backing(&head, header_length, cluster, path)?;
        let last = Mutex::new(None);
        let path = path.to_owned();
        Ok((Self { file, path, length, size, cluster_bits, version, compression, l1, last }, backing))
    }

    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Where the cluster is that holds the byte `position` of the disk, which must be below [`Self::size`].
    pub(crate) fn place(&self, position: u64) -> Result<Place, BrowseError> {
        let l2_bits = self.cluster_bits - 3;
        let cluster_number = position >> self.cluster_bits;
        let l2 = self.l1_entry(cluster_number >> l2_bits)? & ADDRESS;
        if l2 == 0 {
            return Ok(Place::Below);
        }
        if !l2.is_multiple_of(self.cluster()) {
            return Err(self.damaged("a table is in an impossible place"));
        }
        let index = cluster_number & ((1 << l2_bits) - 1);
        let entry = self.entry(l2 + index * 8)?;
        if entry & (1 << 62) != 0 {
            return Ok(self.compressed(entry));
        }
        let offset = entry & ADDRESS;
        if self.version >= 3 && entry & 1 != 0 {
            return Ok(Place::Zero);
        }
        if offset == 0 {
            return Ok(Place::Below);
        }
        if !offset.is_multiple_of(self.cluster()) {
            return Err(self.damaged("a cluster is in an impossible place"));
        }
        Ok(Place::Data(offset))
    }

    /// Of an entry of L2 with the compressed bit: the offset in the low bits, then the number of sectors of
    /// 512 bytes that the data touches beyond the first.
    fn compressed(&self, entry: u64) -> Place {
        let offset_bits = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & ((1 << 62) - 1)) >> offset_bits;
        Place::Compressed { offset, length: (sectors + 1) * 512 - offset % 512 }
    }

    /// Reads bytes of the file that the disk's tables call data.
    pub(crate) fn data(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BrowseError> {
        if offset >= self.length {
            return Err(self.damaged("data lies beyond the end of the file"));
        }
        let mut read = 0;
        while read < buffer.len() {
            match self.file.read_at(&mut buffer[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).on("read", &self.path),
            }
        }
        // The last cluster of a file need not be written to its end; QEMU reads zeroes there as well.
        buffer[read..].fill(0);
        Ok(())
    }

    /// The whole cluster whose compressed form is at `offset`.
    pub(crate) fn decompress(&self, offset: u64, length: u64) -> Result<Vec<u8>, BrowseError> {
        // The last sector may be cut short by the end of the file.
        let length = length.min(self.length.saturating_sub(offset));
        let cluster = at_most(self.cluster(), 1 << 21);
        // The format allows twice a cluster at most; `at_most` never cuts anything valid.
        let mut packed = vec![0; at_most(length, 2 * cluster + 512)];
        self.data(offset, &mut packed)?;
        let mut plain = vec![0; cluster];
        // The decoders are not ours, and their input may have been made to find their errors.
        let unpacked = catch_unwind(AssertUnwindSafe(|| match self.compression {
            Compression::Deflate => inflate(&packed, &mut plain),
            Compression::Zstd => unzstd(&packed, &mut plain),
        }));
        match unpacked {
            Ok(Ok(())) => Ok(plain),
            Ok(Err(reason)) => Err(self.damaged(&format!("a compressed cluster is broken: {reason}"))),
            Err(_) => Err(self.damaged("a compressed cluster is broken")),
        }
    }

    fn l1_entry(&self, index: u64) -> Result<u64, BrowseError> {
        // A panic elsewhere cannot leave half a pair behind.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((number, entry)) if number == index => Ok(entry),
            _ => {
                let entry = self.entry(self.l1 + index * 8)?;
                *last = Some((index, entry));
                Ok(entry)
            }
        }
    }

    fn entry(&self, offset: u64) -> Result<u64, BrowseError> {
        if offset.checked_add(8).is_none_or(|end| end > self.length) {
            return Err(self.damaged("a table lies beyond the end of the file"));
        }
        let mut entry = [0; 8];
        self.data(offset, &mut entry)?;
        Ok(u64::from_be_bytes(entry))
    }

    fn damaged(&self, what: &str) -> BrowseError {
        corrupt(format!("{}: {what}", self.path))
    }
}

fn compression(
    features: u64,
    header_length: u32,
    head: &[u8],
    path: &Utf8Path,
) -> Result<Compression, BrowseError> {
    // Bits 0 and 1, dirty and corrupt, are about reference counts, which only writers need.
    const EXTERNAL_DATA: u64 = 1 << 2;
    const COMPRESSION: u64 = 1 << 3;
    const EXTENDED_L2: u64 = 1 << 4;
    if features & EXTERNAL_DATA != 0 {
        return Err(refused(path, "it keeps its data in another file"));
    }
    if features & EXTENDED_L2 != 0 {
        return Err(unsupported(format!("{path}: extended L2 entries")));
    }
    if features & !(0b11 | COMPRESSION) != 0 {
        return Err(unsupported(format!("{path}: unknown features of qcow2 ({features:#x})")));
    }
    if features & COMPRESSION == 0 {
        return Ok(Compression::Deflate);
    }
    match head.get(104) {
        Some(0) if header_length > 104 => Ok(Compression::Deflate),
        Some(1) if header_length > 104 => Ok(Compression::Zstd),
        _ => Err(unsupported(format!("{path}: unknown compression"))),
    }
}

fn backing(
    head: &[u8],
    header_length: u32,
    cluster: u64,
    path: &Utf8Path,
) -> Result<Option<Backing>, BrowseError> {
    const END: u32 = 0;
    const FORMAT: u32 = 0xe279_2aca;
    const DATA_FILE: u32 = 0x4441_5441;
    let damaged = |what: &str| corrupt(format!("{path}: {what}"));
    // An image whose clusters are larger than what was read may name its backing file further on. QEMU does
    // not do so: it writes header, extensions and name one after the other.
    let head = &head[..at_most(cluster, head.len())];
    let start = u64_be(head, 8).ok_or_else(|| damaged("the file is too short"))?;
    let size = u32_be(head, 16).ok_or_else(|| damaged("the file is too short"))?;

    let mut format = None;
    let mut at = at_most(header_length.into(), head.len());
    let end = if start == 0 { head.len() } else { at_most(start, head.len()) };
    while let (Some(kind), Some(length)) = (u32_be(&head[..end], at), u32_be(&head[..end], at + 4)) {
        let content = at + 8..at + 8 + at_most(length.into(), head.len());
        match kind {
            END => break,
            DATA_FILE => return Err(refused(path, "it keeps its data in another file")),
            FORMAT => {
                let bytes = head.get(content.clone()).ok_or_else(|| damaged("the header is cut off"))?;
                format = Some(String::from_utf8_lossy(bytes).into_owned());
            }
            _ => {}
        }
        at = content.end.next_multiple_of(8);
    }

    if start == 0 {
        return Ok(None);
    }
    let length = at_most(size.into(), BACKING_NAME + 1);
    if length == 0 || length > BACKING_NAME {
        return Err(damaged("impossible length of the name of its backing file"));
    }
    let start = at_most(start, head.len());
    let name = head.get(start..start + length).ok_or_else(|| damaged("the header is cut off"))?;
    match std::str::from_utf8(name) {
        Ok(name) if !name.contains('\0') => Ok(Some(Backing { name: name.to_owned(), format })),
        _ => Err(refused(path, "the name of its backing file is not text")),
    }
}

fn inflate(packed: &[u8], plain: &mut [u8]) -> Result<(), String> {
    let mut decoder = Decompress::new(false);
    // What follows the data up to the end of its last sector is not part of it, so the decoder need not
    // see an end; it must only have filled the cluster.
    decoder.decompress(packed, plain, FlushDecompress::Finish).map_err(|error| error.to_string())?;
    if decoder.total_out() == plain.len() as u64 { Ok(()) } else { Err("it is incomplete".to_owned()) }
}

fn unzstd(packed: &[u8], plain: &mut [u8]) -> Result<(), String> {
    let mut decoder =
        StreamingDecoder::new_with_max_window_size(packed, ZSTD_WINDOW).map_err(|error| error.to_string())?;
    decoder.read_exact(plain).map_err(|error| error.to_string())
}
