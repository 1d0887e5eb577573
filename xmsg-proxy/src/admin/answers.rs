//! Answers on their way to clients: what is not read yet counts in the memory of all peers, and is bounded.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use xmsg_zmq::memory_budget::{Claim, MemoryBudget};

/// Answers up to this length are never refused: of those there is one for each connection at most.
const SMALL: usize = 256 << 10;
/// Bytes of longer answers that clients have yet to read, at most; or, if that is less, this part of the
/// memory for all peers.
const MOST: usize = 64 << 20;
const PART: usize = 16;
/// An answer is handed over to its connection in slices of this length: the connection holds a copy of no
/// more.
const SLICE: usize = 32 << 10;

/// All long answers that are not read yet.
#[derive(Debug, Default)]
pub(super) struct Answers {
    memory: MemoryBudget,
    unread: Arc<AtomicUsize>,
}

impl Answers {
    /// Those that count in this budget.
    pub(super) fn new(memory: MemoryBudget) -> Self {
        Self { memory, unread: Arc::default() }
    }

    /// Whether there is room for another long one, of whatever length.
    pub(super) fn has_room(&self) -> bool {
        self.unread.load(Ordering::Relaxed) < self.most() && self.memory.has_room(0)
    }

    fn most(&self) -> usize {
        MOST.min(self.memory.limit() / PART)
    }

    /// The body of an answer; `None`: there is no room for it.
    pub(super) fn body(&self, text: Bytes) -> Option<Body> {
        let len = text.len();
        let mut answer =
            Answer { rest: text, claim: self.memory.claim_shared(), long: 0, unread: self.unread.clone() };
        if len > SMALL {
            let before = self.unread.fetch_add(len, Ordering::Relaxed);
            // It is given back when the answer is dropped.
            answer.long = len;
            // One alone may be longer.
            let has_room = (before == 0 || before + len <= self.most()) && self.memory.has_room(len);
            if !has_room {
                return None;
            }
        }
        answer.claim.force(len);
        Some(Body::new(answer))
    }
}

/// An answer that is not read to its end.
struct Answer {
    rest: Bytes,
    claim: Claim,
    /// What it counts for among the long ones.
    long: usize,
    unread: Arc<AtomicUsize>,
}

impl hyper::body::Body for Answer {
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

impl Drop for Answer {
    fn drop(&mut self) {
        self.unread.fetch_sub(self.long, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_read_is_bounded_and_counts() {
        let memory = MemoryBudget::new(32 << 20);
        let answers = Answers::new(memory.clone());
        let text = |len| Bytes::from(vec![b'x'; len]);
        let long = answers.body(text(3 << 20)).expect("one alone may be longer");
        assert_eq!(memory.used(), 3 << 20);
        assert!(!answers.has_room() && answers.body(text(SMALL + 1)).is_none());
        let small: Vec<_> =
            (0..9).map(|_| answers.body(text(SMALL)).expect("they are never refused")).collect();
        drop(long);
        assert!(answers.has_room());
        let two = [answers.body(text(1 << 20)), answers.body(text(1 << 20))];
        assert!(two.iter().all(Option::is_some) && answers.body(text(SMALL + 1)).is_none());
        drop((two, small));
        assert_eq!((memory.used(), answers.unread.load(Ordering::Relaxed)), (0, 0));
    }
}
