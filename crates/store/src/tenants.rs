//! Tenants, their users, and members of workspaces.

use roost_api::{Role, TenantId, Timestamp, UserId, WorkspaceId, WorkspaceRole};
use sqlx::{Row, Transaction};

use crate::places::{self, NewProject, NewWorkspace};
use crate::record::{number, optional, parsed, time};
use crate::{Db, DbRow, Store, StoreError};

#[derive(Debug, Clone)]
pub struct TenantRecord {
    pub id: TenantId,
    pub name: String,
    pub slug: String,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone)]
pub struct NewUser {
    pub tenant: TenantId,
    pub name: String,
    pub email: Option<String>,
    pub role: Role,
}

#[derive(Debug, Clone)]
pub struct UserRecord {
    pub id: UserId,
    pub tenant: TenantId,
    pub name: String,
    pub email: Option<String>,
    pub role: Role,
    pub created_at: Timestamp,
}

/// A user as a member of a workspace.
#[derive(Debug, Clone)]
pub struct MemberRecord {
    pub workspace: WorkspaceId,
    pub user: UserId,
    pub name: String,
    pub email: Option<String>,
    pub role: WorkspaceRole,
    pub added_by: Option<UserId>,
    pub joined_at: Timestamp,
}

/// How a change of a user went.
#[derive(Debug)]
pub enum UserChanged {
    Changed(UserRecord),
    Missing,
    /// Nobody could administer the tenant any more.
    LastOwner,
    EmailTaken,
}

/// How [`Store::delete_tenant`] went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantDeleted {
    Deleted,
    Missing,
    /// There are computers or snapshots.
    InUse {
        computers: u64,
        snapshots: u64,
    },
}

impl Store {
    /// A tenant with its owner, default workspace and default project. `None`: the slug is taken.
    pub async fn create_tenant(
        &self,
        name: &str,
        slug: &str,
        owner: (&str, Option<&str>),
    ) -> Result<Option<(TenantRecord, UserRecord)>, StoreError> {
        let mut tx = self.write().await?;
        let taken = sqlx::query("SELECT 1 FROM tenants WHERE slug = $1").bind(slug);
        if taken.fetch_optional(&mut *tx).await?.is_some() {
            return Ok(None);
        }
        let now = Timestamp::now();
        let tenant = insert_tenant(&mut tx, name, slug, now).await?;
        let (name, email) = (owner.0.to_owned(), owner.1.map(str::to_owned));
        let owner = NewUser { tenant: tenant.id, name, email, role: Role::Owner };
        let user = insert_user(&mut tx, &owner, now).await?;
        let workspace = places::insert_workspace(&mut tx, &NewWorkspace::first_of(tenant.id), now).await?;
        places::insert_project(&mut tx, &NewProject::first_of(tenant.id, workspace), now).await?;
        tx.commit().await?;
        Ok(Some((tenant, user)))
    }

    /// Oldest first.
    pub async fn tenants(&self) -> Result<Vec<TenantRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM tenants ORDER BY created_at, id").fetch_all(&self.pool).await?;
        rows.iter().map(TenantRecord::from_row).collect()
    }

    /// By id or by slug.
    pub async fn tenant(&self, name: &str) -> Result<Option<TenantRecord>, StoreError> {
        if name.contains('\0') {
            return Ok(None); // no text of PostgreSQL
        }
        let row = sqlx::query("SELECT * FROM tenants WHERE id = $1 OR slug = $1 ORDER BY created_at LIMIT 1")
            .bind(name)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(TenantRecord::from_row).transpose()
    }

    pub async fn rename_tenant(&self, id: TenantId, name: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE tenants SET name = $1 WHERE id = $2")
            .bind(name)
            .bind(id.to_string())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Removes a tenant without computers and snapshots, with everything it has.
    pub async fn delete_tenant(&self, id: TenantId) -> Result<TenantDeleted, StoreError> {
        let mut tx = self.write().await?;
        let row = sqlx::query(
            "SELECT (SELECT COUNT(*) FROM computers WHERE tenant_id = $1) AS computers,
                 (SELECT COUNT(*) FROM snapshots WHERE tenant_id = $1) AS snapshots
             FROM tenants WHERE id = $1",
        )
        .bind(id.to_string())
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(TenantDeleted::Missing) };
        let (computers, snapshots) = (number(&row, "computers")?, number(&row, "snapshots")?);
        if computers + snapshots > 0 {
            return Ok(TenantDeleted::InUse { computers, snapshots });
        }
        for statement in [
            "DELETE FROM webhooks WHERE tenant_id = $1",
            "DELETE FROM api_keys WHERE tenant_id = $1",
            "DELETE FROM projects WHERE workspace_id IN (SELECT id FROM workspaces WHERE tenant_id = $1)",
            "DELETE FROM workspaces WHERE tenant_id = $1",
            "DELETE FROM users WHERE tenant_id = $1",
            "DELETE FROM credit_accounts WHERE tenant_id = $1",
            "DELETE FROM ledger WHERE tenant_id = $1",
            "DELETE FROM runs WHERE tenant_id = $1",
            "DELETE FROM events WHERE tenant_id = $1",
            "DELETE FROM tenants WHERE id = $1",
        ] {
            sqlx::query(statement).bind(id.to_string()).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(TenantDeleted::Deleted)
    }

    /// `None`: the tenant is gone, or somebody in it has the address.
    pub async fn create_user(&self, new: &NewUser) -> Result<UserChanged, StoreError> {
        let mut tx = self.write().await?;
        let known = sqlx::query("SELECT 1 FROM tenants WHERE id = $1").bind(new.tenant.to_string());
        if known.fetch_optional(&mut *tx).await?.is_none() {
            return Ok(UserChanged::Missing);
        }
        if email_taken(&mut tx, new.tenant, new.email.as_deref(), None).await? {
            return Ok(UserChanged::EmailTaken);
        }
        let user = insert_user(&mut tx, new, Timestamp::now()).await?;
        tx.commit().await?;
        Ok(UserChanged::Changed(user))
    }

    /// Oldest first.
    pub async fn users(&self, tenant: TenantId) -> Result<Vec<UserRecord>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM users WHERE tenant_id = $1 AND removed_at IS NULL ORDER BY created_at, id",
        )
        .bind(tenant.to_string())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(UserRecord::from_row).collect()
    }

    pub async fn user(&self, tenant: TenantId, id: UserId) -> Result<Option<UserRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM users WHERE id = $1 AND tenant_id = $2 AND removed_at IS NULL")
            .bind(id.to_string())
            .bind(tenant.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(UserRecord::from_row).transpose()
    }

    pub async fn change_user(
        &self,
        tenant: TenantId,
        id: UserId,
        change: impl FnOnce(&mut UserRecord),
    ) -> Result<UserChanged, StoreError> {
        let mut tx = self.write().await?;
        let Some(mut user) = load_user(&mut tx, tenant, id).await? else { return Ok(UserChanged::Missing) };
        let was_owner = user.role == Role::Owner;
        change(&mut user);
        if was_owner && user.role != Role::Owner && is_last_owner(&mut tx, tenant, id).await? {
            return Ok(UserChanged::LastOwner);
        }
        if email_taken(&mut tx, tenant, user.email.as_deref(), Some(id)).await? {
            return Ok(UserChanged::EmailTaken);
        }
        sqlx::query("UPDATE users SET name = $1, email = $2, role = $3 WHERE id = $4")
            .bind(&user.name)
            .bind(&user.email)
            .bind(user.role.as_str())
            .bind(id.to_string())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(UserChanged::Changed(user))
    }

    /// Ends a user's keys, memberships and webhooks. Their computers stay, for the tenant's administrators.
    pub async fn remove_user(&self, tenant: TenantId, id: UserId) -> Result<UserChanged, StoreError> {
        let mut tx = self.write().await?;
        let Some(user) = load_user(&mut tx, tenant, id).await? else { return Ok(UserChanged::Missing) };
        if user.role == Role::Owner && is_last_owner(&mut tx, tenant, id).await? {
            return Ok(UserChanged::LastOwner);
        }
        for statement in [
            "DELETE FROM api_keys WHERE user_id = $1",
            "DELETE FROM webhooks WHERE user_id = $1",
            "DELETE FROM workspace_members WHERE user_id = $1",
        ] {
            sqlx::query(statement).bind(id.to_string()).execute(&mut *tx).await?;
        }
        sqlx::query("UPDATE users SET removed_at = $1, email = NULL WHERE id = $2")
            .bind(Timestamp::now().as_micros())
            .bind(id.to_string())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(UserChanged::Changed(user))
    }

    /// Oldest first.
    pub async fn members(&self, workspace: WorkspaceId) -> Result<Vec<MemberRecord>, StoreError> {
        let rows = sqlx::query(
            "SELECT m.*, u.name, u.email FROM workspace_members m JOIN users u ON u.id = m.user_id
             WHERE m.workspace_id = $1 ORDER BY m.joined_at, m.user_id",
        )
        .bind(workspace.to_string())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(MemberRecord::from_row).collect()
    }

    /// Makes a user of the workspace's tenant a member, or gives a member another role. `None`: there is no such
    /// user or workspace.
    pub async fn put_member(
        &self,
        tenant: TenantId,
        workspace: WorkspaceId,
        user: UserId,
        role: WorkspaceRole,
        added_by: UserId,
    ) -> Result<Option<MemberRecord>, StoreError> {
        let mut tx = self.write().await?;
        let known = sqlx::query(
            "SELECT 1 FROM users u JOIN workspaces w ON w.tenant_id = u.tenant_id
             WHERE u.id = $1 AND u.removed_at IS NULL AND w.id = $2 AND w.tenant_id = $3",
        )
        .bind(user.to_string())
        .bind(workspace.to_string())
        .bind(tenant.to_string())
        .fetch_optional(&mut *tx)
        .await?;
        if known.is_none() {
            return Ok(None);
        }
        put_member(&mut tx, workspace, user, role, Some(added_by), Timestamp::now()).await?;
        let row = sqlx::query(
            "SELECT m.*, u.name, u.email FROM workspace_members m JOIN users u ON u.id = m.user_id
             WHERE m.workspace_id = $1 AND m.user_id = $2",
        )
        .bind(workspace.to_string())
        .bind(user.to_string())
        .fetch_one(&mut *tx)
        .await?;
        let member = MemberRecord::from_row(&row)?;
        tx.commit().await?;
        Ok(Some(member))
    }

    /// What they listen to in the workspace ends with it.
    pub async fn remove_member(&self, workspace: WorkspaceId, user: UserId) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let mut removed = false;
        for statement in [
            "DELETE FROM webhooks WHERE workspace_id = $1 AND user_id = $2",
            "DELETE FROM workspace_members WHERE workspace_id = $1 AND user_id = $2",
        ] {
            let done = sqlx::query(statement)
                .bind(workspace.to_string())
                .bind(user.to_string())
                .execute(&mut *tx)
                .await?;
            removed = done.rows_affected() > 0;
        }
        tx.commit().await?;
        Ok(removed)
    }
}

pub(crate) async fn put_member(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    user: UserId,
    role: WorkspaceRole,
    added_by: Option<UserId>,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO workspace_members (workspace_id, user_id, role, added_by, joined_at)
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (workspace_id, user_id) DO UPDATE SET role = excluded.role",
    )
    .bind(workspace.to_string())
    .bind(user.to_string())
    .bind(role.as_str())
    .bind(added_by.map(|id| id.to_string()))
    .bind(now.as_micros())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

pub(crate) async fn insert_tenant(
    tx: &mut Transaction<'static, Db>,
    name: &str,
    slug: &str,
    now: Timestamp,
) -> Result<TenantRecord, StoreError> {
    let tenant =
        TenantRecord { id: TenantId::new(), name: name.to_owned(), slug: slug.to_owned(), created_at: now };
    sqlx::query("INSERT INTO tenants (id, name, slug, created_at) VALUES ($1, $2, $3, $4)")
        .bind(tenant.id.to_string())
        .bind(name)
        .bind(slug)
        .bind(now.as_micros())
        .execute(&mut **tx)
        .await?;
    Ok(tenant)
}

pub(crate) async fn insert_user(
    tx: &mut Transaction<'static, Db>,
    new: &NewUser,
    now: Timestamp,
) -> Result<UserRecord, StoreError> {
    let NewUser { tenant, name, email, role } = new.clone();
    let user = UserRecord { id: UserId::new(), tenant, name, email, role, created_at: now };
    sqlx::query(
        "INSERT INTO users (id, tenant_id, name, email, role, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(user.id.to_string())
    .bind(tenant.to_string())
    .bind(&user.name)
    .bind(&user.email)
    .bind(role.as_str())
    .bind(now.as_micros())
    .execute(&mut **tx)
    .await?;
    Ok(user)
}

async fn load_user(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    id: UserId,
) -> Result<Option<UserRecord>, StoreError> {
    let row = sqlx::query("SELECT * FROM users WHERE id = $1 AND tenant_id = $2 AND removed_at IS NULL")
        .bind(id.to_string())
        .bind(tenant.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    row.as_ref().map(UserRecord::from_row).transpose()
}

async fn is_last_owner(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    id: UserId,
) -> Result<bool, StoreError> {
    let other = sqlx::query(
        "SELECT 1 FROM users WHERE tenant_id = $1 AND id <> $2 AND role = 'owner' AND removed_at IS NULL",
    )
    .bind(tenant.to_string())
    .bind(id.to_string())
    .fetch_optional(&mut **tx)
    .await?;
    Ok(other.is_none())
}

async fn email_taken(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    email: Option<&str>,
    by_other_than: Option<UserId>,
) -> Result<bool, StoreError> {
    let Some(email) = email else { return Ok(false) };
    let taken = sqlx::query("SELECT 1 FROM users WHERE tenant_id = $1 AND email = $2 AND id <> $3")
        .bind(tenant.to_string())
        .bind(email)
        .bind(by_other_than.map(|id| id.to_string()).unwrap_or_default())
        .fetch_optional(&mut **tx)
        .await?;
    Ok(taken.is_some())
}

impl TenantRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            name: row.try_get("name")?,
            slug: row.try_get("slug")?,
            created_at: time(row, "created_at")?,
        })
    }
}

impl UserRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            tenant: parsed(row, "tenant_id")?,
            name: row.try_get("name")?,
            email: row.try_get("email")?,
            role: parsed(row, "role")?,
            created_at: time(row, "created_at")?,
        })
    }
}

impl MemberRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            workspace: parsed(row, "workspace_id")?,
            user: parsed(row, "user_id")?,
            name: row.try_get("name")?,
            email: row.try_get("email")?,
            role: parsed(row, "role")?,
            added_by: optional(row, "added_by")?,
            joined_at: time(row, "joined_at")?,
        })
    }
}
