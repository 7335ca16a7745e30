//! Clones and snapshots: envelopes, codes, events, tickets.

use axum::http::Method;
use serde_json::{Value, json};

use crate::support::{Server, keys};

#[tokio::test]
async fn clone_and_resize_answer_the_computer_twice() {
    let server = Server::new().await;
    let id = server.computer().await;
    // Go sends the literal null.
    let (status, clone) = server.post(&format!("/computers/{id}/clone"), Value::Null).await;
    assert_eq!(status, 201, "{clone}");
    assert_eq!((&clone["id"], &clone["name"]), (&clone["data"]["id"], &json!("box-clone")));
    assert_eq!(clone["status"], "provisioning");
    assert_ne!(clone["id"], json!(id));
    let clone = clone["id"].as_str().unwrap().to_owned();
    // It joins the creation.
    let (status, started) = server.post(&format!("/computers/{clone}/start"), json!({})).await;
    assert!(status == 200 || started["code"] == "INVALID_STATE", "{started}");

    let resize = format!("/computers/{id}/resize");
    let (status, refused) = server.post(&resize, json!({ "size": 7 })).await;
    assert_eq!((status, &refused["code"]), (409, &json!("RESOURCE_STATE")), "the state comes first");
    assert_eq!(refused["message"], "computer must be stopped to resize");
    server.post(&format!("/computers/{id}/stop"), json!({})).await;
    let (status, refused) = server.post(&format!("/computers/{id}/clone"), json!({})).await;
    assert_eq!((status, &refused["code"]), (409, &json!("COMPUTER_NOT_RUNNING")));
    for body in [json!({}), json!({ "size": "huge" }), json!({ "cpu_count": 3, "memory_mb": 1 })] {
        let (status, refused) = server.post(&resize, body).await;
        assert_eq!((status, &refused["code"]), (422, &json!("VALIDATION_FAILED")), "{refused}");
    }
    let (status, resized) = server.call(Method::PATCH, &resize, json!({ "size": "medium" })).await;
    assert_eq!(status, 200, "{resized}");
    assert_eq!((&resized["vcpus"], &resized["data"]["memory_mb"]), (&json!(2), &json!(8192)));
    assert_eq!(resized["memory_lost"], Value::Null);
}

#[tokio::test]
async fn snapshots_of_a_computer() {
    let server = Server::new().await;
    let id = server.computer().await;
    let other = server.computer().await;
    let first = server.snapshot(&id).await;
    let second = server.snapshot(&id).await;

    let (_, list) = server.get(&format!("/computers/{id}/snapshots")).await;
    assert_eq!(keys(&list), ["data"]);
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|one| &one["id"]).collect();
    assert_eq!(ids, [&json!(second), &json!(first)]);
    assert_eq!(list["data"][0]["parent_snapshot_id"], json!(first));
    assert_eq!(list["data"][0]["s3_bucket"], Value::Null);

    let (status, restored) = server.post(&format!("/computers/{id}/restore/{first}"), json!({})).await;
    assert_eq!(status, 201, "{restored}");
    assert_eq!(restored["id"], restored["data"]["id"]);
    assert_eq!((&restored["snapshot"]["id"], &restored["name"]), (&json!(first), &json!("box-restored")));
    let (status, forked) = server.post(&format!("/snapshots/{first}/fork"), json!({ "name": "fork" })).await;
    assert_eq!(status, 201, "{forked}");
    assert_eq!(keys(&forked), ["data", "snapshot"]);
    assert_eq!(
        (&forked["data"]["machine_type"], &forked["data"]["state"]),
        (&json!("computer"), &json!("provisioning"))
    );

    let unknown = "3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000";
    for path in [
        format!("/computers/{other}/snapshots/{first}"),
        format!("/computers/{id}/snapshots/{unknown}"),
        format!("/computers/{id}/snapshots/nonsense"),
        format!("/snapshots/{unknown}"),
        "/named-snapshots/none".to_owned(),
    ] {
        let (status, refused) = server.get(&path).await;
        assert_eq!((status, &refused["code"]), (404, &json!("NOT_FOUND")), "{path}");
    }
    let (status, _, _) = server.raw(Method::GET, &format!("/snapshots/{first}"), None, "").await;
    assert_eq!(status, 401);
    let (status, refused) =
        server.post(&format!("/computers/{id}/snapshots"), json!({ "comment": "x".repeat(501) })).await;
    assert_eq!((status, &refused["code"]), (422, &json!("VALIDATION_FAILED")));

    let (status, deleted) = server.delete(&format!("/computers/{id}/snapshots/{second}")).await;
    assert_eq!((status, keys(&deleted), &deleted["data"]["status"]), (200, vec!["data"], &json!("deleted")));
    let (status, _) = server.get(&format!("/computers/{id}/snapshots/{second}")).await;
    assert_eq!(status, 404);
}

/// The disks of simulated machines are names in a table: what there is to refuse, and how.
#[tokio::test]
async fn files_of_a_snapshot() {
    let server = Server::new().await;
    let id = server.computer().await;
    let sid = server.snapshot(&id).await;
    let (_, read) = server.get(&format!("/snapshots/{sid}")).await;
    assert_eq!(read["data"]["browsable"], true);

    for (path, status, code) in [
        ("files", 400, "MISSING_PARAM"),
        ("files?path=", 400, "INVALID_PATH"),
        ("files?path=relative", 400, "INVALID_PATH"),
        ("files?path=/a%00b", 400, "INVALID_PATH"),
        ("tree?path=relative", 400, "INVALID_PATH"),
        ("files?path=/etc/hostname", 500, "INTERNAL_ERROR"),
        ("tree", 500, "INTERNAL_ERROR"),
    ] {
        let (answered, refused) = server.get(&format!("/snapshots/{sid}/{path}")).await;
        assert_eq!((answered, &refused["code"]), (status, &json!(code)), "{path}");
        let message = refused["message"].as_str().unwrap();
        assert!(!message.contains("/layers"), "{message}");
    }

    let unknown = "3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000";
    for path in ["tree?path=/", "files?path=/", "files"] {
        let (status, refused) = server.get(&format!("/snapshots/{unknown}/{path}")).await;
        assert_eq!((status, &refused["code"]), (404, &json!("NOT_FOUND")), "{path}");
        let (status, _, _) = server.raw(Method::GET, &format!("/snapshots/{sid}/{path}"), None, "").await;
        assert_eq!(status, 401, "{path}");
    }

    // The state comes before the path.
    server.launcher.refuse("the disk is full");
    let (_, created) = server.post(&format!("/computers/{id}/snapshots"), json!({})).await;
    let failed = created["data"]["id"].as_str().unwrap();
    let events = format!("/computers/{id}/snapshots/{failed}/events");
    let (_, _, events) = server.raw(Method::GET, &events, Some(&server.key), "").await;
    assert!(events.contains("\"status\":\"failed\""), "{events}");
    for path in ["tree?path=relative", "files?path=/", "files"] {
        let (status, refused) = server.get(&format!("/snapshots/{failed}/{path}")).await;
        assert_eq!((status, &refused["code"]), (409, &json!("SNAPSHOT_NOT_READY")), "{path}");
    }
    let (_, read) = server.get(&format!("/snapshots/{failed}")).await;
    assert_eq!(read["data"]["browsable"], false);
}

#[tokio::test]
async fn the_account_and_named_snapshots() {
    let server = Server::new().await;
    let id = server.computer().await;
    let (status, refused) =
        server.post("/named-snapshots", json!({ "name": "base", "computer_id": id })).await;
    assert_eq!((status, &refused["code"]), (409, &json!("NO_SNAPSHOT_AVAILABLE")));
    let first = server.snapshot(&id).await;
    let second = server.snapshot(&id).await;

    let (_, history) = server.get(&format!("/snapshots?resource_id={id}&q=one&limit=1")).await;
    assert_eq!((keys(&history), history["data"].as_array().unwrap().len()), (vec!["data"], 1));
    assert_eq!(history["data"][0]["resource"]["state"], "running");
    let (_, groups) = server.get("/snapshots/groups").await;
    assert_eq!(
        (&groups["data"][0]["snapshot_count"], &groups["data"][0]["resource_id"]),
        (&json!(2), &json!(id))
    );

    let (status, named) =
        server.post("/named-snapshots", json!({ "name": "base", "snapshot_id": first })).await;
    assert_eq!((status, &named["data"]["name"]), (201, &json!("base")), "{named}");
    for (body, code) in [
        (json!({ "name": "base", "snapshot_id": second }), "NAME_TAKEN"),
        (json!({ "name": "other", "snapshot_id": first }), "SNAPSHOT_ALREADY_NAMED"),
    ] {
        let (status, refused) = server.post("/named-snapshots", body).await;
        assert_eq!((status, &refused["code"]), (409, &json!(code)));
    }
    for name in ["", "a b", &"x".repeat(64)] {
        let (status, _) =
            server.post("/named-snapshots", json!({ "name": name, "snapshot_id": second })).await;
        assert_eq!(status, 422, "{name:?}");
    }
    let (_, list) = server.get("/named-snapshots").await;
    assert_eq!(list["allowance"]["used"], 1);
    let (status, refused) = server.delete(&format!("/snapshots/{first}")).await;
    assert_eq!((status, &refused["code"]), (409, &json!("SNAPSHOT_IN_USE")));
    assert_eq!(refused["error"]["details"]["dependents"][0]["kind"], "named_snapshot");
    let (status, refused) = server.post("/snapshots/delete", json!({ "ids": [first] })).await;
    assert_eq!((status, &refused["code"]), (409, &json!("SNAPSHOT_IN_USE")));
    let (status, deployed) = server.post("/named-snapshots/base/deploy", json!({})).await;
    assert_eq!(status, 201, "{deployed}");
    let deployed = deployed["data"]["id"].as_str().unwrap().to_owned();
    server.post(&format!("/computers/{deployed}/start"), json!({})).await;

    let (_, read) = server.get("/named-snapshots/base").await;
    assert_eq!(keys(&read), ["data", "dependents"]);
    let (status, released) = server.delete("/named-snapshots/base").await;
    assert_eq!((status, &released["outcome"]), (200, &json!("released")));
    let (status, refused) =
        server.post("/snapshots/delete", json!({ "resource_id": id, "all": true, "confirm": "no" })).await;
    assert_eq!(status, 422, "{refused}");
    let body = json!({ "ids": [first, "nonsense"] });
    let (status, deleted) = server.post("/snapshots/delete", body).await;
    assert_eq!((status, &deleted["data"]["deleted"]), (200, &json!([first])), "{deleted}");
    assert_eq!(deleted["data"]["not_found"], json!(["nonsense"]));
    let (status, deleted) =
        server.post("/snapshots/delete", json!({ "resource_id": id, "all": true, "confirm": id })).await;
    assert_eq!((status, &deleted["data"]["deleted"]), (200, &json!([second])));
}

#[tokio::test]
async fn events_with_a_ticket() {
    let server = Server::new().await;
    let id = server.computer().await;
    let sid = server.snapshot(&id).await;
    for path in ["/sse/ticket", "/auth/sse-ticket"] {
        let (status, ticket) = server.post(path, json!({})).await;
        assert_eq!((status, keys(&ticket)), (200, vec!["expires_in", "ticket"]));
        let path =
            format!("/computers/{id}/snapshots/{sid}/events?ticket={}", ticket["ticket"].as_str().unwrap());
        let (status, kind, events) = server.raw(Method::GET, &path, None, "").await;
        assert_eq!((status, kind.as_str()), (200, "text/event-stream"));
        assert!(events.starts_with(": connected\n\n"), "{events}");
        let data = events.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        let event: Value = serde_json::from_str(data).unwrap();
        assert_eq!((&event["type"], &event["progress"]), (&json!("snapshot_progress"), &json!(100)));
        assert_eq!((&event["status"], &event["snapshot_id"]), (&json!("ready"), &json!(sid)));
        // It opens one stream.
        let (status, _, _) = server.raw(Method::GET, &path, None, "").await;
        assert_eq!(status, 401);
    }
    let path = format!("/computers/{id}/snapshots/{sid}/events");
    let (status, _, _) = server.raw(Method::GET, &path, None, "").await;
    assert_eq!(status, 401);
}
