//! `roost machine`: the process of one computer.

use anyhow::Context;
use camino::Utf8PathBuf;
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct MachineArgs {
    /// Directory of the machine, with its spec.json
    #[arg(long, value_name = "DIR")]
    dir: Utf8PathBuf,
    /// Directory of the templates
    #[arg(long, value_name = "DIR")]
    templates: Utf8PathBuf,
    /// Give up root and become this user
    #[arg(long, value_name = "UID")]
    as_user: Option<u32>,
}

/// Runs on the main thread, which is the only one while root is given up, and which QEMU is bound to.
pub(crate) fn run(args: &MachineArgs) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("ROOST_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    if let Some(user) = args.as_user {
        roost_launch::confine(user, &[&args.dir, &args.templates]).context("failed to give up root")?;
    }
    Ok(roost_machine::run(&args.dir)?)
}
