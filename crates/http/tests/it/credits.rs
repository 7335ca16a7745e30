//! Credits: balances, 402, and the routes about usage. What time costs is tested in roost-control.

use serde_json::{Value, json};

use crate::support::{Server, keys};

async fn grant(server: &Server, credits: u32) -> Value {
    let (code, balance) = server.post("/credits/grants", json!({ "credits": credits })).await;
    assert_eq!(code, 201, "{balance}");
    balance
}

#[tokio::test]
async fn without_an_account_nothing_is_counted() {
    let server = Server::new().await;
    let id = server.computer().await;
    let (code, balance) = server.get("/credits/balance").await;
    assert_eq!((code, &balance["unlimited"]), (200, &json!(true)));
    assert!(balance["balance_credits"].as_i64().unwrap() > 1_000_000);
    assert!(balance.get("balance").is_none() && balance["credit_expiry_at"].is_null());
    let (_, transactions) = server.get("/credits/transactions").await;
    assert_eq!((&transactions["data"], &transactions["meta"]["total"]), (&json!([]), &json!(0)));
    let (_, sessions) = server.get(&format!("/usage/sessions?computer_id={id}")).await;
    assert_eq!(sessions["data"].as_array().unwrap().len(), 1);
    assert_eq!(sessions["data"][0]["ended_at"], Value::Null);
}

#[tokio::test]
async fn a_grant_begins_the_counting_and_is_in_the_ledger() {
    let server = Server::new().await;
    server.computer().await;
    let balance = grant(&server, 100).await;
    assert_eq!((&balance["unlimited"], &balance["lifetime_earned"]), (&json!(false), &json!(100)));
    grant(&server, 5).await;
    let (_, transactions) = server.get("/credits/transactions?page=1&per_page=1").await;
    assert_eq!(keys(&transactions), ["data", "meta", "transactions"]);
    assert!(transactions["meta"]["total"].as_u64().unwrap() >= 2);
    assert_eq!(transactions["transactions"], transactions["data"]);
    // What runs is paid up to each grant, at the same moment.
    let (_, all) = server.get("/credits/transactions").await;
    let row = all["data"].as_array().unwrap().iter().find(|row| row["amount"] == json!(5)).unwrap();
    for (key, value) in [("type", json!("earn")), ("amount", json!(5)), ("amount_credits", json!(5))] {
        assert_eq!(row[key], value, "{key}");
    }
    assert_eq!(row["inserted_at"], row["created_at"]);
    for wrong in [json!({}), json!({ "credits": 0 }), json!({ "credits": -1 }), json!({ "credits": 1.5 })] {
        assert_eq!(server.post("/credits/grants", wrong.clone()).await.0, 422, "{wrong}");
    }
    let nobody = json!({ "tenant_id": "3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000", "credits": 1 });
    assert_eq!(server.post("/credits/grants", nobody).await.0, 404);
}

#[tokio::test]
async fn usage_has_the_documented_forms() {
    let server = Server::new().await;
    let id = server.computer().await;
    server.post(&format!("/computers/{id}/stop"), json!({})).await;
    let (_, usage) = server.get("/credits/usage").await;
    for key in ["compute", "ai", "storage", "total", "compute_credits", "ai_credits", "total_credits"] {
        assert!(usage[key].is_i64(), "{key}");
    }
    for group in ["", "?group_by=external_project_id", "?group_by=workspace_id&period=7d"] {
        let (code, report) = server.get(&format!("/usage{group}")).await;
        assert_eq!(code, 200, "{report}");
        assert_eq!(keys(&report), ["period_end", "period_start", "results"]);
        let row = &report["results"][0];
        assert_eq!(row["workspace_id"].is_string(), group.contains("workspace_id"));
        for key in ["sandbox_seconds", "computer_seconds", "storage_gb_hours", "credit_cents"] {
            assert!(row[key].is_i64(), "{key} {row}");
        }
    }
    let (_, none) = server.get("/usage?period=2020-05").await;
    assert_eq!((&none["results"], &none["period_end"]), (&json!([]), &json!("2020-06-01T00:00:00Z")));
    let (_, summary) = server.get("/usage/summary").await;
    assert_eq!((&summary["storage_gb"], summary["compute_hours"].is_f64()), (&json!(10), true));
    let (_, sessions) = server.get("/usage/sessions").await;
    let row = &sessions["data"][0];
    assert!(row["ended_at"].is_string() && row["duration_sec"].is_i64() && row["cost_cents"].is_i64());
    for wrong in ["/usage?group_by=x", "/usage?period=1y", "/usage?start=x", "/usage/sessions?computer_id=x"]
    {
        assert_eq!(server.get(wrong).await.0, 422, "{wrong}");
    }
}
