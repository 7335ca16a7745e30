//! What a real computer uses, as it counts it itself.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use roost_tests::{Client, Server};

/// A measurement a minute, after two of which there is a value; and a host that may be busy.
const PATIENCE: Duration = Duration::from_secs(300);

async fn points(client: &Client, id: &str, key: &str) -> Result<Vec<f64>> {
    let metrics = client.get(&format!("/computers/{id}/metrics")).await?.json()?;
    let points = metrics[key].as_array().cloned().unwrap_or_default();
    ensure!(points.iter().all(|point| point["ts"].is_string()), "{metrics}");
    Ok(points.iter().filter_map(|point| point["value"].as_f64()).collect())
}

/// Waits for a value: nothing tells of one.
async fn value_where(client: &Client, id: &str, key: &str, wanted: impl Fn(f64) -> bool) -> Result<f64> {
    let begun = Instant::now();
    loop {
        let points = points(client, id, key).await?;
        if let Some(value) = points.iter().copied().find(|value| wanted(*value)) {
            return Ok(value);
        }
        ensure!(begun.elapsed() < PATIENCE, "no such value of {key}: {points:?}");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_busy_computer_is_seen_to_be_busy() -> Result<()> {
    let server = Server::start_with(&[("ROOST_PRICES", "small=7")])?;
    let client = server.client();
    let id = client.create("busy").await?;
    // Two measurements that see nothing else.
    client.output(&id, "(timeout 400 sh -c 'while :; do :; done' >/dev/null 2>&1 &)").await?;
    let cpu = value_where(&client, &id, "cpu_percent", |value| value > 60.0).await?;
    ensure!(cpu <= 100.0, "{cpu}");
    let memory = value_where(&client, &id, "memory_percent", |value| value > 0.0).await?;
    // A desktop in 4 GiB.
    ensure!(memory > 1.0 && memory < 60.0, "{memory}");
    let inside = client.output(&id, "free -b | awk '/^Mem/ { print 100 * ($2 - $7) / $2 }'").await?;
    let inside: f64 = inside.parse()?;
    ensure!((memory - inside).abs() < 10.0, "{memory} and, seen from inside, {inside}");
    let metrics = client.get(&format!("/computers/{id}/metrics?window=1h")).await?.json()?;
    ensure!(metrics["credits_per_hour"] == 7, "{metrics}");
    for window in ["24h", "7d"] {
        let metrics = client.get(&format!("/computers/{id}/metrics?window={window}")).await?.json()?;
        ensure!(metrics["cpu_percent"].is_array() && metrics.get("data").is_none(), "{metrics}");
    }
    ensure!(client.get(&format!("/computers/{id}/metrics?window=2h")).await?.status == 422);
    // What was measured stays when the computer does not run.
    client.verb(&id, "stop").await?;
    ensure!(!points(&client, &id, "cpu_percent").await?.is_empty());
    Ok(())
}
