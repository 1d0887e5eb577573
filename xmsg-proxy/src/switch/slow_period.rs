//! The period in which a subscriber is too slow. It is measured for the log and the statistics only; whether
//! the subscriber is disconnected is decided in [`disconnect`](super::disconnect).

use std::time::{Duration, Instant};

/// A subscriber is no longer slow when it has lost nothing, and no publisher has waited for it, for this
/// time.
const QUIET: Duration = Duration::from_secs(10);

/// The times when a subscriber first, and last, lost a message or made a publisher wait.
#[derive(Debug, Default)]
pub(super) struct SlowPeriod(Option<(Instant, Instant)>);

impl SlowPeriod {
    /// Notes that the subscriber has lost a message, or makes a publisher wait.
    pub(super) fn note(&mut self, now: Instant) {
        let since = self.0.filter(|(_, last)| now.saturating_duration_since(*last) < QUIET);
        self.0 = Some((since.map_or(now, |(since, _)| since), now));
    }

    /// Returns how long the subscriber has been slow without a break, or `None` if it is not slow.
    pub(super) fn lasts(&self, now: Instant) -> Option<Duration> {
        let (since, _) = self.0.filter(|(_, last)| now.saturating_duration_since(*last) < QUIET)?;
        Some(now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_until_there_is_a_break() {
        let (mut slow, start) = (SlowPeriod::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(slow.lasts(at(0)), None);
        for second in 0..30 {
            slow.note(at(second));
        }
        assert_eq!(slow.lasts(at(35)), Some(Duration::from_secs(35)));
        assert_eq!(slow.lasts(at(39)), None);
        slow.note(at(40));
        assert_eq!(slow.lasts(at(41)), Some(Duration::from_secs(1)));
    }
}
