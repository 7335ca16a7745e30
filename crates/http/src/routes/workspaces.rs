//! Workspaces and their members.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use roost_api::{
    AddMember, ChangeMember, ComputerList, CreateWorkspace, Data, ErrorBody, ListComputers, ListProjects,
    PageQuery, Project, Removed, TransferComputers, TransferredComputers, UpdatePlace, UsageQuery,
    UsageReport, Workspace, WorkspaceList, WorkspaceMember, WorkspacePolicy, WorkspaceStats,
};
use roost_control::{MadeWorkspace, workspace_view};
use serde_json::{Map, Value};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, Query, RawBody};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, change, delete))
        .routes(routes!(settings))
        .routes(routes!(policy, set_policy, remove_policy))
        .routes(routes!(transfer))
        .routes(routes!(computers))
        .routes(routes!(projects))
        .routes(routes!(stats))
        .routes(routes!(usage))
        .routes(routes!(members, add_member))
        .routes(routes!(change_member, remove_member))
}

/// List the workspaces that the caller may look at
#[utoipa::path(get, path = "/workspaces", tag = "workspaces", params(PageQuery),
    responses((status = 200, body = WorkspaceList), (status = "default", body = ErrorBody)))]
async fn list(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<PageQuery>,
) -> Result<Json<WorkspaceList>, Refusal> {
    Ok(Json(app.control.workspaces(&caller, query).await?))
}

/// Make a workspace, or find the one with an `external_workspace_id`
#[utoipa::path(post, path = "/workspaces", tag = "workspaces", request_body = CreateWorkspace,
    responses(
        (status = 201, body = Workspace),
        (status = 200, description = "It was there already", body = Workspace),
        (status = "default", body = ErrorBody)
    ))]
async fn create(
    State(app): State<App>,
    Auth(caller): Auth,
    body: RawBody,
) -> Result<(StatusCode, Json<Workspace>), Refusal> {
    Ok(match app.control.create_workspace(&caller, body.parse()?).await? {
        MadeWorkspace::New(workspace) => (StatusCode::CREATED, Json(workspace)),
        MadeWorkspace::Reused(workspace) => (StatusCode::OK, Json(workspace)),
    })
}

/// Read a workspace
#[utoipa::path(get, path = "/workspaces/{wid}", tag = "workspaces", params(("wid" = String, Path)),
    responses((status = 200, body = Workspace), (status = "default", body = ErrorBody)))]
async fn get(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
) -> Result<Json<Workspace>, Refusal> {
    Ok(Json(workspace_view(&app.control.workspace(&caller, &wid).await?)))
}

/// Change a workspace
#[utoipa::path(patch, path = "/workspaces/{wid}", tag = "workspaces", params(("wid" = String, Path)),
    request_body = UpdatePlace,
    responses((status = 200, body = Workspace), (status = "default", body = ErrorBody)))]
async fn change(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
    body: RawBody,
) -> Result<Json<Workspace>, Refusal> {
    let found = app.control.managed_workspace(&caller, &wid).await?;
    Ok(Json(app.control.change_workspace(&found, body.parse()?).await?))
}

/// Delete a workspace; its computers go to the default one
#[utoipa::path(delete, path = "/workspaces/{wid}", tag = "workspaces", params(("wid" = String, Path)),
    responses((status = 200, body = Removed), (status = "default", body = ErrorBody)))]
async fn delete(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
) -> Result<Json<Removed>, Refusal> {
    let found = app.control.managed_workspace(&caller, &wid).await?;
    app.control.delete_workspace(&found).await?;
    Ok(Json(Removed::of(found.id.as_uuid())))
}

/// Replace the settings that clients keep with a workspace; limits of the policy among them hold, too
#[utoipa::path(put, path = "/workspaces/{wid}/settings", tag = "workspaces", params(("wid" = String, Path)),
    request_body = Object,
    responses((status = 200, body = Workspace), (status = "default", body = ErrorBody)))]
async fn settings(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
    body: RawBody,
) -> Result<Json<Workspace>, Refusal> {
    let found = app.control.managed_workspace(&caller, &wid).await?;
    let settings: Map<String, Value> = body.parse()?;
    Ok(Json(app.control.set_workspace_settings(&found, settings).await?))
}

/// What may be in a workspace
#[utoipa::path(get, path = "/workspaces/{wid}/policy", tag = "workspaces", params(("wid" = String, Path)),
    responses((status = 200, body = Data<WorkspacePolicy>), (status = "default", body = ErrorBody)))]
async fn policy(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
) -> Result<Json<Data<WorkspacePolicy>>, Refusal> {
    let found = app.control.workspace(&caller, &wid).await?;
    Ok(Json(Data { data: app.control.policy(&found).await? }))
}

/// Say what may be in a workspace; what there is stays
#[utoipa::path(put, path = "/workspaces/{wid}/policy", tag = "workspaces", params(("wid" = String, Path)),
    request_body = WorkspacePolicy,
    responses((status = 200, body = Data<WorkspacePolicy>), (status = "default", body = ErrorBody)))]
async fn set_policy(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
    body: RawBody,
) -> Result<Json<Data<WorkspacePolicy>>, Refusal> {
    let found = app.control.managed_workspace(&caller, &wid).await?;
    Ok(Json(Data { data: app.control.set_policy(&found, body.parse()?).await? }))
}

/// Let everything be in a workspace again
#[utoipa::path(delete, path = "/workspaces/{wid}/policy", tag = "workspaces", params(("wid" = String, Path)),
    responses((status = 200, body = Data<WorkspacePolicy>), (status = "default", body = ErrorBody)))]
async fn remove_policy(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
) -> Result<Json<Data<WorkspacePolicy>>, Refusal> {
    let found = app.control.managed_workspace(&caller, &wid).await?;
    Ok(Json(Data { data: app.control.set_policy(&found, WorkspacePolicy::default()).await? }))
}

/// Bring computers of a workspace to another one, all or none; their snapshots go with them
#[utoipa::path(post, path = "/workspaces/{wid}/transfer", tag = "workspaces", params(("wid" = String, Path)),
    request_body = TransferComputers,
    responses((status = 200, body = Data<TransferredComputers>), (status = "default", body = ErrorBody)))]
async fn transfer(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
    body: RawBody,
) -> Result<Json<Data<TransferredComputers>>, Refusal> {
    let found = app.control.managed_workspace(&caller, &wid).await?;
    Ok(Json(Data { data: app.control.transfer(&caller, &found, body.parse()?).await? }))
}

/// List the computers of a workspace
#[utoipa::path(get, path = "/workspaces/{wid}/computers", tag = "workspaces",
    params(("wid" = String, Path), ListComputers),
    responses((status = 200, body = ComputerList), (status = "default", body = ErrorBody)))]
async fn computers(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
    Query(query): Query<ListComputers>,
) -> Result<Json<ComputerList>, Refusal> {
    let found = app.control.workspace(&caller, &wid).await?;
    let query = ListComputers { workspace_id: Some(found.id.to_string()), ..query };
    Ok(Json(app.control.list(&caller, &query).await?))
}

/// List the projects of a workspace
#[utoipa::path(get, path = "/workspaces/{wid}/projects", tag = "workspaces", params(("wid" = String, Path)),
    responses((status = 200, body = Data<Vec<Project>>), (status = "default", body = ErrorBody)))]
async fn projects(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
) -> Result<Json<Data<Vec<Project>>>, Refusal> {
    let query = ListProjects { workspace_id: Some(wid) };
    Ok(Json(Data { data: app.control.projects(&caller, query).await? }))
}

/// How much there is in a workspace
#[utoipa::path(get, path = "/workspaces/{wid}/stats", tag = "workspaces", params(("wid" = String, Path)),
    responses((status = 200, body = Data<WorkspaceStats>), (status = "default", body = ErrorBody)))]
async fn stats(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
) -> Result<Json<Data<WorkspaceStats>>, Refusal> {
    let found = app.control.workspace(&caller, &wid).await?;
    Ok(Json(Data { data: app.control.workspace_stats(&found).await? }))
}

/// What the computers of a workspace used in a period
#[utoipa::path(get, path = "/workspaces/{wid}/usage", tag = "workspaces",
    params(("wid" = String, Path), UsageQuery),
    responses((status = 200, body = Data<UsageReport>), (status = "default", body = ErrorBody)))]
async fn usage(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
    Query(query): Query<UsageQuery>,
) -> Result<Json<Data<UsageReport>>, Refusal> {
    let found = app.control.workspace(&caller, &wid).await?;
    let query = UsageQuery { workspace_id: Some(found.id.to_string()), ..query };
    Ok(Json(Data { data: app.control.usage_report(&caller, query).await? }))
}

/// List the members of a workspace
#[utoipa::path(get, path = "/workspaces/{wid}/members", tag = "workspaces", params(("wid" = String, Path)),
    responses((status = 200, body = Data<Vec<WorkspaceMember>>), (status = "default", body = ErrorBody)))]
async fn members(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
) -> Result<Json<Data<Vec<WorkspaceMember>>>, Refusal> {
    let found = app.control.workspace(&caller, &wid).await?;
    Ok(Json(Data { data: app.control.members(&found).await? }))
}

/// Make a user of the tenant a member, or give a member another role
#[utoipa::path(post, path = "/workspaces/{wid}/members", tag = "workspaces", params(("wid" = String, Path)),
    request_body = AddMember,
    responses((status = 201, body = Data<WorkspaceMember>), (status = "default", body = ErrorBody)))]
async fn add_member(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
    body: RawBody,
) -> Result<(StatusCode, Json<Data<WorkspaceMember>>), Refusal> {
    let found = app.control.managed_workspace(&caller, &wid).await?;
    let data = app.control.put_member(&caller, &found, body.parse()?).await?;
    Ok((StatusCode::CREATED, Json(Data { data })))
}

/// Give a member another role
#[utoipa::path(patch, path = "/workspaces/{wid}/members/{user_id}", tag = "workspaces",
    params(("wid" = String, Path), ("user_id" = String, Path)), request_body = ChangeMember,
    responses((status = 200, body = Data<WorkspaceMember>), (status = "default", body = ErrorBody)))]
async fn change_member(
    State(app): State<App>,
    Auth(caller): Auth,
    Path((wid, user)): Path<(String, String)>,
    body: RawBody,
) -> Result<Json<Data<WorkspaceMember>>, Refusal> {
    let found = app.control.managed_workspace(&caller, &wid).await?;
    let user = app.control.require_member(&found, &user).await?;
    let ChangeMember { role } = body.parse()?;
    let request = AddMember { user_id: Some(user.to_string()), email: None, role: Some(role) };
    Ok(Json(Data { data: app.control.put_member(&caller, &found, request).await? }))
}

/// Remove a member
#[utoipa::path(delete, path = "/workspaces/{wid}/members/{user_id}", tag = "workspaces",
    params(("wid" = String, Path), ("user_id" = String, Path)),
    responses((status = 200, body = Removed), (status = "default", body = ErrorBody)))]
async fn remove_member(
    State(app): State<App>,
    Auth(caller): Auth,
    Path((wid, user)): Path<(String, String)>,
) -> Result<Json<Removed>, Refusal> {
    let found = app.control.managed_workspace(&caller, &wid).await?;
    let user = app.control.require_member(&found, &user).await?;
    app.control.remove_member(&found, user).await?;
    Ok(Json(Removed::of(user.as_uuid())))
}
