//! Server-sent events: what all streams have in common.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::HeaderName;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{AppendHeaders, IntoResponse};
use futures_util::{Stream, StreamExt, stream};

/// Often enough for proxies that close quiet connections.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The answer that sends `events`. Headers and a comment go at once, so that a client knows that it listens.
pub(crate) fn respond(events: impl Stream<Item = Event> + Send + 'static) -> impl IntoResponse {
    let greeting = stream::iter([Event::default().comment("connected")]);
    let events = greeting.chain(events).map(Ok::<_, Infallible>);
    let keep_alive = KeepAlive::new().interval(HEARTBEAT).text("heartbeat");
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), "no");
    (AppendHeaders([unbuffered]), Sse::new(events).keep_alive(keep_alive))
}
