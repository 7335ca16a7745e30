//! Webhooks and their deliveries.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use roost_api::{
    CreatedWebhook, Data, DeletedWebhook, ErrorBody, Event, ListWebhooks, ReplayDelivery, Webhook,
    WebhookDelivery, WebhookRequest,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, Query, RawBody};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(types))
        .routes(routes!(get, change, delete))
        .routes(routes!(test))
        .routes(routes!(deliveries))
        .routes(routes!(replay))
}

/// List the webhooks
#[utoipa::path(get, path = "/webhooks", tag = "events", params(ListWebhooks),
    responses((status = 200, body = Data<Vec<Webhook>>), (status = "default", body = ErrorBody)))]
async fn list(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<ListWebhooks>,
) -> Result<Json<Data<Vec<Webhook>>>, Refusal> {
    Ok(Json(Data { data: app.control.webhooks(&caller, query.active).await? }))
}

/// Have an address told of events; the answer is the only one with the secret
#[utoipa::path(post, path = "/webhooks", tag = "events", request_body = WebhookRequest,
    responses((status = 201, body = CreatedWebhook), (status = "default", body = ErrorBody)))]
async fn create(
    State(app): State<App>,
    Auth(caller): Auth,
    body: RawBody,
) -> Result<(StatusCode, Json<CreatedWebhook>), Refusal> {
    Ok((StatusCode::CREATED, Json(app.control.create_webhook(&caller, body.parse()?).await?)))
}

/// The types of events
#[utoipa::path(get, path = "/webhooks/events", tag = "events",
    responses((status = 200, body = Data<Vec<String>>), (status = "default", body = ErrorBody)))]
async fn types(_caller: Auth) -> Json<Data<Vec<String>>> {
    Json(Data { data: Event::KINDS.iter().map(|kind| (*kind).to_owned()).collect() })
}

/// Read a webhook
#[utoipa::path(get, path = "/webhooks/{wid}", tag = "events", params(("wid" = String, Path)),
    responses((status = 200, body = Data<Webhook>), (status = "default", body = ErrorBody)))]
async fn get(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
) -> Result<Json<Data<Webhook>>, Refusal> {
    let found = app.control.webhook(&caller, &wid).await?;
    Ok(Json(Data { data: app.control.webhook_view(&found)? }))
}

/// Change a webhook
#[utoipa::path(patch, path = "/webhooks/{wid}", tag = "events", params(("wid" = String, Path)),
    request_body = WebhookRequest,
    responses((status = 200, body = Data<Webhook>), (status = "default", body = ErrorBody)))]
async fn change(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
    body: RawBody,
) -> Result<Json<Data<Webhook>>, Refusal> {
    let found = app.control.webhook(&caller, &wid).await?;
    Ok(Json(Data { data: app.control.change_webhook(&found, body.parse()?).await? }))
}

/// Delete a webhook with its deliveries
#[utoipa::path(delete, path = "/webhooks/{wid}", tag = "events", params(("wid" = String, Path)),
    responses((status = 200, body = DeletedWebhook), (status = "default", body = ErrorBody)))]
async fn delete(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
) -> Result<Json<DeletedWebhook>, Refusal> {
    let found = app.control.webhook(&caller, &wid).await?;
    app.control.delete_webhook(&found).await?;
    Ok(Json(DeletedWebhook { id: found.id, deleted: true }))
}

/// Tell a webhook something that means nothing, once, and see how it goes
#[utoipa::path(post, path = "/webhooks/{wid}/test", tag = "events", params(("wid" = String, Path)),
    responses((status = 200, body = Data<WebhookDelivery>), (status = "default", body = ErrorBody)))]
async fn test(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
) -> Result<Json<Data<WebhookDelivery>>, Refusal> {
    let found = app.control.webhook(&caller, &wid).await?;
    Ok(Json(Data { data: app.control.test_webhook(&found).await? }))
}

/// The newest deliveries of a webhook
#[utoipa::path(get, path = "/webhooks/{wid}/deliveries", tag = "events", params(("wid" = String, Path)),
    responses((status = 200, body = Data<Vec<WebhookDelivery>>), (status = "default", body = ErrorBody)))]
async fn deliveries(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
) -> Result<Json<Data<Vec<WebhookDelivery>>>, Refusal> {
    let found = app.control.webhook(&caller, &wid).await?;
    Ok(Json(Data { data: app.control.deliveries(&found).await? }))
}

/// Send a delivery again
#[utoipa::path(post, path = "/webhooks/{wid}/deliveries/{did}/replay", tag = "events",
    params(("wid" = String, Path), ("did" = String, Path)), request_body = Option<ReplayDelivery>,
    responses((status = 202, body = Data<WebhookDelivery>), (status = "default", body = ErrorBody)))]
async fn replay(
    State(app): State<App>,
    Auth(caller): Auth,
    Path((wid, did)): Path<(String, String)>,
    body: RawBody,
) -> Result<(StatusCode, Json<Data<WebhookDelivery>>), Refusal> {
    let found = app.control.webhook(&caller, &wid).await?;
    let request: ReplayDelivery = body.parse()?;
    let data = app.control.replay_delivery(&found, &did, request.replay_id.as_deref()).await?;
    Ok((StatusCode::ACCEPTED, Json(Data { data })))
}
