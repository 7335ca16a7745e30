//! A computer that stands still: whoever calls it is told so in time, and it is as before when it goes on.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use roost_tests::{Framed, PATIENCE, Server, processes_naming};
use serde_json::json;

fn signal(pid: u32, name: &str) -> Result<()> {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status()?;
    ensure!(status.success(), "failed to send {name} to {pid}");
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn calls_to_a_computer_that_stands_still_fail_and_later_ones_work() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("frozen").await?;
    client.output(&id, "echo before >/tmp/before; head -c 30000000 /dev/urandom >/workspace/large").await?;
    let mut running = Framed::shell(&client, &id, "echo running; sleep 3600").await?;
    running.until("running").await?;
    let download = format!("{}/api/v1/computers/{id}/files/download?path=/workspace/large", client.url);
    let mut download = client.http.get(download).bearer_auth(&client.key).send().await?;
    ensure!(download.chunk().await?.is_some());

    let found = processes_naming(&server.machine(&id))?;
    let qemu = found.iter().find(|(_, command)| command.contains("qemu-system")).context("no QEMU")?.0;
    signal(qemu, "STOP")?;
    let begun = Instant::now();
    // Nothing is answered with silence, whatever is asked and whatever was under way.
    let (run, look) = (format!("/computers/{id}/exec"), format!("/computers/{id}/files?path=/workspace"));
    let exec = client.post(&run, json!({ "command": "true", "timeout": 300 }));
    let list = client.get(&look);
    let path = format!("/api/v1/computers/{id}/files/content?path=/workspace/new");
    let write = client.request(Method::PUT, &path, Some(vec![7; 100_000]));
    let rest = async {
        let mut length = 0;
        while let Some(piece) = download.chunk().await? {
            length += piece.len();
        }
        Ok::<_, reqwest::Error>(length)
    };
    let all = async { tokio::join!(exec, list, write, running.exit(), rest) };
    let (exec, list, write, ended, rest) =
        tokio::time::timeout(PATIENCE, all).await.context("some wait still")?;
    println!("all have failed after {:.0?}", begun.elapsed());
    for (what, answer) in [("exec", exec?), ("list", list?), ("write", write?)] {
        let body = answer.json()?;
        ensure!(
            answer.status == 502 && body["code"] == "AGENT_UNAVAILABLE",
            "{what}: {} {body}",
            answer.status
        );
        ensure!(body["message"].as_str().is_some_and(|message| message.len() > 20), "{what}: {body}");
    }
    ensure!(ended.is_err(), "a command has ended with {ended:?}");
    ensure!(rest.is_err(), "half a file looks whole: {rest:?} more bytes");

    signal(qemu, "CONT")?;
    let back = async {
        loop {
            let answer = client.post(&run, json!({ "command": "cat /tmp/before" })).await?;
            if answer.status == 200 {
                return answer.json();
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    let result = tokio::time::timeout(PATIENCE, back).await.context("it does not come back")??;
    ensure!(result["output"] == "before\n", "{result}");
    ensure!(client.get(&look).await?.status == 200);
    // Whose caller was told that it has ended has been hung up.
    client
        .output(&id, "timeout 60 sh -c 'while pgrep -f \"sleep 360[0]\" >/dev/null; do sleep 0.1; done'")
        .await?;
    Ok(())
}
