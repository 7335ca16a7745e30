//! Running commands.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::sse::Event;
use futures_util::stream;
use roost_api::{
    ApiError, CommandRequest, CommandResult, Data, ErrorBody, ErrorCode, ExecRequest, ExecResult,
    ExecStreamRequest, ExecTicket, ExecTicketQuery, PythonRequest,
};
use roost_control::{Act, ExecLine};
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, Query, RawBody, Target, path_id};
use crate::{sockets, sse};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(exec))
        .routes(routes!(python))
        .routes(routes!(command))
        .routes(routes!(ticket))
        .routes(routes!(events))
        .merge(sockets::exec::router())
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

/// Run a shell command and answer when it has ended, its output and its errors apart
#[utoipa::path(post, path = "/computers/{id}/commands", tag = "exec", params(("id" = String, Path)),
    request_body = CommandRequest,
    responses((status = 200, body = Data<CommandResult>), (status = "default", body = ErrorBody)))]
async fn command(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<Data<CommandResult>>, Refusal> {
    app.control.require_started(&record)?;
    Ok(Json(Data { data: app.control.command(record.id, body.parse::<CommandRequest>()?).await? }))
}

/// A ticket for a command whose output is streamed as server-sent events; it runs when the stream is opened
#[utoipa::path(post, path = "/computers/{id}/exec/stream", tag = "exec", params(("id" = String, Path)),
    request_body = ExecStreamRequest,
    responses((status = 202, body = ExecTicket), (status = "default", body = ErrorBody)))]
async fn ticket(
    State(app): State<App>,
    Auth(caller): Auth,
    Target(record): Target,
    body: RawBody,
) -> Result<(StatusCode, Json<ExecTicket>), Refusal> {
    app.control.require_running(&record)?;
    let request = body.parse::<ExecStreamRequest>()?;
    Ok((StatusCode::ACCEPTED, Json(app.control.exec_ticket(&caller, record.id, request).await?)))
}

/// Run the command of a ticket: events `output` with a `line` each, then `exit` with `exitCode`
#[utoipa::path(get, path = "/computers/{id}/exec/stream/events", tag = "exec",
    params(("id" = String, Path), ExecTicketQuery), security(()),
    responses((status = 200, description = "The ticket is used up; closing the stream hangs the command up",
            body = String, content_type = "text/event-stream"),
        (status = "default", body = ErrorBody)))]
async fn events(
    State(app): State<App>,
    Query(query): Query<ExecTicketQuery>,
    request: Request,
) -> Result<impl IntoResponse, Refusal> {
    let (mut parts, _) = request.into_parts();
    let id = path_id(&mut parts, &app).await?;
    let ticket = query.ticket.ok_or_else(|| {
        let message = "ticket is required: get one with POST /api/v1/computers/{id}/exec/stream";
        ApiError::new(ErrorCode::InvalidToken, message)
    })?;
    let (caller, lines) = app.control.exec_with_ticket(id, &ticket).await?;
    let events = stream::unfold(lines, |mut lines| async {
        let event = lines.next().await.map(event)?;
        Some((event, lines))
    });
    Ok(sse::respond(app.control.while_usable(caller, id, Act::Write, events)))
}

fn event(line: ExecLine) -> Event {
    let (name, data) = match line {
        ExecLine::Stdout(line) => ("output", json!({ "type": "output", "line": line, "stream": "stdout" })),
        ExecLine::Stderr(line) => ("output", json!({ "type": "output", "line": line, "stream": "stderr" })),
        ExecLine::Exit(code) => ("exit", json!({ "type": "exit", "exitCode": code })),
        ExecLine::Lost => {
            let message =
                "the connection to the computer ended before the command did; it may have had effects";
            ("error", json!({ "type": "error", "message": message }))
        }
    };
    // A data field cannot hold a lone carriage return; JSON writes it as an escape.
    Event::default().event(name).data(data.to_string())
}
