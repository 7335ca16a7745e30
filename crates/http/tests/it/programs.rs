//! The inside of a simulated computer: tunnels to programs of the test.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use axum::Router;
use futures_util::{Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use roost_guest_proto::NOTHING_ANSWERS;
use roost_guest_proto::v1::tunnel_input::Input;
use roost_guest_proto::v1::tunnel_output::Output;
use roost_guest_proto::v1::tunnel_server::{Tunnel, TunnelServer};
use roost_guest_proto::v1::tunnel_target::Target;
use roost_guest_proto::v1::{TunnelInput, TunnelOpened, TunnelOutput};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status, Streaming};

use crate::support;

/// Stands for the desktop's RFB server among the ports.
const DISPLAY: u32 = 0;

#[derive(Debug, Clone, Default)]
pub struct Guest {
    programs: Arc<Mutex<HashMap<u32, SocketAddr>>>,
}

impl Guest {
    /// The guest of a computer that the server has.
    pub fn of(server: &support::Server, computer: &str) -> Self {
        let guest = Self::default();
        server.launcher.set_guest_of(computer.parse().unwrap(), guest.channel());
        guest
    }

    /// Runs a web program on a port.
    pub async fn serve(&self, port: u16, program: Router) {
        let listener = self.listen(port).await;
        tokio::spawn(async move { axum::serve(listener, program).await });
    }

    pub async fn listen(&self, port: u16) -> TcpListener {
        self.bind(port.into()).await
    }

    pub async fn listen_as_display(&self) -> TcpListener {
        self.bind(DISPLAY).await
    }

    async fn bind(&self, port: u32) -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.programs.lock().unwrap().insert(port, listener.local_addr().unwrap());
        listener
    }

    fn channel(&self) -> Channel {
        let service = TunnelServer::new(self.clone());
        Endpoint::from_static("http://guest").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let (host, guest) = tokio::io::duplex(64 * 1024);
            let one = stream::iter([Ok::<_, std::io::Error>(guest)]).chain(stream::pending());
            tokio::spawn(Server::builder().add_service(service.clone()).serve_with_incoming(one));
            async { Ok::<_, std::io::Error>(TokioIo::new(host)) }
        }))
    }
}

#[tonic::async_trait]
impl Tunnel for Guest {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<TunnelOutput, Status>> + Send>>;

    async fn open(
        &self,
        request: Request<Streaming<TunnelInput>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let mut input = request.into_inner();
        let Some(TunnelInput { input: Some(Input::Target(target)) }) = input.message().await? else {
            return Err(Status::invalid_argument("no target"));
        };
        let port = match target.target {
            Some(Target::TcpPort(port)) => port,
            _ => DISPLAY,
        };
        let program = self.programs.lock().unwrap().get(&port).copied();
        let refused = || Status::unavailable(format!("{NOTHING_ANSWERS} {port}"));
        let socket = TcpStream::connect(program.ok_or_else(refused)?).await.map_err(|_| refused())?;
        let (reader, mut writer) = socket.into_split();
        tokio::spawn(async move {
            while let Ok(Some(TunnelInput { input: Some(Input::Data(data)) })) = input.message().await {
                if writer.write_all(&data).await.is_err() {
                    return;
                }
            }
            drop(writer.shutdown().await);
        });
        let opened = Ok(TunnelOutput { output: Some(Output::Opened(TunnelOpened::default())) });
        let data = stream::unfold(reader, |mut reader| async move {
            let mut buffer = vec![0; 16 * 1024];
            match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => None,
                Ok(length) => {
                    buffer.truncate(length);
                    Some((Ok(TunnelOutput { output: Some(Output::Data(buffer.into())) }), reader))
                }
            }
        });
        Ok(Response::new(Box::pin(stream::iter([opened]).chain(data))))
    }
}
