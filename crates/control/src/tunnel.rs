//! Byte streams into a computer: to its display, or to a port of its loopback.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::Stream;
use roost_api::{ApiError, ComputerId, ErrorCode, PortNumber};
use roost_guest_proto::NOTHING_ANSWERS;
use roost_guest_proto::v1::tunnel_client::TunnelClient;
use roost_guest_proto::v1::tunnel_input::Input;
use roost_guest_proto::v1::tunnel_output::Output;
use roost_guest_proto::v1::tunnel_target::Target;
use roost_guest_proto::v1::{Display, TunnelInput, TunnelOpened, TunnelOutput, TunnelTarget, UserSocket};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;

use crate::{Control, Failure};

/// Pieces on their way to the guest; whoever sends more waits.
const IN_FLIGHT: usize = 16;
const LARGEST_PIECE: usize = 64 * 1024;

/// What comes out of a computer, in order.
pub type TunnelOutputs = tonic::Streaming<TunnelOutput>;

/// One connection into a computer. Dropping it closes the connection; dropping `input` alone ends what we send.
#[derive(Debug)]
pub struct Tunnel {
    pub input: mpsc::Sender<TunnelInput>,
    pub output: TunnelOutputs,
}

impl Tunnel {
    /// The same as a stream for whoever speaks a protocol over it.
    pub fn into_io(self) -> TunnelIo {
        TunnelIo {
            input: PollSender::new(self.input),
            output: self.output,
            rest: Bytes::new(),
            has_ended: false,
        }
    }
}

/// Holds its writer back when the computer takes no more, and the computer when nobody reads.
#[derive(Debug)]
pub struct TunnelIo {
    input: PollSender<TunnelInput>,
    output: TunnelOutputs,
    /// Arrived and not read yet.
    rest: Bytes,
    has_ended: bool,
}

impl AsyncRead for TunnelIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() && !self.has_ended {
            match ready!(Pin::new(&mut self.output).poll_next(context)) {
                Some(Ok(TunnelOutput { output: Some(Output::Data(data)) })) => self.rest = data,
                Some(Ok(TunnelOutput { output: Some(Output::Opened(_)) | None })) => {}
                Some(Err(status)) => {
                    self.has_ended = true;
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, status)));
                }
                None => self.has_ended = true,
            }
        }
        let length = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..length]);
        self.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.input.poll_reserve(context)).map_err(closed)?;
        let piece = &bytes[..bytes.len().min(LARGEST_PIECE)];
        let input = TunnelInput { input: Some(Input::Data(Bytes::copy_from_slice(piece))) };
        self.input.send_item(input).map_err(closed)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // a piece is on its way from the moment it was taken
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.close();
        Poll::Ready(Ok(()))
    }
}

impl Control {
    /// Opens a connection to the RFB server of a running computer.
    pub async fn open_display(&self, id: ComputerId) -> Result<Tunnel, Failure> {
        self.open(id, Target::Display(Display {})).await
    }

    /// Opens a connection to whatever listens on a port of a running computer.
    pub async fn open_port(&self, id: ComputerId, port: PortNumber) -> Result<Tunnel, Failure> {
        self.open(id, Target::TcpPort(port.get().into())).await
    }

    /// Opens a connection to a unix socket of a running computer as its desktop user, whose id is answered too.
    pub(crate) async fn open_user_socket(
        &self,
        id: ComputerId,
        path: &str,
    ) -> Result<(Tunnel, u32), Failure> {
        let socket = UserSocket { path: path.to_owned() };
        let mut tunnel = self.open(id, Target::UserSocket(socket)).await?;
        let first = tunnel.output.message().await.map_err(Failure::from_guest)?;
        let Some(TunnelOutput { output: Some(Output::Opened(TunnelOpened { uid })) }) = first else {
            return Err(Failure::from_guest(tonic::Status::aborted(
                "the tunnel did not begin with its opening",
            )));
        };
        Ok((tunnel, uid))
    }

    async fn open(&self, id: ComputerId, target: Target) -> Result<Tunnel, Failure> {
        let mut client = TunnelClient::new(self.guest(id).await?);
        let (input, inputs) = mpsc::channel(IN_FLIGHT);
        let target_port = match &target {
            Target::TcpPort(port) => Some(*port),
            Target::Display(_) | Target::UserSocket(_) => None,
        };
        let target = TunnelTarget { target: Some(target) };
        let first = TunnelInput { input: Some(Input::Target(target)) };
        let inputs = tokio_stream::StreamExt::chain(tokio_stream::once(first), ReceiverStream::new(inputs));
        let output = client.open(inputs).await.map_err(|status| refused(target_port, status))?.into_inner();
        Ok(Tunnel { input, output })
    }
}

/// A port that refuses is the user's business; an agent that does not answer is not.
fn refused(port: Option<u32>, status: tonic::Status) -> Failure {
    let is_refusal =
        status.code() == tonic::Code::Unavailable && status.message().starts_with(NOTHING_ANSWERS);
    match port {
        Some(port) if is_refusal => {
            let message = format!(
                "nothing listens on port {port} inside the computer: start the program that should, then try again"
            );
            Failure {
                public: ApiError::new(ErrorCode::PortUnavailable, message),
                source: Some(Box::new(status)),
            }
        }
        _ => Failure::from_guest(status),
    }
}
