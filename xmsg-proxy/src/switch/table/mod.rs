//! Who subscribed to what: one table of prefixes, changed by one task, read by every ingress.
//!
//! Connections send [`Change`]s over a bounded channel. The [task](task) applies many at once, then raises
//! the *epoch*: ingresses notice and forget what they had looked up. After that it tells the publishers what
//! is newly wanted, or no longer.

mod news;
mod own;
mod scope;
mod snapshot;
mod sorted;
mod task;
mod tokens;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use crate::prefixes::PrefixTable;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use xmsg_zmq::link::memory::MemoryBudget;
use xmsg_zmq::link::session::{Batch, Ended, Handler, now};
use xmsg_zmtp::Limits;

pub(super) use self::task::TableTask;
use super::bucket::Bucket;
use super::peers::Subscriber;
use super::publisher::Publisher;
use super::upstream::{Returns, Token};
use crate::config::PublishersSend;
use crate::policy::Policies;

/// Changes that wait to be applied; whoever sends more waits.
const CHANGES: usize = 1024;
/// Pairs of topic and subscriber, and look-ups, that go into looking up several topics together, about.
const PAIRS: usize = 64 << 10;
/// Bytes of changes that a subscriber may make before it waits until they are made.
const UNPACED: usize = 8 << 10;
/// Bytes of changes that it may make at once, and in each second, without waiting for publishers to read of
/// them: whoever makes few is not held up by what others make.
const UNREAD: f64 = 65_536.0;
/// What a change counts for beside its prefix, bytes.
const CHANGE: usize = 16;
/// How much it may cost in a second to have a subscriber's prefixes change their side: about 64 bytes of text
/// each. Whoever makes more work is read from more slowly.
const TOLL_PER_SECOND: f64 = 500_000.0;
/// Publishers that are told in a second what one subscriber changes, where they are many. Whoever has more
/// told is read from more slowly.
const NEWS_PER_SECOND: f64 = 20_000.0;
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
    /// A link to an upstream is to be told tokens from now on.
    TokensWanted(Arc<Publisher>),
    /// A subscriber wants a token, or does not want it any more.
    Token(bool, Arc<Subscriber>, Token),
    /// Other rules are in force.
    Enforce,
    Policies(Arc<Policies>),
    Pace(Pacing),
    /// Answered with all publishers once everything before it is applied.
    Synchronize(oneshot::Sender<Vec<Arc<Publisher>>>),
}

/// A subscriber that waits until nothing of it is left to do and, if it makes changes like a flood,
/// publishers have read what they were told.
#[derive(Debug)]
pub(super) struct Pacing {
    subscriber: Arc<Subscriber>,
    is_flood: bool,
    /// The round in which publishers are told what it has made so far.
    round: u64,
    answer: oneshot::Sender<()>,
}

/// What ingresses see.
#[derive(Debug)]
pub(super) struct Table {
    routes: RwLock<Routes>,
    epoch: AtomicU64,
    changes: mpsc::Sender<Change>,
    returns: Returns,
    double_paths: AtomicUsize,
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
        // Unless they come from one prefix for each topic. A subscriber can be found twice while its
        // subscriptions change.
        if !found.is_sorted_by(|one, next| one < next) {
            found.sort_unstable();
            found.dedup();
        }
        found
    }

    /// How many topics are to be looked up together: what they find is bounded by the number of subscribers.
    pub(super) fn together(&self, most: usize) -> usize {
        let each = self.subscribers.len() + self.longest_prefix();
        (PAIRS / each.max(1)).clamp(1, most)
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
    pub(super) fn new(
        publishers_send: PublishersSend,
        policies: Policies,
        memory: MemoryBudget,
    ) -> (Arc<Self>, TableTask) {
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
            returns: Returns::default(),
            double_paths: AtomicUsize::default(),
        });
        let task = TableTask::new(table.clone(), receiver, publishers_send, memory);
        (table, task)
    }

    /// Changes whenever subscriptions or policies do. What was read from the table under one epoch holds
    /// until it changes.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Tokens of this proxy's own links.
    pub(super) fn returns(&self) -> &Returns {
        &self.returns
    }

    /// Proxies that reach this one over two ways.
    pub(super) fn double_paths(&self) -> usize {
        self.double_paths.load(Ordering::Relaxed)
    }

    pub(super) fn routes(&self) -> RwLockReadGuard<'_, Routes> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes ingresses forget what they looked up. Called under the lock for writing.
    fn advance(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    fn routes_mut(&self) -> RwLockWriteGuard<'_, Routes> {
        self.routes.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscriptions(&self) -> usize {
        self.routes().prefixes.len()
    }

    /// Calls `found` with every prefix and its number of subscribers. The lock is let go of between parts, so
    /// that ingresses and changes get their turn.
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

    /// Waits until this subscriber may make more changes.
    async fn pace(&self, subscriber: &Arc<Subscriber>, is_flood: bool) {
        let (answer, receiver) = oneshot::channel();
        self.change(Change::Pace(Pacing { subscriber: subscriber.clone(), is_flood, round: 0, answer }))
            .await;
        // If the table has stopped, there is nothing to wait for.
        let _ = receiver.await;
    }

    /// Waits until everything that was sent before is applied; returns the publishers.
    pub(super) async fn synchronize(&self) -> Vec<Arc<Publisher>> {
        let (sender, receiver) = oneshot::channel();
        self.change(Change::Synchronize(sender)).await;
        receiver.await.unwrap_or_default()
    }
}

/// What a subscriber says.
pub(super) struct Subscriptions<'a> {
    table: &'a Table,
    subscriber: &'a Arc<Subscriber>,
    limits: &'a Limits,
    /// How often it subscribed since its subscriptions were last counted, and their number then.
    asked: usize,
    /// The size in bytes of what it subscribed to since then.
    asked_bytes: usize,
    /// Bytes of changes since it last waited until they were made.
    unpaced: usize,
    /// Bytes that it may still make without waiting for publishers.
    unread: Bucket,
    /// Publishers that may yet be told of its changes.
    news: Bucket,
    tokens: BTreeSet<Token>,
}

impl<'a> Subscriptions<'a> {
    pub(super) fn new(table: &'a Table, subscriber: &'a Arc<Subscriber>, limits: &'a Limits) -> Self {
        let unread = Bucket::new(UNREAD);
        let news = Bucket::new(NEWS_PER_SECOND);
        Self {
            table,
            subscriber,
            limits,
            asked: 0,
            asked_bytes: 0,
            unpaced: 0,
            unread,
            news,
            tokens: BTreeSet::new(),
        }
    }

    /// Slows a subscriber down that makes changes faster than publishers read of them, than they can be told,
    /// or than they can be made. Another one, which makes few, does not wait.
    async fn pace(&mut self, bytes: usize) {
        let publishers = self.subscriber.told.swap(0, Ordering::Relaxed);
        if publishers > 0 {
            tokio::time::sleep(self.news.take(publishers as f64, now())).await;
        }
        self.unpaced += bytes;
        if self.unpaced < UNPACED {
            return;
        }
        let bytes = std::mem::take(&mut self.unpaced);
        let is_flood = !self.unread.take_present(bytes as f64, now());
        self.table.pace(self.subscriber, is_flood).await;
        let toll = self.subscriber.toll.swap(0, Ordering::Relaxed) as f64 / TOLL_PER_SECOND;
        if toll > 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(toll)).await;
        }
    }

    /// What a subscriber says of a token, which may be our own.
    async fn token(&mut self, subscribe: bool, token: Token) -> Result<(), Ended> {
        if subscribe {
            if self.table.returns.is_own(&token) || !self.tokens.insert(token) {
                return Ok(());
            }
            if self.tokens.len() > tokens::TOKENS_MAX {
                // Whoever passes on the tokens of others can't help it: the ones beyond are not looked at.
                self.tokens.remove(&token);
                return Ok(());
            }
        } else if !self.tokens.remove(&token) {
            return Ok(());
        }
        self.table.change(Change::Token(subscribe, self.subscriber.clone(), token)).await;
        Ok(())
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
        self.pace(prefix.len() + CHANGE).await;
        if let Some(token) = Token::read(&prefix) {
            return self.token(subscribe, token).await;
        }
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
mod tests;
