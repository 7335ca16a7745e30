//! What a request does, and which scope of an API key it needs. Whether the key has it is decided in
//! `roost_control`.

use axum::extract::MatchedPath;
use axum::http::request::Parts;
use axum::http::{Method, header};
use roost_control::{Act, Scope};

/// Reads that hand out what drives a computer.
const CREDENTIALS: &str = "/vnc-credentials";
/// A read by its method alone: what it finds out is kept.
const VERIFY: &str = "/preview-domain/verify";
/// Posts that change nothing.
const READING: [&str; 5] =
    ["/sse/ticket", "/auth/sse-ticket", "/switch", "/files/stat", "/actions/authorize"];

pub(crate) fn act(parts: &Parts) -> Act {
    let route = route(parts);
    if matches!(parts.method, Method::GET | Method::HEAD) {
        // A socket is used in both directions, unless it only tells what happens.
        let is_socket = parts.headers.contains_key(header::UPGRADE) && !route.ends_with("/events");
        return if is_socket || route.ends_with(CREDENTIALS) || route.ends_with(VERIFY) {
            Act::Write
        } else {
            Act::Read
        };
    }
    if READING.iter().any(|end| route.ends_with(end)) { Act::Read } else { Act::Write }
}

/// `None`: a key without any scope will do.
pub(crate) fn needed(parts: &Parts) -> Option<Scope> {
    let route = route(parts);
    let is_about =
        |area: &str| route.strip_prefix(area).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if is_about("/whoami") || is_about("/platform") {
        return None;
    }
    let is_usage = ["/usage", "/credits", "/billing", "/tenant/plan"].into_iter().any(is_about);
    if is_usage || route.ends_with("/usage") {
        return Some(Scope::UsageRead);
    }
    Some(act(parts).into())
}

/// The pattern of the route below the prefix of the API, however often that was sent.
fn route(parts: &Parts) -> &str {
    let mut route = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    while let Some(rest) = route.strip_prefix("/api/v1") {
        route = rest;
    }
    route
}
