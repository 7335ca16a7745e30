//! Whether this host has room for one more start: of what is really used, not of what was promised.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use roost_api::ComputerId;

use crate::{LaunchError, Need};

const MIB: u64 = 1024 * 1024;
/// What stays free for the host itself and for computers that run to grow.
const MEMORY_KEPT: u64 = 512 * MIB;
const DISK_KEPT: u64 = 512 * MIB;
/// How long it takes until a start shows in what the host says is available.
const UNSEEN: Duration = Duration::from_secs(5);

/// Starts of a moment ago, which do not show yet.
#[derive(Debug, Default)]
pub(crate) struct Room {
    recent: Mutex<HashMap<ComputerId, (Instant, u64)>>,
}

impl Room {
    /// A computer has begun to use memory.
    pub(crate) fn started(&self, computer: ComputerId, memory: u64) {
        self.recent().insert(computer, (Instant::now(), memory));
    }

    /// It uses none any more.
    pub(crate) fn ended(&self, computer: ComputerId) {
        self.recent().remove(&computer);
    }

    fn recent(&self) -> MutexGuard<'_, HashMap<ComputerId, (Instant, u64)>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is room for a start, or what is missing.
    pub(crate) fn admit(&self, need: &Need, data: &Utf8Path) -> Result<(), LaunchError> {
        let meminfo = "/proc/meminfo";
        let text = std::fs::read_to_string(meminfo).map_err(|source| LaunchError::File {
            action: "read",
            path: meminfo.into(),
            source,
        })?;
        let available = available(&text).unwrap_or(u64::MAX);
        let disk = rustix::fs::statvfs(data.as_std_path()).map_err(|error| LaunchError::File {
            action: "ask for the free room of",
            path: data.to_owned(),
            source: error.into(),
        })?;
        self.decide(need, available, disk.f_bavail * disk.f_frsize, Instant::now())
    }

    fn decide(&self, need: &Need, memory: u64, disk: u64, now: Instant) -> Result<(), LaunchError> {
        if disk < need.disk + DISK_KEPT {
            return Err(LaunchError::NoRoom {
                reason: format!(
                    "the disk of this host is nearly full: {} MiB are free, and a start takes {} MiB beside the {} \
                     MiB that are kept; delete snapshots or computers, or make room",
                    disk / MIB,
                    need.disk / MIB,
                    DISK_KEPT / MIB
                ),
            });
        }
        let mut recent = self.recent();
        recent.retain(|_, (started, _)| now.duration_since(*started) < UNSEEN);
        let unseen: u64 = recent.values().map(|(_, bytes)| bytes).sum();
        if memory < need.memory + unseen + MEMORY_KEPT {
            return Err(LaunchError::NoRoom {
                reason: format!(
                    "the memory of this host is nearly used up: {} MiB are available, and a start takes about {} MiB \
                     beside the {} MiB that are kept; stop computers (their memory is saved), or try again later",
                    memory.saturating_sub(unseen) / MIB,
                    need.memory / MIB,
                    MEMORY_KEPT / MIB
                ),
            });
        }
        Ok(())
    }
}

fn available(meminfo: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_that_do_not_show_yet_count() {
        let room = Room::default();
        let need = Need { memory: 200 * MIB, disk: 256 * MIB };
        let available = MEMORY_KEPT + 450 * MIB;
        let decide = |when| room.decide(&need, available, 10_000 * MIB, when);
        let (first, second) = (ComputerId::new(), ComputerId::new());
        decide(Instant::now()).unwrap();
        room.started(first, need.memory);
        decide(Instant::now()).unwrap();
        room.started(second, need.memory);
        let refused = decide(Instant::now()).unwrap_err();
        assert!(refused.to_string().contains("stop computers"), "{refused}");
        room.ended(first);
        decide(Instant::now()).unwrap();
        room.started(first, need.memory);
        // By now they show, in what is available.
        let now = Instant::now() + UNSEEN;
        decide(now).unwrap();
        let refused = room.decide(&need, u64::MAX / 2, DISK_KEPT, now).unwrap_err();
        assert!(refused.to_string().contains("disk"), "{refused}");
    }

    #[test]
    fn the_kernels_account_is_read() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12 * 1024));
        assert_eq!(available(""), None);
    }
}
