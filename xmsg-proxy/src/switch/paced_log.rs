//! Log lines about one connection, which sum up what was counted since the line before.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use xmsg_zmq::link::session::now;
use xmsg_zmq::lock::lock;

/// The shortest interval between log lines about the slowness of one subscriber.
pub(super) const SLOW_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A log whose lines say what was counted since the line before, with pauses of at least
/// [`SLOW_LOG_INTERVAL`].
#[derive(Debug)]
pub(super) struct PacedLog<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for PacedLog<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Copy + Default> PacedLog<T> {
    /// Returns the count of the last line if another line may be written now. That line covers all that
    /// `counted` says.
    pub(super) fn pass(&self, counted: T) -> Option<T> {
        let mut last = lock(&self.0);
        if last.is_some_and(|(at, _)| now().saturating_duration_since(at) < SLOW_LOG_INTERVAL) {
            return None;
        }
        Some(last.replace((now(), counted)).map_or_else(T::default, |(_, before)| before))
    }

    /// Returns the count of the last line, whenever that was, for another line that covers all that `counted`
    /// says.
    pub(super) fn take(&self, counted: T) -> T {
        lock(&self.0).replace((now(), counted)).map_or_else(T::default, |(_, before)| before)
    }

    /// Returns the time for the next line, if `is_old` says that the last one no longer covers everything.
    pub(super) fn due(&self, is_old: impl FnOnce(&T) -> bool) -> Option<Instant> {
        let last = lock(&self.0);
        let (at, logged) = last
            .as_ref()
            .map_or_else(|| (now(), T::default()), |(at, logged)| (*at + SLOW_LOG_INTERVAL, *logged));
        is_old(&logged).then_some(at)
    }
}
