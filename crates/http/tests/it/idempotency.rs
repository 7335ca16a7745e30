//! `Idempotency-Key`: carried out once, answered each time.

use axum::http::Method;
use roost_api::ComputerId;
use roost_launch::Report;
use roost_launch::simulated::Boot;
use serde_json::{Value, json};

use crate::support::{Reply, Server};

const CREATE: &str = r#"{ "name": "box", "template_type": "miosa-desktop" }"#;

impl Server {
    async fn keyed(&self, method: Method, path: &str, key: &str, body: &str) -> Reply {
        self.send(method, path, Some(&self.key), &[("idempotency-key", key)], body).await
    }

    async fn computers(&self) -> u64 {
        self.get("/computers").await.1["total"].as_u64().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sent_in_parallel_it_makes_one_computer() {
    let server = std::sync::Arc::new(Server::new().await);
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let server = server.clone();
        requests
            .spawn(async move { server.keyed(Method::POST, "/computers?wait=true", "k-1", CREATE).await });
    }
    let replies = requests.join_all().await;
    assert_eq!(server.computers().await, 1);
    for reply in &replies {
        assert_eq!((reply.status, &reply.body), (201, &replies[0].body));
        assert_eq!(reply.header("x-miosa-wait-outcome"), Some("ready"));
        assert_eq!(reply.header("content-type"), Some("application/json"));
    }
    let first = replies.iter().filter(|reply| reply.header("idempotency-replayed").is_none());
    assert_eq!(first.count(), 1);
}

#[tokio::test]
async fn a_key_belongs_to_one_request() {
    let server = Server::new().await;
    let first = server.keyed(Method::POST, "/computers?wait=true", "k", CREATE).await;
    let id = first.json()["id"].as_str().unwrap().to_owned();
    for (path, body) in [
        ("/computers?wait=true", r#"{ "name": "other", "template_type": "miosa-desktop" }"#),
        ("/computers", CREATE),
    ] {
        let reused = server.keyed(Method::POST, path, "k", body).await;
        assert_eq!((reused.status, &reused.json()["code"]), (409, &json!("IDEMPOTENCY_KEY_REUSED")));
        assert_eq!(reused.json()["error"]["retryable"], json!(false));
    }
    // Elsewhere it is another key; the doubled prefix is not elsewhere.
    let stopped = server.keyed(Method::POST, &format!("/computers/{id}/stop"), "k", "").await;
    assert_eq!((stopped.status, &stopped.json()["status"]), (200, &json!("stopped")));
    let again = server.keyed(Method::POST, &format!("/api/v1/computers/{id}/stop"), "k", "").await;
    assert_eq!((again.status, &again.body), (200, &stopped.body));
    let deleted = server.keyed(Method::DELETE, &format!("/computers/{id}"), "k", "").await;
    let again = server.keyed(Method::DELETE, &format!("/computers/{id}"), "k", "").await;
    assert_eq!((deleted.status, again.status, &again.body), (200, 200, &deleted.body));
    assert_ne!(deleted.header("x-request-id"), again.header("x-request-id"));
    // Reading is not affected.
    let read = server.keyed(Method::GET, "/computers", "k", "").await;
    assert_eq!(read.json()["total"], 0);

    let long = "x".repeat(256);
    for key in ["", "a b", &long] {
        let refused = server.keyed(Method::POST, "/computers", key, CREATE).await;
        assert_eq!((refused.status, &refused.json()["code"]), (422, &json!("VALIDATION_FAILED")), "{key:?}");
    }
}

#[tokio::test]
async fn refusals_are_kept_unless_trying_again_may_help() {
    let server = Server::new().await;
    let id = server.computer().await;
    server.launcher.fill(Some("the host is full"));
    let full = server.keyed(Method::POST, "/computers", "full", CREATE).await;
    assert_eq!((full.status, &full.json()["code"]), (503, &json!("NO_READY_MACHINE")));
    server.launcher.fill(None);
    let created = server.keyed(Method::POST, "/computers", "full", CREATE).await;
    assert_eq!((created.status, created.header("idempotency-replayed")), (201, None));

    let start = format!("/computers/{id}/start");
    let refused = server.keyed(Method::POST, &start, "start", "").await;
    assert_eq!((refused.status, &refused.json()["code"]), (409, &json!("INVALID_STATE")));
    server.post(&format!("/computers/{id}/stop"), json!({})).await;
    let again = server.keyed(Method::POST, &start, "start", "").await;
    assert_eq!((again.status, again.body), (409, refused.body), "request id and all");
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(server.keyed(Method::POST, &start, "another", "").await.status, 200);

    let key = [("idempotency-key", "who")];
    let refused = server.send(Method::POST, &start, None, &key, "").await;
    assert_eq!(refused.status, 401);
    let kept = server.keyed(Method::POST, &start, "who", "").await;
    assert_eq!(kept.status, 409);
    let large = "x".repeat(1024 * 1024 + 1);
    let refused = server.keyed(Method::POST, "/computers", "large", &large).await;
    assert_eq!((refused.status, &refused.json()["code"]), (413, &json!("TOO_LARGE")));
}

#[tokio::test]
async fn it_goes_on_when_the_client_gives_up() {
    let server = Server::new().await;
    server.launcher.set_boot(Boot::Hangs);
    let mut events = server.listen("/events/stream?types=computer.created", None).await;
    let id: ComputerId = tokio::select! {
        reply = server.keyed(Method::POST, "/computers?wait=true", "k", CREATE) => panic!("{}", reply.body),
        event = events.next() => event.unwrap().data["computer_id"].as_str().unwrap().parse().unwrap(),
    };
    server.control.wait_until(id, |record| record.observed == roost_store::Observed::Booting).await.unwrap();
    server.launcher.report(id, Report::Running);
    let reply = server.keyed(Method::POST, "/computers?wait=true", "k", CREATE).await;
    assert_eq!((reply.status, &reply.json()["id"]), (201, &json!(id)));
    assert_eq!(reply.json()["status"], "running");
    assert_eq!(server.computers().await, 1);
}

#[tokio::test]
async fn after_a_crash_it_is_not_carried_out_again() {
    let server = Server::new().await;
    let done = server.keyed(Method::POST, "/computers?wait=true", "done", CREATE).await;
    server.launcher.set_boot(Boot::Hangs);
    let mut events = server.listen("/events/stream?types=computer.created", None).await;
    tokio::select! {
        reply = server.keyed(Method::POST, "/computers?wait=true", "k", CREATE) => panic!("{}", reply.body),
        _ = events.next() => {}
    }
    let server = server.again().await;
    let reply = server.keyed(Method::POST, "/computers?wait=true", "k", CREATE).await;
    assert_eq!((reply.status, &reply.json()["code"]), (409, &json!("IDEMPOTENCY_IN_PROGRESS")));
    assert_eq!((&reply.json()["error"]["retryable"], reply.header("retry-after")), (&json!(true), Some("2")));
    assert_eq!(server.computers().await, 2);
    let again = server.keyed(Method::POST, "/computers?wait=true", "done", CREATE).await;
    assert_eq!((again.status, again.body), (201, done.body));
}

/// Answers may hold secrets that are shown once; neither they nor the keys are to be read in the database.
#[tokio::test]
async fn answers_are_sealed() {
    let server = Server::new().await;
    let id = server.computer().await;
    let path = format!("/computers/{id}/stream-token");
    let first = server.keyed(Method::POST, &path, "some-key", "").await;
    assert_eq!(first.status, 200);
    let files = server.database.directory().map(|directory| std::fs::read_dir(directory).unwrap());
    for file in files.into_iter().flatten() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        for text in ["some-key", "content-type", first.json()["token"].as_str().unwrap()] {
            assert!(!bytes.windows(text.len()).any(|window| window == text.as_bytes()), "{text}");
        }
    }
    let again = server.keyed(Method::POST, &path, "some-key", "").await;
    assert_eq!(again.body, first.body);
    // A server with another seal key cannot answer again, and does not carry it out again.
    let server = server.with_another_seal_key().await;
    let lost = server.keyed(Method::POST, &path, "some-key", "").await;
    assert_eq!((lost.status, &lost.json()["code"]), (409, &json!("IDEMPOTENCY_ANSWER_LOST")));
    assert_eq!(lost.json()["data"], Value::Null);
}
