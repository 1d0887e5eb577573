//! Since when a subscriber has been too slow.

use std::time::{Duration, Instant};

/// After so long without a loss and without a publisher that waits, it is not slow any more.
const QUIET: Duration = Duration::from_secs(10);

/// When it first lost something or held a publisher up, and when it last did.
#[derive(Debug, Default)]
pub(super) struct Slow(Option<(Instant, Instant)>);

impl Slow {
    /// It has lost something, or holds a publisher up.
    pub(super) fn note(&mut self, now: Instant) {
        let since = self.0.filter(|(_, last)| now.saturating_duration_since(*last) < QUIET);
        self.0 = Some((since.map_or(now, |(since, _)| since), now));
    }

    /// For how long it has been slow without a break.
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
        let (mut slow, start) = (Slow::default(), Instant::now());
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
