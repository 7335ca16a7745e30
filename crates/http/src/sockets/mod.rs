//! WebSockets. Credentials are checked before the upgrade; a refusal is an ordinary HTTP answer.

pub(crate) mod events;
pub(crate) mod exec;
mod rfb;
pub(crate) mod terminal;
pub(crate) mod tunnel;
mod utf8;
pub(crate) mod vnc;

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::request::Parts;
use bytes::Bytes;
use futures_util::{Sink, SinkExt};
use roost_api::{ApiError, ComputerId, ErrorCode};
use roost_control::{Act, Caller, Control};

use crate::App;
use crate::envelope::Refusal;

/// How often an idle connection is pinged, so that proxies between keep it open.
const PING_EVERY: Duration = Duration::from_secs(30);

/// What a client sends in one frame reaches the computer in pieces of at most so many bytes.
const LARGEST_PIECE: usize = 64 * 1024;

fn in_pieces(data: Bytes) -> impl Iterator<Item = Bytes> {
    let length = data.len();
    (0..length).step_by(LARGEST_PIECE).map(move |start| data.slice(start..length.min(start + LARGEST_PIECE)))
}

/// The upgrade of a request, or 426 for a request that asks for none.
async fn upgrade(parts: &mut Parts, app: &App) -> Result<WebSocketUpgrade, Refusal> {
    WebSocketUpgrade::from_request_parts(parts, app).await.map_err(|error| {
        let message = format!("this route speaks WebSocket: {}", error.body_text());
        ApiError::new(ErrorCode::UpgradeRequired, message).into()
    })
}

/// A close frame; what does not fit into one is left out of its reason.
fn farewell(code: u16, reason: &str) -> Message {
    // Close reasons are at most 123 bytes.
    let reason: String = reason.chars().filter(char::is_ascii).take(120).collect();
    Message::Close(Some(CloseFrame { code, reason: reason.into() }))
}

/// How long a client may take to hear that it is sent away.
const DISMISSAL: Duration = Duration::from_secs(10);

/// Returns when whoever opened a socket with a key may no longer do that with its computer. Other credentials say
/// themselves how long they hold.
pub(crate) async fn rights_end(control: Control, caller: Option<Caller>, computer: ComputerId, act: Act) {
    match caller {
        Some(caller) => control.rights_end(caller, computer, act).await,
        None => std::future::pending().await,
    }
}

/// Tells a client that its rights have ended. One that does not read is not waited for.
async fn dismiss(frames: &mut (impl Sink<Message> + Unpin)) {
    let reason = "the API key has ended, or what it may do has changed; connect again";
    drop(tokio::time::timeout(DISMISSAL, frames.send(farewell(close_code::POLICY, reason))).await);
}

async fn close(socket: &mut WebSocket, code: u16, reason: &str) {
    // A peer that is gone needs no goodbye.
    drop(socket.send(farewell(code, reason)).await);
    // What a client sent before it heard of the end is read: left unread, it would take the goodbye from the client.
    let rest = async { while let Some(Ok(_)) = socket.recv().await {} };
    drop(tokio::time::timeout(DISMISSAL, rest).await);
}
