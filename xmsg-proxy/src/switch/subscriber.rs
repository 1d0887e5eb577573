//! A connected subscriber: its queue, its counters, and what is logged and reported of its losses.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use xmsg_zmq::Amount;
use xmsg_zmq::link::send_queue::{SendQueue, URGENT_MAX};
use xmsg_zmq::link::session::now;
use xmsg_zmq::lock::lock;
use xmsg_zmq::memory_budget::{MemoryBudget, UnreadAnswers};
use xmsg_zmtp::{Command, DroppedCounts, MessageLimits};

use super::Totals;
use super::authorization::Authorization;
use super::log_throttles::LogThrottles;
use super::observer::Observer;
use super::paced_log::PacedLog;
use super::peer_stats::{Counter, Drops, SubscriberStats};
use super::slow_period::SlowPeriod;
use super::stall_clock::StallClock;
use crate::policy::Rule;

/// The shortest interval between reports of dropped messages to a subscriber that understands them.
const DROP_REPORT_INTERVAL: Duration = Duration::from_millis(100);
/// The number of bytes of such reports that may wait to be written, together with other answers of the
/// protocol: two reports and a little more.
const DROP_REPORTS_MAX: usize = 64;
/// The number of bytes of confirmations that may wait for a subscriber. It is half of its limit for urgent
/// bytes, so that others can't exhaust that by asking.
const CONFIRMATIONS_MAX: usize = URGENT_MAX / 2;
/// The number of bytes of a topic that are shown in the log.
pub(super) const TOPIC_SHOWN: usize = 255;

/// A connected subscriber, or a [watcher](super::observer).
#[derive(Debug)]
pub(super) struct ConnectedSubscriber {
    pub(super) id: u32,
    pub(super) peer: Box<str>,
    pub(super) send_queue: SendQueue,
    pub(super) authorization: Authorization,
    /// The limits of the messages that it takes, if they are below those of the proxy.
    pub(super) takes: Option<MessageLimits>,
    /// Where messages are shown instead of queued: it is a watcher, and no connection.
    pub(super) observer: Option<Observer>,
    since: Instant,
    newest: Counter,
    oldest: Counter,
    conflated: Counter,
    too_large: Counter,
    waits: AtomicU64,
    waited_us: AtomicU64,
    pub(super) subscriptions: AtomicUsize,
    /// The bytes of the prefixes of its subscriptions.
    pub(super) subscription_bytes: AtomicUsize,
    /// The cost of activating and covering its prefixes in the table for which it was not slowed down yet.
    pub(super) table_work: AtomicUsize,
    /// The number of publishers that are notified of its changes for which it was not slowed down yet.
    pub(super) notified: AtomicUsize,
    /// The bytes of these notifications for all publishers together.
    pub(super) notified_bytes: AtomicUsize,
    /// The last round of notifications that it was charged for. All its changes in one round cost as much as
    /// one.
    pub(super) notified_in: AtomicU64,
    /// The counts of dropped messages when its slowness was last logged.
    slow_log: PacedLog<Drops>,
    /// The number of messages above its limits when that was last logged.
    large_log: PacedLog<u64>,
    /// The topic of the last message above its limits.
    large_topic: Mutex<Vec<u8>>,
    /// Notifies the task that logs that there is something to log later.
    unlogged: Notify,
    /// The period in which the subscriber has been too slow.
    slow_period: Mutex<SlowPeriod>,
    /// The time for which publishers have waited for the subscriber while it took next to nothing.
    pub(super) stall_clock: Mutex<StallClock>,
    /// The reports of dropped messages, or `None` if it does not understand them.
    drop_reports: Option<DropReports>,
    pub(super) log_throttles: Arc<LogThrottles>,
    /// The memory of the confirmations that it has not read.
    unread: Option<UnreadAnswers>,
    /// Cancelled to disconnect the subscriber because it is too slow.
    pub(super) disconnected: CancellationToken,
    /// Cancelled to end the connection because the subscriber holds too much memory.
    pub(super) outsized: CancellationToken,
}

impl ConnectedSubscriber {
    pub(super) fn new(id: u32, peer: &str, send_queue: SendQueue, authorization: Authorization) -> Self {
        Self {
            id,
            peer: peer.into(),
            send_queue,
            authorization,
            takes: None,
            observer: None,
            since: Instant::now(),
            newest: Counter::default(),
            oldest: Counter::default(),
            conflated: Counter::default(),
            too_large: Counter::default(),
            waits: AtomicU64::new(0),
            waited_us: AtomicU64::new(0),
            subscriptions: AtomicUsize::new(0),
            subscription_bytes: AtomicUsize::new(0),
            table_work: AtomicUsize::new(0),
            notified: AtomicUsize::new(0),
            notified_bytes: AtomicUsize::new(0),
            notified_in: AtomicU64::new(0),
            slow_log: PacedLog::default(),
            large_log: PacedLog::default(),
            large_topic: Mutex::default(),
            unlogged: Notify::new(),
            slow_period: Mutex::default(),
            stall_clock: Mutex::default(),
            drop_reports: None,
            log_throttles: Arc::default(),
            unread: None,
            disconnected: CancellationToken::new(),
            outsized: CancellationToken::new(),
        }
    }

    /// Sets the limits of the messages that the subscriber takes.
    pub(super) fn taking(self, takes: Option<MessageLimits>) -> Self {
        Self { takes, ..self }
    }

    /// Enables reports of dropped messages to the subscriber, if it understands them.
    pub(super) fn with_drop_reports(self, understands: bool) -> Self {
        Self { drop_reports: understands.then(DropReports::default), ..self }
    }

    /// Counts the confirmations that the subscriber has not read in this budget.
    pub(super) fn counting(self, memory: &MemoryBudget) -> Self {
        let unread = UnreadAnswers::new(memory, &self.peer, self.outsized.clone());
        Self { unread: Some(unread), ..self }
    }

    /// Counts its log lines together with those of others.
    pub(super) fn logging(self, log_throttles: &Arc<LogThrottles>) -> Self {
        Self { log_throttles: log_throttles.clone(), ..self }
    }

    /// Sends the confirmation of a subscription ahead of what is queued. Returns `false` if too many are
    /// unread.
    pub(super) fn confirm(&self, answer: &[u8]) -> bool {
        let is_queued = self.send_queue.push_urgent(answer, CONFIRMATIONS_MAX);
        if let Some(unread) = self.unread.as_ref().filter(|_| is_queued) {
            unread.note(&self.send_queue);
        }
        is_queued
    }

    /// Reports dropped messages to the subscriber for ever: at once, and then at most once in each interval.
    pub(super) async fn keep_reporting_drops(&self) -> Infallible {
        let Some(drop_reports) = &self.drop_reports else { return std::future::pending().await };
        loop {
            drop_reports.changed.notified().await;
            // While it does not read, its last report still waits. The next one will contain all later drops.
            while !self.report_drops() {
                tokio::time::sleep(DROP_REPORT_INTERVAL).await;
            }
            tokio::time::sleep(DROP_REPORT_INTERVAL).await;
        }
    }

    /// Reports the dropped messages if there are new ones. Returns `false` if too many reports are unread.
    pub(super) fn report_drops(&self) -> bool {
        let Some(drop_reports) = &self.drop_reports else { return true };
        let mut reported = lock(&drop_reports.reported);
        let drops = self.drops();
        let counts = DroppedCounts { too_slow: drops.slow().messages, too_large: drops.too_large.messages };
        if counts == *reported {
            return true;
        }
        let mut bytes = BytesMut::new();
        Command::Dropped(counts).write(&mut bytes);
        let is_queued = self.send_queue.push_urgent(&bytes, DROP_REPORTS_MAX);
        if is_queued {
            *reported = counts;
        }
        is_queued
    }

    fn note_drops(&self) {
        if let Some(drop_reports) = &self.drop_reports {
            drop_reports.changed.notify_one();
        }
    }

    /// Counts dropped messages, and logs them now and then.
    pub(super) fn count_dropped(&self, drops: Drops) {
        for (counter, amount) in
            [(&self.newest, drops.newest), (&self.oldest, drops.oldest), (&self.conflated, drops.conflated)]
        {
            if amount.messages > 0 {
                counter.add(amount.messages as usize, amount.bytes as usize);
            }
        }
        self.note_slow();
        self.note_drops();
        self.log_slowness();
    }

    /// Counts messages that are not sent because they exceed the limits of the subscriber, and logs them now
    /// and then, with the topic of the last one.
    pub(super) fn count_too_large(&self, amount: Amount, topic: &[u8]) {
        self.too_large.add(amount.messages as usize, amount.bytes as usize);
        self.note_drops();
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
        let Some(unlogged) = self.log_throttles.too_large.pass("subscribers that do not take large messages")
        else {
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

    /// Logs for ever what had to wait because a line had just been written.
    pub(super) async fn keep_logging(&self) -> Infallible {
        loop {
            self.unlogged.notified().await;
            while let Some(due) = self.next_line() {
                tokio::time::sleep_until(due.into()).await;
                self.log_rest(false);
            }
        }
    }

    /// Returns the time for the next line, if there is something to log.
    fn next_line(&self) -> Option<Instant> {
        let drops = self.drops();
        let slow = self.slow_log.due(|logged| logged.slow().messages < drops.slow().messages);
        let large = self.large_log.due(|logged| *logged < drops.too_large.messages);
        slow.into_iter().chain(large).min()
    }

    /// Returns the statistics, with the limits and the policy of topics that have none of their own.
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
            principal: self.authorization.principal_text(),
            denied: self.authorization.denied(),
            slow_for: lock(&self.slow_period).lasts(Instant::now()),
        }
    }

    /// Logs what is not logged yet: what is due or, at the end of the connection, all of it.
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
        totals.denied += self.authorization.denied();
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

    /// Counts that a publisher has to wait for the subscriber.
    pub(super) fn count_wait(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that the queue is full and a publisher waits for the subscriber.
    pub(super) fn note_slow(&self) {
        lock(&self.slow_period).note(Instant::now());
    }

    /// Adds the time that a publisher waited.
    pub(super) fn count_waited(&self, time: Duration) {
        self.waited_us.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    fn waited(&self) -> Duration {
        Duration::from_micros(self.waited_us.load(Ordering::Relaxed))
    }

    /// Logs that the subscriber is slow, and the consequences since the last line: at once, and then at most
    /// once in every [`SLOW_LOG_INTERVAL`](super::paced_log::SLOW_LOG_INTERVAL).
    pub(super) fn log_slowness(&self) {
        let drops = self.drops();
        match self.slow_log.pass(drops) {
            Some(before) => self.write_slowness(drops, before),
            None => self.unlogged.notify_one(),
        }
    }

    fn write_slowness(&self, drops: Drops, before: Drops) {
        let Some(unlogged) = self.log_throttles.slow.pass("slow subscribers") else { return };
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
}

/// The reports of dropped messages to a subscriber.
#[derive(Debug, Default)]
struct DropReports {
    /// Notifies the task that reports that there may be new drops.
    changed: Notify,
    /// The counts that were last reported.
    reported: Mutex<DroppedCounts>,
}

#[cfg(test)]
#[path = "subscriber_tests.rs"]
mod tests;
