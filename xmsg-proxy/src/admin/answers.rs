//! Answers on their way to clients. What is not read yet counts in the memory of all peers, and is bounded.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use xmsg_zmq::memory_budget::{Claim, MemoryBudget};

/// The longest answer in bytes that is never refused. Of such answers there is one for each connection at
/// most.
const SMALL_MAX: usize = 256 << 10;
/// How many bytes of longer answers clients may have yet to read. It is the memory for all peers divided by
/// [`MEMORY_DIVISOR`] if that is less.
const UNREAD_MAX: usize = 64 << 20;
const MEMORY_DIVISOR: usize = 16;
/// The length of the slices in which an answer is given to its connection, which holds a copy of no more.
const SLICE: usize = 32 << 10;

/// The long answers that are not read yet.
#[derive(Debug, Default)]
pub(super) struct UnreadAnswers {
    memory: MemoryBudget,
    unread: Arc<AtomicUsize>,
}

impl UnreadAnswers {
    /// Makes the limit of answers that count in this budget.
    pub(super) fn new(memory: MemoryBudget) -> Self {
        Self { memory, unread: Arc::default() }
    }

    /// Returns whether there is room for another long answer, of whatever length.
    pub(super) fn has_room(&self) -> bool {
        self.unread.load(Ordering::Relaxed) < self.unread_max() && self.memory.has_room(0)
    }

    fn unread_max(&self) -> usize {
        UNREAD_MAX.min(self.memory.limit() / MEMORY_DIVISOR)
    }

    /// Makes the body of an answer. Returns `None` if there is no room for it.
    pub(super) fn body(&self, text: Bytes) -> Option<Body> {
        let len = text.len();
        let mut answer = UnreadAnswer {
            rest: text,
            claim: self.memory.claim_shared(),
            counted_len: 0,
            unread: self.unread.clone(),
        };
        if len > SMALL_MAX {
            let before = self.unread.fetch_add(len, Ordering::Relaxed);
            // The bytes are subtracted when the answer is dropped.
            answer.counted_len = len;
            // A single answer may be longer.
            let has_room = (before == 0 || before + len <= self.unread_max()) && self.memory.has_room(len);
            if !has_room {
                return None;
            }
        }
        answer.claim.force(len);
        Some(Body::new(answer))
    }
}

/// An answer that is not read to its end.
struct UnreadAnswer {
    rest: Bytes,
    claim: Claim,
    /// The bytes that it counts among the long answers, which is 0 if it is short.
    counted_len: usize,
    unread: Arc<AtomicUsize>,
}

impl hyper::body::Body for UnreadAnswer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.rest.len().min(SLICE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

impl Drop for UnreadAnswer {
    fn drop(&mut self) {
        self.unread.fetch_sub(self.counted_len, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_read_is_bounded_and_counts() {
        let memory = MemoryBudget::new(32 << 20);
        let answers = UnreadAnswers::new(memory.clone());
        let text = |len| Bytes::from(vec![b'x'; len]);
        let counted_len = answers.body(text(3 << 20)).expect("one alone may be longer");
        assert_eq!(memory.used(), 3 << 20);
        assert!(!answers.has_room() && answers.body(text(SMALL_MAX + 1)).is_none());
        let small: Vec<_> =
            (0..9).map(|_| answers.body(text(SMALL_MAX)).expect("they are never refused")).collect();
        drop(counted_len);
        assert!(answers.has_room());
        let two = [answers.body(text(1 << 20)), answers.body(text(1 << 20))];
        assert!(two.iter().all(Option::is_some) && answers.body(text(SMALL_MAX + 1)).is_none());
        drop((two, small));
        assert_eq!((memory.used(), answers.unread.load(Ordering::Relaxed)), (0, 0));
    }
}
