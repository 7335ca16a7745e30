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

use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use roost_api::Timestamp;
use roost_machine_proto::v1::machine_server::{Machine, MachineServer};
use roost_machine_proto::v1::{
    CaptureReply, CaptureRequest, ConsoleReply, ConsoleRequest, Observation, Phase, StopReply, StopRequest,
    SuspendReply, SuspendRequest, WatchRequest,
};
use roost_machine_proto::{Captured, ConsoleLine};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use crate::console::Console;
use crate::link::{CONCURRENT_CALLS, CONNECTION_WINDOW, FRAME_SIZE, Guest, STREAM_WINDOW, unavailable};
use crate::memory::Form;
use crate::save::Purpose;
use crate::vm::SaveRequest;

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
    /// Where requests to save go.
    pub saves: mpsc::Sender<SaveRequest>,
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
        .max_concurrent_streams(CONCURRENT_CALLS)
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

impl Served {
    /// Goes on to its end also when the caller hangs up.
    async fn save(&self, purpose: Purpose) -> Result<Captured, Status> {
        let ended = || Status::unavailable("the computer has ended");
        let (answer, answered) = oneshot::channel();
        self.saves.send(SaveRequest { purpose, answer }).await.map_err(|_| ended())?;
        match answered.await {
            Ok(result) => result.map_err(Status::failed_precondition),
            Err(_) => Err(ended()),
        }
    }
}

#[tonic::async_trait]
impl Machine for Served {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Observation, Status>> + Send>>;
    type FollowConsoleStream = Pin<Box<dyn Stream<Item = Result<ConsoleReply, Status>> + Send>>;

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
            let last = is_final(&now);
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

    async fn suspend(
        &self,
        request: tonic::Request<SuspendRequest>,
    ) -> Result<tonic::Response<SuspendReply>, Status> {
        let form = if request.into_inner().image { Form::Image } else { Form::Difference };
        let saved = self.save(Purpose::Suspend(form)).await?;
        Ok(tonic::Response::new(SuspendReply { memory_bytes: saved.memory_bytes.unwrap_or(0) }))
    }

    async fn capture(
        &self,
        request: tonic::Request<CaptureRequest>,
    ) -> Result<tonic::Response<CaptureReply>, Status> {
        let CaptureRequest { memory, layer, passing } = request.into_inner();
        let purpose = Purpose::Capture { memory: memory.into(), layer: layer.into(), passing };
        let saved = self.save(purpose).await?;
        let pause = saved.pause.unwrap_or_default().as_micros();
        Ok(tonic::Response::new(CaptureReply {
            memory_bytes: saved.memory_bytes.unwrap_or(0),
            pause_us: u64::try_from(pause).unwrap_or(u64::MAX),
        }))
    }

    async fn console(
        &self,
        request: tonic::Request<ConsoleRequest>,
    ) -> Result<tonic::Response<ConsoleReply>, Status> {
        let count = request.into_inner().lines.min(CONSOLE_LINE_LIMIT);
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        let lines =
            console.newest_lines(usize::try_from(count).unwrap_or(usize::MAX)).map_err(unreadable_console)?;
        Ok(tonic::Response::new(console_reply(lines)))
    }

    async fn follow_console(
        &self,
        request: tonic::Request<ConsoleRequest>,
    ) -> Result<tonic::Response<Self::FollowConsoleStream>, Status> {
        let count = request.into_inner().lines.min(CONSOLE_LINE_LIMIT);
        let (lines, more) = self
            .console
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .follow(usize::try_from(count).unwrap_or(usize::MAX))
            .map_err(unreadable_console)?;
        let newest = stream::iter([Ok(console_reply(lines))]);
        let more = stream::unfold((more, self.observation.clone()), async |(mut more, mut observation)| {
            let line = tokio::select! {
                // What was said before the end is told before it.
                biased;
                line = more.recv() => line,
                _ = observation.wait_for(is_final) => return None,
            };
            let line = match line {
                Ok(line) => line,
                Err(RecvError::Lagged(count)) => {
                    ConsoleLine { at: Some(Timestamp::now()), text: format!("({count} lines were skipped)") }
                }
                Err(RecvError::Closed) => return None,
            };
            Some((Ok(console_reply(vec![line])), (more, observation)))
        });
        Ok(tonic::Response::new(Box::pin(newest.chain(more))))
    }
}

fn is_final(observation: &Observation) -> bool {
    matches!(observation.phase(), Phase::Stopped | Phase::Failed)
}

fn unreadable_console(error: std::io::Error) -> Status {
    Status::internal(format!("cannot read the console's log: {error}"))
}

fn console_reply(lines: Vec<ConsoleLine>) -> ConsoleReply {
    let time = |line: &ConsoleLine| line.at.map_or(0, Timestamp::as_micros);
    ConsoleReply {
        times_us: lines.iter().map(time).collect(),
        lines: lines.into_iter().map(|line| line.text).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use roost_guest_proto::v1::process_client::ProcessClient;
    use roost_guest_proto::v1::process_server::{Process, ProcessServer};
    use roost_guest_proto::v1::system_client::SystemClient;
    use roost_guest_proto::v1::system_server::{System, SystemServer};
    use roost_guest_proto::v1::{
        FreezeReply, FreezeRequest, HealthReply, HealthRequest, PowerOffReply, PowerOffRequest, RunExit,
        RunInput, RunOutput, SetEnvironmentReply, SetEnvironmentRequest, SetIdentityReply,
        SetIdentityRequest, ThawReply, ThawRequest, UsageReply, UsageRequest, WaitDesktopReply,
        WaitDesktopRequest, run_input, run_output,
    };
    use roost_machine_proto::v1::machine_client::MachineClient;
    use tokio_stream::StreamExt;
    use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
    use tonic::transport::{Channel, Endpoint, Server};
    use tonic::{Code, Streaming};

    use super::*;
    use crate::link::{self, LinkEvent, Port};
    use crate::task::Task;

    /// An agent that echoes the standard input of a `Run`, and tells when a call to it was dropped.
    #[derive(Clone)]
    struct Agent {
        dropped: mpsc::Sender<()>,
    }

    #[tonic::async_trait]
    impl System for Agent {
        async fn health(
            &self,
            _: tonic::Request<HealthRequest>,
        ) -> Result<tonic::Response<HealthReply>, Status> {
            Ok(tonic::Response::new(HealthReply { boot_id: "boot".to_owned(), ..HealthReply::default() }))
        }

        async fn set_identity(
            &self,
            _: tonic::Request<SetIdentityRequest>,
        ) -> Result<tonic::Response<SetIdentityReply>, Status> {
            Ok(tonic::Response::new(SetIdentityReply {}))
        }

        async fn set_environment(
            &self,
            _: tonic::Request<SetEnvironmentRequest>,
        ) -> Result<tonic::Response<SetEnvironmentReply>, Status> {
            Ok(tonic::Response::new(SetEnvironmentReply {}))
        }

        async fn wait_desktop(
            &self,
            _: tonic::Request<WaitDesktopRequest>,
        ) -> Result<tonic::Response<WaitDesktopReply>, Status> {
            std::future::pending().await
        }

        async fn freeze(
            &self,
            _: tonic::Request<FreezeRequest>,
        ) -> Result<tonic::Response<FreezeReply>, Status> {
            Ok(tonic::Response::new(FreezeReply {}))
        }

        async fn thaw(&self, _: tonic::Request<ThawRequest>) -> Result<tonic::Response<ThawReply>, Status> {
            Ok(tonic::Response::new(ThawReply {}))
        }

        async fn usage(
            &self,
            _: tonic::Request<UsageRequest>,
        ) -> Result<tonic::Response<UsageReply>, Status> {
            Err(Status::invalid_argument("no: \u{fc}mlaut"))
        }

        async fn power_off(
            &self,
            _: tonic::Request<PowerOffRequest>,
        ) -> Result<tonic::Response<PowerOffReply>, Status> {
            Ok(tonic::Response::new(PowerOffReply {}))
        }
    }

    struct TellsDrop(mpsc::Sender<()>);

    impl Drop for TellsDrop {
        fn drop(&mut self) {
            self.0.try_send(()).ok();
        }
    }

    #[tonic::async_trait]
    impl Process for Agent {
        type RunStream = Pin<Box<dyn Stream<Item = Result<RunOutput, Status>> + Send>>;

        async fn run(
            &self,
            request: tonic::Request<Streaming<RunInput>>,
        ) -> Result<tonic::Response<Self::RunStream>, Status> {
            let tells = TellsDrop(self.dropped.clone());
            let mut inputs = request.into_inner();
            let (outputs, echo) = mpsc::channel(1);
            tokio::spawn(async move {
                let _tells = tells;
                while let Some(Ok(RunInput { input })) = inputs.next().await {
                    let output = match input {
                        Some(run_input::Input::Stdin(bytes)) => Ok(run_output::Output::Stdout(bytes)),
                        Some(run_input::Input::Signal(_)) => Err(Status::data_loss("as asked")),
                        // A command that neither reads nor ends.
                        Some(run_input::Input::CloseStdin(_)) => {
                            outputs.closed().await;
                            return;
                        }
                        _ => Ok(run_output::Output::Exit(RunExit::default())),
                    };
                    let output = output.map(|output| RunOutput { output: Some(output) });
                    if outputs.send(output).await.is_err() {
                        return;
                    }
                }
            });
            let echo = ReceiverStream::new(echo);
            Ok(tonic::Response::new(Box::pin(echo)))
        }
    }

    struct Setup {
        directory: tempfile::TempDir,
        channel: Channel,
        gate: watch::Sender<Option<Guest>>,
        observation: watch::Sender<Observation>,
        console: Arc<Mutex<Console>>,
        stop: mpsc::Receiver<()>,
        end: CancellationToken,
        serving: Task<()>,
        agent_dropped: mpsc::Receiver<()>,
        links: mpsc::Receiver<LinkEvent>,
        _port: watch::Sender<Port>,
        _agent: Task<()>,
        _link: Task<()>,
    }

    /// An agent, the connection to it, and a client of the socket; the gate is closed.
    async fn setup() -> Setup {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();

        let (dropped, agent_dropped) = mpsc::channel(8);
        let agent = Agent { dropped };
        let listener = UnixListener::bind(path("channel.sock")).unwrap();
        let agent = Task::spawn(async move {
            let server = Server::builder()
                .add_service(SystemServer::new(agent.clone()))
                .add_service(ProcessServer::new(agent));
            server.serve_with_incoming(UnixListenerStream::new(listener)).await.unwrap();
        });

        let (port, changes) = watch::channel(Port::Open(0));
        let (events, links) = mpsc::channel(4);
        let link = Task::spawn(link::keep(path("channel.sock"), changes, events));

        let gate = watch::Sender::new(None);
        let observation = watch::Sender::new(Observation { generation: 7, ..Observation::default() });
        let (stop, stop_asked) = mpsc::channel(1);
        let console = Arc::new(Mutex::new(Console::open(path("console.log")).unwrap()));
        console.lock().unwrap().write(b"hello\nworld\n").unwrap();
        // Nobody saves here: every request finds that the computer has ended.
        let (saves, _) = mpsc::channel(1);
        let served = Served {
            observation: observation.subscribe(),
            gate: gate.subscribe(),
            console: console.clone(),
            stop,
            saves,
        };
        let socket = path("machine.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let end = CancellationToken::new();
        let serving = Task::spawn(serve(listener, served, end.clone()));
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel =
            Endpoint::from_static("http://machine").connect_with_connector(connector).await.unwrap();
        Setup {
            directory,
            channel,
            gate,
            observation,
            console,
            stop: stop_asked,
            end,
            serving,
            agent_dropped,
            links,
            _port: port,
            _agent: agent,
            _link: link,
        }
    }

    impl Setup {
        async fn open(&mut self) -> Guest {
            match self.links.recv().await.unwrap() {
                LinkEvent::Up { guest, boot_id, .. } => {
                    assert_eq!(boot_id, "boot");
                    self.gate.send_replace(Some(guest.clone()));
                    guest
                }
                LinkEvent::Lost => panic!("lost"),
            }
        }
    }

    fn stdin(bytes: Vec<u8>) -> RunInput {
        RunInput { input: Some(run_input::Input::Stdin(bytes.into())) }
    }

    #[tokio::test]
    async fn without_an_agent_its_calls_are_unavailable() {
        let setup = setup().await;
        let status = SystemClient::new(setup.channel.clone()).health(HealthRequest {}).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
    }

    #[tokio::test]
    async fn answers_and_errors_come_through_as_they_are() {
        let mut setup = setup().await;
        setup.open().await;
        let mut client = SystemClient::new(setup.channel.clone());
        assert_eq!(client.health(HealthRequest {}).await.unwrap().into_inner().boot_id, "boot");
        let status = client.usage(UsageRequest {}).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "no: \u{fc}mlaut"));
    }

    #[tokio::test]
    async fn streams_flow_both_ways_with_their_trailers() {
        let mut setup = setup().await;
        setup.open().await;
        let (input, inputs) = mpsc::channel(1);
        let sending = tokio::spawn(async move {
            for number in 0..64_u8 {
                input.send(stdin(vec![number; 256 * 1024])).await.unwrap();
            }
            input.send(RunInput { input: Some(run_input::Input::Signal(1)) }).await.unwrap();
        });
        let mut client = ProcessClient::new(setup.channel.clone());
        let mut output = client.run(ReceiverStream::new(inputs)).await.unwrap().into_inner();
        for number in 0..64_u8 {
            match output.message().await.unwrap().unwrap().output {
                Some(run_output::Output::Stdout(bytes)) => assert_eq!(bytes, vec![number; 256 * 1024]),
                other => panic!("{other:?}"),
            }
        }
        let status = output.message().await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::DataLoss, "as asked"));
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn a_slow_reader_stops_the_writer() {
        let mut setup = setup().await;
        setup.open().await;
        let (input, inputs) = mpsc::channel(1);
        let mut client = ProcessClient::new(setup.channel.clone());
        let mut output = client.run(ReceiverStream::new(inputs)).await.unwrap().into_inner();
        // Nobody reads: the windows of all connections fill, then sending stops.
        let mut sent = 0_usize;
        while let Ok(taken) =
            tokio::time::timeout(Duration::from_secs(1), input.send(stdin(vec![0; 65536]))).await
        {
            taken.unwrap();
            sent += 65536;
            assert!(sent < 64 * 1024 * 1024, "nothing stops the writer");
        }
        drop(input);
        let mut received = 0;
        while let Some(message) = output.message().await.unwrap() {
            if let Some(run_output::Output::Stdout(bytes)) = message.output {
                received += bytes.len();
            }
        }
        assert_eq!(received, sent);
    }

    #[tokio::test]
    async fn a_dropped_call_is_dropped_in_the_guest() {
        let mut setup = setup().await;
        setup.open().await;
        let (input, inputs) = mpsc::channel(1);
        let mut client = ProcessClient::new(setup.channel.clone());
        let mut output = client.run(ReceiverStream::new(inputs)).await.unwrap().into_inner();
        input.send(stdin(b"x".to_vec())).await.unwrap();
        output.message().await.unwrap();
        let hang = run_input::Input::CloseStdin(roost_guest_proto::v1::CloseStdin {});
        input.send(RunInput { input: Some(hang) }).await.unwrap();
        // The HTTP/2 client of this test keeps a call alive for as long as its input goes on.
        drop((input, output));
        setup.agent_dropped.recv().await.unwrap();
    }

    #[tokio::test]
    async fn a_broken_connection_ends_calls_with_a_status_and_is_made_again() {
        let mut setup = setup().await;
        let guest = setup.open().await;
        let (input, inputs) = mpsc::channel(1);
        let mut client = ProcessClient::new(setup.channel.clone());
        let mut output = client.run(ReceiverStream::new(inputs)).await.unwrap().into_inner();
        input.send(stdin(b"x".to_vec())).await.unwrap();
        output.message().await.unwrap();
        guest.hang_up();
        assert_eq!(output.message().await.unwrap_err().code(), Code::Unavailable);
        assert!(matches!(setup.links.recv().await, Some(LinkEvent::Lost)));
        let again = setup.open().await;
        SystemClient::new(setup.channel.clone()).health(HealthRequest {}).await.unwrap();
        drop(again);
    }

    #[tokio::test]
    async fn watchers_see_what_is_and_what_becomes_to_the_end() {
        let mut setup = setup().await;
        let mut client = MachineClient::new(setup.channel.clone());
        let mut changes = client.watch(WatchRequest {}).await.unwrap().into_inner();
        assert_eq!(changes.message().await.unwrap().unwrap().generation, 7);
        let (seen, wait) = oneshot::channel();
        let watching = tokio::spawn(async move {
            let last = changes.message().await.unwrap().unwrap();
            seen.send(last.phase()).unwrap();
            changes.message().await.unwrap()
        });
        setup.observation.send_modify(|observation| observation.set_phase(Phase::Stopped));
        setup.end.cancel();
        assert_eq!(wait.await.unwrap(), Phase::Stopped);
        assert!(watching.await.unwrap().is_none(), "the stream ends after the last");
        drop(client);
        setup.channel = Endpoint::from_static("http://nowhere").connect_lazy();
        let ended = pin!(setup.serving.join());
        tokio::time::timeout(FAREWELL + Duration::from_secs(1), ended).await.unwrap();
    }

    #[tokio::test]
    async fn stop_may_be_asked_any_number_of_times_and_the_console_is_read_back() {
        let mut setup = setup().await;
        let mut client = MachineClient::new(setup.channel.clone());
        for _ in 0..3 {
            client.stop(StopRequest {}).await.unwrap();
        }
        setup.stop.recv().await.unwrap();
        let reply = client.console(ConsoleRequest { lines: 1 }).await.unwrap().into_inner();
        assert_eq!(reply.lines, ["world"]);
        assert!(reply.times_us.len() == 1 && reply.times_us[0] > 0);
        assert!(setup.directory.path().exists());
    }

    #[tokio::test]
    async fn the_console_is_followed_to_the_end_of_the_machine() {
        let setup = setup().await;
        let mut client = MachineClient::new(setup.channel.clone());
        let mut lines = client.follow_console(ConsoleRequest { lines: 1 }).await.unwrap().into_inner();
        assert_eq!(lines.message().await.unwrap().unwrap().lines, ["world"]);
        setup.console.lock().unwrap().write(b"more\nthe last\n").unwrap();
        setup.observation.send_modify(|observation| observation.set_phase(Phase::Stopped));
        assert_eq!(lines.message().await.unwrap().unwrap().lines, ["more"]);
        assert_eq!(lines.message().await.unwrap().unwrap().lines, ["the last"]);
        assert!(lines.message().await.unwrap().is_none());
    }
}
