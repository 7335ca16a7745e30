//! Exposed ports: their rows, and what the proxy lets through.

use axum::http::Method;
use serde_json::{Value, json};

use crate::support::{Server, keys};

#[tokio::test]
async fn ports_are_exposed_changed_and_closed() {
    let server = Server::new().await;
    let id = server.computer().await;
    let ports = format!("/computers/{id}/ports");
    let (status, list) = server.get(&ports).await;
    assert_eq!((status, list), (200, json!({ "ports": [], "data": [] })));

    let (status, row) = server.post(&ports, json!({ "port": 8080, "visibility": "public" })).await;
    assert_eq!(status, 201, "{row}");
    assert_eq!(
        keys(&row),
        ["created_at", "port", "protocol", "public_url", "updated_at", "url", "visibility"]
    );
    assert_eq!((&row["port"], &row["visibility"]), (&json!(8080), &json!("public")));
    assert_eq!(row["url"], "http://8080-box.sandbox.localhost:1");
    // As one published client asks: no visibility. It is private, and stays what it is the second time.
    let (status, row) = server.post(&ports, json!({ "port": 3000, "protocol": "http" })).await;
    assert_eq!((status, &row["visibility"]), (201, &json!("private")));
    let (status, row) = server.post(&ports, json!({ "port": 3000, "visibility": "protected" })).await;
    assert_eq!((status, &row["visibility"]), (200, &json!("protected")));
    let (status, row) = server.post(&ports, json!({ "port": 3000 })).await;
    assert_eq!((status, &row["visibility"]), (200, &json!("protected")));

    let (_, list) = server.get(&ports).await;
    assert_eq!(list["ports"], list["data"]);
    let numbers: Vec<&Value> = list["ports"].as_array().unwrap().iter().map(|row| &row["port"]).collect();
    assert_eq!(numbers, [&json!(3000), &json!(8080)]);

    let one = format!("{ports}/8080");
    let (status, row) = server.call(Method::PATCH, &one, json!({ "visibility": "private" })).await;
    assert_eq!((status, &row["visibility"]), (200, &json!("private")));
    let (status, deleted) = server.delete(&one).await;
    assert_eq!((status, deleted), (200, json!({ "port": 8080, "deleted": true })));
    for (method, body) in [(Method::DELETE, Value::Null), (Method::PATCH, json!({ "visibility": "public" }))]
    {
        let (status, refused) = server.call(method, &one, body).await;
        assert_eq!((status, &refused["code"]), (404, &json!("NOT_FOUND")));
    }
    let (status, url) = server.get(&format!("{one}/url")).await;
    assert_eq!((status, keys(&url)), (200, vec!["path_url", "port", "slug", "url"]));
    assert_eq!((&url["port"], &url["slug"]), (&json!(8080), &json!("box")));
}

#[tokio::test]
async fn what_is_no_port_is_refused() {
    let server = Server::new().await;
    let id = server.computer().await;
    let ports = format!("/computers/{id}/ports");
    for body in [
        json!({}),
        json!({ "port": 0 }),
        json!({ "port": 65536 }),
        json!({ "port": -1 }),
        json!({ "port": "3000" }),
        json!({ "port": 3000, "visibility": "tenant" }),
    ] {
        let (status, refused) = server.post(&ports, body.clone()).await;
        assert_eq!((status, &refused["code"]), (422, &json!("VALIDATION_FAILED")), "{body}");
    }
    for port in ["0", "65536", "03000", "x", "%2B1"] {
        let (status, refused) = server.get(&format!("{ports}/{port}/url")).await;
        assert_eq!((status, &refused["code"]), (422, &json!("VALIDATION_FAILED")), "{port}");
    }
    // A port says nothing about computers one may not see.
    let unknown = "3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000";
    let (status, _) = server.get(&format!("/computers/{unknown}/ports/0/url")).await;
    assert_eq!(status, 404);
    let (status, _, _) = server.raw(Method::GET, &ports, None, "").await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn a_clone_has_no_ports_and_a_deleted_computer_leaves_none() {
    let server = Server::new().await;
    let id = server.computer().await;
    let body = json!({ "port": 3000, "visibility": "public" });
    let (status, _) = server.post(&format!("/computers/{id}/ports"), body.clone()).await;
    assert_eq!(status, 201);
    let (status, clone) = server.post(&format!("/computers/{id}/clone"), json!({})).await;
    assert_eq!(status, 201, "{clone}");
    let (_, list) = server.get(&format!("/computers/{}/ports", clone["id"].as_str().unwrap())).await;
    assert_eq!(list["ports"], json!([]));
    let (status, _) = server.delete(&format!("/computers/{id}")).await;
    assert_eq!(status, 200);
    let (status, _) = server.post(&format!("/computers/{id}/ports"), body).await;
    assert_eq!(status, 404);
}
