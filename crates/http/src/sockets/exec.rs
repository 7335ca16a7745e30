//! Commands whose input and output are streamed.
//!
//! Three framings. On `exec/stream` the subprotocol that the client offers decides: `miosa-exec-v1` (binary frames,
//! first byte a channel) or none (JSON text frames). `exec/spawn` has one of its own: binary frames for data, JSON for
//! the rest. Closing the socket hangs the command up.
//!
//! The two directions do not wait for each other, and nothing is kept on the way: a client that does not read slows
//! the command down, a command that does not read slows the client down.

use std::collections::HashMap;

use axum::body::Bytes;
use axum::extract::ws::{Message, WebSocket, close_code};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use roost_api::{ApiError, ComputerId, ErrorBody, ErrorCode};
use roost_control::{Act, Caller, Control, ExecCommand, ExecOutputs, ExecSession, TerminalSize};
use roost_guest_proto::v1::run_input::Input;
use roost_guest_proto::v1::run_output::Output;
use roost_guest_proto::v1::{CloseStdin, RunInput, RunOutput};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::utf8::Utf8;
use super::{PING_EVERY, dismiss, farewell, in_pieces, rights_end, upgrade};
use crate::App;
use crate::envelope::Refusal;
use crate::extract::{bearer, identify, path_id};

const FRAMED: &str = "miosa-exec-v1";

const STDIN: u8 = 0x00;
const STDOUT: u8 = 0x01;
const STDERR: u8 = 0x02;
const EXIT: u8 = 0x03;
const STDIN_END: u8 = 0x04;
const RESIZE: u8 = 0x05;

/// A terminal whose client named no size.
const ROWS: u32 = 24;
const COLUMNS: u32 = 80;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Binary,
    Json,
    Spawn,
}

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(stream)).routes(routes!(ws)).routes(routes!(spawn))
}

/// Run a command with its input and output as a WebSocket
#[utoipa::path(get, path = "/computers/{id}/exec/stream", tag = "exec",
    params(("id" = String, Path),
        ("command" = String, Query, description = "A shell line, or a program where `args` is given"),
        ("args" = Option<Vec<String>>, Query, description = "Arguments, repeated or separated by commas"),
        ("env" = Option<Vec<String>>, Query, description = "`NAME=VALUE`, repeated, or one JSON object"),
        ("cwd" = Option<String>, Query),
        ("user" = Option<String>, Query),
        ("tty" = Option<bool>, Query, description = "On a terminal; so it is where `rows` or `cols` is given"),
        ("rows" = Option<u32>, Query, description = "Of the terminal (24)"),
        ("cols" = Option<u32>, Query, description = "Of the terminal (80)")),
    responses((status = 101, description = "Frames of the subprotocol `miosa-exec-v1`, or JSON text frames without one"),
        (status = "default", body = ErrorBody)))]
async fn stream(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let framing = if offered(request.headers()).iter().any(|name| name == FRAMED) {
        Framing::Binary
    } else {
        Framing::Json
    };
    open(app, request, framing).await
}

/// The same with JSON text frames, under another name
#[utoipa::path(get, path = "/computers/{id}/exec/ws", tag = "exec",
    params(("id" = String, Path), ("command" = String, Query)),
    responses((status = 101, description = "JSON text frames"), (status = "default", body = ErrorBody)))]
async fn ws(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    open(app, request, Framing::Json).await
}

/// The same with binary frames for data (first byte 1: output, 2: errors) and JSON text frames for the rest
#[utoipa::path(get, path = "/computers/{id}/exec/spawn", tag = "exec",
    params(("id" = String, Path), ("command" = String, Query)),
    responses((status = 101, description = "Binary and JSON frames"), (status = "default", body = ErrorBody)))]
async fn spawn(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    open(app, request, Framing::Spawn).await
}

async fn open(app: App, request: Request, framing: Framing) -> Result<Response, Refusal> {
    let (mut parts, _) = request.into_parts();
    let offered = offered(&parts.headers);
    let subprotocol_credential = offered.iter().find_map(|name| name.strip_prefix("bearer."));
    let credential = bearer(&parts.headers).or(subprotocol_credential).map(str::to_owned);
    let caller = identify(&mut parts, &app, credential.as_deref()).await?;
    let id = path_id(&mut parts, &app).await?;
    let record = app.control.get(&caller, id).await?;
    app.control.require_running(&record)?;
    let query = parts.uri.query().unwrap_or_default();
    let command = match framing {
        // The one client of this route leaves a plus as it is.
        Framing::Spawn => command(&query.replace('+', "%2B"))?,
        Framing::Binary | Framing::Json => command(query)?,
    };
    let upgrade = upgrade(&mut parts, &app).await?;
    let session = app.control.exec_start(id, command).await?;
    let control = app.control.clone();
    Ok(upgrade
        .protocols([FRAMED])
        .on_upgrade(move |socket| bridge(control, caller, id, socket, session, framing)))
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
    command.terminal = terminal(first("tty").as_deref(), first("rows").as_deref(), first("cols").as_deref())?;
    Ok(command)
}

/// Absent where the command gets pipes, so that its output and its errors stay apart.
fn terminal(
    tty: Option<&str>,
    rows: Option<&str>,
    columns: Option<&str>,
) -> Result<Option<TerminalSize>, ApiError> {
    let wanted = match tty {
        Some("true" | "1") => true,
        Some("false" | "0") => false,
        Some(_) => return Err(ApiError::field("tty", "neither `true` nor `false`")),
        None => rows.is_some() || columns.is_some(),
    };
    if !wanted {
        return Ok(None);
    }
    let count = |field: &str, text: Option<&str>, default: u32| match text.map(str::parse) {
        None => Ok(default),
        Some(Ok(count)) => Ok(count),
        Some(Err(_)) => Err(ApiError::field(field, "not a number")),
    };
    let (rows, columns) = (count("rows", rows, ROWS)?, count("cols", columns, COLUMNS)?);
    roost_control::terminal_size(rows, columns).map(Some)
}

fn query_pairs(query: &str) -> Result<Vec<(String, String)>, ApiError> {
    let uri = format!("/?{query}").parse().map_err(|_| ApiError::field("query", "not a valid query"))?;
    let parsed = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri);
    parsed.map(|query| query.0).map_err(|error| ApiError::field("query", error.body_text()))
}

/// Why a socket ends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// The client has closed it, or is gone.
    Client,
    /// The command has ended, and the client was told how.
    Command,
    /// The connection to the computer was lost.
    Lost,
    /// The caller may no longer do what they could.
    Rights,
    /// The client said something that makes no sense.
    Refused { code: u16, reason: String },
}

async fn bridge(
    control: Control,
    caller: Caller,
    id: ComputerId,
    socket: WebSocket,
    session: ExecSession,
    framing: Framing,
) {
    let (mut frames, messages) = socket.split();
    let ExecSession { input, mut output } = session;
    let end = tokio::select! {
        end = inwards(messages, input, framing) => end,
        end = outwards(&mut frames, &mut output, framing) => end,
        () = rights_end(control, Some(caller), id, Act::Write) => End::Rights,
    };
    // Nothing is left to say to the command: it is hung up before the client hears of it.
    drop(output);
    let goodbye = match end {
        End::Client => return,
        End::Command => farewell(close_code::NORMAL, ""),
        End::Lost => farewell(close_code::AWAY, "the connection to the computer was lost"),
        End::Rights => return dismiss(&mut frames).await,
        End::Refused { code, reason } => farewell(code, &reason),
    };
    // A peer that is gone needs no goodbye.
    drop(frames.send(goodbye).await);
}

async fn inwards(
    mut messages: SplitStream<WebSocket>,
    input: mpsc::Sender<RunInput>,
    framing: Framing,
) -> End {
    loop {
        let message = match messages.next().await {
            Some(Ok(Message::Close(_)) | Err(_)) | None => return End::Client,
            Some(Ok(message)) => message,
        };
        let asked = match read(framing, message) {
            Ok(asked) => asked,
            Err((code, reason)) => return End::Refused { code, reason },
        };
        let pieces = match asked {
            None => continue,
            Some(Input::Stdin(data)) => in_pieces(data).map(Input::Stdin).collect(),
            Some(other) => vec![other],
        };
        for piece in pieces {
            if input.send(RunInput { input: Some(piece) }).await.is_err() {
                // The command has ended, and its exit is on the way; only the client's end is of interest now.
                while let Some(Ok(message)) = messages.next().await {
                    if let Message::Close(_) = message {
                        break;
                    }
                }
                return End::Client;
            }
        }
    }
}

/// What a client's frame asks for. `None`: nothing that we know, which the protocol demands to ignore.
fn read(framing: Framing, message: Message) -> Result<Option<Input>, (u16, String)> {
    match (framing, message) {
        (Framing::Binary, Message::Binary(frame)) => {
            binary_frame(&frame).map_err(|reason| (close_code::POLICY, reason))
        }
        (Framing::Spawn, Message::Binary(data)) => Ok(Some(Input::Stdin(data))),
        (Framing::Json | Framing::Spawn, Message::Text(text)) => {
            json_frame(text.as_str()).map_err(|reason| (close_code::POLICY, reason))
        }
        (Framing::Binary, Message::Text(_)) | (Framing::Json, Message::Binary(_)) => {
            Err((close_code::UNSUPPORTED, "a frame of the other framing".to_owned()))
        }
        (_, Message::Ping(_) | Message::Pong(_) | Message::Close(_)) => Ok(None),
    }
}

async fn outwards(
    frames: &mut SplitSink<WebSocket, Message>,
    output: &mut ExecOutputs,
    framing: Framing,
) -> End {
    let mut writer = Writer { framing, stdout: Utf8::default(), stderr: Utf8::default() };
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.reset();
    loop {
        let (messages, ended) = tokio::select! {
            message = output.message() => match message {
                Ok(Some(RunOutput { output: Some(output) })) => {
                    let ended = matches!(output, Output::Exit(_));
                    (writer.write(output), ended)
                }
                Ok(Some(RunOutput { output: None })) => continue,
                Ok(None) | Err(_) => return End::Lost,
            },
            _ = ping.tick() => (vec![Message::Ping(Bytes::new())], false),
        };
        for message in messages {
            if frames.send(message).await.is_err() {
                return End::Client;
            }
        }
        if ended {
            return End::Command;
        }
    }
}

/// Output as the client's frames.
#[derive(Debug)]
struct Writer {
    framing: Framing,
    stdout: Utf8,
    stderr: Utf8,
}

impl Writer {
    fn write(&mut self, output: Output) -> Vec<Message> {
        match (output, self.framing) {
            (Output::Started(_), _) => Vec::new(),
            // Both have the same numbers for the two streams.
            (Output::Stdout(bytes), Framing::Binary | Framing::Spawn) => vec![binary(STDOUT, &bytes)],
            (Output::Stderr(bytes), Framing::Binary | Framing::Spawn) => vec![binary(STDERR, &bytes)],
            (Output::Stdout(bytes), Framing::Json) => text("stdout", self.stdout.push(&bytes)),
            (Output::Stderr(bytes), Framing::Json) => text("stderr", self.stderr.push(&bytes)),
            (Output::Exit(exit), Framing::Binary) => vec![binary(EXIT, &exit.code.to_be_bytes())],
            (Output::Exit(exit), Framing::Json | Framing::Spawn) => {
                let mut frames = text("stdout", self.stdout.finish());
                frames.extend(text("stderr", self.stderr.finish()));
                let exit = json!({ "type": "exit", "code": exit.code, "exit": exit.code });
                frames.push(Message::Text(exit.to_string().into()));
                frames
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

fn binary_frame(frame: &Bytes) -> Result<Option<Input>, String> {
    let Some((channel, payload)) = frame.split_first() else { return Ok(None) };
    match (*channel, payload) {
        (STDIN, _) => Ok(Some(Input::Stdin(frame.slice(1..)))),
        (STDIN_END, _) => Ok(Some(Input::CloseStdin(CloseStdin {}))),
        (RESIZE, [rows_high, rows_low, columns_high, columns_low]) => {
            let rows = u16::from_be_bytes([*rows_high, *rows_low]);
            resize(rows.into(), u16::from_be_bytes([*columns_high, *columns_low]).into())
        }
        (RESIZE, _) => Err("a resize is two numbers of two bytes each".to_owned()),
        _ => Ok(None),
    }
}

fn resize(rows: u32, columns: u32) -> Result<Option<Input>, String> {
    match roost_control::terminal_size(rows, columns) {
        Ok(size) => Ok(Some(Input::Resize(size))),
        Err(error) => Err(error.message),
    }
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum JsonFrame {
    Stdin {
        data: String,
    },
    StdinClose,
    Resize {
        rows: u32,
        cols: u32,
    },
    Signal {
        signal: String,
    },
    #[serde(other)]
    Unknown,
}

fn json_frame(text: &str) -> Result<Option<Input>, String> {
    let frame: JsonFrame = serde_json::from_str(text).map_err(|error| format!("not a frame: {error}"))?;
    match frame {
        JsonFrame::Stdin { data } => Ok(Some(Input::Stdin(data.into()))),
        JsonFrame::StdinClose => Ok(Some(Input::CloseStdin(CloseStdin {}))),
        JsonFrame::Resize { rows, cols } => resize(rows, cols),
        JsonFrame::Signal { signal } => match signal_number(&signal) {
            Some(number) => Ok(Some(Input::Signal(number))),
            None => Err(format!("unknown signal {signal:?}")),
        },
        JsonFrame::Unknown => Ok(None),
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
    use proptest::prelude::*;

    use super::super::LARGEST_PIECE;
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
    fn a_terminal_is_there_when_it_is_asked_for() {
        let size = |rows, columns| Some(TerminalSize { rows, columns });
        let cases = [
            ("command=x", None),
            ("command=x&tty=false&rows=5", None),
            ("command=x&tty=true", size(24, 80)),
            ("command=x&rows=50", size(50, 80)),
            ("command=x&cols=132&tty=1", size(24, 132)),
        ];
        for (query, expected) in cases {
            assert_eq!(command(query).unwrap().terminal, expected, "{query}");
        }
    }

    #[test]
    fn a_bad_command_is_refused_before_the_upgrade() {
        assert_eq!(command("").unwrap_err().code, ErrorCode::MissingParam);
        let bad = ["env=A", "env=%7Bx", "tty=yes", "rows=0", "cols=1001", "rows=-1", "rows=x"];
        for query in bad {
            let error = command(&format!("command=x&{query}")).unwrap_err();
            assert_eq!(error.code, ErrorCode::ValidationFailed, "{query}");
        }
    }

    #[test]
    fn unknown_frames_are_ignored_and_broken_ones_are_not() {
        assert_eq!(binary_frame(&Bytes::from_static(b"\x77x")), Ok(None));
        assert_eq!(binary_frame(&Bytes::new()), Ok(None));
        let resize = Input::Resize(TerminalSize { rows: 40, columns: 260 });
        assert_eq!(binary_frame(&Bytes::from_static(b"\x05\0\x28\x01\x04")), Ok(Some(resize.clone())));
        for broken in
            [&b"\x05"[..], b"\x05\0", b"\x05\0\0\0\x50", b"\x05\xff\xff\0\x50", b"\x05\0\x28\0\x50x"]
        {
            assert!(binary_frame(&Bytes::from_static(broken)).is_err(), "{broken:?}");
        }
        assert_eq!(json_frame(r#"{"type":"resize","rows":40,"cols":260}"#), Ok(Some(resize)));
        assert_eq!(json_frame(r#"{"type":"new-thing"}"#), Ok(None));
        assert_eq!(json_frame(r#"{"type":"signal","signal":"SIGTERM"}"#), Ok(Some(Input::Signal(15))));
        let broken = [
            "",
            "{",
            "[]",
            r#"{"type":"stdin"}"#,
            r#"{"type":"signal","signal":"SIGNOPE"}"#,
            r#"{"type":"resize","rows":0,"cols":1}"#,
        ];
        for text in broken {
            assert!(json_frame(text).is_err(), "{text:?}");
        }
    }

    /// Frames that are nearly right, and any text.
    fn any_frame() -> impl Strategy<Value = String> {
        let kind = prop::sample::select(&["stdin", "stdin_close", "resize", "signal", "input", "new"][..]);
        let value = prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            any::<String>().prop_map(|text| serde_json::Value::from(text).to_string()),
            Just("null".to_owned()),
            Just("[1]".to_owned()),
        ];
        let field = prop::sample::select(&["data", "rows", "cols", "signal", "type"][..]);
        let fields = prop::collection::vec((field, value), 0..4);
        let nearly = (kind, fields).prop_map(|(kind, fields)| {
            let fields: Vec<String> =
                fields.iter().map(|(name, value)| format!(",\"{name}\":{value}")).collect();
            format!("{{\"type\":\"{kind}\"{}}}", fields.concat())
        });
        prop_oneof![4 => nearly, 1 => any::<String>()]
    }

    proptest! {
        #[test]
        fn a_frame_becomes_what_its_channel_says(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let frame = Bytes::from(bytes);
            match binary_frame(&frame) {
                Ok(Some(Input::Stdin(data))) => prop_assert!(frame[0] == STDIN && data == frame[1..]),
                Ok(Some(Input::CloseStdin(_))) => prop_assert_eq!(frame[0], STDIN_END),
                Ok(Some(Input::Resize(size))) => {
                    prop_assert!(frame[0] == RESIZE && frame.len() == 5);
                    prop_assert!(roost_control::terminal_size(size.rows, size.columns).is_ok());
                }
                Ok(Some(other)) => prop_assert!(false, "{:?}", other),
                Ok(None) => prop_assert!(!matches!(frame.first(), Some(&(STDIN | STDIN_END | RESIZE)))),
                Err(reason) => prop_assert!(frame[0] == RESIZE && !reason.is_empty()),
            }
        }

        #[test]
        fn no_text_breaks_the_json_frames(text in any_frame()) {
            match json_frame(&text) {
                Ok(Some(Input::Resize(size))) => {
                    prop_assert!(roost_control::terminal_size(size.rows, size.columns).is_ok());
                }
                Ok(_) => prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok()),
                Err(reason) => prop_assert!(!reason.is_empty()),
            }
        }

        #[test]
        fn no_query_breaks_a_command(query in "[a-z=&%0-9,{}\":;+ \u{e9}]{0,60}|(command|args|env|rows|cols|tty)=.{0,20}") {
            if let Ok(command) = command(&query) {
                prop_assert!(!command.argv.is_empty() && !command.argv[0].is_empty());
                if let Some(size) = command.terminal {
                    prop_assert!(roost_control::terminal_size(size.rows, size.columns).is_ok());
                }
            }
        }

        #[test]
        fn input_of_any_length_arrives_whole(length in 0..4 * LARGEST_PIECE) {
            let data = Bytes::from(vec![7; length]);
            let pieces: Vec<Bytes> = in_pieces(data.clone()).collect();
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= LARGEST_PIECE));
            prop_assert_eq!(pieces.concat(), data.to_vec());
        }
    }
}
