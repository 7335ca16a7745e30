//! CPU and memory of computers over time: minutes for a day, half hours for a week.
//!
//! A measurement is added to its minute and to its half hour in one transaction, so neither has what the other
//! lacks. A minute without measurements has no row. What a computer may have is bounded by what is kept:
//! 1,500 minutes and 338 half hours.

use std::time::Duration;

use roost_api::{ComputerId, Timestamp};

use crate::record::{number, time};
use crate::{Store, StoreError};

/// How long a time a row sums up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    Minute,
    HalfHour,
}

impl Resolution {
    pub const ALL: [Resolution; 2] = [Resolution::Minute, Resolution::HalfHour];

    fn seconds(self) -> i64 {
        match self {
            Resolution::Minute => 60,
            Resolution::HalfHour => 1800,
        }
    }

    /// A little longer than the longest window that is read from it.
    pub fn kept_for(self) -> Duration {
        match self {
            Resolution::Minute => Duration::from_secs(25 * 3600),
            Resolution::HalfHour => Duration::from_secs(7 * 86_400 + 3600),
        }
    }
}

/// What was measured once, in hundredths of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurement {
    pub computer: ComputerId,
    pub at: Timestamp,
    pub cpu: i64,
    pub memory: i64,
}

/// The mean of a time that begins at `at`, in hundredths of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub at: Timestamp,
    pub cpu: i64,
    pub memory: i64,
}

impl Store {
    pub async fn insert_measurements(&self, measurements: &[Measurement]) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        for measurement in measurements {
            for resolution in Resolution::ALL {
                let length = resolution.seconds() * 1_000_000;
                // One of a computer that has been deleted meanwhile would stay for nobody.
                sqlx::query(
                    "INSERT INTO metrics (computer_id, resolution, at, samples, cpu, memory)
                     SELECT id, CAST($2 AS BIGINT), CAST($3 AS BIGINT), 1, CAST($4 AS BIGINT), CAST($5 AS BIGINT)
                     FROM computers WHERE id = $1
                     ON CONFLICT (computer_id, resolution, at) DO UPDATE SET samples = metrics.samples + 1,
                         cpu = metrics.cpu + excluded.cpu, memory = metrics.memory + excluded.memory",
                )
                .bind(measurement.computer.to_string())
                .bind(resolution.seconds())
                .bind(measurement.at.as_micros().div_euclid(length) * length)
                .bind(measurement.cpu)
                .bind(measurement.memory)
                .execute(&mut *tx)
                .await?;
            }
        }
        tx.commit().await?;
        Ok(())
    }

    /// What a computer used since a time, oldest first, in means over `step`.
    pub async fn usage(
        &self,
        computer: ComputerId,
        resolution: Resolution,
        since: Timestamp,
        step: Duration,
    ) -> Result<Vec<Usage>, StoreError> {
        let step = i64::try_from(step.as_micros()).unwrap_or(i64::MAX).max(1);
        let rows = sqlx::query(
            "SELECT begun, CAST(SUM(cpu) / SUM(samples) AS BIGINT) AS cpu,
                 CAST(SUM(memory) / SUM(samples) AS BIGINT) AS memory
             FROM (SELECT (at / $4) * $4 AS begun, samples, cpu, memory FROM metrics
                 WHERE computer_id = $1 AND resolution = $2 AND at >= $3) AS parts
             GROUP BY begun ORDER BY begun",
        )
        .bind(computer.to_string())
        .bind(resolution.seconds())
        .bind(since.as_micros())
        .bind(step)
        .fetch_all(&self.pool)
        .await?;
        let usage = |row| {
            Ok(Usage { at: time(row, "begun")?, cpu: number(row, "cpu")?, memory: number(row, "memory")? })
        };
        rows.iter().map(usage).collect()
    }

    /// Removes what is older than it is kept for.
    pub async fn remove_metrics(&self, now: Timestamp) -> Result<(), StoreError> {
        for resolution in Resolution::ALL {
            let age = i64::try_from(resolution.kept_for().as_micros()).unwrap_or(i64::MAX);
            sqlx::query("DELETE FROM metrics WHERE resolution = $1 AND at < $2")
                .bind(resolution.seconds())
                .bind(now.as_micros().saturating_sub(age))
                .execute(&self.pool)
                .await?;
        }
        Ok(())
    }
}
