//! Computers: what may be asked of a new one, of a clone, and of a list.

use axum::http::Method;
use roost_launch::simulated::Boot;
use serde_json::{Value, json};

use crate::support::{Server, keys};

fn desktop(name: &str) -> Value {
    json!({ "name": name, "template_type": "miosa-desktop" })
}

fn with(mut body: Value, more: &Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn names(list: &Value) -> Vec<&str> {
    list["computers"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_computer_has_every_field_the_clients_know() {
    let server = Server::new().await;
    let id = server.computer().await;
    let (_, computer) = server.get(&format!("/computers/{id}")).await;
    let fields = keys(&computer);
    for field in ["ip_address", "preview_domain", "started_at", "ready_at", "destroyed_at", "region"] {
        assert!(fields.contains(&field), "{field}");
    }
    assert_eq!((&computer["ip_address"], &computer["destroyed_at"]), (&Value::Null, &Value::Null));
    assert_eq!(computer["disk_size_mb"], json!(10 * 1024));
}

#[tokio::test]
async fn a_shape_is_the_smallest_size_that_has_it() {
    let server = Server::new().await;
    for (shape, size) in [
        (json!({}), "small"),
        (json!({ "memory_mb": 2048 }), "xs"),
        (json!({ "cpu_count": 1, "memory_mb": 4096 }), "small"),
        (json!({ "cpu_count": 2 }), "medium"),
        (json!({ "cpu_count": 3, "memory_mb": 1 }), "large"),
        (json!({ "cpu_count": 1, "memory_mb": 16385 }), "xl"),
        (json!({ "disk_size_mb": 10241 }), "medium"),
        (json!({ "size": "xs", "cpu_count": 8, "memory_mb": 32768 }), "xs"),
        (json!({ "gpu_count": 0, "gpu_model": "", "region": "local", "fail_fast": true }), "small"),
    ] {
        let (status, computer) = server.post("/computers", with(desktop("box"), &shape)).await;
        assert_eq!((status, &computer["size"]), (201, &json!(size)), "{shape}");
    }
    for (shape, field) in [
        (json!({ "cpu_count": 9 }), "cpu_count"),
        (json!({ "memory_mb": 40000 }), "cpu_count"),
        (json!({ "gpu_count": 1 }), "gpu_count"),
        (json!({ "gpu_model": "a100" }), "gpu_count"),
        (json!({ "region": "moon" }), "region"),
        (json!({ "cpu_count": -1 }), "cpu_count"),
    ] {
        let (status, refused) = server.post("/computers", with(desktop("box"), &shape)).await;
        assert_eq!((status, &refused["code"]), (422, &json!("VALIDATION_FAILED")), "{shape}");
        assert_eq!(keys(&refused["errors"]), [field], "{shape}");
    }
}

#[tokio::test]
async fn whoever_waits_is_told_what_came_of_it() {
    let server = Server::new().await;
    for (boot, outcome, status) in [
        (Boot::Succeeds, "ready", "running"),
        (Boot::Fails, "error", "error"),
        (Boot::Hangs, "timeout", "provisioning"),
    ] {
        server.launcher.set_boot(boot);
        let body = desktop("box").to_string();
        let reply = server
            .send(Method::POST, "/computers?wait=2&fail_fast=true", Some(&server.key), &[], &body)
            .await;
        assert_eq!((reply.status, &reply.json()["status"]), (201, &json!(status)));
        assert_eq!(reply.header("x-miosa-wait-outcome"), Some(outcome));
    }
}

#[tokio::test]
async fn a_clone_takes_what_a_new_computer_takes() {
    let server = Server::new().await;
    let body = json!({ "external_user_id": "u1", "external_project_id": "p1", "idle_timeout_sec": 60, "env": { "A": "1", "B": "2" } });
    let (status, source) = server.post("/computers?wait=true", with(desktop("box"), &body)).await;
    assert_eq!((status, &source["status"]), (201, &json!("running")));
    let path = format!("/computers/{}/clone", source["id"].as_str().unwrap());

    let (status, plain) = server.call(Method::POST, &path, Value::Null).await;
    assert_eq!((status, &plain["name"]), (201, &json!("box-clone")));
    for field in ["external_user_id", "external_project_id", "auto_stop", "size", "region"] {
        assert_eq!(plain[field], source[field], "{field}");
    }

    let wanted = json!({
        "name": "other", "size": "small", "region": "local", "external_user_id": "u2", "external_workspace_id": "w2",
        "idle_timeout_sec": 90, "env": { "B": "3", "C": "4" },
    });
    let (status, clone) = server.post(&path, wanted).await;
    assert_eq!(status, 201, "{clone}");
    assert_eq!((&clone["external_user_id"], &clone["external_workspace_id"]), (&json!("u2"), &json!("w2")));
    assert_eq!((&clone["external_project_id"], &clone["auto_stop"]), (&json!("p1"), &json!(90)));
    let id = clone["id"].as_str().unwrap();
    let (status, started) = server.post(&format!("/computers/{id}/start"), json!({})).await;
    assert_eq!((status, &started["status"]), (200, &json!("running")));
    let environment: Vec<_> = server.launcher.environment(id.parse().unwrap()).into_iter().collect();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(environment, [pair("A", "1"), pair("B", "3"), pair("C", "4")]);

    for (wrong, field) in [
        (json!({ "size": "large" }), "size"),
        (json!({ "size": "huge" }), "size"),
        (json!({ "region": "moon" }), "region"),
        (json!({ "env": { "1": "x" } }), "name"),
    ] {
        let (status, refused) = server.post(&path, wrong.clone()).await;
        assert_eq!((status, keys(&refused["errors"])), (422, vec![field]), "{wrong}");
    }
}

#[tokio::test]
async fn a_stopped_computer_moves() {
    let server = Server::new().await;
    let id = server.computer().await;
    let path = format!("/computers/{id}/move");
    let wanted = json!({ "region": "us-east-ny" });
    // The state comes before the body.
    for body in [wanted.clone(), json!({}), json!({ "region": 7 })] {
        let (status, refused) = server.post(&path, body).await;
        assert_eq!((status, &refused["code"]), (409, &json!("RESOURCE_STATE")));
        assert_eq!(refused["message"], json!("computer must be stopped to move"));
    }
    let (status, _) = server.post(&format!("/computers/{id}/stop"), json!({})).await;
    assert_eq!(status, 200);
    for body in [
        json!({}),
        json!({ "host_id": "h" }),
        json!({ "region": "" }),
        json!({ "region": "moon" }),
        json!({ "region": 7 }),
    ] {
        let (status, refused) = server.post(&path, body.clone()).await;
        assert_eq!((status, keys(&refused["errors"])), (422, vec!["region"]), "{body}");
    }
    let (status, mut moved) = server.post(&path, wanted.clone()).await;
    assert_eq!((status, &moved["region"], &moved["status"]), (200, &json!("us-east-ny"), &json!("stopped")));
    let data = moved.as_object_mut().unwrap().remove("data").unwrap();
    assert_eq!(data, moved);
    // Again: it is there.
    let (status, again) = server.post(&path, wanted).await;
    assert_eq!((status, &again["region"]), (200, &json!("us-east-ny")));
    let (status, started) = server.post(&format!("/computers/{id}/start"), json!({})).await;
    assert_eq!((status, &started["status"]), (200, &json!("running")));
    assert_eq!((server.far.running().len(), server.launcher.running().len()), (1, 0));
    let (status, _) = server.delete(&format!("/computers/{id}")).await;
    assert_eq!((status, server.far.running().len()), (200, 0));
    let (status, _) = server.post(&path, json!({ "region": "local" })).await;
    assert_eq!(status, 404);

    let body = json!({ "name": "far", "template_type": "miosa-desktop", "region": "us-east-ny" });
    let (status, made) = server.post("/computers?wait=true", body).await;
    assert_eq!((status, &made["region"], &made["status"]), (201, &json!("us-east-ny"), &json!("running")));
    assert_eq!((server.far.running().len(), server.launcher.running().len()), (1, 0));
}

#[tokio::test]
async fn lists_are_sorted_as_asked() {
    let server = Server::new().await;
    let mut ids = Vec::new();
    for name in ["beta", "Alpha", "gamma"] {
        let (_, computer) = server.post("/computers?wait=true", desktop(name)).await;
        ids.push(computer["id"].as_str().unwrap().to_owned());
    }
    let path = format!("/computers/{}", ids[0]);
    let (status, _) = server.call(Method::PATCH, &path, json!({ "metadata": { "a": "b" } })).await;
    assert_eq!(status, 200);
    for (sort, expected) in [
        ("", ["gamma", "Alpha", "beta"]),
        ("created-desc", ["gamma", "Alpha", "beta"]),
        ("created-asc", ["beta", "Alpha", "gamma"]),
        ("updated-desc", ["beta", "gamma", "Alpha"]),
        ("updated-asc", ["Alpha", "gamma", "beta"]),
        ("name-asc", ["Alpha", "beta", "gamma"]),
        ("name-desc", ["gamma", "beta", "Alpha"]),
    ] {
        let (status, list) = server.get(&format!("/computers?sort={sort}")).await;
        assert_eq!((status, names(&list)), (200, expected.to_vec()), "{sort}");
        // Pages are parts of the whole in the same order.
        for (index, name) in expected.iter().enumerate() {
            let (_, page) = server.get(&format!("/computers?sort={sort}&limit=1&page={}", index + 1)).await;
            assert_eq!((names(&page), &page["total"]), (vec![*name], &json!(3)), "{sort}");
        }
    }
    let (status, refused) = server.get("/computers?sort=colour").await;
    assert_eq!((status, keys(&refused["errors"])), (422, vec!["sort"]));
}

#[tokio::test]
async fn pages_that_are_out_of_range_are_the_nearest() {
    let server = Server::new().await;
    for name in ["a", "b", "c"] {
        server.post("/computers", desktop(name)).await;
    }
    for (query, page, limit, rows) in [
        ("page=-1", 1, 20, 3),
        ("page=0&page_size=2", 1, 2, 2),
        ("page=2&page_size=2", 2, 2, 1),
        ("page=-9999999999999999999999&limit=-5", 1, 1, 1),
        ("page=1&per_page=1000", 1, 100, 3),
        ("page=9999999999999999999999&limit=9999999999999999999999", u32::MAX, 100, 0),
    ] {
        let (status, list) = server.get(&format!("/computers?{query}")).await;
        assert_eq!(status, 200, "{query} {list}");
        let meta = &list["meta"];
        assert_eq!((&meta["page"], &meta["limit"]), (&json!(page), &json!(limit)), "{query}");
        assert_eq!((names(&list).len(), &list["total"]), (rows, &json!(3)), "{query}");
    }
    for query in ["page=one", "limit=1.5"] {
        let (status, refused) = server.get(&format!("/computers?{query}")).await;
        assert_eq!((status, &refused["code"]), (422, &json!("VALIDATION_FAILED")), "{query}");
    }
    for path in ["/credits/transactions?page=-1", "/usage/sessions?limit=-1", "/snapshots?limit=-1&offset=-1"]
    {
        let (status, list) = server.get(path).await;
        assert_eq!(status, 200, "{path} {list}");
    }
}

/// PostgreSQL holds no text with a NUL.
#[tokio::test]
async fn a_nul_in_a_request_breaks_nothing() {
    let server = Server::new().await;
    let id = server.computer().await;
    for path in ["/computers?search=%00", "/computers?external_user_id=a%00b", "/snapshots?q=%00"] {
        let (status, list) = server.get(path).await;
        assert_eq!((status, &list["code"]), (422, &json!("VALIDATION_FAILED")), "{path}");
    }
    let path = format!("/computers/{id}");
    let (status, changed) = server.call(Method::PATCH, &path, json!({ "agent_session_id": "a\0b" })).await;
    assert!(status == 200 || status == 422, "{status} {changed}");
}

#[tokio::test]
async fn a_search_looks_through_names_slugs_and_ids() {
    let server = Server::new().await;
    let mut ids = Vec::new();
    for name in ["Ärztin 100%", "Empfang_Süd", "Lager"] {
        let (_, made) = server.post("/computers", desktop(name)).await;
        ids.push(made["id"].as_str().unwrap().to_owned());
    }
    let renamed =
        server.call(Method::PATCH, &format!("/computers/{}", ids[2]), json!({ "name": "Labor" })).await;
    assert_eq!(renamed.0, 200);
    let by_id = ids[0][..18].to_uppercase();
    for (text, wanted) in [
        ("%C3%A4RZTIN", &["Ärztin 100%"][..]),
        ("0%25", &["Ärztin 100%"]),
        ("g_s", &["Empfang_Süd"]),
        // What it was called is its slug still.
        ("LAGER", &["Labor"]),
        ("labor", &["Labor"]),
        (&by_id, &["Ärztin 100%"]),
        // Only within one of them.
        ("labor%20lager", &[]),
        ("%25%25", &[]),
    ] {
        let (status, list) = server.get(&format!("/computers?search={text}")).await;
        assert_eq!((status, names(&list)), (200, wanted.to_vec()), "{text}");
        assert_eq!(list["total"], json!(wanted.len()), "{text}");
    }
}
