//! Filesystem images, made and changed without mounting them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
};

use camino::Utf8Path;
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use crate::{
    command::{command, run},
    digest::Digest,
    error::{ImageError, OnFile},
    namespace::as_guest_root,
};

/// Where the agent is in every guest; `roost-guest.service` of the recipe starts it.
const AGENT_DIRECTORY: &str = "/usr/lib/roost";
const AGENT: &str = "roost-guest";

/// The disk every computer has at least. Larger ones grow their filesystem at boot.
const SIZE: u64 = 10 << 30;

/// Makes an ext4 image of a directory.
///
/// Inode tables are valid without having been written, since the file is new and reads as zeros; so no
/// guest zeroes them in the background. No blocks are reserved: root is not the one who fills this disk.
pub(crate) fn make(directory: &Utf8Path, image: &Utf8Path) -> Result<(), ImageError> {
    let file = File::create(image).on("create", image)?;
    file.set_len(SIZE).on("size", image)?;
    let mut mkfs = as_guest_root("mkfs.ext4");
    mkfs.args(["-q", "-F", "-L", "roost", "-m", "0", "-J", "size=64"]).args([
        "-E",
        "assume_storage_prezeroed=1,nodiscard",
        "-d",
        directory.as_str(),
        image.as_str(),
    ]);
    run(mkfs).map(drop)
}

/// Puts the agent into the filesystem `image`, which is in `work`, and reads it back: debugfs reports success
/// whatever happened.
pub(crate) fn insert_agent(work: &Utf8Path, image: &str, agent: &Utf8Path) -> Result<(), ImageError> {
    let copy = work.join(AGENT);
    fs::copy(agent, &copy).map_err(|source| ImageError::Agent { path: agent.to_owned(), source })?;
    let script = format!(
        "cd {AGENT_DIRECTORY}\n\
         write {AGENT} {AGENT}\n\
         set_inode_field {AGENT} mode 0100755\n\
         set_inode_field {AGENT} uid 0\n\
         set_inode_field {AGENT} gid 0\n\
         dump {AGENT} {AGENT}.read-back\n"
    );
    let script_file = work.join("debugfs-script");
    fs::write(&script_file, script).on("write", &script_file)?;
    let mut debugfs = command("debugfs");
    debugfs.current_dir(work).args(["-w", "-f", "debugfs-script", image]);
    run(debugfs)?;

    let read_back = work.join(format!("{AGENT}.read-back"));
    let intact = match Digest::of_file(&read_back) {
        Ok(digest) => digest == Digest::of_file(&copy).on("read", &copy)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error).on("read", &read_back),
    };
    if intact { Ok(()) } else { Err(ImageError::AgentDamaged) }
}

/// Plain qcow2: reads of compressed clusters cost every computer more than the disk space is worth.
pub(crate) fn to_qcow2(work: &Utf8Path, image: &str, qcow2: &str) -> Result<(), ImageError> {
    let mut convert = command("qemu-img");
    convert.current_dir(work).args(["convert", "-f", "raw", "-O", "qcow2", image, qcow2]);
    run(convert).map(drop)
}

/// Copies a file with its holes.
pub(crate) fn copy_sparse(from: &Utf8Path, to: &Utf8Path) -> Result<(), ImageError> {
    let mut source = File::open(from).on("open", from)?;
    let mut target = OpenOptions::new().write(true).create(true).truncate(true).open(to).on("create", to)?;
    let length = source.metadata().on("read", from)?.len();
    target.set_len(length).on("size", to)?;
    let mut end_of_last = 0;
    loop {
        let start = match seek(&source, SeekFrom::Data(end_of_last)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()), // only a hole is left
            Err(error) => return Err(error).on("read", from),
        };
        end_of_last = seek(&source, SeekFrom::Hole(start)).on("read", from)?;
        source.seek(io::SeekFrom::Start(start)).on("read", from)?;
        target.seek(io::SeekFrom::Start(start)).on("write", to)?;
        copy_bytes(&mut source, &mut target, end_of_last - start).on("copy to", to)?;
    }
}

fn copy_bytes(source: &mut File, target: &mut File, count: u64) -> io::Result<()> {
    let copied = io::copy(&mut source.take(count), target)?;
    target.flush()?;
    if copied == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_sparse_copy_is_equal_and_as_small() {
        let directory = tempfile::tempdir().unwrap();
        let directory = Utf8Path::from_path(directory.path()).unwrap();
        let (from, to) = (directory.join("from"), directory.join("to"));
        let mut file = File::create(&from).unwrap();
        for offset in [0_u64, 5 << 20, 64 << 20] {
            file.seek(io::SeekFrom::Start(offset)).unwrap();
            file.write_all(&[7; 10_000]).unwrap();
        }
        file.set_len(100 << 20).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert_eq!(Digest::of_file(&from).unwrap(), Digest::of_file(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
    }
}
