//! Takes queued messages out of a queue one by one, to send them to another peer when this one is gone.

use bytes::Bytes;
use smallvec::SmallVec;
use xmsg_zmtp::Header;

use super::SendQueue;

/// The frames of a message that was not sent.
pub(crate) type Unsent = SmallVec<[Bytes; 3]>;

impl SendQueue {
    /// Takes out all queued messages, in order. No writer may be active.
    pub(crate) fn take_unsent(&self) -> Vec<Unsent> {
        let (chunks, waiters) = {
            let mut guard = self.lock();
            let state = guard.state_mut();
            if state.queued.messages == 0 {
                return Vec::new();
            }
            state.flush_tail();
            let chunks: Vec<Bytes> = state.chunks.iter().map(|chunk| chunk.bytes.clone()).collect();
            self.remove_all(state);
            (chunks, self.take_waiters_for_room(state))
        };
        self.wake(waiters);
        let mut messages = Vec::new();
        each_message(chunks.iter(), |message| messages.push(message));
        messages
    }
}

/// Calls `found` with each message in these chunks. Every header, and every body, lies within one chunk.
pub(super) fn each_message<'a>(chunks: impl Iterator<Item = &'a Bytes>, mut found: impl FnMut(Unsent)) {
    let mut frames = Unsent::new();
    // The length of a body whose header ended the previous chunk, and whether there are more frames.
    let mut announced = None;
    for chunk in chunks {
        let mut at = 0;
        while at < chunk.len() {
            let (len, has_more) = if let Some(announced) = announced.take() {
                announced
            } else {
                let Ok(Some(header)) = Header::read(&chunk[at..]) else { return };
                at += header.len;
                (header.body_len as usize, header.has_more())
            };
            if at == chunk.len() && len > 0 {
                announced = Some((len, has_more));
                break;
            }
            let Some(end) = at.checked_add(len).filter(|end| *end <= chunk.len()) else { return };
            frames.push(chunk.slice(at..end));
            at = end;
            if !has_more {
                found(std::mem::take(&mut frames));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::HighWaterMark;
    use super::*;

    #[test]
    fn what_waits_is_taken_out_in_its_order_and_leaves_room() {
        let send_queue = SendQueue::recycling(HighWaterMark { bytes: usize::MAX, messages: 3 });
        let long = Bytes::from(vec![7; 20 << 10]);
        let messages = [
            vec![Bytes::from_static(b"short"), Bytes::new()],
            vec![Bytes::from_static(b"topic"), long.clone(), Bytes::from_static(b"end")],
            vec![long],
        ];
        for message in &messages {
            send_queue.try_push(message).unwrap();
        }
        send_queue.try_push(&messages[0]).unwrap_err();
        let taken: Vec<_> = send_queue.take_unsent().into_iter().map(SmallVec::into_vec).collect();
        assert_eq!(taken, messages);
        assert_eq!(send_queue.queued().messages, 0);
        assert_eq!(send_queue.queued().bytes, 0);
        assert!(send_queue.take_unsent().is_empty());
        send_queue.try_push(&messages[0]).unwrap();
    }
}
