//! As much of QEMU's control protocol as a measurement needs: one command at a time, and events.

use std::collections::VecDeque;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// Events that came before the answer somebody waited for.
    events: VecDeque<Value>,
}

impl Qmp {
    /// Greets a QEMU that has just started.
    pub async fn negotiate(socket: UnixStream) -> Result<Self> {
        let (reader, writer) = socket.into_split();
        let mut qmp = Self { reader: BufReader::new(reader), writer, events: VecDeque::new() };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.writer.write_all(line.as_bytes()).await.with_context(|| format!("failed to send {command}"))?;
        loop {
            let mut message = self.read().await.with_context(|| format!("no answer to {command}"))?;
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = message.get("error") {
                bail!("QEMU refused {command}: {}", error["desc"]);
            }
            if message.get("event").is_some() {
                self.events.push_back(message);
            }
        }
    }

    /// Waits for an event of this name whose data `wanted` accepts; others are dropped.
    pub async fn event(&mut self, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        loop {
            let mut message = match self.events.pop_front() {
                Some(event) => event,
                None => self.read().await.with_context(|| format!("no event {name}"))?,
            };
            if message["event"] == name && wanted(&message["data"]) {
                return Ok(message["data"].take());
            }
        }
    }

    async fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).await? == 0 {
            bail!("QEMU has ended");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU says {line:?}"))
    }
}
