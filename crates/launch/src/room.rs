//! Whether this host has room for one more start: of what is really used, not of what was promised.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use roost_api::ComputerId;

use crate::{Capacity, LaunchError, Need};

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
        let host = Host::measure(data)?;
        self.decide(need, host.memory, host.disk, Instant::now())
    }

    /// What starts may still take.
    pub(crate) fn capacity(&self, data: &Utf8Path) -> Result<Capacity, LaunchError> {
        let host = Host::measure(data)?;
        Ok(Capacity {
            memory: host.memory.saturating_sub(self.unseen(Instant::now()) + MEMORY_KEPT),
            memory_total: host.memory_total,
            disk: host.disk.saturating_sub(DISK_KEPT),
        })
    }

    /// What starts have taken that does not show yet.
    fn unseen(&self, now: Instant) -> u64 {
        let mut recent = self.recent();
        recent.retain(|_, (started, _)| now.duration_since(*started) < UNSEEN);
        recent.values().map(|(_, bytes)| bytes).sum()
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
        let unseen = self.unseen(now);
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

/// What is free on the host, in bytes.
struct Host {
    memory: u64,
    memory_total: u64,
    disk: u64,
}

impl Host {
    fn measure(data: &Utf8Path) -> Result<Self, LaunchError> {
        let meminfo = "/proc/meminfo";
        let text = std::fs::read_to_string(meminfo).map_err(|source| LaunchError::File {
            action: "read",
            path: meminfo.into(),
            source,
        })?;
        let disk = rustix::fs::statvfs(data.as_std_path()).map_err(|error| LaunchError::File {
            action: "ask for the free room of",
            path: data.to_owned(),
            source: error.into(),
        })?;
        Ok(Self {
            memory: of_meminfo(&text, "MemAvailable:").unwrap_or(u64::MAX),
            memory_total: of_meminfo(&text, "MemTotal:").unwrap_or(u64::MAX),
            disk: disk.f_bavail * disk.f_frsize,
        })
    }
}

fn of_meminfo(meminfo: &str, field: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(field))?;
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
        let meminfo = "MemTotal: 9 kB\nMemAvailable:   12 kB\n";
        assert_eq!(of_meminfo(meminfo, "MemAvailable:"), Some(12 * 1024));
        assert_eq!(of_meminfo(meminfo, "MemTotal:"), Some(9 * 1024));
        assert_eq!(of_meminfo("", "MemTotal:"), None);
    }
}
