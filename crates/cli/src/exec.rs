//! `roost exec`: a command in a computer, its streams connected to ours.

use std::convert::Infallible;
use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use roost_api::Computer;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use crate::client::Client;
use crate::output::print_json;
use crate::shell::local_environment;
use crate::socket::{SocketError, connect, framed};
use crate::terminal::{RawMode, Size, keys};

const PROTOCOL: &str = "miosa-exec-v1";

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Name, slug or id
    name: String,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Who runs it [default: user]
    #[arg(long)]
    user: Option<String>,
    /// Variables for the command
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Pass on what is typed
    #[arg(short, long)]
    interactive: bool,
    /// Run it on a terminal
    #[arg(short, long = "tty")]
    terminal: bool,
    /// One argument is a line for the shell; several are a program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

pub(crate) async fn exec(client: &Client, args: &ExecArgs, json: bool) -> anyhow::Result<ExitCode> {
    let computer = client.find(&args.name).await?;
    let line = match args.command.as_slice() {
        [line] => line.clone(),
        words => words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" "),
    };
    let size = args.terminal.then(|| Size::now().unwrap_or(Size { rows: 24, columns: 80 }));
    let size = size.map(|size| (size.rows.to_string(), size.columns.to_string()));
    let mut env = args.env.clone();
    if args.terminal {
        for (name, value) in local_environment() {
            env.insert(0, format!("{name}={}", value.as_str().unwrap_or_default()));
        }
    }
    let mut query = vec![("command", line.as_str())];
    query.extend(args.cwd.as_deref().map(|cwd| ("cwd", cwd)));
    query.extend(args.user.as_deref().map(|user| ("user", user)));
    query.extend(env.iter().map(|pair| ("env", pair.as_str())));
    if let Some((rows, columns)) = &size {
        query.extend([("tty", "true"), ("rows", rows), ("cols", columns)]);
    }
    // A person at a terminal without `-i` is not asked for input; a pipe or a file is passed on.
    let streams = match (args.terminal, args.interactive || !std::io::stdin().is_terminal()) {
        _ if json => Streams::Collected,
        (true, true) => Streams::Terminal,
        (false, true) => Streams::Passed,
        (_, false) => Streams::NoInput,
    };
    run(client, &computer, &query, streams).await
}

/// What becomes of the streams of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    /// They are ours.
    Passed,
    /// The same, but it gets no input.
    NoInput,
    /// Both ends are terminals.
    Terminal,
    /// Its output is printed as JSON when it has ended. Its input is ours if that is no terminal.
    Collected,
}

const STDIN: u8 = 0x00;
const STDIN_END: u8 = 0x04;
const RESIZE: u8 = 0x05;

/// Runs a command to its end, and ends with its code.
pub(crate) async fn run(
    client: &Client,
    computer: &Computer,
    query: &[(&str, &str)],
    streams: Streams,
) -> anyhow::Result<ExitCode> {
    let base = client.socket_url(&format!("/computers/{}/exec/stream", computer.id));
    let url =
        reqwest::Url::parse_with_params(&base, query).context("the address of the server is not valid")?;
    let socket = connect(client, url.as_str(), Some(PROTOCOL)).await.map_err(|error| match error {
        SocketError::Refused(refused) => refused,
        other => other.into(),
    })?;
    let (mut sink, mut stream) = socket.split();
    let raw = match streams {
        Streams::Terminal => RawMode::enter().context("failed to take over this terminal")?,
        Streams::Passed | Streams::NoInput | Streams::Collected => None,
    };
    let has_input = match streams {
        Streams::Passed | Streams::Terminal => true,
        Streams::NoInput => false,
        Streams::Collected => !std::io::stdin().is_terminal(),
    };
    let mut resized = signal(SignalKind::window_change())?;
    let feed = async {
        let mut keys = has_input.then(keys);
        if keys.is_none() {
            // The exit code says whether that arrived.
            drop(sink.send(framed(STDIN_END, &[])).await);
        }
        loop {
            let frame = tokio::select! {
                pressed = next_of(&mut keys) => match pressed {
                    Some(pressed) => framed(STDIN, &pressed),
                    None => {
                        keys = None;
                        framed(STDIN_END, &[])
                    }
                },
                _ = resized.recv(), if streams == Streams::Terminal => match Size::now() {
                    Some(size) => {
                        let [a, b] = size.rows.to_be_bytes();
                        let [c, d] = size.columns.to_be_bytes();
                        framed(RESIZE, &[a, b, c, d])
                    }
                    None => continue,
                },
            };
            // A command that has ended takes no input; its exit code is on the way.
            if sink.send(frame).await.is_err() {
                return std::future::pending::<Infallible>().await;
            }
        }
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let is_collected = streams == Streams::Collected;
    let collect = async {
        while let Some(message) = stream.next().await {
            let Message::Binary(frame) = message.context("the connection to the server was lost")? else {
                continue;
            };
            match frame.split_first() {
                Some((0x01, bytes)) if is_collected => stdout.extend_from_slice(bytes),
                Some((0x02, bytes)) if is_collected => stderr.extend_from_slice(bytes),
                Some((0x01, bytes)) => write(tokio::io::stdout(), bytes).await?,
                Some((0x02, bytes)) => write(tokio::io::stderr(), bytes).await?,
                Some((0x03, bytes)) => {
                    let code = bytes.try_into().context("the server sent a broken exit code")?;
                    return Ok(i32::from_be_bytes(code));
                }
                _ => {}
            }
        }
        bail!("the connection ended before the command did; it may have had effects")
    };
    let code = tokio::select! {
        code = collect => code,
        never = feed => match never {},
    };
    drop(raw);
    let code = code?;
    if is_collected {
        print_json(&json!({
            "stdout": String::from_utf8_lossy(&stdout),
            "stderr": String::from_utf8_lossy(&stderr),
            "exit_code": code,
        }))?;
    }
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)))
}

/// The next piece of input; `None` at its end, and never anything where there is none.
async fn next_of(keys: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match keys {
        Some(keys) => keys.recv().await,
        None => std::future::pending().await,
    }
}

async fn write(mut out: impl tokio::io::AsyncWrite + Unpin, bytes: &[u8]) -> anyhow::Result<()> {
    out.write_all(bytes).await?;
    Ok(out.flush().await?)
}

/// One word for the shell.
fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:@%+,".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn words_reach_the_program_unchanged() {
        let cases =
            [("ls", "ls"), ("", "''"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("$HOME", "'$HOME'")];
        for (word, quoted) in cases {
            assert_eq!(quote(word), quoted);
        }
    }
}
