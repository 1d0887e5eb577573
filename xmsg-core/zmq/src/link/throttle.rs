//! Rate limits for log lines that a peer can cause. Some lines are written, the rest is counted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::deadline::Deadline;
use crate::link::session::now;
use crate::lock::lock;

/// Lets only a few lines of one kind through in any interval, so that neither one peer nor many together can
/// fill the disk. The next line says how many were suppressed. If none follows, a line of its own says so
/// when the interval is over.
#[derive(Debug)]
pub struct Throttle {
    lines: usize,
    interval: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// When the last lines were written. It has at most as many entries as an interval may have lines.
    written: VecDeque<Instant>,
    /// Lines that were suppressed since the last one.
    unlogged: u64,
    /// Whether a task is scheduled that will report them.
    is_reported: bool,
}

impl Default for Throttle {
    /// Allows ten lines in ten seconds.
    fn default() -> Self {
        Self::new(10, Duration::from_secs(10))
    }
}

impl Throttle {
    /// Allows `lines` lines in any period of length `interval`.
    #[must_use]
    pub fn new(lines: usize, interval: Duration) -> Self {
        Self { lines, interval, state: Arc::default() }
    }

    /// Returns `None` if the line has to be suppressed, otherwise the number of lines that were suppressed
    /// before it. `what` describes the suppressed lines in the log.
    #[must_use]
    pub fn pass(&self, what: &'static str) -> Option<u64> {
        let now = now();
        let mut state = lock(&self.state);
        while state.written.front().is_some_and(|at| now.saturating_duration_since(*at) >= self.interval) {
            state.written.pop_front();
        }
        if state.written.len() < self.lines {
            state.written.push_back(now);
            return Some(std::mem::take(&mut state.unlogged));
        }
        state.unlogged += 1;
        if !state.is_reported
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            state.is_reported = true;
            // This task has no parent: it holds nothing but these counts, and ends by itself when the
            // interval is over.
            drop(runtime.spawn(report(self.state.clone(), Deadline::after(self.interval), what)));
        }
        None
    }
}

/// Logs at this time how many lines were suppressed, unless another line has said so.
async fn report(state: Arc<Mutex<State>>, due: Deadline, what: &'static str) {
    tokio::time::sleep_until(due.instant()).await;
    let unlogged = {
        let mut state = lock(&state);
        state.is_reported = false;
        std::mem::take(&mut state.unlogged)
    };
    if unlogged > 0 {
        tracing::warn!(
            unlogged,
            lines = what,
            "log lines were suppressed: there were too many of the same kind"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn in_no_time_of_that_length_are_there_more_lines() {
        let throttle = Throttle::new(10, INTERVAL);
        let (mut written, mut unlogged) = (Vec::new(), 0);
        let start = tokio::time::Instant::now();
        // One burst comes before the end of what a fixed window would be, and one after it.
        for burst in [9_900, 10_100, 19_000, 20_000, 45_000] {
            tokio::time::sleep_until(start + Duration::from_millis(burst)).await;
            for _ in 0..100 {
                if let Some(left_out) = throttle.pass("test lines") {
                    written.push(now());
                    unlogged += left_out;
                }
            }
        }
        for (at, time) in written.iter().enumerate() {
            let others = written[at..].iter().take_while(|other| **other - *time < INTERVAL);
            assert!(others.count() <= 10, "too many lines after {:?}", *time - written[0]);
        }
        assert_eq!(written.len(), 30);
        // Between two bursts that were written there was always time for the report.
        tokio::time::sleep(INTERVAL * 2).await;
        assert_eq!((unlogged, lock(&throttle.state).unlogged), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_left_out_is_in_the_next_line_or_reported_when_there_is_none() {
        let throttle = Throttle::new(2, INTERVAL);
        assert_eq!([(); 4].map(|()| throttle.pass("test lines")), [Some(0), Some(0), None, None]);
        assert!(lock(&throttle.state).is_reported);
        // This is just before the report.
        tokio::time::sleep(Duration::from_millis(9_999)).await;
        assert_eq!(lock(&throttle.state).unlogged, 2);
        tokio::time::sleep(Duration::from_millis(2)).await;
        let state = lock(&throttle.state);
        assert_eq!((state.unlogged, state.is_reported), (0, false));
        drop(state);
        assert_eq!(throttle.pass("test lines"), Some(0), "it was said already");
    }

    #[test]
    fn without_a_runtime_the_next_line_says_it() {
        let throttle = Throttle::new(1, Duration::from_millis(20));
        assert_eq!([(); 3].map(|()| throttle.pass("test lines")), [Some(0), None, None]);
        while throttle.pass("test lines").is_none_or(|left_out| left_out < 2) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
