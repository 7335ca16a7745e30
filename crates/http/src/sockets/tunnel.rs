//! Raw TCP to a port of a computer: binary frames, both ways. The end of either side ends the socket.
//!
//! A WebSocket has no half-close, and TCP has. With the subprotocol `roost-tunnel-v1` an empty frame of the client says
//! that it has said everything, and what the program answers still comes.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, close_code};
use axum::extract::{FromRequestParts, Request, State};
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use roost_api::{ComputerId, ErrorBody, Status};
use roost_control::{Act, Caller, Control, Tunnel, TunnelOutputs};
use roost_guest_proto::v1::tunnel_input::Input;
use roost_guest_proto::v1::tunnel_output::Output;
use roost_guest_proto::v1::{TunnelInput, TunnelOutput};
use tokio::sync::mpsc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{PING_EVERY, dismiss, farewell, rights_end, upgrade};
use crate::App;
use crate::envelope::Refusal;
use crate::extract::{PathPort, Target, who};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(open))
}

/// Raw TCP to a port of the computer's loopback as a WebSocket
#[utoipa::path(get, path = "/computers/{id}/tunnel/{port}", tag = "ports",
    params(("id" = String, Path), ("port" = u16, Path)),
    responses((status = 101, description = "Binary frames; the end of either side closes the socket. With the subprotocol \
            `roost-tunnel-v1` an empty frame of the client ends its side alone"),
        (status = 502, description = "Nothing listens on the port", body = ErrorBody),
        (status = "default", body = ErrorBody)))]
async fn open(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let Target(record) = Target::from_request_parts(&mut parts, &app).await?;
    let caller = who(&mut parts, &app).await?;
    app.control.require_running(&record)?;
    let PathPort(port) = PathPort::from_request_parts(&mut parts, &app).await?;
    let id = record.id;
    let upgrade = upgrade(&mut parts, &app).await?;
    let tunnel = app.control.open_port(id, port).await?;
    let control = app.control.clone();
    Ok(upgrade
        .protocols([HALF_CLOSE, "binary"])
        .on_upgrade(move |socket| bridge(control, id, caller, socket, tunnel)))
}

const HALF_CLOSE: &str = "roost-tunnel-v1";

/// How long a program may take to end the connection after its client has.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Why a socket ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client has closed it, or is gone.
    Client,
    /// The program in the computer has ended its side.
    Program,
    Broken,
    /// The caller may no longer do what they could.
    Rights,
    Text,
}

/// The two directions do not wait for each other: both sides may be full at once.
async fn bridge(control: Control, id: ComputerId, caller: Caller, socket: WebSocket, tunnel: Tunnel) {
    let half_closes = socket.protocol().is_some_and(|agreed| agreed == HALF_CLOSE);
    let (mut frames, messages) = socket.split();
    let Tunnel { input, mut output } = tunnel;
    let end = tokio::select! {
        end = inwards(messages, input, half_closes) => end,
        end = outwards(&mut frames, &mut output) => end,
        () = rights_end(control.clone(), Some(caller), id, Act::Write) => End::Rights,
    };
    let goodbye = match end {
        End::Client => {
            // Its last words are still on their way; letting go of the tunnel now would lose them.
            let ended = async { while let Ok(Some(_)) = output.message().await {} };
            drop(tokio::time::timeout(LAST_WORDS, ended).await);
            return;
        }
        End::Program => farewell(close_code::NORMAL, ""),
        End::Rights => {
            drop(output);
            return dismiss(&mut frames).await;
        }
        End::Text => farewell(close_code::UNSUPPORTED, "only binary frames: this is a byte stream"),
        End::Broken => match control.status(id).await {
            Some(Status::Running) => farewell(close_code::ERROR, "the connection in the computer broke"),
            _ => farewell(close_code::AWAY, "the computer was stopped"),
        },
    };
    // A peer that is gone needs no goodbye.
    drop(frames.send(goodbye).await);
}

async fn inwards(
    mut messages: SplitStream<WebSocket>,
    input: mpsc::Sender<TunnelInput>,
    half_closes: bool,
) -> End {
    loop {
        match messages.next().await {
            Some(Ok(Message::Binary(bytes))) if bytes.is_empty() && half_closes => {
                drop(input);
                // Nothing more is said; only that it goes is of interest now.
                while let Some(Ok(message)) = messages.next().await {
                    if let Message::Close(_) = message {
                        break;
                    }
                }
                return End::Client;
            }
            Some(Ok(Message::Binary(bytes))) => {
                let piece = TunnelInput { input: Some(Input::Data(bytes)) };
                if input.send(piece).await.is_err() {
                    // What the program has still said comes first; its end is seen there.
                    return std::future::pending().await;
                }
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Text(_))) => return End::Text,
            Some(Ok(Message::Close(_)) | Err(_)) | None => return End::Client,
        }
    }
}

async fn outwards(frames: &mut SplitSink<WebSocket, Message>, output: &mut TunnelOutputs) -> End {
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.reset();
    loop {
        let frame = tokio::select! {
            output = output.message() => match output {
                Ok(Some(TunnelOutput { output: Some(Output::Data(bytes)) })) => Message::Binary(bytes),
                Ok(Some(TunnelOutput { output: Some(Output::Opened(_)) | None })) => continue,
                Ok(None) => return End::Program,
                Err(_) => return End::Broken,
            },
            _ = ping.tick() => Message::Ping(Bytes::new()),
        };
        if frames.send(frame).await.is_err() {
            return End::Client;
        }
    }
}
