//! Domains under which the ports of computers are reached: of the tenant, of a workspace, of a project.

use axum::Json;
use axum::extract::{Path, State};
use roost_api::{Data, ErrorBody, PreviewDomain, SetPreviewDomain};
use roost_control::{Act, DomainOwner};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, RawBody};

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(of_tenant, set_of_tenant, remove_of_tenant))
        .routes(routes!(verify_of_tenant))
        .routes(routes!(of_workspace, set_of_workspace, remove_of_workspace))
        .routes(routes!(verify_of_workspace))
        .routes(routes!(of_project, set_of_project, remove_of_project))
        .routes(routes!(verify_of_project))
}

type Answer = Result<Json<Data<PreviewDomain>>, Refusal>;

async fn read(app: &App, owner: DomainOwner) -> Answer {
    Ok(Json(Data { data: app.control.preview_domain(owner).await? }))
}

async fn set(app: &App, owner: DomainOwner, body: RawBody) -> Answer {
    Ok(Json(Data { data: app.control.set_preview_domain(owner, body.parse()?).await? }))
}

async fn remove(app: &App, owner: DomainOwner) -> Answer {
    Ok(Json(Data { data: app.control.remove_preview_domain(owner).await? }))
}

async fn verify(app: &App, owner: DomainOwner) -> Answer {
    Ok(Json(Data { data: app.control.verify_preview_domain(owner).await? }))
}

/// The domain under which the ports of the tenant's computers are reached
#[utoipa::path(get, path = "/tenant/preview-domain", tag = "ports",
    responses((status = 200, body = Data<PreviewDomain>), (status = "default", body = ErrorBody)))]
async fn of_tenant(State(app): State<App>, Auth(caller): Auth) -> Answer {
    read(&app, app.control.domain_of_tenant(&caller, Act::Read)?).await
}

/// Give the tenant a domain; it counts once it is verified
#[utoipa::path(put, path = "/tenant/preview-domain", tag = "ports", request_body = SetPreviewDomain,
    responses((status = 200, body = Data<PreviewDomain>), (status = "default", body = ErrorBody)))]
async fn set_of_tenant(State(app): State<App>, Auth(caller): Auth, body: RawBody) -> Answer {
    set(&app, app.control.domain_of_tenant(&caller, Act::Write)?, body).await
}

/// Take the tenant's domain away, at once
#[utoipa::path(delete, path = "/tenant/preview-domain", tag = "ports",
    responses((status = 200, body = Data<PreviewDomain>), (status = "default", body = ErrorBody)))]
async fn remove_of_tenant(State(app): State<App>, Auth(caller): Auth) -> Answer {
    remove(&app, app.control.domain_of_tenant(&caller, Act::Write)?).await
}

/// Look whether the tenant's domain leads to this server; `problem` says why it does not
#[utoipa::path(post, path = "/tenant/preview-domain/verify", tag = "ports",
    responses(
        (status = 200, body = Data<PreviewDomain>),
        (status = 409, description = "The domain is another tenant's", body = ErrorBody),
        (status = "default", body = ErrorBody)
    ))]
async fn verify_of_tenant(State(app): State<App>, Auth(caller): Auth) -> Answer {
    verify(&app, app.control.domain_of_tenant(&caller, Act::Write)?).await
}

/// The domain under which the ports of a workspace's computers are reached
#[utoipa::path(get, path = "/workspaces/{wid}/preview-domain", tag = "ports", params(("wid" = String, Path)),
    responses((status = 200, body = Data<PreviewDomain>), (status = "default", body = ErrorBody)))]
async fn of_workspace(State(app): State<App>, Auth(caller): Auth, Path(wid): Path<String>) -> Answer {
    read(&app, app.control.domain_of_workspace(&caller, &wid, Act::Read).await?).await
}

/// Give a workspace a domain; it counts once it is verified
#[utoipa::path(put, path = "/workspaces/{wid}/preview-domain", tag = "ports", params(("wid" = String, Path)),
    request_body = SetPreviewDomain,
    responses((status = 200, body = Data<PreviewDomain>), (status = "default", body = ErrorBody)))]
async fn set_of_workspace(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(wid): Path<String>,
    body: RawBody,
) -> Answer {
    set(&app, app.control.domain_of_workspace(&caller, &wid, Act::Write).await?, body).await
}

/// Take a workspace's domain away, at once
#[utoipa::path(delete, path = "/workspaces/{wid}/preview-domain", tag = "ports", params(("wid" = String, Path)),
    responses((status = 200, body = Data<PreviewDomain>), (status = "default", body = ErrorBody)))]
async fn remove_of_workspace(State(app): State<App>, Auth(caller): Auth, Path(wid): Path<String>) -> Answer {
    remove(&app, app.control.domain_of_workspace(&caller, &wid, Act::Write).await?).await
}

/// Look whether a workspace's domain leads to this server; it counts from then on
#[utoipa::path(get, path = "/workspaces/{wid}/preview-domain/verify", tag = "ports",
    params(("wid" = String, Path)),
    responses(
        (status = 200, body = Data<PreviewDomain>),
        (status = 409, description = "The domain is another tenant's", body = ErrorBody),
        (status = "default", body = ErrorBody)
    ))]
async fn verify_of_workspace(State(app): State<App>, Auth(caller): Auth, Path(wid): Path<String>) -> Answer {
    verify(&app, app.control.domain_of_workspace(&caller, &wid, Act::Write).await?).await
}

/// The domain under which the ports of a project's computers are reached
#[utoipa::path(get, path = "/projects/{pid}/preview-domain", tag = "ports", params(("pid" = String, Path)),
    responses((status = 200, body = Data<PreviewDomain>), (status = "default", body = ErrorBody)))]
async fn of_project(State(app): State<App>, Auth(caller): Auth, Path(pid): Path<String>) -> Answer {
    read(&app, app.control.domain_of_project(&caller, &pid, Act::Read).await?).await
}

/// Give a project a domain; it counts once it is verified
#[utoipa::path(put, path = "/projects/{pid}/preview-domain", tag = "ports", params(("pid" = String, Path)),
    request_body = SetPreviewDomain,
    responses((status = 200, body = Data<PreviewDomain>), (status = "default", body = ErrorBody)))]
async fn set_of_project(
    State(app): State<App>,
    Auth(caller): Auth,
    Path(pid): Path<String>,
    body: RawBody,
) -> Answer {
    set(&app, app.control.domain_of_project(&caller, &pid, Act::Write).await?, body).await
}

/// Take a project's domain away, at once
#[utoipa::path(delete, path = "/projects/{pid}/preview-domain", tag = "ports", params(("pid" = String, Path)),
    responses((status = 200, body = Data<PreviewDomain>), (status = "default", body = ErrorBody)))]
async fn remove_of_project(State(app): State<App>, Auth(caller): Auth, Path(pid): Path<String>) -> Answer {
    remove(&app, app.control.domain_of_project(&caller, &pid, Act::Write).await?).await
}

/// Look whether a project's domain leads to this server; it counts from then on
#[utoipa::path(get, path = "/projects/{pid}/preview-domain/verify", tag = "ports",
    params(("pid" = String, Path)),
    responses(
        (status = 200, body = Data<PreviewDomain>),
        (status = 409, description = "The domain is another tenant's", body = ErrorBody),
        (status = "default", body = ErrorBody)
    ))]
async fn verify_of_project(State(app): State<App>, Auth(caller): Auth, Path(pid): Path<String>) -> Answer {
    verify(&app, app.control.domain_of_project(&caller, &pid, Act::Write).await?).await
}
