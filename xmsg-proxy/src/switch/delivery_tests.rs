//! Under every policy: only whole messages go, each is counted, the order stays, the marks are kept.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::FutureExt;
use proptest::prelude::*;
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;
use xmsg_zmq::link::send_queue::{SendQueue, Writer};
use xmsg_zmtp::{Frames, Limits, Scanner, encode_message, encoded_len, whole_messages_within};

use super::*;
use crate::policy::TopicPolicy;
use crate::switch::authorization::Authorization;

/// Of the data of a message: its number, then filling that depends on it.
const LEN_MIN: usize = 8;
const LEN_MAX: usize = 600;

/// A peer that reads when it is allowed to.
#[derive(Debug, Default)]
struct Peer {
    allowance: AtomicUsize,
    received: std::sync::Mutex<Vec<u8>>,
}

impl Peer {
    fn messages(&self) -> Vec<(Bytes, u32)> {
        let mut wire = Bytes::copy_from_slice(&self.received.lock().unwrap());
        let mut messages = Vec::new();
        while !wire.is_empty() {
            let frames: Vec<_> = Frames::of(wire.clone()).take(2).collect();
            let [topic, data] = &frames[..] else { panic!("a whole message") };
            let number = u32::from_be_bytes(data[..4].try_into().unwrap());
            assert!(data[4..].iter().all(|byte| *byte == number as u8), "as it was sent");
            messages.push((topic.clone(), number));
            let _ = wire.split_to(encoded_len(&frames));
        }
        messages
    }
}

impl AsyncWrite for &Peer {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let len = bytes.len().min(self.allowance.load(Ordering::Relaxed));
        if len == 0 {
            return Poll::Pending;
        }
        self.allowance.fetch_sub(len, Ordering::Relaxed);
        self.received.lock().unwrap().extend_from_slice(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A batch: topic and length of the data of each message.
    Publish(Vec<(u8, usize)>),
    /// So many bytes are read.
    Read(usize),
}

#[derive(Clone, Debug)]
struct Plan {
    policy: Policy,
    /// For topic 3.
    own: Option<Policy>,
    mark: HighWaterMark,
    /// Batches may be queued without a copy.
    slices: bool,
    steps: Vec<Step>,
}

fn plan(policies: &'static [Policy], own: &'static [Policy]) -> impl Strategy<Value = Plan> {
    let message = (0_u8..4, LEN_MIN..LEN_MAX);
    let step = prop_oneof![
        3 => prop::collection::vec(message, 1..30).prop_map(Step::Publish),
        2 => (1_usize..4000).prop_map(Step::Read),
    ];
    (
        prop::sample::select(policies),
        prop::option::of(prop::sample::select(own)),
        prop_oneof![100_usize..3000, 3000_usize..20_000],
        prop_oneof![3 => Just(usize::MAX), 1 => 1_usize..40],
        any::<bool>(),
        prop::collection::vec(step, 1..40),
    )
        .prop_map(|(policy, own, bytes, messages, slices, steps)| {
            let mark = HighWaterMark { bytes, messages };
            Plan { policy, own, mark, slices, steps }
        })
}

struct Outcome {
    drops: Drops,
    pushed: Vec<(Bytes, u32)>,
    received: Vec<(Bytes, u32)>,
    is_cut_off: bool,
}

/// Carries it out and checks what goes for every policy.
fn carry_out(plan: &Plan) -> Outcome {
    let memory = MemoryBudget::default();
    let send_queue = SendQueue::with_memory_counter(plan.mark, memory.queues().clone());
    let subscriber =
        ConnectedSubscriber::new(1, "peer", send_queue, Authorization::new(&Arc::default(), None));
    let own: Vec<_> = plan.own.map(|policy| TopicPolicy::new("t3", policy)).into_iter().collect();
    let policies = Policies::new(Rule { policy: plan.policy, mark: plan.mark }, &own);
    let delivery = Delivery { memory: memory.clone(), connected_peers: Arc::default(), ceiling: usize::MAX };
    let peer = Peer::default();
    let (mut pushed, mut left_out) = (Vec::new(), 0);
    let mut largest_batch = 0;
    {
        let mut stream = &peer;
        let mut writer = Writer::new(&subscriber.send_queue);
        let mut writing = std::pin::pin!(writer.run(&mut stream));
        let mut read = |len: usize| {
            peer.allowance.fetch_add(len, Ordering::Relaxed);
            writing.as_mut().now_or_never().is_some()
        };
        let check = |pushed: usize, waiting: usize, largest_batch: usize| {
            let queued = subscriber.send_queue.queued();
            let accounted = subscriber.send_queue.written().messages
                + queued.messages
                + subscriber.drops().total().messages;
            assert_eq!(accounted as usize + waiting, pushed, "everything is counted");
            assert!(queued.messages as usize <= plan.mark.messages, "{queued:?}");
            let slack = if plan.slices { largest_batch } else { 0 };
            assert!(
                queued.bytes as usize <= plan.mark.bytes + slack || queued.messages == 1,
                "{queued:?} at a mark of {}",
                plan.mark.bytes
            );
        };
        for step in &plan.steps {
            match step {
                Step::Read(len) => drop(read(*len)),
                Step::Publish(batch) => {
                    let mut wire = bytes::BytesMut::new();
                    for (topic, len) in batch {
                        let number = pushed.len() as u32;
                        let mut data = number.to_be_bytes().to_vec();
                        data.resize(*len, number as u8);
                        let topic = Bytes::from(format!("t{topic}"));
                        encode_message(&mut wire, &[&topic[..], &data]);
                        pushed.push((topic, number));
                    }
                    let wire = wire.freeze();
                    largest_batch = largest_batch.max(wire.len());
                    let mut spans = Vec::new();
                    Scanner::new(&Limits::default()).scan(&wire, &mut spans).unwrap();
                    let slab_size = if plan.slices { wire.len() } else { 1 << 20 };
                    let part = RoutedPart::new(&wire, &spans, slab_size, OnceLock::new());
                    let mut runs = part
                        .divide(&[Run { first: 0, end: spans.len(), rule: RuleId::default() }], &policies);
                    delivery.deliver(&subscriber, &mut runs, &part, &policies);
                    let in_all = |runs: &[Run]| runs.iter().map(|run| run.count()).sum::<usize>();
                    check(pushed.len(), in_all(&runs), largest_batch);
                    // A publisher that has to wait does so.
                    while !runs.is_empty() && !subscriber.disconnected.is_cancelled() {
                        read(100);
                        delivery.deliver(&subscriber, &mut runs, &part, &policies);
                        check(pushed.len(), in_all(&runs), largest_batch);
                    }
                }
            }
            check(pushed.len(), 0, largest_batch);
            if subscriber.disconnected.is_cancelled() {
                break;
            }
        }
        if !subscriber.disconnected.is_cancelled() {
            subscriber.send_queue.close();
            assert!(read(usize::MAX / 2), "all is written");
        }
    }
    let drops = subscriber.drops();
    let is_cut_off = subscriber.disconnected.is_cancelled();
    if is_cut_off {
        left_out = subscriber.send_queue.clear().messages as usize;
        // The last message may have been received in part.
        let mut received = peer.received.lock().unwrap();
        let whole = whole_messages_within([&received[..]], received.len()).1;
        received.truncate(whole);
    }
    let received = peer.messages();
    assert_eq!(subscriber.send_queue.queued(), Amount::default());
    assert_eq!(memory.used(), 0, "all memory is given back");
    assert!(received.is_sorted_by_key(|(_, number)| *number), "in order");
    assert_eq!(received.len() + drops.total().messages as usize + left_out, pushed.len());
    Outcome { drops, pushed, received, is_cut_off }
}

impl Plan {
    /// Whether the mark leaves room for so many messages besides what the writer may have taken, whatever
    /// their size.
    fn has_room_for(&self, messages: usize) -> bool {
        let largest = LEN_MAX + 16 + 2 * APART;
        !self.slices
            && self.mark.bytes / 4 >= largest
            && self.mark.bytes * 3 / 4 >= messages * largest
            && self.mark.messages >= 4
            && self.mark.messages / 4 * 3 >= messages
    }
}

/// The last message of each topic.
fn newest(messages: &[(Bytes, u32)]) -> BTreeMap<Bytes, u32> {
    messages.iter().cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn drop_newest_keeps_what_is_queued(plan in plan(&[Policy::DropNewest], &[Policy::DropNewest])) {
        let outcome = carry_out(&plan);
        prop_assert_eq!(outcome.drops.total(), outcome.drops.newest);
        prop_assert!(!outcome.is_cut_off);
    }

    #[test]
    fn drop_oldest_makes_room_for_the_newest(plan in plan(&[Policy::DropOldest], &[Policy::DropOldest])) {
        let outcome = carry_out(&plan);
        prop_assert_eq!(outcome.drops.conflated, Amount::default());
        if plan.has_room_for(1) {
            prop_assert_eq!(outcome.drops.newest, Amount::default());
            prop_assert_eq!(outcome.received.last(), outcome.pushed.last());
        }
    }

    #[test]
    fn conflate_ends_with_the_newest_of_each_topic(plan in plan(&[Policy::Conflate], &[Policy::Conflate])) {
        let outcome = carry_out(&plan);
        if plan.has_room_for(4) {
            prop_assert_eq!(outcome.drops.total(), outcome.drops.conflated);
            prop_assert_eq!(newest(&outcome.received), newest(&outcome.pushed));
        }
    }

    #[test]
    fn block_loses_nothing(plan in plan(&[Policy::BLOCK], &[Policy::BLOCK])) {
        let outcome = carry_out(&plan);
        prop_assert_eq!(outcome.received, outcome.pushed);
    }

    #[test]
    fn disconnect_ends_at_the_first_message_that_does_not_fit(plan in plan(&[Policy::Disconnect], &[Policy::Disconnect])) {
        let outcome = carry_out(&plan);
        prop_assert_eq!(outcome.is_cut_off, outcome.drops != Drops::default());
        prop_assert_eq!(&outcome.received[..], &outcome.pushed[..outcome.received.len()]);
    }

    /// Messages of one policy do not suffer from those of another in the same queue.
    #[test]
    fn what_may_not_go_stays_whatever_comes(
        plan in plan(&[Policy::DropOldest, Policy::Conflate, Policy::DropNewest, Policy::BLOCK], &[Policy::BLOCK])
    ) {
        let outcome = carry_out(&plan);
        let of_own = |messages: &[(Bytes, u32)]| {
            messages.iter().filter(|(topic, _)| topic == "t3").cloned().collect::<Vec<_>>()
        };
        if plan.own.is_some() {
            prop_assert_eq!(of_own(&outcome.received), of_own(&outcome.pushed));
        }
    }

    /// Whatever policies are mixed, the counts add up.
    #[test]
    fn policies_mix(plan in plan(&Policy::ALL, &Policy::ALL)) {
        let outcome = carry_out(&plan);
        prop_assert!(outcome.is_cut_off || outcome.pushed.len() >= outcome.received.len());
    }
}

/// What lies in one slab is charged once, or for what it is: not with a slab for every run.
#[test]
fn topics_in_turn_cost_no_more_than_they_are() {
    let mark = HighWaterMark::bytes(1 << 30);
    let policies =
        Policies::new(Rule { policy: Policy::BLOCK, mark }, &[TopicPolicy::new("b", Policy::DropOldest)]);
    let memory = MemoryBudget::default();
    let subscriber = ConnectedSubscriber::new(
        1,
        "peer",
        SendQueue::with_memory_counter(mark, memory.queues().clone()),
        Authorization::new(&Arc::default(), None),
    );
    let delivery = Delivery { memory: memory.clone(), connected_peers: Arc::default(), ceiling: usize::MAX };
    let mut wire = bytes::BytesMut::new();
    for number in 0..10 {
        encode_message(&mut wire, &[["a", "b"][number % 2].as_bytes(), &[0; 2000]]);
    }
    let wire = wire.freeze();
    let mut spans = Vec::new();
    Scanner::new(&Limits::default()).scan(&wire, &mut spans).unwrap();
    let part = RoutedPart::new(&wire, &spans, wire.len(), OnceLock::new());
    let mut runs = part.divide(&[Run { first: 0, end: 10, rule: RuleId::default() }], &policies);
    assert_eq!(runs.len(), 10);
    delivery.deliver(&subscriber, &mut runs, &part, &policies);
    let queued = subscriber.send_queue.queued().bytes as usize;
    assert!(queued <= 2 * wire.len() + 10 * APART, "{queued} bytes for {}", wire.len());
}

#[test]
fn only_a_subscriber_that_is_to_lose_nothing_has_its_publishers_wait_before_its_mark() {
    let mark = HighWaterMark::bytes(256 << 20);
    let mut wire = bytes::BytesMut::new();
    for _ in 0..10 {
        encode_message(&mut wire, &[&b"t"[..], &vec![0; 100_000]]);
    }
    let wire = wire.freeze();
    let mut spans = Vec::new();
    Scanner::new(&Limits::default()).scan(&wire, &mut spans).unwrap();
    for policy in Policy::ALL {
        let subscriber = ConnectedSubscriber::new(
            1,
            "peer",
            SendQueue::new(mark),
            Authorization::new(&Arc::default(), None),
        );
        let policies = Policies::new(Rule { policy, mark }, &[]);
        let delivery = Delivery {
            memory: MemoryBudget::default(),
            connected_peers: Arc::default(),
            ceiling: usize::MAX,
        };
        let deliver = || {
            let part = RoutedPart::new(&wire, &spans, wire.len(), OnceLock::new());
            let mut runs =
                part.divide(&[Run { first: 0, end: spans.len(), rule: RuleId::default() }], &policies);
            delivery.deliver(&subscriber, &mut runs, &part, &policies)
        };
        assert!(!deliver(), "a little is no reason to wait");
        assert_eq!((0..10).any(|_| deliver()), policy == Policy::BLOCK, "{policy:?}");
    }
}

#[test]
fn queues_keep_their_part_of_the_memory_whoever_holds_the_rest() {
    let memory = MemoryBudget::new(64 << 20);
    let delivery = Delivery { memory: memory.clone(), connected_peers: Arc::default(), ceiling: usize::MAX };
    let mark = HighWaterMark::bytes(256 << 20);
    assert_eq!(delivery.mark_within_budget(mark), mark, "nothing is held");
    // An attacker holds all but a little in messages that have come in part.
    let end = CancellationToken::new();
    let mut claim = memory.claim("192.0.2.7:4000", "messages that have come in part", end.clone());
    assert!(claim.force(63 << 20));
    // A queue of some hundred KiB is far from what is the queues' own.
    let _waits = SlabCharge::new(memory.queues(), 512 << 10);
    assert_eq!(delivery.mark_within_budget(mark), mark, "whoever waits for little loses nothing");
    assert!(end.is_cancelled(), "and whoever holds most is ended");
}
