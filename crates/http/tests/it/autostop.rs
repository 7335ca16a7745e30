//! Computers that stop because nobody uses them.

use axum::http::Method;
use serde_json::{Value, json};

use crate::guest::FakeGuest;
use crate::support::{Server, keys};

async fn set(server: &Server, id: &str, seconds: Value) -> (u16, Value) {
    let body = json!({ "auto_stop_seconds": seconds });
    server.call(Method::PATCH, &format!("/computers/{id}/auto-stop"), body).await
}

async fn status(server: &Server, id: &str) -> Value {
    server.get(&format!("/computers/{id}")).await.1["status"].clone()
}

#[tokio::test]
async fn the_limit_is_read_and_changed_in_every_clients_words() {
    let server = Server::new().await;
    let id = server.computer().await;
    let path = format!("/computers/{id}/auto-stop");
    let (code, off) = server.get(&path).await;
    assert_eq!((code, &off), (200, &json!({ "auto_stop_seconds": 0, "enabled": false })));
    assert_eq!(keys(&off).len(), 2);

    let on = json!({ "auto_stop_seconds": 3600, "enabled": true });
    assert_eq!(set(&server, &id, json!(3600)).await, (200, on.clone()));
    assert_eq!(server.get(&path).await, (200, on));
    assert_eq!(server.get(&format!("/computers/{id}")).await.1["auto_stop"], json!(3600));
    let (_, answer) = server.call(Method::PATCH, &path, json!({ "seconds": 600 })).await;
    assert_eq!(answer, json!({ "auto_stop_seconds": 600, "enabled": true }));
    for wrong in [json!(-1), json!(1.5), json!("60"), json!(true), json!(5_000_000_000u64)] {
        let (code, error) = set(&server, &id, wrong.clone()).await;
        assert_eq!((code, &error["code"]), (422, &json!("VALIDATION_FAILED")), "{wrong}");
        assert!(error["errors"]["auto_stop_seconds"].is_array(), "{error}");
    }
    assert_eq!(server.call(Method::PATCH, &path, json!({})).await.0, 422);
    assert_eq!(server.get(&path).await.1["auto_stop_seconds"], json!(600));
    assert_eq!(set(&server, &id, Value::Null).await.1, off);
}

#[tokio::test]
async fn a_new_computer_takes_its_limit_from_the_request() {
    let server = Server::new().await;
    for (extra, expected) in [
        (json!({}), 0),
        (json!({ "idle_timeout_sec": 900 }), 900),
        (json!({ "idle_timeout_sec": 900, "always_on": true }), 0),
    ] {
        let mut body = json!({ "name": "box", "template_type": "miosa-desktop" });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let (_, computer) = server.post("/computers?wait=true", body).await;
        assert_eq!(computer["auto_stop"], json!(expected), "{extra}");
    }
    let body = json!({ "name": "box", "template_type": "miosa-desktop", "idle_timeout_sec": -5 });
    assert_eq!(server.post("/computers", body).await.0, 422);
}

#[tokio::test]
async fn a_clone_and_a_restored_computer_keep_the_limit() {
    let server = Server::new().await;
    let id = server.computer().await;
    set(&server, &id, json!(1800)).await;
    let (code, clone) = server.post(&format!("/computers/{id}/clone"), json!({})).await;
    assert_eq!((code, &clone["auto_stop"]), (201, &json!(1800)));
    let snapshot = server.snapshot(&id).await;
    let (code, restored) = server.post(&format!("/computers/{id}/restore/{snapshot}"), json!({})).await;
    assert_eq!((code, &restored["auto_stop"]), (201, &json!(1800)));
}

#[tokio::test]
async fn an_idle_computer_is_stopped_with_its_memory_and_starts_again() {
    let server = Server::new().await;
    let id = server.computer().await;
    let unlimited = server.computer().await;
    let mut stream = server.listen(&format!("/computers/{id}/events"), None).await;
    set(&server, &id, json!(1)).await;
    for _ in 0..2 {
        let heard = stream.until("stopped").await;
        let told = heard.iter().find(|event| event.kind == "auto_stopped").unwrap();
        assert_eq!(told.data["idle_seconds"], json!(1));
        assert!(server.launcher.has_memory(id.parse().unwrap()));
        assert_eq!(status(&server, &unlimited).await, json!("running"));
        // A start is use: it gets its time anew, and then is stopped again.
        let (code, started) = server.post(&format!("/computers/{id}/start"), json!({})).await;
        assert_eq!((code, &started["status"]), (200, &json!("running")));
    }
}

#[tokio::test]
async fn a_command_keeps_its_computer_up_for_as_long_as_it_runs() {
    let server = Server::new().await;
    let (guest, channel) = FakeGuest::serve().await;
    server.launcher.set_guest(channel);
    let (busy, idle) = (server.computer().await, server.computer().await);
    let mut stream = server.listen(&format!("/computers/{busy}/events"), None).await;
    let mut of_idle = server.listen(&format!("/computers/{idle}/events"), None).await;
    let router = server.router.clone();
    let request = axum::http::Request::post(format!("/api/v1/computers/{busy}/exec"))
        .header("authorization", format!("Bearer {}", server.key))
        .body(axum::body::Body::from(r#"{"command":"make"}"#))
        .unwrap();
    let command = tokio::spawn(tower::ServiceExt::oneshot(router, request));
    guest.started.acquire().await.unwrap().forget();
    set(&server, &busy, json!(1)).await;
    // Later than the other one would be, if it were idle.
    set(&server, &idle, json!(2)).await;
    of_idle.until("stopped").await;
    assert_eq!(status(&server, &busy).await, json!("running"));
    assert!(!command.is_finished());

    guest.ends.add_permits(1);
    assert_eq!(command.await.unwrap().unwrap().status(), 200);
    stream.until("auto_stopped").await;
}

#[tokio::test]
async fn a_stop_that_is_refused_leaves_the_computer_running_and_is_not_tried_in_a_loop() {
    let server = Server::new().await;
    let id = server.computer().await;
    let mut stream = server.listen(&format!("/computers/{id}/events"), None).await;
    stream.next().await.unwrap();
    server.launcher.refuse("no room for its memory");
    set(&server, &id, json!(1)).await;
    stream.until("auto_stopped").await;
    let back = stream.until("started").await;
    assert!(back.iter().any(|event| event.data["status"] == json!("running")));
    // Whatever wakes the timer, it is not tried again at once: the next one would succeed.
    for _ in 0..20 {
        server.get(&format!("/computers/{id}")).await;
        set(&server, &server.computer().await, json!(0)).await;
    }
    assert_eq!(status(&server, &id).await, json!("running"));
}

#[tokio::test]
async fn a_new_server_remembers_the_limit_and_lets_clients_come_back() {
    let server = Server::new().await;
    let id = server.computer().await;
    set(&server, &id, json!(1)).await;
    let server = server.again().await;
    let mut stream = server.listen(&format!("/computers/{id}/events"), Some("evt_0")).await;
    stream.until("auto_stopped").await;
    stream.until("stopped").await;
    assert!(server.launcher.has_memory(id.parse().unwrap()));
}

#[tokio::test]
async fn stops_starts_and_the_timer_at_the_same_time_do_no_harm() {
    let server = Server::new().await;
    let id = server.computer().await;
    set(&server, &id, json!(1)).await;
    let mut stream = server.listen(&format!("/computers/{id}/events"), None).await;
    for _ in 0..3 {
        let (stop, start) = (format!("/computers/{id}/stop"), format!("/computers/{id}/start"));
        let (a, b, c) = tokio::join!(
            server.post(&stop, json!({})),
            server.post(&start, json!({})),
            set(&server, &id, json!(1))
        );
        assert!([200, 409].contains(&a.0) && [200, 409].contains(&b.0), "{a:?} {b:?}");
        assert_eq!(c.0, 200);
    }
    server.post(&format!("/computers/{id}/start"), json!({})).await;
    stream.until("auto_stopped").await;
    server.control.wait_until(id.parse().unwrap(), |record| record.intended.is_none()).await.unwrap();
    assert_eq!(status(&server, &id).await, json!("stopped"));
}

#[tokio::test]
async fn a_computer_runs_no_longer_than_it_may() {
    let server = Server::new().await;
    let body = json!({ "name": "box", "template_type": "miosa-desktop", "timeout_sec": 3600 });
    let (_, computer) = server.post("/computers?wait=true", body).await;
    let path = format!("/computers/{}", computer["id"].as_str().unwrap());
    assert_eq!(computer["timeout_sec"], json!(3600));
    let left = computer["timeout_remaining_ms"].as_i64().unwrap();
    assert!((3_500_000..=3_600_000).contains(&left), "{left}");
    let (_, none) = server.call(Method::PATCH, &path, json!({ "timeout_sec": null })).await;
    assert_eq!((&none["timeout_sec"], &none["timeout_remaining_ms"]), (&Value::Null, &Value::Null));
    let (_, clone) = server.post(&format!("{path}/clone"), json!({ "timeout_sec": 7200 })).await;
    assert_eq!(clone["timeout_sec"], json!(7200));
    let mut stream = server.listen(&format!("{path}/events"), None).await;
    server.call(Method::PATCH, &path, json!({ "timeout_sec": 1 })).await;
    let heard = stream.until("stopped").await;
    let told = heard.iter().find(|event| event.kind == "timed_out").unwrap();
    assert_eq!(told.data["timeout_sec"], json!(1));
    assert!(server.launcher.has_memory(computer["id"].as_str().unwrap().parse().unwrap()));
    // A start gives it its time anew.
    let (status, started) = server.post(&format!("{path}/start"), json!({})).await;
    assert_eq!((status, &started["status"]), (200, &json!("running")));
    stream.until("stopped").await;
    for wrong in [json!(-1), json!("60"), json!(1.5)] {
        assert_eq!(
            server.call(Method::PATCH, &path, json!({ "timeout_sec": wrong })).await.0,
            422,
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn the_time_of_a_computer_goes_on_while_no_server_lives() {
    let server = Server::new().await;
    let body = json!({ "name": "box", "template_type": "miosa-desktop", "timeout_sec": 2 });
    let (_, computer) = server.post("/computers?wait=true", body).await;
    let id = computer["id"].as_str().unwrap();
    let server = server.again().await;
    let mut stream = server.listen(&format!("/computers/{id}/events"), Some("evt_0")).await;
    assert!(stream.until("stopped").await.iter().any(|event| event.kind == "timed_out"));
}
