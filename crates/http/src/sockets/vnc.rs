//! The live desktop: RFB bytes, both ways, between a browser and the display of a computer. What a viewer who may
//! only watch sends goes through [`ViewOnly`] first.

use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, close_code};
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use roost_api::{ComputerId, Status};
use roost_control::{Act, Control, StreamRights, StreamViewer, Tunnel};
use roost_guest_proto::v1::TunnelInput;
use roost_guest_proto::v1::tunnel_input::Input;
use roost_guest_proto::v1::tunnel_output::Output;
use serde::Deserialize;

use super::rfb::ViewOnly;
use super::{PING_EVERY, close, dismiss, rights_end, upgrade};
use crate::App;
use crate::client;
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
    let (bearer, from) = (bearer(&parts.headers), client::address(&parts.extensions));
    let opened = app.control.authorize_stream(id, token.as_deref(), bearer, from).await?;
    let StreamViewer { computer: record, rights, caller } = opened;
    app.control.require_running(&record)?;
    let upgrade = upgrade(&mut parts, &app).await?;
    let display = app.control.open_display(id).await?;
    let control = app.control.clone();
    let (viewer, act) = match rights {
        StreamRights::Control => (None, Act::Write),
        StreamRights::View => (Some(ViewOnly::default()), Act::Read),
    };
    Ok(upgrade.protocols(["binary"]).on_upgrade(move |mut socket| async move {
        let is_over = tokio::select! {
            () = bridge(&control, id, &mut socket, display, viewer) => true,
            () = rights_end(control.clone(), caller, id, act) => false,
        };
        if !is_over {
            dismiss(&mut socket).await;
        }
    }))
}

async fn bridge(
    control: &Control,
    id: ComputerId,
    socket: &mut WebSocket,
    mut display: Tunnel,
    mut viewer: Option<ViewOnly>,
) {
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.reset();
    loop {
        tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    let bytes = match &mut viewer {
                        None => bytes,
                        Some(viewer) => match viewer.push(&bytes) {
                            Ok(passed) if passed.is_empty() => continue,
                            Ok(passed) => passed.into(),
                            Err(violation) => {
                                return close(socket, close_code::POLICY, &violation.to_string()).await;
                            }
                        },
                    };
                    let input = TunnelInput { input: Some(Input::Data(bytes)) };
                    if display.input.send(input).await.is_err() {
                        break;
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    let reason = "only binary frames: this is an RFB stream";
                    return close(socket, close_code::UNSUPPORTED, reason).await;
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
        close(socket, close_code::NORMAL, "the desktop ended the stream").await;
    } else {
        close(socket, close_code::AWAY, "the computer was stopped").await;
    }
}
