//! Quotas of end users, and what a tenant has altogether.

use axum::Json;
use axum::extract::{Path, State};
use roost_api::{BillingUsage, Data, ErrorBody, Plan, Quota, QuotaRemoved, SetQuota};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, RawBody};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(get, set, remove))
        .routes(routes!(billing_usage))
        .routes(routes!(billing_plan))
        .routes(routes!(plan))
}

/// What an end user of yours may have at most, and has; without a quota nothing is limited
#[utoipa::path(get, path = "/quotas/external/{external_user_id}", tag = "credits",
    params(("external_user_id" = String, Path)),
    responses((status = 200, body = Quota), (status = "default", body = ErrorBody)))]
async fn get(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(user): Path<String>,
) -> Result<Json<Quota>, Refusal> {
    Ok(Json(app.control.quota(&caller, &user).await?))
}

/// Limit what an end user of yours may have; what there is stays, and nothing beyond is made or started
#[utoipa::path(put, path = "/quotas/external/{external_user_id}", tag = "credits",
    params(("external_user_id" = String, Path)), request_body = SetQuota,
    responses((status = 200, body = Quota), (status = "default", body = ErrorBody)))]
async fn set(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(user): Path<String>,
    body: RawBody,
) -> Result<Json<Quota>, Refusal> {
    Ok(Json(app.control.set_quota(&caller, &user, body.parse()?).await?))
}

/// Take the limits of an end user of yours away
#[utoipa::path(delete, path = "/quotas/external/{external_user_id}", tag = "credits",
    params(("external_user_id" = String, Path)),
    responses((status = 200, body = QuotaRemoved), (status = "default", body = ErrorBody)))]
async fn remove(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(user): Path<String>,
) -> Result<Json<QuotaRemoved>, Refusal> {
    let external_user_id = app.control.remove_quota(&caller, &user).await?;
    Ok(Json(QuotaRemoved { external_user_id, deleted: true }))
}

/// What the tenant used this month, and what is left of its credits
#[utoipa::path(get, path = "/billing/usage", tag = "credits",
    responses((status = 200, body = BillingUsage), (status = "default", body = ErrorBody)))]
async fn billing_usage(State(app): State<App>, Auth(caller): Auth) -> Result<Json<BillingUsage>, Refusal> {
    Ok(Json(app.control.billing_usage(&caller).await?))
}

/// What the tenant has; its plan is that of a server of one's own
#[utoipa::path(get, path = "/billing/plan", tag = "credits",
    responses((status = 200, body = Data<Plan>), (status = "default", body = ErrorBody)))]
async fn billing_plan(State(app): State<App>, Auth(caller): Auth) -> Result<Json<Data<Plan>>, Refusal> {
    Ok(Json(Data { data: app.control.plan(&caller).await? }))
}

/// The same as `GET /billing/plan`
#[utoipa::path(get, path = "/tenant/plan", tag = "credits",
    responses((status = 200, body = Data<Plan>), (status = "default", body = ErrorBody)))]
async fn plan(State(app): State<App>, Auth(caller): Auth) -> Result<Json<Data<Plan>>, Refusal> {
    Ok(Json(Data { data: app.control.plan(&caller).await? }))
}
