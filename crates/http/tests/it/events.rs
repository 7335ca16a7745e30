//! Event streams: what they say, where they continue, whom they belong to.

use axum::http::Method;
use roost_api::{Event, EventId, SnapshotId, TenantId, Timestamp};
use roost_control::EventScope;
use roost_store::EventsOf;
use serde_json::{Value, json};

use crate::support::{Heard, Server, keys};

fn kinds(heard: &[Heard]) -> Vec<&str> {
    heard.iter().map(|event| event.kind.as_str()).collect()
}

fn number(id: &str) -> i64 {
    id.parse::<EventId>().unwrap().0
}

/// An event that says nothing about any computer.
async fn emit(server: &Server, scope: &EventScope) {
    server.control.emit(scope, &Event::CheckpointCreated { snapshot_id: SnapshotId::new() }).await.unwrap();
}

async fn scope(server: &Server) -> EventScope {
    let tenant = server.store.home().await.unwrap().tenant;
    EventScope::tenant(tenant)
}

#[tokio::test]
async fn a_computers_life() {
    let server = Server::new().await;
    let id = server.computer().await;
    let other = server.computer().await;
    let mut stream = server.listen(&format!("/computers/{id}/events"), None).await;
    let now = stream.next().await.unwrap();
    assert_eq!((now.kind.as_str(), &now.data["status"]), ("status_changed", &json!("running")));
    assert_eq!((&now.data["computer_id"], &now.data["previous_status"]), (&json!(id), &Value::Null));
    assert_eq!(now.data["id"], json!(now.id));

    server.post(&format!("/computers/{id}/stop"), json!({})).await;
    server.post(&format!("/computers/{other}/stop"), json!({})).await;
    server.post(&format!("/computers/{id}/start"), json!({})).await;
    server.snapshot(&id).await;
    server.delete(&format!("/computers/{id}")).await;
    let mut heard = Vec::new();
    while let Some(event) = stream.next().await {
        assert_eq!(event.data["computer_id"], json!(id));
        assert_eq!(event.data["ts"], event.data["timestamp"]);
        heard.push(event);
    }
    let transitions: Vec<String> = heard
        .iter()
        .map(|event| match &event.data["status"] {
            Value::Null => event.kind.clone(),
            status => format!("{} {} {}", event.kind, event.data["previous_status"], status).replace('"', ""),
        })
        .collect();
    assert_eq!(
        transitions,
        [
            "status_changed running stopping",
            "status_changed stopping stopped",
            "stopped stopping stopped",
            "status_changed stopped starting",
            "status_changed starting running",
            "started starting running",
            "checkpoint_created",
            "status_changed running destroying",
            "status_changed destroying destroyed",
        ]
    );
    assert!(heard.is_sorted_by(|a, b| number(&a.id) < number(&b.id)));
    let (status, _, _) =
        server.raw(Method::GET, &format!("/computers/{id}/events"), Some(&server.key), "").await;
    assert_eq!(status, 404);

    // The tenant's stream has the same and more.
    let mut stream = server.listen("/events/stream?types=computer.*", Some("evt_0")).await;
    let heard = stream.until("computer.deleted").await;
    assert_eq!(
        kinds(&heard)[..4],
        ["computer.created", "computer.running", "computer.created", "computer.running"]
    );
    assert_eq!((&heard[0].data["size"], &heard[0].data["name"]), (&json!("small"), &json!("box")));
    assert!(heard[0].data["workspace_id"].is_string() && heard[0].data["tenant_id"].is_string());
}

#[tokio::test]
async fn a_start_that_fails_is_told_with_its_reason() {
    let server = Server::new().await;
    server.launcher.set_boot(roost_launch::simulated::Boot::Fails);
    let mut stream = server.listen("/tenant/events/stream?types=error", None).await;
    let body = json!({ "name": "box", "template_type": "miosa-desktop" });
    server.post("/computers?wait=true", body).await;
    let event = stream.next().await.unwrap();
    assert_eq!(
        (&event.data["status"], &event.data["message"]),
        (&json!("error"), &json!("it was made to fail"))
    );
}

/// While eight computers change in parallel, readers that go away and come back see every event once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replay_is_exact() {
    let server = Server::new().await;
    let mut changes = tokio::task::JoinSet::new();
    let server = std::sync::Arc::new(server);
    for _ in 0..8 {
        let server = server.clone();
        changes.spawn(async move {
            let id = server.computer().await;
            for verb in ["stop", "start", "restart"] {
                let (status, answer) = server.post(&format!("/computers/{id}/{verb}"), json!({})).await;
                assert_eq!(status, 200, "{answer}");
            }
            server.delete(&format!("/computers/{id}")).await;
        });
    }
    let mut readers = tokio::task::JoinSet::new();
    for patience in [1, 2, 3, 5, 100_000] {
        let server = server.clone();
        readers.spawn(async move {
            let mut heard: Vec<i64> = Vec::new();
            let mut deleted = 0;
            let mut place = "evt_0".to_owned();
            while deleted < 8 {
                let mut stream = server.listen("/events/stream", Some(&place)).await;
                for _ in 0..patience {
                    let event = stream.next().await.unwrap();
                    heard.push(number(&event.id));
                    deleted += usize::from(event.kind == "computer.deleted");
                    place = event.id;
                    if deleted == 8 {
                        break;
                    }
                }
            }
            heard
        });
    }
    changes.join_all().await;
    let log = server.store.events_after(EventId(0), EventsOf::Everybody, u16::MAX).await.unwrap();
    let last = log.events.iter().rfind(|event| event.kind == "computer.deleted").unwrap().id.0;
    for heard in readers.join_all().await {
        assert_eq!(heard, (1..=last).collect::<Vec<i64>>());
    }
}

#[tokio::test]
async fn two_hundred_subscribers_hear_everything() {
    let server = Server::new().await;
    let scope = scope(&server).await;
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(server.listen("/events/stream", None).await);
    }
    for _ in 0..20 {
        emit(&server, &scope).await;
    }
    for stream in &mut streams {
        for id in 1..=20 {
            assert_eq!(stream.next().await.unwrap().id, format!("evt_{id}"));
        }
    }
}

/// More events than anybody keeps for it: it reads them from the log, and nobody waits for it.
#[tokio::test]
async fn a_slow_subscriber_misses_nothing_and_holds_up_nobody() {
    let server = Server::new().await;
    let scope = scope(&server).await;
    let mut slow = server.listen("/events/stream", None).await;
    let mut quick = server.listen("/events/stream", None).await;
    const EVENTS: usize = 3000;
    for id in 1..=EVENTS {
        emit(&server, &scope).await;
        assert_eq!(quick.next().await.unwrap().id, format!("evt_{id}"));
    }
    for id in 1..=EVENTS {
        assert_eq!(slow.next().await.unwrap().id, format!("evt_{id}"));
    }
    emit(&server, &scope).await;
    assert_eq!(slow.next().await, quick.next().await);
}

#[tokio::test]
async fn a_stream_goes_on_after_a_restart_of_the_server() {
    let server = Server::new().await;
    let id = server.computer().await;
    let mut stream = server.listen(&format!("/computers/{id}/events"), None).await;
    let seen = stream.next().await.unwrap().id;
    drop(stream);
    server.post(&format!("/computers/{id}/stop"), json!({})).await;
    let server = server.again().await;
    server.post(&format!("/computers/{id}/start"), json!({})).await;
    // The header that a browser sends goes before the address that it was given.
    let path = format!("/computers/{id}/events?last_event_id=evt_0");
    let mut stream = server.listen(&path, Some(&seen)).await;
    let heard = stream.until("started").await;
    assert_eq!(
        kinds(&heard),
        ["status_changed", "status_changed", "stopped", "status_changed", "status_changed", "started"]
    );
}

#[tokio::test]
async fn removed_events_are_a_gap() {
    let server = Server::new().await;
    let id = server.computer().await;
    let scope = scope(&server).await;
    let bounds = server.store.event_bounds().await.unwrap();
    for _ in 0..3 {
        emit(&server, &scope).await;
    }
    server.store.remove_events(Timestamp::from_micros(0).unwrap(), 2).await.unwrap();
    let removed = EventId(bounds.last.0 + 1);

    let mut stream = server.listen("/events/stream", Some("evt_1")).await;
    let gap = stream.next().await.unwrap();
    assert_eq!((gap.kind.as_str(), gap.id), ("gap", removed.to_string()));
    assert_eq!((&gap.data["after"], &gap.data["until"]), (&json!("evt_1"), &json!(removed.to_string())));
    assert_eq!(number(&stream.next().await.unwrap().id), removed.0 + 1);
    // Nothing is missing after the newest that was removed.
    let mut stream = server.listen("/events/stream", Some(&removed.to_string())).await;
    assert_eq!(number(&stream.next().await.unwrap().id), removed.0 + 1);

    // Whoever follows a computer learns what its status is by now.
    for seen in ["evt_1", "evt_999999"] {
        let mut stream = server.listen(&format!("/computers/{id}/events"), Some(seen)).await;
        assert_eq!(stream.next().await.unwrap().kind, "gap");
        let now = stream.next().await.unwrap();
        assert_eq!((now.kind.as_str(), &now.data["status"]), ("status_changed", &json!("running")));
        server
            .control
            .emit(
                &EventScope { computer: Some(id.parse().unwrap()), ..scope.clone() },
                &Event::CheckpointCreated { snapshot_id: SnapshotId::new() },
            )
            .await
            .unwrap();
        assert_eq!(stream.next().await.unwrap().kind, "checkpoint_created");
    }
}

#[tokio::test]
async fn types_scopes_and_tenants() {
    let server = Server::new().await;
    let home = scope(&server).await;
    let stranger = EventScope { tenant: TenantId::new(), ..home.clone() };
    let user = EventScope { external_user: Some("ann".to_owned()), ..home.clone() };
    let body = json!({ "name": "box", "template_type": "miosa-desktop", "external_user_id": "ann" });
    let (_, computer) = server.post("/computers?wait=true", body).await;
    let workspace = computer["workspace_id"].as_str().unwrap();

    let mut everything = server.listen("/events/stream", None).await;
    let mut of_user = server.listen("/tenant/events/stream?scope=external_user:ann", None).await;
    let path = format!("/tenant/events/stream?scope=workspace:{workspace}&types=stopped,computer.s*");
    let mut of_workspace = server.listen(&path, None).await;
    for scope in [&stranger, &home, &user] {
        emit(&server, scope).await;
    }
    server.post(&format!("/computers/{}/stop", computer["id"].as_str().unwrap()), json!({})).await;
    assert_eq!(everything.next().await.unwrap().data["external_user_id"], Value::Null);
    assert_eq!(everything.next().await.unwrap().data["external_user_id"], "ann");
    assert_eq!(of_user.next().await.unwrap().kind, "checkpoint_created");
    assert_eq!(of_user.next().await.unwrap().data["status"], "stopping");
    assert_eq!(kinds(&of_workspace.until("computer.stopped").await), ["stopped", "computer.stopped"]);
    // From the log it is the same.
    let mut again = server.listen(&path, Some("evt_0")).await;
    assert_eq!(kinds(&again.until("computer.stopped").await), ["stopped", "computer.stopped"]);

    let (long, many) = ("x".repeat(101), "a,".repeat(33));
    for query in [
        "scope=everything",
        "scope=workspace:none",
        "last_event_id=7",
        &format!("types={long}"),
        &format!("types={many}"),
    ] {
        let (status, refused) = server.get(&format!("/events/stream?{query}")).await;
        assert_eq!((status, &refused["code"]), (422, &json!("VALIDATION_FAILED")), "{query}");
    }
}

#[tokio::test]
async fn a_ticket_opens_one_stream() {
    let server = Server::new().await;
    let id = server.computer().await;
    for path in
        ["/events/stream".to_owned(), "/tenant/events/stream".to_owned(), format!("/computers/{id}/events")]
    {
        let (status, ticket) = server.post("/sse/ticket", json!({})).await;
        assert_eq!((status, keys(&ticket)), (200, vec!["expires_in", "ticket"]));
        let path = format!("{path}?types=none&ticket={}", ticket["ticket"].as_str().unwrap());
        // A stream without an end: what counts is that it opens, once.
        let open = || async {
            let request = axum::http::Request::get(format!("/api/v1{path}")).body(axum::body::Body::empty());
            tower::ServiceExt::oneshot(server.router.clone(), request.unwrap())
                .await
                .unwrap()
                .status()
                .as_u16()
        };
        assert_eq!((open().await, open().await), (200, 401), "{path}");
        let (status, _, _) = server.raw(Method::GET, path.split('?').next().unwrap(), None, "").await;
        assert_eq!(status, 401);
    }
}
