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

/// What tells of changes as they come.
pub(crate) trait Source {
    type Event: Default;

    /// Those that have come since the last time, at least one.
    fn next(&mut self) -> impl Future<Output = Result<Vec<Self::Event>, Status>> + Send;
}

/// Until nobody listens, or the source fails. The first event is empty: nothing is missed from then on.
pub(crate) async fn tell<S: Source>(mut source: S, events: mpsc::Sender<Result<S::Event, Status>>) {
    if events.send(Ok(S::Event::default())).await.is_err() {
        return;
    }
    loop {
        let changes = tokio::select! {
            changes = source.next() => changes,
            () = events.closed() => return,
        };
        let changes = match changes {
            Ok(changes) => changes,
            Err(failed) => {
                let _gone = events.send(Err(failed)).await;
                return;
            }
        };
        for change in changes {
            if events.send(Ok(change)).await.is_err() {
                return;
            }
        }
    }
}

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
        tokio::spawn(tell(watch, events));
        Ok(Response::new(ReceiverStream::new(told)))
    }
}
