//! Streams: how soon a command's output begins, and how fast a file gets into a computer and out of it.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::StreamExt;
use roost_tests::Framed;

use crate::operations::Bench;
use crate::report::{Gate, Row};
use crate::statistics::Samples;

/// Large enough that the beginning and the end of a transfer do not count.
const FILE_MIB: usize = 64;
/// As Roost's server cuts what it sends.
const PIECE: usize = 64 * 1024;
const PATH: &str = "/tmp/bench-file";

impl Bench {
    /// From the request until the first byte that the command prints. The command is a program, not a line of a shell.
    pub async fn stream(&mut self) -> Result<Vec<Row>> {
        let (guest, _) = self.fork().await?;
        let made = self.roost.create("bench-stream").await?;
        let (mut bare, mut streams) = (Samples::default(), Samples::default());
        let warm = 10;
        for index in 0..warm + self.counts.execs {
            let begun = Instant::now();
            let outputs = guest.agent.first_output(&["echo", "x"]).await?;
            let floor = begun.elapsed();
            drop(outputs);
            let begun = Instant::now();
            let query = [("command", "echo"), ("args", "x")];
            let mut stream = Framed::start(&self.roost.client, &made.id, &query).await?;
            stream.until("x").await?;
            let elapsed = begun.elapsed();
            ensure!(stream.exit().await? == 0, "echo failed");
            if index >= warm {
                streams.push(elapsed.as_secs_f64());
                bare.push(floor.as_secs_f64());
            }
        }
        guest.discard().await?;
        self.roost.delete(&made.id).await?;
        Ok(vec![Row::time("first byte of a stream", streams).beside(
            "bare channel: first byte",
            &bare,
            Gate::Times(2.0),
        )])
    }

    /// Half of the throughput is twice the time of the same file.
    pub async fn files(&mut self) -> Result<Vec<Row>> {
        let (guest, _) = self.fork().await?;
        let made = self.roost.create("bench-files").await?;
        let pieces = content();
        let (mut bare_up, mut bare_down) = (Samples::default(), Samples::default());
        let (mut up, mut down) = (Samples::default(), Samples::default());
        for index in 0..=self.counts.saves {
            let begun = Instant::now();
            guest.agent.write_file(PATH, pieces.clone()).await?;
            let floor_up = begun.elapsed();
            let begun = Instant::now();
            let length = guest.agent.read_file(PATH).await?;
            let floor_down = begun.elapsed();
            ensure!(length == FILE_MIB * 1024 * 1024, "the bare channel read {length} bytes");

            let begun = Instant::now();
            self.upload(&made.id, &pieces).await?;
            let elapsed_up = begun.elapsed();
            let begun = Instant::now();
            let length = self.download(&made.id).await?;
            let elapsed_down = begun.elapsed();
            ensure!(length == FILE_MIB * 1024 * 1024, "the download has {length} bytes");
            // The first of each has everything to do for the first time.
            if index > 0 {
                bare_up.push(floor_up.as_secs_f64());
                bare_down.push(floor_down.as_secs_f64());
                up.push(elapsed_up.as_secs_f64());
                down.push(elapsed_down.as_secs_f64());
            }
        }
        guest.discard().await?;
        self.roost.delete(&made.id).await?;
        Ok(vec![
            Row::time(format!("upload of {FILE_MIB} MiB"), up).beside(
                "bare channel: WriteFile",
                &bare_up,
                Gate::Times(2.0),
            ),
            Row::time(format!("download of {FILE_MIB} MiB"), down).beside(
                "bare channel: ReadFile",
                &bare_down,
                Gate::Times(2.0),
            ),
        ])
    }

    async fn upload(&self, id: &str, pieces: &[Bytes]) -> Result<()> {
        let client = &self.roost.client;
        let url = format!("{}/api/v1/computers/{id}/files/content?path={PATH}", client.url);
        let pieces: Vec<Result<Bytes, std::io::Error>> = pieces.iter().cloned().map(Ok).collect();
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
        let response = client.http.put(url).bearer_auth(&client.key).body(body).send().await?;
        ensure!(response.status() == 200, "upload: {}", response.text().await?);
        Ok(())
    }

    async fn download(&self, id: &str) -> Result<usize> {
        let client = &self.roost.client;
        let url = format!("{}/api/v1/computers/{id}/files/download?path={PATH}", client.url);
        let response = client.http.get(url).bearer_auth(&client.key).send().await?;
        ensure!(response.status() == 200, "download: {}", response.text().await?);
        let mut pieces = response.bytes_stream();
        let mut length = 0;
        while let Some(piece) = pieces.next().await {
            length += piece.context("the download broke")?.len();
        }
        Ok(length)
    }
}

/// No two pieces are the same, and none is empty: nothing on the way can leave any of it out.
fn content() -> Vec<Bytes> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut piece = || {
        let mut bytes = Vec::with_capacity(PIECE);
        while bytes.len() < PIECE {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        Bytes::from(bytes)
    };
    (0..FILE_MIB * 1024 * 1024 / PIECE).map(|_| piece()).collect()
}
