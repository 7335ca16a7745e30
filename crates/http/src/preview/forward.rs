//! Carries one request into a computer and its answer back, without keeping any of it.
//!
//! Every request has a connection of its own through the agent's tunnel, so no answer can be taken for another's.
//! The connection is HTTP/1.1, as every program speaks it; what hyper has read from the client in either version
//! is written anew, so a message has one length whatever the client wrote. Bodies are passed on piece by piece,
//! and a side that does not read holds the other one back.

use axum::body::Body;
use axum::extract::Request;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::client::conn::http1;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use roost_api::{ApiError, ErrorCode};
use roost_control::{Act, Caller, Failure, Place, looks_like_ours};

use crate::App;
use crate::client;
use crate::sockets::rights_end;

/// Where the computer's program appears to its visitor.
#[derive(Debug)]
pub(super) enum Mount {
    /// At the root of a host name of its own, where our session has this cookie.
    Host { host: String, cookie: &'static str },
    /// Below a path of our own origin.
    Path { host: String, prefix: String, target: PathAndQuery },
}

/// A request to stop speaking HTTP on its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Upgrade {
    None,
    /// `Upgrade:` of HTTP/1.1, and what to.
    Http1(HeaderValue),
    /// The extended CONNECT of HTTP/2, and what to.
    Http2(HeaderValue),
}

/// What concerns one connection and not the message.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What an answer would change about the whole origin, which is not its own below a path.
const ABOUT_THE_ORIGIN: [HeaderName; 5] = [
    header::SET_COOKIE,
    HeaderName::from_static("clear-site-data"),
    header::STRICT_TRANSPORT_SECURITY,
    header::ALT_SVC,
    HeaderName::from_static("service-worker-allowed"),
];

pub(super) async fn forward(
    app: &App,
    place: Place,
    mount: Mount,
    opened_by: Option<Caller>,
    mut request: Request,
) -> Result<Response, Failure> {
    let upgrade = check(&request)?;
    let visitor = (upgrade != Upgrade::None).then(|| hyper::upgrade::on(&mut request));
    let outgoing = outgoing(&mount, &upgrade, app.control.is_https(), request)?;

    let silent = |source: hyper::Error| Failure {
        public: ApiError::new(
            ErrorCode::PortUnavailable,
            format!("the program on port {} ended the connection without an answer", place.port),
        ),
        source: Some(Box::new(source)),
    };
    let tunnel = app.control.open_port(place.computer, place.port).await?;
    let handshake = http1::handshake(TokioIo::new(tunnel.into_io())).await;
    let (mut requests, connection) = handshake.map_err(silent)?;
    // It ends with the answer's body, or with its reader.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a port broke");
        }
    });
    let mut response = requests.send_request(outgoing).await.map_err(silent)?;

    let has_switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let switched = response.headers().get(header::UPGRADE).cloned();
    strip_hop_by_hop(response.headers_mut());
    if let Mount::Path { .. } = mount {
        keep_to_itself(response.headers_mut());
    }
    *response.version_mut() = Version::default();
    if !has_switched {
        return Ok(response.map(Body::new));
    }
    let Some(visitor) = visitor else {
        return Err(ApiError::new(
            ErrorCode::PortUnavailable,
            format!("the program on port {} switched to another protocol without being asked", place.port),
        )
        .into());
    };
    let guest = hyper::upgrade::on(&mut response);
    let over = rights_end(app.control.clone(), opened_by, place.computer, Act::Write);
    tokio::spawn(async move {
        let joined = async {
            let (visitor, guest) = tokio::try_join!(visitor, guest).map_err(std::io::Error::other)?;
            tokio::io::copy_bidirectional(&mut TokioIo::new(visitor), &mut TokioIo::new(guest)).await
        };
        tokio::select! {
            joined = joined => if let Err(error) = joined {
                tracing::debug!(%error, "an upgraded connection broke");
            },
            () = over => {}
        }
    });
    let headers = response.headers_mut();
    match upgrade {
        Upgrade::Http2(_) => {
            headers.remove(header::SEC_WEBSOCKET_ACCEPT);
            *response.status_mut() = StatusCode::OK;
        }
        Upgrade::Http1(asked) => {
            headers.insert(header::UPGRADE, switched.unwrap_or(asked));
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        Upgrade::None => {}
    }
    let (parts, _) = response.into_parts();
    Ok((parts.status, parts.headers).into_response())
}

/// Refuses what two readers could read in two ways.
fn check(request: &Request) -> Result<Upgrade, ApiError> {
    let headers = request.headers();
    let ambiguous =
        |what: &str| Err(ApiError::new(ErrorCode::AmbiguousRequest, format!("the request {what}")));
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter().count();
    let encodings = headers.get_all(header::TRANSFER_ENCODING).iter().count();
    if lengths > 1 || encodings > 1 || (lengths > 0 && encodings > 0) {
        return ambiguous("has more than one length");
    }
    if *request.method() == Method::CONNECT {
        return match request.extensions().get::<Protocol>().map(|name| HeaderValue::from_str(name.as_str())) {
            Some(Ok(name)) => Ok(Upgrade::Http2(name)),
            Some(Err(_)) => ambiguous("asks for a protocol whose name is no text"),
            None => {
                let message = "this is no proxy for other hosts; CONNECT is for WebSockets over HTTP/2";
                Err(ApiError::new(ErrorCode::MethodNotAllowed, message))
            }
        };
    }
    let asks = nominated(headers).any(|name| name.eq_ignore_ascii_case("upgrade"));
    match headers.get(header::UPGRADE) {
        // HTTP/2 to the program would be a way past what we write into each request.
        Some(name) if asks && !is_http(name) => Ok(Upgrade::Http1(name.clone())),
        _ => Ok(Upgrade::None),
    }
}

fn is_http(name: &HeaderValue) -> bool {
    let Ok(name) = name.to_str() else { return true };
    name.split(',').any(|name| {
        let name = name.trim().to_ascii_lowercase();
        name.starts_with("h2") || name.starts_with("http") || name.starts_with("tls")
    })
}

fn outgoing(
    mount: &Mount,
    upgrade: &Upgrade,
    is_https: bool,
    request: Request,
) -> Result<Request<Body>, Failure> {
    let (mut parts, body) = request.into_parts();
    let client = client::address(&parts.extensions);
    let headers = &mut parts.headers;
    strip_hop_by_hop(headers);
    strip_claims(headers);
    headers.remove(header::EXPECT); // the client has been told to go on
    strip_credentials(headers, mount);

    let text = |text: &str| HeaderValue::from_str(text).map_err(Failure::internal);
    let (host, target) = match mount {
        Mount::Host { host, .. } => (host, parts.uri.path_and_query().cloned()),
        Mount::Path { host, prefix, target } => {
            headers.insert("x-forwarded-prefix", text(prefix)?);
            (host, Some(target.clone()))
        }
    };
    headers.insert(header::HOST, text(host)?);
    headers.insert("x-forwarded-host", text(host)?);
    headers.insert("x-forwarded-proto", HeaderValue::from_static(if is_https { "https" } else { "http" }));
    if let Some(client) = client {
        headers.insert("x-forwarded-for", text(&client.to_string())?);
    }
    let mut method = parts.method;
    match upgrade {
        Upgrade::None => {}
        Upgrade::Http1(name) => switch_to(headers, name),
        Upgrade::Http2(name) => {
            method = Method::GET;
            switch_to(headers, name);
            let mut key = [0; 16];
            getrandom::fill(&mut key).map_err(|error| Failure::internal(std::io::Error::other(error)))?;
            headers.insert(header::SEC_WEBSOCKET_KEY, text(&STANDARD.encode(key))?);
        }
    }

    // An upgraded connection's bytes are no body.
    let body = if *upgrade == Upgrade::None { body } else { Body::empty() };
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = target.map_or_else(|| Uri::from_static("/"), Uri::from);
    *request.headers_mut() = parts.headers;
    Ok(request)
}

fn switch_to(headers: &mut HeaderMap, name: &HeaderValue) {
    headers.insert(header::UPGRADE, name.clone());
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
}

fn nominated(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<String> = nominated(headers).map(str::to_owned).collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// What only a proxy may say, which a client has said.
fn strip_claims(headers: &mut HeaderMap) {
    let is_claim = |name: &HeaderName| {
        let name = name.as_str();
        name.starts_with("x-forwarded-") || name == "forwarded" || name == "x-real-ip"
    };
    let claims: Vec<HeaderName> = headers.keys().filter(|name| is_claim(name)).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
}

/// What let the visitor in is nothing for the program, nor is anything else of ours.
fn strip_credentials(headers: &mut HeaderMap, mount: &Mount) {
    let lines: Vec<String> = match mount {
        Mount::Host { .. } => {
            let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
            lines.map(str::to_owned).collect()
        }
        // The cookies of the API's origin, or of another computer below it.
        Mount::Path { .. } => Vec::new(),
    };
    headers.remove(header::COOKIE);
    let is_theirs = |pair: &&str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let is_session = matches!(mount, Mount::Host { cookie, .. } if *cookie == name);
        !pair.is_empty() && !is_session && !looks_like_ours(value)
    };
    let pairs: Vec<&str> =
        lines.iter().flat_map(|line| line.split(';')).map(str::trim).filter(is_theirs).collect();
    // HTTP/2 may have them in several lines, HTTP/1 has one.
    if let (false, Ok(line)) = (pairs.is_empty(), HeaderValue::from_str(&pairs.join("; "))) {
        headers.insert(header::COOKIE, line);
    }
}

/// Below a path a page must not act for the origin, which is the API's.
fn keep_to_itself(headers: &mut HeaderMap) {
    for name in ABOUT_THE_ORIGIN {
        headers.remove(name);
    }
    headers.append(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts",
        ),
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request {
        let mut request = Request::builder().uri("http://box.sandbox.localhost/a?b=c");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    fn host() -> Mount {
        Mount::Host { host: "box.sandbox.localhost".to_owned(), cookie: "roost-session" }
    }

    fn sent(mount: &Mount, headers: &[(&str, &str)]) -> Request<Body> {
        let request = request(headers);
        let upgrade = check(&request).unwrap();
        outgoing(mount, &upgrade, true, request).unwrap()
    }

    #[test]
    fn what_concerns_the_connection_ends_here() {
        let sent = sent(
            &host(),
            &[
                ("connection", "close, X-Mine, x-forwarded-host, Host"),
                ("keep-alive", "1"),
                ("te", "trailers"),
                ("upgrade", "h2c"),
                ("x-mine", "1"),
                ("x-theirs", "1"),
                ("expect", "100-continue"),
            ],
        );
        let mut names: Vec<&str> = sent.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["host", "x-forwarded-host", "x-forwarded-proto", "x-theirs"]);
        assert_eq!(sent.uri(), "/a?b=c");
    }

    #[test]
    fn claims_of_a_client_are_not_believed() {
        let sent = sent(
            &host(),
            &[
                ("forwarded", "for=1.2.3.4"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-proto", "gopher"),
                ("x-forwarded-host", "evil"),
                ("x-forwarded-prefix", "/evil"),
                ("x-real-ip", "1.2.3.4"),
            ],
        );
        let headers = sent.headers();
        assert_eq!(headers["x-forwarded-host"], "box.sandbox.localhost");
        assert_eq!(headers["x-forwarded-proto"], "https");
        for name in ["forwarded", "x-forwarded-for", "x-forwarded-prefix", "x-real-ip"] {
            assert!(!headers.contains_key(name), "{name}");
        }
    }

    #[test]
    fn credentials_of_ours_are_not_passed_on() {
        let cookies = [("cookie", "a=1; roost-session=rms_x"), ("cookie", "b=2; c=rst_y;;d")];
        assert_eq!(sent(&host(), &cookies).headers()[header::COOKIE], "a=1; b=2; d");
        let path = Mount::Path {
            host: "localhost".to_owned(),
            prefix: "/p".to_owned(),
            target: PathAndQuery::from_static("/x"),
        };
        let sent = sent(&path, &cookies);
        assert!(!sent.headers().contains_key(header::COOKIE));
        assert_eq!(
            (sent.uri().path(), &sent.headers()["x-forwarded-prefix"]),
            ("/x", &HeaderValue::from_static("/p"))
        );
    }

    #[test]
    fn a_message_has_one_length() {
        for headers in [
            &[("content-length", "1"), ("transfer-encoding", "chunked")][..],
            &[("content-length", "1"), ("content-length", "1")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        ] {
            assert_eq!(check(&request(headers)).unwrap_err().code, ErrorCode::AmbiguousRequest);
        }
        let mut connect = request(&[]);
        *connect.method_mut() = Method::CONNECT;
        assert_eq!(check(&connect).unwrap_err().code, ErrorCode::MethodNotAllowed);
    }

    #[test]
    fn upgrades_are_passed_on_except_to_another_http() {
        let asked = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        assert_eq!(check(&request(&asked)).unwrap(), Upgrade::Http1(HeaderValue::from_static("websocket")));
        let sent = sent(&host(), &asked);
        assert_eq!(
            (&sent.headers()["connection"], &sent.headers()["upgrade"]),
            (&HeaderValue::from_static("upgrade"), &HeaderValue::from_static("websocket"))
        );
        for name in ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "TLS/1.0"] {
            let asked = [("connection", "upgrade"), ("upgrade", name)];
            assert_eq!(check(&request(&asked)).unwrap(), Upgrade::None, "{name}");
        }
        assert_eq!(check(&request(&[("upgrade", "websocket")])).unwrap(), Upgrade::None);
    }

    #[test]
    fn below_a_path_an_answer_speaks_for_itself_only() {
        let mut headers = HeaderMap::new();
        headers.insert(header::SET_COOKIE, "a=b".parse().unwrap());
        headers.insert("clear-site-data", "\"*\"".parse().unwrap());
        headers.insert(header::CONTENT_SECURITY_POLICY, "default-src *".parse().unwrap());
        keep_to_itself(&mut headers);
        let policies: Vec<&HeaderValue> = headers.get_all(header::CONTENT_SECURITY_POLICY).iter().collect();
        assert_eq!(policies.len(), 2, "a page gets the strictest of all policies");
        assert!(policies[1].to_str().unwrap().starts_with("sandbox ") && headers.len() == 2);
    }

    proptest! {
        /// Whatever is named in `Connection`: what we say about the request stands.
        #[test]
        fn nothing_a_client_nominates_removes_what_we_say(names in "[A-Za-z ,-]{0,60}") {
            let sent = sent(&host(), &[("connection", &names), ("x-forwarded-for", "1.2.3.4")]);
            prop_assert_eq!(&sent.headers()["x-forwarded-host"], "box.sandbox.localhost");
            prop_assert_eq!(&sent.headers()[header::HOST], "box.sandbox.localhost");
            prop_assert!(!sent.headers().contains_key("x-forwarded-for"));
            prop_assert!(!sent.headers().contains_key(header::CONNECTION));
        }
    }
}
