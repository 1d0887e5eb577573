//! The receive queue: the bounded queue between the tasks that read from connections and the receiver.
//!
//! The messages of each peer wait in a queue of their own. The addresses are served in round robin, and so
//! are the peers of each address. If one peer sends much, the others wait for one of its messages (or
//! batches) at a time, and not for all of them.
//!
//! What waits here is claimed in the memory budget of the socket. A connection claims what it reads; once a
//! batch is in the queue, the connection claims it no more, and the queue does.

// Longer than 500 lines: one state under one lock: the queues of all peers, their turns, and the claim.

mod numbered;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::coop;

use self::numbered::Numbered;
use crate::Multipart;
use crate::hub::SHARE_MAX;
use crate::link::buffer::Slab;
use crate::link::send_queue::UNCOPIED_MIN;
use crate::link::source::Source;
use crate::lock::lock;
use crate::memory_budget::{Claim, MemoryBudget};
use xmsg_zmtp::walk_message;

/// A batch of at most this many bytes is always accepted from a peer for which nothing is queued. So a peer
/// that sends little need not wait for those that fill the queue.
const ALWAYS: usize = 4 << 10;
/// The step in bytes in which the claim of the queue changes. A queue that holds less claims nothing.
const CLAIM_STEP: usize = 64 << 10;
/// While no more than this many bytes wait in all send queues of the budget, messages are passed on as they
/// lie in the slab of their connection. What they keep alive is then at most 64 MiB.
const LITTLE_WAITS: usize = 4 << 20;

/// Whole messages of one peer, one after another, as they arrived.
#[derive(Debug)]
struct Batch {
    from: Bytes,
    wire: Bytes,
    /// The memory in bytes that a slice of `wire` keeps alive.
    memory: usize,
    /// The slab in which `wire` lies, and which may hold other batches, too. `None` if it has memory of its
    /// own.
    slab: Option<SlabId>,
    /// The bytes that it counts for. Of batches that follow one another in one slab, the last one counts for
    /// all of it.
    charge: usize,
}

/// Identifies a slab by the ID of the connection and the serial number of the slab within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SlabId {
    connection: u64,
    serial: u64,
}

/// The memory of a batch besides its bytes. It counts because there may be many short batches.
const BATCH_OVERHEAD: usize = size_of::<Batch>();

impl Batch {
    /// Whole messages in memory of their own.
    fn apart(from: Bytes, wire: Bytes) -> Self {
        let memory = wire.len();
        Self { from, wire, memory, slab: None, charge: memory }
    }

    /// The number of its messages.
    fn messages(&self) -> u64 {
        ends(&self.wire).count() as u64
    }

    /// The bytes that are freed once all of it was taken.
    fn freed(&self) -> usize {
        if self.wire.is_empty() { self.charge } else { 0 }
    }
}

/// Returns where each message of an encoded batch ends.
fn ends(wire: &[u8]) -> impl Iterator<Item = usize> {
    let after = |end: &usize| walk_message(wire, *end, |_| {});
    std::iter::successors(after(&0), after)
}

/// What is queued for one peer.
#[derive(Debug)]
struct PeerBatches {
    peer: Bytes,
    /// The number of its address in `groups`.
    group: usize,
    batches: VecDeque<Batch>,
    /// The number of its connections.
    connections: usize,
}

/// The peers with one address.
#[derive(Debug)]
struct Group {
    source: Source,
    /// Those of its peers for which something is queued, in round-robin order.
    turns: VecDeque<usize>,
    /// The number of all its peers.
    peers: usize,
}

#[derive(Debug, Default)]
struct State {
    /// Batches that were put back, which go before everything else.
    first: VecDeque<Batch>,
    waiting: Numbered<Bytes, PeerBatches>,
    groups: Numbered<Source, Group>,
    /// Addresses for which something is queued, in round-robin order.
    turns: VecDeque<usize>,
    /// The bytes of memory that are kept alive by what is queued, or passed to the receiver as a batch and
    /// not yet processed.
    bytes: usize,
    /// Claims `bytes` in the memory budget.
    claim: Option<Claim>,
    /// The number of connections that there were.
    connections: u64,
    /// The bytes of the batch that the receiver took last.
    handed: usize,
    /// The wakers of receivers that wait for a message.
    receivers: Vec<Waker>,
    crowded: bool,
    closed: bool,
    /// The number of messages that were replaced by newer ones of the same peer.
    conflated: u64,
}

impl State {
    /// Claims what is queued now. No connection is ended for that: its own claim falls by as much, or it asks
    /// for more itself.
    #[inline]
    fn claim(&mut self) {
        let bytes = self.bytes / CLAIM_STEP * CLAIM_STEP;
        if let Some(claim) = &mut self.claim
            && claim.bytes() != bytes
        {
            claim.transfer(bytes);
        }
    }

    fn join(&mut self, peer: &Bytes, source: &Source) -> usize {
        if let Some(number) = self.waiting.numbers.get(peer).copied()
            && let Some(waiting) = self.waiting.get_mut(number)
        {
            // The peer has reconnected, perhaps from another address. What it sent before comes first.
            waiting.connections += 1;
            return number;
        }
        let group = match self.groups.numbers.get(source) {
            Some(number) => *number,
            None => self
                .groups
                .add(source.clone(), Group { source: source.clone(), turns: VecDeque::new(), peers: 0 }),
        };
        if let Some(group) = self.groups.get_mut(group) {
            group.peers += 1;
        }
        let waiting = PeerBatches { peer: peer.clone(), group, batches: VecDeque::new(), connections: 1 };
        self.waiting.add(peer.clone(), waiting)
    }

    fn leave(&mut self, number: usize) {
        if let Some(waiting) = self.waiting.get_mut(number) {
            waiting.connections -= 1;
        }
        self.forget(number);
    }

    /// Removes a peer that has gone, once nothing is queued for it.
    fn forget(&mut self, number: usize) {
        let Some(waiting) = self.waiting.get_mut(number) else { return };
        if waiting.connections > 0 || !waiting.batches.is_empty() {
            return;
        }
        let (peer, group) = (waiting.peer.clone(), waiting.group);
        self.waiting.remove(&peer);
        let Some(of) = self.groups.get_mut(group) else { return };
        of.peers -= 1;
        if of.peers == 0 {
            let source = of.source.clone();
            self.groups.remove(&source);
        }
    }

    fn is_empty(&mut self, number: usize) -> bool {
        self.waiting.get_mut(number).is_none_or(|waiting| waiting.batches.is_empty())
    }

    /// Queues a batch. Returns the receivers to wake once the lock is free.
    fn put(&mut self, number: usize, batch: Option<Batch>) -> Vec<Waker> {
        if let Some(mut batch) = batch
            && let Some(waiting) = self.waiting.get_mut(number)
        {
            let before =
                waiting.batches.back_mut().filter(|last| last.slab.is_some() && last.slab == batch.slab);
            let counted = before.map_or(0, |last| std::mem::take(&mut last.charge));
            batch.charge = batch.charge.max(counted);
            self.bytes += batch.charge - counted;
            waiting.batches.push_back(batch);
            if waiting.batches.len() == 1 {
                let group = waiting.group;
                self.queue(group, number);
            }
            self.claim();
        }
        std::mem::take(&mut self.receivers)
    }

    /// Replaces the queued message of a peer. Returns the receivers to wake once the lock is free, or the new
    /// message if none is queued for the peer.
    fn replace(&mut self, number: usize, message: Batch) -> Result<Vec<Waker>, Batch> {
        let Some(last) = self.waiting.get_mut(number).and_then(|waiting| waiting.batches.back_mut()) else {
            return Err(message);
        };
        self.bytes = self.bytes - last.charge + message.charge;
        *last = message;
        self.conflated += 1;
        self.claim();
        Ok(std::mem::take(&mut self.receivers))
    }

    /// Adds a peer, for which something is queued, to the round robin.
    fn queue(&mut self, number: usize, peer: usize) {
        let Some(group) = self.groups.get_mut(number) else { return };
        group.turns.push_back(peer);
        if group.turns.len() == 1 {
            self.turns.push_back(number);
        }
    }

    /// Passes the next batch in the round robin to `take`, which leaves what is for the next turn of its
    /// peer.
    fn take_turn<T>(&mut self, take: impl FnOnce(&mut Batch) -> T) -> Option<T> {
        if let Some(batch) = self.first.front_mut() {
            let taken = take(batch);
            if batch.wire.is_empty() {
                self.first.pop_front();
            }
            return Some(taken);
        }
        let address = *self.turns.front()?;
        let group = self.groups.get_mut(address)?;
        let number = *group.turns.front()?;
        let waiting = self.waiting.get_mut(number)?;
        let batch = waiting.batches.front_mut()?;
        let taken = take(batch);
        if batch.wire.is_empty() {
            waiting.batches.pop_front();
        }
        let is_done = waiting.batches.is_empty();
        // Most of the time only one peer has messages queued.
        if is_done || group.turns.len() > 1 {
            group.turns.pop_front();
            if !is_done {
                group.turns.push_back(number);
            }
        }
        let is_group_done = group.turns.is_empty();
        if is_group_done || self.turns.len() > 1 {
            self.turns.pop_front();
            if !is_group_done {
                self.turns.push_back(address);
            }
        }
        if is_done {
            self.forget(number);
        }
        Some(taken)
    }

    /// Returns `None` when nothing more will come. Otherwise the receiver is woken when something does.
    fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<Option<T>> {
        if self.closed {
            return Poll::Ready(None);
        }
        if !self.receivers.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.receivers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// The place where the messages of one connection are queued.
#[derive(Debug)]
pub(crate) struct PeerQueue<'a> {
    receive_queue: &'a ReceiveQueue,
    number: usize,
    /// Differs from that of every other connection.
    id: u64,
    /// Whether we connect to the peer. It is then our own choice, and nothing of it is lost here.
    is_chosen: bool,
    /// The number of messages that were lost because the connection ended while they waited for room.
    lost: AtomicU64,
}

impl Drop for PeerQueue<'_> {
    fn drop(&mut self) {
        self.receive_queue.state().leave(self.number);
    }
}

/// A batch that waits for room. If it is dropped, the batch is queued nevertheless, unless memory is scarce.
struct WaitingBatch<'a> {
    peer_queue: &'a PeerQueue<'a>,
    batch: Option<Batch>,
}

impl Drop for WaitingBatch<'_> {
    fn drop(&mut self) {
        let Some(batch) = self.batch.take() else { return };
        let PeerQueue { receive_queue, number, .. } = *self.peer_queue;
        let mut state = receive_queue.state();
        // Nothing of a peer that is ended for its memory may stay. What stays belongs to no connection that
        // could be ended for it, so it must not fill the budget, however many connections come and go. After
        // the socket was closed, nothing more is read.
        if !self.peer_queue.is_chosen && !state.closed && !receive_queue.memory.is_half_free(batch.charge) {
            drop(state);
            self.peer_queue.lost.fetch_add(batch.messages(), Ordering::Relaxed);
            return;
        }
        let receivers = state.put(number, Some(batch));
        drop(state);
        receivers.into_iter().for_each(Waker::wake);
    }
}

/// The receive queue of a socket. A reader that finds it full waits, and so, through TCP back-pressure, does
/// the peer.
#[derive(Debug)]
pub(crate) struct ReceiveQueue {
    state: Mutex<State>,
    limit: usize,
    /// Whether only the last message of each peer is kept.
    conflates: bool,
    memory: MemoryBudget,
    room: Notify,
}

impl PeerQueue<'_> {
    /// Queues whole messages, and waits while the queue is at its mark. What counts is the memory that the
    /// messages keep alive: that of the slab of this connection in which they lie, or their own if there is
    /// no slab. A few bytes of a peer for which nothing is queued are copied, and do not wait.
    ///
    /// If a reader is cancelled while it waits, what it had read is queued nevertheless, as long as half of
    /// the memory budget is free. Otherwise it is [lost](Self::lost). So the bound is the mark plus what each
    /// connection has read last, and no more than the budget has.
    pub(crate) async fn push(&self, from: &Bytes, wire: Bytes, slab: Option<Slab>) {
        let receive_queue = self.receive_queue;
        if receive_queue.state().closed {
            return;
        }
        let (wire, slab) = if receive_queue.conflates { (self.last_of(&wire), None) } else { (wire, slab) };
        let mut batch = Batch::apart(from.clone(), wire);
        if let Some(Slab { serial, size }) = slab {
            batch.slab = Some(SlabId { connection: self.id, serial });
            (batch.memory, batch.charge) = (size, size);
        } else {
            batch.charge += BATCH_OVERHEAD;
        }
        if receive_queue.conflates {
            // A message that replaces another one needs no room.
            let replaced = receive_queue.state().replace(self.number, batch);
            match replaced {
                Ok(receivers) => return receivers.into_iter().for_each(Waker::wake),
                Err(first) => batch = first,
            }
        }
        let mut held = WaitingBatch { peer_queue: self, batch: Some(batch) };
        loop {
            let mut room = std::pin::pin!(receive_queue.room.notified());
            {
                let mut state = receive_queue.state();
                let mut has_room = state.closed || state.bytes < receive_queue.limit;
                if !has_room
                    && let Some(batch) = &mut held.batch
                    && batch.wire.len() <= ALWAYS
                    && state.is_empty(self.number)
                {
                    *batch = Batch::apart(batch.from.clone(), Bytes::copy_from_slice(&batch.wire));
                    has_room = true;
                }
                if has_room {
                    let receivers = state.put(self.number, held.batch.take());
                    drop(state);
                    receivers.into_iter().for_each(Waker::wake);
                    return;
                }
                state.crowded = true;
                room.as_mut().enable();
            }
            room.await;
        }
    }
}

impl PeerQueue<'_> {
    /// Returns a copy of the last message of an encoded batch, so that the rest of the batch is not kept in
    /// memory. The messages before it are counted as replaced.
    fn last_of(&self, wire: &Bytes) -> Bytes {
        let (mut last, mut end, mut passed) = (0, 0, 0);
        for next in ends(wire) {
            passed += u64::from(end > 0);
            (last, end) = (end, next);
        }
        self.receive_queue.state().conflated += passed;
        Bytes::copy_from_slice(&wire[last..end])
    }

    /// Notes that we connect to the peer, so that nothing of it is ever lost here.
    pub(crate) fn choose(&mut self) {
        self.is_chosen = true;
    }

    /// Returns the number of messages that were lost because the connection ended while they waited for room
    /// and memory was scarce.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Queues a whole message at once, even if the queue is at its mark.
    pub(crate) fn put(&self, from: &Bytes, wire: Bytes) {
        let mut state = self.receive_queue.state();
        if state.closed {
            return;
        }
        let mut batch = Batch::apart(from.clone(), wire);
        batch.charge += BATCH_OVERHEAD;
        let receivers = state.put(self.number, Some(batch));
        drop(state);
        receivers.into_iter().for_each(Waker::wake);
    }
}

impl ReceiveQueue {
    pub(crate) fn new(limit: usize) -> Self {
        let memory = MemoryBudget::default();
        Self { state: Mutex::default(), limit, conflates: false, memory, room: Notify::new() }
    }

    /// Claims what is queued in this budget.
    pub(crate) fn claiming(self, memory: &MemoryBudget) -> Self {
        self.state().claim = Some(memory.claim_shared());
        Self { memory: memory.clone(), ..self }
    }

    /// Sets whether only the last message of each peer is kept.
    pub(crate) fn conflating(self, conflates: bool) -> Self {
        Self { conflates, ..self }
    }

    /// Returns the number of messages that were replaced by newer ones of the same peer.
    pub(crate) fn conflated(&self) -> u64 {
        self.state().conflated
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Creates the queue for what the peer of one connection sends. What a peer sends over several
    /// connections, one after another, stays in order.
    pub(crate) fn of_peer(&self, peer: &Bytes, source: &Source) -> PeerQueue<'_> {
        let mut state = self.state();
        state.connections += 1;
        PeerQueue {
            receive_queue: self,
            number: state.join(peer, source),
            id: state.connections,
            is_chosen: false,
            lost: AtomicU64::new(0),
        }
    }

    /// Puts batches that were taken back to the front, in order. They are copied, because it is not known
    /// here how much memory they keep alive.
    pub(crate) fn put_back(&self, batches: impl DoubleEndedIterator<Item = Bytes>) {
        let copies = batches.rev().map(|wire| Batch::apart(Bytes::new(), Bytes::copy_from_slice(&wire)));
        let copies: Vec<_> = copies.collect();
        let mut state = self.state();
        for batch in copies {
            state.bytes += batch.charge;
            state.first.push_front(batch);
        }
        state.claim();
    }

    /// Returns all queued batches in their encoding.
    pub(crate) fn waiting(&self) -> Vec<Bytes> {
        let state = self.state();
        let queued = state.waiting.things.iter().flatten().flat_map(|waiting| &waiting.batches);
        state.first.iter().chain(queued).map(|batch| batch.wire.clone()).collect()
    }

    /// Returns the next message and the identity of its sender, or `None` once the queue is closed and empty.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<(Bytes, Multipart)>> {
        let detach = |(from, message): (Bytes, Multipart)| (from, message.detached());
        self.poll_next_as(cx, |from, message| (from.clone(), message), detach)
    }

    /// Returns the next message as `make` returns it from sender and message, or `None` once the queue is
    /// closed and empty. What is not needed is not copied. If the message would [pin](Self::pins) much memory
    /// wherever it is passed on to, `detach` returns it in memory of its own.
    pub(crate) fn poll_next_as<T>(
        &self,
        cx: &mut Context<'_>,
        make: impl Fn(&Bytes, Multipart) -> T,
        detach: impl FnOnce(T) -> T,
    ) -> Poll<Option<T>> {
        let mut state = self.state();
        loop {
            let (mut found, mut pins) = (None, false);
            let freed = state.take_turn(|batch| {
                let before = batch.wire.len();
                // Bytes that are not a message are dropped.
                found = Multipart::take(&mut batch.wire).map(|message| make(&batch.from, message));
                pins = self.pins(before - batch.wire.len(), batch.memory);
                batch.freed()
            });
            let Some(freed) = freed else { return state.wait(cx) };
            self.release(&mut state, freed);
            if let Some(found) = found {
                drop(state);
                return Poll::Ready(Some(if pins { detach(found) } else { found }));
            }
        }
    }

    /// Whether a message of `len` bytes keeps too much more memory alive than its length. It may be passed on
    /// to a send queue, which copies short frames, and counts only the length of long ones. As long as little
    /// waits in the send queues of the budget, a message may keep 16 times its length alive, and then twice.
    #[inline]
    fn pins(&self, len: usize, memory: usize) -> bool {
        len >= UNCOPIED_MIN
            && len < memory / 2
            && (len < memory / SHARE_MAX || self.memory.queues().bytes() > LITTLE_WAITS)
    }

    /// Returns the next batch of messages that lie together, and the size of the memory in which they lie.
    /// Returns `None` once the queue is closed and empty. The batch counts as queued until the next call.
    pub(crate) fn poll_batch(&self, cx: &mut Context<'_>) -> Poll<Option<(Bytes, usize)>> {
        // A receiver that never runs out of messages still yields to other tasks.
        let turn = ready!(coop::poll_proceed(cx));
        let mut state = self.state();
        let handed = std::mem::take(&mut state.handed);
        self.release(&mut state, handed);
        match state.take_turn(|batch| (std::mem::take(&mut batch.wire), batch.memory, batch.freed())) {
            Some((wire, memory, freed)) => {
                state.handed = freed;
                turn.made_progress();
                Poll::Ready(Some((wire, memory)))
            }
            None => state.wait(cx),
        }
    }

    fn release(&self, state: &mut State, bytes: usize) {
        state.bytes -= bytes;
        state.claim();
        if state.crowded && state.bytes <= self.limit / 2 {
            state.crowded = false;
            self.room.notify_waiters();
        }
    }

    /// Closes the queue for new messages. What is queued can still be received.
    pub(crate) fn close(&self) {
        let receivers = {
            let mut state = self.state();
            state.closed = true;
            std::mem::take(&mut state.receivers)
        };
        self.room.notify_waiters();
        receivers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
#[path = "receive_queue_tests.rs"]
mod tests;
