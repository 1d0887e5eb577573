//! All peers that are connected to the switch, and the counts of those that have left.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use xmsg_zmq::link::ending::end_some_at_a_time;
use xmsg_zmq::lock::lock;

use super::Totals;
use super::held_messages::HeldMessages;
use super::log_throttles::LogThrottles;
use super::peer_stats::{PublisherStats, SubscriberStats};
use super::publisher::ConnectedPublisher;
use super::subscriber::ConnectedSubscriber;
use crate::policy::Rule;

/// All peers that are connected, and the counts of those that have left.
#[derive(Debug, Default)]
pub(super) struct ConnectedPeers {
    publishers: Mutex<BTreeMap<u32, Arc<ConnectedPublisher>>>,
    subscribers: Mutex<BTreeMap<u32, Arc<ConnectedSubscriber>>>,
    gone: Mutex<Totals>,
    pub(super) unmatched: AtomicU64,
    /// The number of messages that subscribers did not get because a publisher's connection ended while it
    /// waited for them, or because they were leaving.
    lost: AtomicU64,
    /// The number of messages in the hands of publishers that wait for subscribers.
    held: AtomicU64,
    refused: AtomicU64,
    subscriber_count: AtomicUsize,
    /// Notified when a subscriber has left.
    left: Notify,
    pub(super) log_throttles: Arc<LogThrottles>,
}

impl ConnectedPeers {
    pub(super) fn add_publisher(&self, publisher: &Arc<ConnectedPublisher>) {
        lock(&self.publishers).insert(publisher.id, publisher.clone());
        // The rules may have changed while the publisher was being admitted.
        publisher.authorization.revoke_if_not_admitted(&publisher.peer);
    }

    pub(super) fn add_subscriber(&self, subscriber: &Arc<ConnectedSubscriber>) {
        lock(&self.subscribers).insert(subscriber.id, subscriber.clone());
        subscriber.authorization.revoke_if_not_admitted(&subscriber.peer);
        self.subscriber_count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove_publisher(&self, publisher: &ConnectedPublisher) {
        // Both locks are held together, so that a snapshot counts the connection exactly once.
        let mut publishers = lock(&self.publishers);
        let mut gone = lock(&self.gone);
        if publishers.remove(&publisher.id).is_some() {
            gone.received += publisher.received.amount();
            gone.denied += publisher.authorization.denied();
            gone.crowded_out += u64::from(publisher.place.is_given_away());
        }
    }

    pub(super) fn remove_subscriber(&self, subscriber: &ConnectedSubscriber) {
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
            gone.disconnected += u64::from(subscriber.disconnected.is_cancelled());
            let dropped = subscriber.drops().total().messages;
            if undelivered + dropped > 0
                && let Some(unlogged) =
                    self.log_throttles.left.pass("subscribers that left before all had reached them")
            {
                tracing::info!(peer = %subscriber.peer, undelivered, dropped, unlogged, "a subscriber left: not all messages reached it");
            }
        }
        self.left.notify_waiters();
    }

    /// Counts messages that were received and that subscribers do not get.
    pub(super) fn lose(&self, messages: u64) {
        self.lost.fetch_add(messages, Ordering::Relaxed);
    }

    /// Counts messages as in the hands of a publisher that waits, for as long as the returned value lives.
    pub(super) fn hold(&self, messages: u64) -> HeldMessages<'_> {
        HeldMessages::new(&self.held, messages)
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn close_publishers(&self) {
        for publisher in lock(&self.publishers).values() {
            publisher.send_queue.close();
        }
    }

    pub(super) fn disconnect_publishers(&self) {
        for publisher in lock(&self.publishers).values() {
            publisher.disconnected.cancel();
        }
    }

    /// Returns the publisher or the subscriber with this number, if there is one.
    pub(super) fn find(
        &self,
        id: u32,
    ) -> (Option<Arc<ConnectedPublisher>>, Option<Arc<ConnectedSubscriber>>) {
        (lock(&self.publishers).get(&id).cloned(), lock(&self.subscribers).get(&id).cloned())
    }

    /// Ends the connections of peers that the rules no longer admit.
    pub(super) async fn revoke_not_admitted(&self) {
        // The locks are not held meanwhile: every peer that comes or goes needs them.
        let publishers: Vec<_> = lock(&self.publishers).values().cloned().collect();
        let end = |peer: &Arc<ConnectedPublisher>| peer.authorization.revoke_if_not_admitted(&peer.peer);
        end_some_at_a_time(&publishers, end, |peer| !lock(&self.publishers).contains_key(&peer.id)).await;
        let subscribers: Vec<_> = lock(&self.subscribers).values().cloned().collect();
        let end = |peer: &Arc<ConnectedSubscriber>| peer.authorization.revoke_if_not_admitted(&peer.peer);
        end_some_at_a_time(&subscribers, end, |peer| !lock(&self.subscribers).contains_key(&peer.id)).await;
    }

    /// Returns the number of connected subscribers.
    pub(super) fn subscriber_count(&self) -> usize {
        self.subscriber_count.load(Ordering::Relaxed)
    }

    pub(super) fn close_subscribers(&self) {
        for subscriber in lock(&self.subscribers).values() {
            // The last count is sent, too. A subscriber that does not read it does not need it.
            subscriber.report_drops();
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
            totals.denied += publisher.authorization.denied();
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
            // Upstreams are listed apart from publishers.
            .filter(|publisher| publisher.arrival.is_none())
            .map(|publisher| PublisherStats {
                id: publisher.id,
                peer: publisher.peer.to_string(),
                connected_for: publisher.since.elapsed(),
                received: publisher.received.amount(),
                principal: publisher.authorization.principal_text(),
                denied: publisher.authorization.denied(),
                left_for: publisher.place.left_for(),
            })
            .collect()
    }

    /// Makes publishers that wait for a subscriber check again whether they have to wait.
    pub(super) fn reconsider(&self) {
        for subscriber in lock(&self.subscribers).values() {
            subscriber.send_queue.reconsider();
        }
    }

    pub(super) fn subscribers(&self, default: Rule) -> Vec<SubscriberStats> {
        // The lock is not held while the statistics are collected, so that peers can connect meanwhile.
        let subscribers: Vec<_> = lock(&self.subscribers).values().cloned().collect();
        subscribers.iter().map(|subscriber| subscriber.stats(default)).collect()
    }
}
