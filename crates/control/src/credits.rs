//! Credits: who may start computers, what running costs, and the end of it.
//!
//! Counting is off until a tenant has an account: from `--starting-credits`, or from an operator's grant. What is
//! billed are runs, which the store derives from statuses (see its `runs`); the one task here proves them every
//! minute, because it follows the machines, and acts when a tenant's credits are near their end or at it. It waits
//! for the nearest of these times and is woken by changes of computers.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use roost_api::{
    ApiError, ComputerId, CreditBalance, CreditTransaction, CreditTransactions, CreditUsage, ErrorCode,
    Event, GrantCredits, MicroCredits, PageMeta, PageQuery, Prices, SessionsQuery, Size, TenantId, Timestamp,
    UsageGroup, UsageQuery, UsageReport, UsageSession, UsageSessions, UsageSummary,
};
use roost_store::{
    Caller, ComputerFilter, EventScope, RunFilter, RunRecord, Spent, TransactionRecord, Unpaid,
};

use crate::access;
use crate::computers::filter_id;
use crate::{Control, Failure};

/// When a database that did not answer is asked again.
const AGAIN: Duration = Duration::from_secs(60);
/// 2^53 - 1: the largest whole number that every client reads exactly.
const UNLIMITED: i64 = 9_007_199_254_740_991;
/// Decades, in a grant: more is a mistake.
const MOST_GRANTED: u32 = 1_000_000_000;

/// What computers cost, and what new tenants have.
#[derive(Debug, Clone, Copy, Default)]
pub struct CreditConfig {
    pub prices: Prices,
    /// What a tenant begins with that has never run anything; `None`: its credits are not counted.
    pub starting: Option<MicroCredits>,
}

#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Computers that are being stopped because nothing is left.
    stopping: Arc<Mutex<HashSet<ComputerId>>>,
}

impl Control {
    /// Makes the prices known, and begins runs that an older version did not.
    pub(crate) async fn open_books(&self) -> Result<(), Failure> {
        let prices = self.inner.config.credits.prices;
        let prices = Size::ALL.map(|size| (size, MicroCredits::from_credits(prices.of(size))));
        Ok(self.inner.store.set_prices(&prices).await?)
    }

    /// 402 for a tenant that has nothing left.
    pub(crate) async fn require_credits(&self, tenant: TenantId) -> Result<(), Failure> {
        self.begin_counting(tenant).await?;
        match self.inner.store.balance(tenant).await? {
            Some(balance) if balance.left.0 <= 0 => Err(Failure::new(
                ErrorCode::InsufficientCredits,
                "INSUFFICIENT_CREDITS: no credits are left; ask the operator of this server for more \
                 (`roost credits grant`)",
            )),
            Some(_) | None => Ok(()),
        }
    }

    async fn begin_counting(&self, tenant: TenantId) -> Result<(), Failure> {
        if let Some(starting) = self.inner.config.credits.starting {
            self.inner.store.open_account(tenant, starting).await?;
        }
        Ok(())
    }

    /// Meters what runs, for as long as this control plane lives. Every machine is followed by now.
    pub(crate) fn keep_books(&self) {
        let mut changes = self.inner.hub.subscribe_to_all();
        let control = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                changes.mark_unchanged();
                let wait = {
                    let Some(inner) = control.upgrade() else { return };
                    Control { inner }.meter_what_is_due().await
                };
                let changed = match wait {
                    Some(wait) => tokio::time::timeout(wait, changes.changed()).await.unwrap_or(Ok(())),
                    None => changes.changed().await,
                };
                if changed.is_err() {
                    return;
                }
            }
        });
    }

    async fn meter_what_is_due(&self) -> Option<Duration> {
        let result = match self.inner.store.next_metering().await {
            Ok(Some(Duration::ZERO)) => self.meter().await.map(|()| Some(Duration::ZERO)),
            Ok(wait) => Ok(wait),
            Err(error) => Err(error.into()),
        };
        result.unwrap_or_else(|failure: Failure| {
            let failure = &failure as &dyn std::error::Error;
            tracing::error!(failure, "failed to meter what runs; trying again in a minute");
            Some(AGAIN)
        })
    }

    /// Proves and bills every run up to now, and begins to stop what cannot be paid for any more.
    pub async fn meter(&self) -> Result<(), Failure> {
        let unpaid = self.inner.store.meter().await?;
        self.inner.hub.wake();
        for Unpaid { computer, spent } in unpaid {
            let stopping = self.inner.meter.stopping.clone();
            if !stopping.lock().unwrap_or_else(PoisonError::into_inner).insert(computer) {
                continue;
            }
            let control = self.clone();
            tokio::spawn(async move {
                if let Err(failure) = control.stop_unpaid(computer, spent).await {
                    let failure = &failure as &dyn std::error::Error;
                    tracing::warn!(%computer, failure, "it was not stopped; it is looked at again in a minute");
                }
                stopping.lock().unwrap_or_else(PoisonError::into_inner).remove(&computer);
            });
        }
        Ok(())
    }

    async fn stop_unpaid(&self, computer: ComputerId, spent: Spent) -> Result<(), Failure> {
        match spent {
            // The tenant was told of that as a whole.
            Spent::Credits => {
                tracing::info!(%computer, "its tenant has no credits left: it is being stopped")
            }
            Spent::Quota(most) => {
                tracing::info!(%computer, "its end user has spent their quota: it is being stopped");
                let scope = EventScope::of(&self.record(computer).await?);
                self.emit(&scope, &Event::QuotaExhausted { max_credit_cents: most.floor() }).await?;
            }
        }
        self.stop(computer).await.map(drop)
    }

    pub async fn credit_balance(&self, caller: &Caller) -> Result<CreditBalance, Failure> {
        access::sees_accounts(caller)?;
        self.balance_of(caller.tenant).await
    }

    async fn balance_of(&self, tenant: TenantId) -> Result<CreditBalance, Failure> {
        self.begin_counting(tenant).await?;
        let balance = self.inner.store.balance(tenant).await?;
        Ok(CreditBalance {
            tenant_id: tenant,
            balance_credits: balance.map_or(UNLIMITED, |balance| balance.left.floor().max(0)),
            lifetime_earned: balance.map_or(0, |balance| balance.earned.floor()),
            lifetime_spent: balance.map_or(0, |balance| balance.spent.round()),
            credit_expiry_at: None,
            updated_at: balance.map_or_else(|| self.inner.store.now(), |balance| balance.updated_at),
            unlimited: balance.is_none(),
        })
    }

    /// Gives a tenant credits; only an operator of this server may.
    pub async fn grant_credits(
        &self,
        caller: &Caller,
        request: GrantCredits,
    ) -> Result<CreditBalance, Failure> {
        access::require_operator(caller)?;
        if !(1..=MOST_GRANTED).contains(&request.credits) {
            return Err(ApiError::field("credits", format!("not between 1 and {MOST_GRANTED}")).into());
        }
        let tenant = request.tenant_id.map_or(caller.tenant, TenantId::from);
        let description = request.description.as_deref().unwrap_or("granted by the operator");
        let amount = MicroCredits::from_credits(request.credits);
        if !self.inner.store.grant_credits(tenant, amount, description).await? {
            return Err(Failure::new(ErrorCode::NotFound, "tenant not found"));
        }
        self.inner.hub.wake();
        self.balance_of(tenant).await
    }

    pub async fn credit_transactions(
        &self,
        caller: &Caller,
        query: PageQuery,
    ) -> Result<CreditTransactions, Failure> {
        access::sees_accounts(caller)?;
        let (page, size) = query.page();
        let skip = u64::from(page - 1) * u64::from(size);
        let (rows, total) = self.inner.store.transactions(caller.tenant, skip, size).await?;
        let data: Vec<CreditTransaction> = rows.into_iter().map(transaction).collect();
        Ok(CreditTransactions { transactions: data.clone(), data, meta: PageMeta::of(page, size, total) })
    }

    pub async fn credit_usage(&self, caller: &Caller) -> Result<CreditUsage, Failure> {
        let (start, end) = self.period(&UsageQuery::default())?;
        let runs = self.runs_between(caller, start, end).await?;
        let total = self.cost(&runs, start, end).round();
        Ok(CreditUsage {
            compute: total,
            ai: 0,
            storage: 0,
            total,
            period_start: start,
            period_end: end,
            compute_credits: total,
            ai_credits: 0,
            total_credits: total,
        })
    }

    pub async fn usage_report(&self, caller: &Caller, query: UsageQuery) -> Result<UsageReport, Failure> {
        let (start, end) = self.period(&query)?;
        let by = match query.group_by.as_deref() {
            None | Some("" | "external_user_id") => GroupBy::ExternalUser,
            Some("external_project_id") => GroupBy::ExternalProject,
            Some("workspace_id") => GroupBy::Workspace,
            Some(_) => {
                let problem = "not external_user_id, external_project_id or workspace_id";
                return Err(ApiError::field("group_by", problem).into());
            }
        };
        let workspace = filter_id("workspace_id", query.workspace_id.as_deref())?;
        let mut runs = self.runs_between(caller, start, end).await?;
        runs.retain(|run| workspace.is_none_or(|workspace| run.workspace == workspace));
        if let Some(user) = &query.external_user_id {
            runs.retain(|run| run.external_user_id.as_ref() == Some(user));
        }
        let mut groups: BTreeMap<Option<String>, Vec<RunRecord>> = BTreeMap::new();
        for run in runs {
            let key = match by {
                GroupBy::ExternalUser => run.external_user_id.clone(),
                GroupBy::ExternalProject => run.external_project_id.clone(),
                GroupBy::Workspace => Some(run.workspace.to_string()),
            };
            groups.entry(key).or_default().push(run);
        }
        let results = groups.into_iter().map(|(key, runs)| UsageGroup {
            workspace_id: runs.first().filter(|_| by == GroupBy::Workspace).map(|run| run.workspace),
            external_user_id: key.clone().filter(|_| by == GroupBy::ExternalUser),
            external_project_id: key.filter(|_| by == GroupBy::ExternalProject),
            sandbox_seconds: 0,
            computer_seconds: self.micros(&runs, start, end) / 1_000_000,
            storage_gb_hours: 0,
            credit_cents: self.cost(&runs, start, end).round(),
        });
        Ok(UsageReport { period_start: start, period_end: end, results: results.collect() })
    }

    pub async fn usage_summary(&self, caller: &Caller, query: UsageQuery) -> Result<UsageSummary, Failure> {
        let (start, end) = self.period(&query)?;
        let runs = self.runs_between(caller, start, end).await?;
        let computers =
            self.inner.store.computers(&access::reach(caller), &ComputerFilter::default()).await?;
        // Hundredths of an hour.
        let hours = self.micros(&runs, start, end) / 36_000_000;
        Ok(UsageSummary {
            period_start: start,
            period_end: end,
            compute_hours: f64::from(u32::try_from(hours).unwrap_or(u32::MAX)) / 100.0,
            storage_gb: computers.iter().map(|computer| i64::from(computer.disk_gib)).sum(),
            bandwidth_gb: 0,
            ai_tokens: 0,
            total_credits: self.cost(&runs, start, end).round(),
        })
    }

    pub async fn usage_sessions(
        &self,
        caller: &Caller,
        query: SessionsQuery,
    ) -> Result<UsageSessions, Failure> {
        let now = self.inner.store.now();
        let start = moment("since", query.since.as_deref())?.unwrap_or_else(|| days_before(now, 30));
        let end = moment("until", query.until.as_deref())?.unwrap_or_else(|| after(now));
        let computer = filter_id("computer_id", query.computer_id.as_deref())?;
        let runs = self.inner.store.runs(&access::reach(caller), &RunFilter { start, end, computer }).await?;
        let SessionsQuery { page, page_size, per_page, limit, .. } = query;
        let (page, size) = PageQuery { page, page_size, per_page, limit }.page();
        let skip = usize::try_from(u64::from(page - 1) * u64::from(size)).unwrap_or(usize::MAX);
        let take = usize::try_from(size).unwrap_or(usize::MAX);
        let data = runs.iter().skip(skip).take(take).map(|run| session(run, now)).collect();
        Ok(UsageSessions { data, meta: PageMeta::of(page, size, runs.len() as u64) })
    }

    async fn runs_between(
        &self,
        caller: &Caller,
        start: Timestamp,
        end: Timestamp,
    ) -> Result<Vec<RunRecord>, Failure> {
        let filter = RunFilter { start, end, computer: None };
        Ok(self.inner.store.runs(&access::reach(caller), &filter).await?)
    }

    fn micros(&self, runs: &[RunRecord], start: Timestamp, end: Timestamp) -> i64 {
        let now = self.inner.store.now();
        runs.iter().map(|run| run.micros_between(start, end, now)).sum()
    }

    fn cost(&self, runs: &[RunRecord], start: Timestamp, end: Timestamp) -> MicroCredits {
        let now = self.inner.store.now();
        MicroCredits(runs.iter().map(|run| run.price.of_time(run.micros_between(start, end, now)).0).sum())
    }

    /// What a query asks about: from, and up to but without.
    fn period(&self, query: &UsageQuery) -> Result<(Timestamp, Timestamp), ApiError> {
        let now = self.inner.store.now();
        let (start, end) = match query.period.as_deref() {
            None | Some("" | "month-to-date") => (now.start_of_month(), after(now)),
            Some("7d") => (days_before(now, 7), after(now)),
            Some("30d") => (days_before(now, 30), after(now)),
            Some(month) => {
                let problem = "not 7d, 30d, month-to-date or a month such as 2026-05";
                let begin =
                    |month: &str| format!("{month}-01T00:00:00Z").parse().ok().map(Timestamp::start_of_month);
                let start = begin(month).ok_or_else(|| ApiError::field("period", problem))?;
                // Every month has a day that is 31 days after its first, in the next month.
                (start, days_before(start, -31).start_of_month())
            }
        };
        let given = |a: &Option<String>, b: &Option<String>| a.clone().or(b.clone());
        let first = moment("start", given(&query.start, &query.period_start).as_deref())?.unwrap_or(start);
        let last = moment("end", given(&query.end, &query.period_end).as_deref())?.unwrap_or(end);
        if first > last {
            return Err(ApiError::field("end", "before start"));
        }
        Ok((first, last))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GroupBy {
    ExternalUser,
    ExternalProject,
    Workspace,
}

fn transaction(record: TransactionRecord) -> CreditTransaction {
    let exact = MicroCredits(record.amount.0.saturating_abs());
    CreditTransaction {
        id: record.id,
        tenant_id: record.tenant,
        user_id: None,
        computer_id: record.computer,
        kind: if record.amount.0 < 0 { "spend" } else { "earn" }.to_owned(),
        amount_credits: exact.round(),
        amount: exact.round(),
        amount_micro_credits: exact.0,
        description: record.description,
        inserted_at: record.created_at,
        created_at: record.created_at,
    }
}

fn session(run: &RunRecord, now: Timestamp) -> UsageSession {
    let micros = run.micros_between(run.started_at, run.ended_at.unwrap_or(now), now);
    let cost = run.price.of_time(micros).round();
    UsageSession {
        id: run.id,
        computer_id: run.computer,
        workspace_id: run.workspace,
        external_user_id: run.external_user_id.clone(),
        size: run.size,
        started_at: run.started_at,
        ended_at: run.ended_at,
        duration_sec: micros / 1_000_000,
        runtime_sec: micros / 1_000_000,
        credit_cost: cost,
        cost_cents: cost,
    }
}

fn moment(field: &str, text: Option<&str>) -> Result<Option<Timestamp>, ApiError> {
    let text = text.filter(|text| !text.is_empty());
    let problem = "not a time such as 2026-05-01T00:00:00Z";
    text.map(|text| text.parse().map_err(|_| ApiError::field(field, problem))).transpose()
}

fn days_before(time: Timestamp, days: i64) -> Timestamp {
    Timestamp::from_micros(time.as_micros().saturating_sub(days * 86_400_000_000)).unwrap_or(time)
}

/// The end of a period that includes this moment.
fn after(time: Timestamp) -> Timestamp {
    Timestamp::from_micros(time.as_micros().saturating_add(1)).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months() {
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(time("2026-02-28T23:59:59.5Z").start_of_month(), time("2026-02-01T00:00:00Z"));
        for (month, next) in [("2026-02", "2026-03"), ("2024-02", "2024-03"), ("2026-12", "2027-01")] {
            let first = time(&format!("{month}-01T00:00:00Z"));
            assert_eq!(days_before(first, -31).start_of_month(), time(&format!("{next}-01T00:00:00Z")));
        }
    }
}
