//! Whether this host has room for one more start: of what is really used, not of what was promised.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8Path;

use crate::{LaunchError, Need};

const MIB: u64 = 1024 * 1024;
/// What stays free for the host itself and for computers that run to grow.
const MEMORY_KEPT: u64 = 512 * MIB;
const DISK_KEPT: u64 = 512 * MIB;
/// How long it takes until a start shows in what the host says is available.
const UNSEEN: Duration = Duration::from_secs(5);

/// Starts that were let in a moment ago and do not show yet.
#[derive(Debug, Default)]
pub(crate) struct Room {
    recent: Mutex<Vec<(Instant, u64)>>,
}

impl Room {
    /// Lets a start in, or says what is missing.
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
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|(admitted, _)| now.duration_since(*admitted) < UNSEEN);
        let unseen: u64 = recent.iter().map(|(_, bytes)| bytes).sum();
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
        recent.push((now, need.memory));
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
        let now = Instant::now();
        let available = MEMORY_KEPT + 450 * MIB;
        room.decide(&need, available, 10_000 * MIB, now).unwrap();
        room.decide(&need, available, 10_000 * MIB, now).unwrap();
        let refused = room.decide(&need, available, 10_000 * MIB, now).unwrap_err();
        assert!(refused.to_string().contains("stop computers"), "{refused}");
        // By now they show, in what is available.
        room.decide(&need, available, 10_000 * MIB, now + UNSEEN).unwrap();
        let refused = room.decide(&need, u64::MAX / 2, DISK_KEPT, now).unwrap_err();
        assert!(refused.to_string().contains("disk"), "{refused}");
    }

    #[test]
    fn the_kernels_account_is_read() {
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12 * 1024));
        assert_eq!(available(""), None);
    }
}
