//! What a socket subscribes to and sends to its peers: the role of SUB and XSUB.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use xmsg_zmtp::{Limited, Limits, PeerLimits, SocketType, Version};

use crate::hub::Hub;
use crate::link::refusal::{LimitOwner, subscription_exceeds_limits};
use crate::link::{Link, has_prefix_of};
use crate::lock::lock;
use crate::role::Role;
use crate::{Error, Result, Settings};

/// The maximum size in bytes of subscriptions and cancellations that wait to be written to a peer that we
/// connect to. What a socket subscribes to is its own choice.
const QUEUED_MAX: usize = 1 << 30;
/// The same limit, in bytes, for a peer that has connected to us. If it does not read them, its connection is
/// ended.
const QUEUED_MAX_ACCEPTED: usize = 64 << 20;

/// Why a subscription exceeds a limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SubscriptionLimitExceeded {
    what: Limited,
    /// The size that would exceed the limit, in bytes or as a number.
    size: usize,
    limit: usize,
}

impl SubscriptionLimitExceeded {
    pub(crate) fn error(self, whose: LimitOwner<'_>) -> Error {
        subscription_exceeds_limits(self.what, self.size, self.limit, whose)
    }
}

/// The maximum number of subscriptions that are kept for a peer that has connected to us and does not accept
/// them.
const HELD_BACK_MAX: usize = 10_000;

/// Limits for subscriptions.
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

    /// Checks whether a prefix of length `len` may be added. `count` and `bytes` are the number and the total
    /// length of all prefixes, including this one.
    pub(crate) fn check(
        self,
        len: usize,
        count: usize,
        bytes: usize,
    ) -> Result<(), SubscriptionLimitExceeded> {
        let above = [
            (Limited::Subscription, len, self.len),
            (Limited::Subscriptions, count, self.count),
            (Limited::SubscriptionBytes, bytes, self.bytes),
        ];
        match above.into_iter().find(|(_, size, limit)| size > limit) {
            Some((what, size, limit)) => Err(SubscriptionLimitExceeded { what, size, limit }),
            None => Ok(()),
        }
    }
}

/// The subscriptions that a peer was not sent, because they exceed its limits.
#[derive(Debug, Default)]
pub(crate) struct HeldBack {
    /// The prefixes that are sent when others are cancelled, with their lengths. The shortest one is sent
    /// first: if it does not fit, no other one does.
    prefixes: BTreeSet<(usize, Bytes)>,
    /// The total length of `prefixes` in bytes.
    bytes: usize,
    /// The number and the total length of the prefixes that are too long for the peer, and are never sent.
    too_long: (usize, usize),
    /// Whether there were more prefixes than are kept. Which ones the peer was sent is not known then.
    is_incomplete: bool,
}

impl HeldBack {
    /// The number and the total length of the prefixes that the peer was sent. All that are subscribed to are
    /// `count`, with `bytes` bytes.
    fn sent(&self, count: usize, bytes: usize) -> (usize, usize) {
        (count - self.prefixes.len() - self.too_long.0, bytes - self.bytes - self.too_long.1)
    }

    fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.too_long.0 == 0 && !self.is_incomplete
    }

    fn hold(&mut self, prefix: &Bytes, limits: SubscriptionLimits, max: usize) {
        if prefix.len() > limits.len {
            self.too_long = (self.too_long.0 + 1, self.too_long.1 + prefix.len());
        } else if self.prefixes.len() >= max {
            self.is_incomplete = true;
        } else {
            self.bytes += prefix.len();
            self.prefixes.insert((prefix.len(), prefix.clone()));
        }
    }

    /// Forgets a prefix that is cancelled. Returns whether it was held back.
    fn forget(&mut self, prefix: &Bytes, limits: SubscriptionLimits) -> bool {
        if prefix.len() > limits.len {
            self.too_long = (self.too_long.0 - 1, self.too_long.1 - prefix.len());
            return true;
        }
        let is_held = self.prefixes.remove(&(prefix.len(), prefix.clone()));
        if is_held {
            self.bytes -= prefix.len();
        }
        is_held
    }

    /// Takes out the prefixes that the peer accepts now, the shortest first. All prefixes that are subscribed
    /// to are `count`, with `bytes` bytes.
    fn release(&mut self, limits: SubscriptionLimits, count: usize, bytes: usize) -> Vec<Bytes> {
        let mut released = Vec::new();
        let (mut count, mut bytes) = self.sent(count, bytes);
        while let Some((len, _)) = self.prefixes.first()
            && limits.check(*len, count + 1, bytes + len).is_ok()
            && let Some((len, prefix)) = self.prefixes.pop_first()
        {
            (count, bytes) = (count + 1, bytes + len);
            self.bytes -= len;
            released.push(prefix);
        }
        released
    }
}

/// How many subscriptions that a peer does not accept are kept for it. A peer that we connect to is our own
/// choice.
fn held_back_max(link: &Link) -> usize {
    if link.connecting { usize::MAX } else { HELD_BACK_MAX }
}

/// The subscribed prefixes, and how often each was subscribed to.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    pub(crate) counts: BTreeMap<Bytes, usize>,
    /// Prefixes that are sent to peers after all others.
    pub(crate) last: BTreeSet<Bytes>,
    /// The total length of all prefixes in bytes.
    pub(crate) bytes: usize,
    /// Whether everything is subscribed to, because others have subscribed to more than may be kept.
    is_everything: bool,
}

impl Subscriptions {
    /// Encodes the subscriptions for a new peer. Returns them, and those that exceed the limits of the peer.
    pub(crate) fn for_peer(
        &self,
        version: Version,
        limits: &PeerLimits,
    ) -> (BytesMut, Vec<(Bytes, SubscriptionLimitExceeded)>) {
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

/// The role of a socket that subscribes.
#[derive(Debug)]
pub(crate) struct Subscribing {
    socket_type: SocketType,
    limits: Limits,
    subscriptions: Mutex<Subscriptions>,
}

impl Subscribing {
    pub(crate) fn new(socket_type: SocketType, options: &Settings) -> Arc<Self> {
        Arc::new(Self { socket_type, limits: options.limits.clone(), subscriptions: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, Subscriptions> {
        lock(&self.subscriptions)
    }

    /// Adds or cancels a subscription, and sends it to every peer.
    ///
    /// # Errors
    ///
    /// The subscription exceeds our limits or those of a peer. Nothing has changed then.
    pub(crate) fn subscribe(&self, hub: &Hub, prefix: &Bytes, subscribe: bool) -> Result<()> {
        self.change(hub, self.state(), prefix, subscribe, true)
    }

    /// Subscribes to a prefix that is sent to peers after all others.
    pub(crate) fn subscribe_last(&self, hub: &Hub, prefix: &Bytes) -> Result<()> {
        let mut subscriptions = self.state();
        subscriptions.last.insert(prefix.clone());
        let subscribed = self.change(hub, subscriptions, prefix, true, true);
        if subscribed.is_err() {
            self.state().last.remove(prefix);
        }
        subscribed
    }

    /// Adds or cancels a subscription for others. One that exceeds our limits is not refused, because one
    /// subscriber could then prevent all others from subscribing. Instead, everything is subscribed to from
    /// then on.
    pub(crate) fn subscribe_for_others(&self, hub: &Hub, prefix: &Bytes, subscribe: bool) -> Result<()> {
        let subscriptions = self.state();
        let (count, bytes) = (subscriptions.counts.len() + 1, subscriptions.bytes + prefix.len());
        let has_room = SubscriptionLimits::ours(&self.limits).check(prefix.len(), count, bytes).is_ok();
        // There is only one empty prefix, and it takes no room.
        if !subscribe || has_room || prefix.is_empty() || subscriptions.counts.contains_key(prefix) {
            return self.change(hub, subscriptions, prefix, subscribe, !prefix.is_empty());
        }
        if subscriptions.is_everything {
            return Ok(());
        }
        self.change(hub, subscriptions, &Bytes::new(), true, false)?;
        self.state().is_everything = true;
        Ok(())
    }

    fn change(
        &self,
        hub: &Hub,
        mut subscriptions: MutexGuard<'_, Subscriptions>,
        prefix: &Bytes,
        subscribe: bool,
        is_limited: bool,
    ) -> Result<()> {
        let count = subscriptions.counts.get(prefix).copied().unwrap_or_default();
        match (subscribe, count) {
            (true, 0) => {
                self.may_subscribe(hub, prefix.len(), &subscriptions, is_limited)?;
                subscriptions.counts.insert(prefix.clone(), 1);
                subscriptions.bytes += prefix.len();
            }
            (true, _) => {
                subscriptions.counts.insert(prefix.clone(), count + 1);
                return Ok(());
            }
            (false, 0) => return Ok(()),
            (false, 1) => {
                subscriptions.counts.remove(prefix);
                subscriptions.last.remove(prefix);
                subscriptions.bytes -= prefix.len();
            }
            (false, _) => {
                subscriptions.counts.insert(prefix.clone(), count - 1);
                return Ok(());
            }
        }
        // This happens under the lock, so that a connection that is established now either finds the prefix
        // in the set or is sent it here.
        for link in hub.links().iter() {
            Self::pass_on(hub, link, &subscriptions, prefix, subscribe);
        }
        Ok(())
    }

    /// Sends a change of `subscriptions`, which contains it already, to a peer. A subscription that the peer
    /// does not accept is held back until a cancellation makes room for it.
    fn pass_on(hub: &Hub, link: &Link, subscriptions: &Subscriptions, prefix: &Bytes, subscribe: bool) {
        let (count, total) = (subscriptions.counts.len(), subscriptions.bytes);
        let mut guard = link.state();
        let state = &mut *guard;
        let Some(version) = state.version else { return };
        let limits = SubscriptionLimits::theirs(&state.limits);
        let held = &mut state.held_back;
        let mut bytes = BytesMut::new();
        if subscribe {
            // Peers that we connect to were checked before. A peer that has connected to us is not sent a
            // subscription that exceeds its limits.
            let (sent, sent_bytes) = held.sent(count, total);
            if let Err(why) = limits.check(prefix.len(), sent, sent_bytes) {
                held.hold(prefix, limits, held_back_max(link));
                let is_first = state.refused.replace(why).is_none();
                drop(guard);
                if is_first {
                    hub.report_refused_subscriptions(link, vec![(prefix.clone(), why)]);
                }
                return;
            }
            version.write_subscription(&mut bytes, true, prefix);
        } else if !held.forget(prefix, limits) {
            if held.is_incomplete {
                // There may be room for a subscription that is not known any more. A new connection is sent
                // all that it accepts.
                tracing::debug!(peer = %state.name, "ended: it accepts too few subscriptions to be sent changes");
                link.stop.cancel();
                return;
            }
            version.write_subscription(&mut bytes, false, prefix);
            for released in held.release(limits, count, total) {
                version.write_subscription(&mut bytes, true, &released);
            }
        }
        if held.is_empty() {
            state.refused = None;
        }
        drop(guard);
        if !bytes.is_empty() {
            queue(link, &bytes, total);
        }
    }

    /// Checks whether a prefix of length `len` may be added. The limits of peers that have connected to us
    /// are not checked: they affect only these peers.
    fn may_subscribe(
        &self,
        hub: &Hub,
        len: usize,
        subscriptions: &Subscriptions,
        is_limited: bool,
    ) -> Result<()> {
        let (count, bytes) = (subscriptions.counts.len() + 1, subscriptions.bytes + len);
        if is_limited {
            let ours = SubscriptionLimits::ours(&self.limits).check(len, count, bytes);
            ours.map_err(|why| why.error(LimitOwner::Local))?;
        }
        for link in hub.links().iter().filter(|link| link.connecting) {
            let state = link.state();
            let theirs = SubscriptionLimits::theirs(&state.limits).check(len, count, bytes);
            theirs.map_err(|why| why.error(LimitOwner::Peer(&state.name)))?;
        }
        Ok(())
    }

    /// Returns why a peer does not accept one of the subscriptions, if that is so.
    pub(crate) fn refused(hub: &Hub) -> Option<Error> {
        hub.links().iter().filter(|link| link.connecting).find_map(|link| {
            let state = link.state();
            state.refused.map(|why| why.error(LimitOwner::Peer(&state.name)))
        })
    }
}

/// Queues a subscription for a peer. If a peer that has connected to us lets too many of them wait, its
/// connection is ended. Without them, it would send what is not subscribed to any more, and not send what is.
/// The subscriptions that it was sent when it connected, `sent` bytes of prefixes, may wait in addition.
fn queue(link: &Link, subscription: &[u8], sent: usize) {
    // Each prefix has a frame header and one more byte in front.
    let most = if link.connecting { QUEUED_MAX } else { QUEUED_MAX_ACCEPTED + 2 * sent };
    if !link.send_queue.push_urgent(subscription, most) && !link.connecting {
        tracing::debug!(peer = %link.state().name, "ended: it does not read what is subscribed to");
        link.stop.cancel();
    }
}

impl Role for Subscribing {
    fn socket_type(&self) -> SocketType {
        self.socket_type
    }

    fn lingers(&self) -> bool {
        // Nothing has to be sent to unsubscribe: the end of the connection is enough. XSUB may have sent
        // messages.
        self.socket_type == SocketType::Xsub
    }

    fn wants(&self, topic: &[u8]) -> bool {
        // A forwarder also accepts what its subscribers may want in a moment.
        self.socket_type == SocketType::Xsub || {
            let counts = &self.state().counts;
            has_prefix_of(topic, |up_to| counts.range::<[u8], _>(up_to).next_back().map(|(prefix, _)| prefix))
        }
    }

    fn establish(
        &self,
        link: &Link,
        version: Version,
        limits: PeerLimits,
    ) -> Vec<(Bytes, SubscriptionLimitExceeded)> {
        // This happens under the lock, so that a prefix that is subscribed to meanwhile is sent either here
        // or there.
        let subscriptions = self.state();
        // These bytes were meant for an earlier connection.
        link.send_queue.clear_urgent();
        let (bytes, refused) = subscriptions.for_peer(version, &limits);
        if !bytes.is_empty() {
            // All subscriptions are queued, however many there are. Later changes are bounded separately.
            link.send_queue.push_urgent(&bytes, QUEUED_MAX);
        }
        let mut held_back = HeldBack::default();
        let (theirs, max) = (SubscriptionLimits::theirs(&limits), held_back_max(link));
        for (prefix, _) in &refused {
            held_back.hold(prefix, theirs, max);
        }
        link.establish(version, limits);
        let mut state = link.state();
        (state.refused, state.held_back) = (refused.first().map(|(_, why)| *why), held_back);
        drop(state);
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SubscriptionLimits = SubscriptionLimits { len: 4, count: 2, bytes: 6 };

    fn prefix(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn what_was_held_back_is_sent_as_soon_as_there_is_room_for_it() {
        // Six prefixes with 16 bytes are subscribed to, of which "a" and "b" were sent.
        let mut held = HeldBack::default();
        for text in ["ccc", "d", "eeee", "ffffff"] {
            held.hold(&prefix(text), LIMITS, 10);
        }
        assert_eq!(held.release(LIMITS, 6, 16), Vec::<Bytes>::new());
        // "a" is cancelled.
        assert_eq!(held.release(LIMITS, 5, 15), ["d"]);
        // "ccc" is cancelled before it was sent, then "b".
        assert!(held.forget(&prefix("ccc"), LIMITS));
        assert!(!held.forget(&prefix("b"), LIMITS));
        assert_eq!(held.release(LIMITS, 3, 11), ["eeee"]);
        // A prefix that is too long is never sent.
        assert!(!held.is_empty());
        assert!(held.forget(&prefix("ffffff"), LIMITS));
        assert!(held.is_empty());
    }

    #[test]
    fn a_long_prefix_that_does_not_fit_holds_up_no_shorter_one() {
        // "bbbb" was sent, which leaves room for two bytes.
        let mut held = HeldBack::default();
        for text in ["aaaa", "zz"] {
            held.hold(&prefix(text), LIMITS, 10);
        }
        assert_eq!(held.release(LIMITS, 3, 10), ["zz"]);
        assert!(!held.forget(&prefix("zz"), LIMITS) && held.forget(&prefix("aaaa"), LIMITS));
    }

    #[test]
    fn a_peer_that_accepts_little_makes_us_keep_little() {
        let mut held = HeldBack::default();
        for text in ["a", "b", "c"] {
            held.hold(&prefix(text), LIMITS, 2);
        }
        assert_eq!((held.prefixes.len(), held.is_incomplete), (2, true));
        assert!(!held.forget(&prefix("c"), LIMITS) && !held.is_empty());
    }
}
