//! Wakes whoever waits for a computer or a snapshot to change.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

/// One counter per id; it moves with every change.
#[derive(Debug)]
pub(crate) struct Hub<Id> {
    counters: Mutex<HashMap<Id, watch::Sender<u64>>>,
}

impl<Id> Default for Hub<Id> {
    fn default() -> Self {
        Self { counters: Mutex::default() }
    }
}

impl<Id: Copy + Eq + Hash> Hub<Id> {
    /// Subscribe first, then look: a change after the look wakes `changed`.
    pub(crate) fn subscribe(&self, id: Id) -> watch::Receiver<u64> {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.entry(id).or_default().subscribe()
    }

    pub(crate) fn notify(&self, id: Id) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counter) = counters.get(&id) {
            counter.send_modify(|count| *count += 1);
            if counter.receiver_count() == 0 {
                counters.remove(&id);
            }
        }
    }
}
