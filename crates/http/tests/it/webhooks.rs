//! Webhooks: told once per event, signed, tried again, sealed, each by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode};
use hmac::{Hmac, KeyInit, Mac};
use roost_http::{Outgoing, Reach};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::support::{Server, keys};

/// An address that takes what it is told.
struct Receiver {
    url: String,
    /// What it answers.
    status: Arc<AtomicU16>,
    heard: mpsc::UnboundedReceiver<(HeaderMap, Bytes)>,
}

type Taking = (Arc<AtomicU16>, mpsc::UnboundedSender<(HeaderMap, Bytes)>);

impl Receiver {
    async fn new() -> Self {
        let (sender, heard) = mpsc::unbounded_channel();
        let status = Arc::new(AtomicU16::new(200));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?a=b", listener.local_addr().unwrap());
        let take = |State((status, sender)): State<Taking>, headers: HeaderMap, body: Bytes| async move {
            sender.send((headers, body)).unwrap();
            (StatusCode::from_u16(status.load(Ordering::SeqCst)).unwrap(), "thanks")
        };
        let router = Router::new().route("/hook", axum::routing::post(take));
        let router = router.with_state((status.clone(), sender));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, status, heard }
    }

    async fn next(&mut self) -> (HeaderMap, Value) {
        let (headers, body) = self.heard.recv().await.unwrap();
        (headers, serde_json::from_slice(&body).unwrap())
    }
}

impl Server {
    async fn webhook(&self, body: Value) -> String {
        let (status, created) = self.post("/webhooks", body).await;
        assert_eq!(status, 201, "{created}");
        created["data"]["id"].as_str().unwrap().to_owned()
    }

    /// The deliveries, when the oldest has come to `state`.
    async fn deliveries(&self, id: &str, attempts: u64) -> Value {
        loop {
            let (_, list) = self.get(&format!("/webhooks/{id}/deliveries")).await;
            let data = list["data"].as_array().unwrap();
            let recorded = |delivery: &Value| {
                delivery["duration_ms"].is_u64() && delivery["attempts"].as_u64() >= Some(attempts)
            };
            if data.iter().all(recorded) {
                return list["data"].clone();
            }
            // The answer was sent; that it is recorded is a matter of moments.
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn an_address_is_told_what_it_asked_for() {
    let server = Server::new().await;
    let mut receiver = Receiver::new().await;
    let body = json!({ "url": receiver.url, "events": ["computer.*", "error"], "secret": "a long secret",
        "headers": { "Authorization": "Bearer theirs" }, "name": "mine", "metadata": { "a": 1 } });
    let (status, created) = server.post("/webhooks", body).await;
    assert_eq!((status, keys(&created)), (201, vec!["data", "secret"]), "{created}");
    assert_eq!(
        (&created["secret"], &created["data"]["secret"]),
        (&json!("a long secret"), &json!("a long secret"))
    );
    let id = created["data"]["id"].as_str().unwrap();
    let computer = server.computer().await;
    server.post(&format!("/computers/{computer}/stop"), json!({})).await;

    let mut told = Vec::new();
    while told.last() != Some(&json!("computer.stopped")) {
        let (headers, body) = receiver.heard.recv().await.unwrap();
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"a long secret").unwrap();
        mac.update(&body);
        let expected: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(headers["x-miosa-signature"], format!("sha256={expected}"));
        assert_eq!(
            (&headers["authorization"], &headers["content-type"]),
            (&"Bearer theirs".parse().unwrap(), &"application/json".parse().unwrap())
        );
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&body["computer_id"], headers["x-miosa-event"].to_str().unwrap()),
            (&json!(computer), body["type"].as_str().unwrap())
        );
        told.push(body["type"].clone());
    }
    assert_eq!(told, ["computer.created", "computer.running", "computer.stopped"]);
    let deliveries = server.deliveries(id, 1).await;
    assert_eq!(deliveries.as_array().unwrap().len(), 3);
    assert_eq!(deliveries[0]["event_type"], "computer.stopped");
    assert_eq!((&deliveries[0]["success"], &deliveries[0]["state"]), (&json!(true), &json!("delivered")));
    assert_eq!(
        (&deliveries[0]["status_code"], &deliveries[0]["response_body"]),
        (&json!(200), &json!("thanks"))
    );

    let (_, list) = server.get("/webhooks?active=true").await;
    assert_eq!((&list["data"][0]["id"], list["data"][0].get("secret")), (&json!(id), None));
    assert_eq!(list["data"][0]["secret_preview"], "...cret");
    // Whoever is not active hears nothing, and nothing of it later.
    let path = format!("/webhooks/{id}");
    let (status, changed) = server.call(Method::PATCH, &path, json!({ "active": false })).await;
    assert_eq!(
        (status, &changed["data"]["active"], &changed["data"]["name"]),
        (200, &json!(false), &json!("mine"))
    );
    server.post(&format!("/computers/{computer}/start"), json!({})).await;
    server.call(Method::PATCH, &path, json!({ "active": true })).await;
    server.delete(&format!("/computers/{computer}")).await;
    assert_eq!(receiver.next().await.1["type"], "computer.deleted");
    let (status, _) = server.delete(&path).await;
    assert_eq!(status, 200);
    assert_eq!(server.get(&path).await.0, 404);
}

#[tokio::test]
async fn after_a_restart_each_event_was_told_and_none_twice() {
    let server = Server::new().await;
    let mut receiver = Receiver::new().await;
    server.webhook(json!({ "url": receiver.url, "events": ["*"] })).await;
    let computer = server.computer().await;
    // Two servers at work on one log.
    let server = server.again().await;
    server.delete(&format!("/computers/{computer}")).await;
    let mut told = Vec::new();
    while told.last().map(|body: &Value| &body["type"]) != Some(&json!("computer.deleted")) {
        told.push(receiver.next().await.1);
    }
    let ids: Vec<&str> = told.iter().map(|body| body["id"].as_str().unwrap()).collect();
    let expected: Vec<String> = (1..=ids.len()).map(|id| format!("evt_{id}")).collect();
    assert_eq!(ids, expected);
}

#[tokio::test]
async fn what_failed_is_tried_again_and_can_be_replayed() {
    let server = Server::new().await;
    let mut receiver = Receiver::new().await;
    receiver.status.store(500, Ordering::SeqCst);
    let events = json!(["computer.created"]);
    let failing = server.webhook(json!({ "url": receiver.url, "events": events, "retry_count": 0 })).await;
    let mut patient = Receiver::new().await;
    patient.status.store(503, Ordering::SeqCst);
    let trying = server.webhook(json!({ "url": patient.url, "events": events })).await;
    server.computer().await;
    receiver.next().await;
    patient.next().await;
    let failed = server.deliveries(&failing, 1).await;
    assert_eq!((&failed[0]["state"], &failed[0]["success"]), (&json!("failed"), &json!(false)));
    assert_eq!(
        (&failed[0]["status_code"], &failed[0]["error"]),
        (&json!(500), &json!("the address answered 500"))
    );
    let pending = server.deliveries(&trying, 1).await;
    assert_eq!((&pending[0]["state"], &pending[0]["attempts"]), (&json!("pending"), &json!(1)));
    let replay = |hook: &str, delivery: &Value| {
        format!("/webhooks/{hook}/deliveries/{}/replay", delivery["id"].as_str().unwrap())
    };
    let (status, refused) = server.post(&replay(&trying, &pending[0]), json!({})).await;
    assert_eq!((status, &refused["code"]), (409, &json!("NOT_REDELIVERABLE")));
    let (status, refused) = server.post(&replay(&trying, &failed[0]), json!({})).await;
    assert_eq!((status, &refused["code"]), (404, &json!("DELIVERY_NOT_FOUND")));

    receiver.status.store(204, Ordering::SeqCst);
    let path = replay(&failing, &failed[0]);
    let (status, first) = server.post(&path, json!({ "replay_id": "r" })).await;
    let (_, again) = server.post(&path, json!({ "replay_id": "r" })).await;
    assert_eq!((status, &first["data"]["id"]), (202, &again["data"]["id"]));
    assert_eq!(receiver.next().await.1["type"], "computer.created");
    let (status, tested) = server.post(&format!("/webhooks/{failing}/test"), json!({})).await;
    assert_eq!(
        (status, &tested["data"]["success"], &tested["data"]["state"]),
        (200, &json!(true), &json!("delivered"))
    );
    assert_eq!(receiver.next().await.1["type"], "webhook.test");
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let server = Server::new().await;
    let good = json!({ "url": "https://example.org/", "events": ["*"] });
    let id = server.webhook(good.clone()).await;
    for (field, value) in [
        ("url", json!("nowhere")),
        ("url", json!("ftp://example.org")),
        ("events", json!([])),
        ("events", json!(["computer.craeted"])),
        ("headers", json!({ "host": "x" })),
        ("headers", json!({ "X-MIOSA-Signature": "x" })),
        ("retry_count", json!(11)),
        ("secret", json!("short")),
    ] {
        let mut body = good.clone();
        body[field] = value;
        for (method, path) in
            [(Method::POST, "/webhooks".to_owned()), (Method::PATCH, format!("/webhooks/{id}"))]
        {
            let (status, refused) = server.call(method, &path, body.clone()).await;
            assert_eq!((status, &refused["code"]), (422, &json!("VALIDATION_FAILED")), "{body}");
            assert!(refused["errors"][field].is_array(), "{refused}");
        }
    }
    let (status, _) = server.post("/webhooks", json!({ "url": "https://example.org/" })).await;
    assert_eq!(status, 422);
    let (_, types) = server.get("/webhooks/events").await;
    assert!(types["data"].as_array().unwrap().contains(&json!("computer.created")));
    for path in ["/webhooks/none", "/webhooks/3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000"] {
        assert_eq!(server.get(path).await.0, 404);
    }
    // What this host alone reaches.
    assert!(
        roost_control::Outbound::check(&Outgoing::new(Reach::Public).unwrap(), "https://127.0.0.1/").is_err()
    );
}

/// Whoever makes a webhook is told of what they may see, and of nothing else.
#[tokio::test]
async fn a_confined_webhook_is_told_of_nothing_outside() {
    let server = Server::new().await;
    let mut receiver = Receiver::new().await;
    let make = async |workspace: &str| {
        let body = json!({ "name": "box", "template_type": "miosa-desktop", "workspace_slug": workspace });
        let (status, computer) = server.post("/computers?wait=true", body).await;
        assert_eq!(status, 201, "{computer}");
        computer
    };
    let (inside, outside) = (make("inside").await, make("outside").await);
    let (_, made) = server.post("/api-keys", json!({ "workspace_id": inside["workspace_id"] })).await;
    let confined = made["data"]["key"].as_str().unwrap().to_owned();
    let (_, made) = server.post("/api-keys", json!({ "workspace_id": outside["workspace_id"] })).await;
    let other = made["data"]["key"].as_str().unwrap().to_owned();
    let hook = json!({ "url": receiver.url, "events": ["computer.stopped"] }).to_string();
    let created = server.send(Method::POST, "/webhooks", Some(&confined), &[], &hook).await;
    assert_eq!(created.status, 201, "{}", created.body);
    let path = format!("/webhooks/{}", created.json()["data"]["id"].as_str().unwrap());
    for (key, status) in [(&confined, 200), (&other, 403), (&server.key, 200)] {
        assert_eq!(server.send(Method::GET, &path, Some(key), &[], "").await.status, status);
    }
    for computer in [&outside, &inside] {
        let id = computer["id"].as_str().unwrap();
        assert_eq!(server.post(&format!("/computers/{id}/stop"), json!({})).await.0, 200);
    }
    // The one outside stopped first, and was none of its business.
    assert_eq!(receiver.next().await.1["computer_id"], inside["id"]);

    // A member is told of a workspace of theirs, and of no whole tenant.
    let tenant = inside["tenant_id"].as_str().unwrap();
    let (_, user) = server.post(&format!("/admin/tenants/{tenant}/users"), json!({ "name": "m" })).await;
    let key = json!({ "user_id": user["data"]["id"] });
    let (_, member) = server.post(&format!("/admin/tenants/{tenant}/keys"), key).await;
    let member = member["data"]["key"].as_str().unwrap();
    let refused = server.send(Method::POST, "/webhooks", Some(member), &[], &hook).await;
    assert_eq!((refused.status, &refused.json()["code"]), (403, &json!("FORBIDDEN")));

    // It goes with its workspace.
    let workspace = format!("/workspaces/{}", inside["workspace_id"].as_str().unwrap());
    assert_eq!(server.delete(&workspace).await.0, 200);
    assert_eq!(server.get(&path).await.0, 404);
}
