//! `roost image`: the templates of this host.

use anyhow::Context;
use camino::Utf8PathBuf;
use clap::{Args, Subcommand};

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
    let bar = output::progress("building miosa-desktop".to_owned(), json);
    let built = templates.build(&agent, &mut |progress| bar.set_message(progress.to_string()));
    bar.finish_and_clear();
    let template = built.context("failed to build the template miosa-desktop")?;
    if json {
        return print_json(&template);
    }
    print_line(&format!("{} {} in {}", template.name, template.digest, template.dir))
}

fn list(args: &ListArgs, json: bool) -> anyhow::Result<()> {
    let templates = roost_image::Templates::new(args.data.templates()?);
    let list = templates.list();
    if json {
        return print_json(&list);
    }
    if list.is_empty() {
        return print_line("no templates yet; make one with: roost image build");
    }
    let rows: Vec<Vec<String>> = list
        .iter()
        .map(|template| vec![template.name.clone(), template.digest.clone(), template.dir.to_string()])
        .collect();
    print_line(&table(&["NAME", "DIGEST", "DIRECTORY"], &rows))
}
