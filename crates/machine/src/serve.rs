//! The machine's socket: the Machine service, and every call of `roost.guest.v1` passed on to the agent.
//!
//! A guest call is passed at the level of HTTP/2: headers, message bytes and trailers as they are, in both
//! directions at once. Each side's flow control reaches the other, because a body is only read as it can
//! be written; dropping either side's stream resets the other's. So this process needs to know nothing of
//! what is said, and holds at most the windows of the connections.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, stream};
use http::{HeaderMap, Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use roost_machine_proto::v1::machine_server::{Machine, MachineServer};
use roost_machine_proto::v1::{
    ConsoleReply, ConsoleRequest, Observation, Phase, StopReply, StopRequest, WatchRequest,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::console::Console;
use crate::link::{CONNECTION_WINDOW, FRAME_SIZE, Guest, STREAM_WINDOW, unavailable};

const GUEST_PREFIX: &str = "/roost.guest.v1.";
/// One control plane and some curious people; each connection carries any number of calls.
const CONNECTION_LIMIT: usize = 64;
const CONSOLE_LINE_LIMIT: u32 = 1000;
/// How long clients may take to read the last observation.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the socket serves.
#[derive(Debug, Clone)]
pub struct Served {
    pub observation: watch::Receiver<Observation>,
    /// The agent, when others may call it.
    pub gate: watch::Receiver<Option<Guest>>,
    pub console: Arc<Mutex<Console>>,
    /// Where a request to stop goes.
    pub stop: mpsc::Sender<()>,
}

/// Serves until `end`, then lets the calls in progress finish for a moment.
pub async fn serve(listener: UnixListener, served: Served, end: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let socket = tokio::select! {
            () = end.cancelled() => break,
            accepted = listener.accept(), if connections.len() < CONNECTION_LIMIT => accepted,
            // Full: wait for room by looking again when something else happens.
            () = tokio::time::sleep(Duration::from_millis(200)), if connections.len() >= CONNECTION_LIMIT => continue,
        };
        match socket {
            Ok((socket, _)) => {
                connections.spawn(serve_connection(socket, served.clone(), end.clone()));
            }
            Err(error) => {
                // Out of descriptors, most likely; the clients' connections wait in the backlog.
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    connections.close();
    if tokio::time::timeout(FAREWELL, connections.wait()).await.is_err() {
        tracing::info!("{} clients did not hang up in time", connections.len());
    }
}

async fn serve_connection(socket: UnixStream, served: Served, end: CancellationToken) {
    let machine = MachineServer::new(served.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (mut machine, gate) = (machine.clone(), served.gate.clone());
        async move {
            if request.uri().path().starts_with(GUEST_PREFIX) {
                Ok::<_, Infallible>(pass_on(&gate, request).await)
            } else {
                machine.call(request).await
            }
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .serve_connection(TokioIo::new(socket), service);
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = end.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!("a client's connection ended: {error}");
    }
}

async fn pass_on(gate: &watch::Receiver<Option<Guest>>, request: Request<Incoming>) -> Response<Body> {
    let guest = gate.borrow().clone();
    let Some(mut guest) = guest else {
        return Status::unavailable("the guest's agent is not there (yet)").into_http();
    };
    match guest.send(request.map(Body::new)).await {
        Ok(response) => response.map(|body| Body::new(Relayed { body: Some(body) })),
        Err(error) => unavailable(&error).into_http(),
    }
}

/// A response on its way from the agent. If the connection breaks half-way the client is told by a status
/// and not by a reset stream, which it could not tell from its own mistakes.
struct Relayed {
    body: Option<Incoming>,
}

impl hyper::body::Body for Relayed {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(context) {
            Poll::Ready(Some(Err(error))) => {
                self.body = None;
                let mut trailers = HeaderMap::new();
                Poll::Ready(match unavailable(&error).add_header(&mut trailers) {
                    Ok(()) => Some(Ok(Frame::trailers(trailers))),
                    Err(_) => None,
                })
            }
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(frame))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default() // it may end early, with a status
    }
}

#[tonic::async_trait]
impl Machine for Served {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Observation, Status>> + Send>>;

    async fn watch(
        &self,
        _: tonic::Request<WatchRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        let mut observation = self.observation.clone();
        observation.mark_changed();
        let changes = stream::unfold(Some(observation), async |observation| {
            let mut observation = observation?;
            observation.changed().await.ok()?;
            let now = observation.borrow_and_update().clone();
            let last = matches!(now.phase(), Phase::Stopped | Phase::Failed);
            Some((Ok(now), (!last).then_some(observation)))
        });
        Ok(tonic::Response::new(Box::pin(changes)))
    }

    async fn stop(&self, _: tonic::Request<StopRequest>) -> Result<tonic::Response<StopReply>, Status> {
        // Closed or full: it is stopping already.
        if let Err(error) = self.stop.try_send(()) {
            tracing::debug!("a request to stop came late: {error}");
        }
        Ok(tonic::Response::new(StopReply {}))
    }

    async fn console(
        &self,
        request: tonic::Request<ConsoleRequest>,
    ) -> Result<tonic::Response<ConsoleReply>, Status> {
        let count = request.into_inner().lines.min(CONSOLE_LINE_LIMIT);
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = console
            .newest_lines(usize::try_from(count).unwrap_or(usize::MAX))
            .map_err(|error| Status::internal(format!("cannot read the console's log: {error}")))?;
        Ok(tonic::Response::new(ConsoleReply { lines }))
    }
}
