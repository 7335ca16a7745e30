//! Directories with everything in them.
//!
//! What is on the other side already is left alone: a file of the same length that was changed in the same second, which
//! is what every copy of this program leaves. So a copy that broke off is ended by another one, and one that breaks off
//! goes on by itself. What is missing travels as one archive; large files by themselves, so that they too go on where
//! they were.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, anyhow, bail};
use camino::{Utf8Path, Utf8PathBuf};
use futures_util::TryStreamExt;
use indicatif::ProgressBar;
use reqwest::{Method, StatusCode};
use roost_api::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};

use super::{Broken, Remote, Sent, bar, fingerprint, succeeded, unreachable, with_patience};

/// From here on a file travels by itself: what asking how far it is costs is little beside it.
const LARGE: u64 = 8 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    Link,
    File {
        length: u64,
        /// Seconds since the Unix epoch.
        modified: i64,
    },
}

/// Something in a directory here. Its path is relative to that; the directory itself has none.
#[derive(Debug, Clone)]
struct Local {
    path: PathBuf,
    kind: Kind,
    mode: u32,
}

/// The same there.
#[derive(Debug, Clone, Deserialize)]
struct Row {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    size: u64,
    mode: u32,
    modified_at: Timestamp,
}

impl Row {
    /// `None`: nothing that could be copied.
    fn kind(&self) -> Option<Kind> {
        match self.kind.as_str() {
            "directory" => Some(Kind::Directory),
            "symlink" => Some(Kind::Link),
            "file" => Some(Kind::File { length: self.size, modified: self.modified_at.as_seconds() }),
            _ => None,
        }
    }
}

/// A path there, relative to the directory that is copied, and what it is.
type Listing = HashMap<String, Row>;

impl Remote<'_> {
    pub(super) async fn upload_tree(&self, from: &Utf8Path, to: &str, json: bool) -> anyhow::Result<u64> {
        let name = from.canonicalize_utf8()?.file_name().map(str::to_owned);
        let name = name.context("a directory without a name cannot be copied")?;
        // Into a directory that is there; else it becomes the directory of that name.
        let to = self.destination(to, &name).await?;
        let locals = local_tree(from.to_owned()).await?;
        let total = locals.iter().map(|local| length(local.kind)).sum();
        let bar = bar(Some(total), json);
        with_patience(async || {
            let there = self.listing(&to, Some(&locals)).await?;
            let missing: Vec<Local> =
                locals.iter().filter(|local| !is_there(local, &there)).cloned().collect();
            let mut done = total - missing.iter().map(|local| length(local.kind)).sum::<u64>();
            bar.set_position(done);
            let (large, rest): (Vec<Local>, Vec<Local>) = missing
                .into_iter()
                .partition(|local| length(local.kind) >= LARGE && local.path.to_str().is_some());
            done += rest.iter().map(|local| length(local.kind)).sum::<u64>();
            if !rest.is_empty() {
                self.send_archive(from, &to, rest, &bar).await?;
            }
            for local in large {
                let path = local.path.to_str().context("a path that is no text")?;
                let total = length(local.kind);
                let sent = Sent { from: from.join(path), to: format!("{to}/{path}"), total, keep_time: true };
                self.upload_file(&sent, &bar, done).await?;
                done += total;
            }
            Ok(())
        })
        .await?;
        bar.finish_and_clear();
        Ok(total)
    }

    async fn send_archive(
        &self,
        from: &Utf8Path,
        to: &str,
        entries: Vec<Local>,
        bar: &ProgressBar,
    ) -> Result<(), Broken> {
        let route = self.route("archive", &[("path", to)])?;
        let (writer, reader) = tokio::io::duplex(256 * 1024);
        let (from, progress) = (from.to_owned(), bar.clone());
        let pack =
            tokio::task::spawn_blocking(move || pack(&from, &entries, SyncIoBridge::new(writer), &progress));
        let request = self.client.request(Method::PUT, &route);
        let response = request.body(reqwest::Body::wrap_stream(ReaderStream::new(reader))).send().await;
        // What could not be read here says more than what became of it there.
        match pack.await.map_err(anyhow::Error::from)? {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(Broken::Refused(anyhow!(error).context("failed to read the directory")));
            }
            _ => {}
        }
        let response = response.map_err(|error| {
            Broken::Connection(anyhow!(error).context("the connection broke while the directory was sent"))
        })?;
        succeeded(response).await.map(drop)
    }

    pub(super) async fn download_tree(&self, from: &str, to: &Utf8Path, json: bool) -> anyhow::Result<u64> {
        let name = from.rsplit('/').next().unwrap_or_default();
        // Into a directory that is there; else it becomes the directory of that name.
        let into = if to.is_dir() { to.join(name) } else { to.to_owned() };
        if into.file_name().is_none() {
            bail!("{into} is no name for a directory");
        }
        let bar = bar(None, json);
        with_patience(async || {
            let there = self.listing(from, None).await?;
            let total = there.values().filter_map(Row::kind).map(length).sum();
            bar.set_length(total);
            // Names that are no text can only be asked for with everything around them.
            let is_text = !there.keys().any(|path| path.contains('\u{fffd}'));
            if into.exists() && is_text {
                self.fetch_missing(from, &into, there, &bar).await
            } else {
                self.fetch_archive(from, &into, &bar).await
            }
        })
        .await?;
        let total = bar.length().unwrap_or_default();
        bar.finish_and_clear();
        Ok(total)
    }

    async fn fetch_archive(&self, from: &str, into: &Utf8Path, bar: &ProgressBar) -> Result<(), Broken> {
        let route = self.route("download", &[("path", from), ("archive", "tar")])?;
        let response = self.client.request(Method::GET, &route).send().await.map_err(unreachable)?;
        let response = succeeded(response).await?;
        bar.set_position(0);
        let counted = {
            let bar = bar.clone();
            response.bytes_stream().inspect_ok(move |piece| bar.inc(piece.len() as u64))
        };
        let reader = SyncIoBridge::new(StreamReader::new(Box::pin(counted.map_err(|error| {
            // How a connection that broke is told from a disk that is full.
            io::Error::new(io::ErrorKind::ConnectionAborted, error)
        }))));
        let (into, id, from) = (into.to_owned(), self.id, from.to_owned());
        // As those of single files: whoever goes on with them takes their place.
        let part = move |path: &Path| {
            let name = path.file_name().and_then(OsStr::to_str);
            fingerprint(&(id, format!("{from}/{}", path.display()).as_str(), name))
        };
        let unpacked = tokio::task::spawn_blocking(move || unpack(reader, &into, part)).await;
        match unpacked.map_err(anyhow::Error::from)? {
            Ok(()) => Ok(()),
            Err(error) if is_broken_off(&error) => {
                let broken = anyhow!(error).context("the connection broke while the directory was received");
                Err(Broken::Connection(broken))
            }
            Err(error) => Err(Broken::Refused(anyhow!(error).context("failed to unpack the directory"))),
        }
    }

    /// One by one, the directories before what is in them.
    async fn fetch_missing(
        &self,
        from: &str,
        into: &Utf8Path,
        there: Listing,
        bar: &ProgressBar,
    ) -> Result<(), Broken> {
        let here: HashMap<PathBuf, Local> =
            local_tree(into.to_owned()).await?.into_iter().map(|local| (local.path.clone(), local)).collect();
        let mut rows: Vec<(String, Row)> = there.into_iter().collect();
        rows.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        let mut done = 0;
        for (path, row) in rows {
            let Some(kind) = row.kind() else { continue };
            let to = into.join(&path);
            let is_here = here.get(Path::new(&path)).is_some_and(|local| local.kind == kind);
            match kind {
                _ if is_here => {}
                Kind::Directory => make_directory(&to, row.mode)?,
                Kind::Link => self.fetch_link(&format!("{from}/{path}"), &to).await?,
                Kind::File { .. } => {
                    let part = self.download_part(&format!("{from}/{path}"), &to, bar, done).await?;
                    let time = SystemTime::UNIX_EPOCH
                        + std::time::Duration::from_secs(
                            u64::try_from(row.modified_at.as_seconds()).unwrap_or(0),
                        );
                    let changed = fs::File::options().write(true).open(&part.content).and_then(|file| {
                        file.set_permissions(fs::Permissions::from_mode(row.mode))?;
                        file.set_modified(time)
                    });
                    changed.with_context(|| format!("failed to write {to}"))?;
                    part.put(&to).await?;
                }
            }
            done += length(kind);
            bar.set_position(done);
        }
        Ok(())
    }

    async fn fetch_link(&self, from: &str, to: &Utf8Path) -> Result<(), Broken> {
        let route = self.route("stat", &[("path", from)])?;
        let response = self.client.request(Method::GET, &route).send().await.map_err(unreachable)?;
        let stat: Value = succeeded(response).await?.json().await.map_err(unreachable)?;
        let target =
            stat["data"]["symlink_target"].as_str().with_context(|| format!("{from} is no link any more"))?;
        match fs::remove_file(to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Broken::Refused(anyhow!(error).context(format!("failed to replace {to}"))));
            }
            _ => {}
        }
        Ok(std::os::unix::fs::symlink(target, to).with_context(|| format!("failed to write {to}"))?)
    }

    /// What there is below a directory there; of the directories that are `among`, if that is given. Empty where the
    /// directory itself is missing.
    async fn listing(&self, directory: &str, among: Option<&[Local]>) -> Result<Listing, Broken> {
        let wanted = |path: &str| {
            among.is_none_or(|locals| {
                locals.iter().any(|local| local.kind == Kind::Directory && local.path == Path::new(path))
            })
        };
        let mut listing = Listing::new();
        let mut open = vec![String::new()];
        while let Some(path) = open.pop() {
            let whole = if path.is_empty() { directory.to_owned() } else { format!("{directory}/{path}") };
            let route = self.route("list", &[("path", &whole)])?;
            let response = self.client.request(Method::GET, &route).send().await.map_err(unreachable)?;
            if path.is_empty() && among.is_some() && response.status() == StatusCode::NOT_FOUND {
                break;
            }
            let mut list: Value = succeeded(response).await?.json().await.map_err(unreachable)?;
            let rows = serde_json::from_value::<Vec<Row>>(list["files"].take());
            for row in rows.context("the list of files is not what this version expects")? {
                let path = if path.is_empty() { row.name.clone() } else { format!("{path}/{}", row.name) };
                if row.kind() == Some(Kind::Directory) && wanted(&path) {
                    open.push(path.clone());
                }
                listing.insert(path, row);
            }
        }
        Ok(listing)
    }
}

fn length(kind: Kind) -> u64 {
    match kind {
        Kind::File { length, .. } => length,
        Kind::Directory | Kind::Link => 0,
    }
}

/// A link is made again: what it leads to is not in a list.
fn is_there(local: &Local, there: &Listing) -> bool {
    let row = local.path.to_str().and_then(|path| there.get(path));
    row.is_some_and(|row| {
        row.kind() == Some(local.kind) && row.mode == local.mode && local.kind != Kind::Link
    })
}

/// The directory itself, then everything in it; links are not followed.
async fn local_tree(directory: Utf8PathBuf) -> anyhow::Result<Vec<Local>> {
    fn look(path: PathBuf, metadata: &fs::Metadata) -> Option<Local> {
        let kind = match metadata.file_type() {
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_symlink() => Kind::Link,
            kind if kind.is_file() => Kind::File { length: metadata.len(), modified: metadata.mtime() },
            // A socket or a device: nothing that could be copied.
            _ => return None,
        };
        Some(Local { path, kind, mode: metadata.mode() & 0o7777 })
    }
    let walk = move || -> io::Result<Vec<Local>> {
        let mut locals: Vec<Local> = look(PathBuf::new(), &fs::metadata(&directory)?).into_iter().collect();
        let mut open = vec![PathBuf::new()];
        while let Some(path) = open.pop() {
            for entry in fs::read_dir(directory.as_std_path().join(&path))? {
                let entry = entry?;
                // What waits of an earlier copy is no part of the directory.
                if is_part(&entry.file_name()) {
                    continue;
                }
                if let Some(local) = look(path.join(entry.file_name()), &entry.metadata()?) {
                    if local.kind == Kind::Directory {
                        open.push(local.path.clone());
                    }
                    locals.push(local);
                }
            }
        }
        Ok(locals)
    };
    tokio::task::spawn_blocking(walk).await?.context("failed to read the directory")
}

fn is_part(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".cp-") && (name.ends_with(b".roost-part") || name.ends_with(b".roost-part-tag"))
}

fn pack(from: &Utf8Path, entries: &[Local], out: impl io::Write, bar: &ProgressBar) -> io::Result<()> {
    let mut archive = tar::Builder::new(out);
    for local in entries {
        let here = from.as_std_path().join(&local.path);
        // The directory itself has to have a name.
        let name = Path::new(".").join(&local.path);
        let mut header = tar::Header::new_gnu();
        header.set_mode(local.mode);
        header.set_size(length(local.kind));
        match local.kind {
            Kind::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                archive.append_data(&mut header, name.join(""), io::empty())?;
            }
            Kind::Link => {
                header.set_entry_type(tar::EntryType::Symlink);
                archive.append_link(&mut header, name, fs::read_link(here)?)?;
            }
            Kind::File { length, modified } => {
                header.set_mtime(u64::try_from(modified).unwrap_or_default());
                let file = Exactly { file: io::BufReader::new(fs::File::open(here)?), left: length };
                archive.append_data(&mut header, name, file)?;
                bar.inc(length);
            }
        }
    }
    archive.into_inner()?.flush()
}

/// As many bytes as were promised: a file that has become shorter must not look complete.
struct Exactly<R> {
    file: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(io::Error::other("a file has become shorter while it was sent; copy it again"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

fn is_broken_off(error: &io::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::UnexpectedEof)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Unpacks into `into`, which takes the place of the first name of every path. Each file is whole when it gets its name.
fn unpack(content: impl Read, into: &Utf8Path, part: impl Fn(&Path) -> String) -> io::Result<()> {
    let mut archive = tar::Archive::new(content);
    archive.set_preserve_permissions(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let rest: PathBuf = path.components().skip(1).collect();
        let kind = entry.header().entry_type();
        if kind.is_dir() && rest.as_os_str().is_empty() {
            fs::create_dir_all(into)?;
            continue;
        }
        let is_below = rest.components().all(|part| matches!(part, Component::Normal(_)));
        let to = into.as_std_path().join(&rest);
        let parent = to.parent().unwrap_or(into.as_std_path());
        if !is_below || !parent.canonicalize()?.starts_with(into.as_std_path().canonicalize()?) {
            return Err(io::Error::other(format!("{} leads out of the directory", path.display())));
        }
        if kind.is_dir() {
            make_directory_at(&to, entry.header().mode()?)?;
        } else if kind.is_file() {
            let part = to.with_file_name(format!(".{}.roost-part", part(&rest)));
            let unpacked = entry.unpack(&part).and_then(|_| fs::rename(&part, &to));
            if unpacked.is_err() {
                // It may not have been begun.
                drop(fs::remove_file(&part));
            }
            unpacked?;
        } else {
            entry.unpack(&to)?;
        }
    }
    Ok(())
}

fn make_directory(to: &Utf8Path, mode: u32) -> anyhow::Result<()> {
    make_directory_at(to.as_std_path(), mode).with_context(|| format!("failed to make {to}"))
}

/// A link to a directory is none: what comes must not go elsewhere.
fn make_directory_at(to: &Path, mode: u32) -> io::Result<()> {
    match fs::create_dir(to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && fs::symlink_metadata(to)?.is_dir() => {}
        made => made?,
    }
    // Whoever may not write into it could not receive what is in it.
    fs::set_permissions(to, fs::Permissions::from_mode((mode & 0o777) | 0o700))
}

pub(super) fn timestamp(time: SystemTime) -> anyhow::Result<Timestamp> {
    let micros = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()),
        Err(before) => i64::try_from(before.duration().as_micros()).map(i64::wrapping_neg),
    };
    Timestamp::from_micros(micros?).context("a time that no calendar has")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(names: &[&str]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o755);
            let is_directory = name.ends_with('/');
            header.set_entry_type(if is_directory {
                tar::EntryType::Directory
            } else {
                tar::EntryType::Regular
            });
            builder.append_data(&mut header, name, io::empty()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn part(path: &Path) -> String {
        fingerprint(&path)
    }

    /// A connection that is lost.
    struct Aborted;

    impl Read for Aborted {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    }

    #[test]
    fn a_tree_gets_its_new_name_and_nothing_leads_out_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let into = Utf8Path::from_path(directory.path()).unwrap().join("new");
        let tree = archive(&["tree/", "tree/sub/", "tree/sub/file"]);
        unpack(tree.as_slice(), &into, part).unwrap();
        unpack(tree.as_slice(), &into, part).unwrap();
        assert_eq!(fs::read_dir(into.join("sub")).unwrap().count(), 1);
        std::os::unix::fs::symlink("/tmp", into.join("out")).unwrap();
        assert!(unpack(archive(&["tree/out/x"]).as_slice(), &into, part).is_err());
        assert!(unpack(archive(&["tree/out/"]).as_slice(), &into, part).is_err());
    }

    #[tokio::test]
    async fn an_archive_that_breaks_off_leaves_whole_files_and_no_others() {
        let directory = tempfile::tempdir().unwrap();
        let base = Utf8Path::from_path(directory.path()).unwrap();
        let from = base.join("from");
        fs::create_dir_all(from.join("sub")).unwrap();
        for name in ["one", "sub/two", "three"] {
            fs::write(from.join(name), vec![7; 5000]).unwrap();
        }
        std::os::unix::fs::symlink("one", from.join("link")).unwrap();
        let locals = local_tree(from.clone()).await.unwrap();
        // As a computer packs it: everything below the directory's own name.
        let mut packed = tar::Builder::new(Vec::new());
        packed.follow_symlinks(false);
        packed.append_dir_all("tree", &from).unwrap();
        let whole = packed.into_inner().unwrap();
        for cut in [600, 3000, 8000, 12000] {
            let into = base.join(format!("cut-{cut}"));
            let error = unpack(whole[..cut].chain(Aborted), &into, part).unwrap_err();
            assert!(is_broken_off(&error), "{cut}: {error:?}");
            for local in local_tree(into.clone()).await.unwrap() {
                if let Kind::File { length, modified } = local.kind {
                    assert_eq!(length, 5000, "{cut}: {:?}", local.path);
                    // As the one it is of: it will not be copied again.
                    let same = locals.iter().find(|other| other.path == local.path).unwrap();
                    assert_eq!(same.kind, Kind::File { length, modified });
                }
            }
            unpack(whole.as_slice(), &into, part).unwrap();
            assert_eq!(fs::read_link(into.join("link")).unwrap(), Path::new("one"));
            let left =
                fs::read_dir(&into).unwrap().filter(|entry| is_part(&entry.as_ref().unwrap().file_name()));
            assert_eq!(left.count(), 0);
        }
    }
}
