//! Watching a terminal session and typing into it.
//!
//! JSON text frames. From the client `input` with `data`, and `resize` with `cols` and `rows`; binary frames are input
//! as it is. From the server first `session` (which one it is), then `output` with `data`, `resize` when somebody gave
//! the session another size, and at its end `exit` with `code`. A client that connects again with the session's id gets
//! the scrollback and the screen first; with `or_new` it gets a new session where that one has ended. Whoever may only watch the desktop gets no terminal: every key is a command.

use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, close_code};
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use roost_api::{ApiError, ComputerId, ErrorCode, OpenTerminal, Status};
use roost_control::{Act, Caller, Control, StreamRights, StreamViewer, TerminalOutputs, TerminalViewer};
use roost_guest_proto::v1::AttachInput;
use roost_guest_proto::v1::attach_input::Input;
use roost_guest_proto::v1::attach_output::Output;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;

use super::utf8::Utf8;
use super::{PING_EVERY, dismiss, farewell, in_pieces, rights_end, upgrade};
use crate::App;
use crate::client;
use crate::envelope::Refusal;
use crate::extract::{bearer, path_id};

pub(crate) fn router() -> Router<App> {
    Router::new().route("/ws/terminal/{id}", get(open))
}

#[derive(Debug, Default, Deserialize)]
struct Asked {
    auth: Option<String>,
    /// Absent: a new session.
    session_id: Option<String>,
    /// A new session where that one has ended.
    or_new: Option<bool>,
    cols: Option<u32>,
    rows: Option<u32>,
}

async fn open(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let id = path_id(&mut parts, &app).await?;
    let query = axum::extract::Query::<Asked>::try_from_uri(&parts.uri);
    let asked = query.map(|query| query.0).map_err(|error| ApiError::field("query", error.body_text()))?;
    let (bearer, from) = (bearer(&parts.headers), client::address(&parts.extensions));
    let opened = app.control.authorize_stream(id, asked.auth.as_deref(), bearer, from).await?;
    let StreamViewer { computer: record, rights, caller } = opened;
    match rights {
        StreamRights::Control => {}
        StreamRights::View => {
            let message =
                "this link only lets one watch the desktop; a terminal needs a link that may control it";
            return Err(ApiError::new(ErrorCode::Forbidden, message).into());
        }
    }
    app.control.require_running(&record)?;
    let upgrade = upgrade(&mut parts, &app).await?;
    let size = match (asked.rows, asked.cols) {
        (Some(rows), Some(cols)) => Some(roost_control::terminal_size(rows, cols)?),
        (None, None) => None,
        _ => return Err(ApiError::field("rows", "rows and cols belong together").into()),
    };
    let open_new = || async {
        let new = OpenTerminal { rows: asked.rows, cols: asked.cols, ..OpenTerminal::default() };
        let session = app.control.open_terminal(&record, new).await?.session_id;
        app.control.attach_terminal(id, &session, size).await
    };
    let viewer = match asked.session_id.as_deref().filter(|session| !session.is_empty()) {
        None => open_new().await?,
        Some(session) => match app.control.attach_terminal(id, session, size).await {
            Err(failure) if failure.public.code == ErrorCode::NotFound && asked.or_new == Some(true) => {
                open_new().await?
            }
            attached => attached?,
        },
    };
    let control = app.control.clone();
    Ok(upgrade.on_upgrade(move |socket| bridge(control, id, caller, socket, viewer)))
}

/// Why a socket ends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// The client has closed it, or is gone.
    Client,
    /// The session has ended, and the client was told how.
    Session,
    /// The connection to the computer was lost.
    Lost,
    /// The caller may no longer do what they could.
    Rights,
    /// The client said something that makes no sense.
    Refused(String),
}

async fn bridge(
    control: Control,
    id: ComputerId,
    caller: Option<Caller>,
    socket: WebSocket,
    viewer: TerminalViewer,
) {
    let (mut frames, messages) = socket.split();
    let TerminalViewer { input, mut output } = viewer;
    let end = tokio::select! {
        end = inwards(messages, input) => end,
        end = outwards(&mut frames, &mut output) => end,
        () = rights_end(control.clone(), caller, id, Act::Write) => End::Rights,
    };
    drop(output);
    let goodbye = match end {
        End::Client => return,
        End::Session => farewell(close_code::NORMAL, ""),
        End::Rights => return dismiss(&mut frames).await,
        End::Refused(reason) => farewell(close_code::POLICY, &reason),
        End::Lost => match control.status(id).await {
            Some(Status::Running) => farewell(close_code::ERROR, "the connection to the computer was lost"),
            _ => farewell(close_code::AWAY, "the computer was stopped"),
        },
    };
    // A peer that is gone needs no goodbye.
    drop(frames.send(goodbye).await);
}

async fn inwards(mut messages: SplitStream<WebSocket>, input: mpsc::Sender<AttachInput>) -> End {
    loop {
        let pieces = match messages.next().await {
            Some(Ok(Message::Binary(keys))) => in_pieces(keys).map(Input::Data).collect(),
            Some(Ok(Message::Text(text))) => match read(text.as_str()) {
                Ok(pieces) => pieces,
                Err(reason) => return End::Refused(reason),
            },
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Close(_)) | Err(_)) | None => return End::Client,
        };
        for piece in pieces {
            if input.send(AttachInput { input: Some(piece) }).await.is_err() {
                // Why the session has ended is on its way to the client.
                return std::future::pending().await;
            }
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Frame {
    Input {
        data: String,
    },
    Resize {
        cols: u32,
        rows: u32,
    },
    #[serde(other)]
    Unknown,
}

fn read(text: &str) -> Result<Vec<Input>, String> {
    let frame: Frame = serde_json::from_str(text).map_err(|error| format!("not a frame: {error}"))?;
    match frame {
        Frame::Input { data } => Ok(in_pieces(data.into()).map(Input::Data).collect()),
        Frame::Resize { cols, rows } => match roost_control::terminal_size(rows, cols) {
            Ok(size) => Ok(vec![Input::Resize(size)]),
            Err(error) => Err(error.message),
        },
        Frame::Unknown => Ok(Vec::new()),
    }
}

async fn outwards(frames: &mut SplitSink<WebSocket, Message>, output: &mut TerminalOutputs) -> End {
    let mut text = Utf8::default();
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.reset();
    loop {
        let (message, ended) = tokio::select! {
            shown = output.message() => match shown {
                Ok(Some(shown)) => match shown.output {
                    Some(output) => {
                        let ended = matches!(output, Output::Exit(_));
                        (write(output, &mut text), ended)
                    }
                    None => continue,
                },
                Ok(None) | Err(_) => return End::Lost,
            },
            _ = ping.tick() => (Some(Message::Ping(Bytes::new())), false),
        };
        if let Some(message) = message
            && frames.send(message).await.is_err()
        {
            return End::Client;
        }
        if ended {
            return End::Session;
        }
    }
}

/// `None` where all there is is the beginning of a character.
fn write(output: Output, text: &mut Utf8) -> Option<Message> {
    let frame = match output {
        Output::Attached(session) => {
            let size = session.size.unwrap_or_default();
            json!({
                "type": "session",
                "session_id": session.id,
                "shell": session.program,
                "cols": size.columns,
                "rows": size.rows,
            })
        }
        Output::Data(bytes) => {
            let data = text.push(&bytes);
            if data.is_empty() {
                return None;
            }
            json!({ "type": "output", "data": data })
        }
        Output::Resized(size) => json!({ "type": "resize", "cols": size.columns, "rows": size.rows }),
        Output::Exit(exit) => json!({ "type": "exit", "code": exit.code }),
    };
    Some(Message::Text(frame.to_string().into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use roost_guest_proto::v1::TerminalSize;

    use super::super::LARGEST_PIECE;
    use super::*;

    #[test]
    fn frames_mean_what_they_say() {
        let input = read(r#"{"type":"input","data":"ls\r"}"#).unwrap();
        assert_eq!(input, [Input::Data("ls\r".into())]);
        let resize = read(r#"{"type":"resize","cols":100,"rows":30}"#).unwrap();
        assert_eq!(resize, [Input::Resize(TerminalSize { rows: 30, columns: 100 })]);
        assert_eq!(read(r#"{"type":"from the future","x":1}"#).unwrap(), []);
        for text in ["", "ls", "[]", r#"{"type":"input"}"#, r#"{"type":"resize","cols":0,"rows":1}"#] {
            assert!(read(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_character_in_two_pieces_is_one() {
        let mut text = Utf8::default();
        assert_eq!(write(Output::Data(Bytes::from_static(b"\xe6\x97")), &mut text), None);
        let whole = write(Output::Data(Bytes::from_static(b"\xa5")), &mut text);
        assert_eq!(whole, Some(Message::Text(r#"{"data":"日","type":"output"}"#.into())));
    }

    proptest! {
        #[test]
        fn what_is_typed_arrives_whole(keys in any::<String>(), times in 0..4000usize) {
            let keys = keys.repeat(times);
            let frame = json!({ "type": "input", "data": keys }).to_string();
            let mut typed = Vec::new();
            for piece in read(&frame).unwrap() {
                let Input::Data(data) = piece else { panic!("{piece:?}") };
                prop_assert!(!data.is_empty() && data.len() <= LARGEST_PIECE);
                typed.extend_from_slice(&data);
            }
            prop_assert_eq!(typed, keys.into_bytes());
        }

        #[test]
        fn no_text_breaks_it(text in any::<String>(), rows in any::<i64>(), cols in any::<i64>()) {
            let _refused = read(&text);
            let frame = json!({ "type": "resize", "rows": rows, "cols": cols }).to_string();
            match (read(&frame), u32::try_from(rows), u32::try_from(cols)) {
                (Ok(read), Ok(rows), Ok(columns)) => {
                    prop_assert_eq!(read, [Input::Resize(TerminalSize { rows, columns })]);
                    prop_assert!(roost_control::terminal_size(rows, columns).is_ok());
                }
                (Ok(_), _, _) => prop_assert!(false, "{frame}"),
                (Err(reason), _, _) => prop_assert!(!reason.is_empty()),
            }
        }

        #[test]
        fn bytes_that_are_no_text_come_as_text(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..10)) {
            let mut text = Utf8::default();
            let shown: String = pieces.iter().map(|piece| text.push(piece)).collect();
            let whole = shown + &text.finish();
            let all = pieces.concat();
            prop_assert_eq!(whole, String::from_utf8_lossy(&all));
        }
    }
}
