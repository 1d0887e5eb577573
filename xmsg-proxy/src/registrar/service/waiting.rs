//! Requests that have to wait, because another request of the same peer is in progress or because there is no
//! room for changes. The peers continue in turn.

use std::collections::VecDeque;

use bytes::Bytes;
use xmsg_zmq::{Multipart, ReturnPath};

use super::{BATCH_BYTES, BATCH_REQUESTS, DATA_MAX, Operation, Service};

/// The largest number of waiting requests that are handled in one turn.
const RESUMED_MAX: usize = 8;
/// The largest number of waiting requests of one peer. More are refused.
const WAITING_OF_ONE_MAX: usize = 256;
/// The largest number of waiting requests of one peer while more than half of the room for all of them is
/// used.
const WAITING_OF_ONE_CROWDED_MAX: usize = 16;
/// The largest number of waiting requests of all peers.
const WAITING_MAX: usize = 16 << 10;
/// The largest size of the waiting requests of all peers, in bytes.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// The approximate size of a waiting request beside its frames, in bytes.
const OPERATION_OVERHEAD: usize = 256;

/// The requests of a peer that are in progress or waiting.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) changes: usize,
    pub(super) is_answering: bool,
    /// The waiting requests, each with the memory that it takes, in bytes.
    pub(super) waiting: VecDeque<(ReturnPath, Operation, usize)>,
    /// Whether the peer is in one of the queues of peers that continue.
    is_queued: bool,
}

impl Service {
    pub(super) fn handle(&mut self, path: ReturnPath, frames: &Multipart) {
        let Some(rights) = self.rights(&path) else {
            // The rules may have changed during the handshake.
            return self.replier.end_connection(&path);
        };
        let task = self.read(frames.frames(), rights.register);
        let is_change = matches!(task, Operation::Change(..));
        let may_go = match self.pending.get(path.peer()) {
            None => true,
            Some(pending) => is_change && !pending.is_answering && pending.waiting.is_empty(),
        };
        if may_go && !self.has_no_room_for(&path, &task) {
            return self.start(path, task);
        }
        let frames = frames.frames().iter().map(|frame| frame.len().min(DATA_MAX)).sum::<usize>();
        let bytes = OPERATION_OVERHEAD + frames + path.memory();
        let own = self.pending.get(path.peer()).map_or(0, |pending| pending.waiting.len());
        let is_crowded = self.waiting >= WAITING_MAX / 2 || self.waiting_bytes >= WAITING_BYTES_MAX / 2;
        let max = if is_crowded { WAITING_OF_ONE_CROWDED_MAX } else { WAITING_OF_ONE_MAX };
        if own < max && self.waiting < WAITING_MAX && self.waiting_bytes + bytes <= WAITING_BYTES_MAX {
            self.waiting += 1;
            self.waiting_bytes += bytes;
            let peer = path.peer().clone();
            self.pending.entry(peer.clone()).or_default().waiting.push_back((path, task, bytes));
            if may_go {
                // The request waits only for room.
                self.resume(&peer);
            }
            return;
        }
        let status = if may_go {
            "too many changes wait to be stored: ask again later"
        } else {
            "too many requests wait for one before them: wait for its answer before the next one"
        };
        self.refuse(&path, task, status);
    }

    /// Returns whether no more changes can be accepted for now.
    fn is_full(&self) -> bool {
        self.gathering.changes.len() >= BATCH_REQUESTS
            || self.gathering.entries.len() >= BATCH_BYTES
            || (!self.durable && self.applying.changes.len() >= BATCH_REQUESTS)
    }

    /// Returns whether this is a change that can't be accepted for now: there are too many changes, or there
    /// are too many slow ones and this one is slow or would have to wait for one of them. Other changes are
    /// accepted.
    fn has_no_room_for(&self, path: &ReturnPath, task: &Operation) -> bool {
        let Operation::Change(_, change) = task else { return false };
        self.is_full() || self.slow.is_full() && (change.takes_long() || self.slow.precedes(path, change))
    }

    /// Queues a peer to continue with its waiting requests.
    pub(super) fn resume(&mut self, peer: &Bytes) {
        let Some(pending) = self.pending.get_mut(peer) else { return };
        if pending.waiting.is_empty() {
            if pending.changes == 0 && !pending.is_answering {
                self.pending.remove(peer);
            }
        } else if !std::mem::replace(&mut pending.is_queued, true) {
            self.resuming.push_back(peer.clone());
        }
    }

    /// Lets peers that wait for room continue, if there is room for more changes.
    pub(super) fn make_room(&mut self) {
        if !self.is_full() {
            self.resuming.extend(self.without_room.drain(..));
        }
    }

    /// Continues with one waiting request of each of some peers, where that is allowed.
    pub(super) fn resume_some(&mut self) {
        for _ in 0..RESUMED_MAX {
            let Some(peer) = self.resuming.pop_front() else { return };
            let next = self.pending.get(&peer).and_then(|pending| pending.waiting.front());
            let is_full = next.is_some_and(|(path, task, _)| self.has_no_room_for(path, task));
            let Some(pending) = self.pending.get_mut(&peer) else { continue };
            let may_go = match pending.waiting.front() {
                None => false,
                Some((_, Operation::Change(..), _)) if is_full && !pending.is_answering => {
                    self.without_room.push(peer);
                    continue;
                }
                Some((_, Operation::Change(..), _)) => !pending.is_answering,
                Some(_) => !pending.is_answering && pending.changes == 0,
            };
            pending.is_queued = false;
            if may_go && let Some((path, task, bytes)) = pending.waiting.pop_front() {
                self.waiting -= 1;
                self.waiting_bytes -= bytes;
                self.start(path, task);
            }
            let pending = self.pending.get(&peer);
            // Otherwise the end of the peer's request in progress makes it continue.
            if pending.is_some_and(|pending| may_go || (pending.changes == 0 && !pending.is_answering)) {
                self.resume(&peer);
            }
        }
    }

    /// Refuses all requests that still wait for an answer.
    pub(super) fn give_up(&mut self, status: &str) {
        while let Some((_, one)) = self.answering.pop() {
            self.answer(&one.path, self.reply(one.action, Err(status.to_owned())));
        }
        for (_, pending) in std::mem::take(&mut self.pending) {
            for (path, task, _) in pending.waiting {
                self.refuse(&path, task, status);
            }
        }
    }
}
