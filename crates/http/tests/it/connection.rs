//! Ways to the desktop: addresses, tokens, the viewer password, shares, and the sockets they open.

use std::net::SocketAddr;

use axum::body::Body;
use axum::http::{Method, Request};
use futures_util::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};
use tower::ServiceExt;

use crate::programs::Guest;
use crate::support::{Server, keys};

pub async fn on_the_network(server: &Server) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = server.router.clone().into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await });
    address
}

pub type Socket = WebSocketStream<TcpStream>;

/// Opens a socket, or answers the status of the refusal.
async fn socket(address: SocketAddr, path: &str, key: Option<&str>) -> Result<Socket, u16> {
    let key = key.map(|key| format!("Bearer {key}"));
    let mut headers = vec![("sec-websocket-protocol", "binary")];
    headers.extend(key.as_deref().map(|key| ("authorization", key)));
    socket_with(address, path, &headers).await
}

pub async fn socket_with(
    address: SocketAddr,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<Socket, u16> {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

fn auth_of(url: &Value) -> &str {
    url.as_str().unwrap().split_once("#auth=").unwrap().1
}

#[tokio::test]
async fn the_addresses_of_a_computer() {
    let server = Server::new().await;
    let id = server.computer().await;
    let (status, urls) = server.get(&format!("/computers/{id}/urls")).await;
    assert_eq!(status, 200);
    assert_eq!(urls["terminal_url"], json!(format!("ws://box.computer.localhost:1/ws/terminal/{id}")));
    assert_eq!(urls["stream_url"], urls["desktop_url"]);
    assert_eq!(urls["urls"][0], json!({ "name": "desktop", "url": urls["desktop_url"] }));

    let (status, credentials) = server.get(&format!("/computers/{id}/vnc-credentials")).await;
    assert_eq!(status, 200);
    assert_eq!(keys(&credentials), ["computer_id", "desktop_url", "expires_at", "slug", "token", "ws_url"]);
    let (status, token) =
        server.post(&format!("/computers/{id}/stream-token"), json!({ "ttl_seconds": 60 })).await;
    assert_eq!((status, &token["ttl_seconds"]), (200, &json!(60)));
    for ttl in [59, 86_401, -1] {
        let body = json!({ "ttl_seconds": ttl });
        let (status, refused) = server.post(&format!("/computers/{id}/stream-token"), body).await;
        assert_eq!((status, &refused["code"]), (422, &json!("INVALID_TTL")));
    }
}

#[tokio::test]
async fn an_embed_says_what_it_may() {
    let server = Server::new().await;
    let id = server.computer().await;
    let path = format!("/computers/{id}/embed");
    let (status, embed) = server.get(&path).await;
    assert_eq!(status, 200, "{embed}");
    assert_eq!(
        (&embed["view_only"], &embed["mode"], &embed["ttl_seconds"]),
        (&json!(false), &json!("desktop"), &json!(3600))
    );
    assert_eq!((&embed["url"], &embed["url"]), (&embed["embed_url"], &embed["desktop_entry_url"]));
    assert_eq!(auth_of(&embed["url"]), embed["token"].as_str().unwrap());
    assert!(embed["expires_at"].is_i64());
    for query in ["ttl=120&view_only=true&mode=kiosk", "ttl_seconds=120&ttl=7&view_only=true&mode=kiosk"] {
        let (status, embed) = server.get(&format!("{path}?{query}")).await;
        assert_eq!(status, 200, "{embed}");
        assert_eq!(
            (&embed["view_only"], &embed["mode"], &embed["ttl_seconds"]),
            (&json!(true), &json!("kiosk"), &json!(120))
        );
        let session = Request::get(format!("/desktop/{id}/session"))
            .header("authorization", format!("Bearer {}", embed["token"].as_str().unwrap()))
            .body(Body::empty());
        let response = server.router.clone().oneshot(session.unwrap()).await.unwrap();
        let session: Value =
            serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
        assert_eq!(session["view_only"], true);
    }
    for (query, code) in
        [("ttl=5", "INVALID_TTL"), ("view_only=maybe", "VALIDATION_FAILED"), ("ttl=x", "VALIDATION_FAILED")]
    {
        let (status, refused) = server.get(&format!("{path}?{query}")).await;
        assert_eq!((status, &refused["code"]), (422, &json!(code)), "{query}");
    }
    server.post(&format!("/computers/{id}/stop"), json!({})).await;
    let (status, refused) = server.get(&path).await;
    assert_eq!((status, &refused["code"]), (409, &json!("computer_not_running")));
}

#[tokio::test]
async fn the_viewer_password_opens_the_desktop() {
    let server = Server::new().await;
    let id = server.computer().await;
    let path = format!("/computers/{id}/viewer-password");
    let (_, state) = server.get(&path).await;
    assert_eq!((&state["viewer_password_set"], &state["password_set_at"]), (&json!(false), &Value::Null));
    let session = async |path: &str, host: &str, body: Value| {
        let request = Request::post(path).header("host", host).body(Body::from(body.to_string()));
        let response = server.router.clone().oneshot(request.unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice::<Value>(&bytes).unwrap())
    };
    let api = format!("/api/v1/computers/{id}/viewer-session");
    let (status, refused) = session(&api, "localhost", json!({ "password": "x" })).await;
    assert_eq!((status, &refused["code"]), (401, &json!("wrong_password")));

    let (status, first) = server.post(&format!("{path}/rotate"), json!({})).await;
    assert_eq!(
        (status, &first["password"], &first["rotated_at"]),
        (200, &first["viewer_password"], &first["viewer_password_set_at"])
    );
    let (_, second) = server.post(&format!("{path}/rotate"), json!({})).await;
    let (_, state) = server.get(&path).await;
    assert_eq!(
        (&state["password_set"], &state["viewer_password_set_at"]),
        (&json!(true), &second["rotated_at"])
    );
    let (status, _) = session(&api, "localhost", json!({ "password": first["password"] })).await;
    assert_eq!(status, 401);
    let right = json!({ "password": second["password"], "ttl_seconds": 600 });
    // The API's route, and those beside the page.
    for (path, host) in [
        (api.as_str(), "localhost"),
        (&format!("/desktop/{id}/viewer-session"), "localhost"),
        ("/desktop/viewer-session", "box.computer.localhost"),
    ] {
        let (status, embed) = session(path, host, right.clone()).await;
        assert_eq!(
            (status, &embed["ttl_seconds"], &embed["computer_id"]),
            (200, &json!(600), &json!(id)),
            "{path}"
        );
    }
    let (status, refused) =
        session("/desktop/viewer-session", "nobody.computer.localhost", right.clone()).await;
    assert_eq!((status, &refused["code"]), (401, &json!("wrong_password")));
    let (status, _) = session("/desktop/viewer-session", "localhost", right.clone()).await;
    assert_eq!(status, 404);
    for (body, status, code) in [
        (json!({}), 400, "MISSING_PARAM"),
        (json!({ "password": 5 }), 422, "VALIDATION_FAILED"),
        (json!({ "password": "x", "ttl_seconds": 1 }), 422, "INVALID_TTL"),
    ] {
        let (answered, refused) = session(&api, "localhost", body).await;
        assert_eq!((answered, &refused["code"]), (status, &json!(code)));
    }
    server.post(&format!("/computers/{id}/stop"), json!({})).await;
    let (status, refused) = session(&api, "localhost", right.clone()).await;
    assert_eq!((status, &refused["code"]), (409, &json!("computer_not_running")));
    // Six attempts so far; the right one does not help beyond ten.
    for _ in 0..4 {
        assert_eq!(session(&api, "localhost", json!({ "password": "x".repeat(1000) })).await.0, 401);
    }
    let (status, refused) = session(&api, "localhost", right).await;
    assert_eq!((status, &refused["code"]), (429, &json!("rate_limited")));
    assert!(refused["retry_after"].as_u64().is_some_and(|seconds| (1..=60).contains(&seconds)), "{refused}");
}

#[tokio::test]
async fn shares_open_the_desktop_until_they_are_revoked() {
    let server = Server::new().await;
    let id = server.computer().await;
    let path = format!("/computers/{id}/shares");
    let (status, share) = server.post(&path, json!({ "kind": "link", "expires_in_hours": 2 })).await;
    assert_eq!((status, keys(&share)), (201, vec!["data", "share_url"]), "{share}");
    assert_eq!(keys(&share["data"]), ["email", "expires_at", "id", "kind", "role"]);
    let url = share["share_url"].as_str().unwrap();
    let token = url.rsplit('/').next().unwrap();
    let (status, _, opened) = server.raw(Method::GET, &format!("/shared/{token}"), None, "").await;
    let opened: Value = serde_json::from_str(&opened).unwrap();
    assert_eq!((status, &opened["view_only"], &opened["role"]), (200, &json!(true), &json!("viewer")));
    let browser = Request::get(format!("/shared/{token}")).body(Body::empty()).unwrap();
    let response = server.router.clone().oneshot(browser).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["cache-control"]),
        (303, &"no-store".parse().unwrap())
    );
    let location = response.headers()["location"].to_str().unwrap();
    assert!(
        location.starts_with("http://box.computer.localhost:1/desktop/index.html#auth=rst_"),
        "{location}"
    );

    let body = json!({ "kind": "user", "role": "editor", "email": "a@example.org" });
    let (_, second) = server.post(&path, body).await;
    assert_eq!(
        (&second["data"]["email"], &second["data"]["expires_at"]),
        (&json!("a@example.org"), &Value::Null)
    );
    let (_, list) = server.get(&path).await;
    assert_eq!(list["data"], json!([second["data"], share["data"]]));

    for body in [
        json!({ "kind": "user" }),
        json!({ "kind": "user", "email": "nobody" }),
        json!({ "kind": "everybody" }),
        json!({ "role": "owner" }),
        json!({ "expires_in_hours": 0 }),
        json!({ "expires_in_hours": 8761 }),
    ] {
        let (status, refused) = server.post(&path, body.clone()).await;
        assert_eq!((status, &refused["code"]), (422, &json!("VALIDATION_FAILED")), "{body}");
    }
    let other = server.computer().await;
    let share = share["data"]["id"].as_str().unwrap();
    let (status, _) = server.delete(&format!("/computers/{other}/shares/{share}")).await;
    assert_eq!(status, 404);
    let (status, revoked) = server.delete(&format!("{path}/{share}")).await;
    assert_eq!((status, revoked), (200, json!({ "id": share, "deleted": true })));
    for token in [token, "rsh_nonsense", "x"] {
        let (status, _, _) = server.raw(Method::GET, &format!("/shared/{token}"), None, "").await;
        assert_eq!(status, 404);
    }
    let (status, _) = server.delete(&format!("{path}/nonsense")).await;
    assert_eq!(status, 404);
}

/// What the desktop gets to see of a viewer's bytes.
async fn seen_by_the_desktop(bytes: &[u8], view_only: bool, expected: usize) -> Vec<u8> {
    let server = Server::new().await;
    let id = server.computer().await;
    let display = Guest::of(&server, &id).listen_as_display().await;
    let address = on_the_network(&server).await;
    let (_, embed) = server.get(&format!("/computers/{id}/embed?view_only={view_only}")).await;
    let path = format!("/ws/vnc/{id}?auth={}", embed["token"].as_str().unwrap());
    let mut socket = socket(address, &path, None).await.unwrap();
    let (mut desktop, _) = display.accept().await.unwrap();
    desktop.write_all(b"RFB 003.008\n").await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::binary(b"RFB 003.008\n".to_vec()));
    for piece in bytes.chunks(3) {
        socket.send(Message::binary(piece.to_vec())).await.unwrap();
    }
    let mut seen = vec![0; expected];
    desktop.read_exact(&mut seen).await.unwrap();
    if view_only {
        // A kind that no viewer sends.
        socket.send(Message::binary(vec![99])).await.unwrap();
        let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else { panic!("not closed") };
        assert_eq!(u16::from(frame.code), 1008);
        assert!(!frame.reason.is_empty());
    }
    socket.close(None).await.ok();
    let mut rest = Vec::new();
    desktop.read_to_end(&mut rest).await.unwrap();
    seen.extend(rest);
    seen
}

#[tokio::test]
async fn who_may_only_watch_sends_no_input() {
    let hello = b"RFB 003.008\n\x01\x01";
    let update = [3, 1, 0, 0, 0, 0, 5, 0, 2, 208];
    let key = [4, 1, 0, 0, 0, 0, 0, 97];
    let pointer = [5, 1, 0, 9, 0, 9];
    let cut = [6, 0, 0, 0, 0, 0, 0, 2, 4, 4];
    let all = [&hello[..], &key, &update, &pointer, &cut, &update].concat();
    let pictures = [&hello[..], &update, &update].concat();
    assert_eq!(seen_by_the_desktop(&all, true, pictures.len()).await, pictures);
    let all = [&all[..], &[99]].concat();
    assert_eq!(seen_by_the_desktop(&all, false, all.len()).await, all);
}

#[tokio::test]
async fn the_desktop_socket_takes_tokens_of_its_computer() {
    let server = Server::new().await;
    let id = server.computer().await;
    let _display = Guest::of(&server, &id).listen_as_display().await;
    let other = server.computer().await;
    let address = on_the_network(&server).await;
    let (_, elsewhere) = server.post(&format!("/computers/{other}/stream-token"), json!({})).await;
    let (_, preview) = server.post(&format!("/computers/{id}/ports/3000/access"), json!({})).await;
    let path = format!("/ws/vnc/{id}");
    for token in ["", "x", elsewhere["token"].as_str().unwrap(), preview["token"].as_str().unwrap()] {
        assert_eq!(socket(address, &format!("{path}?auth={token}"), None).await.unwrap_err(), 401, "{token}");
    }
    assert_eq!(socket(address, &path, None).await.unwrap_err(), 401);
    assert!(socket(address, &path, Some(&server.key)).await.is_ok());
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_until_one_side_ends() {
    let server = Server::new().await;
    let id = server.computer().await;
    let guest = Guest::of(&server, &id);
    let listener = guest.listen(5432).await;
    let address = on_the_network(&server).await;
    let path = format!("/api/v1/computers/{id}/tunnel");
    for (port, key, status) in [
        ("5432", None, 401),
        ("5432", Some("nonsense"), 401),
        ("0", Some(server.key.as_str()), 422),
        ("70000", Some(server.key.as_str()), 422),
        ("81", Some(server.key.as_str()), 502),
    ] {
        assert_eq!(socket(address, &format!("{path}/{port}"), key).await.unwrap_err(), status, "{port}");
    }
    let (status, _, refused) =
        server.raw(Method::GET, &format!("/computers/{id}/tunnel/5432"), Some(&server.key), "").await;
    assert_eq!(status, 426, "{refused}");

    let tunnel = socket(address, &format!("{path}/5432"), Some(&server.key)).await.unwrap();
    let (mut program, _) = listener.accept().await.unwrap();
    // Both sides send more than fits anywhere before either reads.
    let large = vec![7u8; 4 * 1024 * 1024];
    let (mut reader, mut writer) = program.split();
    let (mut sink, mut stream) = tunnel.split();
    let there = async {
        let mut got = vec![0; large.len()];
        let sent = async {
            for piece in large.chunks(50_000) {
                sink.send(Message::binary(piece.to_vec())).await.unwrap();
            }
        };
        let (_, read) = tokio::join!(sent, reader.read_exact(&mut got));
        read.unwrap();
        assert!(got == large);
    };
    let back = async {
        let mut got = 0;
        let received = async {
            while got < large.len() {
                match stream.next().await.unwrap().unwrap() {
                    Message::Binary(bytes) => got += bytes.len(),
                    other => panic!("{other:?}"),
                }
            }
        };
        let (written, ()) = tokio::join!(writer.write_all(&large), received);
        written.unwrap();
    };
    tokio::join!(there, back);
    drop(program);
    let Some(Ok(Message::Close(Some(frame)))) = stream.next().await else { panic!("not closed") };
    assert_eq!(u16::from(frame.code), 1000);

    // The client's end is the program's end of file.
    let mut tunnel = socket(address, &format!("{path}/5432"), Some(&server.key)).await.unwrap();
    let (mut program, _) = listener.accept().await.unwrap();
    tunnel.send(Message::binary(b"last words".to_vec())).await.unwrap();
    tunnel.close(None).await.unwrap();
    let mut heard = Vec::new();
    program.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"last words");
    let mut text = socket(address, &format!("{path}/5432"), Some(&server.key)).await.unwrap();
    text.send(Message::text("x")).await.unwrap();
    let Some(Ok(Message::Close(Some(frame)))) = text.next().await else { panic!("not closed") };
    assert_eq!(u16::from(frame.code), 1003);
}
