//! `roost snapshot`, `roost clone`, `roost resize` and `roost move`: kept states of computers, and what is made from them.

use anyhow::Context;
use clap::{Args, Subcommand};
use reqwest::Method;
use roost_api::{AccountSnapshot, Computer, Data, Snapshot, SnapshotId, SnapshotState, Status};
use serde_json::{Value, json};

use crate::client::Client;
use crate::commands::print_computer;
use crate::output::{print_json, print_line, progress, table};

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Keep the state of a computer, running or stopped; it goes on at once
    Create(SnapshotCreateArgs),
    /// List snapshots
    #[command(alias = "ls")]
    List(SnapshotListArgs),
    /// Make a new computer that continues from a snapshot
    Restore(RestoreArgs),
    /// Delete snapshots
    #[command(alias = "rm")]
    Delete(SnapshotDeleteArgs),
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotCreateArgs {
    /// Name, slug or id of the computer
    name: String,
    /// What it is for
    #[arg(long)]
    comment: Option<String>,
    /// Delete it by itself after so many seconds
    #[arg(long, value_name = "SECONDS", conflicts_with = "keep")]
    retention: Option<u64>,
    /// Never let it expire
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotListArgs {
    /// Name, slug or id of a computer; all snapshots without it, also those of deleted computers
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// Id or name of the snapshot
    snapshot: String,
    /// Display name of the new computer
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotDeleteArgs {
    /// Ids or names of snapshots
    #[arg(required = true)]
    snapshots: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CloneArgs {
    /// Name, slug or id of a running computer
    name: String,
    /// Display name of the clone
    new_name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ResizeArgs {
    /// Name, slug or id of a stopped computer
    name: String,
    /// xs, small, medium, large or xl
    size: String,
}

#[derive(Debug, Args)]
pub(crate) struct MoveArgs {
    /// Name, slug or id of a stopped computer
    name: String,
    /// The region to move to
    region: String,
}

pub(crate) async fn run(client: &Client, command: &SnapshotCommand, json: bool) -> anyhow::Result<()> {
    match command {
        SnapshotCommand::Create(args) => create(client, args, json).await,
        SnapshotCommand::List(args) => list(client, args, json).await,
        SnapshotCommand::Restore(args) => restore(client, args, json).await,
        SnapshotCommand::Delete(args) => delete(client, args, json).await,
    }
}

async fn create(client: &Client, args: &SnapshotCreateArgs, json: bool) -> anyhow::Result<()> {
    let computer = client.find(&args.name).await?;
    let bar = progress(format!("keeping the state of {}", computer.name), json);
    let body = json!({ "comment": args.comment, "keep": args.keep, "retention_seconds": args.retention });
    let path = format!("/computers/{}/snapshots", computer.id);
    let begun: Data<Snapshot> = client.call(Method::POST, &path, Some(&body)).await?;
    let path = format!("{path}/{}", begun.data.id);
    // The events end when the snapshot is ready or has failed.
    let events = client.send(Method::GET, &format!("{path}/events"), None).await?;
    events.bytes().await.context("the events of the snapshot were cut short")?;
    let snapshot: Data<Snapshot> = client.call(Method::GET, &path, None).await?;
    bar.finish_and_clear();
    let snapshot = snapshot.data;
    if snapshot.status == SnapshotState::Failed {
        let reason = snapshot.error.as_deref().unwrap_or("no reason was reported");
        anyhow::bail!("the snapshot of {} could not be taken: {reason}", computer.name);
    }
    if json {
        return print_json(&snapshot);
    }
    let pause =
        snapshot.pause_ms.map_or_else(String::new, |pause| format!(", it stood still for {pause:.0} ms"));
    print_line(&format!(
        "snapshot {} of {} ({}{pause})",
        snapshot.id,
        computer.slug,
        size(snapshot.state_size_bytes.unwrap_or(0))
    ))
}

async fn list(client: &Client, args: &SnapshotListArgs, json: bool) -> anyhow::Result<()> {
    let path = match &args.name {
        Some(name) => format!("/snapshots?limit=200&resource_id={}", client.find(name).await?.id),
        None => "/snapshots?limit=200".to_owned(),
    };
    let found: Data<Vec<AccountSnapshot>> = client.call(Method::GET, &path, None).await?;
    if json {
        return print_json(&found.data);
    }
    if found.data.is_empty() {
        return print_line("no snapshots yet; take one with: roost snapshot create NAME");
    }
    let rows: Vec<Vec<String>> = found
        .data
        .iter()
        .map(|snapshot| {
            vec![
                snapshot.id.to_string(),
                snapshot.resource.name.clone(),
                word(snapshot.status).to_owned(),
                size(snapshot.size_bytes),
                snapshot.created_at.to_string().get(..16).unwrap_or_default().replace('T', " "),
                snapshot.named_snapshot.clone().or_else(|| snapshot.comment.clone()).unwrap_or_default(),
            ]
        })
        .collect();
    print_line(&table(&["ID", "COMPUTER", "STATUS", "SIZE", "CREATED (UTC)", "NAME OR COMMENT"], &rows))
}

async fn restore(client: &Client, args: &RestoreArgs, json: bool) -> anyhow::Result<()> {
    let id = find(client, &args.snapshot).await?;
    let bar = progress("restoring".to_owned(), json);
    let body = json!({ "name": args.name });
    let computer = client.call(Method::POST, &format!("/snapshots/{id}/restore"), Some(&body)).await?;
    let computer = running(client, computer).await;
    bar.finish_and_clear();
    print_computer(&computer?, json)
}

async fn delete(client: &Client, args: &SnapshotDeleteArgs, json: bool) -> anyhow::Result<()> {
    for name in &args.snapshots {
        let id = find(client, name).await?;
        let deleted: Value = client.call(Method::DELETE, &format!("/snapshots/{id}"), None).await?;
        if json {
            print_json(&deleted)?;
        } else {
            print_line(&format!("snapshot {id} is deleted"))?;
        }
    }
    Ok(())
}

pub(crate) async fn clone(client: &Client, args: &CloneArgs, json: bool) -> anyhow::Result<()> {
    let source = client.find(&args.name).await?;
    let bar = progress(format!("cloning {}", source.name), json);
    let body = json!({ "name": args.new_name });
    let clone = client.call(Method::POST, &format!("/computers/{}/clone", source.id), Some(&body)).await?;
    let clone = running(client, clone).await;
    bar.finish_and_clear();
    print_computer(&clone?, json)
}

pub(crate) async fn resize(client: &Client, args: &ResizeArgs, json: bool) -> anyhow::Result<()> {
    let computer = client.find(&args.name).await?;
    let body = json!({ "size": args.size });
    let path = format!("/computers/{}/resize", computer.id);
    let computer: Computer = client.call(Method::POST, &path, Some(&body)).await?;
    print_computer(&computer, json)
}

pub(crate) async fn relocate(client: &Client, args: &MoveArgs, json: bool) -> anyhow::Result<()> {
    let computer = client.find(&args.name).await?;
    let body = json!({ "region": args.region });
    let path = format!("/computers/{}/move", computer.id);
    let computer: Computer = client.call(Method::POST, &path, Some(&body)).await?;
    print_computer(&computer, json)
}

/// The computer when it runs; why it does not otherwise.
async fn running(client: &Client, computer: Computer) -> anyhow::Result<Computer> {
    let path = format!("/computers/{}", computer.id);
    // Starting a computer that is on its way joins its start. It may have ended meanwhile, either way.
    let joined: anyhow::Result<Computer> = client.call(Method::POST, &format!("{path}/start"), None).await;
    let computer = match joined {
        Ok(computer) => computer,
        Err(_) => client.call(Method::GET, &path, None).await?,
    };
    if computer.status == Status::Error {
        let reason = computer.error.as_deref().unwrap_or("no reason was reported");
        anyhow::bail!("{} could not be started: {reason}", computer.name);
    }
    Ok(computer)
}

/// The snapshot a person means: by id or name.
async fn find(client: &Client, name: &str) -> anyhow::Result<SnapshotId> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let named: Value = client.call(Method::GET, &format!("/named-snapshots/{name}"), None).await?;
    let id = named.pointer("/data/snapshot_id").and_then(Value::as_str).unwrap_or_default();
    id.parse().context("the answer about the snapshot is not what this version expects")
}

fn word(status: SnapshotState) -> &'static str {
    match status {
        SnapshotState::Creating => "creating",
        SnapshotState::Uploading => "uploading",
        SnapshotState::Ready => "ready",
        SnapshotState::Restoring => "restoring",
        SnapshotState::Failed => "failed",
        SnapshotState::Deleted => "deleted",
    }
}

fn size(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1024 * 1024))
}
