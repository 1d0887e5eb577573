//! Senders that have to wait, either for room or for the writer.
//!
//! A message that finds no room waits in line. It is queued by what makes room for it: the writer, or a
//! message before it that was withdrawn. So messages are queued in the order of the first polls of their
//! futures, and no message depends on another future being polled again. A future that is kept and not polled
//! blocks no other one, and a long line needs no tasks that run one after another.
//!
//! A sender that has sent much in a row pauses after its message was queued. If it paused before that, all
//! others would either have to wait behind it although there is room, or overtake it.

use std::borrow::Borrow;
use std::ops::Deref;
use std::task::{Context, Poll};

use bytes::Bytes;
use smallvec::SmallVec;

use super::writer::WRITE_MAX;
use super::{Frame, Refused, SendQueue, SendQueueGuard, State, TURN};
use crate::link::wait_queue::{Place, Wakers};
use xmsg_zmtp::encoded_len;

/// The frames of a message that waits for room.
pub(super) type WaitingFrames = SmallVec<[Bytes; 3]>;

/// The maximum number of bytes and of messages that are taken out of the line at a time, under the lock of
/// the queue. The writer takes the rest when it has written some more.
const SERVED: (usize, usize) = (WRITE_MAX, 1024);

/// The result of the first attempt to send a message.
#[derive(Debug)]
pub(crate) enum Begun<O: Deref<Target: AsRef<SendQueue>>> {
    /// The message is in the queue, or was refused.
    Done(Result<(), Refused>),
    /// The sender has to wait, for room or for the writer.
    MustWait(Sending<O>),
}

/// A message that is being sent. Dropping this withdraws the message if it still waits for room.
#[derive(Debug)]
pub(crate) struct Sending<O: Deref<Target: AsRef<SendQueue>>> {
    send_queue: O,
    /// Where the message waits. `None` means that it is in the queue and the sender has to pause.
    place: Option<Place>,
}

impl AsRef<SendQueue> for SendQueue {
    fn as_ref(&self) -> &SendQueue {
        self
    }
}

/// Sends a message as far as that is possible without waiting. Its position among other messages is fixed
/// when this returns.
pub(crate) fn begin<O>(send_queue: &O, frames: &[impl Frame]) -> Begun<O>
where
    O: Clone + Deref<Target: AsRef<SendQueue>>,
{
    let place = {
        let mut guard = send_queue.as_ref().lock();
        match guard.try_push_frames(frames) {
            Ok(()) if guard.ends_turn() => None,
            Err(Refused::Full) => Some(guard.line_up(frames)),
            done => return Begun::Done(done),
        }
    };
    Begun::MustWait(Sending { send_queue: send_queue.clone(), place })
}

impl<O: Deref<Target: AsRef<SendQueue>>> Sending<O> {
    /// Returns the owner of the queue that the message is for.
    pub(crate) fn target(&self) -> O
    where
        O: Clone,
    {
        self.send_queue.clone()
    }

    /// A message that is in the queue, and whose sender has to yield to the writer.
    pub(crate) fn pausing(send_queue: O) -> Self {
        Self { send_queue, place: None }
    }

    /// Whether the message waits for room. If not, it is in the queue, and the sender has to pause.
    pub(crate) fn waits(&self) -> bool {
        self.place.is_some()
    }

    /// Waits until the message is in the queue or was refused, and the sender may proceed.
    pub(crate) async fn finish(&mut self) -> Result<(), Refused> {
        if self.place.is_none() {
            self.send_queue.as_ref().pause().await;
            return Ok(());
        }
        std::future::poll_fn(|cx| self.poll_taken(cx)).await
    }

    fn poll_taken(&mut self, cx: &Context<'_>) -> Poll<Result<(), Refused>> {
        let Some(place) = &self.place else { return Poll::Ready(Ok(())) };
        let mut state = self.send_queue.as_ref().state();
        if state.line.wait(place, cx.waker()) {
            return if state.closed { Poll::Ready(Err(Refused::Closed)) } else { Poll::Pending };
        }
        let exceeds_limits = state.forget_exceeding(place);
        drop(state);
        if exceeds_limits {
            self.place = None;
            return Poll::Ready(Err(Refused::ExceedsLimits));
        }
        self.place = None;
        Poll::Ready(Ok(()))
    }
}

impl<O: Deref<Target: AsRef<SendQueue>>> Drop for Sending<O> {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            self.send_queue.as_ref().withdraw(&place);
        }
    }
}

impl SendQueue {
    /// Queues a message, and waits for room if necessary. Waiting senders are served in the order in which
    /// their futures were first polled, and new senders wait behind them.
    ///
    /// Cancel safe: dropping the future withdraws the message, unless the queue has accepted it by then. A
    /// message is accepted whole or not at all.
    ///
    /// # Errors
    ///
    /// Why the message was refused. It is never [`Refused::Full`].
    pub async fn push(&self, frames: &[impl Frame]) -> Result<(), Refused> {
        let mut sending = match begin(&self, frames) {
            Begun::Done(done) => return done,
            Begun::MustWait(sending) => sending,
        };
        sending.finish().await
    }

    /// Does what [`push`](Self::push) does if that is possible without waiting or pausing. Otherwise it does
    /// nothing and returns `None`.
    pub(crate) fn push_now(&self, frames: &[impl Frame]) -> Option<Result<(), Refused>> {
        let mut guard = self.lock();
        if guard.state().in_a_row >= TURN {
            return None;
        }
        match guard.try_push_frames(frames) {
            Err(Refused::Full) => None,
            done => Some(done),
        }
    }

    /// Queues the message if there is room and no other message waits for it. Returns whether the sender
    /// should [pause](Self::pause) now.
    pub(crate) fn offer(&self, frames: &[impl Frame]) -> Result<bool, Refused> {
        let mut guard = self.lock();
        guard.try_push_frames(frames).map(|()| guard.ends_turn())
    }

    /// Yields to the writer.
    pub(crate) async fn pause(&self) {
        // One sender may serve many accepted connections, and must not wait for each of them in turn.
        let may_wait = self.state().spare.is_some();
        if !may_wait || !self.catch_up().await {
            tokio::task::yield_now().await;
        }
    }

    /// Queues messages that wait in line, as far as there is room. The caller has to wake the returned wakers
    /// of their senders; the writer is not woken.
    pub(super) fn serve(&self, state: &mut State) -> Wakers {
        if state.line.is_empty() { Wakers::default() } else { self.serve_some(state) }
    }

    #[cold]
    fn serve_some(&self, state: &mut State) -> Wakers {
        let (mut calls, mut served) = (Wakers::default(), (0, 0));
        while served.0 < SERVED.0
            && served.1 < SERVED.1
            && !state.closed
            && let Some(frames) = state.line.first()
        {
            let len = encoded_len(frames);
            // The peer may have announced a smaller limit since the message joined the line.
            if !state.limits.allow(len, frames.len()) {
                let Some((place, waker)) = state.line.refuse_first() else { break };
                state.exceeds_limits.push(place);
                calls.extend(waker);
                continue;
            }
            if !state.has_room(len, self.mark) {
                break;
            }
            let Some((frames, waker)) = state.line.take_first() else { break };
            state.push_frames(&frames, len);
            self.count_copied(len);
            served = (served.0 + len, served.1 + 1);
            calls.extend(waker);
        }
        calls
    }

    fn withdraw(&self, place: &Place) {
        let calls = {
            let mut guard = self.lock();
            let state = guard.state_mut();
            state.forget_exceeding(place);
            if !state.line.leave(place) {
                return;
            }
            // A message that was too long for the present room may have stood before one that is not.
            let calls = self.serve(state);
            guard.pushed = true;
            calls
        };
        calls.wake();
    }
}

impl State {
    /// Whether this message was refused while it waited. It returns `true` once.
    fn forget_exceeding(&mut self, place: &Place) -> bool {
        let at = self.exceeds_limits.iter().position(|exceeds_limits| exceeds_limits == place);
        at.map(|at| self.exceeds_limits.swap_remove(at)).is_some()
    }
}

impl SendQueueGuard<'_> {
    fn line_up(&mut self, frames: &[impl Frame]) -> Place {
        let frames = frames.iter().map(|frame| Borrow::<Bytes>::borrow(frame).clone()).collect();
        self.state_mut().line.join(frames)
    }

    /// Whether so much was pushed in a row that the sender should yield to the writer. If so, the count
    /// starts again.
    pub(super) fn ends_turn(&mut self) -> bool {
        let state = self.state_mut();
        let is_over = state.in_a_row >= TURN;
        if is_over {
            state.in_a_row = 0;
        }
        is_over
    }
}

#[cfg(test)]
#[path = "sending_tests.rs"]
mod tests;
