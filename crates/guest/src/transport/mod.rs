//! How calls reach the agent: HTTP/2 connections over the virtio-serial port, or, for tests on a host,
//! over a unix socket.
//!
//! The port carries one connection at a time and has no notion of "connection" itself: [`port`] makes one
//! out of what the kernel tells about the host's end. Each connection is served until it breaks, which
//! ends every call in flight, and then the next one is awaited.

mod port;

use std::{convert::Infallible, io, path::PathBuf};

use hyper::{
    body::{Body, Incoming},
    service::Service,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixListener,
};

use self::port::Device;
pub(crate) use self::port::{Port, PortError};
use crate::services::Services;

/// Bulk transfers share the connection with everything else, and the way to the host is short and fast: a stream's
/// window this large keeps it busy, and bounds what a call that nobody reads can hold in memory. The connection has
/// room for many such calls, so that they do not hold up all others.
const STREAM_WINDOW: u32 = 512 * 1024;
const CONNECTION_WINDOW: u32 = 200 * STREAM_WINDOW;
/// Larger frames cost less per byte; this is still short enough for small calls to slip in between.
const FRAME_SIZE: u32 = 64 * 1024;
const CONCURRENT_CALLS: u32 = 1000;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("serve the port")]
    Port(#[from] PortError),
    #[error("listen on {}: is the directory there and writable, and no other agent running?", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("accept a connection on {}", path.display())]
    Accept { path: PathBuf, source: io::Error },
}

/// Serves the virtio-serial port, one connection after the other, for ever.
pub(crate) async fn serve_port(path: PathBuf, services: Services) -> Result<Infallible, ServeError> {
    serve_connections(Port::open(path)?, services).await
}

/// The next connection is not looked for before the last has ended, and that takes no time: the end of the
/// port's stream, or of its writing when that comes first, drops every call in flight with what it had still
/// to say.
async fn serve_connections<S, B>(mut port: Port<impl Device>, services: S) -> Result<Infallible, ServeError>
where
    S: Service<http::Request<Incoming>, Response = http::Response<B>> + Clone,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    loop {
        port.next_connection().await?;
        tracing::info!("the host has connected");
        serve_connection(&mut port, services.clone()).await;
    }
}

/// Serves a unix socket, any number of connections at once.
pub(crate) async fn serve_unix(path: PathBuf, services: Services) -> Result<Infallible, ServeError> {
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ServeError::Listen { path, source: error });
        }
        _ => {}
    }
    let listener = match UnixListener::bind(&path) {
        Ok(listener) => listener,
        Err(source) => return Err(ServeError::Listen { path, source }),
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let services = services.clone();
                tokio::spawn(async move { serve_connection(stream, services).await });
            }
            Err(source) => return Err(ServeError::Accept { path, source }),
        }
    }
}

async fn serve_connection<S, B>(stream: impl AsyncRead + AsyncWrite + Unpin, services: S)
where
    S: Service<http::Request<Incoming>, Response = http::Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let ended = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .max_concurrent_streams(CONCURRENT_CALLS)
        .serve_connection(TokioIo::new(stream), services)
        .await;
    match ended {
        Ok(()) => tracing::info!("the host has closed the connection"),
        // Not an error of ours: a host process that dies leaves half a frame behind.
        Err(error) => tracing::info!(error = &error as &dyn std::error::Error, "the connection broke"),
    }
}
