//! The report: rows of measured operations beside their floors, for people and for programs.

use serde_json::{Value, json};

use crate::statistics::Samples;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Bytes,
    /// Percent of one core.
    Percent,
}

/// What is promised of an operation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gate {
    /// At most so many times the floor.
    Times(f64),
    /// At most this part of the floor.
    Part(u32),
    /// At most this much, in the unit of the operation.
    AtMost(f64),
    /// Nothing is promised; the floor is there for comparison.
    None,
}

#[derive(Debug, Clone)]
pub struct Comparison {
    pub floor: &'static str,
    pub samples: Samples,
    pub gate: Gate,
}

/// One operation.
#[derive(Debug, Clone)]
pub struct Row {
    pub operation: String,
    pub unit: Unit,
    pub samples: Samples,
    pub comparisons: Vec<Comparison>,
}

impl Row {
    pub fn new(operation: impl Into<String>, unit: Unit, samples: Samples) -> Self {
        Self { operation: operation.into(), unit, samples, comparisons: Vec::new() }
    }

    pub fn time(operation: impl Into<String>, samples: Samples) -> Self {
        Self::new(operation, Unit::Seconds, samples)
    }

    pub fn beside(mut self, floor: &'static str, samples: &Samples, gate: Gate) -> Self {
        self.comparisons.push(Comparison { floor, samples: samples.clone(), gate });
        self
    }

    /// A promise without a floor.
    pub fn at_most(mut self, limit: f64) -> Self {
        let gate = Gate::AtMost(limit);
        self.comparisons.push(Comparison { floor: "", samples: Samples::default(), gate });
        self
    }
}

impl Comparison {
    fn ratio(&self, row: &Row) -> Option<f64> {
        Some(row.samples.median()? / self.samples.median()?)
    }

    /// `None` where nothing is promised or nothing was measured. Times are compared by their medians, memory
    /// and CPU by their means.
    fn met(&self, row: &Row) -> Option<bool> {
        match self.gate {
            Gate::Times(most) => self.ratio(row).map(|ratio| ratio <= most),
            Gate::Part(part) => self.ratio(row).map(|ratio| ratio <= 1.0 / f64::from(part)),
            Gate::AtMost(limit) => row.samples.mean().map(|mean| mean <= limit),
            Gate::None => None,
        }
    }

    fn gate(&self, unit: Unit) -> String {
        match self.gate {
            Gate::Times(most) => format!("<= {most}x"),
            Gate::Part(part) => format!("<= 1/{part}"),
            Gate::AtMost(limit) => format!("<= {} (mean)", amount(limit, unit)),
            Gate::None => String::new(),
        }
    }
}

/// A value as people read it.
pub fn amount(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Seconds if value < 0.001 => format!("{:.0} us", value * 1e6),
        Unit::Seconds if value < 0.1 => format!("{:.1} ms", value * 1e3),
        Unit::Seconds if value < 1.0 => format!("{:.0} ms", value * 1e3),
        Unit::Seconds => format!("{value:.2} s"),
        Unit::Bytes => format!("{:.1} MiB", value / f64::from(1024 * 1024)),
        Unit::Percent => format!("{value:.1} %"),
    }
}

const HEADINGS: [&str; 9] = ["operation", "p50", "p95", "n", "floor", "floor's p50", "ratio", "gate", "met"];

/// The rows as a table of plain text.
pub fn table(rows: &[Row]) -> String {
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    for row in rows {
        let value = |value: Option<f64>| value.map(|value| amount(value, row.unit)).unwrap_or_default();
        let own = [
            row.operation.clone(),
            value(row.samples.median()),
            value(row.samples.percentile(95)),
            row.samples.count().to_string(),
        ];
        let mut comparisons: Vec<[String; 5]> = row
            .comparisons
            .iter()
            .map(|comparison| {
                [
                    comparison.floor.to_owned(),
                    value(comparison.samples.median()),
                    comparison.ratio(row).map(ratio).unwrap_or_default(),
                    comparison.gate(row.unit),
                    comparison
                        .met(row)
                        .map(|met| if met { "yes" } else { "NO" }.to_owned())
                        .unwrap_or_default(),
                ]
            })
            .collect();
        if comparisons.is_empty() {
            comparisons.push(Default::default());
        }
        for (index, [floor, floor_value, ratio, gate, met]) in comparisons.into_iter().enumerate() {
            let [operation, p50, p95, n] = if index == 0 { own.clone() } else { Default::default() };
            lines.push([operation, p50, p95, n, floor, floor_value, ratio, gate, met]);
        }
    }
    aligned(&lines)
}

fn ratio(value: f64) -> String {
    if value < 0.5 { format!("1/{:.1}", 1.0 / value) } else { format!("{value:.2}x") }
}

/// Columns of the width of their widest cell; the first column and the floors are text, the rest numbers.
pub fn aligned<const COLUMNS: usize>(lines: &[[String; COLUMNS]]) -> String {
    let mut widths = [0; COLUMNS];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = String::new();
    for line in lines {
        let mut written = String::new();
        for (column, (width, cell)) in widths.iter().zip(line).enumerate() {
            let as_text = column == 0 || HEADINGS.get(column) == Some(&"floor");
            let cell = if as_text { format!("{cell:width$}  ") } else { format!("{cell:>width$}  ") };
            written.push_str(&cell);
        }
        text.push_str(written.trim_end());
        text.push('\n');
    }
    text
}

pub fn to_json(rows: &[Row]) -> Value {
    rows.iter()
        .map(|row| {
            let comparisons: Vec<Value> = row
                .comparisons
                .iter()
                .map(|comparison| {
                    json!({
                        "floor": Some(comparison.floor).filter(|floor| !floor.is_empty()),
                        "measured": Some(comparison.samples.to_json())
                            .filter(|_| comparison.samples.count() > 0),
                        "ratio": comparison.ratio(row),
                        "gate": Some(comparison.gate(row.unit)).filter(|gate| !gate.is_empty()),
                        "met": comparison.met(row),
                    })
                })
                .collect();
            json!({
                "operation": row.operation,
                "unit": match row.unit {
                    Unit::Seconds => "seconds",
                    Unit::Bytes => "bytes",
                    Unit::Percent => "percent of a core",
                },
                "measured": row.samples.to_json(),
                "comparisons": comparisons,
            })
        })
        .collect()
}
