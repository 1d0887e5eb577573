//! Messages that are dropped for one peer. They are counted, and reported from time to time.

use crate::lock::lock;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The minimum time between two reports.
const INTERVAL: Duration = Duration::from_secs(1);

/// Counts what was dropped for one peer.
#[derive(Debug, Default)]
pub(crate) struct DropCounter {
    total: AtomicU64,
    unreported: AtomicU64,
    told_at: Mutex<Option<Instant>>,
}

/// What a report says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Messages that were dropped since the last report.
    pub(crate) messages: u64,
    /// Messages that were dropped since the connection began.
    pub(crate) total: u64,
}

impl DropCounter {
    /// Adds `messages`, which may be 0, to the count. Returns what is to be reported now: the first message
    /// at once, later ones at most once a second.
    pub(crate) fn add(&self, messages: u64) -> Option<Report> {
        if messages > 0 {
            self.total.fetch_add(messages, Ordering::Relaxed);
            self.unreported.fetch_add(messages, Ordering::Relaxed);
        } else if self.unreported.load(Ordering::Relaxed) == 0 {
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

    /// What has not been reported yet. It is used at the end.
    pub(crate) fn rest(&self) -> Option<Report> {
        let messages = self.unreported.swap(0, Ordering::Relaxed);
        (messages > 0).then(|| Report { messages, total: self.total() })
    }

    /// The number of all messages that were dropped.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::{DropCounter, INTERVAL, Report};

    #[tokio::test(start_paused = true)]
    async fn reports_add_up_and_are_rare() {
        let drop_counter = DropCounter::default();
        assert_eq!(drop_counter.add(0), None);
        assert_eq!(drop_counter.add(2), Some(Report { messages: 2, total: 2 }));
        assert_eq!((drop_counter.add(3), drop_counter.add(0), drop_counter.add(1)), (None, None, None));
        tokio::time::advance(INTERVAL).await;
        // Nothing more is dropped, but what was dropped before is still reported.
        assert_eq!(drop_counter.add(0), Some(Report { messages: 4, total: 6 }));
        assert_eq!(drop_counter.add(5), None);
        assert_eq!(
            (drop_counter.rest(), drop_counter.rest()),
            (Some(Report { messages: 5, total: 11 }), None)
        );
        assert_eq!(drop_counter.total(), 11);
    }
}
