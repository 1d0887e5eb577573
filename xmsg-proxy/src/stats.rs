//! The statistics of a proxy as documents for other programs: over HTTP, and as the answer to a control
//! request.

use std::cmp::Reverse;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use xmsg_core::text::escaped;
use xmsg_zmq::Amount;
use xmsg_zmq::link::session::now;
use xmsg_zmq::lock::lock;

use crate::switch::{Drops, PublisherStats, SubscriberStats, Switch, Watched};
use crate::upstream::{UpstreamState, UpstreamStats};

/// The maximum number of connections, and of topics, in a document.
const ROWS_MAX: usize = 1000;
/// The maximum size in bytes of the connections, and of the topics, in a document: peers choose names and
/// topics.
const ROWS_BYTES: usize = 2 << 20;
/// The largest number of bytes of a connection in a document, beside its texts.
const ROW: usize = 1024;
/// The number of bytes of a topic in a document, beside its text.
const TOPIC_ROW: usize = 128;
/// The largest number of bytes of a byte of text in JSON.
const ESCAPED: usize = 6;
/// The length in bytes of the longest document.
pub(crate) const DOCUMENT_MAX: usize = 2 * ROWS_BYTES + (64 << 10);
/// The time for which a document is returned again: it is made no more often, however many clients ask.
const GOOD_FOR: Duration = Duration::from_millis(200);

#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub(crate) struct Sum {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl From<Amount> for Sum {
    fn from(Amount { messages, bytes }: Amount) -> Self {
        Self { messages, bytes }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Publisher,
    Subscriber,
    Upstream,
}

/// One connection. Messages and bytes are those that came from a publisher or an upstream, or were written to
/// a subscriber.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) id: u32,
    pub(crate) peer: String,
    pub(crate) connected_s: f64,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// The identity that it has proved.
    pub(crate) principal: Option<String>,
    /// The number of operations that it wanted and that its rights did not allow.
    pub(crate) denied: u64,
    /// The time since a publisher left, if a slow subscriber has yet to take messages of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) left_s: Option<f64>,
    #[serde(flatten)]
    pub(crate) subscriber: Option<SubscriberPart>,
    #[serde(flatten)]
    pub(crate) upstream: Option<UpstreamPart>,
}

impl Row {
    /// Returns the largest number of bytes of the row in JSON.
    fn len(&self) -> usize {
        let principal = self.principal.as_ref().map_or(0, String::len);
        let policy = self.subscriber.as_ref().map_or(0, |own| own.policy.len());
        let error = self.upstream.as_ref().and_then(|own| own.error.as_ref()).map_or(0, String::len);
        ROW + ESCAPED * (self.peer.len() + principal + policy + error)
    }
}

/// The fields of subscribers only.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub(crate) struct SubscriberPart {
    pub(crate) subscriptions: usize,
    pub(crate) queued: Sum,
    pub(crate) high_water_mark: Sum,
    pub(crate) policy: String,
    pub(crate) dropped: Sum,
    pub(crate) drops: DropRow,
    pub(crate) publisher_waits: u64,
    pub(crate) publisher_wait_s: f64,
    /// The time for which it has lost messages or made publishers wait, without a break of ten seconds.
    pub(crate) slow_s: Option<f64>,
}

/// The fields of upstreams only.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
pub(crate) struct UpstreamPart {
    /// The state of the link: the name of an [`UpstreamState`].
    pub(crate) state: &'static str,
    /// The time that it has been in this state.
    pub(crate) state_s: f64,
    pub(crate) reconnections: u64,
    /// The number of times that the link would have closed a loop.
    pub(crate) loops: u64,
    /// The number of messages that were for the other proxy and its own clients.
    pub(crate) control: u64,
    /// The reason why there is no connection, or why the last one ended.
    pub(crate) error: Option<String>,
}

/// The dropped messages, by the policy that chose them, or because the subscriber does not accept them.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "daemon", derive(utoipa::ToSchema))]
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
            upstream: None,
        }
    }
}

impl From<UpstreamStats> for Row {
    fn from(stats: UpstreamStats) -> Self {
        let state_s = stats.state_for.as_secs_f64();
        Self {
            kind: Kind::Upstream,
            id: stats.id,
            peer: stats.address,
            connected_s: if stats.state == UpstreamState::Connected { state_s } else { 0.0 },
            messages: stats.received.messages,
            bytes: stats.received.bytes,
            principal: None,
            denied: stats.denied,
            left_s: None,
            subscriber: None,
            upstream: Some(UpstreamPart {
                state: stats.state.name(),
                state_s,
                reconnections: stats.reconnections,
                loops: stats.loops,
                control: stats.control,
                error: stats.error,
            }),
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
            upstream: None,
        }
    }
}

/// One topic, and its traffic since somebody began to ask for it.
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
    /// Returns a document in JSON that is up to date. Fields are added, never renamed: docs/protocol.md lists
    /// them.
    pub(crate) fn get(&self, switch: &Switch) -> Bytes {
        let now = now();
        // Clients that ask meanwhile wait for the same document.
        let mut last = lock(&self.last);
        match &*last {
            Some((made, document)) if now.saturating_duration_since(*made) < GOOD_FOR => document.clone(),
            _ => {
                let document = switch.memory().counted(document(switch).to_string().into());
                *last = Some((now, document.clone()));
                document
            }
        }
    }
}

fn document(switch: &Switch) -> serde_json::Value {
    let totals = switch.totals();
    let (publishers, subscribers, upstreams) =
        (switch.publishers(), switch.subscribers(), switch.upstreams());
    let links = upstreams.len();
    let counts = (publishers.len(), subscribers.len());
    let queued = subscribers.iter().fold(Amount::default(), |mut sum, one| {
        sum.messages += one.queued.messages;
        sum.bytes += one.queued.bytes;
        sum
    });
    let mut rows: Vec<Row> = upstreams.into_iter().map(Row::from).collect();
    rows.extend(publishers.into_iter().map(Row::from));
    rows.extend(subscribers.into_iter().map(Row::from));
    // The most important connections come first: upstreams, then those that lose messages or make others
    // wait, then those with most traffic.
    rows.sort_by_cached_key(|row| {
        let trouble = row.subscriber.as_ref().map(|own| (own.dropped.messages, own.queued.bytes));
        (row.upstream.is_none(), Reverse(trouble.unwrap_or_default()), Reverse(row.messages), row.id)
    });
    let connections = rows.len();
    rows.truncate(first_within(rows.iter().map(Row::len)));
    let Watched { time, mut topics, others } = switch.watch();
    topics.sort_by(|(a, one), (b, other)| other.messages.cmp(&one.messages).then_with(|| a.cmp(b)));
    let known = topics.len();
    let mut topics: Vec<TopicRow> = topics
        .into_iter()
        .take(ROWS_MAX)
        .map(|(topic, Amount { messages, bytes })| TopicRow { topic: text(&topic), messages, bytes })
        .collect();
    topics.truncate(first_within(topics.iter().map(|row| TOPIC_ROW + ESCAPED * row.topic.len())));
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
        "upstreams": links,
        "double_paths": switch.double_paths(),
        "subscriptions": switch.subscriptions(),
        "memory": { "used": switch.memory().used(), "limit": switch.memory().limit() },
        "connections_left_out": connections - rows.len(),
        "connections": rows,
        "topics_left_out": known - topics.len(),
        "topics": topics,
        "topics_watched_s": time.as_secs_f64(),
        "other_topics": Sum::from(others),
    })
}

/// Returns how many of the first rows of these lengths a document contains.
fn first_within(lengths: impl Iterator<Item = usize>) -> usize {
    let mut left = ROWS_BYTES;
    let fits = |len: &usize| left.checked_sub(*len).map(|rest| left = rest).is_some();
    lengths.take(ROWS_MAX).take_while(fits).count()
}

/// Returns a topic as text. Bytes that are no text are shown as `\\xff`, and characters that could harm a
/// terminal as `\\u{9b}`.
pub(crate) fn text(topic: &[u8]) -> String {
    match std::str::from_utf8(topic) {
        Ok(text) => escaped(text).into_owned(),
        Err(_) => topic.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;
    use xmsg_zmq::HighWaterMark;

    #[test]
    fn rows_are_no_longer_than_they_count_for() {
        let worst = Amount { messages: u64::MAX, bytes: u64::MAX };
        let drops = Drops { newest: worst, oldest: worst, conflated: worst, too_large: worst };
        let long = Duration::from_micros(u64::MAX);
        let stats = SubscriberStats {
            id: u32::MAX,
            peer: "\u{1}".repeat(64),
            connected_for: long,
            subscriptions: usize::MAX,
            delivered: worst,
            queued: worst,
            high_water_mark: HighWaterMark::bytes(usize::MAX),
            policy: Policy::Block { longest: Some(long) },
            dropped: worst,
            drops,
            waits: u64::MAX,
            waited: long,
            principal: Some("\u{1}".repeat(255)),
            denied: u64::MAX,
            slow_for: Some(long),
        };
        let row = Row::from(stats);
        let len = serde_json::to_string(&row).unwrap().len();
        assert!(len <= row.len(), "{len} above {}", row.len());
        let stats = UpstreamStats {
            id: u32::MAX,
            address: "\u{1}".repeat(300),
            state: UpstreamState::Disconnected,
            state_for: long,
            received: worst,
            reconnections: u64::MAX,
            loops: u64::MAX,
            control: u64::MAX,
            denied: u64::MAX,
            error: Some("\u{1}".repeat(512)),
        };
        let row = Row::from(stats);
        let len = serde_json::to_string(&row).unwrap().len();
        assert!(len <= row.len(), "{len} above {}", row.len());
        let topic = TopicRow { topic: "\u{1}".repeat(100), messages: u64::MAX, bytes: u64::MAX };
        let len = serde_json::to_string(&topic).unwrap().len();
        assert!(len <= TOPIC_ROW + ESCAPED * 100, "{len}");
    }

    #[test]
    fn a_document_has_the_first_rows_that_fit() {
        assert_eq!(first_within([1].repeat(ROWS_MAX + 1).into_iter()), ROWS_MAX);
        assert_eq!(first_within([ROWS_BYTES / 3].repeat(9).into_iter()), 3);
        assert_eq!(first_within([ROWS_BYTES + 1].into_iter()), 0);
    }
}
