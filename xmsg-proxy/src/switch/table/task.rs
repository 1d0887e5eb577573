//! The task that owns the table.
//!
//! What takes long is a job: it is done in slices, one for each job in turn, and changes go between. So
//! nobody who joins, subscribes or asks for a confirmation waits for others that leave with a million
//! subscriptions.

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
use xmsg_zmq::link::memory::{Claim, MemoryBudget};
use xmsg_zmq::link::session::now;
use xmsg_zmtp::Version;

use super::news::News;
use super::own::{Gone, Own, Seat, Subscribed};
use super::scope::Scope;
use super::snapshot::Snapshot;
use super::tokens::Tokens;
use super::{Change, Pacing, Routes, Table};
use crate::config::PublishersSend;
use crate::switch::peers::Subscriber;
use crate::switch::publisher::Publisher;

/// Changes applied under one lock.
const BATCH: usize = 256;
/// How much of a job is done under one lock: so many short prefixes, or fewer long ones.
const SLICE: usize = 512;
/// How much of what a change makes necessary is done at once. The rest is a job.
const AT_ONCE: usize = 64;
/// The part of the memory budget that has to be free for what those who left held to wait for publishers that
/// read.
const MEMORY_KEPT: usize = 8;
/// The time until it is looked again whether publishers have read that.
const PACE: Duration = Duration::from_millis(1);
/// The additional time for each publisher that has not: many times what a look takes, however many they are.
const PACE_OF_EACH: Duration = Duration::from_micros(2);
/// What a prefix takes beside its text, bytes, about.
const PREFIX: usize = 130;
/// What a head takes, bytes, if no other prefix has it.
const HEAD: usize = 16;
/// What a pair of a subscriber and a prefix takes, bytes, about.
const PAIR: usize = 24;
/// Steps in which a subscriber's subscriptions count in the memory budget, bytes.
const MEMORY_STEP: usize = 4 << 10;
/// The steps in bytes if the subscriptions are many.
const MEMORY_STEP_LARGE: usize = 64 << 10;

/// Where there are no more publishers than this, they are told at once what has changed.
const FEW: usize = 64;
/// So much news waits to be told that what those who left had wanted is not added.
const NEWS_ENOUGH: usize = notifying::NEWS_MAX / 4;

/// The task's state.
#[derive(Debug)]
pub(in crate::switch) struct TableTask {
    pub(super) table: Arc<Table>,
    changes: mpsc::Receiver<Change>,
    publishers_send: PublishersSend,
    /// Each subscriber's subscriptions.
    own: HashMap<u32, Own>,
    /// In a fixed order, so that a simulation can repeat what it did.
    publishers: BTreeMap<u32, Notified>,
    backlog: Backlog,
    /// Publishers by what they are told, each kind of them with a number.
    audiences: BTreeMap<u32, Audience>,
    next_audience: u32,
    jobs: Jobs,
    news: News,
    pub(super) tokens: Tokens,
    /// [So many](FEW) publishers are few.
    few: usize,
    pub(super) memory: MemoryBudget,
    /// Of the prefixes themselves, whoever subscribed to them.
    prefixes: Claim,
}

/// What is done in slices.
#[derive(Debug, Default)]
struct Jobs {
    /// Subscribers of which prefixes change their side.
    sorting: VecDeque<Arc<Subscriber>>,
    /// What subscribers that have gone left behind.
    leaving: VecDeque<(u32, Own)>,
    /// Publishers that are being told all that is wanted.
    joining: VecDeque<Joining>,
    /// Subscribers of which it is yet to be checked what they may subscribe to.
    enforcing: VecDeque<Enforcing>,
    /// Answers that wait until the last of them is checked, and publishers have been told what they may
    /// publish now.
    waiting: Vec<Synchronizing>,
    /// Subscribers that wait until they may make more changes.
    pacing: Vec<Pacing>,
}

impl Jobs {
    fn is_empty(&self) -> bool {
        !self.has_urgent() && self.leaving.is_empty() && self.pacing.is_empty()
    }

    /// Whether there is something to do that waits for no publisher to read.
    fn has_urgent(&self) -> bool {
        !(self.sorting.is_empty() && self.joining.is_empty() && self.enforcing.is_empty())
    }
}

/// Publishers of which it has to be watched whether they read what they were told. Most of the time there is
/// none among thousands.
#[derive(Debug, Default)]
struct Backlog {
    publishers: BTreeMap<u32, Arc<Publisher>>,
    /// Until then, they count as they were found.
    look_from: Option<Instant>,
}

impl Backlog {
    /// Takes note of what waits for a publisher that was told something.
    fn note(&mut self, publisher: &Arc<Publisher>) {
        if publisher.may_be_behind() && publisher.is_behind() {
            self.publishers.insert(publisher.id, publisher.clone());
        }
    }

    /// Whether a publisher that reads has yet to read much of what it was told.
    fn is_there(&mut self) -> bool {
        if self.publishers.is_empty() || self.look_from.is_some_and(|from| now() < from) {
            return !self.publishers.is_empty();
        }
        // Each is looked at, so that the time of each runs.
        self.publishers.retain(|_, publisher| publisher.is_behind());
        self.look_from = Some(later(now(), self.pace()));
        !self.publishers.is_empty()
    }

    /// How soon to look again.
    fn pace(&self) -> Duration {
        PACE + PACE_OF_EACH * u32::try_from(self.publishers.len()).unwrap_or(u32::MAX)
    }
}

/// Publishers that are told the same in the same [form], and all that they are told when they join.
#[derive(Debug)]
struct Audience {
    snapshot: Snapshot,
    publishers: usize,
}

/// A publisher, and the number of its audience.
#[derive(Debug)]
struct Notified {
    publisher: Arc<Publisher>,
    audience: u32,
}

/// A publisher that is being told, and the part that comes next.
#[derive(Debug)]
struct Joining {
    told: Notified,
    next: usize,
    before: Before,
}

/// What a publisher that is being told was told before.
#[derive(Debug)]
enum Before {
    Nothing,
    /// What concerned it under other rights.
    Scope(Option<Scope>),
}

/// Somebody who waits until all is as the changes before say, and this round of news is told.
#[derive(Debug)]
struct Synchronizing {
    round: u64,
    answer: oneshot::Sender<Vec<Arc<Publisher>>>,
}

/// A subscriber, and the last of its subscriptions that was checked.
#[derive(Debug)]
struct Enforcing {
    subscriber: Arc<Subscriber>,
    checked: Option<Vec<u8>>,
}

/// A prefix that somebody newly wants, or that nobody wants any more.
#[derive(Debug)]
pub(super) struct SubscriptionChange {
    pub(super) subscribe: bool,
    pub(super) prefix: Bytes,
    id: PrefixId,
}

/// All that is to be told, in this order.
pub(super) type SubscriptionChanges = Vec<SubscriptionChange>;

fn cancelled(gone: impl IntoIterator<Item = Gone>) -> impl Iterator<Item = SubscriptionChange> {
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
            news: News::default(),
            tokens: Tokens::new(&memory),
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

    /// Whether there is nothing to do but to wait for changes.
    fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.news.is_empty() && !self.news.is_being_told()
    }

    /// Lets everybody go who waits for an answer.
    pub(in crate::switch) fn drain(&mut self) {
        self.changes.close();
        while self.changes.try_recv().is_ok() {}
    }

    fn apply(&mut self, changes: &mut Vec<Change>) {
        let mut changes = changes.drain(..).peekable();
        while changes.peek().is_some() {
            // A publisher that joins must be told what is in the table at that very place in the sequence.
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
                    self.welcome(publisher);
                }
                Some(Change::PublisherGone(id)) => {
                    self.tell_no_more_tokens(id);
                    self.farewell(id);
                }
                Some(Change::Synchronize(answer)) => {
                    self.jobs.waiting.push(Synchronizing { round: self.news.needed(), answer });
                    self.answer();
                }
                Some(Change::Pace(pacing)) => {
                    self.jobs.pacing.push(Pacing { round: self.news.needed(), ..pacing });
                }
                _ => {}
            }
        }
    }

    /// Does a slice of each kind of job. Returns how long to wait for changes before the next one, if not at
    /// all.
    fn work(&mut self) -> Option<Duration> {
        self.sort_some();
        self.enforce_some();
        self.welcome_some();
        self.notify_some();
        let mut pause = self.news.due_in().unwrap_or(Duration::MAX);
        if (!self.jobs.leaving.is_empty() || !self.jobs.pacing.is_empty()) && self.take_leave(&mut pause) {
            return None;
        }
        (!self.jobs.has_urgent() && !self.news.is_being_told()).then_some(pause)
    }

    /// Lets those go who waited until they may make more changes, and does a slice of what those who left
    /// want to be forgotten. `false`: there is no more to do before this `pause` is over.
    fn take_leave(&mut self, pause: &mut Duration) -> bool {
        let are_behind = self.backlog.is_there();
        let (own, news) = (&self.own, &self.news);
        let has_much_to_tell = news.bytes() > NEWS_ENOUGH;
        let is_done = |pacing: &mut Pacing| {
            let is_told = !has_much_to_tell || news.is_told(pacing.round);
            !(pacing.is_flood && (are_behind || !is_told))
                && own.get(&pacing.subscriber.id).is_none_or(|own| !own.has_work())
        };
        for pacing in self.jobs.pacing.extract_if(.., is_done) {
            // Whoever waited may have gone.
            let _ = pacing.answer.send(());
        }
        // Without room, what those who left held is given back sooner, as long as no publisher that reads
        // would be cut off for it.
        let has_room = self.memory.has_room(self.memory.limit() / MEMORY_KEPT);
        let may_wait = self.jobs.leaving.is_empty() || has_room;
        let mut behind = self.backlog.publishers.values();
        if are_behind && (may_wait || behind.any(|publisher| publisher.is_far_behind())) {
            *pause = self.backlog.pace().min(*pause);
            return false;
        }
        if self.jobs.leaving.is_empty() || (self.news.bytes() > NEWS_ENOUGH && has_room) {
            return false;
        }
        self.forget_some();
        true
    }

    fn sort_some(&mut self) {
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

    /// Takes away all that a subscriber wanted.
    fn forget(&mut self, id: u32) {
        {
            let mut routes = self.table.routes_mut();
            // Whoever looks a topic up from now on does not find it, however long its prefixes stay.
            if let Some(subscriber) = routes.subscribers.remove(&id) {
                // What it holds is being given back: it is not to be picked as the one that holds most.
                subscriber.outsized.cancel();
            }
            self.table.advance();
        }
        if let Some(own) = self.own.remove(&id) {
            self.jobs.leaving.push_back((id, own));
        }
    }

    fn forget_some(&mut self) {
        let Some((id, mut own)) = self.jobs.leaving.pop_front() else { return };
        let mut gone = Vec::new();
        let mut routes = self.table.routes_mut();
        let is_left = own.forget(&mut Seat { table: &mut routes.prefixes, number: id }, SLICE, &mut gone);
        drop(routes);
        if is_left {
            self.jobs.leaving.push_back((id, own));
        }
        self.notify(cancelled(gone).collect());
    }

    /// Has the rights of all subscribers checked anew, and inlets ask for those of their publishers.
    /// Publishers that may publish something else than before are told what concerns them now.
    fn enforce(&mut self) {
        self.enforce_on_forwarders();
        // What it is about is not what they may publish then.
        self.notify_all();
        // By number: one that is being told anew already stands in both, with the same audience.
        let mut others = BTreeMap::new();
        let joining = self.jobs.joining.iter().map(|joining| &joining.told);
        for Notified { publisher, audience } in self.publishers.values().chain(joining) {
            let scope = self.audiences.get(audience).and_then(|audience| audience.snapshot.scope());
            if Scope::of(publisher.grant.rights().as_deref()).as_ref() != scope {
                others.insert(publisher.id, (publisher.clone(), *audience, scope.cloned()));
            }
        }
        self.jobs.joining.retain(|joining| !others.contains_key(&joining.told.publisher.id));
        for (publisher, before, scope) in others.into_values() {
            let audience = self.join(&publisher);
            self.leave(before);
            let told = self.publishers.get_mut(&publisher.id);
            let before = if told.is_some() { Before::Scope(scope) } else { Before::Nothing };
            if let Some(told) = told {
                told.audience = audience;
            }
            self.jobs.joining.push_back(Joining { told: Notified { publisher, audience }, next: 0, before });
        }
        let subscribers: Vec<_> = {
            let routes = self.table.routes_mut();
            self.table.advance();
            routes.subscribers.values().cloned().collect()
        };
        for subscriber in subscribers {
            if !subscriber.grant.rights().unwrap_or_default().may_subscribe(b"") {
                self.jobs.enforcing.push_back(Enforcing { subscriber, checked: None });
            }
        }
    }

    /// Takes away subscriptions that are not allowed any more.
    fn enforce_some(&mut self) {
        let Some(Enforcing { subscriber, mut checked }) = self.jobs.enforcing.pop_front() else { return };
        let rights = subscriber.grant.rights();
        let (is_let_in, rights) = (rights.is_some(), rights.unwrap_or_default());
        let mut net_changes = SubscriptionChanges::new();
        let mut is_left = true;
        {
            let table = self.table.clone();
            let mut routes = table.routes_mut();
            let (mut differs, mut left) = (false, SLICE);
            for _ in 0..SLICE {
                let own = self.own.get(&subscriber.id);
                let Some(id) = own.and_then(|own| own.next(&routes.prefixes, checked.as_deref())) else {
                    is_left = false;
                    break;
                };
                let prefix = Bytes::copy_from_slice(routes.prefixes.prefix(id));
                if !rights.may_subscribe(&prefix) {
                    // Whoever is not let in at all any more is being cut off, and the log says so.
                    if is_let_in {
                        subscriber.grant.deny(&subscriber.peer, "subscribe", &prefix, 1);
                    }
                    differs |= self.cancel(&mut routes, &subscriber, &prefix, &mut net_changes);
                    differs |= self.sort(&mut routes, &subscriber, &mut left, &mut net_changes);
                }
                checked = Some(prefix.into());
            }
            if differs {
                table.advance();
            }
        }
        if is_left {
            self.jobs.enforcing.push_back(Enforcing { subscriber, checked });
        }
        self.notify(net_changes);
        self.answer();
    }

    fn subscribe(
        &mut self,
        routes: &mut Routes,
        subscriber: &Arc<Subscriber>,
        prefix: Bytes,
        net_changes: &mut SubscriptionChanges,
    ) -> bool {
        if !subscriber.grant.may_subscribe(&subscriber.peer, "subscribe", &prefix) {
            return false;
        }
        let own = self.own.entry(subscriber.id).or_default();
        let mut seat = Seat { table: &mut routes.prefixes, number: subscriber.id };
        let Subscribed { is_new, first, differs } = own.subscribe(&mut seat, &prefix);
        if is_new {
            routes.subscribers.entry(subscriber.id).or_insert_with(|| subscriber.clone());
            subscriber.subscriptions.fetch_add(1, Ordering::Relaxed);
            subscriber.subscription_bytes.fetch_add(prefix.len(), Ordering::Relaxed);
            count_memory(own, subscriber, &self.memory);
        }
        if let Some(id) = first {
            net_changes.push(SubscriptionChange { subscribe: true, prefix, id });
            self.charge(subscriber);
        }
        differs
    }

    fn cancel(
        &mut self,
        routes: &mut Routes,
        subscriber: &Subscriber,
        prefix: &Bytes,
        net_changes: &mut SubscriptionChanges,
    ) -> bool {
        let Some(own) = self.own.get_mut(&subscriber.id) else { return false };
        let mut seat = Seat { table: &mut routes.prefixes, number: subscriber.id };
        let mut gone = Vec::new();
        if !own.cancel(&mut seat, prefix, &mut gone) {
            return false;
        }
        let is_news = !gone.is_empty();
        net_changes.extend(cancelled(gone));
        subscriber.subscriptions.fetch_sub(1, Ordering::Relaxed);
        subscriber.subscription_bytes.fetch_sub(prefix.len(), Ordering::Relaxed);
        count_memory(own, subscriber, &self.memory);
        if is_news {
            self.charge(subscriber);
        }
        true
    }

    /// Has a subscriber pay for a round of news, once, where publishers are many.
    fn charge(&self, subscriber: &Subscriber) {
        let (publishers, round) = (self.publishers.len(), self.news.next_round());
        if publishers > self.few && subscriber.told_in.swap(round, Ordering::Relaxed) != round {
            subscriber.told.fetch_add(publishers, Ordering::Relaxed);
        }
    }

    /// Moves what has to change its side: a little at once, which is taken from `left`, and more in slices.
    /// Returns whether topics find others than before.
    fn sort(
        &mut self,
        routes: &mut Routes,
        subscriber: &Arc<Subscriber>,
        left: &mut usize,
        net_changes: &mut SubscriptionChanges,
    ) -> bool {
        // What is in the queue already has its turn there.
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

    /// Moves prefixes of this subscriber, as many as `left` allows; if there are more, it goes to the end of
    /// the queue.
    fn step(
        &mut self,
        routes: &mut Routes,
        subscriber: &Arc<Subscriber>,
        left: &mut usize,
        net_changes: &mut SubscriptionChanges,
    ) -> bool {
        let Some(own) = self.own.get_mut(&subscriber.id) else { return false };
        let mut gone = Vec::new();
        let most = *left;
        let mut seat = Seat { table: &mut routes.prefixes, number: subscriber.id };
        let differs = own.step(&mut seat, left, &mut gone);
        subscriber.toll.fetch_add(most - *left, Ordering::Relaxed);
        own.is_queued = own.has_work();
        if own.is_queued {
            self.jobs.sorting.push_back(subscriber.clone());
        }
        net_changes.extend(cancelled(gone));
        differs
    }
}

/// Has a subscriber's subscriptions count in the memory budget. If there is none left, whoever holds most is
/// ended.
fn count_memory(own: &mut Own, subscriber: &Subscriber, memory: &MemoryBudget) {
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

/// What so many prefixes of so many bytes take with their heads, about. What is encoded of them for
/// publishers counts apart.
fn prefix_memory(count: usize, bytes: usize, heads: usize) -> usize {
    count * PREFIX + bytes + heads * HEAD
}

/// Of versions in which subscriptions are said in the same way, the one that stands for all of them.
fn form(version: Version) -> Version {
    if version == Version::V3_1 { version } else { Version::V3_0 }
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
