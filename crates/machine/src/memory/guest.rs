//! The guest's memory inside a QEMU that stands still: which pages are its own, and how they are read and
//! written.
//!
//! A process may do this to its own children (`/proc/<pid>/mem` follows the rules of ptrace); no privilege is
//! needed, and QEMU takes no part.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The one page size of x86-64, in bytes.
pub const PAGE: u64 = 4096;
/// The name of the block that is the guest's memory; the others are firmware and tables.
pub const MAIN_BLOCK: &str = "ram";

/// `/proc/<pid>/pagemap`, one entry of 64 bits a page: in memory, in swap, of a file.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;
/// Entries read at a time.
const ENTRIES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum GuestMemoryError {
    #[error("cannot look into the memory of QEMU: {0}")]
    Open(io::Error),
    #[error("cannot read the memory of QEMU: {0}")]
    Read(io::Error),
    #[error("cannot write the memory of QEMU: {0}")]
    Write(io::Error),
    #[error("QEMU describes its memory in an unknown way: {0:?}")]
    Description(String),
    #[error("QEMU has no block of memory named {name} with {bytes} bytes")]
    NoBlock { name: String, bytes: usize },
}

/// Consecutive pages of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub first: u64,
    pub pages: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    name: String,
    /// In QEMU's address space.
    address: u64,
    bytes: u64,
}

#[derive(Debug)]
pub struct GuestMemory {
    memory: File,
    pagemap: File,
    main: Block,
    others: Vec<Block>,
}

impl GuestMemory {
    /// `description` is what QEMU's monitor answers to `info ramblock`.
    pub fn of(qemu: u32, description: &str) -> Result<Self, GuestMemoryError> {
        let unknown = || GuestMemoryError::Description(description.to_owned());
        let (main, others): (Vec<Block>, Vec<Block>) = parse_blocks(description)
            .ok_or_else(unknown)?
            .into_iter()
            .partition(|block| block.name == MAIN_BLOCK);
        let [main] = <[Block; 1]>::try_from(main).map_err(|_| unknown())?;
        let open = |name, write| {
            File::options()
                .read(true)
                .write(write)
                .open(format!("/proc/{qemu}/{name}"))
                .map_err(GuestMemoryError::Open)
        };
        Ok(Self { memory: open("mem", true)?, pagemap: open("pagemap", false)?, main, others })
    }

    /// How much the guest has, in bytes.
    pub fn bytes(&self) -> u64 {
        self.main.bytes
    }

    /// The pages that are QEMU's own, because the guest or the loading of its memory has written them.
    pub fn own_pages(&self) -> Result<Vec<Run>, GuestMemoryError> {
        let mut runs: Vec<Run> = Vec::new();
        let all = self.main.bytes / PAGE;
        let start = self.main.address / PAGE;
        let mut buffer = vec![0; ENTRIES * 8];
        let mut page = 0;
        while page < all {
            let count = usize::try_from(all - page).unwrap_or(ENTRIES).min(ENTRIES);
            let entries = &mut buffer[..count * 8];
            self.pagemap.read_exact_at(entries, (start + page) * 8).map_err(GuestMemoryError::Read)?;
            for entry in entries.as_chunks::<8>().0 {
                if is_own(u64::from_le_bytes(*entry)) {
                    match runs.last_mut() {
                        Some(run) if run.first + run.pages == page => run.pages += 1,
                        _ => runs.push(Run { first: page, pages: 1 }),
                    }
                }
                page += 1;
            }
        }
        Ok(runs)
    }

    /// Reads the guest's memory from `at`, in bytes.
    pub fn read(&self, at: u64, into: &mut [u8]) -> Result<(), GuestMemoryError> {
        self.memory.read_exact_at(into, self.main.address + at).map_err(GuestMemoryError::Read)
    }

    pub fn write(&self, at: u64, content: &[u8]) -> Result<(), GuestMemoryError> {
        self.memory.write_all_at(content, self.main.address + at).map_err(GuestMemoryError::Write)
    }

    /// Name and content of every block that is not the guest's memory.
    pub fn other_blocks(&self) -> Result<Vec<(String, Vec<u8>)>, GuestMemoryError> {
        let read = |block: &Block| {
            let bytes = usize::try_from(block.bytes).unwrap_or(usize::MAX);
            let mut content = vec![0; bytes];
            self.memory.read_exact_at(&mut content, block.address).map_err(GuestMemoryError::Read)?;
            Ok((block.name.clone(), content))
        };
        self.others.iter().map(read).collect()
    }

    pub fn write_block(&self, name: &str, content: &[u8]) -> Result<(), GuestMemoryError> {
        let fits = |block: &&Block| block.name == name && block.bytes == content.len() as u64;
        let block = self.others.iter().find(fits);
        let block =
            block.ok_or_else(|| GuestMemoryError::NoBlock { name: name.to_owned(), bytes: content.len() })?;
        self.memory.write_all_at(content, block.address).map_err(GuestMemoryError::Write)
    }
}

fn is_own(entry: u64) -> bool {
    entry & SWAPPED != 0 || (entry & PRESENT != 0 && entry & OF_A_FILE == 0)
}

/// One line a block after the heading: name, page size and its unit, offset, used, total, address in QEMU,
/// `rw` or `ro`.
fn parse_blocks(description: &str) -> Option<Vec<Block>> {
    let blocks: Option<Vec<Block>> = description
        .lines()
        .skip(1)
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, _, _, _, used, _, address, _] = words.as_slice() else { return None };
            let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
            Some(Block { name: (*name).to_owned(), address: number(address)?, bytes: number(used)? })
        })
        .collect();
    blocks.filter(|blocks| !blocks.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU 10.0.2 answers.
    const BLOCKS: &str = "              Block Name    PSize              Offset               Used              Total                HVA  RO\r
                     ram    4 KiB  0x0000000000000000 0x0000000100000000 0x0000000100000000 0x00007f1b1bfff000  rw\r
    /rom@etc/acpi/tables    4 KiB  0x0000000100080000 0x0000000000020000 0x0000000000200000 0x00007f1c64e00000  ro\r
";

    #[test]
    fn qemus_description_is_read() {
        let blocks = parse_blocks(BLOCKS).unwrap();
        let ram = Block { name: "ram".to_owned(), address: 0x7f1b_1bff_f000, bytes: 1 << 32 };
        let tables =
            Block { name: "/rom@etc/acpi/tables".to_owned(), address: 0x7f1c_64e0_0000, bytes: 0x20000 };
        assert_eq!(blocks, [ram, tables]);
        for unknown in ["", "Block Name\n", "heading\nram 4 KiB 0x0 0x1\n", "heading\nram 4 KiB 0 1 2 3 rw\n"]
        {
            assert_eq!(parse_blocks(unknown), None, "{unknown:?}");
        }
    }

    /// This process has a private mapping of a file too: its own memory stands in for QEMU's.
    fn own_mapping(pages: usize) -> (tempfile::NamedTempFile, *mut u8, GuestMemory) {
        let page = usize::try_from(PAGE).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len((pages * page) as u64).unwrap();
        let flags = rustix::mm::MapFlags::PRIVATE;
        let access = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, which stays for the rest of the process.
        let address =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), pages * page, access, flags, file.as_file(), 0) };
        let address = address.unwrap().cast::<u8>();
        let line =
            format!("ram 4 KiB 0x0 {:#x} {:#x} {:#x} rw", pages * page, pages * page, address as usize);
        let guest = GuestMemory::of(std::process::id(), &format!("heading\n{line}\n")).unwrap();
        (file, address, guest)
    }

    #[test]
    fn only_written_pages_are_its_own() {
        let (file, address, guest) = own_mapping(64);
        assert_eq!(guest.own_pages().unwrap(), []);
        file.as_file().write_all_at(b"base", 0).unwrap();
        let page = usize::try_from(PAGE).unwrap();
        // SAFETY: within the mapping, which nobody else uses. Page 0 is read, and stays the file's.
        unsafe {
            assert_eq!(address.read_volatile(), b'b');
            for written in [3, 4, 5, 40] {
                address.add(written * page).write_volatile(1);
            }
        }
        let runs = [Run { first: 3, pages: 3 }, Run { first: 40, pages: 1 }];
        assert_eq!(guest.own_pages().unwrap(), runs);
        guest.write(PAGE * 10, b"loaded").unwrap();
        let mut read = [0; 6];
        guest.read(PAGE * 10, &mut read).unwrap();
        assert_eq!(&read, b"loaded");
        assert_eq!(guest.own_pages().unwrap().len(), 3);
        // The file has seen none of it.
        let mut content = vec![1; page];
        file.as_file().read_exact_at(&mut content, PAGE * 10).unwrap();
        assert!(content.iter().all(|byte| *byte == 0));
    }
}
