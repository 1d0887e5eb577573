//! What a federation remembers so that nothing arrives twice: identifiers of messages that were taken in, and
//! messages that could not be marked.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use xmsg_core::Message;
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::lock::lock;

/// Identifiers that are remembered of one origin. However long the broker refuses a message, its origin sends
/// no more than [`AHEAD`] others before it is sent again, so that it is remembered still.
const WINDOW: usize = 65_536;
/// How far an origin goes ahead of its oldest message that the broker has not taken, in places of its spool.
/// The other half of the window is for messages that were on their way when a connection broke, and are in
/// the queue twice.
pub(crate) const AHEAD: u64 = WINDOW as u64 / 2;
/// Identifiers that are remembered of all origins: some 50 MB at most. Beyond that, the origin that was
/// silent for the longest time is forgotten.
const IDENTIFIERS: usize = 1 << 20;
/// Origins of which identifiers are remembered. A federation has far fewer members; whoever may publish to
/// its exchange can make up others.
const ORIGINS: usize = 4096;
/// The longest name in bytes of an origin whose identifiers are remembered. No member has a longer one.
const ORIGIN_LEN: usize = 255;
/// Messages without a mark that are expected back from the proxy. Beyond that, the oldest are forgotten.
const UNMARKED: usize = 65_536;
/// How long one of them is expected: the proxy holds messages for a subscriber that is behind.
const EXPECTED: Duration = Duration::from_secs(600);

/// An identifier of a message, as a number.
pub(crate) type Id = u128;

/// The memory of a federation, which its outgoing connection and its channel share. It outlives their links.
#[derive(Debug)]
pub(crate) struct Memory {
    /// When this program began to take part.
    since: Instant,
    seen: Mutex<Seen>,
    unmarked: Mutex<Unmarked>,
    fingerprints: Fingerprints,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            seen: Mutex::default(),
            unmarked: Mutex::default(),
            fingerprints: Fingerprints::default(),
        }
    }
}

impl Memory {
    /// Waits until this program has been there for so long.
    pub(crate) async fn hold(&self, time: Duration) {
        Deadline::since(self.since.into(), time).passed().await;
    }

    /// Whether a message of this origin was taken in before.
    pub(crate) fn has_seen(&self, origin: &str, id: Id) -> bool {
        lock(&self.seen).contains(origin, id)
    }

    /// These messages have been taken in.
    pub(crate) fn remember<'a>(&self, messages: impl IntoIterator<Item = &'a (Arc<str>, Id)>) {
        let mut seen = lock(&self.seen);
        for (origin, id) in messages {
            seen.insert(origin, *id);
        }
    }

    /// This message is about to be published without a mark: it will come back.
    pub(crate) fn expect(&self, message: &Message) {
        let fingerprint = self.fingerprints.of(message);
        lock(&self.unmarked).push(fingerprint, Instant::now());
    }

    /// Whether this message is one that was expected. It is not expected any more after that.
    pub(crate) fn was_expected(&self, message: &Message) -> bool {
        // Nearly always nothing is expected: then no fingerprint is needed.
        if lock(&self.unmarked).order.is_empty() {
            return false;
        }
        let fingerprint = self.fingerprints.of(message);
        lock(&self.unmarked).take(fingerprint, Instant::now())
    }
}

/// What has been sent and is not at the broker yet, by place in the spool: it bounds how far others may go
/// ahead of a message that is sent again.
#[derive(Debug, Default)]
pub(crate) struct Unsettled(BTreeSet<u64>);

impl Unsettled {
    pub(crate) fn sent(&mut self, sequence: u64) {
        self.0.insert(sequence);
    }

    pub(crate) fn settled(&mut self, sequence: u64) {
        self.0.remove(&sequence);
    }

    /// Whether this one may be sent now.
    pub(crate) fn may_send(&self, sequence: u64) -> bool {
        self.0.first().is_none_or(|oldest| sequence.saturating_sub(*oldest) <= AHEAD)
    }
}

/// Windows of identifiers by origin.
#[derive(Debug, Default)]
struct Seen {
    origins: HashMap<Arc<str>, Window>,
    /// All origins by the turn in which they were used last.
    by_turn: BTreeMap<u64, Arc<str>>,
    identifiers: usize,
    turn: u64,
}

#[derive(Debug, Default)]
struct Window {
    ids: HashSet<Id>,
    order: VecDeque<Id>,
    used: u64,
}

impl Seen {
    fn contains(&self, origin: &str, id: Id) -> bool {
        self.origins.get(origin).is_some_and(|window| window.ids.contains(&id))
    }

    fn insert(&mut self, origin: &Arc<str>, id: Id) {
        if origin.len() > ORIGIN_LEN {
            return;
        }
        self.turn += 1;
        let window = self.origins.entry(origin.clone()).or_default();
        let name = self.by_turn.remove(&window.used).unwrap_or_else(|| origin.clone());
        window.used = self.turn;
        self.by_turn.insert(self.turn, name);
        if window.ids.insert(id) {
            window.order.push_back(id);
            self.identifiers += 1;
            if window.order.len() > WINDOW
                && let Some(oldest) = window.order.pop_front()
            {
                window.ids.remove(&oldest);
                self.identifiers -= 1;
            }
        }
        while (self.identifiers > IDENTIFIERS || self.origins.len() > ORIGINS)
            && let Some((_, silent)) = self.by_turn.pop_first()
        {
            let forgotten = self.origins.remove(&silent);
            self.identifiers -= forgotten.map_or(0, |window| window.order.len());
        }
    }
}

/// Messages that are expected, as a multiset: two that are the same byte for byte come back twice.
#[derive(Debug, Default)]
struct Unmarked {
    counts: HashMap<u128, u32>,
    order: VecDeque<(u128, Instant)>,
}

impl Unmarked {
    fn push(&mut self, fingerprint: u128, now: Instant) {
        self.forget(now);
        if self.order.len() == UNMARKED {
            self.pop();
        }
        *self.counts.entry(fingerprint).or_default() += 1;
        self.order.push_back((fingerprint, now));
    }

    fn take(&mut self, fingerprint: u128, now: Instant) -> bool {
        self.forget(now);
        if !self.counts.contains_key(&fingerprint) {
            return false;
        }
        // They come back in about the order in which they went, so that it is near the front.
        if let Some(place) = self.order.iter().position(|(other, _)| *other == fingerprint) {
            self.order.remove(place);
        }
        self.uncount(fingerprint);
        true
    }

    fn forget(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(_, since)| now.duration_since(*since) >= EXPECTED) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some((fingerprint, _)) = self.order.pop_front() {
            self.uncount(fingerprint);
        }
    }

    fn uncount(&mut self, fingerprint: u128) {
        if let Some(count) = self.counts.get_mut(&fingerprint) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&fingerprint);
            }
        }
    }
}

/// Computes fingerprints of messages. The keys of the hash are random, so that nobody can make a message with
/// the fingerprint of another one. With such a message, the other one would be taken for one that comes back,
/// and would not be sent.
#[derive(Debug, Default)]
struct Fingerprints([RandomState; 2]);

impl Fingerprints {
    /// A number that messages with other bytes do not have, but for one in some billions of billions.
    fn of(&self, message: &Message) -> u128 {
        let frames = message.clone().into_frames();
        let [high, low] = self.0.each_ref().map(|keys| {
            let mut hasher = keys.build_hasher();
            for frame in &frames {
                frame.hash(&mut hasher);
            }
            u128::from(hasher.finish())
        });
        high << 64 | low
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(data: &'static [u8]) -> Message {
        let meta = Bytes::from_static(b"\xff\xff");
        Message::from_frames(Bytes::from_static(b"a"), meta, Bytes::from_static(data))
    }

    #[test]
    fn identifiers_are_remembered_by_origin_up_to_the_window() {
        let memory = Memory::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        memory.remember(&[(a.clone(), 1), (b.clone(), 2), (a.clone(), 1)]);
        assert!(memory.has_seen("a", 1) && memory.has_seen("b", 2));
        assert!(!memory.has_seen("a", 2) && !memory.has_seen("c", 1));
        let more: Vec<_> = (10..10 + WINDOW as u128).map(|id| (a.clone(), id)).collect();
        memory.remember(&more);
        assert!(!memory.has_seen("a", 1), "the oldest is forgotten");
        assert!(memory.has_seen("a", 10) && memory.has_seen("b", 2), "another origin is not");
    }

    #[test]
    fn a_message_that_is_sent_again_is_remembered_still() {
        let (mut unsettled, mut seen) = (Unsettled::default(), Seen::default());
        let origin: Arc<str> = "a".into();
        // The first one is refused again and again by one queue, and taken by another one. All others are
        // taken, and sent for as long as that is allowed.
        let mut sequence = 1;
        unsettled.sent(sequence);
        seen.insert(&origin, sequence.into());
        while unsettled.may_send(sequence + 1) {
            sequence += 1;
            unsettled.sent(sequence);
            seen.insert(&origin, sequence.into());
            unsettled.settled(sequence);
            assert!(sequence < 1 << 20, "there is an end");
        }
        assert_eq!(sequence, 1 + AHEAD);
        assert!(seen.contains("a", 1));
        unsettled.settled(1);
        assert!(unsettled.may_send(sequence + 1) && unsettled.may_send(u64::MAX));
    }

    #[test]
    fn all_windows_together_have_a_bound() {
        let mut seen = Seen::default();
        for origin in 0..20_u128 {
            let name: Arc<str> = origin.to_string().into();
            for id in 0..WINDOW as u128 {
                seen.insert(&name, id);
            }
            assert!(seen.identifiers <= IDENTIFIERS);
        }
        assert!(!seen.contains("0", 5) && seen.contains("19", 5), "the one that was silent is forgotten");
        let held: usize = seen.origins.values().map(|window| window.order.len()).sum();
        assert_eq!(held, seen.identifiers);
    }

    /// Each takes more than its identifiers do.
    #[test]
    fn made_up_origins_are_bounded_and_take_no_time_of_others() {
        let mut seen = Seen::default();
        for origin in 0..20 * ORIGINS {
            seen.insert(&origin.to_string().into(), 1);
            // One that goes on is remembered.
            seen.insert(&"a".into(), origin as u128);
        }
        assert_eq!((seen.origins.len(), seen.by_turn.len()), (ORIGINS, ORIGINS));
        assert!(seen.contains("a", 20 * ORIGINS as u128 - 1) && seen.contains("a", 20 * ORIGINS as u128 - 5));
        assert!(!seen.contains("5", 1) && seen.contains(&(20 * ORIGINS - 1).to_string(), 1));
        let held: usize = seen.origins.values().map(|window| window.order.len()).sum();
        assert_eq!(held, seen.identifiers);
        seen.insert(&"x".repeat(ORIGIN_LEN + 1).into(), 1);
        assert_eq!(seen.origins.len(), ORIGINS);
    }

    #[test]
    fn a_message_without_a_mark_is_expected_as_often_as_it_was_published() {
        let memory = Memory::default();
        assert!(!memory.was_expected(&message(b"x")));
        memory.expect(&message(b"x"));
        memory.expect(&message(b"x"));
        memory.expect(&message(b"y"));
        assert!(!memory.was_expected(&message(b"z")));
        for (data, is_expected) in [(b"x", true), (b"y", true), (b"x", true), (b"x", false), (b"y", false)] {
            assert_eq!(memory.was_expected(&message(data)), is_expected, "{data:?}");
        }
    }

    #[test]
    fn what_does_not_come_back_is_forgotten() {
        let (mut unmarked, start) = (Unmarked::default(), Instant::now());
        unmarked.push(1, start);
        unmarked.push(2, start + EXPECTED / 2);
        assert!(!unmarked.take(1, start + EXPECTED));
        assert!(unmarked.take(2, start + EXPECTED));
        for number in 0..2 * UNMARKED as u128 {
            unmarked.push(number, start);
        }
        assert_eq!((unmarked.order.len(), unmarked.counts.len()), (UNMARKED, UNMARKED));
        assert!(!unmarked.take(0, start) && unmarked.take(UNMARKED as u128, start));
    }

    /// With other keys a message has another number, so that it can't be made for a number that is wanted.
    #[test]
    fn numbers_of_messages_are_those_of_one_memory() {
        let (one, other) = (Fingerprints::default(), Fingerprints::default());
        assert_eq!(one.of(&message(b"1")), one.of(&message(b"1")));
        assert_ne!(one.of(&message(b"1")), one.of(&message(b"2")));
        assert_ne!(one.of(&message(b"1")), other.of(&message(b"1")));
        // Bytes that are in another frame make another message.
        let frames = |topic: &'static [u8], data: &'static [u8]| {
            Message::from_frames(topic.into(), Bytes::from_static(b"\xff"), data.into())
        };
        assert_ne!(one.of(&frames(b"ab", b"c")), one.of(&frames(b"a", b"bc")));
    }
}
