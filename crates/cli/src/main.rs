//! The `roost` binary: the server, the machine process it spawns, and the command line for people.

mod app;
mod client;
mod commands;
mod config;
mod copy;
mod doctor;
mod exec;
mod forward;
mod image;
mod machine;
mod metering;
mod output;
mod quota;
mod seal;
mod serve;
mod shell;
mod snapshot;
mod socket;
mod ssh;
mod stream;
mod templates;
mod tenancy;
mod terminal;

use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::{Parser, Subcommand};

/// Computers for people and AI agents, on your own host.
#[derive(Debug, Parser)]
#[command(name = "roost", version, max_term_width = 100)]
struct Cli {
    /// Print JSON instead of text for people.
    #[arg(long, global = true)]
    json: bool,

    #[command(flatten)]
    server: client::ServerArgs,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a computer and wait until it runs
    Create(commands::CreateArgs),
    /// List computers
    #[command(alias = "ls")]
    List,
    /// Show a computer
    Show(commands::NameArg),
    /// Start a stopped computer and wait until it runs
    Start(commands::NameArg),
    /// Stop a computer; its disk and memory are kept, and a start continues there
    Stop(commands::StopArgs),
    /// Reboot a computer
    Restart(commands::NameArg),
    /// Clone a running computer with its memory
    Clone(snapshot::CloneArgs),
    /// Give a stopped computer another size
    Resize(snapshot::ResizeArgs),
    /// Bring a stopped computer to another region
    Move(snapshot::MoveArgs),
    /// Keep states of computers, and make computers from them
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Delete a computer with everything on it
    #[command(alias = "rm")]
    Delete(commands::DeleteArgs),
    /// Run a command in a computer; ends with the command's exit code
    Exec(exec::ExecArgs),
    /// Open a terminal session in a computer; it stays when the connection is lost
    Shell(shell::ShellArgs),
    /// Copy files to a computer and back
    Cp(copy::CpArgs),
    /// Bring a port of a computer to this machine
    Port(forward::PortArgs),
    /// Log in with ssh; nothing has to listen in the computer
    Ssh(ssh::SshArgs),
    /// The proxy command for ssh and scp: `ProxyCommand roost ssh-proxy %h`
    SshProxy(ssh::SshProxyArgs),
    /// Show how the script went that a computer was made with
    Setup(commands::NameArg),
    /// List, install and start desktop programs
    #[command(subcommand)]
    App(app::AppCommand),
    /// Save a screenshot as PNG
    Screenshot(commands::ScreenshotArgs),
    /// Print the link of a computer's desktop, and open it in a browser where there is one
    Open(commands::OpenArgs),
    /// Show what a computer's console and services said, or follow it with -f
    Logs(commands::LogsArgs),
    /// Show CPU and memory of a computer over time
    Metrics(metering::MetricsArgs),
    /// Show or change after which idle time a computer stops
    AutoStop(metering::AutoStopArgs),
    /// Show and grant credits
    #[command(subcommand)]
    Credits(metering::CreditsCommand),
    /// Show and limit what your end users may have
    #[command(subcommand)]
    Quota(quota::QuotaCommand),
    /// Make and list tenants (for the operator of a server)
    #[command(subcommand)]
    Tenant(tenancy::TenantCommand),
    /// Make, list and remove users of a tenant
    #[command(subcommand)]
    User(tenancy::UserCommand),
    /// Make, list, rotate and end API keys
    #[command(subcommand)]
    Key(tenancy::KeyCommand),
    /// Make and list workspaces, and say who is in them
    #[command(subcommand)]
    Workspace(tenancy::WorkspaceCommand),
    /// Run the server
    Serve(serve::ServeArgs),
    /// Seal every secret in the database with a new key, while no server runs
    RotateSealKey(seal::RotateArgs),
    /// Build and list the templates that computers start from
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Check whether this host can run computers, and say what to do where it cannot
    Doctor(doctor::DoctorArgs),
    /// Print the OpenAPI document of the server
    #[command(hide = true)]
    Openapi,
    /// The process of one computer; started by the server
    #[command(hide = true)]
    Machine(machine::MachineArgs),
}

/// Where Roost keeps everything.
#[derive(Debug, Clone, clap::Args)]
struct DataArgs {
    /// Directory of all data [default: $XDG_DATA_HOME/roost]
    #[arg(long, env = "ROOST_DATA", value_name = "DIR")]
    data: Option<Utf8PathBuf>,

    /// Directory of the templates [default: templates/ in the data directory]
    #[arg(long, env = "ROOST_TEMPLATES", value_name = "DIR")]
    templates: Option<Utf8PathBuf>,
}

impl DataArgs {
    fn data(&self) -> anyhow::Result<Utf8PathBuf> {
        let data = match &self.data {
            Some(data) => data.clone(),
            None => config::xdg("XDG_DATA_HOME", ".local/share")?.join("roost"),
        };
        Ok(camino::absolute_utf8(&data)?)
    }

    fn templates(&self) -> anyhow::Result<Utf8PathBuf> {
        match &self.templates {
            Some(templates) => Ok(camino::absolute_utf8(templates)?),
            None => Ok(self.data()?.join("templates")),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The machine process gives up root before it may have a second thread, and has a small runtime of its
    // own; everything else shares one.
    let result = match cli.command {
        Command::Machine(args) => machine::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Image(command) => image::run(command, cli.json).map(|()| ExitCode::SUCCESS),
        Command::Openapi => openapi().map(|()| ExitCode::SUCCESS),
        command => run(command, cli.json, &cli.server),
    };
    result.unwrap_or_else(|error| {
        let pipe = error.downcast_ref::<std::io::Error>();
        if pipe.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS; // whoever read our output has enough
        }
        output::print_error(&error, cli.json);
        ExitCode::from(output::FAILED)
    })
}

#[tokio::main]
async fn run(command: Command, json: bool, server: &client::ServerArgs) -> anyhow::Result<ExitCode> {
    let client = || client::Client::new(server);
    match command {
        Command::Create(args) => commands::create(&client()?, args, json).await?,
        Command::List => commands::list(&client()?, json).await?,
        Command::Show(args) => commands::show(&client()?, &args, json).await?,
        Command::Start(args) => commands::start(&client()?, &args, json).await?,
        Command::Stop(args) => commands::stop(&client()?, &args, json).await?,
        Command::Restart(args) => commands::restart(&client()?, &args, json).await?,
        Command::Clone(args) => snapshot::clone(&client()?, &args, json).await?,
        Command::Resize(args) => snapshot::resize(&client()?, &args, json).await?,
        Command::Move(args) => snapshot::relocate(&client()?, &args, json).await?,
        Command::Snapshot(command) => snapshot::run(&client()?, &command, json).await?,
        Command::Delete(args) => commands::delete(&client()?, &args, json).await?,
        Command::Exec(args) => return exec::exec(&client()?, &args, json).await,
        Command::Shell(args) => return shell::shell(&client()?, args, json).await,
        Command::Cp(args) => copy::copy(&client()?, &args, json).await?,
        Command::Port(args) => forward::port(client()?, &args, json).await?,
        Command::Ssh(args) => return ssh::ssh(&client()?, &args).await,
        Command::SshProxy(args) => return ssh::proxy(&client()?, &args).await,
        Command::Setup(args) => commands::setup(&client()?, &args, json).await?,
        Command::App(command) => app::run(&client()?, &command, json).await?,
        Command::Screenshot(args) => commands::screenshot(&client()?, &args, json).await?,
        Command::Open(args) => commands::open(&client()?, &args, json).await?,
        Command::Logs(args) => commands::logs(&client()?, &args, json).await?,
        Command::Metrics(args) => metering::metrics(&client()?, &args, json).await?,
        Command::AutoStop(args) => metering::auto_stop(&client()?, &args, json).await?,
        Command::Credits(command) => metering::credits(&client()?, &command, json).await?,
        Command::Quota(command) => quota::run(&client()?, &command, json).await?,
        Command::Tenant(command) => tenancy::tenant(&client()?, &command, json).await?,
        Command::User(command) => tenancy::user(&client()?, &command, json).await?,
        Command::Key(command) => tenancy::key(&client()?, &command, json).await?,
        Command::Workspace(command) => tenancy::workspace(&client()?, &command, json).await?,
        Command::Serve(args) => serve::serve(args).await?,
        Command::RotateSealKey(args) => seal::rotate(args, json).await?,
        Command::Doctor(args) => return doctor::doctor(&args, json).await,
        Command::Image(_) | Command::Openapi | Command::Machine(_) => {
            anyhow::bail!("this command does not run here")
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn openapi() -> anyhow::Result<()> {
    output::print_raw(&roost_http::openapi()?)
}
