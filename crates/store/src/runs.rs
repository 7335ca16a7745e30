//! Runs: the times for which computers had the status `running`, and what they cost.
//!
//! A run begins and ends in the transaction that changes the status, so there is none without the other and no
//! moment counts twice. While it lasts, two marks move: `proven_until`, up to where a control plane that follows
//! the machine knows that it ran, and `metered_until`, up to where its cost is in the ledger. The second moves in
//! the transaction that writes the ledger's entry, and what is written is the cost of the whole run so far less
//! what was written before: neither a crash nor rounding adds or loses anything.
//!
//! A run whose end nobody saw (the host lost its processes, or a machine ended while there was no control plane)
//! ends at `proven_until`, which lags by a minute at most while a control plane is there. A machine that is found
//! alive is the proof that it ran all the time.

use std::time::Duration;

use roost_api::{
    ComputerId, Event, MicroCredits, RunId, Size, Status, TenantId, Timestamp, TransactionId, WorkspaceId,
};
use sqlx::{Row, Transaction};

use crate::credits::{Entry, insert_entry};
use crate::events::{EventScope, insert_event};
use crate::query::QueryBuilder;
use crate::quotas::overspent;
use crate::reach::{Of, Reach};
use crate::record::{ComputerRecord, number, optional_time, parsed, time};
use crate::status::status;
use crate::{Db, DbRow, Store, StoreError};

/// How often a run is proven.
pub const PROVE_EVERY: Duration = Duration::from_secs(60);
/// How often the cost of a run that goes on is written to the ledger.
const POST_EVERY: Duration = Duration::from_secs(3600);
/// How long before the end of its credits a tenant is told.
const WARN_BEFORE: Duration = Duration::from_secs(600);

#[derive(Debug, Clone)]
pub struct RunRecord {
    pub id: RunId,
    pub tenant: TenantId,
    pub workspace: WorkspaceId,
    pub computer: ComputerId,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    pub size: Size,
    /// Of an hour.
    pub price: MicroCredits,
    pub started_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub proven_until: Timestamp,
    pub metered_until: Timestamp,
    /// Up to `metered_until`.
    pub cost: MicroCredits,
}

/// Which runs of a tenant.
#[derive(Debug, Clone, Copy)]
pub struct RunFilter {
    /// Those of which a part lies between the two.
    pub start: Timestamp,
    pub end: Timestamp,
    pub computer: Option<ComputerId>,
}

impl RunRecord {
    pub(crate) fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            tenant: parsed(row, "tenant_id")?,
            workspace: parsed(row, "workspace_id")?,
            computer: parsed(row, "computer_id")?,
            external_user_id: row.try_get("external_user_id")?,
            external_project_id: row.try_get("external_project_id")?,
            size: parsed(row, "size")?,
            price: MicroCredits(number(row, "price")?),
            started_at: time(row, "started_at")?,
            ended_at: optional_time(row, "ended_at")?,
            proven_until: time(row, "proven_until")?,
            metered_until: time(row, "metered_until")?,
            cost: MicroCredits(number(row, "cost")?),
        })
    }

    /// Microseconds of it between two times; one that goes on is taken up to `now`.
    pub fn micros_between(&self, start: Timestamp, end: Timestamp, now: Timestamp) -> i64 {
        let begun = self.started_at.max(start).as_micros();
        let ended = self.ended_at.unwrap_or(now).min(end).as_micros();
        ended.saturating_sub(begun).max(0)
    }

    /// What it has cost until a time.
    fn cost_until(&self, until: Timestamp) -> MicroCredits {
        self.price.of_time(until.as_micros().saturating_sub(self.started_at.as_micros())).max(self.cost)
    }

    fn is_to_be_posted(&self, now: Timestamp) -> bool {
        now.as_micros().saturating_sub(self.metered_until.as_micros()) >= micros(POST_EVERY)
    }
}

/// A computer that runs although nothing is left to pay for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpaid {
    pub computer: ComputerId,
    pub spent: Spent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    /// The credits of its tenant.
    Credits,
    /// What its end user may spend in a month.
    Quota(MicroCredits),
}

/// An account, and what is running at its cost.
#[derive(Debug)]
struct Running {
    balance: MicroCredits,
    warned: bool,
    runs: Vec<RunRecord>,
}

impl Running {
    fn left(&self, now: Timestamp) -> i64 {
        let accrued: i64 = self.runs.iter().map(|run| run.cost_until(now).0 - run.cost.0).sum();
        self.balance.0.saturating_sub(accrued)
    }

    /// Micro-credits an hour.
    fn rate(&self) -> i64 {
        self.runs.iter().map(|run| run.price.0).sum()
    }

    /// What is left when it is time to tell.
    fn little(&self) -> i64 {
        MicroCredits(self.rate()).of_time(micros(WARN_BEFORE)).0
    }

    /// How long it takes to the next thing that is to be done about it.
    fn wait(&self, now: Timestamp) -> Option<Duration> {
        let (left, rate) = (self.left(now), self.rate());
        let threshold = if self.warned { 0 } else { self.little() };
        if rate == 0 || self.balance.0 <= 0 {
            return None; // nothing runs out, or it has and was acted upon
        }
        let above = i128::from(left.saturating_sub(threshold).max(0));
        let wait = above * 3_600_000_000 / i128::from(rate);
        Some(Duration::from_micros(u64::try_from(wait).unwrap_or(u64::MAX)))
    }
}

impl Store {
    /// What runs cost that begin from now on.
    pub async fn set_prices(&self, prices: &[(Size, MicroCredits)]) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        for (size, price) in prices {
            sqlx::query(
                "INSERT INTO prices (size, price) VALUES ($1, $2)
                 ON CONFLICT (size) DO UPDATE SET price = excluded.price",
            )
            .bind(size.as_str())
            .bind(price.0)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Begins the runs of computers that run without one, as after an upgrade.
    pub async fn begin_missing_runs(&self) -> Result<(), StoreError> {
        for computer in self.all_computers().await? {
            if status(&computer) == Status::Running {
                let mut tx = self.write().await?;
                let now = self.clock.now();
                if open_run(&mut tx, computer.id).await?.is_none() {
                    begin_run(&mut tx, now, &computer).await?;
                    tx.commit().await?;
                }
            }
        }
        Ok(())
    }

    /// Ends the run of a computer whose end nobody saw, where it is proven to have run.
    pub async fn end_lost_run(&self, computer: ComputerId) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        if let Some(run) = open_run(&mut tx, computer).await? {
            let now = self.clock.now();
            settle(&mut tx, now, &run, run.proven_until, true).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    /// How long until [`Store::meter`] has something to do; `None`: nothing runs.
    pub async fn next_metering(&self) -> Result<Option<Duration>, StoreError> {
        let row = sqlx::query("SELECT MIN(proven_until) AS proven FROM runs WHERE ended_at IS NULL")
            .fetch_one(&self.pool)
            .await?;
        let Some(proven) = optional_time(&row, "proven")? else { return Ok(None) };
        let now = self.clock.now();
        let due = proven.as_micros().saturating_add(micros(PROVE_EVERY));
        let mut wait = Duration::from_micros(u64::try_from(due - now.as_micros()).unwrap_or(0));
        let rows = sqlx::query(RUNNING).fetch_all(&self.pool).await?;
        for running in accounts(&rows)? {
            wait = running.wait(now).map_or(wait, |other| other.min(wait));
        }
        Ok(Some(wait))
    }

    /// Proves every run up to now, writes to the ledger what is due, and tells tenants whose credits end. Answers the
    /// computers that run although they are not paid for. To be called by whoever follows the machines.
    pub async fn meter(&self) -> Result<Vec<Unpaid>, StoreError> {
        let mut tx = self.write().await?;
        let now = self.clock.now();
        sqlx::query("UPDATE runs SET proven_until = $1 WHERE ended_at IS NULL AND proven_until < $1")
            .bind(now.as_micros())
            .execute(&mut *tx)
            .await?;
        let rows = sqlx::query(RUNNING).fetch_all(&mut *tx).await?;
        let mut unpaid = Vec::new();
        for running in accounts(&rows)? {
            let left = running.left(now);
            let is_spent = left <= 0;
            for run in &running.runs {
                if is_spent || run.is_to_be_posted(now) {
                    settle(&mut tx, now, run, now, false).await?;
                }
            }
            let Some(tenant) = running.runs.first().map(|run| run.tenant) else { continue };
            if is_spent {
                let runs = running.runs.iter();
                unpaid.extend(runs.map(|run| Unpaid { computer: run.computer, spent: Spent::Credits }));
            } else if !running.warned && left <= running.little() {
                sqlx::query("UPDATE credit_accounts SET warned = 1 WHERE tenant_id = $1")
                    .bind(tenant.to_string())
                    .execute(&mut *tx)
                    .await?;
                let low = Event::CreditsLow { balance_credits: MicroCredits(left).floor() };
                insert_event(&mut tx, &of_tenant(tenant), &low).await?;
            }
        }
        for (computer, most) in overspent(&mut tx, now).await? {
            if unpaid.iter().all(|other| other.computer != computer) {
                unpaid.push(Unpaid { computer, spent: Spent::Quota(most) });
            }
        }
        tx.commit().await?;
        Ok(unpaid)
    }

    /// The runs of a tenant, newest first.
    pub async fn runs(&self, reach: &Reach, filter: &RunFilter) -> Result<Vec<RunRecord>, StoreError> {
        let mut query = QueryBuilder::new("SELECT r.* FROM runs r WHERE started_at < ");
        query.push_bind(filter.end.as_micros());
        reach.push(&mut query, Of::Runs);
        query.push(" AND (ended_at IS NULL OR ended_at > ").push_bind(filter.start.as_micros()).push(")");
        if let Some(computer) = filter.computer {
            query.push(" AND computer_id = ").push_bind(computer.to_string());
        }
        query.push(" ORDER BY started_at DESC, id DESC");
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(RunRecord::from_row).collect()
    }

    /// What the tenant's open runs have cost beyond what is in the ledger.
    pub(crate) async fn accrued(&self, tenant: TenantId) -> Result<MicroCredits, StoreError> {
        let rows = sqlx::query("SELECT * FROM runs WHERE tenant_id = $1 AND ended_at IS NULL")
            .bind(tenant.to_string())
            .fetch_all(&self.pool)
            .await?;
        let now = self.clock.now();
        let mut accrued = 0;
        for row in &rows {
            let run = RunRecord::from_row(row)?;
            accrued += run.cost_until(now).0 - run.cost.0;
        }
        Ok(MicroCredits(accrued))
    }
}

const RUNNING: &str = "SELECT r.*, a.balance, a.warned FROM runs r
     JOIN credit_accounts a ON a.tenant_id = r.tenant_id
     WHERE r.ended_at IS NULL ORDER BY r.tenant_id, r.started_at";

fn accounts(rows: &[DbRow]) -> Result<Vec<Running>, StoreError> {
    let mut accounts: Vec<Running> = Vec::new();
    for row in rows {
        let run = RunRecord::from_row(row)?;
        match accounts.last_mut().filter(|last| last.runs.first().is_some_and(|r| r.tenant == run.tenant)) {
            Some(same) => same.runs.push(run),
            None => accounts.push(Running {
                balance: MicroCredits(number(row, "balance")?),
                warned: row.try_get::<i64, _>("warned")? != 0,
                runs: vec![run],
            }),
        }
    }
    Ok(accounts)
}

/// Begins or ends a run where the status of a computer became `running`, or ceased to be.
pub(crate) async fn record_run(
    tx: &mut Transaction<'static, Db>,
    now: Timestamp,
    before: Option<&ComputerRecord>,
    after: Option<&ComputerRecord>,
) -> Result<(), StoreError> {
    let runs = |computer: Option<&ComputerRecord>| computer.is_some_and(|c| status(c) == Status::Running);
    match (runs(before), runs(after), after.or(before)) {
        (false, true, Some(computer)) => begin_run(tx, now, computer).await,
        (true, false, Some(computer)) => match open_run(tx, computer.id).await? {
            Some(run) => settle(tx, now, &run, now, true).await,
            None => Ok(()), // it was lost, and has its end already
        },
        (_, _, _) => Ok(()),
    }
}

async fn begin_run(
    tx: &mut Transaction<'static, Db>,
    now: Timestamp,
    computer: &ComputerRecord,
) -> Result<(), StoreError> {
    let price = sqlx::query("SELECT price FROM prices WHERE size = $1")
        .bind(computer.size.as_str())
        .fetch_optional(&mut **tx)
        .await?;
    let price = price.map(|row| row.try_get::<i64, _>("price")).transpose()?.unwrap_or(0);
    sqlx::query(
        "INSERT INTO runs (id, tenant_id, workspace_id, computer_id, external_user_id, external_project_id, size,
             price, started_at, proven_until, metered_until, cost)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, $9, 0)",
    )
    .bind(RunId::new().to_string())
    .bind(computer.tenant_id.to_string())
    .bind(computer.workspace_id.to_string())
    .bind(computer.id.to_string())
    .bind(&computer.external_user_id)
    .bind(&computer.external_project_id)
    .bind(computer.size.as_str())
    .bind(price)
    .bind(now.as_micros())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn open_run(
    tx: &mut Transaction<'static, Db>,
    computer: ComputerId,
) -> Result<Option<RunRecord>, StoreError> {
    let row = sqlx::query("SELECT * FROM runs WHERE computer_id = $1 AND ended_at IS NULL")
        .bind(computer.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    row.as_ref().map(RunRecord::from_row).transpose()
}

/// Settles every run that a tenant has now.
pub(crate) async fn settle_all(
    tx: &mut Transaction<'static, Db>,
    now: Timestamp,
    tenant: TenantId,
) -> Result<(), StoreError> {
    let rows = sqlx::query("SELECT * FROM runs WHERE tenant_id = $1 AND ended_at IS NULL")
        .bind(tenant.to_string())
        .fetch_all(&mut **tx)
        .await?;
    for row in &rows {
        settle(tx, now, &RunRecord::from_row(row)?, now, false).await?;
    }
    Ok(())
}

/// Moves `metered_until` to `until` and writes what that cost, if the tenant has an account; `ends` it there.
async fn settle(
    tx: &mut Transaction<'static, Db>,
    now: Timestamp,
    run: &RunRecord,
    until: Timestamp,
    ends: bool,
) -> Result<(), StoreError> {
    // A clock that was set back makes no time that was not there.
    let until = until.max(run.metered_until);
    let cost = run.cost_until(until);
    sqlx::query(
        "UPDATE runs SET metered_until = $1, cost = $2, ended_at = $3,
             proven_until = CASE WHEN proven_until < $1 THEN $1 ELSE proven_until END WHERE id = $4",
    )
    .bind(until.as_micros())
    .bind(cost.0)
    .bind(ends.then(|| until.as_micros()))
    .bind(run.id.to_string())
    .execute(&mut **tx)
    .await?;
    let due = MicroCredits(cost.0 - run.cost.0);
    if due.0 == 0 {
        return Ok(());
    }
    let row = sqlx::query(
        "UPDATE credit_accounts SET balance = balance - $1, spent = spent + $1, updated_at = $2
         WHERE tenant_id = $3 RETURNING balance",
    )
    .bind(due.0)
    .bind(now.as_micros())
    .bind(run.tenant.to_string())
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = row else { return Ok(()) };
    let balance: i64 = row.try_get("balance")?;
    let entry = Entry {
        id: TransactionId::new(),
        tenant: run.tenant,
        amount: MicroCredits(-due.0),
        run: Some((run.id, run.computer, run.metered_until, until)),
        description: format!("{} computer, running", run.size.as_str()),
        created_at: now,
    };
    insert_entry(tx, &entry).await?;
    if balance <= 0 && balance + due.0 > 0 {
        let spent = Event::CreditsExhausted { balance_credits: MicroCredits(balance).floor() };
        insert_event(tx, &of_tenant(run.tenant), &spent).await?;
    }
    Ok(())
}

fn of_tenant(tenant: TenantId) -> EventScope {
    EventScope::tenant(tenant)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
