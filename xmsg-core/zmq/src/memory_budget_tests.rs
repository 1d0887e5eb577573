//! Tests of which connection is ended when memory is short, and of what counts.

use super::connections::UNCLAIMED;
use super::*;
use crate::link::send_queue::SendQueue;

fn claim(budget: &MemoryBudget, name: &str) -> (Claim, CancellationToken) {
    let end = CancellationToken::new();
    (budget.claim(name, "a message", end.clone()), end)
}

#[tokio::test(start_paused = true)]
async fn whoever_holds_most_makes_room_for_others() {
    let budget = MemoryBudget::new(100);
    let (mut small, small_end) = claim(&budget, "small");
    let (mut large, large_end) = claim(&budget, "large");
    assert!(small.set(30).await && large.set(60).await);
    let ended = large_end.clone();
    let gives_back = tokio::spawn(async move {
        ended.cancelled().await;
        drop(large);
    });
    assert!(small.set(50).await);
    gives_back.await.unwrap();
    assert!(large_end.is_cancelled() && !small_end.is_cancelled());
    assert_eq!((budget.used(), budget.ended()), (50, 1));

    // Now this claim is the largest itself.
    let (mut other, other_end) = claim(&budget, "other");
    assert!(other.set(40).await);
    assert!(!small.set(70).await);
    assert!(small_end.is_cancelled() && !other_end.is_cancelled());
    drop((small, other));
    assert_eq!(budget.used(), 0);
    assert!(budget.0.holders().by_id.is_empty() && budget.0.holders().bytes == 0);
}

#[test]
fn one_that_is_ended_is_enough_if_it_gives_back_enough() {
    let budget = MemoryBudget::new(100);
    let (mut large, large_end) = claim(&budget, "large");
    let (mut middle, middle_end) = claim(&budget, "middle");
    let (mut small, _) = claim(&budget, "small");
    assert!(large.force(60) && middle.force(35));
    for bytes in [10, 20, 30] {
        assert!(small.force(bytes), "somebody else holds more");
    }
    assert!(large_end.is_cancelled() && !middle_end.is_cancelled());
    assert_eq!(budget.ended(), 1);
}

/// Many connections of one address do not outlive a single connection of another by holding less each.
#[test]
fn connections_of_one_address_count_together() {
    let budget = MemoryBudget::new(100);
    let (mut single, single_end) = claim(&budget, "192.0.2.1:50000");
    assert!(single.force(30));
    let mut many = Vec::new();
    for port in 1..=8 {
        let (mut one, end) = claim(&budget, &format!("192.0.2.2:{port}"));
        // For the last one there is no room: one of them has to end.
        assert!(one.force(10) || port == 8);
        many.push((one, end));
    }
    let ended =
        |many: &[(Claim, CancellationToken)]| many.iter().filter(|(_, end)| end.is_cancelled()).count();
    assert_eq!((ended(&many), single_end.is_cancelled()), (1, false));
}

/// When many connections wait for much memory, they give up soon, and one that wants little proceeds.
#[tokio::test(start_paused = true)]
async fn those_who_want_much_do_not_keep_others_waiting() {
    let budget = MemoryBudget::new(1_000);
    let mut waiting = Vec::new();
    for number in 0..90 {
        let (mut one, end) = claim(&budget, &format!("192.0.2.1:{number}"));
        assert!(one.set(11).await);
        waiting.push(tokio::spawn(async move {
            let works = async {
                let is_allowed = one.set(50).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                is_allowed
            };
            let is_done = tokio::select! {
                biased;
                () = end.cancelled() => false,
                is_allowed = works => is_allowed,
            };
            drop(one);
            is_done
        }));
    }
    tokio::task::yield_now().await;
    let (mut little, little_end) = claim(&budget, "192.0.2.1:50000");
    let since = Instant::now();
    assert!(little.set(11).await && !little_end.is_cancelled());
    assert!(since.elapsed() < Duration::from_millis(300), "{:?}", since.elapsed());
    for one in waiting {
        one.await.unwrap();
    }
    assert_eq!(budget.used(), 11);
}

/// Each holder is looked at, and there may be very many.
#[test]
fn looking_for_the_largest_takes_a_small_part_of_the_time() {
    let look = Duration::from_millis(2);
    let budget = MemoryBudget::new(100);
    let asked = Arc::new(AtomicUsize::new(0));
    let (many, _) = claim(&budget, "many");
    let count = asked.clone();
    let mut many = many.weighed_by(move || {
        count.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(look);
        200
    });
    many.force(200);
    let since = std::time::Instant::now();
    while since.elapsed() < Duration::from_millis(200) {
        assert!(!budget.makes_room(1));
    }
    let looking = look * asked.load(Ordering::Relaxed) as u32;
    assert!(looking < since.elapsed() / 3, "{looking:?} of {:?}", since.elapsed());
}

/// Thousands of waiting claims must not use up the processor by checking again.
#[tokio::test(start_paused = true)]
async fn the_more_wait_the_later_each_looks_again() {
    let budget = MemoryBudget::new(100_000);
    let (mut all, _) = claim(&budget, "192.0.2.1:1");
    assert!(all.set(100_000).await);
    // The large claim is ended but does not release its memory yet.
    let waiting: Vec<_> = (0..5_000)
        .map(|port| {
            let (mut one, _) = claim(&budget, &format!("192.0.2.2:{port}"));
            tokio::spawn(async move { one.set(1).await })
        })
        .collect();
    let pace = Waiting::new(&budget).pace();
    assert_eq!(pace, PACE + PACE_OF_EACH);
    while budget.0.waiting.load(Ordering::Relaxed) < waiting.len() {
        tokio::task::yield_now().await;
    }
    let pace = Waiting::new(&budget).pace();
    assert!(pace > Duration::from_millis(25) && pace < Duration::from_millis(40), "{pace:?}");
    let since = Instant::now();
    drop(all);
    for one in waiting {
        assert!(one.await.unwrap());
    }
    assert!(since.elapsed() < Duration::from_millis(100), "{:?}", since.elapsed());
    assert_eq!(budget.0.waiting.load(Ordering::Relaxed), 0);
}

#[test]
fn what_changes_by_itself_is_asked_for() {
    let budget = MemoryBudget::new(100);
    let (changing, changing_end) = claim(&budget, "changing");
    let weight = Arc::new(AtomicUsize::new(1));
    let asked = weight.clone();
    let mut changing = changing.weighed_by(move || asked.load(Ordering::Relaxed));
    let (mut other, other_end) = claim(&budget, "other");
    assert!(changing.force(20) && other.force(50));
    weight.store(90, Ordering::Relaxed);
    assert!(other.force(85), "it is not the largest");
    assert!(changing_end.is_cancelled() && !other_end.is_cancelled());
}

#[test]
fn whoever_owes_most_answers_is_ended_when_there_is_no_room_for_them() {
    let budget = MemoryBudget::new(100 << 10);
    let peer = |name: &str| {
        let send_queue =
            SendQueue::with_memory_counter(crate::HighWaterMark::bytes(1), budget.queues().clone());
        let end = CancellationToken::new();
        (send_queue, UnreadAnswers::new(&budget, name, end.clone()), end)
    };
    let (polite, rude) = (peer("192.0.2.1:1"), peer("192.0.2.2:1"));
    let queue_answer = |(send_queue, answers, _): &(SendQueue, UnreadAnswers, CancellationToken),
                        bytes: usize| {
        assert!(send_queue.push_urgent(&vec![0; bytes], 64 << 10));
        answers.note(send_queue);
    };
    queue_answer(&polite, 100);
    assert!(budget.0.holders().by_id.is_empty(), "it is not worth a look");
    let mut large = budget.claim("192.0.2.3:1", "a message", CancellationToken::new());
    assert!(large.force(50 << 10));
    queue_answer(&rude, 60 << 10);
    assert!(rude.2.is_cancelled() && !polite.2.is_cancelled(), "it holds more than the message");
    drop((rude, polite, large));
    assert_eq!(budget.used(), 0);
}

#[test]
fn handshakes_that_grow_are_refused_before_newcomers_are() {
    let budget = MemoryBudget::new(1 << 20);
    let mut long: Vec<_> = (0..8).map(|_| HandshakeClaim::new(&budget)).collect();
    assert!(long.iter_mut().all(|one| one.allow(UNCLAIMED)) && budget.used() == 0, "that is counted already");
    let grown = long.iter_mut().filter_map(|one| one.allow(64 << 10).then_some(())).count();
    assert_eq!((grown, budget.used()), (2, 256 << 10), "a quarter is taken");
    assert!(budget.claim_fixed(CONNECTION).is_ok(), "a newcomer gets in");
    assert!(long[0].allow(20 << 10) && long[2].allow(24 << 10), "what one gives back another one gets");
    assert_eq!(budget.used(), (128 + 48 + 48) << 10);
    drop(long);
    assert_eq!((budget.used(), budget.0.fixed.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn queues_count_too_and_a_fixed_claim_needs_room() {
    let budget = MemoryBudget::new(100);
    let slab_charge = crate::link::send_queue::SlabCharge::new(budget.queues(), 90);
    assert!(budget.claim_fixed(20).is_err());
    let fixed = budget.claim_fixed(10).expect("room");
    assert_eq!(budget.used(), 100);
    drop((slab_charge, fixed));
    assert_eq!(budget.used(), 0);
    let half = budget.claim_fixed(50).expect("room");
    assert!(budget.claim_fixed(1).is_err(), "the other half is for others");
    drop(half);
    assert!(budget.claim_fixed(50).is_ok());
}
