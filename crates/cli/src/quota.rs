//! `roost quota`: what the end users of a tenant may have at most.

use clap::{Args, Subcommand};
use reqwest::Method;
use roost_api::{Quota, QuotaRemoved};
use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::output::{print_json, print_line, table};

#[derive(Debug, Subcommand)]
pub(crate) enum QuotaCommand {
    /// Show what an end user may have, and has
    Show {
        /// Your own id of the end user
        user: String,
    },
    /// Limit what an end user may have; limits that are not named stay as they are
    Set(SetArgs),
    /// Take all limits of an end user away
    #[command(alias = "rm")]
    Delete {
        /// Your own id of the end user
        user: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// Your own id of the end user
    user: String,
    /// How many computers, or `none`
    #[arg(long, value_name = "N", value_parser = limit)]
    computers: Option<Limit>,
    /// How many of them at a time, or `none`
    #[arg(long, value_name = "N", value_parser = limit)]
    running: Option<Limit>,
    /// How many GiB their disks may grow to together, or `none`
    #[arg(long, value_name = "GIB", value_parser = limit)]
    storage: Option<Limit>,
    /// How many credits in a month, or `none`
    #[arg(long, value_name = "CREDITS", value_parser = limit)]
    credits: Option<Limit>,
}

#[derive(Debug, Clone, Copy)]
enum Limit {
    None,
    Most(u32),
}

fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit::None),
        number => {
            let most = number.parse().map_err(|_| "neither a whole number nor `none`".to_owned())?;
            Ok(Limit::Most(most))
        }
    }
}

pub(crate) async fn run(client: &Client, command: &QuotaCommand, json: bool) -> anyhow::Result<()> {
    match command {
        QuotaCommand::Show { user } => {
            let quota: Quota = client.call(Method::GET, &path(user)?, None).await?;
            print(&quota, json)
        }
        QuotaCommand::Set(args) => {
            let mut body = Map::new();
            for (name, limit) in [
                ("max_sandboxes", args.computers),
                ("max_concurrent", args.running),
                ("max_storage_gb", args.storage),
                ("max_credit_cents", args.credits),
            ] {
                match limit {
                    None => {}
                    Some(Limit::None) => drop(body.insert(name.to_owned(), Value::Null)),
                    Some(Limit::Most(most)) => drop(body.insert(name.to_owned(), json!(most))),
                }
            }
            let body = Value::Object(body);
            let quota: Quota = client.call(Method::PUT, &path(&args.user)?, Some(&body)).await?;
            print(&quota, json)
        }
        QuotaCommand::Delete { user } => {
            let removed: QuotaRemoved = client.call(Method::DELETE, &path(user)?, None).await?;
            if json {
                return print_json(&removed);
            }
            print_line(&format!("{user}: no limits"))
        }
    }
}

/// Whatever the id holds, it is one part of the path.
fn path(user: &str) -> anyhow::Result<String> {
    let mut url = reqwest::Url::parse("http://localhost/quotas/external")?;
    match url.path_segments_mut() {
        Ok(mut parts) => drop(parts.push(user)),
        Err(()) => anyhow::bail!("an address without a path"),
    }
    Ok(url.path().to_owned())
}

fn print(quota: &Quota, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(quota);
    }
    let row = |what: &str, has: String, most: Option<u32>| {
        vec![what.to_owned(), has, most.map_or_else(|| "no limit".to_owned(), |most| most.to_string())]
    };
    let used = &quota.usage;
    let rows = [
        row("computers", used.sandboxes.to_string(), quota.max_sandboxes),
        row("running", used.concurrent.to_string(), quota.max_concurrent),
        row("storage (GiB)", used.storage_gb.to_string(), quota.max_storage_gb),
        row("credits this month", used.credit_cents.to_string(), quota.max_credit_cents),
    ];
    print_line(&table(&["OF", "HAS", "MOST"], &rows))
}
