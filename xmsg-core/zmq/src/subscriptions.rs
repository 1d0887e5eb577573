//! What a socket subscribes to, and tells its peers: the role of SUB and XSUB.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use xmsg_zmtp::{Limited, Limits, PeerLimits, SocketType, Version};

use crate::hub::Hub;
use crate::link::refusal::{Whose, unfit_subscription};
use crate::link::{Link, has_prefix_of};
use crate::lock::lock;
use crate::role::Role;
use crate::{Error, Result, Settings};

/// Subscriptions and their cancelling that wait to be written to a peer that we connect to, bytes: what a socket subscribes to is its own choice.
const QUEUED_MAX: usize = 1 << 30;
/// … and to a peer that has connected to us. One that does not read them is not waited for: its connection ends.
const QUEUED_FOR_STRANGERS: usize = 64 << 20;

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
    /// Others have wanted more than may be kept: one subscription to everything stands for that.
    is_everything: bool,
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

/// A socket that subscribes.
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

    /// Adds to what a subscriber wants (or takes away from it) and tells every peer. Fails when that is more than we, or a peer, take; then
    /// nothing has changed.
    pub(crate) fn subscribe(&self, hub: &Hub, prefix: &Bytes, subscribe: bool) -> Result<()> {
        self.change(hub, self.state(), prefix, subscribe, true)
    }

    /// Subscribes to a prefix that peers are told of after all others.
    pub(crate) fn subscribe_last(&self, hub: &Hub, prefix: &Bytes) -> Result<()> {
        let mut subscriptions = self.state();
        subscriptions.last.insert(prefix.clone());
        let subscribed = self.change(hub, subscriptions, prefix, true, true);
        if subscribed.is_err() {
            self.state().last.remove(prefix);
        }
        subscribed
    }

    /// Adds to what others want, or takes away from it. More than we may keep is not refused: one of them could so keep all the others from
    /// subscribing. Instead, everything is subscribed to from then on.
    pub(crate) fn subscribe_for_others(&self, hub: &Hub, prefix: &Bytes, subscribe: bool) -> Result<()> {
        let subscriptions = self.state();
        let (count, bytes) = (subscriptions.counts.len() + 1, subscriptions.bytes + prefix.len());
        let has_room = SubscriptionLimits::ours(&self.limits).check(prefix.len(), count, bytes).is_ok();
        // The empty prefix, of which there is one, takes no room.
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
        // Under the lock, so that a connection that comes up now either finds it in the set or is told here.
        for link in hub.links().iter() {
            let (version, limits) = {
                let state = link.state();
                (state.version, state.limits)
            };
            let Some(version) = version else { continue };
            let limits = SubscriptionLimits::theirs(&limits);
            if subscribe {
                // That a peer that we connect to takes it was found before. Another one goes without.
                let all = limits.check(prefix.len(), subscriptions.counts.len(), subscriptions.bytes);
                if let Err(why) = all {
                    let is_first = link.state().refused.replace(why).is_none();
                    if is_first {
                        hub.tell_refused_subscriptions(link, vec![(prefix.clone(), why)]);
                    }
                    continue;
                }
            } else if prefix.len() > limits.len {
                // It was not told of a prefix that is too long for it, and does not take the cancelling either.
                continue;
            }
            let mut bytes = BytesMut::new();
            version.write_subscription(&mut bytes, subscribe, prefix);
            queue(link, &bytes, subscriptions.bytes);
        }
        Ok(())
    }

    /// Whether a prefix of this length may be added. Limits of peers that have connected to us bind nobody but themselves.
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
            ours.map_err(|why| why.error(Whose::Ours))?;
        }
        for link in hub.links().iter().filter(|link| link.connecting) {
            let state = link.state();
            let theirs = SubscriptionLimits::theirs(&state.limits).check(len, count, bytes);
            theirs.map_err(|why| why.error(Whose::Theirs(&state.name)))?;
        }
        Ok(())
    }

    /// Why a peer does not take one of the subscriptions, if that is so.
    pub(crate) fn refused(hub: &Hub) -> Option<Error> {
        hub.links().iter().filter(|link| link.connecting).find_map(|link| {
            let state = link.state();
            state.refused.map(|why| why.error(Whose::Theirs(&state.name)))
        })
    }
}

/// Has a subscription wait until it is written. A peer that has connected to us and lets too many of them wait is ended: without them it would send
/// what nobody wants any more, and keep what somebody wants. What it was told when it connected, `told` bytes of prefixes, may wait beside them.
fn queue(link: &Link, subscription: &[u8], told: usize) {
    // Each prefix has a frame and a byte in front.
    let most = if link.connecting { QUEUED_MAX } else { QUEUED_FOR_STRANGERS + 2 * told };
    if !link.outbox.push_urgent(subscription, most) && !link.connecting {
        tracing::debug!(peer = %link.state().name, "ended: it does not read what is subscribed to");
        link.stop.cancel();
    }
}

impl Role for Subscribing {
    fn socket_type(&self) -> SocketType {
        self.socket_type
    }

    fn lingers(&self) -> bool {
        // To unsubscribe takes no goodbye: the end of the connection does it. XSUB may have sent messages.
        self.socket_type == SocketType::Xsub
    }

    fn wants(&self, topic: &[u8]) -> bool {
        // A forwarder wants what its subscribers may want in a moment.
        self.socket_type == SocketType::Xsub || {
            let counts = &self.state().counts;
            has_prefix_of(topic, |up_to| counts.range::<[u8], _>(up_to).next_back().map(|(prefix, _)| prefix))
        }
    }

    fn establish(&self, link: &Link, version: Version, limits: PeerLimits) -> Vec<(Bytes, NotTaken)> {
        // Under the lock, so that what is subscribed to meanwhile is told here or there.
        let subscriptions = self.state();
        // What was meant for an earlier connection.
        link.outbox.clear_urgent();
        let (bytes, refused) = subscriptions.for_peer(version, &limits);
        if !bytes.is_empty() {
            // All of it, however much that is: what changes later is bounded beside it.
            link.outbox.push_urgent(&bytes, QUEUED_MAX);
        }
        link.establish(version, limits, refused.first().map(|(_, why)| *why));
        refused
    }
}
