//! Environment variables of a computer.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use roost_api::{ChangeVariable, ErrorBody, SetVariable, Variable, VariableDeleted, Variables};
use roost_control::VariableOutcome;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{PathName, RawBody, Target};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, set)).routes(routes!(change, remove))
}

/// List the environment variables, without their values
#[utoipa::path(get, path = "/computers/{id}/env", tag = "env", params(("id" = String, Path)),
    responses((status = 200, body = Variables), (status = "default", body = ErrorBody)))]
async fn list(State(app): State<App>, Target(record): Target) -> Result<Json<Variables>, Refusal> {
    Ok(Json(app.control.variables(&record).await?))
}

/// Set an environment variable: every process started from now on has it
#[utoipa::path(post, path = "/computers/{id}/env", tag = "env", params(("id" = String, Path)),
    request_body = SetVariable,
    responses((status = 201, body = Variable), (status = 200, description = "It was there and is replaced", body = Variable),
        (status = "default", body = ErrorBody)))]
async fn set(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<(StatusCode, Json<Variable>), Refusal> {
    Ok(match app.control.set_variable(&record, body.parse::<SetVariable>()?).await? {
        VariableOutcome::New(variable) => (StatusCode::CREATED, Json(variable)),
        VariableOutcome::Changed(variable) => (StatusCode::OK, Json(variable)),
    })
}

/// Change an environment variable
#[utoipa::path(patch, path = "/computers/{id}/env/{name}", tag = "env",
    params(("id" = String, Path), ("name" = String, Path)), request_body = ChangeVariable,
    responses((status = 200, body = Variable), (status = "default", body = ErrorBody)))]
async fn change(
    State(app): State<App>,
    Target(record): Target,
    PathName(name): PathName,
    body: RawBody,
) -> Result<Json<Variable>, Refusal> {
    Ok(Json(app.control.change_variable(&record, &name, body.parse::<ChangeVariable>()?).await?))
}

/// Remove an environment variable
#[utoipa::path(delete, path = "/computers/{id}/env/{name}", tag = "env",
    params(("id" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = VariableDeleted), (status = "default", body = ErrorBody)))]
async fn remove(
    State(app): State<App>,
    Target(record): Target,
    PathName(name): PathName,
) -> Result<Json<VariableDeleted>, Refusal> {
    app.control.remove_variable(&record, &name).await?;
    Ok(Json(VariableDeleted { name, deleted: true }))
}
