//! Folders as tar archives.
//!
//! The whole tree is walked before the first byte is written, so that a folder that is too large is an error
//! and not half an archive. What is kept of the walk is small: a name, an inode number and the folder it is
//! in, for each entry the limits allow.

use std::{
    collections::HashSet,
    ffi::OsStr,
    io::{self, Write},
    ops::ControlFlow,
    os::unix::ffi::OsStrExt,
    path::Path,
};

use tar::{Builder, EntryType, Header};

use crate::{
    bytes::at_most,
    error::{BrowseError, Quantity, corrupt},
    ext4::{FileReader, Found, Inode, Kind, Volume, Work},
};

/// How much may be in one archive. One more is an error.
#[derive(Debug, Clone, Copy)]
pub struct TarLimits {
    /// Bytes of files; holes count as the zeroes they become.
    pub bytes: u64,
    /// Files, folders and symlinks.
    pub entries: u64,
    /// Folders among the entries.
    pub directories: u64,
}

/// What the kernel can name in one call.
const PATH_BYTES: usize = 4096;
/// The length of the field for the target of a link.
const SHORT_TARGET: usize = 100;

#[derive(Debug)]
struct Planned {
    /// Index of the folder it is in; none for what is at the top.
    parent: Option<usize>,
    name: Vec<u8>,
    /// Bytes of its whole name in the archive.
    path_bytes: usize,
    inode: u32,
    kind: Kind,
}

/// Writes the archive of the folder `found`, whose own name in it is `base`; without one, its content is at the
/// top.
pub(crate) fn write(
    volume: &Volume,
    found: &Found,
    base: &[u8],
    path: &str,
    work: &mut Work,
    limits: TarLimits,
    write: &mut dyn Write,
) -> Result<(), BrowseError> {
    let plan = plan(volume, found, base, path, work, limits)?;
    let mut archive = Builder::new(write);
    for entry in &plan {
        let inode = volume.inode(entry.inode)?;
        append(volume, &mut archive, &inode, &full_name(&plan, entry))?;
    }
    archive.into_inner().and_then(Write::flush).map_err(|source| BrowseError::Write { source })
}

fn plan(
    volume: &Volume,
    found: &Found,
    base: &[u8],
    path: &str,
    work: &mut Work,
    limits: TarLimits,
) -> Result<Vec<Planned>, BrowseError> {
    let too_large = |what, limit| BrowseError::TooLarge { path: path.to_owned(), what, limit };
    let mut plan = Vec::new();
    let (mut bytes, mut directories) = (0_u64, 0);
    // A folder that is inside itself would go on for ever.
    let mut seen = HashSet::from([found.inode.number]);

    let top = if base.is_empty() {
        None
    } else {
        if limits.entries == 0 {
            return Err(too_large(Quantity::Entries, limits.entries));
        }
        if limits.directories == 0 {
            return Err(too_large(Quantity::Directories, limits.directories));
        }
        directories += 1;
        plan.push(Planned {
            parent: None,
            name: base.to_vec(),
            path_bytes: base.len(),
            inode: found.inode.number,
            kind: Kind::Directory,
        });
        Some(0)
    };
    // Folders come before what is in them: the plan itself is the list of those still to be read.
    let mut next = 0;
    let mut folder = Some((top, found.inode.clone()));
    while let Some((parent, inode)) = folder {
        let above = parent.and_then(|parent| plan.get(parent)).map_or(0, |parent| parent.path_bytes + 1);
        let mut children = Vec::new();
        let already = plan.len() as u64;
        volume.entries::<()>(&inode, path, work, |number, name| {
            // Checked while reading: a folder may hold more names than should be in memory. Devices and the
            // like are not in the archive, but they are work too.
            if already + children.len() as u64 >= limits.entries {
                return Err(too_large(Quantity::Entries, limits.entries));
            }
            children.push((name.to_vec(), number));
            Ok(ControlFlow::Continue(()))
        })?;
        children.sort_unstable();
        for (name, number) in children {
            let inode = volume.inode(number)?;
            match inode.kind {
                Kind::Other => continue,
                Kind::File => bytes = bytes.saturating_add(inode.size),
                Kind::Directory => {
                    directories += 1;
                    if !seen.insert(number) {
                        return Err(corrupt(format!("the folder of inode {number} is in two places")));
                    }
                }
                Kind::Symlink => {}
            }
            if bytes > limits.bytes {
                return Err(too_large(Quantity::Bytes, limits.bytes));
            }
            if directories > limits.directories {
                return Err(too_large(Quantity::Directories, limits.directories));
            }
            let path_bytes = above + name.len();
            if path_bytes > PATH_BYTES {
                return Err(too_large(Quantity::PathBytes, PATH_BYTES as u64));
            }
            plan.push(Planned { parent, name, path_bytes, inode: number, kind: inode.kind });
        }
        // The first one is the folder itself, if it is in the archive.
        next = next.max(usize::from(top.is_some()));
        folder = None;
        while let Some(entry) = plan.get(next) {
            next += 1;
            if entry.kind == Kind::Directory {
                folder = Some((Some(next - 1), volume.inode(entry.inode)?));
                break;
            }
        }
    }
    Ok(plan)
}

fn full_name(plan: &[Planned], entry: &Planned) -> Vec<u8> {
    let mut names = vec![entry.name.as_slice()];
    let mut entry = entry;
    while let Some(parent) = entry.parent.and_then(|parent| plan.get(parent)) {
        names.push(&parent.name);
        entry = parent;
    }
    names.reverse();
    names.join(&b'/')
}

fn append(
    volume: &Volume,
    archive: &mut Builder<&mut dyn Write>,
    inode: &Inode,
    name: &[u8],
) -> Result<(), BrowseError> {
    let mut header = Header::new_gnu();
    header.set_mode(inode.mode);
    header.set_uid(inode.user.into());
    header.set_gid(inode.group.into());
    // Tar knows no time before 1970.
    header.set_mtime(u64::try_from(inode.modified).unwrap_or_default());
    header.set_size(0);
    let mut name = name.to_vec();
    let result = match inode.kind {
        Kind::Directory => {
            header.set_entry_type(EntryType::Directory);
            name.push(b'/');
            archive.append_data(&mut header, as_path(&name), io::empty())
        }
        Kind::Symlink => {
            header.set_entry_type(EntryType::Symlink);
            let target = volume.target(inode)?;
            if target.len() <= SHORT_TARGET {
                // Not `append_link`, which tidies up what the link says.
                header
                    .set_link_name_literal(&target)
                    .and_then(|()| archive.append_data(&mut header, as_path(&name), io::empty()))
            } else {
                archive.append_link(&mut header, as_path(&name), as_path(&target))
            }
        }
        Kind::File => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(inode.size);
            let file = Buffered::new(FileReader::new(volume, inode)?, inode.size);
            archive.append_data(&mut header, as_path(&name), file)
        }
        Kind::Other => Ok(()),
    };
    result.map_err(|source| match source.downcast::<BrowseError>() {
        Ok(error) => error,
        Err(source) => BrowseError::Write { source },
    })
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Reads a file in larger pieces than the archive asks for.
struct Buffered<'a> {
    reader: FileReader<'a>,
    buffer: Vec<u8>,
    used: std::ops::Range<usize>,
}

impl<'a> Buffered<'a> {
    fn new(reader: FileReader<'a>, size: u64) -> Self {
        Self { reader, buffer: vec![0; at_most(crate::CHUNK.min(size), 1 << 20)], used: 0..0 }
    }
}

impl io::Read for Buffered<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.used.is_empty() {
            self.used = 0..self.reader.fill(&mut self.buffer).map_err(io::Error::other)?;
        }
        let count = into.len().min(self.used.len());
        into[..count].copy_from_slice(&self.buffer[self.used.start..self.used.start + count]);
        self.used.start += count;
        Ok(count)
    }
}
