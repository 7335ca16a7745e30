//! What every answer has in common: a request id, the error body, a line in the log.

use std::any::Any;
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use roost_api::{ApiError, ErrorCode};
use roost_control::Failure;
use uuid::Uuid;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A failure on its way to the caller. The body is written by [`envelope`], which knows the request id.
#[derive(Debug)]
pub(crate) struct Refusal(Failure);

impl<T: Into<Failure>> From<T> for Refusal {
    fn from(failure: T) -> Self {
        Self(failure.into())
    }
}

#[derive(Debug, Clone)]
struct Pending(Arc<Failure>);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(Pending(Arc::new(self.0)));
        response
    }
}

pub(crate) async fn envelope(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = format!("req_{}", Uuid::now_v7().simple());
    let method = request.method().clone();
    // The route, not the path: paths and queries may hold tokens.
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let mut response = next.run(request).await;
    if let Some(Pending(failure)) = response.extensions_mut().remove::<Pending>() {
        response = refuse(&failure, &id);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let status = response.status().as_u16();
    let milliseconds = begun.elapsed().as_millis();
    let route = route.as_deref().unwrap_or("-");
    tracing::info!(%method, route, status, milliseconds, request = id, "http");
    response
}

fn refuse(failure: &Failure, id: &str) -> Response {
    let error = &failure.public;
    if let Some(source) = &failure.source {
        let source: &(dyn Error + 'static) = source.as_ref();
        tracing::warn!(request = id, code = error.code.as_str(), source, "request failed");
    }
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, Json(error.body(id))).into_response();
    if let Some(milliseconds) = error.retry_after_ms {
        response.headers_mut().insert("retry-after", HeaderValue::from(milliseconds.div_ceil(1000)));
    }
    response
}

pub(crate) async fn no_such_route(request: Request) -> Refusal {
    let message =
        format!("there is no route {} {}; see /openapi.json", request.method(), request.uri().path());
    ApiError::new(ErrorCode::NotFound, message).into()
}

pub(crate) async fn no_such_method(request: Request) -> Refusal {
    let message = format!("{} is not a method of {}", request.method(), request.uri().path());
    ApiError::new(ErrorCode::MethodNotAllowed, message).into()
}

pub(crate) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    Refusal::from(Failure::internal(std::io::Error::other(format!("a handler panicked: {text}"))))
        .into_response()
}
