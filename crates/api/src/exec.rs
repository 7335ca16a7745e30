//! Running commands.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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
}
