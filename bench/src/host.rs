//! This host: what it is, and what its processes take.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// What /proc/stat counts in, whatever the kernel's own timer does.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the numbers were measured on.
#[derive(Debug, Clone)]
pub struct Host {
    pub cpu: String,
    pub cores: usize,
    pub memory_bytes: u64,
    pub kernel: String,
    /// Of the last minute: what else the host had to do.
    pub load: String,
}

impl Host {
    pub fn this() -> Result<Self> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").context("failed to read /proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let cpu = model.and_then(|rest| rest.split_once(": ")).map_or("unknown", |(_, model)| model);
        let load = std::fs::read_to_string("/proc/loadavg").context("failed to read /proc/loadavg")?;
        Ok(Self {
            cpu: cpu.to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            memory_bytes: memory("MemTotal")?,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
        })
    }

    pub fn to_json(&self) -> Value {
        json!({
            "cpu": self.cpu,
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "kernel": self.kernel,
            "load_before": self.load,
        })
    }
}

/// A line of /proc/meminfo, in bytes.
pub fn memory(name: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("failed to read /proc/meminfo")?;
    kibibytes(&text, name).with_context(|| format!("/proc/meminfo has no {name}"))
}

/// Time that the host's cores were busy since it booted, in seconds of one core.
pub fn busy_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat").context("failed to read /proc/stat")?;
    let first = text.lines().next().unwrap_or_default();
    let fields: Vec<u32> = first.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, irq and softirq; not idle and not waiting for the disk.
    let busy: f64 =
        [0, 1, 2, 5, 6].iter().filter_map(|at| fields.get(*at)).map(|ticks| f64::from(*ticks)).sum();
    Ok(busy / TICKS_PER_SECOND)
}

/// A process and all it has started.
#[derive(Debug, Clone)]
pub struct Tree(Vec<u32>);

impl Tree {
    /// The trees of these processes.
    pub fn of(roots: &[u32]) -> Result<Vec<Self>> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // It may have ended meanwhile.
            let Some(fields) = stat(pid) else { continue };
            if let Some(parent) = fields.first().and_then(|field| field.parse().ok()) {
                children.entry(parent).or_default().push(pid);
            }
        }
        let tree = |root: &u32| {
            let mut members = HashSet::from([*root]);
            let mut unseen = vec![*root];
            while let Some(pid) = unseen.pop() {
                unseen
                    .extend(children.get(&pid).into_iter().flatten().filter(|child| members.insert(**child)));
            }
            Self(members.into_iter().collect())
        };
        Ok(roots.iter().map(tree).collect())
    }

    /// Proportional set size: memory that several processes share counts in parts.
    pub fn pss(&self) -> Result<u64> {
        let mut bytes = 0;
        for pid in &self.0 {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = std::fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
            bytes += kibibytes(&text, "Pss").with_context(|| format!("{path} has no Pss"))?;
        }
        Ok(bytes)
    }

    /// CPU time spent so far.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let mut ticks = 0;
        for pid in &self.0 {
            let fields = stat(*pid).with_context(|| format!("process {pid} has ended"))?;
            // utime and stime are fields 14 and 15 of the line, the parent is the 4th.
            for at in [10, 11] {
                let field: Option<u32> = fields.get(at).and_then(|field| field.parse().ok());
                ticks += field.with_context(|| format!("/proc/{pid}/stat cannot be understood"))?;
            }
        }
        Ok(f64::from(ticks) / TICKS_PER_SECOND)
    }
}

/// The fields of /proc/PID/stat from the parent's id on; the name before it may hold anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().skip(1).map(str::to_owned).collect())
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
