//! Two real servers on one real PostgreSQL database and one data directory: what is made through one is there for the
//! other, both tell their subscribers the same, and where one is killed the other goes on with its work.
//!
//! `ROOST_TEST_DATABASE` has the address of the database server, which `cargo xtask test` starts.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::Response;
use roost_tests::{Answer, Client, Server};
use serde_json::{Value, json};

/// Longer than the lease of a server and a start on a busy host.
const PATIENCE: Duration = Duration::from_secs(120);

/// An event: its number, its type, and what it says.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    id: u64,
    kind: String,
    data: Value,
}

/// An open stream of all events of the tenant.
struct Listening {
    response: Response,
    text: String,
    /// Everything that was heard on it.
    heard: BTreeMap<u64, Told>,
}

impl Listening {
    async fn open(client: &Client, after: Option<u64>) -> Result<Self> {
        let mut request = client.http.get(format!("{}/api/v1/events/stream", client.url));
        request = request.bearer_auth(&client.key);
        if let Some(id) = after {
            request = request.header("last-event-id", format!("evt_{id}"));
        }
        let response = request.send().await?.error_for_status()?;
        let mut listening = Self { response, text: String::new(), heard: BTreeMap::new() };
        let first = listening.paragraph().await?;
        ensure!(first == ": connected", "{first}");
        Ok(listening)
    }

    async fn paragraph(&mut self) -> Result<String> {
        loop {
            if let Some((paragraph, rest)) = self.text.split_once("\n\n") {
                let paragraph = paragraph.to_owned();
                self.text = rest.to_owned();
                return Ok(paragraph);
            }
            let bytes = self.response.chunk().await?.context("the stream has ended")?;
            self.text.push_str(std::str::from_utf8(&bytes)?);
        }
    }

    async fn next(&mut self) -> Result<Told> {
        loop {
            let paragraph = self.paragraph().await?;
            let field = |name: &str| {
                paragraph
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                    .map(str::to_owned)
            };
            let (Some(id), Some(kind), Some(data)) = (field("id"), field("event"), field("data")) else {
                continue;
            };
            let told = Told { id: number(&id)?, kind, data: serde_json::from_str(&data)? };
            ensure!(self.heard.insert(told.id, told.clone()).is_none(), "told twice: {told:?}");
            return Ok(told);
        }
    }

    /// Waits for an event of this type about a computer.
    async fn until(&mut self, kind: &str, computer: &str) -> Result<Told> {
        let found = async {
            loop {
                let told = self.next().await?;
                if told.kind == kind && told.data["computer_id"] == computer {
                    return Ok(told);
                }
            }
        };
        let heard = format!("no {kind} of {computer}");
        tokio::time::timeout(PATIENCE, found).await.context(heard)?
    }

    /// The computer that the next event of this type is about.
    async fn next_of(&mut self, kind: &str) -> Result<String> {
        let found = async {
            loop {
                let told = self.next().await?;
                if told.kind == kind {
                    return told.data["computer_id"]
                        .as_str()
                        .map(str::to_owned)
                        .context("it names no computer");
                }
            }
        };
        tokio::time::timeout(PATIENCE, found).await.with_context(|| format!("no {kind}"))?
    }
}

/// Ids are numbers that grow.
fn number(id: &str) -> Result<u64> {
    Ok(id.strip_prefix("evt_").with_context(|| format!("not the id of an event: {id}"))?.parse()?)
}

/// A new database beside the one of the address. It goes with the database server.
fn database() -> Result<String> {
    let beside = std::env::var("ROOST_TEST_DATABASE").context(
        "ROOST_TEST_DATABASE is not set: it has the address of a PostgreSQL server, as `cargo xtask test` sets it",
    )?;
    let name = format!("roost_servers_{}", std::process::id());
    let made = Command::new("psql").args([&beside, "-qc", &format!("CREATE DATABASE {name}")]).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (server, rest) =
        beside.split_once("/postgres?").context("not the address of the database postgres")?;
    Ok(format!("{server}/{name}?{rest}"))
}

async fn keyed(client: &Client, path: &str, key: &str) -> Result<Answer> {
    let request = client.http.post(format!("{}/api/v1{path}", client.url)).bearer_auth(&client.key);
    let response = request.header("idempotency-key", key).json(&json!({})).send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    Ok(Answer { status, headers, bytes: response.bytes().await?.to_vec() })
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn two_servers_are_one_cloud_and_one_goes_on_for_both() -> Result<()> {
    let database = database()?;
    let mut a = Server::start_with(&[("ROOST_DATABASE", &database)])?;
    let b = a.start_beside()?;
    ensure!(a.key == b.key, "each has a tenant of its own");
    let (mut at_a, at_b) = (a.client(), b.client());
    let (mut of_a, mut of_b) = (Listening::open(&at_a, None).await?, Listening::open(&at_b, None).await?);

    // Through either server.
    let source = at_a.create("shared").await?;
    of_a.until("computer.running", &source).await?;
    of_b.until("computer.running", &source).await?;
    ensure!(of_a.heard == of_b.heard, "{:?} and {:?}", of_a.heard, of_b.heard);
    ensure!(at_b.get(&format!("/computers/{source}")).await?.json()?["status"] == "running");
    ensure!(at_b.get("/computers").await?.json()?["total"] == 1);
    at_b.output(&source, "echo kept > ~/mark && sync ~/mark").await?;
    ensure!(at_a.output(&source, "cat ~/mark").await? == "kept");
    at_b.verb(&source, "stop").await?;
    of_a.until("computer.stopped", &source).await?;
    at_a.verb(&source, "start").await?;
    of_b.until("computer.running", &source).await?;

    // One is killed while it makes a clone, at different moments.
    for (round, pause) in [0, 40, 150, 400].into_iter().enumerate() {
        let key = format!("clone-{round}");
        let path = format!("/computers/{source}/clone");
        let asked = tokio::spawn({
            let (client, path, key) = (at_a.clone(), path.clone(), key.clone());
            async move { keyed(&client, &path, &key).await }
        });
        let clone = of_b.next_of("computer.created").await?;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        a.kill()?;
        let answered = asked.await?;

        // The other ends what it had begun, once.
        of_b.until("computer.running", &clone).await.with_context(|| format!("{pause} ms"))?;
        ensure!(at_b.output(&clone, "cat ~/mark").await? == "kept", "{pause} ms");
        // Nobody is told anything else than what was answered, and nothing is made twice.
        let again = keyed(&at_b, &path, &key).await?;
        match answered {
            Ok(answer) => {
                ensure!(again.bytes == answer.bytes, "{pause} ms: another answer: {}", again.json()?)
            }
            Err(_) if again.status == 409 => {
                ensure!(again.json()?["code"] == "IDEMPOTENCY_IN_PROGRESS", "{}", again.json()?);
            }
            Err(_) => ensure!(again.json()?["id"] == clone.as_str(), "{pause} ms: {}", again.json()?),
        }
        let total = at_b.get("/computers").await?.json()?["total"].clone();
        ensure!(total == 2, "{pause} ms: {total} computers");

        // Who listened to the killed one goes on at the new one, without gap or repetition.
        let last = *of_a.heard.keys().next_back().context("nothing was heard")?;
        a.kill_and_start_again()?;
        at_a = a.client();
        let mut resumed = Listening::open(&at_a, Some(last)).await?;
        at_a.delete(&format!("/computers/{clone}")).await?;
        resumed.until("computer.deleted", &clone).await?;
        of_b.until("computer.deleted", &clone).await?;
        of_a.heard.append(&mut resumed.heard);
        ensure!(of_a.heard == of_b.heard, "{pause} ms: {:?} and {:?}", of_a.heard, of_b.heard);
        resumed.heard = std::mem::take(&mut of_a.heard);
        of_a = resumed;
    }

    // Each second of running is in one session, whoever wrote it.
    let sessions = at_b.get("/usage/sessions?page_size=100").await?.json()?;
    let sessions = sessions["data"].as_array().context("no sessions")?;
    let mut open = Vec::new();
    let mut ends: BTreeMap<String, String> = BTreeMap::new();
    for session in sessions.iter().rev() {
        let computer = session["computer_id"].as_str().context("whose?")?.to_owned();
        let started = session["started_at"].as_str().context("since when?")?;
        if let Some(end) = ends.get(&computer) {
            ensure!(end.as_str() <= started, "two sessions at once: {sessions:?}");
        }
        match session["ended_at"].as_str() {
            Some(end) => drop(ends.insert(computer, end.to_owned())),
            None => open.push(computer),
        }
    }
    ensure!(open == [source.clone()], "open: {open:?}");

    ensure!(at_a.delete(&format!("/computers/{source}")).await?.status == 200);
    ensure!(at_b.get(&format!("/computers/{source}")).await?.status == 404);
    a.no_orphans()
}
