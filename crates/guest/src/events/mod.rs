//! What happens in the computer, for as long as somebody listens. Nothing runs for it when nobody does.

mod processes;

use roost_guest_proto::v1::{
    DesktopEvent, ProcessEvent, WatchDesktopRequest, WatchProcessesRequest, events_server::Events,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::desktop::{display::DisplayAddress, events::Listeners, readiness::Readiness};

const QUEUED: usize = 64;

#[derive(Debug)]
pub(crate) struct EventsService {
    desktop: Listeners,
}

impl EventsService {
    pub(crate) fn new(display: DisplayAddress, readiness: Readiness) -> Self {
        Self { desktop: Listeners::new(display, readiness) }
    }
}

#[tonic::async_trait]
impl Events for EventsService {
    type WatchDesktopStream = ReceiverStream<Result<DesktopEvent, Status>>;

    async fn watch_desktop(
        &self,
        request: Request<WatchDesktopRequest>,
    ) -> Result<Response<Self::WatchDesktopStream>, Status> {
        self.desktop.listen(request.into_inner()).map(Response::new)
    }

    type WatchProcessesStream = ReceiverStream<Result<ProcessEvent, Status>>;

    async fn watch_processes(
        &self,
        _: Request<WatchProcessesRequest>,
    ) -> Result<Response<Self::WatchProcessesStream>, Status> {
        let watch = processes::Watch::new().map_err(|error| {
            Status::unavailable(format!("the kernel does not tell of processes: {error}"))
        })?;
        let (events, told) = mpsc::channel(QUEUED);
        tokio::spawn(watch.run(events));
        Ok(Response::new(ReceiverStream::new(told)))
    }
}
