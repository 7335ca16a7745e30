//! API keys and scoped tokens. Only hashes of them are kept.

use std::collections::BTreeMap;

use roost_api::{
    AddressRange, ApiKeyId, KeyEventKind, KeyKind, KeyStatus, TenantId, Timestamp, UserId, WorkspaceId,
};
use serde_json::{Map, Value};
use sqlx::{Row, Transaction};

use crate::computers::json as to_json;
use crate::key_events::{KeyActor, insert_key_event};
use crate::query::QueryBuilder;
use crate::reach::Confinement;
use crate::record::{json, optional, optional_time, parsed, text_enum, time};
use crate::{Db, DbRow, Store, StoreError};

text_enum!(
    /// In which form a credential was given out.
    KeyForm {
        Key = "key",
        // Made for a while, for a program that is trusted with nothing else.
        Token = "token",
    }
);

#[derive(Debug, Clone)]
pub struct NewKey {
    pub tenant: TenantId,
    pub user: UserId,
    pub name: String,
    /// The first characters of the key, to tell keys apart.
    pub prefix: String,
    /// Lower-case hex SHA-256 of the whole key.
    pub hash: String,
    pub kind: KeyKind,
    pub form: KeyForm,
    pub scopes: Vec<String>,
    pub confinement: Confinement,
    /// Where requests with it may come from; empty: anywhere.
    pub allowed_ips: Vec<AddressRange>,
    pub expires_at: Option<Timestamp>,
    pub metadata: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub struct KeyRecord {
    pub id: ApiKeyId,
    pub tenant: TenantId,
    pub user: UserId,
    pub name: String,
    pub prefix: String,
    pub kind: KeyKind,
    pub form: KeyForm,
    pub scopes: Vec<String>,
    pub status: KeyStatus,
    pub confinement: Confinement,
    pub allowed_ips: Vec<AddressRange>,
    pub expires_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
    pub metadata: BTreeMap<String, String>,
    pub created_at: Timestamp,
}

/// `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
pub struct KeyChange {
    pub name: Option<String>,
    pub scopes: Option<Vec<String>>,
    pub status: Option<KeyStatus>,
    pub allowed_ips: Option<Vec<AddressRange>>,
    /// Another secret: its prefix and hash. The one before ends at once.
    pub secret: Option<(String, String)>,
}

impl Store {
    /// `None`: the tenant has no such user (any more), or no such workspace.
    pub async fn insert_key(&self, new: &NewKey, actor: &KeyActor) -> Result<Option<KeyRecord>, StoreError> {
        let mut tx = self.write().await?;
        let holds = sqlx::query(
            "SELECT 1 FROM users u WHERE u.id = $1 AND u.tenant_id = $2 AND u.removed_at IS NULL
                 AND ($3 = '' OR EXISTS (SELECT 1 FROM workspaces w WHERE w.id = $3 AND w.tenant_id = $2))",
        )
        .bind(new.user.to_string())
        .bind(new.tenant.to_string())
        .bind(new.confinement.workspace.map(|id| id.to_string()).unwrap_or_default())
        .fetch_optional(&mut *tx)
        .await?;
        if holds.is_none() {
            return Ok(None);
        }
        let id = ApiKeyId::new();
        sqlx::query(
            "INSERT INTO api_keys (id, tenant_id, user_id, name, key_prefix, key_hash, kind, form, scopes, status,
                 workspace_id, external_user_id, expires_at, metadata, created_at, allowed_ips)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'active', $10, $11, $12, $13, $14, $15)",
        )
        .bind(id.to_string())
        .bind(new.tenant.to_string())
        .bind(new.user.to_string())
        .bind(&new.name)
        .bind(&new.prefix)
        .bind(&new.hash)
        .bind(new.kind.as_str())
        .bind(new.form.as_str())
        .bind(to_json(&new.scopes)?)
        .bind(new.confinement.workspace.map(|id| id.to_string()))
        .bind(&new.confinement.external_user)
        .bind(new.expires_at.map(Timestamp::as_micros))
        .bind(to_json(&new.metadata)?)
        .bind(self.clock.now().as_micros())
        .bind(to_json(&new.allowed_ips)?)
        .execute(&mut *tx)
        .await?;
        let now = self.clock.now();
        insert_key_event(&mut tx, now, id, KeyEventKind::Created, actor, Map::new()).await?;
        let record = load(&mut tx, new.tenant, id).await?;
        tx.commit().await?;
        Ok(record)
    }

    pub async fn key(&self, tenant: TenantId, id: ApiKeyId) -> Result<Option<KeyRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM api_keys WHERE id = $1 AND tenant_id = $2")
            .bind(id.to_string())
            .bind(tenant.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(KeyRecord::from_row).transpose()
    }

    /// Newest first; of one user, or of all.
    pub async fn keys(
        &self,
        tenant: TenantId,
        user: Option<UserId>,
        form: KeyForm,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        let mut query = QueryBuilder::new("SELECT * FROM api_keys WHERE tenant_id = ");
        query.push_bind(tenant.to_string()).push(" AND form = ").push_bind(form.as_str());
        if let Some(user) = user {
            query.push(" AND user_id = ").push_bind(user.to_string());
        }
        query.push(" ORDER BY created_at DESC, id DESC");
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(KeyRecord::from_row).collect()
    }

    pub async fn change_key(
        &self,
        tenant: TenantId,
        id: ApiKeyId,
        change: &KeyChange,
        actor: &KeyActor,
    ) -> Result<Option<KeyRecord>, StoreError> {
        let mut tx = self.write().await?;
        let mut query = QueryBuilder::new("UPDATE api_keys SET id = id");
        if let Some(name) = &change.name {
            query.push(", name = ").push_bind(name);
        }
        if let Some(scopes) = &change.scopes {
            query.push(", scopes = ").push_bind(to_json(scopes)?);
        }
        if let Some(status) = change.status {
            query.push(", status = ").push_bind(status.as_str());
        }
        if let Some((prefix, hash)) = &change.secret {
            query.push(", key_prefix = ").push_bind(prefix).push(", key_hash = ").push_bind(hash);
        }
        if let Some(ranges) = &change.allowed_ips {
            query.push(", allowed_ips = ").push_bind(to_json(ranges)?);
        }
        query.push(" WHERE id = ").push_bind(id.to_string());
        query.push(" AND tenant_id = ").push_bind(tenant.to_string());
        if query.build().execute(&mut *tx).await?.rows_affected() > 0 {
            for (kind, details) in change.events() {
                insert_key_event(&mut tx, self.clock.now(), id, kind, actor, details).await?;
            }
        }
        let record = load(&mut tx, tenant, id).await?;
        tx.commit().await?;
        Ok(record)
    }

    /// It ends at once.
    pub async fn delete_key(&self, tenant: TenantId, id: ApiKeyId) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM api_keys WHERE id = $1 AND tenant_id = $2")
            .bind(id.to_string())
            .bind(tenant.to_string())
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Tokens that have ended serve nobody any more.
    pub async fn remove_ended_tokens(&self) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM api_keys WHERE form = 'token' AND expires_at <= $1")
            .bind(self.clock.now().as_micros())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub async fn count_api_keys(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query("SELECT COUNT(*) AS n FROM api_keys").fetch_one(&self.pool).await?.try_get("n")?)
    }
}

impl KeyChange {
    /// What is told of it. A secret is not.
    fn events(&self) -> Vec<(KeyEventKind, Map<String, Value>)> {
        let mut details = Map::new();
        if let Some(name) = &self.name {
            details.insert("name".to_owned(), name.as_str().into());
        }
        if let Some(scopes) = &self.scopes {
            details.insert("scopes".to_owned(), scopes.as_slice().into());
        }
        if let Some(ranges) = &self.allowed_ips {
            let ranges: Vec<String> = ranges.iter().map(AddressRange::to_string).collect();
            details.insert("allowed_ips".to_owned(), ranges.into());
        }
        let mut events = Vec::new();
        if !details.is_empty() {
            events.push((KeyEventKind::Changed, details));
        }
        match self.status {
            Some(KeyStatus::Active) => events.push((KeyEventKind::Enabled, Map::new())),
            Some(KeyStatus::Disabled) => events.push((KeyEventKind::Disabled, Map::new())),
            None => {}
        }
        if self.secret.is_some() {
            events.push((KeyEventKind::Rotated, Map::new()));
        }
        events
    }
}

async fn load(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    id: ApiKeyId,
) -> Result<Option<KeyRecord>, StoreError> {
    let row = sqlx::query("SELECT * FROM api_keys WHERE id = $1 AND tenant_id = $2")
        .bind(id.to_string())
        .bind(tenant.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    row.as_ref().map(KeyRecord::from_row).transpose()
}

impl KeyRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            tenant: parsed(row, "tenant_id")?,
            user: parsed(row, "user_id")?,
            name: row.try_get("name")?,
            prefix: row.try_get("key_prefix")?,
            kind: parsed(row, "kind")?,
            form: parsed(row, "form")?,
            scopes: json(row, "scopes")?,
            status: parsed(row, "status")?,
            confinement: Confinement {
                workspace: optional::<WorkspaceId>(row, "workspace_id")?,
                external_user: row.try_get("external_user_id")?,
            },
            allowed_ips: json(row, "allowed_ips")?,
            expires_at: optional_time(row, "expires_at")?,
            last_used_at: optional_time(row, "last_used_at")?,
            metadata: json(row, "metadata")?,
            created_at: time(row, "created_at")?,
        })
    }
}
