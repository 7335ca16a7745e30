//! A disk: qcow2 layers on top of each other, read as one.
//!
//! Each layer's header names the file below it, and a guest that broke out of its QEMU can write any name it
//! likes there. So a layer is opened only below one of the directories the caller allows, by a lookup
//! that the kernel keeps below it (`openat2`), and only as a regular file that is qcow2 itself: there is no
//! raw backing file through which any file on the host could be read.

use std::{
    collections::{HashSet, VecDeque},
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex, PoisonError},
};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::{
    bytes::at_most,
    error::{BrowseError, OnFile, corrupt, refused},
    qcow2::{Layer, Place},
};

/// Far more than snapshots of snapshots make.
const LAYERS: usize = 64;
/// Decompressed clusters that are kept. Metadata is read in blocks that are smaller than a cluster.
const CLUSTERS: usize = 16;

#[derive(Debug)]
pub(crate) struct Disk {
    /// The newest first.
    layers: Vec<Layer>,
    recent: Mutex<VecDeque<Decompressed>>,
}

#[derive(Debug)]
struct Decompressed {
    layer: usize,
    cluster: u64,
    bytes: Arc<[u8]>,
}

impl Disk {
    pub(crate) fn open(path: &Utf8Path, allowed: &[&Utf8Path]) -> Result<Self, BrowseError> {
        let allowed =
            allowed.iter().map(|directory| Allowed::open(directory)).collect::<Result<Vec<_>, _>>()?;
        let mut layers = Vec::new();
        let mut seen = HashSet::new();
        let mut next = Some(path.to_owned());
        while let Some(path) = next {
            if layers.len() == LAYERS {
                return Err(refused(&path, format!("there are {LAYERS} layers above it")));
            }
            let file = open_layer(&path, &allowed)?;
            let status = file.metadata().on("read the status of", &path)?;
            if !seen.insert((status.dev(), status.ino())) {
                return Err(refused(&path, "it is its own backing file"));
            }
            let (layer, backing) = Layer::open(file, &path)?;
            layers.push(layer);
            next = match backing {
                None => None,
                Some(backing) => {
                    if backing.format.as_deref().is_some_and(|format| format != "qcow2") {
                        return Err(refused(&path, "its backing file is said not to be qcow2"));
                    }
                    Some(below(&path, &backing.name)?)
                }
            };
        }
        Ok(Self { layers, recent: Mutex::default() })
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.layers.first().map_or(0, Layer::size)
    }

    /// Fills `buffer` from the byte `position` on.
    pub(crate) fn read(&self, position: u64, buffer: &mut [u8]) -> Result<(), BrowseError> {
        if position.checked_add(buffer.len() as u64).is_none_or(|end| end > self.size()) {
            return Err(corrupt("something lies beyond the end of the disk"));
        }
        self.read_layers(0, position, buffer)
    }

    fn read_layers(&self, number: usize, mut position: u64, buffer: &mut [u8]) -> Result<(), BrowseError> {
        let Some(layer) = self.layers.get(number) else {
            buffer.fill(0);
            return Ok(());
        };
        // A layer below may be smaller than the disk; what it lacks is zero.
        let inside = at_most(layer.size().saturating_sub(position), buffer.len());
        let (mut buffer, outside) = buffer.split_at_mut(inside);
        outside.fill(0);
        while !buffer.is_empty() {
            let start = position % layer.cluster();
            let (part, rest) = buffer.split_at_mut(at_most(layer.cluster() - start, buffer.len()));
            match layer.place(position)? {
                Place::Below => self.read_layers(number + 1, position, part)?,
                Place::Zero => part.fill(0),
                Place::Data(offset) => layer.data(offset + start, part)?,
                Place::Compressed { offset, length } => {
                    let cluster = self.decompressed(number, position - start, offset, length)?;
                    let start = at_most(start, cluster.len());
                    part.copy_from_slice(&cluster[start..start + part.len()]);
                }
            }
            position += part.len() as u64;
            buffer = rest;
        }
        Ok(())
    }

    fn decompressed(
        &self,
        layer: usize,
        cluster: u64,
        offset: u64,
        length: u64,
    ) -> Result<Arc<[u8]>, BrowseError> {
        let this = |known: &Decompressed| known.layer == layer && known.cluster == cluster;
        // Whatever panicked left whole clusters behind: they are only pushed and removed.
        let lock = || self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut recent = lock();
        if let Some(found) = recent.iter().position(this)
            && let Some(found) = recent.remove(found)
        {
            let bytes = Arc::clone(&found.bytes);
            recent.push_back(found);
            return Ok(bytes);
        }
        // Other readers need not wait for the decoder.
        drop(recent);
        let bytes: Arc<[u8]> = self.layers[layer].decompress(offset, length)?.into();
        let mut recent = lock();
        if recent.len() >= CLUSTERS {
            recent.pop_front();
        }
        recent.push_back(Decompressed { layer, cluster, bytes: Arc::clone(&bytes) });
        Ok(bytes)
    }
}

/// A directory layers may be in.
#[derive(Debug)]
struct Allowed {
    directory: File,
    path: Utf8PathBuf,
}

impl Allowed {
    fn open(path: &Utf8Path) -> Result<Self, BrowseError> {
        let path = path.canonicalize_utf8().on("find", path)?;
        let directory = File::open(&path).on("open", &path)?;
        Ok(Self { directory, path })
    }
}

fn open_layer(path: &Utf8Path, allowed: &[Allowed]) -> Result<File, BrowseError> {
    let found = path.canonicalize_utf8().on("find", path)?;
    let inside = allowed
        .iter()
        .find_map(|allowed| found.strip_prefix(&allowed.path).ok().map(|inside| (allowed, inside)));
    let Some((allowed, inside)) = inside else {
        return Err(refused(path, "it is not where disks may be"));
    };
    // Opening a pipe would wait, opening a device may do anything.
    if !found.symlink_metadata().on("read the status of", path)?.is_file() {
        return Err(refused(path, "it is not a regular file"));
    }
    // The name has no links any more. If it has one now, somebody put it there since.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(&allowed.directory, inside.as_std_path(), flags, Mode::empty(), resolve)
        .map(File::from)
        .map_err(io::Error::from)
        .on("open", path)?;
    if !file.metadata().on("read the status of", path)?.is_file() {
        return Err(refused(path, "it is not a regular file"));
    }
    Ok(file)
}

/// The file that the layer `path` calls `name`: relative to the directory of the layer, as in QEMU.
fn below(path: &Utf8Path, name: &str) -> Result<Utf8PathBuf, BrowseError> {
    // QEMU would take `json:...`, `nbd://...` and the like for something other than a file.
    let first = name.split('/').next().unwrap_or_default();
    if first.contains(':') {
        return Err(refused(path, format!("its backing file {name:?} is not a plain file")));
    }
    Ok(path.parent().unwrap_or(Utf8Path::new("/")).join(name))
}
