//! The connections of the switch, and what is counted of them.

use std::convert::Infallible;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use xmsg_zmq::link::memory::{MemoryBudget, UnreadAnswers};
use xmsg_zmq::link::send_queue::{SendQueue, URGENT_MAX};
use xmsg_zmq::link::session::now;
use xmsg_zmq::link::throttle::Throttle;
use xmsg_zmq::lock::lock;
use xmsg_zmq::{Amount, HighWaterMark};
use xmsg_zmtp::{Command, DroppedCounts, MessageLimits};

use super::Totals;
pub(super) use super::grant::Grant;
use super::slow::Slow;
use super::stall::Stall;
use crate::policy::{Policy, Rule};

/// What comes of one subscriber's slowness is logged at most this often.
const SLOW_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// A subscriber that understands it is told at most this often what was dropped for it.
const TELL_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes of such counts that may wait to be written, together with the protocol's other answers: two counts
/// and a little more.
const TELL_MAX: usize = 64;
/// Confirmations of subscriptions that wait for a subscriber, bytes: half of what it may be owed, so that
/// others can't use that up by asking.
const CONFIRMATIONS_MAX: usize = URGENT_MAX / 2;
/// Bytes of a topic that are shown in the log.
pub(super) const TOPIC_SHOWN: usize = 255;

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

    pub(super) fn amount(&self) -> Amount {
        Amount { messages: self.messages.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// A connected subscriber.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) id: u32,
    pub(super) peer: Box<str>,
    pub(super) send_queue: SendQueue,
    pub(super) grant: Grant,
    /// The largest message that it takes, if that is less than what the proxy takes.
    pub(super) takes: Option<MessageLimits>,
    since: Instant,
    newest: Counter,
    oldest: Counter,
    conflated: Counter,
    too_large: Counter,
    waits: AtomicU64,
    waited_us: AtomicU64,
    pub(super) subscriptions: AtomicUsize,
    /// Bytes of their prefixes.
    pub(super) subscription_bytes: AtomicUsize,
    /// What it cost to have its prefixes change their side that it was not slowed down for yet.
    pub(super) toll: AtomicUsize,
    /// The number of publishers that are told of its changes, for which it was not slowed down yet.
    pub(super) told: AtomicUsize,
    /// The last round that it was charged for: what it changes for one costs no more than one change.
    pub(super) told_in: AtomicU64,
    /// What had been dropped when its slowness was last logged.
    slow_log: Spaced<Drops>,
    /// How many messages it had not been sent when it was last logged that it does not take them.
    large_log: Spaced<u64>,
    /// The topic of the last such message.
    large_topic: Mutex<Vec<u8>>,
    /// There is something to log that has to wait.
    unlogged: Notify,
    /// Since when it has been too slow.
    slow: Mutex<Slow>,
    /// Since when publishers wait for it.
    stall: Mutex<Stall>,
    /// `None`: it does not understand what it would be told of drops.
    telling: Option<Telling>,
    lines: Arc<Lines>,
    /// Where confirmations count that it does not read.
    owed: Option<UnreadAnswers>,
    /// Ends its connection.
    pub(super) cut: CancellationToken,
    /// Ends its connection because it holds too much memory.
    pub(super) outsized: CancellationToken,
}

impl Subscriber {
    pub(super) fn new(id: u32, peer: &str, send_queue: SendQueue, grant: Grant) -> Self {
        Self {
            id,
            peer: peer.into(),
            send_queue,
            grant,
            takes: None,
            since: Instant::now(),
            newest: Counter::default(),
            oldest: Counter::default(),
            conflated: Counter::default(),
            too_large: Counter::default(),
            waits: AtomicU64::new(0),
            waited_us: AtomicU64::new(0),
            subscriptions: AtomicUsize::new(0),
            subscription_bytes: AtomicUsize::new(0),
            toll: AtomicUsize::new(0),
            told: AtomicUsize::new(0),
            told_in: AtomicU64::new(0),
            slow_log: Spaced::default(),
            large_log: Spaced::default(),
            large_topic: Mutex::default(),
            unlogged: Notify::new(),
            slow: Mutex::default(),
            stall: Mutex::default(),
            telling: None,
            lines: Arc::default(),
            owed: None,
            cut: CancellationToken::new(),
            outsized: CancellationToken::new(),
        }
    }

    /// Sets the limits of the messages that the subscriber takes.
    pub(super) fn taking(self, takes: Option<MessageLimits>) -> Self {
        Self { takes, ..self }
    }

    /// Has the subscriber told what was dropped for it, if it understands that.
    pub(super) fn telling(self, understands: bool) -> Self {
        Self { telling: understands.then(Telling::default), ..self }
    }

    /// The same, with the confirmations that it does not read counted in this budget.
    pub(super) fn counting(self, memory: &MemoryBudget) -> Self {
        let owed = UnreadAnswers::new(memory, &self.peer, self.outsized.clone());
        Self { owed: Some(owed), ..self }
    }

    /// The same, with its lines in the log counted together with those of others.
    pub(super) fn logging(self, lines: &Arc<Lines>) -> Self {
        Self { lines: lines.clone(), ..self }
    }

    /// Sends it the confirmation of a subscription, ahead of what is queued. `false`: it has yet to read too
    /// many.
    pub(super) fn confirm(&self, answer: &[u8]) -> bool {
        let is_queued = self.send_queue.push_urgent(answer, CONFIRMATIONS_MAX);
        if let Some(owed) = self.owed.as_ref().filter(|_| is_queued) {
            owed.note(&self.send_queue);
        }
        is_queued
    }

    /// Tells it for ever what was dropped for it: at once, and then at most once in each interval.
    pub(super) async fn keep_telling(&self) -> Infallible {
        let Some(telling) = &self.telling else { return std::future::pending().await };
        loop {
            telling.news.notified().await;
            // While it does not read, what it was told last still waits: the next count takes all of them in.
            while !self.tell_drops() {
                tokio::time::sleep(TELL_INTERVAL).await;
            }
            tokio::time::sleep(TELL_INTERVAL).await;
        }
    }

    /// Tells it what was dropped for it, if that is new. `false`: too much waits already.
    pub(super) fn tell_drops(&self) -> bool {
        let Some(telling) = &self.telling else { return true };
        let mut told = lock(&telling.told);
        let drops = self.drops();
        let counts = DroppedCounts { too_slow: drops.slow().messages, too_large: drops.too_large.messages };
        if counts == *told {
            return true;
        }
        let mut bytes = BytesMut::new();
        Command::Dropped(counts).write(&mut bytes);
        let is_queued = self.send_queue.push_urgent(&bytes, TELL_MAX);
        if is_queued {
            *told = counts;
        }
        is_queued
    }

    fn note_news(&self) {
        if let Some(telling) = &self.telling {
            telling.news.notify_one();
        }
    }

    /// Counts messages that were dropped, and says so in the log now and then.
    pub(super) fn count_dropped(&self, drops: Drops) {
        for (counter, amount) in
            [(&self.newest, drops.newest), (&self.oldest, drops.oldest), (&self.conflated, drops.conflated)]
        {
            if amount.messages > 0 {
                counter.add(amount.messages as usize, amount.bytes as usize);
            }
        }
        self.note_slow();
        self.note_news();
        self.log_slowness();
    }

    /// Counts messages that it is not sent, because it has told that it does not take them, and says so in
    /// the log now and then, with the topic of the last one.
    pub(super) fn count_too_large(&self, amount: Amount, topic: &[u8]) {
        self.too_large.add(amount.messages as usize, amount.bytes as usize);
        self.note_news();
        {
            let mut last = lock(&self.large_topic);
            last.clear();
            last.extend_from_slice(&topic[..topic.len().min(TOPIC_SHOWN)]);
        }
        let in_all = self.drops().too_large.messages;
        match self.large_log.pass(in_all) {
            Some(before) => self.write_large(in_all, before),
            None => self.unlogged.notify_one(),
        }
    }

    fn write_large(&self, in_all: u64, before: u64) {
        let Some(unlogged) = self.lines.too_large.pass("subscribers that do not take large messages") else {
            return;
        };
        let MessageLimits { size, frames } = self.takes.unwrap_or_default();
        tracing::warn!(
            peer = %self.peer,
            topic = %lock(&self.large_topic).escape_ascii(),
            too_large = in_all - before,
            too_large_in_all = in_all,
            limit_bytes = size,
            limit_frames = frames,
            unlogged,
            "messages above a subscriber's limit are not sent to it. Raise its limit, or lower --max-message-size"
        );
    }

    /// Writes into the log for ever what had to wait because a line had just been written.
    pub(super) async fn keep_logging(&self) -> Infallible {
        loop {
            self.unlogged.notified().await;
            while let Some(due) = self.next_line() {
                tokio::time::sleep_until(due.into()).await;
                self.log_rest(false);
            }
        }
    }

    /// When what is not logged yet is to be, if there is anything.
    fn next_line(&self) -> Option<Instant> {
        let drops = self.drops();
        let slow = self.slow_log.due(|logged| logged.slow().messages < drops.slow().messages);
        let large = self.large_log.due(|logged| *logged < drops.too_large.messages);
        slow.into_iter().chain(large).min()
    }

    /// A snapshot, with the limits and the policy of topics that have none of their own.
    pub(super) fn stats(&self, default: Rule) -> SubscriberStats {
        SubscriberStats {
            id: self.id,
            peer: self.peer.to_string(),
            connected_for: self.since.elapsed(),
            subscriptions: self.subscriptions.load(Ordering::Relaxed),
            delivered: self.send_queue.written(),
            queued: self.send_queue.queued(),
            high_water_mark: default.mark,
            policy: default.policy,
            dropped: self.drops().total(),
            drops: self.drops(),
            waits: self.waits.load(Ordering::Relaxed),
            waited: self.waited(),
            principal: self.grant.principal(),
            denied: self.grant.denied(),
            slow_for: lock(&self.slow).lasts(Instant::now()),
        }
    }

    /// Logs what is not logged yet: what is due, or, at the end of its connection, all of it.
    pub(super) fn log_rest(&self, at_the_end: bool) {
        let drops = self.drops();
        let take = |due: Option<Instant>| due.is_some_and(|due| at_the_end || due <= now());
        if take(self.slow_log.due(|logged| logged.slow().messages < drops.slow().messages)) {
            self.write_slowness(drops, self.slow_log.take(drops));
        }
        let in_all = drops.too_large.messages;
        if take(self.large_log.due(|logged| *logged < in_all)) {
            self.write_large(in_all, self.large_log.take(in_all));
        }
    }

    pub(super) fn add_to(&self, totals: &mut Totals) {
        totals.delivered += self.send_queue.written();
        totals.dropped += self.drops().total();
        totals.drops += self.drops();
        totals.denied += self.grant.denied();
        totals.waits += self.waits.load(Ordering::Relaxed);
        totals.waited += self.waited();
    }

    pub(super) fn drops(&self) -> Drops {
        Drops {
            newest: self.newest.amount(),
            oldest: self.oldest.amount(),
            conflated: self.conflated.amount(),
            too_large: self.too_large.amount(),
        }
    }

    /// Counts that a publisher has to wait for it.
    pub(super) fn count_wait(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }

    /// Its queue is full, and a publisher waits for it.
    pub(super) fn note_slow(&self) {
        lock(&self.slow).note(Instant::now());
    }

    /// Counts for how long.
    pub(super) fn count_waited(&self, time: Duration) {
        self.waited_us.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    fn waited(&self) -> Duration {
        Duration::from_micros(self.waited_us.load(Ordering::Relaxed))
    }

    /// Says in the log that it is slow, and what came of it since the last time: at once, and then every
    /// [`SLOW_LOG_INTERVAL`] at most.
    pub(super) fn log_slowness(&self) {
        let drops = self.drops();
        match self.slow_log.pass(drops) {
            Some(before) => self.write_slowness(drops, before),
            None => self.unlogged.notify_one(),
        }
    }

    fn write_slowness(&self, drops: Drops, before: Drops) {
        let Some(unlogged) = self.lines.slow.pass("slow subscribers") else { return };
        let queued = self.send_queue.queued();
        let dropped = drops.slow().messages - before.slow().messages;
        if dropped == 0 {
            tracing::warn!(
                peer = %self.peer,
                waits = self.waits.load(Ordering::Relaxed),
                queued_messages = queued.messages,
                queued_bytes = queued.bytes,
                unlogged,
                "slow subscriber: publishers wait for it (block). Make it read faster, or choose another --slow-subscriber"
            );
            return;
        }
        tracing::warn!(
            peer = %self.peer,
            dropped,
            newest = drops.newest.messages - before.newest.messages,
            oldest = drops.oldest.messages - before.oldest.messages,
            conflated = drops.conflated.messages - before.conflated.messages,
            dropped_in_all = drops.slow().messages,
            queued_messages = queued.messages,
            queued_bytes = queued.bytes,
            unlogged,
            "slow subscriber: messages for it are dropped. Make it read faster, raise --high-water-mark, or choose another --slow-subscriber"
        );
    }

    /// Whether publishers have waited for it for this long, while it took next to nothing. To be asked again
    /// and again while one waits.
    pub(super) fn has_stalled(&self, longest: Duration) -> bool {
        lock(&self.stall).lasts(now(), self.send_queue.written().bytes) >= longest
    }

    /// Ends its connection, because it is too slow. `policy` is what wants it so.
    pub(super) fn cut_off(&self, policy: &str) {
        if self.cut.is_cancelled() {
            return;
        }
        let queued = self.send_queue.queued();
        if let Some(unlogged) = self.lines.cut_off.pass("subscribers that were cut off") {
            tracing::warn!(
                peer = %self.peer,
                queued_messages = queued.messages,
                queued_bytes = queued.bytes,
                policy,
                unlogged,
                "slow subscriber: it is cut off. Make it read faster, raise --high-water-mark, or choose another --slow-subscriber"
            );
        }
        self.cut.cancel();
        self.send_queue.close();
    }
}

/// Lines in the log that many peers can cause at the same time: there are so many of each kind, whoever
/// causes them.
#[derive(Debug, Default)]
pub(super) struct Lines {
    slow: Throttle,
    too_large: Throttle,
    cut_off: Throttle,
    /// Subscribers that left before everything had reached them.
    pub(super) left: Throttle,
    /// Publishers that do not read their subscriptions.
    pub(super) deaf: Throttle,
    /// Publishers that were cut off because they do not read their subscriptions.
    pub(super) cut_off_deaf: Throttle,
    /// Publishers that had left, and whose places were needed.
    pub(super) crowded_out: Throttle,
}

/// Lines in the log, each with what was counted since the one before, with pauses of [`SLOW_LOG_INTERVAL`].
#[derive(Debug)]
pub(super) struct Spaced<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Spaced<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Copy + Default> Spaced<T> {
    /// What had been counted at the last line, if another one may be written now, with all that `counted`
    /// says.
    pub(super) fn pass(&self, counted: T) -> Option<T> {
        let mut last = lock(&self.0);
        if last.is_some_and(|(at, _)| now().saturating_duration_since(at) < SLOW_LOG_INTERVAL) {
            return None;
        }
        Some(last.replace((now(), counted)).map_or_else(T::default, |(_, before)| before))
    }

    /// What had been counted at the last line, whenever that was, for another one with all that `counted`
    /// says.
    pub(super) fn take(&self, counted: T) -> T {
        lock(&self.0).replace((now(), counted)).map_or_else(T::default, |(_, before)| before)
    }

    /// When the next line may be written, if there is something to say about what has been logged.
    fn due(&self, is_old: impl FnOnce(&T) -> bool) -> Option<Instant> {
        let last = lock(&self.0);
        let (at, logged) = last
            .as_ref()
            .map_or_else(|| (now(), T::default()), |(at, logged)| (*at + SLOW_LOG_INTERVAL, *logged));
        is_old(&logged).then_some(at)
    }
}

/// What a subscriber is told of drops.
#[derive(Debug, Default)]
struct Telling {
    /// There may be new ones.
    news: Notify,
    /// What it was told last.
    told: Mutex<DroppedCounts>,
}

/// Messages that a subscriber was not sent: because it was too slow, by which ones were chosen, or because it
/// does not take them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Those that came when it was at its mark (`drop-newest`, and the last ones before `disconnect`; under
    /// the other policies when nothing that waited could go for them).
    pub newest: Amount,
    /// Those that had waited longest (`drop-oldest`, and `conflate` when there are too many topics).
    pub oldest: Amount,
    /// Those of which there was a newer one of the same topic (`conflate`).
    pub conflated: Amount,
    /// Those above the limits that the subscriber has told.
    pub too_large: Amount,
}

impl Drops {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> Amount {
        self.slow() + self.too_large
    }

    /// Those for which it was too slow.
    #[must_use]
    pub fn slow(&self) -> Amount {
        self.newest + self.oldest + self.conflated
    }
}

impl AddAssign for Drops {
    fn add_assign(&mut self, other: Self) {
        self.newest += other.newest;
        self.oldest += other.oldest;
        self.conflated += other.conflated;
        self.too_large += other.too_large;
    }
}

/// A snapshot of one publisher.
#[derive(Clone, Debug)]
pub struct PublisherStats {
    /// Its number: no other connection of this proxy has it; none has had it, unless there were four billion
    /// since.
    pub id: u32,
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
    /// How long ago it left, if it left before all that it had sent was passed on, because a subscriber is
    /// slow (`block`). It keeps its place until then, or until a newcomer finds no other one.
    pub left_for: Option<Duration>,
}

/// A snapshot of one subscriber.
#[derive(Clone, Debug)]
pub struct SubscriberStats {
    /// Its number: no other connection of this proxy has it; none has had it, unless there were four billion
    /// since.
    pub id: u32,
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
    /// How much may wait.
    pub high_water_mark: HighWaterMark,
    /// What happens then, to messages whose topic has no policy of its own.
    pub policy: Policy,
    /// What was dropped because it was too slow.
    pub dropped: Amount,
    /// What was dropped because it was too slow, by which messages were chosen.
    pub drops: Drops,
    /// How often a publisher had to wait for it.
    pub waits: u64,
    /// How long publishers waited for it.
    pub waited: Duration,
    /// Who it has proved to be.
    pub principal: Option<String>,
    /// Subscriptions that it was not allowed to make, or to keep.
    pub denied: u64,
    /// How long it has lost messages or held publishers up, without a break of ten seconds.
    pub slow_for: Option<Duration>,
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
