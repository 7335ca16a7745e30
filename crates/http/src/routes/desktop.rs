//! Desktop control.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use roost_api::{
    Binary, ClickRequest, CursorPosition, ErrorBody, KeyRequest, PointRequest, ScreenSize, ScrollRequest,
    Success, TypeRequest,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{RawBody, Target};

type Done = Result<Json<Success>, Refusal>;

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(screenshot))
        .routes(routes!(click))
        .routes(routes!(double_click))
        .routes(routes!(move_pointer))
        .routes(routes!(scroll))
        .routes(routes!(type_text))
        .routes(routes!(key))
        .routes(routes!(cursor))
        .routes(routes!(screen_size))
}

/// The screen as PNG
#[utoipa::path(get, path = "/computers/{id}/desktop/screenshot", tag = "desktop", params(("id" = String, Path)),
    responses((status = 200, body = inline(Binary), content_type = "image/png"), (status = "default", body = ErrorBody)))]
async fn screenshot(State(app): State<App>, Target(record): Target) -> Result<impl IntoResponse, Refusal> {
    let png = app.control.screenshot(record.id).await?;
    Ok(([(header::CONTENT_TYPE, "image/png"), (header::CACHE_CONTROL, "no-store")], png))
}

/// Click at a point
#[utoipa::path(post, path = "/computers/{id}/desktop/click", tag = "desktop", params(("id" = String, Path)),
    request_body = ClickRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn click(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    app.control.require_running(&record)?;
    app.control.click(record.id, body.parse::<ClickRequest>()?, 1).await?;
    Ok(Json(Success::OK))
}

/// Click twice at a point
#[utoipa::path(post, path = "/computers/{id}/desktop/double-click", tag = "desktop", params(("id" = String, Path)),
    request_body = ClickRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn double_click(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    app.control.require_running(&record)?;
    app.control.click(record.id, body.parse::<ClickRequest>()?, 2).await?;
    Ok(Json(Success::OK))
}

/// Move the pointer
#[utoipa::path(post, path = "/computers/{id}/desktop/move", tag = "desktop", params(("id" = String, Path)),
    request_body = PointRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn move_pointer(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    app.control.require_running(&record)?;
    app.control.move_pointer(record.id, body.parse::<PointRequest>()?).await?;
    Ok(Json(Success::OK))
}

/// Turn the wheel
#[utoipa::path(post, path = "/computers/{id}/desktop/scroll", tag = "desktop", params(("id" = String, Path)),
    request_body = ScrollRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn scroll(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    app.control.require_running(&record)?;
    app.control.scroll(record.id, body.parse::<ScrollRequest>()?).await?;
    Ok(Json(Success::OK))
}

/// Type text
#[utoipa::path(post, path = "/computers/{id}/desktop/type", tag = "desktop", params(("id" = String, Path)),
    request_body = TypeRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn type_text(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    app.control.require_running(&record)?;
    app.control.type_text(record.id, body.parse::<TypeRequest>()?).await?;
    Ok(Json(Success::OK))
}

/// Press a key or a combination
#[utoipa::path(post, path = "/computers/{id}/desktop/key", tag = "desktop", params(("id" = String, Path)),
    request_body = KeyRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn key(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    app.control.require_running(&record)?;
    app.control.press_key(record.id, body.parse::<KeyRequest>()?).await?;
    Ok(Json(Success::OK))
}

/// Where the pointer is
#[utoipa::path(get, path = "/computers/{id}/desktop/cursor", tag = "desktop", params(("id" = String, Path)),
    responses((status = 200, body = CursorPosition), (status = "default", body = ErrorBody)))]
async fn cursor(State(app): State<App>, Target(record): Target) -> Result<Json<CursorPosition>, Refusal> {
    Ok(Json(app.control.cursor(record.id).await?))
}

/// How large the screen is
#[utoipa::path(get, path = "/computers/{id}/desktop/screen-size", tag = "desktop", params(("id" = String, Path)),
    responses((status = 200, body = ScreenSize), (status = "default", body = ErrorBody)))]
async fn screen_size(State(app): State<App>, Target(record): Target) -> Result<Json<ScreenSize>, Refusal> {
    Ok(Json(app.control.screen_size(record.id).await?))
}
