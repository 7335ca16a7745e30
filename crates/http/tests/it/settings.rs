//! What clients keep with a tenant, and what a client may do that asks first.

use axum::http::Method;
use serde_json::{Value, json};

use crate::support::Server;
use crate::tenancy::{code, text};

#[tokio::test]
async fn settings_and_branding_are_kept_for_their_tenant() {
    let server = Server::new().await;
    let (_, other) = server.tenant("other").await;
    let (_, member) = server.user("member", "member").await;
    let colours = json!({ "primary_color": "#fff", "nested": { "deep": [1, null, "\u{0}x"] } });
    for (path, same) in [
        ("/settings", "/settings"),
        ("/settings/branding", "/tenant/branding"),
        ("/tenant/branding", "/settings/branding"),
    ] {
        assert_eq!(server.call(Method::PUT, path, colours.clone()).await, (200, json!({ "data": colours })));
        for key in [&server.key, &member] {
            let read = server.as_key(key, Method::GET, same, Value::Null).await;
            assert_eq!(read, (200, json!({ "data": colours })), "{path}");
        }
        let theirs = server.as_key(&other, Method::GET, path, Value::Null).await;
        assert_eq!(theirs, (200, json!({ "data": {} })), "{path}");
        // It is replaced as a whole, by administrators.
        let answer = server.as_key(&member, Method::PUT, path, json!({})).await;
        assert_eq!(code(&answer), (403, "FORBIDDEN"), "{path}");
        let large = json!({ "text": "x".repeat(16 * 1024) });
        let answer = server.call(Method::PUT, path, large).await;
        assert_eq!(code(&answer), (422, "VALIDATION_FAILED"), "{path}");
        for wrong in [json!([1]), json!("x"), json!(1)] {
            assert_eq!(server.call(Method::PUT, path, wrong.clone()).await.0, 422, "{wrong}");
        }
        assert_eq!(server.get(path).await.1["data"], colours, "{path}");
        assert_eq!(server.call(Method::PUT, path, json!({ "a": 1 })).await.0, 200);
        assert_eq!(server.get(path).await.1["data"], json!({ "a": 1 }), "{path}");
    }
    // One published client wraps it.
    let wrapped = json!({ "branding": colours });
    assert_eq!(server.call(Method::PUT, "/tenant/branding", wrapped.clone()).await.1["data"], colours);
    assert_eq!(server.call(Method::PUT, "/settings", wrapped.clone()).await.1["data"], wrapped);
    assert_eq!(server.call(Method::PUT, "/settings", json!({ "a": 1 })).await.0, 200);
    assert_eq!(server.delete("/tenant/branding").await, (200, json!({ "data": {} })));
    assert_eq!(server.get("/settings/branding").await.1["data"], json!({}));
    assert_eq!(server.get("/settings").await.1["data"], json!({ "a": 1 }));
    let confined = server.made("/api-keys", json!({ "external_user_id": "ann" })).await;
    for path in ["/settings", "/tenant/branding"] {
        let answer = server.as_key(&text(&confined["key"]), Method::GET, path, Value::Null).await;
        assert_eq!(code(&answer), (403, "FORBIDDEN"), "{path}");
    }
}

#[tokio::test]
async fn a_client_that_asks_first_is_told() {
    let server = Server::new().await;
    let (_, other) = server.tenant("other").await;
    let workspace = text(&server.made("/workspaces", json!({ "name": "ward" })).await["id"]);
    // One published client sends the prefix twice.
    for prefix in ["", "/api/v1"] {
        let (status, catalog) = server.get(&format!("{prefix}/actions/catalog")).await;
        assert_eq!(status, 200);
        let all = catalog["data"].as_array().unwrap();
        let create = all.iter().find(|each| each["name"] == "computer.create").unwrap();
        let asked = json!({ "capability": { "name": "computer.create", "fingerprint": create["fingerprint"] },
            "workspace_id": workspace, "surface": "mcp", "request_fingerprint": "r" });
        let path = format!("{prefix}/actions/authorize");
        assert_eq!(
            server.post(&path, asked.clone()).await,
            (200, json!({ "data": { "decision": "allow" } }))
        );
        let denied = [
            (&server.key, json!({ "capability": { "name": "computer.fly" } }), "computer.fly"),
            (&other, asked, "workspace not found"),
        ];
        for (key, asked, reason) in denied {
            let (status, answer) = server.as_key(key, Method::POST, &path, asked).await;
            assert_eq!((status, &answer["data"]["decision"]), (200, &json!("deny")));
            assert!(text(&answer["data"]["reason"]).contains(reason), "{answer}");
        }
        assert_eq!(server.post(&path, json!({})).await.0, 422);
    }
}
