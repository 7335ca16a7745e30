//! The connection to the guest agent: HTTP/2 over the virtio-serial port.
//!
//! QEMU tells when a program in the guest opens or closes the port, so nothing is polled. Every such
//! change ends the connection and starts a new one: bytes of the old conversation may be left in either
//! direction, and only closing the host's end makes QEMU and the agent drop them.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use roost_guest_proto::v1::system_client::SystemClient;
use roost_guest_proto::v1::{HealthReply, HealthRequest};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

use crate::task::Task;

/// Bulk data (screens, files, tunnels) runs at the speed of the port when a window covers what is in flight.
pub const STREAM_WINDOW: u32 = 512 * 1024;
/// As many streams as there may be at once that nobody reads: they must not take the window of all others.
pub const CONNECTION_WINDOW: u32 = CONCURRENT_CALLS * STREAM_WINDOW;
/// As many as the agent serves.
pub const CONCURRENT_CALLS: u32 = 1000;
pub const FRAME_SIZE: u32 = 128 * 1024;

/// While calls are under way the agent is asked whether it is still there. One that stands still for so long is as good
/// as none: the calls fail, and a new conversation is begun.
const STILL_THERE_EVERY: Duration = Duration::from_secs(20);
const STILL_THERE_WITHIN: Duration = Duration::from_secs(40);

/// A healthy agent answers in a millisecond; a fresh one on a busy emulated CPU has been seen to take
/// seconds. After this the conversation counts as out of step and starts over, with more patience each time: a
/// guest that continues from saved memory may have half a message of an earlier conversation in its port.
const FIRST_HELLO_DEADLINE: Duration = Duration::from_secs(3);
const LONGEST_HELLO_DEADLINE: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The guest's end of the port, from QEMU's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    Closed,
    /// The number tells one opening from the next.
    Open(u64),
}

#[derive(Debug)]
pub enum LinkEvent {
    /// The agent answered on a new connection.
    Up { guest: Guest, boot_id: String, desktop_ready: bool },
    /// That connection ended.
    Lost,
}

/// One connection to the agent. Cheap to clone; calls fail once the connection has ended.
#[derive(Debug, Clone)]
pub struct Guest {
    requests: SendRequest<Body>,
    hang_up: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("cannot connect to QEMU's end of the port: {0}")]
    Socket(#[from] std::io::Error),
    #[error("HTTP/2 does not start: {0}")]
    Http(#[from] hyper::Error),
    #[error("the agent's answer to the first call: {0}")]
    Hello(#[from] Box<tonic::Status>),
    #[error("no answer to the first call within {} s", within.as_secs())]
    Silent { within: Duration },
}

impl Guest {
    /// Ends the connection: for everyone who uses it.
    pub fn hang_up(&self) {
        self.hang_up.cancel();
    }

    /// The machine process's own calls.
    pub fn system(&self) -> SystemClient<Guest> {
        // HTTP/2 requires an origin; the agent serves whoever holds the port and looks at none.
        SystemClient::with_origin(self.clone(), http::Uri::from_static("http://guest"))
    }

    pub async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        self.requests.send_request(request).await
    }
}

/// For the generated clients. A connection that fails is an UNAVAILABLE status, like an agent that is not
/// there.
impl tower::Service<Request<Body>> for Guest {
    type Response = Response<Incoming>;
    type Error = tonic::Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(())) // HTTP/2 queues requests itself, and a dead connection says so in `call`
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.requests.send_request(request);
        Box::pin(async move { answer.await.map_err(|error| unavailable(&error)) })
    }
}

/// What callers of the guest get when the connection fails.
pub fn unavailable(error: &hyper::Error) -> tonic::Status {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    tonic::Status::unavailable(format!("the connection to the guest's agent failed: {error}{cause}"))
}

/// Keeps a connection for as long as the guest has the port open, and reports each. Ends when nobody
/// listens to `events` any more.
pub async fn keep(path: String, mut port: watch::Receiver<Port>, events: mpsc::Sender<LinkEvent>) {
    let mut pause = FIRST_PAUSE;
    let mut patience = FIRST_HELLO_DEADLINE;
    loop {
        if port.wait_for(|port| matches!(port, Port::Open(_))).await.is_err() {
            return;
        }
        match connect(&path, patience).await {
            Ok(Connection { guest, boot_id, desktop_ready, mut driver }) => {
                pause = FIRST_PAUSE;
                patience = FIRST_HELLO_DEADLINE;
                let hang_up = guest.hang_up.clone();
                if events.send(LinkEvent::Up { guest, boot_id, desktop_ready }).await.is_err() {
                    return;
                }
                let why = tokio::select! {
                    () = driver.join() => "the agent ended it",
                    _ = port.changed() => "the guest's end of the port changed",
                    () = hang_up.cancelled() => "it was given up",
                };
                drop(driver);
                tracing::info!("the connection to the agent has ended: {why}");
                if events.send(LinkEvent::Lost).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::info!("no connection to the agent yet: {error}");
                patience = (patience * 2).min(LONGEST_HELLO_DEADLINE);
            }
        }
        // Time for the agent to see that the port was closed, or for whatever is wrong to pass. A change
        // of the port is worth an immediate try.
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            changed = port.changed() => if changed.is_err() { return },
        }
    }
}

struct Connection {
    guest: Guest,
    boot_id: String,
    desktop_ready: bool,
    driver: Task<()>,
}

async fn connect(path: &str, patience: Duration) -> Result<Connection, ConnectError> {
    let socket = UnixStream::connect(path).await?;
    let hello = async {
        let end = CancellationToken::new();
        let (requests, connection) = http2::Builder::new(UntilEnd(end.clone()))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE)
            .timer(TokioTimer::new())
            .keep_alive_interval(STILL_THERE_EVERY)
            .keep_alive_timeout(STILL_THERE_WITHIN)
            .handshake(TokioIo::new(socket))
            .await?;
        let driver = Task::spawn(async move {
            // Also when this task is dropped.
            let _end = end.drop_guard();
            if let Err(error) = connection.await {
                tracing::debug!("HTTP/2 to the agent: {error}");
            }
        });
        let guest = Guest { requests, hang_up: CancellationToken::new() };
        let health = guest.system().health(HealthRequest {}).await.map_err(Box::new)?;
        let HealthReply { boot_id, desktop_ready, .. } = health.into_inner();
        Ok(Connection { guest, boot_id, desktop_ready, driver })
    };
    let silent = || Err(ConnectError::Silent { within: patience });
    tokio::time::timeout(patience, hello).await.unwrap_or_else(|_| silent())
}

/// Where hyper runs what belongs to one connection. Its own way to end one waits for the calls in progress,
/// which may never end once the guest has gone; and as long as QEMU has the old connection it takes no new
/// one.
#[derive(Debug, Clone)]
struct UntilEnd(CancellationToken);

impl<F> hyper::rt::Executor<F> for UntilEnd
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        let end = self.0.clone();
        tokio::spawn(async move { end.run_until_cancelled_owned(future).await.map(drop) });
    }
}
