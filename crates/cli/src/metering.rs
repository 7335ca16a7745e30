//! Commands about what computers use, cost, and when they stop by themselves.

use clap::{Args, Subcommand};
use reqwest::Method;
use roost_api::{AutoStop, CreditBalance, Metrics};
use serde_json::json;

use crate::client::Client;
use crate::output::{print_json, print_line, table};

#[derive(Debug, Args)]
pub(crate) struct MetricsArgs {
    /// Name, slug or id
    name: String,
    /// 1h, 24h or 7d
    #[arg(long, default_value = "1h")]
    window: String,
}

#[derive(Debug, Args)]
pub(crate) struct AutoStopArgs {
    /// Name, slug or id
    name: String,
    /// Idle seconds before it stops, or `off`; without it the limit is shown
    #[arg(value_name = "SECONDS", value_parser = seconds)]
    limit: Option<u32>,
}

fn seconds(text: &str) -> Result<u32, String> {
    match text {
        "off" => Ok(0),
        seconds => seconds.parse().map_err(|_| "neither a number of seconds nor `off`".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum CreditsCommand {
    /// Show what is left
    Balance,
    /// Give a tenant credits (operators only); its first ones begin the counting
    Grant {
        /// Id of the tenant
        tenant: String,
        credits: u32,
    },
}

pub(crate) async fn metrics(client: &Client, args: &MetricsArgs, json: bool) -> anyhow::Result<()> {
    let computer = client.find(&args.name).await?;
    let path = format!("/computers/{}/metrics?window={}", computer.id, args.window);
    let metrics: Metrics = client.call(Method::GET, &path, None).await?;
    if json {
        return print_json(&metrics);
    }
    let points = metrics.cpu_percent.iter().zip(&metrics.memory_percent);
    let rows: Vec<Vec<String>> = points
        .map(|(cpu, memory)| {
            vec![cpu.ts.to_string(), format!("{:.1} %", cpu.value), format!("{:.1} %", memory.value)]
        })
        .collect();
    if rows.is_empty() {
        print_line("nothing was measured yet; the first values come a minute or two after a start")?;
    } else {
        print_line(&table(&["TIME (UTC)", "CPU", "MEMORY"], &rows))?;
    }
    print_line(&format!("\n{} credits an hour", metrics.credits_per_hour))
}

pub(crate) async fn auto_stop(client: &Client, args: &AutoStopArgs, json: bool) -> anyhow::Result<()> {
    let computer = client.find(&args.name).await?;
    let path = format!("/computers/{}/auto-stop", computer.id);
    let now: AutoStop = match args.limit {
        None => client.call(Method::GET, &path, None).await?,
        Some(limit) => {
            client.call(Method::PATCH, &path, Some(&json!({ "auto_stop_seconds": limit }))).await?
        }
    };
    if json {
        return print_json(&now);
    }
    if !now.enabled {
        return print_line(&format!("{} does not stop by itself", computer.slug));
    }
    print_line(&format!("{} stops after {} idle seconds", computer.slug, now.auto_stop_seconds))
}

pub(crate) async fn credits(client: &Client, command: &CreditsCommand, json: bool) -> anyhow::Result<()> {
    let balance: CreditBalance = match command {
        CreditsCommand::Balance => client.call(Method::GET, "/credits/balance", None).await?,
        CreditsCommand::Grant { tenant, credits } => {
            let body = json!({ "tenant_id": tenant, "credits": credits });
            client.call(Method::POST, "/credits/grants", Some(&body)).await?
        }
    };
    if json {
        return print_json(&balance);
    }
    if balance.unlimited {
        return print_line(&format!("{}: credits are not counted", balance.tenant_id));
    }
    let CreditBalance { tenant_id, balance_credits, lifetime_spent, .. } = balance;
    print_line(&format!("{tenant_id}: {balance_credits} credits left, {lifetime_spent} spent"))
}
