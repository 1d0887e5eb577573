//! A token bucket: it limits how much may be done in a second, and how much at once.

use std::time::{Duration, Instant};

use xmsg_zmq::link::session::now;

/// A bucket that holds the tokens of one second. It is full at first.
#[derive(Debug)]
pub(super) struct TokenBucket {
    rate: f64,
    tokens: f64,
    filled: Instant,
}

impl TokenBucket {
    /// Creates a bucket that gains `rate` tokens in a second.
    pub(super) fn new(rate: f64) -> Self {
        Self { rate, tokens: rate, filled: now() }
    }

    /// Takes tokens, even if the bucket has fewer. Returns the time to wait until the bucket would have had
    /// them.
    pub(super) fn take(&mut self, tokens: f64, now: Instant) -> Duration {
        self.fill(now);
        self.tokens -= tokens;
        Duration::from_secs_f64((-self.tokens / self.rate).max(0.0))
    }

    /// Takes tokens, or as many as there are. Returns whether there were enough.
    pub(super) fn take_present(&mut self, tokens: f64, now: Instant) -> bool {
        self.fill(now);
        let is_enough = self.tokens >= tokens;
        self.tokens = (self.tokens - tokens).max(0.0);
        is_enough
    }

    fn fill(&mut self, now: Instant) {
        let filled = now.saturating_duration_since(self.filled).as_secs_f64() * self.rate;
        self.filled = now;
        self.tokens = (self.tokens + filled).min(self.rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_what_a_second_brings_and_then_as_fast_as_it_fills() {
        let mut token_bucket = TokenBucket::new(100.0);
        let start = Instant::now();
        assert_eq!((0..100).map(|_| token_bucket.take(1.0, start)).sum::<Duration>(), Duration::ZERO);
        let wait = token_bucket.take(1.0, start);
        assert!((9..=11).contains(&wait.as_millis()), "{wait:?}");
        assert_eq!(token_bucket.take(1.0, start + Duration::from_secs(10)), Duration::ZERO);
    }

    #[test]
    fn what_was_not_there_is_not_owed() {
        let mut token_bucket = TokenBucket::new(100.0);
        let start = Instant::now();
        assert!(token_bucket.take_present(60.0, start));
        assert!(!token_bucket.take_present(1000.0, start));
        assert!(!token_bucket.take_present(60.0, start + Duration::from_millis(500)));
        assert!(token_bucket.take_present(60.0, start + Duration::from_millis(1500)));
    }
}
