//! Running commands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::Timestamp;

/// Body of `POST /computers/{id}/exec`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct ExecRequest {
    /// Required; run by `/bin/bash -lc`.
    pub command: Option<String>,
    /// Seconds, 30 by default, at most 300; values above 3600 are taken for milliseconds.
    pub timeout: Option<u64>,
    /// The user's home by default.
    pub cwd: Option<String>,
    /// The same as `cwd`.
    pub working_dir: Option<String>,
    /// On top of the computer's own variables.
    pub env: Option<BTreeMap<String, String>>,
    /// Text for standard input, which is empty without it.
    pub stdin: Option<String>,
    /// Who runs it: `user` by default.
    pub user: Option<String>,
    /// Answers at once, with the `pid`; the command goes on and nobody sees what it prints.
    pub background: Option<bool>,
}

/// Body of `POST /computers/{id}/exec/python`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct PythonRequest {
    /// Required; run by `python3`.
    pub code: Option<String>,
    /// As for `exec`.
    pub timeout: Option<u64>,
}

/// What a command did. A command that fails is still a 200.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    /// Standard output and standard error in the order they came, as text (bytes that are no UTF-8 become
    /// U+FFFD).
    pub output: String,
    /// Standard error again, by itself.
    pub stderr: String,
    /// 124 when the time was over, 128 + n when killed by signal n.
    pub exit_code: i32,
    /// `exit_code == 0`.
    pub success: bool,
    pub duration_ms: u64,
    /// Whether the command was killed at its time limit.
    pub timed_out: bool,
    /// Whether output beyond the limit of this route was dropped; use the stream for more.
    pub truncated: bool,
    /// Of a command in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// Body of `POST /computers/{id}/commands`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct CommandRequest {
    /// Required; at most 64 KiB, run by `/bin/bash -lc`.
    pub command: Option<String>,
    /// Below the user's home where it is relative.
    pub cwd: Option<String>,
    /// 1 to 600 (60).
    pub timeout_seconds: Option<u64>,
    /// Text for standard input, at most 32 KiB.
    pub stdin: Option<String>,
}

/// What a command did, its streams apart.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CommandResult {
    pub stdout: String,
    pub stderr: String,
    /// As of `exec`.
    pub exit_code: i32,
    pub duration_ms: u64,
    pub timed_out: bool,
    pub stdout_truncated: bool,
    pub stderr_truncated: bool,
}

/// Body of `POST /computers/{id}/exec/stream`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct ExecStreamRequest {
    /// Required; at most 64 KiB.
    pub command: Option<String>,
    /// As for `exec`.
    pub timeout: Option<u64>,
    /// What runs it with `-lc`: `/bin/bash` by default.
    pub shell: Option<String>,
}

/// A command that begins when its stream is opened.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ExecTicket {
    /// Opens the stream once.
    pub ticket: String,
    pub expires_at: Timestamp,
    /// Where the events are, ticket included.
    pub stream_url: String,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ExecTicketQuery {
    /// Of `POST /computers/{id}/exec/stream`.
    pub ticket: Option<String>,
}
