//! Environment variables of computers. Values come and go sealed; this crate cannot read them.

use roost_api::{ComputerId, Timestamp};
use sqlx::{Row, Transaction};

use crate::record::{number, time};
use crate::{Db, DbRow, Store, StoreError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VariableRecord {
    pub name: String,
    /// Sealed.
    pub value: String,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// All variables of a computer, as they were at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvRecord {
    /// Grows with every change; 0: there was none yet.
    pub version: u64,
    pub variables: Vec<VariableRecord>,
    /// Those that were given with the start there was last.
    pub of_start: Vec<NewVariable>,
}

/// A variable for a computer that is being made or started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVariable {
    pub name: String,
    /// Sealed.
    pub value: String,
}

/// How [`Store::set_variable`] went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VariableSet {
    New(VariableRecord),
    Changed(VariableRecord),
    /// The computer is gone, or has no such variable and was to get none.
    Missing,
}

/// What [`Store::set_variable`] does about a variable that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfMissing {
    Make,
    Leave,
}

impl VariableRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            name: row.try_get("name")?,
            value: row.try_get("value")?,
            created_at: time(row, "created_at")?,
            updated_at: time(row, "updated_at")?,
        })
    }
}

impl Store {
    /// `None`: there is no such computer. Variables come by name.
    pub async fn env(&self, computer: ComputerId) -> Result<Option<EnvRecord>, StoreError> {
        // One statement, so that version and variables belong together.
        let rows = sqlx::query(
            "SELECT c.env_version, e.* FROM computers c LEFT JOIN env e ON e.computer_id = c.id
             WHERE c.id = $1 ORDER BY e.name",
        )
        .bind(computer.to_string())
        .fetch_all(&self.pool)
        .await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let version = number(first, "env_version")?;
        let mut variables = Vec::new();
        for row in &rows {
            if row.try_get::<Option<String>, _>("name")?.is_some() {
                variables.push(VariableRecord::from_row(row)?);
            }
        }
        let rows = sqlx::query(
            "SELECT s.name, s.value FROM start_env s
             JOIN computers c ON c.id = s.computer_id AND c.generation = s.generation WHERE c.id = $1",
        )
        .bind(computer.to_string())
        .fetch_all(&self.pool)
        .await?;
        let mut of_start = Vec::new();
        for row in &rows {
            of_start.push(NewVariable { name: row.try_get("name")?, value: row.try_get("value")? });
        }
        Ok(Some(EnvRecord { version, variables, of_start }))
    }

    pub async fn set_variable(
        &self,
        computer: ComputerId,
        variable: &NewVariable,
        if_missing: IfMissing,
    ) -> Result<VariableSet, StoreError> {
        let mut tx = self.write().await?;
        let now = Timestamp::now().as_micros();
        let changed =
            sqlx::query("UPDATE env SET value = $1, updated_at = $2 WHERE computer_id = $3 AND name = $4")
                .bind(&variable.value)
                .bind(now)
                .bind(computer.to_string())
                .bind(&variable.name)
                .execute(&mut *tx)
                .await?;
        let is_new = changed.rows_affected() == 0;
        if is_new {
            let there = exists(&mut tx, computer).await?;
            if !there || if_missing == IfMissing::Leave {
                return Ok(VariableSet::Missing);
            }
            insert_variable(&mut tx, computer, variable, now).await?;
        }
        next_version(&mut tx, computer).await?;
        let row = sqlx::query("SELECT * FROM env WHERE computer_id = $1 AND name = $2")
            .bind(computer.to_string())
            .bind(&variable.name)
            .fetch_one(&mut *tx)
            .await?;
        let record = VariableRecord::from_row(&row)?;
        tx.commit().await?;
        Ok(if is_new { VariableSet::New(record) } else { VariableSet::Changed(record) })
    }

    /// Whether there was something to remove.
    pub async fn remove_variable(&self, computer: ComputerId, name: &str) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let removed = sqlx::query("DELETE FROM env WHERE computer_id = $1 AND name = $2")
            .bind(computer.to_string())
            .bind(name)
            .execute(&mut *tx)
            .await?;
        if removed.rows_affected() > 0 {
            next_version(&mut tx, computer).await?;
        }
        tx.commit().await?;
        Ok(removed.rows_affected() > 0)
    }
}

/// The variables of a computer whose row was just inserted.
pub(crate) async fn insert_variables(
    tx: &mut Transaction<'static, Db>,
    computer: ComputerId,
    variables: &[NewVariable],
) -> Result<(), StoreError> {
    let now = Timestamp::now().as_micros();
    for variable in variables {
        insert_variable(tx, computer, variable, now).await?;
    }
    if !variables.is_empty() {
        next_version(tx, computer).await?;
    }
    Ok(())
}

/// The variables that a start of this generation has beside the others; those of earlier starts go.
pub(crate) async fn set_start_variables(
    tx: &mut Transaction<'static, Db>,
    computer: ComputerId,
    generation: i64,
    variables: &[NewVariable],
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM start_env WHERE computer_id = $1")
        .bind(computer.to_string())
        .execute(&mut **tx)
        .await?;
    for variable in variables {
        sqlx::query("INSERT INTO start_env (computer_id, generation, name, value) VALUES ($1, $2, $3, $4)")
            .bind(computer.to_string())
            .bind(generation)
            .bind(&variable.name)
            .bind(&variable.value)
            .execute(&mut **tx)
            .await?;
    }
    if !variables.is_empty() {
        // So that the next start knows that its guest has something to forget.
        next_version(tx, computer).await?;
    }
    Ok(())
}

async fn insert_variable(
    tx: &mut Transaction<'static, Db>,
    computer: ComputerId,
    variable: &NewVariable,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO env (computer_id, name, value, created_at, updated_at) VALUES ($1, $2, $3, $4, $4)",
    )
    .bind(computer.to_string())
    .bind(&variable.name)
    .bind(&variable.value)
    .bind(now)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn exists(tx: &mut Transaction<'static, Db>, computer: ComputerId) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT id FROM computers WHERE id = $1")
        .bind(computer.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    Ok(row.is_some())
}

async fn next_version(tx: &mut Transaction<'static, Db>, computer: ComputerId) -> Result<(), StoreError> {
    sqlx::query("UPDATE computers SET env_version = env_version + 1 WHERE id = $1")
        .bind(computer.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(())
}
