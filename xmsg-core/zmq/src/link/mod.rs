//! One connection of a socket, or the place of one that is being made anew: its send queue, and what its peer wants and takes.

pub(crate) mod addresses;
pub mod admission;
pub mod buffer;
pub mod encoded;
pub mod ending;
pub(crate) mod hold;
pub(crate) mod inbox;
pub(crate) mod line;
pub mod memory;
mod opening;
pub mod outbox;
pub mod pause;
pub(crate) mod reconnect;
pub(crate) mod refusal;
pub(crate) mod routes;
pub mod session;
#[cfg(feature = "socks")]
pub(crate) mod socks;
pub mod source;
pub(crate) mod tally;
#[cfg(test)]
pub(crate) mod test_ciphers;
pub mod throttle;
pub mod transport;
pub mod vanished;
pub mod violations;

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::link::outbox::Outbox;
use crate::link::tally::Tally;
use crate::lock::lock;
use crate::options::Overflow;
use crate::subscriptions::NotTaken;
use xmsg_zmtp::{DroppedCounts, PeerLimits, Principal, Version, Violation};

/// One connection, or the place of one that is being made anew.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: u64,
    pub(crate) outbox: Outbox,
    /// Connecting links outlive their connections.
    pub(crate) connecting: bool,
    /// What happens at the high-water mark to a message for many; never [`Usual`](Overflow::Usual).
    pub(crate) overflow: Overflow,
    /// Messages that were dropped there.
    pub(crate) overflowed: Tally,
    /// What has come over it.
    pub(crate) received: Received,
    pub(crate) state: Mutex<LinkState>,
    /// Whether the state has a version: for those who look at each message.
    pub(crate) is_connected: AtomicBool,
    /// Ends the connection and, with it, an accepted link.
    pub(crate) stop: CancellationToken,
}

/// What has come over the connections of one link.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) messages: AtomicU64,
    pub(crate) bytes: AtomicU64,
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
    /// What it connects to, if it does.
    pub(crate) endpoint: Arc<str>,
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

impl LinkState {
    pub(crate) fn forget_wanted(&mut self) -> BTreeSet<Bytes> {
        self.wanted_bytes = 0;
        self.wants_more = false;
        std::mem::take(&mut self.wanted)
    }
}

/// Whether one of the prefixes is one of the topic, however long that is. `last` finds the last of them in a range.
///
/// The last of those that sort before the topic either is such a prefix, or differs from the topic at some byte. Whatever else is a prefix
/// of the topic then ends before that byte, so that the search goes on with what is before it.
pub(crate) fn has_prefix_of<'a>(
    mut topic: &[u8],
    last: impl Fn((Bound<&[u8]>, Bound<&[u8]>)) -> Option<&'a Bytes>,
) -> bool {
    loop {
        let Some(last) = last((Bound::Unbounded, Bound::Included(topic))) else { return false };
        let common = last.iter().zip(topic).take_while(|(a, b)| a == b).count();
        if common == last.len() {
            return true;
        }
        topic = &topic[..common];
    }
}

impl AsRef<Outbox> for Link {
    fn as_ref(&self) -> &Outbox {
        &self.outbox
    }
}

impl Link {
    pub(crate) fn state(&self) -> MutexGuard<'_, LinkState> {
        lock(&self.state)
    }

    /// A name of ours for its peer: it starts with a zero byte, as no name does that a peer may choose (RFC 28).
    pub(crate) fn name(&self) -> Bytes {
        Bytes::from([&[0][..], &(self.id as u32).to_be_bytes()].concat())
    }

    /// Notes that there is a connection, to a peer that takes so much, and the first subscription that it does not take, if there is one.
    pub(crate) fn establish(&self, version: Version, limits: PeerLimits, refused: Option<NotTaken>) {
        let mut state = self.state();
        (state.version, state.limits, state.failure) = (Some(version), limits, None);
        state.drops.0 = DroppedCounts::default();
        state.refused = refused;
        self.is_connected.store(true, Ordering::Release);
    }

    /// Notes that there is no connection any more.
    pub(crate) fn disconnected(&self) {
        self.state().version = None;
        self.is_connected.store(false, Ordering::Release);
    }

    /// Whether there is a connection.
    #[inline]
    pub(crate) fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Acquire)
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
        state.wants_more || has_prefix_of(topic, |up_to| state.wanted.range::<[u8], _>(up_to).next_back())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn has_prefix_of(prefixes: &BTreeSet<Bytes>, topic: &[u8]) -> bool {
        super::has_prefix_of(topic, |up_to| prefixes.range::<[u8], _>(up_to).next_back())
    }

    #[test]
    fn a_topic_of_many_megabytes_is_looked_up_as_fast_as_a_short_one() {
        let prefixes: BTreeSet<Bytes> = (0..1000_u32).map(|n| Bytes::from(format!("a:{n}"))).collect();
        let topic = [&b"b:"[..], &vec![b'x'; 64 << 20]].concat();
        // One comparison; each prefix of it would be 64 million of them, for minutes.
        assert!(!has_prefix_of(&prefixes, &topic));
        assert!(has_prefix_of(&prefixes, b"a:17:x") && has_prefix_of(&prefixes, b"a:9"));
        assert!(
            !has_prefix_of(&prefixes, b"a:")
                && !has_prefix_of(&prefixes, b"")
                && !has_prefix_of(&prefixes, b"a")
        );
        assert!(has_prefix_of(&[Bytes::new()].into(), &topic));
    }

    proptest! {
        #[test]
        fn a_prefix_is_found_exactly_if_there_is_one(
            prefixes in prop::collection::btree_set("[ab\0]{0,6}", 0..12),
            topic in "[ab\0]{0,8}",
        ) {
            let expected = prefixes.iter().any(|prefix| topic.starts_with(prefix.as_str()));
            let prefixes: BTreeSet<Bytes> = prefixes.into_iter().map(Bytes::from).collect();
            prop_assert_eq!(has_prefix_of(&prefixes, topic.as_bytes()), expected);
        }
    }
}
