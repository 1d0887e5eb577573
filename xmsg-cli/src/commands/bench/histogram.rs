//! Times in a histogram with a high dynamic range, and their percentiles.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// A histogram of times, whose relative error does not depend on their length.
#[derive(Clone, Debug)]
pub(super) struct Times {
    ns: Histogram<u64>,
}

impl Times {
    /// Makes a histogram with a precision of one part in a thousand.
    pub(super) fn fine() -> Self {
        Self::with_digits(3)
    }

    /// Makes a histogram with a precision of one part in a hundred, which needs a tenth of the memory. It is
    /// for thousands of histograms.
    pub(super) fn coarse() -> Self {
        Self::with_digits(2)
    }

    fn with_digits(digits: u8) -> Self {
        // The histogram grows with the values. The crate accepts this number of digits.
        Self { ns: Histogram::new(digits).expect("at most 5 digits") }
    }

    pub(super) fn record(&mut self, time: Duration) {
        self.record_ns(time.as_nanos() as u64);
    }

    pub(super) fn record_ns(&mut self, ns: u64) {
        // A histogram that grows accepts every value up to u64::MAX / 2 nanoseconds, which are centuries.
        let _ = self.ns.record(ns);
    }

    pub(super) fn add(&mut self, other: &Self) {
        let _ = self.ns.add(&other.ns);
    }

    pub(super) fn count(&self) -> u64 {
        self.ns.len()
    }

    /// Returns the time that this fraction of all times, from 0 to 1, does not exceed.
    pub(super) fn at_quantile(&self, quantile: f64) -> Duration {
        // The upper end of a bucket may lie above all recorded values.
        Duration::from_nanos(self.ns.value_at_quantile(quantile).min(self.ns.max()))
    }

    pub(super) fn min(&self) -> Duration {
        Duration::from_nanos(if self.count() == 0 { 0 } else { self.ns.min() })
    }

    pub(super) fn max(&self) -> Duration {
        Duration::from_nanos(self.ns.max())
    }

    /// Returns minimum, percentiles and maximum, with their headings.
    pub(super) fn columns(&self) -> [(&'static str, Duration); 7] {
        [
            ("min", self.min()),
            ("p50", self.at_quantile(0.5)),
            ("p90", self.at_quantile(0.9)),
            ("p99", self.at_quantile(0.99)),
            ("p99.9", self.at_quantile(0.999)),
            ("p99.99", self.at_quantile(0.9999)),
            ("max", self.max()),
        ]
    }

    pub(super) fn json(&self) -> Value {
        let [min, p50, p90, p99, p99_9, p99_99, max] = self.columns().map(|(_, time)| microseconds(time));
        json!({
            "count": self.count(),
            "min_us": min,
            "mean_us": self.ns.mean() / 1e3,
            "p50_us": p50,
            "p90_us": p90,
            "p99_us": p99,
            "p99_9_us": p99_9,
            "p99_99_us": p99_99,
            "max_us": max,
        })
    }
}

fn microseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut times = Times::fine();
        for us in 1..=10_000 {
            times.record(Duration::from_micros(us));
        }
        let near = |time: Duration, us: f64| (microseconds(time) - us).abs() <= us / 500.0;
        for ((name, time), us) in
            times.columns().into_iter().zip([1.0, 5e3, 9e3, 9.9e3, 9.99e3, 9.999e3, 1e4])
        {
            assert!(near(time, us), "{name}: {time:?}");
        }
        assert!(near(Duration::from_secs_f64(times.json()["mean_us"].as_f64().unwrap() / 1e6), 5000.5));
        assert_eq!(times.count(), 10_000);
    }

    #[test]
    fn long_times_and_none_are_fine() {
        let mut times = Times::coarse();
        assert_eq!(times.json()["count"], 0);
        assert_eq!((times.min(), times.max()), (Duration::ZERO, Duration::ZERO));
        times.record(Duration::from_secs(100 * 86400));
        assert_eq!(times.at_quantile(0.5), times.max());
        let mut all = Times::fine();
        all.add(&times);
        assert_eq!(all.count(), 1);
        assert!(all.max() >= Duration::from_secs(99 * 86400));
    }
}
