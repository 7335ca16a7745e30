//! `roost port`: a port of a computer on this machine.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use roost_api::ComputerId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use crate::client::Client;
use crate::output::{print_json, print_line};
use crate::socket::{SocketError, connect};

#[derive(Debug, Args)]
pub(crate) struct PortArgs {
    /// Name, slug or id
    name: String,
    /// The computer's port, or this machine's and the computer's: `8080:3000`
    #[arg(value_parser = Ports::parse)]
    ports: Ports,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    /// 0: any that is free.
    local: u16,
    remote: u16,
}

impl Ports {
    fn parse(text: &str) -> Result<Self, String> {
        let (local, remote) = text.split_once(':').unwrap_or((text, text));
        let port = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is no port"));
        match (port(local)?, port(remote)?) {
            (_, 0) => Err("the computer's port must be 1 to 65535".to_owned()),
            (local, remote) => Ok(Self { local, remote }),
        }
    }
}

pub(crate) async fn port(client: Client, args: &PortArgs, json: bool) -> anyhow::Result<()> {
    let computer = client.find(&args.name).await?;
    let Ports { local, remote } = args.ports;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, local));
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("failed to listen on {address}; name another port of this machine: LOCAL:{remote}")
    })?;
    let address = listener.local_addr()?;
    if json {
        print_json(&serde_json::json!({ "address": address.to_string(), "port": remote }))?;
    } else {
        print_line(&format!("{address} is port {remote} of {}; Ctrl-C ends it", computer.slug))?;
    }
    let client = std::sync::Arc::new(client);
    loop {
        let (connection, _) = listener.accept().await.context("failed to accept a connection")?;
        let client = client.clone();
        tokio::spawn(async move {
            if let Err(error) = carry(&client, computer.id, remote, connection).await {
                crate::output::print_error(&error, json);
            }
        });
    }
}

/// With it an empty frame says that we have said everything.
const HALF_CLOSE: &str = "roost-tunnel-v1";

/// One connection, until either side ends it.
async fn carry(client: &Client, id: ComputerId, port: u16, connection: TcpStream) -> anyhow::Result<()> {
    let url = client.socket_url(&format!("/computers/{id}/tunnel/{port}"));
    let socket = connect(client, &url, Some(HALF_CLOSE)).await.map_err(|error| match error {
        SocketError::Refused(refused) => refused,
        other => other.into(),
    })?;
    connection.set_nodelay(true)?;
    let (mut sink, mut stream) = socket.split();
    let (mut reader, mut writer) = connection.into_split();
    let there = async {
        let mut buffer = vec![0; 64 * 1024];
        // An empty piece is the end of our side; what the program still says comes until it ends its own.
        while let Ok(count) = reader.read(&mut buffer).await {
            let piece = Bytes::copy_from_slice(&buffer[..count]);
            if sink.send(Message::binary(piece)).await.is_err() || count == 0 {
                return;
            }
        }
        // Broken: nobody is there to be answered.
        drop(sink.close().await);
    };
    let back = async {
        while let Some(Ok(message)) = stream.next().await {
            if let Message::Binary(data) = message
                && writer.write_all(&data).await.is_err()
            {
                return;
            }
        }
        drop(writer.shutdown().await);
    };
    let mut back = std::pin::pin!(back);
    tokio::select! {
        () = &mut back => {}
        () = there => back.await,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Ports;

    #[test]
    fn one_port_is_both() {
        assert_eq!(Ports::parse("3000"), Ok(Ports { local: 3000, remote: 3000 }));
        assert_eq!(Ports::parse("8080:3000"), Ok(Ports { local: 8080, remote: 3000 }));
        assert_eq!(Ports::parse("0:3000"), Ok(Ports { local: 0, remote: 3000 }));
        for text in ["", "0", "x", "1:2:3", "70000", "80:", ":80", "80:0"] {
            assert!(Ports::parse(text).is_err(), "{text}");
        }
    }
}
