//! What happened to API keys, and presets of scopes.

use std::net::IpAddr;

use roost_api::{ApiKeyId, KeyEventId, KeyEventKind, TenantId, Timestamp, UserId};
use serde_json::{Map, Value};
use sqlx::{Row, Transaction};

use crate::computers::json as to_json;
use crate::identity::Caller;
use crate::query::QueryBuilder;
use crate::record::{json, optional, parsed, time};
use crate::{Db, DbRow, Store, StoreError};

/// As many are kept of a key.
const MOST_EVENTS: i64 = 1000;
/// A refusal is told once in this time for each address: a client tries again and again.
const REFUSAL_GRAIN: i64 = 60_000_000;

/// Who does something to a key.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyActor {
    pub user: Option<UserId>,
    pub key: Option<ApiKeyId>,
    pub address: Option<IpAddr>,
}

impl From<&Caller> for KeyActor {
    fn from(caller: &Caller) -> Self {
        Self { user: Some(caller.user), key: Some(caller.key), address: caller.address }
    }
}

#[derive(Debug, Clone)]
pub struct KeyEventRecord {
    pub id: KeyEventId,
    pub key: ApiKeyId,
    pub kind: KeyEventKind,
    pub user: Option<UserId>,
    pub actor_key: Option<ApiKeyId>,
    pub address: Option<IpAddr>,
    pub details: Map<String, Value>,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone)]
pub struct PresetRecord {
    pub name: String,
    pub scopes: Vec<String>,
    pub description: Option<String>,
    pub created_at: Timestamp,
}

impl Store {
    /// Of one key, newest first.
    pub async fn key_events(
        &self,
        key: ApiKeyId,
        kind: Option<KeyEventKind>,
        most: u32,
    ) -> Result<Vec<KeyEventRecord>, StoreError> {
        let mut query = QueryBuilder::new("SELECT * FROM key_events WHERE key_id = ");
        query.push_bind(key.to_string());
        if let Some(kind) = kind {
            query.push(" AND kind = ").push_bind(kind.as_str());
        }
        query.push(" ORDER BY created_at DESC, id DESC LIMIT ").push_bind(i64::from(most));
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(KeyEventRecord::from_row).collect()
    }

    /// Somebody used a key from where it may not be used.
    pub async fn record_refusal(&self, key: ApiKeyId, address: Option<IpAddr>) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let now = self.clock.now();
        let told = sqlx::query(
            "SELECT 1 FROM key_events WHERE key_id = $1 AND kind = 'refused' AND created_at > $2
                 AND COALESCE(address, '') = $3",
        )
        .bind(key.to_string())
        .bind(now.as_micros().saturating_sub(REFUSAL_GRAIN))
        .bind(address.map(|address| address.to_string()).unwrap_or_default());
        let known = sqlx::query("SELECT 1 FROM api_keys WHERE id = $1").bind(key.to_string());
        if told.fetch_optional(&mut *tx).await?.is_some() || known.fetch_optional(&mut *tx).await?.is_none() {
            return Ok(());
        }
        let actor = KeyActor { address, ..KeyActor::default() };
        insert_key_event(&mut tx, now, key, KeyEventKind::Refused, &actor, Map::new()).await?;
        tx.commit().await?;
        Ok(())
    }

    /// By name.
    pub async fn presets(&self, tenant: TenantId) -> Result<Vec<PresetRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM key_presets WHERE tenant_id = $1 ORDER BY name")
            .bind(tenant.to_string())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(PresetRecord::from_row).collect()
    }

    /// False: the tenant has one with this name, or `most` already.
    pub async fn create_preset(
        &self,
        tenant: TenantId,
        new: &PresetRecord,
        most: usize,
    ) -> Result<bool, StoreError> {
        let made = sqlx::query(
            "INSERT INTO key_presets (tenant_id, name, scopes, description, created_at)
             SELECT $1, $2, $3, $4, $5
             WHERE (SELECT COUNT(*) FROM key_presets WHERE tenant_id = $1) < $6
             ON CONFLICT (tenant_id, name) DO NOTHING",
        )
        .bind(tenant.to_string())
        .bind(&new.name)
        .bind(to_json(&new.scopes)?)
        .bind(&new.description)
        .bind(new.created_at.as_micros())
        .bind(i64::try_from(most).unwrap_or(i64::MAX))
        .execute(&self.pool)
        .await?;
        Ok(made.rows_affected() > 0)
    }

    pub async fn delete_preset(&self, tenant: TenantId, name: &str) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM key_presets WHERE tenant_id = $1 AND name = $2")
            .bind(tenant.to_string())
            .bind(name)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

pub(crate) async fn insert_key_event(
    tx: &mut Transaction<'static, Db>,
    now: Timestamp,
    key: ApiKeyId,
    kind: KeyEventKind,
    actor: &KeyActor,
    details: Map<String, Value>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO key_events (id, key_id, kind, user_id, actor_key_id, address, details, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(KeyEventId::new().to_string())
    .bind(key.to_string())
    .bind(kind.as_str())
    .bind(actor.user.map(|id| id.to_string()))
    .bind(actor.key.map(|id| id.to_string()))
    .bind(actor.address.map(|address| address.to_string()))
    .bind(to_json(&details)?)
    .bind(now.as_micros())
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "DELETE FROM key_events WHERE key_id = $1 AND id NOT IN
             (SELECT id FROM key_events WHERE key_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2)",
    )
    .bind(key.to_string())
    .bind(MOST_EVENTS)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl KeyEventRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            key: parsed(row, "key_id")?,
            kind: parsed(row, "kind")?,
            user: optional(row, "user_id")?,
            actor_key: optional(row, "actor_key_id")?,
            address: optional(row, "address")?,
            details: json(row, "details")?,
            created_at: time(row, "created_at")?,
        })
    }
}

impl PresetRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            name: row.try_get("name")?,
            scopes: json(row, "scopes")?,
            description: row.try_get("description")?,
            created_at: time(row, "created_at")?,
        })
    }
}
