//! Event streams: of one computer, and of a tenant.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use roost_api::{ComputerStreamQuery, ErrorBody, EventFrame, EventStreamQuery, GuestEvent, GuestEventsQuery};
use roost_control::{Act, Frame};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::envelope::Refusal;
use crate::extract::{Listened, Listener, Query};
use crate::{App, sockets, sse};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(of_computer)).routes(routes!(all)).routes(routes!(of_tenant))
}

/// Follow a computer: its status now, then every change, as server-sent events; ends when it is deleted. With an
/// upgrade to a WebSocket: what happens inside it
#[utoipa::path(get, path = "/computers/{id}/events", tag = "events",
    params(("id" = String, Path), ComputerStreamQuery, GuestEventsQuery),
    responses(
        (status = 101, description = "Text frames, each a `GuestEvent`; what the client sends is not read", body = GuestEvent),
        (status = 200, body = EventFrame, content_type = "text/event-stream"),
        (status = "default", body = ErrorBody)
    ))]
async fn of_computer(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    if request.headers().contains_key(header::UPGRADE) {
        return sockets::events::open(app, request).await;
    }
    let (mut parts, _) = request.into_parts();
    let Listened(record) = Listened::from_request_parts(&mut parts, &app).await?;
    let Listener(caller) = Listener::from_request_parts(&mut parts, &app).await?;
    let Query(query) = Query::<ComputerStreamQuery>::from_request_parts(&mut parts, &app).await?;
    let after = last_event_id(&parts.headers, query.last_event_id);
    let frames = app.control.computer_events(record.id, query.types.as_deref(), after.as_deref()).await?;
    let frames = app.control.while_usable(caller, record.id, Act::Read, frames);
    Ok(sse::respond(wire(frames)).into_response())
}

/// Follow everything that happens in the caller's tenant, as server-sent events
#[utoipa::path(get, path = "/events/stream", tag = "events", params(EventStreamQuery),
    responses(
        (status = 200, body = EventFrame, content_type = "text/event-stream"),
        (status = "default", body = ErrorBody)
    ))]
async fn all(
    State(app): State<App>,
    Listener(caller): Listener,
    headers: HeaderMap,
    Query(query): Query<EventStreamQuery>,
) -> Result<impl IntoResponse, Refusal> {
    let after = last_event_id(&headers, query.last_event_id);
    let (types, scope) = (query.types.as_deref(), query.scope.as_deref());
    let frames = app.control.tenant_events(&caller, types, scope, after.as_deref()).await?;
    Ok(sse::respond(wire(app.control.while_allowed(caller, frames))))
}

/// The same under another name
#[utoipa::path(get, path = "/tenant/events/stream", tag = "events", params(EventStreamQuery),
    responses(
        (status = 200, body = EventFrame, content_type = "text/event-stream"),
        (status = "default", body = ErrorBody)
    ))]
async fn of_tenant(
    app: State<App>,
    listener: Listener,
    headers: HeaderMap,
    query: Query<EventStreamQuery>,
) -> Result<impl IntoResponse, Refusal> {
    all(app, listener, headers, query).await
}

/// Browsers send the header by themselves when they connect again; what they were first given is older.
fn last_event_id(headers: &HeaderMap, query: Option<String>) -> Option<String> {
    let header =
        headers.get("last-event-id").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    header.filter(|id| !id.is_empty()).or(query)
}

fn wire(frames: impl Stream<Item = Frame>) -> impl Stream<Item = Event> {
    frames.map(|frame| Event::default().id(frame.id.to_string()).event(frame.kind).data(frame.data))
}
