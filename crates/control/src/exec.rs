//! Running commands in a computer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use roost_api::{ApiError, ComputerId, ErrorCode, ExecRequest, ExecResult, PythonRequest};
use roost_guest_proto::v1::process_client::ProcessClient;
use roost_guest_proto::v1::run_input::Input;
use roost_guest_proto::v1::run_output::Output;
use roost_guest_proto::v1::{CloseStdin, RunInput, RunOutput, RunStart};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{Control, Failure};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(300);

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
}

impl ExecCommand {
    /// A command line for the login shell.
    pub fn shell(line: &str) -> Self {
        let argv = ["/bin/bash", "-lc", line].map(str::to_owned).to_vec();
        Self { argv, ..Self::default() }
    }
}

/// A command that runs. Dropping it hangs the command up.
#[derive(Debug)]
pub struct ExecSession {
    pub input: mpsc::Sender<RunInput>,
    pub output: tonic::Streaming<RunOutput>,
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
        };
        let start = RunInput { input: Some(Input::Start(start)) };
        let inputs = tokio_stream::StreamExt::chain(tokio_stream::once(start), ReceiverStream::new(inputs));
        let output = client.run(inputs).await.map_err(Failure::from_guest)?.into_inner();
        Ok(ExecSession { input, output })
    }

    /// `POST /exec`: runs a command line to its end.
    pub async fn exec(&self, id: ComputerId, request: ExecRequest) -> Result<ExecResult, Failure> {
        let line = request.command.filter(|line| !line.is_empty()).ok_or_else(|| {
            ApiError::new(ErrorCode::MissingParam, "command is required: the shell command to run")
        })?;
        let command = ExecCommand {
            cwd: request.cwd.or(request.working_dir).filter(|cwd| !cwd.is_empty()),
            env: request.env.unwrap_or_default().into_iter().collect(),
            user: request.user.filter(|user| !user.is_empty()),
            timeout: Some(timeout(request.timeout)),
            stdin: request.stdin.is_some(),
            ..ExecCommand::shell(&line)
        };
        self.exec_to_end(id, command, request.stdin).await
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

    /// An agent that stands still is as good as none: the caller is told, and does not wait for ever.
    async fn exec_to_end(
        &self,
        id: ComputerId,
        command: ExecCommand,
        stdin: Option<String>,
    ) -> Result<ExecResult, Failure> {
        let patience = command.timeout.unwrap_or(LONGEST_TIMEOUT) + GRACE;
        tokio::time::timeout(patience, self.run_to_end(id, command, stdin)).await.unwrap_or_else(|_| {
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
    ) -> Result<ExecResult, Failure> {
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
            let (mut output, mut stderr) = (Vec::new(), Vec::new());
            let mut truncated = false;
            while let Some(message) = session.output.message().await.map_err(Failure::from_guest)? {
                match message.output {
                    Some(Output::Stdout(bytes)) => truncated |= append(&mut output, &bytes),
                    Some(Output::Stderr(bytes)) => {
                        truncated |= append(&mut output, &bytes);
                        truncated |= append(&mut stderr, &bytes);
                    }
                    Some(Output::Exit(exit)) => {
                        return Ok(ExecResult {
                            output: text(output),
                            stderr: text(stderr),
                            exit_code: exit.code,
                            success: exit.code == 0,
                            duration_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                            timed_out: exit.timed_out,
                            truncated,
                        });
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

/// Adds what fits; true when something was dropped.
fn append(buffer: &mut Vec<u8>, bytes: &[u8]) -> bool {
    let room = MOST_OUTPUT - buffer.len();
    buffer.extend_from_slice(&bytes[..bytes.len().min(room)]);
    bytes.len() > room
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

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
}
