//! What a real computer does by itself: its script runs once, whatever is done to it meanwhile, and its time ends.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use roost_tests::{Client, Server};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(300);
/// It waits for a file, so that there is time to stop and clone the computer.
const SCRIPT: &str = "#!/bin/bash
echo once >>~/count
id -un; pwd; echo $GREETING; umask
touch ~/waits
while [ ! -e ~/go ]; do sleep 0.2; done
cat ~/count
";

/// The first event of a type after another one that there is or comes.
async fn first(client: &Client, id: &str, types: &str, after: &str) -> Result<Value> {
    let url = format!("{}/api/v1/computers/{id}/events?types={types}", client.url);
    let request = client.http.get(url).bearer_auth(&client.key).header("last-event-id", after);
    let mut response = request.send().await?.error_for_status()?;
    let told = async {
        let mut text = String::new();
        loop {
            let is_whole = |line: &&str| line.starts_with("data: ");
            if let Some((whole, _)) = text.rsplit_once("\n\n")
                && let Some(line) = whole.lines().find(is_whole)
            {
                return Ok(serde_json::from_str(line.trim_start_matches("data: "))?);
            }
            let bytes = response.chunk().await?.context("the stream has ended")?;
            text.push_str(std::str::from_utf8(&bytes)?);
        }
    };
    tokio::time::timeout(PATIENCE, told).await.with_context(|| format!("{types} does not come"))?
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_script_goes_on_over_a_lost_server_a_stop_and_a_clone() -> Result<()> {
    let mut server = Server::start()?;
    let client = server.client();
    let body = json!({ "name": "box", "template_type": "miosa-desktop", "setup_file": SCRIPT,
        "env": { "GREETING": "hi there" } });
    let made = client.post("/computers", body).await?;
    ensure!(made.status == 201, "{}", made.json()?);
    let id = made.json()?["id"].as_str().context("no id")?.to_owned();
    client.running(&id).await?;
    client.output(&id, "until [ -e ~/waits ]; do sleep 0.2; done").await?;

    server.kill_and_start_again()?;
    let client = server.client();
    let clone = client.clone_computer(&id).await?;
    client.verb(&id, "stop").await?;
    let started = client.verb(&id, "start").await?;
    ensure!(started["setup_status"] == "running" && started["memory_lost"].is_null(), "{started}");
    for computer in [&id, &clone] {
        client.output(computer, "touch ~/go").await?;
        let ended = first(&client, computer, "setup.*", "evt_0").await?;
        ensure!(ended["type"] == "setup.ended" && ended["exit_code"] == 0, "{ended}");
        let setup = client.get(&format!("/computers/{computer}/setup")).await?.json()?;
        let said = "user\n/home/user\nhi there\n0022\nonce\n";
        ensure!(setup["status"] == "completed" && setup["output"] == said, "{setup}");
    }
    client.verb(&id, "restart").await?;
    ensure!(client.output(&id, "cat ~/count").await? == "once", "it was run again");

    // Its time counts from that restart: one second is over.
    let changed = client.patch(&format!("/computers/{id}"), json!({ "timeout_sec": 1 })).await?;
    ensure!(changed.status == 200, "{}", changed.json()?);
    let told = first(&client, &id, "timed_out", "evt_0").await?;
    ensure!(told["timeout_sec"] == 1, "{told}");
    first(&client, &id, "stopped", told["id"].as_str().context("no id")?).await?;
    ensure!(client.verb(&id, "start").await?["memory_lost"].is_null(), "it was stopped with its memory");
    Ok(())
}
