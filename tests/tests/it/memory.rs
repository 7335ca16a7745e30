//! Computers that begin in the middle: created from a template's memory, stopped and continued, cloned while they
//! run. What must be the same is, and what must not be the same is not.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use roost_tests::{Client, Server, until_shown};
use serde_json::json;

/// One line for everything that two computers may not have in common. A host key is made where there is none.
const OWN: &str = "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | base64; cat /etc/machine-id; \
                   [ -e /etc/ssh/ssh_host_ed25519_key ] || \
                   sudo ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key; \
                   cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub";
const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";
/// A program that counts in memory, and is nobody's child. It costs next to nothing, and what it has written is
/// there whole or not at all.
const COUNTER: &str = r#"cat > /dev/shm/counter.py <<'END'
import os, time
count = 0
while True:
    count += 1
    with open("/dev/shm/next", "w") as file:
        file.write(f"{count}\n")
    os.replace("/dev/shm/next", "/dev/shm/count")
    time.sleep(0.05)
END
setsid nohup python3 /dev/shm/counter.py >/dev/null 2>&1 </dev/null &
until [ -s /dev/shm/count ]; do sleep 0.1; done"#;
const COUNT: &str = "cat /dev/shm/count";

async fn differ(client: &Client, ids: &[String]) -> Result<()> {
    let mut seen = HashSet::new();
    for id in ids {
        let own = client.output(id, OWN).await?;
        ensure!(own.lines().count() == 4, "{own}");
        for line in own.lines() {
            ensure!(seen.insert(line.to_owned()), "{line} is there twice");
        }
    }
    Ok(())
}

/// The guest's clock lies between the host's before and after the question, give or take 100 ms.
async fn clock_is_right(client: &Client, id: &str) -> Result<()> {
    let host =
        || Ok::<_, anyhow::Error>(i128::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?);
    let before = host()?;
    let guest: i128 = client.output(id, "date +%s%N").await?.parse()?;
    let after = host()?;
    let tolerance = 100_000_000;
    ensure!(
        guest > before - tolerance && guest < after + tolerance,
        "the clock of {id} is off: {} ms after the question, {} ms before the answer",
        (guest - before) / 1_000_000,
        (after - guest) / 1_000_000
    );
    Ok(())
}

async fn count(client: &Client, id: &str) -> Result<u64> {
    Ok(client.output(id, COUNT).await?.parse()?)
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn computers_from_one_memory_are_not_the_same_computer() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let mut ids = vec![client.create("one").await?, client.create("two").await?];
    for id in &ids {
        let computer = client.get(&format!("/computers/{id}")).await?.json()?;
        ensure!(computer["memory_lost"].is_null(), "it booted: {computer}");
    }
    // One memory: they continue, they do not boot.
    ensure!(client.output(&ids[0], BOOT).await? == client.output(&ids[1], BOOT).await?, "they booted");
    ids.push(client.clone_computer(&ids[0]).await?);
    ids.push(client.clone_computer(&ids[0]).await?);
    // A clone of a clone of a clone.
    ids.push(client.clone_computer(&ids[3]).await?);
    ids.push(client.clone_computer(&ids[4]).await?);
    differ(&client, &ids).await?;
    for id in &ids {
        clock_is_right(&client, id).await?;
        let computer = client.get(&format!("/computers/{id}")).await?.json()?;
        ensure!(
            client.output(id, "hostname").await? == computer["slug"].as_str().unwrap_or_default(),
            "{computer}"
        );
    }
    // A clone from a computer that is off is refused.
    client.verb(&ids[1], "stop").await?;
    let refused = client.post(&format!("/computers/{}/clone", ids[1]), json!({})).await?;
    ensure!(
        refused.status == 409 && refused.json()?["code"] == "COMPUTER_NOT_RUNNING",
        "{}",
        refused.json()?
    );
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn programs_windows_and_unsaved_text_survive_twenty_stops_and_are_in_a_clone() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("lasting").await?;
    client.output(&id, COUNTER).await?;
    // An editor with text that no file has.
    client.output(&id, "rm -f ~/text; (mousepad ~/text >/dev/null 2>&1 &)").await?;
    client.output(&id, &until_shown("--class mousepad windowfocus --sync")).await?;
    let typed =
        client.post(&format!("/computers/{id}/desktop/type"), json!({ "text": "never saved" })).await?;
    ensure!(typed.status == 200, "{}", typed.json()?);
    let boot = client.output(&id, BOOT).await?;
    let editor = client.output(&id, "pgrep -x mousepad").await?;
    let mut counted = count(&client, &id).await?;
    for round in 0..20 {
        client.output(&id, &format!("echo {round} >> ~/rounds")).await?;
        let began = Instant::now();
        let stopped = client.verb(&id, "stop").await?;
        let stop = began.elapsed();
        ensure!(stopped["status"] == "stopped", "{stopped}");
        server.no_orphans()?;
        let began = Instant::now();
        let started = client.verb(&id, "start").await?;
        ensure!(started["status"] == "running" && started["memory_lost"].is_null(), "{started}");
        ensure!(client.output(&id, BOOT).await? == boot, "round {round}: it booted");
        println!("stop {stop:?}, start and first exec {:?}", began.elapsed());
        let now = count(&client, &id).await?;
        ensure!(now > counted, "round {round}: the counter stands at {now} after {counted}");
        counted = now;
        ensure!(client.output(&id, "pgrep -x mousepad").await? == editor, "round {round}: another editor");
        clock_is_right(&client, &id).await?;
    }
    ensure!(client.output(&id, "cat ~/rounds | wc -l").await? == "20");
    let clone = client.clone_computer(&id).await?;
    for computer in [&id, &clone] {
        let before = count(&client, computer).await?;
        ensure!(before >= counted, "the counter went back");
        // The editor saves what it has.
        client.output(computer, "xdotool search --onlyvisible --class mousepad windowfocus --sync").await?;
        client.post(&format!("/computers/{computer}/desktop/key"), json!({ "key": "ctrl+s" })).await?;
        let text =
            client.output(computer, "timeout 20 sh -c 'until [ -s ~/text ]; do sleep 0.1; done'; cat ~/text");
        ensure!(text.await? == "never saved");
        ensure!(count(&client, computer).await? > before, "the counter stands still");
    }
    // Restart is a real reboot, also after all this.
    client.verb(&id, "restart").await?;
    ensure!(client.output(&id, BOOT).await? != boot);
    ensure!(client.output(&id, "cat ~/text").await? == "never saved");
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn twenty_creates_and_ten_clones_at_once() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let spawn = |index: usize| {
        let client = client.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            let id = client.create(&format!("crowd {index}")).await?;
            client.output(&id, "true").await?;
            Ok::<_, anyhow::Error>((id, began.elapsed()))
        })
    };
    let tasks: Vec<_> = (0..20).map(spawn).collect();
    let (mut ids, mut times) = (Vec::new(), Vec::new());
    for task in tasks {
        let (id, time) = task.await??;
        ids.push(id);
        times.push(time);
    }
    times.sort();
    println!("20 creates at once, to the first exec: p50 {:?}, p95 {:?}", times[9], times[18]);
    ensure!(client.get("/computers").await?.json()?["total"] == 20);
    differ(&client, &ids).await?;

    client.output(&ids[0], COUNTER).await?;
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let (client, source) = (client.clone(), ids[0].clone());
            tokio::spawn(async move {
                let began = Instant::now();
                let clone = client.clone_computer(&source).await?;
                let counted = count(&client, &clone).await?;
                Ok::<_, anyhow::Error>((clone, counted, began.elapsed()))
            })
        })
        .collect();
    let mut clones = Vec::new();
    for task in tasks {
        let (clone, counted, time) = task.await??;
        println!("a clone, to its first exec: {time:?}");
        ensure!(counted > 0);
        clones.push(clone);
    }
    differ(&client, &clones).await?;
    ensure!(count(&client, &ids[0]).await? > 0, "the source has suffered");
    // Deleted all at once: nothing is left.
    let tasks: Vec<_> = ids
        .into_iter()
        .chain(clones)
        .map(|id| {
            let client = client.clone();
            tokio::spawn(async move { client.delete(&format!("/computers/{id}")).await })
        })
        .collect();
    for task in tasks {
        let deleted = task.await??;
        ensure!(deleted.status == 200, "{}", deleted.json()?);
    }
    server.no_orphans()?;
    for directory in ["machines", "layers", "snapshots"] {
        nothing_in(&server.data().join(directory)).await?;
    }
    Ok(())
}

/// The collector may still be at work.
async fn nothing_in(directory: &std::path::Path) -> Result<()> {
    let begun = Instant::now();
    loop {
        let left: Vec<_> =
            std::fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.file_name())).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(begun.elapsed() < Duration::from_secs(20), "left in {}: {left:?}", directory.display());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_resized_computer_boots_with_every_file() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("growing").await?;
    let path = format!("/computers/{id}/resize");
    let refused = client.post(&path, json!({ "size": "medium" })).await?;
    ensure!(refused.status == 409 && refused.json()?["code"] == "RESOURCE_STATE", "{}", refused.json()?);
    // Not synced: the stop does that.
    client
        .output(&id, "head -c 3000000 /dev/urandom > ~/big; sha256sum < ~/big > ~/sum; echo last > ~/last")
        .await?;
    client.verb(&id, "stop").await?;
    ensure!(server.machine(&id).join("memory/manifest.json").exists(), "the memory is not saved");
    let resized = client.post(&path, json!({ "size": "medium" })).await?;
    let computer = resized.json()?;
    ensure!(resized.status == 200 && computer["size"] == "medium", "{computer}");
    ensure!(
        computer["vcpus"] == 2 && computer["memory_mb"] == 8192 && computer["data"]["size"] == "medium",
        "{computer}"
    );
    ensure!(!server.machine(&id).join("memory").exists(), "the memory is still there");
    client.verb(&id, "start").await?;
    ensure!(client.output(&id, "nproc").await? == "2");
    let memory: u64 = client.output(&id, "awk '/MemTotal/ { print $2 }' /proc/meminfo").await?.parse()?;
    ensure!(memory > 7_500_000, "{memory} kB");
    client
        .output(&id, "sha256sum -c --quiet ~/sum < ~/big || [ \"$(sha256sum < ~/big)\" = \"$(cat ~/sum)\" ]")
        .await?;
    ensure!(client.output(&id, "cat ~/last").await? == "last");
    for bad in [json!({}), json!({ "size": "huge" }), json!({ "cpu_count": 3, "memory_mb": 17 })] {
        client.verb(&id, "stop").await?;
        let refused = client.post(&path, bad).await?;
        ensure!(refused.status == 422, "{}", refused.json()?);
        client.verb(&id, "start").await?;
    }
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_template_memory_that_is_damaged_costs_a_boot_and_nothing_else() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("stopped").await?;
    client.output(&id, "echo kept > ~/kept").await?;
    client.verb(&id, "stop").await?;
    // Half of the saved pages are gone.
    let pages = server.machine(&id).join("memory/pages");
    let half = std::fs::metadata(&pages)?.len() / 2;
    std::fs::File::options().write(true).open(&pages)?.set_len(half)?;
    let started = client.verb(&id, "start").await?;
    let reason =
        started["memory_lost"].as_str().context("it does not say that its memory is lost")?.to_owned();
    ensure!(started["status"] == "running" && !reason.is_empty(), "{started}");
    ensure!(client.output(&id, "cat ~/kept").await? == "kept");
    // The next stop and start are whole again.
    let boot = client.output(&id, BOOT).await?;
    client.verb(&id, "stop").await?;
    let started = client.verb(&id, "start").await?;
    ensure!(started["memory_lost"].is_null(), "{started}");
    ensure!(client.output(&id, BOOT).await? == boot);
    Ok(())
}
