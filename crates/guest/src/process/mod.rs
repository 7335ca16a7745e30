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

mod account;
mod launch;

use std::{
    collections::{BTreeMap, HashMap},
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
use tokio::{io::AsyncWriteExt, net::unix::pipe, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Request, Response, Status, Streaming};

pub(crate) use self::account::{Account, AccountError, find as find_account};
use self::launch::{Launch, LaunchError, Launched, Leader};
use crate::{desktop::display::DisplayAddress, system::environment::Environment};

const CHUNK: usize = 32 * 1024;
const QUEUED_OUTPUTS: usize = 4;
const QUEUED_INPUTS: usize = 16;
const HANG_UP_GRACE: Duration = Duration::from_secs(5);

/// What a shell answers for a command that is not there, or cannot be run.
const CODE_NOT_FOUND: i32 = 127;
const CODE_NOT_EXECUTABLE: i32 = 126;
const CODE_TIMED_OUT: i32 = 124;
const CODE_SIGNALLED: i32 = 128;

type Sent = Result<RunOutput, Status>;

#[derive(Debug)]
pub(crate) struct ProcessService {
    environment: Environment,
    desktop_user: String,
    display: DisplayAddress,
}

impl ProcessService {
    pub(crate) fn new(environment: Environment, desktop_user: String, display: DisplayAddress) -> Self {
        Self { environment, desktop_user, display }
    }

    fn prepare(&self, start: RunStart) -> Result<Launch, Status> {
        let RunStart { argv, cwd, env, user, timeout_ms: _, stdin } = start;
        if argv.first().is_none_or(String::is_empty) {
            return Err(Status::invalid_argument("argv must name a command"));
        }
        if argv.iter().chain([&cwd]).chain(env.values()).any(|text| text.contains('\0')) {
            return Err(Status::invalid_argument("argv, cwd and env must not contain NUL bytes"));
        }
        if let Some(name) = env.keys().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return Err(Status::invalid_argument(format!("`{name}` is no name for an environment variable")));
        }
        let user = if user.is_empty() { &self.desktop_user } else { &user };
        let account = account::find(user).map_err(|error| match error {
            account::AccountError::Unknown(_) => Status::not_found(error.to_string()),
            account::AccountError::Read { .. } => Status::internal(error.to_string()),
        })?;
        let cwd = match cwd {
            cwd if cwd.is_empty() => account.home.clone(),
            cwd if cwd.starts_with('/') => cwd,
            cwd => format!("{}/{cwd}", account.home),
        };
        let env = self.environment_of(&account, env);
        Ok(Launch { argv, cwd, env, account, stdin })
    }

    /// A login's environment, then the computer's, then the call's.
    fn environment_of(&self, account: &Account, call: HashMap<String, String>) -> BTreeMap<String, String> {
        let mut env = login_environment(account);
        if account.name == self.desktop_user {
            env.extend(session_environment(account, &self.display));
        } else if account.uid.is_root() {
            env.extend(display_environment(&self.display));
        }
        env.extend(self.environment.variables().iter().map(|(name, value)| (name.clone(), value.clone())));
        env.extend(call);
        env
    }
}

fn login_environment(account: &Account) -> BTreeMap<String, String> {
    let path = if account.uid.is_root() {
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()
    } else {
        format!("{}/.local/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games", account.home)
    };
    [
        ("HOME", account.home.as_str()),
        ("USER", &account.name),
        ("LOGNAME", &account.name),
        ("SHELL", &account.shell),
        ("PATH", &path),
        ("LANG", "C.UTF-8"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn display_environment(display: &DisplayAddress) -> BTreeMap<String, String> {
    let authority = display.authority().display().to_string();
    [("DISPLAY".to_owned(), display.name()), ("XAUTHORITY".to_owned(), authority)].into()
}

/// What makes a program part of the user's desktop session.
pub(crate) fn session_environment(account: &Account, display: &DisplayAddress) -> BTreeMap<String, String> {
    let runtime = format!("/run/user/{}", account.uid.as_raw());
    let mut env = display_environment(display);
    env.insert("DBUS_SESSION_BUS_ADDRESS".to_owned(), format!("unix:path={runtime}/bus"));
    env.insert("XDG_RUNTIME_DIR".to_owned(), runtime);
    env
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
        let limit = match start.timeout_ms {
            0 => None,
            limit => Some(Duration::from_millis(limit)),
        };
        let launch = self.prepare(start)?;
        let (output, outputs) = mpsc::channel(QUEUED_OUTPUTS);
        let began = Instant::now();
        match launch.start() {
            Ok(launched) => {
                tokio::spawn(supervise(launched, Limits { began, limit }, input, output));
            }
            Err(LaunchError::Program(name, error)) => {
                tokio::spawn(answer_like_a_shell(LaunchError::Program(name, error), began, output));
            }
            Err(error @ LaunchError::Directory(..)) => return Err(Status::not_found(error.to_string())),
            Err(error @ LaunchError::User(..)) => {
                return Err(Status::permission_denied(error.to_string()));
            }
            Err(error @ LaunchError::System(_)) => {
                return Err(Status::resource_exhausted(error.to_string()));
            }
        }
        Ok(Response::new(ReceiverStream::new(outputs)))
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
    let Launched { leader, stdin, stdout, stderr } = launched;
    let started = RunStarted { pid: leader.pid() };
    // A call that is already gone is noticed below.
    let _call_gone = send(&output, Output::Started(started)).await;
    let leader_ended = CancellationToken::new();
    let pumps = [
        AbortOnDropHandle::new(tokio::spawn(pump(
            stdout,
            Output::Stdout,
            output.clone(),
            leader_ended.clone(),
        ))),
        AbortOnDropHandle::new(tokio::spawn(pump(
            stderr,
            Output::Stderr,
            output.clone(),
            leader_ended.clone(),
        ))),
    ];
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
        drop(pumps);
        let (sent, ended) = tokio::join!(output.send(Err(status)), hang_up(leader));
        // That the call is gone is the usual reason to be here.
        let _call_gone = sent;
        if let Err(error) = ended {
            tracing::warn!(%error, "end a process whose call was dropped");
        }
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

fn exit(status: ExitStatus, timed_out: bool, duration_ms: u64) -> RunExit {
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
    stdin: Option<pipe::Sender>,
    output: &mpsc::Sender<Sent>,
) -> io::Result<Ending> {
    let wants_stdin = stdin.is_some();
    let (mut keyboard, _writer) = match stdin.map(Keyboard::new) {
        Some((keyboard, writer)) => (Some(keyboard), Some(writer)),
        None => (None, None),
    };
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
                Ok(Some(Input::CloseStdin(_))) => keyboard = None,
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
struct Keyboard {
    keys: mpsc::Sender<Bytes>,
}

impl Keyboard {
    /// The writer goes on after the keyboard is dropped, but not after its own handle is: a child in the
    /// background may hold a full pipe and never read it.
    fn new(mut stdin: pipe::Sender) -> (Self, AbortOnDropHandle<()>) {
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

/// Carries one output stream until its end or, once the leader has ended, until what is in the pipe now.
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
        let Ok(place) = output.reserve().await else { return };
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

/// Reads what is there, whatever the runtime believes about readiness.
fn read_now(pipe: &pipe::Receiver, buffer: &mut BytesMut, most: usize) -> io::Result<usize> {
    let start = buffer.len();
    buffer.resize(start + most.min(CHUNK), 0);
    let read = rustix::io::read(pipe, &mut buffer[start..]);
    buffer.truncate(start + read.unwrap_or(0));
    Ok(read?)
}

async fn hang_up(leader: Leader) -> io::Result<()> {
    leader.signal_group(Signal::HUP)?;
    // The whole time, even when the leader ends at once: others of its group may still be there, and while
    // the leader is not reaped nobody else can get its number.
    tokio::time::sleep(HANG_UP_GRACE).await;
    leader.signal_group(Signal::KILL)?;
    leader.exited().await?;
    leader.reap()?;
    Ok(())
}
