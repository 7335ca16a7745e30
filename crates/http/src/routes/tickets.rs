//! Tickets for event streams, for clients that cannot send a header with them.

use axum::Json;
use axum::extract::State;
use roost_api::{ErrorBody, SseTicket};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::Auth;

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(ticket)).routes(routes!(auth_ticket))
}

/// A ticket that opens one event stream within a minute
#[utoipa::path(post, path = "/sse/ticket", tag = "events",
    responses((status = 200, body = SseTicket), (status = "default", body = ErrorBody)))]
async fn ticket(State(app): State<App>, Auth(caller): Auth) -> Result<Json<SseTicket>, Refusal> {
    Ok(Json(app.control.sse_ticket(&caller).await?))
}

/// The same under another name
#[utoipa::path(post, path = "/auth/sse-ticket", tag = "events",
    responses((status = 200, body = SseTicket), (status = "default", body = ErrorBody)))]
async fn auth_ticket(app: State<App>, auth: Auth) -> Result<Json<SseTicket>, Refusal> {
    ticket(app, auth).await
}
