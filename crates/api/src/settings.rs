//! What clients keep with a tenant.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// An object that a client keeps with its tenant; it means nothing to the server. At most 16 KiB.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct TenantSettings(pub Map<String, Value>);
