//! Whom a credential speaks for, and in which tenants it may act.

use axum::Json;
use axum::extract::{Path, State};
use roost_api::{Data, ErrorBody, Identity, Tenant};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::Auth;

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(whoami))
        .routes(routes!(tenants))
        .routes(routes!(current))
        .routes(routes!(switch))
}

/// Whom the credential speaks for
#[utoipa::path(get, path = "/whoami", tag = "keys",
    responses((status = 200, body = Data<Identity>), (status = "default", body = ErrorBody)))]
async fn whoami(State(app): State<App>, Auth(caller): Auth) -> Result<Json<Data<Identity>>, Refusal> {
    Ok(Json(Data { data: app.control.identity(&caller).await? }))
}

/// The tenants in which the credential may act
#[utoipa::path(get, path = "/platform/tenants", tag = "keys",
    responses((status = 200, body = Data<Vec<Tenant>>), (status = "default", body = ErrorBody)))]
async fn tenants(State(app): State<App>, Auth(caller): Auth) -> Result<Json<Data<Vec<Tenant>>>, Refusal> {
    Ok(Json(Data { data: app.control.tenants(&caller).await? }))
}

/// The tenant in which this request acts
#[utoipa::path(get, path = "/platform/tenants/current", tag = "keys",
    responses((status = 200, body = Data<Tenant>), (status = "default", body = ErrorBody)))]
async fn current(State(app): State<App>, Auth(caller): Auth) -> Result<Json<Data<Tenant>>, Refusal> {
    Ok(Json(Data { data: app.control.tenant(&caller, &caller.tenant.to_string()).await? }))
}

/// A tenant to act in from now on: nothing is kept here, the client sends `X-MIOSA-Tenant` with each request
#[utoipa::path(post, path = "/platform/tenants/{tid}/switch", tag = "keys", params(("tid" = String, Path)),
    responses((status = 200, body = Data<Tenant>), (status = "default", body = ErrorBody)))]
async fn switch(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(tid): Path<String>,
) -> Result<Json<Data<Tenant>>, Refusal> {
    Ok(Json(Data { data: app.control.tenant(&caller, &tid).await? }))
}
