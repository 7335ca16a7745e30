//! Bad input, large output, and commands that do not end.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use roost_tests::{Client, Server};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn every_bad_request_says_what_is_wrong() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let unknown = "00000000-0000-4000-8000-000000000000";

    let post = |path: &str, body: &[u8]| {
        let (client, path, body) = (client.clone(), format!("/api/v1{path}"), body.to_vec());
        async move { client.request(Method::POST, &path, Some(body)).await }
    };
    let large = format!("{{\"name\": \"{}\"}}", "x".repeat(10 * 1024 * 1024));
    let cases: [(&str, &[u8], u16, &str, &str); 11] = [
        ("/computers", b"{", 400, "INVALID_JSON", "not valid JSON"),
        ("/computers", b"\xff\xfe", 400, "INVALID_JSON", "not valid JSON"),
        ("/computers", b"[]", 422, "VALIDATION_FAILED", "body"),
        ("/computers", b"{}", 400, "MISSING_PARAM", "name is required"),
        (
            "/computers",
            br#"{"name": "  ", "template_type": "miosa-desktop"}"#,
            400,
            "MISSING_PARAM",
            "name is required",
        ),
        ("/computers", br#"{"name": "x"}"#, 400, "MISSING_PARAM", "name is required"),
        ("/computers", br#"{"name": 7}"#, 422, "VALIDATION_FAILED", "name"),
        (
            "/computers",
            br#"{"name": "x", "template_type": "windows"}"#,
            422,
            "VALIDATION_FAILED",
            "miosa-desktop",
        ),
        (
            "/computers",
            br#"{"name": "x", "template_type": "miosa-desktop", "size": "huge"}"#,
            422,
            "VALIDATION_FAILED",
            "small",
        ),
        ("/computers", large.as_bytes(), 413, "TOO_LARGE", "larger than"),
        ("/computers/nonsense/start", b"{}", 400, "INVALID_ID", "invalid computer id"),
    ];
    for (path, body, status, code, message) in cases {
        let answer = post(path, body).await?;
        let start = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        envelope(&answer, status, code, message).with_context(|| format!("{path} {start}"))?;
    }
    for verb in ["start", "stop", "restart", "exec", "stream-token"] {
        let answer = post(&format!("/computers/{unknown}/{verb}"), b"{}").await?;
        envelope(&answer, 404, "NOT_FOUND", "computer not found")?;
    }
    envelope(&client.get("/nothing").await?, 404, "NOT_FOUND", "no route")?;
    envelope(&client.delete("/computers").await?, 405, "METHOD_NOT_ALLOWED", "DELETE")?;
    for key in ["", "msk_a_wrong", "rst_wrong"] {
        let stranger = Client { key: key.to_owned(), ..client.clone() };
        envelope(&stranger.get("/computers").await?, 401, "invalid_token", "")?;
        // The credential comes before the id.
        envelope(&stranger.get("/computers/nonsense").await?, 401, "invalid_token", "")?;
    }
    // The prefix sent twice, as one published client does.
    ensure!(client.get("/api/v1/computers").await?.status == 200);
    ensure!(client.request(Method::GET, "/health", None).await?.json()?["status"] == "ok");
    ensure!(client.get("/computers").await?.json()?["total"] == 0, "a bad request made a computer");
    Ok(())
}

/// The envelope of every error, and that its request id is the header's.
fn envelope(answer: &roost_tests::Answer, status: u16, code: &str, message: &str) -> Result<()> {
    let body: Value = answer.json()?;
    ensure!(answer.status == status, "{}: {body}", answer.status);
    ensure!(body["ok"] == false && body["code"] == code && body["error"]["code"] == code, "{body}");
    ensure!(body["message"] == body["error"]["message"], "{body}");
    ensure!(body["message"].as_str().is_some_and(|text| text.contains(message)), "{body}");
    ensure!(body["error"]["retryable"].is_boolean(), "{body}");
    ensure!(
        answer
            .headers
            .get("x-request-id")
            .is_some_and(|id| body["request_id"] == id.to_str().unwrap_or_default())
    );
    ensure!(status != 422 || body["errors"].is_object(), "{body}");
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn commands_that_misbehave_are_bounded() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("busy").await?;
    let exec = |body: Value| {
        let (client, path) = (client.clone(), format!("/computers/{id}/exec"));
        async move { client.post(&path, body).await?.json() }
    };

    // 50 MB: cut at the limit of the answer, and not held in memory beyond it.
    let before = server.resident()?;
    let result =
        exec(json!({ "command": "head -c 50000000 /dev/zero | tr '\\0' x", "timeout": 120 })).await?;
    ensure!(result["exit_code"] == 0 && result["truncated"] == true);
    ensure!(result["output"].as_str().is_some_and(|text| text.len() == 8 * 1024 * 1024));
    let grown = server.resident()?.saturating_sub(before);
    ensure!(grown < 100 * 1024 * 1024, "the server grew by {grown} bytes");

    // One that never ends, with children: killed as a whole.
    let result = exec(json!({ "command": "sleep 3333 & sleep 3333", "timeout": 2 })).await?;
    ensure!(
        result["exit_code"] == 124 && result["timed_out"] == true && result["success"] == false,
        "{result}"
    );
    ensure!(client.exec(&id, "pgrep -f 'sleep 333[3]'").await?["success"] == false, "children are left");

    // One that forks into the background: answered at once, and left running.
    let begun = std::time::Instant::now();
    let result = exec(json!({ "command": "sleep 5555 & echo started" })).await?;
    ensure!(result["output"] == "started\n" && result["exit_code"] == 0, "{result}");
    ensure!(begun.elapsed() < std::time::Duration::from_secs(20), "it waited for the background");
    client.output(&id, "pgrep -f 'sleep 555[5]'").await?;

    // Bytes that are no text; no such command, directory or user.
    let result = exec(json!({ "command": "printf 'a\\377b'" })).await?;
    ensure!(result["output"] == "a\u{fffd}b", "{result}");
    ensure!(exec(json!({ "command": "no-such-command" })).await?["exit_code"] == 127);
    for (field, value) in [("cwd", "/no/such/place"), ("user", "nobody-here")] {
        let result = exec(json!({ "command": "true", field: value })).await?;
        ensure!(result["code"] == "VALIDATION_FAILED", "{result}");
    }
    ensure!(exec(json!({})).await?["code"] == "MISSING_PARAM");
    let click = client.post(&format!("/computers/{id}/desktop/click"), json!({ "x": "left" })).await?;
    envelope(&click, 422, "VALIDATION_FAILED", "x")?;
    let key = client.post(&format!("/computers/{id}/desktop/key"), json!({ "key": "NoSuchKey" })).await?;
    envelope(&key, 422, "VALIDATION_FAILED", "NoSuchKey")?;
    streamed(&client, &id).await?;
    tokens(&client, &id).await
}

/// The streamed form: both framings, binary output to the byte, input, and a hang-up that ends the command.
async fn streamed(client: &Client, id: &str) -> Result<()> {
    let connect = |command: &str, protocol: Option<&'static str>| {
        let base = client.url.replace("http", "ws");
        let query: String = command.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let url = format!("{base}/api/v1/computers/{id}/exec/stream?command={query}");
        let key = client.key.clone();
        async move {
            let mut request = url.into_client_request()?;
            request.headers_mut().insert("authorization", format!("Bearer {key}").parse()?);
            if let Some(protocol) = protocol {
                request.headers_mut().insert("sec-websocket-protocol", protocol.parse()?);
            }
            anyhow::Ok(tokio_tungstenite::connect_async(request).await?.0)
        }
    };
    let mut socket =
        connect("head -c 3000000 /dev/urandom | tee >(sha256sum >&2)", Some("miosa-exec-v1")).await?;
    let (mut stdout, mut stderr, mut exit) = (Vec::new(), Vec::new(), None);
    while let Some(message) = socket.next().await {
        let Message::Binary(frame) = message? else { continue };
        match frame.split_first().context("empty frame")? {
            (1, bytes) => stdout.extend_from_slice(bytes),
            (2, bytes) => stderr.extend_from_slice(bytes),
            (3, bytes) => exit = Some(bytes.to_vec()),
            (other, _) => anyhow::bail!("channel {other}"),
        }
    }
    ensure!(stdout.len() == 3_000_000 && exit == Some(vec![0; 4]), "{} bytes, exit {exit:?}", stdout.len());
    let body = base64::engine::general_purpose::STANDARD.encode(&stdout[..300_000]);
    let mut check =
        connect("base64 -d | cmp -s - <(head -c 300000 /dev/stdin) ; cat >/dev/null; echo done", None)
            .await?;
    check.send(Message::text(json!({ "type": "stdin", "data": body }).to_string())).await?;
    check.send(Message::text(json!({ "type": "stdin_close" }).to_string())).await?;
    let mut last = Value::Null;
    while let Some(message) = check.next().await {
        if let Message::Text(text) = message? {
            last = serde_json::from_str(text.as_str())?;
        }
    }
    ensure!(last["type"] == "exit" && last["code"] == last["exit"], "{last}");

    // Hanging up ends the command and what it started.
    let mut socket = connect("echo ready; sleep 7777", None).await?;
    ensure!(socket.next().await.context("no output")??.into_text()?.contains("ready"));
    socket.close(None).await?;
    client
        .output(id, "timeout 15 sh -c 'while pgrep -f \"sleep 777[7]\" >/dev/null; do sleep 0.2; done'")
        .await?;
    Ok(())
}

/// Stream tokens: refused before the upgrade unless they are exactly right.
async fn tokens(client: &Client, id: &str) -> Result<()> {
    let minted = client.post(&format!("/computers/{id}/stream-token"), json!({})).await?.json()?;
    let token = minted["token"].as_str().context("no token")?.to_owned();
    ensure!(minted["expires_at"].is_i64(), "{minted}");
    let other = json!({ "name": "other", "template_type": "miosa-desktop" });
    let other = client.post("/computers", other).await?.json()?["id"].as_str().context("no id")?.to_owned();
    let foreign = client.post(&format!("/computers/{other}/stream-token"), json!({})).await?.json()?;
    let foreign = foreign["token"].as_str().context("no token")?.to_owned();
    ensure!(client.delete(&format!("/computers/{other}")).await?.status == 200);

    let open = |token: String| {
        let url = format!("{}/ws/vnc/{id}?auth={token}", client.url.replace("http", "ws"));
        async move { tokio_tungstenite::connect_async(url).await }
    };
    let mut flipped = token.clone();
    let last = flipped.pop().context("empty token")?;
    flipped.push(if last == 'A' { 'Q' } else { 'A' });
    for wrong in [String::new(), "nonsense".to_owned(), flipped, foreign] {
        match open(wrong.clone()).await {
            Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
                ensure!(response.status() == 401, "{wrong:?}: {}", response.status());
            }
            other => anyhow::bail!("{wrong:?} was not refused before the upgrade: {other:?}"),
        }
    }
    let short = client.post(&format!("/computers/{id}/stream-token"), json!({ "ttl_seconds": 5 })).await?;
    envelope(&short, 422, "INVALID_TTL", "60")?;

    // The right one speaks RFB.
    let (mut socket, _) = open(token).await?;
    let greeting = socket.next().await.context("no greeting")??;
    ensure!(greeting.into_data().starts_with(b"RFB 003."));
    Ok(())
}
