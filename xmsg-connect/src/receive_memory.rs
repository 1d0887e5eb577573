//! The memory of messages that were received and are neither on disk nor at the other side. It counts in the
//! budget of the process, and all connections together keep to it.
//!
//! A broker says how long a message is before it sends it. So a long one is claimed before it is read; while
//! there is no room for it, it stays with the broker. Whoever holds little always has room for a little more,
//! so that nobody who holds much keeps others from their messages.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use xmsg_zmq::link::throttle::Throttle;
use xmsg_zmq::lock::lock;
use xmsg_zmq::memory_budget::{Claim, MemoryBudget};

/// The bytes that all answers to durable subscriptions may have that are made or sent at the same time. A
/// longer answer waits until there is no other one.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// The bytes of one permit for answers. Permits are larger than a byte, since a semaphore counts no further
/// than 32 bits.
const PERMIT_BYTES: usize = 1 << 10;
/// The divisor of the budget for what all consumers together hold, so that the rest is left to peers.
const HELD_DIVISOR: usize = 2;
/// The divisor of the budget for what is shared out among the consumers. Each may hold its share whatever the
/// others hold.
const SHARE_DIVISOR: usize = 8;
/// The divisor of the budget for the address space that threads take at most. It does not count in the
/// budget, which is half of what there is.
const THREAD_DIVISOR: usize = 2;
/// The longest message in bytes that counts as small. A small message counts when it begins to come, and is
/// read in any case. So it has to fit into what a consumer may hold in any case.
const SMALL_MESSAGE: usize = 64 << 10;
/// How long a consumer is without room until a line is logged, and the interval in which no more than one
/// line is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The memory that all consumers share. Clones share it, too.
#[derive(Clone, Debug)]
pub(crate) struct ReceiveMemory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    budget: MemoryBudget,
    /// The address space of a thread in bytes, if that is limited, and else 0.
    thread_space: usize,
    /// The number of threads that have a place.
    threads: AtomicUsize,
    answers: Arc<Semaphore>,
    /// What all consumers hold, in bytes.
    held: AtomicUsize,
    /// The number of consumers.
    consumers: AtomicUsize,
    /// The number of consumers that wait for room.
    waiting: AtomicUsize,
    log: Throttle,
}

/// A permit for a thread. It is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct ThreadPermit(ReceiveMemory);

impl Drop for ThreadPermit {
    fn drop(&mut self) {
        self.0.0.threads.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A permit for an answer on its way. It is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct AnswerPermit {
    _claim: Claim,
    _permit: Option<OwnedSemaphorePermit>,
}

impl ReceiveMemory {
    /// Makes the memory within this budget. `thread_space` is the address space of a thread in bytes, if that
    /// is limited, and else 0.
    pub(crate) fn new(budget: MemoryBudget, thread_space: usize) -> Self {
        Self(Arc::new(Shared {
            budget,
            thread_space,
            threads: AtomicUsize::new(0),
            answers: Arc::new(Semaphore::new(ANSWER_BYTES_MAX / PERMIT_BYTES)),
            held: AtomicUsize::new(0),
            consumers: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            log: Throttle::new(1, LOG_INTERVAL),
        }))
    }

    /// Returns the budget, for sockets.
    pub(crate) fn budget(&self) -> &MemoryBudget {
        &self.0.budget
    }

    /// Returns a permit for another thread, if there is address space for it.
    pub(crate) fn try_thread(&self) -> Option<ThreadPermit> {
        let Shared { budget, thread_space, threads, .. } = &*self.0;
        let max = (budget.limit() / THREAD_DIVISOR).checked_div(*thread_space).unwrap_or(usize::MAX);
        let with_one = |count: usize| (count < max).then_some(count + 1);
        threads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_one).ok()?;
        Some(ThreadPermit(self.clone()))
    }

    /// Claims so many bytes, which are taken in any case.
    pub(crate) fn claim(&self, bytes: usize) -> Claim {
        let mut claim = self.0.budget.claim_shared();
        claim.force(bytes);
        claim
    }

    /// Returns whether the budget has room for so many bytes.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.0.budget.has_room(bytes)
    }

    /// Adds a consumer. Nothing more is read for it while it holds `max` bytes. `name` is its name in the
    /// log.
    pub(crate) fn consumer(&self, name: &str, max: usize) -> Arc<ConsumerMemory> {
        self.0.consumers.fetch_add(1, Ordering::Relaxed);
        let claim = self.0.budget.claim_shared();
        Arc::new(ConsumerMemory {
            receive_memory: self.clone(),
            name: name.into(),
            max,
            state: Mutex::new(State {
                claim,
                held_bytes: 0,
                partial_messages: VecDeque::new(),
                unclaimed: 0,
                is_paused: false,
                waits_since: None,
            }),
            reader: AtomicWaker::new(),
        })
    }

    /// Waits until an answer of so many bytes may be made. The permit holds until it is dropped.
    pub(crate) async fn acquire_answer(&self, bytes: usize) -> AnswerPermit {
        let permits = bytes.div_ceil(PERMIT_BYTES).min(ANSWER_BYTES_MAX / PERMIT_BYTES);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        // Nobody closes the semaphore.
        let permit = self.0.answers.clone().acquire_many_owned(permits).await.ok();
        AnswerPermit { _claim: self.claim(bytes), _permit: permit }
    }
}

/// The memory of one consumer: what it has received of its broker and still holds, and what it is receiving.
#[derive(Debug)]
pub(crate) struct ConsumerMemory {
    receive_memory: ReceiveMemory,
    name: Box<str>,
    max: usize,
    state: Mutex<State>,
    /// Woken when this consumer holds less.
    reader: AtomicWaker,
}

#[derive(Debug)]
struct State {
    claim: Claim,
    /// The bytes that were received and are held.
    held_bytes: usize,
    /// Long messages that have begun to come and were not received as a whole, in their order.
    partial_messages: VecDeque<PartialMessage>,
    /// The bytes of those of them that are not claimed. They are claimed before more is read.
    unclaimed: usize,
    /// Whether nothing may be read, as of the last call of [`may_read`](ConsumerMemory::may_read).
    is_paused: bool,
    /// Since when there is no room, although this consumer holds no more than it may.
    waits_since: Option<Instant>,
}

/// A long message that has begun to come.
#[derive(Debug)]
struct PartialMessage {
    /// The bytes that it takes while it comes.
    bytes: usize,
    /// The bytes that were claimed for it, once that is done.
    claimed: Option<usize>,
}

impl ConsumerMemory {
    /// Notes that a message of so many bytes has begun to come.
    pub(crate) fn announce(&self, bytes: usize) {
        let mut state = self.state();
        if bytes > SMALL_MESSAGE {
            let bytes = buffer_bytes(bytes);
            state.unclaimed = state.unclaimed.saturating_add(bytes);
            state.partial_messages.push_back(PartialMessage { bytes, claimed: None });
        } else {
            let bytes = state.claim.bytes() + bytes;
            self.set_claimed(&mut state, bytes);
        }
    }

    /// Returns whether more may be read from the broker. That is refused while there is no room for what has
    /// begun to come. The waker is called when this consumer holds less; others may make room without a call.
    pub(crate) fn may_read(&self, waker: &Waker) -> bool {
        let mut state = self.state();
        self.reader.register(waker);
        let (own, more) = (state.claim.bytes(), state.unclaimed);
        if more == 0 && !state.partial_messages.is_empty() {
            // All that is coming is claimed.
            return true;
        }
        let may_hold = state.held_bytes < self.max || state.held_bytes == 0;
        let granted = if may_hold { self.room_for(own, more.max(SMALL_MESSAGE)) } else { None };
        let has_room = granted.is_some();
        self.note_waiting(&mut state, may_hold && !has_room);
        if let (Some(granted), 1..) = (granted, more) {
            state.unclaimed = 0;
            for one in state.partial_messages.iter_mut().filter(|one| one.claimed.is_none()) {
                one.claimed = Some(if granted < more { one.bytes / 2 } else { one.bytes });
            }
            self.set_claimed(&mut state, own + granted);
        }
        state.is_paused = !has_room;
        has_room
    }

    /// Returns how many bytes this consumer, which holds `own` bytes, may claim for so many more beside all
    /// others. Returns `None` if it has to wait.
    fn room_for(&self, own: usize, more: usize) -> Option<usize> {
        let shared = &self.receive_memory.0;
        let (all, limit) = (shared.held.load(Ordering::Relaxed), shared.budget.limit());
        // A message that would never have room counts once, and may come alone.
        let more = if more > limit / HELD_DIVISOR { more / 2 } else { more };
        let is_within = all == 0 || all.saturating_add(more) <= limit / HELD_DIVISOR;
        let may = is_within && shared.budget.has_room(more) || own.saturating_add(more) <= self.share();
        may.then_some(more)
    }

    /// Returns how many bytes this consumer may hold whatever others hold.
    fn share(&self) -> usize {
        let consumers = self.receive_memory.0.consumers.load(Ordering::Relaxed).max(1);
        (self.receive_memory.0.budget.limit() / SHARE_DIVISOR / consumers).max(SMALL_MESSAGE)
    }

    /// Notes that a message of `bytes` bytes has come as a whole. From now on, `held_bytes` bytes of it are
    /// held until they are [released](Self::release).
    pub(crate) fn received(&self, bytes: usize, held_bytes: usize) {
        let mut state = self.state();
        let mut counted = bytes;
        if bytes > SMALL_MESSAGE
            && let Some(one) = state.partial_messages.pop_front()
        {
            counted = one.claimed.unwrap_or_default();
            if one.claimed.is_none() {
                state.unclaimed -= one.bytes;
            }
        }
        state.held_bytes += held_bytes;
        let others = state.claim.bytes().saturating_sub(counted);
        self.set_claimed(&mut state, others + held_bytes);
    }

    /// Releases so many bytes.
    pub(crate) fn release(&self, bytes: usize) {
        let mut state = self.state();
        state.held_bytes = state.held_bytes.saturating_sub(bytes);
        let left = state.claim.bytes().saturating_sub(bytes);
        self.set_claimed(&mut state, left);
    }

    /// Returns how many bytes are held.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.state().claim.bytes()
    }

    /// Returns whether this consumer holds more than its share while others find no room.
    pub(crate) fn starves_others(&self) -> bool {
        let state = self.state();
        let others =
            self.receive_memory.0.waiting.load(Ordering::Relaxed) - usize::from(state.waits_since.is_some());
        others > 0 && state.claim.bytes() > self.share()
    }

    fn set_claimed(&self, state: &mut State, bytes: usize) {
        let held = &self.receive_memory.0.held;
        let before = state.claim.bytes();
        if bytes >= before {
            held.fetch_add(bytes - before, Ordering::Relaxed);
        } else {
            held.fetch_sub(before - bytes, Ordering::Relaxed);
        }
        state.claim.force(bytes);
        if bytes < before && state.is_paused {
            self.reader.wake();
        }
    }

    /// Notes whether this consumer waits for room.
    fn note_waiting(&self, state: &mut State, waits: bool) {
        let shared = &self.receive_memory.0;
        let Some(since) = state.waits_since else {
            if waits {
                shared.waiting.fetch_add(1, Ordering::Relaxed);
                state.waits_since = Some(Instant::now());
            }
            return;
        };
        if !waits {
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
            state.waits_since = None;
        } else if since.elapsed() >= LOG_INTERVAL
            && let Some(unlogged) = shared.log.pass("consumers that find no memory")
        {
            tracing::warn!(
                unlogged,
                consumer = &*self.name,
                waiting = shared.waiting.load(Ordering::Relaxed),
                held = shared.held.load(Ordering::Relaxed),
                limit = shared.budget.limit(),
                "messages wait at the broker, since no memory is left for them (--memory-limit)"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for ConsumerMemory {
    fn drop(&mut self) {
        let shared = self.receive_memory.0.clone();
        let mut state = self.state();
        self.set_claimed(&mut state, 0);
        self.note_waiting(&mut state, false);
        shared.consumers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns how many bytes a message of so many bytes takes while it comes. The client puts it together in a
/// buffer that it doubles again and again.
fn buffer_bytes(bytes: usize) -> usize {
    bytes.saturating_mul(2)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const MIB: usize = 1 << 20;

    fn may_read(held: &ConsumerMemory) -> bool {
        held.may_read(Waker::noop())
    }

    #[tokio::test]
    async fn answers_wait_for_their_turn_and_count_in_the_budget() {
        let budget = MemoryBudget::new(1 << 30);
        let receive_memory = ReceiveMemory::new(budget.clone(), 0);
        let (first, second) = (
            receive_memory.acquire_answer(ANSWER_BYTES_MAX / 2).await,
            receive_memory.acquire_answer(ANSWER_BYTES_MAX / 2).await,
        );
        assert_eq!(budget.claimed(), ANSWER_BYTES_MAX);
        assert!(receive_memory.acquire_answer(1).now_or_never().is_none());
        drop(first);
        // One that is too long for the room gets all of it.
        assert!(receive_memory.acquire_answer(4 * ANSWER_BYTES_MAX).now_or_never().is_none());
        drop(second);
        let long = receive_memory.acquire_answer(4 * ANSWER_BYTES_MAX).await;
        assert_eq!(budget.claimed(), 4 * ANSWER_BYTES_MAX);
        drop(long);
        assert_eq!(budget.claimed(), 0);
    }

    #[tokio::test]
    async fn long_messages_wait_at_the_broker_until_there_is_room() {
        let budget = MemoryBudget::new(400 * MIB);
        let receive_memory = ReceiveMemory::new(budget.clone(), 0);
        let consumers: Vec<_> = (0..9).map(|_| receive_memory.consumer("a", 64 * MIB)).collect();
        for consumer in &consumers {
            consumer.announce(60 * MIB);
        }
        let reading: Vec<_> = consumers.iter().filter(|consumer| may_read(consumer)).collect();
        assert_eq!((reading.len(), budget.claimed()), (1, 120 * MIB));
        // It has come; less is held of it then.
        let first = reading[0];
        first.received(60 * MIB, 60 * MIB);
        assert_eq!(budget.claimed(), 60 * MIB);
        let reading = consumers.iter().filter(|consumer| may_read(consumer)).count();
        // The first one may hold no second message of that length beside it, but a short one.
        assert_eq!((reading, budget.claimed()), (2, 180 * MIB));
        first.release(60 * MIB);
        assert_eq!(budget.claimed(), 120 * MIB);
        drop(consumers);
        assert_eq!((budget.claimed(), receive_memory.0.held.load(Ordering::Relaxed)), (0, 0));
        assert_eq!(receive_memory.0.waiting.load(Ordering::Relaxed), 0);
    }

    /// Whatever others hold, each has its part.
    #[tokio::test]
    async fn whoever_holds_much_keeps_nobody_from_reading_little() {
        let receive_memory = ReceiveMemory::new(MemoryBudget::new(64 * MIB), 0);
        let [greedy, modest] =
            [receive_memory.consumer("greedy", 64 * MIB), receive_memory.consumer("modest", 64 * MIB)];
        let take = |held: &ConsumerMemory| {
            held.announce(SMALL_MESSAGE);
            held.received(SMALL_MESSAGE, SMALL_MESSAGE);
        };
        while may_read(&greedy) {
            take(&greedy);
        }
        assert!(greedy.bytes() >= 31 * MIB && !greedy.starves_others());
        for _ in 0..4 * MIB / SMALL_MESSAGE {
            assert!(may_read(&modest));
            take(&modest);
        }
        assert!(!may_read(&modest) && greedy.starves_others() && !modest.starves_others());
        greedy.release(31 * MIB);
        assert!(may_read(&modest) && !greedy.starves_others());
    }

    #[tokio::test]
    async fn a_message_that_takes_nearly_all_comes_alone_and_one_that_takes_more_waits() {
        let budget = MemoryBudget::new(64 * MIB);
        let receive_memory = ReceiveMemory::new(budget.clone(), 0);
        let [one, other] =
            [receive_memory.consumer("one", usize::MAX), receive_memory.consumer("other", usize::MAX)];
        one.announce(60 * MIB);
        other.announce(60 * MIB);
        assert!(may_read(&one) && !may_read(&other));
        one.announce(1000);
        one.received(60 * MIB, 60 * MIB);
        one.received(1000, 1000);
        assert_eq!(budget.claimed(), 60 * MIB + 1000);
        one.release(60 * MIB + 1000);
        assert!(may_read(&other));
        other.received(60 * MIB, 0);
        other.announce(65 * MIB);
        assert!(!may_read(&other));
        assert_eq!(budget.claimed(), 0);
    }

    #[test]
    fn threads_take_a_part_of_a_limited_address_space() {
        let receive_memory = ReceiveMemory::new(MemoryBudget::new(400 * MIB), 66 * MIB);
        let places: Vec<_> = (0..5).map_while(|_| receive_memory.try_thread()).collect();
        assert_eq!(places.len(), 3);
        drop(places);
        assert!(receive_memory.try_thread().is_some());
        let receive_memory = ReceiveMemory::new(MemoryBudget::new(MIB), 0);
        let places: Vec<_> = (0..100).map_while(|_| receive_memory.try_thread()).collect();
        assert_eq!(places.len(), 100, "it is not limited");
    }

    /// The first one was claimed, and the second one was not, when the first one is received.
    #[tokio::test]
    async fn what_comes_behind_a_long_message_does_not_count_for_it() {
        let held = ReceiveMemory::new(MemoryBudget::default(), 0).consumer("a", MIB);
        held.announce(2 * MIB);
        assert!(may_read(&held));
        held.announce(2 * MIB);
        held.received(2 * MIB, 2 * MIB);
        assert_eq!(held.bytes(), 2 * MIB);
        assert!(!may_read(&held));
        held.release(2 * MIB);
        assert!(may_read(&held));
        assert_eq!(held.bytes(), 4 * MIB);
        held.received(2 * MIB, 0);
        assert_eq!(held.bytes(), 0);
    }

    #[tokio::test]
    async fn a_consumer_holds_no_more_than_it_may_or_one_message() {
        let receive_memory = ReceiveMemory::new(MemoryBudget::default(), 0);
        let held = receive_memory.consumer("a", MIB);
        held.announce(2 * MIB);
        assert!(may_read(&held), "it holds nothing else");
        assert!(may_read(&held), "until all of it has come");
        held.received(2 * MIB, 2 * MIB);
        assert!(!may_read(&held));
        held.release(2 * MIB);
        held.received(0, MIB / 2);
        held.announce(MIB);
        assert!(may_read(&held), "it does not hold as much as it may");
        held.received(MIB, MIB);
        assert!(!may_read(&held));
    }

    /// What is read at a time may have long messages as a whole, which are taken before there is room.
    #[tokio::test]
    async fn what_came_before_it_was_claimed_is_counted_once() {
        let budget = MemoryBudget::new(MIB);
        let receive_memory = ReceiveMemory::new(budget.clone(), 0);
        let [other, held] = [receive_memory.consumer("other", MIB), receive_memory.consumer("a", MIB)];
        other.received(0, MIB / 2);
        held.announce(100 << 10);
        held.announce(100 << 10);
        assert!(!may_read(&held));
        held.received(100 << 10, 100 << 10);
        assert_eq!(held.bytes(), 100 << 10);
        other.release(MIB / 2);
        assert!(may_read(&held));
        assert_eq!(held.bytes(), 300 << 10);
        held.received(100 << 10, 100 << 10);
        held.release(200 << 10);
        // Short ones count from their beginning, too: the client may have many of them.
        held.announce(1000);
        assert_eq!(held.bytes(), 1000);
        held.received(1000, 1064);
        held.release(1064);
        assert_eq!((held.bytes(), budget.claimed()), (0, 0));
    }
}
