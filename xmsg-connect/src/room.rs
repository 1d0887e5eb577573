//! The memory of messages that were received and are neither on disk nor at the other side. It counts in the
//! budget of the process, and all connections together keep to it.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use xmsg_zmq::link::memory::{Claim, MemoryBudget};

/// The bytes of all answers to durable subscriptions that are made or sent at the same time. A longer answer
/// waits until there is no other one.
const ANSWERS: usize = 32 << 20;
/// The room is counted in pieces of so many bytes, since a semaphore counts no further than 32 bits.
const PIECE: usize = 1 << 10;

/// Clones share the room.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    budget: MemoryBudget,
    answers: Arc<Semaphore>,
}

/// An answer on its way.
#[derive(Debug)]
pub(crate) struct Answering {
    _claim: Claim,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    pub(crate) fn new(budget: MemoryBudget) -> Self {
        Self { budget, answers: Arc::new(Semaphore::new(ANSWERS / PIECE)) }
    }

    /// The budget, for sockets.
    pub(crate) fn budget(&self) -> &MemoryBudget {
        &self.budget
    }

    /// An empty claim for what was received.
    pub(crate) fn claim(&self) -> Claim {
        self.budget.claim_shared()
    }

    /// Whether the budget is used up.
    pub(crate) fn is_used_up(&self) -> bool {
        !self.budget.has_room(0)
    }

    /// Waits until an answer of so many bytes may be made; it may until this is dropped.
    pub(crate) async fn answer(&self, bytes: usize) -> Answering {
        let pieces = bytes.div_ceil(PIECE).min(ANSWERS / PIECE);
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
        // Nobody closes the semaphore.
        let permit = self.answers.clone().acquire_many_owned(pieces).await.ok();
        let mut claim = self.claim();
        claim.force(bytes);
        Answering { _claim: claim, _permit: permit }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn answers_wait_for_their_turn_and_count_in_the_budget() {
        let budget = MemoryBudget::new(1 << 30);
        let room = Room::new(budget.clone());
        let (first, second) = (room.answer(ANSWERS / 2).await, room.answer(ANSWERS / 2).await);
        assert_eq!(budget.claimed(), ANSWERS);
        assert!(room.answer(1).now_or_never().is_none());
        drop(first);
        // One that is too long for the room gets all of it.
        assert!(room.answer(4 * ANSWERS).now_or_never().is_none());
        drop(second);
        let long = room.answer(4 * ANSWERS).await;
        assert_eq!(budget.claimed(), 4 * ANSWERS);
        drop(long);
        assert_eq!(budget.claimed(), 0);
    }
}
