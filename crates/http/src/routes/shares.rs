//! Shares: links that open a desktop for people without an account.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use roost_api::{
    ApiError, CreateShare, CreatedShare, Data, ErrorBody, ErrorCode, Share, ShareRevoked, SharedDesktop,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{RawBody, Target};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(revoke)).routes(routes!(shared))
}

/// The address that a share is passed on as.
pub(crate) fn page() -> axum::Router<App> {
    axum::Router::new().route("/shared/{token}", get(open))
}

/// List the shares of a computer, newest first
#[utoipa::path(get, path = "/computers/{id}/shares", tag = "connection", params(("id" = String, Path)),
    responses((status = 200, body = Data<Vec<Share>>), (status = "default", body = ErrorBody)))]
async fn list(State(app): State<App>, Target(record): Target) -> Result<Json<Data<Vec<Share>>>, Refusal> {
    Ok(Json(Data { data: app.control.shares(&record).await? }))
}

/// Share the desktop of a computer by a link, to watch it or to drive it
#[utoipa::path(post, path = "/computers/{id}/shares", tag = "connection", params(("id" = String, Path)),
    request_body = CreateShare,
    responses((status = 201, body = CreatedShare), (status = "default", body = ErrorBody)))]
async fn create(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<(StatusCode, Json<CreatedShare>), Refusal> {
    Ok((StatusCode::CREATED, Json(app.control.share(&record, body.parse()?).await?)))
}

/// Revoke a share
#[utoipa::path(delete, path = "/computers/{id}/shares/{share_id}", tag = "connection",
    params(("id" = String, Path), ("share_id" = String, Path)),
    responses((status = 200, body = ShareRevoked), (status = "default", body = ErrorBody)))]
async fn revoke(
    State(app): State<App>,
    Target(record): Target,
    Path(path): Path<(String, String)>,
) -> Result<Json<ShareRevoked>, Refusal> {
    let (_, share) = path;
    // An id of a share is any text to its callers, so one that cannot be is not found.
    let id = share.parse().map_err(|_| ApiError::new(ErrorCode::NotFound, "share not found"))?;
    app.control.revoke_share(record.id, id).await?;
    Ok(Json(ShareRevoked { id, deleted: true }))
}

/// What a share opens; needs no API key
#[utoipa::path(get, path = "/shared/{token}", tag = "connection", params(("token" = String, Path)), security(()),
    responses((status = 200, body = SharedDesktop), (status = "default", body = ErrorBody)))]
async fn shared(State(app): State<App>, Path(token): Path<String>) -> Result<Json<SharedDesktop>, Refusal> {
    Ok(Json(app.control.shared(&token).await?))
}

/// Sends a browser on to the desktop, with a token that is made now.
async fn open(State(app): State<App>, Path(token): Path<String>) -> Result<Response, Refusal> {
    let shared = app.control.shared(&token).await?;
    let headers = [
        (header::LOCATION, shared.desktop.url),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
    ];
    Ok((StatusCode::SEE_OTHER, headers).into_response())
}
