//! Compares the line with a plain list that does the same, and tests what is built on it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, Wake};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// A waker that records its number when it is woken.
#[derive(Debug)]
struct Bell {
    number: u64,
    rung: Arc<Mutex<Vec<u64>>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.lock().unwrap().push(self.number);
    }
}

/// Creates wakers, and records the numbers of those that were woken.
#[derive(Debug, Default)]
struct Bells {
    rung: Arc<Mutex<Vec<u64>>>,
}

impl Bells {
    fn waker(&self, number: u64) -> Waker {
        Arc::new(Bell { number, rung: self.rung.clone() }).into()
    }

    /// Wakes these calls and returns the numbers of those that were woken, and of no others.
    fn of(&self, calls: Wakers) -> Vec<u64> {
        assert!(self.rung.lock().unwrap().is_empty(), "wakers are called by `wake` and nothing else");
        calls.wake();
        std::mem::take(&mut self.rung.lock().unwrap())
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Join,
    /// The waiter at this index in the line waits.
    Wait(Index),
    Leave(Index),
    TakeFirst,
    TakeAll,
    Call(usize),
    CallAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = any::<Index>();
    let step = prop_oneof![
        6 => Just(Step::Join),
        5 => place.clone().prop_map(Step::Wait),
        5 => place.prop_map(Step::Leave),
        2 => Just(Step::TakeFirst),
        2 => (0_usize..5).prop_map(Step::Call),
        1 => prop::sample::select(vec![Step::CallAll, Step::CallAll, Step::CallAll, Step::TakeAll]),
    ];
    prop::collection::vec(step, 0..400)
}

/// A waiter that is not in the line any more can't do anything with its place.
fn gone(line: &mut WaitQueue<u32>, place: &Place) -> Result<(), TestCaseError> {
    prop_assert!(!line.contains(place) && !line.is_first(place));
    prop_assert!(!line.wait(place, Waker::noop()));
    prop_assert!(!line.leave(place));
    Ok(())
}

proptest! {
    #[test]
    fn it_does_what_a_plain_list_does(steps in steps()) {
        let bells = Bells::default();
        let mut line = WaitQueue::<u32>::default();
        let (mut wants, mut wanted) = (1000, HashMap::new());
        // The places, and whether each waits to be woken.
        let mut list: Vec<(Place, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Join => {
                    let place = line.join(wants);
                    wanted.insert(place.0, wants);
                    wants += 1;
                    list.push((place, false));
                }
                Step::Wait(_) | Step::Leave(_) if list.is_empty() => {}
                Step::Wait(at) => {
                    let at = at.index(list.len());
                    let (place, waits) = &mut list[at];
                    prop_assert!(line.wait(place, &bells.waker(place.0)));
                    *waits = true;
                }
                Step::Leave(at) => {
                    let at = at.index(list.len());
                    let (place, _) = list.remove(at);
                    prop_assert_eq!(line.leave(&place), at == 0);
                    gone(&mut line, &place)?;
                }
                Step::TakeFirst => {
                    let wants = line.first().copied();
                    let taken = line.take_first();
                    prop_assert_eq!(taken.as_ref().map(|(wants, _)| *wants), wants);
                    let first = if list.is_empty() { None } else { Some(list.remove(0)) };
                    prop_assert_eq!(wants, first.as_ref().map(|(place, _)| wanted[&place.0]));
                    let mut calls = Wakers::default();
                    calls.extend(taken.and_then(|(_, waker)| waker));
                    let called = first.iter().filter(|(_, waits)| *waits).map(|(place, _)| place.0);
                    prop_assert_eq!(bells.of(calls), called.collect::<Vec<_>>());
                    if let Some((place, _)) = first {
                        gone(&mut line, &place)?;
                    }
                }
                Step::TakeAll => {
                    let called = list.iter().filter(|(_, waits)| *waits).map(|(place, _)| place.0);
                    prop_assert_eq!(bells.of(line.take_all()), called.collect::<Vec<_>>());
                    for (place, _) in list.drain(..) {
                        gone(&mut line, &place)?;
                    }
                }
                Step::Call(at_most) => {
                    let first_waits = list.first().is_some_and(|(_, waits)| *waits);
                    let count = if first_waits { at_most } else { 0 };
                    let waiting = list.iter_mut().take(count).filter(|(_, waits)| *waits);
                    let waiting: Vec<_> = waiting.collect();
                    let called = bells.of(line.call(at_most));
                    // Entries of waiters that have left count against `at_most`, so fewer may be called.
                    prop_assert_eq!(called.is_empty(), count == 0);
                    prop_assert!(called.len() <= waiting.len());
                    for (number, (place, waits)) in called.into_iter().zip(waiting) {
                        prop_assert_eq!(number, place.0);
                        *waits = false;
                    }
                }
                Step::CallAll => {
                    let called = list.iter_mut().filter(|(_, waits)| *waits);
                    let called: Vec<u64> = called.map(|(place, waits)| { *waits = false; place.0 }).collect();
                    prop_assert_eq!(bells.of(line.call_all()), called);
                }
            }
            prop_assert_eq!((line.len(), line.is_empty()), (list.len(), list.is_empty()));
            for (at, (place, _)) in list.iter().enumerate() {
                prop_assert!(line.contains(place));
                prop_assert_eq!(line.is_first(place), at == 0);
            }
            prop_assert!(line.entries.len() <= 2 * (list.len() + LITTER), "what left is cleared away");
        }
    }
}

#[test]
fn a_place_that_was_left_is_never_taken_for_another_one() {
    let mut line = WaitQueue::default();
    let gone = line.join(());
    line.leave(&gone);
    let present = line.join(());
    assert_ne!(gone, present);
    assert!(!line.is_first(&gone));
    assert!(line.is_first(&present));
    assert!(!line.leave(&gone));
    assert_eq!(line.len(), 1);
}

/// One waiter stays at the front for long while others come and give up. What they leave behind is bounded.
#[test]
fn those_who_come_and_go_behind_a_patient_one_leave_nothing_behind() {
    let mut line = WaitQueue::default();
    let patient = line.join(());
    let mut last = line.join(());
    for _ in 0..100_000 {
        let next = line.join(());
        line.leave(&last);
        last = next;
        assert!(line.entries.len() <= 2 * (2 + LITTER));
    }
    assert!(line.leave(&patient));
    assert!(line.is_first(&last));
    line.leave(&last);
    assert!(line.is_empty());
}

/// In every order of leaving, 100,000 waiters take about as long as ten times 10,000 do. A search from one
/// end would take minutes.
#[test]
fn a_long_line_is_left_quickly_from_everywhere() {
    const COUNT: usize = 100_000;
    let mut rng = fastrand::Rng::with_seed(11);
    let waker = Waker::noop();
    let mut orders: Vec<Vec<usize>> = vec![(0..COUNT).collect(), (0..COUNT).rev().collect()];
    orders.push((0..COUNT).step_by(2).chain((0..COUNT).skip(1).step_by(2)).collect());
    let mut shuffled: Vec<usize> = (0..COUNT).collect();
    rng.shuffle(&mut shuffled);
    orders.push(shuffled);
    let begun = Instant::now();
    for order in orders {
        let mut line = WaitQueue::default();
        let places: Vec<Place> = (0..COUNT).map(|_| line.join(())).collect();
        for place in &places {
            line.wait(place, waker);
        }
        for at in order {
            if line.leave(&places[at]) {
                line.call(4).wake();
            }
        }
        assert!(line.is_empty());
        assert!(line.entries.capacity() <= 2 * KEPT, "a long line's memory is given back");
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

/// Shows how a line becomes a fair lock that may be held across an `await`. The lock is acquired in the order
/// in which the futures were first polled, however the runtime schedules their tasks.
#[derive(Debug, Default)]
struct Turns(Mutex<WaitQueue>);

struct Turn<'a> {
    turns: &'a Turns,
    place: Place,
}

impl Turns {
    async fn take(&self) -> Turn<'_> {
        let turn = Turn { turns: self, place: self.0.lock().unwrap().join(()) };
        std::future::poll_fn(|cx| {
            let mut line = self.0.lock().unwrap();
            if line.is_first(&turn.place) {
                return Poll::Ready(());
            }
            line.wait(&turn.place, cx.waker());
            Poll::Pending
        })
        .await;
        turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let next = {
            let mut line = self.turns.0.lock().unwrap();
            if line.leave(&self.place) { line.call(1) } else { Wakers::default() }
        };
        next.wake();
    }
}

#[test]
fn turns_come_in_order_and_one_at_a_time_whoever_gives_up() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        const COUNT: usize = 200;
        let turns = Arc::new(Turns::default());
        let order = Arc::new(Mutex::new(Vec::new()));
        let busy = Arc::new(AtomicBool::new(false));
        let held = turns.take().await;
        let mut waiting = Vec::new();
        for number in 0..COUNT {
            let (turns, order, busy) = (turns.clone(), order.clone(), busy.clone());
            let mut future = Box::pin(async move {
                let turn = turns.take().await;
                assert!(!busy.swap(true, Ordering::AcqRel), "one at a time");
                tokio::task::yield_now().await;
                order.lock().unwrap().push(number);
                busy.store(false, Ordering::Release);
                drop(turn);
            });
            assert!(futures::poll!(&mut future).is_pending());
            waiting.push(tokio::spawn(future));
        }
        for given_up in waiting.iter().skip(1).step_by(3) {
            given_up.abort();
        }
        tokio::task::yield_now().await;
        drop(held);
        for task in waiting {
            let _ = task.await;
        }
        let order = order.lock().unwrap();
        assert!(order.is_sorted(), "{order:?}");
        assert!(order.len() >= COUNT - COUNT.div_ceil(3));
        assert!((0..COUNT).filter(|number| number % 3 != 1).all(|number| order.contains(&number)));
        assert!(turns.0.lock().unwrap().is_empty());
    });
}

#[test]
fn nobody_is_called_who_is_awake() {
    let bells = Bells::default();
    let mut line = WaitQueue::default();
    assert!(line.call(3).is_empty());
    let [first, second, third] = [(); 3].map(|()| line.join(()));
    line.wait(&second, &bells.waker(1));
    line.wait(&third, &bells.waker(2));
    assert!(line.call(3).is_empty(), "the first is awake: it will see for itself");
    line.wait(&first, &bells.waker(0));
    assert_eq!(bells.of(line.call(2)), [0, 1]);
    assert!(line.call(3).is_empty());
    assert!(line.leave(&first));
    assert!(line.call(3).is_empty(), "the second was called");
    line.wait(&second, &bells.waker(1));
    assert_eq!(bells.of(line.call(3)), [1, 2]);
}
