//! Terminal sessions. Watching one and typing into it is a socket ([`crate::sockets::terminal`]).

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use roost_api::{
    ErrorBody, OpenTerminal, ResizeTerminal, Terminal, TerminalClosed, TerminalList, TerminalResized,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{PathSession, RawBody, Target};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, open)).routes(routes!(close)).routes(routes!(resize))
}

/// Open a terminal session, which stays when nobody watches it
#[utoipa::path(post, path = "/computers/{id}/terminal", tag = "terminal", params(("id" = String, Path)),
    request_body = Option<OpenTerminal>,
    responses((status = 201, body = Terminal), (status = "default", body = ErrorBody)))]
async fn open(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<(StatusCode, Json<Terminal>), Refusal> {
    app.control.require_running(&record)?;
    let opened = app.control.open_terminal(&record, body.parse::<OpenTerminal>()?).await?;
    Ok((StatusCode::CREATED, Json(opened)))
}

/// The terminal sessions of a computer
#[utoipa::path(get, path = "/computers/{id}/terminal", tag = "terminal", params(("id" = String, Path)),
    responses((status = 200, body = TerminalList), (status = "default", body = ErrorBody)))]
async fn list(State(app): State<App>, Target(record): Target) -> Result<Json<TerminalList>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.terminal_sessions(record.id).await?))
}

/// Close a terminal session; its program is hung up
#[utoipa::path(delete, path = "/computers/{id}/terminal/{session_id}", tag = "terminal",
    params(("id" = String, Path), ("session_id" = String, Path)),
    responses((status = 200, body = TerminalClosed), (status = "default", body = ErrorBody)))]
async fn close(
    State(app): State<App>,
    Target(record): Target,
    PathSession(session): PathSession,
) -> Result<Json<TerminalClosed>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.close_terminal(record.id, &session).await?))
}

/// Give a terminal session another size, for all who watch it
#[utoipa::path(post, path = "/computers/{id}/pty/{session_id}/resize", tag = "terminal",
    params(("id" = String, Path), ("session_id" = String, Path)), request_body = ResizeTerminal,
    responses((status = 200, body = TerminalResized), (status = "default", body = ErrorBody)))]
async fn resize(
    State(app): State<App>,
    Target(record): Target,
    PathSession(session): PathSession,
    body: RawBody,
) -> Result<Json<TerminalResized>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.resize_terminal(record.id, &session, body.parse::<ResizeTerminal>()?).await?))
}
