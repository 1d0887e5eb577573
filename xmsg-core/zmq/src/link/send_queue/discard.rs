//! Messages that the peer does not accept. New ones are refused. Some were accepted before the peer's limit
//! was known, or made the peer end the connection twice. These are discarded: otherwise the peer would end
//! the connection again and again, and nothing behind them would ever arrive.
//!
//! All of this is for queues whose messages [stay](super::Keep::Always) until they are written.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::{Amount, Chunk, Frame, SendQueue, State};
use xmsg_zmtp::{Header, MessageLimits, encoded_len};

/// The number of bytes of a topic that are kept to identify a discarded message.
const NAME_MAX: usize = 255;

/// A message that had been accepted and was discarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discarded {
    /// Its first frame, cut to the first 255 bytes.
    pub topic: Bytes,
    /// Its size on the wire in bytes, with all frames and their headers.
    pub size: usize,
    /// The number of its frames.
    pub frames: usize,
}

impl Discarded {
    /// Describes the message with these frames.
    pub(crate) fn of(frames: &[impl Frame]) -> Self {
        let topic: &[u8] = frames.first().map(AsRef::as_ref).unwrap_or_default();
        let topic = Bytes::copy_from_slice(&topic[..topic.len().min(NAME_MAX)]);
        Self { topic, size: encoded_len(frames), frames: frames.len() }
    }
}

/// The messages during which connections ended. A message is identified by the number of messages that left
/// the queue before it.
#[derive(Debug, Default)]
pub(super) struct ConnectionEnds {
    /// The message that the last writer has written in part.
    written_in_part: Option<u64>,
    /// The message during which a peer last ended a connection.
    ended_by_peer: Option<u64>,
}

/// The position of a message in the queue.
struct Place {
    /// The range of its bytes, counted from the front of the queue.
    wire: Range<usize>,
    /// The range of its first frame.
    topic: Range<usize>,
    frames: usize,
}

impl State {
    /// The number of messages that have left the queue since the beginning.
    pub(super) fn passed(&self) -> u64 {
        self.written.messages + self.discarded.messages
    }

    /// Notes that the writer has ended, and whether it has written the first message in part.
    pub(super) fn note_end(&mut self, is_inside: bool) {
        self.connection_ends.written_in_part = is_inside.then(|| self.passed());
    }

    /// Discards the messages for which `goes` returns `true`. Returns them, and how much of their memory was
    /// copied.
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
            // The rest of a chunk of copied messages is copied again. This is rare, and a chunk is short.
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
            let is_copied = chunk.slab_charge.is_none();
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

impl SendQueue {
    /// Sets limits for the messages that the queue accepts.
    #[must_use]
    pub fn with_limits(self, limits: MessageLimits) -> Self {
        self.state().limits = limits;
        self
    }

    /// Returns the limits for messages that are accepted.
    #[must_use]
    pub fn limits(&self) -> MessageLimits {
        self.state().limits
    }

    /// Changes the limits for messages that are accepted. Queued messages above the new limits are discarded
    /// and returned. No writer may be active.
    pub fn limit(&self, limits: MessageLimits) -> Vec<Discarded> {
        let mut state = self.state();
        // All queued messages are within the previous limits.
        let was = std::mem::replace(&mut state.limits, limits);
        if was.are_within(limits) {
            return Vec::new();
        }
        let (discarded, copied) = state.discard(|place| !limits.allow(place.wire.len(), place.frames));
        drop(state);
        self.release_discarded(&discarded, copied);
        discarded
    }

    /// Returns whether the last writer has written a message in part.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.state().connection_ends.written_in_part.is_some()
    }

    /// Notes that the peer has ended the connection. If it did so for the second time during the same
    /// message, after a part of it was written, that message is discarded and returned. No writer may be
    /// active.
    pub fn cut_off(&self) -> Option<Discarded> {
        let mut state = self.state();
        let begun = state.connection_ends.written_in_part.take()?;
        if state.connection_ends.ended_by_peer.replace(begun) != Some(begun) {
            return None;
        }
        let mut is_first = true;
        let (discarded, copied) = state.discard(|_| std::mem::take(&mut is_first));
        drop(state);
        self.release_discarded(&discarded, copied);
        discarded.into_iter().next()
    }

    /// Returns what was accepted and then discarded since the beginning. `bytes` is the size of the messages.
    #[must_use]
    pub fn discarded(&self) -> Amount {
        self.state().discarded
    }

    /// Releases the memory of discarded messages and wakes those who wait.
    fn release_discarded(&self, discarded: &[Discarded], copied: usize) {
        if discarded.is_empty() {
            return;
        }
        self.uncount_copied(copied);
        let waiters = {
            let mut guard = self.lock();
            let waiters = self.take_waiters_for_room(guard.state_mut());
            guard.pushed = true;
            waiters
        };
        self.wake(waiters);
        self.reconsider();
        self.progress.notify_waiters();
    }
}

/// Calls `found` with each message for which `wanted` returns `true`.
fn each_message(
    chunks: &VecDeque<Chunk>,
    mut wanted: impl FnMut(&Place) -> bool,
    mut found: impl FnMut(Place),
) {
    let (mut base, mut at) = (0, 0);
    let (mut start, mut frames, mut topic) = (0, 0, 0..0);
    for chunk in chunks {
        // Every header lies within one chunk.
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

/// Copies the first `most` bytes of this range.
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
#[path = "discard_tests.rs"]
mod tests;
