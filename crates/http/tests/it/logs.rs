//! Logs: the console, which is the host's, and the journal, which is the guest's.

use std::pin::Pin;
use std::sync::Arc;

use axum::http::Method;
use futures_util::{Stream, StreamExt, stream};
use roost_guest_proto::v1::logs_server::{Logs, LogsServer};
use roost_guest_proto::v1::{LogLine, LogsReply, LogsRequest};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::support::Server;

/// A journal with one old line, and whatever the test adds.
#[derive(Debug)]
struct Journal {
    new: broadcast::Sender<LogLine>,
    asked: tokio::sync::mpsc::UnboundedSender<LogsRequest>,
}

impl Journal {
    async fn serve() -> (Arc<Self>, tokio::sync::mpsc::UnboundedReceiver<LogsRequest>, Channel) {
        let (asked, requests) = tokio::sync::mpsc::unbounded_channel();
        let journal = Arc::new(Self { new: broadcast::channel(16).0, asked });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = tonic::transport::Server::builder().add_service(LogsServer::from_arc(journal.clone()));
        tokio::spawn(router.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        (journal, requests, Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy())
    }
}

fn old() -> LogLine {
    LogLine { at_us: 1_000_000, service: "ssh".to_owned(), text: "\u{1b}[1mold\u{1b}[0m".to_owned() }
}

#[tonic::async_trait]
impl Logs for Journal {
    type ReadStream = Pin<Box<dyn Stream<Item = Result<LogsReply, Status>> + Send>>;

    async fn read(&self, request: Request<LogsRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let new = self.new.subscribe();
        self.asked.send(request.clone()).map_err(|_| Status::cancelled("the test is over"))?;
        let reply = |line| Ok(LogsReply { lines: vec![line] });
        let old = stream::iter([reply(old())]);
        if !request.follow {
            return Ok(Response::new(old.boxed()));
        }
        let new = BroadcastStream::new(new).filter_map(async |line| line.ok());
        Ok(Response::new(old.chain(new.map(reply)).boxed()))
    }
}

async fn lines(server: &Server, path: &str) -> Vec<String> {
    let (status, logs) = server.get(path).await;
    assert_eq!(status, 200, "{logs}");
    let lines: Vec<String> = serde_json::from_value(logs["lines"].clone()).unwrap();
    assert_eq!(logs["entries"].as_array().unwrap().len(), lines.len());
    assert!(logs.get("data").is_none(), "some clients would look there first");
    lines
}

#[tokio::test]
async fn the_newest_lines_of_both_sources_come_in_their_order() {
    let server = Server::new().await;
    let (_journal, mut requests, channel) = Journal::serve().await;
    server.launcher.set_guest(channel);
    let id = server.computer().await;
    for line in ["one", "two", "three"] {
        server.launcher.say(id.parse().unwrap(), line);
    }
    let path = format!("/computers/{id}/logs");
    assert_eq!(lines(&server, &path).await, ["ssh: old", "one", "two", "three"]);
    assert_eq!(lines(&server, &format!("{path}?lines=2")).await, ["two", "three"]);
    assert_eq!(lines(&server, &format!("{path}?source=console")).await, ["one", "two", "three"]);
    assert_eq!(lines(&server, &format!("{path}?service=ssh&lines=5")).await, ["ssh: old"]);
    let last = std::iter::from_fn(|| requests.try_recv().ok()).last().unwrap();
    assert_eq!((last.service.as_str(), last.lines, last.follow), ("ssh", 5, false));
    let since = "1970-01-01T00:00:02Z";
    assert_eq!(lines(&server, &format!("{path}?since={since}")).await, ["one", "two", "three"]);
    let (_, logs) = server.get(&format!("{path}?lines=1")).await;
    assert_eq!((&logs["computer_id"], &logs["entries"][0]["stream"]), (&json!(id), &json!("console")));
    for query in ["source=kernel", "since=yesterday", "lines=x", "source=console&service=ssh"] {
        assert_eq!(server.get(&format!("{path}?{query}")).await.0, 422, "{query}");
    }
    // A guest that tells nothing costs only its own lines.
    let (_guest, mute) = crate::guest::FakeGuest::serve().await;
    server.launcher.set_guest_of(id.parse().unwrap(), mute);
    assert_eq!(server.post(&format!("/computers/{id}/restart"), Value::Null).await.0, 200);
    let is_back = |record: &roost_store::ComputerRecord| {
        roost_control::status::status(record) == roost_api::Status::Running
    };
    server.control.wait_until(id.parse().unwrap(), is_back).await.unwrap();
    assert_eq!(lines(&server, &path).await, ["one", "two", "three"]);
    let (status, refused) = server.get(&format!("{path}?source=services")).await;
    assert_eq!((status, &refused["error"]["code"]), (409, &json!("RESOURCE_STATE")), "its agent is older");
    assert_eq!(server.post(&format!("/computers/{id}/stop"), Value::Null).await.0, 200);
    assert_eq!(lines(&server, &path).await, ["one", "two", "three"]);
    let (status, refused) = server.get(&format!("{path}?source=services")).await;
    assert_eq!((status, &refused["error"]["code"]), (409, &json!("COMPUTER_NOT_RUNNING")));
}

#[tokio::test]
async fn lines_are_followed_over_a_restart_and_each_comes_once() {
    let server = Server::new().await;
    let (journal, mut requests, channel) = Journal::serve().await;
    server.launcher.set_guest(channel);
    let id = server.computer().await;
    let computer = id.parse().unwrap();
    server.launcher.say(computer, "before");
    let mut stream = server.listen(&format!("/computers/{id}/logs/stream"), None).await;
    let mut next = async || {
        let entry = stream.next_data().await.unwrap();
        (entry["stream"].as_str().unwrap().to_owned(), entry["line"].as_str().unwrap().to_owned())
    };
    let said = |stream: &str, line: &str| (stream.to_owned(), line.to_owned());
    assert_eq!(next().await, said("services", "old"));
    assert_eq!(next().await, said("console", "before"));
    server.launcher.say(computer, "live");
    assert_eq!(next().await, said("console", "live"));
    // The backlog was asked for first, then what follows it.
    let follow = async |requests: &mut tokio::sync::mpsc::UnboundedReceiver<LogsRequest>| {
        while !requests.recv().await.unwrap().follow {}
    };
    follow(&mut requests).await;
    let now = || roost_api::Timestamp::now().as_micros();
    let line = |text: &str| LogLine { at_us: now(), service: "ssh".to_owned(), text: text.to_owned() };
    journal.new.send(line("new")).unwrap();
    assert_eq!(next().await, said("services", "new"));
    assert_eq!(server.post(&format!("/computers/{id}/restart"), Value::Null).await.0, 200);
    server.launcher.say(computer, "booted");
    assert_eq!(next().await, said("console", "booted"));
    assert_eq!(server.delete(&format!("/computers/{id}")).await.0, 200);
    drop(journal);
    assert_eq!(stream.next_data().await, None, "the stream ends with the computer");
    assert_eq!(server.raw(Method::GET, &format!("/computers/{id}/logs/stream"), None, "").await.0, 401);
}
