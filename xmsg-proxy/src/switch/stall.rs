//! The period in which publishers wait for a subscriber that takes next to nothing.

use std::time::{Duration, Instant};

/// A subscriber that takes this many bytes has not stalled. Publishers must not be held up by one that takes
/// a few bytes now and then.
const TAKEN: u64 = 64 << 10;
/// The stall begins anew with the next publisher that waits when none has waited for this time. A publisher
/// that waits checks more often.
const GAP: Duration = Duration::from_secs(3);

/// The state of the subscriber when a publisher last waited.
#[derive(Debug, Default)]
pub(super) struct Stall(Option<Seen>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    since: Instant,
    /// The bytes that it had taken when the stall began.
    taken: u64,
    /// The time of the last check.
    last: Instant,
}

impl Stall {
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
        let (mut stall, start) = (Stall::default(), Instant::now());
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
