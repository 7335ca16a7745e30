//! The HTTP surface: routes, authentication, WebSockets and the web pages.
//!
//! A request passes [`envelope`] (request id, error bodies, log) and, where it has an `Idempotency-Key`,
//! [`idempotency`], then its route. A route reads what it needs
//! through the extractors in [`extract`] in the order the API promises (credential, id, existence, state,
//! body), calls one use case of the control plane and answers its value. Routes and OpenAPI come from one
//! declaration.
//!
//! This crate knows nothing about SQL or QEMU.

mod client;
mod cors;
mod envelope;
mod extract;
mod idempotency;
mod limits;
mod outbound;
mod pages;
mod preview;
mod routes;
mod scopes;
mod sockets;
mod sse;
mod zip;

use std::sync::Arc;

use axum::Router;
use roost_api::AddressRange;
use roost_control::Control;
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;

pub use cors::{NotAnOrigin, Origin};
pub use limits::RateLimit;
pub use outbound::{Outgoing, Reach};

/// What every route can reach.
#[derive(Debug, Clone)]
pub struct App {
    pub control: Control,
    /// The domain of computers, with its port: `localhost:8080`.
    pub domain: String,
    /// `None`: as many as anybody likes.
    pub rate_limit: Option<Arc<RateLimit>>,
    /// Whose web pages may call the API, beside the server's own.
    pub cors_origins: Vec<Origin>,
    /// Proxies that say truly from whom they have a request.
    pub trusted_proxies: Vec<AddressRange>,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Roost",
        description = "Computers for people and AI agents: real virtual machines with a Linux desktop, on your own host. \
                       Compatible with the public MIOSA Computers API.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    modifiers(&BearerAuth),
    security(("bearer" = [])),
    tags(
        (name = "computers", description = "Create, clone, list, read, change, resize, start, stop, restart and delete computers"),
        (name = "catalog", description = "What computers can be made of, and where"),
        (name = "snapshots", description = "Keep states of computers, and make computers from them"),
        (name = "exec", description = "Run commands"),
        (name = "files", description = "Files inside a computer, of any size"),
        (name = "terminal", description = "Terminals that stay when nobody looks"),
        (name = "apps", description = "Desktop programs, and installing more"),
        (name = "desktop", description = "See and drive the desktop"),
        (name = "connection", description = "Addresses and credentials of the live desktop"),
        (name = "env", description = "Environment variables of a computer"),
        (name = "ports", description = "Let others reach web programs inside a computer"),
        (name = "events", description = "Follow what happens, as server-sent events"),
        (name = "credits", description = "What is left, what was used, and what it cost"),
        (name = "keys", description = "API keys and scoped tokens, and whom they speak for"),
        (name = "workspaces", description = "Workspaces, their members, and projects"),
        (name = "admin", description = "Tenants, users and their keys"),
        (name = "server", description = "The server itself"),
    )
)]
struct ApiDoc;

struct BearerAuth;

impl utoipa::Modify for BearerAuth {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("An API key (`msk_...`)"))
            .build();
        openapi
            .components
            .get_or_insert_with(Default::default)
            .add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

fn api() -> OpenApiRouter<App> {
    let api = OpenApiRouter::new()
        .merge(routes::computers::router())
        .merge(routes::catalog::router())
        .merge(routes::auto_stop::router())
        .merge(routes::apps::router())
        .merge(routes::logs::router())
        .merge(routes::metrics::router())
        .merge(routes::credits::router())
        .merge(routes::quotas::router())
        .merge(routes::snapshots::router())
        .merge(routes::snapshot_files::router())
        .merge(routes::exec::router())
        .merge(routes::terminal::router())
        .merge(routes::files::router())
        .merge(routes::desktop::router())
        .merge(routes::accessibility::router())
        .merge(routes::connection::router())
        .merge(routes::env::router())
        .merge(routes::ports::router())
        .merge(routes::domains::router())
        .merge(routes::shares::router())
        .merge(sockets::tunnel::router())
        .merge(routes::events::router())
        .merge(routes::webhooks::router())
        .merge(routes::tickets::router())
        .merge(routes::identity::router())
        .merge(routes::keys::router())
        .merge(routes::workspaces::router())
        .merge(routes::projects::router())
        .merge(routes::admin::router())
        .merge(routes::settings::router())
        .merge(routes::server::router());
    OpenApiRouter::with_openapi(ApiDoc::openapi()).nest("/api/v1", api)
}

/// The OpenAPI document as pretty JSON with a final newline.
pub fn openapi() -> Result<String, serde_json::Error> {
    let (_, document) = api().split_for_parts();
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

/// The whole service.
pub fn router(app: App) -> Result<Router, serde_json::Error> {
    let document = openapi()?;
    let (api, _) = api().split_for_parts();
    // One published client sends the prefix twice.
    let doubled = Router::new().nest("/api/v1", api.clone());
    let once = axum::middleware::from_fn_with_state(app.clone(), idempotency::once);
    // The fallback first, so that what layers do for preflights comes before it.
    let mut api = api.merge(doubled).method_not_allowed_fallback(envelope::no_such_method).layer(once);
    if let Some(cors) = cors::layer(&app.cors_origins) {
        api = api.layer(cors);
    }
    let router = Router::new()
        .merge(api)
        .merge(sockets::vnc::router())
        .merge(sockets::terminal::router())
        .merge(preview::router())
        .merge(routes::shares::page())
        .merge(pages::router(document))
        .fallback(envelope::no_such_route)
        .method_not_allowed_fallback(envelope::no_such_method)
        .with_state(app.clone());
    let previews = Router::new().fallback(preview::visit).with_state(app.clone());
    let (router, previews) = (enveloped(router), enveloped(previews));
    // Before any routing: a path of ours is nothing special on the host of a port.
    let app = Arc::new(app);
    let by_host = tower::service_fn(move |mut request: axum::extract::Request| {
        let (app, router, previews) = (app.clone(), router.clone(), previews.clone());
        async move {
            client::note(&mut request, &app.trusted_proxies);
            let is_for_a_port = preview::is_for_a_port(&app, &mut request).await;
            tower::ServiceExt::oneshot(if is_for_a_port { previews } else { router }, request).await
        }
    });
    Ok(Router::new().fallback_service(by_host))
}

fn enveloped(router: Router) -> Router {
    router
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(envelope::panicked))
        .layer(axum::middleware::from_fn(envelope::envelope))
}
