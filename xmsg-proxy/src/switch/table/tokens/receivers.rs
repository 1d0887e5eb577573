//! Those that pass tokens on are told what changes in rounds, some of them at a time.
//!
//! What is told is encoded once for all, and what is taken back before it was told is told to nobody. So a
//! change costs little, however many are told.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use xmsg_zmq::deadline::later;
use xmsg_zmq::link::session::now;
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmtp::Version;

use super::Tokens;
use crate::security::Rights;
use crate::switch::publisher::ConnectedPublisher;
use crate::switch::table::task::{TableTask, form};
use crate::switch::upstream::Token;

/// How many are told in one slice.
const AT_ONCE: usize = 256;
/// The time between the beginnings of two rounds: at least so long, and longer where many are told, but much
/// shorter than a link waits for its own token.
const REST: Duration = Duration::from_millis(10);
const REST_MAX: Duration = Duration::from_millis(60);
const REST_OF_EACH: Duration = Duration::from_micros(100);
/// Rounds that are kept for those who come, behind all that there was before them.
const KEPT: usize = 64;
/// Bytes of these rounds, in any case; above it, a quarter of what there was before.
const KEPT_BYTES: usize = 4 << 10;

/// Who is told of tokens, and what.
#[derive(Debug, Default)]
pub(super) struct Receivers {
    /// What all who are told know, or will when the present round is over.
    known: BTreeSet<Token>,
    /// What is known and not wanted any more, or wanted and not known.
    changed: BTreeSet<Token>,
    by_id: BTreeMap<u32, Receiver>,
    /// The number of the last round.
    number: u64,
    round: Option<Round>,
    /// No round begins before.
    next_from: Option<Instant>,
    /// All that is known, for those who come: what there was, and the rounds since then. In both
    /// [forms](form).
    all: [Option<Vec<Bytes>>; 2],
}

/// One who is told, and the round up to which it has been.
#[derive(Debug)]
struct Receiver {
    publisher: Arc<ConnectedPublisher>,
    knows: u64,
}

/// A round that is being told.
#[derive(Debug)]
struct Round {
    changes: Vec<(bool, Token)>,
    /// These changes in both forms, once somebody needs them.
    encoded: [Option<Bytes>; 2],
    /// The last one who was told.
    last: Option<u32>,
}

impl Round {
    fn bytes(&mut self, version: Version, memory: &MemoryBudget) -> &Bytes {
        let changes = &self.changes;
        self.encoded[index(version)].get_or_insert_with(|| encode(version, changes.iter().copied(), memory))
    }
}

fn index(version: Version) -> usize {
    usize::from(form(version) == Version::V3_1)
}

fn encode(version: Version, changes: impl Iterator<Item = (bool, Token)>, memory: &MemoryBudget) -> Bytes {
    let mut bytes = BytesMut::new();
    changes.for_each(|(subscribe, token)| version.write_subscription(&mut bytes, subscribe, &token.topic()));
    // What grew by doubling is not kept at twice its size.
    memory.counted(Bytes::copy_from_slice(&bytes))
}

impl Receivers {
    pub(super) fn note(&mut self, token: Token, is_wanted: bool) {
        if self.known.contains(&token) == is_wanted {
            self.changed.remove(&token);
        } else {
            self.changed.insert(token);
        }
    }

    fn rest(&self) -> Duration {
        let of_all = REST_OF_EACH * u32::try_from(self.by_id.len()).unwrap_or(u32::MAX);
        of_all.clamp(REST, REST_MAX)
    }

    fn begin(&mut self, changes: Vec<(bool, Token)>, memory: &MemoryBudget) {
        self.next_from = Some(later(now(), self.rest()));
        if changes.is_empty() {
            return;
        }
        for (is_wanted, token) in &changes {
            if *is_wanted {
                self.known.insert(*token);
            } else {
                self.known.remove(token);
            }
        }
        self.number += 1;
        if self.by_id.is_empty() {
            self.all = [None, None];
            return;
        }
        let mut round = Round { changes, encoded: [None, None], last: None };
        for (all, version) in self.all.iter_mut().zip([Version::V3_0, Version::V3_1]) {
            let Some([first, rounds @ ..]) = all.as_deref() else { continue };
            let kept = rounds.iter().map(Bytes::len).sum::<usize>();
            let is_enough = rounds.len() >= KEPT || kept > KEPT_BYTES.max(first.len() / 4);
            let new = round.bytes(version, memory).clone();
            *all = all.take().filter(|_| !is_enough);
            if let Some(all) = all {
                all.push(new);
            }
        }
        self.round = Some(round);
    }
}

#[cfg(test)]
impl Receivers {
    /// Lets the next round begin at once.
    pub(super) fn forget_rest(&mut self) {
        self.next_from = None;
    }

    pub(super) fn knows(&self, token: Token) -> bool {
        self.known.contains(&token)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty() && self.changed.is_empty() && self.round.is_none()
    }
}

impl Tokens {
    /// How many are told of a change.
    pub(in crate::switch::table) fn receivers(&self) -> usize {
        self.receivers.by_id.len()
    }

    /// Whether somebody is yet to be told something, or something is yet to be looked at.
    pub(in crate::switch::table) fn has_work(&self) -> bool {
        self.are_being_sent() || !self.receivers.changed.is_empty() || !self.suspects.is_empty()
    }

    /// Whether some are yet to be told what others know.
    pub(in crate::switch::table) fn are_being_sent(&self) -> bool {
        self.receivers.round.is_some()
    }

    /// How long it takes until there is something to do.
    pub(in crate::switch::table) fn due_in(&self) -> Duration {
        let Some(from) = self.receivers.next_from.filter(|_| self.has_work() && !self.are_being_sent())
        else {
            return if self.has_work() { Duration::ZERO } else { Duration::MAX };
        };
        from.saturating_duration_since(now())
    }

    /// What is new, cancellations first: they make room.
    fn take_changed(&mut self) -> Vec<(bool, Token)> {
        let changed = std::mem::take(&mut self.receivers.changed);
        let (wanted, gone): (BTreeSet<_>, BTreeSet<_>) =
            changed.into_iter().partition(|token| self.held.contains_key(token));
        let gone = gone.into_iter().map(|token| (false, token));
        gone.chain(self.in_turn(&wanted).into_iter().map(|token| (true, token))).collect()
    }

    /// All that is known, in parts.
    pub(super) fn all(&mut self, version: Version, memory: &MemoryBudget) -> Vec<Bytes> {
        let place = index(version);
        if let Some(all) = &self.receivers.all[place] {
            return all.clone();
        }
        let known = self.in_turn(&self.receivers.known).into_iter();
        let all = vec![encode(version, known.map(|token| (true, token)), memory)];
        self.receivers.all[place].insert(all).clone()
    }
}

impl TableTask {
    /// Tells a slice of those who pass tokens on what has changed.
    pub(in crate::switch::table) fn send_slice_of_tokens(&mut self) {
        if self.tokens.due_in() > Duration::ZERO {
            return;
        }
        if !self.tokens.are_being_sent() {
            self.look_for_double_paths();
            let changed = self.tokens.take_changed();
            self.tokens.receivers.begin(changed, &self.memory);
        }
        let Receivers { by_id, round: present, number, .. } = &mut self.tokens.receivers;
        let Some(round) = present else { return };
        let from = round.last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut count = 0;
        for (id, one) in by_id.range_mut((from, Bound::Unbounded)).take(AT_ONCE) {
            count += 1;
            round.last = Some(*id);
            // One that has come since then knows it already.
            if one.knows < *number {
                one.knows = *number;
                let bytes = round.bytes(one.publisher.version, &self.memory);
                self.notified.take(bytes.len() as f64, now());
                one.publisher.send(bytes);
                one.publisher.count_backlog(&self.memory);
                self.backlog.note(&one.publisher);
            }
        }
        if count < AT_ONCE {
            *present = None;
        }
    }

    /// Tells a publisher all tokens, and from now on what changes.
    pub(in crate::switch::table) fn tell_tokens(&mut self, publisher: &Arc<ConnectedPublisher>) {
        let Receivers { by_id, number, .. } = &mut self.tokens.receivers;
        let Entry::Vacant(place) = by_id.entry(publisher.id) else { return };
        place.insert(Receiver { publisher: publisher.clone(), knows: *number });
        for part in self.tokens.all(publisher.version, &self.memory) {
            publisher.send_snapshot(&part);
        }
        publisher.count_backlog(&self.memory);
    }

    /// Tells a publisher that has joined all tokens if it passes them on, and may pass on everything: what
    /// others subscribe to elsewhere is nobody else's business.
    pub(in crate::switch::table) fn tell_forwarder(&mut self, publisher: &Arc<ConnectedPublisher>) {
        if may_forward(publisher) {
            self.tell_tokens(publisher);
        }
    }

    /// Other rules are in force: tells no more to those who may not hear of tokens any longer.
    pub(in crate::switch::table) fn enforce_on_forwarders(&mut self) {
        let by_id = &mut self.tokens.receivers.by_id;
        by_id.retain(|_, Receiver { publisher, .. }| publisher.arrival.is_some() || may_forward(publisher));
    }

    /// A publisher has gone.
    pub(in crate::switch::table) fn tell_no_more_tokens(&mut self, publisher: u32) {
        self.tokens.receivers.by_id.remove(&publisher);
    }
}

fn may_forward(publisher: &ConnectedPublisher) -> bool {
    publisher.is_forwarder && publisher.authorization.rights().as_deref().is_some_and(Rights::publishes_all)
}
