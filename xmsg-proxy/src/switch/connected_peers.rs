//! Everybody who is connected to the switch, and what has become of those who left.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use xmsg_zmq::link::ending::end_some_at_a_time;
use xmsg_zmq::lock::lock;

use super::Totals;
use super::held::HeldUp;
use super::peers::{Lines, PublisherStats, Subscriber, SubscriberStats};
use super::publisher::Publisher;
use crate::policy::Rule;

/// Everybody who is connected, and the counts of those who left.
#[derive(Debug, Default)]
pub(super) struct ConnectedPeers {
    publishers: Mutex<BTreeMap<u32, Arc<Publisher>>>,
    subscribers: Mutex<BTreeMap<u32, Arc<Subscriber>>>,
    gone: Mutex<Totals>,
    pub(super) unmatched: AtomicU64,
    /// Messages that subscribers did not get because a publisher's connection ended while it waited for them,
    /// or because they were leaving.
    lost: AtomicU64,
    /// Messages in the hands of publishers that wait for subscribers.
    held: AtomicU64,
    refused: AtomicU64,
    subscriber_count: AtomicUsize,
    left: Notify,
    pub(super) lines: Arc<Lines>,
}

impl ConnectedPeers {
    pub(super) fn add_publisher(&self, publisher: &Arc<Publisher>) {
        lock(&self.publishers).insert(publisher.id, publisher.clone());
        // The rules may have changed while it was being let in.
        publisher.grant.leave_if_strange(&publisher.peer);
    }

    pub(super) fn add_subscriber(&self, subscriber: &Arc<Subscriber>) {
        lock(&self.subscribers).insert(subscriber.id, subscriber.clone());
        subscriber.grant.leave_if_strange(&subscriber.peer);
        self.subscriber_count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove_publisher(&self, publisher: &Publisher) {
        // Both locks together, so that no snapshot counts it twice or not at all.
        let mut publishers = lock(&self.publishers);
        let mut gone = lock(&self.gone);
        if publishers.remove(&publisher.id).is_some() {
            gone.received += publisher.received.amount();
            gone.denied += publisher.grant.denied();
            gone.crowded_out += u64::from(publisher.place.is_given_away());
        }
    }

    pub(super) fn remove_subscriber(&self, subscriber: &Subscriber) {
        {
            let mut subscribers = lock(&self.subscribers);
            let mut gone = lock(&self.gone);
            let undelivered = subscriber.send_queue.clear().messages;
            subscriber.log_rest(true);
            if subscribers.remove(&subscriber.id).is_none() {
                return;
            }
            self.subscriber_count.fetch_sub(1, Ordering::Relaxed);
            subscriber.add_to(&mut gone);
            gone.undelivered += undelivered;
            gone.disconnected += u64::from(subscriber.cut.is_cancelled());
            let dropped = subscriber.drops().total().messages;
            if undelivered + dropped > 0
                && let Some(unlogged) =
                    self.lines.left.pass("subscribers that left before all had reached them")
            {
                tracing::info!(peer = %subscriber.peer, undelivered, dropped, unlogged, "a subscriber left: not all messages reached it");
            }
        }
        self.left.notify_waiters();
    }

    /// Counts messages that subscribers do not get although they were received.
    pub(super) fn lose(&self, messages: u64) {
        self.lost.fetch_add(messages, Ordering::Relaxed);
    }

    /// Counts so many messages as in the hands of a publisher that waits.
    pub(super) fn hold(&self, messages: u64) -> HeldUp<'_> {
        HeldUp::new(&self.held, messages)
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn close_publishers(&self) {
        for publisher in lock(&self.publishers).values() {
            publisher.send_queue.close();
        }
    }

    pub(super) fn cut_publishers(&self) {
        for publisher in lock(&self.publishers).values() {
            publisher.cut.cancel();
        }
    }

    /// Who has this number: one of them, or nobody.
    pub(super) fn find(&self, id: u32) -> (Option<Arc<Publisher>>, Option<Arc<Subscriber>>) {
        (lock(&self.publishers).get(&id).cloned(), lock(&self.subscribers).get(&id).cloned())
    }

    /// Ends the connections of those who are not let in any more.
    pub(super) async fn cut_strangers(&self) {
        // Without their locks, which everybody needs who comes or goes.
        let publishers: Vec<_> = lock(&self.publishers).values().cloned().collect();
        let end = |peer: &Arc<Publisher>| peer.grant.leave_if_strange(&peer.peer);
        end_some_at_a_time(&publishers, end, |peer| !lock(&self.publishers).contains_key(&peer.id)).await;
        let subscribers: Vec<_> = lock(&self.subscribers).values().cloned().collect();
        let end = |peer: &Arc<Subscriber>| peer.grant.leave_if_strange(&peer.peer);
        end_some_at_a_time(&subscribers, end, |peer| !lock(&self.subscribers).contains_key(&peer.id)).await;
    }

    /// How many subscribers are connected.
    pub(super) fn subscriber_count(&self) -> usize {
        self.subscriber_count.load(Ordering::Relaxed)
    }

    pub(super) fn close_subscribers(&self) {
        for subscriber in lock(&self.subscribers).values() {
            // The last count goes out, too; one that does not read will not miss it.
            subscriber.tell_drops();
            subscriber.send_queue.close();
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
        totals.undelivered += self.lost.load(Ordering::Relaxed);
        totals.held = self.held.load(Ordering::Relaxed);
        totals.refused = self.refused.load(Ordering::Relaxed);
        for publisher in publishers.values() {
            totals.received += publisher.received.amount();
            totals.denied += publisher.grant.denied();
        }
        for subscriber in subscribers.values() {
            subscriber.add_to(&mut totals);
        }
        totals
    }

    pub(super) fn publishers(&self) -> Vec<PublisherStats> {
        let publishers: Vec<_> = lock(&self.publishers).values().cloned().collect();
        publishers
            .iter()
            // Upstreams are told apart.
            .filter(|publisher| publisher.arrival.is_none())
            .map(|publisher| PublisherStats {
                id: publisher.id,
                peer: publisher.peer.to_string(),
                connected_for: publisher.since.elapsed(),
                received: publisher.received.amount(),
                principal: publisher.grant.principal(),
                denied: publisher.grant.denied(),
                left_for: publisher.place.left_for(),
            })
            .collect()
    }

    /// Has publishers that wait for a subscriber look again whether they must.
    pub(super) fn reconsider(&self) {
        for subscriber in lock(&self.subscribers).values() {
            subscriber.send_queue.reconsider();
        }
    }

    pub(super) fn subscribers(&self, default: Rule) -> Vec<SubscriberStats> {
        // Whoever connects meanwhile need not wait for the counting.
        let subscribers: Vec<_> = lock(&self.subscribers).values().cloned().collect();
        subscribers.iter().map(|subscriber| subscriber.stats(default)).collect()
    }
}
