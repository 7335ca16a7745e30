//! What happens inside a computer, over the socket of its events.

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use roost_tests::{PATIENCE, Server, Socket, until_shown};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// The next event of this type whose payload is as wanted; others that come before it are passed over.
async fn next(socket: &mut Socket, kind: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut passed = Vec::new();
    let found = async {
        loop {
            match socket.next().await.context("the socket ended")?? {
                Message::Text(text) => {
                    let event: Value = serde_json::from_str(text.as_str())?;
                    if event["type"] == kind && wanted(&event["payload"]) {
                        ensure!(event["timestamp"].is_string(), "{event}");
                        return Ok(event["payload"].clone());
                    }
                    ensure!(event["type"] != "producer.unavailable", "{event}");
                    passed.push(format!("{} {}", event["type"], event["payload"]));
                }
                Message::Ping(_) => {}
                other => anyhow::bail!("{other:?}"),
            }
        }
    };
    match tokio::time::timeout(PATIENCE, found).await {
        Ok(found) => found.with_context(|| format!("waiting for {kind} after {passed:?}")),
        Err(_) => anyhow::bail!("no {kind} came, but {passed:?}"),
    }
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_socket_tells_what_happens_in_a_computer() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("events").await?;
    let path = format!("/api/v1/computers/{id}/events");
    let query = [("subscribe", "window,clipboard,file,process,idle"), ("idle_threshold_sec", "2")];
    let (mut socket, _) = client.socket(&path, &query, None).await?;

    next(&mut socket, "idle.inactive", |idle| idle["idle_ms"].as_u64() >= Some(2000)).await?;
    let moved = client.post(&format!("/computers/{id}/desktop/move"), json!({ "x": 30, "y": 40 })).await?;
    ensure!(moved.status == 200, "{}", moved.json()?);
    next(&mut socket, "idle.active", |idle| idle["idle_ms"].as_u64() >= Some(2000)).await?;

    client.output(&id, "echo one > news.txt").await?;
    let news = |file: &Value| file["path"] == "/home/user/news.txt";
    next(&mut socket, "file.created", news).await?;
    next(&mut socket, "file.modified", news).await?;
    client.output(&id, "mkdir deep && sleep 1 && echo two > deep/er && rm news.txt").await?;
    next(&mut socket, "file.created", |file| file["path"] == "/home/user/deep/er").await?;
    next(&mut socket, "file.deleted", news).await?;

    client.output(&id, "sleep 3.25; true").await?;
    let is_sleep = |process: &Value| process["cmd"] == "sleep 3.25";
    let started = next(&mut socket, "process.started", is_sleep).await?;
    ensure!(started["ppid"].as_str().is_some_and(|parent| parent.parse::<u32>().is_ok()), "{started}");
    let stopped = next(&mut socket, "process.stopped", is_sleep).await?;
    ensure!(started["pid"].is_u64() && started["pid"] == stopped["pid"], "{started} {stopped}");

    let clipboard = json!({ "text": "žluťoučký" });
    let set = client.post(&format!("/computers/{id}/desktop/clipboard"), clipboard).await?;
    ensure!(set.status == 200, "{}", set.json()?);
    next(&mut socket, "clipboard.changed", |clipboard| clipboard["size_bytes"] == 13).await?;

    let open = "(setsid xfce4-terminal --title=told >/dev/null 2>&1 &); ".to_owned()
        + &until_shown("--name '^told$'");
    client.output(&id, &open).await?;
    let is_told = |window: &Value| window["title"] == "told";
    let window = next(&mut socket, "window.opened", |window| window["title"].is_string()).await?;
    ensure!(window["pid"].as_str().is_some_and(|pid| pid.parse::<u32>().is_ok()), "{window}");
    let focused = next(&mut socket, "window.focus_changed", is_told).await?;
    ensure!(focused["window_id"] == window["window_id"], "{window} {focused}");
    let window = focused["window_id"].as_str().context("no id")?;
    let closed = client.post(&format!("/computers/{id}/desktop/window/{window}/close"), json!({})).await?;
    ensure!(closed.status == 200, "{}", closed.json()?);
    next(&mut socket, "window.closed", |closed| closed["window_id"] == window).await?;

    client.verb(&id, "stop").await?;
    loop {
        match tokio::time::timeout(PATIENCE, socket.next()).await?.context("no goodbye")?? {
            Message::Close(Some(goodbye)) => {
                ensure!(goodbye.code == CloseCode::Away && goodbye.reason.contains("stopped"), "{goodbye:?}");
                break;
            }
            Message::Text(_) | Message::Ping(_) => {}
            other => anyhow::bail!("{other:?}"),
        }
    }
    server.no_orphans()
}
