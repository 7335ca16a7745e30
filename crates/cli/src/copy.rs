//! `roost cp`: files and directories to a computer and back.
//!
//! A file that breaks off goes on where it was, within one run and in the next: what has arrived waits on the receiving
//! side under a name made of what is copied where. Directories travel as one archive and are begun again.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{IsTerminal, SeekFrom};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Method, StatusCode, header};
use roost_api::{ComputerId, UploadProgress};
use serde_json::{Value, json};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};

use crate::client::{Client, refusal};
use crate::output::{print_json, print_line};

#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// A directory with everything in it
    #[arg(short, long)]
    recursive: bool,
    /// A path here, or NAME:PATH in a computer
    from: String,
    /// The other one
    to: String,
}

/// Where a path that does not begin with a slash begins.
const HOME: &str = "/home/user";
/// How often a file that breaks off is tried again before we give up.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Side {
    Here(Utf8PathBuf),
    There { name: String, path: String },
}

impl Side {
    fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some((name, path)) if !name.is_empty() && !name.contains('/') => {
                let path = if path.starts_with('/') { path.to_owned() } else { format!("{HOME}/{path}") };
                Self::There { name: name.to_owned(), path }
            }
            _ => Self::Here(text.into()),
        }
    }
}

pub(crate) async fn copy(client: &Client, args: &CpArgs, json: bool) -> anyhow::Result<()> {
    let bytes = match (Side::parse(&args.from), Side::parse(&args.to)) {
        (Side::Here(from), Side::There { name, path }) => {
            let remote = Remote { client, id: client.find(&name).await?.id };
            let is_directory =
                fs::metadata(&from).await.with_context(|| format!("failed to read {from}"))?.is_dir();
            match (is_directory, args.recursive) {
                (false, _) => remote.upload(&from, &path, json).await?,
                (true, true) => remote.upload_tree(&from, &path, json).await?,
                (true, false) => bail!("{from} is a directory; copy it with -r"),
            }
        }
        (Side::There { name, path }, Side::Here(to)) => {
            let remote = Remote { client, id: client.find(&name).await?.id };
            let path = path.trim_end_matches('/');
            match (remote.is_directory(path).await?, args.recursive) {
                (None, _) => bail!("there is no {path} on {name}"),
                (Some(false), _) => remote.download(path, &to, json).await?,
                (Some(true), true) => remote.download_tree(path, &to, json).await?,
                (Some(true), false) => bail!("{path} is a directory; copy it with -r"),
            }
        }
        (Side::Here(_), Side::Here(_)) => bail!("one of the two must be in a computer: NAME:PATH"),
        (Side::There { .. }, Side::There { .. }) => {
            bail!("one of the two must be here; copy it to this machine first, then from here")
        }
    };
    if json {
        return print_json(&json!({ "from": args.from, "to": args.to, "bytes": bytes }));
    }
    print_line(&format!("{} -> {} ({bytes} bytes)", args.from, args.to))
}

/// The files of one computer.
struct Remote<'a> {
    client: &'a Client,
    id: ComputerId,
}

impl Remote<'_> {
    fn route(&self, route: &str, query: &[(&str, &str)]) -> anyhow::Result<String> {
        let base = format!("http://x/computers/{}/files/{route}", self.id);
        let url = reqwest::Url::parse_with_params(&base, query)?;
        Ok(format!("{}?{}", url.path(), url.query().unwrap_or_default()))
    }

    /// `None`: there is nothing.
    async fn is_directory(&self, path: &str) -> anyhow::Result<Option<bool>> {
        let request = self.client.request(Method::GET, &self.route("stat", &[("path", path)])?);
        let response = request.send().await.context("failed to reach the server")?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => {
                let stat: Value = response.json().await?;
                Ok(Some(stat["data"]["is_dir"] == json!(true)))
            }
            status => Err(refusal(status.as_u16(), &response.text().await.unwrap_or_default())),
        }
    }

    /// Where a file of this name goes: into a directory that is there, or to the path itself.
    async fn destination(&self, path: &str, name: &str) -> anyhow::Result<String> {
        let is_inside = path.ends_with('/') || self.is_directory(path).await? == Some(true);
        Ok(if is_inside { format!("{}/{name}", path.trim_end_matches('/')) } else { path.to_owned() })
    }

    async fn upload(&self, from: &Utf8Path, to: &str, json: bool) -> anyhow::Result<u64> {
        let metadata = fs::metadata(from).await.with_context(|| format!("failed to read {from}"))?;
        let to = self.destination(to, from.file_name().unwrap_or_default()).await?;
        let (total, mode) = (metadata.len(), mode_of(&metadata));
        let modified = metadata.modified().ok();
        let upload = fingerprint(&(from.canonicalize_utf8().ok(), &to, self.id, total, modified));
        let bar = bar(Some(total), json);
        let mut tries = 0;
        loop {
            let state: UploadProgress = self
                .client
                .call(Method::GET, &self.route(&format!("uploads/{upload}"), &[("path", to.as_str())])?, None)
                .await?;
            bar.set_position(state.received);
            let sent = self.send_from(from, &to, &upload, state.received, total, &mode, &bar).await;
            match sent {
                Ok(()) => break,
                Err(Broken::Refused(error)) => return Err(error),
                Err(Broken::Connection(error)) if tries == TRIES => return Err(error),
                Err(Broken::Connection(_)) => tries += 1,
            }
            tokio::time::sleep(PAUSE).await;
        }
        bar.finish_and_clear();
        Ok(total)
    }

    #[expect(clippy::too_many_arguments, reason = "one place calls it, with what it has")]
    async fn send_from(
        &self,
        from: &Utf8Path,
        to: &str,
        upload: &str,
        offset: u64,
        total: u64,
        mode: &str,
        bar: &ProgressBar,
    ) -> Result<(), Broken> {
        let refused = |error: anyhow::Error| Broken::Refused(error);
        let (offset_text, total_text) = (offset.to_string(), total.to_string());
        let query = [
            ("path", to),
            ("mode", mode),
            ("upload_id", upload),
            ("offset", &offset_text),
            ("total", &total_text),
        ];
        let route = self.route("content", &query).map_err(refused)?;
        let mut file = File::open(from).await.map_err(|error| refused(error.into()))?;
        file.seek(SeekFrom::Start(offset)).await.map_err(|error| refused(error.into()))?;
        let bar = bar.clone();
        let content = ReaderStream::with_capacity(file.take(total - offset), 64 * 1024);
        let content = content.inspect_ok(move |piece| bar.inc(piece.len() as u64));
        let request = self.client.request(Method::PUT, &route).body(reqwest::Body::wrap_stream(content));
        let response = request.send().await.map_err(|error| {
            Broken::Connection(anyhow!(error).context("the connection broke while the file was sent"))
        })?;
        match response.status() {
            StatusCode::OK => Ok(()),
            StatusCode::ACCEPTED => Err(Broken::Connection(anyhow!("the file has become shorter meanwhile"))),
            status => {
                let error = refusal(status.as_u16(), &response.text().await.unwrap_or_default());
                // A gateway that lost the computer for a moment; the rest is our mistake.
                Err(if status.is_server_error() { Broken::Connection(error) } else { Broken::Refused(error) })
            }
        }
    }

    async fn upload_tree(&self, from: &Utf8Path, to: &str, json: bool) -> anyhow::Result<u64> {
        let name = from.canonicalize_utf8()?.file_name().map(str::to_owned);
        let name = name.context("a directory without a name cannot be copied")?;
        // Into a directory that is there; else it becomes the directory of that name.
        let to = self.destination(to, &name).await?;
        let route = self.route("archive", &[("path", to.as_str())])?;
        let (writer, reader) = tokio::io::duplex(256 * 1024);
        let from = from.to_owned();
        let pack = tokio::task::spawn_blocking(move || {
            let mut archive = tar::Builder::new(SyncIoBridge::new(writer));
            archive.follow_symlinks(false);
            archive.append_dir_all(".", &from)?;
            archive.into_inner()?.shutdown()
        });
        let bar = bar(None, json);
        let counted = {
            let bar = bar.clone();
            ReaderStream::new(reader).inspect_ok(move |piece| bar.inc(piece.len() as u64))
        };
        let request = self.client.request(Method::PUT, &route);
        let response = request.body(reqwest::Body::wrap_stream(counted)).send().await;
        // What could not be read here says more than what became of it there.
        if let Err(error) = pack.await?
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            return Err(anyhow!(error).context("failed to read the directory"));
        }
        let response = response.context("the connection broke while the directory was sent")?;
        let status = response.status();
        if !status.is_success() {
            return Err(refusal(status.as_u16(), &response.text().await.unwrap_or_default()));
        }
        bar.finish_and_clear();
        Ok(bar.position())
    }

    async fn download(&self, from: &str, to: &Utf8Path, json: bool) -> anyhow::Result<u64> {
        let name = from.rsplit('/').next().unwrap_or_default();
        let to = if to.is_dir() || to.as_str().ends_with('/') { to.join(name) } else { to.to_owned() };
        let part = part_path(&to, &fingerprint(&(self.id, from)));
        let bar = bar(None, json);
        let mut tries = 0;
        loop {
            match self.receive(from, &part, &bar).await {
                Ok(()) => break,
                Err(Broken::Refused(error)) => return Err(error),
                Err(Broken::Connection(error)) if tries == TRIES => return Err(error),
                Err(Broken::Connection(_)) => tries += 1,
            }
            tokio::time::sleep(PAUSE).await;
        }
        bar.finish_and_clear();
        fs::rename(&part.content, &to).await.with_context(|| format!("failed to write {to}"))?;
        // It belongs to the content, which has another name now.
        drop(fs::remove_file(&part.tag).await);
        Ok(fs::metadata(&to).await?.len())
    }

    /// Goes on with what is there, if that is of the file as it is now.
    async fn receive(&self, from: &str, part: &PartPath, bar: &ProgressBar) -> Result<(), Broken> {
        let refused = |error: anyhow::Error| Broken::Refused(error);
        let have = fs::metadata(&part.content).await.map_or(0, |metadata| metadata.len());
        let tag = fs::read_to_string(&part.tag).await.unwrap_or_default();
        let route = self.route("download", &[("path", from)]).map_err(refused)?;
        let mut request = self.client.request(Method::GET, &route);
        if have > 0 && !tag.is_empty() {
            request = request.header(header::RANGE, format!("bytes={have}-")).header(header::IF_RANGE, &tag);
        }
        let response = request.send().await.map_err(|error| {
            Broken::Connection(anyhow!(error).context("failed to reach the server: is it running?"))
        })?;
        let offset = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => have,
            // All of it is there already.
            StatusCode::RANGE_NOT_SATISFIABLE => return Ok(()),
            status => {
                let error = refusal(status.as_u16(), &response.text().await.unwrap_or_default());
                return Err(if status.is_server_error() {
                    Broken::Connection(error)
                } else {
                    refused(error)
                });
            }
        };
        let now = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or_default();
        fs::write(&part.tag, now).await.map_err(|error| refused(error.into()))?;
        bar.set_length(offset + response.content_length().unwrap_or_default());
        bar.set_position(offset);
        let mut options = fs::OpenOptions::new();
        options.create(true).write(true).truncate(offset == 0);
        let file = options.open(&part.content).await;
        let mut file = file.with_context(|| format!("failed to write {}", part.content)).map_err(refused)?;
        file.seek(SeekFrom::Start(offset)).await.map_err(|error| refused(error.into()))?;
        let mut content = response.bytes_stream();
        while let Some(piece) = content.next().await {
            let piece = piece.map_err(|error| {
                Broken::Connection(anyhow!(error).context("the connection broke while the file was received"))
            })?;
            file.write_all(&piece).await.map_err(|error| refused(error.into()))?;
            bar.inc(piece.len() as u64);
        }
        file.flush().await.map_err(|error| refused(error.into()))
    }

    async fn download_tree(&self, from: &str, to: &Utf8Path, json: bool) -> anyhow::Result<u64> {
        let route = self.route("download", &[("path", from), ("archive", "tar")])?;
        let response = self.client.send(Method::GET, &route, None).await?;
        let bar = bar(None, json);
        let counted = {
            let bar = bar.clone();
            response.bytes_stream().inspect_ok(move |piece| bar.inc(piece.len() as u64))
        };
        let reader = SyncIoBridge::new(StreamReader::new(counted.map_err(std::io::Error::other).boxed()));
        // Into a directory that is there; else it becomes the directory of that name.
        let (into, rename) = if to.is_dir() { (to.to_owned(), None) } else { parent_and_name(to)? };
        let unpacked = tokio::task::spawn_blocking(move || unpack(reader, &into, rename.as_deref()));
        unpacked.await?.context("failed to unpack the directory")?;
        bar.finish_and_clear();
        Ok(bar.position())
    }
}

/// Why a file has not arrived.
enum Broken {
    /// It may in a moment.
    Connection(anyhow::Error),
    Refused(anyhow::Error),
}

fn parent_and_name(to: &Utf8Path) -> anyhow::Result<(Utf8PathBuf, Option<String>)> {
    let name = to.file_name().with_context(|| format!("{to} is no name for a directory"))?;
    let parent = to.parent().filter(|parent| !parent.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
    Ok((parent.to_owned(), Some(name.to_owned())))
}

/// Unpacks below `into`; the first name of every path becomes `rename`.
fn unpack(content: impl std::io::Read, into: &Utf8Path, rename: Option<&str>) -> std::io::Result<()> {
    let mut archive = tar::Archive::new(content);
    archive.set_preserve_permissions(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let Some(name) = rename else {
            entry.unpack_in(into)?;
            continue;
        };
        let path = entry.path()?.into_owned();
        let rest: std::path::PathBuf = path.components().skip(1).collect();
        let renamed = into.as_std_path().join(name);
        if rest.as_os_str().is_empty() {
            std::fs::create_dir_all(&renamed)?;
        } else {
            // `unpack_in` looks at names of its own; below the renamed directory they are the same but for the first.
            let below = rest.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            let real = renamed.join(&rest);
            let parent = real.parent().unwrap_or(&renamed);
            if !below || !parent.canonicalize()?.starts_with(renamed.canonicalize()?) {
                return Err(std::io::Error::other(format!("{} leads out of the directory", path.display())));
            }
            entry.unpack(real)?;
        }
    }
    Ok(())
}

struct PartPath {
    content: Utf8PathBuf,
    tag: Utf8PathBuf,
}

fn part_path(to: &Utf8Path, fingerprint: &str) -> PartPath {
    let name = format!(".{}.{fingerprint}.roost-part", to.file_name().unwrap_or_default());
    let content = to.with_file_name(name);
    PartPath { tag: Utf8PathBuf::from(format!("{content}-tag")), content }
}

/// The same for the same copy; not for another one.
fn fingerprint(copy: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    copy.hash(&mut hasher);
    format!("cp-{:016x}", hasher.finish())
}

fn mode_of(metadata: &std::fs::Metadata) -> String {
    use std::os::unix::fs::PermissionsExt;
    format!("{:04o}", metadata.permissions().mode() & 0o777)
}

/// On terminals only.
fn bar(total: Option<u64>, json: bool) -> ProgressBar {
    if json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
    let template = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_colon_are_a_computer() {
        let there = |name: &str, path: &str| Side::There { name: name.to_owned(), path: path.to_owned() };
        let cases = [
            ("box:/tmp/x", there("box", "/tmp/x")),
            ("box:x", there("box", "/home/user/x")),
            ("box:", there("box", "/home/user/")),
            ("box:a:b", there("box", "/home/user/a:b")),
            ("./a:b", Side::Here("./a:b".into())),
            ("/a:b", Side::Here("/a:b".into())),
            (":x", Side::Here(":x".into())),
            ("file", Side::Here("file".into())),
        ];
        for (text, side) in cases {
            assert_eq!(Side::parse(text), side, "{text}");
        }
    }

    #[test]
    fn a_tree_gets_its_new_name_and_nothing_leads_out_of_it() {
        let archive = |names: &[&str]| {
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
                builder.append_data(&mut header, name, std::io::empty()).unwrap();
            }
            builder.into_inner().unwrap()
        };
        let directory = tempfile::tempdir().unwrap();
        let into = Utf8Path::from_path(directory.path()).unwrap();
        let tree = archive(&["tree/", "tree/sub/", "tree/sub/file"]);
        unpack(tree.as_slice(), into, Some("new")).unwrap();
        unpack(tree.as_slice(), into, None).unwrap();
        assert!(into.join("new/sub/file").exists() && into.join("tree/sub/file").exists());
        std::os::unix::fs::symlink("/tmp", into.join("new/out")).unwrap();
        assert!(unpack(archive(&["tree/out/x"]).as_slice(), into, Some("new")).is_err());
    }
}
