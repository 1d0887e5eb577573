//! Since when publishers wait for a subscriber that takes next to nothing.

use std::time::{Duration, Instant};

/// A subscriber that takes so many bytes has not stalled: publishers are not to be held up by one that takes
/// a few bytes now and then.
const TAKEN: u64 = 64 << 10;
/// When nobody has waited for so long, the next one who does begins to count anew. Whoever waits looks more
/// often.
const GAP: Duration = Duration::from_secs(3);

/// What was seen when a publisher last waited.
#[derive(Debug, Default)]
pub(super) struct Stall(Option<Seen>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    since: Instant,
    /// What it had taken then, bytes.
    taken: u64,
    /// When it was last looked at.
    last: Instant,
}

impl Stall {
    /// How long it has lasted, at this time, for a subscriber that has taken so many bytes in all. To be
    /// asked again and again while a publisher waits.
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
