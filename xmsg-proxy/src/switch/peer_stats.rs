//! The counters of one connection, and its statistics.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use xmsg_zmq::{Amount, HighWaterMark};

use crate::policy::Policy;

/// A count that one task raises and others read.
#[derive(Debug, Default)]
pub(super) struct Counter {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    pub(super) fn add(&self, messages: usize, bytes: usize) {
        self.messages.fetch_add(messages as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn amount(&self) -> Amount {
        Amount { messages: self.messages.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// The messages that a subscriber was not sent because it was too slow, by the policy that chose them, or
/// because they exceed its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// The messages that came when its queue was full (`drop-newest`, and the last ones before `disconnect`;
    /// under other policies, when no waiting message could be dropped for them).
    pub newest: Amount,
    /// The messages that had waited longest (`drop-oldest`, and `conflate` when there are too many topics).
    pub oldest: Amount,
    /// The messages that were replaced by a newer one of the same topic (`conflate`).
    pub conflated: Amount,
    /// The messages above the limits that the subscriber announced.
    pub too_large: Amount,
}

impl Drops {
    /// Returns the sum of all.
    #[must_use]
    pub fn total(&self) -> Amount {
        self.slow() + self.too_large
    }

    /// Returns the sum of those for which the subscriber was too slow.
    #[must_use]
    pub fn slow(&self) -> Amount {
        self.newest + self.oldest + self.conflated
    }
}

impl AddAssign for Drops {
    fn add_assign(&mut self, other: Self) {
        self.newest += other.newest;
        self.oldest += other.oldest;
        self.conflated += other.conflated;
        self.too_large += other.too_large;
    }
}

/// The statistics of one publisher.
#[derive(Clone, Debug)]
pub struct PublisherStats {
    /// The number of the connection. No other connection of this proxy has it, and none has had it, unless
    /// there were four billion since.
    pub id: u32,
    /// The address.
    pub peer: String,
    /// The time since it connected.
    pub connected_for: Duration,
    /// The messages that came from it.
    pub received: Amount,
    /// The identity that it has proved.
    pub principal: Option<String>,
    /// The number of messages that it was not allowed to publish.
    pub denied: u64,
    /// The time since it left, if it left before all that it had sent was passed on because a subscriber is
    /// slow (`block`). It keeps its place until then, or until a new connection needs it.
    pub left_for: Option<Duration>,
}

/// The statistics of one subscriber.
#[derive(Clone, Debug)]
pub struct SubscriberStats {
    /// The number of the connection. No other connection of this proxy has it, and none has had it, unless
    /// there were four billion since.
    pub id: u32,
    /// The address.
    pub peer: String,
    /// The time since it connected.
    pub connected_for: Duration,
    /// The number of its subscriptions.
    pub subscriptions: usize,
    /// The messages that were written to it.
    pub delivered: Amount,
    /// The messages that wait for it. `bytes` is memory.
    pub queued: Amount,
    /// The high-water mark of its queue.
    pub high_water_mark: HighWaterMark,
    /// The policy at the mark for messages whose topic has no policy of its own.
    pub policy: Policy,
    /// The messages that were dropped because it was too slow.
    pub dropped: Amount,
    /// The messages that were dropped because it was too slow, by the policy that chose them.
    pub drops: Drops,
    /// The number of times that a publisher had to wait for it.
    pub waits: u64,
    /// The total time that publishers waited for it.
    pub waited: Duration,
    /// The identity that it has proved.
    pub principal: Option<String>,
    /// The number of subscriptions that it was not allowed to make, or to keep.
    pub denied: u64,
    /// The time for which it has lost messages or made publishers wait, without a break of ten seconds.
    pub slow_for: Option<Duration>,
}
