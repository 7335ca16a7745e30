//! What is killed when, and what is left afterwards.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use roost_tests::{Server, processes_naming};
use serde_json::json;

fn kill(pid: u32) -> Result<()> {
    let status = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
    ensure!(status.success(), "failed to kill {pid}");
    Ok(())
}

fn process(machine: &Path, part: &str) -> Result<u32> {
    let found = processes_naming(machine)?;
    let process = found.iter().find(|(_, command)| command.contains(part));
    process.map(|(pid, _)| *pid).with_context(|| format!("no {part} among {found:?}"))
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn the_server_is_killed_during_create_and_while_running() -> Result<()> {
    let mut server = Server::start()?;
    let client = server.client();
    let body = json!({ "name": "survivor", "template_type": "miosa-desktop" });
    let created = client.post("/computers", body).await?;
    let id = created.json()?["id"].as_str().context("no id")?.to_owned();

    // During create: the new server takes the boot over.
    server.kill_and_start_again()?;
    let client = server.client();
    client.running(&id).await?;
    let boot = client.output(&id, "cat /proc/sys/kernel/random/boot_id").await?;

    // While running: found again, not rebooted, and still usable.
    client.output(&id, "(sleep 1000 >/dev/null 2>&1 &)").await?;
    server.kill_and_start_again()?;
    let client = server.client();
    client.running(&id).await?;
    ensure!(client.output(&id, "cat /proc/sys/kernel/random/boot_id").await? == boot, "it was rebooted");
    client.output(&id, "pgrep -x sleep").await?;

    // A delete while the server is down in the middle of it is finished at the next start.
    let machine = server.data().join("machines").join(&id);
    let deleting = {
        let (client, id) = (client.clone(), id.clone());
        tokio::spawn(async move { client.delete(&format!("/computers/{id}")).await })
    };
    // Whether the server got to it or not: afterwards the computer is whole or gone.
    tokio::task::yield_now().await;
    server.kill_and_start_again()?;
    drop(deleting.await?);
    let client = server.client();
    let deleted = client.delete(&format!("/computers/{id}")).await?;
    ensure!(deleted.status == 200 || deleted.status == 404, "{}", deleted.json()?);
    ensure!(client.get(&format!("/computers/{id}")).await?.status == 404);
    ensure!(!machine.exists() && processes_naming(&machine)?.is_empty());
    Ok(())
}

/// A create has no moment in which a delete finds something it cannot remove. Several at once, so that some
/// moments last long enough to be met.
#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn computers_are_deleted_at_every_moment_of_their_creation() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let tasks = (0..4_u64).map(|task| {
        let client = client.clone();
        tokio::spawn(async move {
            for round in 0..40 {
                let body = json!({ "name": "brief", "template_type": "miosa-desktop" });
                let created = client.post("/computers", body).await?;
                ensure!(created.status == 201, "{}", created.json()?);
                let id = created.json()?["id"].as_str().context("no id")?.to_owned();
                // The moment to be hit, not a wait for something.
                tokio::time::sleep(std::time::Duration::from_millis(round * 8 + task * 2)).await;
                let computer = client.get(&format!("/computers/{id}")).await?.json()?;
                let status = computer["status"].as_str();
                ensure!(matches!(status, Some("provisioning" | "running")), "{computer}");
                let deleted = client.delete(&format!("/computers/{id}")).await?;
                ensure!(deleted.status == 200, "round {round}: {}", deleted.json()?);
            }
            Ok(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await??;
    }
    let machines = server.data().join("machines");
    let left: Vec<_> = std::fs::read_dir(&machines)?.collect();
    ensure!(left.is_empty(), "{left:?}");
    let processes = processes_naming(&machines)?;
    ensure!(processes.is_empty(), "{processes:?}");
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn qemu_is_killed() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("fragile").await?;
    client.output(&id, "echo safe > ~/safe && sync").await?;
    let machine = server.data().join("machines").join(&id);

    kill(process(&machine, "qemu-system")?)?;
    // A call that waits for the end of the computer, instead of asking again and again.
    let hung = client
        .post(&format!("/computers/{id}/exec"), json!({ "command": "sleep 60", "timeout": 60 }))
        .await?;
    ensure!(hung.status == 502 || hung.status == 409, "{} {}", hung.status, hung.json()?);
    let computer = until_error(&client, &id).await?;
    let reason = computer["error"].as_str().context("no reason")?;
    ensure!(reason.contains("signal") || reason.contains("killed"), "{reason}");
    let lines = client.get(&format!("/computers/{id}/logs?lines=20")).await?.json()?;
    // It has continued from memory: its kernel has said nothing in this life.
    ensure!(lines["lines"].is_array(), "{lines}");
    ensure!(processes_naming(&machine)?.is_empty(), "left running: {:?}", processes_naming(&machine)?);

    let started = client.post(&format!("/computers/{id}/start"), json!({})).await?;
    ensure!(started.status == 200 && started.json()?["status"] == "running", "{}", started.json()?);
    ensure!(client.output(&id, "cat ~/safe").await? == "safe");

    // The machine process takes its QEMU with it, and the computer says so.
    kill(process(&machine, "roost machine").or_else(|_| process(&machine, " machine --dir"))?)?;
    let computer = until_error(&client, &id).await?;
    ensure!(computer["error"].as_str().is_some_and(|reason| reason.contains("start")), "{computer}");
    ensure!(processes_naming(&machine)?.is_empty(), "left running: {:?}", processes_naming(&machine)?);
    let started = client.post(&format!("/computers/{id}/start"), json!({})).await?;
    ensure!(started.status == 200, "{}", started.json()?);
    ensure!(client.output(&id, "cat ~/safe").await? == "safe");
    ensure!(client.delete(&format!("/computers/{id}")).await?.status == 200);
    Ok(())
}

/// The status follows the death of a process within moments; there is no public event stream yet to wait on.
async fn until_error(client: &roost_tests::Client, id: &str) -> Result<serde_json::Value> {
    for _ in 0..200 {
        let computer = client.get(&format!("/computers/{id}")).await?.json()?;
        if computer["status"] == "error" {
            return Ok(computer);
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    anyhow::bail!(
        "the computer did not turn to error: {}",
        client.get(&format!("/computers/{id}")).await?.json()?
    )
}

/// Every process vanishes at once, as when the power goes.
#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn the_host_restarts() -> Result<()> {
    let mut server = Server::start()?;
    let client = server.client();
    let boot = "cat /proc/sys/kernel/random/boot_id";
    let running = client.create("running").await?;
    client.output(&running, "echo safe > ~/safe && sync").await?;
    let stopped = client.create("stopped").await?;
    let boot_of_stopped = client.output(&stopped, boot).await?;
    client.output(&stopped, "echo memory > /dev/shm/state").await?;
    client.verb(&stopped, "stop").await?;
    let body = json!({ "name": "always", "template_type": "miosa-desktop", "always_on": true });
    let always = client.post("/computers?wait=60", body).await?.json()?;
    let always = always["id"].as_str().context("no id")?.to_owned();
    client.running(&always).await?;
    client.output(&always, "echo safe > ~/safe && sync").await?;

    server.restart_host()?;
    let client = server.client();
    let status = async |id: &str| -> Result<serde_json::Value> {
        Ok(client.get(&format!("/computers/{id}")).await?.json()?["status"].clone())
    };
    ensure!(status(&running).await? == "stopped" && status(&stopped).await? == "stopped");
    // One with its disk, one with its memory, one by itself.
    client.verb(&stopped, "start").await?;
    ensure!(client.output(&stopped, boot).await? == boot_of_stopped, "it booted");
    ensure!(client.output(&stopped, "cat /dev/shm/state").await? == "memory");
    client.running(&always).await?;
    ensure!(client.output(&always, "cat ~/safe").await? == "safe");
    client.verb(&running, "start").await?;
    ensure!(client.output(&running, "cat ~/safe").await? == "safe");
    Ok(())
}
