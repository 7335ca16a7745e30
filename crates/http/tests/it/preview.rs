//! The proxy: who gets in, what is carried, and what nobody carries.

use std::net::SocketAddr;

use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse;
use axum::routing::{any, get, post};
use axum::{Json, Router};
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use roost_launch::Report;
use roost_launch::simulated::Boot;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower::ServiceExt;

use crate::programs::Guest;
use crate::support::{Reply, Server};

const HOST: &str = "3000-box.sandbox.localhost:1";

/// One request as a client of that host sends it.
async fn visit(server: &Server, host: &str, request: Request<Body>) -> Reply {
    let (mut parts, body) = request.into_parts();
    parts.headers.insert("host", host.parse().unwrap());
    let response = server.router.clone().oneshot(Request::from_parts(parts, body)).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Reply {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    }
}

pub async fn look(server: &Server, host: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    visit(server, host, request.body(Body::empty()).unwrap()).await
}

pub async fn expose(server: &Server, id: &str, port: u16, visibility: &str) {
    let body = json!({ "port": port, "visibility": visibility });
    let (status, row) = server.post(&format!("/computers/{id}/ports"), body).await;
    assert!(status == 200 || status == 201, "{row}");
}

pub async fn access(server: &Server, id: &str, port: u16) -> Value {
    let (status, access) = server.post(&format!("/computers/{id}/ports/{port}/access"), json!({})).await;
    assert_eq!(status, 200, "{access}");
    access
}

pub fn path_of(url: &Value) -> &str {
    let url = url.as_str().unwrap();
    &url[url.find("/.roost").unwrap()..]
}

/// Says what it was asked, in every way.
pub fn program(name: &'static str) -> Router {
    let describe = move |request: Request<Body>| async move {
        let headers: serde_json::Map<String, Value> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), json!(value.to_str().unwrap())))
            .collect();
        let body = json!({ "program": name, "uri": request.uri().to_string(), "headers": headers });
        ([("set-cookie", "theirs=1"), ("connection", "x-hop"), ("x-hop", "1")], Json(body))
    };
    let echo = |body: Body| async move { Response::new(body) };
    let socket = |upgrade: WebSocketUpgrade| async move {
        upgrade.protocols(["chat"]).on_upgrade(|mut socket| async move {
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Text(_) | Message::Binary(_) = message
                    && socket.send(message).await.is_err()
                {
                    return;
                }
            }
        })
    };
    let silent = || async { StatusCode::NO_CONTENT.into_response() };
    Router::new()
        .route("/echo", post(echo))
        .route("/socket", any(socket))
        .route("/silent", get(silent))
        .fallback(describe)
}

/// A computer `box` with the program on port 3000.
pub async fn furnished() -> (Server, String, Guest) {
    let server = Server::new().await;
    let id = server.computer().await;
    let guest = Guest::of(&server, &id);
    guest.serve(3000, program("three")).await;
    (server, id, guest)
}

/// The server on a socket of its own.
async fn on_the_network(server: &Server) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = server.router.clone().into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await });
    address
}

#[tokio::test]
async fn visibility_decides_who_gets_in() {
    let (server, id, _guest) = furnished().await;
    let key = format!("Bearer {}", server.key);
    let preview = access(&server, &id, 3000).await;
    let token = format!("Bearer {}", preview["token"].as_str().unwrap());
    let other_port = access(&server, &id, 3001).await;
    let other_port = format!("Bearer {}", other_port["token"].as_str().unwrap());
    let (_, stream) = server.post(&format!("/computers/{id}/stream-token"), json!({})).await;
    let stream = format!("Bearer {}", stream["token"].as_str().unwrap());
    let as_member = &[("authorization", key.as_str())][..];
    let as_guest = &[("authorization", token.as_str())][..];
    let strangers = [
        &[][..],
        &[("authorization", "Bearer msk_a_nonsense")],
        &[("authorization", other_port.as_str())],
        &[("authorization", stream.as_str())],
        &[("cookie", "roost-session=nonsense")],
    ];

    // Not exposed: nobody learns of it except members, who reach every port.
    let nobody = look(&server, "3000-nobody.sandbox.localhost", "/", &[]).await;
    assert_eq!((nobody.status, &nobody.json()["code"]), (404, &json!("NOT_FOUND")));
    for visitor in strangers.iter().chain([&as_guest]) {
        let refused = look(&server, HOST, "/", visitor).await;
        assert_eq!(
            (refused.status, &refused.json()["message"]),
            (404, &nobody.json()["message"]),
            "{visitor:?}"
        );
    }
    assert_eq!(look(&server, HOST, "/", as_member).await.status, 200);

    for (visibility, guest_status, stranger_status) in
        [("private", 401, 401), ("protected", 200, 401), ("public", 200, 200)]
    {
        expose(&server, &id, 3000, visibility).await;
        assert_eq!(look(&server, HOST, "/", as_member).await.status, 200, "{visibility}");
        assert_eq!(look(&server, HOST, "/", as_guest).await.status, guest_status, "{visibility}");
        for visitor in strangers {
            let reply = look(&server, HOST, "/", visitor).await;
            assert_eq!(reply.status, stranger_status, "{visibility} {visitor:?}");
        }
    }
    let reply = look(&server, HOST, "/a%2Fb?c=d&e", &[]).await;
    assert_eq!((&reply.json()["program"], &reply.json()["uri"]), (&json!("three"), &json!("/a%2Fb?c=d&e")));
    // The other name of the same port, and the short one: it is the only port.
    for host in ["3000-box.computer.localhost", "box.sandbox.localhost", "BOX.SANDBOX.LOCALHOST.:9"] {
        assert_eq!(look(&server, host, "/", &[]).await.status, 200, "{host}");
    }
    // Closed again.
    server.delete(&format!("/computers/{id}/ports/3000")).await;
    assert_eq!(look(&server, HOST, "/", as_guest).await.status, 404);
}

#[tokio::test]
async fn the_short_name_leads_to_the_only_port_or_the_usual_one() {
    let (server, id, guest) = furnished().await;
    guest.serve(8080, program("eight")).await;
    let host = "box.sandbox.localhost";
    expose(&server, &id, 8080, "public").await;
    assert_eq!(look(&server, host, "/", &[]).await.json()["program"], "eight");
    expose(&server, &id, 9090, "public").await;
    assert_eq!(look(&server, host, "/", &[]).await.status, 404);
    expose(&server, &id, 3000, "public").await;
    assert_eq!(look(&server, host, "/", &[]).await.json()["program"], "three");
}

#[tokio::test]
async fn a_way_into_one_computer_is_none_into_another() {
    let (server, id, _guest) = furnished().await;
    let other = server.computer().await;
    let elsewhere = Guest::of(&server, &other);
    elsewhere.serve(3000, program("other")).await;
    expose(&server, &id, 3000, "protected").await;
    expose(&server, &other, 3000, "protected").await;
    let ways = access(&server, &id, 3000).await;
    let token = format!("Bearer {}", ways["token"].as_str().unwrap());
    let there = "3000-box-2.sandbox.localhost";
    assert_eq!(look(&server, HOST, "/", &[("authorization", &token)]).await.json()["program"], "three");
    assert_eq!(look(&server, there, "/", &[("authorization", &token)]).await.status, 401);
    let key = format!("Bearer {}", server.key);
    assert_eq!(look(&server, there, "/", &[("authorization", &key)]).await.json()["program"], "other");
    // A link at the wrong door is used up, so that nobody can try it at all of them.
    for link in ["session_url", "preview_url"] {
        assert_eq!(look(&server, there, path_of(&ways[link]), &[]).await.status, 401, "{link}");
    }
    assert_eq!(look(&server, HOST, path_of(&ways["session_url"]), &[]).await.status, 401);
    assert_eq!(look(&server, HOST, path_of(&ways["preview_url"]), &[]).await.status, 303);
}

#[tokio::test]
async fn a_link_begins_a_session_of_its_host() {
    let (server, id, _guest) = furnished().await;
    expose(&server, &id, 3000, "private").await;
    let ways = access(&server, &id, 3000).await;
    let link = format!("{}&next=/deep?a=b", path_of(&ways["session_url"]));
    let begun = look(&server, HOST, &link, &[]).await;
    assert_eq!((begun.status, begun.header("location")), (303, Some("/deep?a=b")));
    assert_eq!(begun.header("cache-control"), Some("no-store"));
    let cookie = begun.header("set-cookie").unwrap().to_owned();
    assert!(cookie.contains("; HttpOnly; SameSite=Lax") && !cookie.contains("Domain"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    // Once.
    assert_eq!(look(&server, HOST, &link, &[]).await.status, 401);

    let planted = format!("a=1; roost-session=planted; {cookie}; b=2");
    let inside = look(&server, HOST, "/", &[("cookie", &planted)]).await;
    assert_eq!((inside.status, &inside.json()["headers"]["cookie"]), (200, &json!("a=1; b=2")));
    // Pages of other computers do not act in its name; those of the same one do.
    let evil = [("cookie", cookie), ("origin", "http://3000-evil.sandbox.localhost:1")];
    assert_eq!(look(&server, HOST, "/", &evil).await.status, 401);
    let own = [("cookie", cookie), ("origin", "http://8080-box.sandbox.localhost:1")];
    assert_eq!(look(&server, HOST, "/", &own).await.status, 200);
    // It is for this port.
    assert_eq!(look(&server, "3001-box.sandbox.localhost", "/", &[("cookie", cookie)]).await.status, 404);
    for path in ["/.roost/session?token=", "/.roost/session", "/.roost/session?token=rol_x&next=//evil"] {
        assert_eq!(look(&server, HOST, path, &[]).await.status, 401, "{path}");
    }
    assert_eq!(look(&server, HOST, "/.roost/other", &[("cookie", cookie)]).await.status, 404);
}

#[tokio::test]
async fn a_protected_port_asks_for_the_viewer_password() {
    let (server, id, _guest) = furnished().await;
    expose(&server, &id, 3000, "protected").await;
    let html = ("accept", "text/html,*/*;q=0.8");
    let asked = look(&server, HOST, "/deep?a='b&c", &[html]).await;
    assert_eq!(asked.status, 401);
    assert_eq!(asked.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(
        asked.body.contains("type=password") && asked.body.contains("value=\"/deep?a=&#39;b&amp;c\""),
        "{}",
        asked.body
    );

    let (_, rotated) = server.post(&format!("/computers/{id}/viewer-password/rotate"), json!({})).await;
    let password = rotated["viewer_password"].as_str().unwrap();
    let submit = async |password: &str| {
        let form = Request::post("/.roost/session")
            .header("content-type", "application/x-www-form-urlencoded")
            .header("accept", "text/html")
            .body(Body::from(format!("password={password}&next=%2Fdeep")));
        visit(&server, HOST, form.unwrap()).await
    };
    let wrong = submit("wrong").await;
    assert_eq!(wrong.status, 401);
    assert!(wrong.body.contains("viewer password is wrong") && wrong.body.contains("value=\"/deep\""));
    let begun = submit(password).await;
    assert_eq!((begun.status, begun.header("location")), (303, Some("/deep")));
    let cookie = begun.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    assert_eq!(look(&server, HOST, "/", &[("cookie", &cookie)]).await.status, 200);
    for _ in 0..8 {
        assert_eq!(submit("wrong").await.status, 401);
    }
    let limited = submit(password).await;
    assert_eq!(limited.status, 429);
    assert!(limited.headers.contains_key("retry-after"));
    // What the password opened closes with the port's change; so does the way in.
    expose(&server, &id, 3000, "private").await;
    assert_eq!(look(&server, HOST, "/", &[("cookie", &cookie)]).await.status, 401);
    assert!(!look(&server, HOST, "/", &[html]).await.body.contains("type=password"));
}

#[tokio::test]
async fn the_program_sees_the_truth_about_its_visitor_and_none_of_our_credentials() {
    let (server, id, _guest) = furnished().await;
    expose(&server, &id, 3000, "public").await;
    let key = format!("Bearer {}", server.key);
    let reply = look(
        &server,
        HOST,
        "/",
        &[
            ("authorization", &key),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-host", "evil"),
            ("connection", "x-secret, x-forwarded-proto"),
            ("x-secret", "1"),
        ],
    )
    .await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(
        reply.json()["headers"],
        json!({ "host": HOST, "x-forwarded-host": HOST, "x-forwarded-proto": "http" })
    );
    assert_eq!(reply.header("set-cookie"), Some("theirs=1"));
    assert!(!reply.headers.contains_key("x-hop") && reply.headers.contains_key("x-request-id"));
    // The program's own credentials are its own.
    let reply = look(&server, HOST, "/", &[("authorization", "Bearer theirs")]).await;
    assert_eq!(reply.json()["headers"]["authorization"], "Bearer theirs");
    let reply = look(&server, HOST, "/", &[("authorization", "Bearer rst_old")]).await;
    assert_eq!(reply.json()["headers"]["authorization"], Value::Null);

    let address = on_the_network(&server).await;
    let reply = network_get(address, "/").await;
    assert_eq!(reply["headers"]["x-forwarded-for"], "127.0.0.1");
}

async fn network_get(address: SocketAddr, path: &str) -> Value {
    let socket = TcpStream::connect(address).await.unwrap();
    let (mut requests, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    let request =
        Request::get(format!("http://{HOST}{path}")).body(http_body_util::Empty::<Bytes>::new()).unwrap();
    let response = requests.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

#[tokio::test]
async fn who_gets_nothing_is_told_why() {
    let (server, id, guest) = furnished().await;
    expose(&server, &id, 3000, "public").await;
    expose(&server, &id, 4000, "public").await;
    let empty = "4000-box.sandbox.localhost";
    let html = &[("accept", "text/html")][..];
    let refused = look(&server, empty, "/", &[]).await;
    assert_eq!((refused.status, &refused.json()["code"]), (502, &json!("PORT_UNAVAILABLE")));
    let page = look(&server, empty, "/", html).await;
    assert_eq!((page.status, page.header("content-type")), (502, Some("text/html; charset=utf-8")));
    assert!(page.body.contains("nothing listens on port 4000"), "{}", page.body);

    // A program that hangs up.
    let listener = guest.listen(4000).await;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            drop(socket);
        }
    });
    let refused = look(&server, empty, "/", &[]).await;
    assert_eq!((refused.status, &refused.json()["code"]), (502, &json!("PORT_UNAVAILABLE")));

    let (status, _) = server.post(&format!("/computers/{id}/stop"), json!({})).await;
    assert_eq!(status, 200);
    let refused = look(&server, HOST, "/", &[]).await;
    assert_eq!((refused.status, &refused.json()["code"]), (409, &json!("COMPUTER_NOT_RUNNING")));
    let page = look(&server, HOST, "/", html).await;
    assert!(page.status == 409 && page.body.contains("This computer is not running"), "{}", page.body);
    expose(&server, &id, 3000, "private").await;
    // A stopped computer is nobody's business either.
    assert_eq!(look(&server, HOST, "/", &[]).await.status, 401);
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_refused() {
    let (server, id, _guest) = furnished().await;
    expose(&server, &id, 3000, "public").await;
    for host in ["03000-box", "65536-box", "0-box", "3000-", "a.box", "-", "b_x"] {
        assert_eq!(look(&server, &format!("{host}.sandbox.localhost"), "/", &[]).await.status, 404, "{host}");
    }
    let address = on_the_network(&server).await;
    let cases = [
        format!("GET / HTTP/1.1\r\nConnection: close\r\nHost: {HOST}\r\nHost: other\r\n\r\n"),
        format!("GET http://other.sandbox.localhost/ HTTP/1.1\r\nConnection: close\r\nHost: {HOST}\r\n\r\n"),
        format!(
            "POST / HTTP/1.1\r\nConnection: close\r\nHost: {HOST}\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"
        ),
        format!("POST / HTTP/1.1\r\nConnection: close\r\nHost: {HOST}\r\nTransfer-Encoding: gzip\r\n\r\n"),
        format!(
            "POST / HTTP/1.1\r\nConnection: close\r\nHost: {HOST}\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"
        ),
    ];
    for case in cases {
        let answer = say(address, &case).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{case:?}: {answer:?}");
    }
    // Of two lengths that HTTP ranks, the program sees the one that holds.
    let both =
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET /next HTTP/1.1\r\n";
    let answer =
        say(address, &format!("POST /echo HTTP/1.1\r\nConnection: close\r\nHost: {HOST}\r\n{both}")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("allow:"), "{answer:?}");
    assert_eq!(body, "1\r\nx\r\n0\r\n\r\n");
}

/// What is answered to exactly these bytes, until the connection ends.
async fn say(address: SocketAddr, text: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A refused request may leave bytes unread, which resets the connection.
    drop(socket.read_to_end(&mut answer).await);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Every piece comes back before the next is sent: nothing waits for a body's end, in either direction.
#[tokio::test]
async fn bodies_stream_both_ways() {
    let (server, id, _guest) = furnished().await;
    expose(&server, &id, 3000, "public").await;
    let address = on_the_network(&server).await;
    for version in [1, 2] {
        let (pieces, body) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
        let uri = if version == 1 { "/echo".to_owned() } else { format!("http://{HOST}/echo") };
        let mut request = Request::post(uri).body(StreamBody::new(ReceiverStream::new(body))).unwrap();
        let socket = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let response: Response<Incoming> = if version == 1 {
            request.headers_mut().insert("host", HOST.parse().unwrap());
            let (mut requests, connection) = hyper::client::conn::http1::handshake(socket).await.unwrap();
            tokio::spawn(connection);
            let answer = requests.send_request(request);
            pieces.send(Ok(Frame::data(Bytes::from_static(b"first")))).await.unwrap();
            answer.await.unwrap()
        } else {
            let (mut requests, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), socket).await.unwrap();
            tokio::spawn(connection);
            let answer = requests.send_request(request);
            pieces.send(Ok(Frame::data(Bytes::from_static(b"first")))).await.unwrap();
            answer.await.unwrap()
        };
        assert_eq!(response.status(), 200, "HTTP/{version}");
        let mut body = response.into_body();
        for piece in ["first", "second", "third"] {
            if piece != "first" {
                pieces.send(Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).await.unwrap();
            }
            let mut got = Vec::new();
            while got.len() < piece.len() {
                got.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
            }
            assert_eq!(got, piece.as_bytes(), "HTTP/{version}");
        }
        // 8 MiB in one go, and the end.
        let large = Bytes::from((0..8 * 1024 * 1024u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<u8>>());
        let sent = large.clone();
        tokio::spawn(async move {
            for piece in sent.chunks(100_000) {
                pieces.send(Ok(Frame::data(Bytes::copy_from_slice(piece)))).await.unwrap();
            }
        });
        assert!(body.collect().await.unwrap().to_bytes() == large, "HTTP/{version}");
    }
}

#[tokio::test]
async fn sockets_are_carried_over_both_versions() {
    let (server, id, _guest) = furnished().await;
    expose(&server, &id, 3000, "public").await;
    let address = on_the_network(&server).await;

    use tokio_tungstenite::tungstenite::{self, client::IntoClientRequest, protocol::Role};
    let mut request = format!("ws://{HOST}/socket").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "chat".parse().unwrap());
    let socket = TcpStream::connect(address).await.unwrap();
    let (mut socket, answer) = tokio_tungstenite::client_async(request, socket).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
    socket.send(tungstenite::Message::text("hello")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), tungstenite::Message::text("hello"));

    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut requests, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    // The server's settings, with what it offers, come before its first answer.
    let first =
        Request::get(format!("http://{HOST}/silent")).body(http_body_util::Empty::<Bytes>::new()).unwrap();
    assert_eq!(requests.send_request(first).await.unwrap().status(), 204);
    let mut request = Request::connect(format!("http://{HOST}/socket"))
        .header("sec-websocket-version", "13")
        .body(http_body_util::Empty::<Bytes>::new())
        .unwrap();
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    let mut answer = requests.send_request(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    let stream = TokioIo::new(hyper::upgrade::on(&mut answer).await.unwrap());
    let mut socket = tokio_tungstenite::WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    socket.send(tungstenite::Message::binary(vec![7; 300_000])).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), tungstenite::Message::binary(vec![7; 300_000]));
}

#[tokio::test]
async fn the_same_below_a_path() {
    let (server, id, _guest) = furnished().await;
    let base = format!("/computers/{id}/ports/3000/proxy");
    let host = "127.0.0.1:1";
    let key = format!("Bearer {}", server.key);
    let as_member = &[("authorization", key.as_str()), ("cookie", "of=the-console")][..];
    assert_eq!(look(&server, host, &format!("{base}/"), &[]).await.status, 404);
    let reply = look(&server, host, &format!("{base}/a%2Fb//c?d=%20"), as_member).await;
    assert_eq!((reply.status, &reply.json()["uri"]), (200, &json!("/a%2Fb//c?d=%20")), "{}", reply.body);
    assert_eq!(reply.json()["headers"]["x-forwarded-prefix"], json!(base));
    for name in ["authorization", "cookie"] {
        assert_eq!(reply.json()["headers"][name], Value::Null, "{name}");
    }
    // It is on our origin, and no part of it.
    assert!(!reply.headers.contains_key("set-cookie"));
    assert!(reply.header("content-security-policy").unwrap().starts_with("sandbox "));
    assert_eq!(look(&server, host, &format!("{base}/"), as_member).await.json()["uri"], "/");
    let moved = look(&server, host, &format!("{base}?a=b"), as_member).await;
    assert_eq!((moved.status, moved.header("location")), (308, Some(format!("{base}/?a=b").as_str())));

    expose(&server, &id, 3000, "protected").await;
    let token = access(&server, &id, 3000).await;
    let token = format!("Bearer {}", token["token"].as_str().unwrap());
    assert_eq!(look(&server, host, &format!("{base}/"), &[]).await.status, 401);
    assert_eq!(look(&server, host, &format!("{base}/"), &[("authorization", &token)]).await.status, 200);
    for (path, status) in [
        ("/computers/nonsense/ports/3000/proxy/", 400),
        ("/computers/3f0c6f1e-6b6b-4a1e-9d57-0d4a5a1f0000/ports/3000/proxy/", 404),
    ] {
        assert_eq!(look(&server, host, path, as_member).await.status, status, "{path}");
    }
    let path = format!("/computers/{id}/ports/0/proxy/");
    assert_eq!(look(&server, host, &path, as_member).await.status, 422);
}

#[tokio::test]
async fn the_desktop_and_the_api_stay_where_they_are() {
    let (server, id, _guest) = furnished().await;
    expose(&server, &id, 3000, "public").await;
    let start = look(&server, "box.computer.localhost:1", "/", &[]).await;
    assert_eq!((start.status, start.header("location")), (307, Some("/desktop/index.html")));
    let health = look(&server, "localhost:1", "/health", &[]).await;
    assert_eq!(health.json()["status"], "ok");
    // On a port's host the API is the program's.
    let reply = look(&server, HOST, "/api/v1/computers", &[]).await;
    assert_eq!(reply.json()["uri"], "/api/v1/computers");
}

#[tokio::test]
async fn a_visitor_of_a_starting_computer_waits_for_it() {
    let server = Server::new().await;
    server.launcher.set_boot(Boot::Hangs);
    let body = json!({ "name": "box", "template_type": "miosa-desktop" });
    let (status, created) = server.post("/computers", body).await;
    assert_eq!(status, 201, "{created}");
    let id = created["id"].as_str().unwrap().to_owned();
    Guest::of(&server, &id).serve(3000, program("three")).await;
    expose(&server, &id, 3000, "public").await;
    let visit = look(&server, HOST, "/", &[]);
    let started = async {
        // Its machine appears, then says that it runs.
        while !server.launcher.running().contains(&id.parse().unwrap()) {
            tokio::task::yield_now().await;
        }
        server.launcher.report(id.parse().unwrap(), Report::Running);
    };
    let (reply, ()) = tokio::join!(visit, started);
    assert_eq!((reply.status, &reply.json()["program"]), (200, &json!("three")));
}

#[tokio::test]
async fn links_are_good_at_every_server() {
    let (server, id, _guest) = furnished().await;
    expose(&server, &id, 3000, "private").await;
    let ways = access(&server, &id, 3000).await;
    let server = server.again().await;
    let begun = look(&server, HOST, path_of(&ways["session_url"]), &[]).await;
    assert_eq!(begun.status, 303, "{}", begun.body);
}
