//! Commands and terminals: framings, credentials, and what a client gets of an agent that does as it is told.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use axum::http::Method;
use futures_util::{SinkExt, Stream, StreamExt, stream};
use roost_guest_proto::v1::attach_input::Input as Typed;
use roost_guest_proto::v1::attach_output::Output as Shown;
use roost_guest_proto::v1::process_server::{Process, ProcessServer};
use roost_guest_proto::v1::run_input::Input;
use roost_guest_proto::v1::run_output::Output;
use roost_guest_proto::v1::terminal_server::{Terminal, TerminalServer};
use roost_guest_proto::v1::{
    AttachInput, AttachOutput, CloseSessionReply, CloseSessionRequest, ListSessionsReply,
    ListSessionsRequest, OpenSessionRequest, ResizeSessionReply, ResizeSessionRequest, RunExit, RunInput,
    RunOutput, RunStart, SessionInfo, TerminalSize,
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use crate::connection::{Socket, on_the_network, socket_with};
use crate::support::Server;

type Answer<T> = Result<Response<T>, Status>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A computer whose commands print what they were started with, then what they are given, and end with code 7 at the
/// end of it, but for `sleep`, which lasts; and whose terminals do the same until they are given `exit`.
#[derive(Debug, Clone, Default)]
pub struct Echo {
    sessions: Arc<Mutex<HashMap<String, TerminalSize>>>,
    /// What was started, in order.
    started: Arc<Mutex<Vec<RunStart>>>,
}

impl Echo {
    /// The guest of every computer that has none of its own.
    pub async fn of(server: &Server) -> Self {
        let echo = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = tonic::transport::Server::builder()
            .add_service(ProcessServer::new(echo.clone()))
            .add_service(TerminalServer::new(echo.clone()));
        tokio::spawn(router.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        let channel: Channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        server.launcher.set_guest(channel);
        echo
    }

    fn info(&self, id: &str) -> Option<SessionInfo> {
        let size = *self.sessions.lock().unwrap().get(id)?;
        Some(SessionInfo {
            id: id.to_owned(),
            size: Some(size),
            program: "sh".to_owned(),
            ..SessionInfo::default()
        })
    }
}

#[tonic::async_trait]
impl Process for Echo {
    type RunStream = Replies<RunOutput>;

    async fn run(&self, request: Request<Streaming<RunInput>>) -> Answer<Self::RunStream> {
        let mut input = request.into_inner();
        let Some(RunInput { input: Some(Input::Start(start)) }) = input.message().await? else {
            return Err(Status::invalid_argument("no start"));
        };
        self.started.lock().unwrap().push(start.clone());
        let first =
            [Output::Stdout(format!("{}\n", start.argv.join(" ")).into()), Output::Stderr("to err\n".into())];
        let lasts = start.argv.iter().any(|word| word.starts_with("sleep"));
        let ends = !start.stdin;
        let rest = stream::unfold(Some(input), move |input| async move {
            let mut input = input?;
            let exit = Output::Exit(RunExit { code: 7, ..RunExit::default() });
            if lasts {
                std::future::pending::<()>().await;
            }
            if ends {
                return Some((exit, None));
            }
            match input.message().await.ok()??.input? {
                Input::Stdin(data) => Some((Output::Stdout(data), Some(input))),
                Input::Resize(size) => {
                    Some((Output::Stdout(format!("{}x{}\n", size.rows, size.columns).into()), Some(input)))
                }
                Input::Signal(number) => {
                    Some((Output::Exit(RunExit { code: 128 + number, ..RunExit::default() }), None))
                }
                Input::CloseStdin(_) | Input::Start(_) => Some((exit, None)),
            }
        });
        let outputs = stream::iter(first).chain(rest).map(|output| Ok(RunOutput { output: Some(output) }));
        Ok(Response::new(outputs.boxed()))
    }
}

#[tonic::async_trait]
impl Terminal for Echo {
    async fn open_session(&self, request: Request<OpenSessionRequest>) -> Answer<SessionInfo> {
        let mut sessions = self.sessions.lock().unwrap();
        let id = format!("session-{}", sessions.len());
        sessions.insert(id.clone(), request.into_inner().size.unwrap());
        drop(sessions);
        Ok(Response::new(self.info(&id).unwrap()))
    }

    async fn list_sessions(&self, _: Request<ListSessionsRequest>) -> Answer<ListSessionsReply> {
        let ids: Vec<String> = self.sessions.lock().unwrap().keys().cloned().collect();
        let sessions = ids.iter().filter_map(|id| self.info(id)).collect();
        Ok(Response::new(ListSessionsReply { sessions }))
    }

    async fn close_session(&self, request: Request<CloseSessionRequest>) -> Answer<CloseSessionReply> {
        let removed = self.sessions.lock().unwrap().remove(&request.into_inner().id);
        removed.map(|_| Response::new(CloseSessionReply {})).ok_or_else(|| Status::not_found("no session"))
    }

    async fn resize_session(&self, request: Request<ResizeSessionRequest>) -> Answer<ResizeSessionReply> {
        let ResizeSessionRequest { id, size } = request.into_inner();
        match self.sessions.lock().unwrap().get_mut(&id) {
            Some(session) => *session = size.unwrap(),
            None => return Err(Status::not_found("no session")),
        }
        Ok(Response::new(ResizeSessionReply {}))
    }

    type AttachStream = Replies<AttachOutput>;

    async fn attach(&self, request: Request<Streaming<AttachInput>>) -> Answer<Self::AttachStream> {
        let mut input = request.into_inner();
        let Some(AttachInput { input: Some(Typed::Attach(attach)) }) = input.message().await? else {
            return Err(Status::invalid_argument("no attach"));
        };
        let info = self.info(&attach.id).ok_or_else(|| Status::not_found("no session"))?;
        let first = [Shown::Attached(info), Shown::Data("screen".into())];
        let rest = stream::unfold(Some(input), |input| async {
            let mut input = input?;
            match input.message().await.ok()??.input? {
                Typed::Data(data) if data == "exit" => {
                    Some((Shown::Exit(RunExit { code: 3, ..RunExit::default() }), None))
                }
                Typed::Data(data) => Some((Shown::Data(data), Some(input))),
                Typed::Resize(size) => Some((Shown::Resized(size), Some(input))),
                Typed::Attach(_) => None,
            }
        });
        let outputs = stream::iter(first).chain(rest).map(|output| Ok(AttachOutput { output: Some(output) }));
        Ok(Response::new(outputs.boxed()))
    }
}

async fn socket(address: SocketAddr, path: &str, key: Option<&str>) -> Result<Socket, u16> {
    let key = key.map(|key| format!("Bearer {key}"));
    let headers: Vec<_> = key.iter().map(|key| ("authorization", key.as_str())).collect();
    socket_with(address, path, &headers).await
}

async fn furnished() -> (Server, String, Echo) {
    let server = Server::new().await;
    let echo = Echo::of(&server).await;
    let id = server.computer().await;
    (server, id, echo)
}

fn close_code(message: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>) -> u16 {
    let Some(Ok(Message::Close(Some(frame)))) = message else { panic!("not closed: {message:?}") };
    frame.code.into()
}

fn parsed(message: Option<Result<Message, tokio_tungstenite::tungstenite::Error>>) -> Value {
    let Some(Ok(Message::Text(text))) = message else { panic!("no text: {message:?}") };
    serde_json::from_str(text.as_str()).unwrap()
}

#[tokio::test]
async fn the_framed_protocol_carries_everything() {
    let (server, id, echo) = furnished().await;
    let address = on_the_network(&server).await;
    let path = format!("/api/v1/computers/{id}/exec/stream?command=ls&args=a&args=b&rows=50&cols=132");
    let credential = format!("miosa-exec-v1, bearer.{}", server.key);
    let mut socket = socket_with(address, &path, &[("sec-websocket-protocol", &credential)]).await.unwrap();
    let next = async |socket: &mut Socket| match socket.next().await {
        Some(Ok(Message::Binary(frame))) => frame.to_vec(),
        other => panic!("{other:?}"),
    };
    assert_eq!(next(&mut socket).await, b"\x01ls a b\n");
    assert_eq!(next(&mut socket).await, b"\x02to err\n");
    assert_eq!(echo.started.lock().unwrap()[0].terminal, Some(TerminalSize { rows: 50, columns: 132 }));
    for frame in [&b"\x77unknown"[..], b"", b"\x00typed", b"\x05\x00\x1e\x00\x64"] {
        socket.send(Message::binary(frame.to_vec())).await.unwrap();
    }
    assert_eq!(next(&mut socket).await, b"\x01typed");
    assert_eq!(next(&mut socket).await, b"\x0130x100\n");
    socket.send(Message::binary(vec![0x04])).await.unwrap();
    assert_eq!(next(&mut socket).await, [3, 0, 0, 0, 7]);
    assert_eq!(close_code(socket.next().await), 1000);
}

#[tokio::test]
async fn more_input_than_one_message_holds_arrives_whole_while_output_waits() {
    let (server, id, _) = furnished().await;
    let address = on_the_network(&server).await;
    let path = format!("/api/v1/computers/{id}/exec/spawn?command=cat");
    let socket = socket(address, &path, Some(&server.key)).await.unwrap();
    let (mut sink, mut stream) = socket.split();
    // Far more than all buffers on the way: a way that waits for one direction would never end.
    let large: Vec<u8> = (0..24 * 1024 * 1024u32).map(|n| n.to_le_bytes()[1]).collect();
    let send = async {
        for part in large.chunks(6 * 1024 * 1024) {
            sink.send(Message::binary(part.to_vec())).await.unwrap();
        }
        sink.send(Message::text(r#"{"type":"stdin_close"}"#)).await.unwrap();
    };
    let receive = async {
        let (mut out, mut code) = (Vec::new(), None);
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(frame) if frame[0] == 1 => out.extend_from_slice(&frame[1..]),
                Message::Text(text) => code = Some(serde_json::from_str::<Value>(text.as_str()).unwrap()),
                _ => {}
            }
        }
        (out, code)
    };
    let ((), (out, code)) = tokio::join!(send, receive);
    assert!(out.strip_prefix(b"/bin/bash -lc cat\n").unwrap() == large);
    assert_eq!(code.unwrap()["exit"], json!(7));
}

#[tokio::test]
async fn json_frames_under_both_names() {
    let (server, id, _) = furnished().await;
    let address = on_the_network(&server).await;
    for name in ["stream", "ws"] {
        let path = format!("/api/v1/computers/{id}/exec/{name}?command=x");
        let mut socket = socket(address, &path, Some(&server.key)).await.unwrap();
        assert_eq!(parsed(socket.next().await), json!({ "type": "stdout", "data": "/bin/bash -lc x\n" }));
        assert_eq!(parsed(socket.next().await), json!({ "type": "stderr", "data": "to err\n" }));
        socket.send(Message::text(r#"{"type":"stdin","data":"é"}"#)).await.unwrap();
        assert_eq!(parsed(socket.next().await)["data"], json!("é"));
        socket.send(Message::text(r#"{"type":"signal","signal":"SIGTERM"}"#)).await.unwrap();
        assert_eq!(parsed(socket.next().await), json!({ "type": "exit", "code": 143, "exit": 143 }));
        assert_eq!(close_code(socket.next().await), 1000);
    }
    let path = format!("/api/v1/computers/{id}/exec/stream?command=x");
    let mut broken = socket(address, &path, Some(&server.key)).await.unwrap();
    broken.send(Message::text("{")).await.unwrap();
    let last = loop {
        match broken.next().await {
            Some(Ok(Message::Text(_))) => {}
            last => break last,
        }
    };
    assert_eq!(close_code(last), 1008);
}

#[tokio::test]
async fn a_ticket_runs_its_command_once() {
    let (server, id, echo) = furnished().await;
    let path = format!("/computers/{id}/exec/stream");
    let (status, ticket) = server.post(&path, json!({ "command": "make", "timeout": 5 })).await;
    assert_eq!(status, 202, "{ticket}");
    let url = ticket["stream_url"].as_str().unwrap();
    let events = url.split_once("/api/v1").unwrap().1;
    assert!(echo.started.lock().unwrap().is_empty(), "it ran before anybody looked");
    let (status, kind, body) = server.raw(Method::GET, events, None, "").await;
    assert_eq!((status, kind.as_str()), (200, "text/event-stream"));
    let lines: Vec<&str> =
        body.lines().filter(|line| line.starts_with("data") || line.starts_with("event")).collect();
    assert_eq!(
        lines,
        [
            "event: output",
            r#"data: {"line":"/bin/bash -lc make","stream":"stdout","type":"output"}"#,
            "event: output",
            r#"data: {"line":"to err","stream":"stderr","type":"output"}"#,
            "event: exit",
            r#"data: {"exitCode":7,"type":"exit"}"#,
        ]
    );
    assert_eq!(server.raw(Method::GET, events, None, "").await.0, 401, "a ticket opened twice");
    assert_eq!(echo.started.lock().unwrap().len(), 1);
    // Neither another computer's, nor one that was tampered with.
    let (_, ticket) = server.post(&path, json!({ "command": "make" })).await;
    let ticket = ticket["ticket"].as_str().unwrap();
    let other = server.computer().await;
    let wrong = [
        format!("/computers/{other}/exec/stream/events?ticket={ticket}"),
        format!("{path}/events?ticket={ticket}x"),
        format!("{path}/events?ticket={}", server.key),
        format!("{path}/events"),
    ];
    for path in wrong {
        assert_eq!(server.raw(Method::GET, &path, None, "").await.0, 401, "{path}");
    }
    assert_eq!(server.post(&path, json!({})).await.1["code"], json!("MISSING_PARAM"));
}

#[tokio::test]
async fn commands_have_their_limits_and_their_streams_apart() {
    let (server, id, echo) = furnished().await;
    let path = format!("/computers/{id}/commands");
    let (status, done) = server.post(&path, json!({ "command": "x", "stdin": "in", "cwd": "sub" })).await;
    assert_eq!(status, 200, "{done}");
    let done = &done["data"];
    assert_eq!((&done["stdout"], &done["stderr"]), (&json!("/bin/bash -lc x\nin"), &json!("to err\n")));
    assert_eq!(
        (&done["exit_code"], &done["timed_out"], &done["stdout_truncated"]),
        (&json!(7), &json!(false), &json!(false))
    );
    let start = echo.started.lock().unwrap()[0].clone();
    assert_eq!((start.cwd.as_str(), start.timeout_ms), ("sub", 60_000));
    for seconds in [0, 601] {
        let (status, refused) =
            server.post(&path, json!({ "command": "x", "timeout_seconds": seconds })).await;
        assert_eq!((status, &refused["code"]), (422, &json!("TIMEOUT_TOO_LONG")));
    }
    let long = "x".repeat(64 * 1024 + 1);
    assert_eq!(server.post(&path, json!({ "command": long })).await.0, 422);
    assert_eq!(server.post(&path, json!({ "command": "x", "stdin": long })).await.0, 422);
    assert_eq!(server.post(&path, json!({})).await.1["code"], json!("MISSING_PARAM"));
}

#[tokio::test]
async fn a_background_command_has_no_input() {
    let (server, id, _) = furnished().await;
    let body = json!({ "command": "x", "background": true, "stdin": "y" });
    assert_eq!(server.post(&format!("/computers/{id}/exec"), body).await.0, 422);
}

#[tokio::test]
async fn a_terminal_session_is_opened_watched_resized_and_closed() {
    let (server, id, _) = furnished().await;
    let address = on_the_network(&server).await;
    let body = json!({ "cols": 100, "rows": 30, "shell": "zsh" });
    let (status, opened) = server.post(&format!("/computers/{id}/terminal"), body).await;
    assert_eq!(status, 201, "{opened}");
    let session = opened["session_id"].as_str().unwrap();
    assert_eq!(
        (&opened["id"], &opened["cols"], &opened["computer_id"]),
        (&json!(session), &json!(100), &json!(id))
    );
    let url = opened["ws_url"].as_str().unwrap();
    assert_eq!(url, format!("ws://box.computer.localhost:1/ws/terminal/{id}?session_id={session}"));
    let token = opened["token"].as_str().unwrap();
    let path = format!("/ws/terminal/{id}?session_id={session}&auth={token}");
    let mut viewer = socket(address, &path, None).await.unwrap();
    let first = parsed(viewer.next().await);
    assert_eq!(
        first,
        json!({ "type": "session", "session_id": session, "shell": "sh", "cols": 100, "rows": 30 })
    );
    assert_eq!(parsed(viewer.next().await), json!({ "type": "output", "data": "screen" }));
    viewer.send(Message::text(r#"{"type":"input","data":"ls\r"}"#)).await.unwrap();
    assert_eq!(parsed(viewer.next().await), json!({ "type": "output", "data": "ls\r" }));
    viewer.send(Message::binary(b"raw".to_vec())).await.unwrap();
    assert_eq!(parsed(viewer.next().await)["data"], json!("raw"));
    viewer.send(Message::text(r#"{"type":"resize","cols":90,"rows":20}"#)).await.unwrap();
    assert_eq!(parsed(viewer.next().await), json!({ "type": "resize", "cols": 90, "rows": 20 }));
    let pty = format!("/computers/{id}/pty/{session}/resize");
    let (status, resized) = server.post(&pty, json!({ "cols": 81, "rows": 25 })).await;
    assert_eq!((status, resized), (200, json!({ "session_id": session, "cols": 81, "rows": 25 })));
    assert_eq!(server.post(&pty, json!({ "cols": 0, "rows": 25 })).await.0, 422);
    let (_, list) = server.get(&format!("/computers/{id}/terminal")).await;
    assert_eq!((&list["total"], &list["sessions"][0]["cols"]), (&json!(1), &json!(81)));
    viewer.send(Message::text(r#"{"type":"input","data":"exit"}"#)).await.unwrap();
    assert_eq!(parsed(viewer.next().await), json!({ "type": "exit", "code": 3 }));
    assert_eq!(close_code(viewer.next().await), 1000);
    let (status, closed) = server.delete(&format!("/computers/{id}/terminal/{session}")).await;
    assert_eq!((status, &closed["closed"]), (200, &json!(true)));
    assert_eq!(server.delete(&format!("/computers/{id}/terminal/{session}")).await.0, 404);
    assert_eq!(server.post(&pty, json!({ "cols": 81, "rows": 25 })).await.0, 404);
}

#[tokio::test]
async fn a_terminal_is_for_who_may_control_the_computer() {
    let (server, id, echo) = furnished().await;
    let address = on_the_network(&server).await;
    let terminal = |token: &str| format!("/ws/terminal/{id}?cols=80&rows=24&auth={token}");
    let (_, embed) = server.get(&format!("/computers/{id}/embed?view_only=true")).await;
    let watcher = embed["token"].as_str().unwrap();
    assert_eq!(socket(address, &terminal(watcher), None).await.unwrap_err(), 403);
    assert_eq!(socket(address, &terminal("nonsense"), None).await.unwrap_err(), 401);
    assert_eq!(socket(address, &format!("/ws/terminal/{id}"), None).await.unwrap_err(), 401);
    let other = server.computer().await;
    let (_, token) = server.post(&format!("/computers/{other}/stream-token"), json!({})).await;
    assert_eq!(socket(address, &terminal(token["token"].as_str().unwrap()), None).await.unwrap_err(), 401);
    assert!(echo.sessions.lock().unwrap().is_empty(), "a session was opened for a stranger");

    let (_, token) = server.post(&format!("/computers/{id}/stream-token"), json!({})).await;
    let token = token["token"].as_str().unwrap();
    let mut opened = socket(address, &terminal(token), None).await.unwrap();
    let session = parsed(opened.next().await);
    assert_eq!((&session["cols"], &session["rows"]), (&json!(80), &json!(24)));
    // One that has ended is not found, unless a new one will do.
    let gone = format!("{}&session_id=gone", terminal(token));
    assert_eq!(socket(address, &gone, None).await.unwrap_err(), 404);
    let mut new = socket(address, &format!("{gone}&or_new=true"), None).await.unwrap();
    assert_ne!(parsed(new.next().await)["session_id"], json!("gone"));
    let half = format!("/ws/terminal/{id}?cols=80&auth={token}");
    assert_eq!(socket(address, &half, None).await.unwrap_err(), 422);
    let (status, _) = server.post(&format!("/computers/{id}/stop"), json!({})).await;
    assert_eq!(status, 200);
    assert_eq!(socket(address, &terminal(token), None).await.unwrap_err(), 409);
    assert_eq!(server.post(&format!("/computers/{id}/terminal"), json!({})).await.0, 409);
}

#[tokio::test]
async fn an_agent_that_is_too_old_is_said_to_be() {
    let server = Server::new().await;
    let (_, channel) = crate::guest::FakeGuest::serve().await;
    server.launcher.set_guest(channel);
    let id = server.computer().await;
    let (status, refused) = server.post(&format!("/computers/{id}/terminal"), json!({})).await;
    assert_eq!((status, &refused["code"]), (409, &json!("RESOURCE_STATE")));
    assert!(refused["message"].as_str().unwrap().contains("older"), "{refused}");
}
