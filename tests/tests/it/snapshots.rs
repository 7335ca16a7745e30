//! Snapshots of running and of stopped computers: what they keep, for how long, and what is left when they go.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use roost_tests::{Client, Server};
use serde_json::{Value, json};

const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";

async fn delete_snapshot(client: &Client, snapshot: &Value) -> Result<Value> {
    let snapshot = snapshot["id"].as_str().context("no id")?;
    let answer = client.delete(&format!("/snapshots/{snapshot}")).await?;
    ensure!(answer.status == 200, "delete: {} {}", answer.status, answer.json()?);
    Ok(answer.json()?["data"].clone())
}

fn disks_are_clean(server: &Server) -> Result<()> {
    let layers = std::fs::read_dir(server.data().join("layers"))?;
    let machines = std::fs::read_dir(server.data().join("machines"))?;
    let disks = layers
        .map(|entry| entry.map(|entry| entry.path()))
        .chain(machines.map(|entry| entry.map(|entry| entry.path().join("disk.qcow2"))));
    for disk in disks {
        let disk = disk?;
        if disk.extension().is_none_or(|extension| extension != "qcow2") || !disk.exists() {
            continue;
        }
        let check = std::process::Command::new("qemu-img").args(["check", "-U", "-q"]).arg(&disk).output()?;
        ensure!(check.status.success(), "{}: {}", disk.display(), String::from_utf8_lossy(&check.stderr));
    }
    Ok(())
}

async fn files_in(directory: &std::path::Path, count: usize) -> Result<()> {
    // The collector works in the background.
    for _ in 0..400 {
        if std::fs::read_dir(directory)?.count() == count {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let left: Vec<_> =
        std::fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.file_name())).collect();
    anyhow::bail!("{count} should be left in {}: {left:?}", directory.display())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_snapshot_restored_three_times_gives_three_computers() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("origin").await?;
    client.output(&id, "echo one > ~/state; echo memory > /dev/shm/state").await?;
    let boot = client.output(&id, BOOT).await?;
    let snapshot = client.snapshot(&id).await?;
    ensure!(snapshot["computer_id"] == id.as_str(), "{snapshot}");
    ensure!(snapshot["memory_size_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{snapshot}");
    ensure!(client.output(&id, BOOT).await? == boot, "the source booted");
    client.output(&id, "echo two > ~/state; echo changed > /dev/shm/state; sync").await?;

    // The source goes first; that changes nothing.
    ensure!(client.delete(&format!("/computers/{id}")).await?.status == 200);
    let mut restored = Vec::new();
    for _ in 0..3 {
        let computer = client.restore(&snapshot).await?;
        ensure!(client.output(&computer, "cat ~/state /dev/shm/state").await? == "one\nmemory");
        ensure!(client.output(&computer, BOOT).await? == boot, "it booted");
        client.output(&computer, &format!("echo {computer} > ~/state; sync")).await?;
        restored.push(computer);
    }
    for computer in &restored {
        ensure!(client.output(computer, "cat ~/state").await? == *computer, "they are not independent");
    }
    let names: Vec<Value> = {
        let mut names = Vec::new();
        for computer in &restored {
            names.push(client.get(&format!("/computers/{computer}")).await?.json()?["slug"].clone());
        }
        names
    };
    ensure!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2], "{names:?}");
    disks_are_clean(&server)?;

    // The snapshot goes; its layer stays for those who lie on it, until the last of them goes.
    let deleted = delete_snapshot(&client, &snapshot).await?;
    ensure!(deleted["status"] == "deleted", "{deleted}");
    files_in(&server.data().join("snapshots"), 0).await?;
    client.verb(&restored[0], "restart").await?;
    ensure!(client.output(&restored[0], "cat ~/state").await? == restored[0]);
    files_in(&server.data().join("layers"), 1).await?;
    for computer in &restored {
        ensure!(client.delete(&format!("/computers/{computer}")).await?.status == 200);
    }
    files_in(&server.data().join("layers"), 0).await?;
    files_in(&server.data().join("machines"), 0).await?;
    server.no_orphans()
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_stopped_computer_is_kept_with_its_memory_too() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("asleep").await?;
    client.output(&id, "echo file > ~/state; echo memory > /dev/shm/state").await?;
    let boot = client.output(&id, BOOT).await?;
    client.verb(&id, "stop").await?;
    let snapshot = client.snapshot(&id).await?;
    // The stopped computer is as it was, twice over.
    client.snapshot(&id).await?;
    client.verb(&id, "start").await?;
    ensure!(client.output(&id, "cat ~/state /dev/shm/state").await? == "file\nmemory");
    ensure!(client.output(&id, BOOT).await? == boot, "it booted");
    client.output(&id, "echo later > ~/state; sync").await?;
    let sid = snapshot["id"].as_str().context("no id")?;
    let answer = client.post(&format!("/computers/{id}/restore/{sid}"), json!({})).await?;
    ensure!(answer.status == 201 && answer.json()?["snapshot"]["id"] == sid, "{}", answer.json()?);
    let restored = answer.json()?["data"]["id"].as_str().context("no id")?.to_owned();
    client.running(&restored).await?;
    ensure!(client.output(&restored, "cat ~/state /dev/shm/state").await? == "file\nmemory");
    ensure!(client.output(&id, "cat ~/state").await? == "later");
    disks_are_clean(&server)
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn snapshots_are_listed_named_forked_browsed_and_guarded() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("documented").await?;
    client.output(&id, "mkdir -p ~/notes/deep && echo 'read me' > ~/notes/deep/readme.txt").await?;
    let created = client.post(&format!("/computers/{id}/snapshots"), json!({ "comment": "first" })).await?;
    ensure!(created.status == 201, "{}", created.json()?);
    let first = created.json()?["data"].clone();
    let sid = first["id"].as_str().context("no id")?.to_owned();
    client.snapshot_ended(&id, &sid).await?;
    let second = client.snapshot(&id).await?;
    ensure!(second["parent_snapshot_id"] == sid.as_str(), "{second}");

    let list = client.get(&format!("/computers/{id}/snapshots")).await?.json()?;
    let listed: Vec<&Value> =
        list["data"].as_array().context("no list")?.iter().map(|one| &one["id"]).collect();
    ensure!(listed == [&second["id"], &first["id"]], "{list}");
    let history = client.get(&format!("/snapshots?resource_id={id}")).await?.json()?;
    ensure!(history["data"].as_array().is_some_and(|rows| rows.len() == 2), "{history}");
    let groups = client.get("/snapshots/groups").await?.json()?;
    ensure!(
        groups["data"][0]["snapshot_count"] == 2 && groups["data"][0]["resource_id"] == id.as_str(),
        "{groups}"
    );

    // Names guard.
    let named = client.post("/named-snapshots", json!({ "name": "golden", "snapshot_id": sid })).await?;
    ensure!(named.status == 201, "{}", named.json()?);
    let taken =
        client.post("/named-snapshots", json!({ "name": "golden", "snapshot_id": second["id"] })).await?;
    ensure!(taken.status == 409 && taken.json()?["code"] == "NAME_TAKEN", "{}", taken.json()?);
    let refused = client.delete(&format!("/computers/{id}/snapshots/{sid}")).await?;
    let body = refused.json()?;
    ensure!(refused.status == 409 && body["code"] == "SNAPSHOT_IN_USE", "{body}");
    ensure!(body["error"]["details"]["dependents"][0]["kind"] == "named_snapshot", "{body}");
    let deployed = client.post("/named-snapshots/golden/deploy", json!({ "name": "from gold" })).await?;
    ensure!(deployed.status == 201, "{}", deployed.json()?);
    let deployed = deployed.json()?["data"]["id"].as_str().context("no id")?.to_owned();
    client.running(&deployed).await?;
    ensure!(client.output(&deployed, "cat ~/notes/deep/readme.txt").await? == "read me");
    let forked = client.post(&format!("/snapshots/{sid}/fork"), json!({ "name": "a fork" })).await?;
    ensure!(forked.status == 201, "{}", forked.json()?);
    let fork = forked.json()?["data"]["id"].as_str().context("no id")?.to_owned();
    client.running(&fork).await?;

    // Files, without a computer.
    let tree = client.get(&format!("/snapshots/{sid}/tree?path=/home/user/notes")).await?.json()?;
    ensure!(
        tree["data"]["entries"][0]["name"] == "deep" && tree["data"]["entries"][0]["type"] == "directory",
        "{tree}"
    );
    let file = client.get(&format!("/snapshots/{sid}/files?path=/home/user/notes/deep/readme.txt")).await?;
    ensure!(file.status == 200 && file.bytes == b"read me\n", "{}", String::from_utf8_lossy(&file.bytes));
    let folder = client.get(&format!("/snapshots/{sid}/files?path=/home/user/notes")).await?;
    ensure!(folder.status == 200 && folder.bytes.windows(8).any(|part| part == b"read me\n"), "no tar");
    for (path, status) in [("/home/user/none", 404), ("relative", 400), ("/etc/../../../../etc/fstab", 200)] {
        let answer = client.get(&format!("/snapshots/{sid}/files?path={path}")).await?;
        ensure!(answer.status == status, "{path}: {}", answer.status);
    }

    // Unknown ones, and those of another computer.
    let unknown = "00000000-0000-4000-8000-000000000000";
    for (method, path) in [
        (Method::GET, format!("/computers/{id}/snapshots/{unknown}")),
        (Method::GET, format!("/computers/{fork}/snapshots/{sid}")),
        (Method::POST, format!("/computers/{fork}/restore/{sid}")),
        (Method::DELETE, format!("/snapshots/{unknown}")),
        (Method::GET, format!("/snapshots/{unknown}/tree?path=/")),
    ] {
        let answer = client.request(method, &format!("/api/v1{path}"), None).await?;
        ensure!(answer.status == 404, "{path}: {} {}", answer.status, answer.json()?);
    }

    // Released, it can go; and one that has had its time goes by itself.
    let released = client.delete("/named-snapshots/golden").await?;
    ensure!(released.status == 200, "{}", released.json()?);
    let brief = client
        .post(&format!("/computers/{id}/snapshots"), json!({ "retention_seconds": 2 }))
        .await?
        .json()?;
    let brief = brief["data"]["id"].as_str().context("no id")?.to_owned();
    let both =
        client.post("/snapshots/delete", json!({ "ids": [sid, second["id"], unknown] })).await?.json()?;
    ensure!(both["data"]["deleted"].as_array().is_some_and(|ids| ids.len() == 2), "{both}");
    ensure!(both["data"]["not_found"].as_array().is_some_and(|ids| ids.len() == 1), "{both}");
    for _ in 0..200 {
        if client.get(&format!("/computers/{id}/snapshots/{brief}")).await?.status == 404 {
            return disks_are_clean(&server);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("a snapshot outlives its retention")
}

/// More snapshots than a chain of layers may have: deleted ones are merged away, and the disk says the same.
#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn long_chains_are_merged() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("long").await?;
    let mut snapshots = Vec::new();
    for round in 0..14 {
        client.output(&id, &format!("echo {round} > ~/round-{round}; head -c 200000 /dev/urandom > ~/random-{round}; sha256sum ~/random-* > ~/sums")).await?;
        snapshots.push(client.snapshot(&id).await?);
    }
    files_in(&server.data().join("layers"), 14).await?;
    // The newest stays; what is below it is nobody's but its own.
    for snapshot in &snapshots[..13] {
        delete_snapshot(&client, snapshot).await?;
    }
    for _ in 0..600 {
        if std::fs::read_dir(server.data().join("layers"))?
            .filter(|entry| {
                entry
                    .as_ref()
                    .is_ok_and(|entry| entry.path().extension().is_some_and(|extension| extension == "qcow2"))
            })
            .count()
            <= 8
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let layers = std::fs::read_dir(server.data().join("layers"))?.count();
    ensure!(layers <= 8, "{layers} layers are left");
    disks_are_clean(&server)?;
    let check = "sha256sum -c --quiet ~/sums && cat ~/round-* | sort -n | tr '\\n' ' '";
    let all = "0 1 2 3 4 5 6 7 8 9 10 11 12 13";
    ensure!(client.output(&id, check).await?.trim() == all);
    // From the merged files: a boot of the computer, and a computer from the snapshot.
    client.verb(&id, "restart").await?;
    ensure!(client.output(&id, check).await?.trim() == all);
    let restored = client.restore(&snapshots[13]).await?;
    ensure!(client.output(&restored, check).await?.trim() == all);
    client.verb(&restored, "restart").await?;
    ensure!(client.output(&restored, check).await?.trim() == all);
    Ok(())
}
