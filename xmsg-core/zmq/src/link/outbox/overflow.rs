//! Messages that find no room, and are not waited with: they go, or older ones do.

use bytes::BytesMut;
use xmsg_zmtp::{encode_message, encoded_len};

use super::{Amount, Frame, Keep, Outbox, Refused};

/// What became of a message at the high-water mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pushed {
    /// Messages that were dropped: this one, or older ones.
    pub(crate) dropped: u64,
    /// Whoever sends has sent so much in a row that the writer is to have its turn.
    pub(crate) is_in_turn: bool,
}

impl Outbox {
    /// Queues the message, or drops it if there is no room for it.
    pub(crate) fn push_or_drop_newest(&self, frames: &[impl Frame]) -> Result<Pushed, Refused> {
        match self.offer(frames) {
            Ok(is_in_turn) => Ok(Pushed { dropped: 0, is_in_turn }),
            Err(Refused::Full) => Ok(Pushed { dropped: 1, is_in_turn: true }),
            Err(refused) => Err(refused),
        }
    }

    /// Queues the message, and drops as many of those that wait longest as it takes. What the writer has taken already stays; if there is no room
    /// beside that, the message is the only one that waits.
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
        // In one piece, because only whole pieces go.
        let mut wire = BytesMut::with_capacity(len);
        encode_message(&mut wire, frames);
        guard.push_copy(&wire, 1);
        Ok(Pushed { dropped, is_in_turn: dropped > 0 || guard.take_turn() })
    }
}
