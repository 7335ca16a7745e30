//! CPU and memory of the whole guest, from `/proc`.

use std::{fs, io};

use roost_guest_proto::v1::UsageReply;

/// `/proc/stat` counts in units of `USER_HZ`, which is 100 per second on every Linux we run on.
const MS_PER_TICK: u64 = 10;

#[derive(Debug, thiserror::Error)]
pub(super) enum UsageError {
    #[error("read {0}: {1}")]
    Read(&'static str, io::Error),
    #[error("{0} does not have the form that is documented for it")]
    Form(&'static str),
}

pub(super) fn read() -> Result<UsageReply, UsageError> {
    let read = |file| fs::read_to_string(file).map_err(|source| UsageError::Read(file, source));
    let (cpu_busy_ms, cpu_total_ms) = cpu(&read("/proc/stat")?).ok_or(UsageError::Form("/proc/stat"))?;
    let memory = read("/proc/meminfo")?;
    let memory = |name| bytes(&memory, name).ok_or(UsageError::Form("/proc/meminfo"));
    Ok(UsageReply {
        cpu_busy_ms,
        cpu_total_ms,
        memory_total_bytes: memory("MemTotal")?,
        memory_available_bytes: memory("MemAvailable")?,
        uptime_ms: uptime(&read("/proc/uptime")?).ok_or(UsageError::Form("/proc/uptime"))?,
    })
}

/// Busy and total. The fields are user, nice, system, idle, iowait, irq, softirq, steal; what follows is
/// counted in user and nice already.
fn cpu(stat: &str) -> Option<(u64, u64)> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = fields.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let total: u64 = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some(((total - idle) * MS_PER_TICK, total * MS_PER_TICK))
}

fn bytes(meminfo: &str, name: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

fn uptime(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text.split_whitespace().next()?.split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1000 + hundredths.parse::<u64>().ok()? * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_documented_forms() {
        assert_eq!(cpu("cpu  10 20 30 400 50 6 7 8 900 0\ncpu0 1\n"), Some((810, 5310)));
        assert_eq!(bytes("MemTotal:  2000 kB\nMemAvailable:    12 kB\n", "MemAvailable"), Some(12 * 1024));
        assert_eq!(uptime("12.34 20.00\n"), Some(12_340));
    }

    #[test]
    fn reads_this_machine() {
        let usage = read().unwrap();
        assert!(usage.cpu_busy_ms <= usage.cpu_total_ms);
        assert!(usage.memory_available_bytes <= usage.memory_total_bytes);
        assert!(usage.uptime_ms > 0);
    }
}
