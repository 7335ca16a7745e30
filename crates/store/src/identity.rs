//! Who speaks: the first tenant of a server, and whom a key speaks for.

use std::net::IpAddr;

use roost_api::{
    AddressRange, ApiKeyId, KeyKind, ProjectId, Role, TenantId, Timestamp, UserId, WorkspaceId, WorkspaceRole,
};
use sqlx::Row;

use crate::keys::KeyForm;
use crate::places::{self, NewProject, NewWorkspace};
use crate::query::QueryBuilder;
use crate::reach::Confinement;
use crate::record::{json, optional, optional_time, parsed};
use crate::tenants::{insert_tenant, insert_user};
use crate::{NewUser, Store, StoreError};

/// The tenant of a self-hosted server with its first user, default workspace and default project. Whoever administers
/// it is the server's operator.
#[derive(Debug, Clone, Copy)]
pub struct Home {
    pub tenant: TenantId,
    pub user: UserId,
    pub workspace: WorkspaceId,
    pub project: ProjectId,
}

/// Who a valid API key speaks for, and for how much of what they may do.
#[derive(Debug, Clone)]
pub struct Caller {
    pub key: ApiKeyId,
    /// Of the secret that came with the request; another one after a rotation.
    pub key_hash: String,
    pub form: KeyForm,
    pub tenant: TenantId,
    pub tenant_slug: String,
    pub user: UserId,
    pub role: Role,
    pub kind: KeyKind,
    pub scopes: Vec<String>,
    /// Of members; whoever is more needs none.
    pub memberships: Vec<(WorkspaceId, WorkspaceRole)>,
    pub confinement: Confinement,
    /// Where requests with the key may come from; empty: anywhere.
    pub allowed_ips: Vec<AddressRange>,
    /// Where this one came from, as far as that is known.
    pub address: Option<IpAddr>,
    pub expires_at: Option<Timestamp>,
    /// May act in every tenant. The store knows of no such thing; the control plane says so.
    pub is_operator: bool,
    /// Where computers go that name no workspace: an id or a slug that came with the request.
    pub default_workspace: Option<String>,
}

const CALLER: &str = "SELECT k.*, u.role AS role, t.slug AS tenant_slug FROM api_keys k
     JOIN users u ON u.id = k.user_id JOIN tenants t ON t.id = k.tenant_id
     WHERE k.status = 'active' AND u.removed_at IS NULL";

impl Caller {
    /// Whether two looks at a key found the same rights, whatever tenant an operator acts in.
    pub fn may_the_same_as(&self, other: &Self) -> bool {
        let rights = |caller: &Self| {
            let mut memberships = caller.memberships.clone();
            memberships.sort_by_key(|(workspace, _)| *workspace);
            let Self { key, kind, scopes, confinement, allowed_ips, .. } = caller;
            (*key, *kind, scopes.clone(), memberships, confinement.clone(), allowed_ips.clone())
        };
        let is_same_role = self.role == other.role || other.is_operator && self.role.is_administrator();
        is_same_role && rights(self) == rights(other)
    }
}

/// `last_used_at` is written once in this time.
const USE_GRAIN: i64 = 60_000_000;

impl Store {
    /// The default tenant and what it needs, made at the first call.
    pub async fn home(&self) -> Result<Home, StoreError> {
        let mut tx = self.write().await?;
        let found = sqlx::query(
            "SELECT t.id AS tenant, u.id AS user_id, w.id AS workspace, p.id AS project
             FROM tenants t
             JOIN users u ON u.tenant_id = t.id AND u.role = 'owner' AND u.removed_at IS NULL
             JOIN workspaces w ON w.tenant_id = t.id AND w.is_default = 1
             JOIN projects p ON p.workspace_id = w.id AND p.is_default = 1
             ORDER BY t.created_at, t.id, u.created_at LIMIT 1",
        )
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(row) = found {
            return Ok(Home {
                tenant: parsed(&row, "tenant")?,
                user: parsed(&row, "user_id")?,
                workspace: parsed(&row, "workspace")?,
                project: parsed(&row, "project")?,
            });
        }
        let now = Timestamp::now();
        let tenant = insert_tenant(&mut tx, "default", "default", now).await?;
        let owner = NewUser { tenant: tenant.id, name: "admin".to_owned(), email: None, role: Role::Owner };
        let user = insert_user(&mut tx, &owner, now).await?;
        let workspace = places::insert_workspace(&mut tx, &NewWorkspace::first_of(tenant.id), now).await?;
        let project =
            places::insert_project(&mut tx, &NewProject::first_of(tenant.id, workspace), now).await?;
        tx.commit().await?;
        Ok(Home { tenant: tenant.id, user: user.id, workspace, project })
    }

    /// Whom the key with this hash speaks for, if it still holds. That it was used is written down.
    pub async fn caller_by_key_hash(&self, hash: &str) -> Result<Option<Caller>, StoreError> {
        let now = self.clock.now().as_micros();
        let mut query = QueryBuilder::new(CALLER);
        query.push(" AND k.key_hash = ").push_bind(hash);
        query.push(" AND (k.expires_at IS NULL OR k.expires_at > ").push_bind(now).push(")");
        let Some(row) = query.build().fetch_optional(&self.pool).await? else { return Ok(None) };
        let (key, user): (ApiKeyId, UserId) = (parsed(&row, "id")?, parsed(&row, "user_id")?);
        let role: Role = parsed(&row, "role")?;
        let last: Option<i64> = row.try_get("last_used_at")?;
        if last.is_none_or(|last| last + USE_GRAIN <= now) {
            sqlx::query("UPDATE api_keys SET last_used_at = $1 WHERE id = $2")
                .bind(now)
                .bind(key.to_string())
                .execute(&self.pool)
                .await?;
        }
        let memberships = if role.is_administrator() { Vec::new() } else { self.memberships(user).await? };
        Ok(Some(Caller {
            key,
            key_hash: row.try_get("key_hash")?,
            form: parsed(&row, "form")?,
            tenant: parsed(&row, "tenant_id")?,
            tenant_slug: row.try_get("tenant_slug")?,
            user,
            role,
            kind: parsed(&row, "kind")?,
            scopes: json(&row, "scopes")?,
            memberships,
            confinement: Confinement {
                workspace: optional(&row, "workspace_id")?,
                external_user: row.try_get("external_user_id")?,
            },
            allowed_ips: json(&row, "allowed_ips")?,
            address: None,
            expires_at: optional_time(&row, "expires_at")?,
            is_operator: false,
            default_workspace: None,
        }))
    }

    async fn memberships(&self, user: UserId) -> Result<Vec<(WorkspaceId, WorkspaceRole)>, StoreError> {
        let rows = sqlx::query("SELECT workspace_id, role FROM workspace_members WHERE user_id = $1")
            .bind(user.to_string())
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(|row| Ok((parsed(row, "workspace_id")?, parsed(row, "role")?))).collect()
    }
}
