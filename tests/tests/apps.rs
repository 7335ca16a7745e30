//! Desktop programs of a real computer: installed from its mirror, whatever is away meanwhile, and started.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use roost_tests::{Client, Server};
use serde_json::{Value, json};

/// A small program with a window; under emulation on a busy host some minutes.
const PATIENCE: Duration = Duration::from_secs(900);

async fn installation(client: &Client, id: &str, app: &str) -> Result<Value> {
    let list = client.get(&format!("/computers/{id}/apps")).await?.json()?;
    let rows = list["installations"].as_array().with_context(|| list.to_string())?;
    rows.iter().find(|row| row["app"] == app).cloned().with_context(|| list.to_string())
}

/// Waits until the installation is so, and returns it.
async fn installation_where(
    client: &Client,
    id: &str,
    app: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let begun = Instant::now();
    loop {
        let now = installation(client, id, app).await?;
        if wanted(&now) {
            return Ok(now);
        }
        ensure!(begun.elapsed() < PATIENCE, "still {now}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn has_ended(row: &Value) -> bool {
    row["status"] == "installed" || row["status"] == "failed"
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn an_app_is_installed_over_a_crash_and_a_stop_and_opens_its_window() -> Result<()> {
    let mut server = Server::start()?;
    let client = server.client();
    let body = json!({ "name": "editor", "template_type": "miosa-desktop", "selected_apps": ["geany"] });
    let created = client.post("/computers?wait=2", body).await?.json()?;
    let id = created["id"].as_str().with_context(|| created.to_string())?.to_owned();
    client.running(&id).await?;
    installation_where(&client, &id, "geany", |row| row["progress"].as_u64() > Some(10) || has_ended(row))
        .await?;
    server.kill_and_start_again()?;
    let client = server.client();
    installation_where(&client, &id, "geany", |row| row["progress"].as_u64() > Some(50) || has_ended(row))
        .await?;
    client.verb(&id, "stop").await?;
    client.verb(&id, "start").await?;
    let ended = installation_where(&client, &id, "geany", has_ended).await?;
    ensure!(ended["status"] == "installed" && ended["progress"] == 100, "{ended}");
    ensure!(client.output(&id, "dpkg --audit; geany --version").await?.starts_with("geany"));

    let list = client.get(&format!("/computers/{id}/apps")).await?.json()?;
    let apps = list["apps"].as_array().context("no apps")?;
    let geany = apps.iter().find(|app| app["id"] == "geany").with_context(|| list.to_string())?;
    ensure!(geany["name"] == "Geany" && geany["exec"] == "geany", "{geany}");
    ensure!(geany["categories"].as_array().is_some_and(|all| all.contains(&json!("Development"))), "{geany}");
    ensure!(list["total"] == apps.len());

    let launch = format!("/computers/{id}/desktop/launch");
    ensure!(
        client
            .post(&format!("/computers/{id}/env"), json!({ "name": "MARK", "value": "seen" }))
            .await?
            .status
            == 201
    );
    let launched = client.post(&launch, json!({ "app_name": "Geany" })).await?;
    ensure!(launched.status == 200, "{}", launched.json()?);
    // The X server tells xdotool when the window is there.
    let window = "DISPLAY=:0 timeout 120 xdotool search --sync --onlyvisible --class geany getwindowname %1";
    ensure!(client.output(&id, window).await?.contains("Geany"));
    let refused = client.post(&launch, json!({ "app": "no such app" })).await?;
    ensure!(refused.status == 404, "{}", refused.json()?);

    // A clone has it, and knows so without a mirror.
    let clone = client.clone_computer(&id).await?;
    client.output(&clone, "sudo rm /etc/apt/sources.list.d/debian.sources").await?;
    let cloned = installation_where(&client, &clone, "geany", has_ended).await?;
    ensure!(cloned["status"] == "installed", "{cloned}");

    // Without a mirror nothing new is installed; the reason is told, and the computer is as it was.
    let selected = client.post(&format!("/computers/{clone}/apps"), json!({ "apps": ["htop"] })).await?;
    ensure!(selected.status == 202, "{}", selected.json()?);
    let failed = installation_where(&client, &clone, "htop", has_ended).await?;
    ensure!(failed["status"] == "failed", "{failed}");
    ensure!(failed["error"].as_str().is_some_and(|reason| reason.contains("htop")), "{failed}");
    ensure!(client.output(&clone, "echo fine").await? == "fine");
    Ok(())
}
