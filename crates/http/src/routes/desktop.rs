//! Desktop control.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use roost_api::{
    ActionsAnswer, ActionsRequest, Binary, ButtonRequest, ClickRequest, Clipboard, CursorPosition,
    DesktopAction, DesktopEnvironment, DragRequest, ErrorBody, HotkeyRequest, KeyRequest, PictureQuery,
    PointRequest, ScreenRegion, ScreenSize, ScrollRequest, SetScreenSize, Success, Tools, ToolsQuery,
    TypeRequest, WaitRequest, WallpaperRequest, Window, WindowFocusRequest, WindowSize,
};
use roost_control::{ComputerRecord, Picture, WindowChange};
use serde::de::DeserializeOwned;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Query, RawBody, Target};

type Done = Result<Json<Success>, Refusal>;

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(screenshot))
        .routes(routes!(region, region_by_body))
        .routes(routes!(click))
        .routes(routes!(right_click))
        .routes(routes!(double_click))
        .routes(routes!(move_pointer))
        .routes(routes!(mouse_down))
        .routes(routes!(mouse_up))
        .routes(routes!(drag))
        .routes(routes!(scroll))
        .routes(routes!(type_text))
        .routes(routes!(key))
        .routes(routes!(hotkey))
        .routes(routes!(key_down))
        .routes(routes!(key_up))
        .routes(routes!(wait))
        .routes(routes!(actions))
        .routes(routes!(tools))
        .routes(routes!(wallpaper))
        .routes(routes!(cursor))
        .routes(routes!(screen_size, set_screen_size))
        .routes(routes!(environment))
        .routes(routes!(clipboard, set_clipboard))
        .routes(routes!(windows))
        .routes(routes!(focus_window))
        .routes(routes!(maximize_window))
        .routes(routes!(minimize_window))
        .routes(routes!(close_window))
        .routes(routes!(resize_window))
        .routes(routes!(move_window))
        .routes(routes!(window_size))
        .routes(routes!(window_position))
}

/// The screen as a picture
#[utoipa::path(get, path = "/computers/{id}/desktop/screenshot", tag = "desktop",
    params(("id" = String, Path), PictureQuery),
    responses((status = 200, content((inline(Binary) = "image/png"),
        (inline(Binary) = "image/jpeg"), (inline(Binary) = "image/webp"))),
        (status = "default", body = ErrorBody)))]
async fn screenshot(
    State(app): State<App>,
    Target(record): Target,
    Query(query): Query<PictureQuery>,
) -> Result<Response, Refusal> {
    shown(&app, &record, None, query).await
}

/// A part of the screen as a picture
#[utoipa::path(get, path = "/computers/{id}/desktop/screenshot/region", tag = "desktop",
    params(("id" = String, Path), ScreenRegion, PictureQuery),
    responses((status = 200, content((inline(Binary) = "image/png"),
        (inline(Binary) = "image/jpeg"), (inline(Binary) = "image/webp"))),
        (status = "default", body = ErrorBody)))]
async fn region(
    State(app): State<App>,
    Target(record): Target,
    Query(region): Query<ScreenRegion>,
    Query(query): Query<PictureQuery>,
) -> Result<Response, Refusal> {
    shown(&app, &record, Some(region), query).await
}

/// A part of the screen as a picture, named in the body
#[utoipa::path(post, path = "/computers/{id}/desktop/screenshot/region", tag = "desktop",
    params(("id" = String, Path), PictureQuery), request_body = ScreenRegion,
    responses((status = 200, content((inline(Binary) = "image/png"),
        (inline(Binary) = "image/jpeg"), (inline(Binary) = "image/webp"))),
        (status = "default", body = ErrorBody)))]
async fn region_by_body(
    State(app): State<App>,
    Target(record): Target,
    Query(query): Query<PictureQuery>,
    body: RawBody,
) -> Result<Response, Refusal> {
    app.control.require_running(&record)?;
    shown(&app, &record, Some(body.parse()?), query).await
}

async fn shown(
    app: &App,
    record: &ComputerRecord,
    region: Option<ScreenRegion>,
    query: PictureQuery,
) -> Result<Response, Refusal> {
    let Picture { bytes, media_type } = app.control.screenshot(record.id, region, query).await?;
    Ok(([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-store")], bytes).into_response())
}

/// Click at a point
#[utoipa::path(post, path = "/computers/{id}/desktop/click", tag = "desktop", params(("id" = String, Path)),
    request_body = ClickRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn click(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    act(&app, &record, &body, DesktopAction::Click).await
}

/// Click at a point with the right button
#[utoipa::path(post, path = "/computers/{id}/desktop/right-click", tag = "desktop", params(("id" = String, Path)),
    request_body = PointRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn right_click(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    act(&app, &record, &body, DesktopAction::RightClick).await
}

/// Click twice at a point
#[utoipa::path(post, path = "/computers/{id}/desktop/double-click", tag = "desktop", params(("id" = String, Path)),
    request_body = ClickRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn double_click(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    act(&app, &record, &body, DesktopAction::DoubleClick).await
}

/// Move the pointer
#[utoipa::path(post, path = "/computers/{id}/desktop/move", tag = "desktop", params(("id" = String, Path)),
    request_body = PointRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn move_pointer(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    act(&app, &record, &body, DesktopAction::Move).await
}

/// Press a button of the mouse and leave it so
#[utoipa::path(post, path = "/computers/{id}/desktop/mouse-down", tag = "desktop", params(("id" = String, Path)),
    request_body = ButtonRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn mouse_down(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    act(&app, &record, &body, DesktopAction::MouseDown).await
}

/// Let go of a button of the mouse
#[utoipa::path(post, path = "/computers/{id}/desktop/mouse-up", tag = "desktop", params(("id" = String, Path)),
    request_body = ButtonRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn mouse_up(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    act(&app, &record, &body, DesktopAction::MouseUp).await
}

/// Press a button, move the pointer in steps, and let go
#[utoipa::path(post, path = "/computers/{id}/desktop/drag", tag = "desktop", params(("id" = String, Path)),
    request_body = DragRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn drag(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    act(&app, &record, &body, DesktopAction::Drag).await
}

/// Turn the wheel
#[utoipa::path(post, path = "/computers/{id}/desktop/scroll", tag = "desktop", params(("id" = String, Path)),
    request_body = ScrollRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn scroll(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    act(&app, &record, &body, DesktopAction::Scroll).await
}

/// Type text
#[utoipa::path(post, path = "/computers/{id}/desktop/type", tag = "desktop", params(("id" = String, Path)),
    request_body = TypeRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn type_text(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    act(&app, &record, &body, DesktopAction::Type).await
}

/// Press a key or a combination
#[utoipa::path(post, path = "/computers/{id}/desktop/key", tag = "desktop", params(("id" = String, Path)),
    request_body = KeyRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn key(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    act(&app, &record, &body, DesktopAction::Key).await
}

/// Press several keys together
#[utoipa::path(post, path = "/computers/{id}/desktop/hotkey", tag = "desktop", params(("id" = String, Path)),
    request_body = HotkeyRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn hotkey(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    act(&app, &record, &body, DesktopAction::Hotkey).await
}

/// Press a key and leave it so
#[utoipa::path(post, path = "/computers/{id}/desktop/key-down", tag = "desktop", params(("id" = String, Path)),
    request_body = KeyRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn key_down(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    act(&app, &record, &body, DesktopAction::KeyDown).await
}

/// Let go of a key
#[utoipa::path(post, path = "/computers/{id}/desktop/key-up", tag = "desktop", params(("id" = String, Path)),
    request_body = KeyRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn key_up(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    act(&app, &record, &body, DesktopAction::KeyUp).await
}

/// Wait
#[utoipa::path(post, path = "/computers/{id}/desktop/wait", tag = "desktop", params(("id" = String, Path)),
    request_body = WaitRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn wait(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    act(&app, &record, &body, DesktopAction::Wait).await
}

async fn act<T: DeserializeOwned>(
    app: &App,
    record: &ComputerRecord,
    body: &RawBody,
    action: fn(T) -> DesktopAction,
) -> Done {
    app.control.require_running(record)?;
    app.control.act(record.id, action(body.parse()?)).await?;
    Ok(Json(Success::OK))
}

/// Do several things in one request: actions, waits for the screen, and a picture at the end
#[utoipa::path(post, path = "/computers/{id}/desktop/actions", tag = "desktop", params(("id" = String, Path)),
    request_body = ActionsRequest,
    responses((status = 200, body = ActionsAnswer), (status = "default", body = ErrorBody)))]
async fn actions(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<ActionsAnswer>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.actions(record.id, body.parse()?).await?))
}

/// Tools for a model that drives the desktop; what it gives them is the body of `desktop/actions`
#[utoipa::path(get, path = "/computers/{id}/desktop/tools", tag = "desktop",
    params(("id" = String, Path), ToolsQuery),
    responses((status = 200, body = Tools), (status = "default", body = ErrorBody)))]
async fn tools(
    State(app): State<App>,
    Target(record): Target,
    Query(query): Query<ToolsQuery>,
) -> Result<Json<Tools>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.tools(record.id, query.format.unwrap_or_default()).await?))
}

/// Show a picture behind the windows
#[utoipa::path(post, path = "/computers/{id}/desktop/wallpaper", tag = "desktop", params(("id" = String, Path)),
    request_body = WallpaperRequest, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn wallpaper(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    app.control.require_running(&record)?;
    app.control.wallpaper(record.id, body.parse::<WallpaperRequest>()?).await?;
    Ok(Json(Success::OK))
}

/// Where the pointer is
#[utoipa::path(get, path = "/computers/{id}/desktop/cursor", tag = "desktop", params(("id" = String, Path)),
    responses((status = 200, body = CursorPosition), (status = "default", body = ErrorBody)))]
async fn cursor(State(app): State<App>, Target(record): Target) -> Result<Json<CursorPosition>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.cursor(record.id).await?))
}

/// How large the screen is
#[utoipa::path(get, path = "/computers/{id}/desktop/screen-size", tag = "desktop", params(("id" = String, Path)),
    responses((status = 200, body = ScreenSize), (status = "default", body = ErrorBody)))]
async fn screen_size(State(app): State<App>, Target(record): Target) -> Result<Json<ScreenSize>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.screen_size(record.id).await?))
}

/// Change how large the screen is, now and after each start
#[utoipa::path(put, path = "/computers/{id}/desktop/screen-size", tag = "desktop", params(("id" = String, Path)),
    request_body = SetScreenSize,
    responses((status = 200, body = ScreenSize), (status = "default", body = ErrorBody)))]
async fn set_screen_size(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<ScreenSize>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.set_screen_size(record.id, body.parse()?).await?))
}

/// What kind of desktop it is
#[utoipa::path(get, path = "/computers/{id}/desktop/environment", tag = "desktop", params(("id" = String, Path)),
    responses((status = 200, body = DesktopEnvironment), (status = "default", body = ErrorBody)))]
async fn environment(
    State(app): State<App>,
    Target(record): Target,
) -> Result<Json<DesktopEnvironment>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.desktop_environment(record.id).await?))
}

/// The text in the clipboard
#[utoipa::path(get, path = "/computers/{id}/desktop/clipboard", tag = "desktop", params(("id" = String, Path)),
    responses((status = 200, body = Clipboard), (status = "default", body = ErrorBody)))]
async fn clipboard(State(app): State<App>, Target(record): Target) -> Result<Json<Clipboard>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.clipboard(record.id).await?))
}

/// Put a text into the clipboard
#[utoipa::path(post, path = "/computers/{id}/desktop/clipboard", tag = "desktop", params(("id" = String, Path)),
    request_body = Clipboard, responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn set_clipboard(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    app.control.require_running(&record)?;
    app.control.set_clipboard(record.id, body.parse::<Clipboard>()?).await?;
    Ok(Json(Success::OK))
}

/// The windows of programs, the topmost first; without the panel and the wallpaper
#[utoipa::path(get, path = "/computers/{id}/desktop/windows", tag = "desktop", params(("id" = String, Path)),
    responses((status = 200, body = Vec<Window>), (status = "default", body = ErrorBody)))]
async fn windows(State(app): State<App>, Target(record): Target) -> Result<Json<Vec<Window>>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.windows(record.id).await?))
}

/// Bring a window to the front and give it the keyboard
#[utoipa::path(post, path = "/computers/{id}/desktop/window/focus", tag = "desktop", params(("id" = String, Path)),
    request_body = WindowFocusRequest,
    responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn focus_window(State(app): State<App>, Target(record): Target, body: RawBody) -> Done {
    app.control.require_running(&record)?;
    let WindowFocusRequest { window_id } = body.parse()?;
    changed(&app, &record, &window_id, WindowChange::Focus).await
}

/// Let a window fill the screen
#[utoipa::path(post, path = "/computers/{id}/desktop/window/{wid}/maximize", tag = "desktop",
    params(("id" = String, Path), ("wid" = String, Path)),
    responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn maximize_window(
    State(app): State<App>,
    Target(record): Target,
    Path((_id, window)): Path<(String, String)>,
) -> Done {
    changed(&app, &record, &window, WindowChange::Maximize).await
}

/// Put a window out of sight
#[utoipa::path(post, path = "/computers/{id}/desktop/window/{wid}/minimize", tag = "desktop",
    params(("id" = String, Path), ("wid" = String, Path)),
    responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn minimize_window(
    State(app): State<App>,
    Target(record): Target,
    Path((_id, window)): Path<(String, String)>,
) -> Done {
    changed(&app, &record, &window, WindowChange::Minimize).await
}

/// Ask a window to close; its program may ask its user first
#[utoipa::path(post, path = "/computers/{id}/desktop/window/{wid}/close", tag = "desktop",
    params(("id" = String, Path), ("wid" = String, Path)),
    responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn close_window(
    State(app): State<App>,
    Target(record): Target,
    Path((_id, window)): Path<(String, String)>,
) -> Done {
    changed(&app, &record, &window, WindowChange::Close).await
}

/// Change a window's size
#[utoipa::path(post, path = "/computers/{id}/desktop/window/{wid}/resize", tag = "desktop",
    params(("id" = String, Path), ("wid" = String, Path)), request_body = WindowSize,
    responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn resize_window(
    State(app): State<App>,
    Target(record): Target,
    Path((_id, window)): Path<(String, String)>,
    body: RawBody,
) -> Done {
    app.control.require_running(&record)?;
    changed(&app, &record, &window, WindowChange::Resize(body.parse()?)).await
}

/// Move a window
#[utoipa::path(post, path = "/computers/{id}/desktop/window/{wid}/move", tag = "desktop",
    params(("id" = String, Path), ("wid" = String, Path)), request_body = PointRequest,
    responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn move_window(
    State(app): State<App>,
    Target(record): Target,
    Path((_id, window)): Path<(String, String)>,
    body: RawBody,
) -> Done {
    app.control.require_running(&record)?;
    changed(&app, &record, &window, WindowChange::Move(body.parse()?)).await
}

/// How large a window is
#[utoipa::path(get, path = "/computers/{id}/desktop/window/{wid}/size", tag = "desktop",
    params(("id" = String, Path), ("wid" = String, Path)),
    responses((status = 200, body = ScreenSize), (status = "default", body = ErrorBody)))]
async fn window_size(
    State(app): State<App>,
    Target(record): Target,
    Path((_id, window)): Path<(String, String)>,
) -> Result<Json<ScreenSize>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.window_size(record.id, &window).await?))
}

/// Where a window is
#[utoipa::path(get, path = "/computers/{id}/desktop/window/{wid}/position", tag = "desktop",
    params(("id" = String, Path), ("wid" = String, Path)),
    responses((status = 200, body = CursorPosition), (status = "default", body = ErrorBody)))]
async fn window_position(
    State(app): State<App>,
    Target(record): Target,
    Path((_id, window)): Path<(String, String)>,
) -> Result<Json<CursorPosition>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.window_position(record.id, &window).await?))
}

async fn changed(app: &App, record: &ComputerRecord, window: &str, change: WindowChange) -> Done {
    app.control.require_running(record)?;
    app.control.change_window(record.id, window, change).await?;
    Ok(Json(Success::OK))
}
