//! Workspaces and projects: where in a tenant computers are, and who is a member.

use roost_api::{
    AddMember, ApiError, ComputerCounts, CreateComputer, CreateProject, CreateWorkspace, ErrorCode,
    ListProjects, PageMeta, PageQuery, Project, ProjectId, ProjectSummary, UpdatePlace, UserId, Workspace,
    WorkspaceId, WorkspaceList, WorkspaceMember, WorkspacePolicy, WorkspaceRole, WorkspaceStats,
};
use roost_store::{
    Caller, ComputerRecord, MemberRecord, NewComputer, NewProject, NewWorkspace, NotPlaced, PlaceChange,
    PlaceInserted, ProjectRecord, Removal, WantedPlace, WorkflowRecord, WorkspaceRecord,
};
use serde_json::{Map, Value, json};

use crate::access::{self, Denied};
use crate::computers::{check_name, metadata};
use crate::slug::slugify;
use crate::{Control, Failure};

const LONGEST_SLUG: usize = 100;
const LONGEST_TEXT: usize = 2000;
const LONGEST_EXTERNAL_ID: usize = 255;
pub(crate) const MOST_SETTINGS: usize = 16 * 1024;

/// Whether a workspace was made.
#[derive(Debug)]
pub enum MadeWorkspace {
    New(Workspace),
    /// It was there, with the external id that was asked for.
    Reused(Workspace),
}

impl Control {
    /// Makes a computer where a request wants it. What it names by slug or external id is made with the computer where it
    /// is not there.
    pub(crate) async fn insert_where_wanted(
        &self,
        caller: &Caller,
        wanted: &WantedPlace,
        build: impl FnOnce(WorkspaceId, ProjectId, &WorkspacePolicy) -> NewComputer,
    ) -> Result<(ComputerRecord, WorkflowRecord), Failure> {
        let may_make = access::may_make_workspaces(caller);
        let may_use = |workspace: &WorkspaceRecord| access::may_use(caller, workspace);
        let whose = (caller.tenant, caller.user);
        let inserted = self.inner.store.insert_computer_at(whose, wanted, may_make, may_use, build).await?;
        inserted.map_err(|why| match why {
            NotPlaced::NoWorkspace => Denied::NotFound.about("workspace"),
            NotPlaced::NoProject => Denied::NotFound.about("project"),
            NotPlaced::ProjectElsewhere => {
                ApiError::field("project_id", "the project is not in the workspace").into()
            }
            NotPlaced::Forbidden => forbidden(),
        })
    }

    pub async fn workspaces(&self, caller: &Caller, query: PageQuery) -> Result<WorkspaceList, Failure> {
        let default = self.inner.store.default_workspace(caller.tenant).await?;
        let only = access::workspaces(caller, default.id)?;
        let found = self.inner.store.workspaces(caller.tenant, only.as_deref()).await?;
        let (page, size) = query.page();
        let skip = usize::try_from(u64::from(page - 1) * u64::from(size)).unwrap_or(usize::MAX);
        let rows = found.iter().skip(skip).take(size as usize).map(workspace_view);
        Ok(WorkspaceList { data: rows.collect(), meta: PageMeta::of(page, size, found.len() as u64) })
    }

    /// The workspace if the caller may look at it.
    pub async fn workspace(&self, caller: &Caller, id: &str) -> Result<WorkspaceRecord, Failure> {
        let missing = || Denied::NotFound.about("workspace");
        let id = id.parse().map_err(|_| missing())?;
        let found = self.inner.store.workspace(caller.tenant, id).await?.ok_or_else(missing)?;
        if caller.confinement.external_user.is_some() {
            return Err(access::confined());
        }
        access::standing(caller, &found).map_err(|denied| denied.about("workspace"))?;
        Ok(found)
    }

    /// The workspace if the caller administers it.
    pub async fn managed_workspace(&self, caller: &Caller, id: &str) -> Result<WorkspaceRecord, Failure> {
        let found = self.workspace(caller, id).await?;
        match access::standing(caller, &found) {
            Ok(WorkspaceRole::Owner | WorkspaceRole::Admin) => Ok(found),
            Ok(WorkspaceRole::Member | WorkspaceRole::Viewer) => Err(Failure::new(
                ErrorCode::WorkspaceForbidden,
                "only owners and administrators of the workspace may",
            )),
            Err(denied) => Err(denied.about("workspace")),
        }
    }

    pub async fn create_workspace(
        &self,
        caller: &Caller,
        request: CreateWorkspace,
    ) -> Result<MadeWorkspace, Failure> {
        if !access::may_make_workspaces(caller) {
            return Err(forbidden());
        }
        let name = required_name(request.name.as_deref())?;
        let given = slug("slug", request.slug.as_deref())?;
        let new = NewWorkspace {
            description: description(request.description)?,
            metadata: metadata(request.metadata)?,
            external_workspace_id: external_id("external_workspace_id", request.external_workspace_id)?,
            external_user_id: external_id("external_user_id", request.external_user_id)?,
            creator: Some(caller.user),
            ..NewWorkspace::named(caller.tenant, &name, given.as_deref().unwrap_or(&slugify(&name)))
        };
        let unique_name = request.allow_duplicate_name != Some(true);
        match self.inner.store.create_workspace(&new, given.is_some(), unique_name).await? {
            PlaceInserted::New(record) => Ok(MadeWorkspace::New(workspace_view(&record))),
            PlaceInserted::Existing(record) => {
                access::standing(caller, &record).map_err(|_| forbidden())?;
                let is_asked_for = new.external_workspace_id.is_some()
                    && record.external_workspace_id == new.external_workspace_id;
                if is_asked_for {
                    let view = Workspace { reused: Some(true), ..workspace_view(&record) };
                    return Ok(MadeWorkspace::Reused(view));
                }
                Err(name_exists(&record))
            }
            PlaceInserted::Missing => Err(Denied::NotFound.about("workspace")),
        }
    }

    pub async fn change_workspace(
        &self,
        record: &WorkspaceRecord,
        request: UpdatePlace,
    ) -> Result<Workspace, Failure> {
        if request.slug.is_some() {
            return Err(ApiError::field("slug", "the slug of a workspace does not change").into());
        }
        self.put_workspace(record, place_change(request)?).await
    }

    /// Replaces what is kept for clients. What bears the name of a limit of the policy is one; the rest means nothing to
    /// the server.
    pub async fn set_workspace_settings(
        &self,
        record: &WorkspaceRecord,
        settings: Map<String, Value>,
    ) -> Result<Workspace, Failure> {
        WorkspacePolicy::among(&settings).map_err(|error| ApiError::field("settings", error.to_string()))?;
        if Value::Object(settings.clone()).to_string().len() > MOST_SETTINGS {
            return Err(ApiError::field("settings", format!("larger than {MOST_SETTINGS} bytes")).into());
        }
        self.put_workspace(record, PlaceChange { settings: Some(settings), ..PlaceChange::default() }).await
    }

    async fn put_workspace(
        &self,
        record: &WorkspaceRecord,
        change: PlaceChange,
    ) -> Result<Workspace, Failure> {
        match self.inner.store.change_workspace(record.tenant, record.id, &change, true).await? {
            PlaceInserted::New(changed) => Ok(workspace_view(&changed)),
            PlaceInserted::Existing(other) => Err(name_exists(&other)),
            PlaceInserted::Missing => Err(Denied::NotFound.about("workspace")),
        }
    }

    /// Its computers go to the default workspace.
    pub async fn delete_workspace(&self, record: &WorkspaceRecord) -> Result<(), Failure> {
        let removal = self.inner.store.delete_workspace(record.tenant, record.id).await?;
        self.inner.callers.changed();
        removed(removal, "workspace")
    }

    pub async fn workspace_stats(&self, record: &WorkspaceRecord) -> Result<WorkspaceStats, Failure> {
        let store = &self.inner.store;
        Ok(WorkspaceStats {
            computers: store.count_in_place(record.id, None).await?,
            projects: store.projects(record.tenant, Some(&[record.id])).await?.len() as u64,
            members: store.members(record.id).await?.len() as u64,
        })
    }

    pub async fn members(&self, record: &WorkspaceRecord) -> Result<Vec<WorkspaceMember>, Failure> {
        Ok(self.inner.store.members(record.id).await?.iter().map(member_view).collect())
    }

    /// Makes a user of the tenant a member, or gives a member another role.
    pub async fn put_member(
        &self,
        caller: &Caller,
        record: &WorkspaceRecord,
        request: AddMember,
    ) -> Result<WorkspaceMember, Failure> {
        let missing = || Failure::new(ErrorCode::NotFound, "user not found");
        let user = match (request.user_id, request.email) {
            (Some(id), _) => id.parse().map_err(|_| missing())?,
            (None, Some(email)) => {
                let users = self.inner.store.users(record.tenant).await?;
                let found = users.iter().find(|user| user.email.as_deref() == Some(email.trim()));
                found.map(|user| user.id).ok_or_else(missing)?
            }
            (None, None) => return Err(ApiError::field("user_id", "give user_id or email").into()),
        };
        let role = request.role.unwrap_or(WorkspaceRole::Member);
        let store = &self.inner.store;
        let member = store.put_member(record.tenant, record.id, user, role, caller.user).await?;
        self.inner.callers.changed();
        member.as_ref().map(member_view).ok_or_else(missing)
    }

    /// 404 for who is no member.
    pub async fn require_member(&self, record: &WorkspaceRecord, user: &str) -> Result<UserId, Failure> {
        let members = self.inner.store.members(record.id).await?;
        let found = members.iter().find(|member| member.user.to_string() == user);
        found.map(|member| member.user).ok_or_else(|| Denied::NotFound.about("member"))
    }

    pub async fn remove_member(&self, record: &WorkspaceRecord, user: UserId) -> Result<(), Failure> {
        let removed = self.inner.store.remove_member(record.id, user).await?;
        self.inner.callers.changed();
        if removed { Ok(()) } else { Err(Denied::NotFound.about("member")) }
    }

    pub async fn projects(&self, caller: &Caller, query: ListProjects) -> Result<Vec<Project>, Failure> {
        let only = match query.workspace_id.as_deref() {
            Some(id) => Some(vec![self.workspace(caller, id).await?.id]),
            None => {
                let default = self.inner.store.default_workspace(caller.tenant).await?;
                access::workspaces(caller, default.id)?
            }
        };
        let found = self.inner.store.projects(caller.tenant, only.as_deref()).await?;
        Ok(found.iter().map(project_view).collect())
    }

    /// The project, and whether the caller may change it.
    pub async fn project(&self, caller: &Caller, id: &str) -> Result<ProjectRecord, Failure> {
        let missing = || Denied::NotFound.about("project");
        let id = id.parse().map_err(|_| missing())?;
        let found = self.inner.store.project(caller.tenant, id).await?.ok_or_else(missing)?;
        self.workspace(caller, &found.workspace.to_string()).await?;
        Ok(found)
    }

    /// The project if the caller may change it: whoever may put computers into its workspace.
    pub async fn changeable_project(&self, caller: &Caller, id: &str) -> Result<ProjectRecord, Failure> {
        let found = self.project(caller, id).await?;
        self.usable_workspace(caller, &found.workspace.to_string()).await?;
        Ok(found)
    }

    pub(crate) async fn usable_workspace(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<WorkspaceRecord, Failure> {
        let found = self.workspace(caller, id).await?;
        if access::may_use(caller, &found) { Ok(found) } else { Err(forbidden()) }
    }

    pub async fn create_project(&self, caller: &Caller, request: CreateProject) -> Result<Project, Failure> {
        let name = required_name(request.name.as_deref())?;
        let given = slug("slug", request.slug.as_deref())?;
        let store = &self.inner.store;
        let workspace_slug = slug("workspace_slug", request.workspace_slug.as_deref())?;
        let external = external_id("external_workspace_id", request.external_workspace_id.clone())?;
        let found = match (&request.workspace_id, &workspace_slug, &external) {
            (Some(id), _, _) => return self.project_in(caller, id, name, given, request.clone()).await,
            (None, Some(slug), _) => store.workspace_by_slug(caller.tenant, slug).await?,
            (None, None, Some(external)) => store.workspace_by_external_id(caller.tenant, external).await?,
            (None, None, None) => Some(store.default_workspace(caller.tenant).await?),
        };
        let found = found.ok_or_else(|| Denied::NotFound.about("workspace"))?;
        self.project_in(caller, &found.id.to_string(), name, given, request).await
    }

    async fn project_in(
        &self,
        caller: &Caller,
        workspace: &str,
        name: String,
        given: Option<String>,
        request: CreateProject,
    ) -> Result<Project, Failure> {
        let workspace = self.usable_workspace(caller, workspace).await?;
        let slug = given.clone().unwrap_or_else(|| slugify(&name));
        let new = NewProject {
            description: description(request.description)?,
            metadata: metadata(request.metadata)?,
            external_project_id: external_id("external_project_id", request.external_project_id)?,
            ..NewProject::named(caller.tenant, workspace.id, &name, &slug)
        };
        match self.inner.store.create_project(&new, given.is_some()).await? {
            PlaceInserted::New(record) => Ok(project_view(&record)),
            PlaceInserted::Existing(record) => Err(slug_taken(&record)),
            PlaceInserted::Missing => Err(Denied::NotFound.about("workspace")),
        }
    }

    pub async fn change_project(
        &self,
        record: &ProjectRecord,
        request: UpdatePlace,
    ) -> Result<Project, Failure> {
        let mut change = place_change(request.clone())?;
        change.slug = slug("slug", request.slug.as_deref())?;
        match self.inner.store.change_project(record, &change).await? {
            PlaceInserted::New(changed) => Ok(project_view(&changed)),
            PlaceInserted::Existing(other) => Err(slug_taken(&other)),
            PlaceInserted::Missing => Err(Denied::NotFound.about("project")),
        }
    }

    /// Its computers go to the default project of the workspace.
    pub async fn delete_project(&self, record: &ProjectRecord) -> Result<(), Failure> {
        removed(self.inner.store.delete_project(record).await?, "project")
    }

    pub async fn move_project(
        &self,
        caller: &Caller,
        record: &ProjectRecord,
        target: &str,
    ) -> Result<Project, Failure> {
        let target = self.usable_workspace(caller, target).await?;
        // Whoever is in the target sees the computers then; only who administers the source gives them away.
        self.managed_workspace(caller, &record.workspace.to_string()).await?;
        if record.is_default {
            return removed(Removal::IsDefault, "project").map(|()| project_view(record));
        }
        match self.inner.store.move_project(record, target.id).await? {
            PlaceInserted::New(moved) => {
                // Whoever has one of its computers open may not be let into the target.
                self.inner.callers.changed();
                Ok(project_view(&moved))
            }
            PlaceInserted::Existing(other) => Err(slug_taken(&other)),
            PlaceInserted::Missing => Err(Denied::NotFound.about("project")),
        }
    }

    pub async fn project_summary(&self, record: &ProjectRecord) -> Result<ProjectSummary, Failure> {
        let computers: ComputerCounts =
            self.inner.store.count_in_place(record.workspace, Some(record.id)).await?;
        Ok(ProjectSummary { project: project_view(record), computers })
    }
}

/// Where the computer goes that a request asks for.
pub(crate) fn wanted_place(caller: &Caller, request: &CreateComputer) -> Result<WantedPlace, ApiError> {
    Ok(WantedPlace {
        workspace: request.workspace_id.map(WorkspaceId::from),
        workspace_slug: slug("workspace_slug", request.workspace_slug.as_deref())?,
        workspace_name: name(request.workspace_name.as_deref())?,
        project: request.project_id.map(ProjectId::from),
        project_slug: slug("project_slug", request.project_slug.as_deref())?,
        project_name: name(request.project_name.as_deref())?,
        external_workspace_id: request.external_workspace_id.clone(),
        external_user_id: request.external_user_id.clone(),
        external_project_id: request.external_project_id.clone(),
        // A confined key has its own default.
        otherwise: match caller.confinement.workspace {
            Some(only) => Some(only.to_string()),
            None => caller.default_workspace.clone(),
        },
    })
}

pub fn workspace_view(record: &WorkspaceRecord) -> Workspace {
    Workspace {
        id: record.id,
        tenant_id: record.tenant,
        name: record.name.clone(),
        slug: record.slug.clone(),
        description: record.description.clone(),
        metadata: record.metadata.clone(),
        settings: record.settings.clone(),
        external_workspace_id: record.external_workspace_id.clone(),
        external_user_id: record.external_user_id.clone(),
        is_default: record.is_default,
        created_at: record.created_at,
        updated_at: record.updated_at,
        reused: None,
    }
}

pub fn project_view(record: &ProjectRecord) -> Project {
    Project {
        id: record.id,
        tenant_id: record.tenant,
        workspace_id: record.workspace,
        external_workspace_id: record.external_workspace_id.clone(),
        external_project_id: record.external_project_id.clone(),
        name: record.name.clone(),
        slug: record.slug.clone(),
        description: record.description.clone(),
        metadata: record.metadata.clone(),
        settings: record.settings.clone(),
        is_default: record.is_default,
        created_at: record.created_at,
        updated_at: record.updated_at,
    }
}

fn member_view(record: &MemberRecord) -> WorkspaceMember {
    WorkspaceMember {
        workspace_id: record.workspace,
        user_id: record.user,
        email: record.email.clone(),
        name: record.name.clone(),
        avatar_url: None,
        role: record.role,
        joined_at: record.joined_at,
        added_by: record.added_by,
    }
}

fn place_change(request: UpdatePlace) -> Result<PlaceChange, Failure> {
    let name = match request.name.as_deref() {
        Some(name) => Some(required_name(Some(name))?),
        None => None,
    };
    let description = request.description.map(description).transpose()?;
    let metadata = request.metadata.map(|map| metadata(Some(map))).transpose()?;
    Ok(PlaceChange { name, slug: None, description, metadata, settings: None })
}

fn removed(removal: Removal, thing: &str) -> Result<(), Failure> {
    match removal {
        Removal::Removed => Ok(()),
        Removal::Missing => Err(Denied::NotFound.about(thing)),
        Removal::IsDefault => Err(Failure::new(
            ErrorCode::ResourceState,
            format!("the default {thing} stays where it is: computers that name none go there"),
        )),
    }
}

fn forbidden() -> Failure {
    Failure::new(ErrorCode::WorkspaceForbidden, "no access to this workspace")
}

fn name_exists(existing: &WorkspaceRecord) -> Failure {
    let message = format!(
        "a workspace has the name {:?} and the slug {:?} already; use that, or allow_duplicate_name",
        existing.name, existing.slug
    );
    let details = json!({ "existing": { "id": existing.id, "name": existing.name, "slug": existing.slug } });
    ApiError::new(ErrorCode::WorkspaceNameExists, message).with_details(details).into()
}

fn slug_taken(existing: &ProjectRecord) -> Failure {
    let message = format!(
        "the project {:?} of the workspace has this slug or external_project_id already",
        existing.name
    );
    let details = json!({ "existing": { "id": existing.id, "name": existing.name, "slug": existing.slug } });
    ApiError::new(ErrorCode::NameTaken, message).with_details(details).into()
}

fn name(text: Option<&str>) -> Result<Option<String>, ApiError> {
    let name = text.map(str::trim).filter(|name| !name.is_empty());
    name.map(|name| check_name(name).map(|()| name.to_owned())).transpose()
}

pub(crate) fn required_name(text: Option<&str>) -> Result<String, ApiError> {
    name(text)?.ok_or_else(|| ApiError::new(ErrorCode::MissingParam, "name is required"))
}

/// A slug that a caller chose.
pub(crate) fn slug(field: &str, text: Option<&str>) -> Result<Option<String>, ApiError> {
    let Some(slug) = text.map(str::trim).filter(|slug| !slug.is_empty()) else { return Ok(None) };
    let fits = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    if slug.len() > LONGEST_SLUG || !slug.chars().all(fits) {
        let problem = format!("not 1 to {LONGEST_SLUG} letters, digits, dots, underscores and hyphens");
        return Err(ApiError::field(field, problem));
    }
    Ok(Some(slug.to_owned()))
}

/// An id of the caller's own: any text of a line.
pub(crate) fn external_id(field: &str, text: Option<String>) -> Result<Option<String>, ApiError> {
    let Some(id) = text.filter(|id| !id.is_empty()) else { return Ok(None) };
    if id.len() > LONGEST_EXTERNAL_ID || id.chars().any(char::is_control) {
        let problem = format!("longer than {LONGEST_EXTERNAL_ID} bytes, or with control characters");
        return Err(ApiError::field(field, problem));
    }
    Ok(Some(id))
}

pub(crate) fn description(text: Option<String>) -> Result<Option<String>, ApiError> {
    if text.as_ref().is_some_and(|text| text.chars().count() > LONGEST_TEXT) {
        return Err(ApiError::field("description", format!("longer than {LONGEST_TEXT} characters")));
    }
    Ok(text)
}
