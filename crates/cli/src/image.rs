//! `roost image`: the templates of this host.

use anyhow::Context;
use camino::Utf8PathBuf;
use clap::{Args, Subcommand};
use roost_image::{DESKTOP, Packages, Template};
use serde_json::json;

use crate::output::{print_json, print_line, table};
use crate::{DataArgs, output};

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build the template miosa-desktop, unless this very build is there already
    Build(BuildArgs),
    /// List the templates that are built
    List(ListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    #[command(flatten)]
    data: DataArgs,
    /// The guest agent to put in [default: roost-guest beside this program]
    #[arg(long, value_name = "FILE", env = "ROOST_GUEST")]
    agent: Option<Utf8PathBuf>,
    /// Take the newest packages of the mirror instead of those of the last build
    #[arg(long)]
    fresh: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    data: DataArgs,
}

pub(crate) fn run(command: ImageCommand, json: bool) -> anyhow::Result<()> {
    match command {
        ImageCommand::Build(args) => build(&args, json),
        ImageCommand::List(args) => list(&args, json),
    }
}

fn build(args: &BuildArgs, json: bool) -> anyhow::Result<()> {
    let agent = match &args.agent {
        Some(agent) => agent.clone(),
        None => Utf8PathBuf::try_from(std::env::current_exe()?)?.with_file_name("roost-guest"),
    };
    if !agent.is_file() {
        anyhow::bail!("there is no guest agent at {agent}: build it, or say where it is with --agent");
    }
    let templates = roost_image::Templates::new(args.data.templates()?);
    let packages = if args.fresh { Packages::Fresh } else { Packages::Cached };
    let bar = output::progress(format!("building {DESKTOP}"), json);
    let built = templates.build(&agent, packages, &mut |progress| {
        let percent = progress.percent.map(|percent| format!(" {percent} %")).unwrap_or_default();
        let detail: String = progress.detail.chars().take(60).collect();
        bar.set_message(format!("{}{percent} {detail}", progress.phase.title()));
    });
    bar.finish_and_clear();
    let template = built.with_context(|| format!("failed to build the template {DESKTOP}"))?;
    if json {
        return print_json(&view(&template));
    }
    print_line(&format!("{} {} in {}", template.name, template.digest, template.directory))
}

fn view(template: &Template) -> serde_json::Value {
    json!({
        "name": template.name,
        "digest": template.digest,
        "directory": template.directory,
        "manifest": template.manifest,
    })
}

fn list(args: &ListArgs, json: bool) -> anyhow::Result<()> {
    let templates = roost_image::Templates::new(args.data.templates()?);
    let list = templates.list()?;
    if json {
        return print_json(&list.iter().map(view).collect::<Vec<_>>());
    }
    if list.is_empty() {
        return print_line("no templates yet; make one with: roost image build");
    }
    let current = templates.current(DESKTOP)?.map(|template| template.digest);
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|template| {
            let manifest = &template.manifest;
            vec![
                template.name.clone(),
                template.digest.to_string(),
                if current.as_ref() == Some(&template.digest) { "yes" } else { "" }.to_owned(),
                format!("Debian {}, {} packages", manifest.debian, manifest.packages),
                format!("{} MiB", manifest.disk_bytes / (1024 * 1024)),
                manifest.created.to_string().get(..16).unwrap_or_default().replace('T', " "),
            ]
        })
        .collect();
    print_line(&table(&["NAME", "DIGEST", "CURRENT", "CONTENT", "SIZE", "CREATED (UTC)"], &rows))
}
