//! The reverse proxy: programs that listen on a port of a computer, under host names of their own.
//!
//! A request for such a host never meets the API's routes. [`host`] says which computer and port it means, the
//! control plane whether its visitor gets in, [`forward`] carries it there and back. Who does not get in sees a
//! page of ours, or the usual error body where no page was asked for.
//!
//! On every such host `/.roost/` is ours: `/.roost/session` begins a session with a link or the viewer password.
//! The session is a cookie of that host alone. It counts only for requests of the computer's own pages, because
//! browsers take all computers of a domain for one site.
//!
//! `/computers/{id}/ports/{port}/proxy/…` is the same for tools that cannot resolve the host names. It is on the
//! origin of the API, so there are no cookies either way and what is shown runs as a page of no origin.

mod forward;
pub(crate) mod host;
pub(crate) mod page;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::any;
use http_body_util::{BodyExt, Limited};
use roost_api::{ApiError, ComputerId, ErrorCode, NotAPort};
use roost_control::{Answer, Decision, Door, Place, Session, Visitor};
use serde::Deserialize;

use self::forward::Mount;
use self::host::Host;
use self::page::Page;
use crate::App;
use crate::client;
use crate::envelope::{Refusal, RouteName};
use crate::extract::bearer;

/// What no program in a computer may use for itself.
const OURS: &str = "/.roost/";
const SESSION: &str = "/.roost/session";
/// A password and where to go with it.
const MOST_FORM: usize = 16 * 1024;

pub(crate) fn router() -> Router<App> {
    Router::new()
        .route("/computers/{id}/ports/{port}/proxy", any(to_directory))
        .route("/computers/{id}/ports/{port}/proxy/", any(by_path))
        .route("/computers/{id}/ports/{port}/proxy/{*path}", any(by_path))
}

/// Where a request goes by its host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    /// As the request has it.
    name: String,
    host: Host,
    /// The domain it is under, where that is not the server's.
    domain: Option<String>,
}

impl Address {
    async fn of(app: &App, name: String) -> Result<Self, Refusal> {
        let host = host::parse(&name, &app.domain);
        if host == Host::Server
            && let Some((host, domain)) = host::elsewhere(&name)
            && app.control.is_preview_domain(&domain).await?
        {
            return Ok(Self { name, host, domain: Some(domain) });
        }
        Ok(Self { name, host, domain: None })
    }
}

/// Whether a request is for a port and not for our own routes, which must not even look at it. What was found out is
/// noted for [`visit`].
pub(crate) async fn is_for_a_port(app: &App, request: &mut Request) -> bool {
    // Who names two hosts is not told what either says; why it was not found out is said by `visit`.
    let Ok(name) = host::name(request.uri(), request.headers()) else { return true };
    let Ok(address) = Address::of(app, name).await else { return true };
    let is_for_a_port = match address.host {
        Host::Server | Host::Desktop { .. } => false,
        Host::Preview { .. } | Host::Nobody => true,
    };
    request.extensions_mut().insert(address);
    is_for_a_port
}

/// Answers the requests that are [`is_for_a_port`].
pub(crate) async fn visit(State(app): State<App>, request: Request) -> Response {
    let mut response = by_host(&app, request).await.into_response();
    response.extensions_mut().insert(RouteName("preview"));
    response
}

async fn by_host(app: &App, mut request: Request) -> Result<Response, Refusal> {
    let address = match request.extensions_mut().remove::<Address>() {
        Some(address) => address,
        None => Address::of(app, host::name(request.uri(), request.headers())?).await?,
    };
    let Address { name, host: Host::Preview { slug, port }, domain } = address else {
        return Err(not_found(request.headers()));
    };
    let is_own_page = is_own_page(&request, &slug, domain.as_deref().unwrap_or(&app.domain));
    let door = Door::Host { slug, port, domain };
    match request.uri().path() {
        SESSION => session(app, &door, request).await,
        path if path.starts_with(OURS) => Err(not_found(request.headers())),
        _ => at_host(app, &door, is_own_page, name, request).await,
    }
}

async fn at_host(
    app: &App,
    door: &Door,
    is_own_page: bool,
    host: String,
    request: Request,
) -> Result<Response, Refusal> {
    let headers = request.headers();
    let sessions = if is_own_page { cookies(headers, cookie_name(app)) } else { Vec::new() };
    let visitor = visitor(&request, sessions);
    let answer = app.control.knock(door, &visitor).await?;
    let wants_page = wants_page(headers);
    let place = match answer.decision {
        Decision::Open(place) => place,
        Decision::NotFound => return Err(not_found(headers)),
        Decision::SignIn => return Err(private().on(wants_page.then_some(Page::Notice))),
        Decision::AskPassword(_) => {
            let next = address(&request);
            return Err(protected().on(wants_page.then_some(Page::Password { next })));
        }
    };
    let mount = Mount::Host { host, cookie: cookie_name(app) };
    enter(app, place, mount, answer, request).await
}

async fn by_path(State(app): State<App>, request: Request) -> Result<Response, Refusal> {
    let path = request.uri().path().to_owned();
    // The part that is passed on keeps its encoding, so it is cut out of the address as it came.
    let mut parts = path.splitn(7, '/').skip(2);
    let (id, port, rest) = (parts.next(), parts.nth(1), parts.nth(1));
    let invalid = || ApiError::new(ErrorCode::InvalidId, "invalid computer id");
    let id: ComputerId = id.and_then(|id| id.parse().ok()).ok_or_else(invalid)?;
    let port = port.unwrap_or_default();
    let port = port.parse().map_err(|error: NotAPort| ApiError::field("port", error.to_string()))?;
    let rest = rest.unwrap_or_default();
    let prefix = path.strip_suffix(rest).unwrap_or(&path).trim_end_matches('/').to_owned();
    let mut target = format!("/{rest}");
    if let Some(query) = request.uri().query() {
        target = format!("{target}?{query}");
    }
    let target: PathAndQuery = target.parse().map_err(|_| {
        ApiError::new(ErrorCode::AmbiguousRequest, "the path behind /proxy/ is none that can be passed on")
    })?;

    let door = Door::Path { computer: id, port };
    let headers = request.headers();
    let visitor = visitor(&request, Vec::new());
    let answer = app.control.knock(&door, &visitor).await?;
    let wants_page = wants_page(headers).then_some(Page::Notice);
    let place = match answer.decision {
        Decision::Open(place) => place,
        Decision::NotFound => return Err(not_found(headers)),
        Decision::SignIn => return Err(private().on(wants_page)),
        Decision::AskPassword(_) => return Err(protected().on(wants_page)),
    };
    let host = host::name(request.uri(), headers)?;
    enter(&app, place, Mount::Path { host, prefix, target }, answer, request).await
}

/// Relative links on the first page would lead above the port.
async fn to_directory(request: Request) -> Redirect {
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    Redirect::permanent(&format!("{}/{query}", request.uri().path()))
}

fn visitor<'a>(request: &'a Request, sessions: Vec<&'a str>) -> Visitor<'a> {
    Visitor { bearer: bearer(request.headers()), from: client::address(request.extensions()), sessions }
}

async fn enter(
    app: &App,
    place: Place,
    mount: Mount,
    answer: Answer,
    mut request: Request,
) -> Result<Response, Refusal> {
    let page = wants_page(request.headers()).then_some(Page::Notice);
    if answer.is_our_bearer {
        request.headers_mut().remove(header::AUTHORIZATION);
    }
    let carried = async {
        app.control.wait_for_running(place.computer).await?;
        forward::forward(app, place, mount, answer.opened_by, request).await
    };
    carried.await.map_err(|failure| Refusal::from(failure).on(page))
}

/// `GET /.roost/session?token=…` begins a session with a link, `POST` one with the viewer password.
async fn session(app: &App, door: &Door, request: Request) -> Result<Response, Refusal> {
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Link {
        token: String,
        next: Option<String>,
    }
    #[derive(Debug, Deserialize)]
    struct Password {
        password: String,
        next: Option<String>,
    }
    let wants_page = wants_page(request.headers());
    match *request.method() {
        Method::GET => {
            let link = axum::extract::Query::<Link>::try_from_uri(request.uri());
            let link = link.map(|link| link.0).unwrap_or_default();
            let begun = app.control.begin_session(door, &link.token).await;
            let session =
                begun.map_err(|failure| Refusal::from(failure).on(wants_page.then_some(Page::Notice)))?;
            Ok(admitted(app, &session, link.next.as_deref()))
        }
        Method::POST => {
            let visitor = visitor(&request, Vec::new());
            let place = match app.control.knock(door, &visitor).await?.decision {
                Decision::AskPassword(place) | Decision::Open(place) => place,
                Decision::SignIn => return Err(private().on(wants_page.then_some(Page::Notice))),
                Decision::NotFound => return Err(not_found(request.headers())),
            };
            let form = form::<Password>(request.into_body()).await?;
            let begun = app.control.begin_session_with_password(place, &form.password).await;
            let session = begun.map_err(|failure| {
                let next = safe_next(form.next.as_deref()).to_owned();
                Refusal::from(failure).on(wants_page.then_some(Page::Password { next }))
            })?;
            Ok(admitted(app, &session, form.next.as_deref()))
        }
        _ => Err(ApiError::new(ErrorCode::MethodNotAllowed, "a session is begun with GET or POST").into()),
    }
}

async fn form<T: serde::de::DeserializeOwned>(body: Body) -> Result<T, ApiError> {
    let problem = |problem: String| ApiError::field("body", problem);
    let bytes = Limited::new(body, MOST_FORM).collect().await.map_err(|error| problem(error.to_string()))?;
    let text = String::from_utf8(bytes.to_bytes().to_vec()).map_err(|error| problem(error.to_string()))?;
    // A form is encoded as a query is.
    let uri = format!("/?{text}").parse().map_err(|_| problem("not a form".to_owned()))?;
    let form = axum::extract::Query::<T>::try_from_uri(&uri).map_err(|error| problem(error.body_text()))?;
    Ok(form.0)
}

/// Gives the browser its session and sends it where it wanted to go.
fn admitted(app: &App, session: &Session, next: Option<&str>) -> Response {
    let secure = if app.control.is_https() { "; Secure" } else { "" };
    let cookie = format!(
        "{}={}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax{secure}",
        cookie_name(app),
        session.value,
        session.seconds
    );
    let headers = [
        (header::LOCATION, safe_next(next).to_owned()),
        (header::SET_COOKIE, cookie),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
    ];
    (StatusCode::SEE_OTHER, headers).into_response()
}

/// Where to go on this very host; what a browser could read as another host leads to the start.
fn safe_next(next: Option<&str>) -> &str {
    let is_here = |next: &&str| {
        next.starts_with('/')
            && !next.starts_with("//")
            && !next.starts_with(OURS)
            && next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\')
    };
    next.filter(is_here).unwrap_or("/")
}

/// The browser keeps `__Host-` cookies of other hosts away from this one; it does so over HTTPS only.
fn cookie_name(app: &App) -> &'static str {
    if app.control.is_https() { "__Host-roost-session" } else { "roost-session" }
}

fn cookies<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).collect()
}

/// Whether a page of the same computer asks, or a person by following a link. Programs send neither header.
fn is_own_page(request: &Request, slug: &str, domain: &str) -> bool {
    let headers = request.headers();
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let name = origin.split_once("://").map_or("", |(_, name)| name);
        return matches!(host::parse(name, domain), Host::Preview { slug: other, .. } if other == slug);
    }
    let fetch = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match fetch("sec-fetch-site") {
        Some("same-site" | "cross-site") => {
            let is_safe = matches!(*request.method(), Method::GET | Method::HEAD);
            is_safe && fetch("sec-fetch-mode") == Some("navigate")
        }
        _ => true,
    }
}

/// Whether the client is a browser that shows the answer to a person.
fn wants_page(headers: &HeaderMap) -> bool {
    let mut accepted =
        headers.get_all(header::ACCEPT).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
    accepted.any(|value| value.contains("text/html"))
}

fn address(request: &Request) -> String {
    request.uri().path_and_query().map_or("/", PathAndQuery::as_str).to_owned()
}

fn not_found(headers: &HeaderMap) -> Refusal {
    let message = "there is nothing at this address: no computer of this name shares such a port";
    let refusal = Refusal::from(ApiError::new(ErrorCode::NotFound, message));
    refusal.on(wants_page(headers).then_some(Page::Notice))
}

fn private() -> Refusal {
    let message = "this port is private to the computer's organization: open the one-time link that \
                   POST /api/v1/computers/{id}/ports/{port}/access answers, or send an API key \
                   (Authorization: Bearer)";
    ApiError::new(ErrorCode::InvalidToken, message).into()
}

fn protected() -> Refusal {
    let message = "this port is protected: it opens with the computer's viewer password, a preview link, or a \
                   preview token (Authorization: Bearer)";
    ApiError::new(ErrorCode::InvalidToken, message).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_leads_nowhere_else() {
        for next in ["/", "/a/b?c=d#e", "/%2F%2Fevil.example"] {
            assert_eq!(safe_next(Some(next)), next);
        }
        for next in
            ["", "a", "//evil.example", "/\\evil.example", "https://evil.example", "/a\r\nb", "/ü", SESSION]
        {
            assert_eq!(safe_next(Some(next)), "/", "{next:?}");
        }
    }

    #[test]
    fn cookies_are_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, "a=b; roost-session=one;c".parse().unwrap());
        headers.append(header::COOKIE, "roost-session=two=2; xroost-session=three".parse().unwrap());
        assert_eq!(cookies(&headers, "roost-session"), ["one", "two=2"]);
    }

    #[test]
    fn a_session_counts_for_pages_of_its_computer() {
        let asks = |method: Method, headers: &[(&str, &str)]| {
            let mut request = Request::builder().method(method).uri("/");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            is_own_page(&request.body(Body::empty()).unwrap(), "box", "localhost:1")
        };
        let (get, post) = (Method::GET, Method::POST);
        assert!(asks(get.clone(), &[]));
        assert!(asks(post.clone(), &[("origin", "http://3000-box.sandbox.localhost:1")]));
        assert!(asks(post.clone(), &[("origin", "http://8000-box.sandbox.localhost:1")]));
        assert!(asks(get.clone(), &[("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")]));
        assert!(asks(get.clone(), &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]));
        for origin in [
            "null",
            "http://3000-evil.sandbox.localhost:1",
            "http://localhost:1",
            "3000-box.sandbox.localhost",
        ] {
            assert!(!asks(get.clone(), &[("origin", origin)]), "{origin}");
        }
        assert!(!asks(get, &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")]));
        assert!(!asks(post, &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]));
    }
}
