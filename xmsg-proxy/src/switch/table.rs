//! Who subscribed to what: one table of prefixes, changed by one task, read by every inlet.
//!
//! Connections send [`Change`]s over a bounded channel. The task applies many at once, then raises the *epoch*: inlets
//! notice and forget what they had looked up. After that it tells the publishers what is newly wanted, or no longer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, mpsc, oneshot};
use xmsg_core::prefixes::{PrefixId, PrefixTable};
use xmsg_core::socket::session::{Batch, Ended, Handler};
use xmsg_core::zmtp::{Limits, Version};

use super::peers::{Publisher, Subscriber};
use crate::CONTROL_TOPIC;
use crate::config::Upstream;
use crate::policy::Policies;

/// Changes that wait to be applied; whoever sends more waits.
const CHANGES: usize = 1024;
/// Changes applied under one lock.
const BATCH: usize = 256;
/// Subscriptions of a subscriber that left that are taken away under one lock.
const FORGET: usize = 1024;

/// Changes that a snapshot takes in any case, bytes.
const SNAPSHOT_MIN: usize = 64 << 10;
/// Pieces of a snapshot; then the changes are put together.
const SNAPSHOT_PARTS: usize = 64;
/// Places of the table that are looked at under one lock when all of it is listed.
const LISTED: usize = 1024;

/// Something that happened to a connection.
#[derive(Debug)]
pub(super) enum Change {
    Subscribe(Arc<Subscriber>, Bytes),
    Cancel(Arc<Subscriber>, Bytes),
    SubscriberGone(u32),
    PublisherJoined(Arc<Publisher>),
    PublisherGone(u32),
    /// Other rules are in force.
    Enforce,
    Policies(Arc<Policies>),
    /// Answered with all publishers once everything before it is applied.
    Synchronize(oneshot::Sender<Vec<Arc<Publisher>>>),
}

/// What inlets see.
#[derive(Debug)]
pub(super) struct Table {
    routes: RwLock<Routes>,
    epoch: AtomicU64,
    changes: mpsc::Sender<Change>,
    changed: Notify,
}

#[derive(Debug)]
pub(super) struct Routes {
    prefixes: PrefixTable<u32>,
    subscribers: HashMap<u32, Arc<Subscriber>>,
    policies: Arc<Policies>,
}

impl Routes {
    /// The subscribers of these topics, each with the number of the topic, once and in a fixed order.
    pub(super) fn find_each(&self, topics: &[&[u8]]) -> Vec<(usize, u32)> {
        let mut found = Vec::new();
        self.prefixes.find_each(topics, |topic, subscribers| {
            found.extend(subscribers.iter().map(|subscriber| (topic, *subscriber)));
        });
        // Unless they come from one prefix for each topic.
        if !found.is_sorted_by(|one, next| one < next) {
            found.sort_unstable();
            found.dedup();
        }
        found
    }

    pub(super) fn longest_prefix(&self) -> usize {
        self.prefixes.longest_prefix()
    }

    pub(super) fn policies(&self) -> &Arc<Policies> {
        &self.policies
    }

    pub(super) fn subscriber(&self, id: u32) -> Option<&Arc<Subscriber>> {
        self.subscribers.get(&id)
    }
}

impl Table {
    pub(super) fn new(upstream: Upstream, policies: Policies) -> (Arc<Self>, TableTask) {
        let (changes, receiver) = mpsc::channel(CHANGES);
        let routes = Routes {
            prefixes: PrefixTable::new(),
            subscribers: HashMap::new(),
            policies: Arc::new(policies),
        };
        let table = Arc::new(Self {
            routes: RwLock::new(routes),
            epoch: AtomicU64::new(0),
            changes,
            changed: Notify::new(),
        });
        let task = TableTask {
            table: table.clone(),
            changes: receiver,
            upstream,
            own: HashMap::new(),
            publishers: BTreeMap::new(),
            snapshots: HashMap::new(),
        };
        (table, task)
    }

    /// Changes whenever subscriptions or policies do. What was read from the table under one epoch holds until it changes.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn routes(&self) -> RwLockReadGuard<'_, Routes> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes inlets forget what they looked up. Called under the lock for writing.
    fn advance(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
    }

    fn routes_mut(&self) -> RwLockWriteGuard<'_, Routes> {
        self.routes.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until somebody is subscribed to just this prefix.
    pub(super) async fn subscribed(&self, prefix: &[u8]) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.routes().prefixes.id(prefix).is_some() {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn subscriptions(&self) -> usize {
        self.routes().prefixes.len()
    }

    /// Calls `found` with every prefix and its number of subscribers. The lock is let go of between parts, so that inlets and
    /// changes get their turn.
    pub(super) fn prefixes(&self, mut found: impl FnMut(Vec<u8>, usize)) {
        let mut part = Vec::new();
        for start in (0..).step_by(LISTED) {
            {
                let routes = self.routes();
                if start >= routes.prefixes.places() {
                    return;
                }
                let some = routes.prefixes.prefixes_within(start..start + LISTED);
                part.extend(some.map(|(prefix, subscribers)| (prefix.to_vec(), subscribers)));
            }
            part.drain(..).for_each(|(prefix, subscribers)| found(prefix, subscribers));
        }
    }

    pub(super) async fn change(&self, change: Change) {
        // It fails only after the switch has stopped; then there is nothing left to change.
        let _ = self.changes.send(change).await;
    }

    /// Waits until everything that was sent before is applied; returns the publishers.
    pub(super) async fn synchronize(&self) -> Vec<Arc<Publisher>> {
        let (sender, receiver) = oneshot::channel();
        self.change(Change::Synchronize(sender)).await;
        receiver.await.unwrap_or_default()
    }
}

/// The task that owns the table.
#[derive(Debug)]
pub(super) struct TableTask {
    table: Arc<Table>,
    changes: mpsc::Receiver<Change>,
    upstream: Upstream,
    /// Each subscriber's subscriptions.
    own: HashMap<u32, HashSet<PrefixId>>,
    /// In a fixed order, so that a simulation can repeat what it did.
    publishers: BTreeMap<u32, Arc<Publisher>>,
    /// All that is wanted, encoded for new publishers of each version.
    snapshots: HashMap<Version, Snapshot>,
}

/// What publishers that join are told. It is made anew only once more has changed than there was: publishers that join and do not
/// read share its memory, however much changes between them.
#[derive(Debug)]
struct Snapshot {
    /// What was wanted at first, and the changes since.
    parts: Vec<Bytes>,
    /// The last of the changes, not yet a part.
    recent: BytesMut,
    /// Bytes of all changes.
    changes: usize,
}

impl Snapshot {
    fn new(wanted: Bytes) -> Self {
        Self { parts: vec![wanted], recent: BytesMut::new(), changes: 0 }
    }

    /// Adds changes; `false`: it is time for a new one.
    fn note(&mut self, changes: &[u8]) -> bool {
        self.changes += changes.len();
        self.recent.extend_from_slice(changes);
        self.changes <= self.parts[0].len().max(SNAPSHOT_MIN)
    }

    /// All of it, in this order.
    fn parts(&mut self) -> &[Bytes] {
        if !self.recent.is_empty() {
            self.parts.push(Bytes::copy_from_slice(&self.recent));
            self.recent.clear();
        }
        if self.parts.len() > SNAPSHOT_PARTS {
            let changes = self.parts.drain(1..).fold(BytesMut::new(), |mut all, part| {
                all.extend_from_slice(&part);
                all
            });
            self.parts.push(changes.freeze());
        }
        &self.parts
    }
}

/// A prefix that somebody newly wants (`true`), or that nobody wants any more.
type Tidings = Vec<(bool, Bytes)>;

impl TableTask {
    /// Applies changes for as long as there is a table.
    pub(super) async fn run(&mut self) {
        let mut changes = Vec::with_capacity(BATCH);
        while self.changes.recv_many(&mut changes, BATCH).await > 0 {
            let mut changes = changes.drain(..).peekable();
            while changes.peek().is_some() {
                // A publisher that joins must be told what is in the table at that very place in the sequence.
                let mut tidings = Tidings::new();
                let mut next = None;
                {
                    let mut routes = self.table.routes_mut();
                    let mut differs = false;
                    for change in changes.by_ref() {
                        match change {
                            Change::Subscribe(subscriber, prefix) => {
                                differs |=
                                    subscribe(&mut routes, &mut self.own, &subscriber, prefix, &mut tidings);
                            }
                            Change::Cancel(subscriber, prefix) => {
                                differs |=
                                    cancel(&mut routes, &mut self.own, &subscriber, &prefix, &mut tidings);
                            }
                            Change::Policies(policies) => {
                                routes.policies = policies;
                                differs = true;
                            }
                            other => {
                                next = Some(other);
                                break;
                            }
                        }
                    }
                    if differs {
                        self.table.advance();
                    }
                }
                self.tell(&tidings);
                match next {
                    Some(Change::SubscriberGone(id)) => self.forget(id).await,
                    Some(Change::Enforce) => self.enforce().await,
                    Some(Change::PublisherJoined(publisher)) => self.welcome(publisher),
                    Some(Change::PublisherGone(id)) => drop(self.publishers.remove(&id)),
                    Some(Change::Synchronize(answer)) => {
                        // Whoever asked may have gone.
                        let _ = answer.send(self.publishers.values().cloned().collect());
                    }
                    _ => {}
                }
            }
        }
    }

    /// Lets everybody go who waits for an answer.
    pub(super) fn drain(&mut self) {
        self.changes.close();
        while self.changes.try_recv().is_ok() {}
    }

    fn tell(&mut self, tidings: &Tidings) {
        if tidings.is_empty() {
            return;
        }
        if self.upstream == Upstream::All {
            return;
        }
        // Encoded once for each version; the bytes are shared.
        let mut encoded: HashMap<Version, Bytes> = HashMap::new();
        for publisher in self.publishers.values() {
            let bytes = encoded.entry(publisher.version).or_insert_with(|| {
                let mut bytes = BytesMut::new();
                for (subscribe, prefix) in tidings {
                    publisher.version.write_subscription(&mut bytes, *subscribe, prefix);
                }
                bytes.freeze()
            });
            publisher.send(bytes);
        }
        self.snapshots
            .retain(|version, snapshot| encoded.get(version).is_some_and(|changes| snapshot.note(changes)));
    }

    /// Tells a new publisher everything that is wanted, the control topic last: a control request from it proves that it
    /// knows all the rest.
    fn welcome(&mut self, publisher: Arc<Publisher>) {
        let (version, upstream, table) = (publisher.version, self.upstream, &self.table);
        let snapshot = self.snapshots.entry(version).or_insert_with(|| {
            let mut bytes = BytesMut::new();
            if upstream == Upstream::All {
                version.write_subscription(&mut bytes, true, &Bytes::new());
            } else {
                for (prefix, _) in table.routes().prefixes.prefixes() {
                    if prefix != CONTROL_TOPIC {
                        version.write_subscription(&mut bytes, true, &Bytes::copy_from_slice(prefix));
                    }
                }
            }
            Snapshot::new(bytes.freeze())
        });
        let mut control = BytesMut::new();
        version.write_subscription(&mut control, true, &Bytes::from_static(CONTROL_TOPIC));
        publisher.welcome(snapshot.parts(), &control.freeze());
        self.publishers.insert(publisher.id, publisher);
    }

    /// Takes away the subscriptions that are not allowed any more, and has inlets ask for their rights anew.
    async fn enforce(&mut self) {
        {
            let _routes = self.table.routes_mut();
            self.table.advance();
        }
        let subscribers: Vec<_> = self.table.routes().subscribers.values().cloned().collect();
        for subscriber in subscribers {
            let rights = subscriber.grant.rights().unwrap_or_default();
            if rights.may_subscribe(b"") {
                continue;
            }
            let own: Vec<PrefixId> = self.own.get(&subscriber.id).into_iter().flatten().copied().collect();
            for part in own.chunks(FORGET) {
                let mut tidings = Tidings::new();
                {
                    let mut routes = self.table.routes_mut();
                    let mut differs = false;
                    for id in part {
                        let prefix = Bytes::copy_from_slice(routes.prefixes.prefix(*id));
                        if !rights.may_subscribe(&prefix) {
                            subscriber.grant.deny(&subscriber.peer, "subscribe", &prefix, 1);
                            differs |= cancel(&mut routes, &mut self.own, &subscriber, &prefix, &mut tidings);
                        }
                    }
                    if differs {
                        self.table.advance();
                    }
                }
                self.tell(&tidings);
                tokio::task::yield_now().await;
            }
        }
    }

    /// Takes away all that a subscriber wanted, a part at a time, so that others get their turn.
    async fn forget(&mut self, id: u32) {
        self.table.routes_mut().subscribers.remove(&id);
        let Some(own) = self.own.remove(&id) else { return };
        let mut own: Vec<PrefixId> = own.into_iter().collect();
        // For the same reason.
        own.sort_unstable();
        for part in own.chunks(FORGET) {
            let mut tidings = Tidings::new();
            {
                let mut routes = self.table.routes_mut();
                for prefix in part {
                    if let Some(prefix) = routes.prefixes.remove(*prefix, id) {
                        tidings.push((false, prefix.into()));
                    }
                }
                self.table.advance();
            }
            self.tell(&tidings);
            tokio::task::yield_now().await;
        }
    }
}

type Own = HashMap<u32, HashSet<PrefixId>>;

fn subscribe(
    routes: &mut Routes,
    own: &mut Own,
    subscriber: &Arc<Subscriber>,
    prefix: Bytes,
    tidings: &mut Tidings,
) -> bool {
    if !subscriber.grant.rights().is_some_and(|rights| rights.may_subscribe(&prefix)) {
        subscriber.grant.deny(&subscriber.peer, "subscribe", &prefix, 1);
        return false;
    }
    let len = prefix.len();
    let inserted = routes.prefixes.insert(&prefix, subscriber.id);
    if inserted.is_first {
        tidings.push((true, prefix));
    }
    if inserted.is_new {
        own.entry(subscriber.id).or_default().insert(inserted.prefix);
        routes.subscribers.entry(subscriber.id).or_insert_with(|| subscriber.clone());
        subscriber.subscriptions.fetch_add(1, Ordering::Relaxed);
        subscriber.subscription_bytes.fetch_add(len, Ordering::Relaxed);
    }
    inserted.is_new
}

fn cancel(
    routes: &mut Routes,
    own: &mut Own,
    subscriber: &Subscriber,
    prefix: &Bytes,
    tidings: &mut Tidings,
) -> bool {
    let Some(id) = routes.prefixes.id(prefix) else { return false };
    if !own.get_mut(&subscriber.id).is_some_and(|own| own.remove(&id)) {
        return false;
    }
    if routes.prefixes.remove(id, subscriber.id).is_some() {
        tidings.push((false, prefix.clone()));
    }
    subscriber.subscriptions.fetch_sub(1, Ordering::Relaxed);
    subscriber.subscription_bytes.fetch_sub(prefix.len(), Ordering::Relaxed);
    true
}

/// What a subscriber says.
pub(super) struct Subscriptions<'a> {
    table: &'a Table,
    subscriber: &'a Arc<Subscriber>,
    limits: &'a Limits,
    /// How often it subscribed since its subscriptions were last counted, and their number then.
    asked: usize,
    /// The same in bytes.
    asked_bytes: usize,
}

impl<'a> Subscriptions<'a> {
    pub(super) fn new(table: &'a Table, subscriber: &'a Arc<Subscriber>, limits: &'a Limits) -> Self {
        Self { table, subscriber, limits, asked: 0, asked_bytes: 0 }
    }

    fn is_too_much(&self) -> bool {
        self.asked > self.limits.subscriptions || self.asked_bytes > self.limits.subscription_bytes
    }
}

impl Handler for Subscriptions<'_> {
    async fn messages(&mut self, _: Batch<'_>) -> Result<(), Ended> {
        // The engine of an XPUB hands out subscriptions only.
        Ok(())
    }

    async fn subscription(&mut self, subscribe: bool, prefix: Bytes) -> Result<(), Ended> {
        let subscriber = self.subscriber.clone();
        if !subscribe {
            self.table.change(Change::Cancel(subscriber, prefix)).await;
            return Ok(());
        }
        self.asked += 1;
        self.asked_bytes += prefix.len();
        if self.is_too_much() {
            // Some may have been for the same prefix: only the table knows.
            self.table.synchronize().await;
            self.asked = subscriber.subscriptions.load(Ordering::Relaxed) + 1;
            self.asked_bytes = subscriber.subscription_bytes.load(Ordering::Relaxed) + prefix.len();
            if self.is_too_much() {
                return Err(self.limits.too_many(self.asked, self.asked_bytes).into());
            }
        }
        self.table.change(Change::Subscribe(subscriber, prefix)).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_what_there_was_and_all_changes_in_order() {
        let mut snapshot = Snapshot::new(Bytes::from_static(b"first"));
        let mut expected = b"first".to_vec();
        for round in 0..3 * SNAPSHOT_PARTS as u8 {
            for change in [round, round + 1] {
                assert!(snapshot.note(&[change]));
                expected.push(change);
            }
            assert_eq!(snapshot.parts().concat(), expected);
            assert!(snapshot.parts().len() <= SNAPSHOT_PARTS + 1);
        }
        assert!(!snapshot.note(&vec![0; SNAPSHOT_MIN]), "more has changed than there was");
    }
}
