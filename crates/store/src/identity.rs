//! Tenants, users, workspaces, projects and API keys.

use roost_api::{ApiKeyId, ProjectId, TenantId, Timestamp, UserId, WorkspaceId};
use sqlx::Row;

use crate::record::parsed;
use crate::{Store, StoreError};

/// The tenant of a self-hosted server with its default user, workspace and project.
#[derive(Debug, Clone, Copy)]
pub struct Home {
    pub tenant: TenantId,
    pub user: UserId,
    pub workspace: WorkspaceId,
    pub project: ProjectId,
}

/// Who a valid API key speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub key: ApiKeyId,
    pub tenant: TenantId,
    pub user: UserId,
}

#[derive(Debug, Clone)]
pub struct NewApiKey {
    pub tenant: TenantId,
    pub user: UserId,
    pub name: String,
    /// The first characters of the key, to tell keys apart.
    pub prefix: String,
    /// Lower-case hex SHA-256 of the whole key.
    pub hash: String,
}

impl Store {
    /// The default tenant and what it needs, made at the first call.
    pub async fn home(&self) -> Result<Home, StoreError> {
        let mut tx = self.write().await?;
        let found = sqlx::query(
            "SELECT t.id AS tenant, u.id AS user, w.id AS workspace, p.id AS project
             FROM tenants t
             JOIN users u ON u.tenant_id = t.id
             JOIN workspaces w ON w.tenant_id = t.id AND w.slug = 'default'
             JOIN projects p ON p.workspace_id = w.id AND p.slug = 'default'
             ORDER BY t.created_at, u.created_at LIMIT 1",
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(row) = found {
            return Ok(Home {
                tenant: parsed(&row, "tenant")?,
                user: parsed(&row, "user")?,
                workspace: parsed(&row, "workspace")?,
                project: parsed(&row, "project")?,
            });
        }
        let home = Home {
            tenant: TenantId::new(),
            user: UserId::new(),
            workspace: WorkspaceId::new(),
            project: ProjectId::new(),
        };
        let now = Timestamp::now().as_micros();
        sqlx::query("INSERT INTO tenants (id, name, created_at) VALUES ($1, 'default', $2)")
            .bind(home.tenant.to_string())
            .bind(now)
            .execute(&mut *tx)
            .await?;
        sqlx::query("INSERT INTO users (id, tenant_id, name, created_at) VALUES ($1, $2, 'admin', $3)")
            .bind(home.user.to_string())
            .bind(home.tenant.to_string())
            .bind(now)
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "INSERT INTO workspaces (id, tenant_id, slug, name, created_at)
             VALUES ($1, $2, 'default', 'Default', $3)",
        )
        .bind(home.workspace.to_string())
        .bind(home.tenant.to_string())
        .bind(now)
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "INSERT INTO projects (id, workspace_id, slug, name, created_at)
             VALUES ($1, $2, 'default', 'Default', $3)",
        )
        .bind(home.project.to_string())
        .bind(home.workspace.to_string())
        .bind(now)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(home)
    }

    pub async fn insert_api_key(&self, key: &NewApiKey) -> Result<ApiKeyId, StoreError> {
        let id = ApiKeyId::new();
        sqlx::query(
            "INSERT INTO api_keys (id, tenant_id, user_id, name, key_prefix, key_hash, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(id.to_string())
        .bind(key.tenant.to_string())
        .bind(key.user.to_string())
        .bind(&key.name)
        .bind(&key.prefix)
        .bind(&key.hash)
        .bind(Timestamp::now().as_micros())
        .execute(&self.pool)
        .await?;
        Ok(id)
    }

    pub async fn caller_by_key_hash(&self, hash: &str) -> Result<Option<Caller>, StoreError> {
        let row = sqlx::query("SELECT id, tenant_id, user_id FROM api_keys WHERE key_hash = $1")
            .bind(hash)
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| {
            Ok(Caller {
                key: parsed(&row, "id")?,
                tenant: parsed(&row, "tenant_id")?,
                user: parsed(&row, "user_id")?,
            })
        })
        .transpose()
    }

    pub async fn count_api_keys(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query("SELECT COUNT(*) AS n FROM api_keys").fetch_one(&self.pool).await?.try_get("n")?)
    }
}
