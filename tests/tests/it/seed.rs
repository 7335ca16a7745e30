//! The public page of the Computers API, row by row: every example, field, status and error it names, in its order.
//!
//! A row that does not hold does not end the test: at its end all of them are named.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use roost_tests::{Answer, Client, Server, processes_naming};
use serde_json::{Value, json};

/// What was found, row by row.
#[derive(Debug, Default)]
struct Sheet {
    heading: &'static str,
    rows: usize,
    failed: Vec<String>,
}

impl Sheet {
    /// Begins a section of the page.
    fn section(&mut self, heading: &'static str) {
        self.heading = heading;
    }

    fn row(&mut self, row: &str, holds: Result<()>) {
        self.rows += 1;
        if let Err(error) = holds {
            self.failed.push(format!("{} / {row}: {error:#}", self.heading));
        }
    }

    /// An answer has this status, and the rows about its fields are asked of its body.
    fn answer(&mut self, row: &str, answer: Result<Answer>, status: StatusCode) -> Value {
        let body = answer.and_then(|answer| {
            let body = answer.json()?;
            ensure!(answer.status == status, "{} instead of {status}: {body}", answer.status);
            Ok(body)
        });
        match body {
            Ok(body) => {
                self.row(row, Ok(()));
                body
            }
            Err(error) => {
                self.row(row, Err(error));
                Value::Null
            }
        }
    }

    /// A row of a table of errors. `text` is its message if that is a sentence, and else its code.
    fn error(&mut self, answer: Result<Answer>, status: u16, text: &str) {
        let holds = answer.and_then(|answer| {
            let body = answer.json()?;
            ensure!(answer.status == status, "{}: {body}", answer.status);
            let is_code = text.chars().all(|c| c.is_ascii_uppercase() || c == '_');
            let said = if is_code { &body["code"] } else { &body["message"] };
            ensure!(said == text, "says {said}: {body}");
            ensure!(
                body["error"]["code"] == body["code"] && body["error"]["message"] == body["message"],
                "{body}"
            );
            Ok(())
        });
        self.row(&format!("{status} {text}"), holds);
    }

    fn field(&mut self, body: &Value, field: &str, holds: impl Fn(&Value) -> bool) {
        let found = &body[field];
        self.row(
            &format!("field {field}"),
            if holds(found) { Ok(()) } else { Err(anyhow::anyhow!("is {found}")) },
        );
    }

    fn equal(&mut self, body: &Value, field: &str, wanted: &Value) {
        self.field(body, field, |found| found == wanted);
    }

    fn finish(self) -> Result<()> {
        println!("{} rows", self.rows);
        ensure!(
            self.failed.is_empty(),
            "{} of {} rows:\n{}",
            self.failed.len(),
            self.rows,
            self.failed.join("\n")
        );
        Ok(())
    }
}

fn is_uuid(value: &Value) -> bool {
    let Some(text) = value.as_str() else { return false };
    text.len() == 36 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

fn is_time(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.len() >= 20 && text.contains('T') && text.ends_with('Z'))
}

fn is_text(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}

/// An address whose path is this.
fn leads_to(value: &Value, path: &str) -> bool {
    let Some((scheme, rest)) = value.as_str().and_then(|text| text.split_once("://")) else { return false };
    let address = rest.split('?').next().unwrap_or_default();
    matches!(scheme, "http" | "https" | "ws" | "wss") && address.ends_with(path)
}

const NOBODY: &str = "550e8400-e29b-41d4-a716-446655440000";
const OK: StatusCode = StatusCode::OK;
const CREATED: StatusCode = StatusCode::CREATED;

/// Every field of the page's Computer.
fn computer_fields(sheet: &mut Sheet, computer: &Value) {
    for field in ["id", "tenant_id", "owner_user_id", "workspace_id", "project_id"] {
        sheet.field(computer, field, is_uuid);
    }
    for field in ["name", "slug", "status", "size"] {
        sheet.field(computer, field, is_text);
    }
    sheet.equal(computer, "template_type", &json!("miosa-desktop"));
    for field in ["vcpus", "memory_mb", "auto_stop"] {
        sheet.field(computer, field, Value::is_u64);
    }
    for field in [
        "vm_id",
        "external_workspace_id",
        "external_user_id",
        "external_project_id",
        "agent_session_id",
        "agent_status",
    ] {
        let there = computer.get(field).is_some();
        sheet.field(computer, field, |value| there && (value.is_null() || value.is_string()));
    }
    sheet.field(computer, "sandbox_url", |value| leads_to(value, ""));
    sheet.field(computer, "desktop_url", |value| leads_to(value, "/desktop/index.html"));
    sheet.field(computer, "selected_apps", Value::is_array);
    sheet.field(computer, "settings", Value::is_object);
    sheet.field(computer, "ai_config", Value::is_object);
    sheet.equal(computer, "resolution", &json!("1280x720"));
    sheet.field(computer, "created_at", is_time);
    sheet.field(computer, "updated_at", is_time);
}

#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn every_row_of_the_page_holds() -> Result<()> {
    let server = Server::start_with(&[("ROOST_REGIONS", "local,us-east-ny")])?;
    let client = server.client();
    let mut sheet = Sheet::default();
    let computer = create(&mut sheet, &client).await?;
    let id = computer["id"].as_str().context("nothing was created")?;
    list(&mut sheet, &client, &computer).await;
    get(&mut sheet, &client, &computer).await;
    update(&mut sheet, &client, id).await;
    delete(&mut sheet, &client).await;
    start_stop_restart(&mut sheet, &client, id).await;
    auto_stop(&mut sheet, &client, id).await;
    connections(&mut sheet, &client, &computer).await;
    apps(&mut sheet, &client, id).await;
    clone(&mut sheet, &client, &computer).await;
    resize_and_move(&mut sheet, &client, id).await;
    metrics(&mut sheet, &client, id).await;
    env(&mut sheet, &client, id).await;
    ports(&mut sheet, &client, id).await;
    common_errors(&mut sheet, &server, id).await?;
    membership(&mut sheet, &client, id).await?;
    sheet.finish()
}

async fn create(sheet: &mut Sheet, client: &Client) -> Result<Value> {
    sheet.section("Create a Computer");
    let body = json!({
        "name": "my-computer", "template_type": "miosa-desktop", "size": "small",
        "workspace_slug": "dr-smith-clinic", "workspace_name": "Dr. Smith Clinic",
        "project_slug": "records-portal", "project_name": "Records Portal",
        "external_workspace_id": "clinic_123", "external_user_id": "dr-smith-456", "external_project_id": "project_789",
    });
    let computer = sheet.answer("the example", client.post("/computers", body).await, CREATED);
    computer_fields(sheet, &computer);
    for (field, wanted) in [
        ("name", json!("my-computer")),
        ("slug", json!("my-computer")),
        ("size", json!("small")),
        ("vcpus", json!(1)),
        ("memory_mb", json!(4096)),
        ("status", json!("provisioning")),
        ("vm_id", Value::Null),
        ("external_workspace_id", json!("clinic_123")),
        ("external_user_id", json!("dr-smith-456")),
        ("external_project_id", json!("project_789")),
        ("selected_apps", json!([])),
        ("settings", json!({})),
        ("ai_config", json!({})),
        ("agent_session_id", Value::Null),
        ("agent_status", Value::Null),
        ("auto_stop", json!(0)),
    ] {
        sheet.equal(&computer, field, &wanted);
    }
    client.running(computer["id"].as_str().context("nothing was created")?).await?;

    // What is absent is as the page says.
    let plain = client.post("/computers", json!({ "name": "plain", "template_type": "miosa-desktop" })).await;
    let plain = sheet.answer("defaults", plain, CREATED);
    sheet.equal(&plain, "size", &json!("small"));
    sheet.section("Create a Computer: workspaces by slug");
    sheet.field(&plain, "workspace_id", |id| is_uuid(id) && *id != computer["workspace_id"]);
    sheet.field(&plain, "project_id", |id| is_uuid(id) && *id != computer["project_id"]);
    sheet.equal(&plain, "external_user_id", &Value::Null);

    // The same workspace and project by their slugs, and by their ids; gone again at once.
    for (row, body) in [
        (
            "workspace_slug and project_slug name those that exist",
            json!({ "workspace_slug": "dr-smith-clinic", "project_slug": "records-portal" }),
        ),
        (
            "workspace_id and project_id",
            json!({ "workspace_id": computer["workspace_id"], "project_id": computer["project_id"] }),
        ),
    ] {
        let mut body = body;
        body["name"] = json!("second");
        body["template_type"] = json!("miosa-desktop");
        let second = sheet.answer(row, client.post("/computers", body).await, CREATED);
        sheet.equal(&second, "workspace_id", &computer["workspace_id"]);
        sheet.equal(&second, "project_id", &computer["project_id"]);
        remove(sheet, client, &second).await;
    }
    remove(sheet, client, &plain).await;

    sheet.error(
        client.post("/computers", json!({ "template_type": "miosa-desktop" })).await,
        400,
        "name is required",
    );
    sheet.error(client.post("/computers", json!({ "name": "x" })).await, 400, "name is required");
    Ok(computer)
}

async fn remove(sheet: &mut Sheet, client: &Client, computer: &Value) {
    if let Some(id) = computer["id"].as_str() {
        sheet.answer("delete", client.delete(&format!("/computers/{id}")).await, OK);
    }
}

async fn list(sheet: &mut Sheet, client: &Client, computer: &Value) {
    sheet.section("List Computers");
    let listed = sheet.answer("all", client.get("/computers").await, OK);
    sheet.equal(&listed, "total", &json!(1));
    let row = listed["computers"][0].clone();
    for field in ["id", "name", "size"] {
        sheet.equal(&row, field, &computer[field]);
    }
    sheet.equal(&row, "status", &json!("running"));
    sheet.field(&row, "created_at", is_time);
    for filter in
        ["workspace_id", "project_id", "external_workspace_id", "external_user_id", "external_project_id"]
    {
        let value = computer[filter].as_str().unwrap_or_default();
        let found = client.get(&format!("/computers?{filter}={value}")).await;
        let found = sheet.answer(&format!("filter {filter}"), found, OK);
        sheet.equal(&found, "total", &json!(1));
        let other = if filter.starts_with("external") { "another" } else { NOBODY };
        let none = client.get(&format!("/computers?{filter}={other}")).await;
        let none = sheet.answer(&format!("filter {filter} without a match"), none, OK);
        sheet.equal(&none, "total", &json!(0));
        sheet.equal(&none, "computers", &json!([]));
    }
}

async fn get(sheet: &mut Sheet, client: &Client, computer: &Value) {
    sheet.section("Get a Computer");
    let id = computer["id"].as_str().unwrap_or_default();
    let read = sheet.answer("the example", client.get(&format!("/computers/{id}")).await, OK);
    computer_fields(sheet, &read);
    sheet.equal(&read, "status", &json!("running"));
    sheet.field(&read, "vm_id", is_text);
    sheet.error(client.get("/computers/not-a-uuid").await, 400, "invalid computer id");
    sheet.error(client.get(&format!("/computers/{NOBODY}")).await, 404, "computer not found");
}

async fn update(sheet: &mut Sheet, client: &Client, id: &str) {
    sheet.section("Update a Computer");
    let path = format!("/computers/{id}");
    let body = json!({ "agent_session_id": "session-uuid" });
    let changed = sheet.answer("the example", client.patch(&path, body).await, OK);
    computer_fields(sheet, &changed);
    sheet.equal(&changed, "agent_session_id", &json!("session-uuid"));
    let body = json!({ "agent_session_id": "another" }).to_string().into_bytes();
    let put = client.request(Method::PUT, &format!("/api/v1{path}"), Some(body)).await;
    let put = sheet.answer("PUT", put, OK);
    sheet.equal(&put, "agent_session_id", &json!("another"));
}

async fn delete(sheet: &mut Sheet, client: &Client) {
    sheet.section("Delete a Computer");
    let body = json!({ "name": "brief", "template_type": "miosa-desktop" });
    let brief = sheet.answer("create", client.post("/computers", body).await, CREATED);
    let id = brief["id"].as_str().unwrap_or_default().to_owned();
    let gone = sheet.answer("the example", client.delete(&format!("/computers/{id}")).await, OK);
    sheet.row(
        "body",
        if gone == json!({ "id": id, "deleted": true }) { Ok(()) } else { Err(anyhow::anyhow!("{gone}")) },
    );
    sheet.error(client.get(&format!("/computers/{id}")).await, 404, "computer not found");
    sheet.error(client.delete(&format!("/computers/{id}")).await, 404, "computer not found");
}

/// The three sections in one walk through the statuses; the computer runs before and after.
async fn start_stop_restart(sheet: &mut Sheet, client: &Client, id: &str) {
    let verb = async |verb: &str| client.post(&format!("/computers/{id}/{verb}"), json!({})).await;
    sheet.section("Restart a Computer");
    let restarted = sheet.answer("the example", verb("restart").await, OK);
    sheet.equal(&restarted, "status", &json!("running"));
    sheet.section("Start a Computer");
    sheet.error(verb("start").await, 409, "computer cannot be started from its current status");
    sheet.section("Stop a Computer");
    let stopped = sheet.answer("the example", verb("stop").await, OK);
    sheet.equal(&stopped, "status", &json!("stopped"));
    sheet.error(verb("stop").await, 409, "computer cannot be stopped from its current status");
    sheet.section("Restart a Computer");
    sheet.error(verb("restart").await, 409, "computer must be running to restart");
    sheet.section("Start a Computer");
    let started = sheet.answer("the example", verb("start").await, OK);
    sheet.equal(&started, "status", &json!("running"));
    computer_fields(sheet, &started);
}

async fn auto_stop(sheet: &mut Sheet, client: &Client, id: &str) {
    sheet.section("Auto-Stop Configuration");
    let path = format!("/computers/{id}/auto-stop");
    for (value, wanted) in [
        (json!(3600), json!({ "auto_stop_seconds": 3600, "enabled": true })),
        (json!(0), json!({ "auto_stop_seconds": 0, "enabled": false })),
        (json!(60), json!({ "auto_stop_seconds": 60, "enabled": true })),
        (Value::Null, json!({ "auto_stop_seconds": 0, "enabled": false })),
    ] {
        let set = client.patch(&path, json!({ "auto_stop_seconds": value })).await;
        let set = sheet.answer(&format!("PATCH {value}"), set, OK);
        let read = sheet.answer(&format!("GET after {value}"), client.get(&path).await, OK);
        for field in ["auto_stop_seconds", "enabled"] {
            sheet.equal(&set, field, &wanted[field]);
            sheet.equal(&read, field, &wanted[field]);
        }
        let computer = sheet.answer("the computer", client.get(&format!("/computers/{id}")).await, OK);
        sheet.equal(&computer, "auto_stop", &wanted["auto_stop_seconds"]);
    }
}

async fn connections(sheet: &mut Sheet, client: &Client, computer: &Value) {
    let id = computer["id"].as_str().unwrap_or_default();
    sheet.section("Get Desktop Stream Credentials");
    let given = client.get(&format!("/computers/{id}/vnc-credentials")).await;
    let given = sheet.answer("the example", given, OK);
    sheet.field(&given, "desktop_url", |url| leads_to(url, "/desktop/index.html"));
    sheet.field(&given, "token", is_text);
    let ends = format!("/ws/vnc/{id}?auth={}", given["token"].as_str().unwrap_or_default());
    sheet.field(&given, "ws_url", |url| {
        url.as_str().is_some_and(|url| url.starts_with("ws") && url.ends_with(&ends))
    });
    sheet.field(&given, "expires_at", Value::is_u64);
    sheet.equal(&given, "computer_id", &computer["id"]);
    sheet.equal(&given, "slug", &computer["slug"]);

    sheet.section("Get Stream Token");
    let path = format!("/api/v1/computers/{id}/stream-token");
    let given = sheet.answer("the example", client.request(Method::POST, &path, None).await, OK);
    sheet.field(&given, "token", is_text);
    sheet.field(&given, "expires_at", Value::is_u64);

    sheet.section("Get Computer URLs");
    let urls = sheet.answer("the example", client.get(&format!("/computers/{id}/urls")).await, OK);
    sheet.field(&urls, "desktop_url", |url| leads_to(url, "/desktop/index.html"));
    sheet.field(&urls, "stream_url", |url| leads_to(url, "/desktop/index.html"));
    sheet.field(&urls, "terminal_url", |url| leads_to(url, &format!("/ws/terminal/{id}")));
    sheet.equal(&urls, "computer_id", &computer["id"]);
}

async fn apps(sheet: &mut Sheet, client: &Client, id: &str) {
    sheet.section("List Installed Apps");
    let apps = sheet.answer("the example", client.get(&format!("/computers/{id}/apps")).await, OK);
    sheet.field(&apps, "apps", |apps| apps.as_array().is_some_and(|apps| !apps.is_empty()));
    let named =
        |name: &str| apps["apps"].as_array().is_some_and(|apps| apps.iter().any(|app| app["name"] == name));
    sheet.row(
        "the browser is among them",
        if named("Firefox ESR") { Ok(()) } else { Err(anyhow::anyhow!("{apps}")) },
    );
    for key in ["id", "name", "exec", "icon"] {
        sheet.field(&apps["apps"][0], key, Value::is_string);
    }
    sheet.field(&apps["apps"][0], "categories", Value::is_array);
}

async fn clone(sheet: &mut Sheet, client: &Client, computer: &Value) {
    sheet.section("Clone a Computer");
    let id = computer["id"].as_str().unwrap_or_default();
    let path = format!("/api/v1/computers/{id}/clone");
    let clone = sheet.answer("the example", client.request(Method::POST, &path, None).await, CREATED);
    computer_fields(sheet, &clone);
    sheet.field(&clone, "id", |other| *other != computer["id"]);
    sheet.equal(&clone, "status", &json!("provisioning"));
    let clone_id = clone["id"].as_str().unwrap_or_default();
    let ran = client.running(clone_id).await;
    sheet.row("progresses to running", ran);
    remove(sheet, client, &clone).await;
}

/// Of a stopped computer, which runs before and after.
async fn resize_and_move(sheet: &mut Sheet, client: &Client, id: &str) {
    sheet.section("Resize a Computer");
    let path = format!("/computers/{id}/resize");
    let running = client.post(&path, json!({ "size": "medium" })).await;
    sheet.answer("must be stopped first", running, StatusCode::CONFLICT);
    sheet.answer("stop", client.post(&format!("/computers/{id}/stop"), json!({})).await, OK);
    for (size, vcpus, memory) in [("medium", 2, 8192), ("large", 4, 16384), ("small", 1, 4096)] {
        let resized = sheet.answer(size, client.post(&path, json!({ "size": size })).await, OK);
        computer_fields(sheet, &resized);
        sheet.equal(&resized, "size", &json!(size));
        sheet.equal(&resized, "vcpus", &json!(vcpus));
        sheet.equal(&resized, "memory_mb", &json!(memory));
        sheet.equal(&resized, "status", &json!("stopped"));
    }
    sheet.section("Move a Computer");
    let path = format!("/computers/{id}/move");
    let moved = sheet.answer("the example", client.post(&path, json!({ "region": "us-east-ny" })).await, OK);
    computer_fields(sheet, &moved);
    sheet.equal(&moved, "region", &json!("us-east-ny"));
    sheet.answer("start", client.post(&format!("/computers/{id}/start"), json!({})).await, OK);
    let running = client.post(&path, json!({ "region": "local" })).await;
    sheet.answer("must be stopped", running, StatusCode::CONFLICT);
}

async fn metrics(sheet: &mut Sheet, client: &Client, id: &str) {
    sheet.section("Get Metrics");
    for query in ["", "?window=1h", "?window=24h", "?window=7d"] {
        let metrics = client.get(&format!("/computers/{id}/metrics{query}")).await;
        let metrics = sheet.answer(&format!("the example {query}"), metrics, OK);
        for field in ["cpu_percent", "memory_percent"] {
            sheet.field(&metrics, field, |points| {
                points.as_array().is_some_and(|points| {
                    points.iter().all(|point| is_time(&point["ts"]) && point["value"].is_number())
                })
            });
        }
        sheet.field(&metrics, "credits_per_hour", Value::is_number);
    }
}

async fn env(sheet: &mut Sheet, client: &Client, id: &str) {
    sheet.section("Env Vars");
    let path = format!("/computers/{id}/env");
    let inside = async || client.output(id, "printf %s \"$DATABASE_URL\"").await;
    let body = json!({ "name": "DATABASE_URL", "value": "postgres://user:pass@host/db" });
    let made = sheet.answer("Create", client.post(&path, body).await, CREATED);
    sheet.equal(&made, "name", &json!("DATABASE_URL"));
    let listed = sheet.answer("List", client.get(&path).await, OK);
    sheet.field(&listed, "env", |rows| {
        rows.as_array().is_some_and(|rows| rows.len() == 1 && rows[0]["name"] == "DATABASE_URL")
    });
    let told = inside().await.and_then(|told| {
        ensure!(told == "postgres://user:pass@host/db", "{told:?}");
        Ok(())
    });
    sheet.row("injected into the VM environment", told);
    let changed = client.patch(&format!("{path}/DATABASE_URL"), json!({ "value": "sqlite://db" })).await;
    sheet.answer("Update", changed, OK);
    let told = inside().await.and_then(|told| {
        ensure!(told == "sqlite://db", "{told:?}");
        Ok(())
    });
    sheet.row("the new value in the VM environment", told);
    sheet.answer("Delete", client.delete(&format!("{path}/DATABASE_URL")).await, OK);
    let listed = sheet.answer("List after Delete", client.get(&path).await, OK);
    sheet.equal(&listed, "env", &json!([]));
}

async fn ports(sheet: &mut Sheet, client: &Client, id: &str) {
    sheet.section("Port Exposure");
    let path = format!("/computers/{id}/ports");
    let body = json!({ "port": 3000, "visibility": "public" });
    let made = sheet.answer("Expose a Port", client.post(&path, body).await, CREATED);
    sheet.equal(&made, "port", &json!(3000));
    sheet.equal(&made, "visibility", &json!("public"));
    for visibility in ["private", "protected", "public"] {
        let changed = client.patch(&format!("{path}/3000"), json!({ "visibility": visibility })).await;
        let changed = sheet.answer("Update Port Visibility", changed, OK);
        sheet.equal(&changed, "visibility", &json!(visibility));
    }
    let listed = sheet.answer("List Ports", client.get(&path).await, OK);
    sheet.field(&listed, "ports", |rows| {
        rows.as_array().is_some_and(|rows| rows.len() == 1 && rows[0]["port"] == 3000)
    });
    for (row, port, accepted) in
        [("port 1", 1, true), ("port 65535", 65535, true), ("port 0", 0, false), ("port 65536", 65536, false)]
    {
        let tried = client.post(&path, json!({ "port": port, "visibility": "private" })).await;
        sheet.answer(row, tried, if accepted { CREATED } else { StatusCode::UNPROCESSABLE_ENTITY });
    }
    let wrong = client.post(&path, json!({ "port": 3000, "visibility": "secret" })).await;
    sheet.answer("another visibility", wrong, StatusCode::UNPROCESSABLE_ENTITY);
    for port in [3000, 1, 65535] {
        sheet.answer("Remove Port", client.delete(&format!("{path}/{port}")).await, OK);
    }
    let listed = sheet.answer("List Ports", client.get(&path).await, OK);
    sheet.equal(&listed, "ports", &json!([]));
}

async fn common_errors(sheet: &mut Sheet, server: &Server, id: &str) -> Result<()> {
    sheet.section("Common Errors");
    let client = server.client();
    for (method, route) in [
        ("get", ""),
        ("patch", ""),
        ("delete", ""),
        ("post", "/start"),
        ("post", "/stop"),
        ("post", "/clone"),
        ("get", "/urls"),
        ("get", "/ports"),
    ] {
        for (id, status, text) in
            [("not-a-uuid", 400, "invalid computer id"), (NOBODY, 404, "computer not found")]
        {
            let method = Method::from_bytes(method.to_uppercase().as_bytes())?;
            let body = (method != Method::GET).then(|| b"{}".to_vec());
            let path = format!("/api/v1/computers/{id}{route}");
            sheet.error(client.request(method, &path, body).await, status, text);
        }
    }

    // A QEMU that stands still is an agent that does not answer.
    // It was moved there above.
    let machine = server.machine_in("us-east-ny", id);
    let found = processes_naming(&machine)?;
    let qemu = found.iter().find(|(_, command)| command.contains("qemu-system")).context("no QEMU")?.0;
    signal(qemu, "STOP")?;
    let unreachable = tokio::time::timeout(
        Duration::from_secs(120),
        client.post(&format!("/computers/{id}/exec"), json!({ "command": "true", "timeout": 1 })),
    )
    .await;
    signal(qemu, "CONT")?;
    sheet.error(unreachable.context("no answer").and_then(|answer| answer), 502, "AGENT_UNAVAILABLE");
    let back = client.output(id, "true").await.map(drop);
    sheet.row("the agent answers again", back);

    client.verb(id, "stop").await?;
    for (method, route, body) in [
        (Method::POST, "exec", json!({ "command": "true" })),
        (Method::GET, "desktop/screenshot", Value::Null),
        (Method::POST, "clone", json!({})),
        (Method::GET, "vnc-credentials", Value::Null),
    ] {
        let body = (!body.is_null()).then(|| body.to_string().into_bytes());
        let refused = client.request(method, &format!("/api/v1/computers/{id}/{route}"), body).await;
        sheet.error(refused, 409, "COMPUTER_NOT_RUNNING");
    }
    client.verb(id, "start").await?;
    Ok(())
}

fn signal(pid: u32, name: &str) -> Result<()> {
    let status = std::process::Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status()?;
    ensure!(status.success(), "failed to send {name} to {pid}");
    Ok(())
}

/// Rows that want a second user, a second tenant, or no tenant.
async fn membership(sheet: &mut Sheet, client: &Client, id: &str) -> Result<()> {
    sheet.section("Common Errors: tenants and members");
    let computer = client.get(&format!("/computers/{id}")).await?.json()?;
    let tenant = computer["tenant_id"].as_str().context("no tenant")?;
    let made = client.post(&format!("/admin/tenants/{tenant}/users"), json!({ "name": "colleague" })).await;
    let user = sheet.answer("a second user", made, CREATED);
    let body = json!({ "name": "his", "user_id": user["data"]["id"] });
    let made = client.post(&format!("/admin/tenants/{tenant}/keys"), body).await;
    let key = sheet.answer("his key", made, CREATED);
    let colleague =
        Client { key: key["data"]["key"].as_str().unwrap_or_default().to_owned(), ..client.clone() };
    let path = format!("/computers/{id}");
    sheet.error(colleague.get(&path).await, 403, "not a member of this computer");
    sheet.error(colleague.delete(&path).await, 403, "not a member of this computer");

    let made = sheet.answer(
        "a second tenant",
        client.post("/admin/tenants", json!({ "name": "other" })).await,
        CREATED,
    );
    let other = made["data"]["id"].as_str().unwrap_or_default();
    let made = client.post(&format!("/admin/tenants/{other}/keys"), json!({ "name": "theirs" })).await;
    let key = sheet.answer("its key", made, CREATED);
    let stranger =
        Client { key: key["data"]["key"].as_str().unwrap_or_default().to_owned(), ..client.clone() };
    sheet.error(stranger.get(&path).await, 404, "computer not found");
    sheet.error(stranger.delete(&path).await, 404, "computer not found");
    let listed = sheet.answer("another tenant's list", stranger.get("/computers").await, OK);
    sheet.equal(&listed, "total", &json!(0));

    // Two organizations at once are none.
    let body = json!({ "name": "x", "template_type": "miosa-desktop" });
    let request =
        client.http.post(format!("{}/api/v1/computers", client.url)).bearer_auth(&client.key).json(&body);
    let response = request.header("x-miosa-tenant", tenant).header("x-miosa-tenant", other).send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    let answer = Answer { status, headers, bytes: response.bytes().await?.to_vec() };
    sheet.error(Ok(answer), 422, "TENANT_RESOLUTION_FAILED");
    Ok(())
}

/// Where credits are counted, nothing runs without them. The price makes a second of running cost a thousand.
#[tokio::test]
#[ignore = "boots a VM: cargo xtask test"]
async fn without_credits_nothing_is_created_or_started() -> Result<()> {
    let mut sheet = Sheet::default();
    sheet.section("402 INSUFFICIENT_CREDITS");
    let server = Server::start_with(&[("ROOST_STARTING_CREDITS", "0"), ("ROOST_PRICES", "small=3600000")])?;
    let client = server.client();
    let body = json!({ "name": "paid", "template_type": "miosa-desktop" });
    sheet.error(client.post("/computers", body.clone()).await, 402, "INSUFFICIENT_CREDITS");
    let balance = sheet.answer("balance", client.get("/credits/balance").await, OK);
    let grant = json!({ "tenant_id": balance["tenant_id"], "credits": 5000 });
    sheet.answer("grant", client.post("/credits/grants", grant).await, CREATED);
    let created = sheet.answer("create with credits", client.post("/computers?wait=60", body).await, CREATED);
    let id = created["id"].as_str().context("nothing was created")?;
    // Until what was granted is used up, and the server stops it.
    let stopped = async {
        loop {
            let computer = client.get(&format!("/computers/{id}")).await?.json()?;
            if computer["status"] == "stopped" {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let stopped = tokio::time::timeout(Duration::from_secs(120), stopped).await;
    sheet.row("stopped when nothing is left", stopped.context("it runs on").and_then(|stopped| stopped));
    sheet.error(client.post(&format!("/computers/{id}/start"), json!({})).await, 402, "INSUFFICIENT_CREDITS");
    sheet.finish()
}
