//! What was written, kept until it is known to have arrived: if the connection breaks before, it goes back to the front of the queue.
//!
//! It counts for the high-water mark, like what waits. Whoever uses this has to ask now and then whether it has arrived, and to say so: with
//! messages that find [room in any case](Outbox::push_past_mark), because otherwise nobody could ask any more once the queue is full.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::unsent::each_message;
use super::{Chunk, Frame, Outbox, Refused, State};
use xmsg_zmtp::{encoded_len, walk_message};

/// The frames of a message that is to be sent again.
pub type Repeated = SmallVec<[Bytes; 3]>;

/// What becomes of a message that is to be sent again, as it may have arrived; `None`: it is not sent again.
pub type Again = fn(&Repeated) -> Option<Repeated>;

/// Chunks from the start of a message to the end of one.
pub(super) type Chunks = SmallVec<[Chunk; 1]>;

/// As soon as so much of the mark, as a part, is kept, it is time to ask.
const PART: usize = 4;

/// What was written and is not known to have arrived.
#[derive(Debug)]
pub(super) struct Retained {
    again: Again,
    runs: VecDeque<Run>,
    /// Memory.
    bytes: u64,
    /// At this level it is time to ask …
    level: u64,
    /// … and whoever does that is told.
    due: Arc<Notify>,
    /// How many messages were written at least once.
    written_once: u64,
    /// Messages up to this place have arrived. An answer that says so may come before the writer notes that they are written.
    arrived: u64,
}

/// What was written together.
#[derive(Debug)]
struct Run {
    chunks: Chunks,
    messages: u64,
    /// The place of its last message among all that were accepted, or a later one.
    end: u64,
}

impl Run {
    fn bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.charge as u64).sum()
    }

    /// Takes the messages up to this place off its front, as far as they lie in its first chunk.
    fn cut(&mut self, place: u64) {
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
    /// Keeps what was written, of which the last message has this place.
    fn keep(&mut self, mut run: Run) {
        self.written_once = self.written_once.max(run.end);
        if run.end <= self.arrived {
            return;
        }
        run.cut(self.arrived);
        self.bytes += run.bytes();
        self.runs.push_back(run);
        if self.bytes >= self.level {
            self.due.notify_one();
        }
    }

    /// Forgets messages up to this place.
    fn forget(&mut self, place: u64) {
        self.arrived = self.arrived.max(place);
        while self.runs.front().is_some_and(|run| run.end <= place) {
            self.runs.pop_front();
        }
        if let Some(run) = self.runs.front_mut() {
            run.cut(place);
        }
        self.bytes = self.runs.iter().map(Run::bytes).sum();
    }
}

impl State {
    /// Keeps what is written now, and is not yet counted as written, if anything is kept.
    pub(super) fn retain(&mut self, runs: impl IntoIterator<Item = Chunks>) {
        let mut end = self.passed();
        let Some(retained) = &mut self.retained else { return };
        for chunks in runs {
            let messages = chunks.iter().map(|chunk| chunk.messages as u64).sum::<u64>();
            end += messages;
            retained.keep(Run { chunks, messages, end });
        }
    }

    /// Memory of what was written and is kept, bytes.
    pub(super) fn retained_bytes(&self) -> u64 {
        self.retained.as_ref().map_or(0, |retained| retained.bytes)
    }

    /// Puts what is kept back to the front of the queue. Nobody may be writing any more.
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
                // What has grown by saying that it may be repeated is still to be taken.
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

impl Outbox {
    /// From now on, what is written is kept until it [has arrived](Self::arrived), and sent again, as `again` says, when the connection
    /// breaks before. To be called before anything is queued. Returns what tells that it is time to ask whether it has arrived.
    pub(crate) fn retain(&self, again: Again) -> Arc<Notify> {
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

    /// Whether what is written is kept.
    pub(crate) fn retains(&self) -> bool {
        self.state().retained.is_some()
    }

    /// Messages that were written, at least once, or thrown out since the beginning: what was taken back was written.
    pub(crate) fn gone_once(&self) -> u64 {
        let state = self.state();
        state.passed().max(state.retained.as_ref().map_or(0, |retained| retained.written_once))
    }

    /// Takes note that messages up to this place among all that were accepted have arrived.
    pub(crate) fn arrived(&self, place: u64) {
        let room = {
            let mut guard = self.lock();
            let Some(retained) = &mut guard.state_mut().retained else { return };
            retained.forget(place);
            let room = self.made_room(guard.state_mut());
            guard.pushed = true;
            room
        };
        self.tell(room);
    }

    /// Takes note that a connection ended after everything that was written had arrived.
    pub(crate) fn all_arrived(&self) {
        let written = self.gone();
        self.arrived(written);
    }

    /// Takes note that a connection broke: what was written to it may not have arrived, and goes back to the queue if it was kept.
    pub fn note_break(&self) {
        let mut state = self.state();
        if state.retained.is_some() {
            state.take_back();
        } else {
            state.broken_at = state.passed();
        }
    }

    /// Takes a message whether there is room or not, and before those that wait for it.
    pub(crate) fn push_past_mark(&self, frames: &[impl Frame]) -> Result<(), Refused> {
        let len = encoded_len(frames);
        let mut guard = self.lock();
        let state = guard.state_mut();
        if !state.limits.allow(len, frames.len()) {
            return Err(Refused::Unfit);
        }
        if state.closed {
            return Err(Refused::Closed);
        }
        state.push_frames(frames, len);
        self.enter(len);
        guard.pushed = true;
        Ok(())
    }
}

#[cfg(test)]
#[path = "retained_tests.rs"]
mod tests;
