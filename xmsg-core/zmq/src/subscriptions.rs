//! What a socket subscribes to, and tells its peers: the role of SUB and XSUB.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use xmsg_zmtp::{Limited, Limits, PeerLimits, SocketType, Version};

use crate::hub::Hub;
use crate::link::Link;
use crate::link::refusal::{Whose, unfit_subscription};
use crate::role::Role;
use crate::{Error, Result, SocketOptions};

/// Subscriptions and their cancelling that wait to be written, bytes: what a socket subscribes to is its own choice.
const QUEUED_MAX: usize = 1 << 30;

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

/// A socket that subscribes.
#[derive(Debug)]
pub(crate) struct Subscribing {
    socket_type: SocketType,
    limits: Limits,
    subscriptions: Mutex<Subscriptions>,
}

impl Subscribing {
    pub(crate) fn new(socket_type: SocketType, options: &SocketOptions) -> Arc<Self> {
        Arc::new(Self { socket_type, limits: options.limits.clone(), subscriptions: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, Subscriptions> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to what a subscriber wants (or takes away from it) and tells every peer. Fails when that is more than we, or a peer, take; then
    /// nothing has changed.
    pub(crate) fn subscribe(&self, hub: &Hub, prefix: &Bytes, subscribe: bool) -> Result<()> {
        self.change(hub, self.state(), prefix, subscribe)
    }

    /// Subscribes to a prefix that peers are told of after all others.
    pub(crate) fn subscribe_last(&self, hub: &Hub, prefix: &Bytes) -> Result<()> {
        let mut subscriptions = self.state();
        subscriptions.last.insert(prefix.clone());
        let subscribed = self.change(hub, subscriptions, prefix, true);
        if subscribed.is_err() {
            self.state().last.remove(prefix);
        }
        subscribed
    }

    fn change(
        &self,
        hub: &Hub,
        mut subscriptions: MutexGuard<'_, Subscriptions>,
        prefix: &Bytes,
        subscribe: bool,
    ) -> Result<()> {
        let count = subscriptions.counts.get(prefix).copied().unwrap_or_default();
        match (subscribe, count) {
            (true, 0) => {
                self.may_subscribe(hub, prefix.len(), &subscriptions)?;
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
            // It was not told of a prefix that is too long for it, and does not take the cancelling either.
            let is_known = subscribe || limits.subscription_len.is_none_or(|most| prefix.len() <= most);
            if let Some(version) = version.filter(|_| is_known) {
                let mut bytes = BytesMut::new();
                version.write_subscription(&mut bytes, subscribe, prefix);
                link.outbox.push_urgent(&bytes, QUEUED_MAX);
            }
        }
        Ok(())
    }

    /// Whether a prefix of this length may be added.
    fn may_subscribe(&self, hub: &Hub, len: usize, subscriptions: &Subscriptions) -> Result<()> {
        let (count, bytes) = (subscriptions.counts.len() + 1, subscriptions.bytes + len);
        let ours = SubscriptionLimits::ours(&self.limits).check(len, count, bytes);
        ours.map_err(|why| why.error(Whose::Ours))?;
        for link in hub.links().iter() {
            let state = link.state();
            let theirs = SubscriptionLimits::theirs(&state.limits).check(len, count, bytes);
            theirs.map_err(|why| why.error(Whose::Theirs(&state.name)))?;
        }
        Ok(())
    }

    /// Why a peer does not take one of the subscriptions, if that is so.
    pub(crate) fn refused(hub: &Hub) -> Option<Error> {
        hub.links().iter().find_map(|link| {
            let state = link.state();
            state.refused.map(|why| why.error(Whose::Theirs(&state.name)))
        })
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
            let subscriptions = self.state();
            // A first frame may be long; a subscription is not.
            let longest = topic.len().min(self.limits.subscription_len);
            (0..=longest).any(|len| subscriptions.counts.contains_key(&topic[..len]))
        }
    }

    fn establish(&self, link: &Link, version: Version, limits: PeerLimits) -> Vec<(Bytes, NotTaken)> {
        // Under the lock, so that what is subscribed to meanwhile is told here or there.
        let subscriptions = self.state();
        // What was meant for an earlier connection.
        link.outbox.clear_urgent();
        let (bytes, refused) = subscriptions.for_peer(version, &limits);
        if !bytes.is_empty() {
            link.outbox.push_urgent(&bytes, QUEUED_MAX);
        }
        link.establish(version, limits, refused.first().map(|(_, why)| *why));
        refused
    }
}
