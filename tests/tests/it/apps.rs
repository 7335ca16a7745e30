//! Apps on a real computer: what was selected is installed from the mirror of this machine's apt configuration, a failure
//! says why and costs nothing else, and what there is comes from the desktop entries.
//!
//! A mirror in a private network wants `ROOST_ALLOW_NETWORK`, which servers under test inherit.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::Response;
use roost_tests::{Client, Server};
use serde_json::{Value, json};

/// apt under emulation takes minutes to read its lists.
const PATIENCE: Duration = Duration::from_secs(900);
/// Small, and not in the template.
const SMALL: &str = "galculator";
const OTHER: &str = "meld";
/// No mirror, and nothing left of what it had.
const NO_MIRROR: &str = "mv /etc/apt/sources.list.d/debian.sources /root/ && rm -rf /var/lib/apt/lists/*";

/// The events of a computer's apps from the first one on.
struct Progress {
    response: Response,
    text: String,
}

impl Progress {
    async fn of(client: &Client, id: &str) -> Result<Self> {
        let url = format!("{}/api/v1/computers/{id}/events?types=app.*", client.url);
        let request = client.http.get(url).bearer_auth(&client.key).header("last-event-id", "evt_0");
        Ok(Self { response: request.send().await?.error_for_status()?, text: String::new() })
    }

    async fn next(&mut self) -> Result<Value> {
        loop {
            while let Some((paragraph, rest)) = self.text.split_once("\n\n") {
                let data = paragraph.lines().find_map(|line| line.strip_prefix("data: ")).map(str::to_owned);
                self.text = rest.to_owned();
                if let Some(data) = data {
                    return Ok(serde_json::from_str(&data)?);
                }
            }
            let bytes = self.response.chunk().await?.context("the stream has ended")?;
            self.text.push_str(std::str::from_utf8(&bytes)?);
        }
    }

    /// The end of an installation, and how far it was told to be until then.
    async fn end(&mut self, app: &str) -> Result<(Value, Vec<u64>)> {
        let mut told = Vec::new();
        let ended = async {
            loop {
                let event = self.next().await?;
                ensure!(event["app"] == app, "of another app: {event}");
                if event["type"] != "app.installing" {
                    return Ok(event);
                }
                told.push(event["progress"].as_u64().context("no progress")?);
            }
        };
        let event = tokio::time::timeout(PATIENCE, ended).await.context("it does not end")??;
        Ok((event, told))
    }
}

async fn installation(client: &Client, id: &str, app: &str) -> Result<Value> {
    let apps = client.get(&format!("/computers/{id}/apps")).await?.json()?;
    let found = apps["installations"].as_array().and_then(|all| all.iter().find(|each| each["app"] == app));
    found.cloned().with_context(|| format!("nothing is known of {app}: {apps}"))
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn selected_apps_are_installed_and_a_failure_says_why() -> Result<()> {
    let server = Server::start()?;
    let client = server.client();
    let body = json!({ "name": "apps", "template_type": "miosa-desktop", "selected_apps": [SMALL] });
    let created = client.post("/computers?wait=60", body).await?;
    ensure!(created.status == 201, "{}", created.json()?);
    let created = created.json()?;
    ensure!(created["selected_apps"] == json!([SMALL]), "{created}");
    let id = created["id"].as_str().context("no id")?;
    client.running(id).await?;

    let mut progress = Progress::of(&client, id).await?;
    let (end, told) = progress.end(SMALL).await?;
    ensure!(end["type"] == "app.installed", "{end}");
    ensure!(told.len() > 1 && told.is_sorted(), "it was told to be at {told:?}");
    ensure!(installation(&client, id, SMALL).await?["status"] == "installed");
    client.output(id, &format!("test -x /usr/bin/{SMALL}")).await?;
    let apps = client.get(&format!("/computers/{id}/apps")).await?.json()?;
    let entry = apps["apps"].as_array().and_then(|all| all.iter().find(|each| each["id"] == SMALL));
    let entry = entry.with_context(|| format!("it is not listed: {apps}"))?;
    for field in ["name", "exec", "icon"] {
        ensure!(entry[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {entry}");
    }
    ensure!(entry["categories"].as_array().is_some_and(|all| !all.is_empty()), "{entry}");

    // Nothing can be had from nowhere.
    client.output(id, &format!("sudo sh -c '{NO_MIRROR}'")).await?;
    let selected = client.post(&format!("/computers/{id}/apps"), json!({ "apps": [OTHER] })).await?;
    ensure!(selected.status == 202, "{}", selected.json()?);
    let (end, _) = progress.end(OTHER).await?;
    ensure!(end["type"] == "app.failed", "{end}");
    let reason = end["message"].as_str().context("it does not say why")?;
    ensure!(reason.contains(OTHER), "it does not name the package: {reason}");
    let failed = installation(&client, id, OTHER).await?;
    ensure!(failed["status"] == "failed" && failed["error"] == reason, "{failed}");

    // The computer is what it was.
    let computer = client.get(&format!("/computers/{id}")).await?.json()?;
    ensure!(computer["status"] == "running", "{computer}");
    client.output(id, &format!("test -x /usr/bin/{SMALL}")).await?;
    ensure!(installation(&client, id, SMALL).await?["status"] == "installed");
    ensure!(client.delete(&format!("/computers/{id}")).await?.status == 200);
    server.no_orphans()
}
