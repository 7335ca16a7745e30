//! The live desktop: RFB bytes, both ways, between a browser and the display of a computer.

use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use roost_api::{ComputerId, Status};
use roost_control::{Control, DisplayStream};
use roost_guest_proto::v1::TunnelInput;
use roost_guest_proto::v1::tunnel_input::Input;
use roost_guest_proto::v1::tunnel_output::Output;
use serde::Deserialize;

use super::{PING_EVERY, upgrade};
use crate::App;
use crate::envelope::Refusal;
use crate::extract::{bearer, path_id};

pub(crate) fn router() -> Router<App> {
    Router::new().route("/ws/vnc/{id}", get(open))
}

#[derive(Debug, Default, Deserialize)]
struct Credential {
    auth: Option<String>,
}

async fn open(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let id = path_id(&mut parts, &app).await?;
    let query = axum::extract::Query::<Credential>::try_from_uri(&parts.uri);
    let token = query.map(|query| query.0).unwrap_or_default().auth;
    let record = app.control.authorize_stream(id, token.as_deref(), bearer(&parts.headers)).await?;
    app.control.require_running(&record)?;
    let upgrade = upgrade(&mut parts, &app).await?;
    let display = app.control.open_display(id).await?;
    let control = app.control.clone();
    Ok(upgrade.protocols(["binary"]).on_upgrade(move |socket| bridge(control, id, socket, display)))
}

async fn bridge(control: Control, id: ComputerId, mut socket: WebSocket, mut display: DisplayStream) {
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.reset();
    loop {
        tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    let input = TunnelInput { input: Some(Input::Data(bytes)) };
                    if display.input.send(input).await.is_err() {
                        break;
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    close(&mut socket, close_code::UNSUPPORTED, "only binary frames: this is an RFB stream").await;
                    return;
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
            },
            output = display.output.message() => match output {
                Ok(Some(output)) => {
                    if let Some(Output::Data(bytes)) = output.output
                        && socket.send(Message::Binary(bytes)).await.is_err()
                    {
                        return;
                    }
                }
                Ok(None) | Err(_) => break,
            },
            _ = ping.tick() => {
                if socket.send(Message::Ping(Bytes::new())).await.is_err() {
                    return;
                }
            }
        }
    }
    let running = control.status(id).await.is_some_and(|status| status == Status::Running);
    if running {
        close(&mut socket, close_code::NORMAL, "the desktop ended the stream").await;
    } else {
        close(&mut socket, close_code::AWAY, "the computer was stopped").await;
    }
}

async fn close(socket: &mut WebSocket, code: u16, reason: &'static str) {
    let frame = CloseFrame { code, reason: reason.into() };
    // A peer that is gone needs no goodbye.
    drop(socket.send(Message::Close(Some(frame))).await);
}
