//! The history of what has flowed, second by second. It is kept in memory of constant size, the older the
//! coarser.

use std::collections::VecDeque;

use serde::Serialize;

/// What a second, or a longer time, looked like on average.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, utoipa::ToSchema)]
pub(super) struct Sample {
    /// Messages from publishers, a second.
    pub(super) received: f32,
    /// Messages to subscribers, a second.
    pub(super) delivered: f32,
    /// Messages that were dropped for slow subscribers, a second.
    pub(super) dropped: f32,
    /// Bytes from publishers, a second.
    pub(super) received_bytes: f32,
    /// Bytes to subscribers, a second.
    pub(super) delivered_bytes: f32,
    /// Part of a second for which publishers waited for subscribers; several may wait at a time.
    pub(super) publisher_wait: f32,
    /// Memory that peers hold, bytes.
    pub(super) memory: f32,
    /// Processors that this process keeps busy: 1 is one of them.
    pub(super) cpu: f32,
}

impl Sample {
    fn fields(&mut self) -> [&mut f32; 8] {
        let Self {
            received,
            delivered,
            dropped,
            received_bytes,
            delivered_bytes,
            publisher_wait,
            memory,
            cpu,
        } = self;
        [received, delivered, dropped, received_bytes, delivered_bytes, publisher_wait, memory, cpu]
    }

    /// Returns the mean of several samples.
    fn mean<'a>(samples: impl ExactSizeIterator<Item = &'a Self>) -> Self {
        let (mut mean, count) = (Self::default(), samples.len().max(1) as f32);
        for sample in samples {
            let mut sample = *sample;
            for (sum, value) in mean.fields().into_iter().zip(sample.fields()) {
                *sum += *value / count;
            }
        }
        mean
    }
}

/// How far back one looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, utoipa::ToSchema)]
pub(super) enum Span {
    /// Five minutes, second by second.
    #[default]
    #[serde(rename = "5m")]
    Minutes,
    /// An hour, in steps of ten seconds.
    #[serde(rename = "1h")]
    Hour,
    /// A day, in steps of a minute.
    #[serde(rename = "24h")]
    Day,
}

/// Samples at even distances, the oldest first.
#[derive(Debug)]
struct Tier {
    /// Seconds from one sample to the next.
    step: usize,
    /// How many samples are kept.
    kept: usize,
    samples: VecDeque<Sample>,
}

/// All tiers: 2100 samples, 67 KB.
#[derive(Debug)]
pub(super) struct History {
    tiers: [Tier; 3],
    /// The number of seconds so far.
    seconds: usize,
}

impl Default for History {
    fn default() -> Self {
        let tier = |step, kept| Tier { step, kept, samples: VecDeque::with_capacity(kept) };
        Self { tiers: [tier(1, 300), tier(10, 360), tier(60, 1440)], seconds: 0 }
    }
}

impl History {
    /// Adds the sample of the last second.
    pub(super) fn push(&mut self, sample: Sample) {
        self.seconds += 1;
        let mut next = sample;
        for at in 0..self.tiers.len() {
            let tier = &mut self.tiers[at];
            while tier.samples.len() >= tier.kept {
                tier.samples.pop_front();
            }
            tier.samples.push_back(next);
            let Some(above) = self.tiers.get(at + 1) else { break };
            if !self.seconds.is_multiple_of(above.step) {
                break;
            }
            // Each coarser step is made of so many finer ones, which are all there.
            let tier = &self.tiers[at];
            let first = tier.samples.len().saturating_sub(above.step / tier.step);
            next = Sample::mean(tier.samples.range(first..));
        }
    }

    /// Returns the seconds between two samples of a span, and the samples, the oldest first.
    pub(super) fn of(&self, span: Span) -> (usize, Vec<Sample>) {
        let tier = &self.tiers[span as usize];
        (tier.step, tier.samples.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(received: f32) -> Sample {
        Sample { received, ..Sample::default() }
    }

    #[test]
    fn the_older_the_coarser_and_never_more_than_there_is_room_for() {
        let mut history = History::default();
        for second in 0..100_000_u32 {
            history.push(sample(second as f32));
        }
        let lengths = [Span::Minutes, Span::Hour, Span::Day].map(|span| history.of(span));
        assert_eq!(
            lengths.each_ref().map(|(step, samples)| (*step, samples.len())),
            [(1, 300), (10, 360), (60, 1440)]
        );
        let [minutes, hour, day] = lengths.map(|(_, samples)| samples.last().unwrap().received);
        assert!((minutes - 99_999.0).abs() < 0.5);
        // The mean of the last ten seconds, and of the last whole minute: 99,900 to 99,959.
        assert!((hour - 99_994.5).abs() < 1.0, "{hour}");
        assert!((day - 99_929.5).abs() < 1.0, "{day}");
    }

    #[test]
    fn the_mean_is_that_of_all_fields() {
        let mut history = History::default();
        for second in 0..10_u8 {
            let value = f32::from(second % 2);
            history.push(Sample { received: value, dropped: value * 2.0, cpu: 0.5, ..Sample::default() });
        }
        let (_, hour) = history.of(Span::Hour);
        assert_eq!(hour.len(), 1);
        let Sample { received, dropped, cpu, memory, .. } = hour[0];
        for (found, expected) in [(received, 0.5), (dropped, 1.0), (cpu, 0.5), (memory, 0.0)] {
            assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
        }
    }
}
