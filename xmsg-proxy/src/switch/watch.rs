//! The traffic by topic. It is estimated from samples, and only while somebody asks for it, so that it costs
//! next to nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use xmsg_zmq::Amount;
use xmsg_zmq::deadline::later;
use xmsg_zmq::link::session::now;
use xmsg_zmq::lock::lock;
use xmsg_zmtp::Span;

use crate::CONTROL_TOPIC;

/// The time for which sampling goes on after the last request for the traffic.
const KEPT_FOR: Duration = Duration::from_secs(10);
/// The number of topics that are counted apart. The others are counted together.
const TOPICS_MAX: usize = 16 << 10;
/// The number of bytes of a topic that are kept.
const TOPIC_MAX: usize = 256;
/// The number of publishers that are kept for each topic: those whose messages were sampled last.
pub(crate) const PUBLISHERS_MAX: usize = 8;
/// The number of samples in a second, of all publishers together. Up to this rate, every message is counted.
/// A sample takes as much time as a message, or somewhat more: at 50,000 messages a second, these take about
/// one percent of the proxy's time, and less at higher rates.
pub(crate) const SAMPLES_PER_S: f64 = 500.0;
/// The number of samples that may be taken at once after a pause of some seconds. A quarter of them is taken
/// of all messages, so that messages in short bursts are counted and not estimated, too.
const SAMPLES_MAX: f64 = 2_500.0;
/// The largest average number of messages from one sample to the next, as a power of two.
const GAP_MAX_LOG: f64 = 12.0;

/// The traffic that all samplers have found.
#[derive(Debug, Default)]
pub(super) struct Watch {
    is_on: AtomicBool,
    /// The topics and their counts. They are locked for each sample, and only for moments.
    found: Mutex<Found>,
    /// Held by the task that reads all topics. Meanwhile they are not in `found`.
    reading: Mutex<()>,
}

#[derive(Debug)]
struct Found {
    /// The time since when samples are taken, and until when unless somebody asks again.
    during: Option<(Instant, Instant)>,
    topics: HashMap<Box<[u8]>, Seen>,
    others: Seen,
    /// The number of samples that may be taken now, and the time of that number.
    left: f64,
    refilled: Instant,
}

/// The traffic of one topic.
#[derive(Debug, Default)]
struct Seen {
    amount: Amount,
    /// The numbers of the connections that have published it, the newest last.
    publishers: Vec<u32>,
}

impl Seen {
    fn published_by(&mut self, publisher: u32) {
        if !self.publishers.contains(&publisher) {
            if self.publishers.len() == PUBLISHERS_MAX {
                self.publishers.remove(0);
            }
            self.publishers.push(publisher);
        }
    }

    /// Adds the later traffic of the same topic.
    fn add(&mut self, later: &Self) {
        self.amount.messages += later.amount.messages;
        self.amount.bytes += later.amount.bytes;
        later.publishers.iter().for_each(|publisher| self.published_by(*publisher));
    }
}

/// The topics that a task reads.
#[derive(Debug)]
struct Taken {
    /// The time since when they were counted.
    since: Instant,
    topics: HashMap<Box<[u8]>, Seen>,
}

impl Default for Found {
    fn default() -> Self {
        Self {
            during: None,
            topics: HashMap::new(),
            others: Seen::default(),
            left: SAMPLES_MAX,
            refilled: now(),
        }
    }
}

impl Found {
    /// Counts one sample. Returns the average number of messages that the next one is to stand for: the fewer
    /// samples are left, the more.
    fn gap(&mut self, now: Instant) -> u32 {
        let time = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.left = (self.left + time * SAMPLES_PER_S).min(SAMPLES_MAX) - 1.0;
        self.refilled = now;
        let spent = 1.0 - (self.left / SAMPLES_MAX).clamp(0.0, 1.0);
        // All messages are counted while few samples are used.
        let log = ((spent - 0.25) / 0.75 * GAP_MAX_LOG).max(0.0);
        #[allow(clippy::cast_sign_loss, reason = "it is 1 at least")]
        let gap = log.exp2() as u32;
        gap
    }
}

/// The traffic since somebody began to ask for it.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The time in which it was counted.
    pub time: Duration,
    /// Messages and bytes by topic, estimated from samples, in no particular order. Topics longer than 256
    /// bytes count together with others that begin in the same way.
    pub topics: Vec<(Box<[u8]>, Amount)>,
    /// The traffic of topics that found no room.
    pub others: Amount,
}

impl Watch {
    /// Returns the traffic so far, and goes on sampling for ten seconds. Publishers do not wait while
    /// thousands of topics are copied.
    pub(super) fn look(&self) -> Watched {
        let _reading = lock(&self.reading);
        let (taken, mut watched) = self.take(now());
        watched.topics = taken.topics.iter().map(|(topic, seen)| (topic.clone(), seen.amount)).collect();
        self.put_back(taken);
        watched
    }

    /// Takes all topics out. The caller has to hold [`reading`](Self::reading).
    fn take(&self, now: Instant) -> (Taken, Watched) {
        let mut found = lock(&self.found);
        let since = match found.during {
            Some((since, until)) if now < until => since,
            _ => {
                *found = Found::default();
                now
            }
        };
        found.during = Some((since, later(now, KEPT_FOR)));
        self.is_on.store(true, Ordering::Relaxed);
        let watched = Watched {
            time: now.saturating_duration_since(since),
            topics: Vec::new(),
            others: found.others.amount,
        };
        (Taken { since, topics: std::mem::take(&mut found.topics) }, watched)
    }

    /// Puts the topics back, and adds what has been counted meanwhile.
    fn put_back(&self, taken: Taken) {
        let mut found = lock(&self.found);
        // All was forgotten meanwhile, because nobody asked for so long.
        if found.during.is_none_or(|(since, _)| since != taken.since) {
            return;
        }
        let Found { topics, others, .. } = &mut *found;
        let meanwhile = std::mem::replace(topics, taken.topics);
        for (topic, seen) in meanwhile {
            let is_full = topics.len() >= TOPICS_MAX;
            let there = match topics.get_mut(&topic) {
                Some(there) => there,
                None if is_full => &mut *others,
                None => topics.entry(topic).or_default(),
            };
            there.add(&seen);
        }
    }

    /// Returns the numbers of the connections that publish each of these topics, as far as samples have
    /// shown: the last few.
    #[cfg(any(feature = "daemon", test))]
    pub(super) fn publishers_of(&self, topics: &[&[u8]]) -> Vec<Vec<u32>> {
        let _reading = lock(&self.reading);
        let found = lock(&self.found);
        topics
            .iter()
            .map(|topic| found.topics.get(*topic).map_or_else(Vec::new, |seen| seen.publishers.clone()))
            .collect()
    }

    /// Counts the messages that a sample stands for. Returns how many messages the next one is to stand for.
    fn count(&self, now: Instant, topic: &[u8], publisher: u32, messages: u64, bytes: u64) -> u32 {
        let mut found = lock(&self.found);
        let gap = found.gap(now);
        if found.during.is_none_or(|(_, until)| now >= until) {
            self.is_on.store(false, Ordering::Relaxed);
            *found = Found::default();
            return gap;
        }
        if topic.starts_with(CONTROL_TOPIC) {
            return gap;
        }
        let topic = &topic[..topic.len().min(TOPIC_MAX)];
        let is_full = found.topics.len() >= TOPICS_MAX;
        let Found { topics, others, .. } = &mut *found;
        let seen = match topics.get_mut(topic) {
            Some(seen) => seen,
            None if is_full => others,
            None => topics.entry(topic.into()).or_default(),
        };
        seen.amount.messages += messages;
        seen.amount.bytes += bytes;
        seen.published_by(publisher);
        gap
    }
}

/// Takes samples of what one publisher sends.
#[derive(Debug)]
pub(super) struct Sampler {
    watch: Arc<Watch>,
    publisher: u32,
    /// The number of messages to skip before the next sample, and the number of those skipped since the last
    /// one.
    skip: usize,
    skipped: u64,
    /// The state of a random number generator: samples at even distances would never show one of two topics
    /// that take turns.
    random: u64,
}

impl Sampler {
    /// Creates the sampler of a publisher, which is given by its number.
    pub(super) fn new(watch: &Arc<Watch>, publisher: u32) -> Self {
        Self { watch: watch.clone(), publisher, skip: 0, skipped: 0, random: u64::from(publisher) }
    }

    /// Takes samples of these messages, if somebody asks for the traffic.
    pub(super) fn sample(&mut self, wire: &[u8], spans: &[Span]) {
        if !self.watch.is_on.load(Ordering::Relaxed) {
            return;
        }
        let mut left = spans;
        while self.skip < left.len() {
            let span = &left[self.skip];
            left = &left[self.skip + 1..];
            let messages = self.skipped + self.skip as u64 + 1;
            self.take(wire, span, messages);
        }
        self.skip -= left.len();
        self.skipped += left.len() as u64;
    }

    fn take(&mut self, wire: &[u8], span: &Span, messages: u64) {
        let topic = &wire[span.first_start..span.first_start + span.first_len];
        let gap = self.watch.count(
            now(),
            topic,
            self.publisher,
            messages,
            messages * (span.end - span.start) as u64,
        );
        // This is the generator of Knuth's MMIX. Its upper bits are the good ones.
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.skip = ((self.random >> 33) % u64::from(2 * gap - 1)) as usize;
        self.skipped = 0;
    }
}

#[cfg(test)]
mod tests {
    use xmsg_zmtp::encode_message;

    use super::*;

    /// The wire of messages with these topics.
    fn wire(topics: &[&str]) -> (bytes::Bytes, Vec<Span>) {
        let (mut wire, mut spans) = (bytes::BytesMut::new(), Vec::new());
        for topic in topics {
            let start = wire.len();
            encode_message(&mut wire, &[topic.as_bytes(), b"", b"x"]);
            let first_start = start + 2;
            spans.push(Span { start, end: wire.len(), first_start, first_len: topic.len(), frames: 3 });
        }
        (wire.freeze(), spans)
    }

    #[test]
    fn estimates_are_right_also_of_topics_that_take_turns() {
        let watch = Arc::new(Watch::default());
        let mut sampler = Sampler::new(&watch, 7);
        let (wire, spans) = wire(&["a", "b", "a", "b", "xmsg:control:con", "a"]);
        sampler.sample(&wire, &spans);
        assert!(watch.look().topics.is_empty(), "nobody looked");
        for _ in 0..100_000 {
            sampler.sample(&wire, &spans);
        }
        let found: HashMap<_, _> = watch.look().topics.into_iter().collect();
        assert_eq!(found.len(), 2);
        let of = |topic: &[u8]| found[topic].messages as f64;
        // Several hundred samples at least.
        assert!((of(b"a") / 300_000.0 - 1.0).abs() < 0.3, "{found:?}");
        assert!((of(b"b") / 200_000.0 - 1.0).abs() < 0.3, "{found:?}");
    }

    /// Publishers do not wait for whoever copies the topics, and nothing of theirs is forgotten.
    #[test]
    fn what_comes_while_somebody_reads_is_added() {
        let watch = Watch::default();
        watch.look();
        let at = now();
        let count = |topic: &str, publisher| watch.count(at, topic.as_bytes(), publisher, 1, 10);
        (0..TOPICS_MAX - 1).for_each(|number| {
            count(&number.to_string(), 1);
        });
        let (taken, _) = watch.take(at);
        assert!(watch.found.try_lock().is_ok(), "it is free while the topics are read");
        // One that is known, one that finds room, and one for which there is none.
        for (topic, publisher) in [("7", 2), ("new", 3), ("newer", 4), ("newer", 4)] {
            count(topic, publisher);
        }
        watch.put_back(taken);
        let watched = watch.look();
        let found: HashMap<_, _> = watched.topics.into_iter().collect();
        assert_eq!(found.len(), TOPICS_MAX);
        assert_eq!((found[&b"7"[..]].messages, found[&b"8"[..]].messages), (2, 1));
        let together = found.values().fold(watched.others.messages, |sum, one| sum + one.messages);
        assert_eq!(together, TOPICS_MAX as u64 - 1 + 4);
        assert_eq!(watch.publishers_of(&[b"7"]), [[1, 2]]);

        // If nobody looked for so long that all was forgotten, the old ones do not come back.
        let (taken, _) = watch.take(at);
        watch.count(later(at, KEPT_FOR * 2), b"a", 1, 1, 1);
        watch.put_back(taken);
        assert!(watch.look().topics.is_empty());
    }

    #[test]
    fn there_is_an_end_to_the_topics() {
        let watch = Watch::default();
        watch.look();
        let now = now();
        for number in 0..TOPICS_MAX + 3 {
            watch.count(now, number.to_string().as_bytes(), 1, 1, 10);
        }
        watch.count(now, &[b'x'; 1000], 1, 1, 10);
        let watched = watch.look();
        assert_eq!(
            (watched.topics.len(), watched.others.messages, watched.others.bytes),
            (TOPICS_MAX, 4, 40)
        );
        // Nobody looks any more.
        watch.count(later(now, KEPT_FOR * 2), b"a", 1, 1, 1);
        assert!(!watch.is_on.load(Ordering::Relaxed) && watch.look().topics.is_empty());
    }
}
