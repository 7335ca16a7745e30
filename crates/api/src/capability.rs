//! Actions: what a client that asks first may be told.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Something that a client can do for its user.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Capability {
    /// `computer.create`
    pub name: String,
    pub version: String,
    /// The same for as long as the name and the version mean the same.
    pub fingerprint: String,
}

/// Body of `POST /actions/authorize`. What else a client tells of its request is of no interest.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct AuthorizeAction {
    pub capability: WantedCapability,
    /// Where it is to be done.
    #[serde(default)]
    pub workspace_id: Option<Uuid>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct WantedCapability {
    pub name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// As far as can be told beforehand; the request itself is checked again.
    Allow,
    Deny,
}

/// Answer of `POST /actions/authorize`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ActionDecision {
    pub decision: Decision,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
