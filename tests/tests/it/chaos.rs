//! `kill -9` at random moments of every workflow: the server, a machine process or its QEMU. Afterwards every
//! computer is what its status says, every acknowledged write and every ready snapshot is there, and nothing else.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use roost_tests::{Client, Server, processes_naming};
use serde_json::{Value, json};

/// Three of each workflow. `ROOST_CHAOS_KILLS` sets another number; before a release, some hundreds.
const KILLS: u32 = 27;
/// Computers that are there between two kills.
const POOL: usize = 3;
/// How many of the computers that lost their memory are booted to look at; of the others the disk is read.
const BOOTS: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Create,
    Stop,
    Start,
    Restart,
    Clone,
    Snapshot,
    Restore,
    Resize,
    Delete,
}

const OPERATIONS: [Operation; 9] = [
    Operation::Create,
    Operation::Stop,
    Operation::Start,
    Operation::Restart,
    Operation::Clone,
    Operation::Snapshot,
    Operation::Restore,
    Operation::Resize,
    Operation::Delete,
];

#[derive(Debug, Clone, Copy)]
enum Victim {
    Server,
    Machine,
    Qemu,
}

/// Those die with it.
fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let lists = tasks.into_iter().flatten().flatten().map(|task| task.path().join("children"));
    let text: String = lists.filter_map(|list| std::fs::read_to_string(list).ok()).collect();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// One without a command line has given up its memory already, and is ending.
fn is_gone(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |command| command.is_empty())
}

/// A small generator, so that a run can be repeated from its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let sides = u64::try_from(from.len()).unwrap_or(1);
        &from[usize::try_from(self.roll(sides)).unwrap_or(0)]
    }
}

struct World {
    server: Server,
    client: Client,
    dice: Dice,
    /// What the file `mark` of each computer must say.
    marks: BTreeMap<String, String>,
    /// What it must say in each ready snapshot, and whose that is.
    snapshots: BTreeMap<String, (String, String)>,
    boots: u32,
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn killed_anywhere_nothing_is_lost_and_nothing_is_left() -> Result<()> {
    let seed = match std::env::var("ROOST_CHAOS_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?,
    };
    println!("ROOST_CHAOS_SEED={seed}");
    let server = Server::start()?;
    let client = server.client();
    let mut world = World {
        server,
        client,
        dice: Dice(seed | 1),
        marks: BTreeMap::new(),
        snapshots: BTreeMap::new(),
        boots: 0,
    };
    let begun = Instant::now();
    let kills = match std::env::var("ROOST_CHAOS_KILLS") {
        Ok(kills) => kills.parse()?,
        Err(_) => KILLS,
    };
    for number in 0..kills {
        let operation = OPERATIONS[usize::try_from(number)? % OPERATIONS.len()];
        let round = world.round(operation).await;
        let (victim, moment) =
            round.with_context(|| format!("kill {number}, during {operation:?}, seed {seed}"))?;
        println!(
            "{:6.1} s  {number:3} {operation:?}: {victim:?} killed after {moment} ms",
            begun.elapsed().as_secs_f64()
        );
    }
    world.epilogue().await.with_context(|| format!("seed {seed}"))
}

impl World {
    async fn round(&mut self, operation: Operation) -> Result<(Victim, u64)> {
        while self.marks.len() < POOL {
            let id = self.client.create("chaos").await?;
            self.mark(&id).await?;
        }
        let subject = self.dice.pick(&self.marks.keys().cloned().collect::<Vec<_>>()).clone();
        if operation == Operation::Restore && self.snapshots.is_empty() {
            let snapshot = self.client.snapshot(&subject).await?;
            self.keep(&subject, &snapshot)?;
        }
        if matches!(operation, Operation::Start | Operation::Resize) {
            self.client.verb(&subject, "stop").await?;
        }

        // The operation, and somewhere in it the kill.
        let request = self.request(operation, &subject)?;
        let running = tokio::spawn(request);
        let victim = *self.dice.pick(&[Victim::Server, Victim::Server, Victim::Machine, Victim::Qemu]);
        let moment = self.dice.roll(match operation {
            Operation::Delete | Operation::Resize => 60,
            Operation::Stop => 250,
            _ => 450,
        });
        tokio::time::sleep(Duration::from_millis(moment)).await;
        match victim {
            Victim::Server => self.server.kill_and_start_again()?,
            Victim::Machine => self.kill_one(operation, &subject, "roost machine")?,
            Victim::Qemu => self.kill_one(operation, &subject, "qemu-system")?,
        }
        self.client = self.server.client();
        let answer = running.await?;
        self.settle().await?;

        // What was acknowledged counts.
        if let Ok((201, body)) = &answer
            && operation == Operation::Snapshot
            && let Some(sid) = body["data"]["id"].as_str()
        {
            let path = format!("/computers/{subject}/snapshots/{sid}");
            let snapshot = self.client.get(&path).await?;
            ensure!(snapshot.status == 200, "an acknowledged snapshot is gone: {}", snapshot.json()?);
            let snapshot = snapshot.json()?["data"].clone();
            match snapshot["status"].as_str() {
                Some("ready") => self.keep(&subject, &snapshot)?,
                Some("failed") => ensure!(snapshot["error"].is_string(), "it does not say why: {snapshot}"),
                _ => anyhow::bail!("neither ready nor failed: {snapshot}"),
            }
        }
        if operation == Operation::Delete && matches!(answer, Ok((200, _))) {
            ensure!(self.client.get(&format!("/computers/{subject}")).await?.status == 404, "it is back");
        }
        self.look().await?;
        Ok((victim, moment))
    }

    /// The request, and its status and body if there was an answer at all.
    fn request(
        &self,
        operation: Operation,
        subject: &str,
    ) -> Result<impl Future<Output = Result<(u16, Value)>> + Send + use<>> {
        let client = self.client.clone();
        let (path, body) = match operation {
            Operation::Create => (
                "/computers?wait=60".to_owned(),
                json!({ "name": "chaos", "template_type": "miosa-desktop" }),
            ),
            Operation::Stop => (format!("/computers/{subject}/stop"), json!({})),
            Operation::Start => (format!("/computers/{subject}/start"), json!({})),
            Operation::Restart => (format!("/computers/{subject}/restart"), json!({})),
            Operation::Clone => (format!("/computers/{subject}/clone"), json!({})),
            Operation::Snapshot => (format!("/computers/{subject}/snapshots"), json!({})),
            Operation::Restore => {
                let (sid, _) = self.snapshots.first_key_value().context("no snapshot")?;
                (format!("/snapshots/{sid}/restore"), json!({}))
            }
            Operation::Resize => (format!("/computers/{subject}/resize"), json!({ "size": "medium" })),
            Operation::Delete => (format!("/computers/{subject}"), Value::Null),
        };
        Ok(async move {
            let answer = match operation {
                Operation::Delete => client.delete(&path).await?,
                _ => client.post(&path, body).await?,
            };
            Ok((answer.status.as_u16(), answer.json()?))
        })
    }

    /// Kills a process of the computer the operation is about, or of any, if it has one.
    fn kill_one(&mut self, operation: Operation, subject: &str, part: &str) -> Result<()> {
        let machines = self.server.data().join("machines");
        let mut processes = match operation {
            Operation::Create | Operation::Restore => Vec::new(),
            _ => named(&machines.join(subject), part)?,
        };
        if processes.is_empty() {
            // The newest: whatever the operation has just started.
            processes = named(&machines, part)?;
        }
        if let Some(pid) = processes.iter().max() {
            let mut doomed = children(*pid);
            doomed.push(*pid);
            // It may be gone by now, which is as good.
            std::process::Command::new("kill").args(["-9", &pid.to_string()]).output()?;
            // What still dies looks alive, and the computer as if it ran.
            while !doomed.iter().all(|pid| is_gone(*pid)) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// Waits until nothing is on its way any more.
    async fn settle(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let list = self.client.get("/computers").await?.json()?;
            let computers = list["computers"].as_array().context("no list")?;
            let moving: Vec<&Value> = computers
                .iter()
                .filter(|computer| {
                    !matches!(computer["status"].as_str(), Some("running" | "stopped" | "error"))
                })
                .collect();
            let history = self.client.get("/snapshots").await?.json()?;
            let snapshots = history["data"].as_array().context("no snapshots")?;
            let creating = snapshots.iter().any(|snapshot| snapshot["status"] == "creating");
            // The status follows the death of a process within moments.
            let mut untrue = Vec::new();
            for computer in computers {
                let id = computer["id"].as_str().context("no id")?;
                let alive = !named(&self.server.machine(id), "qemu-system")?.is_empty();
                if alive != (computer["status"] == "running") {
                    untrue.push(computer);
                }
            }
            if moving.is_empty() && !creating && untrue.is_empty() {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < Duration::from_secs(240),
                "it does not settle: {moving:?} {snapshots:?}, not as it says: {untrue:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Every computer is what its status says, and has its file.
    async fn look(&mut self) -> Result<()> {
        let list = self.client.get("/computers").await?.json()?;
        let computers = list["computers"].as_array().context("no list")?.clone();
        let present: Vec<&str> = computers.iter().filter_map(|computer| computer["id"].as_str()).collect();
        self.marks.retain(|id, _| present.contains(&id.as_str()));
        for computer in &computers {
            let id = computer["id"].as_str().context("no id")?;
            let machine = self.server.machine(id);
            let running = computer["status"] == "running";
            let Some(mark) = self.marks.get(id).cloned() else {
                // Made by this round: it has a source's mark, or none. It has done its part.
                self.remove(id).await?;
                continue;
            };
            if running {
                ensure!(
                    self.client.output(id, "cat ~/mark").await? == mark,
                    "an acknowledged write is lost: {computer}"
                );
                self.mark(id).await?;
                continue;
            }
            let kept = machine.join("memory/manifest.json").exists();
            if kept || self.boots < BOOTS {
                self.boots += u32::from(!kept);
                self.client.verb(id, "start").await?;
                ensure!(
                    self.client.output(id, "cat ~/mark").await? == mark,
                    "an acknowledged write is lost: {computer}"
                );
            } else {
                // Without the wait for a boot: its disk as a snapshot of it shows it.
                let snapshot = self.client.snapshot(id).await?;
                let sid = snapshot["id"].as_str().context("no id")?;
                let file = self.client.get(&format!("/snapshots/{sid}/files?path=/home/user/mark")).await?;
                let found = String::from_utf8_lossy(&file.bytes).trim().to_owned();
                ensure!(
                    file.status == 200 && found == mark,
                    "{} {found:?} instead of {mark:?}: {computer}",
                    file.status
                );
                self.client.delete(&format!("/snapshots/{sid}")).await?;
                self.remove(id).await?;
            }
        }
        Ok(())
    }

    async fn remove(&mut self, id: &str) -> Result<()> {
        let deleted = self.client.delete(&format!("/computers/{id}")).await?;
        ensure!(deleted.status == 200, "{}", deleted.json()?);
        self.marks.remove(id);
        Ok(())
    }

    /// An acknowledged write: it is on the disk when the answer is here.
    async fn mark(&mut self, id: &str) -> Result<()> {
        let mark = format!("{:016x}", self.dice.roll(u64::MAX));
        self.client.output(id, &format!("echo {mark} > ~/mark && sync ~/mark ~")).await?;
        self.marks.insert(id.to_owned(), mark);
        Ok(())
    }

    fn keep(&mut self, id: &str, snapshot: &Value) -> Result<()> {
        let sid = snapshot["id"].as_str().context("no id")?.to_owned();
        let mark = self.marks.get(id).cloned().context("no mark")?;
        self.snapshots.insert(sid, (id.to_owned(), mark));
        Ok(())
    }

    /// Every snapshot is whole, and when everything is deleted nothing is left.
    async fn epilogue(&mut self) -> Result<()> {
        println!("{} snapshots to look at", self.snapshots.len());
        for (sid, (_, mark)) in &self.snapshots {
            let snapshot = json!({ "id": sid });
            let id = self.client.restore(&snapshot).await.with_context(|| format!("snapshot {sid}"))?;
            let computer = self.client.get(&format!("/computers/{id}")).await?.json()?;
            ensure!(computer["memory_lost"].is_null(), "its memory is not whole: {computer}");
            ensure!(self.client.output(&id, "cat ~/mark").await? == *mark, "snapshot {sid} is another one");
            ensure!(self.client.delete(&format!("/computers/{id}")).await?.status == 200);
        }
        for directory in ["layers", "machines"] {
            check_disks(&self.server.data().join(directory))?;
        }
        for id in self.marks.keys().cloned().collect::<Vec<_>>() {
            self.remove(&id).await?;
        }
        for sid in self.snapshots.keys() {
            let deleted = self.client.delete(&format!("/snapshots/{sid}")).await?;
            ensure!(deleted.status == 200, "{}", deleted.json()?);
        }
        self.server.no_orphans()?;
        let begun = Instant::now();
        loop {
            let mut left = Vec::new();
            for directory in ["machines", "layers", "snapshots"] {
                for entry in std::fs::read_dir(self.server.data().join(directory))? {
                    left.push(entry?.path());
                }
            }
            if left.is_empty() {
                return Ok(());
            }
            ensure!(begun.elapsed() < Duration::from_secs(20), "left: {left:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn named(directory: &Path, part: &str) -> Result<Vec<u32>> {
    let wanted = |command: &str| {
        command.contains(part) || (part == "roost machine" && command.contains(" machine --dir"))
    };
    let found = processes_naming(directory)?;
    Ok(found.into_iter().filter(|(_, command)| wanted(command)).map(|(pid, _)| pid).collect())
}

fn check_disks(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let disk = if path.is_dir() { path.join("disk.qcow2") } else { path };
        if disk.extension().is_some_and(|extension| extension == "qcow2") && disk.exists() {
            let check =
                std::process::Command::new("qemu-img").args(["check", "-U", "-q"]).arg(&disk).output()?;
            ensure!(check.status.success(), "{}: {}", disk.display(), String::from_utf8_lossy(&check.stderr));
        }
    }
    Ok(())
}
