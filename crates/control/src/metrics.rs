//! CPU and memory of running computers, as their own kernels count them.
//!
//! Every computer that is followed has a sampler, which asks its agent once a minute; it begins and ends with the
//! machine. The first answer is only a beginning, because CPU time is a difference. After a restart of the server all
//! begin at once, so each waits for a part of [`SPREAD`] that its id gives. An answer that does not come, or a
//! counter that went back, leaves a gap. What was measured is written together, at most every [`WRITE_EVERY`].

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use roost_api::{ApiError, ComputerId, MetricPoint, Metrics, MetricsQuery, Timestamp};
use roost_guest_proto::v1::system_client::SystemClient;
use roost_guest_proto::v1::{UsageReply, UsageRequest};
use roost_store::{ComputerRecord, Measurement, Resolution};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Control, Failure};

const EVERY: Duration = Duration::from_secs(60);
const SPREAD: Duration = Duration::from_secs(15);
const WRITE_EVERY: Duration = Duration::from_secs(10);
/// A guest that has not answered by then leaves a gap.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Samples {
    unwritten: Mutex<Vec<Measurement>>,
    some: Notify,
}

/// Measures a computer until it is dropped.
#[derive(Debug)]
pub(crate) struct Sampling(#[expect(dead_code, reason = "its drop ends the sampler")] DropGuard);

impl Control {
    pub(crate) fn sample(&self, computer: ComputerId) -> Sampling {
        let end = CancellationToken::new();
        let guard = Sampling(end.clone().drop_guard());
        let control = std::sync::Arc::downgrade(&self.inner);
        let sampler = async move {
            let mut before = None;
            tokio::time::sleep(share_of_spread(computer)).await;
            let mut ticks = tokio::time::interval(EVERY);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(inner) = control.upgrade() else { return };
                before = Control { inner }.measure(computer, before).await;
            }
        };
        tokio::spawn(async move { end.run_until_cancelled(sampler).await });
        guard
    }

    /// Measures once; what is measured is the time since `before`.
    pub async fn measure(&self, computer: ComputerId, before: Option<UsageReply>) -> Option<UsageReply> {
        let now = match self.guest_usage(computer).await {
            Ok(now) => now,
            Err(failure) => {
                let failure = &failure as &dyn std::error::Error;
                tracing::debug!(%computer, failure, "not measured");
                return None;
            }
        };
        if let Some((cpu, memory)) = before.and_then(|before| percent(&before, &now)) {
            let samples = &self.inner.samples;
            let measurement = Measurement { computer, at: Timestamp::now(), cpu, memory };
            samples.unwritten.lock().unwrap_or_else(PoisonError::into_inner).push(measurement);
            samples.some.notify_one();
        }
        Some(now)
    }

    async fn guest_usage(&self, computer: ComputerId) -> Result<UsageReply, Failure> {
        let region = self.record(computer).await?.region;
        let mut client = SystemClient::new(self.unused_guest(computer, &region)?);
        let answer = tokio::time::timeout(PATIENCE, client.usage(UsageRequest {})).await;
        let answer = answer.map_err(Failure::internal)?;
        Ok(answer.map_err(Failure::from_guest)?.into_inner())
    }

    /// Writes what was measured, for as long as this control plane lives.
    pub(crate) fn keep_samples(&self) {
        let control = std::sync::Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(WRITE_EVERY).await;
                let Some(inner) = control.upgrade() else { return };
                inner.samples.some.notified().await;
                Control { inner }.write_samples().await;
            }
        });
    }

    /// Writes what was measured and is not written yet. What cannot be written is lost: a gap is no wrong number.
    pub async fn write_samples(&self) {
        let samples = &self.inner.samples;
        let measured = std::mem::take(&mut *samples.unwritten.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = self.inner.store.insert_measurements(&measured).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "failed to record what computers use: there will be a gap");
        }
    }

    pub async fn metrics(&self, record: &ComputerRecord, query: &MetricsQuery) -> Result<Metrics, Failure> {
        const MINUTE: Duration = Duration::from_secs(60);
        let (window, resolution, step) = match query.window.as_deref() {
            None | Some("" | "1h") => (60 * MINUTE, Resolution::Minute, MINUTE),
            Some("24h") => (24 * 60 * MINUTE, Resolution::Minute, 5 * MINUTE),
            Some("7d") => (7 * 24 * 60 * MINUTE, Resolution::HalfHour, 30 * MINUTE),
            Some(_) => return Err(ApiError::field("window", "not 1h, 24h or 7d").into()),
        };
        let window = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
        let now = Timestamp::now();
        let since = Timestamp::from_micros(now.as_micros().saturating_sub(window)).unwrap_or(now);
        let usage = self.inner.store.usage(record.id, resolution, since, step).await?;
        let point = |ts, hundredths: i64| {
            let value = f64::from(i32::try_from(hundredths).unwrap_or(i32::MAX)) / 100.0;
            MetricPoint { ts, value }
        };
        Ok(Metrics {
            cpu_percent: usage.iter().map(|usage| point(usage.at, usage.cpu)).collect(),
            memory_percent: usage.iter().map(|usage| point(usage.at, usage.memory)).collect(),
            credits_per_hour: self.inner.config.credits.prices.of(record.size),
        })
    }
}

fn share_of_spread(computer: ComputerId) -> Duration {
    let spread = SPREAD.as_millis().max(1);
    Duration::from_millis(u64::try_from(computer.as_uuid().as_u128() % spread).unwrap_or(0))
}

/// Hundredths of a percent of CPU time and of memory. The guest is not trusted to make sense.
fn percent(before: &UsageReply, now: &UsageReply) -> Option<(i64, i64)> {
    let total = now.cpu_total_ms.checked_sub(before.cpu_total_ms).filter(|total| *total > 0)?;
    let busy = now.cpu_busy_ms.checked_sub(before.cpu_busy_ms)?;
    let used = now.memory_total_bytes.checked_sub(now.memory_available_bytes)?;
    Some((hundredths(busy, total)?, hundredths(used, now.memory_total_bytes)?))
}

fn hundredths(part: u64, whole: u64) -> Option<i64> {
    let share = (u128::from(part) * 10_000).checked_div(u128::from(whole))?;
    i64::try_from(share.min(10_000)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_a_gap() {
        let usage = |busy, total, free, memory| UsageReply {
            cpu_busy_ms: busy,
            cpu_total_ms: total,
            memory_total_bytes: memory,
            memory_available_bytes: free,
            uptime_ms: 0,
        };
        let before = usage(100, 1000, 1, 4);
        for (now, expected) in [
            (usage(150, 2000, 1, 4), Some((500, 7500))),
            (usage(100, 2000, 4, 4), Some((0, 0))),
            (usage(9000, 2000, 1, 4), Some((10_000, 7500))),
            (usage(100, 1000, 1, 4), None), // no time has passed
            (usage(50, 500, 1, 4), None),   // it booted
            (usage(50, 2000, 1, 4), None),
            (usage(150, 2000, 5, 4), None),
            (usage(150, 2000, 0, 0), None),
        ] {
            assert_eq!(percent(&before, &now), expected, "{now:?}");
        }
    }
}
