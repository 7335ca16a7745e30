//! Channels to the agents of running computers.
//!
//! Whoever speaks to a guest for a user does it through [`Control::guest`], and is counted as using the computer
//! by that alone: each call, each frame that a call sends or receives, and each command for as long as it runs
//! ([`crate::idle`]). What the control plane asks for itself goes through [`Control::unused_guest`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http_body_util::BodyExt;
use roost_api::{ApiError, ComputerId, ErrorCode, RegionName, Status};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::transport::Channel;

use crate::idle::Activity;
use crate::{Control, Failure, status};

/// The call that lasts as long as the command it runs.
const RUN: &str = "/roost.guest.v1.Process/Run";

/// One HTTP/2 connection per computer, kept while its machine lives.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    /// And where each leads: another server may have moved the computer.
    channels: Mutex<HashMap<ComputerId, (RegionName, Channel)>>,
}

impl Guests {
    pub(crate) fn forget(&self, computer: ComputerId) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).remove(&computer);
    }
}

/// The agent of a computer, for somebody who uses the computer.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    channel: Channel,
    activity: Arc<Activity>,
}

impl Service<http::Request<Body>> for Guest {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let mut busy = Some(self.activity.busy());
        let is_command = request.uri().path() == RUN;
        let activity = self.activity.clone();
        let request = request.map(|body| {
            Body::new(body.map_frame(move |frame| {
                activity.touch();
                frame
            }))
        });
        let response = self.channel.call(request);
        let activity = self.activity.clone();
        Box::pin(async move {
            let response = response.await?;
            // A stream that stays open is used while something passes through it; a command while it runs.
            if !is_command {
                busy = None;
            }
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _busy = &busy;
                    activity.touch();
                    frame
                }))
            }))
        })
    }
}

impl Control {
    /// A channel to the agent of a computer that runs; 409 for one that does not.
    pub(crate) async fn guest(&self, computer: ComputerId) -> Result<Guest, Failure> {
        let record = self.record(computer).await?;
        let status = status::status(&record);
        if status != Status::Running {
            return Err(not_running(status));
        }
        let activity = self.inner.idle.of(computer);
        activity.touch();
        Ok(Guest { channel: self.unused_guest(computer, &record.region)?, activity })
    }

    /// A channel to the agent of whatever machine the computer has, for calls that are no use of it.
    pub(crate) fn unused_guest(&self, computer: ComputerId, region: &RegionName) -> Result<Channel, Failure> {
        let mut channels = self.inner.guests.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((there, channel)) = channels.get(&computer)
            && there == region
        {
            return Ok(channel.clone());
        }
        let channel = self.inner.regions.of(region)?.guest(computer)?;
        channels.insert(computer, (region.clone(), channel.clone()));
        Ok(channel)
    }
}

pub(crate) fn not_running(status: Status) -> Failure {
    Failure::new(
        ErrorCode::ComputerNotRunning,
        format!("COMPUTER_NOT_RUNNING: this needs a running computer and it is {status}; start it first"),
    )
}

impl Control {
    /// 409 for a computer that does not run; called before the body of a request is looked at.
    pub fn require_running(&self, record: &roost_store::ComputerRecord) -> Result<(), Failure> {
        match status::status(record) {
            Status::Running => Ok(()),
            other => Err(not_running(other)),
        }
    }

    /// The same for routes whose callers come back: 409 with `Retry-After` while the computer is on its way.
    pub fn require_started(&self, record: &roost_store::ComputerRecord) -> Result<(), Failure> {
        match status::status(record) {
            Status::Running => Ok(()),
            Status::Provisioning | Status::Starting => {
                let message = "COMPUTER_STARTING: the computer is starting; try again in a moment";
                Err(ApiError::new(ErrorCode::ComputerStarting, message).retry_after_ms(1000).into())
            }
            other => Err(not_running(other)),
        }
    }

    /// The status now; `None` when the computer is gone.
    pub async fn status(&self, computer: ComputerId) -> Option<Status> {
        self.record(computer).await.ok().map(|record| status::status(&record))
    }
}
