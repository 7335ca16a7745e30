//! Callers who stay: what they opened ends when their key does, or when what they may do changes.

use std::time::Duration;

use futures_util::{Stream, StreamExt};
use roost_store::Caller;
use tokio::sync::watch;

use crate::Control;

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

impl Control {
    /// The stream for as long as the caller may do what they may do now. Who opens it again finds out what changed.
    pub fn while_allowed<S: Stream + Send>(
        &self,
        caller: Caller,
        stream: S,
    ) -> impl Stream<Item = S::Item> + Send + use<S> {
        stream.take_until(Box::pin(self.clone().until_changed(caller)))
    }

    async fn until_changed(self, caller: Caller) {
        let mut changes = self.inner.callers.changes.subscribe();
        loop {
            // Subscribed first: what changes after this look is noticed.
            match self.inner.store.caller_by_key_hash(&caller.key_hash).await {
                Ok(Some(now)) if now.may_the_same_as(&caller) => {}
                Ok(_) => return,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "failed to look whether a key still holds; a stream ends");
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
}
