//! Senders wait for an active writer before the queue gets long.
//!
//! Bytes that wait for long leave the processor's caches, and new memory has to be requested from the system.
//! So everything is faster if queues stay short. This is not a bound; the high-water mark is. No sender waits
//! for longer than [`CATCH_UP`], and senders do not wait again for a while for a writer that has not caught
//! up by then. So a peer that pauses, or is slow, can use its whole queue.

use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::{SendQueue, State};
use crate::link::wait_queue::{Place, WaitQueue, Wakers};

/// The sender is far ahead of the writer if more than this many bytes, or two of its messages, are queued.
pub(super) const SOFT_LIMIT: usize = 4 << 20;
/// The maximum time to wait. The writer has caught up once a quarter less is queued.
pub(super) const CATCH_UP: Duration = Duration::from_millis(10);
/// For how long senders do not wait for a writer that did not catch up.
const BACKOFF: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The senders that wait, in FIFO order.
    waiting: WaitQueue,
    /// The time until which no sender waits: the writer has not caught up lately.
    suspended_until: Option<Instant>,
    /// The charge in bytes of the longest message, or run of messages, that was queued lately.
    longest: usize,
}

impl Pace {
    pub(super) fn queued(&mut self, charge: usize) {
        self.longest = self.longest.max(charge);
    }

    pub(super) fn written(&mut self, bytes: usize) {
        self.longest = self.longest.saturating_sub(bytes / 8);
    }

    /// The number of bytes in the queue above which the sender is far ahead.
    fn most(&self) -> u64 {
        SOFT_LIMIT.max(2 * self.longest) as u64
    }

    /// The number of bytes in the queue at which the writer has caught up.
    fn enough(&self) -> u64 {
        self.most() - self.most() / 4
    }

    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Wakes all senders that wait.
    pub(super) fn take_waiting(&mut self) -> Wakers {
        self.waiting.take_all()
    }
}

impl State {
    pub(super) fn is_far_ahead(&self) -> bool {
        // While others wait, a new sender queues up behind them.
        let most = if self.pace.is_waited_for() { self.pace.enough() } else { self.pace.most() };
        self.queued.bytes > most
            && !self.held
            && !self.closed
            && self.pace.suspended_until.is_none_or(|end| Instant::now() >= end)
    }

    fn has_caught_up(&self) -> bool {
        self.queued.bytes <= self.pace.enough()
    }

    /// Notes that `written` bytes were written. Returns whether a sender may have waited for that.
    pub(super) fn note_written_for_senders(&mut self, written: usize) -> bool {
        self.pace.written(written);
        if self.has_caught_up() {
            self.pace.suspended_until = None;
        }
        self.pace.is_waited_for()
    }
}

impl SendQueue {
    /// Waits for at most 10 ms until the writer has caught up, if the caller is far ahead of it. Waiting
    /// senders proceed one after another, as long as the writer has caught up. Returns whether the caller
    /// waited.
    pub async fn catch_up(&self) -> bool {
        if tokio::runtime::Handle::try_current().is_err() {
            // Without a runtime there are no timers.
            return false;
        }
        let waiting_sender = {
            let mut state = self.state();
            if !state.is_far_ahead() {
                return false;
            }
            WaitingSender { send_queue: self, place: state.pace.waiting.join(()) }
        };
        let is_due = std::future::poll_fn(|cx| {
            let waits = self.state().pace.waiting.wait(&waiting_sender.place, cx.waker());
            if waits { Poll::Pending } else { Poll::Ready(()) }
        });
        if tokio::time::timeout(CATCH_UP, is_due).await.is_err() {
            let waiting = {
                let mut state = self.state();
                if state.has_caught_up() {
                    Wakers::default()
                } else {
                    state.pace.suspended_until = Some(Instant::now() + BACKOFF);
                    state.pace.take_waiting()
                }
            };
            // The others need not each run into the time limit.
            waiting.wake();
        }
        true
    }

    /// Wakes the sender that has waited longest, if the writer has caught up.
    pub(super) fn wake_next_sender(&self) {
        let waker = {
            let mut state = self.state();
            if state.has_caught_up() { state.pace.waiting.take_first() } else { None }
        };
        if let Some(((), Some(waker))) = waker {
            waker.wake();
        }
    }
}

/// A sender that waits for the writer. When it proceeds or is dropped, the next one may proceed.
struct WaitingSender<'a> {
    send_queue: &'a SendQueue,
    place: Place,
}

impl Drop for WaitingSender<'_> {
    fn drop(&mut self) {
        self.send_queue.state().pace.waiting.leave(&self.place);
        self.send_queue.wake_next_sender();
    }
}
