//! What a computer uses.

use axum::Json;
use axum::extract::State;
use roost_api::{ErrorBody, Metrics, MetricsQuery};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Query, Target};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// CPU and memory of a computer over time, and what an hour of it costs
#[utoipa::path(get, path = "/computers/{id}/metrics", tag = "computers",
    params(("id" = String, Path), MetricsQuery),
    responses((status = 200, body = Metrics), (status = "default", body = ErrorBody)))]
async fn metrics(
    State(app): State<App>,
    Target(record): Target,
    Query(query): Query<MetricsQuery>,
) -> Result<Json<Metrics>, Refusal> {
    Ok(Json(app.control.metrics(&record, &query).await?))
}
