//! Long answers. They are built in slices, and sent when they are complete if there is room for them.

use std::sync::atomic::Ordering;

use xmsg_core::registration::Action;
use xmsg_zmq::{EncodedFrames, ReturnPath};

use super::{LONG_REPLY, RECOUNT, REPLIES_MAX, REPLY_MAX, SHORT_REPLY, SLICE, Search, Service, too_long};

/// A query with a long answer.
#[derive(Debug)]
pub(super) struct Answering {
    pub(super) path: ReturnPath,
    pub(super) action: Action,
    pub(super) search: Search,
    pub(super) reply: EncodedFrames,
    /// The length at which the bytes that wait to be written are counted again.
    pub(super) recount: usize,
}

impl Service {
    /// Continues one of the long answers by one slice.
    pub(super) fn answer_slice(&mut self) {
        let Some((source, mut one)) = self.answering.pop() else { return };
        let before = one.reply.encoded_len();
        let is_whole = self.store.advance(&mut one.search, SLICE, |frame| one.reply.push(frame.clone()));
        let len = one.reply.encoded_len();
        self.answer_bytes += len - before;
        let refused = if self.replier.is_connected(&one.path) {
            self.refused(&mut one)
        } else {
            Some("whoever asked is gone".to_owned())
        };
        if refused.is_none() && !is_whole {
            self.answering.push(source, one);
            return;
        }
        self.answer_bytes -= len;
        let Answering { path, action, reply, .. } = one;
        if let Some(status) = refused {
            self.answer(&path, self.reply(action, Err(status)));
        } else {
            self.counters.requests.fetch_add(1, Ordering::Relaxed);
            let found = reply.frames();
            let sent = self.replier.try_reply_encoded(&path, reply);
            self.on_sent(&path, Some(action), found, sent);
        }
        if let Some(pending) = self.pending.get_mut(path.peer()) {
            pending.is_answering = false;
        }
        self.resume(path.peer());
    }

    /// Returns the reason if there is no room for an answer.
    fn refused(&mut self, one: &mut Answering) -> Option<String> {
        let len = one.reply.encoded_len();
        if len > REPLY_MAX {
            return Some(too_long(one.reply.frames(), len));
        }
        if len > one.recount {
            self.queued_bytes = self.replier.queued_bytes() as usize;
            one.recount += RECOUNT;
        }
        let all = self.queued_bytes + self.answer_bytes;
        let is_too_much = len > LONG_REPLY && all > REPLIES_MAX.min(self.memory.limit() / 2);
        // The memory budget does not include answers that are still being built.
        let has_room = len <= SHORT_REPLY || self.memory.makes_room(self.answer_bytes);
        (is_too_much || !has_room)
            .then(|| "too many long replies are still being sent: ask again later".to_owned())
    }
}
