//! Reading server-sent events.

use anyhow::Context;
use reqwest::{Method, Response};
use serde_json::Value;

use crate::client::Client;

/// An open stream, of which only the data is of interest.
#[derive(Debug)]
pub(crate) struct Stream {
    response: Response,
    text: Vec<u8>,
}

impl Stream {
    /// Returns when the server listens.
    pub(crate) async fn open(client: &Client, path: &str) -> anyhow::Result<Self> {
        Ok(Self { response: client.send(Method::GET, path, None).await?, text: Vec::new() })
    }

    /// The next event's data; `None` at the end.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Value>> {
        loop {
            while let Some(end) = self.text.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.text.drain(..end + 2).collect();
                if let Some(data) = data(&String::from_utf8_lossy(&event)) {
                    return Ok(Some(serde_json::from_str(&data).context("an event is not JSON")?));
                }
            }
            match self.response.chunk().await.context("the stream was cut short")? {
                Some(bytes) => self.text.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }
}

/// `None` for a comment.
fn data(event: &str) -> Option<String> {
    let lines = event.lines().filter_map(|line| line.strip_prefix("data:"));
    let lines: Vec<&str> = lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_taken_from_its_lines() {
        assert_eq!(data("id: 1\nevent: x\ndata: {\"a\":\ndata: 1}\n\n").unwrap(), "{\"a\":\n1}");
        assert_eq!(data(": heartbeat\n\n"), None);
    }
}
