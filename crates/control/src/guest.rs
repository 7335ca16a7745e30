//! Channels to the agents of running computers.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use roost_api::{ComputerId, ErrorCode, Status};
use tonic::transport::Channel;

use crate::{Control, Failure, status};

/// One HTTP/2 connection per computer, kept while its machine lives.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    channels: Mutex<HashMap<ComputerId, Channel>>,
}

impl Guests {
    pub(crate) fn forget(&self, computer: ComputerId) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).remove(&computer);
    }
}

impl Control {
    /// A channel to the agent of a computer that runs; 409 for one that does not.
    pub(crate) async fn guest(&self, computer: ComputerId) -> Result<Channel, Failure> {
        let record = self.record(computer).await?;
        let status = status::status(&record);
        if status != Status::Running {
            return Err(not_running(status));
        }
        let mut channels = self.inner.guests.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&computer) {
            return Ok(channel.clone());
        }
        let channel = self.inner.launcher.guest(computer)?;
        channels.insert(computer, channel.clone());
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

    /// The status now; `None` when the computer is gone.
    pub async fn status(&self, computer: ComputerId) -> Option<Status> {
        self.record(computer).await.ok().map(|record| status::status(&record))
    }
}
