//! Hands each call to the service its path names.

use std::{convert::Infallible, future::Future, pin::Pin};

use hyper::body::Incoming;
use roost_guest_proto::v1::{
    apps_server::AppsServer, desktop_server::DesktopServer, events_server::EventsServer,
    files_server::FilesServer, logs_server::LogsServer, process_server::ProcessServer,
    system_server::SystemServer, terminal_server::TerminalServer, tunnel_server::TunnelServer,
};
use tonic::{body::Body, codegen::Service, server::NamedService};

use crate::{
    apps::AppsService, desktop::DesktopService, events::EventsService, files::FilesService,
    logs::LogsService, process::ProcessService, system::SystemService, terminal::TerminalService,
    tunnel::TunnelService,
};

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

#[derive(Debug, Clone)]
pub(crate) struct Services {
    pub(crate) system: SystemServer<SystemService>,
    pub(crate) process: ProcessServer<ProcessService>,
    pub(crate) terminal: TerminalServer<TerminalService>,
    pub(crate) files: FilesServer<FilesService>,
    pub(crate) desktop: DesktopServer<DesktopService>,
    pub(crate) events: EventsServer<EventsService>,
    pub(crate) tunnel: TunnelServer<TunnelService>,
    pub(crate) apps: AppsServer<AppsService>,
    pub(crate) logs: LogsServer<LogsService>,
}

impl hyper::service::Service<http::Request<Incoming>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: http::Request<Incoming>) -> Answer {
        let service = request.uri().path().split('/').nth(1).unwrap_or_default();
        match service {
            SystemServer::<SystemService>::NAME => answer(self.system.clone(), request),
            ProcessServer::<ProcessService>::NAME => answer(self.process.clone(), request),
            TerminalServer::<TerminalService>::NAME => answer(self.terminal.clone(), request),
            FilesServer::<FilesService>::NAME => answer(self.files.clone(), request),
            DesktopServer::<DesktopService>::NAME => answer(self.desktop.clone(), request),
            EventsServer::<EventsService>::NAME => answer(self.events.clone(), request),
            TunnelServer::<TunnelService>::NAME => answer(self.tunnel.clone(), request),
            AppsServer::<AppsService>::NAME => answer(self.apps.clone(), request),
            LogsServer::<LogsService>::NAME => answer(self.logs.clone(), request),
            _ => {
                let unknown = tonic::Status::unimplemented(format!("there is no service `{service}`"));
                Box::pin(std::future::ready(Ok(unknown.into_http())))
            }
        }
    }
}

fn answer<S>(mut service: S, request: http::Request<Incoming>) -> Answer
where
    S: Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    Box::pin(service.call(request))
}
