//! Terminal sessions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ComputerId;

/// Body of `POST /computers/{id}/terminal`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct OpenTerminal {
    /// 1 to 1000 (80).
    pub cols: Option<u32>,
    /// 1 to 1000 (24).
    pub rows: Option<u32>,
    /// The program; the user's login shell by default.
    pub shell: Option<String>,
    /// The user's home by default.
    pub cwd: Option<String>,
    /// On top of the computer's own variables.
    pub env: Option<BTreeMap<String, String>>,
    /// Whose terminal it is: `user` by default.
    pub user: Option<String>,
}

/// A terminal session that was opened, and what it takes to watch it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Terminal {
    pub session_id: String,
    pub id: String,
    pub computer_id: ComputerId,
    pub cols: u32,
    pub rows: u32,
    pub shell: String,
    /// WebSocket of this session; opens with `token` in the query `auth`.
    pub ws_url: String,
    /// A stream token.
    pub token: String,
    /// Unix seconds.
    pub expires_at: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TerminalRow {
    pub session_id: String,
    pub id: String,
    pub cols: u32,
    pub rows: u32,
    pub shell: String,
    pub age_seconds: u64,
    pub viewers: u32,
}

/// The sessions of a computer, the oldest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TerminalList {
    pub computer_id: ComputerId,
    pub sessions: Vec<TerminalRow>,
    pub total: usize,
}

/// Body of `POST /computers/{id}/pty/{session_id}/resize`.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
pub struct ResizeTerminal {
    /// 1 to 1000.
    pub cols: u32,
    /// 1 to 1000.
    pub rows: u32,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TerminalResized {
    pub session_id: String,
    pub cols: u32,
    pub rows: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TerminalClosed {
    pub session_id: String,
    pub closed: bool,
}
