//! Accounts of tenants whose credits are counted, and the ledger that every balance is the sum of.

use roost_api::{ComputerId, MicroCredits, RunId, TenantId, Timestamp, TransactionId};
use sqlx::{Row, Transaction};

use crate::record::{number, optional, parsed, time};
use crate::runs::settle_all;
use crate::{Db, DbRow, Store, StoreError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// What is left now, with what runs have cost that go on.
    pub left: MicroCredits,
    pub earned: MicroCredits,
    pub spent: MicroCredits,
    pub updated_at: Timestamp,
}

/// An entry of the ledger.
#[derive(Debug, Clone)]
pub struct TransactionRecord {
    pub id: TransactionId,
    pub tenant: TenantId,
    pub computer: Option<ComputerId>,
    /// Negative: spent.
    pub amount: MicroCredits,
    pub description: String,
    pub created_at: Timestamp,
}

/// What is written to the ledger.
pub(crate) struct Entry {
    pub id: TransactionId,
    pub tenant: TenantId,
    pub amount: MicroCredits,
    /// The run that is paid for, and from when to when.
    pub run: Option<(RunId, ComputerId, Timestamp, Timestamp)>,
    pub description: String,
    pub created_at: Timestamp,
}

impl Store {
    /// `None`: the tenant's credits are not counted.
    pub async fn balance(&self, tenant: TenantId) -> Result<Option<Balance>, StoreError> {
        let row = sqlx::query("SELECT * FROM credit_accounts WHERE tenant_id = $1")
            .bind(tenant.to_string())
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let accrued = self.accrued(tenant).await?.0;
        Ok(Some(Balance {
            left: MicroCredits(number::<i64>(&row, "balance")? - accrued),
            earned: MicroCredits(number(&row, "earned")?),
            spent: MicroCredits(number::<i64>(&row, "spent")? + accrued),
            updated_at: time(&row, "updated_at")?,
        }))
    }

    /// Gives a tenant credits. Its first ones begin the counting: what ran before is not paid for. False: there is no
    /// such tenant.
    pub async fn grant_credits(
        &self,
        tenant: TenantId,
        amount: MicroCredits,
        description: &str,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let known = sqlx::query("SELECT id FROM tenants WHERE id = $1").bind(tenant.to_string());
        if known.fetch_optional(&mut *tx).await?.is_none() {
            return Ok(false);
        }
        grant(&mut tx, self.clock.now(), tenant, amount, description).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Begins the counting for a tenant that has no account and has never run anything.
    pub async fn open_account(&self, tenant: TenantId, starting: MicroCredits) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let row = sqlx::query(
            "SELECT (SELECT COUNT(*) FROM credit_accounts WHERE tenant_id = $1)
                 + (SELECT COUNT(*) FROM runs WHERE tenant_id = $1) AS n",
        )
        .bind(tenant.to_string())
        .fetch_one(&mut *tx)
        .await?;
        if row.try_get::<i64, _>("n")? == 0 {
            grant(&mut tx, self.clock.now(), tenant, starting, "starting credits").await?;
            tx.commit().await?;
        }
        Ok(())
    }

    /// A page of a tenant's ledger, newest first, and how many entries there are.
    pub async fn transactions(
        &self,
        tenant: TenantId,
        skip: u64,
        take: u32,
    ) -> Result<(Vec<TransactionRecord>, u64), StoreError> {
        let count = sqlx::query("SELECT COUNT(*) AS n FROM ledger WHERE tenant_id = $1")
            .bind(tenant.to_string())
            .fetch_one(&self.pool)
            .await?;
        let rows = sqlx::query(
            "SELECT * FROM ledger WHERE tenant_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2 OFFSET $3",
        )
        .bind(tenant.to_string())
        .bind(i64::from(take))
        .bind(i64::try_from(skip).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.iter().map(TransactionRecord::from_row).collect::<Result<Vec<_>, _>>()?;
        Ok((rows, number(&count, "n")?))
    }
}

async fn grant(
    tx: &mut Transaction<'static, Db>,
    now: Timestamp,
    tenant: TenantId,
    amount: MicroCredits,
    description: &str,
) -> Result<(), StoreError> {
    // On the ledger's side of the grant is only what is paid for with it.
    settle_all(tx, now, tenant).await?;
    sqlx::query(
        "INSERT INTO credit_accounts (tenant_id, balance, earned, spent, warned, updated_at)
         VALUES ($1, $2, $2, 0, 0, $3)
         ON CONFLICT (tenant_id) DO UPDATE SET balance = credit_accounts.balance + excluded.balance,
             earned = credit_accounts.earned + excluded.earned, warned = 0, updated_at = excluded.updated_at",
    )
    .bind(tenant.to_string())
    .bind(amount.0)
    .bind(now.as_micros())
    .execute(&mut **tx)
    .await?;
    let entry = Entry {
        id: TransactionId::new(),
        tenant,
        amount,
        run: None,
        description: description.to_owned(),
        created_at: now,
    };
    insert_entry(tx, &entry).await
}

pub(crate) async fn insert_entry(tx: &mut Transaction<'static, Db>, entry: &Entry) -> Result<(), StoreError> {
    let run = entry.run.as_ref();
    sqlx::query(
        "INSERT INTO ledger (id, tenant_id, amount, run_id, computer_id, since, until, description, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(entry.id.to_string())
    .bind(entry.tenant.to_string())
    .bind(entry.amount.0)
    .bind(run.map(|run| run.0.to_string()))
    .bind(run.map(|run| run.1.to_string()))
    .bind(run.map(|run| run.2.as_micros()))
    .bind(run.map(|run| run.3.as_micros()))
    .bind(&entry.description)
    .bind(entry.created_at.as_micros())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl TransactionRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            tenant: parsed(row, "tenant_id")?,
            computer: optional(row, "computer_id")?,
            amount: MicroCredits(number(row, "amount")?),
            description: row.try_get("description")?,
            created_at: time(row, "created_at")?,
        })
    }
}
