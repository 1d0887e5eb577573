//! An even rate of messages, without drift.

use std::time::Duration;

use tokio::time::Instant;
use xmsg_zmq::deadline::Deadline;

/// The largest delay that is made up for. After a longer pause, there is no burst.
const LAG_MAX: Duration = Duration::from_millis(500);

/// Computes when each message is due: message `n` at `start + n / rate`, so that small delays do not add up.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: f64,
    start: Instant,
    count: u64,
}

impl Pace {
    /// Starts with this rate in messages per second. The first message is due now.
    pub(crate) fn new(rate: f64) -> Self {
        Self { rate, start: Instant::now(), count: 0 }
    }

    /// Waits until the next message is due.
    pub(crate) async fn wait(&mut self) {
        let due = self.next_due(Instant::now());
        tokio::time::sleep_until(due).await;
    }

    fn next_due(&mut self, now: Instant) -> Instant {
        let since = Duration::try_from_secs_f64(self.count as f64 / self.rate).unwrap_or(Duration::MAX);
        let mut due = Deadline::since(self.start, since).instant();
        if due + LAG_MAX < now {
            (self.start, self.count, due) = (now, 0, now);
        }
        self.count += 1;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_do_not_add_up() {
        let mut pace = Pace::new(3.0);
        let start = pace.start;
        for n in 0..3000_u32 {
            // Each message is somewhat late.
            let now = start + Duration::from_secs_f64(f64::from(n) / 3.0) + Duration::from_millis(20);
            pace.next_due(now);
        }
        let off = pace.next_due(start + Duration::from_secs(1000)) - start;
        assert!(off.abs_diff(Duration::from_secs(1000)) < Duration::from_micros(1), "{off:?}");
    }

    #[test]
    fn after_a_pause_there_is_no_burst() {
        let mut pace = Pace::new(1000.0);
        pace.next_due(pace.start);
        let late = pace.start + Duration::from_secs(60);
        assert_eq!(pace.next_due(late), late);
        assert_eq!(pace.next_due(late), late + Duration::from_millis(1));
    }
}
