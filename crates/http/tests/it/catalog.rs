//! Regions, sizes, prices and templates.

use axum::http::Method;
use serde_json::{Value, json};

use crate::support::{Server, keys};

#[tokio::test]
async fn regions_tell_their_room_under_every_name() {
    let server = Server::new().await;
    let (status, listed) = server.get("/regions").await;
    assert_eq!(status, 200, "{listed}");
    assert_eq!(keys(&listed), ["data"]);
    assert_eq!(
        (listed["data"].as_array().unwrap().len(), &listed["data"][1]["id"]),
        (2, &json!("us-east-ny"))
    );
    let region = &listed["data"][0];
    assert_eq!((&region["id"], &region["slug"]), (&json!("local"), &json!("local")));
    assert_eq!((&region["available"], &region["status"]), (&json!(true), &json!("available")));
    assert_eq!(region["headroom"], json!(50));
    assert!(region["small_slots_free"].as_u64().unwrap() > 0);
    for path in ["/compute/regions", "/settings/regions"] {
        assert_eq!(server.get(path).await, (200, listed.clone()), "{path}");
    }
    assert_eq!(server.get("/regions/local").await, (200, json!({ "data": region })));
    let (status, missing) = server.get("/regions/moon").await;
    assert_eq!((status, &missing["message"]), (404, &json!("region not found")));

    server.launcher.fill(Some("it is full"));
    let (_, listed) = server.get("/regions").await;
    let region = &listed["data"][0];
    assert_eq!((&region["available"], &region["status"]), (&json!(false), &json!("full")));
    assert_eq!((&region["small_slots_free"], &region["headroom"]), (&json!(0), &json!(0)));
    assert_eq!(listed["data"][1]["available"], json!(true));
}

#[tokio::test]
async fn sizes_have_the_numbers_that_computers_get() {
    let server = Server::new().await;
    let (status, sizes) = server.get("/compute/sizes").await;
    assert_eq!((status, keys(&sizes)), (200, vec!["data"]));
    let (_, pricing) = server.get("/compute/pricing").await;
    assert_eq!(server.get("/settings/compute-pricing").await.1, pricing);
    assert_eq!(keys(&pricing), ["data"]);
    let slugs: Vec<&str> =
        sizes["data"].as_array().unwrap().iter().map(|size| size["slug"].as_str().unwrap()).collect();
    assert_eq!(slugs, ["xs", "small", "medium", "large", "xl"]);
    for size in sizes["data"].as_array().unwrap() {
        let body = json!({ "name": "box", "template_type": "miosa-desktop", "size": size["slug"] });
        let (status, computer) = server.post("/computers", body).await;
        assert_eq!(status, 201, "{computer}");
        assert_eq!(
            (&computer["vcpus"], &computer["memory_mb"], computer["disk_size_mb"].as_u64()),
            (&size["vcpus"], &size["memory_mb"], size["disk_gb"].as_u64().map(|gib| gib * 1024))
        );
        assert_eq!(pricing["data"]["credits_per_hour"][size["slug"].as_str().unwrap()], size["price_hour"]);
    }
    let (status, catalog) = server.get("/compute/catalog").await;
    assert_eq!((status, keys(&catalog)), (200, vec!["data"]));
    assert_eq!(catalog["data"]["sizes"], sizes["data"]);
    assert_eq!(catalog["data"]["products"][0]["id"], json!("computer"));
}

#[tokio::test]
async fn templates_can_be_read_without_a_credential() {
    let server = Server::new().await;
    let (status, _, text) = server.raw(Method::GET, "/templates", None, "").await;
    let catalog: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, 200, "{catalog}");
    // One published client takes an object under `data` for the whole.
    assert!(catalog.get("data").is_none());
    assert_eq!(catalog["readiness_states"], json!(["fast_ready", "cold_boot_only", "missing"]));
    let template = &catalog["templates"][0];
    assert_eq!((&template["id"], &template["product"]), (&json!("miosa-desktop"), &json!("computer")));
    let sizes = template["sizes"].as_array().unwrap();
    assert_eq!(sizes.len(), 5);
    assert!(sizes.iter().all(|size| size["state"] == "fast_ready" && size["ready_nodes"] == 1), "{sizes:?}");

    let (status, listed) = server.get("/compute/templates").await;
    assert_eq!((status, &listed["data"][0]["slug"]), (200, &json!("miosa-desktop")));
    let one = server.get("/compute/templates/miosa-desktop").await;
    assert_eq!(one, (200, json!({ "data": listed["data"][0] })));
    let (status, missing) = server.get("/compute/templates/none").await;
    assert_eq!((status, &missing["message"]), (404, &json!("template not found")));
    for path in ["/regions", "/compute/sizes", "/compute/templates"] {
        let (status, _, _) = server.raw(Method::GET, path, None, "").await;
        assert_eq!(status, 401, "{path}");
    }
}
