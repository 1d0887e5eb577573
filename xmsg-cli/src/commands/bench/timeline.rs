//! Counts over time, and the rates between them.

use std::time::Duration;

use serde_json::{Value, json};

use super::report::per_second;

/// The largest number of points. When there are more, every second point is removed, so that a run of any
/// length has a curve.
const POINTS_MAX: usize = 600;

/// The counts of published and delivered messages at points in time.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    points: Vec<Point>,
    interval: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Point {
    time: Duration,
    published: u64,
    delivered: u64,
}

/// The average rates between two points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rates {
    /// The time of the second point since the start, in seconds.
    pub(super) seconds: f64,
    pub(super) published_per_second: f64,
    pub(super) delivered_per_second: f64,
}

impl Timeline {
    /// Makes a timeline. A point that follows sooner than `interval` replaces the previous one.
    pub(super) fn new(interval: Duration) -> Self {
        Self { points: vec![Point::default()], interval }
    }

    pub(super) fn add(&mut self, time: Duration, published: u64, delivered: u64) {
        if self.points.len() >= POINTS_MAX {
            let mut number = 0;
            self.points.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.interval *= 2;
        }
        let point = Point { time, published, delivered };
        // Ticks are a little early or late.
        match self.points[..] {
            [.., before, ref last] if last.time.saturating_sub(before.time) < self.interval * 3 / 4 => {
                let last = self.points.len() - 1;
                self.points[last] = point;
            }
            _ => self.points.push(point),
        }
    }

    /// Adds the last point. The remainder of an interval is added to the previous point, because its rate
    /// alone would mean little.
    pub(super) fn finish(&mut self, time: Duration, published: u64, delivered: u64) {
        if let [_, .., last] = self.points[..]
            && time.saturating_sub(last.time) < self.interval / 2
        {
            self.points.pop();
        }
        self.points.push(Point { time, published, delivered });
    }

    pub(super) fn rates(&self) -> impl Iterator<Item = Rates> {
        self.points.windows(2).map(|pair| {
            let [from, to] = [pair[0], pair[1]];
            let time = to.time.saturating_sub(from.time);
            Rates {
                seconds: to.time.as_secs_f64(),
                published_per_second: per_second(to.published - from.published, time),
                delivered_per_second: per_second(to.delivered - from.delivered, time),
            }
        })
    }

    pub(super) fn json(&self) -> Value {
        let json = |rates: Rates| {
            json!({
                "seconds": rates.seconds,
                "published_messages_per_second": rates.published_per_second,
                "delivered_messages_per_second": rates.delivered_per_second,
            })
        };
        self.rates().map(json).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn rates_lie_between_points() {
        let mut timeline = Timeline::new(millis(100));
        timeline.add(millis(100), 10, 5);
        timeline.add(millis(200), 10, 15);
        let rates: Vec<Rates> = timeline.rates().collect();
        let expected = Rates { seconds: 0.1, published_per_second: 100.0, delivered_per_second: 50.0 };
        assert_eq!(rates[0], expected);
        let expected = Rates { seconds: 0.2, published_per_second: 0.0, delivered_per_second: 100.0 };
        assert_eq!(rates[1], expected);
    }

    #[test]
    fn the_end_is_no_interval_of_its_own() {
        let mut timeline = Timeline::new(millis(100));
        timeline.add(millis(100), 10, 10);
        timeline.finish(millis(101), 11, 11);
        assert_eq!(timeline.rates().count(), 1);
        timeline.finish(millis(190), 20, 20);
        assert_eq!(timeline.rates().count(), 2);
        let mut short = Timeline::new(millis(100));
        short.finish(millis(1), 1, 1);
        assert_eq!(short.rates().count(), 1);
    }

    #[test]
    fn a_long_run_keeps_its_whole_curve() {
        let mut timeline = Timeline::new(millis(100));
        for number in 1..=100_000 {
            timeline.add(millis(100 * number), number, number);
        }
        let rates: Vec<Rates> = timeline.rates().collect();
        assert!((POINTS_MAX / 3..POINTS_MAX).contains(&rates.len()), "{}", rates.len());
        assert!((rates.last().unwrap().seconds - 10_000.0).abs() < 1e-6);
        assert!(rates.iter().all(|rates| (rates.published_per_second - 10.0).abs() < 1e-6));
    }
}
