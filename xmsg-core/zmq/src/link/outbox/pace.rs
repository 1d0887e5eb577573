//! Whoever sends waits for a writer that is at work, before the queue is long.
//!
//! What waits for long leaves the processor's caches, and memory that is always fresh has to be had from the system: everything is done
//! sooner if queues stay short. This is no bound, which the high-water mark is: nobody waits for longer than [`CATCH_UP`], and a writer
//! that has not caught up by then is not waited for again for a while. So a peer that pauses, or is slow, has all of its queue.

use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::{Outbox, State};
use crate::link::line::{Calls, Line, Place};

/// Whoever sends and is further ahead of the writer than this, bytes, or than two of its messages, had better wait.
pub(super) const AHEAD: usize = 4 << 20;
/// For so long at most; the writer has caught up once a quarter less is queued.
pub(super) const CATCH_UP: Duration = Duration::from_millis(10);
/// For so long a writer that did not catch up is not waited for.
const LAPSE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Those who wait, in the order in which they came.
    waiting: Line,
    /// Until then nobody is to wait.
    lapse: Option<Instant>,
    /// What the longest of the messages, or runs of messages, that were queued lately is charged for, bytes.
    longest: usize,
}

impl Pace {
    pub(super) fn queued(&mut self, charge: usize) {
        self.longest = self.longest.max(charge);
    }

    pub(super) fn written(&mut self, bytes: usize) {
        self.longest = self.longest.saturating_sub(bytes / 8);
    }

    /// Bytes that may be queued before whoever sends is far ahead.
    fn most(&self) -> u64 {
        AHEAD.max(2 * self.longest) as u64
    }

    /// … and at which the writer has caught up.
    fn enough(&self) -> u64 {
        self.most() - self.most() / 4
    }

    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Has everybody go on.
    pub(super) fn take_waiting(&mut self) -> Calls {
        self.waiting.take_all()
    }
}

impl State {
    pub(super) fn is_far_ahead(&self) -> bool {
        // Who comes while others wait is to line up behind them.
        let most = if self.pace.is_waited_for() { self.pace.enough() } else { self.pace.most() };
        self.queued.bytes > most
            && !self.held
            && !self.closed
            && self.pace.lapse.is_none_or(|end| Instant::now() >= end)
    }

    fn has_caught_up(&self) -> bool {
        self.queued.bytes <= self.pace.enough()
    }

    /// Notes that so many bytes were written. Returns whether somebody may have waited for it.
    pub(super) fn keep_pace(&mut self, written: usize) -> bool {
        self.pace.written(written);
        if self.has_caught_up() {
            self.pace.lapse = None;
        }
        self.pace.is_waited_for()
    }
}

impl Outbox {
    /// Waits until the writer has caught up, if whoever calls is far ahead of it; for 10 ms at most. Those who wait go on one after
    /// another, as long as it has. Returns whether there was any waiting.
    pub async fn catch_up(&self) -> bool {
        if tokio::runtime::Handle::try_current().is_err() {
            // Nobody would tell the time.
            return false;
        }
        let turn = {
            let mut state = self.state();
            if !state.is_far_ahead() {
                return false;
            }
            Turn { outbox: self, place: state.pace.waiting.join(()) }
        };
        let is_due = std::future::poll_fn(|cx| {
            let waits = self.state().pace.waiting.wait(&turn.place, cx.waker());
            if waits { Poll::Pending } else { Poll::Ready(()) }
        });
        if tokio::time::timeout(CATCH_UP, is_due).await.is_err() {
            let waiting = {
                let mut state = self.state();
                if state.has_caught_up() {
                    Calls::default()
                } else {
                    state.pace.lapse = Some(Instant::now() + LAPSE);
                    state.pace.take_waiting()
                }
            };
            // They need not find that out for themselves.
            waiting.wake();
        }
        true
    }

    /// Lets the one that has waited longest go on, if the writer has caught up.
    pub(super) fn give_turn(&self) {
        let waker = {
            let mut state = self.state();
            if state.has_caught_up() { state.pace.waiting.take_first() } else { None }
        };
        if let Some(((), Some(waker))) = waker {
            waker.wake();
        }
    }
}

/// One of those who wait for the writer. Whether it goes on or gives up, the next one may have its turn.
struct Turn<'a> {
    outbox: &'a Outbox,
    place: Place,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.outbox.state().pace.waiting.leave(&self.place);
        self.outbox.give_turn();
    }
}
