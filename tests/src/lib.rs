//! The harness of the black-box tests: a server of their own, and a client that knows no more than the
//! public API.
//!
//! The tests boot real computers, so all of them are `#[ignore]`; `cargo xtask test` builds what they need
//! and runs them. `ROOST_BIN` names the program under test.

mod sockets;

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

pub use sockets::{Framed, PATIENCE, Socket, json_frame};

/// A `roost serve` with a data directory of its own, on a free port of the loopback.
#[derive(Debug)]
pub struct Server {
    /// Servers beside each other have the same.
    data: Arc<tempfile::TempDir>,
    settings: Vec<(&'static str, String)>,
    process: Child,
    pub url: String,
    pub key: String,
}

/// The program under test.
pub fn roost() -> PathBuf {
    std::env::var_os("ROOST_BIN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/roost"), PathBuf::from)
}

/// The templates of this machine: building one takes a minute, so servers under test share them.
fn templates() -> Result<PathBuf> {
    if let Some(templates) = std::env::var_os("ROOST_TEMPLATES") {
        return Ok(templates.into());
    }
    let data = match std::env::var_os("XDG_DATA_HOME") {
        Some(data) => PathBuf::from(data),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".local/share"),
    };
    Ok(data.join("roost/templates"))
}

impl Server {
    pub fn start() -> Result<Self> {
        // Not /tmp: that is often small, or memory.
        Self::start_below(Path::new("/var/tmp"))
    }

    /// With its data in a directory of its own below `parent`.
    pub fn start_below(parent: &Path) -> Result<Self> {
        Self::start_configured(parent, &[])
    }

    /// With settings from its environment, also when it is started again.
    pub fn start_with(settings: &[(&'static str, &str)]) -> Result<Self> {
        Self::start_configured(Path::new("/var/tmp"), settings)
    }

    fn start_configured(parent: &Path, settings: &[(&'static str, &str)]) -> Result<Self> {
        let data = tempfile::Builder::new().prefix("roost-test-").tempdir_in(parent)?;
        // What this machine's accelerator is worth was found out when the template was made; each probe takes seconds.
        let verdict = templates()?.with_file_name("accelerator.json");
        if verdict.exists() {
            std::fs::copy(verdict, data.path().join("accelerator.json"))?;
        }
        let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self::start_on(Arc::new(data), settings)
    }

    fn start_on(data: Arc<tempfile::TempDir>, settings: Vec<(&'static str, String)>) -> Result<Self> {
        let (process, url) = spawn(data.path(), &settings)?;
        let key = std::fs::read_to_string(data.path().join("admin.key"))?.trim().to_owned();
        Ok(Self { data, settings, process, url, key })
    }

    /// Another server on the same data, which takes a database that servers can share.
    pub fn start_beside(&self) -> Result<Self> {
        Self::start_on(self.data.clone(), self.settings.clone())
    }

    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// `kill -9`, and a new server on the same data.
    pub fn kill_and_start_again(&mut self) -> Result<()> {
        self.kill()?;
        let (process, url) = spawn(self.data.path(), &self.settings)?;
        self.process = process;
        self.url = url;
        Ok(())
    }

    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// What a host that restarts does to us: every process is gone at once, and then there is a new server.
    pub fn restart_host(&mut self) -> Result<()> {
        self.kill()?;
        self.kill_machines();
        let (process, url) = spawn(self.data.path(), &self.settings)?;
        self.process = process;
        self.url = url;
        Ok(())
    }

    /// `kill -9` to every machine process; each takes its QEMU with it.
    fn kill_machines(&self) {
        let pools = self.pools();
        let machines = pools.iter().filter_map(|pool| std::fs::read_dir(pool).ok());
        for machine in machines.flatten().flatten() {
            let Ok(pid) = std::fs::read_to_string(machine.path().join("machine.lock")) else { continue };
            let Ok(lock) = File::open(machine.path().join("machine.lock")) else { continue };
            if lock.try_lock_shared().is_err() {
                let killed = Command::new("kill").args(["-9", pid.trim()]).status();
                if killed.is_ok() {
                    // Free when the process and its QEMU are gone.
                    drop(lock.lock_shared());
                }
            }
        }
    }

    /// Where machines are, in every region.
    pub fn pools(&self) -> Vec<PathBuf> {
        let regions = std::fs::read_dir(self.data.path().join("regions"));
        let others = regions.into_iter().flatten().flatten().map(|region| region.path().join("machines"));
        others.chain([self.data.path().join("machines")]).collect()
    }

    /// The directory of a computer's machine in another region than `local`.
    pub fn machine_in(&self, region: &str, id: &str) -> PathBuf {
        self.data.path().join("regions").join(region).join("machines").join(id)
    }

    /// The directory of a computer's machine.
    pub fn machine(&self, id: &str) -> PathBuf {
        self.data.path().join("machines").join(id)
    }

    /// No process is left that names this server's data, except the server itself. A machine process has said that its
    /// computer is stopped before it ends: it gets a moment for that, and an orphan stays.
    pub fn no_orphans(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let mut left = Vec::new();
            for pool in self.pools() {
                left.extend(processes_naming(&pool)?);
            }
            // One without a command line has given up its memory already, and is ending.
            left.retain(|(_, command)| !command.is_empty());
            if left.is_empty() {
                return Ok(());
            }
            ensure!(begun.elapsed() < Duration::from_secs(10), "left running: {left:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn client(&self) -> Client {
        Client { http: reqwest::Client::new(), url: self.url.clone(), key: self.key.clone() }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The machine process of a computer that runs.
    pub fn machine_pid(&self, id: &str) -> Result<u32> {
        let path = self.machine(id).join("machine.lock");
        let text = std::fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
        Ok(text.trim().parse()?)
    }

    /// The memory the server itself holds, in bytes.
    pub fn resident(&self) -> Result<u64> {
        resident(self.process.id())
    }

    /// What was logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.path().join("server.log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The machines first: without their server nobody else would end them. A server that is still there
        // could start another one; so the server ends, and what it had begun is ended after it.
        self.kill_machines();
        drop(self.kill());
        self.kill_machines();
    }
}

fn spawn(data: &Path, settings: &[(&str, String)]) -> Result<(Child, String)> {
    let socket_path = data.join("notify.sock");
    drop(std::fs::remove_file(&socket_path));
    let socket = UnixDatagram::bind(&socket_path)?;
    let log = File::options().create(true).append(true).open(data.join("server.log"))?;
    let mut process = Command::new(roost())
        .args(["serve", "--listen", "127.0.0.1:0"])
        .env("ROOST_DATA", data)
        .env("ROOST_TEMPLATES", templates()?)
        .env("NOTIFY_SOCKET", &socket_path)
        .envs(settings.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| {
            format!("failed to start {}; build it with `cargo xtask test`", roost().display())
        })?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let begun = Instant::now();
    let mut buffer = [0; 4096];
    loop {
        if let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let url = text.lines().find_map(|line| line.strip_prefix("STATUS=serving at "));
            return Ok((process, url.context("the server names no address")?.to_owned()));
        }
        let log = || std::fs::read_to_string(data.join("server.log")).unwrap_or_default();
        if let Some(status) = process.try_wait()? {
            bail!("the server ended with {status}:\n{}", log());
        }
        ensure!(begun.elapsed() < Duration::from_secs(120), "the server did not come up:\n{}", log());
    }
}

/// Resident memory of a process in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    memory(pid, "VmRSS:")
}

fn memory(pid: u32, what: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(what)).with_context(|| format!("no {what}"))?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

/// The most memory that a process has held since [`forget_peak`], in bytes.
pub fn peak(pid: u32) -> Result<u64> {
    memory(pid, "VmHWM:")
}

/// From now on the peak is that of what follows.
pub fn forget_peak(pid: u32) -> Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("failed to forget the peak of a process")
}

/// The processes whose command line or working directory names `path`.
pub fn processes_naming(path: &Path) -> Result<Vec<(u32, String)>> {
    let wanted = path.to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes come and go while we look.
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let directory = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if command.contains(&wanted) || directory.starts_with(path) {
            found.push((pid, command));
        }
    }
    Ok(found)
}

/// A client of the public API.
#[derive(Debug, Clone)]
pub struct Client {
    pub http: reqwest::Client,
    pub url: String,
    pub key: String,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Result<Value> {
        let text = || String::from_utf8_lossy(&self.bytes).into_owned();
        serde_json::from_slice(&self.bytes).with_context(|| format!("not JSON: {}", text()))
    }
}

impl Client {
    pub async fn request(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Answer> {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { status, headers, bytes: response.bytes().await?.to_vec() })
    }

    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.request(Method::GET, &format!("/api/v1{path}"), None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Result<Answer> {
        self.request(Method::POST, &format!("/api/v1{path}"), Some(body.to_string().into_bytes())).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Result<Answer> {
        self.request(Method::PATCH, &format!("/api/v1{path}"), Some(body.to_string().into_bytes())).await
    }

    pub async fn delete(&self, path: &str) -> Result<Answer> {
        self.request(Method::DELETE, &format!("/api/v1{path}"), None).await
    }

    /// Creates a computer and waits until it runs. Returns its id.
    pub async fn create(&self, name: &str) -> Result<String> {
        let body = json!({ "name": name, "template_type": "miosa-desktop" });
        let created = self.post("/computers?wait=2", body).await?;
        ensure!(created.status == 201, "create: {} {}", created.status, created.json()?);
        let id = created.json()?["id"].as_str().context("no id")?.to_owned();
        self.running(&id).await?;
        Ok(id)
    }

    /// Waits until a computer that is on its way runs; the server does the waiting.
    pub async fn running(&self, id: &str) -> Result<()> {
        let computer = self.get(&format!("/computers/{id}")).await?.json()?;
        match computer["status"].as_str() {
            Some("running") => Ok(()),
            Some("provisioning" | "starting") => {
                let started = self.post(&format!("/computers/{id}/start"), json!({})).await?;
                // It may have come up between the two requests.
                ensure!(started.status == 200 || started.status == 409, "start: {}", started.json()?);
                let computer = self.get(&format!("/computers/{id}")).await?.json()?;
                ensure!(computer["status"] == "running", "not running: {computer}");
                Ok(())
            }
            _ => bail!("not on its way: {computer}"),
        }
    }

    /// A verb on a computer that must succeed: `start`, `stop`, `restart`. Returns the computer.
    pub async fn verb(&self, id: &str, verb: &str) -> Result<Value> {
        let answer = self.post(&format!("/computers/{id}/{verb}"), json!({})).await?;
        ensure!(answer.status == 200, "{verb}: {} {}", answer.status, answer.json()?);
        answer.json()
    }

    /// Clones a running computer and waits until the clone runs. Returns its id.
    pub async fn clone_computer(&self, id: &str) -> Result<String> {
        let answer = self.post(&format!("/computers/{id}/clone"), json!({})).await?;
        ensure!(answer.status == 201, "clone: {} {}", answer.status, answer.json()?);
        let clone = answer.json()?["id"].as_str().context("no id")?.to_owned();
        self.running(&clone).await?;
        Ok(clone)
    }

    /// Takes a snapshot and waits until it is ready. Returns it.
    pub async fn snapshot(&self, id: &str) -> Result<Value> {
        let answer = self.post(&format!("/computers/{id}/snapshots"), json!({})).await?;
        ensure!(answer.status == 201, "snapshot: {} {}", answer.status, answer.json()?);
        let snapshot = answer.json()?["data"]["id"].as_str().context("no id")?.to_owned();
        self.snapshot_ended(id, &snapshot).await
    }

    /// Waits for the end of a snapshot's progress events, and then for a ready snapshot.
    pub async fn snapshot_ended(&self, id: &str, snapshot: &str) -> Result<Value> {
        let path = format!("/computers/{id}/snapshots/{snapshot}");
        let events = self.get(&format!("{path}/events")).await?;
        ensure!(events.status == 200, "events: {}", events.status);
        let answer = self.get(&path).await?.json()?["data"].clone();
        let events = String::from_utf8_lossy(&events.bytes).into_owned();
        ensure!(answer["status"] == "ready", "snapshot: {answer}, events: {events}");
        Ok(answer)
    }

    /// A new computer from a snapshot, when it runs. Returns its id. The snapshot's own route: its computer may be
    /// gone.
    pub async fn restore(&self, snapshot: &Value) -> Result<String> {
        let snapshot = snapshot["id"].as_str().context("no id")?;
        let answer = self.post(&format!("/snapshots/{snapshot}/restore"), json!({})).await?;
        ensure!(answer.status == 201, "restore: {} {}", answer.status, answer.json()?);
        let restored = answer.json()?["id"].as_str().context("no id")?.to_owned();
        self.running(&restored).await?;
        Ok(restored)
    }

    /// Runs a command that may take a while on a busy host under emulation.
    pub async fn exec(&self, id: &str, command: &str) -> Result<Value> {
        let body = json!({ "command": command, "timeout": 150 });
        let answer = self.post(&format!("/computers/{id}/exec"), body).await?;
        ensure!(answer.status == 200, "exec {command:?}: {} {}", answer.status, answer.json()?);
        answer.json()
    }

    /// The output of a command that must succeed.
    pub async fn output(&self, id: &str, command: &str) -> Result<String> {
        let result = self.exec(id, command).await?;
        ensure!(result["exit_code"] == 0, "{command:?}: {result}");
        Ok(result["output"].as_str().unwrap_or_default().trim_end().to_owned())
    }

    /// A screenshot as width, height and RGB bytes.
    pub async fn screenshot(&self, id: &str) -> Result<Picture> {
        let answer = self.get(&format!("/computers/{id}/desktop/screenshot")).await?;
        ensure!(answer.status == 200, "screenshot: {}", answer.json()?);
        ensure!(answer.headers["content-type"] == "image/png");
        Picture::decode(&answer.bytes)
    }
}

/// A shell line that ends when xdotool has found a window; `search` says which one, and what else is to be done to it. X
/// tells xdotool when there is one. It dies of a window that goes while it looks at it, and is then started again.
pub fn until_shown(search: &str) -> String {
    format!("until xdotool search --sync --onlyvisible {search} >/dev/null 2>&1; do :; done")
}

/// A decoded PNG.
#[derive(Debug, Clone)]
pub struct Picture {
    pub width: u32,
    pub height: u32,
    rgb: Vec<u8>,
}

impl Picture {
    pub fn decode(png: &[u8]) -> Result<Self> {
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info()?;
        let size = reader.output_buffer_size().context("too large")?;
        let mut rgb = vec![0; size];
        let info = reader.next_frame(&mut rgb)?;
        ensure!(info.color_type == png::ColorType::Rgb, "not RGB: {:?}", info.color_type);
        Ok(Self { width: info.width, height: info.height, rgb })
    }

    pub fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        let at = usize::try_from((y * self.width + x) * 3).unwrap_or(usize::MAX);
        [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]
    }

    /// How many different colours a rectangle has.
    pub fn colours(&self, x: std::ops::Range<u32>, y: std::ops::Range<u32>) -> usize {
        let pixels = y.flat_map(|y| x.clone().map(move |x| (x, y)));
        pixels.map(|(x, y)| self.pixel(x, y)).collect::<std::collections::HashSet<_>>().len()
    }
}
