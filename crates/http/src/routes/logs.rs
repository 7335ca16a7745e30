//! What a computer has said.

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::Event;
use futures_util::StreamExt;
use roost_api::{ErrorBody, LogEntry, Logs, LogsQuery, TicketQuery};
use roost_control::Act;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Listened, Listener, Query, Target};
use crate::sse;

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(read)).routes(routes!(follow))
}

/// The newest lines of the computer's console and services
#[utoipa::path(get, path = "/computers/{id}/logs", tag = "computers", params(("id" = String, Path), LogsQuery),
    responses((status = 200, body = Logs), (status = "default", body = ErrorBody)))]
async fn read(
    State(app): State<App>,
    Target(record): Target,
    Query(query): Query<LogsQuery>,
) -> Result<Json<Logs>, Refusal> {
    Ok(Json(app.control.logs(&record, &query).await?))
}

/// The same as server-sent events, then each line when it comes; ends when the computer is deleted
#[utoipa::path(get, path = "/computers/{id}/logs/stream", tag = "computers",
    params(("id" = String, Path), LogsQuery, TicketQuery),
    responses(
        (status = 200, body = LogEntry, content_type = "text/event-stream"),
        (status = "default", body = ErrorBody)
    ))]
async fn follow(
    State(app): State<App>,
    Listened(record): Listened,
    Listener(caller): Listener,
    Query(query): Query<LogsQuery>,
) -> Result<impl IntoResponse, Refusal> {
    let entries = app.control.follow_logs(&record, &query).await?;
    let event = |entry: LogEntry| async move {
        // An entry is text and nothing else.
        Event::default().event("log").json_data(&entry).ok()
    };
    Ok(sse::respond(app.control.while_usable(caller, record.id, Act::Read, entries.filter_map(event))))
}
