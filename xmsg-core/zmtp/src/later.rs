//! Time that is added to a point in time. The clock itself is read by whoever calls.

use std::time::{Duration, Instant};

/// More than anybody waits, and far from what an [`Instant`] can't hold: 100 years.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The point in time that is `time` after `start`. A time of more than 100 years, such as [`Duration::MAX`], counts as 100
/// years: it never panics, as `start + time` would.
///
/// ```
/// use std::time::{Duration, Instant};
/// use xmsg_zmtp::later;
/// let now = Instant::now();
/// assert_eq!(later(now, Duration::from_secs(1)), now + Duration::from_secs(1));
/// assert!(later(now, Duration::MAX) > now + Duration::from_secs(1 << 30));
/// ```
#[must_use]
pub fn later(start: Instant, time: Duration) -> Instant {
    // A clock counts from the start of its machine; a century on top of that fits on every system.
    start + time.min(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_too_long_and_the_sum_can_be_added_to_again() {
        let now = Instant::now();
        assert_eq!(later(now, Duration::ZERO), now);
        let end = later(now, Duration::MAX);
        assert_eq!(end - now, NEVER);
        assert_eq!(later(end, Duration::MAX) - end, NEVER);
        assert_eq!(later(now, NEVER + Duration::from_nanos(1)), end);
    }
}
