//! Messages that find no room and whose sender does not wait. Either they or older messages are dropped.

use bytes::BytesMut;
use xmsg_zmtp::{encode_message, encoded_len};

use super::{Amount, Frame, Keep, Refused, SendQueue};

/// What happened to a message at the high-water mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pushed {
    /// The number of messages that were dropped: this one, or older ones.
    pub(crate) dropped: u64,
    /// Whether the sender should yield to the writer: it has sent much in a row, or the queue was full.
    pub(crate) should_yield: bool,
}

impl SendQueue {
    /// Queues the message, or drops it if there is no room for it.
    pub(crate) fn push_or_drop_newest(&self, frames: &[impl Frame]) -> Result<Pushed, Refused> {
        match self.offer(frames) {
            Ok(should_yield) => Ok(Pushed { dropped: 0, should_yield }),
            Err(Refused::Full) => Ok(Pushed { dropped: 1, should_yield: true }),
            Err(refused) => Err(refused),
        }
    }

    /// Queues the message, and drops as many of the oldest messages as necessary. What the writer has taken
    /// already stays. If that leaves no room, the new message is the only one that waits.
    pub(crate) fn push_or_drop_oldest(&self, frames: &[impl Frame]) -> Result<Pushed, Refused> {
        let mark = self.mark();
        let len = encoded_len(frames);
        let mut guard = self.lock();
        match guard.takes(len, frames.len()) {
            Ok(()) | Err(Refused::Full) => {}
            Err(refused) => return Err(refused),
        }
        guard.set_keep(Keep::WhileRoom, mark);
        let dropped = guard.make_room(Amount::new(1, len), mark).messages;
        // The message is queued in one chunk, because only whole chunks can be dropped.
        let mut wire = BytesMut::with_capacity(len);
        encode_message(&mut wire, frames);
        guard.push_copy(&wire, 1);
        Ok(Pushed { dropped, should_yield: dropped > 0 || guard.ends_turn() })
    }
}
