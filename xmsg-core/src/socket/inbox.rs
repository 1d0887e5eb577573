//! The bounded queue between the tasks that read from connections and whoever receives.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::task::coop;

use super::{Multipart, SHARE_MAX};

/// Whole messages of one peer, one after another as they came.
#[derive(Debug)]
struct Batch {
    from: Bytes,
    wire: Bytes,
    /// How much memory a slice of `wire` keeps alive.
    memory: usize,
}

#[derive(Debug, Default)]
struct State {
    batches: VecDeque<Batch>,
    /// Bytes queued, or handed to the receiver and not yet taken apart.
    bytes: usize,
    /// … and those of the batch that the receiver took last.
    handed: usize,
    /// Whoever waits for a message.
    receivers: Vec<Waker>,
    crowded: bool,
    closed: bool,
}

impl State {
    /// Queues a batch. Returns who is to be woken when the lock is free.
    fn put(&mut self, batch: Option<Batch>) -> Vec<Waker> {
        if let Some(batch) = batch {
            self.bytes += batch.wire.len();
            self.batches.push_back(batch);
        }
        std::mem::take(&mut self.receivers)
    }

    /// `None` when nothing more will come; else the receiver is woken when it does.
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

/// A batch that waits for room. Dropped, it is queued all the same.
struct Held<'a> {
    inbox: &'a Inbox,
    batch: Option<Batch>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.batch.is_some() {
            let receivers = self.inbox.state().put(self.batch.take());
            receivers.into_iter().for_each(Waker::wake);
        }
    }
}

/// The queue. A reader that finds it full waits, and so, through TCP, does the peer.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    limit: usize,
    room: Notify,
}

impl Inbox {
    pub(crate) fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), limit, room: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues whole messages, waiting while the queue is at its mark. `memory` is how much a slice of `wire` keeps alive, in bytes.
    ///
    /// A reader that is ended while it waits leaves what it had read in the queue, so that nothing that was received is lost unseen:
    /// the bound is the mark, and what each connection has read last.
    pub(crate) async fn push(&self, from: &Bytes, wire: Bytes, memory: usize) {
        if self.state().closed {
            return;
        }
        let mut held = Held { inbox: self, batch: Some(Batch { from: from.clone(), wire, memory }) };
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            {
                let mut state = self.state();
                if state.closed || state.bytes < self.limit {
                    let receivers = state.put(held.batch.take());
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

    /// Puts batches that were taken back to the front, in their order.
    pub(crate) fn put_back(&self, batches: impl DoubleEndedIterator<Item = Bytes>) {
        let mut state = self.state();
        for wire in batches.rev() {
            state.bytes += wire.len();
            // At most: what came in with one read shares its slab only if that is not much larger.
            let memory = wire.len().saturating_mul(SHARE_MAX);
            state.batches.push_front(Batch { from: Bytes::new(), wire, memory });
        }
    }

    /// What waits to be received, as it was on the wire.
    pub(crate) fn waiting(&self) -> Vec<Bytes> {
        self.state().batches.iter().map(|batch| batch.wire.clone()).collect()
    }

    /// The next message and the identity of its sender; `None` once the queue is closed and empty.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<(Bytes, Multipart)>> {
        let mut state = self.state();
        while let Some(batch) = state.batches.front_mut() {
            let before = batch.wire.len();
            let message = Multipart::take(&mut batch.wire).map(|message| (batch.from.clone(), message));
            let used = before - batch.wire.len();
            if batch.wire.is_empty() || message.is_none() {
                state.batches.pop_front();
            }
            self.release(&mut state, if message.is_none() { before } else { used });
            if message.is_some() {
                return Poll::Ready(message);
            }
        }
        state.wait(cx)
    }

    /// The next messages, all that lie together, and how much memory they lie in; `None` once the queue is closed and empty. Until the
    /// next call they count as queued.
    pub(crate) fn poll_batch(&self, cx: &mut Context<'_>) -> Poll<Option<(Bytes, usize)>> {
        // Whoever never runs out of messages lets others have their turn all the same.
        let turn = ready!(coop::poll_proceed(cx));
        let mut state = self.state();
        let handed = std::mem::take(&mut state.handed);
        self.release(&mut state, handed);
        match state.batches.pop_front() {
            Some(batch) => {
                state.handed = batch.wire.len();
                turn.made_progress();
                Poll::Ready(Some((batch.wire, batch.memory)))
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

    /// Takes no more messages; what is there can still be received.
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
    use super::*;
    use crate::zmtp::encode_message;

    fn wire(texts: &[&str]) -> Bytes {
        let mut out = bytes::BytesMut::new();
        for text in texts {
            encode_message(&mut out, &[text]);
        }
        out.freeze()
    }

    #[tokio::test]
    async fn messages_come_in_order_and_a_full_queue_waits() {
        let inbox = Inbox::new(8);
        let next = || std::future::poll_fn(|cx| inbox.poll_next(cx));
        let nobody = Bytes::new();
        inbox.push(&nobody, wire(&["aa", "bb"]), 8).await;
        let mut second = std::pin::pin!(inbox.push(&nobody, wire(&["cc"]), 4));
        assert!(futures::poll!(&mut second).is_pending(), "8 of 8 bytes are taken");
        for expected in ["aa", "bb"] {
            assert_eq!(next().await.unwrap().1, Multipart::from([expected]));
        }
        second.await;
        inbox.close();
        assert_eq!(next().await.unwrap().1, Multipart::from(["cc"]));
        assert_eq!(next().await, None);
    }

    #[tokio::test]
    async fn what_was_read_is_in_the_queue_when_its_reader_is_ended() {
        let inbox = Inbox::new(4);
        let next = || std::future::poll_fn(|cx| inbox.poll_next(cx));
        let nobody = Bytes::new();
        inbox.push(&nobody, wire(&["aa"]), 4).await;
        {
            let mut push = std::pin::pin!(inbox.push(&nobody, wire(&["bb"]), 4));
            assert!(futures::poll!(&mut push).is_pending());
            inbox.close();
        }
        assert_eq!(inbox.waiting(), [wire(&["aa"]), wire(&["bb"])]);
        // What comes after the end is not kept.
        inbox.push(&nobody, wire(&["cc"]), 4).await;
        for expected in ["aa", "bb"] {
            assert_eq!(next().await.unwrap().1, Multipart::from([expected]));
        }
        assert_eq!(next().await, None);
    }

    #[tokio::test]
    async fn a_batch_counts_until_the_next_one_is_asked_for() {
        let inbox = Inbox::new(8);
        let next = || std::future::poll_fn(|cx| inbox.poll_batch(cx));
        let nobody = Bytes::new();
        inbox.push(&nobody, wire(&["aa", "bb"]), 8).await;
        let mut second = std::pin::pin!(inbox.push(&nobody, wire(&["cc"]), 4));
        assert!(futures::poll!(&mut second).is_pending(), "8 of 8 bytes are taken");
        assert_eq!(next().await, Some((wire(&["aa", "bb"]), 8)));
        assert!(futures::poll!(&mut second).is_pending(), "they are being taken apart");
        assert!(futures::poll!(std::pin::pin!(next())).is_pending());
        second.await;
        assert_eq!(next().await, Some((wire(&["cc"]), 4)));
        inbox.close();
        assert_eq!(next().await, None);
    }
}
