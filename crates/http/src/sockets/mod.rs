//! WebSockets. Credentials are checked before the upgrade; a refusal is an ordinary HTTP answer.

pub(crate) mod exec;
mod rfb;
pub(crate) mod terminal;
pub(crate) mod tunnel;
mod utf8;
pub(crate) mod vnc;

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::request::Parts;
use bytes::Bytes;
use roost_api::{ApiError, ErrorCode};

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

async fn close(socket: &mut WebSocket, code: u16, reason: &str) {
    // A peer that is gone needs no goodbye.
    drop(socket.send(farewell(code, reason)).await);
}
