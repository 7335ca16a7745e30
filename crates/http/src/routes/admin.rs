//! Tenants, users and their keys: for administrators of a tenant, and for operators of the server.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use roost_api::{
    ApiKey, ApiKeyWithSecret, CreateApiKey, CreateTenant, CreateUser, Data, ErrorBody, Removed, Tenant,
    UpdateTenant, UpdateUser, User,
};
use roost_control::tenant_view;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::keys::{limited, with_secret};
use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, RawBody};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, change, delete))
        .routes(routes!(users, create_user))
        .routes(routes!(change_user, remove_user))
        .routes(routes!(keys, create_key))
        .routes(routes!(delete_key))
}

/// List the tenants: all for an operator, their own for others
#[utoipa::path(get, path = "/admin/tenants", tag = "admin",
    responses((status = 200, body = Data<Vec<Tenant>>), (status = "default", body = ErrorBody)))]
async fn list(State(app): State<App>, Auth(caller): Auth) -> Result<Json<Data<Vec<Tenant>>>, Refusal> {
    Ok(Json(Data { data: app.control.tenants(&caller).await? }))
}

/// Make a tenant with its owner, default workspace and default project (operators only)
#[utoipa::path(post, path = "/admin/tenants", tag = "admin", request_body = CreateTenant,
    responses((status = 201, body = Data<Tenant>), (status = "default", body = ErrorBody)))]
async fn create(
    State(app): State<App>,
    Auth(caller): Auth,
    body: RawBody,
) -> Result<(StatusCode, Json<Data<Tenant>>), Refusal> {
    let data = app.control.create_tenant(&caller, body.parse()?).await?;
    Ok((StatusCode::CREATED, Json(Data { data })))
}

/// Read a tenant, by id or slug
#[utoipa::path(get, path = "/admin/tenants/{tid}", tag = "admin", params(("tid" = String, Path)),
    responses((status = 200, body = Data<Tenant>), (status = "default", body = ErrorBody)))]
async fn get(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(tid): Path<String>,
) -> Result<Json<Data<Tenant>>, Refusal> {
    Ok(Json(Data { data: tenant_view(&app.control.administered(&caller, &tid).await?) }))
}

/// Rename a tenant
#[utoipa::path(patch, path = "/admin/tenants/{tid}", tag = "admin", params(("tid" = String, Path)),
    request_body = UpdateTenant,
    responses((status = 200, body = Data<Tenant>), (status = "default", body = ErrorBody)))]
async fn change(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(tid): Path<String>,
    body: RawBody,
) -> Result<Json<Data<Tenant>>, Refusal> {
    let found = app.control.administered(&caller, &tid).await?;
    Ok(Json(Data { data: app.control.change_tenant(&found, body.parse()?).await? }))
}

/// Delete a tenant that has no computers and no snapshots any more (operators only)
#[utoipa::path(delete, path = "/admin/tenants/{tid}", tag = "admin", params(("tid" = String, Path)),
    responses((status = 200, body = Removed), (status = "default", body = ErrorBody)))]
async fn delete(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(tid): Path<String>,
) -> Result<Json<Removed>, Refusal> {
    let id = app.control.delete_tenant(&caller, &tid).await?;
    Ok(Json(Removed::of(id.as_uuid())))
}

/// List the users of a tenant
#[utoipa::path(get, path = "/admin/tenants/{tid}/users", tag = "admin", params(("tid" = String, Path)),
    responses((status = 200, body = Data<Vec<User>>), (status = "default", body = ErrorBody)))]
async fn users(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(tid): Path<String>,
) -> Result<Json<Data<Vec<User>>>, Refusal> {
    let tenant = app.control.administered(&caller, &tid).await?;
    Ok(Json(Data { data: app.control.users(&tenant).await? }))
}

/// Make a user of a tenant
#[utoipa::path(post, path = "/admin/tenants/{tid}/users", tag = "admin", params(("tid" = String, Path)),
    request_body = CreateUser,
    responses((status = 201, body = Data<User>), (status = "default", body = ErrorBody)))]
async fn create_user(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(tid): Path<String>,
    body: RawBody,
) -> Result<(StatusCode, Json<Data<User>>), Refusal> {
    let tenant = app.control.administered(&caller, &tid).await?;
    let data = app.control.create_user(&caller, &tenant, body.parse()?).await?;
    Ok((StatusCode::CREATED, Json(Data { data })))
}

/// Change a user
#[utoipa::path(patch, path = "/admin/tenants/{tid}/users/{uid}", tag = "admin",
    params(("tid" = String, Path), ("uid" = String, Path)), request_body = UpdateUser,
    responses((status = 200, body = Data<User>), (status = "default", body = ErrorBody)))]
async fn change_user(
    State(app): State<App>,
    Auth(caller): Auth,
    Path((tid, uid)): Path<(String, String)>,
    body: RawBody,
) -> Result<Json<Data<User>>, Refusal> {
    let tenant = app.control.administered(&caller, &tid).await?;
    let user = app.control.user(&tenant, &uid).await?;
    Ok(Json(Data { data: app.control.change_user(&caller, &user, body.parse()?).await? }))
}

/// Remove a user with their keys and memberships; their computers stay
#[utoipa::path(delete, path = "/admin/tenants/{tid}/users/{uid}", tag = "admin",
    params(("tid" = String, Path), ("uid" = String, Path)),
    responses((status = 200, body = Removed), (status = "default", body = ErrorBody)))]
async fn remove_user(
    State(app): State<App>,
    Auth(caller): Auth,
    Path((tid, uid)): Path<(String, String)>,
) -> Result<Json<Removed>, Refusal> {
    let tenant = app.control.administered(&caller, &tid).await?;
    let user = app.control.user(&tenant, &uid).await?;
    app.control.remove_user(&caller, &user).await?;
    Ok(Json(Removed::of(user.id.as_uuid())))
}

/// List the keys of a tenant
#[utoipa::path(get, path = "/admin/tenants/{tid}/keys", tag = "admin", params(("tid" = String, Path)),
    responses((status = 200, body = Data<Vec<ApiKey>>), (status = "default", body = ErrorBody)))]
async fn keys(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(tid): Path<String>,
) -> Result<Json<Data<Vec<ApiKey>>>, Refusal> {
    let tenant = app.control.administered(&caller, &tid).await?;
    let keys = app.control.keys_of(&caller, tenant.id).await?;
    Ok(Json(Data { data: keys.into_iter().map(|key| limited(&app, key)).collect() }))
}

/// Make a key for a user of a tenant; the answer is the only one with its secret
#[utoipa::path(post, path = "/admin/tenants/{tid}/keys", tag = "admin", params(("tid" = String, Path)),
    request_body = CreateApiKey,
    responses((status = 201, body = Data<ApiKeyWithSecret>), (status = "default", body = ErrorBody)))]
async fn create_key(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(tid): Path<String>,
    body: RawBody,
) -> Result<(StatusCode, Json<Data<ApiKeyWithSecret>>), Refusal> {
    let tenant = app.control.administered(&caller, &tid).await?;
    let made = app.control.create_key_of(&caller, tenant.id, body.parse()?).await?;
    Ok((StatusCode::CREATED, with_secret(&app, made)))
}

/// Delete a key of a tenant; it ends at once
#[utoipa::path(delete, path = "/admin/tenants/{tid}/keys/{kid}", tag = "admin",
    params(("tid" = String, Path), ("kid" = String, Path)),
    responses((status = 200, body = Removed), (status = "default", body = ErrorBody)))]
async fn delete_key(
    State(app): State<App>,
    Auth(caller): Auth,
    Path((tid, kid)): Path<(String, String)>,
) -> Result<Json<Removed>, Refusal> {
    let tenant = app.control.administered(&caller, &tid).await?;
    let id = app.control.delete_key_of(&caller, tenant.id, &kid).await?;
    Ok(Json(Removed::of(id.as_uuid())))
}
