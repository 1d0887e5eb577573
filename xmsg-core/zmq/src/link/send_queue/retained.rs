//! Messages that were written and are retained until they are known to have arrived. If the connection breaks
//! before that, they go back to the front of the queue.
//!
//! They count against the high-water mark like messages that wait. A user of this has to ask the peer now and
//! then whether they have arrived, and to report the answer. These questions are messages that find [room in
//! any case](SendQueue::push_past_mark): otherwise none could be sent any more once the queue is full.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::unsent::each_message;
use super::{Chunk, Frame, Refused, SendQueue, State};
use xmsg_zmtp::{encoded_len, walk_message};

/// The frames of a message that is to be sent again.
pub type RedeliveredFrames = SmallVec<[Bytes; 3]>;

/// Returns the form in which a message is sent again, given that it may have arrived already. `None` means
/// that it is not sent again.
pub type Redeliver = fn(&RedeliveredFrames) -> Option<RedeliveredFrames>;

/// Chunks from the beginning of a message to the end of a message.
pub(super) type Chunks = SmallVec<[Chunk; 1]>;

/// When a quarter of the mark is filled with retained messages, it is time to ask for a confirmation.
const PART: usize = 4;

/// The messages that were written and are not known to have arrived.
#[derive(Debug)]
pub(super) struct Retained {
    again: Redeliver,
    runs: VecDeque<Run>,
    /// The size of `runs` in memory, in bytes.
    bytes: u64,
    /// When `bytes` reaches this level, it is time to ask for a confirmation.
    level: u64,
    /// Notified at that level.
    due: Arc<Notify>,
    /// The number of messages that were written at least once.
    written_once: u64,
    /// Messages up to this position have arrived. A confirmation may come before the writer notes that the
    /// messages are written.
    arrived: u64,
}

/// Messages that were written together.
#[derive(Debug)]
struct Run {
    chunks: Chunks,
    messages: u64,
    /// The position of the last message among all that were accepted, or a later one.
    end: u64,
}

impl Run {
    fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.charge as u64).sum()
    }

    /// Removes the messages up to this position from the front, as far as they lie in the first chunk.
    fn drop_front(&mut self, place: u64) {
        let first = self.end - self.messages;
        let Some(chunk) = self.chunks.first_mut() else { return };
        let count = place.saturating_sub(first).min(chunk.messages as u64);
        let (mut at, mut gone) = (0, 0);
        while gone < count {
            let Some(end) = walk_message(&chunk.bytes, at, |_| {}) else { break };
            (at, gone) = (end, gone + 1);
        }
        let charge = at.min(chunk.charge);
        chunk.bytes = chunk.bytes.slice(at..);
        chunk.charge -= charge;
        chunk.messages -= gone as usize;
        self.messages -= gone;
    }
}

impl Retained {
    /// Retains what was written, unless it has been confirmed already.
    fn keep(&mut self, mut run: Run) {
        self.written_once = self.written_once.max(run.end);
        if run.end <= self.arrived {
            return;
        }
        run.drop_front(self.arrived);
        self.bytes += run.bytes();
        self.runs.push_back(run);
        if self.bytes >= self.level {
            self.due.notify_one();
        }
    }

    /// Releases messages up to this position.
    fn forget(&mut self, place: u64) {
        self.arrived = self.arrived.max(place);
        while self.runs.front().is_some_and(|run| run.end <= place) {
            self.runs.pop_front();
        }
        if let Some(run) = self.runs.front_mut() {
            run.drop_front(place);
        }
        self.bytes = self.runs.iter().map(Run::bytes).sum();
    }
}

impl State {
    /// Retains what is being written and not yet counted as written, if retaining is enabled.
    pub(super) fn retain(&mut self, runs: impl IntoIterator<Item = Chunks>) {
        let mut end = self.passed();
        let Some(retained) = &mut self.retained else { return };
        for chunks in runs {
            let messages = chunks.iter().map(|chunk| chunk.messages as u64).sum::<u64>();
            end += messages;
            retained.keep(Run { chunks, messages, end });
        }
    }

    /// The memory of retained messages in bytes.
    pub(super) fn retained_bytes(&self) -> u64 {
        self.retained.as_ref().map_or(0, |retained| retained.bytes)
    }

    /// Puts retained messages back to the front of the queue. No writer may be active.
    fn take_back(&mut self) {
        let Some(retained) = &mut self.retained else { return };
        let again = retained.again;
        retained.bytes = 0;
        let runs = std::mem::take(&mut retained.runs);
        self.flush_tail();
        let rest = std::mem::take(&mut self.chunks);
        for run in runs {
            each_message(run.chunks.iter().map(|chunk| &chunk.bytes), |frames| {
                let Some(changed) = again(&frames) else { return };
                // A message that exceeds the limits only because `again` made it longer is sent unchanged.
                let fits = self.limits.allow(encoded_len(&changed), changed.len());
                let frames = if fits { changed } else { frames };
                self.push_frames(&frames, encoded_len(&frames));
                self.written.messages -= 1;
            });
        }
        self.flush_tail();
        self.chunks.extend(rest);
    }
}

impl SendQueue {
    /// Enables retaining: from now on, what is written is kept until it [has arrived](Self::arrived). If the
    /// connection breaks before, it is sent again in the form that `again` returns. It has to be called
    /// before anything is queued. The result is notified when it is time to ask for a confirmation.
    pub(crate) fn retain(&self, again: Redeliver) -> Arc<Notify> {
        let due = Arc::<Notify>::default();
        let level = (self.mark.bytes / PART) as u64;
        let retained = Retained {
            again,
            runs: VecDeque::new(),
            bytes: 0,
            level,
            due: due.clone(),
            written_once: 0,
            arrived: 0,
        };
        self.state().retained = Some(Box::new(retained));
        due
    }

    /// Whether retaining is enabled.
    pub(crate) fn retains(&self) -> bool {
        self.state().retained.is_some()
    }

    /// Returns how many messages were written at least once, or discarded, since the beginning. A message
    /// that was put back counts as written.
    pub(crate) fn written_or_discarded(&self) -> u64 {
        let state = self.state();
        state.passed().max(state.retained.as_ref().map_or(0, |retained| retained.written_once))
    }

    /// Notes that messages up to this position among all accepted messages have arrived.
    pub(crate) fn arrived(&self, place: u64) {
        let waiters = {
            let mut guard = self.lock();
            let Some(retained) = &mut guard.state_mut().retained else { return };
            retained.forget(place);
            let waiters = self.take_waiters_for_room(guard.state_mut());
            guard.pushed = true;
            waiters
        };
        self.wake(waiters);
    }

    /// Notes that a connection ended after everything that was written had arrived.
    pub(crate) fn all_arrived(&self) {
        let written = self.gone();
        self.arrived(written);
    }

    /// Notes that a connection broke. What was written to it may not have arrived, and goes back to the queue
    /// if it was retained.
    pub fn note_break(&self) {
        let mut state = self.state();
        if state.retained.is_some() {
            state.take_back();
        } else {
            state.broken_at = state.passed();
        }
    }

    /// Queues a message whether there is room or not, and before those that wait for room.
    pub(crate) fn push_past_mark(&self, frames: &[impl Frame]) -> Result<(), Refused> {
        let len = encoded_len(frames);
        let mut guard = self.lock();
        let state = guard.state_mut();
        if !state.limits.allow(len, frames.len()) {
            return Err(Refused::ExceedsLimits);
        }
        if state.closed {
            return Err(Refused::Closed);
        }
        state.push_frames(frames, len);
        self.count_copied(len);
        guard.pushed = true;
        Ok(())
    }
}

#[cfg(test)]
#[path = "retained_tests.rs"]
mod tests;
