//! What clients keep with a tenant, and what a client may do that asks first.

use axum::Json;
use axum::extract::State;
use roost_api::{ActionDecision, AuthorizeAction, Capability, Data, ErrorBody, TenantSettings};
use roost_control::SettingsKind;
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, RawBody};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(settings, set_settings))
        .routes(routes!(settings_branding, set_settings_branding))
        .routes(routes!(branding, set_branding, remove_branding))
        .routes(routes!(catalog))
        .routes(routes!(authorize))
}

type Kept = Result<Json<Data<TenantSettings>>, Refusal>;

/// The settings that clients keep with the tenant
#[utoipa::path(get, path = "/settings", tag = "admin",
    responses((status = 200, body = Data<TenantSettings>), (status = "default", body = ErrorBody)))]
async fn settings(State(app): State<App>, Auth(caller): Auth) -> Kept {
    Ok(Json(Data { data: app.control.tenant_settings(&caller, SettingsKind::Settings).await? }))
}

/// Replace the settings that clients keep with the tenant, at most 16 KiB of them
#[utoipa::path(put, path = "/settings", tag = "admin", request_body = TenantSettings,
    responses((status = 200, body = Data<TenantSettings>), (status = "default", body = ErrorBody)))]
async fn set_settings(State(app): State<App>, Auth(caller): Auth, body: RawBody) -> Kept {
    let value = body.parse()?;
    Ok(Json(Data { data: app.control.set_tenant_settings(&caller, SettingsKind::Settings, value).await? }))
}

/// How the tenant's pages look, as clients keep it (the same as /tenant/branding)
#[utoipa::path(get, path = "/settings/branding", tag = "admin",
    responses((status = 200, body = Data<TenantSettings>), (status = "default", body = ErrorBody)))]
async fn settings_branding(app: State<App>, auth: Auth) -> Kept {
    branding(app, auth).await
}

/// Replace how the tenant's pages look (the same as /tenant/branding)
#[utoipa::path(put, path = "/settings/branding", tag = "admin", request_body = TenantSettings,
    responses((status = 200, body = Data<TenantSettings>), (status = "default", body = ErrorBody)))]
async fn set_settings_branding(app: State<App>, auth: Auth, body: RawBody) -> Kept {
    set_branding(app, auth, body).await
}

/// How the tenant's pages look, as clients keep it
#[utoipa::path(get, path = "/tenant/branding", tag = "admin",
    responses((status = 200, body = Data<TenantSettings>), (status = "default", body = ErrorBody)))]
async fn branding(State(app): State<App>, Auth(caller): Auth) -> Kept {
    Ok(Json(Data { data: app.control.tenant_settings(&caller, SettingsKind::Branding).await? }))
}

/// Replace how the tenant's pages look, at most 16 KiB of it
#[utoipa::path(put, path = "/tenant/branding", tag = "admin", request_body = TenantSettings,
    responses((status = 200, body = Data<TenantSettings>), (status = "default", body = ErrorBody)))]
async fn set_branding(State(app): State<App>, Auth(caller): Auth, body: RawBody) -> Kept {
    let value = unwrapped(body.parse()?);
    Ok(Json(Data { data: app.control.set_tenant_settings(&caller, SettingsKind::Branding, value).await? }))
}

/// One published client sends the object in another one.
fn unwrapped(body: TenantSettings) -> TenantSettings {
    match body.0.get("branding") {
        Some(Value::Object(inner)) if body.0.len() == 1 => TenantSettings(inner.clone()),
        _ => body,
    }
}

/// Forget how the tenant's pages look
#[utoipa::path(delete, path = "/tenant/branding", tag = "admin",
    responses((status = 200, body = Data<TenantSettings>), (status = "default", body = ErrorBody)))]
async fn remove_branding(State(app): State<App>, Auth(caller): Auth) -> Kept {
    let value = TenantSettings::default();
    Ok(Json(Data { data: app.control.set_tenant_settings(&caller, SettingsKind::Branding, value).await? }))
}

/// What clients can do here, for those that ask before they do it
#[utoipa::path(get, path = "/actions/catalog", tag = "keys",
    responses((status = 200, body = Data<Vec<Capability>>), (status = "default", body = ErrorBody)))]
async fn catalog(State(app): State<App>, _: Auth) -> Json<Data<Vec<Capability>>> {
    Json(Data { data: app.control.capabilities() })
}

/// Whether the caller may do something, as far as it can be told beforehand
#[utoipa::path(post, path = "/actions/authorize", tag = "keys", request_body = AuthorizeAction,
    responses((status = 200, body = Data<ActionDecision>), (status = "default", body = ErrorBody)))]
async fn authorize(
    State(app): State<App>,
    Auth(caller): Auth,
    body: RawBody,
) -> Result<Json<Data<ActionDecision>>, Refusal> {
    let request = body.parse::<AuthorizeAction>()?;
    Ok(Json(Data { data: app.control.authorize(&caller, &request).await? }))
}
