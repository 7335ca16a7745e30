//! `roost cp`: files and directories to a computer and back.
//!
//! A file that breaks off goes on where it was, within one run and in the next: what has arrived waits on the receiving
//! side under a name made of what is copied where. Directories go on with what is missing ([`tree`]).

mod tree;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{IsTerminal, SeekFrom};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Method, Response, StatusCode, header};
use roost_api::{ComputerId, UploadProgress};
use serde_json::{Value, json};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;

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
        let to = self.destination(to, from.file_name().unwrap_or_default()).await?;
        let metadata = fs::metadata(from).await.with_context(|| format!("failed to read {from}"))?;
        let sent = Sent { from: from.to_owned(), to, total: metadata.len(), keep_time: false };
        let bar = bar(Some(sent.total), json);
        self.upload_file(&sent, &bar, 0).await?;
        bar.finish_and_clear();
        Ok(sent.total)
    }

    /// One file, however often it breaks off. `base` is how far the bar was before it.
    async fn upload_file(&self, sent: &Sent, bar: &ProgressBar, base: u64) -> anyhow::Result<()> {
        let metadata =
            fs::metadata(&sent.from).await.with_context(|| format!("failed to read {}", sent.from))?;
        let modified = metadata.modified().context("this system knows no times of files")?;
        let upload =
            fingerprint(&(sent.from.canonicalize_utf8().ok(), &sent.to, self.id, sent.total, modified));
        let mut query = vec![
            ("path", sent.to.clone()),
            ("mode", mode_of(&metadata)),
            ("upload_id", upload.clone()),
            ("total", sent.total.to_string()),
        ];
        if sent.keep_time {
            query.push(("modified_at", tree::timestamp(modified)?.to_string()));
        }
        with_patience(async || {
            let route = self.route(&format!("uploads/{upload}"), &[("path", sent.to.as_str())])?;
            let response = self.client.request(Method::GET, &route).send().await.map_err(unreachable)?;
            let state: UploadProgress = succeeded(response).await?.json().await.map_err(unreachable)?;
            bar.set_position(base + state.received);
            self.send_from(sent, &query, state.received, bar).await
        })
        .await
    }

    async fn send_from(
        &self,
        sent: &Sent,
        query: &[(&str, String)],
        offset: u64,
        bar: &ProgressBar,
    ) -> Result<(), Broken> {
        let mut query: Vec<(&str, &str)> =
            query.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let offset_text = offset.to_string();
        query.push(("offset", &offset_text));
        let route = self.route("content", &query)?;
        let mut file =
            File::open(&sent.from).await.with_context(|| format!("failed to read {}", sent.from))?;
        file.seek(SeekFrom::Start(offset)).await.context("failed to read on")?;
        let bar = bar.clone();
        let content = ReaderStream::with_capacity(file.take(sent.total - offset), 64 * 1024);
        let content = content.inspect_ok(move |piece| bar.inc(piece.len() as u64));
        let request = self.client.request(Method::PUT, &route).body(reqwest::Body::wrap_stream(content));
        let response = request.send().await.map_err(|error| {
            Broken::Connection(anyhow!(error).context("the connection broke while the file was sent"))
        })?;
        match response.status() {
            StatusCode::ACCEPTED => Err(Broken::Connection(anyhow!("the file has become shorter meanwhile"))),
            _ => succeeded(response).await.map(drop),
        }
    }

    async fn download(&self, from: &str, to: &Utf8Path, json: bool) -> anyhow::Result<u64> {
        let name = from.rsplit('/').next().unwrap_or_default();
        let to = if to.is_dir() || to.as_str().ends_with('/') { to.join(name) } else { to.to_owned() };
        let bar = bar(None, json);
        let part = self.download_part(from, &to, &bar, 0).await?;
        bar.finish_and_clear();
        part.put(&to).await?;
        Ok(fs::metadata(&to).await?.len())
    }

    /// All of a file beside its place, however often it breaks off.
    async fn download_part(
        &self,
        from: &str,
        to: &Utf8Path,
        bar: &ProgressBar,
        base: u64,
    ) -> anyhow::Result<Part> {
        let part = Part::of(to, &fingerprint(&(self.id, from, to.file_name())));
        with_patience(async || self.receive(from, &part, bar, base).await).await?;
        Ok(part)
    }

    /// Goes on with what is there, if that is of the file as it is now.
    async fn receive(&self, from: &str, part: &Part, bar: &ProgressBar, base: u64) -> Result<(), Broken> {
        let have = fs::metadata(&part.content).await.map_or(0, |metadata| metadata.len());
        let tag = fs::read_to_string(&part.tag).await.unwrap_or_default();
        let route = self.route("download", &[("path", from)])?;
        let mut request = self.client.request(Method::GET, &route);
        if have > 0 && !tag.is_empty() {
            request = request.header(header::RANGE, format!("bytes={have}-")).header(header::IF_RANGE, &tag);
        }
        let response = request.send().await.map_err(unreachable)?;
        let (offset, response) = match response.status() {
            StatusCode::PARTIAL_CONTENT => (have, response),
            // All of it is there already.
            StatusCode::RANGE_NOT_SATISFIABLE => return Ok(()),
            _ => (0, succeeded(response).await?),
        };
        let now = response.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok()).unwrap_or_default();
        if bar.length().is_none() {
            bar.set_length(offset + response.content_length().unwrap_or_default());
        }
        bar.set_position(base + offset);
        let mut options = fs::OpenOptions::new();
        options.create(true).write(true).truncate(offset == 0);
        let file = options.open(&part.content).await;
        let mut file = file.with_context(|| format!("failed to write {}", part.content))?;
        // After the content of another file is gone, and before there is any of this one.
        fs::write(&part.tag, now).await.with_context(|| format!("failed to write {}", part.tag))?;
        file.seek(SeekFrom::Start(offset)).await.context("failed to write on")?;
        let mut content = response.bytes_stream();
        while let Some(piece) = content.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    // What has come is what the next try goes on from.
                    file.flush().await.with_context(|| format!("failed to write {}", part.content))?;
                    let broken = anyhow!(error).context("the connection broke while the file was received");
                    return Err(Broken::Connection(broken));
                }
            };
            file.write_all(&piece).await.with_context(|| format!("failed to write {}", part.content))?;
            bar.inc(piece.len() as u64);
        }
        Ok(file.flush().await.with_context(|| format!("failed to write {}", part.content))?)
    }
}

/// A file on its way to a computer.
struct Sent {
    from: Utf8PathBuf,
    to: String,
    total: u64,
    /// Whether it counts as changed when it was changed here, or now.
    keep_time: bool,
}

/// Why something has not arrived.
enum Broken {
    /// It may in a moment.
    Connection(anyhow::Error),
    Refused(anyhow::Error),
}

impl From<anyhow::Error> for Broken {
    fn from(error: anyhow::Error) -> Self {
        Self::Refused(error)
    }
}

fn unreachable(error: reqwest::Error) -> Broken {
    Broken::Connection(anyhow!(error).context("failed to reach the server: is it running?"))
}

/// A gateway that lost the computer for a moment may find it again; the rest is our mistake.
async fn succeeded(response: Response) -> Result<Response, Broken> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let error = refusal(status.as_u16(), &response.text().await.unwrap_or_default());
    Err(if status.is_server_error() { Broken::Connection(error) } else { Broken::Refused(error) })
}

/// Tries again what a lost connection has broken off.
async fn with_patience(attempt: impl AsyncFn() -> Result<(), Broken>) -> anyhow::Result<()> {
    let mut tries = 0;
    loop {
        match attempt().await {
            Ok(()) => return Ok(()),
            Err(Broken::Refused(error)) => return Err(error),
            Err(Broken::Connection(error)) if tries == TRIES => return Err(error),
            Err(Broken::Connection(_)) => tries += 1,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What has arrived of a file, beside its place, and the tag of the file that it is of.
struct Part {
    content: Utf8PathBuf,
    tag: Utf8PathBuf,
}

impl Part {
    fn of(to: &Utf8Path, fingerprint: &str) -> Self {
        let content = to.with_file_name(format!(".{fingerprint}.roost-part"));
        Self { tag: Utf8PathBuf::from(format!("{content}-tag")), content }
    }

    async fn put(self, to: &Utf8Path) -> anyhow::Result<()> {
        fs::rename(&self.content, to).await.with_context(|| format!("failed to write {to}"))?;
        // It belongs to the content, which has another name now.
        drop(fs::remove_file(&self.tag).await);
        Ok(())
    }
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
}
