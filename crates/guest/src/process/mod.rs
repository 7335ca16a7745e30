//! Running commands.
//!
//! A call has four parts that wait for each other as little as possible: one pump per output stream, one
//! writer for the input, and the [`supervise`] loop that hears the leader's end, the time limit, the host's
//! inputs and the end of the call. Only the supervisor ends things:
//!
//! * the leader ended: what is in the pipes is sent, then the exit. Children in the background may hold the
//!   pipes for ever; nobody waits for them.
//! * the time limit: the group is killed, then as above.
//! * the call was dropped, or its input makes no sense: hang-up, five seconds, kill.
//!
//! Memory is bounded by pipe sizes and short queues: a host that does not read stops the pumps, full pipes
//! stop the command. The other way round, a command that does not read its input holds the input's stream
//! back, and with it any signal sent behind more than [`QUEUED_INPUTS`] pieces of input.
//!
//! On a terminal there is one stream for all output. What the leader has left in it at its end is sent too; how
//! much that can be is bounded by the terminal.

mod account;
mod launch;
mod prepare;
mod pty;

use std::{
    io,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use roost_guest_proto::v1::{
    RunExit, RunInput, RunOutput, RunStart, RunStarted, process_server::Process, run_input::Input,
    run_output::Output,
};
use rustix::process::Signal;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::unix::pipe,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Request, Response, Status, Streaming};

use self::launch::LaunchError;
pub(crate) use self::{
    account::{Account, AccountError, find as find_account},
    launch::{Ends, Launch, Launched, Leader, Streams},
    prepare::{Asked, Commands, session_environment},
    pty::{Pty, Size},
};

const CHUNK: usize = 32 * 1024;
const QUEUED_OUTPUTS: usize = 4;
const QUEUED_INPUTS: usize = 16;
const HANG_UP_GRACE: Duration = Duration::from_secs(5);
/// More than a terminal holds of what its programs have written.
const TERMINAL_HOLDS: usize = 256 * 1024;
/// How long the last output of a leader may take through the terminal, where a child in the background keeps it
/// open and so hides its end.
const TERMINAL_LAG: Duration = Duration::from_millis(200);

/// What a shell answers for a command that is not there, or cannot be run.
const CODE_NOT_FOUND: i32 = 127;
const CODE_NOT_EXECUTABLE: i32 = 126;
const CODE_TIMED_OUT: i32 = 124;
const CODE_SIGNALLED: i32 = 128;

type Sent = Result<RunOutput, Status>;

#[derive(Debug)]
pub(crate) struct ProcessService {
    commands: Commands,
}

impl ProcessService {
    pub(crate) fn new(commands: Commands) -> Self {
        Self { commands }
    }
}

#[tonic::async_trait]
impl Process for ProcessService {
    type RunStream = ReceiverStream<Sent>;

    async fn run(&self, request: Request<Streaming<RunInput>>) -> Result<Response<Self::RunStream>, Status> {
        let mut input = request.into_inner();
        let start = match input.message().await? {
            Some(RunInput { input: Some(Input::Start(start)) }) => start,
            _ => return Err(Status::invalid_argument("the first input of a run must be its start")),
        };
        let RunStart { argv, cwd, env, user, timeout_ms, stdin, terminal } = start;
        let limit = match timeout_ms {
            0 => None,
            limit => Some(Duration::from_millis(limit)),
        };
        if argv.first().is_none_or(String::is_empty) {
            return Err(Status::invalid_argument("argv must name a command"));
        }
        let streams = match terminal {
            Some(size) => Streams::Terminal(size.try_into()?),
            None => Streams::Pipes { stdin },
        };
        let launch = self.commands.prepare(Asked { argv, cwd, env, user }, streams)?;
        let (output, outputs) = mpsc::channel(QUEUED_OUTPUTS);
        let began = Instant::now();
        match launch.start() {
            Ok(launched) => {
                tokio::spawn(supervise(launched, Limits { began, limit }, input, output));
            }
            Err(error @ LaunchError::Program(..)) => {
                tokio::spawn(answer_like_a_shell(error, began, output));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Response::new(ReceiverStream::new(outputs)))
    }
}

impl From<LaunchError> for Status {
    fn from(error: LaunchError) -> Self {
        let message = error.to_string();
        match error {
            LaunchError::Program(..) | LaunchError::Directory(..) => Status::not_found(message),
            LaunchError::User(..) => Status::permission_denied(message),
            LaunchError::System(_) => Status::resource_exhausted(message),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    began: Instant,
    limit: Option<Duration>,
}

/// Nothing was started: there is no `started`, only the message and the code.
async fn answer_like_a_shell(error: LaunchError, began: Instant, output: mpsc::Sender<Sent>) {
    let code = match &error {
        LaunchError::Program(_, cause) if cause.kind() == io::ErrorKind::NotFound => CODE_NOT_FOUND,
        _ => CODE_NOT_EXECUTABLE,
    };
    let exit = RunExit { code, signal: 0, timed_out: false, duration_ms: milliseconds(began) };
    // Fails only when the call is gone, and then nobody wants to know.
    if send(&output, Output::Stderr(format!("{error}\n").into())).await.is_ok() {
        let _call_gone = send(&output, Output::Exit(exit)).await;
    }
}

async fn send(output: &mpsc::Sender<Sent>, piece: Output) -> Result<(), CallGone> {
    output.send(Ok(RunOutput { output: Some(piece) })).await.map_err(|_| CallGone)
}

#[derive(Debug)]
struct CallGone;

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

async fn supervise(
    launched: Launched,
    limits: Limits,
    input: Streaming<RunInput>,
    output: mpsc::Sender<Sent>,
) {
    let Launched { leader, ends } = launched;
    let started = RunStarted { pid: leader.pid() };
    // A call that is already gone is noticed below.
    let _call_gone = send(&output, Output::Started(started)).await;
    let leader_ended = CancellationToken::new();
    let (stdin, pumps) = match ends {
        Ends::Pipes { stdin, stdout, stderr } => {
            let carry = |pipe, wrap| tokio::spawn(pump(pipe, wrap, output.clone(), leader_ended.clone()));
            let pumps = vec![carry(stdout, Output::Stdout), carry(stderr, Output::Stderr)];
            (stdin.map(Stdin::Pipe), pumps)
        }
        Ends::Terminal(pty) => {
            let pump = pump_terminal(pty.clone(), output.clone(), leader_ended.clone());
            (Some(Stdin::Terminal(pty)), vec![tokio::spawn(pump)])
        }
    };
    let pumps: Vec<_> = pumps.into_iter().map(AbortOnDropHandle::new).collect();
    let ending = match watch(&leader, limits, input, stdin, &output).await {
        Ok(ending) => ending,
        Err(error) => Ending::Abandoned(Status::internal(format!("watch the process: {error}"))),
    };
    let (timed_out, abandoned) = match ending {
        Ending::Exited => (false, None),
        Ending::TimedOut => (true, None),
        Ending::Abandoned(status) => (false, Some(status)),
    };
    if let Some(status) = abandoned {
        // The pumps go on: a program that says farewell must not die of nobody listening.
        let (sent, ended) = tokio::join!(output.send(Err(status)), hang_up(leader));
        // That the call is gone is the usual reason to be here.
        let _call_gone = sent;
        if let Err(error) = ended {
            tracing::warn!(%error, "end a process whose call was dropped");
        }
        drop(pumps);
        return;
    }
    let duration_ms = milliseconds(limits.began);
    let status = leader.reap();
    leader_ended.cancel();
    for pump in pumps {
        if let Err(error) = pump.await {
            tracing::error!(%error, "an output pump failed");
        }
    }
    let last = match status {
        Ok(status) => Ok(RunOutput { output: Some(Output::Exit(exit(status, timed_out, duration_ms))) }),
        Err(error) => Err(Status::internal(format!("learn how the process ended: {error}"))),
    };
    let _call_gone = output.send(last).await;
}

/// Where the call's input goes.
#[derive(Debug)]
enum Stdin {
    Pipe(pipe::Sender),
    Terminal(Pty),
}

/// What ends the input of a program that reads lines from a terminal.
const END_OF_FILE: &[u8] = &[4];

pub(crate) fn exit(status: ExitStatus, timed_out: bool, duration_ms: u64) -> RunExit {
    let signal = status.signal().unwrap_or(0);
    let code = match (timed_out, status.code()) {
        (true, _) => CODE_TIMED_OUT,
        (false, Some(code)) => code,
        (false, None) => CODE_SIGNALLED + signal,
    };
    RunExit { code, signal, timed_out, duration_ms }
}

#[derive(Debug)]
enum Ending {
    Exited,
    TimedOut,
    /// The call was dropped, or cannot go on for the reason given.
    Abandoned(Status),
}

/// Serves the call until its leader has ended or nobody wants it any more.
async fn watch(
    leader: &Leader,
    limits: Limits,
    mut input: Streaming<RunInput>,
    stdin: Option<Stdin>,
    output: &mpsc::Sender<Sent>,
) -> io::Result<Ending> {
    let wants_stdin = stdin.is_some();
    let (terminal, connected) = match stdin {
        Some(Stdin::Pipe(pipe)) => (None, Some(Keyboard::new(pipe))),
        Some(Stdin::Terminal(pty)) => (Some(pty.clone()), Some(Keyboard::new(pty))),
        None => (None, None),
    };
    let (mut keyboard, _writer) = connected.unzip();
    let mut inputs_end = false;
    let mut timed_out = false;
    let limit = async {
        match limits.limit.and_then(|limit| limits.began.checked_add(limit)) {
            Some(end) => tokio::time::sleep_until(end.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(limit);
    loop {
        tokio::select! {
            biased;
            ended = leader.exited() => {
                ended?;
                return Ok(if timed_out { Ending::TimedOut } else { Ending::Exited });
            }
            () = &mut limit, if !timed_out => {
                timed_out = true;
                leader.signal_group(Signal::KILL)?;
            }
            () = output.closed() => {
                return Ok(Ending::Abandoned(Status::cancelled("the call was dropped")));
            }
            message = next_input(&mut input, keyboard.as_ref()), if !inputs_end => match message {
                Err(status) => return Ok(Ending::Abandoned(status)),
                Ok(None) => {
                    inputs_end = true;
                    keyboard = None;
                }
                Ok(Some(Input::CloseStdin(_))) => {
                    if let (Some(keyboard), Some(_)) = (keyboard.take(), &terminal) {
                        keyboard.press(Bytes::from_static(END_OF_FILE));
                    }
                }
                Ok(Some(Input::Resize(size))) => {
                    let resized = match (&terminal, Size::try_from(size)) {
                        (Some(terminal), Ok(size)) => terminal.resize(size).map_err(|error| Status::internal(error.to_string())),
                        (None, _) => Err(Status::invalid_argument("only a terminal has a size")),
                        (_, Err(refused)) => Err(refused),
                    };
                    if let Err(status) = resized {
                        return Ok(Ending::Abandoned(status));
                    }
                }
                Ok(Some(Input::Stdin(data))) if wants_stdin => {
                    if let Some(keyboard) = &keyboard {
                        keyboard.press(data);
                    }
                }
                Ok(Some(Input::Stdin(_))) => {
                    return Ok(Ending::Abandoned(Status::invalid_argument(
                        "stdin was sent to a run that was started without it",
                    )));
                }
                Ok(Some(Input::Signal(number))) => match Signal::from_named_raw(number) {
                    Some(signal) => leader.signal_group(signal)?,
                    None => {
                        return Ok(Ending::Abandoned(Status::invalid_argument(format!(
                            "there is no signal {number}"
                        ))));
                    }
                },
                Ok(Some(Input::Start(_))) => {
                    return Ok(Ending::Abandoned(Status::invalid_argument("a run starts only once")));
                }
            },
        }
    }
}

/// The next input, as soon as there is room for what it may carry. Nothing is lost when dropped half-way.
async fn next_input(
    input: &mut Streaming<RunInput>,
    keyboard: Option<&Keyboard>,
) -> Result<Option<Input>, Status> {
    if let Some(keyboard) = keyboard {
        keyboard.has_room().await;
    }
    match input.message().await? {
        Some(RunInput { input: Some(input) }) => Ok(Some(input)),
        Some(RunInput { input: None }) => Err(Status::invalid_argument("an input of an unknown kind")),
        None => Ok(None),
    }
}

/// The command's standard input: closed when this is dropped and everything pressed has been written.
#[derive(Debug)]
pub(crate) struct Keyboard {
    keys: mpsc::Sender<Bytes>,
}

impl Keyboard {
    /// The writer goes on after the keyboard is dropped, but not after its own handle is: a child in the
    /// background may hold a full pipe and never read it.
    pub(crate) fn new(mut stdin: impl AsyncWrite + Send + Unpin + 'static) -> (Self, AbortOnDropHandle<()>) {
        let (keys, mut pressed) = mpsc::channel::<Bytes>(QUEUED_INPUTS);
        let writer = tokio::spawn(async move {
            while let Some(data) = pressed.recv().await {
                // A command may stop reading; what it leaves is not wanted.
                if stdin.write_all(&data).await.is_err() {
                    return;
                }
            }
        });
        (Self { keys }, AbortOnDropHandle::new(writer))
    }

    /// Waits until there is room. Nobody needs the keys of a program that has closed its input.
    pub(crate) async fn enter(&self, data: Bytes) {
        let _closed = self.keys.send(data).await;
    }

    async fn has_room(&self) {
        // Fails when the command has closed its input: then there is room for anything.
        let _closed = self.keys.reserve().await;
    }

    /// After [`Keyboard::has_room`], never full.
    fn press(&self, data: Bytes) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.keys.try_send(data) {
            tracing::error!("input arrived without room for it");
        }
    }
}

/// Carries one output stream until its end or, once the leader has ended, until what is in the pipe now. When nobody
/// wants it any more, it goes nowhere.
async fn pump(
    pipe: pipe::Receiver,
    wrap: fn(Bytes) -> Output,
    output: mpsc::Sender<Sent>,
    leader_ended: CancellationToken,
) {
    let mut buffer = BytesMut::new();
    loop {
        tokio::select! {
            biased;
            () = leader_ended.cancelled() => break,
            ready = pipe.readable() => if ready.is_err() { return },
        }
        // Room first: what has been read must not wait in memory.
        let Ok(place) = output.reserve().await else { return discard(pipe, leader_ended.cancelled()).await };
        buffer.reserve(CHUNK);
        match pipe.try_read_buf(&mut buffer) {
            Ok(0) => return,
            Ok(_) => place.send(Ok(RunOutput { output: Some(wrap(buffer.split().freeze())) })),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
    // A child in the background may write for ever; what the leader wrote is in the pipe by now.
    let mut left = rustix::io::ioctl_fionread(&pipe).map_or(0, |left| usize::try_from(left).unwrap_or(0));
    while left > 0 {
        let Ok(place) = output.reserve().await else { return };
        buffer.reserve(CHUNK);
        match read_now(&pipe, &mut buffer, left) {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                left -= count;
                place.send(Ok(RunOutput { output: Some(wrap(buffer.split().freeze())) }));
            }
        }
    }
}

/// The same for a terminal, which ends when no program has it open any more.
async fn pump_terminal(mut pty: Pty, output: mpsc::Sender<Sent>, leader_ended: CancellationToken) {
    let mut left = last_words(leader_ended);
    let mut buffer = BytesMut::new();
    loop {
        // Room first: what has been read must not wait in memory.
        let Ok(place) = output.reserve().await else { return discard(pty, left.silence()).await };
        buffer.reserve(CHUNK);
        tokio::select! {
            read = pty.read_buf(&mut buffer) => if !read.is_ok_and(|count| left.count(count)) { return },
            () = left.silence() => return,
        }
        place.send(Ok(RunOutput { output: Some(Output::Stdout(buffer.split().freeze())) }));
    }
}

/// Reads for nobody, to the end or until the leader has ended: a child in the background may keep it open for ever.
async fn discard(mut output: impl AsyncRead + Unpin, leader_ended: impl Future<Output = ()>) {
    let mut nowhere = tokio::io::sink();
    tokio::select! {
        // An error is an end, too: that of a terminal is one.
        _end = tokio::io::copy(&mut output, &mut nowhere) => {}
        () = leader_ended => {}
    }
}

/// How much of a terminal's output is still its leader's, once that has ended.
pub(crate) fn last_words(leader_ended: CancellationToken) -> LastWords {
    LastWords { leader_ended, left: TERMINAL_HOLDS }
}

#[derive(Debug)]
pub(crate) struct LastWords {
    leader_ended: CancellationToken,
    left: usize,
}

impl LastWords {
    /// False when `count` is no output of interest: the terminal's end, or what children in the background go on
    /// writing.
    pub(crate) fn count(&mut self, count: usize) -> bool {
        if self.leader_ended.is_cancelled() {
            self.left = self.left.saturating_sub(count);
        }
        count > 0 && self.left > 0
    }

    /// Returns when the leader has ended and nothing more of it can be on its way.
    pub(crate) async fn silence(&self) {
        self.leader_ended.cancelled().await;
        tokio::time::sleep(TERMINAL_LAG).await;
    }
}

/// Reads what is there, whatever the runtime believes about readiness.
fn read_now(pipe: &pipe::Receiver, buffer: &mut BytesMut, most: usize) -> io::Result<usize> {
    let start = buffer.len();
    buffer.resize(start + most.min(CHUNK), 0);
    let read = rustix::io::read(pipe, &mut buffer[start..]);
    buffer.truncate(start + read.unwrap_or(0));
    Ok(read?)
}

pub(crate) async fn hang_up(leader: Leader) -> io::Result<ExitStatus> {
    leader.signal_group(Signal::HUP)?;
    // The whole time, even when the leader ends at once: others of its group may still be there, and while
    // the leader is not reaped nobody else can get its number.
    tokio::time::sleep(HANG_UP_GRACE).await;
    leader.signal_group(Signal::KILL)?;
    leader.exited().await?;
    leader.reap()
}
