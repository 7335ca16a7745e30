//! Clients of the server's WebSockets, made by hand from what is published of their frames.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::Client;

pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Nothing that is waited for takes so long, also under emulation on a busy host.
pub const PATIENCE: Duration = Duration::from_secs(180);

impl Client {
    /// A socket, with what the server says of the subprotocol. A client without a key sends none.
    pub async fn socket(
        &self,
        path: &str,
        query: &[(&str, &str)],
        protocol: Option<&str>,
    ) -> Result<(Socket, Option<String>)> {
        let base = format!("{}{path}", self.url.replacen("http", "ws", 1));
        let url = reqwest::Url::parse_with_params(&base, query)?;
        let mut request = url.as_str().into_client_request()?;
        if !self.key.is_empty() {
            request.headers_mut().insert("authorization", format!("Bearer {}", self.key).parse()?);
        }
        if let Some(protocol) = protocol {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse()?);
        }
        let (socket, response) = tokio_tungstenite::connect_async(request).await?;
        let agreed = response.headers().get("sec-websocket-protocol");
        let agreed = agreed.map(|agreed| agreed.to_str().map(str::to_owned)).transpose()?;
        Ok((socket, agreed))
    }
}

/// A command over `miosa-exec-v1`.
#[derive(Debug)]
pub struct Framed {
    pub socket: Socket,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Framed {
    pub const STDIN: u8 = 0x00;
    pub const STDIN_END: u8 = 0x04;
    pub const RESIZE: u8 = 0x05;

    pub async fn start(client: &Client, id: &str, query: &[(&str, &str)]) -> Result<Self> {
        let path = format!("/api/v1/computers/{id}/exec/stream");
        let (socket, agreed) = client.socket(&path, query, Some("miosa-exec-v1")).await?;
        ensure!(agreed.as_deref() == Some("miosa-exec-v1"), "the server chose {agreed:?}");
        Ok(Self { socket, stdout: Vec::new(), stderr: Vec::new() })
    }

    /// A line of the shell, on pipes.
    pub async fn shell(client: &Client, id: &str, line: &str) -> Result<Self> {
        Self::start(client, id, &[("command", line)]).await
    }

    pub async fn send(&mut self, channel: u8, payload: &[u8]) -> Result<()> {
        let frame = [&[channel][..], payload].concat();
        Ok(self.socket.send(Message::binary(frame)).await?)
    }

    pub async fn press(&mut self, keys: &str) -> Result<()> {
        self.send(Self::STDIN, keys.as_bytes()).await
    }

    pub async fn resize(&mut self, rows: u16, columns: u16) -> Result<()> {
        let payload = [rows.to_be_bytes(), columns.to_be_bytes()].concat();
        self.send(Self::RESIZE, &payload).await
    }

    /// Reads until this was printed.
    pub async fn until(&mut self, text: &str) -> Result<()> {
        while !self.printed().contains(text) {
            let code = self.frame().await.with_context(|| format!("waiting for {text:?}"))?;
            ensure!(code.is_none(), "ended with {code:?} before {text:?}: {:?}", self.printed());
        }
        Ok(())
    }

    /// Reads to the end: the exit code, after which the server closes as agreed.
    pub async fn exit(&mut self) -> Result<i32> {
        loop {
            if let Some(code) = self.frame().await? {
                let last = self.socket.next().await.context("no goodbye")??;
                let Message::Close(Some(goodbye)) = last else {
                    anyhow::bail!("{last:?} after the exit code")
                };
                ensure!(goodbye.code == CloseCode::Normal, "{goodbye:?}");
                return Ok(code);
            }
        }
    }

    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// One frame. The exit code, if it is that.
    async fn frame(&mut self) -> Result<Option<i32>> {
        let message = tokio::time::timeout(PATIENCE, self.socket.next()).await;
        let message = message.with_context(|| format!("nothing comes after {:?}", self.printed()))?;
        match message.context("the connection ended without an exit code")?? {
            Message::Binary(frame) => match frame.split_first() {
                Some((0x01, bytes)) => self.stdout.extend_from_slice(bytes),
                Some((0x02, bytes)) => self.stderr.extend_from_slice(bytes),
                Some((0x03, code)) => return Ok(Some(i32::from_be_bytes(code.try_into()?))),
                other => anyhow::bail!("a frame of an unknown kind: {other:?}"),
            },
            Message::Ping(_) | Message::Pong(_) => {}
            other => anyhow::bail!("{other:?} from the framed protocol"),
        }
        Ok(None)
    }
}

/// The next frame of a JSON protocol; `None` at the end of the connection.
pub async fn json_frame(socket: &mut Socket) -> Result<Option<Value>> {
    loop {
        match tokio::time::timeout(PATIENCE, socket.next()).await.context("nothing comes")? {
            Some(Ok(Message::Text(text))) => return Ok(Some(serde_json::from_str(text.as_str())?)),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(None),
            Some(Ok(other)) => anyhow::bail!("{other:?} from a JSON protocol"),
        }
    }
}
