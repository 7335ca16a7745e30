//! How many idle computers one host carries.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use crate::host;
use crate::report::{Unit, aligned, amount};
use crate::roost::Roost;
use crate::statistics::Samples;

/// How many computers come between two looks.
const STRIDE: usize = 10;
/// Commands per look, on computers spread over all that are there.
const SAMPLE: usize = 30;
/// The host is full when a command takes longer than this for one in twenty.
const SLOWEST_EXEC: f64 = 0.1;
/// How long they are left alone before and while the host's CPU is looked at.
const ALONE: Duration = Duration::from_secs(10);

/// What was seen with so many computers.
#[derive(Debug, Clone)]
pub struct Look {
    computers: usize,
    creates: Samples,
    execs: Samples,
    memory: Samples,
    available_bytes: u64,
    /// Of all cores, in percent of one.
    cpu: f64,
}

#[derive(Debug, Clone)]
pub struct Density {
    looks: Vec<Look>,
    end: String,
}

/// Creates computers until there are `most`, the server refuses one, or commands become slow.
pub async fn measure(roost: &Roost, most: usize) -> Result<Density> {
    let mut ids: Vec<String> = Vec::new();
    let mut looks = Vec::new();
    let mut creates = Samples::default();
    let end = loop {
        match roost.create(&format!("bench-dense-{}", ids.len())).await {
            Ok(made) => {
                creates.push(made.elapsed.as_secs_f64());
                ids.push(made.id);
            }
            Err(error) => break format!("computer {} was not made: {error:#}", ids.len() + 1),
        }
        if !ids.len().is_multiple_of(STRIDE) && ids.len() != most {
            continue;
        }
        let seen = look(roost, &ids, std::mem::take(&mut creates)).await?;
        eprint!("{}", lines(std::slice::from_ref(&seen)));
        let slow = seen.execs.percentile(95).is_some_and(|p95| p95 > SLOWEST_EXEC);
        looks.push(seen);
        if ids.len() == most {
            break format!("all {most} computers were made");
        }
        if slow {
            let limit = amount(SLOWEST_EXEC, Unit::Seconds);
            break format!("with {} computers the p95 of exec is above {limit}", ids.len());
        }
    };
    let deletes = futures_util::stream::iter(&ids).map(|id| roost.delete(id)).buffer_unordered(4);
    deletes.try_collect::<()>().await?;
    Ok(Density { looks, end })
}

async fn look(roost: &Roost, ids: &[String], creates: Samples) -> Result<Look> {
    tokio::time::sleep(ALONE).await;
    let (busy, begun) = (host::busy_seconds()?, Instant::now());
    tokio::time::sleep(ALONE).await;
    let cpu = (host::busy_seconds()? - busy) / begun.elapsed().as_secs_f64() * 100.0;
    let mut execs = Samples::default();
    for index in 0..SAMPLE {
        let begun = Instant::now();
        roost.run(&ids[index * ids.len() / SAMPLE], "true").await?;
        execs.push(begun.elapsed().as_secs_f64());
    }
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let memory = roost.pss(&roost.trees(&ids)?)?;
    Ok(Look {
        computers: ids.len(),
        creates,
        execs,
        memory,
        available_bytes: host::memory("MemAvailable")?,
        cpu,
    })
}

impl Density {
    pub fn table(&self) -> String {
        format!("{}{}\n", lines(&self.looks), self.end)
    }

    pub fn to_json(&self) -> Value {
        let looks: Vec<Value> = self
            .looks
            .iter()
            .map(|look| {
                json!({
                    "computers": look.computers,
                    "create_seconds": look.creates.to_json(),
                    "exec_seconds": look.execs.to_json(),
                    "pss_bytes": look.memory.to_json(),
                    "memory_available_bytes": look.available_bytes,
                    "cpu_percent_of_a_core": look.cpu,
                })
            })
            .collect();
        json!({ "looks": looks, "end": self.end })
    }
}

fn lines(looks: &[Look]) -> String {
    let headings =
        ["computers", "create p50", "exec p50", "exec p95", "mean PSS", "available", "CPU of the host"];
    let rows = looks.iter().map(|look| {
        let value = |value: Option<f64>, unit| value.map(|value| amount(value, unit)).unwrap_or_default();
        [
            look.computers.to_string(),
            value(look.creates.median(), Unit::Seconds),
            value(look.execs.median(), Unit::Seconds),
            value(look.execs.percentile(95), Unit::Seconds),
            value(look.memory.mean(), Unit::Bytes),
            format!("{} MiB", look.available_bytes / (1024 * 1024)),
            amount(look.cpu, Unit::Percent),
        ]
    });
    let all: Vec<[String; 7]> = std::iter::once(headings.map(str::to_owned)).chain(rows).collect();
    aligned(&all)
}
