//! Desktop programs: which a computer has, installing more, starting them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use roost_api::{AppList, Catalog, ErrorBody, Installations, LaunchRequest, SelectApps, Success};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, RawBody, Target};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, select)).routes(routes!(catalog)).routes(routes!(launch))
}

/// The desktop programs of a computer, and how far the installation of selected apps is
#[utoipa::path(get, path = "/computers/{id}/apps", tag = "apps", params(("id" = String, Path)),
    responses((status = 200, body = AppList), (status = "default", body = ErrorBody)))]
async fn list(State(app): State<App>, Target(record): Target) -> Result<Json<AppList>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.apps(&record).await?))
}

/// Select apps of the catalogue for a computer; they are installed as soon as it runs
#[utoipa::path(post, path = "/computers/{id}/apps", tag = "apps", params(("id" = String, Path)),
    request_body = SelectApps,
    responses((status = 202, body = Installations), (status = "default", body = ErrorBody)))]
async fn select(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<(StatusCode, Json<Installations>), Refusal> {
    let installations = app.control.select_apps(&record, body.parse()?).await?;
    Ok((StatusCode::ACCEPTED, Json(installations)))
}

/// The apps that can be installed
#[utoipa::path(get, path = "/apps/catalog", tag = "apps",
    responses((status = 200, body = Catalog), (status = "default", body = ErrorBody)))]
async fn catalog(State(app): State<App>, Auth(_caller): Auth) -> Json<Catalog> {
    Json(app.control.app_catalog())
}

/// Start a program on the desktop
#[utoipa::path(post, path = "/computers/{id}/desktop/launch", tag = "desktop", params(("id" = String, Path)),
    request_body = LaunchRequest,
    responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn launch(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<Success>, Refusal> {
    app.control.require_running(&record)?;
    app.control.launch_app(record.id, body.parse()?).await?;
    Ok(Json(Success::OK))
}
