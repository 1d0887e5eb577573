//! The form of results: tables for people, and one JSON document for programs.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::output::grouped;

/// A table of text. The first column is aligned left, the others are aligned right.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(ToString::to_string).collect()] }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Returns the table, with each row on a line.
    pub(super) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                // Writing to a string cannot fail.
                let _ = match column {
                    0 => write!(line, "{cell:<width$}"),
                    _ => write!(line, "  {cell:>width$}"),
                };
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Formats a time in a suitable unit, with three or four digits.
pub(super) fn time(time: Duration) -> String {
    let ns = time.as_nanos() as f64;
    let (value, unit) = match ns {
        ns if ns < 1e3 => return format!("{ns:.0} ns"),
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let decimals = match value {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// Formats a rate, with a decimal if it is low.
pub(super) fn rate(per_second: f64) -> String {
    if per_second < 100.0 { format!("{per_second:.1}") } else { grouped(whole(per_second)) }
}

/// Rounds to a whole number; a negative value becomes 0.
#[expect(clippy::cast_sign_loss, reason = "a cast of what is negative is 0, as documented")]
pub(super) fn whole(value: f64) -> u64 {
    value.round() as u64
}

/// Returns the throughput of data in MB/s (1,000,000 bytes per second).
pub(super) fn megabytes_per_second(messages_per_second: f64, size: usize) -> f64 {
    messages_per_second * size as f64 / 1e6
}

/// Returns the number of events per second; 0 if the time is zero.
pub(super) fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

/// The minimum, the median and the maximum of some values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spread {
    pub(super) min: f64,
    pub(super) median: f64,
    pub(super) max: f64,
}

impl Spread {
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let [Some(min), Some(max)] = [values.first(), values.last()].map(Option::<&f64>::copied) else {
            return Self::default();
        };
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Self { min, median, max }
    }

    pub(super) fn json(self) -> Value {
        json!({ "min": self.min, "median": self.median, "max": self.max })
    }
}

/// The result of a bench, in all its forms.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) mode: &'static str,
    /// The options that determine the load.
    pub(super) settings: Value,
    pub(super) result: Value,
    /// The text for people, without its first line.
    pub(super) text: String,
    /// The SVG chart, if it was requested.
    pub(super) plot: Option<String>,
    /// Whether the bench was stopped early.
    pub(super) interrupted: bool,
    pub(super) lost: u64,
    /// A message about what could not be set up or was not answered.
    pub(super) failed: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let mut table = Table::new(&["", "a", "long heading"]);
        table.row(vec!["first".into(), "1,000".into(), "2".into()]);
        table.row(vec!["µ".into(), "3".into()]);
        assert_eq!(table.text(), "           a  long heading\nfirst  1,000             2\nµ          3\n");
    }

    #[test]
    fn times_have_a_unit_that_suits_them() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1234, "1.23 µs"),
            (56_789, "56.8 µs"),
            (123_456, "123 µs"),
            (1_500_000, "1.50 ms"),
            (12_000_000_000, "12.0 s"),
        ] {
            assert_eq!(time(Duration::from_nanos(ns)), text);
        }
    }

    #[test]
    fn the_middle_is_told() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(Spread::of(vec![4.0, 1.0]), Spread { min: 1.0, median: 2.5, max: 4.0 });
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }

    #[test]
    fn rates_are_told() {
        assert_eq!(rate(12.34), "12.3");
        assert_eq!(rate(1_234_567.8), "1,234,568");
        assert!((per_second(3, Duration::from_millis(1500)) - 2.0).abs() < 1e-9);
        assert!(per_second(3, Duration::ZERO).abs() < 1e-9);
    }
}
