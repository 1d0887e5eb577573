//! Who is connected and what flows, as documents that others read: over HTTP, and as the answer to a control request.

use std::cmp::Reverse;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use xmsg_core::text::escaped;
use xmsg_zmq::Amount;
use xmsg_zmq::link::session::now;

use crate::switch::{Drops, PublisherStats, SubscriberStats, Switch, Watched};

/// Connections, and topics, that a document has at most.
const ROWS_MAX: usize = 1000;
/// How long a document is good for: it is made no more often, whoever asks.
const GOOD_FOR: Duration = Duration::from_millis(200);

#[derive(Serialize)]
pub(crate) struct Sum {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl From<Amount> for Sum {
    fn from(Amount { messages, bytes }: Amount) -> Self {
        Self { messages, bytes }
    }
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Publisher,
    Subscriber,
}

/// One connection. Messages and bytes are those that came from a publisher, or went to a subscriber.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) id: u32,
    pub(crate) peer: String,
    pub(crate) connected_s: f64,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// Who it has proved to be.
    pub(crate) principal: Option<String>,
    /// What it wanted to publish, or to subscribe to, and may not.
    pub(crate) denied: u64,
    /// How long ago a publisher left that had sent what a slow subscriber has yet to take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) left_s: Option<f64>,
    #[serde(flatten)]
    pub(crate) subscriber: Option<SubscriberPart>,
}

/// What only a subscriber has.
#[derive(Serialize)]
pub(crate) struct SubscriberPart {
    pub(crate) subscriptions: usize,
    pub(crate) queued: Sum,
    pub(crate) high_water_mark: Sum,
    pub(crate) policy: String,
    pub(crate) dropped: Sum,
    pub(crate) drops: DropRow,
    pub(crate) publisher_waits: u64,
    pub(crate) publisher_wait_s: f64,
    /// How long it has lost messages or held publishers up, without a break of ten seconds.
    pub(crate) slow_s: Option<f64>,
}

/// What was dropped, by the policy that chose it, or because the subscriber does not take it.
#[derive(Serialize)]
pub(crate) struct DropRow {
    pub(crate) newest: Sum,
    pub(crate) oldest: Sum,
    pub(crate) conflated: Sum,
    pub(crate) too_large: Sum,
}

impl From<Drops> for DropRow {
    fn from(drops: Drops) -> Self {
        let Drops { newest, oldest, conflated, too_large } = drops;
        Self {
            newest: newest.into(),
            oldest: oldest.into(),
            conflated: conflated.into(),
            too_large: too_large.into(),
        }
    }
}

impl From<PublisherStats> for Row {
    fn from(stats: PublisherStats) -> Self {
        Self {
            kind: Kind::Publisher,
            id: stats.id,
            peer: stats.peer,
            connected_s: stats.connected_for.as_secs_f64(),
            messages: stats.received.messages,
            bytes: stats.received.bytes,
            principal: stats.principal,
            denied: stats.denied,
            left_s: stats.left_for.map(|time| time.as_secs_f64()),
            subscriber: None,
        }
    }
}

impl From<SubscriberStats> for Row {
    fn from(stats: SubscriberStats) -> Self {
        Self {
            kind: Kind::Subscriber,
            id: stats.id,
            peer: stats.peer,
            connected_s: stats.connected_for.as_secs_f64(),
            messages: stats.delivered.messages,
            bytes: stats.delivered.bytes,
            principal: stats.principal,
            denied: stats.denied,
            left_s: None,
            subscriber: Some(SubscriberPart {
                subscriptions: stats.subscriptions,
                queued: stats.queued.into(),
                high_water_mark: Sum {
                    messages: stats.high_water_mark.messages as u64,
                    bytes: stats.high_water_mark.bytes as u64,
                },
                policy: stats.policy.to_string(),
                dropped: stats.dropped.into(),
                drops: stats.drops.into(),
                publisher_waits: stats.waits,
                publisher_wait_s: stats.waited.as_secs_f64(),
                slow_s: stats.slow_for.map(|time| time.as_secs_f64()),
            }),
        }
    }
}

/// One topic, and what has come since somebody began to look.
#[derive(Serialize)]
struct TopicRow {
    topic: String,
    messages: u64,
    bytes: u64,
}

/// Makes documents about a switch.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl Documents {
    /// One that is good now, in JSON. Fields are added, never renamed: docs/protocol.md lists them.
    pub(crate) fn get(&self, switch: &Switch) -> Bytes {
        let now = now();
        // Whoever asks meanwhile waits for the same one.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((made, document)) if now.saturating_duration_since(*made) < GOOD_FOR => document.clone(),
            _ => {
                let document = Bytes::from(document(switch).to_string());
                *last = Some((now, document.clone()));
                document
            }
        }
    }
}

fn document(switch: &Switch) -> serde_json::Value {
    let totals = switch.totals();
    let (publishers, subscribers) = (switch.publishers(), switch.subscribers());
    let counts = (publishers.len(), subscribers.len());
    let queued = subscribers.iter().fold(Amount::default(), |mut sum, one| {
        sum.messages += one.queued.messages;
        sum.bytes += one.queued.bytes;
        sum
    });
    let mut rows: Vec<Row> = publishers.into_iter().map(Row::from).collect();
    rows.extend(subscribers.into_iter().map(Row::from));
    // Those that matter most: who loses or holds something up, then who moves most.
    rows.sort_by_cached_key(|row| {
        let trouble = row.subscriber.as_ref().map(|own| (own.dropped.messages, own.queued.bytes));
        (Reverse(trouble.unwrap_or_default()), Reverse(row.messages), row.id)
    });
    let connections = rows.len();
    rows.truncate(ROWS_MAX);
    let Watched { time, mut topics, others } = switch.watch();
    topics.sort_by(|(a, one), (b, other)| other.messages.cmp(&one.messages).then_with(|| a.cmp(b)));
    let known = topics.len();
    let topics: Vec<TopicRow> = topics
        .into_iter()
        .take(ROWS_MAX)
        .map(|(topic, Amount { messages, bytes })| TopicRow { topic: text(&topic), messages, bytes })
        .collect();
    json!({
        "name": "xmsg-proxy",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": switch.uptime().as_secs_f64(),
        "received": Sum::from(totals.received),
        "delivered": Sum::from(totals.delivered),
        "dropped": Sum::from(totals.dropped),
        "queued": Sum::from(queued),
        "denied": totals.denied,
        "unmatched_messages": totals.unmatched,
        "undelivered_messages": totals.undelivered,
        "subscribers_disconnected": totals.disconnected,
        "connections_refused": totals.refused,
        "publishers": counts.0,
        "subscribers": counts.1,
        "subscriptions": switch.subscriptions(),
        "memory": { "used": switch.memory().used(), "limit": switch.memory().limit() },
        "connections": rows,
        "connections_left_out": connections.saturating_sub(ROWS_MAX),
        "topics": topics,
        "topics_left_out": known.saturating_sub(ROWS_MAX),
        "topics_watched_s": time.as_secs_f64(),
        "other_topics": Sum::from(others),
    })
}

/// A topic as text: bytes that are none are shown as `\\xff`, and what could do harm to a terminal as `\\u{9b}`.
fn text(topic: &[u8]) -> String {
    match std::str::from_utf8(topic) {
        Ok(text) => escaped(text).into_owned(),
        Err(_) => topic.escape_ascii().to_string(),
    }
}
