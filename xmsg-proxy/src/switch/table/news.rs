//! What publishers have yet to be told of subscriptions.
//!
//! Each of them takes a write for whatever it is told. So, where there are many, news is gathered for a while
//! and told in *rounds*: one after another, with a rest between them that is many times what a round takes,
//! and of what was taken back meanwhile nobody hears.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use xmsg_zmq::deadline::later;
use xmsg_zmq::link::session::now;

use super::task::{SubscriptionChange, SubscriptionChanges};

/// For how long news is gathered at most, if there was none before.
const GATHER: Duration = Duration::from_millis(5);
/// The rest after a round, for each publisher: some times what it takes to tell it.
const REST_OF_EACH: Duration = Duration::from_micros(25);
/// What a change counts for beside its prefix, bytes.
const CHANGE: usize = 64;

#[derive(Debug, Default)]
pub(super) struct News {
    /// In their order: of these, none takes back another one.
    settled: SubscriptionChanges,
    /// By prefix: those that may yet be taken back. They come after the others.
    open: BTreeMap<Bytes, SubscriptionChange>,
    /// Of all of these.
    bytes: usize,
    /// When they are to be told.
    due: Option<Instant>,
    /// Until then, nothing is told.
    rest: Option<Instant>,
    /// The round that is being told.
    round: Option<Round>,
    /// Rounds that were begun.
    rounds: u64,
}

/// What each audience is told.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) bytes: BTreeMap<u32, Bytes>,
    /// The publisher that was told last.
    pub(super) last: Option<u32>,
}

impl News {
    /// More, to be told at once.
    pub(super) fn add(&mut self, changes: SubscriptionChanges) {
        self.seal();
        self.bytes += changes.iter().map(weight).sum::<usize>();
        self.settled.extend(changes);
    }

    /// More, to be told to so many publishers when its time has come.
    pub(super) fn gather(&mut self, changes: SubscriptionChanges, publishers: usize) {
        for change in changes {
            let weight = weight(&change);
            match self.open.remove(&change.prefix) {
                Some(before) if before.subscribe != change.subscribe => self.bytes -= weight,
                _ => {
                    self.bytes += weight;
                    self.open.insert(change.prefix.clone(), change);
                }
            }
        }
        if self.due.is_none() && !self.is_empty() {
            self.due = Some(later(now(), GATHER.min(rest(publishers))));
        }
    }

    /// Somebody is being told how the table is now: nothing that is in it, or not in it any more, may be
    /// taken back without a word.
    pub(super) fn seal(&mut self) {
        self.settled.extend(std::mem::take(&mut self.open).into_values());
    }

    /// Whether there is none, beside what is being told.
    pub(super) fn is_empty(&self) -> bool {
        self.settled.is_empty() && self.open.is_empty()
    }

    /// What is to be told weighs so much, bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of the round in which a change that is made now is told.
    pub(super) fn next_round(&self) -> u64 {
        self.rounds + 1
    }

    /// The number of the round in which all changes so far are told.
    pub(super) fn needed(&self) -> u64 {
        self.rounds + u64::from(!self.is_empty())
    }

    /// Whether that round is over, or no longer needed.
    pub(super) fn is_told(&self, round: u64) -> bool {
        let over = self.rounds - u64::from(self.round.is_some());
        over >= round || (over == self.rounds && self.is_empty())
    }

    pub(super) fn is_being_told(&self) -> bool {
        self.round.is_some()
    }

    pub(super) fn round(&mut self) -> Option<&mut Round> {
        self.round.as_mut()
    }

    /// How long to wait for the next round; `None`: there is nothing to tell.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let due = self.due.filter(|_| !self.is_empty())?;
        Some(self.rest.map_or(due, |rest| rest.max(due)).saturating_duration_since(now()))
    }

    /// All that is to be told in a new round. The one before is over.
    pub(super) fn take(&mut self) -> SubscriptionChanges {
        self.seal();
        self.due = None;
        self.bytes = 0;
        std::mem::take(&mut self.settled)
    }

    pub(super) fn begin(&mut self, bytes: BTreeMap<u32, Bytes>) {
        self.rounds += 1;
        self.round = Some(Round { bytes, last: None });
    }

    /// So many publishers were told.
    pub(super) fn end(&mut self, publishers: usize) {
        self.round = None;
        self.rest = Some(later(now(), rest(publishers)));
    }
}

fn rest(publishers: usize) -> Duration {
    REST_OF_EACH.saturating_mul(u32::try_from(publishers).unwrap_or(u32::MAX))
}

fn weight(change: &SubscriptionChange) -> usize {
    change.prefix.len() + CHANGE
}
