//! The clock of a stall: how long publishers have waited for a subscriber that takes next to nothing. What
//! follows from it is decided in [`disconnect`](super::disconnect).

use std::time::{Duration, Instant};

/// A subscriber that takes this many bytes has not stalled. Publishers must not be held up by one that takes
/// a few bytes now and then.
const TAKEN: u64 = 64 << 10;
/// When no publisher has waited for this time, the next one that waits begins a new stall. A publisher that
/// waits checks more often.
const GAP: Duration = Duration::from_secs(3);

/// What was seen of the subscriber when a publisher last waited for it.
#[derive(Debug, Default)]
pub(super) struct StallClock(Option<Seen>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    since: Instant,
    /// The bytes that the subscriber had taken when the stall began.
    taken: u64,
    /// The time of the last check.
    last: Instant,
}

impl StallClock {
    /// Returns how long the stall has lasted at this time, for a subscriber that has taken `taken` bytes in
    /// all. A publisher that waits calls it repeatedly.
    pub(super) fn lasts(&mut self, now: Instant, taken: u64) -> Duration {
        let goes_on = |seen: &Seen| now.duration_since(seen.last) < GAP && taken - seen.taken < TAKEN;
        let seen = self.0.filter(goes_on).unwrap_or(Seen { since: now, taken, last: now });
        self.0 = Some(Seen { last: now, ..seen });
        now.duration_since(seen.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_while_somebody_waits_and_next_to_nothing_is_taken() {
        let (mut stall, start) = (StallClock::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        for second in 0..10 {
            assert_eq!(
                stall.lasts(at(second), 100 + second),
                Duration::from_secs(second),
                "a few bytes are nothing"
            );
        }
        assert_eq!(stall.lasts(at(10), 100 + TAKEN), Duration::ZERO, "it reads");
        assert_eq!(stall.lasts(at(11), 101 + TAKEN), Duration::from_secs(1));
        assert_eq!(stall.lasts(at(20), 101 + TAKEN), Duration::ZERO, "nobody has waited in between");
    }
}
