//! Messages that the peer does not take. They are refused at the door; those that had been accepted before their limit was known, or that
//! a peer has shown twice that it does not want, are thrown out: they would have it end the connection again and again, and nothing
//! behind them would ever arrive.
//!
//! All of this is for queues whose messages [stay](super::Keep::Always) until they are written.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::{Amount, Chunk, Frame, Outbox, State};
use xmsg_zmtp::{Header, MessageLimits, encoded_len};

/// Bytes of a topic that are kept to name a message that was thrown out.
const NAME_MAX: usize = 255;

/// A message that had been accepted and was thrown out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discarded {
    /// Its first frame; of a long one, the first 255 bytes.
    pub topic: Bytes,
    /// Bytes on the wire, with all frames and their headers.
    pub size: usize,
    /// Its frames.
    pub frames: usize,
}

impl Discarded {
    /// The message of these frames.
    pub(crate) fn of(frames: &[impl Frame]) -> Self {
        let topic: &[u8] = frames.first().map(AsRef::as_ref).unwrap_or_default();
        let topic = Bytes::copy_from_slice(&topic[..topic.len().min(NAME_MAX)]);
        Self { topic, size: encoded_len(frames), frames: frames.len() }
    }
}

/// Where connections ended: messages are told apart by how many have left the queue before them.
#[derive(Debug, Default)]
pub(super) struct Cut {
    /// The message that the last writer left written in part.
    begun: Option<u64>,
    /// The one in which a peer last ended a connection.
    within: Option<u64>,
}

/// A message in the queue.
struct Place {
    /// Bytes, counted from the front of the queue.
    wire: Range<usize>,
    /// … and those of its first frame.
    topic: Range<usize>,
    frames: usize,
}

impl State {
    /// Messages that have left the queue since the beginning.
    pub(super) fn passed(&self) -> u64 {
        self.written.messages + self.discarded.messages
    }

    /// Notes that there is no writer any more, and whether it has left the first message written in part.
    pub(super) fn note_end(&mut self, is_inside: bool) {
        self.cut.begun = is_inside.then(|| self.passed());
    }

    /// Throws out the messages for which `goes` says so. Returns them, and what of their memory was copied.
    fn discard(&mut self, goes: impl FnMut(&Place) -> bool) -> (Vec<Discarded>, usize) {
        self.flush_tail();
        let mut gone = Vec::new();
        each_message(&self.chunks, goes, |place| gone.push(place));
        if gone.is_empty() {
            return (Vec::new(), 0);
        }
        let discarded = gone.iter().map(|place| Discarded {
            topic: bytes_at(&self.chunks, place.topic.clone(), NAME_MAX),
            size: place.wire.len(),
            frames: place.frames,
        });
        let discarded: Vec<_> = discarded.collect();
        let mut freed = Amount::default();
        let mut copied = 0;
        let mut base = 0;
        let mut next = gone.iter().map(|place| &place.wire).peekable();
        for mut chunk in std::mem::take(&mut self.chunks) {
            let (start, end) = (base, base + chunk.bytes.len());
            base = end;
            // What stays of a chunk of copied messages is copied once more: this is rare, and a chunk is short.
            let (mut kept, mut at, mut ends, mut ends_inside) = (BytesMut::new(), start, 0, false);
            while let Some(wire) = next.peek().filter(|wire| wire.start < end) {
                kept.extend_from_slice(&chunk.bytes[at - start..wire.start.max(start) - start]);
                at = wire.end.min(end);
                if wire.end > end {
                    ends_inside = true;
                    break;
                }
                ends += 1;
                next.next();
            }
            if at == start {
                self.chunks.push_back(chunk);
                continue;
            }
            kept.extend_from_slice(&chunk.bytes[at - start..]);
            let is_copied = chunk.lease.is_none();
            let charge = match kept.len() {
                0 => chunk.charge,
                len if is_copied => (chunk.bytes.len() - len).min(chunk.charge),
                _ => 0,
            };
            freed += Amount::new(ends, charge);
            copied += if is_copied { charge } else { 0 };
            if !kept.is_empty() {
                chunk.bytes = kept.freeze();
                chunk.messages -= ends;
                chunk.charge -= charge;
                chunk.ends_message |= ends_inside;
                self.chunks.push_back(chunk);
            }
        }
        self.queued -= freed;
        self.discarded += Amount::new(discarded.len(), discarded.iter().map(|gone| gone.size).sum());
        (discarded, copied)
    }
}

impl Outbox {
    /// The same queue, which takes messages within these limits only.
    #[must_use]
    pub fn with_limits(self, limits: MessageLimits) -> Self {
        self.state().limits = limits;
        self
    }

    /// The largest message that is taken.
    #[must_use]
    pub fn limits(&self) -> MessageLimits {
        self.state().limits
    }

    /// Takes messages within these limits from now on. Those that wait and are above them are thrown out, and returned. Nobody may be
    /// writing meanwhile.
    pub fn limit(&self, limits: MessageLimits) -> Vec<Discarded> {
        let mut state = self.state();
        // All that waits is within the limits that there were.
        let was = std::mem::replace(&mut state.limits, limits);
        if was.are_within(limits) {
            return Vec::new();
        }
        let (discarded, copied) = state.discard(|place| !limits.allow(place.wire.len(), place.frames));
        drop(state);
        self.make_up(&discarded, copied);
        discarded
    }

    /// Whether the last writer has left a message written in part.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.state().cut.begun.is_some()
    }

    /// Notes that the peer has ended the connection. If it did so for the second time in the same message, after a part of it was written, that
    /// message is thrown out, and returned. Nobody may be writing any more.
    pub fn cut_off(&self) -> Option<Discarded> {
        let mut state = self.state();
        let begun = state.cut.begun.take()?;
        if state.cut.within.replace(begun) != Some(begun) {
            return None;
        }
        let mut is_first = true;
        let (discarded, copied) = state.discard(|_| std::mem::take(&mut is_first));
        drop(state);
        self.make_up(&discarded, copied);
        discarded.into_iter().next()
    }

    /// What was accepted and then thrown out, since the beginning; bytes are those of the messages.
    #[must_use]
    pub fn discarded(&self) -> Amount {
        self.state().discarded
    }

    /// Tells those who wait that messages have gone.
    fn make_up(&self, discarded: &[Discarded], copied: usize) {
        if discarded.is_empty() {
            return;
        }
        self.strike_out(copied);
        let room = {
            let mut guard = self.lock();
            let room = self.made_room(guard.state_mut());
            guard.pushed = true;
            room
        };
        self.tell(room);
        self.reconsider();
        self.progress.notify_waiters();
    }
}

/// Calls `found` with the messages for which `wanted` says so.
fn each_message(
    chunks: &VecDeque<Chunk>,
    mut wanted: impl FnMut(&Place) -> bool,
    mut found: impl FnMut(Place),
) {
    let (mut base, mut at) = (0, 0);
    let (mut start, mut frames, mut topic) = (0, 0, 0..0);
    for chunk in chunks {
        // Every header lies in one chunk.
        while at >= base && at - base < chunk.bytes.len() {
            let Ok(Some(header)) = Header::read(&chunk.bytes[at - base..]) else { return };
            let body = at + header.len;
            at = body + header.body_len as usize;
            frames += 1;
            if frames == 1 {
                topic = body..at;
            }
            if header.has_more() {
                continue;
            }
            let place = Place { wire: start..at, topic: topic.clone(), frames };
            if wanted(&place) {
                found(place);
            }
            (start, frames) = (at, 0);
        }
        base += chunk.bytes.len();
    }
}

/// A copy of the first of these bytes, `most` of them.
fn bytes_at(chunks: &VecDeque<Chunk>, range: Range<usize>, most: usize) -> Bytes {
    let range = range.start..range.end.min(range.start + most);
    let mut bytes = BytesMut::with_capacity(range.len());
    let mut base = 0;
    for chunk in chunks {
        let end = base + chunk.bytes.len();
        let (from, to) = (range.start.max(base), range.end.min(end));
        if from < to {
            bytes.extend_from_slice(&chunk.bytes[from - base..to - base]);
        }
        base = end;
        if base >= range.end {
            break;
        }
    }
    bytes.freeze()
}

#[cfg(test)]
#[path = "fit_tests.rs"]
mod tests;
