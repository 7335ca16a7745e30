//! Removes, now and then, what is kept for a while only and nobody may ask for any more.

use std::sync::Arc;
use std::time::Duration;

use roost_api::Timestamp;

use crate::idempotency::{KEPT_FOR, earlier};
use crate::{Control, Failure, Inner};

const EVERY: Duration = Duration::from_secs(3600);

/// How long events are kept, and deliveries of them to webhooks.
#[derive(Debug, Clone, Copy)]
pub struct EventRetention {
    pub age: Duration,
    pub count: u64,
}

impl Default for EventRetention {
    fn default() -> Self {
        Self { age: Duration::from_secs(7 * 86_400), count: 1_000_000 }
    }
}

impl Control {
    /// Does so from now on, for as long as this control plane lives.
    pub(crate) fn keep_retention(&self) {
        let control = Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            loop {
                ticks.tick().await;
                let Some(inner) = control.upgrade() else { return };
                if let Err(failure) = remove_old(&inner).await {
                    let failure = &failure as &dyn std::error::Error;
                    tracing::error!(failure, "failed to remove what is old; trying again in an hour");
                }
            }
        });
    }
}

async fn remove_old(inner: &Inner) -> Result<(), Failure> {
    let now = Timestamp::now();
    inner.store.remove_metrics(now).await?;
    let EventRetention { age, count } = inner.config.events;
    inner.store.remove_events(earlier(now, age), count).await?;
    inner.store.remove_deliveries(earlier(now, age)).await?;
    Ok(inner.store.remove_requests(earlier(now, KEPT_FOR)).await?)
}
