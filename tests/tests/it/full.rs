//! A full disk: whatever does not fit says so, and nothing is lost.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use roost_tests::Server;
use serde_json::json;

/// A filesystem of a fixed size, unmounted when this goes.
struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    fn new(mebibytes: u32) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("roost-full-").tempdir_in("/var/tmp")?;
        let options = format!("size={mebibytes}m,mode=0755");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "roost-test"])
            .arg(directory.path())
            .status()?;
        ensure!(mount.success(), "this test mounts a small filesystem, for which it must be root");
        Ok(Self { directory })
    }

    /// Leaves so many mebibytes free.
    fn leave(&self, mebibytes: u64) -> Result<()> {
        self.release()?;
        let output =
            Command::new("df").args(["--output=avail", "-B1M"]).arg(self.directory.path()).output()?;
        let text = String::from_utf8(output.stdout)?;
        let free: u64 = text.lines().last().context("df says nothing")?.trim().parse()?;
        let fill = free.checked_sub(mebibytes).context("it is too small")?;
        let status =
            Command::new("fallocate").args(["-l", &format!("{fill}M")]).arg(self.filler()).status()?;
        ensure!(status.success(), "fallocate");
        Ok(())
    }

    fn release(&self) -> Result<()> {
        match std::fs::remove_file(self.filler()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn filler(&self) -> std::path::PathBuf {
        self.directory.path().join("filler")
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").args(["-l"]).arg(self.directory.path()).status());
    }
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_full_disk_says_so_and_loses_nothing() -> Result<()> {
    let disk = Mounted::new(2048)?;
    let server = Server::start_below(disk.path())?;
    let client = server.client();
    let id = client.create("cramped").await?;
    client.output(&id, "echo kept > ~/kept; sync; echo memory > /dev/shm/state").await?;
    let boot = client.output(&id, "cat /proc/sys/kernel/random/boot_id").await?;

    disk.leave(40)?;
    for (verb, path) in [("stop", "stop"), ("snapshot", "snapshots"), ("clone", "clone")] {
        let answer = client.post(&format!("/computers/{id}/{path}"), json!({})).await?;
        match answer.status.as_u16() {
            // Begun, and failed with its reason.
            201 => {
                let body = answer.json()?;
                let sid = body["data"]["id"].as_str().context("no id")?;
                ensure!(verb == "snapshot", "a {verb} was begun: {body}");
                let path = format!("/computers/{id}/snapshots/{sid}");
                client.get(&format!("{path}/events")).await?;
                let snapshot = client.get(&path).await?.json()?["data"].clone();
                ensure!(snapshot["status"] == "failed", "{snapshot}");
                ensure!(snapshot["error"].as_str().is_some_and(|error| error.contains("room")), "{snapshot}");
            }
            409 | 503 => {
                let body = answer.json()?;
                let message = body["message"].as_str().context("no message")?;
                ensure!(message.contains("room") || message.contains("disk"), "{verb}: {body}");
            }
            other => anyhow::bail!("{verb}: {other} {}", answer.json()?),
        }
        // It runs on, with all it had.
        let computer = client.get(&format!("/computers/{id}")).await?.json()?;
        ensure!(computer["status"] == "running", "after {verb}: {computer}");
        ensure!(client.output(&id, "cat ~/kept /dev/shm/state").await? == "kept\nmemory", "after {verb}");
    }
    let refused =
        client.post("/computers", json!({ "name": "more", "template_type": "miosa-desktop" })).await?;
    let body = refused.json()?;
    ensure!(refused.status == 503 && body["code"] == "NO_READY_MACHINE", "{body}");
    ensure!(body["message"].as_str().is_some_and(|message| message.contains("disk")), "{body}");

    // With room again everything works, and the memory was there all the time.
    disk.release()?;
    client.snapshot(&id).await?;
    client.verb(&id, "stop").await?;
    client.verb(&id, "start").await?;
    ensure!(client.output(&id, "cat ~/kept /dev/shm/state").await? == "kept\nmemory");
    ensure!(client.output(&id, "cat /proc/sys/kernel/random/boot_id").await? == boot, "it booted");
    Ok(())
}
