//! A tar archive as a zip, while it comes.

use std::io::{self, Read, Write};

use tar::EntryType;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// Links are kept as links; what zip does not know is left out.
pub(crate) fn from_tar(tar: impl Read, zip: impl Write) -> io::Result<()> {
    let mut archive = tar::Archive::new(tar);
    let mut writer = ZipWriter::new_stream(zip);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mode = entry.header().mode().unwrap_or(0o644);
        let options = SimpleFileOptions::default().unix_permissions(mode).large_file(true);
        match entry.header().entry_type() {
            EntryType::Directory => writer.add_directory(name, options).map_err(io::Error::other)?,
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = String::from_utf8_lossy(&target).into_owned();
                writer.add_symlink(name, target, options).map_err(io::Error::other)?;
            }
            EntryType::Regular => {
                writer.start_file(name, options).map_err(io::Error::other)?;
                io::copy(&mut entry, &mut writer)?;
            }
            _ => {}
        }
    }
    writer.finish().map_err(io::Error::other)?.flush()
}
