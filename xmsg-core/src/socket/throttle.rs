//! Log lines that somebody else can cause: some of them are written, the rest is counted.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets a few lines through in each interval, so that whoever causes them can't fill the disk.
#[derive(Debug)]
pub struct Throttle {
    lines: u64,
    interval: Duration,
    /// Since when lines are counted, and how many were wanted.
    window: Mutex<Option<(Instant, u64)>>,
}

impl Default for Throttle {
    /// Ten lines in ten seconds.
    fn default() -> Self {
        Self::new(10, Duration::from_secs(10))
    }
}

impl Throttle {
    /// So many lines in each interval.
    #[must_use]
    pub fn new(lines: u64, interval: Duration) -> Self {
        Self { lines, interval, window: Mutex::default() }
    }

    /// Whether a line may be written; if so, how many were not since the last one.
    pub fn pass(&self) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *window {
            Some((since, wanted)) if since.elapsed() < self.interval => {
                *wanted += 1;
                (*wanted <= self.lines).then_some(0)
            }
            other => {
                let before = other.replace((Instant::now(), 1));
                Some(before.map_or(0, |(_, wanted)| wanted.saturating_sub(self.lines)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_lines_pass_and_the_rest_is_counted() {
        let throttle = Throttle::new(2, Duration::from_secs(3600));
        assert_eq!([(); 4].map(|()| throttle.pass()), [Some(0), Some(0), None, None]);
        *throttle.window.lock().unwrap() =
            Some((Instant::now().checked_sub(Duration::from_secs(3601)).unwrap(), 4));
        assert_eq!(throttle.pass(), Some(2));
    }
}
