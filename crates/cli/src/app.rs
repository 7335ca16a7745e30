//! `roost app`: desktop programs of computers.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use reqwest::Method;
use roost_api::{AppList, Catalog, InstallationStatus, Installations, Status};
use serde_json::{Value, json};

use crate::client::Client;
use crate::output::{print_json, print_line, progress, table};
use crate::stream::Stream;

#[derive(Debug, Subcommand)]
pub(crate) enum AppCommand {
    /// List the desktop programs of a computer
    #[command(alias = "ls")]
    List {
        /// Name, slug or id
        name: String,
    },
    /// List what can be installed
    Catalog,
    /// Install apps of the catalogue and wait until they are there
    Install(InstallArgs),
    /// Start a program on a computer's desktop
    Open {
        /// Name, slug or id
        name: String,
        /// Id or name of an app, or the name of a program
        app: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InstallArgs {
    /// Name, slug or id
    name: String,
    /// Ids of the catalogue
    #[arg(required = true, value_name = "APP")]
    apps: Vec<String>,
    /// Return at once
    #[arg(long)]
    no_wait: bool,
}

pub(crate) async fn run(client: &Client, command: &AppCommand, json: bool) -> anyhow::Result<()> {
    match command {
        AppCommand::List { name } => list(client, name, json).await,
        AppCommand::Catalog => catalog(client, json).await,
        AppCommand::Install(args) => install(client, args, json).await,
        AppCommand::Open { name, app } => open(client, name, app, json).await,
    }
}

async fn list(client: &Client, name: &str, json: bool) -> anyhow::Result<()> {
    let computer = client.find(name).await?;
    let list: AppList = client.call(Method::GET, &format!("/computers/{}/apps", computer.id), None).await?;
    if json {
        return print_json(&list);
    }
    let rows: Vec<Vec<String>> = list
        .apps
        .iter()
        .map(|app| vec![app.id.clone(), app.name.clone(), app.categories.join(", ")])
        .collect();
    print_line(&table(&["ID", "NAME", "CATEGORIES"], &rows))?;
    for installation in &list.installations {
        let app = &installation.app;
        match installation.status {
            InstallationStatus::Installed => {}
            InstallationStatus::Waiting => print_line(&format!("\n{app} waits to be installed"))?,
            InstallationStatus::Installing => {
                print_line(&format!("\n{app} is being installed: {} %", installation.progress))?;
            }
            InstallationStatus::Failed => {
                let reason = installation.error.as_deref().unwrap_or("no reason was reported");
                print_line(&format!("\n{app} could not be installed: {reason}"))?;
            }
        }
    }
    Ok(())
}

async fn catalog(client: &Client, json: bool) -> anyhow::Result<()> {
    let catalog: Catalog = client.call(Method::GET, "/apps/catalog", None).await?;
    if json {
        return print_json(&catalog);
    }
    let row = |app: &roost_api::CatalogApp| {
        vec![app.id.clone(), app.name.clone(), app.category.clone(), app.description.clone()]
    };
    let rows: Vec<Vec<String>> = catalog.apps.iter().map(row).collect();
    print_line(&table(&["ID", "NAME", "CATEGORY", "DESCRIPTION"], &rows))
}

async fn install(client: &Client, args: &InstallArgs, json: bool) -> anyhow::Result<()> {
    let computer = client.find(&args.name).await?;
    let path = format!("/computers/{}", computer.id);
    // Before anything is selected: nothing that happens is missed.
    let mut events = Stream::open(client, &format!("{path}/events?types=app.*")).await?;
    let body = json!({ "apps": args.apps });
    let selected: Installations = client.call(Method::POST, &format!("{path}/apps"), Some(&body)).await?;
    if args.no_wait || computer.status != Status::Running {
        if json {
            return print_json(&selected);
        }
        let when = if computer.status == Status::Running { "now" } else { "when the computer runs" };
        return print_line(&format!("{} is installed {when}", args.apps.join(", ")));
    }
    let mut left: BTreeSet<&str> = args.apps.iter().map(String::as_str).collect();
    let mut failed = Vec::new();
    let bar = progress(format!("installing {}", args.apps.join(", ")), json);
    while !left.is_empty() {
        let Some(event) = events.next().await? else { anyhow::bail!("the computer was deleted") };
        let Some(app) = event["app"].as_str().filter(|app| left.contains(app)) else { continue };
        match event["type"].as_str() {
            Some("app.installing") => {
                bar.set_message(format!("installing {app}: {} %", event["progress"].as_u64().unwrap_or(0)));
            }
            Some("app.installed") => drop(left.remove(app)),
            Some("app.failed") => {
                failed.push(format!("{app}: {}", event["message"].as_str().unwrap_or_default()));
                left.remove(app);
            }
            _ => {}
        }
    }
    bar.finish_and_clear();
    anyhow::ensure!(failed.is_empty(), "not everything could be installed: {}", failed.join("; "));
    if json {
        return print_json(&json!({ "installed": args.apps }));
    }
    print_line(&format!("{} is installed on {}", args.apps.join(", "), computer.slug))
}

async fn open(client: &Client, name: &str, app: &str, json: bool) -> anyhow::Result<()> {
    let computer = client.find(name).await?;
    let path = format!("/computers/{}/desktop/launch", computer.id);
    let started: Value = client.call(Method::POST, &path, Some(&json!({ "app_name": app }))).await?;
    if json { print_json(&started) } else { print_line(&format!("{app} was started on {}", computer.slug)) }
}
