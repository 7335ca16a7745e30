//! Computers: CRUD and lifecycle.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use roost_api::{
    ApiError, CloneComputer, Computer, ComputerList, ComputerWithData, CreateComputer, CreateQuery, Deleted,
    ErrorBody, ListComputers, MoveComputer, Readiness, ResizeComputer, StartComputer, UpdateComputer,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, Query, RawBody, Target};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, patch, put, delete))
        .routes(routes!(start))
        .routes(routes!(stop))
        .routes(routes!(restart))
        .routes(routes!(clone))
        .routes(routes!(resize, patch_size))
        .routes(routes!(relocate))
        .routes(routes!(readiness))
}

/// Create a computer and begin its provisioning
#[utoipa::path(post, path = "/computers", tag = "computers", params(CreateQuery), request_body = CreateComputer,
    responses(
        (status = 201, body = Computer, headers(("x-miosa-wait-outcome" = String,
            description = "`ready`, `error` or `timeout`, where `wait` was asked for"))),
        (status = 503, description = "There is no room for it", body = ErrorBody),
        (status = "default", body = ErrorBody)
    ))]
async fn create(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<CreateQuery>,
    body: RawBody,
) -> Result<(StatusCode, HeaderMap, Json<Computer>), Refusal> {
    let wait = query.wait.as_deref().map(wait_budget).transpose()?.flatten();
    let created = app.control.create(&caller, body.parse()?).await?;
    let mut headers = HeaderMap::new();
    let mut record = created.record.clone();
    if let Some(budget) = wait {
        let ended = tokio::time::timeout(budget, created.ended()).await;
        record = app.control.get(&caller, record.id).await?;
        let outcome = match ended {
            Ok(true) => "ready",
            Ok(false) => "error",
            Err(_) => "timeout",
        };
        headers.insert("x-miosa-wait-outcome", HeaderValue::from_static(outcome));
    }
    Ok((StatusCode::CREATED, headers, Json(app.control.computer_view(&record))))
}

fn wait_budget(text: &str) -> Result<Option<Duration>, ApiError> {
    match text {
        "true" => Ok(Some(Duration::from_secs(30))),
        "" | "false" => Ok(None),
        seconds => match seconds.parse::<u64>() {
            Ok(seconds) => Ok(Some(Duration::from_secs(seconds.clamp(2, 120)))),
            Err(_) => Err(ApiError::field("wait", "neither true, false nor a number of seconds")),
        },
    }
}

/// List the computers of the caller's tenant
#[utoipa::path(get, path = "/computers", tag = "computers", params(ListComputers),
    responses((status = 200, body = ComputerList), (status = "default", body = ErrorBody)))]
async fn list(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<ListComputers>,
) -> Result<Json<ComputerList>, Refusal> {
    Ok(Json(app.control.list(&caller, &query).await?))
}

/// Read a computer
#[utoipa::path(get, path = "/computers/{id}", tag = "computers", params(("id" = String, Path)),
    responses((status = 200, body = Computer), (status = "default", body = ErrorBody)))]
async fn get(State(app): State<App>, Target(record): Target) -> Json<Computer> {
    Json(app.control.computer_view(&record))
}

/// Change a computer
#[utoipa::path(patch, path = "/computers/{id}", tag = "computers", params(("id" = String, Path)),
    request_body = UpdateComputer,
    responses((status = 200, body = Computer), (status = "default", body = ErrorBody)))]
async fn patch(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<Computer>, Refusal> {
    let record = app.control.update(record.id, body.parse()?).await?;
    Ok(Json(app.control.computer_view(&record)))
}

/// Change a computer (the same as PATCH)
#[utoipa::path(put, path = "/computers/{id}", tag = "computers", params(("id" = String, Path)),
    request_body = UpdateComputer,
    responses((status = 200, body = Computer), (status = "default", body = ErrorBody)))]
async fn put(state: State<App>, target: Target, body: RawBody) -> Result<Json<Computer>, Refusal> {
    patch(state, target, body).await
}

/// Destroy a computer with its disk, for good
#[utoipa::path(delete, path = "/computers/{id}", tag = "computers", params(("id" = String, Path)),
    responses((status = 200, body = Deleted), (status = "default", body = ErrorBody)))]
async fn delete(State(app): State<App>, Target(record): Target) -> Result<Json<Deleted>, Refusal> {
    app.control.delete(record.id).await?;
    Ok(Json(Deleted { id: record.id, deleted: true }))
}

/// Start a stopped or failed computer; answers when it runs
#[utoipa::path(post, path = "/computers/{id}/start", tag = "computers", params(("id" = String, Path)),
    request_body = Option<StartComputer>,
    responses((status = 200, body = Computer),
        (status = 503, description = "There is no room for it", body = ErrorBody),
        (status = "default", body = ErrorBody)))]
async fn start(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<Computer>, Refusal> {
    let record = app.control.start_with(record.id, body.parse()?).await?;
    Ok(Json(app.control.computer_view(&record)))
}

/// Stop a running computer; answers when it is off. Disk and memory are kept: a start continues there
#[utoipa::path(post, path = "/computers/{id}/stop", tag = "computers", params(("id" = String, Path)),
    responses((status = 200, body = Computer), (status = "default", body = ErrorBody)))]
async fn stop(State(app): State<App>, Target(record): Target) -> Result<Json<Computer>, Refusal> {
    let record = app.control.stop(record.id).await?;
    Ok(Json(app.control.computer_view(&record)))
}

/// Reboot a running computer; answers when it runs again
#[utoipa::path(post, path = "/computers/{id}/restart", tag = "computers", params(("id" = String, Path)),
    responses((status = 200, body = Computer),
        (status = 503, description = "There is no room for it", body = ErrorBody),
        (status = "default", body = ErrorBody)))]
async fn restart(State(app): State<App>, Target(record): Target) -> Result<Json<Computer>, Refusal> {
    let record = app.control.restart(record.id).await?;
    Ok(Json(app.control.computer_view(&record)))
}

/// Clone a running computer with its memory; it goes on at once
#[utoipa::path(post, path = "/computers/{id}/clone", tag = "computers", params(("id" = String, Path)),
    request_body = Option<CloneComputer>,
    responses((status = 201, body = ComputerWithData),
        (status = 503, description = "There is no room for it", body = ErrorBody),
        (status = "default", body = ErrorBody)))]
async fn clone(
    State(app): State<App>,
    Auth(caller): Auth,
    Target(record): Target,
    body: RawBody,
) -> Result<(StatusCode, Json<ComputerWithData>), Refusal> {
    app.control.require_running(&record)?;
    let clone = app.control.clone_computer(&caller, record.id, body.parse()?).await?;
    let computer = app.control.computer_view(&clone.record);
    Ok((StatusCode::CREATED, Json(ComputerWithData { data: computer.clone(), computer })))
}

/// Give a stopped computer another size; its next start boots, with every file
#[utoipa::path(post, path = "/computers/{id}/resize", tag = "computers", params(("id" = String, Path)),
    request_body = ResizeComputer,
    responses((status = 200, body = ComputerWithData), (status = "default", body = ErrorBody)))]
async fn resize(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<ComputerWithData>, Refusal> {
    app.control.require_stopped(&record, "resize")?;
    let record = app.control.resize(record.id, body.parse()?).await?;
    let computer = app.control.computer_view(&record);
    Ok(Json(ComputerWithData { data: computer.clone(), computer }))
}

/// Give a stopped computer another size (the same as POST)
#[utoipa::path(patch, path = "/computers/{id}/resize", tag = "computers", params(("id" = String, Path)),
    request_body = ResizeComputer,
    responses((status = 200, body = ComputerWithData), (status = "default", body = ErrorBody)))]
async fn patch_size(
    state: State<App>,
    target: Target,
    body: RawBody,
) -> Result<Json<ComputerWithData>, Refusal> {
    resize(state, target, body).await
}

/// Bring a stopped computer to another region, with its files and its memory; answers when it is there
#[utoipa::path(post, path = "/computers/{id}/move", tag = "computers", params(("id" = String, Path)),
    request_body = MoveComputer,
    responses((status = 200, body = ComputerWithData),
        (status = 503, description = "There is no room for it", body = ErrorBody),
        (status = "default", body = ErrorBody)))]
async fn relocate(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<ComputerWithData>, Refusal> {
    app.control.require_stopped(&record, "move")?;
    let record = app.control.move_computer(record.id, body.parse()?).await?;
    let computer = app.control.computer_view(&record);
    Ok(Json(ComputerWithData { data: computer.clone(), computer }))
}

/// Whether a computer can be used now
#[utoipa::path(get, path = "/computers/{id}/readiness", tag = "computers", params(("id" = String, Path)),
    responses((status = 200, body = Readiness), (status = "default", body = ErrorBody)))]
async fn readiness(State(app): State<App>, Target(record): Target) -> Json<Readiness> {
    let view = app.control.computer_view(&record);
    Json(Readiness { ready: view.ready, status: view.status, state: view.state })
}
