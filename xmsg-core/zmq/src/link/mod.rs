//! One connection of a socket, or the place of one that is being made anew: its send queue, and what its peer wants and takes.

pub mod admission;
pub mod buffer;
pub mod encoded;
pub(crate) mod hold;
pub(crate) mod inbox;
pub(crate) mod line;
pub mod memory;
pub mod outbox;
pub mod pause;
pub(crate) mod reconnect;
pub(crate) mod refusal;
pub(crate) mod routes;
pub mod session;
pub mod source;
#[cfg(test)]
pub(crate) mod test_ciphers;
pub mod throttle;
pub mod transport;
pub mod vanished;
pub mod violations;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::link::outbox::Outbox;
use crate::link::refusal::{Whose, unfit_subscription};
use crate::{Error, Result};
use xmsg_zmtp::{DroppedCounts, Limited, Limits, PeerLimits, Principal, Version, Violation};

/// One connection, or the place of one that is being made anew.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: u64,
    pub(crate) outbox: Outbox,
    /// Connecting links outlive their connections.
    pub(crate) connecting: bool,
    pub(crate) state: Mutex<LinkState>,
    /// Ends the connection and, with it, an accepted link.
    pub(crate) stop: CancellationToken,
}

#[derive(Debug, Default)]
pub(crate) struct LinkState {
    /// The version of the peer, while there is one.
    pub(crate) version: Option<Version>,
    /// What the peer of a publisher wants.
    pub(crate) wanted: BTreeSet<Bytes>,
    /// … and how many bytes that is.
    pub(crate) wanted_bytes: usize,
    /// … and more than is kept.
    pub(crate) wants_more: bool,
    /// Who the peer has proved to be.
    pub(crate) principal: Option<Principal>,
    /// What the peer calls itself: its address.
    pub(crate) name: Arc<str>,
    /// Why there is no connection, or was none when it was tried last.
    pub(crate) failure: Option<Error>,
    /// Since when a peer that took the connection has been silent.
    pub(crate) silent_since: Option<Instant>,
    /// What the peer takes; after its connection has ended, what it told last.
    pub(crate) limits: PeerLimits,
    /// How the last connection ended.
    pub(crate) last_end: LastEnd,
    /// The first subscription that the peer does not take, if there is one.
    pub(crate) refused: Option<NotTaken>,
    /// Since when messages are held back, after a reconnection.
    pub(crate) held_since: Option<Instant>,
    /// What the peer has dropped for us: over this connection, and over all.
    pub(crate) drops: (DroppedCounts, DroppedCounts),
}

/// How a connection ended, as far as it matters to whoever has sent something over it.
#[derive(Debug, Default)]
pub(crate) enum LastEnd {
    /// In no such way.
    #[default]
    Otherwise,
    /// The peer, which has told no limits, ended it after it had got a part of a message.
    CutOff,
    /// The peer broke a rule.
    Violation(Violation),
}

/// A subscription above a limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotTaken {
    what: Limited,
    /// What there would be, bytes or number.
    size: usize,
    limit: usize,
}

impl NotTaken {
    pub(crate) fn error(self, whose: Whose<'_>) -> Error {
        unfit_subscription(self.what, self.size, self.limit, whose)
    }
}

/// What may be subscribed to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SubscriptionLimits {
    len: usize,
    count: usize,
    bytes: usize,
}

impl SubscriptionLimits {
    pub(crate) fn ours(limits: &Limits) -> Self {
        Self { len: limits.subscription_len, count: limits.subscriptions, bytes: limits.subscription_bytes }
    }

    pub(crate) fn theirs(limits: &PeerLimits) -> Self {
        let any = usize::MAX;
        Self {
            len: limits.subscription_len.unwrap_or(any),
            count: limits.subscriptions.unwrap_or(any),
            bytes: limits.subscription_bytes.unwrap_or(any),
        }
    }

    /// Whether a prefix of this length may come, with which there are so many, of so many bytes together.
    pub(crate) fn check(self, len: usize, count: usize, bytes: usize) -> Result<(), NotTaken> {
        let above = [
            (Limited::Subscription, len, self.len),
            (Limited::Subscriptions, count, self.count),
            (Limited::SubscriptionBytes, bytes, self.bytes),
        ];
        match above.into_iter().find(|(_, size, limit)| size > limit) {
            Some((what, size, limit)) => Err(NotTaken { what, size, limit }),
            None => Ok(()),
        }
    }
}

/// What a subscriber wants, and how often it said so.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    pub(crate) counts: BTreeMap<Bytes, usize>,
    /// Those of them that peers are told of last.
    pub(crate) last: BTreeSet<Bytes>,
    /// Of all prefixes.
    pub(crate) bytes: usize,
}

impl Subscriptions {
    /// What a new peer is told, and what of it that is more than the peer takes.
    pub(crate) fn for_peer(
        &self,
        version: Version,
        limits: &PeerLimits,
    ) -> (BytesMut, Vec<(Bytes, NotTaken)>) {
        let limits = SubscriptionLimits::theirs(limits);
        let (mut out, mut refused) = (BytesMut::new(), Vec::new());
        let (mut count, mut bytes) = (0, 0);
        let first = self.counts.keys().filter(|prefix| !self.last.contains(*prefix));
        for prefix in first.chain(&self.last) {
            if let Err(why) = limits.check(prefix.len(), count + 1, bytes + prefix.len()) {
                refused.push((prefix.clone(), why));
                continue;
            }
            (count, bytes) = (count + 1, bytes + prefix.len());
            version.write_subscription(&mut out, true, prefix);
        }
        (out, refused)
    }
}

impl LinkState {
    pub(crate) fn forget_wanted(&mut self) -> BTreeSet<Bytes> {
        self.wanted_bytes = 0;
        self.wants_more = false;
        std::mem::take(&mut self.wanted)
    }
}

impl AsRef<Outbox> for Link {
    fn as_ref(&self) -> &Outbox {
        &self.outbox
    }
}

impl Link {
    pub(crate) fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves messages where they are until [`release`](Self::release).
    pub(crate) fn hold(&self) {
        self.state().held_since = Some(Instant::now());
        self.outbox.hold(true);
    }

    pub(crate) fn release(&self) {
        self.state().held_since = None;
        self.outbox.hold(false);
    }

    /// Whether the peer of a publisher wants this topic.
    pub(crate) fn wants(&self, topic: &[u8]) -> bool {
        let state = self.state();
        // Every prefix of the topic that is subscribed sorts at or before it.
        state.wants_more || (0..=topic.len()).any(|len| state.wanted.contains(&topic[..len]))
    }
}
