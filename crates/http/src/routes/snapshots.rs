//! Snapshots: of a computer, of the account, and named ones; and the computers made from them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::sse::Event;
use futures_util::StreamExt;
use roost_api::{
    AccountSnapshot, Computer, CreateSnapshot, Data, DeleteSnapshots, DeletedSnapshots, ErrorBody,
    ForkSnapshot, ForkedComputer, ForkedSnapshot, ListSnapshots, NameSnapshot, NamedSnapshot,
    NamedSnapshotList, ReleasedName, RestoredComputer, Snapshot, SnapshotAllowance, SnapshotEvent,
    SnapshotGroup, TicketQuery, WithDependents,
};
use roost_control::{Caller, SnapshotRecord};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::envelope::Refusal;
use crate::extract::{Auth, Kept, KeptOf, Listener, Named, Query, RawBody, Target, Watched};
use crate::sse;

/// As many names as anybody likes; a number that every client can read.
const NAMES: u64 = 1_000_000;

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(of_computer, take))
        .routes(routes!(get_of_computer, delete_of_computer))
        .routes(routes!(events))
        .routes(routes!(restore_of_computer))
        .routes(routes!(list))
        .routes(routes!(groups))
        .routes(routes!(delete_many))
        .routes(routes!(get, delete))
        .routes(routes!(restore))
        .routes(routes!(fork))
        .routes(routes!(named, give_name))
        .routes(routes!(get_named, release_name))
        .routes(routes!(deploy))
        .routes(routes!(admin_list))
        .routes(routes!(admin_get))
}

/// Take a snapshot of a running or stopped computer; it goes on at once
#[utoipa::path(post, path = "/computers/{id}/snapshots", tag = "snapshots", params(("id" = String, Path)),
    request_body = CreateSnapshot,
    responses((status = 201, body = Data<Snapshot>), (status = "default", body = ErrorBody)))]
async fn take(
    State(app): State<App>,
    Target(record): Target,
    body: RawBody,
) -> Result<(StatusCode, Json<Data<Snapshot>>), Refusal> {
    let snapshot = app.control.take_snapshot(record.id, body.parse()?).await?;
    Ok((StatusCode::CREATED, Json(Data { data: app.control.snapshot_view(&snapshot) })))
}

/// List the snapshots of a computer, newest first
#[utoipa::path(get, path = "/computers/{id}/snapshots", tag = "snapshots", params(("id" = String, Path)),
    responses((status = 200, body = Data<Vec<Snapshot>>), (status = "default", body = ErrorBody)))]
async fn of_computer(
    State(app): State<App>,
    Target(record): Target,
) -> Result<Json<Data<Vec<Snapshot>>>, Refusal> {
    let found = app.control.computer_snapshots(&record).await?;
    Ok(Json(Data { data: found.iter().map(|snapshot| app.control.snapshot_view(snapshot)).collect() }))
}

/// Read a snapshot of a computer
#[utoipa::path(get, path = "/computers/{id}/snapshots/{sid}", tag = "snapshots",
    params(("id" = String, Path), ("sid" = String, Path)),
    responses((status = 200, body = Data<Snapshot>), (status = "default", body = ErrorBody)))]
async fn get_of_computer(State(app): State<App>, KeptOf(snapshot): KeptOf) -> Json<Data<Snapshot>> {
    Json(Data { data: app.control.snapshot_view(&snapshot) })
}

/// Delete a snapshot of a computer
#[utoipa::path(delete, path = "/computers/{id}/snapshots/{sid}", tag = "snapshots",
    params(("id" = String, Path), ("sid" = String, Path)),
    responses((status = 200, body = Data<Snapshot>), (status = "default", body = ErrorBody)))]
async fn delete_of_computer(
    State(app): State<App>,
    KeptOf(snapshot): KeptOf,
) -> Result<Json<Data<Snapshot>>, Refusal> {
    let deleted = app.control.delete_snapshot(snapshot.id).await?;
    Ok(Json(Data { data: app.control.snapshot_view(&deleted) }))
}

/// Follow the taking of a snapshot as server-sent events; ends when it is ready, failed or deleted
#[utoipa::path(get, path = "/computers/{id}/snapshots/{sid}/events", tag = "snapshots",
    params(("id" = String, Path), ("sid" = String, Path), TicketQuery),
    responses(
        (status = 200, body = SnapshotEvent, content_type = "text/event-stream"),
        (status = "default", body = ErrorBody)
    ))]
async fn events(
    State(app): State<App>,
    Watched(snapshot): Watched,
    Listener(caller): Listener,
) -> impl IntoResponse {
    let events = app.control.snapshot_events(snapshot.id).map(|event| {
        let frame = Event::default().event(&event.kind).json_data(&event);
        frame.unwrap_or_else(|error| Event::default().comment(error.to_string()))
    });
    sse::respond(app.control.while_allowed(caller, events))
}

/// Make a new computer that continues from a snapshot of this one
#[utoipa::path(post, path = "/computers/{id}/restore/{sid}", tag = "snapshots",
    params(("id" = String, Path), ("sid" = String, Path)), request_body = Option<ForkSnapshot>,
    responses((status = 201, body = RestoredComputer),
        (status = 503, description = "There is no room for it", body = ErrorBody),
        (status = "default", body = ErrorBody)))]
async fn restore_of_computer(
    State(app): State<App>,
    Auth(caller): Auth,
    KeptOf(snapshot): KeptOf,
    body: RawBody,
) -> Result<(StatusCode, Json<RestoredComputer>), Refusal> {
    restored(&app, &caller, &snapshot, &body).await
}

/// Make a new computer that continues from a snapshot
#[utoipa::path(post, path = "/snapshots/{sid}/restore", tag = "snapshots", params(("sid" = String, Path)),
    request_body = Option<ForkSnapshot>,
    responses((status = 201, body = RestoredComputer),
        (status = 503, description = "There is no room for it", body = ErrorBody),
        (status = "default", body = ErrorBody)))]
async fn restore(
    State(app): State<App>,
    Auth(caller): Auth,
    Kept(snapshot): Kept,
    body: RawBody,
) -> Result<(StatusCode, Json<RestoredComputer>), Refusal> {
    restored(&app, &caller, &snapshot, &body).await
}

async fn restored(
    app: &App,
    caller: &Caller,
    snapshot: &SnapshotRecord,
    body: &RawBody,
) -> Result<(StatusCode, Json<RestoredComputer>), Refusal> {
    let (computer, snapshot) = made_from(app, caller, snapshot, body).await?;
    let data = computer.clone();
    Ok((StatusCode::CREATED, Json(RestoredComputer { computer, data, snapshot })))
}

async fn made_from(
    app: &App,
    caller: &Caller,
    snapshot: &SnapshotRecord,
    body: &RawBody,
) -> Result<(Computer, Snapshot), Refusal> {
    app.control.require_ready(snapshot)?;
    let restored = app.control.restore(caller, snapshot, body.parse()?).await?;
    Ok((app.control.computer_view(&restored.record), app.control.snapshot_view(&restored.snapshot)))
}

/// List the snapshots of all computers, newest first; also of deleted ones
#[utoipa::path(get, path = "/snapshots", tag = "snapshots", params(ListSnapshots),
    responses((status = 200, body = Data<Vec<AccountSnapshot>>), (status = "default", body = ErrorBody)))]
async fn list(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<ListSnapshots>,
) -> Result<Json<Data<Vec<AccountSnapshot>>>, Refusal> {
    Ok(Json(Data { data: app.control.account_snapshots(&caller, &query).await? }))
}

/// The snapshots summed up per computer
#[utoipa::path(get, path = "/snapshots/groups", tag = "snapshots", params(ListSnapshots),
    responses((status = 200, body = Data<Vec<SnapshotGroup>>), (status = "default", body = ErrorBody)))]
async fn groups(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<ListSnapshots>,
) -> Result<Json<Data<Vec<SnapshotGroup>>>, Refusal> {
    Ok(Json(Data { data: app.control.snapshot_groups(&caller, &query).await? }))
}

/// Delete many snapshots; those in use stay and are named
#[utoipa::path(post, path = "/snapshots/delete", tag = "snapshots", request_body = DeleteSnapshots,
    responses((status = 200, body = Data<DeletedSnapshots>), (status = "default", body = ErrorBody)))]
async fn delete_many(
    State(app): State<App>,
    Auth(caller): Auth,
    body: RawBody,
) -> Result<Json<Data<DeletedSnapshots>>, Refusal> {
    Ok(Json(Data { data: app.control.delete_snapshots(&caller, body.parse()?).await? }))
}

/// Read a snapshot and what depends on it
#[utoipa::path(get, path = "/snapshots/{sid}", tag = "snapshots", params(("sid" = String, Path)),
    responses((status = 200, body = WithDependents<AccountSnapshot>), (status = "default", body = ErrorBody)))]
async fn get(
    State(app): State<App>,
    Kept(snapshot): Kept,
) -> Result<Json<WithDependents<AccountSnapshot>>, Refusal> {
    let data = app.control.account_view(&snapshot).await?;
    Ok(Json(WithDependents { data, dependents: app.control.dependents(&snapshot).await? }))
}

/// Delete a snapshot
#[utoipa::path(delete, path = "/snapshots/{sid}", tag = "snapshots", params(("sid" = String, Path)),
    responses((status = 200, body = Data<AccountSnapshot>), (status = "default", body = ErrorBody)))]
async fn delete(
    State(app): State<App>,
    Kept(snapshot): Kept,
) -> Result<Json<Data<AccountSnapshot>>, Refusal> {
    let deleted = app.control.delete_snapshot(snapshot.id).await?;
    Ok(Json(Data { data: app.control.account_view(&deleted).await? }))
}

/// Make a new computer that continues from a snapshot
#[utoipa::path(post, path = "/snapshots/{sid}/fork", tag = "snapshots", params(("sid" = String, Path)),
    request_body = Option<ForkSnapshot>,
    responses((status = 201, body = ForkedSnapshot),
        (status = 503, description = "There is no room for it", body = ErrorBody),
        (status = "default", body = ErrorBody)))]
async fn fork(
    State(app): State<App>,
    Auth(caller): Auth,
    Kept(snapshot): Kept,
    body: RawBody,
) -> Result<(StatusCode, Json<ForkedSnapshot>), Refusal> {
    forked(&app, &caller, &snapshot, &body).await
}

async fn forked(
    app: &App,
    caller: &Caller,
    snapshot: &SnapshotRecord,
    body: &RawBody,
) -> Result<(StatusCode, Json<ForkedSnapshot>), Refusal> {
    let (mut computer, snapshot) = made_from(app, caller, snapshot, body).await?;
    computer.state = computer.status.as_str().to_owned();
    let data = ForkedComputer { machine_type: "computer".to_owned(), computer };
    Ok((StatusCode::CREATED, Json(ForkedSnapshot { data, snapshot })))
}

/// List the snapshots that have a name
#[utoipa::path(get, path = "/named-snapshots", tag = "snapshots", params(ListSnapshots),
    responses((status = 200, body = NamedSnapshotList), (status = "default", body = ErrorBody)))]
async fn named(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<ListSnapshots>,
) -> Result<Json<NamedSnapshotList>, Refusal> {
    let data = app.control.named_snapshots(&caller, &query).await?;
    let used = data.len() as u64;
    let allowance = SnapshotAllowance {
        included: NAMES,
        used,
        remaining_free: NAMES.saturating_sub(used),
        billable: 0,
        monthly_price_cents: 0,
        monthly_cost_cents: 0,
    };
    Ok(Json(NamedSnapshotList { data, allowance }))
}

/// Give a snapshot, or the newest one of a computer, a name
#[utoipa::path(post, path = "/named-snapshots", tag = "snapshots", request_body = NameSnapshot,
    responses((status = 201, body = Data<NamedSnapshot>), (status = "default", body = ErrorBody)))]
async fn give_name(
    State(app): State<App>,
    Auth(caller): Auth,
    body: RawBody,
) -> Result<(StatusCode, Json<Data<NamedSnapshot>>), Refusal> {
    let record = app.control.name_snapshot(&caller, body.parse()?).await?;
    Ok((StatusCode::CREATED, Json(Data { data: app.control.named_view(&record).await? })))
}

/// Read a named snapshot and what depends on it
#[utoipa::path(get, path = "/named-snapshots/{name}", tag = "snapshots", params(("name" = String, Path)),
    responses((status = 200, body = WithDependents<NamedSnapshot>), (status = "default", body = ErrorBody)))]
async fn get_named(
    State(app): State<App>,
    Named(record): Named,
) -> Result<Json<WithDependents<NamedSnapshot>>, Refusal> {
    let data = app.control.named_view(&record).await?;
    Ok(Json(WithDependents { data, dependents: app.control.dependents(&record).await? }))
}

/// Take the name of a snapshot away; the snapshot stays
#[utoipa::path(delete, path = "/named-snapshots/{name}", tag = "snapshots", params(("name" = String, Path)),
    responses((status = 200, body = ReleasedName), (status = "default", body = ErrorBody)))]
async fn release_name(State(app): State<App>, Named(record): Named) -> Result<Json<ReleasedName>, Refusal> {
    let data = app.control.named_view(&record).await?;
    app.control.release_name(&record).await?;
    Ok(Json(ReleasedName { data, outcome: "released".to_owned() }))
}

/// Make a new computer that continues from a named snapshot
#[utoipa::path(post, path = "/named-snapshots/{name}/deploy", tag = "snapshots", params(("name" = String, Path)),
    request_body = Option<ForkSnapshot>,
    responses((status = 201, body = ForkedSnapshot),
        (status = 503, description = "There is no room for it", body = ErrorBody),
        (status = "default", body = ErrorBody)))]
async fn deploy(
    State(app): State<App>,
    Auth(caller): Auth,
    Named(record): Named,
    body: RawBody,
) -> Result<(StatusCode, Json<ForkedSnapshot>), Refusal> {
    forked(&app, &caller, &record, &body).await
}

/// List the snapshots of all computers as their own routes show them
#[utoipa::path(get, path = "/admin/snapshots", tag = "snapshots", params(ListSnapshots),
    responses((status = 200, body = Data<Vec<Snapshot>>), (status = "default", body = ErrorBody)))]
async fn admin_list(
    State(app): State<App>,
    Auth(caller): Auth,
    Query(query): Query<ListSnapshots>,
) -> Result<Json<Data<Vec<Snapshot>>>, Refusal> {
    Ok(Json(Data { data: app.control.snapshots(&caller, &query).await? }))
}

/// Read a snapshot as its computer's route shows it
#[utoipa::path(get, path = "/admin/snapshots/{sid}", tag = "snapshots", params(("sid" = String, Path)),
    responses((status = 200, body = Data<Snapshot>), (status = "default", body = ErrorBody)))]
async fn admin_get(State(app): State<App>, Kept(snapshot): Kept) -> Json<Data<Snapshot>> {
    Json(Data { data: app.control.snapshot_view(&snapshot) })
}
