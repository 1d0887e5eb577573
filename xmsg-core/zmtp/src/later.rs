//! Addition of a duration to a point in time. The caller reads the clock.

use std::time::{Duration, Instant};

/// 100 years. That is longer than any useful time limit, and far below what an [`Instant`] can represent.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Returns the point in time that is `time` after `start`. A time of more than 100 years, such as
/// [`Duration::MAX`], counts as 100 years. It never panics, as `start + time` would.
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
    // A clock counts from the start of its machine. A century more can be represented on every system.
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
