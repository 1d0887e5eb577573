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

/// The bytes of all answers to durable subscriptions that are made or sent at the same time. A longer answer
/// waits until there is no other one.
const ANSWERS: usize = 32 << 20;
/// The room is counted in pieces of so many bytes, since a semaphore counts no further than 32 bits.
const PIECE: usize = 1 << 10;
/// One part in this many of the budget is for what all consumers together hold, so that the rest is left to
/// peers.
const PART_HELD: usize = 2;
/// One part in this many of the budget is shared out among the consumers: each may hold its part whatever the
/// others hold.
const PART_SHARED_OUT: usize = 8;
/// Threads take at most one part in this many of the budget, in address space. It does not count in the
/// budget, which is half of what there is.
const PART_THREADS: usize = 2;
/// A message of up to so many bytes counts when it begins to come, and is read in any case. It has to fit
/// into what a consumer may hold in any case.
const LITTLE: usize = 64 << 10;
/// After so long without room, a line is logged, and then no more than one in the same time.
const LONG: Duration = Duration::from_secs(10);

/// Clones share the room.
#[derive(Clone, Debug)]
pub(crate) struct Room(Arc<Shared>);

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

/// The place of a thread, until it is dropped.
#[derive(Debug)]
pub(crate) struct ThreadPlace(Room);

impl Drop for ThreadPlace {
    fn drop(&mut self) {
        self.0.0.threads.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer on its way.
#[derive(Debug)]
pub(crate) struct Answering {
    _claim: Claim,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// The room within this budget. `thread_space` is the address space of a thread in bytes, if that is
    /// limited, and else 0.
    pub(crate) fn new(budget: MemoryBudget, thread_space: usize) -> Self {
        Self(Arc::new(Shared {
            budget,
            thread_space,
            threads: AtomicUsize::new(0),
            answers: Arc::new(Semaphore::new(ANSWERS / PIECE)),
            held: AtomicUsize::new(0),
            consumers: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            log: Throttle::new(1, LONG),
        }))
    }

    /// The budget, for sockets.
    pub(crate) fn budget(&self) -> &MemoryBudget {
        &self.0.budget
    }

    /// A place for another thread, if there is address space for it.
    pub(crate) fn thread(&self) -> Option<ThreadPlace> {
        let Shared { budget, thread_space, threads, .. } = &*self.0;
        let most = (budget.limit() / PART_THREADS).checked_div(*thread_space).unwrap_or(usize::MAX);
        let with_one = |count: usize| (count < most).then_some(count + 1);
        threads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_one).ok()?;
        Some(ThreadPlace(self.clone()))
    }

    /// A claim for so many bytes that are taken in any case.
    pub(crate) fn claim(&self, bytes: usize) -> Claim {
        let mut claim = self.0.budget.claim_shared();
        claim.force(bytes);
        claim
    }

    /// Whether the budget has room for so many bytes.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.0.budget.has_room(bytes)
    }

    /// What a consumer is going to hold. Nothing more is read for it while it holds `most` bytes. `name` says
    /// in the log whose it is.
    pub(crate) fn consumer(&self, name: &str, most: usize) -> Arc<Held> {
        self.0.consumers.fetch_add(1, Ordering::Relaxed);
        let claim = self.0.budget.claim_shared();
        Arc::new(Held {
            room: self.clone(),
            name: name.into(),
            most,
            state: Mutex::new(State {
                claim,
                kept: 0,
                coming: VecDeque::new(),
                announced: 0,
                is_held_up: false,
                waits_since: None,
            }),
            reader: AtomicWaker::new(),
        })
    }

    /// Waits until an answer of so many bytes may be made; it may until this is dropped.
    pub(crate) async fn answer(&self, bytes: usize) -> Answering {
        let pieces = bytes.div_ceil(PIECE).min(ANSWERS / PIECE);
        let pieces = u32::try_from(pieces).unwrap_or(u32::MAX);
        // Nobody closes the semaphore.
        let permit = self.0.answers.clone().acquire_many_owned(pieces).await.ok();
        Answering { _claim: self.claim(bytes), _permit: permit }
    }
}

/// What one consumer has received of its broker and still holds, and what it is receiving.
#[derive(Debug)]
pub(crate) struct Held {
    room: Room,
    name: Box<str>,
    most: usize,
    state: Mutex<State>,
    /// Woken when this consumer holds less.
    reader: AtomicWaker,
}

#[derive(Debug)]
struct State {
    claim: Claim,
    /// What was received and is held, in bytes.
    kept: usize,
    /// Long messages that have begun and were not received, in their order.
    coming: VecDeque<Coming>,
    /// What those of them take that are not claimed, in bytes. It is claimed before more is read.
    announced: usize,
    /// Whether nothing was to be read when it was last asked.
    is_held_up: bool,
    /// Since when there is no room, although this consumer holds no more than it may.
    waits_since: Option<Instant>,
}

/// A long message that has begun to come.
#[derive(Debug)]
struct Coming {
    /// What it takes while it comes, in bytes.
    bytes: usize,
    /// What was claimed for it, in bytes, once that is done.
    claimed: Option<usize>,
}

impl Held {
    /// A message of so many bytes has begun to come.
    pub(crate) fn announce(&self, bytes: usize) {
        let mut state = self.state();
        if bytes > LITTLE {
            let bytes = coming(bytes);
            state.announced = state.announced.saturating_add(bytes);
            state.coming.push_back(Coming { bytes, claimed: None });
        } else {
            let bytes = state.claim.bytes() + bytes;
            self.set(&mut state, bytes);
        }
    }

    /// Whether more may be read from the broker. It may not while there is no room for what has begun to
    /// come. The waker is called when this consumer holds less; others may make room without a call.
    pub(crate) fn may_read(&self, waker: &Waker) -> bool {
        let mut state = self.state();
        self.reader.register(waker);
        let (own, more) = (state.claim.bytes(), state.announced);
        if more == 0 && !state.coming.is_empty() {
            // What is coming is claimed.
            return true;
        }
        let may_hold = state.kept < self.most || state.kept == 0;
        let granted = if may_hold { self.room_for(own, more.max(LITTLE)) } else { None };
        let has_room = granted.is_some();
        self.wait(&mut state, may_hold && !has_room);
        if let (Some(granted), 1..) = (granted, more) {
            state.announced = 0;
            for one in state.coming.iter_mut().filter(|one| one.claimed.is_none()) {
                one.claimed = Some(if granted < more { one.bytes / 2 } else { one.bytes });
            }
            self.set(&mut state, own + granted);
        }
        state.is_held_up = !has_room;
        has_room
    }

    /// How many bytes this consumer, which holds `own` bytes, may claim for so many more beside all others.
    /// `None` if it has to wait.
    fn room_for(&self, own: usize, more: usize) -> Option<usize> {
        let shared = &self.room.0;
        let (all, limit) = (shared.held.load(Ordering::Relaxed), shared.budget.limit());
        // A message that would never have room counts once, and may come alone.
        let more = if more > limit / PART_HELD { more / 2 } else { more };
        let is_within = all == 0 || all.saturating_add(more) <= limit / PART_HELD;
        let may = is_within && shared.budget.has_room(more) || own.saturating_add(more) <= self.part();
        may.then_some(more)
    }

    /// What this consumer may hold whatever others hold, in bytes.
    fn part(&self) -> usize {
        let consumers = self.room.0.consumers.load(Ordering::Relaxed).max(1);
        (self.room.0.budget.limit() / PART_SHARED_OUT / consumers).max(LITTLE)
    }

    /// A message of `bytes` bytes has come as a whole. From now on, `kept` bytes of it are held until they
    /// are [let go](Self::let_go).
    pub(crate) fn received(&self, bytes: usize, kept: usize) {
        let mut state = self.state();
        let mut counted = bytes;
        if bytes > LITTLE
            && let Some(one) = state.coming.pop_front()
        {
            counted = one.claimed.unwrap_or_default();
            if one.claimed.is_none() {
                state.announced -= one.bytes;
            }
        }
        state.kept += kept;
        let others = state.claim.bytes().saturating_sub(counted);
        self.set(&mut state, others + kept);
    }

    /// So many bytes are held no more.
    pub(crate) fn let_go(&self, bytes: usize) {
        let mut state = self.state();
        state.kept = state.kept.saturating_sub(bytes);
        let left = state.claim.bytes().saturating_sub(bytes);
        self.set(&mut state, left);
    }

    /// What is held, in bytes.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.state().claim.bytes()
    }

    /// Whether this consumer holds more than its part while others find no room.
    pub(crate) fn is_in_the_way(&self) -> bool {
        let state = self.state();
        let others = self.room.0.waiting.load(Ordering::Relaxed) - usize::from(state.waits_since.is_some());
        others > 0 && state.claim.bytes() > self.part()
    }

    fn set(&self, state: &mut State, bytes: usize) {
        let held = &self.room.0.held;
        let before = state.claim.bytes();
        if bytes >= before {
            held.fetch_add(bytes - before, Ordering::Relaxed);
        } else {
            held.fetch_sub(before - bytes, Ordering::Relaxed);
        }
        state.claim.force(bytes);
        if bytes < before && state.is_held_up {
            self.reader.wake();
        }
    }

    /// Notes whether this consumer waits for room.
    fn wait(&self, state: &mut State, waits: bool) {
        let shared = &self.room.0;
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
        } else if since.elapsed() >= LONG
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

impl Drop for Held {
    fn drop(&mut self) {
        let shared = self.room.0.clone();
        let mut state = self.state();
        self.set(&mut state, 0);
        self.wait(&mut state, false);
        shared.consumers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a message of so many bytes takes while it comes. The client puts it together in a buffer that it
/// doubles again and again.
fn coming(bytes: usize) -> usize {
    bytes.saturating_mul(2)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const MIB: usize = 1 << 20;

    fn may_read(held: &Held) -> bool {
        held.may_read(Waker::noop())
    }

    #[tokio::test]
    async fn answers_wait_for_their_turn_and_count_in_the_budget() {
        let budget = MemoryBudget::new(1 << 30);
        let room = Room::new(budget.clone(), 0);
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

    #[tokio::test]
    async fn long_messages_wait_at_the_broker_until_there_is_room() {
        let budget = MemoryBudget::new(400 * MIB);
        let room = Room::new(budget.clone(), 0);
        let consumers: Vec<_> = (0..9).map(|_| room.consumer("a", 64 * MIB)).collect();
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
        first.let_go(60 * MIB);
        assert_eq!(budget.claimed(), 120 * MIB);
        drop(consumers);
        assert_eq!((budget.claimed(), room.0.held.load(Ordering::Relaxed)), (0, 0));
        assert_eq!(room.0.waiting.load(Ordering::Relaxed), 0);
    }

    /// Whatever others hold, each has its part.
    #[tokio::test]
    async fn whoever_holds_much_keeps_nobody_from_reading_little() {
        let room = Room::new(MemoryBudget::new(64 * MIB), 0);
        let [greedy, modest] = [room.consumer("greedy", 64 * MIB), room.consumer("modest", 64 * MIB)];
        let take = |held: &Held| {
            held.announce(LITTLE);
            held.received(LITTLE, LITTLE);
        };
        while may_read(&greedy) {
            take(&greedy);
        }
        assert!(greedy.bytes() >= 31 * MIB && !greedy.is_in_the_way());
        for _ in 0..4 * MIB / LITTLE {
            assert!(may_read(&modest));
            take(&modest);
        }
        assert!(!may_read(&modest) && greedy.is_in_the_way() && !modest.is_in_the_way());
        greedy.let_go(31 * MIB);
        assert!(may_read(&modest) && !greedy.is_in_the_way());
    }

    #[tokio::test]
    async fn a_message_that_takes_nearly_all_comes_alone_and_one_that_takes_more_waits() {
        let budget = MemoryBudget::new(64 * MIB);
        let room = Room::new(budget.clone(), 0);
        let [one, other] = [room.consumer("one", usize::MAX), room.consumer("other", usize::MAX)];
        one.announce(60 * MIB);
        other.announce(60 * MIB);
        assert!(may_read(&one) && !may_read(&other));
        one.announce(1000);
        one.received(60 * MIB, 60 * MIB);
        one.received(1000, 1000);
        assert_eq!(budget.claimed(), 60 * MIB + 1000);
        one.let_go(60 * MIB + 1000);
        assert!(may_read(&other));
        other.received(60 * MIB, 0);
        other.announce(65 * MIB);
        assert!(!may_read(&other));
        assert_eq!(budget.claimed(), 0);
    }

    #[test]
    fn threads_take_a_part_of_a_limited_address_space() {
        let room = Room::new(MemoryBudget::new(400 * MIB), 66 * MIB);
        let places: Vec<_> = (0..5).map_while(|_| room.thread()).collect();
        assert_eq!(places.len(), 3);
        drop(places);
        assert!(room.thread().is_some());
        let room = Room::new(MemoryBudget::new(MIB), 0);
        let places: Vec<_> = (0..100).map_while(|_| room.thread()).collect();
        assert_eq!(places.len(), 100, "it is not limited");
    }

    /// The first one was claimed, and the second one was not, when the first one is received.
    #[tokio::test]
    async fn what_comes_behind_a_long_message_does_not_count_for_it() {
        let held = Room::new(MemoryBudget::default(), 0).consumer("a", MIB);
        held.announce(2 * MIB);
        assert!(may_read(&held));
        held.announce(2 * MIB);
        held.received(2 * MIB, 2 * MIB);
        assert_eq!(held.bytes(), 2 * MIB);
        assert!(!may_read(&held));
        held.let_go(2 * MIB);
        assert!(may_read(&held));
        assert_eq!(held.bytes(), 4 * MIB);
        held.received(2 * MIB, 0);
        assert_eq!(held.bytes(), 0);
    }

    #[tokio::test]
    async fn a_consumer_holds_no_more_than_it_may_or_one_message() {
        let room = Room::new(MemoryBudget::default(), 0);
        let held = room.consumer("a", MIB);
        held.announce(2 * MIB);
        assert!(may_read(&held), "it holds nothing else");
        assert!(may_read(&held), "until all of it has come");
        held.received(2 * MIB, 2 * MIB);
        assert!(!may_read(&held));
        held.let_go(2 * MIB);
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
        let room = Room::new(budget.clone(), 0);
        let [other, held] = [room.consumer("other", MIB), room.consumer("a", MIB)];
        other.received(0, MIB / 2);
        held.announce(100 << 10);
        held.announce(100 << 10);
        assert!(!may_read(&held));
        held.received(100 << 10, 100 << 10);
        assert_eq!(held.bytes(), 100 << 10);
        other.let_go(MIB / 2);
        assert!(may_read(&held));
        assert_eq!(held.bytes(), 300 << 10);
        held.received(100 << 10, 100 << 10);
        held.let_go(200 << 10);
        // Short ones count from their beginning, too: the client may have many of them.
        held.announce(1000);
        assert_eq!(held.bytes(), 1000);
        held.received(1000, 1064);
        held.let_go(1064);
        assert_eq!((held.bytes(), budget.claimed()), (0, 0));
    }
}
