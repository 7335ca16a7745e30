//! Regions, sizes, prices and templates. Several clients look for the same under different paths.

use axum::Json;
use axum::extract::State;
use roost_api::{
    ComputeCatalog, ComputePricing, ComputeTemplate, Data, ErrorBody, Region, SizeOffer, TemplateCatalog,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, PathName};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(regions))
        .routes(routes!(region))
        .routes(routes!(compute_regions))
        .routes(routes!(settings_regions))
        .routes(routes!(sizes))
        .routes(routes!(pricing))
        .routes(routes!(settings_pricing))
        .routes(routes!(catalog))
        .routes(routes!(compute_templates))
        .routes(routes!(compute_template))
        .routes(routes!(templates))
}

type Answer<T> = Result<Json<Data<T>>, Refusal>;

fn data<T>(data: T) -> Json<Data<T>> {
    Json(Data { data })
}

/// List the regions, and how much room each has
#[utoipa::path(get, path = "/regions", tag = "catalog",
    responses((status = 200, body = Data<Vec<Region>>), (status = "default", body = ErrorBody)))]
async fn regions(State(app): State<App>, _: Auth) -> Answer<Vec<Region>> {
    Ok(data(app.control.regions().await?))
}

/// Read a region
#[utoipa::path(get, path = "/regions/{name}", tag = "catalog", params(("name" = String, Path)),
    responses((status = 200, body = Data<Region>), (status = "default", body = ErrorBody)))]
async fn region(State(app): State<App>, _: Auth, PathName(name): PathName) -> Answer<Region> {
    Ok(data(app.control.region(&name).await?))
}

/// List the regions (the same as /regions)
#[utoipa::path(get, path = "/compute/regions", tag = "catalog",
    responses((status = 200, body = Data<Vec<Region>>), (status = "default", body = ErrorBody)))]
async fn compute_regions(app: State<App>, auth: Auth) -> Answer<Vec<Region>> {
    regions(app, auth).await
}

/// List the regions (the same as /regions)
#[utoipa::path(get, path = "/settings/regions", tag = "catalog",
    responses((status = 200, body = Data<Vec<Region>>), (status = "default", body = ErrorBody)))]
async fn settings_regions(app: State<App>, auth: Auth) -> Answer<Vec<Region>> {
    regions(app, auth).await
}

/// List the sizes
#[utoipa::path(get, path = "/compute/sizes", tag = "catalog",
    responses((status = 200, body = Data<Vec<SizeOffer>>), (status = "default", body = ErrorBody)))]
async fn sizes(State(app): State<App>, _: Auth) -> Json<Data<Vec<SizeOffer>>> {
    data(app.control.size_offers())
}

/// What an hour of each size costs
#[utoipa::path(get, path = "/compute/pricing", tag = "catalog",
    responses((status = 200, body = Data<ComputePricing>), (status = "default", body = ErrorBody)))]
async fn pricing(State(app): State<App>, _: Auth) -> Json<Data<ComputePricing>> {
    data(app.control.compute_pricing())
}

/// What an hour of each size costs (the same as /compute/pricing)
#[utoipa::path(get, path = "/settings/compute-pricing", tag = "catalog",
    responses((status = 200, body = Data<ComputePricing>), (status = "default", body = ErrorBody)))]
async fn settings_pricing(app: State<App>, auth: Auth) -> Json<Data<ComputePricing>> {
    pricing(app, auth).await
}

/// Everything that computers can be made of
#[utoipa::path(get, path = "/compute/catalog", tag = "catalog",
    responses((status = 200, body = Data<ComputeCatalog>), (status = "default", body = ErrorBody)))]
async fn catalog(State(app): State<App>, _: Auth) -> Json<Data<ComputeCatalog>> {
    data(app.control.compute_catalog())
}

/// List the templates
#[utoipa::path(get, path = "/compute/templates", tag = "catalog",
    responses((status = 200, body = Data<Vec<ComputeTemplate>>), (status = "default", body = ErrorBody)))]
async fn compute_templates(State(app): State<App>, _: Auth) -> Answer<Vec<ComputeTemplate>> {
    Ok(data(app.control.compute_templates()?))
}

/// Read a template
#[utoipa::path(get, path = "/compute/templates/{name}", tag = "catalog", params(("name" = String, Path)),
    responses((status = 200, body = Data<ComputeTemplate>), (status = "default", body = ErrorBody)))]
async fn compute_template(
    State(app): State<App>,
    _: Auth,
    PathName(name): PathName,
) -> Answer<ComputeTemplate> {
    Ok(data(app.control.compute_template(&name)?))
}

/// The templates, and how computers of each size would start now
#[utoipa::path(get, path = "/templates", tag = "catalog", security(()),
    responses((status = 200, body = TemplateCatalog), (status = "default", body = ErrorBody)))]
async fn templates(State(app): State<App>) -> Result<Json<TemplateCatalog>, Refusal> {
    Ok(Json(app.control.template_catalog().await?))
}
