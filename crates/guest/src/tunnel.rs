//! Byte streams into the guest: to a port on its loopback, to the RFB server of its desktop, or to a unix socket of the
//! desktop user.
//!
//! The two directions are independent. The answer's stream ends when the target has sent its last byte;
//! the call's input is still carried to the target until the host ends it too, which is then the
//! target's end of file. Neither side reads ahead of the other: a target that does not read holds the
//! host's stream back through HTTP/2's window, a host that does not read leaves the target's socket full.

use std::{
    io,
    os::unix::net::UnixStream as BlockingUnixStream,
    path::{Path, PathBuf},
    pin::Pin,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use roost_guest_proto::NOTHING_ANSWERS;
use roost_guest_proto::v1::{
    TunnelInput, TunnelOpened, TunnelOutput, TunnelTarget, tunnel_input::Input, tunnel_output::Output,
    tunnel_server::Tunnel, tunnel_target::Target,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::oneshot,
};
use tokio_util::io::ReaderStream;
use tonic::{Request, Response, Status, Streaming};

use crate::process::{Account, find_account};

const CHUNK: usize = 64 * 1024;

#[derive(Debug)]
pub(crate) struct TunnelService {
    rfb: PathBuf,
    /// The desktop user.
    user: String,
}

#[derive(Debug, thiserror::Error)]
enum RefusedError {
    #[error("{NOTHING_ANSWERS} {port} of the computer's loopback: {source}")]
    Port { port: u16, source: io::Error },
    #[error("the desktop's screen server does not answer at {}: {source}", path.display())]
    Display { path: PathBuf, source: io::Error },
    #[error("nothing answers the desktop user at {}: {source}", path.display())]
    UserSocket { path: PathBuf, source: io::Error },
}

impl TunnelService {
    pub(crate) fn new(rfb: PathBuf, user: String) -> Self {
        Self { rfb, user }
    }
}

#[tonic::async_trait]
impl Tunnel for TunnelService {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<TunnelOutput, Status>> + Send>>;

    async fn open(
        &self,
        request: Request<Streaming<TunnelInput>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let mut input = request.into_inner();
        let target = match input.message().await? {
            Some(TunnelInput { input: Some(Input::Target(TunnelTarget { target: Some(target) })) }) => target,
            _ => return Err(Status::invalid_argument("the first input of a tunnel must name its target")),
        };
        match target {
            Target::TcpPort(port) => {
                let port = u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(|| {
                    Status::invalid_argument(format!("{port} is no TCP port: it must be within 1-65535"))
                })?;
                match connect_loopback(port).await {
                    Ok(socket) => {
                        let (reader, writer) = socket.into_split();
                        Ok(Response::new(carry(TunnelOpened::default(), input, reader, writer)))
                    }
                    Err(source) => Err(refused(&RefusedError::Port { port, source })),
                }
            }
            Target::Display(_) => match UnixStream::connect(&self.rfb).await {
                Ok(socket) => {
                    let (reader, writer) = socket.into_split();
                    Ok(Response::new(carry(TunnelOpened::default(), input, reader, writer)))
                }
                Err(source) => Err(refused(&RefusedError::Display { path: self.rfb.clone(), source })),
            },
            Target::UserSocket(socket) => {
                let account =
                    find_account(&self.user).map_err(|error| Status::unavailable(error.to_string()))?;
                let uid = account.uid.as_raw();
                // An absolute path stands for itself.
                let path = Path::new("/run/user").join(uid.to_string()).join(socket.path);
                match connect_as(account, path.clone()).await {
                    Ok(socket) => {
                        let (reader, writer) = socket.into_split();
                        Ok(Response::new(carry(TunnelOpened { uid }, input, reader, writer)))
                    }
                    Err(source) => Err(refused(&RefusedError::UserSocket { path, source })),
                }
            }
        }
    }
}

fn refused(error: &RefusedError) -> Status {
    Status::unavailable(error.to_string())
}

/// Many development servers listen on `localhost` and get only one of its two addresses.
async fn connect_loopback(port: u16) -> io::Result<TcpStream> {
    let socket = match TcpStream::connect(("127.0.0.1", port)).await {
        Ok(socket) => socket,
        Err(first) => match TcpStream::connect(("::1", port)).await {
            Ok(socket) => socket,
            Err(_) => return Err(first),
        },
    };
    // Keystrokes and frames must not wait for each other's acknowledgement.
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// What the other side of a socket learns of us is the user that our thread has at this moment. So it is a thread of its
/// own, which becomes that user for good.
async fn connect_as(account: Account, path: PathBuf) -> io::Result<UnixStream> {
    let (answer, connected) = oneshot::channel();
    std::thread::Builder::new().spawn(move || {
        let connect = || {
            if account.uid != rustix::process::geteuid() {
                rustix::thread::set_thread_groups(&account.groups)?;
                rustix::thread::set_thread_gid(account.gid)?;
                rustix::thread::set_thread_uid(account.uid)?;
            }
            BlockingUnixStream::connect(path)
        };
        // Whoever does not wait for it any more does not need it.
        let _unwanted = answer.send(connect());
    })?;
    let socket = connected.await.map_err(io::Error::other)??;
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

fn carry(
    opened: TunnelOpened,
    input: Streaming<TunnelInput>,
    reader: impl AsyncRead + Send + 'static,
    writer: impl AsyncWrite + Unpin + Send + 'static,
) -> <TunnelService as Tunnel>::OpenStream {
    // A task of its own: the output may end long before the input does.
    tokio::spawn(async move {
        if let Err(error) = carry_input(input, writer).await {
            tracing::debug!(%error, "a tunnel's input broke");
        }
    });
    let opened = TunnelOutput { output: Some(Output::Opened(opened)) };
    let data = ReaderStream::with_capacity(reader, CHUNK).map(|read| match read {
        Ok(data) => Ok(TunnelOutput { output: Some(Output::Data(data)) }),
        Err(error) => Err(Status::aborted(format!("the target broke the connection: {error}"))),
    });
    Box::pin(stream::once(std::future::ready(Ok(opened))).chain(data))
}

/// Ends with the host's half-close, a broken call, or a target that takes no more; the writer is then closed.
async fn carry_input(
    mut input: Streaming<TunnelInput>,
    mut writer: impl AsyncWrite + Unpin,
) -> Result<(), Status> {
    while let Some(TunnelInput { input: message }) = input.message().await? {
        match message {
            Some(Input::Data(data)) => write(&mut writer, data).await?,
            Some(Input::Target(_)) | None => {
                return Err(Status::invalid_argument("after its target, a tunnel takes only data"));
            }
        }
    }
    writer.shutdown().await.map_err(|error| Status::aborted(error.to_string()))
}

async fn write(writer: &mut (impl AsyncWrite + Unpin), data: Bytes) -> Result<(), Status> {
    writer.write_all(&data).await.map_err(|error| Status::aborted(error.to_string()))
}
