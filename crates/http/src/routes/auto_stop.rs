//! What a computer does by itself: when it stops, and what it runs once.

use axum::Json;
use axum::extract::State;
use roost_api::{AutoStop, ChangeAutoStop, ErrorBody, Setup};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{RawBody, Target};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(get, patch)).routes(routes!(setup))
}

/// After which idle time the computer stops
#[utoipa::path(get, path = "/computers/{id}/auto-stop", tag = "computers", params(("id" = String, Path)),
    responses((status = 200, body = AutoStop), (status = "default", body = ErrorBody)))]
async fn get(State(app): State<App>, Target(record): Target) -> Json<AutoStop> {
    Json(app.control.auto_stop(&record))
}

/// Change after which idle time the computer stops; its idle clock begins anew
#[utoipa::path(patch, path = "/computers/{id}/auto-stop", tag = "computers", params(("id" = String, Path)),
    request_body = ChangeAutoStop,
    responses((status = 200, body = AutoStop), (status = "default", body = ErrorBody)))]
async fn patch(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<AutoStop>, Refusal> {
    Ok(Json(app.control.change_auto_stop(record.id, body.parse::<ChangeAutoStop>()?).await?))
}

/// How the script went that was given as `setup_file`
#[utoipa::path(get, path = "/computers/{id}/setup", tag = "computers", params(("id" = String, Path)),
    responses((status = 200, body = Setup), (status = "default", body = ErrorBody)))]
async fn setup(State(app): State<App>, Target(record): Target) -> Result<Json<Setup>, Refusal> {
    Ok(Json(app.control.setup(&record).await?))
}
