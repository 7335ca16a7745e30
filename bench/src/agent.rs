//! The agent in a guest, called directly: HTTP/2 on QEMU's end of the virtio-serial port, with nothing between.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::TokioIo;
use roost_guest_proto::v1::files_client::FilesClient;
use roost_guest_proto::v1::process_client::ProcessClient;
use roost_guest_proto::v1::run_input::Input;
use roost_guest_proto::v1::run_output::Output;
use roost_guest_proto::v1::system_client::SystemClient;
use roost_guest_proto::v1::{
    FilePath, FinishFile, HealthRequest, ReadFileRequest, RunInput, RunOutput, RunStart, UsageRequest,
    WaitDesktopRequest, WriteFileInput, WriteFileStart, write_file_input,
};
use tokio::net::UnixStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Streaming;
use tonic::body::Body;

/// One connection. Dropping it closes the host's end of the port.
#[derive(Debug)]
pub struct Agent {
    requests: Requests,
    _end: DropGuard,
}

impl Agent {
    pub async fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await.context("failed to connect to the agent's port")?;
        let end = CancellationToken::new();
        // The windows of Roost's own connection.
        let (requests, connection) = http2::Builder::new(UntilEnd(end.clone()))
            .initial_stream_window_size(1024 * 1024)
            .initial_connection_window_size(4 * 1024 * 1024)
            .handshake(TokioIo::new(stream))
            .await
            .context("HTTP/2 with the agent does not start")?;
        tokio::spawn(end.clone().run_until_cancelled_owned(async move {
            // Why it failed is what the call in progress returns.
            drop(connection.await);
        }));
        Ok(Self { requests: Requests(requests), _end: end.drop_guard() })
    }

    /// Whether the desktop can be used already.
    pub async fn health(&self) -> Result<bool> {
        Ok(self.system().health(HealthRequest {}).await.context("Health")?.into_inner().desktop_ready)
    }

    pub async fn wait_desktop(&self) -> Result<()> {
        self.system().wait_desktop(WaitDesktopRequest {}).await.context("WaitDesktop").map(drop)
    }

    /// CPU time the guest has used since it booted, in milliseconds.
    pub async fn busy_ms(&self) -> Result<u64> {
        Ok(self.system().usage(UsageRequest {}).await.context("Usage")?.into_inner().cpu_busy_ms)
    }

    async fn start(&self, words: &[&str]) -> Result<Streaming<RunOutput>> {
        let argv = words.iter().map(|word| (*word).to_owned()).collect();
        let start = RunInput { input: Some(Input::Start(RunStart { argv, ..RunStart::default() })) };
        let mut client = ProcessClient::with_origin(self.requests.clone(), origin());
        Ok(client.run(tokio_stream::once(start)).await.context("Run")?.into_inner())
    }

    /// Runs a command until it has printed something.
    pub async fn first_output(&self, words: &[&str]) -> Result<Streaming<RunOutput>> {
        let mut outputs = self.start(words).await?;
        while let Some(output) = outputs.message().await.context("Run")? {
            if let Some(Output::Stdout(_)) = output.output {
                return Ok(outputs);
            }
        }
        bail!("{words:?} has printed nothing")
    }

    /// Writes a file, as Roost does.
    pub async fn write_file(&self, path: &str, pieces: Vec<Bytes>) -> Result<()> {
        let start =
            WriteFileStart { file: Some(file(path)), make_directories: true, ..WriteFileStart::default() };
        let data = pieces.into_iter().map(write_file_input::Input::Data);
        let inputs = std::iter::once(write_file_input::Input::Start(start))
            .chain(data)
            .chain([write_file_input::Input::Finish(FinishFile {})])
            .map(|input| WriteFileInput { input: Some(input) });
        let mut client = FilesClient::with_origin(self.requests.clone(), origin());
        client.write_file(tokio_stream::iter(inputs)).await.context("WriteFile").map(drop)
    }

    /// Reads a file; how long it is.
    pub async fn read_file(&self, path: &str) -> Result<usize> {
        let request = ReadFileRequest { file: Some(file(path)), offset: 0, length: None };
        let mut client = FilesClient::with_origin(self.requests.clone(), origin());
        let mut content = client.read_file(request).await.context("ReadFile")?.into_inner();
        let mut length = 0;
        while let Some(piece) = content.message().await.context("ReadFile")? {
            length += piece.data.len();
        }
        Ok(length)
    }

    /// Runs a command that must succeed, and returns what it printed.
    pub async fn run(&self, words: &[&str]) -> Result<String> {
        let mut outputs = self.start(words).await?;
        let (mut printed, mut complaints) = (Vec::new(), Vec::new());
        while let Some(output) = outputs.message().await.context("Run")? {
            match output.output {
                Some(Output::Stdout(bytes)) => printed.extend_from_slice(&bytes),
                Some(Output::Stderr(bytes)) => complaints.extend_from_slice(&bytes),
                Some(Output::Exit(exit)) => {
                    let complaints = String::from_utf8_lossy(&complaints);
                    ensure!(exit.code == 0, "{words:?} ended with {}: {complaints}", exit.code);
                    return Ok(String::from_utf8_lossy(&printed).into_owned());
                }
                Some(Output::Started(_)) | None => {}
            }
        }
        bail!("{words:?}: the agent ended the call without the command's exit code")
    }

    fn system(&self) -> SystemClient<Requests> {
        SystemClient::with_origin(self.requests.clone(), origin())
    }
}

fn file(path: &str) -> FilePath {
    FilePath { path: path.to_owned(), roots: vec!["/".to_owned()] }
}

/// HTTP/2 requires an origin; the agent looks at none.
fn origin() -> http::Uri {
    http::Uri::from_static("http://guest")
}

#[derive(Debug, Clone)]
struct Requests(SendRequest<Body>);

impl tower::Service<Request<Body>> for Requests {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// Runs what belongs to a connection until that is dropped; hyper alone would wait for its calls to end.
#[derive(Debug, Clone)]
struct UntilEnd(CancellationToken);

impl<F> hyper::rt::Executor<F> for UntilEnd
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        let end = self.0.clone();
        tokio::spawn(async move { end.run_until_cancelled_owned(future).await.map(drop) });
    }
}
