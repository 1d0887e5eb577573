//! Handlers that run at the same time: workers, each of which handles one message after another.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::task::TaskTracker;

use super::{IntoReply, Lent, Running, TURN, WITHIN, Work};
use crate::{Message, Messages};

/// How long a worker handles messages in a row before other tasks get their turn.
const TURN_TIME: Duration = Duration::from_micros(200);

/// Handles up to `concurrency` messages at the same time, each of them in a task of its own.
///
/// A worker that has handled a message takes the next one of the batch, without a visit to the scheduler.
/// While fewer than `concurrency` workers are running, every message starts a new worker. So the messages
/// that are left in the batch wait only for a free worker.
pub(super) async fn side_by_side<H, F>(
    running: &mut Running,
    work: Arc<Work<H>>,
    concurrency: usize,
    tasks: &TaskTracker,
) where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output: IntoReply> + Send + 'static,
{
    let shared = work.shared.clone();
    while running.next_batch().await.is_some() {
        while let Some(worker) = Worker::begin(&work, concurrency) {
            tasks.spawn(WITHIN.scope(shared.id, worker.run()));
        }
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => break,
            () = shared.all_taken() => {}
        }
    }
    running.subscription.stop();
    shared.at_most(0).await;
}

/// A task that handles messages side by side with other workers.
struct Worker<H> {
    work: Arc<Work<H>>,
    /// The batch of its last message, and its serial number. The batch is shared again only when the number
    /// changes.
    wire: Bytes,
    batch: u64,
    /// The offset of its next message.
    at: usize,
    /// Whether `Taken::workers` counts it.
    is_counted: bool,
}

impl<H, F> Worker<H>
where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output: IntoReply> + Send + 'static,
{
    /// Makes a worker with its first message; `None` if there is no message, or if `most` workers are
    /// running.
    fn begin(work: &Arc<Work<H>>, most: usize) -> Option<Self> {
        let mut taken = work.shared.taken();
        if taken.workers >= most || work.shared.stopping.load(Ordering::Relaxed) {
            return None;
        }
        let at = work.shared.take_one(&taken)?;
        taken.workers += 1;
        let (wire, batch) = (taken.wire.clone(), taken.batch);
        Some(Self { work: work.clone(), wire, batch, at, is_counted: true })
    }

    /// Takes the next message. If there is none, the worker is no longer counted, and `false` is returned.
    fn take_next(&mut self) -> bool {
        let shared = &self.work.shared;
        let mut taken = shared.taken();
        let next = if shared.stopping.load(Ordering::Relaxed) { None } else { shared.take_one(&taken) };
        let Some(at) = next else {
            taken.workers -= 1;
            self.is_counted = false;
            return false;
        };
        if self.batch != taken.batch {
            (self.wire, self.batch) = (taken.wire.clone(), taken.batch);
        }
        self.at = at;
        true
    }

    async fn run(mut self) {
        let give_up = self.work.shared.give_up.clone();
        tokio::select! {
            biased;
            () = give_up.cancelled() => {}
            () = self.handle_all() => {}
        }
    }

    async fn handle_all(&mut self) {
        let mut turn = Turn::default();
        loop {
            let Self { work, wire, at, .. } = self;
            match Messages::iter_at(wire, *at).next() {
                Some(Ok(message)) => work.answer(message.to_message(), &Lent(message)).await,
                Some(Err(error)) => work.shared.lines.unreadable(&error),
                None => {}
            }
            // If this future is dropped before, the message stays counted as not handled.
            work.shared.in_hand.fetch_sub(1, Ordering::AcqRel);
            if !self.take_next() {
                return;
            }
            if turn.is_over() {
                tokio::task::yield_now().await;
            }
        }
    }
}

impl<H> Drop for Worker<H> {
    fn drop(&mut self) {
        if self.is_counted {
            self.work.shared.taken().workers -= 1;
        }
        self.work.shared.work_done.notify_waiters();
    }
}

/// Measures how long a worker has run. It reads the clock more often the longer its messages take.
#[derive(Debug)]
struct Turn {
    begun: Instant,
    /// The number of messages between two readings of the clock, and how many of them are left.
    interval: usize,
    left: usize,
}

impl Default for Turn {
    fn default() -> Self {
        Self { begun: Instant::now(), interval: 1, left: 1 }
    }
}

impl Turn {
    /// Returns whether other tasks are to get their turn. It is called after each message.
    fn is_over(&mut self) -> bool {
        self.left -= 1;
        if self.left > 0 {
            return false;
        }
        let now = Instant::now();
        let is_over = now.duration_since(self.begun) >= TURN_TIME;
        self.interval = if is_over { 1 } else { (2 * self.interval).min(TURN) };
        self.left = self.interval;
        if is_over {
            self.begun = now;
        }
        is_over
    }
}
