//! `roost shell`: a terminal session on a computer, in this terminal.
//!
//! The session stays when this program goes: whoever loses the connection finds it again. `~.` at the beginning of a
//! line leaves it on purpose.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use reqwest::Method;
use roost_api::{Computer, Terminal, TerminalClosed, TerminalList};
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use crate::client::Client;
use crate::output::{print_json, print_line, table};
use crate::socket::{Socket, SocketError, connect};
use crate::terminal::{RawMode, Size, keys};

#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    /// Name, slug or id
    name: String,
    /// Whose shell [default: user]
    #[arg(long)]
    user: Option<String>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Come back to a session instead of opening one
    #[arg(long, value_name = "ID", conflicts_with_all = ["user", "cwd"])]
    session: Option<String>,
    /// List the sessions there are
    #[arg(long, conflicts_with_all = ["session", "user", "cwd", "close"])]
    list: bool,
    /// Close a session
    #[arg(long, value_name = "ID", conflicts_with_all = ["session", "user", "cwd"])]
    close: Option<String>,
}

/// How often a lost connection is tried again before we give up.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) async fn shell(client: &Client, args: ShellArgs, json: bool) -> anyhow::Result<ExitCode> {
    let computer = client.find(&args.name).await?;
    let sessions = format!("/computers/{}/terminal", computer.id);
    if args.list {
        list(client.call(Method::GET, &sessions, None).await?, json)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(session) = args.close {
        let closed: TerminalClosed =
            client.call(Method::DELETE, &format!("{sessions}/{session}"), None).await?;
        if json {
            print_json(&closed)?;
        } else {
            print_line(&format!("{} is closed", closed.session_id))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        bail!("roost shell needs a terminal; run single commands with roost exec");
    }
    let session = match args.session {
        Some(session) => session,
        None => {
            let size = Size::now().unwrap_or(Size { rows: 24, columns: 80 });
            let body = json!({
                "rows": size.rows, "cols": size.columns, "user": args.user, "cwd": args.cwd,
                "env": local_environment(),
            });
            let opened: Terminal = client.call(Method::POST, &sessions, Some(&body)).await?;
            opened.session_id
        }
    };
    let raw = RawMode::enter().context("failed to take over this terminal")?;
    let end = stay(client, &computer, &session).await;
    drop(raw);
    match end? {
        End::Exit(code) => Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX))),
        End::Left => {
            let again = format!("roost shell {} --session {session}", computer.slug);
            print_line(&format!("\r\nleft; come back with: {again}"))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn list(sessions: TerminalList, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(&sessions);
    }
    if sessions.sessions.is_empty() {
        return print_line("no sessions");
    }
    let cells = |session: &roost_api::TerminalRow| {
        let minutes = format!("{} min", session.age_seconds / 60);
        let size = format!("{}x{}", session.cols, session.rows);
        vec![session.session_id.clone(), session.shell.clone(), size, minutes, session.viewers.to_string()]
    };
    let rows: Vec<_> = sessions.sessions.iter().map(cells).collect();
    print_line(&table(&["SESSION", "PROGRAM", "SIZE", "AGE", "VIEWERS"], &rows))
}

/// What a program needs to know of the terminal it is shown in.
pub(crate) fn local_environment() -> serde_json::Map<String, serde_json::Value> {
    let known = ["TERM", "COLORTERM"].into_iter();
    known.filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?.into()))).collect()
}

enum End {
    Exit(i32),
    Left,
}

/// Shows the session through as many connections as it takes.
async fn stay(client: &Client, computer: &Computer, session: &str) -> anyhow::Result<End> {
    let mut keys = keys();
    let mut resized = signal(SignalKind::window_change())?;
    let mut leaving = Leaving::default();
    let mut tries = 0;
    loop {
        let size = Size::now().map(|size| format!("&rows={}&cols={}", size.rows, size.columns));
        let url = format!(
            "{}/ws/terminal/{}?session_id={session}{}",
            client.socket_origin(),
            computer.id,
            size.unwrap_or_default()
        );
        match connect(client, &url, None).await {
            Ok(socket) => {
                tries = 0;
                if let Some(end) = show(socket, &mut keys, &mut resized, &mut leaving).await? {
                    return Ok(end);
                }
            }
            Err(error @ (SocketError::Refused(_) | SocketError::Address(_))) => return Err(error.into()),
            Err(error) if tries == TRIES => return Err(error.into()),
            Err(SocketError::Unreachable(_)) => tries += 1,
        }
        write("\r\n[connection lost; trying again]\r\n").await?;
        tokio::time::sleep(PAUSE).await;
    }
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Frame {
    Output {
        data: String,
    },
    Exit {
        code: i32,
    },
    #[serde(other)]
    Other,
}

/// `None`: the connection is lost, and the session is not.
async fn show(
    socket: Socket,
    keys: &mut mpsc::Receiver<Vec<u8>>,
    resized: &mut Signal,
    leaving: &mut Leaving,
) -> anyhow::Result<Option<End>> {
    let (mut sink, mut stream) = socket.split();
    loop {
        let message = tokio::select! {
            message = stream.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let frame = serde_json::from_str(text.as_str());
                    match frame.context("the server sent a broken frame")? {
                        Frame::Output { data } => write(&data).await?,
                        Frame::Exit { code } => return Ok(Some(End::Exit(code))),
                        Frame::Other => {}
                    }
                    continue;
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(None),
                Some(Ok(_)) => continue,
            },
            pressed = keys.recv() => match pressed {
                Some(pressed) => match leaving.hear(&pressed) {
                    Some(keys) if keys.is_empty() => continue,
                    Some(keys) => Message::binary(keys),
                    None => return Ok(Some(End::Left)),
                },
                None => return Ok(Some(End::Left)),
            },
            _ = resized.recv() => match Size::now() {
                Some(size) => {
                    let frame = json!({ "type": "resize", "cols": size.columns, "rows": size.rows });
                    Message::text(frame.to_string())
                }
                None => continue,
            },
        };
        if sink.send(message).await.is_err() {
            return Ok(None);
        }
    }
}

async fn write(text: &str) -> anyhow::Result<()> {
    let mut out = tokio::io::stdout();
    out.write_all(text.as_bytes()).await?;
    Ok(out.flush().await?)
}

/// Looks for `~.` at the beginning of a line.
#[derive(Debug, Default)]
enum Leaving {
    #[default]
    LineStart,
    Tilde,
    InLine,
}

impl Leaving {
    /// What goes to the computer; `None` when the person wants to leave.
    fn hear(&mut self, keys: &[u8]) -> Option<Vec<u8>> {
        let mut passed = Vec::with_capacity(keys.len());
        for &key in keys {
            match (&self, key) {
                (Self::LineStart, b'~') => {
                    *self = Self::Tilde;
                    continue;
                }
                (Self::Tilde, b'.') => return None,
                (Self::Tilde, b'~') => *self = Self::InLine, // two of them are one
                (Self::Tilde, _) => {
                    passed.push(b'~');
                    *self = Self::after(key);
                }
                (Self::LineStart | Self::InLine, _) => *self = Self::after(key),
            }
            passed.push(key);
        }
        Some(passed)
    }

    fn after(key: u8) -> Self {
        if key == b'\r' || key == b'\n' { Self::LineStart } else { Self::InLine }
    }
}

#[cfg(test)]
mod tests {
    use super::Leaving;

    #[test]
    fn only_a_tilde_and_a_dot_at_the_beginning_of_a_line_leave() {
        let cases: [(&[u8], Option<&[u8]>); 8] = [
            (b"ls\r", Some(b"ls\r")),
            (b"~.", None),
            (b"ls\r~.", None),
            (b"ls ~.", Some(b"ls ~.")),
            (b"~/bin\r", Some(b"~/bin\r")),
            (b"~~.", Some(b"~.")),
            (b"~", Some(b"")),
            (b"~\r~.", None),
        ];
        for (keys, passed) in cases {
            assert_eq!(Leaving::default().hear(keys).as_deref(), passed, "{keys:?}");
            // However the keys come.
            let mut leaving = Leaving::default();
            let pieces: Option<Vec<Vec<u8>>> = keys.iter().map(|key| leaving.hear(&[*key])).collect();
            assert_eq!(pieces.map(|pieces| pieces.concat()).as_deref(), passed, "{keys:?} key by key");
        }
    }
}
