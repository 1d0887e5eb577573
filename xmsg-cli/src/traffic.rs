//! Traffic by topic: rates, the last minute, and the latest value. It is for views that are redrawn.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::Message;
use xmsg_core::control::{CONFIRMATION_TOPIC, CONTROL_TOPIC};

use crate::recording::recorder::next_message;
use crate::render::{data_text, topic_text};
use crate::stats::{self, Stats, Sum};

/// The largest number of topics with their own counts. All other topics are counted together.
const TOPICS_MAX: usize = 10_000;
/// The largest length of their names together, in bytes. A publisher may use very long topics.
const TOPIC_BYTES_MAX: usize = 4 << 20;
/// The number of seconds in the history.
const HISTORY_S: usize = 60;
/// The largest number of characters of the latest value.
const VALUE_CHARS_MAX: usize = 200;
/// The largest size of a message whose data is shown, in bytes. It is formatted once a second for each topic.
const READ_MAX: usize = 4096;

/// Counts the traffic by topic.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    topics: BTreeMap<String, TopicTraffic>,
    topic_bytes: usize,
    /// The number of messages of topics for which there was no room.
    pub(crate) others: u64,
}

/// Returns whether there is no room for another topic of length `len`, beside `topics` topics with `bytes`
/// bytes.
fn is_full(topics: usize, bytes: usize, len: usize) -> bool {
    topics >= TOPICS_MAX || bytes + len > TOPIC_BYTES_MAX
}

/// The last message since the view was drawn.
#[derive(Debug, Default)]
enum LastMessage {
    #[default]
    Nothing,
    Message(Message),
    /// The message was too long to be kept. Its data has this length.
    OfLength(usize),
}

/// The traffic of one topic.
#[derive(Debug, Default)]
pub(crate) struct TopicTraffic {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// Messages per second.
    pub(crate) rate: f64,
    /// Bytes of data per second.
    pub(crate) byte_rate: f64,
    /// The latest value, on one line.
    pub(crate) latest: String,
    /// For each second, the latest number or, if the value is not a number, the rate of messages.
    pub(crate) history: VecDeque<f64>,
    last: LastMessage,
    counted: (u64, u64),
    number: Option<f64>,
}

impl Traffic {
    pub(crate) fn take(&mut self, message: Message) {
        let topic = topic_text(message.topic());
        let is_full = is_full(self.topics.len(), self.topic_bytes, topic.len());
        let found = match self.topics.get_mut(&*topic) {
            Some(found) => found,
            None if is_full => {
                self.others += 1;
                return;
            }
            None => {
                self.topic_bytes += topic.len();
                self.topics.entry(topic.into_owned()).or_default()
            }
        };
        let len = message.data().len();
        found.messages += 1;
        found.bytes += len as u64;
        // A short message is kept as it is, because only the last one of each second is formatted as text.
        let is_short = message.clone().into_frames().iter().map(Bytes::len).sum::<usize>() <= READ_MAX;
        found.last =
            if is_short { LastMessage::Message(message.detach()) } else { LastMessage::OfLength(len) };
    }

    /// Computes the rates of what arrived in the time that has passed.
    pub(crate) fn tick(&mut self, time: Duration) {
        self.topics.values_mut().for_each(|topic| topic.tick(time));
    }

    /// Returns the topics, sorted by name.
    pub(crate) fn topics(&self) -> impl ExactSizeIterator<Item = (&str, &TopicTraffic)> {
        self.topics.iter().map(|(name, topic)| (&**name, topic))
    }
}

impl TopicTraffic {
    fn tick(&mut self, time: Duration) {
        let (messages, bytes) = std::mem::replace(&mut self.counted, (self.messages, self.bytes));
        let seconds = time.as_secs_f64().max(1e-3);
        self.rate = (self.messages - messages) as f64 / seconds;
        self.byte_rate = (self.bytes - bytes) as f64 / seconds;
        let latest = match std::mem::take(&mut self.last) {
            LastMessage::Nothing => None,
            LastMessage::OfLength(len) => Some(format!("{len} bytes")),
            LastMessage::Message(message) => {
                Some(data_text(&message).chars().take(VALUE_CHARS_MAX).collect())
            }
        };
        if let Some(latest) = latest {
            self.latest = latest;
            self.number = leading_number(&self.latest);
        }
        if self.history.len() == HISTORY_S {
            self.history.pop_front();
        }
        self.history.push_back(self.number.unwrap_or(self.rate));
    }
}

/// Counts messages and bytes by topic, of everything that a subscription receives.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    all: Sum,
    topics: HashMap<Bytes, Sum>,
    topic_bytes: usize,
    others: Sum,
}

impl Counts {
    /// Counts messages, which are encoded as on the wire.
    pub(crate) fn take(&mut self, wire: &[u8]) {
        let (mut rest, mut frames) = (wire, Vec::new());
        while next_message(&mut rest, &mut frames) {
            let Some(topic) = frames.first().filter(|topic| !is_control(topic)) else { continue };
            let bytes = frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
            let add = |sum: &mut Sum| {
                sum.messages += 1;
                sum.bytes += bytes;
            };
            add(&mut self.all);
            let is_full = is_full(self.topics.len(), self.topic_bytes, topic.len());
            match self.topics.get_mut(*topic) {
                Some(found) => add(found),
                None if is_full => add(&mut self.others),
                None => {
                    self.topic_bytes += topic.len();
                    add(self.topics.entry(Bytes::copy_from_slice(topic)).or_default());
                }
            }
        }
    }

    /// Returns the counts as statistics of a proxy.
    pub(crate) fn stats(&self, uptime_s: f64) -> Stats {
        let topic = |(topic, sum): (&Bytes, &Sum)| stats::Topic {
            name: topic_text(&xmsg_core::Topic::wrap(topic.clone())).into_owned(),
            messages: sum.messages,
            bytes: sum.bytes,
        };
        Stats {
            uptime_s,
            received: self.all,
            topics: self.topics.iter().map(topic).collect(),
            topics_watched_s: uptime_s,
            other_topics: self.others,
            ..Stats::default()
        }
    }
}

/// Returns whether a topic is one of those that connections and proxies use among themselves.
fn is_control(topic: &[u8]) -> bool {
    [CONTROL_TOPIC, CONFIRMATION_TOPIC].iter().any(|prefix| topic.starts_with(prefix.as_bytes()))
}

/// Parses a number at the beginning: `-3.2e-7` of `-3.2e-7 mbar`.
fn leading_number(text: &str) -> Option<f64> {
    let word = text.split_whitespace().next()?;
    word.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_values_and_the_last_minute_are_kept() {
        let mut traffic = Traffic::default();
        for second in 0..70 {
            for _ in 0..5 {
                traffic.take(Message::of("a:b", format!("{second} kV")).unwrap());
            }
            traffic.take(Message::of("note", "hello\nyou").unwrap());
            traffic.tick(Duration::from_secs(1));
        }
        let [(first, numbers), (second, words)] = traffic.topics().collect::<Vec<_>>()[..] else { panic!() };
        assert_eq!((first, numbers.messages, numbers.rate, &*numbers.latest), ("a:b", 350, 5.0, "69 kV"));
        assert_eq!(numbers.history, (10..70).map(f64::from).collect::<VecDeque<_>>());
        assert_eq!((second, &*words.latest, words.history[0]), ("note", "hello\\nyou", 1.0));
    }

    #[test]
    fn topics_without_end_are_counted_together() {
        let mut traffic = Traffic::default();
        for number in 0..TOPICS_MAX + 5 {
            traffic.take(Message::of(format!("t:{number}"), "x").unwrap());
        }
        assert_eq!((traffic.topics().len(), traffic.others), (TOPICS_MAX, 5));
    }

    /// A publisher chooses topics and messages, which may have 64 MiB each. A view must not keep them.
    #[test]
    fn long_topics_and_messages_are_not_kept() {
        let (mut traffic, mut counts) = (Traffic::default(), Counts::default());
        for number in 0..10 {
            let topic = format!("{number}:{}", "x".repeat(1 << 20));
            traffic.take(Message::of(topic.clone(), vec![7_u8; 1 << 20]).unwrap());
            let mut wire = bytes::BytesMut::new();
            xmsg_zmtp::encode_message(&mut wire, &[topic.as_bytes(), b"", b"x"]);
            counts.take(&wire);
        }
        // The view keeps the beginning of each topic.
        assert_eq!((traffic.topics().len(), traffic.others), (10, 0));
        assert!(traffic.topic_bytes < 1 << 20, "{} bytes", traffic.topic_bytes);
        assert_eq!((counts.topics.len(), counts.others.messages, counts.all.messages), (3, 7, 10));
        traffic.tick(Duration::from_secs(1));
        let (_, found) = traffic.topics().next().unwrap();
        assert_eq!(found.latest, "1048576 bytes");
    }
}
