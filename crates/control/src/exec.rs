//! Running commands in a computer.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use roost_api::{
    ApiError, CommandRequest, CommandResult, ComputerId, ErrorCode, ExecRequest, ExecResult,
    ExecStreamRequest, ExecTicket, PythonRequest, Timestamp,
};
use roost_guest_proto::v1::process_client::ProcessClient;
use roost_guest_proto::v1::run_input::Input;
use roost_guest_proto::v1::run_output::Output;
use roost_guest_proto::v1::{CloseStdin, RunExit, RunInput, RunOutput, RunStart, TerminalSize};
use roost_store::Caller;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{Control, Failure};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(300);

/// Of `POST /commands`.
const DEFAULT_COMMAND_TIMEOUT: u64 = 60;
const LONGEST_COMMAND_TIMEOUT: u64 = 600;
const LONGEST_COMMAND: usize = 64 * 1024;
const LONGEST_COMMAND_STDIN: usize = 32 * 1024;

/// The agent ends a command at its timeout. How long its word of that may take on a busy host.
const GRACE: Duration = Duration::from_secs(30);

/// The most output one answer holds, per stream. More is read and dropped: the command is not blocked, and
/// the server's memory is bounded.
const MOST_OUTPUT: usize = 8 * 1024 * 1024;

/// What to run, as every route that runs something says it.
#[derive(Debug, Clone, Default)]
pub struct ExecCommand {
    pub argv: Vec<String>,
    pub cwd: Option<String>,
    pub env: HashMap<String, String>,
    pub user: Option<String>,
    /// `None` runs until it ends or the caller goes away.
    pub timeout: Option<Duration>,
    pub stdin: bool,
    /// On a terminal of this size instead of pipes.
    pub terminal: Option<TerminalSize>,
}

impl ExecCommand {
    /// A command line for the login shell.
    pub fn shell(line: &str) -> Self {
        let argv = ["/bin/bash", "-lc", line].map(str::to_owned).to_vec();
        Self { argv, ..Self::default() }
    }

    /// The same, but it goes on after its answer, which is the number of its process.
    fn detached(line: &str) -> Self {
        let script = "setsid /bin/bash -lc \"$1\" </dev/null >/dev/null 2>&1 & echo $!";
        let argv = ["/bin/bash", "-lc", script, "bash", line].map(str::to_owned).to_vec();
        Self { argv, ..Self::default() }
    }
}

/// What a command says, in order.
pub type ExecOutputs = tonic::Streaming<RunOutput>;

/// A command that runs. Dropping it hangs the command up.
#[derive(Debug)]
pub struct ExecSession {
    pub input: mpsc::Sender<RunInput>,
    pub output: ExecOutputs,
}

impl Control {
    pub async fn exec_start(&self, id: ComputerId, command: ExecCommand) -> Result<ExecSession, Failure> {
        let mut client = ProcessClient::new(self.guest(id).await?);
        let (input, inputs) = mpsc::channel(16);
        let start = RunStart {
            argv: command.argv,
            cwd: command.cwd.unwrap_or_default(),
            env: command.env,
            user: command.user.unwrap_or_default(),
            timeout_ms: command
                .timeout
                .map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
            stdin: command.stdin,
            terminal: command.terminal,
        };
        let start = RunInput { input: Some(Input::Start(start)) };
        let inputs = tokio_stream::StreamExt::chain(tokio_stream::once(start), ReceiverStream::new(inputs));
        let output = client.run(inputs).await.map_err(Failure::from_guest)?.into_inner();
        Ok(ExecSession { input, output })
    }

    /// `POST /exec`: runs a command line to its end, or in the background.
    pub async fn exec(&self, id: ComputerId, request: ExecRequest) -> Result<ExecResult, Failure> {
        let line = request.command.filter(|line| !line.is_empty()).ok_or_else(|| {
            ApiError::new(ErrorCode::MissingParam, "command is required: the shell command to run")
        })?;
        let is_background = request.background.unwrap_or_default();
        if is_background && request.stdin.is_some() {
            let message = "a command in the background has no standard input; leave stdin out";
            return Err(ApiError::field("stdin", message).into());
        }
        let shell = if is_background { ExecCommand::detached(&line) } else { ExecCommand::shell(&line) };
        let command = ExecCommand {
            cwd: request.cwd.or(request.working_dir).filter(|cwd| !cwd.is_empty()),
            env: request.env.unwrap_or_default().into_iter().collect(),
            user: request.user.filter(|user| !user.is_empty()),
            timeout: Some(timeout(request.timeout)),
            stdin: request.stdin.is_some(),
            ..shell
        };
        let mut result = self.exec_to_end(id, command, request.stdin).await?;
        if is_background && result.success {
            result.pid = std::mem::take(&mut result.output).trim().parse().ok();
        }
        Ok(result)
    }

    /// `POST /commands`: runs a command line to its end, with its streams apart.
    pub async fn command(&self, id: ComputerId, request: CommandRequest) -> Result<CommandResult, Failure> {
        let line = request.command.filter(|line| !line.is_empty()).ok_or_else(|| {
            ApiError::new(ErrorCode::MissingParam, "command is required: the shell command to run")
        })?;
        if line.len() > LONGEST_COMMAND {
            let message = format!("longer than {LONGEST_COMMAND} bytes; put it into a file and run that");
            return Err(ApiError::field("command", message).into());
        }
        if request.stdin.as_ref().is_some_and(|stdin| stdin.len() > LONGEST_COMMAND_STDIN) {
            let message = format!("longer than {LONGEST_COMMAND_STDIN} bytes; upload a file and redirect it");
            return Err(ApiError::field("stdin", message).into());
        }
        let seconds = request.timeout_seconds.unwrap_or(DEFAULT_COMMAND_TIMEOUT);
        if !(1..=LONGEST_COMMAND_TIMEOUT).contains(&seconds) {
            let message = format!("timeout_seconds must be 1 to {LONGEST_COMMAND_TIMEOUT}, not {seconds}");
            let mut error = ApiError::new(ErrorCode::TimeoutTooLong, message.clone());
            error.fields.insert("timeout_seconds".to_owned(), vec![message]);
            return Err(error.into());
        }
        let command = ExecCommand {
            cwd: request.cwd.filter(|cwd| !cwd.is_empty()),
            timeout: Some(Duration::from_secs(seconds)),
            stdin: request.stdin.is_some(),
            ..ExecCommand::shell(&line)
        };
        self.run_apart(id, command, request.stdin).await
    }

    /// Runs a command to its end, with its streams apart.
    pub(crate) async fn run_apart(
        &self,
        id: ComputerId,
        command: ExecCommand,
        stdin: Option<String>,
    ) -> Result<CommandResult, Failure> {
        let ran = self.patiently(id, command, stdin, Collect::apart()).await?;
        Ok(CommandResult {
            stdout: text(ran.collected.stdout),
            stderr: text(ran.collected.stderr),
            exit_code: ran.exit.code,
            duration_ms: ran.duration_ms,
            timed_out: ran.exit.timed_out,
            stdout_truncated: ran.collected.stdout_truncated,
            stderr_truncated: ran.collected.stderr_truncated,
        })
    }

    /// `POST /exec/python`: runs Python code to its end. The code goes in through standard input, so its
    /// length has no limit of its own.
    pub async fn exec_python(&self, id: ComputerId, request: PythonRequest) -> Result<ExecResult, Failure> {
        let code = request.code.filter(|code| !code.is_empty()).ok_or_else(|| {
            ApiError::new(ErrorCode::MissingParam, "code is required: the Python code to run")
        })?;
        let script = "file=$(mktemp --suffix=.py) && trap 'rm -f \"$file\"' EXIT && cat >\"$file\" && python3 \"$file\" </dev/null";
        let command = ExecCommand {
            timeout: Some(timeout(request.timeout)),
            stdin: true,
            ..ExecCommand::shell(script)
        };
        self.exec_to_end(id, command, Some(code)).await
    }

    pub(crate) async fn exec_to_end(
        &self,
        id: ComputerId,
        command: ExecCommand,
        stdin: Option<String>,
    ) -> Result<ExecResult, Failure> {
        let ran = self.patiently(id, command, stdin, Collect::together()).await?;
        Ok(ExecResult {
            output: text(ran.collected.stdout),
            stderr: text(ran.collected.stderr),
            exit_code: ran.exit.code,
            success: ran.exit.code == 0,
            duration_ms: ran.duration_ms,
            timed_out: ran.exit.timed_out,
            truncated: ran.collected.stdout_truncated || ran.collected.stderr_truncated,
            pid: None,
        })
    }

    /// An agent that stands still is as good as none: the caller is told, and does not wait for ever.
    async fn patiently(
        &self,
        id: ComputerId,
        command: ExecCommand,
        stdin: Option<String>,
        collect: Collect,
    ) -> Result<Ran, Failure> {
        let patience = command.timeout.unwrap_or(LONGEST_TIMEOUT) + GRACE;
        let run = self.run_to_end(id, command, stdin, collect);
        tokio::time::timeout(patience, run).await.unwrap_or_else(|_| {
            Err(Failure::new(
                ErrorCode::AgentUnavailable,
                "the computer did not answer when the command's time was over; it may have had effects",
            ))
        })
    }

    async fn run_to_end(
        &self,
        id: ComputerId,
        command: ExecCommand,
        stdin: Option<String>,
        mut collected: Collect,
    ) -> Result<Ran, Failure> {
        let begun = Instant::now();
        let mut session = self.exec_start(id, command).await?;
        let input = session.input.clone();
        let feed = async {
            let Some(text) = stdin else { return };
            let bytes = Bytes::from(text);
            for start in (0..bytes.len()).step_by(64 * 1024) {
                let piece = bytes.slice(start..bytes.len().min(start + 64 * 1024));
                // A command that ends early does not read the rest.
                if input.send(RunInput { input: Some(Input::Stdin(piece)) }).await.is_err() {
                    return;
                }
            }
            drop(input.send(RunInput { input: Some(Input::CloseStdin(CloseStdin {})) }).await);
        };
        let collect = async {
            while let Some(message) = session.output.message().await.map_err(Failure::from_guest)? {
                match message.output {
                    Some(Output::Stdout(bytes)) => collected.stdout(&bytes),
                    Some(Output::Stderr(bytes)) => collected.stderr(&bytes),
                    Some(Output::Exit(exit)) => {
                        let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                        return Ok(Ran { collected, exit, duration_ms });
                    }
                    Some(Output::Started(_)) | None => {}
                }
            }
            Err(Failure::new(
                ErrorCode::AgentUnavailable,
                "the connection to the computer ended before the command did; it may have had effects",
            ))
        };
        let mut collect = std::pin::pin!(collect);
        tokio::select! {
            result = &mut collect => result,
            () = feed => collect.await,
        }
    }
}

/// How a command went.
#[derive(Debug)]
struct Ran {
    collected: Collect,
    exit: RunExit,
    duration_ms: u64,
}

/// What a command has printed, up to a limit.
#[derive(Debug, Default)]
struct Collect {
    /// Standard error among it, where that is wanted.
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    stdout_truncated: bool,
    stderr_truncated: bool,
    is_together: bool,
}

impl Collect {
    fn apart() -> Self {
        Self::default()
    }

    fn together() -> Self {
        Self { is_together: true, ..Self::default() }
    }

    fn stdout(&mut self, bytes: &[u8]) {
        self.stdout_truncated |= append(&mut self.stdout, bytes);
    }

    fn stderr(&mut self, bytes: &[u8]) {
        if self.is_together {
            self.stdout_truncated |= append(&mut self.stdout, bytes);
        }
        self.stderr_truncated |= append(&mut self.stderr, bytes);
    }
}

/// Adds what fits; true when something was dropped.
fn append(buffer: &mut Vec<u8>, bytes: &[u8]) -> bool {
    let room = MOST_OUTPUT - buffer.len();
    buffer.extend_from_slice(&bytes[..bytes.len().min(room)]);
    bytes.len() > room
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// What is asked for with a ticket, as it travels sealed in it.
#[derive(Debug, Serialize, Deserialize)]
struct Ticketed {
    /// Counts once, at any server.
    once: String,
    computer: ComputerId,
    command: String,
    shell: String,
    timeout_ms: u64,
}

const TICKET: &str = "ext_";
const TICKET_CONTEXT: &str = "exec ticket";

impl Control {
    /// A ticket that runs a command when its stream is opened.
    pub async fn exec_ticket(
        &self,
        caller: &Caller,
        id: ComputerId,
        request: ExecStreamRequest,
    ) -> Result<ExecTicket, Failure> {
        let command = request.command.filter(|line| !line.is_empty()).ok_or_else(|| {
            ApiError::new(ErrorCode::MissingParam, "command is required: the shell command to run")
        })?;
        if command.len() > LONGEST_COMMAND {
            let message = format!("longer than {LONGEST_COMMAND} bytes; put it into a file and run that");
            return Err(ApiError::field("command", message).into());
        }
        let once = self.sse_ticket(caller).await?;
        let ticketed = Ticketed {
            once: once.ticket,
            computer: id,
            command,
            shell: request.shell.filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/bash".to_owned()),
            timeout_ms: u64::try_from(timeout(request.timeout).as_millis()).unwrap_or(u64::MAX),
        };
        let plain = serde_json::to_vec(&ticketed).map_err(Failure::internal)?;
        let ticket = format!("{TICKET}{}", self.inner.config.seal_key.seal(TICKET_CONTEXT, &plain)?);
        let origin = &self.inner.config.urls.origin;
        let holds = i64::try_from(once.expires_in).unwrap_or(i64::MAX) * 1_000_000;
        let until = Timestamp::from_micros(Timestamp::now().as_micros().saturating_add(holds));
        Ok(ExecTicket {
            stream_url: format!("{origin}/api/v1/computers/{id}/exec/stream/events?ticket={ticket}"),
            ticket,
            expires_at: until.unwrap_or_else(Timestamp::now),
        })
    }

    /// Runs what the ticket is for, and says for whom. It is used up.
    pub async fn exec_with_ticket(
        &self,
        id: ComputerId,
        ticket: &str,
    ) -> Result<(Caller, ExecLines), Failure> {
        let sealed = ticket.strip_prefix(TICKET);
        let plain = sealed.and_then(|sealed| self.inner.config.seal_key.open(TICKET_CONTEXT, sealed));
        let ticketed = plain.and_then(|plain| serde_json::from_slice::<Ticketed>(&plain).ok());
        let ticketed = ticketed.filter(|ticketed| ticketed.computer == id).ok_or_else(|| {
            Failure::new(ErrorCode::InvalidToken, "the ticket is not one for a command on this computer")
        })?;
        let caller = self.redeem(&ticketed.once).await?;
        let record = self.get(&caller, id).await?;
        self.require_running(&record)?;
        let command = ExecCommand {
            argv: vec![ticketed.shell, "-lc".to_owned(), ticketed.command],
            timeout: Some(Duration::from_millis(ticketed.timeout_ms)),
            ..ExecCommand::default()
        };
        let session = self.exec_start(id, command).await?;
        let lines = ExecLines {
            session,
            stdout: Lines::default(),
            stderr: Lines::default(),
            ready: VecDeque::new(),
            has_ended: false,
        };
        Ok((caller, lines))
    }
}

/// What a command prints, line by line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecLine {
    Stdout(String),
    Stderr(String),
    /// The last one.
    Exit(i32),
    /// The last one where the computer was lost: the command may have had effects.
    Lost,
}

/// A command whose output is read line by line. Dropping it hangs the command up.
#[derive(Debug)]
pub struct ExecLines {
    session: ExecSession,
    stdout: Lines,
    stderr: Lines,
    ready: VecDeque<ExecLine>,
    has_ended: bool,
}

impl ExecLines {
    /// `None` after the last one.
    pub async fn next(&mut self) -> Option<ExecLine> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.has_ended {
                return None;
            }
            match self.session.output.message().await {
                Ok(Some(RunOutput { output: Some(Output::Stdout(bytes)) })) => {
                    self.ready.extend(self.stdout.push(&bytes).into_iter().map(ExecLine::Stdout));
                }
                Ok(Some(RunOutput { output: Some(Output::Stderr(bytes)) })) => {
                    self.ready.extend(self.stderr.push(&bytes).into_iter().map(ExecLine::Stderr));
                }
                Ok(Some(RunOutput { output: Some(Output::Exit(exit)) })) => {
                    self.ready.extend(self.stdout.finish().map(ExecLine::Stdout));
                    self.ready.extend(self.stderr.finish().map(ExecLine::Stderr));
                    self.ready.push_back(ExecLine::Exit(exit.code));
                    self.has_ended = true;
                }
                Ok(Some(RunOutput { output: Some(Output::Started(_)) | None })) => {}
                Ok(None) | Err(_) => {
                    self.ready.push_back(ExecLine::Lost);
                    self.has_ended = true;
                }
            }
        }
    }
}

/// A line that is longer comes in parts.
const LONGEST_LINE: usize = 64 * 1024;

/// Holds back the line that is not complete yet.
#[derive(Debug, Default)]
struct Lines {
    held: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.held.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.held.pop();
                lines.push(text(std::mem::take(&mut self.held)));
            } else if self.held.len() >= LONGEST_LINE {
                lines.push(text(std::mem::take(&mut self.held)));
            }
        }
        lines
    }

    fn finish(&mut self) -> Option<String> {
        let held = std::mem::take(&mut self.held);
        (!held.is_empty()).then(|| text(held))
    }
}

/// 422 for what no terminal is.
pub fn terminal_size(rows: u32, columns: u32) -> Result<TerminalSize, ApiError> {
    let check = |field, count| match (1..=MOST_CELLS).contains(&count) {
        true => Ok(count),
        false => Err(ApiError::field(field, format!("{count} is not within 1-{MOST_CELLS}"))),
    };
    Ok(TerminalSize { rows: check("rows", rows)?, columns: check("cols", columns)? })
}

/// As the guest has it.
const MOST_CELLS: u32 = 1000;

/// The wire's `timeout`: seconds, but one published client sends milliseconds.
fn timeout(value: Option<u64>) -> Duration {
    match value {
        None | Some(0) => DEFAULT_TIMEOUT,
        Some(milliseconds) if milliseconds > 3600 => Duration::from_millis(milliseconds).min(LONGEST_TIMEOUT),
        Some(seconds) => Duration::from_secs(seconds).min(LONGEST_TIMEOUT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_in_both_units_and_bounded() {
        let cases = [
            (None, 30_000),
            (Some(0), 30_000),
            (Some(5), 5_000),
            (Some(301), 300_000),
            (Some(3600), 300_000),
            (Some(5_000), 5_000),
            (Some(u64::MAX), 300_000),
        ];
        for (value, milliseconds) in cases {
            assert_eq!(timeout(value), Duration::from_millis(milliseconds), "{value:?}");
        }
    }

    #[test]
    fn output_is_bounded() {
        let mut buffer = vec![0; MOST_OUTPUT - 2];
        assert!(!append(&mut buffer, b"ab"));
        assert!(append(&mut buffer, b"c"));
        assert_eq!(buffer.len(), MOST_OUTPUT);
    }

    #[test]
    fn lines_are_whole_whatever_the_pieces() {
        let printed = b"one\n\ntwo\xffx\nlast";
        for size in 1..=printed.len() {
            let mut lines = Lines::default();
            let mut all: Vec<String> = printed.chunks(size).flat_map(|piece| lines.push(piece)).collect();
            all.extend(lines.finish());
            assert_eq!(all, ["one", "", "two\u{fffd}x", "last"], "pieces of {size}");
        }
    }

    #[test]
    fn a_line_without_an_end_comes_in_parts() {
        let mut lines = Lines::default();
        let parts: Vec<String> = (0..5).flat_map(|_| lines.push(&[b'x'; LONGEST_LINE / 2])).collect();
        assert_eq!(parts.iter().map(String::len).collect::<Vec<_>>(), [LONGEST_LINE, LONGEST_LINE]);
        assert_eq!(lines.finish().unwrap().len(), LONGEST_LINE / 2);
    }
}
