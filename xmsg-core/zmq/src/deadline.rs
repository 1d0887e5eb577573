//! Time limits as points in time. Every deadline of the library comes from here, so that no time limit is too
//! long: one that a clock can't represent, such as [`Duration::MAX`], means "for ever", and never panics.

use std::time::Duration;

pub use tokio::time::Instant;
pub use tokio::time::error::Elapsed;

pub use xmsg_zmtp::later;

/// The point in time at which a call gives up, however many steps it has. It uses tokio's clock, which a test
/// may pause and advance.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use std::time::Duration;
/// use xmsg_zmq::deadline::Deadline;
/// let deadline = Deadline::after(Duration::from_millis(10));
/// let one = deadline.limit(std::future::ready(1)).await;
/// let never = deadline.limit(std::future::pending::<()>()).await;
/// assert!(one.is_ok() && never.is_err() && deadline.has_passed());
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// Creates a deadline `time` from now.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        Self::since(Instant::now(), time)
    }

    /// Creates a deadline `time` after `start`.
    #[must_use]
    pub fn since(start: Instant, time: Duration) -> Self {
        Self(later(start.into_std(), time).into())
    }

    /// Returns the point in time itself.
    #[must_use]
    pub fn instant(self) -> Instant {
        self.0
    }

    /// Returns how much time is left, or zero when the deadline has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Returns whether the deadline has passed.
    #[must_use]
    pub fn has_passed(self) -> bool {
        self.left().is_zero()
    }

    /// Returns the output of `future`, or an error once the deadline has passed. The future is polled first:
    /// if it is ready, its output is returned even after the deadline.
    pub async fn limit<F: IntoFuture>(self, future: F) -> Result<F::Output, Elapsed> {
        tokio::time::timeout_at(self.0, future).await
    }

    /// Returns once the deadline has passed.
    pub async fn passed(self) {
        tokio::time::sleep_until(self.0).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_longest_and_the_shortest_time_are_fine() {
        let never = Deadline::after(Duration::MAX);
        assert!(!never.has_passed() && never > Deadline::after(Duration::from_secs(1 << 30)));
        assert_eq!(never.limit(async { 1 }).await.unwrap(), 1);
        let at_once = Deadline::after(Duration::ZERO);
        assert!(at_once.has_passed() && at_once.left().is_zero());
        assert_eq!(at_once.limit(async { 1 }).await.unwrap(), 1, "what is there is returned");
        at_once.limit(std::future::pending::<()>()).await.unwrap_err();
        at_once.passed().await;
    }

    /// Checks the functions of tokio that the library uses directly.
    #[tokio::test(start_paused = true)]
    async fn the_runtime_takes_every_time_limit_too() {
        let soon = || tokio::time::sleep(Duration::from_millis(1));
        tokio::select! {
            () = tokio::time::sleep(Duration::MAX) => panic!("it slept for ever"),
            _ = tokio::time::timeout(Duration::MAX, std::future::pending::<()>()) => panic!("it waited for ever"),
            () = async { let mut ticks = tokio::time::interval(Duration::MAX); ticks.tick().await; ticks.tick().await; } => {
                panic!("it ticked twice")
            }
            () = soon() => {}
        }
    }
}
