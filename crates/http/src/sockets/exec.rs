//! Commands whose input and output are streamed.
//!
//! Two framings on one route, chosen by the subprotocol the client offers: `miosa-exec-v1` (binary frames,
//! first byte a channel) or none (JSON text frames). Closing the socket hangs the command up.

use std::collections::HashMap;

use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, close_code};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use roost_api::{ApiError, ErrorBody, ErrorCode};
use roost_control::{ExecCommand, ExecSession};
use roost_guest_proto::v1::run_input::Input;
use roost_guest_proto::v1::run_output::Output;
use roost_guest_proto::v1::{CloseStdin, RunInput};
use serde::Deserialize;
use serde_json::json;

use super::utf8::Utf8;
use super::{PING_EVERY, close, upgrade};
use crate::App;
use crate::envelope::Refusal;
use crate::extract::{bearer, identify, path_id};

const FRAMED: &str = "miosa-exec-v1";

const STDIN: u8 = 0x00;
const STDOUT: u8 = 0x01;
const STDERR: u8 = 0x02;
const EXIT: u8 = 0x03;
const STDIN_END: u8 = 0x04;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Binary,
    Json,
}

/// Run a command with its input and output as a WebSocket
#[utoipa::path(get, path = "/computers/{id}/exec/stream", tag = "exec",
    params(("id" = String, Path),
        ("command" = String, Query, description = "A shell line, or a program where `args` is given"),
        ("args" = Option<Vec<String>>, Query, description = "Arguments, repeated or separated by commas"),
        ("env" = Option<Vec<String>>, Query, description = "`NAME=VALUE`, repeated, or one JSON object"),
        ("cwd" = Option<String>, Query),
        ("user" = Option<String>, Query)),
    responses((status = 101, description = "Frames of the subprotocol `miosa-exec-v1`, or JSON text frames without one"),
        (status = "default", body = ErrorBody)))]
pub(crate) async fn stream(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let offered = offered(&parts.headers);
    let subprotocol_credential = offered.iter().find_map(|name| name.strip_prefix("bearer."));
    let credential = bearer(&parts.headers).or(subprotocol_credential).map(str::to_owned);
    let caller = identify(&mut parts, &app, credential.as_deref()).await?;
    let id = path_id(&mut parts, &app).await?;
    let record = app.control.get(&caller, id).await?;
    app.control.require_running(&record)?;
    let command = command(parts.uri.query().unwrap_or_default())?;
    let upgrade = upgrade(&mut parts, &app).await?;
    let framing = if offered.iter().any(|name| name == FRAMED) { Framing::Binary } else { Framing::Json };
    let session = app.control.exec_start(id, command).await?;
    Ok(upgrade.protocols([FRAMED]).on_upgrade(move |socket| bridge(socket, session, framing)))
}

fn offered(headers: &HeaderMap) -> Vec<String> {
    let values =
        headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|name| name.trim().to_owned()).collect()
}

/// The published clients encode lists and variables each in their own way; all are read.
fn command(query: &str) -> Result<ExecCommand, ApiError> {
    let pairs: Vec<(String, String)> = query_pairs(query)?;
    let all = |name: &str| -> Vec<String> {
        let values = pairs.iter().filter(|(key, value)| key == name && !value.is_empty());
        values.map(|(_, value)| value.clone()).collect()
    };
    let first = |name: &str| all(name).into_iter().next();
    let program = first("command").ok_or_else(|| {
        ApiError::new(ErrorCode::MissingParam, "command is required: the shell line or program to run")
    })?;
    if first("tty").is_some_and(|tty| tty == "true") || first("rows").is_some() || first("cols").is_some() {
        return Err(ApiError::field("tty", "terminals are not available yet; run the command without one"));
    }
    let args = all("args");
    let mut command = match args.as_slice() {
        [] => ExecCommand::shell(&program),
        [joined] => {
            let separator = if joined.contains(',') || !joined.contains(' ') { ',' } else { ' ' };
            let mut argv = vec![program];
            argv.extend(joined.split(separator).map(str::to_owned));
            ExecCommand { argv, ..ExecCommand::default() }
        }
        several => {
            let mut argv = vec![program];
            argv.extend_from_slice(several);
            ExecCommand { argv, ..ExecCommand::default() }
        }
    };
    for value in all("env") {
        if value.starts_with('{') {
            let object: HashMap<String, String> = serde_json::from_str(&value)
                .map_err(|error| ApiError::field("env", format!("not a JSON object of texts: {error}")))?;
            command.env.extend(object);
        } else {
            let (name, value) =
                value.split_once('=').ok_or_else(|| ApiError::field("env", "not in the form NAME=VALUE"))?;
            command.env.insert(name.to_owned(), value.to_owned());
        }
    }
    command.cwd = first("cwd");
    command.user = first("user");
    command.stdin = true;
    Ok(command)
}

fn query_pairs(query: &str) -> Result<Vec<(String, String)>, ApiError> {
    let uri = format!("/?{query}").parse().map_err(|_| ApiError::field("query", "not a valid query"))?;
    let parsed = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri);
    parsed.map(|query| query.0).map_err(|error| ApiError::field("query", error.body_text()))
}

/// What a client frame asks for.
#[derive(Debug, PartialEq)]
enum Asked {
    Input(Input),
    /// Nothing we know; ignored, as the protocol demands.
    Nothing,
}

async fn bridge(mut socket: WebSocket, session: ExecSession, framing: Framing) {
    let ExecSession { input, mut output } = session;
    let (mut stdout, mut stderr) = (Utf8::default(), Utf8::default());
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.reset();
    // At most one piece of input waits for the command to read it; meanwhile output goes on and the client
    // is not read from, which is what slows it down.
    let mut waiting: Option<RunInput> = None;
    loop {
        let can_read = waiting.is_none();
        let message = tokio::select! {
            permit = input.reserve(), if !can_read => {
                match (permit, waiting.take()) {
                    (Ok(permit), Some(piece)) => permit.send(piece),
                    // The command has ended; its exit is on the way.
                    (Err(_), _) | (_, None) => {}
                }
                continue;
            }
            message = socket.recv(), if can_read => {
                let asked = match message {
                    Some(Ok(Message::Binary(bytes))) if framing == Framing::Binary => binary_frame(&bytes),
                    Some(Ok(Message::Text(text))) if framing == Framing::Json => match json_frame(text.as_str()) {
                        Ok(asked) => asked,
                        Err(reason) => return close(&mut socket, close_code::POLICY, &reason).await,
                    },
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => Asked::Nothing,
                    Some(Ok(Message::Binary(_) | Message::Text(_))) => {
                        return close(&mut socket, close_code::UNSUPPORTED, "a frame of the other framing").await;
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                if let Asked::Input(piece) = asked {
                    waiting = Some(RunInput { input: Some(piece) });
                }
                continue;
            }
            message = output.message() => match message {
                Ok(Some(message)) => message,
                Ok(None) | Err(_) => {
                    return close(&mut socket, close_code::AWAY, "the connection to the computer was lost").await;
                }
            },
            _ = ping.tick() => {
                if socket.send(Message::Ping(Bytes::new())).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let frames = match (message.output, framing) {
            (Some(Output::Stdout(bytes)), Framing::Binary) => vec![binary(STDOUT, &bytes)],
            (Some(Output::Stderr(bytes)), Framing::Binary) => vec![binary(STDERR, &bytes)],
            (Some(Output::Stdout(bytes)), Framing::Json) => text("stdout", stdout.push(&bytes)),
            (Some(Output::Stderr(bytes)), Framing::Json) => text("stderr", stderr.push(&bytes)),
            (Some(Output::Exit(exit)), framing) => {
                let last = match framing {
                    Framing::Binary => vec![binary(EXIT, &exit.code.to_be_bytes())],
                    Framing::Json => {
                        let mut frames = text("stdout", stdout.finish());
                        frames.extend(text("stderr", stderr.finish()));
                        let exit = json!({ "type": "exit", "code": exit.code, "exit": exit.code });
                        frames.push(Message::Text(exit.to_string().into()));
                        frames
                    }
                };
                for frame in last {
                    if socket.send(frame).await.is_err() {
                        return;
                    }
                }
                return close(&mut socket, close_code::NORMAL, "").await;
            }
            (Some(Output::Started(_)) | None, _) => Vec::new(),
        };
        for frame in frames {
            if socket.send(frame).await.is_err() {
                return;
            }
        }
    }
}

fn binary(channel: u8, payload: &[u8]) -> Message {
    let mut frame = Vec::with_capacity(payload.len() + 1);
    frame.push(channel);
    frame.extend_from_slice(payload);
    Message::Binary(frame.into())
}

fn text(kind: &str, data: String) -> Vec<Message> {
    if data.is_empty() {
        return Vec::new();
    }
    vec![Message::Text(json!({ "type": kind, "data": data }).to_string().into())]
}

fn binary_frame(frame: &Bytes) -> Asked {
    match frame.first() {
        Some(&STDIN) => Asked::Input(Input::Stdin(frame.slice(1..))),
        Some(&STDIN_END) => Asked::Input(Input::CloseStdin(CloseStdin {})),
        _ => Asked::Nothing,
    }
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum JsonFrame {
    Stdin {
        data: String,
    },
    StdinClose,
    Signal {
        signal: String,
    },
    #[serde(other)]
    Unknown,
}

fn json_frame(text: &str) -> Result<Asked, String> {
    let frame: JsonFrame = serde_json::from_str(text).map_err(|error| format!("not a frame: {error}"))?;
    match frame {
        JsonFrame::Stdin { data } => Ok(Asked::Input(Input::Stdin(data.into()))),
        JsonFrame::StdinClose => Ok(Asked::Input(Input::CloseStdin(CloseStdin {}))),
        JsonFrame::Signal { signal } => match signal_number(&signal) {
            Some(number) => Ok(Asked::Input(Input::Signal(number))),
            None => Err(format!("unknown signal {signal:?}")),
        },
        JsonFrame::Unknown => Ok(Asked::Nothing),
    }
}

/// Linux numbers: the guest is Linux wherever the server runs.
fn signal_number(name: &str) -> Option<i32> {
    match name.strip_prefix("SIG").unwrap_or(name) {
        "HUP" => Some(1),
        "INT" => Some(2),
        "QUIT" => Some(3),
        "KILL" => Some(9),
        "USR1" => Some(10),
        "USR2" => Some(12),
        "TERM" => Some(15),
        "CONT" => Some(18),
        "STOP" => Some(19),
        "TSTP" => Some(20),
        "WINCH" => Some(28),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_from_every_clients_encoding() {
        let shell = command("command=echo%20hi").unwrap();
        assert_eq!(shell.argv, ["/bin/bash", "-lc", "echo hi"]);
        let commas = command("command=ls&args=-l%2C%2Ftmp&env=%7B%22A%22%3A%22b%22%7D").unwrap();
        assert_eq!(
            (commas.argv, commas.env["A"].as_str()),
            (vec!["ls".into(), "-l".into(), "/tmp".into()], "b")
        );
        let spaces = command("command=ls&args=-l%20%2Ftmp").unwrap();
        assert_eq!(spaces.argv, ["ls", "-l", "/tmp"]);
        let repeated = command("command=ls&args=a&args=b%20c&env=A%3D1&env=B%3D2&cwd=%2Ftmp").unwrap();
        assert_eq!(repeated.argv, ["ls", "a", "b c"]);
        assert_eq!((repeated.env.len(), repeated.cwd.as_deref()), (2, Some("/tmp")));
    }

    #[test]
    fn a_bad_command_is_refused_before_the_upgrade() {
        assert_eq!(command("").unwrap_err().code, ErrorCode::MissingParam);
        for query in ["command=x&env=A", "command=x&env=%7Bx", "command=x&tty=true"] {
            assert_eq!(command(query).unwrap_err().code, ErrorCode::ValidationFailed, "{query}");
        }
    }

    #[test]
    fn unknown_frames_are_ignored_and_broken_ones_are_not() {
        assert_eq!(binary_frame(&Bytes::from_static(b"\x77x")), Asked::Nothing);
        assert_eq!(binary_frame(&Bytes::new()), Asked::Nothing);
        assert_eq!(json_frame(r#"{"type":"new-thing"}"#), Ok(Asked::Nothing));
        assert_eq!(
            json_frame(r#"{"type":"signal","signal":"SIGTERM"}"#),
            Ok(Asked::Input(Input::Signal(15)))
        );
        for text in ["", "{", "[]", r#"{"type":"stdin"}"#, r#"{"type":"signal","signal":"SIGNOPE"}"#] {
            assert!(json_frame(text).is_err(), "{text:?}");
        }
    }
}
