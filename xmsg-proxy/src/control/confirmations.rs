//! The queue of confirmations of subscriptions, and who gets the next one.
//!
//! A confirmation may go to thousands of subscribers. So the addresses are served in turn, and for each
//! address its connections. However many confirmations some connections ask for, those of others come soon. A
//! connection whose confirmations went to many subscribers has to pause. If several connections wait for the
//! same confirmation, it is sent once, at the first of their turns. So no connection waits longer because
//! another one asked for the same before.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use xmsg_zmq::link::source::Source;
use xmsg_zmq::security::Principal;

use crate::switch::Requester;

/// The limit of the memory for waiting confirmations in bytes, for all connections and for one.
const BYTES: usize = 8 << 20;
const BYTES_PER_CONNECTION: usize = 256 << 10;
/// The approximate size of a waiting confirmation beside its topic, in bytes.
const ENTRY: usize = 256;
/// Entries that are skipped because they were answered already, before others get their turn.
const ANSWERED: usize = 1024;

/// What is confirmed, and to whom. Only subscribers with the same principal as the requester receive the
/// confirmation.
pub(super) type Subject = (Option<Arc<Principal>>, Bytes);

/// A confirmation that a peer asked for.
#[derive(Clone, Debug)]
pub(super) struct Confirmation {
    pub(super) requester: Requester,
    pub(super) topic: Bytes,
}

impl Confirmation {
    pub(super) fn subject(&self) -> Subject {
        (self.requester.principal().cloned(), self.topic.clone())
    }

    fn bytes(&self) -> usize {
        ENTRY + self.topic.len()
    }
}

/// The confirmations that wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    waiting: HashMap<Subject, Waiting>,
    /// The number of confirmations that were asked for so far.
    asked: u64,
    /// The waiting confirmations by address, and then by connection.
    sources: BTreeMap<Source, Group>,
    /// Addresses by the memory of their waiting confirmations.
    by_bytes: BTreeSet<(usize, Source)>,
    /// Addresses in the order of their turns.
    turns: VecDeque<Source>,
    /// Pausing connections by the end of their pause.
    pausing: BTreeMap<(Instant, u32), Source>,
    bytes: usize,
}

/// The waiting confirmations of one subject.
#[derive(Debug, Default)]
struct Waiting {
    /// Connections that wait for it, and have not received it since they asked.
    connections: HashSet<u32>,
    /// The number of requests at the time when it was last sent. Requests with a number up to this one have
    /// been answered.
    sent: u64,
    /// The number of queue entries for this subject.
    entries: usize,
}

/// The waiting confirmations of one address.
#[derive(Debug, Default)]
struct Group {
    connections: BTreeMap<u32, Line>,
    turns: VecDeque<u32>,
    bytes: usize,
    /// Connections by the memory of their waiting confirmations.
    by_bytes: BTreeSet<(usize, u32)>,
}

/// The waiting confirmations of one connection.
#[derive(Debug, Default)]
struct Line {
    /// The confirmations, each with its number among all that were asked for.
    confirmations: VecDeque<(u64, Confirmation)>,
    bytes: usize,
}

impl Confirmations {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds a confirmation, unless its connection already waits for the same. Returns those that are dropped
    /// because there is no room. These are the newest of a connection with too many, or of the connection
    /// with the most.
    pub(super) fn push(&mut self, confirmation: Confirmation) -> Vec<Confirmation> {
        let (source, connection) = (confirmation.requester.source().clone(), confirmation.requester.id());
        let waiting = self.waiting.entry(confirmation.subject()).or_default();
        if !waiting.connections.insert(connection) {
            return Vec::new();
        }
        waiting.entries += 1;
        self.asked += 1;
        let bytes = confirmation.bytes();
        let group = self.sources.entry(source.clone()).or_default();
        let is_new = !group.connections.contains_key(&connection);
        let line = group.connections.entry(connection).or_default();
        line.confirmations.push_back((self.asked, confirmation));
        let is_too_much = line.bytes + bytes > BYTES_PER_CONNECTION;
        self.adjust_bytes(&source, connection, bytes.cast_signed());
        // A connection whose confirmation is being sent, or that pauses, is queued again afterwards.
        if is_new {
            self.queue(&source, connection);
        }
        let mut dropped = Vec::new();
        if is_too_much {
            dropped.extend(self.drop_newest(&source, connection));
        }
        while self.bytes > BYTES
            && let Some((source, connection)) = self.heaviest()
        {
            dropped.extend(self.drop_newest(&source, connection));
        }
        dropped
    }

    /// Returns the connection with the most waiting confirmations, of the address with the most.
    fn heaviest(&self) -> Option<(Source, u32)> {
        let (_, source) = self.by_bytes.last()?;
        let (_, connection) = self.sources.get(source)?.by_bytes.last()?;
        Some((source.clone(), *connection))
    }

    /// Updates the sizes after a change of the waiting confirmations of a connection by `more` bytes.
    fn adjust_bytes(&mut self, source: &Source, connection: u32, more: isize) {
        self.bytes = self.bytes.saturating_add_signed(more);
        let Some(group) = self.sources.get_mut(source) else { return };
        self.by_bytes.remove(&(group.bytes, source.clone()));
        group.bytes = group.bytes.saturating_add_signed(more);
        if group.bytes > 0 {
            self.by_bytes.insert((group.bytes, source.clone()));
        }
        let Some(line) = group.connections.get_mut(&connection) else { return };
        group.by_bytes.remove(&(line.bytes, connection));
        line.bytes = line.bytes.saturating_add_signed(more);
        if line.bytes > 0 {
            group.by_bytes.insert((line.bytes, connection));
        }
    }

    fn drop_newest(&mut self, source: &Source, connection: u32) -> Option<Confirmation> {
        let group = self.sources.get_mut(source)?;
        let line = group.connections.get_mut(&connection)?;
        let (number, dropped) = line.confirmations.pop_back()?;
        self.adjust_bytes(source, connection, -dropped.bytes().cast_signed());
        // A confirmation that has been sent meanwhile is not lost.
        (!self.is_sent(number, &dropped)).then_some(dropped)
    }

    /// Forgets an entry that was removed from its queue. Returns whether its connection has been answered
    /// since it asked.
    fn is_sent(&mut self, number: u64, confirmation: &Confirmation) -> bool {
        let subject = confirmation.subject();
        let Some(waiting) = self.waiting.get_mut(&subject) else { return true };
        let is_sent = number <= waiting.sent;
        if !is_sent {
            waiting.connections.remove(&confirmation.requester.id());
        }
        waiting.entries -= 1;
        if waiting.entries == 0 {
            self.waiting.remove(&subject);
        }
        is_sent
    }

    /// Records that a confirmation is being sent: every connection that waits for it gets it.
    fn send(&mut self, confirmation: &Confirmation) {
        if let Some(waiting) = self.waiting.get_mut(&confirmation.subject()) {
            waiting.sent = self.asked;
            waiting.connections.clear();
        }
    }

    /// Returns the next confirmation. Its connection gets no other turn before [`served`](Self::served) is
    /// called for it. Returns `None` if there is none, or if so many entries were answered already that
    /// others are to have their turn first.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Confirmation> {
        while let Some(entry) = self.pausing.first_entry()
            && entry.key().0 <= now
        {
            let ((_, connection), source) = entry.remove_entry();
            self.queue(&source, connection);
        }
        let mut answered = 0;
        while answered < ANSWERED
            && let Some(source) = self.turns.pop_front()
        {
            let Some(group) = self.sources.get_mut(&source) else { continue };
            let next = group.pop();
            if !group.turns.is_empty() {
                self.turns.push_back(source.clone());
            } else if group.connections.is_empty() {
                self.sources.remove(&source);
            }
            if let Some((number, next)) = next {
                self.adjust_bytes(&source, next.requester.id(), -next.bytes().cast_signed());
                if self.is_sent(number, &next) {
                    self.served(&next, None);
                    answered += 1;
                    continue;
                }
                self.send(&next);
                return Some(next);
            }
        }
        None
    }

    /// Ends the turn of a confirmation. Its connection goes to the end of the queue, or pauses first.
    pub(super) fn served(&mut self, confirmation: &Confirmation, pause: Option<Instant>) {
        let (source, connection) = (confirmation.requester.source(), confirmation.requester.id());
        if let Some(until) = pause {
            // The pause also applies if the connection waits for nothing now: its next request waits for the
            // end of the pause.
            self.sources.entry(source.clone()).or_default().connections.entry(connection).or_default();
            self.pausing.insert((until, connection), source.clone());
            return;
        }
        let Some(group) = self.sources.get_mut(source) else { return };
        let is_done = group.connections.get(&connection).is_none_or(|line| line.confirmations.is_empty());
        if is_done {
            group.connections.remove(&connection);
            if group.connections.is_empty() {
                self.sources.remove(source);
            }
        } else {
            self.queue(source, connection);
        }
    }

    fn queue(&mut self, source: &Source, connection: u32) {
        let Some(group) = self.sources.get_mut(source) else { return };
        if group.turns.is_empty() {
            self.turns.push_back(source.clone());
        }
        group.turns.push_back(connection);
    }

    /// Returns whether a confirmation can be sent now.
    pub(super) fn is_ready(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Returns when the next pause ends.
    pub(super) fn next_ready(&self) -> Option<Instant> {
        self.pausing.first_key_value().map(|((until, _), _)| *until)
    }

    /// Removes and returns all confirmations, in no particular order.
    pub(super) fn drain(&mut self) -> Vec<Confirmation> {
        let groups = std::mem::take(self).sources.into_values();
        let lines = groups.flat_map(|group| group.connections.into_values());
        lines.flat_map(|line| line.confirmations).map(|(_, confirmation)| confirmation).collect()
    }
}

impl Group {
    fn pop(&mut self) -> Option<(u64, Confirmation)> {
        while let Some(connection) = self.turns.pop_front() {
            let Some(line) = self.connections.get_mut(&connection) else { continue };
            if let Some(next) = line.confirmations.pop_front() {
                return Some(next);
            }
            self.connections.remove(&connection);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(address: u8, connection: u32, topic: &str) -> Confirmation {
        let requester = Requester::of_test(connection, &format!("192.0.2.{address}:50000"));
        Confirmation { requester, topic: Bytes::copy_from_slice(topic.as_bytes()) }
    }

    #[test]
    fn every_address_and_every_connection_has_its_turn() {
        let mut confirmations = Confirmations::default();
        for connection in 0..100 {
            for number in 0..10 {
                assert!(confirmations.push(ask(1, connection, &format!("{connection}:{number}"))).is_empty());
            }
        }
        assert!(confirmations.push(ask(1, 100, "of the same address")).is_empty());
        assert!(confirmations.push(ask(2, 101, "of another one")).is_empty());
        assert!(confirmations.push(ask(2, 101, "0:0")).is_empty());
        let now = Instant::now();
        let mut order = Vec::new();
        while let Some(next) = confirmations.pop(now) {
            confirmations.served(&next, None);
            order.push(next);
        }
        let place = |topic: &str| {
            let mut places = order.iter().enumerate().filter(|(_, one)| one.topic == topic);
            let place = places.next().expect("it has its turn").0;
            assert!(places.next().is_none(), "it comes once");
            place
        };
        assert_eq!(order.len(), 1_002);
        assert_eq!((place("of another one"), place("0:0")), (1, 0));
        assert!(place("of the same address") < 105);
        assert!(confirmations.is_empty() && confirmations.sources.is_empty() && confirmations.bytes == 0);
        assert!(confirmations.by_bytes.is_empty());
    }

    #[test]
    fn nobody_waits_for_the_turn_of_somebody_else_who_asked_for_the_same() {
        let mut confirmations = Confirmations::default();
        for topic in ["a", "b", "c", "wanted"] {
            assert!(confirmations.push(ask(1, 1, topic)).is_empty());
        }
        assert!(confirmations.push(ask(2, 2, "wanted")).is_empty());
        assert!(confirmations.push(ask(2, 2, "wanted")).is_empty(), "it waits for it already");
        let now = Instant::now();
        let next = |confirmations: &mut Confirmations, pause: Option<Instant>| {
            let next = confirmations.pop(now)?;
            confirmations.served(&next, pause);
            Some((next.requester.id(), next.topic))
        };
        let later = now + std::time::Duration::from_secs(1);
        assert_eq!(next(&mut confirmations, Some(later)), Some((1, "a".into())));
        assert_eq!(next(&mut confirmations, None), Some((2, "wanted".into())));
        assert_eq!(next(&mut confirmations, None), None, "the first one pauses");
        // A connection that asks again has not received the earlier confirmation.
        assert!(confirmations.push(ask(2, 3, "wanted")).is_empty());
        assert!(confirmations.push(ask(1, 1, "wanted")).is_empty());
        assert_eq!(next(&mut confirmations, None), Some((3, "wanted".into())));
        assert_eq!(confirmations.pop(later).map(|next| next.topic), Some("b".into()));
        let mut rest = Vec::new();
        confirmations.queue(&Source::of("192.0.2.1:1"), 1);
        while let Some(next) = confirmations.pop(later) {
            confirmations.served(&next, None);
            rest.push(next.topic);
        }
        assert_eq!(rest, ["c"], "what it wanted was sent");
        assert!(confirmations.is_empty() && confirmations.bytes == 0 && confirmations.by_bytes.is_empty());
    }

    #[test]
    fn whoever_asks_for_most_loses_what_finds_no_room() {
        let mut confirmations = Confirmations::default();
        let topic = |number: usize| format!("{number:04000}");
        let dropped = (0..1_000).filter(|number| !confirmations.push(ask(1, 1, &topic(*number))).is_empty());
        assert!(dropped.count() > 900, "one connection is bounded");
        for connection in 2..100 {
            for number in 0..50 {
                let topic = topic(connection as usize * 1_000 + number);
                for dropped in confirmations.push(ask(1, connection, &topic)) {
                    assert_eq!(dropped.requester.source(), &Source::of("192.0.2.1:1"));
                }
            }
        }
        let dropped = confirmations.push(ask(2, 100, "of another one"));
        assert!(!dropped.is_empty(), "all of them are bounded");
        assert!(dropped.iter().all(|dropped| dropped.topic != "of another one"));
        assert!(confirmations.bytes <= BYTES);
        let mut left = Vec::new();
        while let Some(next) = confirmations.pop(Instant::now()) {
            confirmations.served(&next, None);
            left.push(next.topic);
        }
        assert_eq!(left[1], "of another one");
    }

    #[test]
    fn a_connection_that_pauses_lets_others_go_on() {
        let mut confirmations = Confirmations::default();
        for (connection, topic) in [(1, "a"), (1, "b"), (2, "c"), (2, "d")] {
            confirmations.push(ask(1, connection, topic));
        }
        let now = Instant::now();
        let later = now + std::time::Duration::from_secs(1);
        let mut order = Vec::new();
        while let Some(next) = confirmations.pop(now) {
            let pause = (next.requester.id() == 1).then_some(later);
            if next.topic == "a" {
                // A request during the turn changes nothing.
                confirmations.push(ask(1, 1, "e"));
            }
            confirmations.served(&next, pause);
            order.push(next.topic);
        }
        assert_eq!(order, ["a", "c", "d"]);
        assert_eq!((confirmations.is_ready(), confirmations.next_ready()), (false, Some(later)));
        let next = confirmations.pop(later).expect("the pause is over");
        confirmations.served(&next, None);
        assert_eq!(next.topic, "b");
        assert_eq!(confirmations.drain().into_iter().map(|one| one.topic).collect::<Vec<_>>(), ["e"]);
        assert!(confirmations.is_empty() && confirmations.bytes == 0);
    }
}
