//! Tests of the receive queue.

use std::collections::HashMap;

use super::*;
use xmsg_zmtp::encode_message;

fn wire(texts: &[&str]) -> Bytes {
    let mut out = bytes::BytesMut::new();
    for text in texts {
        encode_message(&mut out, &[text]);
    }
    out.freeze()
}

fn peer_queue<'a>(receive_queue: &'a ReceiveQueue, peer: &'static str, address: &str) -> PeerQueue<'a> {
    receive_queue.of_peer(&Bytes::from_static(peer.as_bytes()), &Source::of(&format!("192.0.2.{address}:1")))
}

#[tokio::test]
async fn each_address_and_each_peer_of_it_has_its_turn() {
    let receive_queue = ReceiveQueue::new(20 + BATCH_OVERHEAD);
    let next = || std::future::poll_fn(|cx| receive_queue.poll_next(cx));
    let [flood, other, neighbour, stranger] =
        [("flood", "1"), ("other", "1"), ("neighbour", "1"), ("stranger", "2")]
            .map(|(peer, address)| peer_queue(&receive_queue, peer, address));
    let nobody = Bytes::new();
    flood.push(&nobody, wire(&["f1", "f2", "f3", "f4", "f5"]), None).await;
    let mut more = Box::pin(flood.push(&nobody, wire(&["f6"]), None));
    assert!(futures::poll!(&mut more).is_pending(), "the queue is full");
    // Nothing is queued for the other peers, so they need not wait for room.
    other.push(&nobody, wire(&["o1", "o2"]), None).await;
    stranger.push(&nobody, wire(&["s1", "s2"]), None).await;
    let mut second = Box::pin(other.push(&nobody, wire(&["o3"]), None));
    assert!(futures::poll!(&mut second).is_pending());
    neighbour.push(&nobody, wire(&["n1"]), None).await;
    for expected in ["f1", "s1", "o1", "s2", "n1", "f2", "o2", "f3", "f4", "f5"] {
        assert_eq!(next().await.unwrap().1, Multipart::from([expected]));
    }
    second.await;
    more.await;
    for expected in ["o3", "f6"] {
        assert_eq!(next().await.unwrap().1, Multipart::from([expected]));
    }
    flood.push(&nobody, wire(&["last"]), None).await;
    drop((flood, other, neighbour, stranger));
    assert_eq!(next().await.unwrap().1, Multipart::from(["last"]));
    let state = receive_queue.state();
    assert!(state.waiting.numbers.is_empty() && state.groups.numbers.is_empty() && state.turns.is_empty());
    assert_eq!(state.bytes, 0);
}

#[tokio::test]
async fn what_a_peer_sends_over_one_connection_after_another_stays_in_order() {
    let receive_queue = ReceiveQueue::new(100 + BATCH_OVERHEAD);
    let next = || std::future::poll_fn(|cx| receive_queue.poll_next(cx));
    let nobody = Bytes::new();
    let old = peer_queue(&receive_queue, "me", "1");
    old.push(&nobody, wire(&["1", "2"]), None).await;
    let new = peer_queue(&receive_queue, "me", "2");
    new.push(&nobody, wire(&["3"]), None).await;
    drop(old);
    for expected in ["1", "2", "3"] {
        assert_eq!(next().await.unwrap().1, Multipart::from([expected]));
    }
}

#[tokio::test]
async fn messages_come_in_order_and_a_full_queue_waits() {
    let receive_queue = ReceiveQueue::new(8 + BATCH_OVERHEAD);
    let next = || std::future::poll_fn(|cx| receive_queue.poll_next(cx));
    let nobody = Bytes::new();
    let queue = peer_queue(&receive_queue, "somebody", "1");
    queue.push(&nobody, wire(&["aa", "bb"]), None).await;
    let mut second = std::pin::pin!(queue.push(&nobody, wire(&["cc"]), None));
    assert!(futures::poll!(&mut second).is_pending(), "8 of 8 bytes are taken");
    for expected in ["aa", "bb"] {
        assert_eq!(next().await.unwrap().1, Multipart::from([expected]));
    }
    second.await;
    receive_queue.close();
    assert_eq!(next().await.unwrap().1, Multipart::from(["cc"]));
    assert_eq!(next().await, None);
}

#[tokio::test]
async fn what_was_read_is_in_the_queue_when_its_reader_is_ended() {
    let receive_queue = ReceiveQueue::new(4 + BATCH_OVERHEAD);
    let next = || std::future::poll_fn(|cx| receive_queue.poll_next(cx));
    let nobody = Bytes::new();
    let queue = peer_queue(&receive_queue, "somebody", "1");
    queue.push(&nobody, wire(&["aa"]), None).await;
    {
        let mut push = std::pin::pin!(queue.push(&nobody, wire(&["bb"]), None));
        assert!(futures::poll!(&mut push).is_pending());
        receive_queue.close();
    }
    assert_eq!(receive_queue.waiting(), [wire(&["aa"]), wire(&["bb"])]);
    // What arrives after the end is dropped.
    queue.push(&nobody, wire(&["cc"]), None).await;
    for expected in ["aa", "bb"] {
        assert_eq!(next().await.unwrap().1, Multipart::from([expected]));
    }
    assert_eq!(next().await, None);
}

#[tokio::test]
async fn a_batch_counts_until_the_next_one_is_asked_for() {
    let receive_queue = ReceiveQueue::new(8 + BATCH_OVERHEAD);
    let next = || std::future::poll_fn(|cx| receive_queue.poll_batch(cx));
    let nobody = Bytes::new();
    let queue = peer_queue(&receive_queue, "somebody", "1");
    queue.push(&nobody, wire(&["aa", "bb"]), None).await;
    let mut second = std::pin::pin!(queue.push(&nobody, wire(&["cc"]), None));
    assert!(futures::poll!(&mut second).is_pending(), "8 of 8 bytes are taken");
    assert_eq!(next().await, Some((wire(&["aa", "bb"]), 8)));
    assert!(futures::poll!(&mut second).is_pending(), "they are being taken apart");
    assert!(futures::poll!(std::pin::pin!(next())).is_pending());
    second.await;
    assert_eq!(next().await, Some((wire(&["cc"]), 4)));
    receive_queue.close();
    assert_eq!(next().await, None);
}

fn counted(receive_queue: &ReceiveQueue) -> usize {
    receive_queue.state().bytes
}

/// The memory that is kept alive by what is queued. Each slab counts once.
fn kept_alive(receive_queue: &ReceiveQueue) -> usize {
    let state = receive_queue.state();
    let mut slabs = HashMap::new();
    let lines = state.waiting.things.iter().flatten().flat_map(|waiting| &waiting.batches);
    let of = |batch: &Batch| match batch.slab {
        Some(slab) => slabs.insert((slab.connection, slab.serial), batch.memory).map_or(batch.memory, |_| 0),
        None => batch.memory,
    };
    state.first.iter().chain(lines).map(of).sum()
}

#[tokio::test]
async fn slabs_count_as_long_as_a_slice_of_them_waits() {
    const SLAB: usize = 128 << 10;
    let receive_queue = ReceiveQueue::new(8 * SLAB);
    let next = || std::future::poll_fn(|cx| receive_queue.poll_next(cx));
    let nobody = Bytes::new();
    let [queue, again] = [(); 2].map(|()| peer_queue(&receive_queue, "somebody", "1"));
    let short = || {
        let mut out = bytes::BytesMut::new();
        encode_message(&mut out, &[vec![7; SLAB / 16]]);
        out.freeze()
    };
    let slab = |serial| Some(Slab { serial, size: SLAB });
    // There is one short message in each slab.
    for serial in 0..8 {
        assert!(futures::poll!(std::pin::pin!(queue.push(&nobody, short(), slab(serial)))).is_ready());
    }
    let mut waits = Box::pin(queue.push(&nobody, short(), slab(8)));
    assert!(futures::poll!(&mut waits).is_pending(), "eight slabs are kept alive, and that is the mark");
    drop(waits);
    assert_eq!(
        (counted(&receive_queue), kept_alive(&receive_queue)),
        (9 * SLAB, 9 * SLAB),
        "what was read is there"
    );
    for left in (0..9).rev() {
        next().await.unwrap();
        assert_eq!(counted(&receive_queue), left * SLAB);
    }

    // Many messages in one slab count once.
    for _ in 0..16 {
        assert!(futures::poll!(std::pin::pin!(queue.push(&nobody, short(), slab(9)))).is_ready());
    }
    assert_eq!(counted(&receive_queue), SLAB);
    // Each connection counts its slabs: one number identifies another slab on another connection.
    again.push(&nobody, short(), slab(9)).await;
    assert_eq!(counted(&receive_queue), 2 * SLAB);
    for _ in 0..15 {
        next().await.unwrap();
    }
    assert_eq!(counted(&receive_queue), 2 * SLAB, "one of each is still there");
    next().await.unwrap();
    next().await.unwrap();
    assert_eq!(counted(&receive_queue), 0);

    // What is put back keeps no more memory alive than its own length.
    let large = Bytes::from(vec![0; SLAB]).slice(..10);
    receive_queue.put_back([large].into_iter());
    assert_eq!((counted(&receive_queue), receive_queue.waiting()[0].len()), (10, 10));
}

/// However messages arrive, and however they are taken, never is more memory kept alive than is counted.
#[tokio::test]
async fn what_is_kept_alive_is_never_more_than_the_mark_and_the_last_read() {
    use crate::link::buffer::ReceiveBuffer;
    const MARK: usize = 256 << 10;
    const LARGEST: usize = 128 << 10;
    let mut seed = 1_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let receive_queue = ReceiveQueue::new(MARK);
    let next = || std::future::poll_fn(|cx| receive_queue.poll_batch(cx));
    let nobody = Bytes::new();
    let peers = ["1", "2", "3"].map(|address| peer_queue(&receive_queue, "somebody", address));
    let mut buffers = [(); 3].map(|()| ReceiveBuffer::default());
    let (mut most, mut full) = (0, 0);
    for _ in 0..20_000 {
        // A task that never runs out of messages has to yield.
        tokio::task::yield_now().await;
        let peer = random(3);
        let (buffer, queue) = (&mut buffers[peer], &peers[peer]);
        let mut bytes = bytes::BytesMut::new();
        encode_message(&mut bytes, &[vec![7; random(9_000)]]);
        let mut stream = &bytes[..];
        while !stream.is_empty() {
            buffer.read(&mut stream, 0).await.unwrap();
        }
        let slab = buffer.slab();
        let wire = buffer.input.split().freeze();
        if random(4) > 0 {
            let push = std::pin::pin!(queue.push(&nobody, wire, Some(slab)));
            assert!(futures::poll!(push).is_ready(), "there is room");
        }
        let (counts, alive) = (counted(&receive_queue), kept_alive(&receive_queue));
        assert!(alive <= counts, "{alive} bytes are kept alive, and {counts} count");
        most = most.max(counts);
        full += usize::from(counts >= MARK);
        while counted(&receive_queue) >= MARK || (random(3) == 0 && !receive_queue.waiting().is_empty()) {
            if futures::poll!(std::pin::pin!(next())).is_pending() {
                break;
            }
        }
    }
    assert!(most <= MARK + LARGEST, "{most} bytes");
    assert!(full > 100 && most > MARK, "the mark was reached {full} times");
}

/// What waits is claimed in the budget, and given back when it is taken. A connection that is ended while
/// memory is scarce takes what it had read with it.
#[tokio::test]
async fn what_waits_is_claimed_and_lost_with_its_connection_if_memory_is_scarce() {
    const MIB: usize = 1 << 20;
    let memory = MemoryBudget::new(8 * MIB);
    let receive_queue = ReceiveQueue::new(MIB / 2).claiming(&memory);
    let next = || std::future::poll_fn(|cx| receive_queue.poll_next(cx));
    let large = |len: usize| {
        let mut out = bytes::BytesMut::new();
        encode_message(&mut out, &[vec![7; len]]);
        encode_message(&mut out, &["another one"]);
        out.freeze()
    };
    let nobody = Bytes::new();
    let first = peer_queue(&receive_queue, "first", "1");
    first.push(&nobody, large(MIB), None).await;
    assert_eq!((memory.claimed(), receive_queue.waiting().len()), (MIB, 1));

    // Half of the memory is free, so nothing is lost.
    let second = peer_queue(&receive_queue, "second", "2");
    assert!(futures::poll!(Box::pin(second.push(&nobody, large(2 * MIB), None))).is_pending());
    assert_eq!((memory.claimed(), receive_queue.waiting().len(), second.lost()), (3 * MIB, 2, 0));
    // Now it is not any more.
    let third = peer_queue(&receive_queue, "third", "3");
    assert!(futures::poll!(Box::pin(third.push(&nobody, large(2 * MIB), None))).is_pending());
    assert_eq!((memory.claimed(), receive_queue.waiting().len(), third.lost()), (3 * MIB, 2, 2));
    // What a peer sends that we connect to is never lost.
    let mut chosen = peer_queue(&receive_queue, "chosen", "4");
    chosen.choose();
    assert!(futures::poll!(Box::pin(chosen.push(&nobody, large(3 * MIB), None))).is_pending());
    assert_eq!((memory.claimed(), receive_queue.waiting().len(), chosen.lost()), (6 * MIB, 3, 0));

    for _ in 0..6 {
        next().await.unwrap();
    }
    assert_eq!(memory.claimed(), 0);
    // What was received when the socket was closed can still be taken.
    first.push(&nobody, large(MIB), None).await;
    let mut waits = Box::pin(second.push(&nobody, large(7 * MIB), None));
    assert!(futures::poll!(&mut waits).is_pending());
    receive_queue.close();
    drop(waits);
    assert_eq!((receive_queue.waiting().len(), second.lost()), (2, 0));
    drop((first, second, third, chosen));
    drop(receive_queue);
    assert_eq!(memory.claimed(), 0);
}

/// A send queue counts the frames that it holds, and not the slab in which they lie.
#[tokio::test]
async fn what_is_passed_on_keeps_little_more_alive_than_its_length() {
    use crate::link::send_queue::{HighWaterMark, SendQueue};
    const KIB: usize = 1 << 10;
    let memory = MemoryBudget::default();
    let receive_queue = ReceiveQueue::new(64 << 20).claiming(&memory);
    let nobody = Bytes::new();
    let queue = peer_queue(&receive_queue, "somebody", "1");
    let mut serial = 0;
    // Whether a message of this length still lies in its slab when it is received.
    let mut is_shared = async |len: usize, size: usize| {
        let mut slab = bytes::BytesMut::with_capacity(size);
        encode_message(&mut slab, &[vec![1; len / 2], vec![2; len / 2]]);
        slab.resize(size, 0);
        let slab = slab.freeze();
        let end = walk_message(&slab, 0, |_| {}).unwrap();
        serial += 1;
        queue.push(&nobody, slab.slice(..end), Some(Slab { serial, size })).await;
        let (_, message) = std::future::poll_fn(|cx| receive_queue.poll_next(cx)).await.unwrap();
        assert_eq!(message, Multipart::from([vec![1; len / 2], vec![2; len / 2]]));
        message.frames().iter().all(|frame| slab.as_ptr_range().contains(&frame.as_ptr()))
    };
    assert!(!is_shared(9 * KIB, 2048 * KIB).await, "it would keep 200 times its length alive");
    assert!(!is_shared(100 * KIB, 2048 * KIB).await);
    assert!(is_shared(200 * KIB, 2048 * KIB).await && is_shared(9 * KIB, 128 * KIB).await);
    assert!(is_shared(KIB, 128 * KIB).await, "a send queue copies it anyway");

    let slow = SendQueue::with_memory_counter(HighWaterMark::bytes(64 << 20), memory.queues().clone());
    slow.try_push(&[Bytes::from(vec![7; LITTLE_WAITS])]).unwrap();
    assert!(!is_shared(200 * KIB, 2048 * KIB).await && !is_shared(9 * KIB, 128 * KIB).await);
    assert!(is_shared(1100 * KIB, 2048 * KIB).await && is_shared(70 * KIB, 128 * KIB).await);
    slow.clear();
    assert!(is_shared(9 * KIB, 128 * KIB).await, "nothing waits any more");
}
