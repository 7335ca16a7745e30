//! What concerns the computer as a whole: who it is, how it is, and its end.

pub(crate) mod environment;
mod identity;
mod usage;

use roost_guest_proto::v1::{
    HealthReply, HealthRequest, PowerOffReply, PowerOffRequest, SetIdentityReply, SetIdentityRequest,
    UsageReply, UsageRequest, WaitDesktopReply, WaitDesktopRequest, system_server::System,
};
use tonic::{Request, Response, Status};

use self::{environment::Environment, identity::Identity};
use crate::desktop::readiness::Readiness;

#[derive(Debug)]
pub(crate) struct SystemService {
    environment: Environment,
    readiness: Readiness,
    /// Held by the one call that is changing the computer's identity.
    changing: tokio::sync::Mutex<()>,
}

impl SystemService {
    pub(crate) fn new(environment: Environment, readiness: Readiness) -> Self {
        Self { environment, readiness, changing: tokio::sync::Mutex::new(()) }
    }
}

/// Runs what may wait for a disk where it holds nobody up.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Status>
where
    T: Send + 'static,
    E: Into<Status> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(panic) => Err(Status::internal(format!("the agent failed: {panic}"))),
    }
}

#[tonic::async_trait]
impl System for SystemService {
    async fn health(&self, _: Request<HealthRequest>) -> Result<Response<HealthReply>, Status> {
        let boot_id = match std::fs::read_to_string("/proc/sys/kernel/random/boot_id") {
            Ok(boot_id) => boot_id.trim_end().to_owned(),
            Err(error) => return Err(Status::internal(format!("read the boot id: {error}"))),
        };
        Ok(Response::new(HealthReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id,
            desktop_ready: self.readiness.is_ready(),
        }))
    }

    async fn set_identity(
        &self,
        request: Request<SetIdentityRequest>,
    ) -> Result<Response<SetIdentityReply>, Status> {
        let SetIdentityRequest { hostname, machine_id, wall_clock_ns, entropy, env } = request.into_inner();
        // Everything is checked before anything is changed.
        let identity = Identity::check(hostname, machine_id, wall_clock_ns, entropy)?;
        let variables = environment::check(env)?;
        let _changing = self.changing.lock().await;
        blocking(move || identity.assume()).await?;
        self.environment.replace(variables).await?;
        Ok(Response::new(SetIdentityReply {}))
    }

    async fn wait_desktop(
        &self,
        _: Request<WaitDesktopRequest>,
    ) -> Result<Response<WaitDesktopReply>, Status> {
        self.readiness.clone().ready().await;
        Ok(Response::new(WaitDesktopReply {}))
    }

    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<UsageReply>, Status> {
        usage::read().map(Response::new).map_err(|error| Status::internal(error.to_string()))
    }

    async fn power_off(&self, _: Request<PowerOffRequest>) -> Result<Response<PowerOffReply>, Status> {
        // Now, so that a shutdown that is cut short loses nothing.
        blocking(|| -> Result<(), Status> {
            rustix::fs::sync();
            Ok(())
        })
        .await?;
        tokio::spawn(async {
            match tokio::process::Command::new("systemctl").args(["poweroff", "--no-block"]).status().await {
                Ok(status) if status.success() => {}
                Ok(status) => tracing::error!(%status, "systemctl poweroff"),
                Err(error) => tracing::error!(%error, "run systemctl poweroff"),
            }
        });
        Ok(Response::new(PowerOffReply {}))
    }
}
