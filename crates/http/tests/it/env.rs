//! Environment variables: rows, and what guests are given.

use axum::http::Method;
use roost_api::ComputerId;
use serde_json::{Value, json};

use crate::support::{Server, keys, seal_key};

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

#[tokio::test]
async fn variables_that_come_with_a_start_hold_until_the_next_one() {
    let server = Server::new().await;
    let id = server.computer().await;
    plant(&server, &id, "KEPT", "1").await;
    let (stop, start) = (format!("/computers/{id}/stop"), format!("/computers/{id}/start"));
    server.post(&stop, json!({})).await;
    let body = json!({ "env": { "ONCE": "2", "KEPT": "3" }, "no_env": true, "fail_fast": null });
    let (status, computer) = server.post(&start, body).await;
    assert_eq!((status, &computer["status"]), (200, &json!("running")), "{computer}");
    assert_eq!(held(&server, &id), [pair("KEPT", "3"), pair("ONCE", "2")]);
    // A change meanwhile leaves them, they are in no list, and no clone has them.
    plant(&server, &id, "NEW", "4").await;
    assert_eq!(held(&server, &id), [pair("KEPT", "3"), pair("NEW", "4"), pair("ONCE", "2")]);
    let (_, list) = server.get(&format!("/computers/{id}/env")).await;
    assert_eq!(list["env"].as_array().unwrap().len(), 2);
    let (_, clone) = server.post(&format!("/computers/{id}/clone"), json!({})).await;
    let clone = clone["id"].as_str().unwrap();
    server.post(&format!("/computers/{clone}/start"), json!({})).await;
    assert_eq!(held(&server, clone), [pair("KEPT", "1"), pair("NEW", "4")]);

    server.post(&stop, json!({})).await;
    assert_eq!(server.post(&start, json!({})).await.0, 200);
    assert_eq!(held(&server, &id), [pair("KEPT", "1"), pair("NEW", "4")], "the memory had the others");
    server.post(&stop, json!({})).await;
    let (status, refused) = server.post(&start, json!({ "env": { "1X": "secret-of-mine" } })).await;
    assert_eq!((status, &refused["code"]), (422, &json!("VALIDATION_FAILED")));
    assert!(!refused.to_string().contains("secret-of-mine"));
    let (_, computer) = server.get(&format!("/computers/{id}")).await;
    assert_eq!(computer["status"], "stopped", "nothing was begun");
}

/// Everything that is sealed, sealed with `from` before and with the ring of `to` after.
#[tokio::test]
async fn everything_sealed_gets_the_new_key_also_when_the_change_is_interrupted() {
    let server = Server::new().await;
    let id = server.computer().await;
    plant(&server, &id, "KEPT", "1").await;
    server.post(&format!("/computers/{id}/stop"), json!({})).await;
    server.post(&format!("/computers/{id}/start"), json!({ "env": { "ONCE": "2" } })).await;
    let hook =
        json!({ "url": "https://example.org/", "events": ["credits.low"], "headers": { "x-token": "3" } });
    let hook = json!({ "secret": "whsec_4444", "url": hook["url"], "events": hook["events"],
        "headers": hook["headers"] });
    let key = [("idempotency-key", "once")];
    let create = json!({ "name": "twice", "template_type": "miosa-desktop" }).to_string();
    let (post, all) = (Method::POST, Some(server.key.clone()));
    let made = server.send(post.clone(), "/computers", all.as_deref(), &key, &create).await;
    let (status, webhook) = server.post("/webhooks", hook).await;
    assert_eq!((made.status, status), (201, 201), "{webhook}");

    let both = seal_key().with_new_key().unwrap();
    let new = both.without_earlier_keys();
    // Interrupted before anything was sealed again, or half-way: the server works with both keys.
    let server = server.with_seal_key(both.clone()).await;
    plant(&server, &id, "LATER", "5").await;
    let resealed = roost_control::reseal(&server.store, &both).await.unwrap();
    let expected = roost_control::Resealed { sealed_again: 5, current: 1, unreadable: Vec::new() };
    assert_eq!(resealed, expected);
    // Again: there is nothing to do.
    let resealed = roost_control::reseal(&server.store, &both).await.unwrap();
    assert_eq!((resealed.sealed_again, resealed.current), (0, 6));

    let server = server.with_seal_key(new).await;
    plant(&server, &id, "LAST", "6").await;
    let expected = [pair("KEPT", "1"), pair("LAST", "6"), pair("LATER", "5"), pair("ONCE", "2")];
    assert_eq!(held(&server, &id), expected);
    let again = server.send(post, "/computers", all.as_deref(), &key, &create).await;
    assert_eq!((again.status, &again.body), (201, &made.body));
    let webhook = webhook["data"]["id"].as_str().unwrap();
    let (status, found) = server.get(&format!("/webhooks/{webhook}")).await;
    assert_eq!((status, &found["data"]["headers"]["x-token"]), (200, &json!("3")), "{found}");

    // What no key opens is named and left.
    let lost =
        roost_control::reseal(&server.store, &roost_control::SealKey::from_bytes([9; 32])).await.unwrap();
    assert_eq!((lost.sealed_again, lost.current, lost.unreadable.len()), (0, 0, 7));
    assert!(lost.unreadable.iter().any(|place| place.contains(&id) && place.ends_with("/KEPT")));
    plant(&server, &id, "LAST", "7").await;
    assert!(held(&server, &id).contains(&pair("LAST", "7")));
}
