//! Addresses and credentials of the live desktop.

use axum::Json;
use axum::extract::{Request, State};
use roost_api::{
    ComputerUrls, Embed, EmbedQuery, ErrorBody, StreamToken, StreamTokenRequest, ViewerPassword,
    ViewerPasswordState, ViewerSessionRequest, VncCredentials,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, Query, RawBody, Target, body_of, path_id};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(urls))
        .routes(routes!(vnc_credentials))
        .routes(routes!(stream_token))
        .routes(routes!(embed))
        .routes(routes!(viewer_password))
        .routes(routes!(rotate_viewer_password))
        .routes(routes!(viewer_session))
}

/// The addresses of a computer
#[utoipa::path(get, path = "/computers/{id}/urls", tag = "connection", params(("id" = String, Path)),
    responses((status = 200, body = ComputerUrls), (status = "default", body = ErrorBody)))]
async fn urls(State(app): State<App>, Target(record): Target) -> Json<ComputerUrls> {
    Json(app.control.urls(&record))
}

/// Everything needed to open the desktop stream
#[utoipa::path(get, path = "/computers/{id}/vnc-credentials", tag = "connection", params(("id" = String, Path)),
    responses((status = 200, body = VncCredentials), (status = "default", body = ErrorBody)))]
async fn vnc_credentials(
    State(app): State<App>,
    Target(record): Target,
) -> Result<Json<VncCredentials>, Refusal> {
    Ok(Json(app.control.vnc_credentials(&record)?))
}

/// A short-lived token for the desktop and terminal streams of one computer
#[utoipa::path(post, path = "/computers/{id}/stream-token", tag = "connection", params(("id" = String, Path)),
    request_body = Option<StreamTokenRequest>,
    responses((status = 200, body = StreamToken), (status = "default", body = ErrorBody)))]
async fn stream_token(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<StreamToken>, Refusal> {
    Ok(Json(app.control.stream_token(&record, &body.parse::<StreamTokenRequest>()?)?))
}

/// The live desktop for an iframe, to control it or only to watch
#[utoipa::path(get, path = "/computers/{id}/embed", tag = "connection",
    params(("id" = String, Path), EmbedQuery),
    responses((status = 200, body = Embed), (status = "default", body = ErrorBody)))]
async fn embed(
    State(app): State<App>,
    Target(record): Target,
    Auth(caller): Auth,
    Query(query): Query<EmbedQuery>,
) -> Result<Json<Embed>, Refusal> {
    if query.view_only != Some(true) {
        // Its token drives the computer.
        app.control.get(&caller, record.id).await?;
    }
    Ok(Json(app.control.embed_desktop(&record, &query)?))
}

/// Whether the computer has a viewer password
#[utoipa::path(get, path = "/computers/{id}/viewer-password", tag = "connection", params(("id" = String, Path)),
    responses((status = 200, body = ViewerPasswordState), (status = "default", body = ErrorBody)))]
async fn viewer_password(
    State(app): State<App>,
    Target(record): Target,
) -> Result<Json<ViewerPasswordState>, Refusal> {
    Ok(Json(app.control.viewer_password_state(&record).await?))
}

/// Give the computer a new viewer password, which is shown once
#[utoipa::path(post, path = "/computers/{id}/viewer-password/rotate", tag = "connection",
    params(("id" = String, Path)),
    responses((status = 200, body = ViewerPassword), (status = "default", body = ErrorBody)))]
async fn rotate_viewer_password(
    State(app): State<App>,
    Target(record): Target,
) -> Result<Json<ViewerPassword>, Refusal> {
    Ok(Json(app.control.rotate_viewer_password(&record).await?))
}

/// The live desktop for who knows the viewer password; needs no API key
#[utoipa::path(post, path = "/computers/{id}/viewer-session", tag = "connection", params(("id" = String, Path)),
    request_body = ViewerSessionRequest, security(()),
    responses((status = 200, body = Embed), (status = "default", body = ErrorBody)))]
pub(crate) async fn viewer_session(State(app): State<App>, request: Request) -> Result<Json<Embed>, Refusal> {
    let (mut parts, body) = request.into_parts();
    let id = path_id(&mut parts, &app).await?;
    let body = body_of(body).await?;
    Ok(Json(app.control.viewer_session(id, &body.parse::<ViewerSessionRequest>()?).await?))
}
