//! API keys and scoped tokens.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use roost_api::{
    ApiKey, ApiKeyWithSecret, CreateApiKey, CreateScopedToken, Data, ErrorBody, KeyEvent, KeyEventsQuery,
    KeyPreset, KeyPresetRemoved, ListKeys, MakeKeyPreset, Removed, ScopedToken, UpdateApiKey,
};
use roost_control::{KeyForm, key_view};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, Query, RawBody};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(create_scoped))
        .routes(routes!(presets, create_preset))
        .routes(routes!(delete_preset))
        .routes(routes!(get, change, delete))
        .routes(routes!(rotate))
        .routes(routes!(events))
        .routes(routes!(tokens, create_token))
        .routes(routes!(delete_token))
}

/// With the limit that holds for every key of this server.
pub(super) fn limited(app: &App, mut key: ApiKey) -> ApiKey {
    key.rate_limit_rpm = app.rate_limit.as_ref().map(|limit| limit.requests_per_minute());
    key
}

pub(super) fn with_secret(app: &App, made: ApiKeyWithSecret) -> Json<Data<ApiKeyWithSecret>> {
    Json(Data { data: ApiKeyWithSecret { details: limited(app, made.details), key: made.key } })
}

/// List the caller's keys; an administrator sees those of the tenant
#[utoipa::path(get, path = "/api-keys", tag = "keys", params(ListKeys),
    responses((status = 200, body = Data<Vec<ApiKey>>), (status = "default", body = ErrorBody)))]
async fn list(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<ListKeys>,
) -> Result<Json<Data<Vec<ApiKey>>>, Refusal> {
    let keys = app.control.keys(&caller, KeyForm::Key, query).await?;
    Ok(Json(Data { data: keys.into_iter().map(|key| limited(&app, key)).collect() }))
}

/// Make a key that can do at most what the caller's own can; the answer is the only one with its secret
#[utoipa::path(post, path = "/api-keys", tag = "keys", request_body = CreateApiKey,
    responses((status = 201, body = Data<ApiKeyWithSecret>), (status = "default", body = ErrorBody)))]
async fn create(
    State(app): State<App>,
    Auth(caller): Auth,
    body: RawBody,
) -> Result<(StatusCode, Json<Data<ApiKeyWithSecret>>), Refusal> {
    let made = app.control.create_key(&caller, body.parse()?).await?;
    Ok((StatusCode::CREATED, with_secret(&app, made)))
}

/// Make a key for one end user of yours, named by `external_user_id`
#[utoipa::path(post, path = "/api-keys/scoped", tag = "keys", request_body = CreateApiKey,
    responses((status = 201, body = Data<ApiKeyWithSecret>), (status = "default", body = ErrorBody)))]
async fn create_scoped(
    State(app): State<App>,
    Auth(caller): Auth,
    body: RawBody,
) -> Result<(StatusCode, Json<Data<ApiKeyWithSecret>>), Refusal> {
    let request: CreateApiKey = body.parse()?;
    if request.external_user_id.as_deref().is_none_or(str::is_empty) {
        return Err(roost_api::ApiError::field("external_user_id", "is required").into());
    }
    let made = app.control.create_key(&caller, request).await?;
    Ok((StatusCode::CREATED, with_secret(&app, made)))
}

/// Read a key
#[utoipa::path(get, path = "/api-keys/{kid}", tag = "keys", params(("kid" = String, Path)),
    responses((status = 200, body = Data<ApiKey>), (status = "default", body = ErrorBody)))]
async fn get(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(kid): Path<String>,
) -> Result<Json<Data<ApiKey>>, Refusal> {
    let key = app.control.key(&caller, &kid, KeyForm::Key).await?;
    Ok(Json(Data { data: limited(&app, key_view(&key)) }))
}

/// Rename a key, change its scopes, or disable it
#[utoipa::path(patch, path = "/api-keys/{kid}", tag = "keys", params(("kid" = String, Path)),
    request_body = UpdateApiKey,
    responses((status = 200, body = Data<ApiKey>), (status = "default", body = ErrorBody)))]
async fn change(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(kid): Path<String>,
    body: RawBody,
) -> Result<Json<Data<ApiKey>>, Refusal> {
    let key = app.control.key(&caller, &kid, KeyForm::Key).await?;
    let changed = app.control.change_key(&caller, &key, body.parse()?).await?;
    Ok(Json(Data { data: limited(&app, changed) }))
}

/// Delete a key; it ends at once
#[utoipa::path(delete, path = "/api-keys/{kid}", tag = "keys", params(("kid" = String, Path)),
    responses((status = 200, body = Removed), (status = "default", body = ErrorBody)))]
async fn delete(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(kid): Path<String>,
) -> Result<Json<Removed>, Refusal> {
    let key = app.control.key(&caller, &kid, KeyForm::Key).await?;
    app.control.delete_key(&key).await?;
    Ok(Json(Removed::of(key.id.as_uuid())))
}

/// Give a key another secret; the one before ends at once
#[utoipa::path(post, path = "/api-keys/{kid}/rotate", tag = "keys", params(("kid" = String, Path)),
    responses((status = 200, body = Data<ApiKeyWithSecret>), (status = "default", body = ErrorBody)))]
async fn rotate(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(kid): Path<String>,
) -> Result<Json<Data<ApiKeyWithSecret>>, Refusal> {
    let key = app.control.key(&caller, &kid, KeyForm::Key).await?;
    let made = app.control.rotate_key(&caller, &key).await?;
    Ok(with_secret(&app, made))
}

/// What happened to a key, newest first
#[utoipa::path(get, path = "/api-keys/{kid}/events", tag = "keys", params(("kid" = String, Path), KeyEventsQuery),
    responses((status = 200, body = Data<Vec<KeyEvent>>), (status = "default", body = ErrorBody)))]
async fn events(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(kid): Path<String>,
    Query(query): Query<KeyEventsQuery>,
) -> Result<Json<Data<Vec<KeyEvent>>>, Refusal> {
    let key = app.control.key(&caller, &kid, KeyForm::Key).await?;
    Ok(Json(Data { data: app.control.key_events(&key, query).await? }))
}

/// List the presets of scopes that keys can be made with
#[utoipa::path(get, path = "/api-keys/presets", tag = "keys",
    responses((status = 200, body = Data<Vec<KeyPreset>>), (status = "default", body = ErrorBody)))]
async fn presets(State(app): State<App>, Auth(caller): Auth) -> Result<Json<Data<Vec<KeyPreset>>>, Refusal> {
    Ok(Json(Data { data: app.control.presets(&caller).await? }))
}

/// Keep scopes under a name
#[utoipa::path(post, path = "/api-keys/presets", tag = "keys", request_body = MakeKeyPreset,
    responses((status = 201, body = Data<KeyPreset>), (status = "default", body = ErrorBody)))]
async fn create_preset(
    State(app): State<App>,
    Auth(caller): Auth,
    body: RawBody,
) -> Result<(StatusCode, Json<Data<KeyPreset>>), Refusal> {
    let data = app.control.create_preset(&caller, body.parse()?).await?;
    Ok((StatusCode::CREATED, Json(Data { data })))
}

/// Forget a preset; keys that were made with it stay as they are
#[utoipa::path(delete, path = "/api-keys/presets/{name}", tag = "keys", params(("name" = String, Path)),
    responses((status = 200, body = KeyPresetRemoved), (status = "default", body = ErrorBody)))]
async fn delete_preset(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(name): Path<String>,
) -> Result<Json<KeyPresetRemoved>, Refusal> {
    app.control.delete_preset(&caller, &name).await?;
    Ok(Json(KeyPresetRemoved { name, deleted: true }))
}

/// List the scoped tokens that hold
#[utoipa::path(get, path = "/tokens/scoped", tag = "keys", params(ListKeys),
    responses((status = 200, body = Data<Vec<ApiKey>>), (status = "default", body = ErrorBody)))]
async fn tokens(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<ListKeys>,
) -> Result<Json<Data<Vec<ApiKey>>>, Refusal> {
    Ok(Json(Data { data: app.control.keys(&caller, KeyForm::Token, query).await? }))
}

/// Make a token for a while, confined to a workspace
#[utoipa::path(post, path = "/tokens/scoped", tag = "keys", request_body = CreateScopedToken,
    responses((status = 201, body = Data<ScopedToken>), (status = "default", body = ErrorBody)))]
async fn create_token(
    State(app): State<App>,
    Auth(caller): Auth,
    body: RawBody,
) -> Result<(StatusCode, Json<Data<ScopedToken>>), Refusal> {
    let data = app.control.create_token(&caller, body.parse()?).await?;
    Ok((StatusCode::CREATED, Json(Data { data })))
}

/// End a scoped token
#[utoipa::path(delete, path = "/tokens/scoped/{kid}", tag = "keys", params(("kid" = String, Path)),
    responses((status = 200, body = Removed), (status = "default", body = ErrorBody)))]
async fn delete_token(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(kid): Path<String>,
) -> Result<Json<Removed>, Refusal> {
    let token = app.control.key(&caller, &kid, KeyForm::Token).await?;
    app.control.delete_key(&token).await?;
    Ok(Json(Removed::of(token.id.as_uuid())))
}
