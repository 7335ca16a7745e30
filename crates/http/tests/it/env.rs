//! Environment variables: rows, and what guests are given.

use axum::http::Method;
use roost_api::ComputerId;
use serde_json::{Value, json};

use crate::support::{Server, keys};

async fn plant(server: &Server, id: &str, name: &str, value: &str) -> (u16, Value) {
    server.post(&format!("/computers/{id}/env"), json!({ "name": name, "value": value })).await
}

fn held(server: &Server, id: &str) -> Vec<(String, String)> {
    let id: ComputerId = id.parse().unwrap();
    server.launcher.environment(id).into_iter().collect()
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[tokio::test]
async fn variables_are_set_changed_and_removed() {
    let server = Server::new().await;
    let id = server.computer().await;
    let env = format!("/computers/{id}/env");
    let (status, list) = server.get(&env).await;
    assert_eq!((status, list), (200, json!({ "env": [], "data": [] })));

    let (status, row) = plant(&server, &id, "DATABASE_URL", "postgres://user:pass@host/db").await;
    assert_eq!(status, 201, "{row}");
    assert_eq!(keys(&row), ["created_at", "name", "updated_at", "value"]);
    assert_eq!((&row["name"], &row["value"]), (&json!("DATABASE_URL"), &json!("********")));
    assert_eq!(held(&server, &id), [pair("DATABASE_URL", "postgres://user:pass@host/db")]);
    let (status, _) = plant(&server, &id, "A", "1").await;
    assert_eq!(status, 201);
    let (status, row) = plant(&server, &id, "A", "2").await;
    assert_eq!((status, &row["value"]), (200, &json!("********")));
    let (status, row) = server.call(Method::PATCH, &format!("{env}/A"), json!({ "value": "" })).await;
    assert_eq!((status, &row["name"]), (200, &json!("A")));
    assert_eq!(held(&server, &id), [pair("A", ""), pair("DATABASE_URL", "postgres://user:pass@host/db")]);

    let (_, list) = server.get(&env).await;
    assert_eq!(list["env"], list["data"]);
    assert_eq!((&list["env"][0]["name"], list["env"].as_array().unwrap().len()), (&json!("A"), 2));
    let (status, deleted) = server.delete(&format!("{env}/DATABASE_URL")).await;
    assert_eq!((status, deleted), (200, json!({ "name": "DATABASE_URL", "deleted": true })));
    assert_eq!(held(&server, &id), [pair("A", "")]);

    for (method, path, body, status, code) in [
        (Method::DELETE, format!("{env}/DATABASE_URL"), json!({}), 404, "NOT_FOUND"),
        (Method::PATCH, format!("{env}/NONE"), json!({ "value": "x" }), 404, "NOT_FOUND"),
        (Method::PATCH, format!("{env}/A"), json!({}), 400, "MISSING_PARAM"),
        (Method::POST, env.clone(), json!({ "value": "x" }), 400, "MISSING_PARAM"),
        (Method::POST, env.clone(), json!({ "name": "X" }), 400, "MISSING_PARAM"),
        (Method::POST, env.clone(), json!({ "name": "1X", "value": "x" }), 422, "VALIDATION_FAILED"),
        (Method::POST, env.clone(), json!({ "name": "X", "value": "a\0b" }), 422, "VALIDATION_FAILED"),
        (Method::POST, env.clone(), json!({ "name": "X", "value": 7 }), 422, "VALIDATION_FAILED"),
    ] {
        let (answered, refused) = server.call(method, &path, body).await;
        assert_eq!((answered, &refused["code"]), (status, &json!(code)), "{path}: {refused}");
    }
    assert_eq!(held(&server, &id), [pair("A", "")]);
}

#[tokio::test]
async fn every_start_gives_what_was_set_and_clones_get_it_too() {
    let server = Server::new().await;
    let body = json!({ "name": "box", "template_type": "miosa-desktop", "env": { "FROM": "create" } });
    let (status, made) = server.post("/computers?wait=true", body).await;
    assert_eq!((status, &made["status"]), (201, &json!("running")), "{made}");
    let id = made["id"].as_str().unwrap();
    assert_eq!(held(&server, id), [pair("FROM", "create")]);

    server.post(&format!("/computers/{id}/stop"), json!({})).await;
    plant(&server, id, "FROM", "stopped").await;
    assert_eq!(held(&server, id), [pair("FROM", "create")], "a guest that does not run was told");
    server.post(&format!("/computers/{id}/start"), json!({})).await;
    assert_eq!(held(&server, id), [pair("FROM", "stopped")]);

    let (status, clone) = server.post(&format!("/computers/{id}/clone"), json!({})).await;
    assert_eq!(status, 201, "{clone}");
    let clone = clone["id"].as_str().unwrap();
    server.post(&format!("/computers/{clone}/start"), json!({})).await;
    assert_eq!(held(&server, clone), [pair("FROM", "stopped")]);
    // They are two from now on.
    server.delete(&format!("/computers/{clone}/env/FROM")).await;
    assert_eq!((held(&server, clone).len(), held(&server, id).len()), (0, 1));

    let (status, refused) = server
        .post("/computers", json!({ "name": "box", "template_type": "miosa-desktop", "env": { "A B": "" } }))
        .await;
    assert_eq!((status, &refused["code"]), (422, &json!("VALIDATION_FAILED")), "{refused}");
}

/// Many at once: the guest ends with what the rows say.
#[tokio::test]
async fn parallel_changes_all_arrive() {
    let server = Server::new().await;
    let id = server.computer().await;
    let changes = (0..20).map(|number| {
        let (server, id) = (&server, &id);
        async move { plant(server, id, &format!("V{}", number % 5), &number.to_string()).await.0 }
    });
    for status in futures_util::future::join_all(changes).await {
        assert!(status == 200 || status == 201, "{status}");
    }
    let (_, list) = server.get(&format!("/computers/{id}/env")).await;
    assert_eq!((list["env"].as_array().unwrap().len(), held(&server, &id).len()), (5, 5));
}
