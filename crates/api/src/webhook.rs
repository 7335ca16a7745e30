//! Webhooks: addresses that are told of events.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use crate::{DeliveryId, TenantId, Timestamp, WebhookId};

/// A new webhook, or what to change of one.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct WebhookRequest {
    pub url: Option<String>,
    /// Types of events, in which `*` stands for any text.
    pub events: Option<Vec<String>>,
    pub name: Option<String>,
    /// Headers to send with every delivery.
    pub headers: Option<BTreeMap<String, String>>,
    /// How often a delivery that failed is tried again: 0 to 10.
    pub retry_count: Option<u32>,
    pub metadata: Option<Map<String, Value>>,
    /// What deliveries are signed with. Without it, one is made.
    pub secret: Option<String>,
    pub active: Option<bool>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Webhook {
    pub id: WebhookId,
    pub tenant_id: TenantId,
    pub url: String,
    pub events: Vec<String>,
    pub name: Option<String>,
    pub headers: BTreeMap<String, String>,
    pub retry_count: u32,
    pub active: bool,
    pub secret_preview: String,
    pub metadata: BTreeMap<String, String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    /// Only in the answer to its creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// Clients look for the secret in two places.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CreatedWebhook {
    pub data: Webhook,
    pub secret: String,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DeletedWebhook {
    pub id: WebhookId,
    /// Always true.
    pub deleted: bool,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct WebhookDelivery {
    pub id: DeliveryId,
    pub webhook_id: WebhookId,
    pub event_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
    pub success: bool,
    /// `pending`, `delivered` or `failed`.
    pub state: String,
    pub attempts: u32,
    pub attempted_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    pub response_body: Option<String>,
    pub error: Option<String>,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ReplayDelivery {
    /// The caller's own id: the same one makes no second replay.
    pub replay_id: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListWebhooks {
    pub active: Option<bool>,
}
