//! The saved memory of a computer: how it is kept on disk, and how it gets out of a QEMU and into one.
//!
//! A computer's memory is a private mapping of a file, its **base**: the memory of the template it was forked
//! from, or for a computer that booted a file of nothing but holes. What the guest has not written since is
//! still the file's and shared with every other computer on that base; what it has written is QEMU's own. So
//! the saved memory is the pages that are QEMU's own, some megabytes of a desktop that idles, and not the
//! gigabytes that the guest was promised:
//!
//! ```text
//!   memory/manifest.json   what it fits: hardware, QEMU, base; sizes and a checksum. Written last
//!          devices         QEMU's own account of its devices, without memory
//!          blocks          QEMU's other blocks of memory (firmware, ACPI tables), whole
//!          runs            which pages of the guest's memory are saved
//!          pages           those pages, one after the other
//!          ram             instead of `pages`, in the memory of a template: a file of the guest's size with
//!                          every page in its place, which is the base of others
//! ```
//!
//! QEMU saves its devices (`xen-save-devices-state`, which has nothing to do with Xen but the name) and loads
//! them (`migrate-incoming`); the pages are read and written here, through `/proc/<pid>/mem`, while the guest
//! stands still. QEMU's own migration would read all of the memory, also what was never touched.
//!
//! Nothing here is trusted to be whole: a memory that does not fit, or whose checksum is wrong, is an error,
//! and the computer boots instead.

mod guest;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::directory::write_whole;

pub use guest::{GuestMemory, GuestMemoryError, MAIN_BLOCK, PAGE, Run};

const MANIFEST: &str = "manifest.json";
pub const DEVICES: &str = "devices";
const BLOCKS: &str = "blocks";
const RUNS: &str = "runs";
const PAGES: &str = "pages";
/// The memory of a template, which others map.
pub const IMAGE: &str = "ram";
/// Changes when older programs could not read what is written now.
const FORMAT: u32 = 1;
/// How much is copied at a time: small enough to stay in the processor's cache between its two copies.
const PIECE: usize = 512 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("cannot {action} {path}: {source}")]
    File { action: &'static str, path: Utf8PathBuf, source: io::Error },
    #[error("{path} cannot be understood: {source}")]
    Manifest { path: Utf8PathBuf, source: serde_json::Error },
    #[error("it was saved by another version of Roost (format {found}, this one reads {FORMAT})")]
    Format { found: u32 },
    #[error("it was saved {what} {saved}, and now that is {now}")]
    Misfit { what: &'static str, saved: String, now: String },
    #[error("the memory it was forked from, {base}, has changed or is gone")]
    Base { base: Utf8PathBuf },
    #[error("there is none in {directory}")]
    Missing { directory: Utf8PathBuf },
    #[error("it is damaged: {what}")]
    Damaged { what: String },
    #[error(transparent)]
    Guest(#[from] GuestMemoryError),
}

/// What a saved memory fits, and what it consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// The part of QEMU's command line that the guest can see.
    hardware: String,
    /// As QEMU gives it in its greeting.
    qemu: String,
    base: Base,
    memory_bytes: u64,
    blocks: Vec<SavedBlock>,
    pages: u64,
    /// CRC-32 of `blocks`, `runs` and the pages, in this order.
    checksum: u32,
}

/// What the pages that are not saved are read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Base {
    /// Zeros.
    Blank,
    /// `ram` of this very directory.
    Own,
    /// `ram` of a template.
    Template { ram: Utf8PathBuf, identity: FileIdentity },
}

/// Tells one file from another one under its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    bytes: u64,
    modified_ns: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedBlock {
    name: String,
    bytes: u64,
}

/// A saved memory that fits this computer, as far as its manifest tells.
#[derive(Debug, Clone)]
pub struct SavedMemory {
    directory: Utf8PathBuf,
    manifest: Manifest,
}

/// How a memory is to be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The difference to the base.
    Difference,
    /// A base for others; only of a computer that booted.
    Image,
}

impl FileIdentity {
    pub fn of(path: &Utf8Path) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(path)?;
        let modified_ns = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
        Ok(Self { bytes: meta.len(), modified_ns })
    }
}

impl SavedMemory {
    /// `None` where there is no memory; an error where there is one that does not fit `hardware`.
    pub fn find(directory: &Utf8Path, hardware: &str) -> Result<Option<Self>, MemoryError> {
        let path = directory.join(MANIFEST);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(MemoryError::File { action: "read", path, source }),
        };
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|source| MemoryError::Manifest { path, source })?;
        if manifest.format != FORMAT {
            return Err(MemoryError::Format { found: manifest.format });
        }
        if manifest.hardware != hardware {
            let (saved, now) = (manifest.hardware, hardware.to_owned());
            return Err(MemoryError::Misfit { what: "on the hardware", saved, now });
        }
        let memory = Self { directory: directory.to_owned(), manifest };
        match &memory.manifest.base {
            Base::Blank => {}
            Base::Own => {
                let ram = memory.directory.join(IMAGE);
                let there = std::fs::metadata(&ram).is_ok_and(|meta| meta.len() == memory.memory_bytes());
                if !there {
                    return Err(MemoryError::Base { base: ram });
                }
            }
            Base::Template { ram, identity } => {
                if !FileIdentity::of(ram).is_ok_and(|now| now == *identity) {
                    return Err(MemoryError::Base { base: ram.clone() });
                }
            }
        }
        Ok(Some(memory))
    }

    /// Whether the QEMU that is there now can load it.
    pub fn check_qemu(&self, qemu: &str) -> Result<(), MemoryError> {
        if self.manifest.qemu == qemu {
            return Ok(());
        }
        let (saved, now) = (self.manifest.qemu.clone(), qemu.to_owned());
        Err(MemoryError::Misfit { what: "by QEMU", saved, now })
    }

    /// The file to map as the guest's memory; `None`: one of nothing but holes.
    pub fn base(&self) -> Option<Utf8PathBuf> {
        match &self.manifest.base {
            Base::Blank => None,
            Base::Own => Some(self.directory.join(IMAGE)),
            Base::Template { ram, .. } => Some(ram.clone()),
        }
    }

    /// The base of what a computer that continues from here will save.
    pub fn next_base(&self) -> Result<Base, MemoryError> {
        match &self.manifest.base {
            Base::Own => {
                let ram = self.directory.join(IMAGE);
                let identity = FileIdentity::of(&ram).map_err(|source| MemoryError::File {
                    action: "inspect",
                    path: ram.clone(),
                    source,
                })?;
                Ok(Base::Template { ram, identity })
            }
            other => Ok(other.clone()),
        }
    }

    pub fn devices(&self) -> Utf8PathBuf {
        self.directory.join(DEVICES)
    }

    fn memory_bytes(&self) -> u64 {
        self.manifest.memory_bytes
    }

    /// Fills the memory of a QEMU that maps [`SavedMemory::base`] and stands still.
    pub fn load(&self, guest: &GuestMemory) -> Result<(), MemoryError> {
        let mut checksum = crc32fast::Hasher::new();
        let blocks = self.read(BLOCKS)?;
        checksum.update(&blocks);
        let mut rest = blocks.as_slice();
        for saved in &self.manifest.blocks {
            let damaged = || MemoryError::Damaged { what: format!("its block {}", saved.name) };
            let bytes = usize::try_from(saved.bytes).map_err(|_| damaged())?;
            let (content, after) = rest.split_at_checked(bytes).ok_or_else(damaged)?;
            guest.write_block(&saved.name, content)?;
            rest = after;
        }
        match self.manifest.base {
            Base::Own => return Ok(()), // all of it is in the file that QEMU maps
            Base::Blank | Base::Template { .. } => {}
        }
        let runs = self.runs(&mut checksum)?;
        let path = self.directory.join(PAGES);
        let pages = open(&path)?;
        let mut buffer = vec![0; PIECE];
        let mut at = 0;
        for (address, bytes) in pieces(&runs) {
            let piece = &mut buffer[..bytes];
            pages.read_exact_at(piece, at).map_err(|source| MemoryError::File {
                action: "read",
                path: path.clone(),
                source,
            })?;
            checksum.update(piece);
            guest.write(address, piece)?;
            at += bytes as u64;
        }
        self.compare(checksum)
    }

    /// Reads everything and compares the checksum; for the memory of a template, which is otherwise only mapped.
    pub fn verify(&self) -> Result<(), MemoryError> {
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&self.read(BLOCKS)?);
        let runs = self.runs(&mut checksum)?;
        let in_place = self.manifest.base == Base::Own;
        let path = self.directory.join(if in_place { IMAGE } else { PAGES });
        let pages = open(&path)?;
        let mut buffer = vec![0; PIECE];
        let mut packed = 0;
        for (address, bytes) in pieces(&runs) {
            let piece = &mut buffer[..bytes];
            pages
                .read_exact_at(piece, if in_place { address } else { packed })
                .map_err(|source| MemoryError::File { action: "read", path: path.clone(), source })?;
            checksum.update(piece);
            packed += bytes as u64;
        }
        self.compare(checksum)
    }

    fn compare(&self, checksum: crc32fast::Hasher) -> Result<(), MemoryError> {
        let found = checksum.finalize();
        if found == self.manifest.checksum {
            return Ok(());
        }
        let what = format!("its checksum is {found:08x} and should be {:08x}", self.manifest.checksum);
        Err(MemoryError::Damaged { what })
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, MemoryError> {
        let path = self.directory.join(name);
        std::fs::read(&path).map_err(|source| MemoryError::File { action: "read", path, source })
    }

    fn runs(&self, checksum: &mut crc32fast::Hasher) -> Result<Vec<Run>, MemoryError> {
        let table = self.read(RUNS)?;
        checksum.update(&table);
        let damaged = |what: &str| MemoryError::Damaged { what: what.to_owned() };
        let all_pages = self.memory_bytes() / PAGE;
        let mut runs = Vec::new();
        let (entries, rest) = table.as_chunks::<16>();
        if !rest.is_empty() {
            return Err(damaged("its table of pages ends early"));
        }
        for entry in entries {
            let number =
                |bytes: &[u8]| bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            let run = Run { first: number(&entry[..8]), pages: number(&entry[8..]) };
            if run.first.checked_add(run.pages).is_none_or(|end| end > all_pages) {
                return Err(damaged("its table of pages names pages the guest does not have"));
            }
            runs.push(run);
        }
        if runs.iter().map(|run| run.pages).sum::<u64>() != self.manifest.pages {
            return Err(damaged("its table of pages is of another save"));
        }
        Ok(runs)
    }
}

/// What of a saved memory is written while the guest stands still. Not on disk for certain before
/// [`Unfinished::finish`].
#[derive(Debug)]
pub struct Unfinished {
    directory: Utf8PathBuf,
    manifest: Manifest,
}

/// What is to be said of the computer in the manifest.
#[derive(Debug, Clone)]
pub struct About {
    pub hardware: String,
    pub qemu: String,
    pub base: Base,
}

/// Copies the memory of a guest that stands still into `directory`, where `devices` is already.
pub fn save(
    directory: &Utf8Path,
    guest: &GuestMemory,
    form: Form,
    about: About,
) -> Result<Unfinished, MemoryError> {
    let mut checksum = crc32fast::Hasher::new();
    let path = directory.join(BLOCKS);
    let written = |path: &Utf8Path| {
        let path = path.to_owned();
        move |source| MemoryError::File { action: "write", path, source }
    };
    let mut file = create(&path)?;
    let mut blocks = Vec::new();
    for (name, content) in guest.other_blocks()? {
        checksum.update(&content);
        file.write_all(&content).map_err(written(&path))?;
        blocks.push(SavedBlock { name, bytes: content.len() as u64 });
    }

    let runs = guest.own_pages()?;
    let path = directory.join(RUNS);
    let mut table = Vec::with_capacity(runs.len() * 16);
    for run in &runs {
        table.extend(run.first.to_le_bytes());
        table.extend(run.pages.to_le_bytes());
    }
    checksum.update(&table);
    create(&path)?.write_all(&table).map_err(written(&path))?;

    let path = directory.join(match form {
        Form::Difference => PAGES,
        Form::Image => IMAGE,
    });
    let file = create(&path)?;
    if form == Form::Image {
        file.set_len(guest.bytes()).map_err(written(&path))?;
    }
    let mut buffer = vec![0; PIECE];
    let mut packed = 0;
    for (address, bytes) in pieces(&runs) {
        let piece = &mut buffer[..bytes];
        guest.read(address, piece)?;
        checksum.update(piece);
        let at = match form {
            Form::Difference => packed,
            Form::Image => address,
        };
        file.write_all_at(piece, at).map_err(written(&path))?;
        packed += bytes as u64;
    }
    let manifest = Manifest {
        format: FORMAT,
        hardware: about.hardware,
        qemu: about.qemu,
        base: match form {
            Form::Difference => about.base,
            Form::Image => Base::Own,
        },
        memory_bytes: guest.bytes(),
        blocks,
        pages: runs.iter().map(|run| run.pages).sum(),
        checksum: checksum.finalize(),
    };
    Ok(Unfinished { directory: directory.to_owned(), manifest })
}

impl Unfinished {
    /// The manifest, last of all; `durably`: everything is on disk then. Answers how much there is, in bytes.
    pub fn finish(self, durably: bool) -> Result<u64, MemoryError> {
        let mut bytes = 0;
        let data = match self.manifest.base {
            Base::Own => IMAGE,
            Base::Blank | Base::Template { .. } => PAGES,
        };
        for name in [DEVICES, BLOCKS, RUNS, data] {
            use std::os::unix::fs::MetadataExt;
            let path = self.directory.join(name);
            let failed = |source| MemoryError::File { action: "sync", path: path.clone(), source };
            let file = File::open(&path).map_err(failed)?;
            if durably {
                file.sync_all().map_err(failed)?;
            }
            bytes += file.metadata().map_err(failed)?.blocks() * 512;
        }
        let path = self.directory.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&self.manifest)
            .map_err(|source| MemoryError::Manifest { path: path.clone(), source })?;
        write_whole(&path, &text, durably).map_err(|source| MemoryError::File {
            action: "write",
            path,
            source,
        })?;
        Ok(bytes)
    }
}

/// The runs in pieces of at most [`PIECE`] bytes: where each is in the guest's memory, and how long it is.
fn pieces(runs: &[Run]) -> impl Iterator<Item = (u64, usize)> + '_ {
    runs.iter().flat_map(|run| {
        let (start, end) = (run.first * PAGE, (run.first + run.pages) * PAGE);
        (start..end).step_by(PIECE).map(move |at| {
            let left = usize::try_from(end - at).unwrap_or(PIECE);
            (at, left.min(PIECE))
        })
    })
}

fn create(path: &Utf8Path) -> Result<File, MemoryError> {
    File::create(path).map_err(|source| MemoryError::File { action: "make", path: path.to_owned(), source })
}

fn open(path: &Utf8Path) -> Result<File, MemoryError> {
    File::open(path).map_err(|source| MemoryError::File { action: "open", path: path.to_owned(), source })
}
