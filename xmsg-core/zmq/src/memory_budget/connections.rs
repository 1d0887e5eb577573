//! The claims of one connection: for its buffers, in the handshake and after it, and for answers that its
//! peer does not read.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

#[cfg(doc)]
use super::CONNECTION;
use super::{Claim, MemoryBudget};
use crate::link::send_queue::SendQueue;

/// The memory in bytes for the buffers of a connection that is already included in [`CONNECTION`].
pub(super) const UNCLAIMED: usize = 16 << 10;
/// The step in bytes in which claims beyond [`UNCLAIMED`] grow.
const CLAIM_STEP: usize = 64 << 10;
/// Unread answers of a connection up to this size, in bytes, are not claimed.
const LITTLE: usize = 4 << 10;
/// The step in bytes in which claims of connections in the handshake grow. There may be many of them, and
/// none holds more than a few steps.
const HANDSHAKE_STEP: usize = 16 << 10;

/// Claims answers that a peer does not read, so that the search for the largest claim finds them. Their
/// memory is counted in the memory counter of the queues.
#[derive(Debug)]
pub struct UnreadAnswers {
    budget: MemoryBudget,
    name: Arc<str>,
    end: CancellationToken,
    claim: OnceLock<Claim>,
}

impl UnreadAnswers {
    /// Creates a claim for the peer with this name in the log, whose connection `end` ends.
    #[must_use]
    pub fn new(budget: &MemoryBudget, name: &str, end: CancellationToken) -> Self {
        Self { budget: budget.clone(), name: name.into(), end, claim: OnceLock::new() }
    }

    /// Notes that one more answer was queued. If there is no room for it, the connection that holds most is
    /// ended. The caller must not hold a lock.
    pub fn note(&self, send_queue: &SendQueue) {
        if self.claim.get().is_none() {
            let urgent_bytes = send_queue.urgent_bytes();
            if urgent_bytes.load(Ordering::Relaxed) > LITTLE {
                let weight = move || urgent_bytes.load(Ordering::Relaxed);
                let new = || self.budget.claim(&self.name, "answers that it does not read", self.end.clone());
                self.claim.get_or_init(|| new().weighed_by(weight));
            }
        }
        let _ = self.budget.makes_room(0);
    }

    /// Returns the token that is cancelled when others need the memory, if this claim holds more than
    /// [`LITTLE`].
    pub(crate) fn end(&self) -> Option<&CancellationToken> {
        self.claim.get().is_some().then_some(&self.end)
    }
}

/// The claim for the buffers of one connection, if they hold more than [`UNCLAIMED`].
#[derive(Debug)]
pub(crate) struct PeerClaim {
    claim: Claim,
    /// The claim for answers that the peer does not read. It is boxed so that the futures of connections stay
    /// small.
    answers: Option<Box<UnreadAnswers>>,
    /// Cancelled when others need the memory.
    pub(crate) end: CancellationToken,
}

impl PeerClaim {
    /// Creates an empty claim. `name` is the name of the peer in the log.
    pub(crate) fn new(budget: &MemoryBudget, name: &str, what: &'static str) -> Self {
        let end = CancellationToken::new();
        Self { claim: budget.claim(name, what, end.clone()), answers: None, end }
    }

    /// Also claims answers that the peer does not read.
    pub(crate) fn with_answers(self, name: &str) -> Self {
        let answers = UnreadAnswers::new(&self.claim.budget, name, self.end.clone());
        Self { answers: Some(Box::new(answers)), ..self }
    }

    /// Notes that an answer was queued.
    pub(crate) fn note_answer(&self, send_queue: &SendQueue) {
        if let Some(answers) = &self.answers {
            answers.note(send_queue);
        }
    }

    /// Claims what the buffers need for the next read. Returns `false` if they don't get it.
    #[inline]
    pub(crate) async fn allow(&mut self, needed: usize) -> bool {
        let needed = Self::counted(needed);
        if needed == self.claim.bytes() {
            return true;
        }
        tokio::select! {
            biased;
            () = self.end.cancelled() => false,
            is_allowed = self.claim.set(needed) => is_allowed,
        }
    }

    /// Returns the token that is cancelled when others need the memory, if any is claimed.
    pub(crate) fn end(&self) -> Option<&CancellationToken> {
        (self.claim.bytes() > 0)
            .then_some(&self.end)
            .or(self.answers.as_ref().and_then(|answers| answers.end()))
    }

    /// Shrinks the claim when the buffers hold less.
    pub(crate) fn give_back(&mut self, needed: usize) {
        let needed = Self::counted(needed);
        if needed < self.claim.bytes() {
            self.claim.force(needed);
        }
    }

    fn counted(needed: usize) -> usize {
        if needed <= UNCLAIMED { 0 } else { needed.next_multiple_of(CLAIM_STEP) }
    }
}

/// The claim for what a connection holds in its handshake beyond [`CONNECTION`]. The peer has not
/// authenticated yet, so no other connection is ended for it: if there is no room, this connection is closed.
#[derive(Debug)]
pub(crate) struct HandshakeClaim(Claim);

impl HandshakeClaim {
    /// Creates an empty claim.
    pub(crate) fn new(budget: &MemoryBudget) -> Self {
        Self(budget.claim_shared())
    }

    /// Claims memory for a buffer of `held` bytes. Returns `false` if there is none. Such claims stop growing
    /// when all claims for which no connection is ended take a quarter of the limit. So a new peer that sends
    /// little is still admitted.
    pub(crate) fn allow(&mut self, held: usize) -> bool {
        // What is taken out of the buffer to be parsed or authenticated exists a second time.
        let needed = if held <= UNCLAIMED { 0 } else { (2 * held).next_multiple_of(HANDSHAKE_STEP) };
        needed == self.0.bytes || self.0.fix(needed, self.0.budget.limit() / 4).is_ok()
    }
}
