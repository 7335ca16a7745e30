//! What computers use.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::Timestamp;

/// Query of `GET /computers/{id}/metrics`.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct MetricsQuery {
    /// `1h` (default), `24h` or `7d`.
    pub window: Option<String>,
}

/// Answer of `GET /computers/{id}/metrics`. Points are a minute apart for `1h`, five minutes for `24h`, and half an
/// hour for `7d`; a time without measurements has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Metrics {
    pub cpu_percent: Vec<MetricPoint>,
    pub memory_percent: Vec<MetricPoint>,
    /// What an hour of it costs.
    pub credits_per_hour: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MetricPoint {
    /// The begin of the time it is the mean of.
    pub ts: Timestamp,
    pub value: f64,
}
