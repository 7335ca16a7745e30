//! Credits: their unit, what sizes cost, and the answers of the routes about balances and usage.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{
    ComputerId, PageMeta, RunId, Size, TenantId, Timestamp, TransactionId, UnknownSize, UserId, WorkspaceId,
};

const MICRO: i64 = 1_000_000;
const MICROS_PER_HOUR: i128 = 3_600_000_000;

/// An amount of credits, in millionths: exact inside, whole credits on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct MicroCredits(pub i64);

impl MicroCredits {
    pub fn from_credits(credits: u32) -> Self {
        Self(i64::from(credits) * MICRO)
    }

    /// Whole credits, rounded down.
    pub fn floor(self) -> i64 {
        self.0.div_euclid(MICRO)
    }

    /// Whole credits, rounded to the nearest.
    pub fn round(self) -> i64 {
        self.0.saturating_add(MICRO / 2).div_euclid(MICRO)
    }

    /// What a time of `micros` microseconds costs where this is the price of an hour; rounded down, so that the
    /// costs of a beginning never exceed the whole.
    pub fn of_time(self, micros: i64) -> Self {
        let cost = i128::from(self.0) * i128::from(micros.max(0)) / MICROS_PER_HOUR;
        Self(i64::try_from(cost).unwrap_or(i64::MAX))
    }
}

/// What an hour of each size costs, in whole credits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prices([u32; Size::ALL.len()]);

impl Default for Prices {
    fn default() -> Self {
        Self(Size::ALL.map(|size| match size {
            Size::Xs => 2,
            // As in the public API's example; the others follow their vCPUs.
            Size::Small => 3,
            Size::Medium => 6,
            Size::Large => 12,
            Size::Xl => 24,
        }))
    }
}

impl Prices {
    pub fn of(&self, size: Size) -> u32 {
        Size::ALL.iter().zip(self.0).find(|(known, _)| **known == size).map_or(0, |(_, price)| price)
    }

    pub fn set(&mut self, new: Price) {
        for (size, price) in Size::ALL.iter().zip(&mut self.0) {
            if *size == new.size {
                *price = new.credits;
            }
        }
    }
}

/// The price of one size: `small=3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    pub size: Size,
    pub credits: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum InvalidPrice {
    #[error("not SIZE=CREDITS, such as small=3")]
    Form,
    #[error(transparent)]
    Size(#[from] UnknownSize),
}

impl std::str::FromStr for Price {
    type Err = InvalidPrice;

    fn from_str(text: &str) -> Result<Self, InvalidPrice> {
        let (size, credits) = text.split_once('=').ok_or(InvalidPrice::Form)?;
        Ok(Self { size: size.parse()?, credits: credits.parse().map_err(|_| InvalidPrice::Form)? })
    }
}

/// Answer of `GET /credits/balance`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreditBalance {
    pub tenant_id: TenantId,
    /// What is left now, in whole credits. Where nothing is counted: the largest number that every client reads
    /// exactly, 2^53 - 1.
    pub balance_credits: i64,
    pub lifetime_earned: i64,
    pub lifetime_spent: i64,
    /// Credits do not expire.
    pub credit_expiry_at: Option<Timestamp>,
    pub updated_at: Timestamp,
    /// Whether this tenant's credits are not counted. An extension of the public API.
    pub unlimited: bool,
}

/// A change of a balance.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreditTransaction {
    pub id: TransactionId,
    pub tenant_id: TenantId,
    pub user_id: Option<UserId>,
    pub computer_id: Option<ComputerId>,
    /// `earn` or `spend`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Rounded to whole credits; never negative.
    pub amount_credits: i64,
    /// The same.
    pub amount: i64,
    /// The exact amount in millionths of a credit. An extension of the public API.
    pub amount_micro_credits: i64,
    pub description: String,
    pub inserted_at: Timestamp,
    /// The same.
    pub created_at: Timestamp,
}

/// Answer of `GET /credits/transactions`, newest first.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CreditTransactions {
    pub data: Vec<CreditTransaction>,
    /// The same rows again, where other clients look for them.
    pub transactions: Vec<CreditTransaction>,
    pub meta: PageMeta,
}

/// Which page of a list.
#[derive(Debug, Clone, Copy, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// From 1.
    #[serde(default, deserialize_with = "crate::numbers::clamped")]
    #[param(value_type = Option<i64>)]
    pub page: Option<u32>,
    /// Rows a page, 1 to 100 (20); `per_page` and `limit` say the same.
    #[serde(default, deserialize_with = "crate::numbers::clamped")]
    #[param(value_type = Option<i64>)]
    pub page_size: Option<u32>,
    #[serde(default, deserialize_with = "crate::numbers::clamped")]
    #[param(value_type = Option<i64>)]
    pub per_page: Option<u32>,
    #[serde(default, deserialize_with = "crate::numbers::clamped")]
    #[param(value_type = Option<i64>)]
    pub limit: Option<u32>,
}

impl PageQuery {
    /// The page, from 1, and its size.
    pub fn page(self) -> (u32, u32) {
        let size = self.page_size.or(self.per_page).or(self.limit);
        (self.page.unwrap_or(1).max(1), size.unwrap_or(20).clamp(1, 100))
    }
}

impl PageMeta {
    pub fn of(page: u32, size: u32, total: u64) -> Self {
        let per_page = u64::from(size);
        let total_pages = total.div_ceil(per_page).max(1);
        Self {
            page,
            per_page,
            limit: per_page,
            total,
            total_pages,
            has_next_page: u64::from(page) < total_pages,
            next_cursor: None,
        }
    }
}

/// Answer of `GET /credits/usage`: the current month. Whole credits.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreditUsage {
    pub compute: i64,
    pub ai: i64,
    pub storage: i64,
    pub total: i64,
    pub period_start: Timestamp,
    pub period_end: Timestamp,
    pub compute_credits: i64,
    pub ai_credits: i64,
    pub total_credits: i64,
}

/// Query of `GET /usage`.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    pub external_user_id: Option<String>,
    pub workspace_id: Option<String>,
    /// `external_user_id` (default), `external_project_id` or `workspace_id`.
    pub group_by: Option<String>,
    /// `7d`, `30d`, `month-to-date` (default), or a month such as `2026-05`.
    pub period: Option<String>,
    /// ISO 8601; goes before `period`. `period_start` says the same.
    pub start: Option<String>,
    pub end: Option<String>,
    pub period_start: Option<String>,
    pub period_end: Option<String>,
}

/// Answer of `GET /usage`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UsageReport {
    pub period_start: Timestamp,
    pub period_end: Timestamp,
    pub results: Vec<UsageGroup>,
}

/// What one group used. Only the key that was grouped by is set.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UsageGroup {
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub workspace_id: Option<WorkspaceId>,
    pub sandbox_seconds: i64,
    pub computer_seconds: i64,
    pub storage_gb_hours: i64,
    /// A credit counts as a cent.
    pub credit_cents: i64,
}

/// Answer of `GET /usage/summary`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UsageSummary {
    pub period_start: Timestamp,
    pub period_end: Timestamp,
    pub compute_hours: f64,
    /// What the disks of computers may grow to, now.
    pub storage_gb: i64,
    /// Not measured.
    pub bandwidth_gb: i64,
    pub ai_tokens: i64,
    pub total_credits: i64,
}

/// Query of `GET /usage/sessions`.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SessionsQuery {
    pub computer_id: Option<String>,
    /// ISO 8601; without it 30 days ago.
    pub since: Option<String>,
    pub until: Option<String>,
    #[serde(default, deserialize_with = "crate::numbers::clamped")]
    #[param(value_type = Option<i64>)]
    pub page: Option<u32>,
    #[serde(default, deserialize_with = "crate::numbers::clamped")]
    #[param(value_type = Option<i64>)]
    pub page_size: Option<u32>,
    #[serde(default, deserialize_with = "crate::numbers::clamped")]
    #[param(value_type = Option<i64>)]
    pub per_page: Option<u32>,
    #[serde(default, deserialize_with = "crate::numbers::clamped")]
    #[param(value_type = Option<i64>)]
    pub limit: Option<u32>,
}

/// A time for which a computer ran.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UsageSession {
    pub id: RunId,
    pub computer_id: ComputerId,
    pub workspace_id: WorkspaceId,
    pub external_user_id: Option<String>,
    pub size: Size,
    pub started_at: Timestamp,
    /// Null while it runs.
    pub ended_at: Option<Timestamp>,
    pub duration_sec: i64,
    /// The same.
    pub runtime_sec: i64,
    pub credit_cost: i64,
    /// A credit counts as a cent.
    pub cost_cents: i64,
}

/// Answer of `GET /usage/sessions`, newest first.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct UsageSessions {
    pub data: Vec<UsageSession>,
    pub meta: PageMeta,
}

/// Body of `POST /credits/grants`.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct GrantCredits {
    /// Who gets them; without it the caller's own tenant.
    #[schema(value_type = Option<String>)]
    pub tenant_id: Option<uuid::Uuid>,
    /// How many, at least 1.
    pub credits: u32,
    pub description: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_costs_what_it_should_however_it_is_cut() {
        let price = MicroCredits::from_credits(3);
        assert_eq!(price.of_time(3_600_000_000), price);
        assert_eq!(price.of_time(-5), MicroCredits(0));
        for end in [1, 999, 1_200_000_001, 3_599_999_999] {
            let (mut charged, mut at) = (0, 0);
            while at < end {
                at = (at + 7_777_777).min(end);
                charged += price.of_time(at).0 - charged;
            }
            assert_eq!(charged, price.of_time(end).0, "{end}");
        }
        assert_eq!((MicroCredits(-1).floor(), MicroCredits(1_500_000).round()), (-1, 2));
    }

    #[test]
    fn prices() {
        let mut prices = Prices::default();
        prices.set("medium=7".parse().unwrap());
        assert_eq!((prices.of(Size::Small), prices.of(Size::Medium)), (3, 7));
        for text in ["", "small", "small=", "small=-1", "huge=3", "small=1.5"] {
            assert!(text.parse::<Price>().is_err(), "{text}");
        }
    }
}
