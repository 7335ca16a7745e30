//! Quotas of end users: what they say, and that they hold wherever a computer is made or started.

use axum::http::Method;
use serde_json::{Value, json};

use crate::support::{Server, keys};

const ANN: &str = "/quotas/external/ann";

impl Server {
    async fn of_ann(&self) -> (u16, Value) {
        let body = json!({ "name": "box", "template_type": "miosa-desktop", "external_user_id": "ann" });
        self.post("/computers?wait=true", body).await
    }

    async fn quota(&self, body: Value) -> Value {
        let (status, quota) = self.call(Method::PUT, ANN, body).await;
        assert_eq!(status, 200, "{quota}");
        quota
    }
}

fn refused(answer: &(u16, Value)) -> (u16, &str, &Value) {
    (answer.0, answer.1["code"].as_str().unwrap_or_default(), &answer.1["error"]["details"]["limit"])
}

#[tokio::test]
async fn a_quota_is_read_set_in_parts_and_removed() {
    let server = Server::new().await;
    let (status, none) = server.get(ANN).await;
    assert_eq!(status, 200);
    let names = [
        "current_sandboxes",
        "external_user_id",
        "max_concurrent",
        "max_credit_cents",
        "max_sandboxes",
        "max_storage_gb",
        "usage",
    ];
    assert_eq!(keys(&none), names);
    assert_eq!((&none["max_sandboxes"], &none["current_sandboxes"]), (&Value::Null, &json!(0)));
    server.quota(json!({ "max_sandboxes": 5, "max_concurrent": 2 })).await;
    // What a client leaves out, it does not take away.
    let quota = server.quota(json!({ "max_storage_gb": 40, "max_concurrent": null })).await;
    let limits = ["max_sandboxes", "max_concurrent", "max_storage_gb", "max_credit_cents"];
    assert_eq!(limits.map(|name| quota[name].as_u64()), [Some(5), None, Some(40), None]);
    assert_eq!(server.of_ann().await.0, 201);
    let (_, quota) = server.get(ANN).await;
    assert_eq!(quota["current_sandboxes"], json!(1));
    let usage = &quota["usage"];
    assert_eq!((&usage["sandboxes"], &usage["concurrent"]), (&json!(1), &json!(1)));
    assert_eq!((&usage["storage_gb"], &usage["credit_cents"]), (&json!(10), &json!(0)));
    for wrong in [json!({ "max_sandboxes": -1 }), json!({ "max_concurrent": "2" }), json!([1])] {
        assert_eq!(server.call(Method::PUT, ANN, wrong.clone()).await.0, 422, "{wrong}");
    }
    let removed = json!({ "external_user_id": "ann", "deleted": true });
    for _ in 0..2 {
        assert_eq!(server.delete(ANN).await, (200, removed.clone()));
    }
    assert_eq!(server.get(ANN).await.1["max_sandboxes"], Value::Null);
}

#[tokio::test]
async fn every_way_to_one_more_is_closed() {
    let server = Server::new().await;
    let (_, computer) = server.of_ann().await;
    let id = computer["id"].as_str().unwrap();
    let snapshot = server.snapshot(id).await;
    let ways = [
        (format!("/computers/{id}/clone"), json!({ "name": "other" })),
        (format!("/computers/{id}/restore/{snapshot}"), json!({})),
        (format!("/snapshots/{snapshot}/fork"), json!({ "name": "other" })),
    ];
    let all = server.get("/computers").await.1["total"].clone();
    for (limits, name) in [
        (json!({ "max_sandboxes": 1 }), "max_sandboxes"),
        (json!({ "max_sandboxes": null, "max_concurrent": 1 }), "max_concurrent"),
        (json!({ "max_concurrent": null, "max_storage_gb": 19 }), "max_storage_gb"),
    ] {
        server.quota(limits).await;
        assert_eq!(refused(&server.of_ann().await), (403, "QUOTA_EXCEEDED", &json!(name)));
        for (path, body) in &ways {
            let answer = server.post(path, body.clone()).await;
            assert_eq!(refused(&answer), (403, "QUOTA_EXCEEDED", &json!(name)), "{path} {}", answer.1);
        }
    }
    assert_eq!(server.get("/computers").await.1["total"], all, "a refused request leaves nothing behind");
    // With what is left of it, one more is made.
    server.quota(json!({ "max_storage_gb": 20, "max_concurrent": 2 })).await;
    let (status, other) = server.of_ann().await;
    assert_eq!(status, 201, "{other}");
    server.quota(json!({ "max_storage_gb": 1, "max_concurrent": 1 })).await;
    let other = format!("/computers/{}", other["id"].as_str().unwrap());
    assert_eq!(server.post(&format!("{other}/stop"), json!({})).await.0, 200, "what there is stays usable");
    let start = format!("{other}/start");
    assert_eq!(
        refused(&server.post(&start, json!({})).await),
        (403, "QUOTA_EXCEEDED", &json!("max_concurrent"))
    );
    // A restart is no start of one more.
    assert_eq!(server.post(&format!("/computers/{id}/restart"), json!({})).await.0, 200);
    server.delete(&format!("/computers/{id}")).await;
    assert_eq!(server.post(&start, json!({})).await.0, 200);
}

#[tokio::test]
async fn who_has_spent_their_quota_starts_nothing() {
    let server = Server::new().await;
    server.quota(json!({ "max_credit_cents": 0 })).await;
    let answer = server.of_ann().await;
    assert_eq!(refused(&answer), (402, "INSUFFICIENT_CREDITS", &json!("max_credit_cents")));
    assert_eq!(server.computer().await.len(), 36, "others go on");
    server.quota(json!({ "max_credit_cents": 1000 })).await;
    let (_, computer) = server.of_ann().await;
    let id = computer["id"].as_str().unwrap();
    let mut events = server.listen(&format!("/computers/{id}/events"), None).await;
    server.quota(json!({ "max_credit_cents": 0 })).await;
    server.control.meter().await.unwrap();
    let heard = events.until("stopped").await;
    let told = heard.iter().find(|event| event.kind == "quota.exhausted").unwrap();
    assert_eq!(told.data["max_credit_cents"], json!(0));
}

#[tokio::test]
async fn quotas_are_for_administrators_and_an_end_user_sees_their_own() {
    let server = Server::new().await;
    let scoped = async |user: &str| {
        let body = json!({ "name": user, "external_user_id": user });
        let (status, made) = server.post("/api-keys/scoped", body).await;
        assert_eq!(status, 201, "{made}");
        made["data"]["key"].as_str().unwrap().to_owned()
    };
    let (ann, bob) = (scoped("ann").await, scoped("bob").await);
    server.quota(json!({ "max_sandboxes": 0 })).await;
    let as_key = async |method: Method, key: &str| {
        let reply = server.send(method, ANN, Some(key), &[], "{}").await;
        (reply.status, reply.json()["max_sandboxes"].clone())
    };
    assert_eq!(as_key(Method::GET, &ann).await, (200, json!(0)));
    assert_eq!(as_key(Method::GET, &bob).await.0, 403);
    assert_eq!(as_key(Method::PUT, &ann).await.0, 403);
    assert_eq!(as_key(Method::DELETE, &ann).await.0, 403);
    // The key makes computers of its end user, so the quota holds for it.
    let body = json!({ "name": "box", "template_type": "miosa-desktop" }).to_string();
    let reply = server.send(Method::POST, "/computers", Some(&ann), &[], &body).await;
    assert_eq!((reply.status, &reply.json()["code"]), (403, &json!("QUOTA_EXCEEDED")));
    for (path, key) in [("/billing/usage", &ann), ("/billing/plan", &ann), ("/tenant/plan", &ann)] {
        assert_eq!(server.send(Method::GET, path, Some(key), &[], "").await.status, 403, "{path}");
    }
}

/// Or its quota would hold nobody.
#[tokio::test]
async fn a_confined_key_clones_for_its_own_end_user_only() {
    let server = Server::new().await;
    let (_, computer) = server.of_ann().await;
    let (_, made) =
        server.post("/api-keys/scoped", json!({ "name": "ann", "external_user_id": "ann" })).await;
    let key = made["data"]["key"].as_str().unwrap();
    let path = format!("/computers/{}/clone", computer["id"].as_str().unwrap());
    for (user, status) in [("bob", 403), ("ann", 201)] {
        let body = json!({ "external_user_id": user }).to_string();
        let reply = server.send(Method::POST, &path, Some(key), &[], &body).await;
        assert_eq!(reply.status, status, "{user} {}", reply.body);
    }
}

#[tokio::test]
async fn the_plan_and_what_is_billed() {
    let server = Server::new().await;
    let id = server.computer().await;
    server.snapshot(&id).await;
    let (status, plan) = server.get("/tenant/plan").await;
    assert_eq!((status, &plan["data"]["plan"]), (200, &json!("self-hosted")));
    let counted = ["computers", "running", "snapshots", "workspaces", "users"];
    assert_eq!(counted.map(|name| plan["data"][name].as_u64()), [Some(1); 5]);
    assert_eq!(server.get("/billing/plan").await, (200, plan));
    let (status, usage) = server.get("/billing/usage").await;
    assert_eq!((status, &usage["unlimited"]), (200, &json!(true)));
    assert!(usage["compute_hours"].is_f64() && usage["total_credits"].is_i64(), "{usage}");
}
