//! Exposed ports of computers, and links into them.

use roost_api::{ComputerId, PortNumber, PortVisibility, Timestamp};
use sqlx::Row;

use crate::computers::load;
use crate::record::{parsed, time};
use crate::{DbRow, Store, StoreError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRecord {
    pub port: PortNumber,
    pub visibility: PortVisibility,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// How [`Store::expose_port`] went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exposed {
    New(PortRecord),
    /// It was exposed already.
    Changed(PortRecord),
    /// The computer is gone.
    Missing,
}

/// A link that begins a session at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortLink {
    pub computer: ComputerId,
    pub port: PortNumber,
    /// When the session ends, in Unix seconds.
    pub session_ends_at: i64,
}

fn port_number(row: &DbRow) -> Result<PortNumber, StoreError> {
    let number: i64 = row.try_get("port")?;
    let port = u16::try_from(number).ok().and_then(|number| PortNumber::new(number).ok());
    port.ok_or_else(|| StoreError::Corrupt { what: format!("port {number}") })
}

impl PortRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        let visibility: String = row.try_get("visibility")?;
        let corrupt = || StoreError::Corrupt { what: format!("port visibility {visibility:?}") };
        Ok(Self {
            port: port_number(row)?,
            visibility: PortVisibility::parse(&visibility).ok_or_else(corrupt)?,
            created_at: time(row, "created_at")?,
            updated_at: time(row, "updated_at")?,
        })
    }
}

impl Store {
    /// The exposed ports of a computer, lowest first.
    pub async fn ports(&self, computer: ComputerId) -> Result<Vec<PortRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM ports WHERE computer_id = $1 ORDER BY port")
            .bind(computer.to_string())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(PortRecord::from_row).collect()
    }

    pub async fn port(
        &self,
        computer: ComputerId,
        port: PortNumber,
    ) -> Result<Option<PortRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM ports WHERE computer_id = $1 AND port = $2")
            .bind(computer.to_string())
            .bind(i64::from(port.get()))
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(PortRecord::from_row).transpose()
    }

    /// Exposes a port, or changes one that is exposed where `visibility` says so. A new one without gets the
    /// default of its computer.
    pub async fn expose_port(
        &self,
        computer: ComputerId,
        port: PortNumber,
        visibility: Option<PortVisibility>,
    ) -> Result<Exposed, StoreError> {
        let mut tx = self.write().await?;
        let Some(record) = load(&mut tx, computer).await? else {
            return Ok(Exposed::Missing);
        };
        let now = Timestamp::now().as_micros();
        let inserted = sqlx::query(
            "INSERT INTO ports (computer_id, port, visibility, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $4) ON CONFLICT (computer_id, port) DO NOTHING",
        )
        .bind(computer.to_string())
        .bind(i64::from(port.get()))
        .bind(visibility.unwrap_or(record.visibility.into()).as_str())
        .bind(now)
        .execute(&mut *tx)
        .await?;
        let is_new = inserted.rows_affected() > 0;
        if let (false, Some(visibility)) = (is_new, visibility) {
            sqlx::query(
                "UPDATE ports SET visibility = $1, updated_at = $2 WHERE computer_id = $3 AND port = $4",
            )
            .bind(visibility.as_str())
            .bind(now)
            .bind(computer.to_string())
            .bind(i64::from(port.get()))
            .execute(&mut *tx)
            .await?;
        }
        let row = sqlx::query("SELECT * FROM ports WHERE computer_id = $1 AND port = $2")
            .bind(computer.to_string())
            .bind(i64::from(port.get()))
            .fetch_one(&mut *tx)
            .await?;
        let exposed = PortRecord::from_row(&row)?;
        tx.commit().await?;
        Ok(if is_new { Exposed::New(exposed) } else { Exposed::Changed(exposed) })
    }

    /// `None`: it is not exposed.
    pub async fn change_port(
        &self,
        computer: ComputerId,
        port: PortNumber,
        visibility: PortVisibility,
    ) -> Result<Option<PortRecord>, StoreError> {
        sqlx::query("UPDATE ports SET visibility = $1, updated_at = $2 WHERE computer_id = $3 AND port = $4")
            .bind(visibility.as_str())
            .bind(Timestamp::now().as_micros())
            .bind(computer.to_string())
            .bind(i64::from(port.get()))
            .execute(&self.pool)
            .await?;
        self.port(computer, port).await
    }

    /// Whether there was something to remove.
    pub async fn remove_port(&self, computer: ComputerId, port: PortNumber) -> Result<bool, StoreError> {
        let removed = sqlx::query("DELETE FROM ports WHERE computer_id = $1 AND port = $2")
            .bind(computer.to_string())
            .bind(i64::from(port.get()))
            .execute(&self.pool)
            .await?;
        Ok(removed.rows_affected() > 0)
    }

    /// Keeps a link; false where `most` are open already, or its computer is gone.
    pub async fn insert_port_link(
        &self,
        hash: &str,
        link: &PortLink,
        expires_at: Timestamp,
        most: u32,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        sqlx::query("DELETE FROM port_links WHERE expires_at <= $1")
            .bind(Timestamp::now().as_micros())
            .execute(&mut *tx)
            .await?;
        let inserted = sqlx::query(
            "INSERT INTO port_links (hash, computer_id, port, session_ends_at, expires_at)
             SELECT $1, id, $3, $4, $5 FROM computers
             WHERE id = $2 AND (SELECT COUNT(*) FROM port_links) < $6",
        )
        .bind(hash)
        .bind(link.computer.to_string())
        .bind(i64::from(link.port.get()))
        .bind(link.session_ends_at)
        .bind(expires_at.as_micros())
        .bind(i64::from(most))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(inserted.rows_affected() > 0)
    }

    /// Uses a link up. One that is too old is none.
    pub async fn take_port_link(&self, hash: &str) -> Result<Option<PortLink>, StoreError> {
        let mut tx = self.write().await?;
        let taken = sqlx::query(
            "DELETE FROM port_links WHERE hash = $1
             RETURNING computer_id, port, session_ends_at, expires_at",
        )
        .bind(hash)
        .fetch_optional(&mut *tx)
        .await?;
        tx.commit().await?;
        let Some(taken) = taken else { return Ok(None) };
        let link = PortLink {
            computer: parsed(&taken, "computer_id")?,
            port: port_number(&taken)?,
            session_ends_at: taken.try_get("session_ends_at")?,
        };
        let is_open = taken.try_get::<i64, _>("expires_at")? > Timestamp::now().as_micros();
        Ok(Some(link).filter(|_| is_open))
    }
}
