//! The receive queue: the bounded queue between the tasks that read from connections and the receiver.
//!
//! The messages of each peer wait in a queue of their own. The addresses are served in round robin, and so
//! are the peers of each address. If one peer sends much, the others wait for one of its messages (or
//! batches) at a time, and not for all of them.

mod numbered;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::coop;

use self::numbered::Numbered;
use crate::Multipart;
use crate::link::buffer::Slab;
use crate::link::source::Source;
use crate::lock::lock;
use xmsg_zmtp::walk_message;

/// A batch of at most this many bytes is always accepted from a peer for which nothing is queued. So a peer
/// that sends little need not wait for those that fill the queue.
const ALWAYS: usize = 4 << 10;

/// Whole messages of one peer, one after another, as they arrived.
#[derive(Debug)]
struct Batch {
    from: Bytes,
    wire: Bytes,
    /// The memory in bytes that a slice of `wire` keeps alive.
    memory: usize,
    /// The slab in which `wire` lies, and which may hold other batches, too. `None` if it has memory of its
    /// own.
    slab: Option<SlabOfLine>,
    /// The bytes that it counts for. Of batches that follow one another in one slab, the last one counts for
    /// all of it.
    charge: usize,
}

/// Identifies a slab by the ID of the line and the serial number of the slab within its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SlabOfLine {
    line: u64,
    serial: u64,
}

/// The memory of a batch besides its bytes. It counts because there may be many short batches.
const HELD: usize = size_of::<Batch>();

impl Batch {
    /// Whole messages in memory of their own.
    fn apart(from: Bytes, wire: Bytes) -> Self {
        let memory = wire.len();
        Self { from, wire, memory, slab: None, charge: memory }
    }

    /// The bytes that are freed once all of it was taken.
    fn freed(&self) -> usize {
        if self.wire.is_empty() { self.charge } else { 0 }
    }
}

/// What is queued for one peer.
#[derive(Debug)]
struct Waiting {
    peer: Bytes,
    /// The number of its address in `groups`.
    group: usize,
    batches: VecDeque<Batch>,
    /// The number of its connections.
    lines: usize,
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
    waiting: Numbered<Bytes, Waiting>,
    groups: Numbered<Source, Group>,
    /// Addresses for which something is queued, in round-robin order.
    turns: VecDeque<usize>,
    /// The bytes of memory that are kept alive by what is queued, or passed to the receiver as a batch and
    /// not yet processed.
    bytes: usize,
    /// The number of lines that were created.
    lines: u64,
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
    fn join(&mut self, peer: &Bytes, source: &Source) -> usize {
        if let Some(number) = self.waiting.numbers.get(peer).copied()
            && let Some(waiting) = self.waiting.get_mut(number)
        {
            // The peer has reconnected, perhaps from another address. What it sent before comes first.
            waiting.lines += 1;
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
        let waiting = Waiting { peer: peer.clone(), group, batches: VecDeque::new(), lines: 1 };
        self.waiting.add(peer.clone(), waiting)
    }

    fn leave(&mut self, number: usize) {
        if let Some(waiting) = self.waiting.get_mut(number) {
            waiting.lines -= 1;
        }
        self.forget(number);
    }

    /// Removes a peer that has gone, once nothing is queued for it.
    fn forget(&mut self, number: usize) {
        let Some(waiting) = self.waiting.get_mut(number) else { return };
        if waiting.lines > 0 || !waiting.batches.is_empty() {
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
    /// Differs from that of every other line.
    id: u64,
}

impl Drop for PeerQueue<'_> {
    fn drop(&mut self) {
        self.receive_queue.state().leave(self.number);
    }
}

/// A batch that waits for room. If it is dropped, the batch is queued nevertheless.
struct Held<'a> {
    line: &'a PeerQueue<'a>,
    batch: Option<Batch>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.batch.is_some() {
            let receivers = self.line.receive_queue.state().put(self.line.number, self.batch.take());
            receivers.into_iter().for_each(Waker::wake);
        }
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
    room: Notify,
}

impl PeerQueue<'_> {
    /// Queues whole messages, and waits while the queue is at its mark. What counts is the memory that the
    /// messages keep alive: that of the slab of this connection in which they lie, or their own if there is
    /// no slab. A few bytes of a peer for which nothing is queued are copied, and do not wait.
    ///
    /// If a reader is cancelled while it waits, what it had read is queued nevertheless, so that nothing that
    /// was received is lost. So the bound is the mark plus what each connection has read last.
    pub(crate) async fn push(&self, from: &Bytes, wire: Bytes, slab: Option<Slab>) {
        let receive_queue = self.receive_queue;
        if receive_queue.state().closed {
            return;
        }
        let (wire, slab) = if receive_queue.conflates { (self.last_of(&wire), None) } else { (wire, slab) };
        let mut batch = Batch::apart(from.clone(), wire);
        if let Some(Slab { serial, size }) = slab {
            batch.slab = Some(SlabOfLine { line: self.id, serial });
            (batch.memory, batch.charge) = (size, size);
        } else {
            batch.charge += HELD;
        }
        if receive_queue.conflates {
            // A message that replaces another one needs no room.
            let replaced = receive_queue.state().replace(self.number, batch);
            match replaced {
                Ok(receivers) => return receivers.into_iter().for_each(Waker::wake),
                Err(first) => batch = first,
            }
        }
        let mut held = Held { line: self, batch: Some(batch) };
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
        while let Some(next) = walk_message(wire, end, |_| {}) {
            passed += u64::from(end > 0);
            (last, end) = (end, next);
        }
        self.receive_queue.state().conflated += passed;
        Bytes::copy_from_slice(&wire[last..end])
    }

    /// Queues a whole message at once, even if the queue is at its mark.
    pub(crate) fn put(&self, from: &Bytes, wire: Bytes) {
        let mut state = self.receive_queue.state();
        if state.closed {
            return;
        }
        let mut batch = Batch::apart(from.clone(), wire);
        batch.charge += HELD;
        let receivers = state.put(self.number, Some(batch));
        drop(state);
        receivers.into_iter().for_each(Waker::wake);
    }
}

impl ReceiveQueue {
    pub(crate) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), limit, conflates: false, room: Notify::new() }
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

    /// Creates the line in which a connection queues what its peer sends. What a peer sends over several
    /// connections, one after another, stays in order.
    pub(crate) fn line(&self, peer: &Bytes, source: &Source) -> PeerQueue<'_> {
        let mut state = self.state();
        state.lines += 1;
        PeerQueue { receive_queue: self, number: state.join(peer, source), id: state.lines }
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
    }

    /// Returns all queued batches in their encoding.
    pub(crate) fn waiting(&self) -> Vec<Bytes> {
        let state = self.state();
        let lines = state.waiting.things.iter().flatten().flat_map(|waiting| &waiting.batches);
        state.first.iter().chain(lines).map(|batch| batch.wire.clone()).collect()
    }

    /// Returns the next message and the identity of its sender, or `None` once the queue is closed and empty.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<(Bytes, Multipart)>> {
        self.poll_next_as(cx, |from, message| (from.clone(), message))
    }

    /// Returns the next message as `make` returns it from sender and message, or `None` once the queue is
    /// closed and empty. What is not needed is not copied.
    pub(crate) fn poll_next_as<T>(
        &self,
        cx: &mut Context<'_>,
        make: impl Fn(&Bytes, Multipart) -> T,
    ) -> Poll<Option<T>> {
        let mut state = self.state();
        loop {
            let mut found = None;
            let freed = state.take_turn(|batch| {
                // Bytes that are not a message are dropped.
                found = Multipart::take(&mut batch.wire).map(|message| make(&batch.from, message));
                batch.freed()
            });
            let Some(freed) = freed else { return state.wait(cx) };
            self.release(&mut state, freed);
            if found.is_some() {
                return Poll::Ready(found);
            }
        }
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
mod tests {
    use std::collections::HashMap;

    use super::*;
    use xmsg_zmtp::encode_message;

    fn wire(texts: &[&str]) -> Bytes {
        let mut out = bytes::BytesMut::new();
        for text in texts {
            encode_message(&mut out, &[text]);
        }
        out.freeze()
    }

    fn line<'a>(receive_queue: &'a ReceiveQueue, peer: &'static str, address: &str) -> PeerQueue<'a> {
        receive_queue.line(&Bytes::from_static(peer.as_bytes()), &Source::of(&format!("192.0.2.{address}:1")))
    }

    #[tokio::test]
    async fn each_address_and_each_peer_of_it_has_its_turn() {
        let receive_queue = ReceiveQueue::new(20 + HELD);
        let next = || std::future::poll_fn(|cx| receive_queue.poll_next(cx));
        let [flood, other, neighbour, stranger] =
            [("flood", "1"), ("other", "1"), ("neighbour", "1"), ("stranger", "2")]
                .map(|(peer, address)| line(&receive_queue, peer, address));
        let nobody = Bytes::new();
        flood.push(&nobody, wire(&["f1", "f2", "f3", "f4", "f5"]), None).await;
        let mut more = Box::pin(flood.push(&nobody, wire(&["f6"]), None));
        assert!(futures::poll!(&mut more).is_pending(), "the queue is full");
        // Nothing is queued for the other peers, so they need not wait for room.
        other.push(&nobody, wire(&["o1", "o2"]), None).await;
        stranger.push(&nobody, wire(&["s1", "s2"]), None).await;
        let mut second = Box::pin(other.push(&nobody, wire(&["o3"]), None));
        assert!(futures::poll!(&mut second).is_pending());
        neighbour.push(&nobody, wire(&["n1"]), None).await;
        for expected in ["f1", "s1", "o1", "s2", "n1", "f2", "o2", "f3", "f4", "f5"] {
            assert_eq!(next().await.unwrap().1, Multipart::from([expected]));
        }
        second.await;
        more.await;
        for expected in ["o3", "f6"] {
            assert_eq!(next().await.unwrap().1, Multipart::from([expected]));
        }
        flood.push(&nobody, wire(&["last"]), None).await;
        drop((flood, other, neighbour, stranger));
        assert_eq!(next().await.unwrap().1, Multipart::from(["last"]));
        let state = receive_queue.state();
        assert!(
            state.waiting.numbers.is_empty() && state.groups.numbers.is_empty() && state.turns.is_empty()
        );
        assert_eq!(state.bytes, 0);
    }

    #[tokio::test]
    async fn what_a_peer_sends_over_one_connection_after_another_stays_in_order() {
        let receive_queue = ReceiveQueue::new(100 + HELD);
        let next = || std::future::poll_fn(|cx| receive_queue.poll_next(cx));
        let nobody = Bytes::new();
        let old = line(&receive_queue, "me", "1");
        old.push(&nobody, wire(&["1", "2"]), None).await;
        let new = line(&receive_queue, "me", "2");
        new.push(&nobody, wire(&["3"]), None).await;
        drop(old);
        for expected in ["1", "2", "3"] {
            assert_eq!(next().await.unwrap().1, Multipart::from([expected]));
        }
    }

    #[tokio::test]
    async fn messages_come_in_order_and_a_full_queue_waits() {
        let receive_queue = ReceiveQueue::new(8 + HELD);
        let next = || std::future::poll_fn(|cx| receive_queue.poll_next(cx));
        let nobody = Bytes::new();
        let line = line(&receive_queue, "somebody", "1");
        line.push(&nobody, wire(&["aa", "bb"]), None).await;
        let mut second = std::pin::pin!(line.push(&nobody, wire(&["cc"]), None));
        assert!(futures::poll!(&mut second).is_pending(), "8 of 8 bytes are taken");
        for expected in ["aa", "bb"] {
            assert_eq!(next().await.unwrap().1, Multipart::from([expected]));
        }
        second.await;
        receive_queue.close();
        assert_eq!(next().await.unwrap().1, Multipart::from(["cc"]));
        assert_eq!(next().await, None);
    }

    #[tokio::test]
    async fn what_was_read_is_in_the_queue_when_its_reader_is_ended() {
        let receive_queue = ReceiveQueue::new(4 + HELD);
        let next = || std::future::poll_fn(|cx| receive_queue.poll_next(cx));
        let nobody = Bytes::new();
        let line = line(&receive_queue, "somebody", "1");
        line.push(&nobody, wire(&["aa"]), None).await;
        {
            let mut push = std::pin::pin!(line.push(&nobody, wire(&["bb"]), None));
            assert!(futures::poll!(&mut push).is_pending());
            receive_queue.close();
        }
        assert_eq!(receive_queue.waiting(), [wire(&["aa"]), wire(&["bb"])]);
        // What arrives after the end is dropped.
        line.push(&nobody, wire(&["cc"]), None).await;
        for expected in ["aa", "bb"] {
            assert_eq!(next().await.unwrap().1, Multipart::from([expected]));
        }
        assert_eq!(next().await, None);
    }

    #[tokio::test]
    async fn a_batch_counts_until_the_next_one_is_asked_for() {
        let receive_queue = ReceiveQueue::new(8 + HELD);
        let next = || std::future::poll_fn(|cx| receive_queue.poll_batch(cx));
        let nobody = Bytes::new();
        let line = line(&receive_queue, "somebody", "1");
        line.push(&nobody, wire(&["aa", "bb"]), None).await;
        let mut second = std::pin::pin!(line.push(&nobody, wire(&["cc"]), None));
        assert!(futures::poll!(&mut second).is_pending(), "8 of 8 bytes are taken");
        assert_eq!(next().await, Some((wire(&["aa", "bb"]), 8)));
        assert!(futures::poll!(&mut second).is_pending(), "they are being taken apart");
        assert!(futures::poll!(std::pin::pin!(next())).is_pending());
        second.await;
        assert_eq!(next().await, Some((wire(&["cc"]), 4)));
        receive_queue.close();
        assert_eq!(next().await, None);
    }

    fn counted(receive_queue: &ReceiveQueue) -> usize {
        receive_queue.state().bytes
    }

    /// The memory that is kept alive by what is queued. Each slab counts once.
    fn kept_alive(receive_queue: &ReceiveQueue) -> usize {
        let state = receive_queue.state();
        let mut slabs = HashMap::new();
        let lines = state.waiting.things.iter().flatten().flat_map(|waiting| &waiting.batches);
        let of = |batch: &Batch| match batch.slab {
            Some(slab) => slabs.insert((slab.line, slab.serial), batch.memory).map_or(batch.memory, |_| 0),
            None => batch.memory,
        };
        state.first.iter().chain(lines).map(of).sum()
    }

    #[tokio::test]
    async fn slabs_count_as_long_as_a_slice_of_them_waits() {
        const SLAB: usize = 128 << 10;
        let receive_queue = ReceiveQueue::new(8 * SLAB);
        let next = || std::future::poll_fn(|cx| receive_queue.poll_next(cx));
        let nobody = Bytes::new();
        let [line, again] = [(); 2].map(|()| line(&receive_queue, "somebody", "1"));
        let short = || {
            let mut out = bytes::BytesMut::new();
            encode_message(&mut out, &[vec![7; SLAB / 16]]);
            out.freeze()
        };
        let slab = |serial| Some(Slab { serial, size: SLAB });
        // There is one short message in each slab.
        for serial in 0..8 {
            assert!(futures::poll!(std::pin::pin!(line.push(&nobody, short(), slab(serial)))).is_ready());
        }
        let mut waits = Box::pin(line.push(&nobody, short(), slab(8)));
        assert!(futures::poll!(&mut waits).is_pending(), "eight slabs are kept alive, and that is the mark");
        drop(waits);
        assert_eq!(
            (counted(&receive_queue), kept_alive(&receive_queue)),
            (9 * SLAB, 9 * SLAB),
            "what was read is there"
        );
        for left in (0..9).rev() {
            next().await.unwrap();
            assert_eq!(counted(&receive_queue), left * SLAB);
        }

        // Many messages in one slab count once.
        for _ in 0..16 {
            assert!(futures::poll!(std::pin::pin!(line.push(&nobody, short(), slab(9)))).is_ready());
        }
        assert_eq!(counted(&receive_queue), SLAB);
        // The same serial number identifies another slab on another connection.
        again.push(&nobody, short(), slab(9)).await;
        assert_eq!(counted(&receive_queue), 2 * SLAB);
        for _ in 0..15 {
            next().await.unwrap();
        }
        assert_eq!(counted(&receive_queue), 2 * SLAB, "one of each is still there");
        next().await.unwrap();
        next().await.unwrap();
        assert_eq!(counted(&receive_queue), 0);

        // What is put back keeps no more memory alive than its own length.
        let large = Bytes::from(vec![0; SLAB]).slice(..10);
        receive_queue.put_back([large].into_iter());
        assert_eq!((counted(&receive_queue), receive_queue.waiting()[0].len()), (10, 10));
    }

    /// However messages arrive, and however they are taken, never is more memory kept alive than is counted.
    #[tokio::test]
    async fn what_is_kept_alive_is_never_more_than_the_mark_and_the_last_read() {
        use crate::link::buffer::ReceiveBuffer;
        const MARK: usize = 256 << 10;
        const LARGEST: usize = 128 << 10;
        let mut seed = 1_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        let receive_queue = ReceiveQueue::new(MARK);
        let next = || std::future::poll_fn(|cx| receive_queue.poll_batch(cx));
        let nobody = Bytes::new();
        let peers = ["1", "2", "3"].map(|address| line(&receive_queue, "somebody", address));
        let mut buffers = [(); 3].map(|()| ReceiveBuffer::default());
        let (mut most, mut full) = (0, 0);
        for _ in 0..20_000 {
            // A task that never runs out of messages has to yield.
            tokio::task::yield_now().await;
            let peer = random(3);
            let (buffer, line) = (&mut buffers[peer], &peers[peer]);
            let mut bytes = bytes::BytesMut::new();
            encode_message(&mut bytes, &[vec![7; random(9_000)]]);
            let mut stream = &bytes[..];
            while !stream.is_empty() {
                buffer.read(&mut stream, 0).await.unwrap();
            }
            let slab = buffer.slab();
            let wire = buffer.input.split().freeze();
            if random(4) > 0 {
                let push = std::pin::pin!(line.push(&nobody, wire, Some(slab)));
                assert!(futures::poll!(push).is_ready(), "there is room");
            }
            let (counts, alive) = (counted(&receive_queue), kept_alive(&receive_queue));
            assert!(alive <= counts, "{alive} bytes are kept alive, and {counts} count");
            most = most.max(counts);
            full += usize::from(counts >= MARK);
            while counted(&receive_queue) >= MARK || (random(3) == 0 && !receive_queue.waiting().is_empty()) {
                if futures::poll!(std::pin::pin!(next())).is_pending() {
                    break;
                }
            }
        }
        assert!(most <= MARK + LARGEST, "{most} bytes");
        assert!(full > 100 && most > MARK, "the mark was reached {full} times");
    }
}
