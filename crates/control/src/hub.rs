//! Wakes whoever waits for a computer to change.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use roost_api::ComputerId;
use tokio::sync::watch;

/// One counter per computer; it moves with every change.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    counters: Mutex<HashMap<ComputerId, watch::Sender<u64>>>,
}

impl Hub {
    /// Subscribe first, then look: a change after the look wakes `changed`.
    pub(crate) fn subscribe(&self, computer: ComputerId) -> watch::Receiver<u64> {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.entry(computer).or_default().subscribe()
    }

    pub(crate) fn notify(&self, computer: ComputerId) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = counters.get(&computer) {
            counter.send_modify(|count| *count += 1);
            if counter.receiver_count() == 0 {
                counters.remove(&computer);
            }
        }
    }
}
