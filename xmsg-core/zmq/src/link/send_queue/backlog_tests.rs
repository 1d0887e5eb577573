//! Corner cases of making room. What applies to every policy is tested with the proxy's deliveries.

use std::sync::Arc;

use futures::FutureExt;

use super::super::{SlabCharge, Writer};
use super::*;
use xmsg_zmtp::{Frames, encode_message};

/// The length of each message below, in bytes.
const LEN: usize = 100;
/// What such a message takes in a conflated queue, in bytes.
const ALONE: usize = LEN + OWN_CHUNK;

fn message(topic: &str, number: u8) -> Bytes {
    let mut wire = BytesMut::new();
    encode_message(&mut wire, &[topic.as_bytes(), &vec![number; LEN - 4 - topic.len()]]);
    wire.freeze()
}

fn send_queue(bytes: usize) -> (SendQueue, HighWaterMark) {
    let mark = HighWaterMark::bytes(bytes);
    (SendQueue::with_memory_counter(mark, Arc::default()), mark)
}

/// Returns the topics and numbers of the messages in these chunks, one after another.
fn contents(chunks: &[Chunk]) -> Vec<(String, u8)> {
    let mut contents = Vec::new();
    for chunk in chunks {
        let mut wire = chunk.bytes.clone();
        while !wire.is_empty() {
            let frames: Vec<_> = Frames::of(wire.split_to(message_len(&wire))).collect();
            contents.push((String::from_utf8(frames[0].to_vec()).unwrap(), frames[1][0]));
        }
    }
    contents
}

/// Takes what the writer would take at a time, and counts it as written.
fn take(send_queue: &SendQueue) -> Vec<(String, u8)> {
    let mut state = send_queue.state();
    state.flush_tail();
    let (mut chunks, mut taken) = (Vec::new(), 0);
    while let Some(chunk) = state.next_chunk(taken) {
        taken += chunk.bytes.len();
        state.discharge(&chunk);
        chunks.push(chunk);
    }
    contents(&chunks)
}

fn of<const N: usize>(expected: [(&str, u8); N]) -> Vec<(String, u8)> {
    expected.map(|(topic, number)| (topic.to_owned(), number)).to_vec()
}

fn push(send_queue: &SendQueue, keep: Keep, message: &[u8]) {
    let mut queue = send_queue.lock();
    queue.set_keep(keep, send_queue.mark());
    queue.push_copy(message, 1);
}

#[test]
fn a_topic_that_always_has_a_newer_message_has_its_turn() {
    let (send_queue, mark) = send_queue(12 * ALONE);
    send_queue.lock().conflate();
    let mut hot = 0;
    for round in 0..20 {
        // In every round, more topics are updated than the writer takes messages.
        let mut queue = send_queue.lock();
        for topic in ["a", "b", "c", "d", "hot"] {
            assert!(queue.push_newest(&message(topic, round), mark).accepted);
        }
        drop(queue);
        let taken = take(&send_queue);
        assert_eq!(taken.len(), 3, "a quarter of the mark");
        hot += taken.iter().filter(|(topic, _)| topic == "hot").count();
    }
    assert!(hot >= 5, "{hot} times");
}

#[test]
fn the_older_of_two_goes_before_the_only_one_of_its_topic() {
    let (send_queue, mark) = send_queue(8 * ALONE);
    send_queue.lock().conflate();
    for topic in ["x", "y", "only", "a", "b", "c", "d"] {
        send_queue.lock().push_newest(&message(topic, 0), mark);
    }
    assert_eq!(take(&send_queue), of([("x", 0), ("y", 0)]));
    // The queued messages are in the present round now, so newer ones are added behind them. That of `d` is
    // one too many.
    let mut outdated = Amount::default();
    for topic in ["a", "b", "c", "d"] {
        let taken = send_queue.lock().push_newest(&message(topic, 1), mark);
        assert_eq!((taken.accepted, taken.evicted), (true, Amount::default()));
        outdated += taken.outdated;
    }
    assert_eq!(outdated, Amount::new(4, 4 * LEN));
    assert_eq!(send_queue.queued(), Amount::new(5, 5 * ALONE));
    let all: Vec<_> = (0..3).flat_map(|_| take(&send_queue)).collect();
    assert_eq!(all, of([("only", 0), ("a", 1), ("b", 1), ("c", 1), ("d", 1)]));
    assert_eq!(send_queue.queued(), Amount::default());
}

#[test]
fn no_push_goes_over_all_that_waits() {
    const MANY: usize = 1000;
    let (send_queue, mark) = send_queue(MANY * ALONE);
    send_queue.lock().conflate();
    let mut topics = (0..).map(|number: u32| number.to_string());
    for topic in topics.by_ref().take(MANY) {
        assert!(send_queue.lock().push_newest(&message(&topic, 0), mark).accepted);
    }
    for _ in 0..50 {
        assert!(!take(&send_queue).is_empty());
        // The writer has taken its portion, and the queue fills up to its mark again: first with new topics,
        // then with a topic that is queued already.
        for _ in 0..MANY / 2 {
            let numbers = send_queue.state().backlog.chunks;
            let topic = topics.next().unwrap();
            let is_full = send_queue.queued().bytes as usize + ALONE > mark.bytes;
            let taken = send_queue.lock().push_newest(&message(&topic, 0), mark);
            assert_eq!(taken.evicted.messages, u64::from(is_full));
            assert!(taken.accepted);
            // Every chunk that is touched gets a new number.
            assert_eq!(send_queue.state().backlog.chunks, numbers + 1);
        }
        let numbers = send_queue.state().backlog.chunks;
        let first =
            send_queue.state().chunks.iter().map(|chunk| topic_of(&chunk.bytes).to_vec()).next().unwrap();
        let first = String::from_utf8(first).unwrap();
        let taken = send_queue.lock().push_newest(&message(&first, 1), mark);
        assert_eq!((taken.outdated.messages, taken.evicted.messages), (1, 0), "its own older one goes");
        assert_eq!(send_queue.state().backlog.chunks, numbers + 1);
    }
}

#[test]
fn of_a_topic_at_most_one_message_waits_when_there_is_no_room() {
    let (send_queue, mark) = send_queue(8 * ALONE);
    send_queue.lock().conflate();
    for round in 0..100_u8 {
        for topic in ["a", "b", "c", "d", "e", "f"] {
            let taken = send_queue.lock().push_newest(&message(topic, round), mark);
            assert_eq!((taken.accepted, taken.evicted), (true, Amount::default()), "no topic is lost");
        }
        let waiting = contents(send_queue.state().chunks.make_contiguous());
        for topic in ["a", "b", "c", "d", "e", "f"] {
            let numbers: Vec<_> =
                waiting.iter().filter(|(of, _)| of == topic).map(|(_, number)| *number).collect();
            assert_eq!(numbers.last(), Some(&round), "the newest waits");
            assert!(numbers.len() <= 2, "{waiting:?}");
        }
        if round % 3 == 0 {
            take(&send_queue);
        }
        let state = send_queue.state();
        let superseded = state.backlog.index.as_ref().unwrap().superseded.len();
        assert!(superseded <= 16, "{superseded} are noted");
    }
}

#[test]
fn messages_that_the_writer_puts_back_may_go() {
    let (send_queue, mark) = send_queue(4 * LEN);
    let memory_counter = Arc::default();
    for number in 0..2 {
        let mut queue = send_queue.lock();
        queue.set_keep(Keep::WhileRoom, mark);
        queue.push_slice(message("t", number), 1, &SlabCharge::new(&memory_counter, LEN));
    }
    {
        let mut writer = Writer::new(&send_queue);
        // The writer writes one byte.
        let (mut stream, _peer) = tokio::io::duplex(1);
        let run = std::pin::pin!(writer.run(&mut stream));
        assert!(run.now_or_never().is_none());
        assert_eq!(send_queue.lock().make_room(Amount::new(4, 4 * LEN), mark), Amount::new(1, LEN));
    }
    assert_eq!(send_queue.queued(), Amount::new(1, LEN));
    assert_eq!(send_queue.lock().make_room(Amount::new(4, 4 * LEN), mark), Amount::new(1, LEN));
    assert_eq!((send_queue.queued(), memory_counter.bytes()), (Amount::default(), 0));
}

#[test]
fn a_slab_is_charged_until_the_last_part_of_its_slice_has_gone() {
    let (send_queue, _) = send_queue(1 << 20);
    let mark = HighWaterMark { bytes: 1 << 20, messages: 3 };
    let memory_counter = Arc::default();
    let wire: Vec<u8> = (0..3).flat_map(|number| message("t", number)).collect();
    {
        let mut queue = send_queue.lock();
        queue.set_keep(Keep::WhileRoom, mark);
        queue.push_slice(wire.into(), 3, &SlabCharge::new(&memory_counter, 4096));
        assert_eq!(queue.make_room(Amount::new(2, 1), mark), Amount::new(2, 2 * LEN));
        assert_eq!(queue.queued(), Amount::new(1, 4096));
        assert_eq!(queue.make_room(Amount::new(3, 1), mark), Amount::new(1, LEN));
    }
    assert_eq!((send_queue.queued(), memory_counter.bytes()), (Amount::default(), 0));
}

#[test]
fn what_may_go_shares_no_memory_with_what_stays() {
    let (send_queue, _) = send_queue(1 << 20);
    // The chunk has capacity for more than the first five messages.
    for (keep, count) in [(Keep::Always, 5), (Keep::WhileRoom, 1), (Keep::Newest, 1)] {
        for number in 0..count {
            push(&send_queue, keep, &message("t", number));
        }
    }
    let mut state = send_queue.state();
    assert_eq!(state.chunks.len(), 2, "and the tail");
    assert!(state.chunks.iter().all(|chunk| chunk.bytes.is_unique()));
    assert_eq!(state.queued.bytes as usize, 7 * LEN + 2 * APART);
    state.flush_tail();
    let charged: usize = state.chunks.iter().map(|chunk| chunk.charge).sum();
    assert_eq!(charged, 7 * LEN + 2 * APART);
}

#[test]
fn what_has_gone_leaves_little_behind() {
    const MANY: u32 = 5000;
    let (send_queue, mark) = send_queue(20 * ALONE);
    // No message is dropped from in front of this one.
    push(&send_queue, Keep::Always, &message("first", 0));
    send_queue.lock().conflate();
    let check = |send_queue: &SendQueue| {
        let state = send_queue.state();
        assert!(state.chunks.len() < 3 * LITTER, "{} chunks", state.chunks.len());
        let entries = state.backlog.index.as_ref().unwrap().entries.len();
        assert!(entries < 3 * LITTER, "{entries} entries");
        assert!(state.queued.bytes as usize <= mark.bytes);
    };
    for number in 0..MANY {
        // First the same topics are used again and again, then a new one each time.
        let topic = if number < MANY / 2 { number % 3 } else { number };
        assert!(send_queue.lock().push_newest(&message(&topic.to_string(), 0), mark).accepted);
        check(&send_queue);
    }
    // Now the writer takes messages as well.
    for number in 0..MANY {
        send_queue.lock().push_newest(&message(&number.to_string(), 0), mark);
        send_queue.lock().push_newest(&message(&number.to_string(), 1), mark);
        take(&send_queue);
        send_queue.lock().push_newest(&message("stays", 0), mark);
        check(&send_queue);
    }
}
