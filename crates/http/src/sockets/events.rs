//! What happens inside a computer, as text frames. Nothing that the client sends is read, but for the end.

use axum::extract::ws::{Message, WebSocket, close_code};
use axum::extract::{FromRequestParts, Request};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use roost_api::{ComputerId, GuestEvent, GuestEventsQuery, Status};
use roost_control::{Act, Control, GuestSubscription};

use super::{PING_EVERY, close, dismiss, rights_end, upgrade};
use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Listened, Listener, Query};

pub(crate) async fn open(app: App, request: Request) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let Listened(record) = Listened::from_request_parts(&mut parts, &app).await?;
    let Listener(caller) = Listener::from_request_parts(&mut parts, &app).await?;
    app.control.require_running(&record)?;
    let Query(query) = Query::<GuestEventsQuery>::from_request_parts(&mut parts, &app).await?;
    let subscription = GuestSubscription::new(&query)?;
    let upgrade = upgrade(&mut parts, &app).await?;
    let (control, id) = (app.control.clone(), record.id);
    let events = control.guest_events(id, &subscription).await?;
    Ok(upgrade.on_upgrade(move |mut socket| async move {
        let is_over = tokio::select! {
            () = tell(&control, id, &mut socket, events) => true,
            () = rights_end(control.clone(), Some(caller), id, Act::Read) => false,
        };
        if !is_over {
            dismiss(&mut socket).await;
        }
    }))
}

async fn tell(
    control: &Control,
    id: ComputerId,
    socket: &mut WebSocket,
    mut events: impl Stream<Item = GuestEvent> + Unpin,
) {
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.reset();
    loop {
        let frame = tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
            event = events.next() => match event.map(|event| serde_json::to_string(&event)) {
                Some(Ok(text)) => Message::text(text),
                Some(Err(error)) => {
                    tracing::error!(%error, "an event of a computer cannot be written");
                    continue;
                }
                None => break,
            },
            _ = ping.tick() => Message::Ping(Bytes::new()),
        };
        if socket.send(frame).await.is_err() {
            return;
        }
    }
    if control.status(id).await.is_some_and(|status| status == Status::Running) {
        close(socket, close_code::AWAY, "nothing is left in the computer that could tell; connect again")
            .await;
    } else {
        close(socket, close_code::AWAY, "the computer was stopped").await;
    }
}
