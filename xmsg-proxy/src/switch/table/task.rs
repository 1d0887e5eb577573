//! The task that owns the table.
//!
//! Work that takes long is a job: it is done in slices, one for each kind of job in turn, and changes are
//! applied in between. So nobody who connects, subscribes or asks for a confirmation waits for others that
//! leave with a million subscriptions.

// Longer than 500 lines: one loop with its state. Joining, notifying and enforcing are in modules beside it.

mod enforcing;
mod joining;
mod notifying;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::prefixes::{PrefixId, heads};
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};
use xmsg_zmq::deadline::later;
use xmsg_zmq::link::session::now;
use xmsg_zmq::memory_budget::{Claim, MemoryBudget};
use xmsg_zmtp::Version;

use super::notifications::Notifications;
use super::own_prefixes::{OwnPrefixes, RemovedPrefix, Subscribed, TableAccess};
use super::scope::Scope;
use super::snapshot::Snapshot;
use super::tokens::Tokens;
use super::{Change, Pacing, Routes, Table};
use crate::config::PublishersSend;
use crate::switch::publisher::ConnectedPublisher;
use crate::switch::subscriber::ConnectedSubscriber;
use crate::switch::token_bucket::TokenBucket;

/// The number of changes that are applied under one lock.
const BATCH: usize = 256;
/// The part of a job that is done under one lock: this many short prefixes, or fewer long ones.
const SLICE: usize = 512;
/// The part of the work caused by a change that is done at once. The rest is a job.
const AT_ONCE: usize = 64;
/// The divisor of the memory budget that yields the part that has to be free. Without it, the prefixes of
/// subscribers that left are not kept until publishers have read.
const MEMORY_KEPT: usize = 8;
/// The time between checks whether publishers have read what was sent.
const PACE: Duration = Duration::from_millis(1);
/// The additional time for each publisher that has not: many times what a check takes, however many they are.
const PACE_OF_EACH: Duration = Duration::from_micros(2);
/// The approximate number of bytes that a prefix takes beside its text.
const PREFIX: usize = 130;
/// The number of bytes that a head takes if no other prefix has it.
const HEAD: usize = 16;
/// The approximate number of bytes that a pair of a subscriber and a prefix takes.
const PAIR: usize = 24;
/// The steps in bytes in which a subscriber's subscriptions count in the memory budget.
const MEMORY_STEP: usize = 4 << 10;
/// The steps in bytes if the subscriptions are many.
const MEMORY_STEP_LARGE: usize = 64 << 10;

/// The bytes of notifications, for all publishers together, that are sent in a second. Once there are more,
/// subscribers that flood the table with changes wait.
const NOTIFIED_PER_SECOND: f64 = 67_108_864.0;
/// The bytes that a change counts for beside its prefix in these.
const NOTIFIED_CHANGE: usize = 16;

/// Publishers are notified of changes at once if there are no more of them than this.
const FEW: usize = 64;
/// The bytes of changes above which the prefixes of subscribers that left are not added to the notifications.
const NOTIFICATIONS_ENOUGH: usize = notifying::NOTIFICATIONS_MAX / 4;

/// The state of the task.
#[derive(Debug)]
pub(in crate::switch) struct TableTask {
    pub(super) table: Arc<Table>,
    changes: mpsc::Receiver<Change>,
    publishers_send: PublishersSend,
    /// The subscriptions of each subscriber.
    own: HashMap<u32, OwnPrefixes>,
    /// The publishers in a fixed order, so that a simulation can be repeated.
    publishers: BTreeMap<u32, PublisherEntry>,
    pub(super) backlog: Backlog,
    /// The groups of publishers that are sent the same, by their number.
    audiences: BTreeMap<u32, Audience>,
    next_audience: u32,
    jobs: Jobs,
    notifications: Notifications,
    /// The limit of the bytes of all notifications.
    pub(super) notified: TokenBucket,
    pub(super) tokens: Tokens,
    /// The number of publishers up to which they are [few](FEW).
    few: usize,
    pub(super) memory: MemoryBudget,
    /// The claim for the memory of the prefixes themselves, whoever subscribed to them.
    prefixes: Claim,
}

/// The work that is done in slices.
#[derive(Debug, Default)]
struct Jobs {
    /// Subscribers with prefixes that are to become active or covered.
    sorting: VecDeque<Arc<ConnectedSubscriber>>,
    /// The prefixes of subscribers that have left.
    leaving: VecDeque<(u32, OwnPrefixes)>,
    /// Publishers that are being sent all wanted prefixes.
    joining: VecDeque<Joining>,
    /// Subscribers whose subscriptions are yet to be checked against their rights.
    enforcing: VecDeque<Enforcing>,
    /// Answers that wait until the last of them is checked, and publishers were sent the prefixes that their
    /// rights allow now.
    waiting: Vec<Synchronizing>,
    /// Subscribers that wait until they may make more changes.
    pacing: Vec<Pacing>,
}

impl Jobs {
    fn is_empty(&self) -> bool {
        !self.has_urgent() && self.leaving.is_empty() && self.pacing.is_empty()
    }

    /// Returns whether there is work that does not wait for publishers to read.
    fn has_urgent(&self) -> bool {
        !(self.sorting.is_empty() && self.joining.is_empty() && self.enforcing.is_empty())
    }
}

/// Publishers that have to be watched whether they read what they were sent. Most of the time there is none
/// among thousands.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    publishers: BTreeMap<u32, Arc<ConnectedPublisher>>,
    /// Until this time, the result of the last check holds.
    look_from: Option<Instant>,
}

impl Backlog {
    /// Adds a publisher that was sent something, if much waits for it.
    pub(super) fn note(&mut self, publisher: &Arc<ConnectedPublisher>) {
        if publisher.may_be_behind() && publisher.is_behind() {
            self.publishers.insert(publisher.id, publisher.clone());
        }
    }

    /// Returns whether a publisher that reads has yet to read much of what it was sent.
    fn is_there(&mut self) -> bool {
        if self.publishers.is_empty() || self.look_from.is_some_and(|from| now() < from) {
            return !self.publishers.is_empty();
        }
        // Each publisher is checked, so that the time of each runs.
        self.publishers.retain(|_, publisher| publisher.is_behind());
        self.look_from = Some(later(now(), self.pace()));
        !self.publishers.is_empty()
    }

    /// Returns the time until the next check.
    fn pace(&self) -> Duration {
        PACE + PACE_OF_EACH * u32::try_from(self.publishers.len()).unwrap_or(u32::MAX)
    }
}

/// Publishers that are sent the same bytes in the same [form], and the snapshot for those that join.
#[derive(Debug)]
struct Audience {
    snapshot: Snapshot,
    publishers: usize,
}

/// A publisher, and the number of its audience.
#[derive(Debug)]
struct PublisherEntry {
    publisher: Arc<ConnectedPublisher>,
    audience: u32,
}

/// A publisher that is being sent the snapshot, and the part that comes next.
#[derive(Debug)]
struct Joining {
    entry: PublisherEntry,
    next: usize,
    before: PreviousSnapshot,
}

/// The state that a publisher that is being sent the snapshot knew before.
#[derive(Debug)]
enum PreviousSnapshot {
    Nothing,
    /// The prefixes that concerned it under other rights.
    Scope(Option<Scope>),
}

/// A task that waits until all changes before its request are applied, and this round of notifications is
/// sent.
#[derive(Debug)]
struct Synchronizing {
    round: u64,
    answer: oneshot::Sender<Vec<Arc<ConnectedPublisher>>>,
}

/// A subscriber, and the last of its subscriptions that was checked.
#[derive(Debug)]
struct Enforcing {
    subscriber: Arc<ConnectedSubscriber>,
    checked: Option<Vec<u8>>,
}

/// A prefix that is newly wanted, or that nobody wants any more.
#[derive(Debug)]
pub(super) struct SubscriptionChange {
    pub(super) subscribe: bool,
    pub(super) prefix: Bytes,
    id: PrefixId,
}

/// All changes that are to be sent, in this order.
pub(super) type SubscriptionChanges = Vec<SubscriptionChange>;

fn cancelled(gone: impl IntoIterator<Item = RemovedPrefix>) -> impl Iterator<Item = SubscriptionChange> {
    gone.into_iter().map(|(id, prefix)| SubscriptionChange { subscribe: false, prefix: prefix.into(), id })
}

impl TableTask {
    pub(super) fn new(
        table: Arc<Table>,
        changes: mpsc::Receiver<Change>,
        publishers_send: PublishersSend,
        memory: MemoryBudget,
    ) -> Self {
        Self {
            table,
            changes,
            publishers_send,
            own: HashMap::new(),
            publishers: BTreeMap::new(),
            backlog: Backlog::default(),
            audiences: BTreeMap::new(),
            next_audience: 0,
            jobs: Jobs::default(),
            notifications: Notifications::default(),
            notified: TokenBucket::new(NOTIFIED_PER_SECOND),
            tokens: Tokens::new(),
            few: FEW,
            prefixes: memory.claim_shared(),
            memory,
        }
    }

    /// Applies changes for as long as there is a table.
    pub(in crate::switch) async fn run(&mut self) {
        let mut changes = Vec::with_capacity(BATCH);
        let mut pause = None;
        loop {
            let received = match pause.take() {
                _ if self.is_idle() => Some(self.changes.recv_many(&mut changes, BATCH).await),
                None => self.changes.recv_many(&mut changes, BATCH).now_or_never(),
                Some(pause) => {
                    tokio::time::timeout(pause, self.changes.recv_many(&mut changes, BATCH)).await.ok()
                }
            };
            if received == Some(0) {
                return;
            }
            self.apply(&mut changes);
            if !self.is_idle() {
                pause = self.work();
                tokio::task::yield_now().await;
            }
        }
    }

    /// Returns whether there is nothing to do but to wait for changes.
    fn is_idle(&self) -> bool {
        self.jobs.is_empty()
            && self.notifications.is_empty()
            && !self.notifications.is_being_told()
            && !self.tokens.has_work()
    }

    /// Answers all tasks that wait.
    pub(in crate::switch) fn drain(&mut self) {
        self.changes.close();
        while self.changes.try_recv().is_ok() {}
    }

    fn apply(&mut self, changes: &mut Vec<Change>) {
        let mut changes = changes.drain(..).peekable();
        while changes.peek().is_some() {
            // A publisher that joins must be sent the state of the table at that very place in the sequence.
            let mut net_changes = SubscriptionChanges::new();
            let mut next = None;
            {
                let table = self.table.clone();
                let mut routes = table.routes_mut();
                let mut differs = false;
                let mut left = SLICE;
                for change in changes.by_ref() {
                    match change {
                        Change::Subscribe(subscriber, prefix) => {
                            differs |= self.subscribe(&mut routes, &subscriber, prefix, &mut net_changes);
                            differs |= self.sort(&mut routes, &subscriber, &mut left, &mut net_changes);
                        }
                        Change::Cancel(subscriber, prefix) => {
                            differs |= self.cancel(&mut routes, &subscriber, &prefix, &mut net_changes);
                            differs |= self.sort(&mut routes, &subscriber, &mut left, &mut net_changes);
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
                    table.advance();
                }
            }
            self.notify(net_changes);
            match next {
                Some(Change::SubscriberGone(id)) => {
                    self.forget_tokens(id);
                    self.forget(id);
                }
                Some(Change::Token(subscribe, subscriber, token)) => {
                    self.change_token(subscribe, &subscriber, token);
                }
                Some(Change::TokensWanted(publisher)) => self.tell_tokens(&publisher),
                Some(Change::Enforce) => self.enforce(),
                Some(Change::PublisherJoined(publisher)) => {
                    self.tell_forwarder(&publisher);
                    self.publisher_joined(publisher);
                }
                Some(Change::PublisherGone(id)) => {
                    self.tell_no_more_tokens(id);
                    self.publisher_left(id);
                }
                Some(Change::Synchronize(answer)) => {
                    self.jobs.waiting.push(Synchronizing { round: self.notifications.needed(), answer });
                    self.answer();
                }
                Some(Change::Pace(pacing)) => {
                    self.jobs.pacing.push(Pacing { round: self.notifications.needed(), ..pacing });
                }
                _ => {}
            }
        }
    }

    /// Does a slice of each kind of job. Returns how long to wait for changes before the next slice, or
    /// `None` if it is due at once.
    fn work(&mut self) -> Option<Duration> {
        self.sort_slice();
        self.enforce_slice();
        self.join_slice();
        self.notify_slice();
        self.send_slice_of_tokens();
        let mut pause = self.notifications.due_in().unwrap_or(Duration::MAX).min(self.tokens.due_in());
        if (!self.jobs.leaving.is_empty() || !self.jobs.pacing.is_empty()) && self.release_waiting(&mut pause)
        {
            return None;
        }
        let are_being_told = self.notifications.is_being_told() || self.tokens.are_being_sent();
        (!self.jobs.has_urgent() && !are_being_told).then_some(pause)
    }

    /// Releases subscribers that waited until they may make more changes, and removes a slice of the prefixes
    /// of subscribers that left. Returns `false` if there is no more to do before this `pause` is over.
    fn release_waiting(&mut self, pause: &mut Duration) -> bool {
        let are_behind = self.backlog.is_there();
        let is_too_much_in = self.notified.take(0.0, now());
        let is_too_much = !is_too_much_in.is_zero();
        let (own, notifications) = (&self.own, &self.notifications);
        let has_much_to_tell = notifications.bytes() > NOTIFICATIONS_ENOUGH;
        let is_done = |pacing: &mut Pacing| {
            let is_told = !has_much_to_tell || notifications.is_told(pacing.round);
            !(pacing.is_flood && (are_behind || is_too_much || !is_told))
                && own.get(&pacing.subscriber.id).is_none_or(|own| !own.has_work())
        };
        for pacing in self.jobs.pacing.extract_if(.., is_done) {
            // The task that waited may have ended.
            let _ = pacing.answer.send(());
        }
        // Without room, the prefixes of subscribers that left are removed sooner, as long as no publisher
        // that reads would be disconnected for it.
        let has_room = self.memory.has_room(self.memory.limit() / MEMORY_KEPT);
        let may_wait = self.jobs.leaving.is_empty() || has_room;
        let mut behind = self.backlog.publishers.values();
        if are_behind && (may_wait || behind.any(|publisher| publisher.is_far_behind())) {
            *pause = self.backlog.pace().min(*pause);
            return false;
        }
        if is_too_much && may_wait {
            *pause = is_too_much_in.min(*pause);
            return false;
        }
        if self.jobs.leaving.is_empty() || (self.notifications.bytes() > NOTIFICATIONS_ENOUGH && has_room) {
            return false;
        }
        self.forget_slice();
        true
    }

    fn sort_slice(&mut self) {
        let Some(subscriber) = self.jobs.sorting.pop_front() else { return };
        let (mut net_changes, mut left) = (SubscriptionChanges::new(), SLICE);
        {
            let table = self.table.clone();
            let mut routes = table.routes_mut();
            if self.step(&mut routes, &subscriber, &mut left, &mut net_changes) {
                table.advance();
            }
        }
        self.notify(net_changes);
    }

    /// Removes a subscriber with all its subscriptions.
    fn forget(&mut self, id: u32) {
        {
            let mut routes = self.table.routes_mut();
            // Look-ups do not find it from now on, however long its prefixes stay.
            if let Some(subscriber) = routes.subscribers.remove(&id) {
                // Its memory is being released: it must not be picked as the peer that holds most.
                subscriber.outsized.cancel();
            }
            self.table.advance();
        }
        if let Some(own) = self.own.remove(&id) {
            self.jobs.leaving.push_back((id, own));
        }
    }

    fn forget_slice(&mut self) {
        let Some((id, mut own)) = self.jobs.leaving.pop_front() else { return };
        let mut gone = Vec::new();
        let mut routes = self.table.routes_mut();
        let is_left =
            own.forget(&mut TableAccess { table: &mut routes.prefixes, number: id }, SLICE, &mut gone);
        drop(routes);
        if is_left {
            self.jobs.leaving.push_back((id, own));
        }
        self.notify(cancelled(gone).collect());
    }

    fn subscribe(
        &mut self,
        routes: &mut Routes,
        subscriber: &Arc<ConnectedSubscriber>,
        prefix: Bytes,
        net_changes: &mut SubscriptionChanges,
    ) -> bool {
        if !subscriber.authorization.may_subscribe(&subscriber.peer, "subscribe", &prefix) {
            return false;
        }
        let own = self.own.entry(subscriber.id).or_default();
        let mut access = TableAccess { table: &mut routes.prefixes, number: subscriber.id };
        let Subscribed { is_new, first, differs } = own.subscribe(&mut access, &prefix);
        if is_new {
            routes.subscribers.entry(subscriber.id).or_insert_with(|| subscriber.clone());
            subscriber.subscriptions.fetch_add(1, Ordering::Relaxed);
            subscriber.subscription_bytes.fetch_add(prefix.len(), Ordering::Relaxed);
            count_memory(own, subscriber, &self.memory);
        }
        if let Some(id) = first {
            self.charge(subscriber, prefix.len());
            net_changes.push(SubscriptionChange { subscribe: true, prefix, id });
        }
        differs
    }

    fn cancel(
        &mut self,
        routes: &mut Routes,
        subscriber: &ConnectedSubscriber,
        prefix: &Bytes,
        net_changes: &mut SubscriptionChanges,
    ) -> bool {
        let Some(own) = self.own.get_mut(&subscriber.id) else { return false };
        let mut access = TableAccess { table: &mut routes.prefixes, number: subscriber.id };
        let mut gone = Vec::new();
        if !own.cancel(&mut access, prefix, &mut gone) {
            return false;
        }
        let is_removed = !gone.is_empty();
        net_changes.extend(cancelled(gone));
        subscriber.subscriptions.fetch_sub(1, Ordering::Relaxed);
        subscriber.subscription_bytes.fetch_sub(prefix.len(), Ordering::Relaxed);
        count_memory(own, subscriber, &self.memory);
        if is_removed {
            self.charge(subscriber, prefix.len());
        }
        true
    }

    /// Charges a subscriber for the notifications of a change and, if there are many publishers, for their
    /// round, once.
    fn charge(&self, subscriber: &ConnectedSubscriber, len: usize) {
        let (publishers, round) = (self.publishers.len(), self.notifications.next_round());
        subscriber.notified_bytes.fetch_add((len + NOTIFIED_CHANGE) * publishers, Ordering::Relaxed);
        if publishers > self.few && subscriber.notified_in.swap(round, Ordering::Relaxed) != round {
            subscriber.notified.fetch_add(publishers, Ordering::Relaxed);
        }
    }

    /// Makes prefixes active or covered: a few at once, which are taken from `left`, and more in slices.
    /// Returns whether topics find other subscribers than before.
    fn sort(
        &mut self,
        routes: &mut Routes,
        subscriber: &Arc<ConnectedSubscriber>,
        left: &mut usize,
        net_changes: &mut SubscriptionChanges,
    ) -> bool {
        // A subscriber that is queued has its turn there.
        let is_new = self.own.get(&subscriber.id).is_some_and(|own| own.has_work() && !own.is_queued);
        if !is_new {
            return false;
        }
        let at_once = (*left).min(AT_ONCE);
        let mut rest = at_once;
        let differs = self.step(routes, subscriber, &mut rest, net_changes);
        *left -= at_once - rest;
        differs
    }

    /// Makes prefixes of this subscriber active or covered, as many as `left` allows. If there are more, the
    /// subscriber goes to the end of the queue.
    fn step(
        &mut self,
        routes: &mut Routes,
        subscriber: &Arc<ConnectedSubscriber>,
        left: &mut usize,
        net_changes: &mut SubscriptionChanges,
    ) -> bool {
        let Some(own) = self.own.get_mut(&subscriber.id) else { return false };
        let mut gone = Vec::new();
        let most = *left;
        let mut access = TableAccess { table: &mut routes.prefixes, number: subscriber.id };
        let differs = own.step(&mut access, left, &mut gone);
        subscriber.table_work.fetch_add(most - *left, Ordering::Relaxed);
        own.is_queued = own.has_work();
        if own.is_queued {
            self.jobs.sorting.push_back(subscriber.clone());
        }
        net_changes.extend(cancelled(gone));
        differs
    }
}

/// Counts a subscriber's subscriptions in the memory budget. If there is no memory left, the connection that
/// holds most is ended.
fn count_memory(own: &mut OwnPrefixes, subscriber: &ConnectedSubscriber, memory: &MemoryBudget) {
    let count = subscriber.subscriptions.load(Ordering::Relaxed);
    let bytes = subscriber.subscription_bytes.load(Ordering::Relaxed);
    let weight = prefix_memory(count, bytes, count * heads(bytes / count.max(1)));
    let step = if weight < MEMORY_STEP_LARGE { MEMORY_STEP } else { MEMORY_STEP_LARGE };
    if weight / step != own.weight / step {
        own.weight = weight;
        let new = || memory.claim(&subscriber.peer, "subscriptions", subscriber.outsized.clone());
        own.claim.get_or_insert_with(new).force_as(count * PAIR, weight);
    }
}

/// Returns the approximate memory of this many prefixes with their heads, in bytes. Their encoded form for
/// publishers counts apart.
fn prefix_memory(count: usize, bytes: usize, heads: usize) -> usize {
    count * PREFIX + bytes + heads * HEAD
}

/// Returns the version that stands for all versions that encode subscriptions in the same way.
pub(super) fn form(version: Version) -> Version {
    if version == Version::V3_1 { version } else { Version::V3_0 }
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
