//! `roost exec`: a command in a computer, its streams connected to ours.

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use std::io::IsTerminal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;

use crate::client::{Client, refusal};
use crate::output::print_json;

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
    let mut query = vec![("command", line.as_str())];
    query.extend(args.cwd.as_deref().map(|cwd| ("cwd", cwd)));
    query.extend(args.user.as_deref().map(|user| ("user", user)));
    query.extend(args.env.iter().map(|pair| ("env", pair.as_str())));
    let base = client.socket_url(&format!("/computers/{}/exec/stream", computer.id));
    let url =
        reqwest::Url::parse_with_params(&base, &query).context("the address of the server is not valid")?;

    let mut request = url.as_str().into_client_request()?;
    let headers = request.headers_mut();
    headers.insert("authorization", HeaderValue::from_str(&format!("Bearer {}", client.key()))?);
    headers.insert("sec-websocket-protocol", HeaderValue::from_static(PROTOCOL));
    let (socket, _) = match tokio_tungstenite::connect_async(request).await {
        Ok(connected) => connected,
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            return Err(refusal(response.status().as_u16(), &String::from_utf8_lossy(body)));
        }
        Err(error) => return Err(error).context("failed to reach the server: is it running?"),
    };
    let (mut sink, mut stream) = socket.split();

    // A person at a terminal without `-it` is not asked for input; a pipe or a file is passed on.
    let feed = async {
        let mut stdin = tokio::io::stdin();
        if !std::io::stdin().is_terminal() {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let length = stdin.read(&mut buffer[1..]).await.context("failed to read standard input")?;
                if length == 0 {
                    break;
                }
                buffer[0] = 0x00;
                // A command that has ended takes no input; its exit code is on the way.
                if sink.send(Message::binary(buffer[..=length].to_vec())).await.is_err() {
                    break;
                }
            }
        }
        drop(sink.send(Message::binary(vec![0x04])).await);
        // The connection stays open for output until the command ends.
        std::future::pending::<anyhow::Result<()>>().await
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let collect = async {
        while let Some(message) = stream.next().await {
            let Message::Binary(frame) = message.context("the connection to the server was lost")? else {
                continue;
            };
            match frame.split_first() {
                Some((0x01, bytes)) if json => stdout.extend_from_slice(bytes),
                Some((0x02, bytes)) if json => stderr.extend_from_slice(bytes),
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
        code = collect => code?,
        Err(error) = feed => return Err(error),
    };
    if json {
        print_json(&json!({
            "stdout": String::from_utf8_lossy(&stdout),
            "stderr": String::from_utf8_lossy(&stderr),
            "exit_code": code,
        }))?;
    }
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)))
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
