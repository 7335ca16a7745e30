//! What concerns the computer as a whole: who it is, how it is, and its end.

pub(crate) mod environment;
mod freeze;
mod identity;
mod usage;

use std::sync::Arc;

use roost_guest_proto::v1::{
    FreezeReply, FreezeRequest, HealthReply, HealthRequest, PowerOffReply, PowerOffRequest,
    SetEnvironmentReply, SetEnvironmentRequest, SetIdentityReply, SetIdentityRequest, ThawReply, ThawRequest,
    UsageReply, UsageRequest, WaitDesktopReply, WaitDesktopRequest, system_server::System,
};
use tonic::{Request, Response, Status};

use self::{
    environment::Environment,
    freeze::Freezer,
    identity::{Became, Identity},
};
use crate::desktop::readiness::Readiness;

#[derive(Debug)]
pub(crate) struct SystemService {
    environment: Environment,
    readiness: Readiness,
    freezer: Freezer,
    /// Held by the one call that is changing the computer's identity, or freezing its disks: the former
    /// writes files, for which the latter would make it wait.
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl SystemService {
    pub(crate) fn new(environment: Environment, readiness: Readiness) -> Self {
        Self { environment, readiness, freezer: Freezer::new(), changing: Arc::default() }
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

/// Runs what must not stop half-way when the call that asked for it is dropped.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(result) => result,
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
        let SetIdentityRequest { hostname, machine_id, wall_clock_ns, entropy } = request.into_inner();
        // Everything is checked before anything is changed.
        let identity = Identity::check(hostname, machine_id, wall_clock_ns, entropy)?;
        let changing = self.changing.clone().lock_owned().await;
        let (freezer, environment) = (self.freezer.clone(), self.environment.clone());
        // A change that went on without its lock would meet the next one, and could win.
        to_its_end(async move {
            let _changing = changing;
            // Every restore begins with this call, and the guest may have been saved while it was frozen.
            freezer.thaw_own().await?;
            if blocking(move || identity.assume()).await? == Became::Another {
                // Not waited for: nobody who is let in now needs it.
                tokio::spawn(identity::restart_sshd());
            }
            environment.start_anew();
            Ok(())
        })
        .await?;
        Ok(Response::new(SetIdentityReply {}))
    }

    async fn set_environment(
        &self,
        request: Request<SetEnvironmentRequest>,
    ) -> Result<Response<SetEnvironmentReply>, Status> {
        let SetEnvironmentRequest { version, env } = request.into_inner();
        let variables = environment::check(env)?;
        let changing = self.changing.clone().lock_owned().await;
        let environment = self.environment.clone();
        to_its_end(async move {
            let _changing = changing;
            environment.replace(version, variables).await
        })
        .await?;
        Ok(Response::new(SetEnvironmentReply {}))
    }

    async fn freeze(&self, _: Request<FreezeRequest>) -> Result<Response<FreezeReply>, Status> {
        let changing = self.changing.clone().lock_owned().await;
        let freezer = self.freezer.clone();
        to_its_end(async move {
            let _changing = changing;
            freezer.freeze().await
        })
        .await?;
        Ok(Response::new(FreezeReply {}))
    }

    async fn thaw(&self, _: Request<ThawRequest>) -> Result<Response<ThawReply>, Status> {
        self.freezer.thaw().await?;
        Ok(Response::new(ThawReply {}))
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
        // A shutdown writes. One that cannot be thawed may still end in other ways.
        if let Err(error) = self.freezer.thaw().await {
            tracing::error!(%error, "thaw the filesystems before the shutdown");
        }
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
