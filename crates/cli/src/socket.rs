//! WebSockets to the server.

use anyhow::Context;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::client::{Client, refusal};

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// The server answered something else.
    #[error(transparent)]
    Refused(anyhow::Error),
    /// There is no answer; it may be different in a moment.
    #[error("failed to reach the server: is it running?")]
    Unreachable(#[source] Box<tungstenite::Error>),
    #[error("the address of the server is not valid")]
    Address(#[source] anyhow::Error),
}

pub(crate) async fn connect(
    client: &Client,
    url: &str,
    subprotocol: Option<&'static str>,
) -> Result<Socket, SocketError> {
    let request = || -> anyhow::Result<_> {
        let mut request = url.into_client_request()?;
        let headers = request.headers_mut();
        let credential = HeaderValue::from_str(&format!("Bearer {}", client.key()));
        headers.insert("authorization", credential.context("the API key has odd characters")?);
        if let Some(subprotocol) = subprotocol {
            headers.insert("sec-websocket-protocol", HeaderValue::from_static(subprotocol));
        }
        Ok(request)
    };
    match tokio_tungstenite::connect_async(request().map_err(SocketError::Address)?).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            let refused = refusal(response.status().as_u16(), &String::from_utf8_lossy(body));
            Err(SocketError::Refused(refused))
        }
        Err(error) => Err(SocketError::Unreachable(Box::new(error))),
    }
}

/// A frame of the framed protocol of commands.
pub(crate) fn framed(channel: u8, payload: &[u8]) -> Message {
    let mut frame = Vec::with_capacity(payload.len() + 1);
    frame.push(channel);
    frame.extend_from_slice(payload);
    Message::binary(frame)
}
