//! The changes of subscriptions that publishers have yet to be notified of.
//!
//! Each notification costs a write for each publisher. So, where there are many publishers, changes are
//! gathered for a while and sent in *rounds*, with a rest between them that is many times as long as a round
//! takes. A change that was taken back meanwhile is not sent at all.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use xmsg_zmq::deadline::later;
use xmsg_zmq::link::session::now;

use super::task::{SubscriptionChange, SubscriptionChanges};

/// The longest time for which changes are gathered, if there were none before.
const GATHER: Duration = Duration::from_millis(5);
/// The rest after a round, for each publisher: several times what a notification takes.
const REST_OF_EACH: Duration = Duration::from_micros(25);
/// The bytes that a change counts for beside its prefix.
const CHANGE: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Notifications {
    /// The changes in their order. None of these takes back another one.
    settled: SubscriptionChanges,
    /// The changes that may yet be taken back, by prefix. They come after the others.
    open: BTreeMap<Bytes, SubscriptionChange>,
    /// The bytes of all changes.
    bytes: usize,
    /// The time when they are to be sent.
    due: Option<Instant>,
    /// The end of the rest before the next round.
    rest: Option<Instant>,
    /// The round that is being sent.
    round: Option<Round>,
    /// The number of rounds that were begun.
    rounds: u64,
}

/// A round of notifications, with the bytes for each audience.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) bytes: BTreeMap<u32, Bytes>,
    /// The publisher that was notified last.
    pub(super) last: Option<u32>,
}

impl Notifications {
    /// Adds changes that are to be sent at once.
    pub(super) fn add(&mut self, changes: SubscriptionChanges) {
        self.seal();
        self.bytes += changes.iter().map(weight).sum::<usize>();
        self.settled.extend(changes);
    }

    /// Adds changes that are to be sent to this many publishers when their time has come.
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

    /// Closes the open changes. A publisher is being sent the present state of the table: a change of what
    /// is, or no longer is, in the table may not be taken back silently.
    pub(super) fn seal(&mut self) {
        self.settled.extend(std::mem::take(&mut self.open).into_values());
    }

    /// Returns whether there is no change beside those of the present round.
    pub(super) fn is_empty(&self) -> bool {
        self.settled.is_empty() && self.open.is_empty()
    }

    /// Returns the bytes of the changes that are to be sent.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the number of the round in which a change that is made now is sent.
    pub(super) fn next_round(&self) -> u64 {
        self.rounds + 1
    }

    /// Returns the number of the round after which all changes so far were sent.
    pub(super) fn needed(&self) -> u64 {
        self.rounds + u64::from(!self.is_empty())
    }

    /// Returns whether that round is over, or no longer needed.
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

    /// Returns the time until the next round, or `None` if there are no changes.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let due = self.due.filter(|_| !self.is_empty())?;
        Some(self.rest.map_or(due, |rest| rest.max(due)).saturating_duration_since(now()))
    }

    /// Takes all changes out for a new round. The one before must be over.
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

    /// Ends the round, in which this many publishers were notified.
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
