//! Tickets for event streams: each opens one, at any server.

use roost_api::{ApiKeyId, Timestamp};
use sqlx::Row;

use crate::{Store, StoreError};

impl Store {
    /// Keeps a ticket; false where `most` are open already.
    pub async fn insert_ticket(
        &self,
        hash: &str,
        key: ApiKeyId,
        expires_at: Timestamp,
        most: u32,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        sqlx::query("DELETE FROM tickets WHERE expires_at <= $1")
            .bind(Timestamp::now().as_micros())
            .execute(&mut *tx)
            .await?;
        let inserted = sqlx::query(
            "INSERT INTO tickets (hash, api_key_id, expires_at)
             SELECT $1, $2, $3 WHERE (SELECT COUNT(*) FROM tickets) < $4",
        )
        .bind(hash)
        .bind(key.to_string())
        .bind(expires_at.as_micros())
        .bind(i64::from(most))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(inserted.rows_affected() > 0)
    }

    /// Uses a ticket up; the hash of the key it stands for. One that is too old stands for none.
    pub async fn take_ticket(&self, hash: &str) -> Result<Option<String>, StoreError> {
        let mut tx = self.write().await?;
        let taken = sqlx::query("DELETE FROM tickets WHERE hash = $1 RETURNING api_key_id, expires_at")
            .bind(hash)
            .fetch_optional(&mut *tx)
            .await?;
        let Some(taken) = taken else { return Ok(None) };
        let key = sqlx::query("SELECT key_hash FROM api_keys WHERE id = $1")
            .bind(taken.try_get::<String, _>("api_key_id")?)
            .fetch_optional(&mut *tx)
            .await?;
        tx.commit().await?;
        let is_open = taken.try_get::<i64, _>("expires_at")? > Timestamp::now().as_micros();
        let hash = key.filter(|_| is_open).map(|key| key.try_get("key_hash")).transpose()?;
        Ok(hash)
    }
}
