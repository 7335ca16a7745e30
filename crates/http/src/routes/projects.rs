//! Projects: groups of computers inside a workspace.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use roost_api::{
    CreateProject, Data, ErrorBody, ListProjects, MoveProject, Project, ProjectList, ProjectSummary, Removed,
    UpdatePlace,
};
use roost_control::project_view;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, Query, RawBody};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, change, delete))
        .routes(routes!(relocate))
        .routes(routes!(summary))
}

/// List the projects that the caller may look at
#[utoipa::path(get, path = "/projects", tag = "workspaces", params(ListProjects),
    responses((status = 200, body = ProjectList), (status = "default", body = ErrorBody)))]
async fn list(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<ListProjects>,
) -> Result<Json<ProjectList>, Refusal> {
    let data = app.control.projects(&caller, query).await?;
    Ok(Json(ProjectList { total: data.len() as u64, data }))
}

/// Make a project in a workspace
#[utoipa::path(post, path = "/projects", tag = "workspaces", request_body = CreateProject,
    responses((status = 201, body = Data<Project>), (status = "default", body = ErrorBody)))]
async fn create(
    State(app): State<App>,
    Auth(caller): Auth,
    body: RawBody,
) -> Result<(StatusCode, Json<Data<Project>>), Refusal> {
    let data = app.control.create_project(&caller, body.parse()?).await?;
    Ok((StatusCode::CREATED, Json(Data { data })))
}

/// Read a project
#[utoipa::path(get, path = "/projects/{pid}", tag = "workspaces", params(("pid" = String, Path)),
    responses((status = 200, body = Data<Project>), (status = "default", body = ErrorBody)))]
async fn get(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(pid): Path<String>,
) -> Result<Json<Data<Project>>, Refusal> {
    Ok(Json(Data { data: project_view(&app.control.project(&caller, &pid).await?) }))
}

/// Change a project
#[utoipa::path(patch, path = "/projects/{pid}", tag = "workspaces", params(("pid" = String, Path)),
    request_body = UpdatePlace,
    responses((status = 200, body = Data<Project>), (status = "default", body = ErrorBody)))]
async fn change(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(pid): Path<String>,
    body: RawBody,
) -> Result<Json<Data<Project>>, Refusal> {
    let found = app.control.changeable_project(&caller, &pid).await?;
    Ok(Json(Data { data: app.control.change_project(&found, body.parse()?).await? }))
}

/// Delete a project; its computers go to the default one of the workspace
#[utoipa::path(delete, path = "/projects/{pid}", tag = "workspaces", params(("pid" = String, Path)),
    responses((status = 200, body = Removed), (status = "default", body = ErrorBody)))]
async fn delete(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(pid): Path<String>,
) -> Result<Json<Removed>, Refusal> {
    let found = app.control.changeable_project(&caller, &pid).await?;
    app.control.delete_project(&found).await?;
    Ok(Json(Removed::of(found.id.as_uuid())))
}

/// Move a project with its computers to another workspace
#[utoipa::path(post, path = "/projects/{pid}/move", tag = "workspaces", params(("pid" = String, Path)),
    request_body = MoveProject,
    responses((status = 200, body = Data<Project>), (status = "default", body = ErrorBody)))]
async fn relocate(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(pid): Path<String>,
    body: RawBody,
) -> Result<Json<Data<Project>>, Refusal> {
    let found = app.control.changeable_project(&caller, &pid).await?;
    let MoveProject { target_workspace_id } = body.parse()?;
    Ok(Json(Data { data: app.control.move_project(&caller, &found, &target_workspace_id).await? }))
}

/// A project and how many computers it has
#[utoipa::path(get, path = "/projects/{pid}/summary", tag = "workspaces", params(("pid" = String, Path)),
    responses((status = 200, body = Data<ProjectSummary>), (status = "default", body = ErrorBody)))]
async fn summary(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(pid): Path<String>,
) -> Result<Json<Data<ProjectSummary>>, Refusal> {
    let found = app.control.project(&caller, &pid).await?;
    Ok(Json(Data { data: app.control.project_summary(&found).await? }))
}
