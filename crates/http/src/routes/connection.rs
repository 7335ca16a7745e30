//! Addresses and credentials of the live desktop.

use axum::Json;
use axum::extract::State;
use roost_api::{ComputerUrls, ErrorBody, StreamToken, StreamTokenRequest, VncCredentials};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{RawBody, Target};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(urls)).routes(routes!(vnc_credentials)).routes(routes!(stream_token))
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

/// A short-lived token for the desktop stream of one computer
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
