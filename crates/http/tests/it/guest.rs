//! An agent for simulated machines: commands that last until they are released, and usage that a test sets.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{Stream, StreamExt, stream};
use roost_guest_proto::v1::process_server::{Process, ProcessServer};
use roost_guest_proto::v1::run_output::Output;
use roost_guest_proto::v1::system_server::{System, SystemServer};
use roost_guest_proto::v1::{
    FreezeReply, FreezeRequest, HealthReply, HealthRequest, PowerOffReply, PowerOffRequest, RunExit,
    RunInput, RunOutput, RunStarted, SetEnvironmentReply, SetEnvironmentRequest, SetIdentityReply,
    SetIdentityRequest, ThawReply, ThawRequest, UsageReply, UsageRequest, WaitDesktopReply,
    WaitDesktopRequest,
};
use tokio::sync::Semaphore;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

#[derive(Debug)]
pub struct FakeGuest {
    /// One permit lets one command end.
    pub ends: Semaphore,
    /// One permit for each command that was started.
    pub started: Semaphore,
    /// Milliseconds since it booted, half of them busy. 0: it does not answer.
    pub cpu_total_ms: AtomicU64,
}

type Answer<T> = Result<Response<T>, Status>;

impl FakeGuest {
    pub async fn serve() -> (Arc<Self>, Channel) {
        let guest = Arc::new(Self {
            ends: Semaphore::new(0),
            started: Semaphore::new(0),
            cpu_total_ms: AtomicU64::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Server::builder()
            .add_service(ProcessServer::from_arc(guest.clone()))
            .add_service(SystemServer::from_arc(guest.clone()));
        tokio::spawn(router.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        (guest, endpoint.connect_lazy())
    }
}

fn output(output: Output) -> Result<RunOutput, Status> {
    Ok(RunOutput { output: Some(output) })
}

#[tonic::async_trait]
impl Process for FakeGuest {
    type RunStream = Pin<Box<dyn Stream<Item = Result<RunOutput, Status>> + Send>>;

    async fn run(&self, _: Request<Streaming<RunInput>>) -> Answer<Self::RunStream> {
        self.started.add_permits(1);
        let released = self.ends.acquire().await.map_err(|_| Status::cancelled("the test is over"));
        released?.forget();
        let exit = output(Output::Exit(RunExit::default()));
        Ok(Response::new(stream::iter([output(Output::Started(RunStarted { pid: 1 })), exit]).boxed()))
    }
}

#[tonic::async_trait]
impl System for FakeGuest {
    async fn usage(&self, _: Request<UsageRequest>) -> Answer<UsageReply> {
        let total = self.cpu_total_ms.load(Ordering::SeqCst);
        if total == 0 {
            return Err(Status::unavailable("made not to answer"));
        }
        Ok(Response::new(UsageReply {
            cpu_busy_ms: total / 2,
            cpu_total_ms: total,
            memory_total_bytes: 1000,
            memory_available_bytes: 250,
            uptime_ms: total,
        }))
    }

    async fn health(&self, _: Request<HealthRequest>) -> Answer<HealthReply> {
        Err(Status::unimplemented("no test needs it"))
    }

    async fn set_identity(&self, _: Request<SetIdentityRequest>) -> Answer<SetIdentityReply> {
        Err(Status::unimplemented("no test needs it"))
    }

    async fn set_environment(&self, _: Request<SetEnvironmentRequest>) -> Answer<SetEnvironmentReply> {
        Err(Status::unimplemented("no test needs it"))
    }

    async fn wait_desktop(&self, _: Request<WaitDesktopRequest>) -> Answer<WaitDesktopReply> {
        Err(Status::unimplemented("no test needs it"))
    }

    async fn freeze(&self, _: Request<FreezeRequest>) -> Answer<FreezeReply> {
        Err(Status::unimplemented("no test needs it"))
    }

    async fn thaw(&self, _: Request<ThawRequest>) -> Answer<ThawReply> {
        Err(Status::unimplemented("no test needs it"))
    }

    async fn power_off(&self, _: Request<PowerOffRequest>) -> Answer<PowerOffReply> {
        Err(Status::unimplemented("no test needs it"))
    }
}
