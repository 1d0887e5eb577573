//! The filter by which nothing of a federation arrives twice. It remembers identifiers of messages that were
//! taken in, and messages that could not get the header of their origin.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use xmsg_core::Message;
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::lock::lock;

/// Identifiers that are remembered of one origin. However long the broker refuses a message, its origin sends
/// no more than [`AHEAD_MAX`] others before it is sent again, so that it is remembered still.
const WINDOW_MAX: usize = 65_536;
/// How far an origin goes ahead of its oldest message that the broker has not taken, in places of its spool.
/// The other half of the window is for messages that were on their way when a connection broke, and are in
/// the queue twice.
pub(crate) const AHEAD_MAX: u64 = WINDOW_MAX as u64 / 2;
/// Identifiers that are remembered of all origins: some 50 MB at most. Beyond that, the origin that was
/// silent for the longest time is forgotten.
const IDENTIFIERS_MAX: usize = 1 << 20;
/// Origins of which identifiers are remembered. A federation has far fewer members; whoever may publish to
/// its exchange can make up others.
const ORIGINS_MAX: usize = 4096;
/// The longest name in bytes of an origin whose identifiers are remembered. No member has a longer one.
const ORIGIN_LEN_MAX: usize = 255;
/// How many messages without the header of their origin may be expected back from the proxy. Beyond that, the
/// oldest are forgotten.
const ECHOES_MAX: usize = 65_536;
/// How long such a message is expected, since the proxy holds messages for a subscriber that is behind.
const ECHO_TIMEOUT: Duration = Duration::from_secs(600);

/// An identifier of a message, as a number.
pub(crate) type Id = u128;

/// The filter of a federation, which its outgoing connection and its channel share. It outlives their links.
#[derive(Debug)]
pub(crate) struct DuplicateFilter {
    /// When this program began to take part.
    since: Instant,
    windows: Mutex<IdWindows>,
    echoes: Mutex<ExpectedEchoes>,
    fingerprints: Fingerprints,
}

impl Default for DuplicateFilter {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            windows: Mutex::default(),
            echoes: Mutex::default(),
            fingerprints: Fingerprints::default(),
        }
    }
}

impl DuplicateFilter {
    /// Waits until this program has been there for so long.
    pub(crate) async fn wait_since_start(&self, time: Duration) {
        Deadline::since(self.since.into(), time).passed().await;
    }

    /// Returns whether a message of this origin was taken in before.
    pub(crate) fn is_duplicate(&self, origin: &str, id: Id) -> bool {
        lock(&self.windows).contains(origin, id)
    }

    /// Remembers that these messages have been taken in.
    pub(crate) fn remember<'a>(&self, messages: impl IntoIterator<Item = &'a (Arc<str>, Id)>) {
        let mut windows = lock(&self.windows);
        for (origin, id) in messages {
            windows.insert(origin, *id);
        }
    }

    /// Expects that this message comes back, since it is about to be published without the header of its
    /// origin.
    pub(crate) fn expect_echo(&self, message: &Message) {
        let fingerprint = self.fingerprints.of(message);
        lock(&self.echoes).push(fingerprint, Instant::now());
    }

    /// Takes this message out of those that are expected. Returns whether it was one of them.
    pub(crate) fn take_echo(&self, message: &Message) -> bool {
        // Nearly always nothing is expected: then no fingerprint is needed.
        if lock(&self.echoes).order.is_empty() {
            return false;
        }
        let fingerprint = self.fingerprints.of(message);
        lock(&self.echoes).take(fingerprint, Instant::now())
    }
}

/// Messages that were sent and are not confirmed yet, by their sequences in the spool. They bound how far
/// others may go ahead of a message that is sent again.
#[derive(Debug, Default)]
pub(crate) struct Unconfirmed(BTreeSet<u64>);

impl Unconfirmed {
    pub(crate) fn insert(&mut self, sequence: u64) {
        self.0.insert(sequence);
    }

    pub(crate) fn remove(&mut self, sequence: u64) {
        self.0.remove(&sequence);
    }

    /// Returns whether the message of this sequence may be sent now.
    pub(crate) fn may_send(&self, sequence: u64) -> bool {
        self.0.first().is_none_or(|oldest| sequence.saturating_sub(*oldest) <= AHEAD_MAX)
    }
}

/// Windows of identifiers by origin.
#[derive(Debug, Default)]
struct IdWindows {
    origins: HashMap<Arc<str>, Window>,
    /// All origins by when they were used last, as counted by `clock`.
    by_last_use: BTreeMap<u64, Arc<str>>,
    identifiers: usize,
    clock: u64,
}

#[derive(Debug, Default)]
struct Window {
    ids: HashSet<Id>,
    order: VecDeque<Id>,
    last_used: u64,
}

impl IdWindows {
    fn contains(&self, origin: &str, id: Id) -> bool {
        self.origins.get(origin).is_some_and(|window| window.ids.contains(&id))
    }

    fn insert(&mut self, origin: &Arc<str>, id: Id) {
        if origin.len() > ORIGIN_LEN_MAX {
            return;
        }
        self.clock += 1;
        let window = self.origins.entry(origin.clone()).or_default();
        let name = self.by_last_use.remove(&window.last_used).unwrap_or_else(|| origin.clone());
        window.last_used = self.clock;
        self.by_last_use.insert(self.clock, name);
        if window.ids.insert(id) {
            window.order.push_back(id);
            self.identifiers += 1;
            if window.order.len() > WINDOW_MAX
                && let Some(oldest) = window.order.pop_front()
            {
                window.ids.remove(&oldest);
                self.identifiers -= 1;
            }
        }
        while (self.identifiers > IDENTIFIERS_MAX || self.origins.len() > ORIGINS_MAX)
            && let Some((_, silent)) = self.by_last_use.pop_first()
        {
            let forgotten = self.origins.remove(&silent);
            self.identifiers -= forgotten.map_or(0, |window| window.order.len());
        }
    }
}

/// Messages that are expected, as a multiset: two that are the same byte for byte come back twice. Each step
/// is a look-up, since whoever publishes decides how many are expected, and in which order they come back.
#[derive(Debug, Default)]
struct ExpectedEchoes {
    /// The numbers of the messages with this fingerprint, oldest first.
    numbers: HashMap<u128, VecDeque<u64>>,
    /// All of them by their numbers, which are those of the order in which they were published.
    order: BTreeMap<u64, (u128, Instant)>,
    next: u64,
}

impl ExpectedEchoes {
    fn push(&mut self, fingerprint: u128, now: Instant) {
        self.forget(now);
        if self.order.len() == ECHOES_MAX {
            self.pop();
        }
        self.numbers.entry(fingerprint).or_default().push_back(self.next);
        self.order.insert(self.next, (fingerprint, now));
        self.next += 1;
    }

    fn take(&mut self, fingerprint: u128, now: Instant) -> bool {
        self.forget(now);
        let oldest = self.take_number(fingerprint);
        oldest.is_some_and(|number| self.order.remove(&number).is_some())
    }

    fn forget(&mut self, now: Instant) {
        let is_late = |(_, since): &(u128, Instant)| now.duration_since(*since) >= ECHO_TIMEOUT;
        while self.order.first_key_value().is_some_and(|(_, first)| is_late(first)) {
            self.pop();
        }
    }

    /// Forgets the oldest, which is also the oldest of its fingerprint.
    fn pop(&mut self) {
        if let Some((_, (fingerprint, _))) = self.order.pop_first() {
            self.take_number(fingerprint);
        }
    }

    /// Takes out the oldest number of this fingerprint.
    fn take_number(&mut self, fingerprint: u128) -> Option<u64> {
        let numbers = self.numbers.get_mut(&fingerprint)?;
        let oldest = numbers.pop_front();
        if numbers.is_empty() {
            self.numbers.remove(&fingerprint);
        }
        oldest
    }
}

/// Computes fingerprints of messages. The keys of the hash are random, so that nobody can make a message with
/// the fingerprint of another one. With such a message, the other one would be taken for one that comes back,
/// and would not be sent.
#[derive(Debug, Default)]
struct Fingerprints([RandomState; 2]);

impl Fingerprints {
    /// Returns a number that messages with other bytes do not have, but for one in some billions of billions.
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
        let memory = DuplicateFilter::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        memory.remember(&[(a.clone(), 1), (b.clone(), 2), (a.clone(), 1)]);
        assert!(memory.is_duplicate("a", 1) && memory.is_duplicate("b", 2));
        assert!(!memory.is_duplicate("a", 2) && !memory.is_duplicate("c", 1));
        let more: Vec<_> = (10..10 + WINDOW_MAX as u128).map(|id| (a.clone(), id)).collect();
        memory.remember(&more);
        assert!(!memory.is_duplicate("a", 1), "the oldest is forgotten");
        assert!(memory.is_duplicate("a", 10) && memory.is_duplicate("b", 2), "another origin is not");
    }

    #[test]
    fn a_message_that_is_sent_again_is_remembered_still() {
        let (mut unconfirmed, mut windows) = (Unconfirmed::default(), IdWindows::default());
        let origin: Arc<str> = "a".into();
        // The first one is refused again and again by one queue, and taken by another one. All others are
        // taken, and sent for as long as that is allowed.
        let mut sequence = 1;
        unconfirmed.insert(sequence);
        windows.insert(&origin, sequence.into());
        while unconfirmed.may_send(sequence + 1) {
            sequence += 1;
            unconfirmed.insert(sequence);
            windows.insert(&origin, sequence.into());
            unconfirmed.remove(sequence);
            assert!(sequence < 1 << 20, "there is an end");
        }
        assert_eq!(sequence, 1 + AHEAD_MAX);
        assert!(windows.contains("a", 1));
        unconfirmed.remove(1);
        assert!(unconfirmed.may_send(sequence + 1) && unconfirmed.may_send(u64::MAX));
    }

    #[test]
    fn all_windows_together_have_a_bound() {
        let mut windows = IdWindows::default();
        for origin in 0..20_u128 {
            let name: Arc<str> = origin.to_string().into();
            for id in 0..WINDOW_MAX as u128 {
                windows.insert(&name, id);
            }
            assert!(windows.identifiers <= IDENTIFIERS_MAX);
        }
        assert!(
            !windows.contains("0", 5) && windows.contains("19", 5),
            "the one that was silent is forgotten"
        );
        let held: usize = windows.origins.values().map(|window| window.order.len()).sum();
        assert_eq!(held, windows.identifiers);
    }

    /// Each takes more than its identifiers do.
    #[test]
    fn made_up_origins_are_bounded_and_take_no_time_of_others() {
        let mut windows = IdWindows::default();
        for origin in 0..20 * ORIGINS_MAX {
            windows.insert(&origin.to_string().into(), 1);
            // One that goes on is remembered.
            windows.insert(&"a".into(), origin as u128);
        }
        assert_eq!((windows.origins.len(), windows.by_last_use.len()), (ORIGINS_MAX, ORIGINS_MAX));
        assert!(
            windows.contains("a", 20 * ORIGINS_MAX as u128 - 1)
                && windows.contains("a", 20 * ORIGINS_MAX as u128 - 5)
        );
        assert!(!windows.contains("5", 1) && windows.contains(&(20 * ORIGINS_MAX - 1).to_string(), 1));
        let held: usize = windows.origins.values().map(|window| window.order.len()).sum();
        assert_eq!(held, windows.identifiers);
        windows.insert(&"x".repeat(ORIGIN_LEN_MAX + 1).into(), 1);
        assert_eq!(windows.origins.len(), ORIGINS_MAX);
    }

    #[test]
    fn a_message_without_a_mark_is_expected_as_often_as_it_was_published() {
        let memory = DuplicateFilter::default();
        assert!(!memory.take_echo(&message(b"x")));
        memory.expect_echo(&message(b"x"));
        memory.expect_echo(&message(b"x"));
        memory.expect_echo(&message(b"y"));
        assert!(!memory.take_echo(&message(b"z")));
        for (data, is_expected) in [(b"x", true), (b"y", true), (b"x", true), (b"x", false), (b"y", false)] {
            assert_eq!(memory.take_echo(&message(data)), is_expected, "{data:?}");
        }
    }

    #[test]
    fn what_does_not_come_back_is_forgotten() {
        let (mut echoes, start) = (ExpectedEchoes::default(), Instant::now());
        echoes.push(1, start);
        echoes.push(2, start + ECHO_TIMEOUT / 2);
        assert!(!echoes.take(1, start + ECHO_TIMEOUT));
        assert!(echoes.take(2, start + ECHO_TIMEOUT));
        for number in 0..2 * ECHOES_MAX as u128 {
            echoes.push(number, start);
        }
        assert_eq!((echoes.order.len(), echoes.numbers.len()), (ECHOES_MAX, ECHOES_MAX));
        assert!(!echoes.take(0, start) && echoes.take(ECHOES_MAX as u128, start));
    }

    /// The subscribers of a proxy and its queues decide in which order messages come back.
    #[test]
    fn messages_that_come_back_in_another_order_take_no_longer() {
        let now = Instant::now();
        let take_all = |numbers: Vec<u128>| {
            let mut echoes = ExpectedEchoes::default();
            (0..ECHOES_MAX as u128).for_each(|number| echoes.push(number, now));
            let begin = Instant::now();
            assert!(numbers.into_iter().all(|number| echoes.take(number, now)));
            assert!(echoes.order.is_empty() && echoes.numbers.is_empty());
            begin.elapsed()
        };
        let in_order = take_all((0..ECHOES_MAX as u128).collect());
        let last_first = take_all((0..ECHOES_MAX as u128).rev().collect());
        assert!(last_first < 20 * in_order, "{last_first:?} and {in_order:?} in order");
    }

    #[test]
    fn the_same_message_is_expected_from_when_it_was_published_last() {
        let (mut echoes, start) = (ExpectedEchoes::default(), Instant::now());
        for minute in [0, 1, 2] {
            echoes.push(1, start + Duration::from_secs(60 * minute));
        }
        // The oldest came back, and the next one does not.
        assert!(echoes.take(1, start + Duration::from_secs(121)));
        let late = start + Duration::from_secs(61) + ECHO_TIMEOUT;
        assert!(echoes.take(1, late) && !echoes.take(1, late));
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
