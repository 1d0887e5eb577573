//! A link: one connection of a socket, or the place of a connection that is being re-established. It holds
//! the send queue and what the peer has subscribed to and accepts.

// | file | answers |
// |---|---|
// | `session.rs` | What happens on a connection from its first byte to its last? Why does it end? |
// | `transport.rs` | How are TCP, Unix sockets and pipes within the process connected and bound? |
// | `addresses.rs` | Which addresses has the name of a host or an interface? |
// | `socks.rs` | How is a connection made through a SOCKS5 proxy? |
// | `buffer.rs` | Into which memory is read, and when is it used again? |
// | `decryption.rs` | How is what comes over a connection with CURVE decrypted? |
// | `send_queue.rs` | What waits to be written, and who waits for room? |
// | `receive_queue.rs` | From which peer does a socket receive next? |
// | `receive_queue/numbered.rs` | Which peer has which number in the receive queue? |
// | `wait_queue.rs` | Who waits, and who is next? |
// | `encoded.rs` | How is a long message encoded in steps? |
// | `hold.rs` | For how long are messages held back after a reconnection? |
// | `reconnect.rs` | How long is the pause before the next attempt to connect? |
// | `prefix_set.rs` | Has the peer subscribed to a prefix of this topic? |
// | `routes.rs` | Which link has which routing identity? |
// | `admission.rs` | Who may connect, and which connection ends when there is no place left? |
// | `source.rs` | Which connections come from the same source? |
// | `dead_peer.rs` | Does the host of the peer still answer? |
// | `pause.rs` | What can happen while nothing is read from a peer? |
// | `ending.rs` | How do thousands of connections end without delaying everything else? |
// | `refusal.rs` | In which words is a message or a subscription refused that exceeds a limit? |
// | `violations.rs` | Why was a connection ended, and how often? |
// | `drop_counter.rs` | How many messages were dropped for one peer? |
// | `throttle.rs` | May one more line be logged? |
// | `test_ciphers.rs` | Which ciphers do tests of both ends use? |

pub(crate) mod addresses;
pub mod admission;
pub mod buffer;
pub mod dead_peer;
mod decryption;
pub(crate) mod drop_counter;
pub mod encoded;
pub mod ending;
pub(crate) mod hold;
pub mod pause;
pub(crate) mod prefix_set;
pub(crate) mod receive_queue;
pub mod reconnect;
pub(crate) mod refusal;
pub(crate) mod routes;
pub mod send_queue;
pub mod session;
#[cfg(feature = "socks")]
pub(crate) mod socks;
pub mod source;
#[cfg(test)]
pub(crate) mod test_ciphers;
pub mod throttle;
pub mod transport;
pub mod violations;
pub(crate) mod wait_queue;

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::link::drop_counter::DropCounter;
use crate::link::prefix_set::PrefixSet;
use crate::link::send_queue::SendQueue;
use crate::lock::lock;
use crate::memory_budget::Claim;
use crate::options::Overflow;
use crate::subscriptions::{HeldBack, SubscriptionLimitExceeded};
use xmsg_zmtp::{DroppedCounts, PeerLimits, Principal, Version, Violation};

/// One connection, or the place of one that is being re-established.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: u64,
    pub(crate) send_queue: SendQueue,
    /// Whether we connect to the peer. Such a link outlives its connections.
    pub(crate) connecting: bool,
    /// What happens at the high-water mark to a message for many peers. It is never
    /// [`Usual`](Overflow::Usual).
    pub(crate) overflow: Overflow,
    /// Counts the messages that were dropped at the high-water mark.
    pub(crate) overflowed: DropCounter,
    /// Counts what was received over this link.
    pub(crate) received: Received,
    pub(crate) state: Mutex<LinkState>,
    /// The claim for what the peer has subscribed to, once that is much. It is not in `state`, which senders
    /// lock for each message: a claim may have to search for the largest one.
    pub(crate) wanted_claim: Mutex<Option<Claim>>,
    /// Whether `state.version` is set. It is kept here as well for code that checks it for each message.
    pub(crate) is_connected: AtomicBool,
    /// Ends the connection and, if it was accepted, the link too.
    pub(crate) stop: CancellationToken,
}

/// Counts what was received over the connections of one link.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) messages: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct LinkState {
    /// The protocol version of the peer. `None` while there is no connection.
    pub(crate) version: Option<Version>,
    /// The prefixes that the peer of a publisher has subscribed to.
    pub(crate) wanted: PrefixSet,
    /// The total length of `wanted`, in bytes.
    pub(crate) wanted_bytes: usize,
    /// Whether the peer has subscribed to more prefixes than `wanted` keeps.
    pub(crate) wants_more: bool,
    /// The identity that the peer has proved.
    pub(crate) principal: Option<Principal>,
    /// The name of the peer: its address.
    pub(crate) name: Arc<str>,
    /// The endpoint that the link connects to. Empty if it was accepted.
    pub(crate) endpoint: Arc<str>,
    /// Why there is no connection, or why the last attempt to connect failed.
    pub(crate) failure: Option<Error>,
    /// Since when a peer that accepted the connection has been silent.
    pub(crate) silent_since: Option<Instant>,
    /// The limits of the peer. After its connection has ended, they are the last ones that it announced.
    pub(crate) limits: PeerLimits,
    /// How the last connection ended.
    pub(crate) last_end: LastEnd,
    /// The first subscription that the peer does not accept, if there is one.
    pub(crate) refused: Option<SubscriptionLimitExceeded>,
    /// What we subscribe to and the peer was not sent.
    pub(crate) held_back: HeldBack,
    /// Since when messages are held back after a reconnection.
    pub(crate) held_since: Option<Instant>,
    /// What the peer has dropped for us: over the present connection, and over all connections.
    pub(crate) drops: (DroppedCounts, DroppedCounts),
}

/// How a connection ended, as far as that matters to a caller that has sent something over it.
#[derive(Debug, Default)]
pub(crate) enum LastEnd {
    /// The connection ended in some other way.
    #[default]
    Otherwise,
    /// The peer announced no limits, and closed the connection after it had received a part of a message.
    CutOff,
    /// The peer violated the protocol or a limit.
    Violation(Violation),
}

impl LinkState {
    pub(crate) fn forget_wanted(&mut self) -> BTreeSet<Bytes> {
        self.wanted_bytes = 0;
        self.wants_more = false;
        std::mem::take(&mut self.wanted).into_set()
    }
}

/// Whether one of the prefixes is a prefix of `topic`, however long the topic is. `last` returns the last
/// prefix within a range. It takes as many steps as the prefixes make it take, so they have to be our own
/// choice; those of a peer are in a [`PrefixSet`].
pub(crate) fn has_prefix_of<'a>(
    topic: &[u8],
    last: impl Fn((Bound<&[u8]>, Bound<&[u8]>)) -> Option<&'a Bytes>,
) -> bool {
    // There is a result after so many steps: each of them shortens the topic.
    has_prefix_within(topic, usize::MAX, last).unwrap_or_default()
}

/// Whether one of the prefixes is a prefix of `topic`. If that is not known after this number of steps, it
/// returns the part of the topic to which the prefixes that are left to be looked for are limited.
///
/// The last prefix that sorts before the topic either is a prefix of it or differs from it at some byte. In
/// the second case, every other prefix of the topic ends before that byte. So the search goes on with the
/// part before it.
fn has_prefix_within<'a, 't>(
    mut topic: &'t [u8],
    steps: usize,
    last: impl Fn((Bound<&[u8]>, Bound<&[u8]>)) -> Option<&'a Bytes>,
) -> Result<bool, &'t [u8]> {
    for _ in 0..steps {
        let Some(last) = last((Bound::Unbounded, Bound::Included(topic))) else { return Ok(false) };
        let common = common_len(last, topic);
        if common == last.len() {
            return Ok(true);
        }
        topic = &topic[..common];
    }
    Err(topic)
}

/// The number of bytes in front that are the same in both.
fn common_len(a: &[u8], b: &[u8]) -> usize {
    const STEP: usize = 32;
    // Comparing whole blocks is many times as fast.
    let blocks = a.chunks_exact(STEP).zip(b.chunks_exact(STEP)).take_while(|(a, b)| a == b).count();
    let same = blocks * STEP;
    same + a[same..].iter().zip(&b[same..]).take_while(|(a, b)| a == b).count()
}

impl AsRef<SendQueue> for Link {
    fn as_ref(&self) -> &SendQueue {
        &self.send_queue
    }
}

impl Link {
    pub(crate) fn state(&self) -> MutexGuard<'_, LinkState> {
        lock(&self.state)
    }

    /// The routing identity that we assign to the peer. It starts with a zero byte, which no identity that a
    /// peer chooses may do (RFC 28).
    pub(crate) fn name(&self) -> Bytes {
        Bytes::from([&[0][..], &(self.id as u32).to_be_bytes()].concat())
    }

    /// Notes that there is a connection to a peer with this version and these limits.
    pub(crate) fn establish(&self, version: Version, limits: PeerLimits) {
        let mut state = self.state();
        (state.version, state.limits, state.failure) = (Some(version), limits, None);
        state.drops.0 = DroppedCounts::default();
        (state.refused, state.held_back) = (None, HeldBack::default());
        self.is_connected.store(true, Ordering::Release);
    }

    /// Notes that the connection has ended.
    pub(crate) fn disconnected(&self) {
        self.state().version = None;
        self.is_connected.store(false, Ordering::Release);
    }

    /// Whether there is a connection.
    #[inline]
    pub(crate) fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Acquire)
    }

    /// Holds messages back until [`release`](Self::release).
    pub(crate) fn hold(&self) {
        self.state().held_since = Some(Instant::now());
        self.send_queue.hold(true);
    }

    pub(crate) fn release(&self) {
        self.state().held_since = None;
        self.send_queue.hold(false);
    }

    /// Whether the peer of a publisher has subscribed to a prefix of this topic.
    pub(crate) fn wants(&self, topic: &[u8]) -> bool {
        let state = self.state();
        state.wants_more || state.wanted.has_prefix_of(topic)
    }

    /// Whether the peer of a publisher has subscribed to anything.
    pub(crate) fn is_subscribed(&self) -> bool {
        let state = self.state();
        state.wants_more || !state.wanted.is_empty()
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
        // This takes one comparison. A look-up of each prefix of the topic would take 64 million, and
        // minutes.
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
