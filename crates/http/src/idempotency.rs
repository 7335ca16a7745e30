//! `Idempotency-Key`: a request that changes something is carried out once, and its repeats get the same answer.
//!
//! A request with a key runs in a task of its own. A client that gives up waiting and sends it again finds the answer
//! of the first, which went on. 2xx and 4xx answers are kept, except those that tell the client to try again: 401, 408,
//! 429 and whatever is `retryable`; after these, and after 5xx, a repeat is carried out anew.
//!
//! Requests without an account, and bodies larger than the largest JSON body, pass as if they had no key.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use roost_api::ErrorCode;
use roost_control::{Admission, Failure, Operation, Running};
use serde::{Deserialize, Serialize};

use crate::App;
use crate::envelope::{Refusal, RequestId, refused, settle};
use crate::extract::{MOST_BODY, who};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// On an answer that was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// An answer as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    status: u16,
    headers: Vec<(String, String)>,
    /// Base64. `None`: it was too large.
    body: Option<String>,
}

pub(crate) async fn once(State(app): State<App>, request: Request, next: Next) -> Response {
    let changes = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH | Method::DELETE);
    let Some(key) = request.headers().get(KEY).filter(|_| changes).cloned() else {
        return next.run(request).await;
    };
    match keyed(&app, &key, request, next).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn keyed(app: &App, key: &HeaderValue, request: Request, next: Next) -> Result<Response, Refusal> {
    let (mut parts, body) = request.into_parts();
    let caller = match who(&mut parts, app).await {
        Ok(caller) => caller,
        // What is wrong with a credential is for the route to say: it may need none.
        Err(refusal) if refusal.code() == ErrorCode::InvalidToken => {
            return Ok(next.run(Request::from_parts(parts, body)).await);
        }
        Err(refusal) => return Err(refusal),
    };
    let body = match collect(body).await {
        Collected::Whole(body) => body,
        Collected::Larger(body) => return Ok(next.run(Request::from_parts(parts, body)).await),
    };
    let operation = Operation {
        key: key.to_str().unwrap_or_default(),
        method: parts.method.as_str(),
        path: path(parts.uri.path()),
        query: parts.uri.query().unwrap_or_default(),
        body: &body,
    };
    match app.control.begin_request(&caller, operation).await? {
        Admission::Answered(answer) => Ok(replay(&answer)?),
        Admission::Begun(running) => {
            let request = Request::from_parts(parts, Body::from(body));
            let task = tokio::spawn(async move { carry_out(running, request, next).await });
            match task.await {
                Ok(response) => Ok(response),
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(cancelled) => Err(Failure::internal(cancelled).into()),
                },
            }
        }
    }
}

async fn carry_out(running: Running, request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().cloned();
    let response = next.run(request).await;
    let is_final = match refused(&response) {
        Some(error) => !error.code.retryable() && is_kept(error.code.status()),
        None => is_kept(response.status().as_u16()),
    };
    if !is_final {
        log(running.forget().await);
        return response;
    }
    let (kept, response) = keep(settle(response, id.as_ref())).await;
    match serde_json::to_vec(&kept) {
        Ok(answer) => log(running.answered(&answer).await),
        Err(error) => log(Err(Failure::internal(error))),
    }
    response
}

/// Whether a repeat gets this answer again.
fn is_kept(status: u16) -> bool {
    matches!(status, 200..=299 | 400..=499) && !matches!(status, 401 | 408 | 429)
}

/// The answer was given all the same; a repeat learns that its end is not known.
fn log(recorded: Result<(), Failure>) {
    if let Err(failure) = recorded {
        let failure = &failure as &dyn std::error::Error;
        tracing::error!(failure, "failed to record how a request with an Idempotency-Key ended");
    }
}

async fn keep(response: Response) -> (Kept, Response) {
    let (parts, body) = response.into_parts();
    let text = |(name, value): (&HeaderName, &HeaderValue)| {
        Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
    };
    let headers = parts.headers.iter().filter(|(name, _)| **name != header::CONTENT_LENGTH).filter_map(text);
    let mut kept = Kept { status: parts.status.as_u16(), headers: headers.collect(), body: None };
    let body = match collect(body).await {
        Collected::Whole(bytes) => {
            kept.body = Some(STANDARD.encode(&bytes));
            Body::from(bytes)
        }
        Collected::Larger(body) => body,
    };
    (kept, Response::from_parts(parts, body))
}

fn replay(answer: &[u8]) -> Result<Response, Failure> {
    let kept: Kept = serde_json::from_slice(answer).map_err(Failure::internal)?;
    let body = kept.body.ok_or_else(roost_control::answer_lost)?;
    let body = STANDARD.decode(body).map_err(Failure::internal)?;
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(kept.status).map_err(Failure::internal)?;
    for (name, value) in kept.headers {
        let name = HeaderName::try_from(name).map_err(Failure::internal)?;
        response.headers_mut().append(name, HeaderValue::try_from(value).map_err(Failure::internal)?);
    }
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}

enum Collected {
    Whole(Bytes),
    /// More than is looked at, or it broke off; nothing of it is lost.
    Larger(Body),
}

async fn collect(body: Body) -> Collected {
    let mut rest = body.into_data_stream();
    let mut bytes = BytesMut::new();
    while let Some(piece) = rest.next().await {
        let piece = match piece {
            Ok(piece) if bytes.len() + piece.len() <= MOST_BODY => {
                bytes.extend_from_slice(&piece);
                continue;
            }
            other => other,
        };
        let read = stream::iter([Ok(bytes.freeze()), piece]);
        return Collected::Larger(Body::from_stream(read.chain(rest)));
    }
    Collected::Whole(bytes.freeze())
}

/// One published client sends the prefix twice; it is the same request.
fn path(path: &str) -> &str {
    match path.strip_prefix("/api/v1") {
        Some(rest) if rest.starts_with("/api/v1/") => rest,
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_larger_answer_passes_whole_and_is_not_kept() {
        let pieces = (0..5).map(|n| Ok::<_, std::io::Error>(Bytes::from(vec![n; MOST_BODY / 4])));
        let (kept, response) = keep(Response::new(Body::from_stream(stream::iter(pieces)))).await;
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let expected: Vec<u8> = (0..5).flat_map(|n| vec![n; MOST_BODY / 4]).collect();
        assert!(body == expected);
        assert_eq!(kept.body, None);
        let failure = replay(&serde_json::to_vec(&kept).unwrap()).unwrap_err();
        assert_eq!(failure.public.code, ErrorCode::IdempotencyAnswerLost);
    }

    #[test]
    fn the_doubled_prefix_is_one_path() {
        assert_eq!(path("/api/v1/api/v1/computers"), "/api/v1/computers");
        assert_eq!(path("/api/v1/computers"), "/api/v1/computers");
        assert_eq!(path("/api/v1/api/v1"), "/api/v1/api/v1");
    }
}
