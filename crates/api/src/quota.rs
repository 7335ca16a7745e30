//! Quotas: what one end user of a tenant may have at most.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::computer::present;
use crate::{Timestamp, UsageSummary};

/// What an end user may have at most, and has. Null: no limit.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Quota {
    pub external_user_id: String,
    /// Computers.
    pub max_sandboxes: Option<u32>,
    /// Computers that run, or are about to.
    pub max_concurrent: Option<u32>,
    /// What the disks of their computers may grow to together, in GiB.
    pub max_storage_gb: Option<u32>,
    /// What running may cost in a calendar month (UTC); a credit counts as a cent.
    pub max_credit_cents: Option<u32>,
    /// Computers that there are.
    pub current_sandboxes: u64,
    pub usage: QuotaUsage,
}

/// How much of a quota is used.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QuotaUsage {
    pub sandboxes: u64,
    pub concurrent: u64,
    pub storage_gb: u64,
    /// Since `period_start`, rounded down.
    pub credit_cents: i64,
    pub period_start: Timestamp,
}

/// Body of `PUT /quotas/external/{external_user_id}`. A limit that is absent stays as it is; null takes it away.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct SetQuota {
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<u32>)]
    pub max_sandboxes: Option<Option<u32>>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<u32>)]
    pub max_concurrent: Option<Option<u32>>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<u32>)]
    pub max_storage_gb: Option<Option<u32>>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<u32>)]
    pub max_credit_cents: Option<Option<u32>>,
}

/// Answer of `DELETE /quotas/external/{external_user_id}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QuotaRemoved {
    pub external_user_id: String,
    /// Always true: there is no limit any more, if there was one.
    pub deleted: bool,
}

/// What a tenant may have, which is everything on a server of one's own, and has.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// `self-hosted`.
    pub plan: String,
    /// Computers that there are.
    pub computers: u64,
    pub running: u64,
    pub snapshots: u64,
    pub workspaces: u64,
    pub users: u64,
    /// Whether credits are not counted.
    pub unlimited: bool,
    pub balance_credits: i64,
}

/// Answer of `GET /billing/usage`: the current month, and what is left.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct BillingUsage {
    #[serde(flatten)]
    pub summary: UsageSummary,
    pub balance_credits: i64,
    pub unlimited: bool,
}
