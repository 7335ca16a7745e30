//! Files of a real computer: large ones, many, oddly named ones, interrupted ones, and none that is out of bounds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use reqwest::{Method, StatusCode};
use roost_tests::{Client, Server, forget_peak, peak, resident};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MIB: u64 = 1024 * 1024;
const PIECE: usize = 256 * 1024;

/// Content that no part of which is like another, from `offset` on, so that nothing on the way can make it smaller.
fn content(offset: u64, length: u64) -> impl Iterator<Item = Bytes> {
    let piece = PIECE as u64;
    let end = offset + length;
    (offset / piece..end.div_ceil(piece)).map(move |number| {
        let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut bytes = Vec::with_capacity(PIECE);
        while bytes.len() < PIECE {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        let at = |position: u64| {
            usize::try_from(position.saturating_sub(number * piece)).unwrap_or(PIECE).min(PIECE)
        };
        Bytes::from(bytes).slice(at(offset)..at(end))
    })
}

fn sent(offset: u64, length: u64) -> reqwest::Body {
    reqwest::Body::wrap_stream(stream::iter(content(offset, length).map(Ok::<_, std::io::Error>)))
}

fn digest(pieces: impl Iterator<Item = Bytes>) -> Vec<u8> {
    pieces.fold(Sha256::new(), |hash, piece| hash.chain_update(piece)).finalize().to_vec()
}

/// A request to a file route, with its path and whatever else is in the query.
fn at(
    client: &Client,
    id: &str,
    method: Method,
    route: &str,
    query: &[(&str, &str)],
) -> Result<reqwest::RequestBuilder> {
    let base = format!("{}/api/v1/computers/{id}/files{route}", client.url);
    let url = reqwest::Url::parse_with_params(&base, query)?;
    Ok(client.http.request(method, url).bearer_auth(&client.key))
}

async fn put(
    client: &Client,
    id: &str,
    path: &str,
    body: impl Into<reqwest::Body>,
) -> Result<reqwest::Response> {
    Ok(at(client, id, Method::PUT, "/content", &[("path", path)])?.body(body).send().await?)
}

async fn get(client: &Client, id: &str, path: &str) -> Result<(StatusCode, Vec<u8>)> {
    let response = at(client, id, Method::GET, "/download", &[("path", path)])?.send().await?;
    Ok((response.status(), response.bytes().await?.to_vec()))
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn two_gibibytes_go_there_and_back_in_little_memory() -> Result<()> {
    const LENGTH: u64 = 2048 * MIB;
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("large").await?;
    let agent = client.output(&id, "pgrep -o -x roost-guest").await?;
    let of_agent = async |field: &str| -> Result<u64> {
        let line = format!("awk '/^{field}:/ {{ print $2 }}' /proc/{agent}/status");
        Ok(client.output(&id, &line).await?.parse::<u64>()? * 1024)
    };
    let hosts = [("server", server.pid()), ("machine process", server.machine_pid(&id)?)];
    // What the first of everything takes is there before.
    ensure!(put(&client, &id, "/workspace/first", sent(0, 16 * MIB)).await?.status() == 200);
    ensure!(get(&client, &id, "/workspace/first").await?.0 == 200);
    let forget = async || -> Result<[u64; 3]> {
        for (_, pid) in hosts {
            forget_peak(pid)?;
        }
        client.output(&id, &format!("echo 5 | sudo tee /proc/{agent}/clear_refs >/dev/null")).await?;
        Ok([resident(hosts[0].1)?, resident(hosts[1].1)?, of_agent("VmRSS").await?])
    };
    let check = async |before: [u64; 3], what: &str| -> Result<()> {
        let peaks = [peak(hosts[0].1)?, peak(hosts[1].1)?, of_agent("VmHWM").await?];
        let grown = std::array::from_fn::<_, 3, _>(|index| peaks[index].saturating_sub(before[index]) / MIB);
        println!("{what}: server, machine process and agent grew by {grown:?} MiB at most");
        ensure!(grown.iter().all(|grown| *grown < 64), "{what}: grew by {grown:?} MiB from {before:?}");
        Ok(())
    };

    let before = forget().await?;
    let written = put(&client, &id, "/workspace/large", sent(0, LENGTH)).await?;
    ensure!(written.status() == 200, "{}", written.text().await?);
    check(before, "up").await?;

    let before = forget().await?;
    let response =
        at(&client, &id, Method::GET, "/download", &[("path", "/workspace/large")])?.send().await?;
    ensure!(response.status() == 200 && response.content_length() == Some(LENGTH));
    let mut hash = Sha256::new();
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        hash.update(piece?);
    }
    check(before, "down").await?;
    ensure!(hash.finalize().to_vec() == digest(content(0, LENGTH)), "it has changed on its way");
    Ok(())
}

/// A stream that a test can hold back at any place.
fn until_told(
    length: u64,
    told: tokio::sync::oneshot::Receiver<()>,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> {
    let rest = stream::once(async move {
        // Nobody tells: the connection dies with the server.
        drop(told.await);
        Err(std::io::Error::other("the test has ended"))
    });
    stream::iter(content(0, length).map(Ok)).chain(rest)
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_killed_upload_leaves_nothing_half_and_goes_on() -> Result<()> {
    const TOTAL: u64 = 48 * MIB;
    const SENT: u64 = 20 * MIB + 12345;
    let mut server = Server::start()?;
    let client = server.client();
    let id = client.create("interrupted").await?;
    ensure!(put(&client, &id, "/workspace/old", "as it was").await?.status() == 200);
    let total = TOTAL.to_string();
    let upload = [("path", "/workspace/new"), ("upload_id", "an-upload-of-mine"), ("total", total.as_str())];

    // One with an id to a new place, one without to a place that has a file.
    let (_hold, told) = tokio::sync::oneshot::channel();
    let body = reqwest::Body::wrap_stream(until_told(SENT, told));
    let named = at(&client, &id, Method::PUT, "/content", &upload)?.body(body).send();
    let (_hold, told) = tokio::sync::oneshot::channel();
    let body = reqwest::Body::wrap_stream(until_told(SENT, told));
    let unnamed = at(&client, &id, Method::PUT, "/content", &[("path", "/workspace/old")])?.body(body).send();
    let sending = tokio::spawn(async move { tokio::join!(named, unnamed) });
    // Both have arrived as far as they were sent: the agent writes what it has got.
    let line = format!(
        "timeout 120 sh -c 'until [ $(find /workspace -name \".*.roost-part\" -size -{}c -size +{}c | wc -l) = 2 ]; do sleep 0.2; done'",
        SENT + 1,
        SENT - 1
    );
    client.output(&id, &line).await?;
    server.kill()?;
    let (named, unnamed) = sending.await?;
    ensure!(named.is_err() && unnamed.is_err(), "a server that is gone has answered");
    server.kill_and_start_again()?;
    let client = server.client();
    client.running(&id).await?;

    let (status, old) = get(&client, &id, "/workspace/old").await?;
    ensure!(status == 200 && old == b"as it was", "the old file is not whole");
    ensure!(get(&client, &id, "/workspace/new").await?.0 == 404, "half a file is there");
    // Only what can be gone on with is left.
    let left = "timeout 60 sh -c 'until [ $(find /workspace -name \".*.roost-part\" | wc -l) = 1 ]; do sleep 0.2; done'";
    client.output(&id, left).await?;

    let progress = async || -> Result<Value> {
        let query = [("path", "/workspace/new")];
        Ok(at(&client, &id, Method::GET, "/uploads/an-upload-of-mine", &query)?.send().await?.json().await?)
    };
    let received = progress().await?["received"].as_u64().context("no number")?;
    ensure!(received == SENT, "{received} of {SENT} have arrived");
    // Not from anywhere else.
    let wrong = (received - 1).to_string();
    let query = [&upload[..], &[("offset", wrong.as_str())]].concat();
    let refused =
        at(&client, &id, Method::PUT, "/content", &query)?.body(sent(received - 1, 10)).send().await?;
    ensure!(refused.status() == 409, "{}", refused.text().await?);
    let offset = received.to_string();
    let query = [&upload[..], &[("offset", offset.as_str())]].concat();
    let done = at(&client, &id, Method::PUT, "/content", &query)?;
    let done = done.body(sent(received, TOTAL - received)).send().await?;
    ensure!(done.status() == 200, "{}", done.text().await?);
    let (status, whole) = get(&client, &id, "/workspace/new").await?;
    ensure!(
        status == 200 && digest(std::iter::once(whole.into())) == digest(content(0, TOTAL)),
        "other content"
    );
    ensure!(client.output(&id, "find /workspace -name '.*.roost-part' | wc -l").await? == "0");
    ensure!(progress().await?["received"] == 0);

    // A client that goes away is the same as one that dies.
    let (_hold, told) = tokio::sync::oneshot::channel();
    let body = reqwest::Body::wrap_stream(until_told(MIB, told));
    let request = at(&client, &id, Method::PUT, "/content", &[("path", "/workspace/old")])?.body(body).send();
    let gone = tokio::time::timeout(Duration::from_secs(1), request).await;
    ensure!(gone.is_err(), "answered before it was whole");
    client.output(&id, &left.replace("= 1", "= 0")).await?;
    ensure!(get(&client, &id, "/workspace/old").await?.1 == b"as it was");
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn a_directory_of_a_hundred_thousand_is_listed_whole() -> Result<()> {
    const COUNT: usize = 100_000;
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("crowded").await?;
    // In memory: what is to be shown is how many are listed, not how fast they are made.
    let make = format!(
        "mkdir /workspace/made && sudo mount -t tmpfs -o mode=777,nr_inodes=0 made /workspace/made && \
         mkdir /workspace/made/many && cd /workspace/made/many && \
         python3 -c 'import os; [os.mknod(f\"file {{n:06}}\") for n in range({COUNT})]'"
    );
    client.output(&id, &make).await?;
    let response = at(&client, &id, Method::GET, "", &[("path", "/workspace/made/many")])?.send().await?;
    ensure!(response.status() == 200);
    let list: Value = response.json().await?;
    let rows = list["files"].as_array().context("no rows")?;
    ensure!(rows.len() == COUNT, "{} rows", rows.len());
    for (number, row) in rows.iter().enumerate() {
        ensure!(row["name"] == format!("file {number:06}") && row["type"] == "file", "{number}: {row}");
    }
    let names =
        at(&client, &id, Method::GET, "/readdir", &[("path", "/workspace/made/many")])?.send().await?;
    let names: Value = names.json().await?;
    ensure!(names["data"]["entries"].as_array().context("no entries")?.len() == COUNT);
    // The server is there for others, and the directory goes as a whole.
    ensure!(client.output(&id, "echo here").await? == "here");
    let removed = at(&client, &id, Method::DELETE, "", &[("path", "/workspace/made/many")])?.send().await?;
    ensure!(removed.status() == 200, "{}", removed.text().await?);
    ensure!(client.output(&id, "ls /workspace/made").await?.is_empty());
    Ok(())
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn names_are_what_they_are() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("named").await?;
    let names = [
        "with spaces ",
        " and\nnewlines\n",
        "tab\tand \\back\\slash",
        "\"quotes\" 'and' `more` $(touch owned)",
        "-rf",
        "%2e%2e%2f",
        "..more..",
        "*?[a]",
        "東京 é e\u{301} 🐦",
        "\u{1}\u{7f}\u{202e}gnp",
        &"x".repeat(255),
    ];
    for name in names {
        let path = format!("/workspace/odd/{name}");
        let written = put(&client, &id, &path, name.to_owned()).await?;
        ensure!(written.status() == 200, "{name:?}: {}", written.text().await?);
        ensure!(get(&client, &id, &path).await? == (StatusCode::OK, name.as_bytes().to_vec()), "{name:?}");
        let stat = at(&client, &id, Method::GET, "/stat", &[("path", &path)])?.send().await?;
        let stat: Value = stat.json().await?;
        ensure!(stat["data"]["size"] == name.len() && stat["data"]["path"] == path, "{name:?}: {stat}");
        let body = json!({ "path": path, "mode": "0600" });
        ensure!(client.post(&format!("/computers/{id}/files/chmod"), body).await?.status == 200, "{name:?}");
    }
    let listed = async || -> Result<Vec<String>> {
        let list = at(&client, &id, Method::GET, "", &[("path", "/workspace/odd")])?.send().await?;
        let list: Value = list.json().await?;
        let rows = list["files"].as_array().context("no rows")?;
        Ok(rows.iter().filter_map(|row| row["name"].as_str().map(str::to_owned)).collect())
    };
    let mut sorted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    sorted.sort();
    ensure!(listed().await? == sorted, "{:?}", listed().await?);
    ensure!(client.output(&id, "sudo find / -xdev -name owned | wc -l").await? == "0", "a name was run");

    // Bytes that are no text have no path here, but they are seen, travel in archives, and go with their directory.
    client.output(&id, r"printf x > $'/workspace/odd/\xff\xfe bytes'").await?;
    ensure!(listed().await?.contains(&"\u{fffd}\u{fffd} bytes".to_owned()), "{:?}", listed().await?);
    let query = [("path", "/workspace/odd"), ("archive", "tar")];
    let archive = at(&client, &id, Method::GET, "/download", &query)?.send().await?.bytes().await?;
    let mut inside: Vec<Vec<u8>> = tar::Archive::new(&archive[..])
        .entries()?
        .map(|entry| Ok(entry?.path_bytes().strip_prefix(b"odd/").unwrap_or_default().to_vec()))
        .collect::<Result<_>>()?;
    inside.sort();
    let mut wanted: Vec<Vec<u8>> = names.iter().map(|name| name.as_bytes().to_vec()).collect();
    wanted.extend([Vec::new(), b"\xff\xfe bytes".to_vec()]);
    wanted.sort();
    ensure!(inside == wanted, "{inside:?}");
    let back = at(&client, &id, Method::PUT, "/archive", &[("path", "/workspace/back")])?
        .body(archive)
        .send()
        .await?;
    ensure!(back.status() == 200, "{}", back.text().await?);
    client.output(&id, "diff -r /workspace/odd /workspace/back/odd").await?;
    for path in ["/workspace/odd", "/workspace/back"] {
        ensure!(at(&client, &id, Method::DELETE, "", &[("path", path)])?.send().await?.status() == 200);
    }
    ensure!(client.output(&id, "ls -A /workspace").await?.is_empty());

    // What is no name says so.
    for path in [
        format!("/workspace/{}", "x".repeat(256)),
        "workspace/relative".to_owned(),
        "/workspace/nul\0".to_owned(),
        format!("/workspace{}", "/x".repeat(3000)),
    ] {
        let refused = put(&client, &id, &path, "x").await?;
        let (got, body) = (refused.status(), refused.json::<Value>().await?);
        ensure!(got == 400 && body["code"] == "INVALID_PATH", "{path:?}: {got} {body}");
    }
    Ok(())
}

/// Turns a name from a directory to a link out and back, all the time.
const FLIP: &str = r"
import ctypes, os
os.makedirs('/workspace/race/mine/sub', exist_ok=True)
for name in ('shadow', 'sub/shadow'):
    with open('/workspace/race/mine/' + name, 'w') as out:
        out.write('mine')
os.symlink('/etc', '/workspace/race/out')
os.rename('/workspace/race/mine', '/workspace/race/way')
exchange = ctypes.CDLL(None).renameat2
print('flipping', flush=True)
while True:
    exchange(-100, b'/workspace/race/way', -100, b'/workspace/race/out', 2)
";

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn no_race_leads_out_of_the_roots() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let id = client.create("racing").await?;
    client.output(&id, "sudo sh -c 'ls -laR --time-style=full-iso /etc' | sha256sum >/tmp/before").await?;
    let query = [("command", "python3"), ("args", "-c"), ("args", FLIP)];
    let mut flipping = roost_tests::Framed::start(&client, &id, &query).await?;
    flipping.until("flipping").await?;
    let way = "/workspace/race/way";
    let (mut inside, mut outside) = (0, 0);
    for round in 0..120 {
        let (status, read) = get(&client, &id, &format!("{way}/shadow")).await?;
        match status.as_u16() {
            200 => {
                ensure!(read == b"mine", "round {round}: read {:?}", String::from_utf8_lossy(&read));
                inside += 1;
            }
            403 | 404 => outside += 1,
            _ => anyhow::bail!("round {round}: {status} {}", String::from_utf8_lossy(&read)),
        }
        // Whatever becomes of them, it must not be in /etc.
        let write = put(&client, &id, &format!("{way}/planted"), "x").await?.status();
        ensure!([200, 403, 404, 409].contains(&write.as_u16()), "round {round}: write {write}");
        for (route, body) in [
            ("mkdir", json!({ "path": format!("{way}/made/deep") })),
            ("rename", json!({ "from": format!("{way}/planted"), "to": format!("{way}/renamed") })),
            (
                "copy",
                json!({ "from": format!("{way}/sub"), "to": format!("{way}/copied"), "recursive": true }),
            ),
            ("chmod", json!({ "path": format!("{way}/shadow"), "mode": "0666" })),
        ] {
            let status = client.post(&format!("/computers/{id}/files/{route}"), body).await?.status.as_u16();
            ensure!(status < 500, "round {round}: {route} {status}");
        }
        let remove =
            at(&client, &id, Method::DELETE, "", &[("path", &format!("{way}/passwd"))])?.send().await?;
        ensure!(remove.status() != 200 && remove.status().as_u16() < 500, "round {round}: removed");
    }
    println!("{inside} inside, {outside} refused");
    ensure!(inside > 0 && outside > 0, "no race at all: {inside} inside, {outside} refused");
    flipping.socket.close(None).await?;
    let after = "sudo sh -c 'ls -laR --time-style=full-iso /etc' | sha256sum | cmp - /tmp/before";
    client.output(&id, after).await?;
    Ok(())
}
