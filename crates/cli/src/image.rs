//! `roost image`: the templates of this host.

use anyhow::Context;
use camino::Utf8PathBuf;
use clap::{Args, Subcommand};
use roost_api::Size;
use roost_control::Templates;
use roost_control::warm::{self, WarmParts};
use roost_image::{DESKTOP, Packages, Template};
use roost_launch::{Launcher, Local, LocalConfig};
use roost_machine_proto::NetworkSpec;
use serde_json::json;

use crate::output::{print_json, print_line, table};
use crate::templates::HostTemplates;
use crate::{DataArgs, output};

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build the template miosa-desktop, unless this very build is there already
    Build(BuildArgs),
    /// Boot a template once and keep its memory, from which computers of that size continue at once
    Warm(WarmArgs),
    /// List the templates that are built
    List(ListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct WarmArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Size of the computers to come
    #[arg(long, value_name = "SIZE", default_value = "small")]
    size: Size,
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
        ImageCommand::Warm(args) => warm(&args, json),
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

/// Works beside a running server: in a data directory of its own, under a lock, so that two do not boot the same
/// template at once.
#[tokio::main]
async fn warm(args: &WarmArgs, json: bool) -> anyhow::Result<()> {
    let built = roost_image::Templates::new(args.data.templates()?);
    let template = built.current(DESKTOP)?;
    let template = template.with_context(|| format!("{DESKTOP} is not built: run `roost image build`"))?;
    let data = args.data.data()?;
    let work = data.join("warming");
    std::fs::create_dir_all(&work).with_context(|| format!("failed to make {work}"))?;
    let lock = std::fs::File::open(&work)?;
    let bar = output::progress("waiting for another one to be made".to_owned(), json);
    lock.lock().with_context(|| format!("failed to lock {work}"))?;
    bar.set_message("asking the host what it can do");
    let verdict =
        roost_machine::accel::probe(&template.kernel, &template.initrd, &data.join("accelerator.json"))?;
    let templates = HostTemplates::new(built, verdict.accelerator, verdict.qemu.full.clone());
    let (digest, size) = (template.digest.to_string(), args.size);
    if templates.warm(DESKTOP, &digest, size)?.is_none() {
        bar.set_message(format!("booting {DESKTOP} as {}", size.as_str()));
        let launcher = Local::new(LocalConfig {
            data: work.clone(),
            templates: args.data.templates()?,
            program: Utf8PathBuf::from("/proc/self/exe"),
        })?;
        // What a killed one has left.
        for left in launcher.present().await? {
            launcher.end(left).await?;
            launcher.remove(left).await?;
        }
        let parts = WarmParts {
            template: templates.build(DESKTOP, &digest)?.context("the template has gone")?,
            size,
            accelerator: verdict.accelerator,
            network: NetworkSpec::default(),
        };
        let target = templates.warm_target(DESKTOP, &digest, size)?;
        warm::build(&launcher, &parts, &target).await.context("failed to boot the template")?;
    }
    bar.finish_and_clear();
    let memory =
        templates.warm(DESKTOP, &digest, size)?.context("the memory that was just made is not whole")?;
    if json {
        return print_json(&json!({ "size": size.as_str(), "disk": memory.disk, "memory": memory.memory }));
    }
    print_line(&format!("{DESKTOP} {} in {}", size.as_str(), memory.memory))
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
                crate::templates::memories(template).join(" "),
                manifest.created.to_string().get(..16).unwrap_or_default().replace('T', " "),
            ]
        })
        .collect();
    print_line(&table(&["NAME", "DIGEST", "CURRENT", "CONTENT", "SIZE", "MEMORY", "CREATED (UTC)"], &rows))
}
