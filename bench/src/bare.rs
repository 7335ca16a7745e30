//! Bare QEMU: the floors. The same guest as Roost's computers have, on the same template, started without
//! Roost's server and machine process, with QEMU's own network and QEMU's own ways to save and restore.
//!
//! ```text
//!   boot      kernel and initrd, memory as Roost gives it to a computer that boots
//!   template  the same on shared memory, then `stop` and `migrate` with x-ignore-shared: devices only
//!   fork      the template's memory mapped privately, a new overlay on its disk
//!   save      `stop` and `migrate` with mapped-ram and multifd: devices and memory
//!   restore   from that file, into memory that is no file's: a private mapping takes QEMU longer to save
//! ```

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use roost_machine_proto::MachineSpec;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::agent::Agent;
use crate::qmp::Qmp;

const PROGRAM: &str = "qemu-system-x86_64";
const CHANNEL: &str = "channel.sock";
const DISK: &str = "disk.qcow2";
const BLANK: &str = "blank";
const STATE: &str = "state";
const STDERR: &str = "stderr";
/// As Roost's own; see `crates/machine/src/qemu.rs`.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 quiet root=/dev/vda rw rootfstype=ext4 net.ifnames=0 tsc=reliable panic=-1";
/// A guest under emulation on busy cores; nothing measured here is expected to come near.
const LIMIT: Duration = Duration::from_secs(180);
/// What Roost runs in a warm template, so that everybody's first commands are in its memory; and when it takes
/// the desktop to be at rest: see `crates/control/src/warm.rs`.
const FIRST_COMMANDS: [&[&str]; 5] = [
    &["/bin/bash", "-lc", "true"],
    &["python3", "-c", "import json"],
    &["ls", "/"],
    &["xdotool", "getmouselocation"],
    &["true"],
];
const QUIET_MS: u64 = 60;
const QUIET_S: u32 = 4;
const SETTLE_LIMIT_S: u32 = 120;
/// For the guest to see that the conversation is over, and to come to rest: no event tells when it has.
const REST: Duration = Duration::from_secs(1);

/// What all bare guests are made of.
#[derive(Debug)]
pub struct Parts {
    pub spec: MachineSpec,
    /// The disk that every overlay lies on.
    pub base: PathBuf,
    pub disk_gib: u32,
    /// Removed in the end, with everything that guests have left.
    pub directory: tempfile::TempDir,
}

/// A frozen desktop that others are forked from.
#[derive(Debug)]
pub struct Template {
    directory: PathBuf,
}

/// A guest that runs. Dropping it kills its QEMU.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    qmp: Qmp,
    pub agent: Agent,
    directory: PathBuf,
}

/// A guest that was saved and is gone.
#[derive(Debug)]
pub struct Saved {
    directory: PathBuf,
    state: PathBuf,
}

#[derive(Debug, Clone, Copy)]
enum Memory<'a> {
    /// Private, of nothing but holes.
    Blank,
    /// In this file, for others to map later.
    Shared(&'a Path),
    /// A private mapping of this file.
    Fork(&'a Path),
    /// Of no file: what QEMU saves and loads fastest.
    Anonymous,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    Boot,
    Incoming,
}

impl Parts {
    /// Boots a new guest: until `true` was answered on a desktop that can be used.
    pub async fn boot(&self) -> Result<(Guest, Duration)> {
        let begun = Instant::now();
        let directory = self.new_directory()?;
        overlay(&self.base, Some(self.disk_gib), &directory).await?;
        let guest = self.boot_on(directory, Memory::Blank).await?;
        Ok((guest, begun.elapsed()))
    }

    /// Boots a desktop, gives it the same start in life as Roost gives its warm templates, and freezes it.
    pub async fn template(&self) -> Result<Template> {
        let directory = self.new_directory()?;
        overlay(&self.base, Some(self.disk_gib), &directory).await?;
        let ram = directory.join("ram");
        let Guest { child, mut qmp, agent, .. } =
            self.boot_on(directory.clone(), Memory::Shared(&ram)).await?;
        for words in FIRST_COMMANDS {
            agent.run(words).await.context("a first command of the floor's template")?;
        }
        settle(&agent).await?;
        drop(agent);
        tokio::time::sleep(REST).await;
        qmp.execute("stop", json!({})).await?;
        set_capabilities(&mut qmp, &["x-ignore-shared"]).await?;
        migrate(&mut qmp, &directory.join(STATE)).await?;
        quit(child, qmp).await?;
        Ok(Template { directory })
    }

    /// A new guest from the template, until `true` was answered.
    pub async fn fork(&self, template: &Template) -> Result<(Guest, Duration)> {
        let begun = Instant::now();
        let directory = self.new_directory()?;
        overlay(&template.directory.join(DISK), None, &directory).await?;
        let memory = template.directory.join("ram");
        let state = template.directory.join(STATE);
        let guest = self
            .incoming(directory, Memory::Fork(&memory), &state, &["x-ignore-shared"])
            .await
            .context("bare fork")?;
        Ok((guest, begun.elapsed()))
    }

    /// The saved guest again, until `true` was answered.
    pub async fn restore(&self, saved: Saved) -> Result<(Guest, Duration)> {
        let begun = Instant::now();
        let guest = self
            .incoming(saved.directory, Memory::Anonymous, &saved.state, &["mapped-ram", "multifd"])
            .await
            .context("bare restore")?;
        let elapsed = begun.elapsed();
        std::fs::remove_file(&saved.state)?;
        Ok((guest, elapsed))
    }

    fn new_directory(&self) -> Result<PathBuf> {
        let directory = tempfile::Builder::new().prefix("guest-").tempdir_in(self.directory.path())?;
        // It goes with the directory around it, or earlier with its guest.
        Ok(directory.keep())
    }

    async fn boot_on(&self, directory: PathBuf, memory: Memory<'_>) -> Result<Guest> {
        let (child, mut qmp) = self.spawn(&directory, memory, Begin::Boot).await?;
        let booted = async {
            qmp.event("VSERPORT_CHANGE", |data| data["open"] == true).await?;
            let agent = Agent::connect(&directory.join(CHANNEL)).await?;
            if !agent.health().await? {
                agent.wait_desktop().await?;
            }
            agent.run(&["true"]).await?;
            anyhow::Ok(agent)
        };
        let agent = tokio::time::timeout(LIMIT, booted).await.context("the guest does not come up")??;
        Ok(Guest { child, qmp, agent, directory })
    }

    async fn incoming(
        &self,
        directory: PathBuf,
        memory: Memory<'_>,
        state: &Path,
        capabilities: &[&str],
    ) -> Result<Guest> {
        let (child, mut qmp) = self.spawn(&directory, memory, Begin::Incoming).await?;
        set_capabilities(&mut qmp, capabilities).await?;
        qmp.execute("migrate-incoming", json!({ "uri": format!("file:{}", state.display()) })).await?;
        migrated(&mut qmp).await.with_context(|| complaints(&directory))?;
        qmp.execute("cont", json!({})).await?;
        let agent = Agent::connect(&directory.join(CHANNEL)).await?;
        tokio::time::timeout(LIMIT, agent.run(&["true"])).await.context("the guest does not answer")??;
        Ok(Guest { child, qmp, agent, directory })
    }

    async fn spawn(&self, directory: &Path, memory: Memory<'_>, begin: Begin) -> Result<(Child, Qmp)> {
        let (ours, theirs) = StdUnixStream::pair()?;
        ours.set_nonblocking(true)?;
        if matches!(memory, Memory::Blank) {
            let bytes = u64::from(self.spec.memory.0) * 1024 * 1024;
            std::fs::File::create(directory.join(BLANK))?.set_len(bytes)?;
        }
        let mut command = Command::new(PROGRAM);
        command
            .args(self.arguments(memory, begin, theirs.as_raw_fd()))
            .current_dir(directory)
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(directory.join(STDERR))?)
            // Ctrl-C is ours to answer.
            .process_group(0)
            .kill_on_drop(true);
        // SAFETY: both are system calls and allocate nothing; the descriptor is open until after the spawn.
        unsafe {
            let socket = std::os::fd::BorrowedFd::borrow_raw(theirs.as_raw_fd());
            command.pre_exec(move || {
                rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty())?;
                Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?)
            });
        }
        let child = command.spawn().context("failed to start QEMU")?;
        drop(theirs);
        let qmp = Qmp::negotiate(UnixStream::from_std(ours)?).await.with_context(|| complaints(directory))?;
        Ok((child, qmp))
    }

    fn arguments(&self, memory: Memory<'_>, begin: Begin, qmp: i32) -> Vec<String> {
        let size = format!("id=ram,size={}M,reserve=off", self.spec.memory.0);
        let file =
            |name: &Path, how: &str| format!("memory-backend-file,{size},mem-path={},{how}", name.display());
        let private = "share=off,readonly=on,rom=off";
        let memory = match memory {
            Memory::Blank => file(Path::new(BLANK), private),
            Memory::Shared(ram) => file(ram, "share=on"),
            Memory::Fork(ram) => file(ram, private),
            Memory::Anonymous => format!("memory-backend-ram,{size}"),
        };
        let spec = &self.spec;
        // What the guest can see is Roost's own description of it. No value has a space.
        let hardware = roost_machine::hardware(spec.accelerator, spec.vcpus, spec.memory);
        let drive = hardware.split_once("drive=").map_or("", |(_, rest)| rest);
        let drive = drive.split([' ', ',']).next().unwrap_or_default();
        let disk = json!({
            "driver": "qcow2", "node-name": drive, "discard": "unmap", "detect-zeroes": "unmap",
            "cache": { "direct": false, "no-flush": false },
            "file": {
                "driver": "file", "filename": DISK, "aio": "threads", "discard": "unmap",
                "cache": { "direct": false, "no-flush": false },
            },
        });
        let mut arguments: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
        add(&["-name", "guest=bare,debug-threads=on", "-nodefaults", "-no-user-config", "-display", "none"]);
        add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        add(&["-object", &memory]);
        add(&["-kernel", self.spec.boot.kernel.as_str(), "-initrd", self.spec.boot.initrd.as_str()]);
        add(&["-append", KERNEL_ARGUMENTS, "-blockdev", &disk.to_string()]);
        add(&["-chardev", &format!("socket,id=qmp,fd={qmp}"), "-mon", "chardev=qmp,mode=control"]);
        add(&["-chardev", "file,id=console,path=console", "-serial", "chardev:console"]);
        add(&["-chardev", &format!("socket,id=channel,path={CHANNEL},server=on,wait=off")]);
        add(&["-netdev", "user,id=net,ipv6=off"]);
        add(&hardware.split(' ').collect::<Vec<_>>());
        add(&["-device", "vmgenid,guid=auto"]);
        if begin == Begin::Incoming {
            add(&["-incoming", "defer", "-S"]);
        }
        arguments
    }
}

impl Guest {
    /// From `stop` until QEMU has written everything; then QEMU ends. What QEMU writes is in the page cache and
    /// not flushed.
    pub async fn save(self) -> Result<(Saved, Duration)> {
        let Guest { child, mut qmp, agent, directory } = self;
        drop(agent);
        tokio::time::sleep(REST).await;
        let state = tempfile::Builder::new().prefix("saved-").tempfile_in(&directory)?.into_temp_path();
        let state = state.keep()?;
        set_capabilities(&mut qmp, &["mapped-ram", "multifd"]).await?;
        let begun = Instant::now();
        qmp.execute("stop", json!({})).await?;
        migrate(&mut qmp, &state).await.context("bare save")?;
        let elapsed = begun.elapsed();
        quit(child, qmp).await?;
        Ok((Saved { directory, state }, elapsed))
    }

    /// Ends the guest and removes what it left.
    pub async fn discard(mut self) -> Result<()> {
        self.child.kill().await?;
        std::fs::remove_dir_all(&self.directory)
            .with_context(|| format!("failed to remove {}", self.directory.display()))
    }
}

/// Waits until the desktop has done what it does once after its start.
async fn settle(agent: &Agent) -> Result<()> {
    let (mut quiet, mut before) = (0, 0);
    for _ in 0..SETTLE_LIMIT_S {
        let now = agent.busy_ms().await?;
        quiet = if now.saturating_sub(before) <= QUIET_MS { quiet + 1 } else { 0 };
        before = now;
        if quiet == QUIET_S {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

async fn migrate(qmp: &mut Qmp, state: &Path) -> Result<()> {
    qmp.execute("migrate", json!({ "uri": format!("file:{}", state.display()) })).await?;
    migrated(qmp).await
}

async fn quit(mut child: Child, mut qmp: Qmp) -> Result<()> {
    qmp.execute("quit", json!({})).await?;
    child.wait().await?;
    Ok(())
}

/// What QEMU wrote before it failed.
fn complaints(directory: &Path) -> String {
    let words = std::fs::read_to_string(directory.join(STDERR)).unwrap_or_default();
    format!("QEMU says: {}", words.trim())
}

async fn set_capabilities(qmp: &mut Qmp, names: &[&str]) -> Result<()> {
    // A fork still has those that it came with.
    let capabilities: Vec<Value> = ["x-ignore-shared", "mapped-ram", "multifd", "events"]
        .iter()
        .map(|name| json!({ "capability": name, "state": *name == "events" || names.contains(name) }))
        .collect();
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": capabilities })).await?;
    if names.contains(&"multifd") {
        let parameters = json!({ "multifd-channels": 2, "max-bandwidth": 0 });
        qmp.execute("migrate-set-parameters", parameters).await?;
    }
    Ok(())
}

async fn migrated(qmp: &mut Qmp) -> Result<()> {
    let ended = |data: &Value| data["status"] == "completed" || data["status"] == "failed";
    let end = qmp.event("MIGRATION", ended);
    let data = tokio::time::timeout(LIMIT, end).await.context("the migration does not end")??;
    ensure!(data["status"] == "completed", "the migration failed");
    Ok(())
}

async fn overlay(base: &Path, gib: Option<u32>, directory: &Path) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(base).arg(directory.join(DISK));
    if let Some(gib) = gib {
        command.arg(format!("{gib}G"));
    }
    let output = command.kill_on_drop(true).output().await.context("failed to run qemu-img")?;
    ensure!(output.status.success(), "qemu-img: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
