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

use crate::preview::page::Page;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A failure on its way to the caller. The body is written by [`envelope`], which knows the request id.
#[derive(Debug)]
pub(crate) struct Refusal {
    failure: Box<Failure>,
    /// How a person is to see it; `None` is the error body.
    page: Option<Box<Page>>,
}

impl<T: Into<Failure>> From<T> for Refusal {
    fn from(failure: T) -> Self {
        Self { failure: Box::new(failure.into()), page: None }
    }
}

impl Refusal {
    pub(crate) fn code(&self) -> ErrorCode {
        self.failure.public.code
    }

    pub(crate) fn on(self, page: Option<Page>) -> Self {
        Self { page: page.map(Box::new), ..self }
    }
}

#[derive(Debug, Clone)]
struct Pending(Arc<Refusal>);

/// What the log calls a request that was not answered by a route of the router.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RouteName(pub &'static str);

/// What the answer will carry as `x-request-id`.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(Pending(Arc::new(self)));
        response
    }
}

pub(crate) async fn envelope(mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = RequestId(format!("req_{}", Uuid::now_v7().simple()));
    request.extensions_mut().insert(id.clone());
    let method = request.method().clone();
    // The route, not the path: paths and queries may hold tokens.
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let mut response = next.run(request).await;
    let taken_over = response.extensions_mut().remove::<RouteName>().map(|name| name.0.to_owned());
    let mut response = settle(response, Some(&id));
    let RequestId(id) = id;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let status = response.status().as_u16();
    let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let route = taken_over.or(route);
    let route = route.as_deref().unwrap_or("-");
    tracing::info!(%method, route, status, milliseconds, request = id, "http");
    response
}

/// What a refusal on its way says.
pub(crate) fn refused(response: &Response) -> Option<&ApiError> {
    response.extensions().get::<Pending>().map(|Pending(refusal)| &refusal.failure.public)
}

/// The answer with its body, where it is a refusal.
pub(crate) fn settle(mut response: Response, id: Option<&RequestId>) -> Response {
    match response.extensions_mut().remove::<Pending>() {
        Some(Pending(refusal)) => {
            let mut answer = refuse(&refusal, id.map_or("-", |RequestId(id)| id));
            // What layers between here and the route had to say.
            answer.headers_mut().extend(std::mem::take(response.headers_mut()));
            answer
        }
        None => response,
    }
}

fn refuse(refusal: &Refusal, id: &str) -> Response {
    let error = &refusal.failure.public;
    if let Some(source) = &refusal.failure.source {
        let source: &(dyn Error + 'static) = source.as_ref();
        tracing::warn!(request = id, code = error.code.as_str(), source, "request failed");
    }
    let status = StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = match &refusal.page {
        Some(page) => page.render(error, id),
        None => Json(error.body(id)).into_response(),
    };
    *response.status_mut() = status;
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
