//! The kernel as QEMU starts it with the least memory: unpacked.
//!
//! Debian ships a bzImage, a small loader around a compressed ELF file. QEMU keeps a copy of a bzImage in the memory of
//! every computer, for the next reboot, and the guest unpacks it at every boot. An ELF kernel with an entry point for
//! PVH (a note that names it) is mapped from its file instead, so all computers share it, and there is nothing to unpack.
//! What cannot be unpacked is used as it is: a boot is slower then, and a computer some ten megabytes larger.
//!
//! The layout of a bzImage is described in the Linux documentation, `arch/x86/boot.rst`; the note in Xen's
//! `elfnote.h` (`XEN_ELFNOTE_PHYS32_ENTRY`).

use std::io::Read;

/// Where the setup header says what it is, and what it says from protocol 2.08 on.
const SETUP_SECTORS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PROTOCOL: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const WITH_PAYLOAD: u16 = 0x0208;
const SECTOR: usize = 512;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Behind a compressed payload: how long it is unpacked.
const LENGTH_SUFFIX: usize = 4;
/// A kernel that claims to be larger is damaged.
const MOST: usize = 512 * 1024 * 1024;

const PT_NOTE: u32 = 4;
const PVH_ENTRY: u32 = 18;

/// The ELF kernel inside a bzImage, if QEMU can start that by itself.
pub(crate) fn unpack(image: &[u8]) -> Option<Vec<u8>> {
    if image.get(HEADER_MAGIC..HEADER_MAGIC + 4)? != b"HdrS" || half(image, PROTOCOL)? < WITH_PAYLOAD {
        return None;
    }
    // Zero means four: the oldest loaders did not say.
    let sectors = match image.get(SETUP_SECTORS)? {
        0 => 4,
        count => usize::from(*count),
    };
    let begin = (sectors + 1) * SECTOR + size(image, PAYLOAD_OFFSET)?;
    let payload = image.get(begin..begin.checked_add(size(image, PAYLOAD_LENGTH)?)?)?;
    if !payload.starts_with(&ZSTD_MAGIC) {
        return None;
    }
    let (packed, length) = payload.split_at(payload.len().checked_sub(LENGTH_SUFFIX)?);
    let length = size(length, 0).filter(|length| *length <= MOST)?;
    let mut kernel = Vec::with_capacity(length);
    let decoder = ruzstd::decoding::StreamingDecoder::new(packed).ok()?;
    decoder.take(MOST as u64).read_to_end(&mut kernel).ok()?;
    (kernel.len() == length && has_pvh_entry(&kernel)).then_some(kernel)
}

/// Whether it is a 64-bit ELF file with a note that names an entry point for PVH.
fn has_pvh_entry(kernel: &[u8]) -> bool {
    notes(kernel).is_some_and(|mut notes| notes.any(|(owner, kind)| owner == b"Xen\0" && kind == PVH_ENTRY))
}

/// Owner and type of every note in the first note segment.
fn notes(kernel: &[u8]) -> Option<impl Iterator<Item = (&[u8], u32)>> {
    const CLASS_64_LITTLE_ENDIAN: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
    if !kernel.starts_with(&CLASS_64_LITTLE_ENDIAN) {
        return None;
    }
    let table = usize::try_from(long(kernel, 0x20)?).ok()?;
    let entry = usize::from(half(kernel, 0x36)?);
    let count = usize::from(half(kernel, 0x38)?);
    let segments = (0..count).map(|index| table.checked_add(index * entry));
    let segment = segments.flatten().find(|at| word(kernel, *at) == Some(PT_NOTE))?;
    let begin = usize::try_from(long(kernel, segment + 0x08)?).ok()?;
    let length = usize::try_from(long(kernel, segment + 0x20)?).ok()?;
    let mut rest = kernel.get(begin..begin.checked_add(length)?)?;
    Some(std::iter::from_fn(move || {
        const HEAD: usize = 12;
        let (owner_length, content_length, kind) = (size(rest, 0)?, size(rest, 4)?, word(rest, 8)?);
        let owner = rest.get(HEAD..HEAD.checked_add(owner_length)?)?;
        let content = HEAD.checked_add(owner_length.checked_next_multiple_of(4)?)?;
        rest = rest.get(content.checked_add(content_length.checked_next_multiple_of(4)?)?..)?;
        Some((owner, kind))
    }))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn size(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(word(bytes, at)?).ok()
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(owner: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for number in [owner.len(), content.len()] {
            note.extend(u32::try_from(number).unwrap().to_le_bytes());
        }
        note.extend(kind.to_le_bytes());
        for part in [owner, content] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    /// An ELF file with these notes and nothing else.
    fn elf(notes: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        file[0x20] = 64;
        file[0x36] = 56;
        file[0x38] = 1;
        file[64] = 4;
        file[64 + 0x08] = 120;
        file[64 + 0x20..64 + 0x28].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        file.extend(notes);
        file
    }

    /// A bzImage with one setup sector around a payload.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR];
        image[SETUP_SECTORS] = 1;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[PROTOCOL..PROTOCOL + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend([0; 16]);
        image.extend(payload);
        image
    }

    fn packed(kernel: &[u8], length: usize) -> Vec<u8> {
        let mut payload =
            ruzstd::encoding::compress_to_vec(kernel, ruzstd::encoding::CompressionLevel::Uncompressed);
        payload.extend(u32::try_from(length).unwrap().to_le_bytes());
        payload
    }

    fn pvh() -> Vec<u8> {
        elf(&[note(b"GNU\0", 3, b"build"), note(b"Xen\0", 18, &[0; 8])].concat())
    }

    #[test]
    fn an_elf_kernel_is_unpacked() {
        let kernel = pvh();
        assert_eq!(unpack(&image(&packed(&kernel, kernel.len()))), Some(kernel));
    }

    #[test]
    fn what_qemu_could_not_start_is_not() {
        let kernel = pvh();
        // Another compression, another length, no kernel at all, and one without the entry point.
        assert_eq!(unpack(&image(b"\x1f\x8b\x08 gzip")), None);
        assert_eq!(unpack(&image(&packed(&kernel, kernel.len() + 1))), None);
        assert_eq!(unpack(&image(&packed(b"no kernel", 9))), None);
        for other in [note(b"Xen\0", 17, &[0; 8]), note(b"GNU\0", 18, &[0; 8]), Vec::new()] {
            let kernel = elf(&other);
            assert_eq!(unpack(&image(&packed(&kernel, kernel.len()))), None);
        }
    }

    #[test]
    fn damage_is_not_followed() {
        let kernel = pvh();
        let whole = image(&packed(&kernel, kernel.len()));
        for length in 0..whole.len() {
            assert_eq!(unpack(&whole[..length]), None, "cut after {length}");
        }
        for (at, width) in [(PAYLOAD_OFFSET, 4), (PAYLOAD_LENGTH, 4)] {
            let mut damaged = whole.clone();
            damaged[at..at + width].fill(0xff);
            assert_eq!(unpack(&damaged), None);
        }
        // Numbers in the ELF file that lead out of it.
        for at in [0x20, 0x27, 64 + 0x08, 64 + 0x20, 120, 124] {
            let mut damaged = kernel.clone();
            damaged[at] = 0xff;
            assert_eq!(unpack(&image(&packed(&damaged, damaged.len()))), None, "byte {at}");
        }
    }
}
