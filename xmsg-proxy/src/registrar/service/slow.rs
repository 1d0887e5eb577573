//! Changes that take long, and those that have to wait for them: of the same host, or asked for by the same peer, which gets its replies in
//! order. All others may be carried out meanwhile, as nothing about them depends on the order.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use xmsg_core::registration::Action;
use xmsg_zmq::ReturnPath;

use super::BATCH_REQUESTS;
use super::change::Change;

/// A change that is on the disk.
type Stored = (ReturnPath, Action, Change);

/// Changes in the order in which they are to be carried out.
#[derive(Debug, Default)]
pub(super) struct Slow {
    changes: VecDeque<(Stored, u64)>,
    /// How many of them are about a host, and of a peer.
    hosts: HashMap<String, usize>,
    peers: HashMap<Bytes, usize>,
}

impl Slow {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether so many wait that no more are to be added.
    pub(super) fn is_full(&self) -> bool {
        self.len() >= BATCH_REQUESTS
    }

    /// Whether this change has to wait for one of them.
    pub(super) fn precedes(&self, path: &ReturnPath, change: &Change) -> bool {
        self.hosts.contains_key(change.host()) || self.peers.contains_key(path.peer())
    }

    /// Adds one that is in the journal behind this position.
    pub(super) fn push(&mut self, stored: Stored, position: u64) {
        self.note(&stored);
        self.changes.push_back((stored, position));
    }

    /// The position in the journal that all of them are behind.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.changes.front().map(|(_, position)| *position)
    }

    /// The one that is next.
    pub(super) fn pop(&mut self) -> Option<(Stored, u64)> {
        let next = self.changes.pop_front()?;
        let (path, _, change) = &next.0;
        forget(&mut self.hosts, change.host());
        forget(&mut self.peers, path.peer());
        Some(next)
    }

    /// It is next once more: there is more of it to be done.
    pub(super) fn put_back(&mut self, stored: Stored, position: u64) {
        self.note(&stored);
        self.changes.push_front((stored, position));
    }

    fn note(&mut self, (path, _, change): &Stored) {
        *self.hosts.entry(change.host().to_owned()).or_default() += 1;
        *self.peers.entry(path.peer().clone()).or_default() += 1;
    }
}

fn forget<K, Q>(counts: &mut HashMap<K, usize>, key: &Q)
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
