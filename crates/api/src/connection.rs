//! Addresses and credentials of the desktop stream.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ComputerId, Status};

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ComputerUrls {
    pub desktop_url: String,
    pub stream_url: String,
    /// The desktop page without a host name of its own, for tools that cannot resolve one.
    pub desktop_path_url: String,
    pub computer_id: ComputerId,
    pub urls: Vec<NamedUrl>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NamedUrl {
    pub name: String,
    pub url: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VncCredentials {
    pub desktop_url: String,
    pub ws_url: String,
    pub token: String,
    /// Unix seconds.
    pub expires_at: i64,
    pub computer_id: ComputerId,
    pub slug: String,
}

/// Body of `POST /computers/{id}/stream-token`; may be absent.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct StreamTokenRequest {
    /// 60 to 86400 (3600).
    pub ttl_seconds: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StreamToken {
    pub token: String,
    /// Unix seconds.
    pub expires_at: i64,
    pub ttl_seconds: i64,
    pub computer_id: ComputerId,
    pub slug: String,
}

/// What the desktop page asks for before it connects, with the stream token as its credential.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DesktopSession {
    pub computer_id: ComputerId,
    pub name: String,
    pub slug: String,
    pub status: Status,
    pub ws_path: String,
    /// Unix seconds.
    pub expires_at: i64,
}
