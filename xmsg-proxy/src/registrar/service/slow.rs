//! Slow changes, and the changes that have to wait for them: those of the same host, and those of the same
//! peer, because a peer gets its replies in order. All others may be applied meanwhile, because their result
//! does not depend on the order.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use xmsg_core::registration::Action;
use xmsg_zmq::ReturnPath;

use super::BATCH_REQUESTS;
use super::change::Change;

/// A change that is on the disk.
type Stored = (ReturnPath, Action, Change);

/// Changes in the order in which they are to be applied, each with its position in the journal.
#[derive(Debug, Default)]
pub(super) struct PendingChanges {
    changes: VecDeque<(Stored, u64)>,
    /// How many of the changes affect each host. `peers` says how many of them each peer sent.
    hosts: HashMap<String, usize>,
    peers: HashMap<Bytes, usize>,
}

impl PendingChanges {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    /// Returns whether so many changes wait that no more may be added.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= BATCH_REQUESTS
    }

    /// Returns whether this change has to wait for one of the waiting changes.
    pub(super) fn precedes(&self, path: &ReturnPath, change: &Change) -> bool {
        self.hosts.contains_key(change.host()) || self.peers.contains_key(path.peer())
    }

    /// Adds a change that is in the journal behind this position.
    pub(super) fn push(&mut self, stored: Stored, position: u64) {
        self.note(&stored);
        self.changes.push_back((stored, position));
    }

    /// Returns the journal position before the oldest of the changes.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.changes.front().map(|(_, position)| *position)
    }

    /// Takes the next change.
    pub(super) fn pop(&mut self) -> Option<(Stored, u64)> {
        let next = self.changes.pop_front()?;
        let (path, _, change) = &next.0;
        decrement(&mut self.hosts, change.host());
        decrement(&mut self.peers, path.peer());
        Some(next)
    }

    /// Puts a change back to the front, because it is not complete.
    pub(super) fn put_back(&mut self, stored: Stored, position: u64) {
        self.note(&stored);
        self.changes.push_front((stored, position));
    }

    fn note(&mut self, (path, _, change): &Stored) {
        *self.hosts.entry(change.host().to_owned()).or_default() += 1;
        *self.peers.entry(path.peer().clone()).or_default() += 1;
    }
}

fn decrement<K, Q>(counts: &mut HashMap<K, usize>, key: &Q)
where
    K: std::borrow::Borrow<Q> + std::hash::Hash + Eq,
    Q: std::hash::Hash + Eq + ?Sized,
{
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
