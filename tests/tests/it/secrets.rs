//! Secrets stay secret: planted everywhere a caller can put one, and looked for everywhere on the host.
//!
//! What a computer keeps in its own memory and on its own disk is its own; so its saved memory and its disk are left out.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use roost_tests::{Client, Server, roost};
use serde_json::{Value, json};

/// A file that is larger holds none of our text, and reading it would take for ever where it is mostly holes.
const LARGEST: u64 = 256 << 20;

/// Looks for `secrets` wherever the host could have them. Returns where they are.
fn search(server: &Server, secrets: &[(&str, String)]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in files(server.data())? {
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            // Files of machines come and go.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
        };
        let text = without_greeting(&file, &bytes);
        for (what, secret) in secrets {
            if text.contains(secret) {
                found.push(format!("{what} in {}", file.display()));
            }
        }
    }
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let is_process = entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        for part in ["cmdline", "environ"].iter().filter(|_| is_process) {
            // Processes come and go while we look.
            let Ok(bytes) = std::fs::read(entry.path().join(part)) else { continue };
            let text = String::from_utf8_lossy(&bytes);
            for (what, secret) in secrets {
                if text.contains(secret) {
                    let process = text.replace('\0', " ");
                    found.push(format!("{what} in the {part} of a process: {process:.200}"));
                }
            }
        }
    }
    Ok(found)
}

/// Every file of the server but keys, disks and memories.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type()?;
        let is_key = name == "keys" || name == "admin.key";
        if is_key || name.starts_with("memory") || name.contains(".qcow2") {
            continue;
        }
        if kind.is_dir() {
            files.extend(self::files(&entry.path())?);
        } else if kind.is_file() && entry.metadata().is_ok_and(|file| file.len() <= LARGEST) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

/// The first key is shown once, on standard output, which the tests keep in the same file as the log.
fn without_greeting<'a>(file: &Path, bytes: &'a [u8]) -> Cow<'a, str> {
    let text = String::from_utf8_lossy(bytes);
    if !file.ends_with("server.log") {
        return text;
    }
    let Some(greeting) = text.lines().position(|line| line.starts_with("admin API key, shown once")) else {
        return text;
    };
    let rest = text.lines().enumerate().filter(|(line, _)| *line != greeting && *line != greeting + 1);
    rest.map(|(_, line)| line).collect::<Vec<_>>().join("\n").into()
}

/// What was planted, and what the server gave out.
async fn plant(client: &Client) -> Result<(String, Vec<(&'static str, String)>)> {
    let mut secrets = vec![("the API key", client.key.clone())];
    let secret = |what: &str| format!("planted-{}-{what}-{}", std::process::id(), client.key.len());
    let mut planted = |what: &'static str| {
        let value = secret(what);
        secrets.push((what, value.clone()));
        value
    };
    let body = json!({ "name": "secret keeper", "template_type": "miosa-desktop",
        "env": { "FROM_CREATE": planted("env-of-create") } });
    let created = client.post("/computers?wait=2", body).await?.json()?;
    let id = created["id"].as_str().with_context(|| created.to_string())?.to_owned();
    client.running(&id).await?;
    let path = format!("/computers/{id}");
    let ok = async |path: String, body: Value| -> Result<Value> {
        let answer = client.post(&path, body).await?;
        ensure!(answer.status.is_success(), "{path}: {} {}", answer.status, answer.json()?);
        answer.json()
    };
    ok(format!("{path}/env"), json!({ "name": "SET", "value": planted("env-set") })).await?;
    // A refusal says what is wrong, and not with what.
    let refused = json!({ "name": "no name", "value": planted("env-refused") });
    ensure!(client.post(&format!("{path}/env"), refused).await?.status == 422);
    client.verb(&id, "stop").await?;
    ok(format!("{path}/start"), json!({ "env": { "ONCE": planted("env-of-start") } })).await?;
    let all = client.output(&id, "echo $FROM_CREATE $SET $ONCE").await?;
    for what in ["env-of-create", "env-set", "env-of-start"] {
        ensure!(all.contains(&secret(what)), "the guest has no {what}: {all}");
    }
    let body = json!({ "command": "ps axww; cat; echo $WITH_CALL", "env": { "WITH_CALL": planted("env-of-call") },
        "stdin": planted("stdin") });
    let answer = ok(format!("{path}/exec"), body).await?;
    let output = answer["output"].as_str().context("no output")?;
    // Of the guest's own processes none has a value in its arguments.
    let (processes, _) = output.split_once(&secret("stdin")).context("no standard input")?;
    ensure!(!processes.contains("planted-"), "{processes}");
    let hook = json!({ "url": "https://example.org/", "events": ["credits.low"], "secret": planted("webhook"),
        "headers": { "x-planted": planted("webhook-header") } });
    ok("/webhooks".to_owned(), hook).await?;

    // What the server gives out, each used where it would be logged if anything were.
    let given = async |path: String, key: &str| -> Result<String> {
        let answer = ok(path, json!({})).await?;
        answer[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {answer}"))
    };
    let password = given(format!("{path}/viewer-password/rotate"), "viewer_password").await?;
    ok(format!("{path}/viewer-session"), json!({ "password": password })).await?;
    secrets.push(("a viewer password", password));
    let share = given(format!("{path}/shares"), "share_url").await?;
    let share = share.rsplit('/').next().context("no token")?.to_owned();
    let shared = client.get(&format!("/shared/{share}")).await?;
    ensure!(shared.status == 200, "{}", shared.status);
    secrets.push(("the token of a share", share));
    let token = given(format!("{path}/stream-token"), "token").await?;
    let socket = client.request(reqwest::Method::GET, &format!("/ws/vnc/{id}?auth={token}"), None).await?;
    ensure!(socket.status.is_client_error(), "it is no WebSocket: {}", socket.status);
    secrets.push(("a stream token", token));
    let ticket = given("/sse/ticket".to_owned(), "ticket").await?;
    let path = format!("{}/api/v1/events/stream?ticket={ticket}", client.url);
    let stream = client.http.get(path).send().await?;
    ensure!(stream.status() == 200, "{}", stream.status());
    secrets.push(("a ticket", ticket));
    Ok((id, secrets))
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn nothing_that_is_secret_is_anywhere_on_the_host() -> Result<()> {
    let server = Server::start_with(&[("ROOST_LOG", "debug")])?;
    let client = server.client();
    let (id, secrets) = plant(&client).await?;
    // The search finds what is there: names are no secret, and are in the database and in the machine's directory.
    let known = search(&server, &[("the name", "secret-keeper".to_owned())])?;
    for place in ["roost.db", "spec.json"] {
        ensure!(known.iter().any(|found| found.contains(place)), "not found in {place}: {known:?}");
    }
    ensure!(server.log().contains(&id), "the log says nothing of the computer");
    let found = search(&server, &secrets)?;
    ensure!(found.is_empty(), "{found:?}");
    client.verb(&id, "stop").await?;
    let found = search(&server, &secrets)?;
    ensure!(found.is_empty(), "after a stop: {found:?}");
    // What was sealed and what the log has of it is the same after the server has gone.
    drop(client.delete(&format!("/computers/{id}")).await?);
    let found = search(&server, &secrets)?;
    ensure!(found.is_empty(), "after the computer: {found:?}");
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn the_seal_key_is_changed_while_the_server_is_away_and_computers_run_on() -> Result<()> {
    let mut server = Server::start()?;
    let client = server.client();
    let id = client.create("sealed").await?;
    let kept = json!({ "name": "KEPT", "value": "by-the-seal" });
    let set = client.post(&format!("/computers/{id}/env"), kept).await?;
    ensure!(set.status == 201);
    client.output(&id, "touch /tmp/mark").await?;
    let key = server.data().join("keys/seal.key");
    let before = std::fs::read(&key)?;
    let rotate = || Command::new(roost()).args(["rotate-seal-key", "--data"]).arg(server.data()).output();
    let refused = rotate()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("stop it"), "{said}");
    ensure!(std::fs::read(&key)? == before, "a refused change changed the key");
    server.kill()?;
    // One that was interrupted after it had made its key: the next goes on with that key.
    let interrupted = [&[7; 32][..], &before].concat();
    std::fs::write(&key, &interrupted)?;
    let changed = Command::new(roost()).args(["rotate-seal-key", "--data"]).arg(server.data()).output()?;
    let said = String::from_utf8_lossy(&changed.stdout).into_owned();
    if !changed.status.success() {
        bail!("{said}{}", String::from_utf8_lossy(&changed.stderr));
    }
    ensure!(said.contains("1 secrets were sealed"), "{said}");
    ensure!(std::fs::read(&key)? == [7; 32], "the key that was made is the key");
    server.kill_and_start_again()?;
    let client = server.client();
    client.output(&id, "test -e /tmp/mark").await?;
    client.verb(&id, "restart").await?;
    ensure!(client.output(&id, "echo $KEPT").await? == "by-the-seal");
    Ok(())
}
