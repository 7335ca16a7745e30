//! API keys: from where they may be used, what is told of them, and presets. What they reach is in `tenancy`.

use std::net::{IpAddr, SocketAddr};

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{Listening, Server};

impl Server {
    fn request(&self, from: &str, key: &str, method: Method, path: &str) -> axum::http::request::Builder {
        let peer = SocketAddr::new(from.parse::<IpAddr>().unwrap(), 4711);
        let request = Request::builder().method(method).uri(format!("/api/v1{path}"));
        request.header("authorization", format!("Bearer {key}")).extension(ConnectInfo(peer))
    }

    async fn from(&self, from: &str, key: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
        let request = self.request(from, key, method, path).body(Body::from(body.to_string())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    /// The id and the secret of a key that may be used from `ranges`.
    async fn key_from(&self, ranges: &[&str]) -> (String, String) {
        let (status, made) = self.post("/api-keys", json!({ "name": "k", "allowed_ips": ranges })).await;
        assert_eq!(status, 201, "{made}");
        let text = |name: &str| made["data"][name].as_str().unwrap().to_owned();
        (text("id"), text("key"))
    }
}

#[tokio::test]
async fn a_key_is_good_from_the_addresses_it_names() {
    let server = Server::new().await;
    let (id, key) = server.key_from(&["203.0.113.0/24", "2001:db8::1"]).await;
    let path = format!("/api-keys/{id}");
    assert_eq!(server.get(&path).await.1["data"]["allowed_ips"], json!(["203.0.113.0/24", "2001:db8::1"]));
    let get = async |from: &str| {
        let (status, answer) = server.from(from, &key, Method::GET, "/computers", Value::Null).await;
        (status, answer["code"].clone())
    };
    for inside in ["203.0.113.7", "::ffff:203.0.113.7", "2001:db8::1"] {
        assert_eq!(get(inside).await, (200, Value::Null), "{inside}");
    }
    for outside in ["203.0.114.7", "127.0.0.1", "::1", "2001:db8::2"] {
        assert_eq!(get(outside).await, (403, json!("FORBIDDEN")), "{outside}");
    }
    // What a client says of itself counts for nothing, and who cannot be seen is outside.
    let claim = [("x-forwarded-for", "203.0.113.7")];
    assert_eq!(server.send(Method::GET, "/computers", Some(&key), &claim, "").await.status, 403);
    // Not the screen, either.
    let id = server.computer().await;
    for path in [format!("/ws/vnc/{id}"), format!("/ws/terminal/{id}")] {
        let request = Request::get(&path).header("authorization", format!("Bearer {key}"));
        let request = request.extension(ConnectInfo(SocketAddr::from(([127, 0, 0, 1], 1))));
        let response = server.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 403, "{path}");
    }
    for wrong in [json!(["x"]), json!(["10.0.0.0/33"]), json!("10.0.0.1"), json!([""])] {
        let body = json!({ "name": "k", "allowed_ips": wrong });
        let (status, answer) = server.post("/api-keys", body).await;
        assert_eq!((status, &answer["code"]), (422, &json!("VALIDATION_FAILED")), "{wrong}");
    }
}

#[tokio::test]
async fn a_trusted_proxy_says_from_whom_it_has_a_request() {
    let proxy = "10.0.0.0/8".parse().unwrap();
    let server = Server::new().await.with_app(|app| app.trusted_proxies = vec![proxy]);
    let (_, key) = server.key_from(&["203.0.113.7"]).await;
    for (peer, named, status) in [
        ("10.0.0.1", "203.0.113.7", 200),
        ("10.0.0.1", "203.0.113.7, 198.51.100.1", 403),
        ("10.0.0.1", "198.51.100.1, 203.0.113.7, 10.0.0.2", 200),
        ("198.51.100.1", "203.0.113.7", 403),
    ] {
        let request = server.request(peer, &key, Method::GET, "/computers").header("x-forwarded-for", named);
        let response = server.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), status, "{peer} {named}");
    }
}

#[tokio::test]
async fn a_limited_key_makes_no_wider_one() {
    let server = Server::new().await;
    let (id, key) = server.key_from(&["203.0.113.0/24"]).await;
    let call = async |method: Method, path: &str, body: Value| {
        server.from("203.0.113.7", &key, method, path, body).await
    };
    for wide in [json!([]), json!(["203.0.113.7", "0.0.0.0/0"])] {
        let body = json!({ "name": "wide", "allowed_ips": wide });
        assert_eq!(call(Method::POST, "/api-keys", body.clone()).await.0, 403, "{wide}");
        let own = format!("/api-keys/{id}");
        assert_eq!(call(Method::PATCH, &own, body).await.0, 403, "{wide}");
    }
    let (_, narrow) = call(Method::POST, "/api-keys", json!({ "allowed_ips": ["203.0.113.7"] })).await;
    assert_eq!(narrow["data"]["allowed_ips"], json!(["203.0.113.7"]));
    let (_, same) = call(Method::POST, "/api-keys", json!({})).await;
    assert_eq!(same["data"]["allowed_ips"], json!(["203.0.113.0/24"]));
    // Nor does it get another key's new secret.
    let (wide, _) = server.key_from(&[]).await;
    assert_eq!(call(Method::POST, &format!("/api-keys/{wide}/rotate"), json!({})).await.0, 403);
    // A token of it is as limited as itself.
    let (_, me) = call(Method::GET, "/whoami", Value::Null).await;
    let body = json!({ "user_id": me["data"]["user_id"], "workspace_id": me["data"]["workspace_id"] });
    let token =
        call(Method::POST, "/tokens/scoped", body).await.1["data"]["token"].as_str().unwrap().to_owned();
    let from = async |from| server.from(from, &token, Method::GET, "/computers", Value::Null).await.0;
    assert_eq!((from("203.0.113.7").await, from("203.0.114.7").await), (200, 403));
    // Nobody shuts themselves out.
    let (status, answer) =
        call(Method::PATCH, &format!("/api-keys/{id}"), json!({ "allowed_ips": ["203.0.113.8"] })).await;
    assert_eq!((status, answer["errors"]["allowed_ips"].is_array()), (422, true), "{answer}");
}

#[tokio::test]
async fn what_is_open_ends_when_the_list_changes() {
    let server = Server::new().await;
    let (id, key) = server.key_from(&["203.0.113.7"]).await;
    let request = server.request("203.0.113.7", &key, Method::GET, "/events/stream");
    let response = server.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut stream = Listening::of(response.into_body());
    server.call(Method::PATCH, &format!("/api-keys/{id}"), json!({ "name": "other" })).await;
    server.computer().await;
    assert_eq!(stream.next().await.unwrap().kind, "computer.created", "a name changes nothing");
    let body = json!({ "allowed_ips": ["203.0.113.8"] });
    assert_eq!(server.call(Method::PATCH, &format!("/api-keys/{id}"), body).await.0, 200);
    while stream.next().await.is_some() {}
}

#[tokio::test]
async fn what_happens_to_a_key_is_told() {
    let server = Server::new().await;
    let (id, key) = server.key_from(&["203.0.113.7"]).await;
    let path = format!("/api-keys/{id}");
    for _ in 0..3 {
        server.from("198.51.100.1", &key, Method::GET, "/computers", Value::Null).await;
    }
    server.call(Method::PATCH, &path, json!({ "name": "other", "scopes": ["computers:read"] })).await;
    server.call(Method::PATCH, &path, json!({ "status": "disabled" })).await;
    server.call(Method::PATCH, &path, json!({ "status": "active" })).await;
    server.post(&format!("{path}/rotate"), json!({})).await;
    let (status, events) = server.get(&format!("{path}/events")).await;
    let kinds = |events: &Value| -> Vec<String> {
        let rows = events["data"].as_array().unwrap().iter();
        rows.map(|row| row["type"].as_str().unwrap().to_owned()).collect()
    };
    let expected = ["rotated", "enabled", "disabled", "changed", "refused", "created"];
    assert_eq!((status, kinds(&events)), (200, expected.map(str::to_owned).to_vec()));
    let rows = &events["data"];
    assert_eq!(rows[3]["details"], json!({ "name": "other", "scopes": ["computers:read"] }));
    assert_eq!((&rows[4]["ip_address"], &rows[4]["user_id"]), (&json!("198.51.100.1"), &Value::Null));
    let me = server.get("/whoami").await.1["data"]["user_id"].clone();
    assert_eq!((&rows[0]["user_id"], &rows[0]["api_key_id"]), (&me, &json!(id)));
    assert!(!events.to_string().contains("msk_"), "no secret is told");
    let (_, some) = server.get(&format!("{path}/events?type=changed&limit=1")).await;
    assert_eq!(kinds(&some), ["changed"]);
    assert_eq!(server.get(&format!("{path}/events?type=x")).await.0, 422);
}

#[tokio::test]
async fn presets_are_named_scopes() {
    let server = Server::new().await;
    let presets = "/api-keys/presets";
    let names = async || -> Vec<String> {
        let (_, all) = server.get(presets).await;
        let rows = all["data"].as_array().unwrap().iter();
        rows.map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    let builtin = names().await;
    assert_eq!(builtin, ["read-only", "computers", "full"]);
    let body = json!({ "name": "viewer", "scopes": ["computers:read"], "description": "looks" });
    let (status, made) = server.post(presets, body.clone()).await;
    assert_eq!((status, &made["data"]["scopes"]), (201, &json!(["computers:read"])));
    assert_eq!((&made["data"]["builtin"], made["data"]["created_at"].is_string()), (&json!(false), true));
    assert_eq!(names().await.last().unwrap(), "viewer");
    let again = server.post(presets, body).await;
    assert_eq!((again.0, &again.1["code"]), (409, &json!("NAME_TAKEN")));
    assert_eq!(server.post(presets, json!({ "name": "full", "scopes": [] })).await.0, 409);
    for wrong in [
        json!({ "scopes": ["*"] }),
        json!({ "name": "x" }),
        json!({ "name": "x", "scopes": ["what is this"] }),
        json!({ "name": "a/b", "scopes": ["*"] }),
    ] {
        assert!(matches!(server.post(presets, wrong.clone()).await.0, 400 | 422), "{wrong}");
    }
    let (_, key) = server.post("/api-keys", json!({ "name": "k", "preset": "viewer" })).await;
    assert_eq!(key["data"]["scopes"], json!(["computers:read"]));
    assert_eq!(server.post("/api-keys", json!({ "name": "k", "preset": "none" })).await.0, 422);
    let gone = json!({ "name": "viewer", "deleted": true });
    assert_eq!(server.delete(&format!("{presets}/viewer")).await, (200, gone));
    assert_eq!(server.delete(&format!("{presets}/viewer")).await.0, 404);
    assert_eq!(server.delete(&format!("{presets}/full")).await.0, 409);
    assert_eq!(names().await, builtin);
}
