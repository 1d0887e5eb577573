//! The subscriptions of all subscribers: one table of prefixes, changed by one task, read by every ingress.
//!
//! Connections send [`Change`]s over a bounded channel. The [task](task) applies many at once, and then
//! increments the *epoch*: ingresses notice that, and forget what they had looked up. After that, it notifies
//! the publishers of prefixes that are newly wanted, or no longer.
//!
//! | file | answers |
//! |---|---|
//! | `task.rs` | Which changes does the table's task make, and in which slices? |
//! | `task/joining.rs` | How does a publisher join, and how does it leave? |
//! | `task/notifying.rs` | How are publishers notified of changes, and who waits for that? |
//! | `task/enforcing.rs` | How are changed rules applied to subscriptions? |
//! | `own_prefixes.rs` | Which of the prefixes of one subscriber are active? |
//! | `sorted.rs` | In which order are the prefixes of one subscriber? |
//! | `notifications.rs` | Of which changes have publishers yet to be notified? |
//! | `snapshot.rs` | Which prefixes is a publisher sent that joins? |
//! | `scope.rs` | Which subscriptions is a publisher notified of? |
//! | `tokens.rs` | Who subscribed to which token of a link? |
//! | `tokens/shares.rs` | Who has most tokens, and gives way? |
//! | `tokens/receivers.rs` | Who is sent changes of tokens, and when? |

mod notifications;
mod own_prefixes;
mod scope;
mod snapshot;
mod sorted;
mod task;
mod tokens;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use crate::prefixes::PrefixTable;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use xmsg_zmq::link::session::{Batch, Ended, Handler, now};
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmtp::Limits;

pub(super) use self::task::TableTask;
use super::publisher::ConnectedPublisher;
use super::subscriber::ConnectedSubscriber;
use super::token_bucket::TokenBucket;
use super::upstream::{OwnTokens, Token};
use crate::config::PublishersSend;
use crate::policy::Policies;

/// The number of changes that wait to be applied. A connection that sends more waits.
const CHANGES: usize = 1024;
/// The approximate number of pairs of topic and subscriber, and of look-ups, when several topics are looked
/// up together. An ingress makes sets of up to twice as many members before it passes messages on (`LOAD_MAX`
/// in `ingress.rs`).
const LOOK_UP_MAX: usize = 64 << 10;
/// The bytes of changes that a subscriber may make before it waits until they are made.
const UNPACED: usize = 8 << 10;
/// The bytes of changes that a subscriber may make at once, and in each second, without waiting for
/// publishers to read them. One that makes few is not held up by the changes of others.
const UNREAD: f64 = 65_536.0;
/// The bytes that a change counts for beside its prefix.
const CHANGE: usize = 16;
/// The limit in a second of the work for making a subscriber's prefixes active or covered. A prefix of about
/// 64 bytes counts as one. A subscriber that causes more work is read from more slowly.
const TABLE_WORK_PER_SECOND: f64 = 500_000.0;
/// The number of publishers that are notified in a second of the changes of one subscriber, where they are
/// many. A subscriber that causes more notifications is read from more slowly.
const NOTIFICATIONS_PER_SECOND: f64 = 20_000.0;
/// The bytes of notifications, for all publishers together, that one subscriber may cause at once, and in
/// each second, whatever others cause.
const OWN_NOTIFIED: f64 = 1_048_576.0;
/// The changes of tokens of links that a subscriber may make at once, and in each second. A proxy passes on
/// no more tokens than this.
const TOKENS_PER_SECOND: f64 = 1024.0;
/// The number of places of the table that are listed under one lock.
const LISTED: usize = 1024;

/// A change of the table, or of the connections that it knows.
#[derive(Debug)]
pub(super) enum Change {
    Subscribe(Arc<ConnectedSubscriber>, Bytes),
    Cancel(Arc<ConnectedSubscriber>, Bytes),
    SubscriberGone(u32),
    PublisherJoined(Arc<ConnectedPublisher>),
    PublisherGone(u32),
    /// A link to an upstream is to receive tokens from now on.
    TokensWanted(Arc<ConnectedPublisher>),
    /// A subscriber subscribes to a token, or cancels that.
    Token(bool, Arc<ConnectedSubscriber>, Token),
    /// Other rules are in force now.
    Enforce,
    Policies(Arc<Policies>),
    Pace(Pacing),
    /// A request for all publishers, which is answered once every change before it is applied.
    Synchronize(oneshot::Sender<Vec<Arc<ConnectedPublisher>>>),
}

/// A subscriber that waits until no work for it is left and, if it floods the table with changes, publishers
/// have read them.
#[derive(Debug)]
pub(super) struct Pacing {
    subscriber: Arc<ConnectedSubscriber>,
    is_flood: bool,
    /// The round of notifications that contains its changes so far.
    round: u64,
    answer: oneshot::Sender<()>,
}

/// The part of the table that ingresses see.
#[derive(Debug)]
pub(super) struct Table {
    routes: RwLock<Routes>,
    epoch: AtomicU64,
    changes: mpsc::Sender<Change>,
    own_tokens: OwnTokens,
    double_paths: AtomicUsize,
}

#[derive(Debug)]
pub(super) struct Routes {
    prefixes: PrefixTable<u32>,
    subscribers: HashMap<u32, Arc<ConnectedSubscriber>>,
    policies: Arc<Policies>,
}

impl Routes {
    /// Returns the subscribers of these topics, each once with the number of the topic, in a fixed order.
    pub(super) fn find_each(&self, topics: &[&[u8]]) -> Vec<(usize, u32)> {
        let mut found = Vec::new();
        self.prefixes.find_each(topics, |topic, subscribers| {
            found.extend(subscribers.iter().map(|subscriber| (topic, *subscriber)));
        });
        // Those of one prefix are sorted. They have to be sorted only if a topic has several prefixes. A
        // subscriber can be found twice while its subscriptions change.
        if !found.is_sorted_by(|one, next| one < next) {
            found.sort_unstable();
            found.dedup();
        }
        found
    }

    /// Returns how many topics are to be looked up together: the number of subscribers limits what they find.
    pub(super) fn together(&self, most: usize) -> usize {
        let each = self.subscribers.len() + self.longest_prefix();
        (LOOK_UP_MAX / each.max(1)).clamp(1, most)
    }

    pub(super) fn longest_prefix(&self) -> usize {
        self.prefixes.longest_prefix()
    }

    pub(super) fn policies(&self) -> &Arc<Policies> {
        &self.policies
    }

    pub(super) fn subscriber(&self, id: u32) -> Option<&Arc<ConnectedSubscriber>> {
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
            own_tokens: OwnTokens::default(),
            double_paths: AtomicUsize::default(),
        });
        let task = TableTask::new(table.clone(), receiver, publishers_send, memory);
        (table, task)
    }

    /// Returns the epoch, which changes with the subscriptions and the policies. What was read from the table
    /// under one epoch holds until it changes.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Returns the tokens of this proxy's own links.
    pub(super) fn own_tokens(&self) -> &OwnTokens {
        &self.own_tokens
    }

    /// Returns the number of proxies that reach this one over two paths.
    pub(super) fn double_paths(&self) -> usize {
        self.double_paths.load(Ordering::Relaxed)
    }

    pub(super) fn routes(&self) -> RwLockReadGuard<'_, Routes> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes ingresses forget what they looked up. The caller has to hold the lock for writing.
    fn advance(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    fn routes_mut(&self) -> RwLockWriteGuard<'_, Routes> {
        self.routes.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscriptions(&self) -> usize {
        self.routes().prefixes.len()
    }

    /// Calls `found` with every prefix and its number of subscribers. The lock is released between parts, so
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
        // It fails only after the switch has stopped. Then there is nothing left to change.
        let _ = self.changes.send(change).await;
    }

    /// Waits until this subscriber may make more changes.
    async fn pace(&self, subscriber: &Arc<ConnectedSubscriber>, is_flood: bool) {
        let (answer, receiver) = oneshot::channel();
        self.change(Change::Pace(Pacing { subscriber: subscriber.clone(), is_flood, round: 0, answer }))
            .await;
        // If the table has stopped, there is nothing to wait for.
        let _ = receiver.await;
    }

    /// Waits until everything that was sent before is applied, and returns the publishers.
    pub(super) async fn synchronize(&self) -> Vec<Arc<ConnectedPublisher>> {
        let (sender, receiver) = oneshot::channel();
        self.change(Change::Synchronize(sender)).await;
        receiver.await.unwrap_or_default()
    }
}

/// Handles what one subscriber sends: its subscriptions. It slows a subscriber down that makes more changes
/// than the table and the publishers can take.
pub(super) struct SubscriberHandler<'a> {
    table: &'a Table,
    subscriber: &'a Arc<ConnectedSubscriber>,
    limits: &'a Limits,
    /// The number of subscriptions since they were last counted, plus their number then.
    asked: usize,
    /// The bytes of the prefixes of these subscriptions.
    asked_bytes: usize,
    /// The bytes of changes since the subscriber last waited until they were made.
    unpaced: usize,
    /// The bytes of changes that it may still make without waiting for publishers.
    unread: TokenBucket,
    /// The limit of publishers that are notified of its changes.
    notifications: TokenBucket,
    /// The bytes of notifications that it may cause without waiting until others have caused less.
    own_notified: TokenBucket,
    /// The limit of its changes of tokens of links.
    tokens: TokenBucket,
}

impl<'a> SubscriberHandler<'a> {
    pub(super) fn new(
        table: &'a Table,
        subscriber: &'a Arc<ConnectedSubscriber>,
        limits: &'a Limits,
    ) -> Self {
        Self {
            table,
            subscriber,
            limits,
            asked: 0,
            asked_bytes: 0,
            unpaced: 0,
            unread: TokenBucket::new(UNREAD),
            notifications: TokenBucket::new(NOTIFICATIONS_PER_SECOND),
            own_notified: TokenBucket::new(OWN_NOTIFIED),
            tokens: TokenBucket::new(TOKENS_PER_SECOND),
        }
    }

    /// Slows down a subscriber that makes changes faster than publishers read them, than notifications can be
    /// sent, or than the changes can be made. Another subscriber that makes few changes does not wait.
    async fn pace(&mut self, bytes: usize) {
        let publishers = self.subscriber.notified.swap(0, Ordering::Relaxed);
        if publishers > 0 {
            tokio::time::sleep(self.notifications.take(publishers as f64, now())).await;
        }
        self.unpaced += bytes;
        if self.unpaced < UNPACED {
            return;
        }
        let bytes = std::mem::take(&mut self.unpaced);
        let notified = self.subscriber.notified_bytes.swap(0, Ordering::Relaxed);
        let has_room = self.unread.take_present(bytes as f64, now());
        let is_flood = !self.own_notified.take_present(notified as f64, now()) || !has_room;
        self.table.pace(self.subscriber, is_flood).await;
        let table_work = self.subscriber.table_work.swap(0, Ordering::Relaxed) as f64 / TABLE_WORK_PER_SECOND;
        if table_work > 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(table_work)).await;
        }
    }

    /// Handles a subscription to a token, or its end. The token may be one of this proxy.
    async fn token(&mut self, subscribe: bool, token: Token) {
        let wait = self.tokens.take(1.0, now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        if !(subscribe && self.table.own_tokens.is_own(&token)) {
            self.table.change(Change::Token(subscribe, self.subscriber.clone(), token)).await;
        }
    }

    fn is_too_much(&self) -> bool {
        self.asked > self.limits.subscriptions || self.asked_bytes > self.limits.subscription_bytes
    }
}

impl Handler for SubscriberHandler<'_> {
    async fn messages(&mut self, _: Batch<'_>) -> Result<(), Ended> {
        // The engine of an XPUB hands out subscriptions only.
        Ok(())
    }

    async fn subscription(&mut self, subscribe: bool, prefix: Bytes) -> Result<(), Ended> {
        let subscriber = self.subscriber.clone();
        self.pace(prefix.len() + CHANGE).await;
        if let Some(token) = Token::read(&prefix) {
            self.token(subscribe, token).await;
            return Ok(());
        }
        if !subscribe {
            self.table.change(Change::Cancel(subscriber, prefix)).await;
            return Ok(());
        }
        self.asked += 1;
        self.asked_bytes += prefix.len();
        if self.is_too_much() {
            // Some subscriptions may have been for the same prefix: only the table knows.
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
