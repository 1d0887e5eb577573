//! A look at the proxy once a second, for all who watch together: what a second brought goes into the
//! history, and, while somebody watches, rates of connections and topics are made of what has changed since
//! the look before.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use xmsg_zmq::Amount;
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::lock::lock;

use super::api::event;
use super::history::{History, Sample, Span};
use super::process::{Process, unix_s};
use crate::stats::{Row, Sum, text};
use crate::switch::SAMPLES_PER_S;
use crate::{Monitor, Totals};

/// Time from one look to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long rates are made after somebody has wanted them last. It is longer than pages take from one
/// question to the next.
const WANTED_FOR: Duration = Duration::from_secs(10);
/// How many connections in trouble an overview has.
const SLOW: usize = 10;
/// How many topics an overview has: those with the highest rates.
const TOPICS: usize = 10;
/// How much the last second counts in the rate of a topic, where rates are estimated from samples: as much as
/// one of six seconds would. The few samples of a single second would let each rate, and the order of topics,
/// jump up and down.
const WEIGHT: f32 = 0.3;
/// The lowest rate. A lower one counts as 0.
const RATE_MIN: f32 = 0.01;

/// The overview of a proxy, which is sent once a second.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Overview {
    /// When it was made, seconds since 1970.
    pub(super) time_unix_s: f64,
    pub(super) version: &'static str,
    pub(super) uptime_s: f64,
    /// `ready` or `draining`.
    pub(super) phase: &'static str,
    /// The last second.
    pub(super) now: Sample,
    pub(super) received: Sum,
    pub(super) delivered: Sum,
    pub(super) dropped: Sum,
    /// What waits for all subscribers together.
    pub(super) queued: Sum,
    pub(super) unmatched_messages: u64,
    pub(super) undelivered_messages: u64,
    pub(super) denied: u64,
    pub(super) connections_refused: u64,
    pub(super) subscribers_disconnected: u64,
    pub(super) publishers: usize,
    pub(super) subscribers: usize,
    pub(super) subscriptions: usize,
    pub(super) memory_used: usize,
    pub(super) memory_limit: usize,
    /// Memory of the process, bytes; missing where the system does not say.
    pub(super) resident_bytes: Option<u64>,
    /// Subscribers that lose messages, hold publishers up, or are far behind: the worst first, ten at most.
    pub(super) slow: Vec<Client>,
    /// How many subscribers are slow.
    pub(super) slow_subscribers: usize,
    /// The topics with the highest rates, ten at most.
    pub(super) topics: Vec<TopicRate>,
    /// Topics that were seen since somebody began to watch.
    pub(super) topics_known: usize,
}

/// One connection, and what it does now.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Client {
    #[serde(flatten)]
    pub(super) row: Row,
    /// Messages a second; missing until two looks were made.
    pub(super) messages_per_s: Option<f32>,
    pub(super) bytes_per_s: Option<f32>,
    /// How long what waits for it would take at this rate, seconds: how late it gets its messages, roughly.
    pub(super) behind_s: Option<f32>,
}

/// One topic, and what flows on it. While more than 500 messages a second come in, numbers are estimated from
/// samples, and rates are means of the last seconds.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub(super) struct TopicRate {
    /// Bytes that are no UTF-8 are shown as `\xff`, control characters and those that turn text around as
    /// `\u{202e}`.
    pub(super) topic: String,
    pub(super) messages_per_s: f32,
    pub(super) bytes_per_s: f32,
    /// Since somebody began to watch.
    pub(super) messages: u64,
}

/// Messages and bytes a second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    pub(super) messages_per_s: f32,
    pub(super) bytes_per_s: f32,
}

/// One topic, as the last look has found it.
#[derive(Debug)]
pub(super) struct FoundTopic {
    pub(super) topic: Box<[u8]>,
    /// The messages and bytes since somebody began to watch.
    amount: Amount,
    pub(super) rates: Rates,
}

/// The result of the last look, while somebody watches.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) at: Instant,
    /// Messages and bytes a second of each connection, by its number.
    rates: HashMap<u32, Rates>,
    /// All topics that are known, with the highest rates first.
    pub(super) topics: Vec<FoundTopic>,
    /// The messages and bytes of topics for which there was no room.
    pub(super) others: Amount,
    /// For how long topics have been watched.
    pub(super) watched: Duration,
}

/// The last look, and the overview that was made of it.
#[derive(Debug)]
struct Last {
    found: Arc<Found>,
    overview: Overview,
}

/// The results of all looks.
#[derive(Debug)]
pub(super) struct Looks {
    started: Instant,
    history: Mutex<History>,
    last: Mutex<Option<Last>>,
    /// The newest overview, as the event that all streams send: it is made once, however many there are.
    /// Whoever is late gets the next one.
    overview: watch::Sender<Bytes>,
    /// Until when somebody wants rates: milliseconds since the start.
    wanted_until: AtomicU64,
}

impl Default for Looks {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            history: Mutex::default(),
            last: Mutex::default(),
            overview: watch::Sender::new(Bytes::new()),
            wanted_until: AtomicU64::new(0),
        }
    }
}

impl Looks {
    /// Notes that somebody wants rates, now and for some time.
    fn want(&self) {
        let until = (self.started.elapsed().saturating_add(WANTED_FOR)).as_millis() as u64;
        self.wanted_until.fetch_max(until, Ordering::Relaxed);
    }

    fn is_wanted(&self) -> bool {
        self.overview.receiver_count() > 0
            || u128::from(self.wanted_until.load(Ordering::Relaxed)) > self.started.elapsed().as_millis()
    }

    /// Returns a receiver of overviews as events, one each second from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<Bytes> {
        self.want();
        self.overview.subscribe()
    }

    /// Returns the samples of this span: the seconds between two of them, and all of them.
    pub(super) fn history(&self, span: Span) -> (usize, Vec<Sample>) {
        lock(&self.history).of(span)
    }

    /// Returns what the last look found. Returns `None` if nobody has watched so far. From now on somebody
    /// does.
    pub(super) fn found(&self) -> Option<Arc<Found>> {
        self.want();
        let last = lock(&self.last);
        last.as_ref().map(|last| last.found.clone()).filter(|found| found.is_fresh())
    }

    /// Returns the overview as of the last look, or, if nobody has watched, as of now without rates.
    pub(super) fn overview(&self, proxy: &Monitor, phase: &'static str) -> Overview {
        self.want();
        if let Some(last) = lock(&self.last).as_ref()
            && last.found.is_fresh()
        {
            return last.overview.clone();
        }
        let now = self.history(Span::Minutes).1.last().copied().unwrap_or_default();
        Looker { before: None, proxy: proxy.clone() }.look(None, now, phase).1
    }

    /// Looks once a second until `stop` is cancelled. `phase` returns that of the daemon.
    pub(super) async fn run(
        &self,
        proxy: Monitor,
        phase: impl Fn() -> &'static str,
        stop: CancellationToken,
    ) {
        let mut looker = Looker { before: None, proxy };
        let mut due = Deadline::after(INTERVAL);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(due.left()) => {}
            }
            // Looks that were missed are not made up for.
            due = Deadline::after(INTERVAL);
            let sample = looker.second();
            lock(&self.history).push(sample);
            if !self.is_wanted() {
                *lock(&self.last) = None;
                continue;
            }
            let before = lock(&self.last).as_ref().map(|last| last.found.at);
            let (found, overview) = looker.look(before, sample, phase());
            let text = serde_json::to_vec(&overview).unwrap_or_default();
            *lock(&self.last) = Some(Last { found: Arc::new(found), overview });
            self.overview.send_replace(event("overview", &text));
        }
    }
}

/// Makes looks, and remembers what it needs for the next one.
struct Looker {
    proxy: Monitor,
    before: Option<Before>,
}

struct Before {
    at: Instant,
    totals: Totals,
    cpu_s: Option<f64>,
    /// Messages and bytes of each connection, while somebody watches.
    clients: HashMap<u32, Amount>,
    topics: HashMap<Box<[u8]>, Known>,
}

/// One topic, as the look before has found it.
#[derive(Clone, Copy, Debug)]
struct Known {
    amount: Amount,
    /// Its rates, or `None` after the first look.
    rates: Option<Rates>,
}

impl Looker {
    /// Returns the sample of the time since the last call.
    fn second(&mut self) -> Sample {
        let (totals, at, cpu_s) = (self.proxy.totals(), Instant::now(), Process::cpu());
        let mut sample = Sample { memory: self.proxy.memory().used() as f32, ..Sample::default() };
        let before = self.before.take();
        if let Some(before) = &before {
            let seconds = at.saturating_duration_since(before.at).as_secs_f64().max(1e-3);
            let rate = |now: u64, then: u64| (now.saturating_sub(then) as f64 / seconds) as f32;
            let (now, then) = (&totals, &before.totals);
            sample.received = rate(now.received.messages, then.received.messages);
            sample.delivered = rate(now.delivered.messages, then.delivered.messages);
            sample.dropped = rate(now.dropped.messages, then.dropped.messages);
            sample.received_bytes = rate(now.received.bytes, then.received.bytes);
            sample.delivered_bytes = rate(now.delivered.bytes, then.delivered.bytes);
            let waited = now.waited.saturating_sub(then.waited).as_secs_f64();
            sample.publisher_wait = (waited / seconds) as f32;
            if let (Some(now), Some(then)) = (cpu_s, before.cpu_s) {
                sample.cpu = ((now - then).max(0.0) / seconds) as f32;
            }
        }
        let (clients, topics) = before.map(|before| (before.clients, before.topics)).unwrap_or_default();
        self.before = Some(Before { at, totals, cpu_s, clients, topics });
        sample
    }

    /// Makes a look: rates since the last one, if there was one, and the overview.
    fn look(&mut self, last: Option<Instant>, now: Sample, phase: &'static str) -> (Found, Overview) {
        let at = Instant::now();
        let seconds = last.map(|last| at.saturating_duration_since(last).as_secs_f64().max(1e-3));
        let (mut then, mut topics_then) = (HashMap::new(), HashMap::new());
        if let Some(before) = &mut self.before
            && last.is_some()
        {
            (then, topics_then) = (std::mem::take(&mut before.clients), std::mem::take(&mut before.topics));
        }
        let rate =
            |now: u64, then: u64| seconds.map_or(0.0, |time| (now.saturating_sub(then) as f64 / time) as f32);
        let (publishers, subscribers) = (self.proxy.publishers(), self.proxy.subscribers());
        let (publisher_count, subscriber_count) = (publishers.len(), subscribers.len());
        let moved = publishers.iter().map(|one| (one.id, one.received));
        let moved = moved.chain(subscribers.iter().map(|one| (one.id, one.delivered)));
        let clients: HashMap<u32, Amount> = moved.collect();
        let rates_since = |now: Amount, then: Amount| Rates {
            messages_per_s: rate(now.messages, then.messages),
            bytes_per_s: rate(now.bytes, then.bytes),
        };
        let rates: HashMap<u32, Rates> = clients
            .iter()
            .filter_map(|(id, now)| then.get(id).map(|then| (*id, rates_since(*now, *then))))
            .collect();

        let watched = self.proxy.watch();
        let is_estimated = f64::from(now.received) > SAMPLES_PER_S;
        let mut topics: Vec<_> = watched
            .topics
            .into_iter()
            .map(|(topic, amount)| {
                let known = topics_then.get(&topic).copied();
                let then = known.map(|known| known.amount).unwrap_or_default();
                let mut rates = rates_since(amount, then);
                if let Some(before) = known.and_then(|known| known.rates)
                    && is_estimated
                {
                    rates = Rates {
                        messages_per_s: smoothed(rates.messages_per_s, before.messages_per_s),
                        bytes_per_s: smoothed(rates.bytes_per_s, before.bytes_per_s),
                    };
                }
                FoundTopic { topic, amount, rates }
            })
            .collect();
        topics.sort_by(|a, b| {
            (b.rates.messages_per_s.total_cmp(&a.rates.messages_per_s))
                .then(b.amount.messages.cmp(&a.amount.messages))
                .then_with(|| a.topic.cmp(&b.topic))
        });
        let found = Found { at, rates, topics, others: watched.others, watched: watched.time };

        let queued = subscribers.iter().fold(Amount::default(), |mut sum, one| {
            sum.messages += one.queued.messages;
            sum.bytes += one.queued.bytes;
            sum
        });
        let mut slow: Vec<_> = subscribers.into_iter().filter(|one| one.slow_for.is_some()).collect();
        let slow_subscribers = slow.len();
        slow.sort_by_key(|one| (Reverse(one.dropped.messages), Reverse(one.queued.bytes), one.id));
        slow.truncate(SLOW);
        let slow = slow.into_iter().map(|one| found.client(Row::from(one))).collect();
        let totals = self.proxy.totals();
        if let Some(before) = &mut self.before {
            before.clients = clients;
            let known = |amount, rates| Known { amount, rates: seconds.map(|_| rates) };
            before.topics = (found.topics.iter())
                .map(|found| (found.topic.clone(), known(found.amount, found.rates)))
                .collect();
        }
        let overview = Overview {
            time_unix_s: unix_s(SystemTime::now()),
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: self.proxy.uptime().as_secs_f64(),
            phase,
            now,
            received: totals.received.into(),
            delivered: totals.delivered.into(),
            dropped: totals.dropped.into(),
            queued: queued.into(),
            unmatched_messages: totals.unmatched,
            undelivered_messages: totals.undelivered,
            denied: totals.denied,
            connections_refused: totals.refused,
            subscribers_disconnected: totals.disconnected,
            publishers: publisher_count,
            subscribers: subscriber_count,
            subscriptions: self.proxy.subscriptions(),
            memory_used: self.proxy.memory().used(),
            memory_limit: self.proxy.memory().limit(),
            resident_bytes: Process::resident(),
            slow,
            slow_subscribers,
            topics: found.topics.iter().take(TOPICS).map(topic_rate).collect(),
            topics_known: found.topics.len(),
        };
        (found, overview)
    }
}

/// Estimates a rate from that of the last second and the estimate before it.
fn smoothed(now: f32, before: f32) -> f32 {
    let rate = before + (now - before) * WEIGHT;
    if rate < RATE_MIN { 0.0 } else { rate }
}

impl Found {
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < INTERVAL * 3
    }

    /// Returns a connection with its rates.
    pub(super) fn client(&self, row: Row) -> Client {
        client(row, Some(&self.rates))
    }
}

/// Returns a connection, with its rates if they are known.
pub(super) fn client(row: Row, rates: Option<&HashMap<u32, Rates>>) -> Client {
    let own = rates.and_then(|rates| rates.get(&row.id));
    let messages_per_s = own.map(|own| own.messages_per_s);
    let queued = row.subscriber.as_ref().map_or(0, |part| part.queued.messages);
    let behind_s = match messages_per_s {
        Some(rate) if queued > 0 && rate > 0.0 => Some(queued as f32 / rate),
        _ => None,
    };
    Client { row, messages_per_s, bytes_per_s: own.map(|own| own.bytes_per_s), behind_s }
}

/// Returns a topic as answers have it.
pub(super) fn topic_rate(found: &FoundTopic) -> TopicRate {
    let Rates { messages_per_s, bytes_per_s } = found.rates;
    TopicRate { topic: text(&found.topic), messages_per_s, bytes_per_s, messages: found.amount.messages }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_from_few_samples_are_steady_and_those_that_end_go_to_nothing() {
        // Each second has 4 or 6 samples of 100 messages.
        let mut rate = 500.0;
        for second in 0..100 {
            rate = smoothed(if second % 2 == 0 { 400.0 } else { 600.0 }, rate);
            assert!((470.0..530.0).contains(&rate), "{rate}");
        }
        let seconds = (0..).take_while(|_| {
            rate = smoothed(0.0, rate);
            rate > 0.0
        });
        assert!((3..60).contains(&seconds.count()));
    }
}
