//! Wakes whoever waits for a computer or a snapshot to change.
//!
//! Everything that wakes somebody passes through here, so this is where the word of another server on the same
//! database is to come in.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

/// One counter per id, which moves with every change of it, and one that moves with every change of all.
#[derive(Debug)]
pub(crate) struct Hub<Id> {
    counters: Mutex<HashMap<Id, watch::Sender<u64>>>,
    all: watch::Sender<u64>,
}

impl<Id> Default for Hub<Id> {
    fn default() -> Self {
        Self { counters: Mutex::default(), all: watch::Sender::default() }
    }
}

impl<Id: Copy + Eq + Hash> Hub<Id> {
    /// Subscribe first, then look: a change after the look wakes `changed`.
    pub(crate) fn subscribe(&self, id: Id) -> watch::Receiver<u64> {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.entry(id).or_default().subscribe()
    }

    /// The same for changes of any of them, and for events that belong to none.
    pub(crate) fn subscribe_to_all(&self) -> watch::Receiver<u64> {
        self.all.subscribe()
    }

    pub(crate) fn notify(&self, id: Id) {
        {
            let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(counter) = counters.get(&id) {
                counter.send_modify(|count| *count += 1);
                if counter.receiver_count() == 0 {
                    counters.remove(&id);
                }
            }
        }
        self.wake();
    }

    /// Anything may have happened.
    pub(crate) fn notify_all(&self) {
        {
            let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
            counters.retain(|_, counter| {
                counter.send_modify(|count| *count += 1);
                counter.receiver_count() > 0
            });
        }
        self.wake();
    }

    /// Something happened that belongs to none of them.
    pub(crate) fn wake(&self) {
        self.all.send_modify(|count| *count += 1);
    }
}
