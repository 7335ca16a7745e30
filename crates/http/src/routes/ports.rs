//! Exposed ports of a computer.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use roost_api::{
    ChangePort, ErrorBody, ExposePort, Port, PortAccess, PortAccessRequest, PortDeleted, PortList, PortUrl,
};
use roost_control::ExposedPort;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{PathPort, RawBody, Target};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, expose))
        .routes(routes!(change, remove))
        .routes(routes!(url))
        .routes(routes!(access))
}

/// List the exposed ports
#[utoipa::path(get, path = "/computers/{id}/ports", tag = "ports", params(("id" = String, Path)),
    responses((status = 200, body = PortList), (status = "default", body = ErrorBody)))]
async fn list(State(app): State<App>, Target(record): Target) -> Result<Json<PortList>, Refusal> {
    Ok(Json(app.control.ports(&record).await?))
}

/// Expose a port; one that is exposed gets the visibility that is asked for
#[utoipa::path(post, path = "/computers/{id}/ports", tag = "ports", params(("id" = String, Path)),
    request_body = ExposePort,
    responses((status = 201, body = Port), (status = 200, description = "It was exposed already", body = Port),
        (status = "default", body = ErrorBody)))]
async fn expose(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<(StatusCode, Json<Port>), Refusal> {
    Ok(match app.control.expose_port(&record, body.parse::<ExposePort>()?).await? {
        ExposedPort::New(port) => (StatusCode::CREATED, Json(port)),
        ExposedPort::Changed(port) => (StatusCode::OK, Json(port)),
    })
}

/// Change who may use an exposed port
#[utoipa::path(patch, path = "/computers/{id}/ports/{port}", tag = "ports",
    params(("id" = String, Path), ("port" = u16, Path)), request_body = ChangePort,
    responses((status = 200, body = Port), (status = "default", body = ErrorBody)))]
async fn change(
    State(app): State<App>,
    Target(record): Target,
    PathPort(port): PathPort,
    body: RawBody,
) -> Result<Json<Port>, Refusal> {
    Ok(Json(app.control.change_port(&record, port, body.parse::<ChangePort>()?).await?))
}

/// Close an exposed port
#[utoipa::path(delete, path = "/computers/{id}/ports/{port}", tag = "ports",
    params(("id" = String, Path), ("port" = u16, Path)),
    responses((status = 200, body = PortDeleted), (status = "default", body = ErrorBody)))]
async fn remove(
    State(app): State<App>,
    Target(record): Target,
    PathPort(port): PathPort,
) -> Result<Json<PortDeleted>, Refusal> {
    app.control.remove_port(record.id, port).await?;
    Ok(Json(PortDeleted { port, deleted: true }))
}

/// The address of a port, exposed or not
#[utoipa::path(get, path = "/computers/{id}/ports/{port}/url", tag = "ports",
    params(("id" = String, Path), ("port" = u16, Path)),
    responses((status = 200, body = PortUrl), (status = "default", body = ErrorBody)))]
async fn url(State(app): State<App>, Target(record): Target, PathPort(port): PathPort) -> Json<PortUrl> {
    Json(app.control.port_url(&record, port))
}

/// Ways into a port: a link for your own browser, and a preview token to pass on. An extension of the public API
#[utoipa::path(post, path = "/computers/{id}/ports/{port}/access", tag = "ports",
    params(("id" = String, Path), ("port" = u16, Path)), request_body = Option<PortAccessRequest>,
    responses((status = 200, body = PortAccess), (status = "default", body = ErrorBody)))]
async fn access(
    State(app): State<App>,
    Target(record): Target,
    PathPort(port): PathPort,
    body: RawBody,
) -> Result<Json<PortAccess>, Refusal> {
    Ok(Json(app.control.port_access(&record, port, &body.parse::<PortAccessRequest>()?).await?))
}
