//! Callers who stay: what they opened ends when their key does, or when what they may do changes.
//!
//! What is about a whole tenant ends with any change of the caller's rights: opened again, it may show more. What is
//! about one computer ends when the caller may no longer do with that computer what it was opened for.

use std::time::Duration;

use futures_util::{Stream, StreamExt};
use roost_api::{ComputerId, admits};
use roost_store::Caller;
use tokio::sync::watch;

use crate::access::Act;
use crate::{Control, Failure};

/// Moves whenever a key, a user or a membership may have changed.
#[derive(Debug, Default)]
pub(crate) struct Callers {
    changes: watch::Sender<u64>,
}

impl Callers {
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// What a caller has opened.
#[derive(Debug, Clone, Copy)]
enum Opened {
    Tenant,
    Computer(ComputerId, Act),
}

impl Control {
    /// The stream for as long as the caller may do what they may do now. Who opens it again finds out what changed.
    pub fn while_allowed<S: Stream + Send>(
        &self,
        caller: Caller,
        stream: S,
    ) -> impl Stream<Item = S::Item> + Send + use<S> {
        stream.take_until(Box::pin(self.clone().until_over(caller, Opened::Tenant)))
    }

    /// The stream for as long as the caller may do that with the computer.
    pub fn while_usable<S: Stream + Send>(
        &self,
        caller: Caller,
        computer: ComputerId,
        act: Act,
        stream: S,
    ) -> impl Stream<Item = S::Item> + Send + use<S> {
        stream.take_until(Box::pin(self.clone().rights_end(caller, computer, act)))
    }

    /// Returns when the caller may no longer do that with the computer.
    pub async fn rights_end(self, caller: Caller, computer: ComputerId, act: Act) {
        self.until_over(caller, Opened::Computer(computer, act)).await;
    }

    async fn until_over(self, caller: Caller, opened: Opened) {
        let mut changes = self.inner.callers.changes.subscribe();
        loop {
            // Subscribed first: what changes after this look is noticed.
            match self.holds(&caller, opened).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(failure) => {
                    let error = &failure as &dyn std::error::Error;
                    tracing::error!(error, "failed to look whether a key still holds; what it opened ends");
                    return;
                }
            }
            let left = caller.expires_at.map(|end| {
                let micros = end.as_micros().saturating_sub(self.inner.store.now().as_micros());
                Duration::from_micros(u64::try_from(micros).unwrap_or(0))
            });
            let expired = async {
                match left {
                    Some(left) => tokio::time::sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = expired => {}
            }
        }
    }

    /// Whether the caller may still do what something was opened for.
    async fn holds(&self, caller: &Caller, opened: Opened) -> Result<bool, Failure> {
        let found = self.inner.store.caller_by_key_hash(&caller.key_hash).await?;
        let Some(now) = found.map(|now| self.with_operator(now)) else { return Ok(false) };
        let (computer, act) = match opened {
            Opened::Tenant => return Ok(now.may_the_same_as(caller)),
            Opened::Computer(computer, act) => (computer, act),
        };
        if now.allowed_ips != caller.allowed_ips && !admits(&now.allowed_ips, caller.address) {
            return Ok(false);
        }
        // An operator is still where they went.
        let now = match now.is_operator {
            true => Caller { tenant: caller.tenant, role: caller.role, ..now },
            false => now,
        };
        match self.get_for(&now, computer, act).await {
            Ok(_) => Ok(true),
            // What is open about a computer that is deleted ends by itself, once it has told of that.
            Err(_) if self.inner.store.computer(computer).await?.is_none() => Ok(true),
            Err(failure) if failure.public.code.status() < 500 => Ok(false),
            Err(failure) => Err(failure),
        }
    }
}
