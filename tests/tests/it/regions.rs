//! A real computer moves between two regions: its files, what its layers held and its memory are there afterwards, also
//! where the server was killed in the middle, and the region it left has nothing of it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use roost_tests::{Client, Server};
use serde_json::{Value, json};

const FAR: &str = "us-east-ny";
const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";
/// Two files, each of which lies on a layer of its own once a snapshot was taken in between.
const BELOW: &str = "head -c 40000000 /dev/urandom > ~/below && sha256sum < ~/below";
const ABOVE: &str = "head -c 40000000 /dev/urandom > ~/above && sha256sum < ~/above";

async fn relocate(client: &Client, id: &str, region: &str) -> Result<Value> {
    let answer = client.post(&format!("/computers/{id}/move"), json!({ "region": region })).await?;
    ensure!(answer.status == 200, "move: {} {}", answer.status, answer.json()?);
    answer.json()
}

async fn sums(client: &Client, id: &str) -> Result<[String; 2]> {
    Ok([client.output(id, "sha256sum < ~/below").await?, client.output(id, "sha256sum < ~/above").await?])
}

/// What a disk of a computer lies on, and so on down.
fn chain(disk: &Path) -> Result<String> {
    let info = std::process::Command::new("qemu-img")
        .args(["info", "-U", "--backing-chain"])
        .arg(disk)
        .output()
        .context("qemu-img")?;
    ensure!(info.status.success(), "{}", String::from_utf8_lossy(&info.stderr));
    Ok(String::from_utf8(info.stdout)?)
}

fn is_empty(directory: &Path) -> Result<bool> {
    Ok(std::fs::read_dir(directory)?.next().is_none())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_computer_moves_with_everything_it_has() -> Result<()> {
    let server = Server::start_with(&[("ROOST_REGIONS", "local,us-east-ny")])?;
    let client = server.client();
    let id = client.create("traveller").await?;
    let below = client.output(&id, BELOW).await?;
    let snapshot = client.snapshot(&id).await?;
    let above = client.output(&id, ABOVE).await?;
    let boot = client.output(&id, BOOT).await?;
    client.verb(&id, "stop").await?;
    ensure!(chain(&server.machine(&id).join("disk.qcow2"))?.contains("/layers/"), "it lies on no layer");

    let moved = relocate(&client, &id, FAR).await?;
    ensure!(moved["region"] == FAR && moved["status"] == "stopped", "{moved}");
    ensure!(moved["data"]["region"] == FAR, "{moved}");
    ensure!(!server.machine(&id).exists(), "the source is left");
    let there = server.machine_in(FAR, &id);
    let lies_on = chain(&there.join("disk.qcow2"))?;
    ensure!(!lies_on.contains("/layers/"), "it lies on a layer that is elsewhere: {lies_on}");
    let started = client.verb(&id, "start").await?;
    ensure!(started["status"] == "running" && started["memory_lost"].is_null(), "{started}");
    ensure!(client.output(&id, BOOT).await? == boot, "it booted");
    ensure!(sums(&client, &id).await? == [below.clone(), above.clone()], "files are not what they were");

    // The snapshot is where it was, and what it lies on goes with it.
    let restored = client.restore(&snapshot).await?;
    ensure!(server.machine(&restored).exists(), "restored elsewhere");
    ensure!(client.output(&restored, "sha256sum < ~/below").await? == below);
    client.delete(&format!("/computers/{restored}")).await?;
    let path = format!("/snapshots/{}", snapshot["id"].as_str().context("no id")?);
    let deleted = client.delete(&path).await?;
    ensure!(deleted.status == 200, "{}", deleted.json()?);
    ensure!(is_empty(&server.data().join("layers"))?, "layers are left");

    // Layers of the other region, too.
    client.snapshot(&id).await?;
    client.verb(&id, "stop").await?;
    relocate(&client, &id, "local").await?;
    ensure!(!there.exists(), "the source is left");
    client.verb(&id, "start").await?;
    ensure!(client.output(&id, BOOT).await? == boot, "it booted");
    ensure!(sums(&client, &id).await? == [below, above], "files are not what they were");
    client.delete(&format!("/computers/{id}")).await?;
    server.no_orphans()
}

/// The server is killed while a computer is on its way, at different moments.
#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_move_is_safe_to_interrupt() -> Result<()> {
    let mut server = Server::start_with(&[("ROOST_REGIONS", FAR)])?;
    let id = server.client().create("traveller").await?;
    let below = server.client().output(&id, BELOW).await?;
    server.client().snapshot(&id).await?;
    let above = server.client().output(&id, ABOVE).await?;
    let mut here = true;
    for pause in [0, 20, 60, 150, 400, 1000] {
        server.client().verb(&id, "stop").await?;
        let target = if here { FAR } else { "local" };
        let arriving = if here { server.machine_in(FAR, &id) } else { server.machine(&id) };
        let client = server.client();
        let moving = tokio::spawn({
            let id = id.clone();
            async move { relocate(&client, &id, target).await }
        });
        while !arriving.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Where in the copying the kill hits is left to chance.
        tokio::time::sleep(Duration::from_millis(pause)).await;
        server.kill_and_start_again()?;
        drop(moving.await);
        // A start waits for what is being done.
        let started = server.client().verb(&id, "start").await?;
        ensure!(started["region"] == target, "{pause} ms: {started}");
        here = !here;
        ensure!(server.machine(&id).exists() == here, "{pause} ms: files in both regions");
        ensure!(server.machine_in(FAR, &id).exists() != here, "{pause} ms: files in both regions");
        ensure!(
            sums(&server.client(), &id).await? == [below.clone(), above.clone()],
            "{pause} ms: lost files"
        );
    }
    server.client().delete(&format!("/computers/{id}")).await?;
    server.no_orphans()
}
