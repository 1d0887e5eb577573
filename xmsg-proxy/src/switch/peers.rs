//! The connections of the switch, and what is counted of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use xmsg_core::socket::Amount;
use xmsg_core::socket::outbox::Outbox;
use xmsg_core::zmtp::{Principal, Version};

use super::Totals;
use crate::config::Policy;
use crate::security::{Authority, Rights};

/// Drops of one subscriber are logged at most this often.
const DROP_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Who a peer is, and what it may do under the rules in force.
#[derive(Debug)]
pub(super) struct Grant {
    /// `None`: the proxy's own.
    authority: Option<Arc<Authority>>,
    principal: Option<Principal>,
    known: Mutex<(u64, Option<Arc<Rights>>)>,
    denied: AtomicU64,
    log: Mutex<Option<Instant>>,
}

impl Grant {
    /// Of a peer that came with these credentials, or with none.
    pub(super) fn new(authority: &Arc<Authority>, principal: Option<Principal>) -> Self {
        let generation = authority.generation();
        let rights = authority.rights(principal.as_ref());
        Self {
            authority: Some(authority.clone()),
            principal,
            known: Mutex::new((generation, rights)),
            denied: AtomicU64::new(0),
            log: Mutex::default(),
        }
    }

    /// Of the proxy itself.
    pub(super) fn internal() -> Self {
        Self {
            authority: None,
            principal: None,
            known: Mutex::new((0, Some(Arc::new(Rights::all())))),
            denied: AtomicU64::new(0),
            log: Mutex::default(),
        }
    }

    /// What it may do now; `None`: it is not to be here any more.
    pub(super) fn rights(&self) -> Option<Arc<Rights>> {
        let mut known = lock(&self.known);
        if let Some(authority) = &self.authority {
            let generation = authority.generation();
            if known.0 != generation {
                *known = (generation, authority.rights(self.principal.as_ref()));
            }
        }
        known.1.clone()
    }

    /// Counts what it wanted and may not, and says so in the log now and then.
    pub(super) fn deny(&self, peer: &str, what: &str, topic: &[u8], count: u64) {
        let denied = self.denied.fetch_add(count, Ordering::Relaxed) + count;
        let mut log = lock(&self.log);
        if log.is_some_and(|last| last.elapsed() < DROP_LOG_INTERVAL) {
            return;
        }
        *log = Some(Instant::now());
        tracing::warn!(
            peer,
            principal = self.principal(),
            topic = %topic.escape_ascii(),
            denied_in_all = denied,
            "not allowed to {what}: see its rights in the configuration"
        );
    }

    pub(super) fn denied(&self) -> u64 {
        self.denied.load(Ordering::Relaxed)
    }

    /// Who it has proved to be.
    pub(super) fn principal(&self) -> Option<String> {
        self.principal.as_ref().map(ToString::to_string)
    }
}

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

    fn amount(&self) -> Amount {
        Amount { messages: self.messages.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// A connected publisher.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) id: u32,
    pub(super) peer: Box<str>,
    pub(super) version: Version,
    /// Subscriptions on their way to it.
    pub(super) outbox: Outbox,
    /// How many bytes of them may wait.
    pub(super) upstream_max: AtomicUsize,
    pub(super) since: Instant,
    pub(super) received: Counter,
    /// It did not read its subscriptions in time.
    pub(super) stalled: AtomicBool,
    /// Ends its connection.
    pub(super) cut: CancellationToken,
    pub(super) grant: Grant,
}

/// A connected subscriber.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) id: u32,
    pub(super) peer: Box<str>,
    pub(super) outbox: Outbox,
    pub(super) grant: Grant,
    /// Ends its connection.
    pub(super) cut: CancellationToken,
    /// What happens at the mark of the outbox.
    pub(super) policy: Policy,
    since: Instant,
    dropped: Counter,
    pub(super) subscriptions: AtomicUsize,
    /// Bytes of their prefixes.
    pub(super) subscription_bytes: AtomicUsize,
    drop_log: Mutex<Option<(Instant, u64)>>,
}

impl Subscriber {
    pub(super) fn new(id: u32, peer: &str, outbox: Outbox, policy: Policy, grant: Grant) -> Self {
        Self {
            grant,
            cut: CancellationToken::new(),
            id,
            peer: peer.into(),
            outbox,
            policy,
            since: Instant::now(),
            dropped: Counter::default(),
            subscriptions: AtomicUsize::new(0),
            subscription_bytes: AtomicUsize::new(0),
            drop_log: Mutex::default(),
        }
    }

    /// Counts messages that were not queued, and says so in the log now and then.
    pub(super) fn count_dropped(&self, messages: usize, bytes: usize) {
        self.dropped.add(messages, bytes);
        let mut log = lock(&self.drop_log);
        if log.is_some_and(|(last, _)| last.elapsed() < DROP_LOG_INTERVAL) {
            return;
        }
        let total = self.dropped.amount().messages;
        let before = log.replace((Instant::now(), total)).map_or(0, |(_, count)| count);
        let queued = self.outbox.queued();
        tracing::warn!(
            peer = %self.peer,
            dropped = total - before,
            dropped_in_all = total,
            queued_messages = queued.messages,
            queued_bytes = queued.bytes,
            "slow subscriber: messages for it are dropped (policy drop-newest)"
        );
    }
}

/// A snapshot of one publisher.
#[derive(Clone, Debug)]
pub struct PublisherStats {
    /// Its address.
    pub peer: String,
    /// How long it has been connected.
    pub connected_for: Duration,
    /// What came from it.
    pub received: Amount,
    /// Who it has proved to be.
    pub principal: Option<String>,
    /// Messages that it was not allowed to publish.
    pub denied: u64,
}

/// A snapshot of one subscriber.
#[derive(Clone, Debug)]
pub struct SubscriberStats {
    /// Its address.
    pub peer: String,
    /// How long it has been connected.
    pub connected_for: Duration,
    /// Its subscriptions.
    pub subscriptions: usize,
    /// What was written to it.
    pub delivered: Amount,
    /// What waits for it; `bytes` is memory.
    pub queued: Amount,
    /// What was not queued because it was at its mark.
    pub dropped: Amount,
    /// Who it has proved to be.
    pub principal: Option<String>,
    /// Subscriptions that it was not allowed to make, or to keep.
    pub denied: u64,
}

/// Everybody who is connected, and the counts of those who left.
#[derive(Debug, Default)]
pub(super) struct Gate {
    publishers: Mutex<BTreeMap<u32, Arc<Publisher>>>,
    subscribers: Mutex<BTreeMap<u32, Arc<Subscriber>>>,
    gone: Mutex<Totals>,
    pub(super) unmatched: AtomicU64,
    refused: AtomicU64,
    subscriber_count: AtomicUsize,
    left: Notify,
}

impl Gate {
    pub(super) fn add_publisher(&self, publisher: &Arc<Publisher>) {
        lock(&self.publishers).insert(publisher.id, publisher.clone());
    }

    pub(super) fn add_subscriber(&self, subscriber: &Arc<Subscriber>) {
        lock(&self.subscribers).insert(subscriber.id, subscriber.clone());
        self.subscriber_count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove_publisher(&self, publisher: &Publisher) {
        // Both locks together, so that no snapshot counts it twice or not at all.
        let mut publishers = lock(&self.publishers);
        let mut gone = lock(&self.gone);
        if publishers.remove(&publisher.id).is_some() {
            gone.received += publisher.received.amount();
            gone.denied += publisher.grant.denied();
        }
    }

    pub(super) fn remove_subscriber(&self, subscriber: &Subscriber) {
        {
            let mut subscribers = lock(&self.subscribers);
            let mut gone = lock(&self.gone);
            let undelivered = subscriber.outbox.clear().messages;
            if subscribers.remove(&subscriber.id).is_none() {
                return;
            }
            self.subscriber_count.fetch_sub(1, Ordering::Relaxed);
            gone.delivered += subscriber.outbox.written();
            gone.dropped += subscriber.dropped.amount();
            gone.denied += subscriber.grant.denied();
            gone.undelivered += undelivered;
            if undelivered > 0 {
                tracing::info!(peer = %subscriber.peer, undelivered, "a subscriber left messages behind");
            }
        }
        self.left.notify_waiters();
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn close_publishers(&self) {
        for publisher in lock(&self.publishers).values() {
            publisher.outbox.close();
        }
    }

    pub(super) fn cut_publishers(&self) {
        for publisher in lock(&self.publishers).values() {
            publisher.cut.cancel();
        }
    }

    /// Ends the connections of those who are not let in any more.
    pub(super) fn cut_strangers(&self) {
        let publishers = lock(&self.publishers);
        let publishers = publishers.values().map(|peer| (&peer.grant, &peer.peer, &peer.cut));
        let subscribers = lock(&self.subscribers);
        let subscribers = subscribers.values().map(|peer| (&peer.grant, &peer.peer, &peer.cut));
        for (grant, peer, cut) in publishers.chain(subscribers) {
            if grant.rights().is_none() && !cut.is_cancelled() {
                tracing::warn!(%peer, principal = grant.principal(), "not allowed here any more: cut off");
                cut.cancel();
            }
        }
    }

    /// How many subscribers are connected.
    pub(super) fn subscriber_count(&self) -> usize {
        self.subscriber_count.load(Ordering::Relaxed)
    }

    pub(super) fn close_subscribers(&self) {
        for subscriber in lock(&self.subscribers).values() {
            subscriber.outbox.close();
        }
    }

    pub(super) async fn subscribers_gone(&self) {
        loop {
            let mut left = std::pin::pin!(self.left.notified());
            left.as_mut().enable();
            if lock(&self.subscribers).is_empty() {
                return;
            }
            left.await;
        }
    }

    pub(super) fn totals(&self) -> Totals {
        let publishers = lock(&self.publishers);
        let subscribers = lock(&self.subscribers);
        let mut totals = *lock(&self.gone);
        totals.unmatched = self.unmatched.load(Ordering::Relaxed);
        totals.refused = self.refused.load(Ordering::Relaxed);
        for publisher in publishers.values() {
            totals.received += publisher.received.amount();
            totals.denied += publisher.grant.denied();
        }
        for subscriber in subscribers.values() {
            totals.delivered += subscriber.outbox.written();
            totals.dropped += subscriber.dropped.amount();
            totals.denied += subscriber.grant.denied();
        }
        totals
    }

    pub(super) fn publishers(&self) -> Vec<PublisherStats> {
        lock(&self.publishers)
            .values()
            .map(|publisher| PublisherStats {
                peer: publisher.peer.to_string(),
                connected_for: publisher.since.elapsed(),
                received: publisher.received.amount(),
                principal: publisher.grant.principal(),
                denied: publisher.grant.denied(),
            })
            .collect()
    }

    pub(super) fn subscribers(&self) -> Vec<SubscriberStats> {
        lock(&self.subscribers)
            .values()
            .map(|subscriber| SubscriberStats {
                peer: subscriber.peer.to_string(),
                connected_for: subscriber.since.elapsed(),
                subscriptions: subscriber.subscriptions.load(Ordering::Relaxed),
                delivered: subscriber.outbox.written(),
                queued: subscriber.outbox.queued(),
                dropped: subscriber.dropped.amount(),
                principal: subscriber.grant.principal(),
                denied: subscriber.grant.denied(),
            })
            .collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
