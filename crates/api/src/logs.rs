//! What a computer has said: its console, and what its services have logged.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{ComputerId, Timestamp};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// The serial console: the kernel, and whatever writes there.
    Console,
    /// The system's journal: services, sessions, programs that log.
    Services,
}

/// `data` of a frame of `logs/stream`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    pub stream: LogStream,
    pub line: String,
    /// Null where it is not known.
    pub timestamp: Option<Timestamp>,
    /// Who said it; null for the console.
    pub service: Option<String>,
}

/// Answer of `GET /computers/{id}/logs`: the newest lines, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Logs {
    pub computer_id: ComputerId,
    /// The lines of the entries; those of services begin with the service's name.
    pub lines: Vec<String>,
    pub entries: Vec<LogEntry>,
}

#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LogsQuery {
    /// How many of the newest lines, 1 to 1000 (100).
    pub lines: Option<u32>,
    /// ISO 8601: nothing from before.
    pub since: Option<String>,
    /// `console`, `services` or `all` (default). The logs of services can be read while the computer runs.
    pub source: Option<String>,
    /// Only what this service has logged: the name of a unit, or what a program calls itself.
    pub service: Option<String>,
}
