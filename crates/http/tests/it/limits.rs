//! What the surface allows and tells: rate limits, other origins, the log.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};

use axum::http::Method;
use roost_http::RateLimit;
use serde_json::json;

use crate::support::{Reply, Server};

#[tokio::test]
async fn a_key_that_asks_too_often_is_told_when_to_come_again() {
    let limit = Arc::new(RateLimit::per_minute(NonZeroU32::new(2).unwrap()));
    let server = Server::new().await.with_app(|app| app.rate_limit = Some(limit));
    let get = |path| server.send(Method::GET, path, Some(&server.key), &[], "");
    // One request counts once, however many parts of it ask who the caller is.
    assert_eq!(get("/snapshots/groups").await.status, 200);
    let unknown = "/computers/3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000/restore/none";
    let headers = [("idempotency-key", "k")];
    assert_eq!(server.send(Method::POST, unknown, Some(&server.key), &headers, "").await.status, 404);

    let refused = get("/computers").await;
    assert_eq!((refused.status, &refused.json()["code"]), (429, &json!("rate_limit_exceeded")));
    let body = refused.json();
    assert_eq!(body["error"]["retryable"], true);
    let milliseconds = body["error"]["retry_after_ms"].as_u64().unwrap();
    assert!((1..=60_000).contains(&milliseconds), "{milliseconds}");
    let seconds = milliseconds.div_ceil(1000);
    assert_eq!(body["retry_after"].as_u64(), Some(seconds));
    assert_eq!(refused.header("retry-after"), Some(seconds.to_string().as_str()));
    // A key does not help, and the refusal is not what the key stands for from then on.
    let refused = server.send(Method::POST, "/computers", Some(&server.key), &headers, "{}").await;
    assert_eq!(refused.status, 429);
    // Whoever has no key is told that, and the server's health is everybody's.
    assert_eq!(server.send(Method::GET, "/computers", Some("msk_u_wrong"), &[], "").await.status, 401);
    assert_eq!(server.send(Method::GET, "/health", None, &[], "").await.status, 200);
}

#[tokio::test]
async fn other_origins() {
    let ask = |server: Arc<Server>, origin: &'static str| async move {
        let preflight = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,idempotency-key,x-miosa-tenant"),
        ];
        let preflight = server.send(Method::OPTIONS, "/computers", None, &preflight, "").await;
        let read = server.send(Method::GET, "/computers", None, &[("origin", origin)], "").await;
        assert_eq!(read.status, 401);
        assert!(read.header("x-request-id").is_some() && preflight.header("x-request-id").is_some());
        (preflight, read)
    };
    let allowed = |reply: &Reply| reply.header("access-control-allow-origin").map(str::to_owned);

    let closed = Arc::new(Server::new().await);
    let (preflight, read) = ask(closed, "https://app.example.org").await;
    assert_eq!((allowed(&preflight), allowed(&read)), (None, None));

    let origins = vec!["https://app.example.org".parse().unwrap(), "http://localhost:3000".parse().unwrap()];
    let open = Arc::new(Server::new().await.with_app(|app| app.cors_origins = origins));
    let (preflight, read) = ask(open.clone(), "http://localhost:3000").await;
    // Errors can be read too.
    for reply in [&preflight, &read] {
        assert_eq!(allowed(reply).as_deref(), Some("http://localhost:3000"));
    }
    assert_eq!(preflight.status, 200);
    let headers = preflight.header("access-control-allow-headers").unwrap();
    assert_eq!(headers, "authorization,idempotency-key,x-miosa-tenant");
    assert!(preflight.header("access-control-allow-methods").unwrap().contains("DELETE"));
    let exposed = read.header("access-control-expose-headers").unwrap();
    for name in ["x-request-id", "retry-after", "x-miosa-wait-outcome"] {
        assert!(exposed.contains(name), "{exposed}");
    }
    let (preflight, read) = ask(open, "https://evil.example.org").await;
    assert_eq!((allowed(&preflight), allowed(&read)), (None, None));

    let every = vec!["*".parse().unwrap()];
    let every = Arc::new(Server::new().await.with_app(|app| app.cors_origins = every));
    let (_, read) = ask(every, "https://evil.example.org").await;
    assert_eq!(allowed(&read).as_deref(), Some("*"));
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// At the most talkative level of our own code, nothing that a caller keeps to itself is in the log.
#[tokio::test]
async fn the_log_tells_no_secrets() {
    let log = Captured::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("roost_http=trace,roost_control=trace,roost_store=trace,tower_http=trace,axum=trace")
        .with_writer(move || writer.clone())
        .finish();
    // With only one subscriber alive, what another test's thread meets first counts as wanted by nobody.
    let _other = tracing::Dispatch::new(tracing_subscriber::registry());
    let _guard = tracing::subscriber::set_default(subscriber);

    let server = Server::new().await;
    let id = server.computer().await;
    let secret = "hush-1";
    let (_, ticket) = server.post("/sse/ticket", json!({})).await;
    let ticket = ticket["ticket"].as_str().unwrap();
    let (_, token) = server.post(&format!("/computers/{id}/stream-token"), json!({})).await;
    let token = token["token"].as_str().unwrap();
    let headers = [("idempotency-key", secret), ("x-api-key", secret), ("cookie", secret)];
    let body = json!({ "name": "b", "template_type": "miosa-desktop", "env": { "A": secret }, "metadata": { "b": secret } });
    for (method, path, key, body) in [
        (Method::POST, "/computers".to_owned(), Some(&*server.key), body.to_string()),
        (
            Method::POST,
            format!("/computers/{id}/exec?x={secret}"),
            Some(&server.key),
            format!(r#"{{"command":"echo {secret}","env":{{"A":"{secret}"}}}}"#),
        ),
        (
            Method::POST,
            format!("/computers/{id}/desktop/type"),
            Some(&server.key),
            format!(r#"{{"text":"{secret}"}}"#),
        ),
        (
            Method::POST,
            format!("/computers/{id}/desktop/type"),
            Some(&server.key),
            format!(r#"{{"text":"{secret}""#),
        ),
        (Method::GET, format!("/computers/{id}/snapshots/none/events?ticket={ticket}"), None, String::new()),
        (Method::GET, format!("/computers/{id}/vnc-credentials?auth={token}"), Some(secret), String::new()),
        (Method::GET, format!("/no/such/{secret}?auth={token}"), Some(secret), String::new()),
        (Method::PUT, format!("/snapshots/{secret}?auth={token}"), Some(secret), String::new()),
        (Method::GET, format!("/snapshots/{secret}/tree?path=/{secret}"), Some(&server.key), String::new()),
        (
            Method::GET,
            format!("/computers?workspace_id={secret}&external_user_id={secret}"),
            Some(&server.key),
            String::new(),
        ),
    ] {
        server.send(method, &path, key, &headers, &body).await;
    }
    let path = format!("/ws/vnc/{id}?auth={token}x");
    let request = axum::http::Request::get(path).body(axum::body::Body::empty()).unwrap();
    tower::ServiceExt::oneshot(server.router.clone(), request).await.unwrap();

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("/api/v1/computers/{id}/exec"), "{log}");
    for text in [secret, ticket, token, &server.key, "?x=", "?auth=", "?ticket="] {
        assert!(!log.contains(text), "{text} is in the log:\n{log}");
    }
}
