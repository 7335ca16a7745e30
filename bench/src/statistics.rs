//! Samples and what is said of them.

use serde_json::{Value, json};

/// Measured values of one operation, in the unit of its row.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn push(&mut self, value: f64) {
        let at = self.0.partition_point(|other| *other < value);
        self.0.insert(at, value);
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest sample that `percent` of all samples do not exceed (nearest rank); `None` without samples.
    pub fn percentile(&self, percent: usize) -> Option<f64> {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied()
    }

    pub fn median(&self) -> Option<f64> {
        self.percentile(50)
    }

    pub fn mean(&self) -> Option<f64> {
        let count = u32::try_from(self.0.len()).ok().filter(|count| *count > 0)?;
        Some(self.0.iter().sum::<f64>() / f64::from(count))
    }

    pub fn to_json(&self) -> Value {
        json!({
            "p50": self.median(),
            "p95": self.percentile(95),
            "mean": self.mean(),
            "n": self.count(),
            "samples": self.0,
        })
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(values: T) -> Self {
        let mut samples = Self::default();
        values.into_iter().for_each(|value| samples.push(value));
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::Samples;

    #[test]
    fn percentiles_are_samples() {
        assert_eq!(Samples::default().median(), None);
        let one: Samples = [7.0].into_iter().collect();
        assert_eq!((one.median(), one.percentile(95)), (Some(7.0), Some(7.0)));
        let many: Samples = (1..=20).rev().map(f64::from).collect();
        assert_eq!((many.median(), many.percentile(95)), (Some(10.0), Some(19.0)));
        assert_eq!(many.mean(), Some(10.5));
    }
}
