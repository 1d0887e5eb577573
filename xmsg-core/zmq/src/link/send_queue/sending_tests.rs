//! The order of messages, whichever senders wait, come later or give up.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, poll};
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::tests::{Brittle, message, numbers};
use super::super::{HighWaterMark, Writer};
use super::*;

type Push<'a> = Pin<Box<dyn Future<Output = Result<(), Refused>> + Send + 'a>>;

/// The number of pairs of calls, so that a fault that occurs rarely is found.
const PAIRS: u32 = 500;

fn push(send_queue: &SendQueue, number: u32, len: usize) -> Push<'_> {
    let frames = message(number, len);
    Box::pin(async move { send_queue.push(&frames).await })
}

/// Pushes messages with numbers from `number` on until there is no room. Returns the next number.
fn fill(send_queue: &SendQueue, mut number: u32, len: usize) -> u32 {
    while send_queue.try_push(&message(number, len)) == Ok(()) {
        number += 1;
    }
    number
}

/// Writes a part of the queue and then breaks off, as a connection does.
fn write(send_queue: &SendQueue, bytes: usize, arrived: &mut Vec<u32>) {
    let mut stream = Brittle { limit: bytes, piece: 100, taken: vec![] };
    let run = Writer::new(send_queue).run(&mut stream).now_or_never();
    assert!(run.is_none_or(|ended| ended.is_err()), "the queue is open");
    arrived.extend(numbers(&stream.taken));
}

/// Writes everything that is queued until the queue is closed.
async fn write_all(send_queue: &SendQueue) -> Vec<u32> {
    let mut stream = Brittle { limit: usize::MAX, piece: 100, taken: vec![] };
    Writer::new(send_queue).run(&mut stream).await.unwrap();
    numbers(&stream.taken)
}

fn both_runtimes(test: impl AsyncFn()) {
    let mut current = tokio::runtime::Builder::new_current_thread();
    let mut multi = tokio::runtime::Builder::new_multi_thread();
    for builder in [&mut current, multi.worker_threads(2)] {
        builder.enable_time().build().unwrap().block_on(test());
    }
}

#[test]
fn two_that_wait_at_the_same_time_are_served_in_the_order_of_the_calls() {
    both_runtimes(async || {
        for pair in 0..PAIRS {
            let send_queue = SendQueue::new(HighWaterMark::bytes(200));
            let next = fill(&send_queue, 0, 20);
            let (mut first, mut second) = (push(&send_queue, next, 20), push(&send_queue, next + 1, 20));
            assert!(poll!(&mut first).is_pending());
            assert!(poll!(&mut second).is_pending());
            // A sender that is polled first when there is room must not profit from that.
            let both = async {
                let results =
                    if pair % 2 == 0 { futures::join!(first, second) } else { futures::join!(second, first) };
                assert_eq!(results, (Ok(()), Ok(())));
                send_queue.close();
            };
            let ((), arrived) = futures::join!(both, write_all(&send_queue));
            assert_eq!(arrived, (0..next + 2).collect::<Vec<_>>());
        }
    });
}

#[test]
fn a_later_call_that_finds_room_does_not_overtake_one_that_waits() {
    both_runtimes(async || {
        for _ in 0..PAIRS {
            let send_queue = SendQueue::new(HighWaterMark::bytes(200));
            let next = fill(&send_queue, 0, 20);
            let mut first = push(&send_queue, next, 20);
            assert!(poll!(&mut first).is_pending());
            let mut arrived = Vec::new();
            write(&send_queue, 100, &mut arrived);
            assert_eq!(send_queue.push(&message(next + 1, 20)).await, Ok(()));
            assert_eq!(first.await, Ok(()));
            write(&send_queue, 1000, &mut arrived);
            assert_eq!(arrived, (0..next + 2).collect::<Vec<_>>());
        }
    });
}

/// Sends `count` messages, each with a future of its own, in one task. Returns the numbers of those that
/// arrived.
async fn concurrently<'a, F: Future<Output = ()>>(
    send_queue: &'a SendQueue,
    count: u32,
    len: usize,
    all: impl FnOnce(Vec<Push<'a>>) -> F,
) -> Vec<u32> {
    let sending = async {
        all((0..count).map(|number| push(send_queue, number, len)).collect()).await;
        send_queue.close();
    };
    futures::join!(sending, write_all(send_queue)).1
}

#[test]
fn futures_that_one_task_polls_together_send_in_their_order() {
    const COUNT: u32 = 5000;
    let expected: Vec<u32> = (0..COUNT).collect();
    both_runtimes(async || {
        // With the last length, the messages exceed the mark together.
        for len in [20, 200, 15_000] {
            let mark = crate::Settings::default().send_high_water_mark;
            let send_queue = SendQueue::recycling(mark);
            let arrived = concurrently(&send_queue, COUNT, len, async |all| {
                futures::future::join_all(all).await.into_iter().for_each(|done| assert_eq!(done, Ok(())));
            });
            assert_eq!(arrived.await, expected);
            let send_queue = SendQueue::recycling(mark);
            let arrived = concurrently(&send_queue, COUNT, len, async |all| {
                let mut all: FuturesUnordered<_> = all.into_iter().collect();
                while let Some(done) = all.next().await {
                    assert_eq!(done, Ok(()));
                }
            });
            assert_eq!(arrived.await, expected);
        }
    });
}

#[test]
fn whoever_gives_up_frees_its_place_wherever_it_stands() {
    const WAITING: u32 = 6;
    both_runtimes(async || {
        for gone in 0_u32..1 << WAITING {
            for at_once in [true, false] {
                let send_queue = SendQueue::new(HighWaterMark::bytes(100));
                let next = fill(&send_queue, 0, 20);
                let mut waiting: Vec<_> =
                    (next..next + WAITING).map(|n| Some(push(&send_queue, n, 20))).collect();
                for push in waiting.iter_mut().flatten() {
                    assert!(poll!(push).is_pending());
                }
                // The futures are dropped either all at once, or each after those before it have been served.
                let mut arrived = Vec::new();
                for (at, push) in waiting.iter_mut().enumerate() {
                    if gone >> at & 1 == 1 {
                        *push = None;
                    } else if !at_once {
                        write(&send_queue, 30, &mut arrived);
                    }
                }
                assert!(send_queue.state().line.len() <= WAITING as usize - gone.count_ones() as usize);
                let rest = async {
                    for push in waiting.into_iter().flatten() {
                        assert_eq!(push.await, Ok(()));
                    }
                    send_queue.close();
                };
                let ((), written) = futures::join!(rest, write_all(&send_queue));
                arrived.extend(written);
                let served = (0..WAITING).filter(|at| gone >> at & 1 == 0).map(|at| next + at);
                let certain: Vec<u32> = (0..next).chain(served).collect();
                if at_once {
                    assert_eq!(arrived, certain, "what is dropped is not sent");
                } else {
                    assert!(arrived.is_sorted_by(|a, b| a < b), "{arrived:?}");
                    assert!(certain.iter().all(|number| arrived.contains(number)), "{arrived:?}");
                }
            }
        }
    });
}

#[test]
fn whoever_is_dropped_lets_shorter_ones_behind_it_pass() {
    both_runtimes(async || {
        let send_queue = SendQueue::new(HighWaterMark::bytes(200));
        assert_eq!(send_queue.try_push(&message(0, 100)), Ok(()));
        let (mut long, mut short) = (push(&send_queue, 1, 150), push(&send_queue, 2, 20));
        assert!(poll!(&mut long).is_pending());
        assert!(poll!(&mut short).is_pending(), "it would fit, but is not first");
        assert_eq!(send_queue.try_push(&message(3, 4)), Err(Refused::Full));
        drop(long);
        // There is no writer at this point.
        assert_eq!(short.await, Ok(()));
        assert_eq!(send_queue.try_push(&message(3, 4)), Ok(()));
        send_queue.close();
        assert_eq!(write_all(&send_queue).await, [0, 2, 3]);
    });
}

/// A future that is kept and not polled, as in `select!` with a branch that sends itself, must not block
/// everything.
#[test]
fn one_that_is_not_polled_holds_up_nobody() {
    both_runtimes(async || {
        let send_queue = SendQueue::new(HighWaterMark::bytes(100));
        let next = fill(&send_queue, 0, 20);
        let mut kept = push(&send_queue, next, 20);
        assert!(poll!(&mut kept).is_pending());
        let others = async {
            for number in next + 1..next + 100 {
                assert_eq!(send_queue.push(&message(number, 20)).await, Ok(()));
            }
            send_queue.close();
        };
        let ((), arrived) = futures::join!(others, write_all(&send_queue));
        assert_eq!(arrived, (0..next + 100).collect::<Vec<_>>());
        assert_eq!(kept.await, Ok(()), "it was served while nobody looked");
    });
}

#[test]
fn nor_does_one_that_pauses() {
    both_runtimes(async || {
        let send_queue = SendQueue::recycling(HighWaterMark::bytes(64 << 20));
        let mut kept = push(&send_queue, 0, 2 * TURN);
        assert!(poll!(&mut kept).is_pending(), "it has sent much in a row");
        assert_eq!(send_queue.push(&message(1, 20)).await, Ok(()));
        drop(kept);
        send_queue.close();
        assert_eq!(write_all(&send_queue).await, [0, 1], "it was in the queue already");
    });
}

#[test]
fn a_queue_that_is_closed_refuses_all_that_wait_and_none_that_it_took() {
    both_runtimes(async || {
        let send_queue = SendQueue::new(HighWaterMark::bytes(200));
        let next = fill(&send_queue, 0, 20);
        let mut waiting: Vec<_> = (next..next + 20).map(|number| push(&send_queue, number, 20)).collect();
        for push in &mut waiting {
            assert!(poll!(push).is_pending());
        }
        let mut arrived = Vec::new();
        write(&send_queue, 100, &mut arrived);
        send_queue.close();
        arrived.extend(write_all(&send_queue).await);
        let taken = arrived.len() - next as usize;
        assert!((1..20).contains(&taken));
        for (at, push) in waiting.into_iter().enumerate() {
            assert_eq!(push.await, if at < taken { Ok(()) } else { Err(Refused::Closed) });
        }
        assert_eq!(arrived, (0..arrived.len() as u32).collect::<Vec<_>>());
        assert!(send_queue.state().line.is_empty());
    });
}

/// Checks that waiting tasks are woken, and not only that futures which are polled anyway return.
#[test]
fn closing_ends_the_waiting_of_other_tasks() {
    both_runtimes(async || {
        let send_queue = Arc::new(SendQueue::new(HighWaterMark::bytes(100)));
        let next = fill(&send_queue, 0, 20);
        let tasks: Vec<_> = (0..50)
            .map(|n| {
                let send_queue = send_queue.clone();
                tokio::spawn(async move { send_queue.push(&message(next + n, 20)).await })
            })
            .collect();
        while send_queue.state().line.len() < tasks.len() {
            tokio::task::yield_now().await;
        }
        send_queue.close();
        for task in tasks {
            assert_eq!(task.await.unwrap(), Err(Refused::Closed));
        }
    });
}

#[test]
fn a_connection_that_breaks_makes_room_by_what_it_has_written() {
    both_runtimes(async || {
        let send_queue = Arc::new(SendQueue::new(HighWaterMark::bytes(300)));
        let next = fill(&send_queue, 0, 20);
        let waiting = tokio::spawn({
            let send_queue = send_queue.clone();
            async move { send_queue.push(&message(next, 20)).await }
        });
        while send_queue.state().line.is_empty() {
            tokio::task::yield_now().await;
        }
        {
            // Everything but the end of the last message is written. The chunk that contains all messages
            // counts until it is completely written.
            let mut stream = Brittle { limit: 29 * next as usize - 5, piece: 1000, taken: vec![] };
            Writer::new(&send_queue).run(&mut stream).await.unwrap_err();
        }
        let waited = tokio::time::timeout(std::time::Duration::from_secs(60), waiting).await;
        assert_eq!(waited.expect("there is room, and no other connection yet").unwrap(), Ok(()));
    });
}

#[test]
fn an_emptied_queue_takes_what_waits() {
    both_runtimes(async || {
        let send_queue = SendQueue::new(HighWaterMark::bytes(100));
        let next = fill(&send_queue, 0, 20);
        let mut waiting = push(&send_queue, next, 20);
        assert!(poll!(&mut waiting).is_pending());
        assert_eq!(send_queue.clear().messages, u64::from(next));
        assert_eq!(waiting.await, Ok(()));
        send_queue.close();
        assert_eq!(write_all(&send_queue).await, [next]);
    });
}

/// Tasks send, wait, and are aborted at any moment while a writer is active. The messages of each task arrive
/// in order, every message whose call returned arrives, and none arrives twice.
#[test]
fn many_tasks_keep_their_order_although_some_are_ended() {
    const TASKS: u32 = 40;
    const EACH: u32 = 400;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
    runtime.block_on(async {
        for len in [4, 300, 9000] {
            let send_queue = Arc::new(SendQueue::recycling(HighWaterMark::bytes(64 << 10)));
            let writer = tokio::spawn({
                let send_queue = send_queue.clone();
                async move { write_all(&send_queue).await }
            });
            let done = Arc::new(AtomicBool::new(false));
            let tasks: Vec<_> = (0..TASKS)
                .map(|task| {
                    let (send_queue, done) = (send_queue.clone(), done.clone());
                    let taken = Arc::new(std::sync::atomic::AtomicU32::new(0));
                    let handle = tokio::spawn({
                        let taken = taken.clone();
                        async move {
                            for number in 0..EACH {
                                send_queue.push(&message(task << 16 | number, len)).await.unwrap();
                                taken.store(number + 1, Ordering::Release);
                            }
                            done.store(true, Ordering::Release);
                        }
                    });
                    (handle, taken)
                })
                .collect();
            // By then, several tasks have sent a part of their messages.
            while !done.load(Ordering::Acquire) {
                tokio::task::yield_now().await;
            }
            for (handle, _) in tasks.iter().step_by(3) {
                handle.abort();
            }
            let mut certain = Vec::new();
            for (handle, taken) in tasks {
                let _ = handle.await;
                certain.push(taken.load(Ordering::Acquire));
            }
            send_queue.close();
            let arrived = writer.await.unwrap();
            for (task, certain) in certain.into_iter().enumerate() {
                let of_this: Vec<u32> =
                    arrived.iter().filter(|n| **n >> 16 == task as u32).map(|n| n & 0xffff).collect();
                // The message that was being sent when the task was aborted may have been accepted.
                assert!((certain..=certain + 1).contains(&(of_this.len() as u32)));
                assert_eq!(of_this, (0..of_this.len() as u32).collect::<Vec<_>>());
            }
        }
    });
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Call `push` with a message of this length, and poll once.
    Begin(usize),
    Try(usize),
    /// Poll the waiting call at this index of the list.
    Poll(Index),
    Drop(Index),
    /// Write this many bytes over a new connection.
    Write(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = || prop_oneof![6 => 4_usize..60, 2 => 60_usize..400, 1 => 8000_usize..9000];
    let step = prop_oneof![
        6 => len().prop_map(Step::Begin),
        2 => len().prop_map(Step::Try),
        3 => any::<Index>().prop_map(Step::Poll),
        2 => any::<Index>().prop_map(Step::Drop),
        3 => (1_usize..600).prop_map(Step::Write),
        1 => (600_usize..20_000).prop_map(Step::Write),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    /// Whatever happens, messages arrive in the order of the calls, and each is where its call says.
    #[test]
    fn order_is_that_of_the_calls(
        steps in steps(),
        bytes in 50_usize..2000,
        messages in prop_oneof![Just(usize::MAX), 1_usize..10],
    ) {
        let send_queue = SendQueue::new(HighWaterMark { bytes, messages });
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let outcome: Result<(), TestCaseError> = runtime.block_on(async {
            let mut number = 0;
            let mut waiting: Vec<(u32, Push<'_>)> = Vec::new();
            // The first set contains messages that were certainly accepted, the second one those for which
            // the call made no statement.
            let (mut taken, mut open) = (BTreeSet::new(), BTreeSet::new());
            let mut arrived = Vec::new();
            for step in steps {
                match step {
                    Step::Begin(len) => {
                        let mut call = push(&send_queue, number, len);
                        match poll!(&mut call) {
                            Poll::Ready(done) => {
                                prop_assert_eq!(done, Ok(()));
                                taken.insert(number);
                            }
                            Poll::Pending => waiting.push((number, call)),
                        }
                        number += 1;
                    }
                    Step::Try(len) => {
                        let nobody_waits = send_queue.state().line.is_empty();
                        if send_queue.try_push(&message(number, len)) == Ok(()) {
                            prop_assert!(nobody_waits);
                            taken.insert(number);
                        }
                        number += 1;
                    }
                    Step::Poll(_) | Step::Drop(_) if waiting.is_empty() => {}
                    Step::Poll(at) => {
                        let at = at.index(waiting.len());
                        if let Poll::Ready(done) = poll!(&mut waiting[at].1) {
                            prop_assert_eq!(done, Ok(()));
                            taken.insert(waiting.remove(at).0);
                        }
                    }
                    Step::Drop(at) => {
                        let at = at.index(waiting.len());
                        let before = send_queue.state().line.len();
                        let (number, call) = waiting.remove(at);
                        drop(call);
                        // If the message was withdrawn, it was not accepted; others may be accepted in its
                        // place.
                        if send_queue.state().line.len() == before {
                            open.insert(number);
                        }
                    }
                    Step::Write(bytes) => write(&send_queue, bytes, &mut arrived),
                }
                let state = send_queue.state();
                prop_assert!(state.line.is_empty() || state.queued.messages > 0, "somebody waits for nothing");
                prop_assert!(state.queued.messages <= messages as u64);
                prop_assert!(state.queued.messages <= 1 || state.queued.bytes <= bytes as u64);
            }
            while !waiting.is_empty() {
                write(&send_queue, usize::MAX, &mut arrived);
                let (number, call) = waiting.remove(0);
                prop_assert_eq!(call.await, Ok(()));
                taken.insert(number);
            }
            send_queue.close();
            arrived.extend(write_all(&send_queue).await);
            prop_assert!(arrived.is_sorted_by(|a, b| a < b), "{:?}", arrived);
            let arrived: BTreeSet<u32> = arrived.into_iter().collect();
            prop_assert!(taken.is_subset(&arrived));
            prop_assert!(arrived.iter().all(|number| taken.contains(number) || open.contains(number)));
            Ok(())
        });
        outcome?;
    }
}
