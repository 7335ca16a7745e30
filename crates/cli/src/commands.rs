//! The commands that call one route and print its answer.

use std::io::IsTerminal;

use anyhow::Context;
use camino::Utf8PathBuf;
use clap::Args;
use reqwest::Method;
use roost_api::{Computer, ComputerUrls, Deleted, LogEntry, Logs, Setup, SetupStatus, Status, StreamToken};
use serde_json::json;

use crate::client::Client;
use crate::output::{print_json, print_line, print_raw, progress, table};
use crate::stream::Stream;

#[derive(Debug, Args)]
pub(crate) struct NameArg {
    /// Name, slug or id
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Display name
    name: String,
    /// xs, small, medium, large or xl
    #[arg(long, default_value = "small")]
    size: String,
    /// The template to start from
    #[arg(long, default_value = "miosa-desktop")]
    template: String,
    /// An app to install once it runs, from `roost app catalog`; may be given several times
    #[arg(long = "app", value_name = "APP")]
    apps: Vec<String>,
    /// A script to run in it once; `roost setup` shows how it went
    #[arg(long, value_name = "FILE")]
    setup: Option<Utf8PathBuf>,
    /// Stop it so many seconds after each start, used or not
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// Return at once instead of waiting until it runs
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Name, slug or id
    #[arg(required_unless_present = "all")]
    name: Option<String>,
    /// Stop every computer that runs
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Names, slugs or ids
    #[arg(required = true)]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ScreenshotArgs {
    /// Name, slug or id
    name: String,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: Utf8PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    /// Name, slug or id
    name: String,
    /// Only print the link
    #[arg(long)]
    print: bool,
    /// A link without the computer's own host name, for browsers that do not resolve `*.localhost`
    #[arg(long)]
    path: bool,
    /// A terminal instead of the desktop
    #[arg(long)]
    terminal: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Name, slug or id
    name: String,
    /// How many lines
    #[arg(short = 'n', long, default_value_t = 100)]
    lines: u32,
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// Nothing from before: a time such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// console, services or all
    #[arg(long, default_value = "all")]
    source: String,
    /// Only what this service has logged
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
}

pub(crate) async fn create(client: &Client, args: CreateArgs, json: bool) -> anyhow::Result<()> {
    let setup = match &args.setup {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path);
            Some(text.with_context(|| format!("failed to read the script {path}"))?)
        }
    };
    let body = json!({
        "name": args.name, "template_type": args.template, "size": args.size, "selected_apps": args.apps,
        "setup_file": setup, "timeout_sec": args.timeout,
    });
    if args.no_wait {
        let computer: Computer = client.call(Method::POST, "/computers", Some(&body)).await?;
        return print_computer(&computer, json);
    }
    let bar = progress(format!("creating {}", args.name), json);
    let mut computer: Computer = client.call(Method::POST, "/computers?wait=120", Some(&body)).await?;
    if matches!(computer.status, Status::Provisioning | Status::Starting) {
        // Starting a computer that is on its way joins its boot.
        computer = client.call(Method::POST, &format!("/computers/{}/start", computer.id), None).await?;
    }
    bar.finish_and_clear();
    if computer.status == Status::Error {
        let reason = computer.error.as_deref().unwrap_or("no reason was reported");
        anyhow::bail!(
            "{} could not be started: {reason} (`roost logs {}` shows its console)",
            computer.name,
            computer.slug
        );
    }
    print_computer(&computer, json)
}

/// How the script of a computer went.
pub(crate) async fn setup(client: &Client, args: &NameArg, json: bool) -> anyhow::Result<()> {
    let computer = client.find(&args.name).await?;
    let setup: Setup = client.call(Method::GET, &format!("/computers/{}/setup", computer.id), None).await?;
    if json {
        return print_json(&setup);
    }
    if let Some(output) = &setup.output {
        print_raw(output)?;
    }
    let slug = &computer.slug;
    match (setup.status, setup.exit_code, &setup.error) {
        (None, _, _) => print_line(&format!("{slug} was made without a script")),
        (Some(SetupStatus::Waiting), _, _) => print_line(&format!("{slug}: the script waits")),
        (Some(SetupStatus::Running), _, _) => print_line(&format!("{slug}: the script runs")),
        (Some(_), Some(code), _) => print_line(&format!("{slug}: the script ended with exit code {code}")),
        (Some(_), None, why) => {
            let why = why.as_deref().unwrap_or("no reason was reported");
            print_line(&format!("{slug}: the script did not come to its end: {why}"))
        }
    }
}

pub(crate) async fn list(client: &Client, json: bool) -> anyhow::Result<()> {
    let computers = client.computers().await?;
    if json {
        return print_json(&computers);
    }
    if computers.is_empty() {
        return print_line("no computers yet; make one with: roost create NAME");
    }
    let rows: Vec<Vec<String>> = computers
        .iter()
        .map(|computer| {
            vec![
                computer.slug.clone(),
                computer.status.to_string(),
                computer.size.as_str().to_owned(),
                computer.created_at.to_string().get(..16).unwrap_or_default().replace('T', " "),
                computer.id.to_string(),
            ]
        })
        .collect();
    print_line(&table(&["NAME", "STATUS", "SIZE", "CREATED (UTC)", "ID"], &rows))
}

pub(crate) async fn show(client: &Client, args: &NameArg, json: bool) -> anyhow::Result<()> {
    print_computer(&client.find(&args.name).await?, json)
}

pub(crate) async fn start(client: &Client, args: &NameArg, json: bool) -> anyhow::Result<()> {
    verb(client, &args.name, "start", "starting", json).await
}

pub(crate) async fn restart(client: &Client, args: &NameArg, json: bool) -> anyhow::Result<()> {
    verb(client, &args.name, "restart", "restarting", json).await
}

pub(crate) async fn stop(client: &Client, args: &StopArgs, json: bool) -> anyhow::Result<()> {
    let Some(name) = &args.name else {
        for computer in client.computers().await?.iter().filter(|computer| computer.status == Status::Running)
        {
            verb(client, &computer.id.to_string(), "stop", "stopping", json).await?;
        }
        return Ok(());
    };
    verb(client, name, "stop", "stopping", json).await
}

async fn verb(client: &Client, name: &str, verb: &str, doing: &str, json: bool) -> anyhow::Result<()> {
    let computer = client.find(name).await?;
    let bar = progress(format!("{doing} {}", computer.name), json);
    let computer: Computer =
        client.call(Method::POST, &format!("/computers/{}/{verb}", computer.id), None).await?;
    bar.finish_and_clear();
    if json {
        return print_json(&computer);
    }
    print_line(&format!("{} is {}", computer.slug, computer.status))
}

pub(crate) async fn delete(client: &Client, args: &DeleteArgs, json: bool) -> anyhow::Result<()> {
    for name in &args.names {
        let computer = client.find(name).await?;
        let bar = progress(format!("deleting {}", computer.name), json);
        let deleted: Deleted =
            client.call(Method::DELETE, &format!("/computers/{}", computer.id), None).await?;
        bar.finish_and_clear();
        if json {
            print_json(&deleted)?;
        } else {
            print_line(&format!("{} is deleted", computer.slug))?;
        }
    }
    Ok(())
}

pub(crate) async fn screenshot(client: &Client, args: &ScreenshotArgs, json: bool) -> anyhow::Result<()> {
    let computer = client.find(&args.name).await?;
    let path = format!("/computers/{}/desktop/screenshot", computer.id);
    let png =
        client.send(Method::GET, &path, None).await?.bytes().await.context("the picture was cut short")?;
    std::fs::write(&args.output, &png).with_context(|| format!("failed to write {}", args.output))?;
    if json {
        return print_json(&json!({ "file": args.output, "bytes": png.len() }));
    }
    print_line(&format!("{} ({} bytes)", args.output, png.len()))
}

pub(crate) async fn open(client: &Client, args: &OpenArgs, json: bool) -> anyhow::Result<()> {
    let computer = client.find(&args.name).await?;
    let token: StreamToken =
        client.call(Method::POST, &format!("/computers/{}/stream-token", computer.id), None).await?;
    let urls: ComputerUrls =
        client.call(Method::GET, &format!("/computers/{}/urls", computer.id), None).await?;
    let page = match (args.terminal, args.path) {
        (false, false) => urls.desktop_url,
        (false, true) => urls.desktop_path_url,
        (true, false) => urls.terminal_page_url,
        (true, true) => urls.terminal_path_url,
    };
    // Behind `#` the token stays in the browser: it is in no request and no log.
    let link = format!("{page}#auth={}", token.token);
    if json {
        return print_json(&json!({ "url": link, "expires_at": token.expires_at }));
    }
    print_line(&link)?;
    let has_screen = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
    if !args.print && has_screen && std::io::stdout().is_terminal() {
        // The link is printed; a host without a browser loses nothing.
        drop(std::process::Command::new("xdg-open").arg(&link).spawn());
    }
    Ok(())
}

pub(crate) async fn logs(client: &Client, args: &LogsArgs, json: bool) -> anyhow::Result<()> {
    let computer = client.find(&args.name).await?;
    let mut query = reqwest::Url::parse("http://localhost/")?;
    query.query_pairs_mut().append_pair("lines", &args.lines.to_string()).append_pair("source", &args.source);
    for (name, value) in [("since", &args.since), ("service", &args.service)] {
        if let Some(value) = value {
            query.query_pairs_mut().append_pair(name, value);
        }
    }
    let query = query.query().unwrap_or_default();
    let path = format!("/computers/{}/logs", computer.id);
    if !args.follow {
        let logs: Logs = client.call(Method::GET, &format!("{path}?{query}"), None).await?;
        if json {
            return print_json(&logs);
        }
        return logs.entries.iter().try_for_each(|entry| print_line(&log_line(entry)));
    }
    let mut entries = Stream::open(client, &format!("{path}/stream?{query}")).await?;
    while let Some(entry) = entries.next().await? {
        // One a line, also as JSON: whoever reads it does not wait for an end.
        if json {
            print_line(&entry.to_string())?;
        } else {
            print_line(&log_line(&serde_json::from_value(entry)?))?;
        }
    }
    Ok(())
}

fn log_line(entry: &LogEntry) -> String {
    let time = entry.timestamp.map(|at| format!("{at} ")).unwrap_or_default();
    match &entry.service {
        Some(service) => format!("{time}{service}: {}", entry.line),
        None => format!("{time}{}", entry.line),
    }
}

pub(crate) fn print_computer(computer: &Computer, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(computer);
    }
    let mut lines = vec![
        ("name", computer.name.clone()),
        ("id", computer.id.to_string()),
        ("status", computer.status.to_string()),
        ("size", format!("{}: {} vCPU, {} MiB", computer.size.as_str(), computer.vcpus, computer.memory_mb)),
        ("created", computer.created_at.to_string()),
        ("desktop", computer.desktop_url.clone()),
    ];
    if let Some(error) = &computer.error {
        lines.insert(3, ("error", error.clone()));
    }
    if let Some(reason) = &computer.memory_lost {
        lines.insert(3, ("memory", format!("was lost at the last start: {reason}")));
    }
    for (label, value) in lines {
        print_line(&format!("{label:8} {value}"))?;
    }
    if computer.status == Status::Running {
        print_line(&format!("\nopen the desktop with: roost open {}", computer.slug))?;
    }
    Ok(())
}
