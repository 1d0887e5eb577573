//! Messages that are dropped for one peer: counted, and told from time to time.

use crate::lock::lock;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The least time between two reports.
const INTERVAL: Duration = Duration::from_secs(1);

/// What was dropped for one peer.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    total: AtomicU64,
    untold: AtomicU64,
    told_at: Mutex<Option<Instant>>,
}

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Messages that were dropped since the last report.
    pub(crate) messages: u64,
    /// … and since the connection began.
    pub(crate) total: u64,
}

impl Tally {
    /// Counts so many more, which may be none. Returns what is to be told now: the first at once, and then something once a second.
    pub(crate) fn add(&self, messages: u64) -> Option<Report> {
        if messages > 0 {
            self.total.fetch_add(messages, Ordering::Relaxed);
            self.untold.fetch_add(messages, Ordering::Relaxed);
        } else if self.untold.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut told_at = lock(&self.told_at);
        let now = Instant::now();
        if told_at.is_some_and(|at| now.duration_since(at) < INTERVAL) {
            return None;
        }
        *told_at = Some(now);
        self.rest()
    }

    /// What has not been told yet, at the end.
    pub(crate) fn rest(&self) -> Option<Report> {
        let messages = self.untold.swap(0, Ordering::Relaxed);
        (messages > 0).then(|| Report { messages, total: self.total() })
    }

    /// All that was dropped.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::{INTERVAL, Report, Tally};

    #[tokio::test(start_paused = true)]
    async fn reports_add_up_and_are_rare() {
        let tally = Tally::default();
        assert_eq!(tally.add(0), None);
        assert_eq!(tally.add(2), Some(Report { messages: 2, total: 2 }));
        assert_eq!((tally.add(3), tally.add(0), tally.add(1)), (None, None, None));
        tokio::time::advance(INTERVAL).await;
        // Nothing more is dropped, and what was is told all the same.
        assert_eq!(tally.add(0), Some(Report { messages: 4, total: 6 }));
        assert_eq!(tally.add(5), None);
        assert_eq!((tally.rest(), tally.rest()), (Some(Report { messages: 5, total: 11 }), None));
        assert_eq!(tally.total(), 11);
    }
}
