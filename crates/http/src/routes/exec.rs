//! Running commands.

use axum::Json;
use axum::extract::State;
use roost_api::{ErrorBody, ExecRequest, ExecResult, PythonRequest};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{RawBody, Target};
use crate::sockets;

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(exec)).routes(routes!(python)).routes(routes!(sockets::exec::stream))
}

/// Run a shell command and answer when it has ended
#[utoipa::path(post, path = "/computers/{id}/exec", tag = "exec", params(("id" = String, Path)),
    request_body = ExecRequest,
    responses((status = 200, body = ExecResult), (status = "default", body = ErrorBody)))]
async fn exec(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<ExecResult>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.exec(record.id, body.parse::<ExecRequest>()?).await?))
}

/// Run Python code and answer when it has ended
#[utoipa::path(post, path = "/computers/{id}/exec/python", tag = "exec", params(("id" = String, Path)),
    request_body = PythonRequest,
    responses((status = 200, body = ExecResult), (status = "default", body = ErrorBody)))]
async fn python(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<ExecResult>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.exec_python(record.id, body.parse::<PythonRequest>()?).await?))
}
