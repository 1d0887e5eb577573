//! The time between attempts to re-establish a lost connection.

use std::time::Duration;

use crate::Settings;

/// The shortest pause between two attempts to connect. Without it, a loop of attempts could take all of the
/// processor's time.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// Pauses between attempts. They double, and each is cut by up to half at random, so that peers do not all
/// reconnect at the same time.
///
/// ```
/// use std::time::Duration;
/// use xmsg_zmq::link::reconnect::Backoff;
///
/// let mut backoff = Backoff::between(Duration::from_millis(100), Duration::from_secs(1));
/// assert!(backoff.next_pause() <= Duration::from_millis(100));
/// assert!(backoff.next_pause() <= Duration::from_millis(200));
/// backoff.reset();
/// assert!(backoff.next_pause() <= Duration::from_millis(100));
/// ```
#[derive(Debug)]
pub struct Backoff {
    pub(crate) min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(options: &Settings) -> Self {
        Self::between(options.reconnect_min, options.reconnect_max)
    }

    /// The first pause is `min` at most, and none is longer than `max`.
    #[must_use]
    pub fn between(min: Duration, max: Duration) -> Self {
        let min = min.max(PAUSE_MIN);
        Self { min, max: max.max(min), next: min }
    }

    /// Begins with short pauses again.
    pub fn reset(&mut self) {
        self.next = self.min;
    }

    /// The next pause.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(self.max);
        pause.saturating_sub((pause / 2).mul_f64(fastrand::f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_over() {
        let mut backoff = Backoff::new(&Settings::default());
        for expected in [100, 200, 400, 800, 1000, 1000] {
            let pause = backoff.next_pause().as_millis();
            assert!((expected / 2..=expected).contains(&pause), "{pause} ms instead of {expected}");
        }
        backoff.reset();
        assert!(backoff.next_pause() <= Duration::from_millis(100));
    }

    #[test]
    fn no_pause_is_too_long_or_too_short() {
        for reconnect_min in [Duration::MAX, Duration::ZERO] {
            for reconnect_max in [Duration::MAX, Duration::ZERO] {
                let options = Settings { reconnect_min, reconnect_max, ..Settings::default() };
                let mut backoff = Backoff::new(&options);
                for _ in 0..3 {
                    assert!(
                        (PAUSE_MIN / 2..=reconnect_min.max(reconnect_max).max(PAUSE_MIN))
                            .contains(&backoff.next_pause())
                    );
                }
            }
        }
    }
}
