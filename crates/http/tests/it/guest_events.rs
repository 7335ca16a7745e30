//! What happens inside a computer, over a WebSocket.

use axum::http::Method;
use futures_util::{SinkExt, Stream, StreamExt, stream};
use roost_guest_proto::v1::desktop_event::Event;
use roost_guest_proto::v1::events_server::{Events, EventsServer};
use roost_guest_proto::v1::{
    DesktopEvent, ProcessEvent, UserIdle, WatchDesktopRequest, WatchProcessesRequest, WindowChange,
    WindowEvent,
};
use serde_json::{Value, json};
use std::pin::Pin;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

use crate::connection::{Socket, on_the_network, socket_with};
use crate::support::Server;

/// A desktop where a window is opened and somebody leaves, and where nobody is told of processes. Goes on until it is
/// taken away.
#[derive(Debug)]
struct Busy {
    gone: watch::Receiver<bool>,
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Events for Busy {
    type WatchDesktopStream = Streamed<DesktopEvent>;

    async fn watch_desktop(
        &self,
        request: Request<WatchDesktopRequest>,
    ) -> Result<Response<Self::WatchDesktopStream>, Status> {
        let WatchDesktopRequest { windows, clipboard, idle_ms } = request.into_inner();
        let window =
            WindowEvent { change: WindowChange::Opened.into(), id: 0x2a, pid: 7, title: "Text".to_owned() };
        let window = windows.then_some(Event::Window(window));
        let clipboard = clipboard.then_some(Event::ClipboardBytes(5));
        let idle = (idle_ms > 0).then_some(Event::Idle(UserIdle { idle: true, ms: idle_ms.into() }));
        let events = [window, clipboard, idle].into_iter().flatten().map(Some);
        let events = std::iter::once(None).chain(events).map(|event| Ok(DesktopEvent { event }));
        let mut gone = self.gone.clone();
        let end = stream::once(async move {
            gone.wait_for(|gone| *gone).await.ok();
            Err(Status::unavailable("the desktop is gone"))
        });
        Ok(Response::new(stream::iter(events.collect::<Vec<_>>()).chain(end).boxed()))
    }

    type WatchProcessesStream = Streamed<ProcessEvent>;

    async fn watch_processes(
        &self,
        _: Request<WatchProcessesRequest>,
    ) -> Result<Response<Self::WatchProcessesStream>, Status> {
        Err(Status::unavailable("this kernel says nothing"))
    }
}

/// The guest of all computers, and what takes its desktop away.
async fn busy(server: &Server) -> watch::Sender<bool> {
    let (take_away, gone) = watch::channel(false);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = tonic::transport::Server::builder().add_service(EventsServer::new(Busy { gone }));
    tokio::spawn(router.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
    server.launcher.set_guest(Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy());
    take_away
}

async fn next(socket: &mut Socket) -> Value {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                let mut event: Value = serde_json::from_str(text.as_str()).unwrap();
                assert!(event["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{event}");
                event.as_object_mut().unwrap().remove("timestamp");
                return event;
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(frame))) => return json!(frame.map(|frame| u16::from(frame.code))),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_socket_tells_what_happens_in_the_computer() {
    let server = Server::new().await;
    let take_away = busy(&server).await;
    let id = server.computer().await;
    let address = on_the_network(&server).await;
    let bearer = format!("Bearer {}", server.key);
    let path = format!("/api/v1/computers/{id}/events?subscribe=window,process,idle&idle_threshold_sec=7");
    let mut socket = socket_with(address, &path, &[("authorization", &bearer)]).await.unwrap();
    // What a client sends means nothing.
    socket.send(Message::text("hello")).await.unwrap();
    socket.send(Message::binary(vec![0xff; 1000])).await.unwrap();
    let mut told = [next(&mut socket).await, next(&mut socket).await, next(&mut socket).await];
    told.sort_by_key(|event| event["type"].as_str().map(str::to_owned));
    let expected = [
        json!({ "type": "idle.inactive", "payload": { "idle_ms": 7000 } }),
        json!({ "type": "producer.unavailable", "payload": { "producer": "process", "reason": "this kernel says nothing" } }),
        json!({ "type": "window.opened", "payload": { "window_id": "0x2a", "pid": "7", "title": "Text" } }),
    ];
    assert_eq!(told, expected);
    // What is lost later is told of, too, and where nothing is left, the socket ends.
    take_away.send(true).unwrap();
    for producer in ["window", "idle"] {
        let expected = json!({ "producer": producer, "reason": "the desktop is gone" });
        assert_eq!(next(&mut socket).await["payload"], expected);
    }
    assert_eq!(next(&mut socket).await, json!(1001));
}

#[tokio::test]
async fn who_may_not_listen_is_told_before_the_upgrade() {
    let server = Server::new().await;
    let _take_away = busy(&server).await;
    let id = server.computer().await;
    let address = on_the_network(&server).await;
    let bearer = format!("Bearer {}", server.key);
    for (query, status) in [
        ("", 400),
        ("subscribe=mouse", 400),
        ("subscribe=idle&idle_threshold_sec=0", 422),
        ("subscribe=idle&idle_threshold_sec=-1", 422),
    ] {
        let path = format!("/api/v1/computers/{id}/events?{query}");
        let refused = socket_with(address, &path, &[("authorization", &bearer)]).await;
        assert_eq!(refused.err(), Some(status), "{query}");
    }
    let path = format!("/api/v1/computers/{id}/events?subscribe=window");
    assert_eq!(socket_with(address, &path, &[]).await.err(), Some(401));
    // Without an upgrade it is the other stream, whatever else is asked for.
    let mut stream = server.listen(&format!("/computers/{id}/events?subscribe=window"), None).await;
    assert_eq!(stream.next().await.unwrap().kind, "status_changed");
    server.call(Method::POST, &format!("/computers/{id}/stop"), Value::Null).await;
    assert_eq!(socket_with(address, &path, &[("authorization", &bearer)]).await.err(), Some(409));
}

#[tokio::test]
async fn a_socket_ends_with_the_key() {
    let server = Server::new().await;
    let _take_away = busy(&server).await;
    let id = server.computer().await;
    let address = on_the_network(&server).await;
    let key = server.made("/api-keys", json!({ "scopes": ["computers:read"] })).await;
    let bearer = format!("Bearer {}", key["key"].as_str().unwrap());
    let path = format!("/api/v1/computers/{id}/events?subscribe=clipboard");
    let mut socket = socket_with(address, &path, &[("authorization", &bearer)]).await.unwrap();
    assert_eq!(next(&mut socket).await["payload"], json!({ "size_bytes": 5 }));
    assert_eq!(server.delete(&format!("/api-keys/{}", key["id"].as_str().unwrap())).await.0, 200);
    assert_eq!(next(&mut socket).await, json!(1008));
}
