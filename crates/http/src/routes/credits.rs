//! Credits and usage.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use roost_api::{
    CreditBalance, CreditTransactions, CreditUsage, ErrorBody, GrantCredits, PageQuery, SessionsQuery,
    UsageQuery, UsageReport, UsageSessions, UsageSummary,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, Query, RawBody};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(balance))
        .routes(routes!(transactions))
        .routes(routes!(credit_usage))
        .routes(routes!(grant))
        .routes(routes!(usage))
        .routes(routes!(summary))
        .routes(routes!(sessions))
}

/// What is left of the tenant's credits
#[utoipa::path(get, path = "/credits/balance", tag = "credits",
    responses((status = 200, body = CreditBalance), (status = "default", body = ErrorBody)))]
async fn balance(State(app): State<App>, Auth(caller): Auth) -> Result<Json<CreditBalance>, Refusal> {
    Ok(Json(app.control.credit_balance(&caller).await?))
}

/// What the tenant's credits came from and went to, newest first
#[utoipa::path(get, path = "/credits/transactions", tag = "credits", params(PageQuery),
    responses((status = 200, body = CreditTransactions), (status = "default", body = ErrorBody)))]
async fn transactions(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<PageQuery>,
) -> Result<Json<CreditTransactions>, Refusal> {
    Ok(Json(app.control.credit_transactions(&caller, query).await?))
}

/// What the tenant has used this month, in credits
#[utoipa::path(get, path = "/credits/usage", tag = "credits",
    responses((status = 200, body = CreditUsage), (status = "default", body = ErrorBody)))]
async fn credit_usage(State(app): State<App>, Auth(caller): Auth) -> Result<Json<CreditUsage>, Refusal> {
    Ok(Json(app.control.credit_usage(&caller).await?))
}

/// Give a tenant credits (operators only); its first ones begin the counting
#[utoipa::path(post, path = "/credits/grants", tag = "credits", request_body = GrantCredits,
    responses((status = 201, body = CreditBalance), (status = "default", body = ErrorBody)))]
async fn grant(
    State(app): State<App>,
    Auth(caller): Auth,
    body: RawBody,
) -> Result<(StatusCode, Json<CreditBalance>), Refusal> {
    let balance = app.control.grant_credits(&caller, body.parse()?).await?;
    Ok((StatusCode::CREATED, Json(balance)))
}

/// What groups of the tenant's computers used in a period
#[utoipa::path(get, path = "/usage", tag = "credits", params(UsageQuery),
    responses((status = 200, body = UsageReport), (status = "default", body = ErrorBody)))]
async fn usage(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<UsageQuery>,
) -> Result<Json<UsageReport>, Refusal> {
    Ok(Json(app.control.usage_report(&caller, query).await?))
}

/// What the tenant used in a period
#[utoipa::path(get, path = "/usage/summary", tag = "credits", params(UsageQuery),
    responses((status = 200, body = UsageSummary), (status = "default", body = ErrorBody)))]
async fn summary(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<UsageQuery>,
) -> Result<Json<UsageSummary>, Refusal> {
    Ok(Json(app.control.usage_summary(&caller, query).await?))
}

/// When the tenant's computers ran, newest first
#[utoipa::path(get, path = "/usage/sessions", tag = "credits", params(SessionsQuery),
    responses((status = 200, body = UsageSessions), (status = "default", body = ErrorBody)))]
async fn sessions(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<SessionsQuery>,
) -> Result<Json<UsageSessions>, Refusal> {
    Ok(Json(app.control.usage_sessions(&caller, query).await?))
}
