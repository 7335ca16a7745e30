//! The web pages, built from `web/` and embedded in the binary; `/health` and `/openapi.json`.

use axum::Json;
use axum::Router;
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use roost_api::{ApiError, ComputerId, DesktopSession, Embed, ErrorCode, ViewerSessionRequest};
use rust_embed::RustEmbed;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{RawBody, bearer, path_id};
use crate::preview::host::{self, Host};
use crate::routes::connection::viewer_session;
use crate::routes::server::health;

#[derive(RustEmbed)]
#[folder = "../../web/dist"]
#[allow_missing = true] // a checkout compiles before its pages are built
struct Files;

pub(crate) fn router(openapi: String) -> Router<App> {
    let openapi = move || {
        let openapi = openapi.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], openapi) }
    };
    Router::new()
        .route("/health", get(health))
        .route("/openapi.json", get(openapi))
        .route("/", get(start_page))
        .route("/assets/{*path}", get(asset))
        .route("/desktop", get(|| async { Redirect::temporary("/desktop/index.html") }))
        .route("/desktop/", get(|| async { Redirect::temporary("/desktop/index.html") }))
        .route("/desktop/index.html", get(|| async { page("desktop/index.html") }))
        .route("/desktop/session", get(session_by_host))
        .route("/desktop/viewer-session", post(viewer_session_by_host))
        .route("/desktop/{id}/viewer-session", post(viewer_session))
        .route("/desktop/{id}/index.html", get(|| async { page("desktop/index.html") }))
        .route("/desktop/{id}/session", get(session_by_path))
        .route("/terminal", get(|| async { Redirect::temporary("/terminal/index.html") }))
        .route("/terminal/", get(|| async { Redirect::temporary("/terminal/index.html") }))
        .route("/terminal/index.html", get(|| async { page(TERMINAL) }))
        .route("/terminal/session", get(terminal_by_host))
        .route("/terminal/viewer-session", post(viewer_session_by_host))
        .route("/terminal/{id}/viewer-session", post(viewer_session))
        .route("/terminal/{id}/index.html", get(|| async { page(TERMINAL) }))
        .route("/terminal/{id}/session", get(terminal_by_path))
}

const TERMINAL: &str = "terminal/index.html";

/// On a computer's own host name its desktop is the start page.
async fn start_page(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    if slug(&app, &uri, &headers).is_some() {
        return Redirect::temporary("/desktop/index.html").into_response();
    }
    page("index.html")
}

async fn asset(Path(path): Path<String>) -> Response {
    let mut response = page(&format!("assets/{path}"));
    // The names of assets hold a hash of their content; the licences of what is bundled do not.
    if response.status().is_success() && !path.ends_with(".txt") {
        let forever = HeaderValue::from_static("public, max-age=31536000, immutable");
        response.headers_mut().insert(header::CACHE_CONTROL, forever);
    }
    response
}

fn page(name: &str) -> Response {
    let Some(file) = Files::get(name) else {
        let message = format!("there is no page {name}");
        return Refusal::from(ApiError::new(ErrorCode::NotFound, message)).into_response();
    };
    let mime = match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("woff2") => "font/woff2",
        Some("json") => "application/json",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    };
    let headers = [
        (header::CONTENT_TYPE, mime),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            header::CONTENT_SECURITY_POLICY,
            match name {
                // The terminal computes the rules for its cells.
                TERMINAL => {
                    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self'; \
                     connect-src 'self'; base-uri 'none'; form-action 'none'"
                }
                // `data:` is for the guest's pointer and JPEG rectangles, which the browser decodes.
                _ => {
                    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                     connect-src 'self'; base-uri 'none'; form-action 'none'"
                }
            },
        ),
    ];
    (StatusCode::OK, headers, file.data).into_response()
}

async fn session_by_host(
    State(app): State<App>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<DesktopSession>, Refusal> {
    let slug = slug(&app, &uri, &headers).ok_or_else(no_computer)?;
    // Without a valid token nobody learns which names exist.
    let access = app.control.verify_stream_token(bearer(&headers).unwrap_or_default())?;
    let record = app.control.computer_by_slug(&slug).await?;
    session(&app, record.id, access, record)
}

/// The same for the terminal page.
async fn terminal_by_host(
    app: State<App>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<DesktopSession>, Refusal> {
    Ok(of_terminal(session_by_host(app, uri, headers).await?))
}

async fn terminal_by_path(app: State<App>, request: Request) -> Result<Json<DesktopSession>, Refusal> {
    Ok(of_terminal(session_by_path(app, request).await?))
}

fn of_terminal(Json(session): Json<DesktopSession>) -> Json<DesktopSession> {
    Json(DesktopSession { ws_path: format!("/ws/terminal/{}", session.computer_id), ..session })
}

/// The same as `viewer-session` of the API for a page that knows no id.
async fn viewer_session_by_host(
    State(app): State<App>,
    uri: Uri,
    headers: HeaderMap,
    body: RawBody,
) -> Result<Json<Embed>, Refusal> {
    let slug = slug(&app, &uri, &headers).ok_or_else(no_computer)?;
    Ok(Json(app.control.viewer_session_by_slug(&slug, &body.parse::<ViewerSessionRequest>()?).await?))
}

fn no_computer() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "this host name belongs to no computer; use /desktop/{id}/index.html")
}

async fn session_by_path(State(app): State<App>, request: Request) -> Result<Json<DesktopSession>, Refusal> {
    let (mut parts, _) = request.into_parts();
    let id: ComputerId = path_id(&mut parts, &app).await?;
    let headers = HeaderMap::from_request_parts(&mut parts, &app).await.unwrap_or_default();
    let access = app.control.verify_stream_token(bearer(&headers).unwrap_or_default())?;
    let record = app.control.authorize_stream(id, bearer(&headers), None, None).await?.computer;
    session(&app, id, access, record)
}

fn session(
    app: &App,
    id: ComputerId,
    access: roost_control::StreamAccess,
    record: roost_control::ComputerRecord,
) -> Result<Json<DesktopSession>, Refusal> {
    if access.computer != id {
        return Err(ApiError::new(ErrorCode::InvalidToken, "the stream token is for another computer").into());
    }
    Ok(Json(app.control.desktop_session(&record, access)))
}

/// The slug in `{slug}.computer.{domain}`.
fn slug(app: &App, uri: &Uri, headers: &HeaderMap) -> Option<String> {
    match host::parse(&host::name(uri, headers).ok()?, &app.domain) {
        Host::Desktop { slug } => Some(slug),
        Host::Server | Host::Preview { .. } | Host::Nobody => None,
    }
}
