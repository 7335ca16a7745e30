//! The agent inside every computer: what the host asks of a guest, it asks here.
//!
//! It answers the gRPC contract of `roost-guest-proto` over HTTP/2 on one virtio-serial port and has a
//! folder per service:
//!
//! | module | what it does |
//! |---|---|
//! | `transport` | the port (or a unix socket) as a sequence of HTTP/2 connections |
//! | `system` | identity, environment, readiness of the desktop, usage, frozen disks, power |
//! | `process` | commands: start, stream, signal, end; on pipes or a terminal |
//! | `terminal` | terminals that stay when nobody looks |
//! | `files` | files: read, write, list, archive, search, watch; below the roots of each call |
//! | `desktop` | pixels, pointer and keyboard of the X display |
//! | `events` | what happens: windows, clipboard, idleness, processes |
//! | `tunnel` | byte streams into the guest |
//! | `logs` | what services have logged |
//! | `apps` | desktop programs: which there are, installing and starting them |
//!
//! One thread serves all calls: they wait for other programs nearly all the time, and a second thread costs
//! more than it gives on a guest this small. What may block (X requests, small files) goes to tokio's
//! blocking threads; one thread more watches the desktop come and go. When nothing is asked, nothing runs.
//!
//! It knows nothing of tenants, names of computers in the API, or images.

mod apps;
mod descriptor;
mod desktop;
mod events;
mod files;
mod logs;
mod process;
mod services;
mod system;
mod terminal;
mod transport;
mod tunnel;

use std::{convert::Infallible, path::PathBuf, process::ExitCode};

use roost_guest_proto::v1::{
    apps_server::AppsServer, desktop_server::DesktopServer, events_server::EventsServer,
    files_server::FilesServer, logs_server::LogsServer, process_server::ProcessServer,
    system_server::SystemServer, terminal_server::TerminalServer, tunnel_server::TunnelServer,
};
use tracing::level_filters::LevelFilter;

use crate::{
    apps::AppsService,
    desktop::{DesktopService, display::DisplayAddress, readiness},
    events::EventsService,
    files::FilesService,
    logs::LogsService,
    process::{Commands, ProcessService},
    services::Services,
    system::{SystemService, environment::Environment},
    terminal::TerminalService,
    transport::ServeError,
    tunnel::TunnelService,
};

const USAGE: &str = "\
usage: roost-guest (--port PATH | --unix PATH) [--user NAME] [--display :N] [--xauthority PATH] [--rfb PATH]
                   [--screen-file PATH]

  --port PATH        serve the virtio-serial port PATH
  --unix PATH        serve a unix socket at PATH instead
  --user NAME        the desktop user (user)
  --display :N       the desktop's X display (:0)
  --xauthority PATH  its cookie file (/home/user/.Xauthority)
  --rfb PATH         the unix socket of its RFB server (/run/roost/rfb.sock)
  --screen-file PATH where the size of its screen is kept (/etc/roost-screen)

ROOST_LOG sets what is logged: error, warn (the default), info, debug.";

#[derive(Debug)]
enum Transport {
    Port(PathBuf),
    Unix(PathBuf),
}

#[derive(Debug)]
struct Arguments {
    transport: Transport,
    user: String,
    display: DisplayAddress,
    rfb: PathBuf,
    screen_file: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum ArgumentError {
    #[error("unknown argument `{0}`")]
    Unknown(String),
    #[error("`{0}` needs a value")]
    NoValue(String),
    #[error("`--display {0}`: must be a colon and a number, like `:0`")]
    Display(String),
    #[error("one of --port and --unix is needed")]
    NoTransport,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, ArgumentError> {
        let mut transport = None;
        let mut user = "user".to_owned();
        let mut display = 0;
        let mut authority = PathBuf::from("/home/user/.Xauthority");
        let mut rfb = PathBuf::from("/run/roost/rfb.sock");
        let mut screen_file = PathBuf::from("/etc/roost-screen");
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| ArgumentError::NoValue(word.clone()));
            match word.as_str() {
                "--port" => transport = Some(Transport::Port(value()?.into())),
                "--unix" => transport = Some(Transport::Unix(value()?.into())),
                "--user" => user = value()?,
                "--display" => {
                    let text = value()?;
                    let number = text.strip_prefix(':').and_then(|number| number.parse().ok());
                    display = number.ok_or(ArgumentError::Display(text))?;
                }
                "--xauthority" => authority = value()?.into(),
                "--rfb" => rfb = value()?.into(),
                "--screen-file" => screen_file = value()?.into(),
                _ => return Err(ArgumentError::Unknown(word)),
            }
        }
        let transport = transport.ok_or(ArgumentError::NoTransport)?;
        Ok(Self { transport, user, display: DisplayAddress::new(display, authority), rfb, screen_file })
    }
}

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let level = std::env::var("ROOST_LOG").ok().and_then(|level| level.parse().ok());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level.unwrap_or(LevelFilter::WARN))
        .with_ansi(false)
        .without_time() // the journal has it
        .init();
    if let Err(error) = descriptor::keep_inherited_to_ourselves() {
        eprintln!("list this process's open files: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Err(error) = runtime.block_on(serve(arguments));
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    eprintln!("{text}");
    ExitCode::FAILURE
}

async fn serve(arguments: Arguments) -> Result<Infallible, ServeError> {
    let Arguments { transport, user, display, rfb, screen_file } = arguments;
    let readiness = readiness::watch(display.clone());
    let environment = Environment::restore(user.clone(), display.clone(), readiness.clone());
    let commands = Commands::new(environment.clone(), user.clone(), display.clone());
    let services = Services {
        system: SystemServer::new(SystemService::new(environment, readiness.clone())),
        process: ProcessServer::new(ProcessService::new(commands.clone())),
        terminal: TerminalServer::new(TerminalService::new(commands)),
        files: FilesServer::new(FilesService::new(user.clone())),
        desktop: DesktopServer::new(DesktopService::new(display.clone(), readiness.clone(), screen_file)),
        events: EventsServer::new(EventsService::new(display.clone(), readiness)),
        tunnel: TunnelServer::new(TunnelService::new(rfb, user.clone())),
        apps: AppsServer::new(AppsService::new(user, display)),
        logs: LogsServer::new(LogsService),
    };
    match transport {
        Transport::Port(path) => transport::serve_port(path, services).await,
        Transport::Unix(path) => transport::serve_unix(path, services).await,
    }
}
