//! Reading requests, in the order the API promises to check: credential, id, existence, state, body.

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use roost_api::{ApiError, ComputerId, ErrorCode, NotAPort, PortNumber, TicketQuery};
use roost_control::{Act, Caller, ComputerRecord, SnapshotRecord};
use serde::de::DeserializeOwned;

use crate::App;
use crate::client;
use crate::envelope::Refusal;
use crate::scopes;

/// In which tenant an operator acts.
const TENANT: HeaderName = HeaderName::from_static("x-miosa-tenant");
/// Where new computers go that name no workspace.
const WORKSPACE: HeaderName = HeaderName::from_static("x-miosa-workspace");
/// The largest JSON body.
pub(crate) const MOST_BODY: usize = 1024 * 1024;
/// How much more is read and thrown away, so that a client that is still sending gets to see the refusal.
const MOST_DRAINED: usize = 64 * 1024 * 1024;

/// The caller of an API route.
#[derive(Debug)]
pub(crate) struct Auth(pub Caller);

impl FromRequestParts<App> for Auth {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let caller = who(parts, app).await?;
        if let Some(scope) = scopes::needed(parts) {
            app.control.require_scope(&caller, scope)?;
        }
        Ok(Self(caller))
    }
}

/// The caller, whatever scopes the key has: for routes that look at what is asked for first.
pub(crate) async fn who(parts: &mut Parts, app: &App) -> Result<Caller, Refusal> {
    let credential = bearer(&parts.headers).map(str::to_owned);
    identify(parts, app, credential.as_deref()).await
}

/// Whoever made this request, as it was found out once for all who ask.
#[derive(Debug, Clone)]
struct Identified(Caller);

/// Whom a credential speaks for. The request counts against the limit of its key.
pub(crate) async fn identify(
    parts: &mut Parts,
    app: &App,
    credential: Option<&str>,
) -> Result<Caller, Refusal> {
    if let Some(Identified(caller)) = parts.extensions.get() {
        return Ok(caller.clone());
    }
    let caller = app.control.authenticate(credential, client::address(&parts.extensions)).await?;
    if let Some(limit) = &app.rate_limit {
        limit.check(caller.key)?;
    }
    let named = parts.headers.get_all(TENANT).iter().map(|value| value.to_str().unwrap_or_default().trim());
    let mut caller = app.control.act_in(caller, &named.collect::<Vec<_>>()).await?;
    let workspace = parts.headers.get(WORKSPACE).and_then(|value| value.to_str().ok());
    caller.default_workspace = workspace.map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned);
    parts.extensions.insert(Identified(caller.clone()));
    Ok(caller)
}

/// A computer the caller may use, named by `{id}` in the path.
#[derive(Debug)]
pub(crate) struct Target(pub ComputerRecord);

impl FromRequestParts<App> for Target {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let caller = who(parts, app).await?;
        let id = path_id(parts, app).await?;
        Ok(Self(app.control.get_for(&caller, id, scopes::act(parts)).await?))
    }
}

/// A snapshot the caller may use, named by `{sid}` in the path.
#[derive(Debug)]
pub(crate) struct Kept(pub SnapshotRecord);

impl FromRequestParts<App> for Kept {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let caller = who(parts, app).await?;
        let snapshot = path_snapshot(parts, app, &caller).await?;
        Ok(Self(snapshot))
    }
}

/// The same, and the computer `{id}` it was taken of.
#[derive(Debug)]
pub(crate) struct KeptOf(pub SnapshotRecord);

impl FromRequestParts<App> for KeptOf {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let caller = who(parts, app).await?;
        let snapshot = snapshot_of_computer(parts, app, &caller).await?;
        Ok(Self(snapshot))
    }
}

/// The caller of an event stream: the credential may be a ticket in the query.
#[derive(Debug)]
pub(crate) struct Listener(pub Caller);

impl FromRequestParts<App> for Listener {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let Query(query) = Query::<TicketQuery>::from_request_parts(parts, app).await?;
        match query.ticket.filter(|_| bearer(&parts.headers).is_none()) {
            Some(ticket) => {
                if let Some(Identified(caller)) = parts.extensions.get() {
                    return Ok(Self(caller.clone())); // a ticket works once, and this is that once
                }
                let caller = app.control.redeem(&ticket).await?;
                if let Some(scope) = scopes::needed(parts) {
                    app.control.require_scope(&caller, scope)?;
                }
                parts.extensions.insert(Identified(caller.clone()));
                Ok(Self(caller))
            }
            None => Auth::from_request_parts(parts, app).await.map(|Auth(caller)| Self(caller)),
        }
    }
}

/// [`Target`] of an event stream.
#[derive(Debug)]
pub(crate) struct Listened(pub ComputerRecord);

impl FromRequestParts<App> for Listened {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let Listener(caller) = Listener::from_request_parts(parts, app).await?;
        let id = path_id(parts, app).await?;
        Ok(Self(app.control.get_for(&caller, id, Act::Read).await?))
    }
}

/// [`KeptOf`] of an event stream.
#[derive(Debug)]
pub(crate) struct Watched(pub SnapshotRecord);

impl FromRequestParts<App> for Watched {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let Listener(caller) = Listener::from_request_parts(parts, app).await?;
        Ok(Self(snapshot_of_computer(parts, app, &caller).await?))
    }
}

/// A snapshot of the caller's that has the name `{name}` in the path.
#[derive(Debug)]
pub(crate) struct Named(pub SnapshotRecord);

impl FromRequestParts<App> for Named {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let caller = who(parts, app).await?;
        let name = path_value(parts, app, "name").await.ok_or_else(snapshot_not_found)?;
        let snapshot = app.control.named_snapshot(&caller, &name, scopes::act(parts)).await?;
        Ok(Self(snapshot))
    }
}

async fn snapshot_of_computer(
    parts: &mut Parts,
    app: &App,
    caller: &Caller,
) -> Result<SnapshotRecord, Refusal> {
    let computer = app.control.get_for(caller, path_id(parts, app).await?, scopes::act(parts)).await?;
    let snapshot = path_snapshot(parts, app, caller).await?;
    if snapshot.computer_id != computer.id {
        return Err(snapshot_not_found().into());
    }
    Ok(snapshot)
}

/// An id of a snapshot is any text to its callers, so one that cannot be is not found.
async fn path_snapshot(parts: &mut Parts, app: &App, caller: &Caller) -> Result<SnapshotRecord, Refusal> {
    let text = path_value(parts, app, "sid").await.ok_or_else(snapshot_not_found)?;
    let id = text.parse().map_err(|_| snapshot_not_found())?;
    Ok(app.control.snapshot(caller, id, scopes::act(parts)).await?)
}

fn snapshot_not_found() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "snapshot not found")
}

pub(crate) async fn path_id(parts: &mut Parts, app: &App) -> Result<ComputerId, Refusal> {
    let invalid = || ApiError::new(ErrorCode::InvalidId, "invalid computer id");
    let text = path_value(parts, app, "id").await.ok_or_else(invalid)?;
    Ok(text.parse().map_err(|_| invalid())?)
}

/// The port `{port}` in the path. It comes after the computer: a bad number is of no interest on a missing one.
#[derive(Debug)]
pub(crate) struct PathPort(pub PortNumber);

impl FromRequestParts<App> for PathPort {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        let text = path_value(parts, app, "port").await.unwrap_or_default();
        let port = text.parse().map_err(|error: NotAPort| ApiError::field("port", error.to_string()))?;
        Ok(Self(port))
    }
}

/// The name `{name}` in the path of something that belongs to a computer.
#[derive(Debug)]
pub(crate) struct PathName(pub String);

impl FromRequestParts<App> for PathName {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        Ok(Self(path_value(parts, app, "name").await.unwrap_or_default()))
    }
}

/// The terminal session `{session_id}` in the path.
#[derive(Debug)]
pub(crate) struct PathSession(pub String);

impl FromRequestParts<App> for PathSession {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Refusal> {
        Ok(Self(path_value(parts, app, "session_id").await.unwrap_or_default()))
    }
}

async fn path_value(parts: &mut Parts, app: &App, name: &str) -> Option<String> {
    let path = Path::<std::collections::HashMap<String, String>>::from_request_parts(parts, app).await;
    let Path(mut values) = path.ok()?;
    values.remove(name)
}

/// The `Authorization: Bearer` credential.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credential) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| credential.trim())
}

/// The bytes of a body, whole and bounded. They become a value with [`RawBody::parse`], which comes after
/// the state checks.
#[derive(Debug)]
pub(crate) struct RawBody(Bytes);

impl FromRequest<App> for RawBody {
    type Rejection = Refusal;

    async fn from_request(request: Request, _app: &App) -> Result<Self, Refusal> {
        body_of(request.into_body()).await
    }
}

/// For routes that look at the rest of a request themselves.
pub(crate) async fn body_of(body: Body) -> Result<RawBody, Refusal> {
    body_of_at_most(body, MOST_BODY).await
}

/// For routes whose content may be large although it is in JSON.
pub(crate) async fn body_of_at_most(body: Body, most: usize) -> Result<RawBody, Refusal> {
    Ok(RawBody(read(body, most).await?))
}

async fn read(body: Body, most: usize) -> Result<Bytes, Refusal> {
    let mut stream = body.into_data_stream();
    let mut bytes = BytesMut::new();
    let mut length = 0;
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| {
            ApiError::new(ErrorCode::InvalidJson, format!("the body could not be read: {error}"))
        })?;
        length += piece.len();
        if length <= most {
            bytes.extend_from_slice(&piece);
        } else {
            bytes = BytesMut::new();
        }
        if length > MOST_DRAINED {
            break;
        }
    }
    if length > most {
        let message = format!("the body is larger than {most} bytes");
        return Err(ApiError::new(ErrorCode::TooLarge, message).into());
    }
    Ok(bytes.freeze())
}

impl RawBody {
    /// The JSON value; an empty body and the literal `null` are an empty object.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let trimmed = self.0.trim_ascii();
        let text: &[u8] = if trimmed.is_empty() || trimmed == b"null" { b"{}" } else { trimmed };
        if !text.starts_with(b"{") && serde_json::from_slice::<serde::de::IgnoredAny>(text).is_ok() {
            // serde would read a list as the fields in order.
            return Err(ApiError::field("body", "not a JSON object"));
        }
        let deserializer = &mut serde_json::Deserializer::from_slice(text);
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let path = error.path().to_string();
            let error = error.into_inner();
            if error.is_data() {
                let field = match missing_field(&error) {
                    Some(name) if path == "." => name,
                    Some(name) => format!("{path}.{name}"),
                    None if path == "." => "body".to_owned(),
                    None => path,
                };
                return ApiError::field(&field, error.to_string());
            }
            ApiError::new(ErrorCode::InvalidJson, format!("the body is not valid JSON: {error}"))
        })
    }
}

/// serde names a missing field only in its text.
fn missing_field(error: &serde_json::Error) -> Option<String> {
    let text = error.to_string();
    let (name, _) = text.strip_prefix("missing field `")?.split_once('`')?;
    Some(name.to_owned())
}

/// Query parameters; a wrong one is 422 like a wrong field.
#[derive(Debug)]
pub(crate) struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _app: &App) -> Result<Self, Refusal> {
        let query = axum::extract::Query::<T>::try_from_uri(&parts.uri)
            .map_err(|error| ApiError::field("query", error.body_text()))?;
        Ok(Self(query.0))
    }
}
