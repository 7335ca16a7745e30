//! Viewer passwords and shares: ways to a desktop without an account.

use roost_api::{ComputerId, ShareId, ShareKind, ShareRole, Timestamp};
use sqlx::Row;

use crate::computers::load;
use crate::record::{optional_time, parsed, time};
use crate::{DbRow, Store, StoreError};

#[derive(Clone)]
pub struct ViewerPasswordRecord {
    /// Argon2id in PHC form.
    pub hash: String,
    pub set_at: Timestamp,
}

impl std::fmt::Debug for ViewerPasswordRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ViewerPasswordRecord(secret, set at {})", self.set_at)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareRecord {
    pub id: ShareId,
    pub computer_id: ComputerId,
    pub kind: ShareKind,
    pub role: ShareRole,
    pub email: Option<String>,
    /// `None`: until it is revoked.
    pub expires_at: Option<Timestamp>,
    pub created_at: Timestamp,
}

impl ShareRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        let (kind, role): (String, String) = (row.try_get("kind")?, row.try_get("role")?);
        let corrupt = || StoreError::Corrupt { what: format!("share of kind {kind:?} and role {role:?}") };
        Ok(Self {
            id: parsed(row, "id")?,
            computer_id: parsed(row, "computer_id")?,
            kind: ShareKind::parse(&kind).ok_or_else(corrupt)?,
            role: ShareRole::parse(&role).ok_or_else(corrupt)?,
            email: row.try_get("email")?,
            expires_at: optional_time(row, "expires_at")?,
            created_at: time(row, "created_at")?,
        })
    }
}

impl Store {
    pub async fn viewer_password(
        &self,
        computer: ComputerId,
    ) -> Result<Option<ViewerPasswordRecord>, StoreError> {
        let row = sqlx::query("SELECT hash, set_at FROM viewer_passwords WHERE computer_id = $1")
            .bind(computer.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| Ok(ViewerPasswordRecord { hash: row.try_get("hash")?, set_at: time(&row, "set_at")? }))
            .transpose()
    }

    /// Answers when it was set; `None` where the computer is gone.
    pub async fn set_viewer_password(
        &self,
        computer: ComputerId,
        hash: &str,
    ) -> Result<Option<Timestamp>, StoreError> {
        let mut tx = self.write().await?;
        if load(&mut tx, computer).await?.is_none() {
            return Ok(None);
        }
        let now = Timestamp::now();
        sqlx::query(
            "INSERT INTO viewer_passwords (computer_id, hash, set_at) VALUES ($1, $2, $3)
             ON CONFLICT (computer_id) DO UPDATE SET hash = excluded.hash, set_at = excluded.set_at",
        )
        .bind(computer.to_string())
        .bind(hash)
        .bind(now.as_micros())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Some(now))
    }

    /// False where the computer is gone. Shares of it that have expired go.
    pub async fn insert_share(&self, share: &ShareRecord, token_hash: &str) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        if load(&mut tx, share.computer_id).await?.is_none() {
            return Ok(false);
        }
        sqlx::query("DELETE FROM shares WHERE computer_id = $1 AND expires_at <= $2")
            .bind(share.computer_id.to_string())
            .bind(Timestamp::now().as_micros())
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "INSERT INTO shares (id, computer_id, kind, role, email, token_hash, expires_at, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(share.id.to_string())
        .bind(share.computer_id.to_string())
        .bind(share.kind.as_str())
        .bind(share.role.as_str())
        .bind(&share.email)
        .bind(token_hash)
        .bind(share.expires_at.map(Timestamp::as_micros))
        .bind(share.created_at.as_micros())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Newest first, expired ones too.
    pub async fn shares(&self, computer: ComputerId) -> Result<Vec<ShareRecord>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM shares WHERE computer_id = $1 ORDER BY created_at DESC, id DESC")
                .bind(computer.to_string())
                .fetch_all(&self.pool)
                .await?;
        rows.iter().map(ShareRecord::from_row).collect()
    }

    pub async fn share_by_token_hash(&self, hash: &str) -> Result<Option<ShareRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM shares WHERE token_hash = $1")
            .bind(hash)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(ShareRecord::from_row).transpose()
    }

    /// Whether there was something to remove.
    pub async fn remove_share(&self, computer: ComputerId, share: ShareId) -> Result<bool, StoreError> {
        let removed = sqlx::query("DELETE FROM shares WHERE id = $1 AND computer_id = $2")
            .bind(share.to_string())
            .bind(computer.to_string())
            .execute(&self.pool)
            .await?;
        Ok(removed.rows_affected() > 0)
    }
}
