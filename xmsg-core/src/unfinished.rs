//! The counts of what was unfinished when something was closed or drained.

use std::fmt;
use std::ops::{Add, AddAssign};

/// The counts of what could not be finished before a deadline. Nothing is lost silently: whatever was not
/// done is counted here.
///
/// ```
/// use xmsg_core::Unfinished;
/// let mut left = Unfinished::default();
/// (left.unsent, left.unhandled) = (2, 1);
/// assert!(!left.is_nothing());
/// assert_eq!(left.to_string(), "2 messages not sent, 1 received message not handled");
/// assert_eq!(Unfinished::default().to_string(), "nothing is left");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// Messages that were accepted and not written to the proxy.
    pub unsent: u64,
    /// Messages that were written and that the proxy has not confirmed: they may have arrived or not.
    pub unconfirmed: u64,
    /// Messages that were received and not handled, including those whose handler was cancelled.
    pub unhandled: u64,
    /// Requests that were still waiting for a reply.
    pub unanswered: u64,
}

impl Unfinished {
    /// Returns whether everything was finished, so that all counts are 0.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl Add for Unfinished {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            unsent: self.unsent + other.unsent,
            unconfirmed: self.unconfirmed + other.unconfirmed,
            unhandled: self.unhandled + other.unhandled,
            unanswered: self.unanswered + other.unanswered,
        }
    }
}

impl AddAssign for Unfinished {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::iter::Sum for Unfinished {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), Add::add)
    }
}

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.unsent, "message not sent", "messages not sent"),
            (self.unconfirmed, "message not confirmed by the proxy", "messages not confirmed by the proxy"),
            (self.unhandled, "received message not handled", "received messages not handled"),
            (self.unanswered, "request not answered", "requests not answered"),
        ];
        let mut first = true;
        for (count, one, many) in counts.into_iter().filter(|(count, ..)| *count > 0) {
            let separator = if std::mem::take(&mut first) { "" } else { ", " };
            write!(f, "{separator}{count} {}", if count == 1 { one } else { many })?;
        }
        if first { f.write_str("nothing is left") } else { Ok(()) }
    }
}
