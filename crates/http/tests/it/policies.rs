//! Policies of workspaces, and computers that go from one to another.

use axum::http::Method;
use serde_json::{Value, json};

use crate::support::Server;

impl Server {
    async fn workspace(&self, name: &str) -> String {
        let (status, made) = self.post("/workspaces", json!({ "name": name })).await;
        assert_eq!(status, 201, "{made}");
        made["id"].as_str().unwrap().to_owned()
    }

    async fn made_in(&self, workspace: &str, more: Value) -> (u16, Value) {
        let mut body = json!({ "name": "box", "template_type": "miosa-desktop", "workspace_id": workspace });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.post("/computers?wait=true", body).await
    }
}

fn id(computer: &Value) -> String {
    computer["id"].as_str().unwrap_or_else(|| panic!("{computer}")).to_owned()
}

fn denied(answer: &(u16, Value)) -> (u16, &str, &Value) {
    (answer.0, answer.1["code"].as_str().unwrap_or_default(), &answer.1["error"]["details"]["limit"])
}

#[tokio::test]
async fn a_policy_is_set_as_a_whole_and_holds() {
    let server = Server::new().await;
    let workspace = server.workspace("clinic").await;
    let path = format!("/workspaces/{workspace}/policy");
    let (status, none) = server.get(&path).await;
    assert_eq!((status, &none["data"]["max_computers"]), (200, &Value::Null));
    let put = async |body: Value| server.call(Method::PUT, &path, body).await;
    for (wrong, field) in [
        (json!({ "max_computer": 1 }), "max_computer"),
        (json!({ "max_computers": -1 }), "max_computers"),
        (json!({ "allowed_sizes": ["huge"] }), "allowed_sizes[0]"),
        (json!({ "allowed_regions": ["nowhere"] }), "allowed_regions"),
    ] {
        let (status, answer) = put(wrong.clone()).await;
        assert_eq!((status, answer["errors"][field].is_array()), (422, true), "{answer}");
    }
    let body =
        json!({ "allowed_sizes": ["small"], "allowed_regions": ["local"], "default_auto_stop_seconds": 900 });
    assert_eq!(put(body).await.0, 200);
    let size = server.made_in(&workspace, json!({ "size": "large" })).await;
    assert_eq!(denied(&size), (403, "POLICY_DENIED", &json!("allowed_sizes")));
    let region = server.made_in(&workspace, json!({ "region": "us-east-ny" })).await;
    assert_eq!(denied(&region), (403, "POLICY_DENIED", &json!("allowed_regions")));
    let (status, computer) = server.made_in(&workspace, json!({})).await;
    assert_eq!((status, &computer["auto_stop"]), (201, &json!(900)));
    let (_, busy) = server.made_in(&workspace, json!({ "idle_timeout_sec": 0 })).await;
    assert_eq!(busy["auto_stop"], json!(0), "what a request says goes first");
    // What is there changes within it, too.
    let one = format!("/computers/{}", id(&computer));
    server.post(&format!("{one}/stop"), json!({})).await;
    let resized = server.post(&format!("{one}/resize"), json!({ "size": "medium" })).await;
    assert_eq!(denied(&resized), (403, "POLICY_DENIED", &json!("allowed_sizes")));
    let moved = server.post(&format!("{one}/move"), json!({ "region": "us-east-ny" })).await;
    assert_eq!(denied(&moved), (403, "POLICY_DENIED", &json!("allowed_regions")));
    assert_eq!(put(json!({ "max_concurrent": 1 })).await.0, 200);
    let start = server.post(&format!("{one}/start"), json!({})).await;
    assert_eq!(denied(&start), (403, "QUOTA_EXCEEDED", &json!("max_concurrent")));
    let (status, gone) = server.delete(&path).await;
    assert_eq!((status, &gone["data"]["max_concurrent"]), (200, &Value::Null));
    assert_eq!(server.post(&format!("{one}/start"), json!({})).await.0, 200);
}

#[tokio::test]
async fn limits_among_the_settings_hold_and_the_narrower_one_does() {
    let server = Server::new().await;
    let workspace = server.workspace("clinic").await;
    let settings = format!("/workspaces/{workspace}/settings");
    let wrong = server.call(Method::PUT, &settings, json!({ "max_computers": "one" })).await;
    assert_eq!((wrong.0, wrong.1["errors"]["settings"].is_array()), (422, true), "{}", wrong.1);
    let body = json!({ "theme": "dark", "max_computers": 1 });
    let (status, changed) = server.call(Method::PUT, &settings, body.clone()).await;
    assert_eq!((status, &changed["settings"]), (200, &body));
    let policy = format!("/workspaces/{workspace}/policy");
    server.call(Method::PUT, &policy, json!({ "max_computers": 5 })).await;
    assert_eq!(server.made_in(&workspace, json!({})).await.0, 201);
    let more = server.made_in(&workspace, json!({})).await;
    assert_eq!(denied(&more), (403, "QUOTA_EXCEEDED", &json!("max_computers")));
    server.call(Method::PUT, &settings, json!({})).await;
    assert_eq!(server.made_in(&workspace, json!({})).await.0, 201);
}

#[tokio::test]
async fn computers_go_to_another_workspace_together_or_not_at_all() {
    let server = Server::new().await;
    let (source, target) = (server.workspace("clinic").await, server.workspace("lab").await);
    let first = id(&server.made_in(&source, json!({})).await.1);
    let second = id(&server.made_in(&source, json!({ "size": "medium" })).await.1);
    let elsewhere = server.computer().await;
    let snapshot = server.snapshot(&first).await;
    let path = format!("/workspaces/{source}/transfer");
    let transfer = async |ids: &[&String], target: &str| {
        server.post(&path, json!({ "resource_ids": ids, "target_workspace_id": target })).await
    };
    let place = async |id: &str| server.get(&format!("/computers/{id}")).await.1["workspace_id"].clone();
    for (status, answer) in [
        transfer(&[&first, &elsewhere], &target).await,
        transfer(&[], &target).await,
        server.post(&path, json!({ "resource_ids": [first] })).await,
    ] {
        assert_eq!((status, &answer["code"]), (422, &json!("VALIDATION_FAILED")), "{answer}");
    }
    assert_eq!(transfer(&[&first], "3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000").await.0, 404);
    // The target's policy has room for all of them, or none goes.
    let policy = format!("/workspaces/{target}/policy");
    for limit in
        [json!({ "max_computers": 1 }), json!({ "allowed_sizes": ["small"] }), json!({ "max_concurrent": 1 })]
    {
        server.call(Method::PUT, &policy, limit.clone()).await;
        assert_eq!(transfer(&[&first, &second], &target).await.0, 403, "{limit}");
        assert_eq!(place(&first).await, json!(source));
    }
    server.delete(&policy).await;
    let (status, answer) = transfer(&[&first, &second, &first], &target).await;
    assert_eq!((status, answer["data"]["transferred"].as_array().map(Vec::len)), (200, Some(2)), "{answer}");
    for id in [&first, &second] {
        assert_eq!(place(id).await, json!(target));
    }
    let (_, in_target) = server.get(&format!("/workspaces/{target}/computers")).await;
    assert_eq!(in_target["total"], json!(2));
    let (_, snapshots) = server.get(&format!("/snapshots?workspace_id={target}")).await;
    assert_eq!(snapshots["data"][0]["id"], json!(snapshot));
    // Twice is the same as once, but for where they are.
    assert_eq!(transfer(&[&first], &target).await.0, 422);
    assert_eq!(place(&elsewhere).await, server.get("/whoami").await.1["data"]["workspace_id"]);
}
