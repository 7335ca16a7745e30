//! What programs say of what they show, and acting on it without a pointer.

use axum::Json;
use axum::extract::State;
use roost_api::{
    AccessibleActionRequest, ErrorBody, FindQuery, FoundElements, Success, TreeAnswer, TreeQuery,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Query, RawBody, Target};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(tree)).routes(routes!(find)).routes(routes!(act))
}

/// What is on the screen, as the programs tell it: windows, and the elements in them
#[utoipa::path(get, path = "/computers/{id}/desktop/accessibility-tree", tag = "desktop",
    params(("id" = String, Path), TreeQuery),
    responses((status = 200, body = TreeAnswer), (status = "default", body = ErrorBody)))]
async fn tree(
    State(app): State<App>,
    Target(record): Target,
    Query(query): Query<TreeQuery>,
) -> Result<Json<TreeAnswer>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.accessibility_tree(record.id, query).await?))
}

/// Elements by their role and name
#[utoipa::path(get, path = "/computers/{id}/desktop/accessibility/find", tag = "desktop",
    params(("id" = String, Path), FindQuery),
    responses((status = 200, body = FoundElements), (status = "default", body = ErrorBody)))]
async fn find(
    State(app): State<App>,
    Target(record): Target,
    Query(query): Query<FindQuery>,
) -> Result<Json<FoundElements>, Refusal> {
    app.control.require_running(&record)?;
    Ok(Json(app.control.find_elements(record.id, query).await?))
}

/// Press an element, give it the keyboard, or set its text or number
#[utoipa::path(post, path = "/computers/{id}/desktop/accessibility/action", tag = "desktop",
    params(("id" = String, Path)), request_body = AccessibleActionRequest,
    responses((status = 200, body = Success), (status = "default", body = ErrorBody)))]
async fn act(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<Json<Success>, Refusal> {
    app.control.require_running(&record)?;
    app.control.act_on_element(record.id, body.parse()?).await?;
    Ok(Json(Success::OK))
}
