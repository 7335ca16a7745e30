//! Workspaces and projects: where in a tenant computers are.
//!
//! Every tenant has a default workspace and every workspace a default project. A computer always has a place: what is
//! deleted leaves its computers and snapshots to the default one.

use std::collections::BTreeMap;

use roost_api::{
    ComputerCounts, ProjectId, TenantId, Timestamp, UserId, WorkspaceId, WorkspacePolicy, WorkspaceRole,
};
use serde_json::{Map, Value};
use sqlx::{Row, Transaction};

use crate::computers::{NewComputer, insert, json as to_json, load};
use crate::query::QueryBuilder;
use crate::quotas::{admit_arrived, policy_of};
use crate::record::{ComputerRecord, WorkflowRecord, json, number, parsed, time};
use crate::tenants::put_member;
use crate::{Db, DbRow, Store, StoreError};

#[derive(Debug, Clone)]
pub struct WorkspaceRecord {
    pub id: WorkspaceId,
    pub tenant: TenantId,
    pub name: String,
    pub slug: String,
    pub description: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub settings: Map<String, Value>,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub is_default: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone)]
pub struct ProjectRecord {
    pub id: ProjectId,
    pub tenant: TenantId,
    pub workspace: WorkspaceId,
    pub name: String,
    pub slug: String,
    pub description: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub settings: Map<String, Value>,
    /// Of its workspace.
    pub external_workspace_id: Option<String>,
    pub external_project_id: Option<String>,
    pub is_default: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone)]
pub struct NewWorkspace {
    pub tenant: TenantId,
    pub name: String,
    pub slug: String,
    pub description: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub is_default: bool,
    /// Becomes its owner.
    pub creator: Option<UserId>,
}

#[derive(Debug, Clone)]
pub struct NewProject {
    pub tenant: TenantId,
    pub workspace: WorkspaceId,
    pub name: String,
    pub slug: String,
    pub description: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub external_project_id: Option<String>,
    pub is_default: bool,
}

impl NewWorkspace {
    /// The default workspace of a tenant.
    pub(crate) fn first_of(tenant: TenantId) -> Self {
        Self { is_default: true, ..Self::named(tenant, "Default", "default") }
    }

    pub fn named(tenant: TenantId, name: &str, slug: &str) -> Self {
        Self {
            tenant,
            name: name.to_owned(),
            slug: slug.to_owned(),
            description: None,
            metadata: BTreeMap::new(),
            external_workspace_id: None,
            external_user_id: None,
            is_default: false,
            creator: None,
        }
    }
}

impl NewProject {
    /// The default project of a workspace.
    pub(crate) fn first_of(tenant: TenantId, workspace: WorkspaceId) -> Self {
        Self { is_default: true, ..Self::named(tenant, workspace, "Default", "default") }
    }

    pub fn named(tenant: TenantId, workspace: WorkspaceId, name: &str, slug: &str) -> Self {
        Self {
            tenant,
            workspace,
            name: name.to_owned(),
            slug: slug.to_owned(),
            description: None,
            metadata: BTreeMap::new(),
            external_project_id: None,
            is_default: false,
        }
    }
}

/// What to change of a workspace or a project; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
pub struct PlaceChange {
    pub name: Option<String>,
    pub slug: Option<String>,
    pub description: Option<Option<String>>,
    pub metadata: Option<BTreeMap<String, String>>,
    pub settings: Option<Map<String, Value>>,
}

/// How making or changing a workspace or project went.
#[derive(Debug)]
pub enum PlaceInserted<T> {
    New(T),
    /// The one that has the external id, or the name, or the slug.
    Existing(T),
    /// It, or what it is to lie in, is not there.
    Missing,
}

/// How deleting a workspace or project went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    Removed,
    Missing,
    /// The default one stays.
    IsDefault,
}

/// Where a new computer is to be, as far as a request says.
#[derive(Debug, Clone, Default)]
pub struct WantedPlace {
    pub workspace: Option<WorkspaceId>,
    pub workspace_slug: Option<String>,
    pub workspace_name: Option<String>,
    pub project: Option<ProjectId>,
    pub project_slug: Option<String>,
    pub project_name: Option<String>,
    pub external_workspace_id: Option<String>,
    pub external_user_id: Option<String>,
    pub external_project_id: Option<String>,
    /// An id or a slug, for requests that name nothing.
    pub otherwise: Option<String>,
}

/// Why there is no place for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPlaced {
    NoWorkspace,
    NoProject,
    /// The project is not in the workspace.
    ProjectElsewhere,
    /// Somebody else's workspace, or none and it may not be made.
    Forbidden,
}

const PROJECT: &str = "SELECT p.*, w.tenant_id, w.external_workspace_id FROM projects p
     JOIN workspaces w ON w.id = p.workspace_id";

impl Store {
    /// The tenant's workspaces, oldest first: all, or some.
    pub async fn workspaces(
        &self,
        tenant: TenantId,
        only: Option<&[WorkspaceId]>,
    ) -> Result<Vec<WorkspaceRecord>, StoreError> {
        let mut query = QueryBuilder::new("SELECT * FROM workspaces WHERE tenant_id = ");
        query.push_bind(tenant.to_string());
        if let Some(only) = only {
            query.push(" AND id").push_in(only);
        }
        query.push(" ORDER BY created_at, id");
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(WorkspaceRecord::from_row).collect()
    }

    pub async fn workspace(
        &self,
        tenant: TenantId,
        id: WorkspaceId,
    ) -> Result<Option<WorkspaceRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM workspaces WHERE id = $1 AND tenant_id = $2")
            .bind(id.to_string())
            .bind(tenant.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(WorkspaceRecord::from_row).transpose()
    }

    pub async fn default_workspace(&self, tenant: TenantId) -> Result<WorkspaceRecord, StoreError> {
        let row = sqlx::query("SELECT * FROM workspaces WHERE tenant_id = $1 AND is_default = 1")
            .bind(tenant.to_string())
            .fetch_one(&self.pool)
            .await?;
        WorkspaceRecord::from_row(&row)
    }

    pub async fn workspace_by_slug(
        &self,
        tenant: TenantId,
        slug: &str,
    ) -> Result<Option<WorkspaceRecord>, StoreError> {
        let row = sqlx::query("SELECT * FROM workspaces WHERE tenant_id = $1 AND slug = $2")
            .bind(tenant.to_string())
            .bind(slug)
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(WorkspaceRecord::from_row).transpose()
    }

    pub async fn workspace_by_external_id(
        &self,
        tenant: TenantId,
        external: &str,
    ) -> Result<Option<WorkspaceRecord>, StoreError> {
        let row = sqlx::query(
            "SELECT * FROM workspaces WHERE tenant_id = $1 AND external_workspace_id = $2
             ORDER BY created_at, id LIMIT 1",
        )
        .bind(tenant.to_string())
        .bind(external)
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(WorkspaceRecord::from_row).transpose()
    }

    /// Makes a workspace unless one has its external id, its slug or, where `unique_name` says so, its name. Without
    /// a slug of its own (`slug_is_given`) it gets one that is free.
    pub async fn create_workspace(
        &self,
        new: &NewWorkspace,
        slug_is_given: bool,
        unique_name: bool,
    ) -> Result<PlaceInserted<WorkspaceRecord>, StoreError> {
        let mut tx = self.write().await?;
        let mut found = None;
        if let Some(external) = &new.external_workspace_id {
            found = find_workspace(&mut tx, new.tenant, By::External, external).await?;
        }
        if found.is_none() && slug_is_given {
            found = find_workspace(&mut tx, new.tenant, By::Slug, &new.slug).await?;
        }
        if found.is_none() && unique_name {
            found = find_workspace(&mut tx, new.tenant, By::Name, &new.name).await?;
        }
        if let Some(found) = found {
            return Ok(PlaceInserted::Existing(found));
        }
        let id = insert_workspace(&mut tx, new, Timestamp::now()).await?;
        let record = find_workspace(&mut tx, new.tenant, By::Id, &id.to_string()).await?;
        tx.commit().await?;
        record.map(PlaceInserted::New).ok_or_else(|| sqlx::Error::RowNotFound.into())
    }

    pub async fn change_workspace(
        &self,
        tenant: TenantId,
        id: WorkspaceId,
        change: &PlaceChange,
        unique_name: bool,
    ) -> Result<PlaceInserted<WorkspaceRecord>, StoreError> {
        let mut tx = self.write().await?;
        if let Some(name) = &change.name
            && unique_name
            && let Some(other) = find_workspace(&mut tx, tenant, By::Name, name).await?
            && other.id != id
        {
            return Ok(PlaceInserted::Existing(other));
        }
        let mut query = QueryBuilder::new("UPDATE workspaces SET updated_at = ");
        query.push_bind(Timestamp::now().as_micros());
        push_change(&mut query, change)?;
        query.push(" WHERE id = ").push_bind(id.to_string());
        query.push(" AND tenant_id = ").push_bind(tenant.to_string());
        query.build().execute(&mut *tx).await?;
        let record = find_workspace(&mut tx, tenant, By::Id, &id.to_string()).await?;
        tx.commit().await?;
        Ok(record.map_or(PlaceInserted::Missing, PlaceInserted::New))
    }

    /// Its computers and snapshots go to the default workspace; keys and webhooks that are confined to it end.
    pub async fn delete_workspace(&self, tenant: TenantId, id: WorkspaceId) -> Result<Removal, StoreError> {
        let mut tx = self.write().await?;
        let found = find_workspace(&mut tx, tenant, By::Id, &id.to_string()).await?;
        let Some(found) = found else { return Ok(Removal::Missing) };
        if found.is_default {
            return Ok(Removal::IsDefault);
        }
        let (workspace, project) = default_place(&mut tx, tenant).await?;
        for statement in [
            "UPDATE computers SET workspace_id = $1, project_id = $2 WHERE workspace_id = $3",
            "UPDATE snapshots SET workspace_id = $1, project_id = $2 WHERE workspace_id = $3",
        ] {
            sqlx::query(statement)
                .bind(workspace.to_string())
                .bind(project.to_string())
                .bind(id.to_string())
                .execute(&mut *tx)
                .await?;
        }
        for statement in [
            "DELETE FROM api_keys WHERE workspace_id = $1",
            "DELETE FROM projects WHERE workspace_id = $1",
            "DELETE FROM workspaces WHERE id = $1",
        ] {
            sqlx::query(statement).bind(id.to_string()).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(Removal::Removed)
    }

    /// The projects of a tenant, oldest first: in all workspaces, or in some.
    pub async fn projects(
        &self,
        tenant: TenantId,
        only: Option<&[WorkspaceId]>,
    ) -> Result<Vec<ProjectRecord>, StoreError> {
        let mut query = QueryBuilder::new(PROJECT);
        query.push(" WHERE w.tenant_id = ").push_bind(tenant.to_string());
        if let Some(only) = only {
            query.push(" AND w.id").push_in(only);
        }
        query.push(" ORDER BY p.created_at, p.id");
        let rows = query.build().fetch_all(&self.pool).await?;
        rows.iter().map(ProjectRecord::from_row).collect()
    }

    pub async fn project(
        &self,
        tenant: TenantId,
        id: ProjectId,
    ) -> Result<Option<ProjectRecord>, StoreError> {
        let mut query = QueryBuilder::new(PROJECT);
        query.push(" WHERE p.id = ").push_bind(id.to_string());
        query.push(" AND w.tenant_id = ").push_bind(tenant.to_string());
        let row = query.build().fetch_optional(&self.pool).await?;
        row.as_ref().map(ProjectRecord::from_row).transpose()
    }

    /// Makes a project unless one of the workspace has its external id, or its slug where that is given.
    pub async fn create_project(
        &self,
        new: &NewProject,
        slug_is_given: bool,
    ) -> Result<PlaceInserted<ProjectRecord>, StoreError> {
        let mut tx = self.write().await?;
        let workspace = find_workspace(&mut tx, new.tenant, By::Id, &new.workspace.to_string()).await?;
        if workspace.is_none() {
            return Ok(PlaceInserted::Missing);
        }
        let mut found = None;
        if let Some(external) = &new.external_project_id {
            found = find_project(&mut tx, new.workspace, By::External, external).await?;
        }
        if found.is_none() && slug_is_given {
            found = find_project(&mut tx, new.workspace, By::Slug, &new.slug).await?;
        }
        if let Some(found) = found {
            return Ok(PlaceInserted::Existing(found));
        }
        let id = insert_project(&mut tx, new, Timestamp::now()).await?;
        let record = find_project(&mut tx, new.workspace, By::Id, &id.to_string()).await?;
        tx.commit().await?;
        record.map(PlaceInserted::New).ok_or_else(|| sqlx::Error::RowNotFound.into())
    }

    pub async fn change_project(
        &self,
        project: &ProjectRecord,
        change: &PlaceChange,
    ) -> Result<PlaceInserted<ProjectRecord>, StoreError> {
        let mut tx = self.write().await?;
        if let Some(slug) = &change.slug
            && let Some(other) = find_project(&mut tx, project.workspace, By::Slug, slug).await?
            && other.id != project.id
        {
            return Ok(PlaceInserted::Existing(other));
        }
        let mut query = QueryBuilder::new("UPDATE projects SET updated_at = ");
        query.push_bind(Timestamp::now().as_micros());
        push_change(&mut query, change)?;
        query.push(" WHERE id = ").push_bind(project.id.to_string());
        query.build().execute(&mut *tx).await?;
        let record = find_project(&mut tx, project.workspace, By::Id, &project.id.to_string()).await?;
        tx.commit().await?;
        Ok(record.map_or(PlaceInserted::Missing, PlaceInserted::New))
    }

    /// Its computers and snapshots go to the default project of the workspace.
    pub async fn delete_project(&self, project: &ProjectRecord) -> Result<Removal, StoreError> {
        let mut tx = self.write().await?;
        let found = find_project(&mut tx, project.workspace, By::Id, &project.id.to_string()).await?;
        let Some(found) = found else { return Ok(Removal::Missing) };
        if found.is_default {
            return Ok(Removal::IsDefault);
        }
        let other = default_project(&mut tx, project.tenant, project.workspace).await?;
        for statement in [
            "UPDATE computers SET project_id = $1 WHERE project_id = $2",
            "UPDATE snapshots SET project_id = $1 WHERE project_id = $2",
        ] {
            sqlx::query(statement)
                .bind(other.to_string())
                .bind(project.id.to_string())
                .execute(&mut *tx)
                .await?;
        }
        sqlx::query("DELETE FROM projects WHERE id = $1")
            .bind(project.id.to_string())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Removal::Removed)
    }

    /// Moves a project with its computers and snapshots to another workspace of the tenant. Its slug there is one
    /// that is free.
    pub async fn move_project(
        &self,
        project: &ProjectRecord,
        target: WorkspaceId,
    ) -> Result<PlaceInserted<ProjectRecord>, StoreError> {
        let mut tx = self.write().await?;
        let workspace = find_workspace(&mut tx, project.tenant, By::Id, &target.to_string()).await?;
        let found = find_project(&mut tx, project.workspace, By::Id, &project.id.to_string()).await?;
        let (Some(workspace), Some(found)) = (workspace, found) else { return Ok(PlaceInserted::Missing) };
        if found.workspace != workspace.id {
            let slug = free_slug(&mut tx, Table::Projects, &target.to_string(), &found.slug).await?;
            sqlx::query("UPDATE projects SET workspace_id = $1, slug = $2, updated_at = $3 WHERE id = $4")
                .bind(target.to_string())
                .bind(slug)
                .bind(Timestamp::now().as_micros())
                .bind(project.id.to_string())
                .execute(&mut *tx)
                .await?;
            for statement in [
                "UPDATE computers SET workspace_id = $1 WHERE project_id = $2",
                "UPDATE snapshots SET workspace_id = $1 WHERE project_id = $2",
            ] {
                sqlx::query(statement)
                    .bind(target.to_string())
                    .bind(project.id.to_string())
                    .execute(&mut *tx)
                    .await?;
            }
            let rows = sqlx::query("SELECT id FROM computers WHERE project_id = $1")
                .bind(project.id.to_string())
                .fetch_all(&mut *tx)
                .await?;
            let mut arrived = Vec::with_capacity(rows.len());
            for row in &rows {
                arrived.extend(load(&mut tx, parsed(row, "id")?).await?);
            }
            admit_arrived(&mut tx, target, &arrived).await?;
        }
        let record = find_project(&mut tx, target, By::Id, &project.id.to_string()).await?;
        tx.commit().await?;
        Ok(record.map_or(PlaceInserted::Missing, PlaceInserted::New))
    }

    /// How many computers there are in a workspace, or in one of its projects.
    pub async fn count_in_place(
        &self,
        workspace: WorkspaceId,
        project: Option<ProjectId>,
    ) -> Result<ComputerCounts, StoreError> {
        let mut query = QueryBuilder::new(
            "SELECT COUNT(*) AS total,
                 COALESCE(SUM(CASE WHEN observed = 'running' THEN 1 ELSE 0 END), 0) AS running,
                 COALESCE(SUM(CASE WHEN desired = 'stopped' AND observed = 'stopped' THEN 1 ELSE 0 END), 0) AS stopped
             FROM computers WHERE workspace_id = ",
        );
        query.push_bind(workspace.to_string());
        if let Some(project) = project {
            query.push(" AND project_id = ").push_bind(project.to_string());
        }
        let row = query.build().fetch_one(&self.pool).await?;
        Ok(ComputerCounts {
            total: number(&row, "total")?,
            running: number(&row, "running")?,
            stopped: number(&row, "stopped")?,
        })
    }

    /// Inserts a computer that `user` makes, and begins its `create` workflow, where it is wanted: what is named there by
    /// slug or external id is made with it, so a computer that is refused leaves nothing. `may_use` says of a workspace
    /// whether the user may put a computer there.
    pub async fn insert_computer_at(
        &self,
        (tenant, user): (TenantId, UserId),
        wanted: &WantedPlace,
        may_make: bool,
        may_use: impl Fn(&WorkspaceRecord) -> bool,
        build: impl FnOnce(WorkspaceId, ProjectId, &WorkspacePolicy) -> NewComputer,
    ) -> Result<Result<(ComputerRecord, WorkflowRecord), NotPlaced>, StoreError> {
        let mut tx = self.write().await?;
        let (workspace, project) = match place(&mut tx, (tenant, user), wanted, may_make, may_use).await? {
            Ok(place) => place,
            Err(why) => return Ok(Err(why)),
        };
        let policy = policy_of(&mut tx, workspace).await?;
        let inserted = insert(&mut tx, &build(workspace, project, &policy), self.clock.now()).await?;
        tx.commit().await?;
        Ok(Ok(inserted))
    }
}

/// Finds, or makes, the place for a computer.
async fn place(
    tx: &mut Transaction<'static, Db>,
    (tenant, user): (TenantId, UserId),
    wanted: &WantedPlace,
    may_make: bool,
    may_use: impl Fn(&WorkspaceRecord) -> bool,
) -> Result<Result<(WorkspaceId, ProjectId), NotPlaced>, StoreError> {
    let workspace = match find_wanted(tx, tenant, wanted).await? {
        Found::Workspace(found) if may_use(&found) => found.id,
        Found::Workspace(_) => return Ok(Err(NotPlaced::Forbidden)),
        Found::None => return Ok(Err(NotPlaced::NoWorkspace)),
        Found::ToMake(_) if !may_make => return Ok(Err(NotPlaced::Forbidden)),
        Found::ToMake(new) => {
            let new = NewWorkspace { creator: Some(user), ..*new };
            insert_workspace(tx, &new, Timestamp::now()).await?
        }
    };
    let project = match (wanted.project, &wanted.project_slug, &wanted.external_project_id) {
        (Some(id), _, _) => {
            let row = sqlx::query(
                "SELECT p.workspace_id FROM projects p JOIN workspaces w ON w.id = p.workspace_id
                     WHERE p.id = $1 AND w.tenant_id = $2",
            )
            .bind(id.to_string())
            .bind(tenant.to_string())
            .fetch_optional(&mut **tx)
            .await?;
            let Some(row) = row else { return Ok(Err(NotPlaced::NoProject)) };
            if parsed::<WorkspaceId>(&row, "workspace_id")? != workspace {
                return Ok(Err(NotPlaced::ProjectElsewhere));
            }
            id
        }
        (None, Some(slug), _) => match find_project(tx, workspace, By::Slug, slug).await? {
            Some(found) => found.id,
            None => make_project(tx, tenant, workspace, wanted, slug).await?,
        },
        (None, None, Some(external)) => match find_project(tx, workspace, By::External, external).await? {
            Some(found) => found.id,
            None => make_project(tx, tenant, workspace, wanted, external).await?,
        },
        (None, None, None) => default_project(tx, tenant, workspace).await?,
    };
    Ok(Ok((workspace, project)))
}

enum Found {
    Workspace(Box<WorkspaceRecord>),
    ToMake(Box<NewWorkspace>),
    None,
}

async fn find_wanted(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    wanted: &WantedPlace,
) -> Result<Found, StoreError> {
    let (by, text) = match (wanted.workspace, &wanted.workspace_slug, &wanted.external_workspace_id) {
        // A project that is named says where it is.
        (None, None, None) if wanted.project.is_some() => {
            let row = sqlx::query("SELECT workspace_id FROM projects WHERE id = $1")
                .bind(wanted.project.map(|id| id.to_string()))
                .fetch_optional(&mut **tx)
                .await?;
            match row {
                Some(row) => (By::Id, row.try_get("workspace_id")?),
                None => return default_of(tx, tenant).await,
            }
        }
        (Some(id), _, _) => (By::Id, id.to_string()),
        (None, Some(slug), _) => (By::Slug, slug.clone()),
        (None, None, Some(external)) => (By::External, external.clone()),
        (None, None, None) => {
            let Some(name) = &wanted.otherwise else { return default_of(tx, tenant).await };
            for by in [By::Id, By::Slug] {
                if let Some(found) = find_workspace(tx, tenant, by, name).await? {
                    return Ok(Found::Workspace(Box::new(found)));
                }
            }
            return Ok(Found::None);
        }
    };
    if let Some(found) = find_workspace(tx, tenant, by, &text).await? {
        return Ok(Found::Workspace(Box::new(found)));
    }
    if matches!(by, By::Id) {
        return Ok(if wanted.workspace.is_some() { Found::None } else { default_of(tx, tenant).await? });
    }
    let name = wanted.workspace_name.as_deref().unwrap_or(&text);
    Ok(Found::ToMake(Box::new(NewWorkspace {
        external_workspace_id: wanted.external_workspace_id.clone(),
        external_user_id: wanted.external_user_id.clone(),
        ..NewWorkspace::named(tenant, name, &text)
    })))
}

async fn default_of(tx: &mut Transaction<'static, Db>, tenant: TenantId) -> Result<Found, StoreError> {
    let (workspace, _) = default_place(tx, tenant).await?;
    let found = find_workspace(tx, tenant, By::Id, &workspace.to_string()).await?;
    Ok(found.map_or(Found::None, |found| Found::Workspace(Box::new(found))))
}

async fn make_project(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    workspace: WorkspaceId,
    wanted: &WantedPlace,
    slug: &str,
) -> Result<ProjectId, StoreError> {
    let name = wanted.project_name.as_deref().unwrap_or(slug);
    let new = NewProject {
        external_project_id: wanted.external_project_id.clone(),
        ..NewProject::named(tenant, workspace, name, slug)
    };
    insert_project(tx, &new, Timestamp::now()).await
}

/// Where a computer or snapshot belongs that is to be in `project`: there, or where what was in it went when it was
/// deleted a moment ago.
pub(crate) async fn lasting_place(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    workspace: WorkspaceId,
    project: ProjectId,
) -> Result<(WorkspaceId, ProjectId), StoreError> {
    let row = sqlx::query("SELECT workspace_id FROM projects WHERE id = $1")
        .bind(project.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    if let Some(row) = row {
        return Ok((parsed(&row, "workspace_id")?, project));
    }
    match find_workspace(tx, tenant, By::Id, &workspace.to_string()).await? {
        Some(_) => Ok((workspace, default_project(tx, tenant, workspace).await?)),
        None => default_place(tx, tenant).await,
    }
}

/// The tenant's default workspace and its default project.
async fn default_place(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
) -> Result<(WorkspaceId, ProjectId), StoreError> {
    let row = sqlx::query("SELECT id FROM workspaces WHERE tenant_id = $1 AND is_default = 1")
        .bind(tenant.to_string())
        .fetch_one(&mut **tx)
        .await?;
    let workspace = parsed(&row, "id")?;
    Ok((workspace, default_project(tx, tenant, workspace).await?))
}

/// Made on demand.
pub(crate) async fn default_project(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    workspace: WorkspaceId,
) -> Result<ProjectId, StoreError> {
    let row = sqlx::query("SELECT id FROM projects WHERE workspace_id = $1 AND is_default = 1")
        .bind(workspace.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    match row {
        Some(row) => parsed(&row, "id"),
        None => insert_project(tx, &NewProject::first_of(tenant, workspace), Timestamp::now()).await,
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum By {
    Id,
    Slug,
    Name,
    External,
}

pub(crate) async fn find_workspace(
    tx: &mut Transaction<'static, Db>,
    tenant: TenantId,
    by: By,
    value: &str,
) -> Result<Option<WorkspaceRecord>, StoreError> {
    let mut query = QueryBuilder::new("SELECT * FROM workspaces WHERE tenant_id = ");
    query.push_bind(tenant.to_string());
    query.push(match by {
        By::Id => " AND id = ",
        By::Slug => " AND slug = ",
        By::Name => " AND name = ",
        By::External => " AND external_workspace_id = ",
    });
    query.push_bind(value).push(" ORDER BY created_at, id LIMIT 1");
    let row = query.build().fetch_optional(&mut **tx).await?;
    row.as_ref().map(WorkspaceRecord::from_row).transpose()
}

async fn find_project(
    tx: &mut Transaction<'static, Db>,
    workspace: WorkspaceId,
    by: By,
    value: &str,
) -> Result<Option<ProjectRecord>, StoreError> {
    let mut query = QueryBuilder::new(PROJECT);
    query.push(" WHERE p.workspace_id = ").push_bind(workspace.to_string());
    query.push(match by {
        By::Id => " AND p.id = ",
        By::Slug => " AND p.slug = ",
        By::Name => " AND p.name = ",
        By::External => " AND p.external_project_id = ",
    });
    query.push_bind(value).push(" ORDER BY p.created_at, p.id LIMIT 1");
    let row = query.build().fetch_optional(&mut **tx).await?;
    row.as_ref().map(ProjectRecord::from_row).transpose()
}

pub(crate) async fn insert_workspace(
    tx: &mut Transaction<'static, Db>,
    new: &NewWorkspace,
    now: Timestamp,
) -> Result<WorkspaceId, StoreError> {
    let id = WorkspaceId::new();
    let slug = free_slug(tx, Table::Workspaces, &new.tenant.to_string(), &new.slug).await?;
    sqlx::query(
        "INSERT INTO workspaces (id, tenant_id, slug, name, description, metadata, external_workspace_id,
             external_user_id, is_default, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)",
    )
    .bind(id.to_string())
    .bind(new.tenant.to_string())
    .bind(&slug)
    .bind(&new.name)
    .bind(&new.description)
    .bind(to_json(&new.metadata)?)
    .bind(&new.external_workspace_id)
    .bind(&new.external_user_id)
    .bind(i64::from(new.is_default))
    .bind(now.as_micros())
    .execute(&mut **tx)
    .await?;
    if let Some(creator) = new.creator {
        put_member(tx, id, creator, WorkspaceRole::Owner, Some(creator), now).await?;
    }
    Ok(id)
}

pub(crate) async fn insert_project(
    tx: &mut Transaction<'static, Db>,
    new: &NewProject,
    now: Timestamp,
) -> Result<ProjectId, StoreError> {
    let id = ProjectId::new();
    let slug = free_slug(tx, Table::Projects, &new.workspace.to_string(), &new.slug).await?;
    sqlx::query(
        "INSERT INTO projects (id, workspace_id, slug, name, description, metadata, external_project_id, is_default,
             created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)",
    )
    .bind(id.to_string())
    .bind(new.workspace.to_string())
    .bind(&slug)
    .bind(&new.name)
    .bind(&new.description)
    .bind(to_json(&new.metadata)?)
    .bind(&new.external_project_id)
    .bind(i64::from(new.is_default))
    .bind(now.as_micros())
    .execute(&mut **tx)
    .await?;
    Ok(id)
}

#[derive(Debug, Clone, Copy)]
enum Table {
    Workspaces,
    Projects,
}

/// `wanted`, or the first of `wanted-2`, `wanted-3` and so on that nobody has.
async fn free_slug(
    tx: &mut Transaction<'static, Db>,
    table: Table,
    parent: &str,
    wanted: &str,
) -> Result<String, StoreError> {
    let text = match table {
        Table::Workspaces => "SELECT 1 FROM workspaces WHERE tenant_id = $1 AND slug = $2",
        Table::Projects => "SELECT 1 FROM projects WHERE workspace_id = $1 AND slug = $2",
    };
    let mut slug = wanted.to_owned();
    for number in 2.. {
        let taken = sqlx::query(text).bind(parent).bind(&slug).fetch_optional(&mut **tx).await?;
        if taken.is_none() {
            break;
        }
        slug = format!("{wanted}-{number}");
    }
    Ok(slug)
}

fn push_change(query: &mut QueryBuilder, change: &PlaceChange) -> Result<(), StoreError> {
    if let Some(name) = &change.name {
        query.push(", name = ").push_bind(name);
    }
    if let Some(slug) = &change.slug {
        query.push(", slug = ").push_bind(slug);
    }
    if let Some(description) = &change.description {
        query.push(", description = ").push_bind(description);
    }
    if let Some(metadata) = &change.metadata {
        query.push(", metadata = ").push_bind(to_json(metadata)?);
    }
    if let Some(settings) = &change.settings {
        query.push(", settings = ").push_bind(to_json(settings)?);
    }
    Ok(())
}

impl WorkspaceRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            tenant: parsed(row, "tenant_id")?,
            name: row.try_get("name")?,
            slug: row.try_get("slug")?,
            description: row.try_get("description")?,
            metadata: json(row, "metadata")?,
            settings: json(row, "settings")?,
            external_workspace_id: row.try_get("external_workspace_id")?,
            external_user_id: row.try_get("external_user_id")?,
            is_default: row.try_get::<i64, _>("is_default")? != 0,
            created_at: time(row, "created_at")?,
            updated_at: time(row, "updated_at")?,
        })
    }
}

impl ProjectRecord {
    fn from_row(row: &DbRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: parsed(row, "id")?,
            tenant: parsed(row, "tenant_id")?,
            workspace: parsed(row, "workspace_id")?,
            name: row.try_get("name")?,
            slug: row.try_get("slug")?,
            description: row.try_get("description")?,
            metadata: json(row, "metadata")?,
            settings: json(row, "settings")?,
            external_workspace_id: row.try_get("external_workspace_id")?,
            external_project_id: row.try_get("external_project_id")?,
            is_default: row.try_get::<i64, _>("is_default")? != 0,
            created_at: time(row, "created_at")?,
            updated_at: time(row, "updated_at")?,
        })
    }
}
