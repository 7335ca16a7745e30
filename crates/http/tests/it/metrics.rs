//! What computers use.

use std::sync::atomic::Ordering;

use roost_api::ComputerId;
use serde_json::json;

use crate::guest::FakeGuest;
use crate::support::{Server, keys};

#[tokio::test]
async fn points_have_the_documented_form_and_a_silent_guest_leaves_a_gap() {
    let server = Server::new().await;
    let (guest, channel) = FakeGuest::serve().await;
    server.launcher.set_guest(channel);
    let id = server.computer().await;
    let path = format!("/computers/{id}/metrics");
    let nothing = json!({ "cpu_percent": [], "memory_percent": [], "credits_per_hour": 3 });
    assert_eq!(server.get(&path).await, (200, nothing));

    let computer: ComputerId = id.parse().unwrap();
    let mut before = None;
    // The second answer is the first measurement; the third does not come; the fourth is a beginning again.
    for total in [1000, 2000, 0, 4000] {
        guest.cpu_total_ms.store(total, Ordering::SeqCst);
        before = server.control.measure(computer, before).await;
        assert_eq!(before.is_some(), total > 0);
    }
    server.control.write_samples().await;
    for window in ["", "?window=1h", "?window=24h", "?window=7d"] {
        let (code, metrics) = server.get(&format!("{path}{window}")).await;
        assert_eq!(code, 200);
        assert_eq!(keys(&metrics).len(), 3);
        for (name, value) in [("cpu_percent", 50.0), ("memory_percent", 75.0)] {
            let points = metrics[name].as_array().unwrap();
            assert_eq!(points.len(), 1, "{window} {metrics}");
            assert_eq!(points[0]["value"], json!(value));
            let ts = points[0]["ts"].as_str().unwrap();
            assert!(ts.ends_with(":00Z"), "{ts}");
        }
    }
    let (code, error) = server.get(&format!("{path}?window=2h")).await;
    assert_eq!((code, &error["code"]), (422, &json!("VALIDATION_FAILED")));
    assert_eq!(server.get("/computers/3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000/metrics").await.0, 404);
}

#[tokio::test]
async fn being_measured_is_no_use() {
    let server = Server::new().await;
    let (guest, channel) = FakeGuest::serve().await;
    server.launcher.set_guest(channel);
    guest.cpu_total_ms.store(1000, Ordering::SeqCst);
    let id = server.computer().await;
    let mut stream = server.listen(&format!("/computers/{id}/events"), None).await;
    let limit = json!({ "auto_stop_seconds": 1 });
    server.call(axum::http::Method::PATCH, &format!("/computers/{id}/auto-stop"), limit).await;
    let (control, computer) = (server.control.clone(), id.parse().unwrap());
    let measuring = tokio::spawn(async move {
        loop {
            control.measure(computer, None).await;
            tokio::task::yield_now().await;
        }
    });
    stream.until("auto_stopped").await;
    measuring.abort();
}

#[tokio::test]
async fn what_is_measured_goes_with_its_computer() {
    let server = Server::new().await;
    let (guest, channel) = FakeGuest::serve().await;
    server.launcher.set_guest(channel);
    let id = server.computer().await;
    let computer: ComputerId = id.parse().unwrap();
    let mut before = None;
    for total in [1000, 2000] {
        guest.cpu_total_ms.store(total, Ordering::SeqCst);
        before = server.control.measure(computer, before).await;
    }
    server.delete(&format!("/computers/{id}")).await;
    // It was measured before the delete and is written after it.
    server.control.write_samples().await;
    let resolution = roost_store::Resolution::Minute;
    let long_ago = roost_api::Timestamp::from_micros(0).unwrap();
    let usage = server.store.usage(computer, resolution, long_ago, std::time::Duration::from_secs(60)).await;
    assert_eq!(usage.unwrap(), []);
}
