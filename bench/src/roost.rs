//! What a client of the public API does, and how long it takes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use roost_machine_proto::{CAPTURED_FILE, Captured, LOCK_FILE, MachineSpec, SPEC_FILE};
use roost_tests::{Client, Server};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::host::Tree;
use crate::statistics::Samples;

/// What a desktop does before its memory is saved, so that it is not the template's any more.
pub const WORK: &str = "xfce4-terminal & \
    timeout 60 bash -c 'until xdotool search --onlyvisible --class xfce4-terminal; do sleep 0.2; done' && \
    find /usr -type f | sort | sha256sum && python3 -c 'print(sum(x * x for x in range(300000)))' && \
    head -c 20000000 /dev/urandom >/tmp/bench-data";

/// Prints a byte every two milliseconds or as soon after as the guest gets to it.
const TICK: &str =
    "exec perl -e '$| = 1; while (1) { syswrite STDOUT, q(.); select undef, undef, undef, 0.002 }'";

/// A server under measurement and its client.
#[derive(Debug)]
pub struct Roost {
    pub server: Server,
    pub client: Client,
}

/// A computer that was made, and how long it took until its first command was answered.
#[derive(Debug)]
pub struct Made {
    pub id: String,
    pub elapsed: Duration,
}

impl Roost {
    pub fn start() -> Result<Self> {
        let server = Server::start()?;
        let client = server.client();
        Ok(Self { server, client })
    }

    /// The machine that the server makes of this computer.
    pub fn spec(&self, id: &str) -> Result<MachineSpec> {
        let path = self.machine(id).join(SPEC_FILE);
        let text = std::fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("failed to read {}", path.display()))
    }

    pub fn machine(&self, id: &str) -> PathBuf {
        self.server.data().join("machines").join(id)
    }

    /// The processes of each of these computers: its machine process, QEMU, and what gives it its network.
    pub fn trees(&self, ids: &[&str]) -> Result<Vec<Tree>> {
        let pid = |id: &&str| {
            let path = self.machine(id).join(LOCK_FILE);
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("failed to read {}", path.display()))?;
            text.trim().parse().with_context(|| format!("{} names no process", path.display()))
        };
        Tree::of(&ids.iter().map(pid).collect::<Result<Vec<u32>>>()?)
    }

    /// The memory of each of them, in bytes.
    pub fn pss(&self, trees: &[Tree]) -> Result<Samples> {
        // MiB of a computer are far from what f64 cannot count.
        trees.iter().map(|tree| Ok(f64::from(u32::try_from(tree.pss()? / 1024)?) * 1024.0)).collect()
    }

    /// How long captured computers stood still by their machines' own account.
    pub fn reported_pauses(&self) -> Result<Vec<Duration>> {
        let mut found = Vec::new();
        let mut directories = vec![self.server.data().to_owned()];
        while let Some(directory) = directories.pop() {
            // A directory may be tidied away while we look.
            let Ok(entries) = std::fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    directories.push(entry.path());
                } else if entry.file_name() == CAPTURED_FILE
                    && let Ok(text) = std::fs::read(entry.path())
                {
                    found.extend(serde_json::from_slice::<Captured>(&text)?.pause);
                }
            }
        }
        Ok(found)
    }

    pub async fn create(&self, name: &str) -> Result<Made> {
        let body = json!({ "name": name, "template_type": "miosa-desktop", "size": "small" });
        self.made("/computers?wait=120", body).await
    }

    pub async fn clone_of(&self, id: &str) -> Result<Made> {
        self.made(&format!("/computers/{id}/clone?wait=120"), json!({})).await
    }

    pub async fn restore(&self, id: &str, snapshot: &str) -> Result<Made> {
        self.made(&format!("/computers/{id}/restore/{snapshot}?wait=120"), json!({})).await
    }

    /// Asks for a new computer, until its first command was answered.
    async fn made(&self, path: &str, body: Value) -> Result<Made> {
        let begun = Instant::now();
        let answer = self.client.post(path, body).await?;
        ensure!(answer.status == 201, "POST {path}: {} {}", answer.status, answer.json()?);
        let answer = answer.json()?;
        let computer = if answer["data"]["id"].is_string() { &answer["data"] } else { &answer };
        let id = computer["id"].as_str().context("the answer has no id")?.to_owned();
        if computer["status"] != "running" {
            self.client.running(&id).await?;
        }
        self.run(&id, "true").await?;
        Ok(Made { id, elapsed: begun.elapsed() })
    }

    pub async fn delete(&self, id: &str) -> Result<()> {
        let answer = self.client.delete(&format!("/computers/{id}")).await?;
        ensure!(answer.status == 200, "delete: {} {}", answer.status, answer.json()?);
        Ok(())
    }

    /// Deletes what a measurement that failed has left: the next one begins on an empty host.
    pub async fn delete_everything(&self) -> Result<()> {
        let list = self.client.get("/computers?page_size=100").await?.json()?;
        for computer in list["computers"].as_array().into_iter().flatten() {
            self.delete(computer["id"].as_str().context("a computer without id")?).await?;
        }
        Ok(())
    }

    pub async fn stop(&self, id: &str) -> Result<Duration> {
        let begun = Instant::now();
        let answer = self.client.post(&format!("/computers/{id}/stop"), json!({})).await?;
        let elapsed = begun.elapsed();
        let computer = answer.json()?;
        ensure!(
            answer.status == 200 && computer["status"] == "stopped",
            "stop: {} {computer}",
            answer.status
        );
        Ok(elapsed)
    }

    /// Until the first command was answered.
    pub async fn start_again(&self, id: &str) -> Result<Duration> {
        let begun = Instant::now();
        let answer = self.client.post(&format!("/computers/{id}/start"), json!({})).await?;
        ensure!(answer.status == 200, "start: {} {}", answer.status, answer.json()?);
        self.run(id, "true").await?;
        Ok(begun.elapsed())
    }

    /// Makes a snapshot, until it is ready. Returns its id.
    pub async fn snapshot(&self, id: &str) -> Result<(String, Duration)> {
        let begun = Instant::now();
        let path = format!("/computers/{id}/snapshots");
        let answer = self.client.post(&path, json!({ "comment": "bench" })).await?;
        ensure!(answer.status == 201, "snapshot: {} {}", answer.status, answer.json()?);
        let made = answer.json()?["data"].clone();
        let snapshot = made["id"].as_str().context("the snapshot has no id")?.to_owned();
        let path = format!("{path}/{snapshot}");
        let mut status = made["status"].clone();
        if status != "ready" {
            // Its events end when it is ready.
            let events = self.client.get(&format!("{path}/events")).await?;
            let pushed = events.status == 200 || events.status == 204;
            while status == "creating" || status == "uploading" {
                if !pushed {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                status = self.client.get(&path).await?.json()?["data"]["status"].clone();
            }
        }
        ensure!(status == "ready", "the snapshot is {status}");
        Ok((snapshot, begun.elapsed()))
    }

    pub async fn delete_snapshot(&self, id: &str, snapshot: &str) -> Result<()> {
        let answer = self.client.delete(&format!("/computers/{id}/snapshots/{snapshot}")).await?;
        ensure!(answer.status == 200, "delete of a snapshot: {} {}", answer.status, answer.json()?);
        Ok(())
    }

    /// Runs a command that must succeed; its output.
    pub async fn run(&self, id: &str, command: &str) -> Result<String> {
        self.client.output(id, command).await
    }

    /// The same for a command that may take its time.
    pub async fn run_long(&self, id: &str, command: &str) -> Result<String> {
        let body = json!({ "command": command, "timeout": 300 });
        let answer = self.client.post(&format!("/computers/{id}/exec"), body).await?;
        let result = answer.json()?;
        ensure!(answer.status == 200 && result["exit_code"] == 0, "{command}: {result}");
        Ok(result["output"].as_str().unwrap_or_default().to_owned())
    }

    pub async fn screenshot(&self, id: &str) -> Result<(Vec<u8>, Duration)> {
        let begun = Instant::now();
        let answer = self.client.get(&format!("/computers/{id}/desktop/screenshot")).await?;
        ensure!(answer.status == 200, "screenshot: {} {}", answer.status, answer.json()?);
        Ok((answer.bytes, begun.elapsed()))
    }

    /// Of everything on the screen; and how long it took.
    pub async fn tree(&self, id: &str) -> Result<(String, Duration)> {
        let begun = Instant::now();
        let answer =
            self.client.get(&format!("/computers/{id}/desktop/accessibility-tree?format=compact")).await?;
        let elapsed = begun.elapsed();
        let tree = answer.json()?;
        ensure!(answer.status == 200, "accessibility tree: {} {tree}", answer.status);
        Ok((tree["text"].as_str().context("no text")?.to_owned(), elapsed))
    }

    pub async fn click(&self, id: &str, x: i32, y: i32) -> Result<Duration> {
        let path = format!("/computers/{id}/desktop/click");
        let begun = Instant::now();
        let answer = self.client.post(&path, json!({ "x": x, "y": y })).await?;
        ensure!(answer.status == 200, "click: {} {}", answer.status, answer.json()?);
        Ok(begun.elapsed())
    }
}

/// A program in a computer that prints all the time: the host sees by its silence that the computer stands
/// still. The computer's own clocks would not tell, for they stand still with it.
#[derive(Debug)]
pub struct Ticker {
    stop: oneshot::Sender<()>,
    arrivals: JoinHandle<Result<Vec<Instant>>>,
}

impl Ticker {
    pub async fn start(client: &Client, id: &str) -> Result<Self> {
        let query: String = TICK.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let base = client.url.replace("http", "ws");
        let mut request =
            format!("{base}/api/v1/computers/{id}/exec/stream?command={query}").into_client_request()?;
        let headers = request.headers_mut();
        headers.insert("authorization", format!("Bearer {}", client.key).parse()?);
        headers.insert("sec-websocket-protocol", "miosa-exec-v1".parse()?);
        let (mut socket, _) = tokio_tungstenite::connect_async(request).await.context("exec/stream")?;
        // Ticks from now on.
        socket.next().await.context("the ticker does not start")??;
        let (stop, mut stopped) = oneshot::channel();
        let arrivals = tokio::spawn(async move {
            let mut arrivals = Vec::new();
            loop {
                tokio::select! {
                    message = socket.next() => match message.context("the ticker has ended")?? {
                        Message::Binary(frame) if frame.first() == Some(&1) => arrivals.push(Instant::now()),
                        Message::Binary(frame) if frame.first() == Some(&2) => {
                            bail!("the ticker says {:?}", String::from_utf8_lossy(&frame));
                        }
                        _ => {}
                    },
                    _ = &mut stopped => break,
                }
            }
            socket.close(None).await?;
            Ok(arrivals)
        });
        Ok(Self { stop, arrivals })
    }

    pub async fn stop(self) -> Result<Vec<Instant>> {
        if self.stop.send(()).is_err() {
            // It has ended already; the join tells why.
        }
        self.arrivals.await.context("the ticker's task")?
    }
}

/// The longest silence that touches the time from `from` to `to`.
pub fn longest_gap(arrivals: &[Instant], from: Instant, to: Instant) -> Option<Duration> {
    let gaps = arrivals.windows(2).filter(|pair| pair[1] >= from && pair[0] <= to);
    gaps.map(|pair| pair[1] - pair[0]).max()
}
