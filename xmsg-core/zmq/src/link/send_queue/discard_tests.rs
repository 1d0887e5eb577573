//! Checks that exactly the messages that do not fit are discarded, and that all totals are right.

use std::sync::Arc;

use proptest::prelude::*;

use super::super::tests::Brittle;
use super::*;
use crate::link::send_queue::{HighWaterMark, MemoryCounter, Refused, Writer};
use xmsg_zmtp::{Frames, encoded_len};

/// Builds a message with this number, whose data have length `len`, of `frames` frames. Every fifth topic is
/// long.
fn message(number: u32, len: usize, frames: usize) -> Vec<Bytes> {
    let mut topic = format!("topic:{number}").into_bytes();
    if number.is_multiple_of(5) {
        topic.resize(9000, b'x');
    }
    let mut message = vec![Bytes::from(topic), number.to_be_bytes().to_vec().into()];
    let part = Bytes::from(vec![number as u8; len]);
    message.resize(frames.max(2), part);
    message
}

/// Writes until `limit` bytes were written or nothing is left. Returns the bytes.
fn write(send_queue: &SendQueue, limit: usize, encrypted: bool) -> Vec<u8> {
    let mut stream = Brittle { limit, piece: usize::MAX, taken: Vec::new() };
    let sealer = encrypted.then(|| {
        let [client, _] = crate::link::test_ciphers::connected();
        client.sealer
    });
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut writer = Writer::new(send_queue).sealed(sealer);
        let writing = writer.run(&mut stream);
        // The writer waits for more once the queue is empty.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(20), writing).await;
    });
    stream.taken
}

/// Returns the numbers of the whole messages in these bytes.
fn numbers(bytes: &[u8]) -> Vec<u32> {
    let wire = Bytes::copy_from_slice(bytes);
    let chunks = VecDeque::from([Chunk::copied(wire.clone(), 1)]);
    let mut numbers = Vec::new();
    each_message(
        &chunks,
        |place| place.wire.end <= wire.len(),
        |place| {
            let frame = Frames::of(wire.slice(place.wire)).nth(1).unwrap();
            numbers.push(u32::from_be_bytes(frame[..].try_into().unwrap()));
        },
    );
    numbers
}

fn limits(size: usize, frames: usize) -> MessageLimits {
    MessageLimits { size, frames }
}

#[test]
fn a_message_above_the_limits_is_refused_before_it_has_to_wait() {
    let send_queue = SendQueue::new(HighWaterMark::bytes(100)).with_limits(limits(60, 3));
    let fitting = message(1, 40, 2);
    send_queue.try_push(&fitting).unwrap();
    while send_queue.try_push(&fitting).is_ok() {}
    assert_eq!(send_queue.try_push(&fitting), Err(Refused::Full));
    assert_eq!(
        send_queue.try_push(&message(1, 40, 4)),
        Err(Refused::ExceedsLimits),
        "too large, and too many frames"
    );
    assert_eq!(send_queue.try_push(&message(1, 1, 4)), Err(Refused::ExceedsLimits), "too many frames");
    assert_eq!(send_queue.push_now(&message(1, 100, 3)), Some(Err(Refused::ExceedsLimits)));
    assert_eq!(send_queue.try_push(&[] as &[Bytes]), Err(Refused::ExceedsLimits), "no frame at all");
    send_queue.close();
    assert_eq!(send_queue.try_push(&fitting), Err(Refused::Closed));
}

#[test]
fn a_smaller_limit_throws_out_what_waits_and_names_it() {
    let send_queue = SendQueue::new(HighWaterMark::bytes(1 << 20));
    for (number, len) in [(1, 10), (2, 20_000), (3, 10), (5, 10), (6, 200)] {
        send_queue.try_push(&message(number, len, 3)).unwrap();
    }
    let gone = send_queue.limit(limits(150, 3));
    let named: Vec<_> = gone.iter().map(|gone| (gone.topic.len(), gone.size, gone.frames)).collect();
    let sizes = [(2, 20_000), (5, 10), (6, 200)].map(|(number, len)| encoded_len(&message(number, len, 3)));
    assert_eq!(named, [(7, sizes[0], 3), (NAME_MAX, sizes[1], 3), (7, sizes[2], 3)]);
    assert_eq!(gone[0].topic, "topic:2");
    assert_eq!(send_queue.discarded(), Amount::new(3, sizes.iter().sum()));
    assert_eq!(send_queue.limit(limits(200, 3)), [], "the rest is within any larger limit");
    assert_eq!(numbers(&write(&send_queue, usize::MAX, false)), [1, 3]);
    assert_eq!(send_queue.queued(), Amount::default());
}

#[tokio::test]
async fn room_that_a_smaller_limit_makes_is_given_to_those_who_wait() {
    let send_queue = Arc::new(SendQueue::new(HighWaterMark::bytes(1000)));
    send_queue.try_push(&message(1, 900, 3)).unwrap();
    let waiting = send_queue.clone();
    let waiting = tokio::spawn(async move { waiting.push(&message(2, 400, 3)).await });
    let flushed = send_queue.clone();
    let flushed = tokio::spawn(async move { flushed.flushed().await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished() && !flushed.is_finished());
    assert_eq!(send_queue.limit(limits(500, 3)).len(), 1);
    assert_eq!(waiting.await.unwrap(), Ok(()));
    flushed.await.unwrap();
}

#[test]
fn a_message_in_which_the_peer_ends_the_connection_twice_is_thrown_out() {
    for encrypted in [false, true] {
        let send_queue = SendQueue::new(HighWaterMark::bytes(1 << 20));
        for (number, len) in [(1, 10), (2, 100_000), (3, 10)] {
            send_queue.try_push(&message(number, len, 3)).unwrap();
        }
        write(&send_queue, 5_000, encrypted);
        assert!(send_queue.is_cut());
        assert_eq!(send_queue.cut_off(), None, "once may be a coincidence");
        assert_eq!(send_queue.cut_off(), None, "and is once");
        write(&send_queue, 70_000, encrypted);
        let gone = send_queue.cut_off().expect("that was the second time");
        assert_eq!((&gone.topic[..], gone.size), (&b"topic:2"[..], encoded_len(&message(2, 100_000, 3))));
        assert_eq!(send_queue.queued().messages, 1);
        if !encrypted {
            assert_eq!(numbers(&write(&send_queue, usize::MAX, false)), [3]);
        }
    }
}

#[test]
fn connections_that_end_in_different_messages_or_between_them_drop_nothing() {
    let send_queue = SendQueue::new(HighWaterMark::bytes(1 << 20));
    for number in [1, 2, 3] {
        send_queue.try_push(&message(number, 1000, 3)).unwrap();
    }
    let len = encoded_len(&message(1, 1000, 3));
    let mut taken = Vec::new();
    // The connections end inside the first message, inside the second one, at the end of the second one, and
    // inside the third one.
    for limit in [len / 2, len + len / 2, len, len - 1] {
        taken.extend(numbers(&write(&send_queue, limit, false)));
        assert_eq!(send_queue.cut_off(), None, "{limit} bytes");
    }
    // In this case, we or the network ended the connection.
    write(&send_queue, len / 2, false);
    taken.extend(numbers(&write(&send_queue, usize::MAX, false)));
    assert_eq!(send_queue.cut_off(), None, "all is written");
    assert_eq!(taken, [1, 2, 3]);
    assert_eq!(send_queue.discarded(), Amount::default());
}

proptest! {
    /// Whatever was written before, the messages above the new limits are discarded, and everything else
    /// stays in order.
    #[test]
    fn exactly_what_does_not_fit_goes(
        sizes in prop::collection::vec((prop_oneof![0_usize..300, 7000_usize..9000, 60_000_usize..70_000], 2_usize..6), 1..30),
        written in 0_usize..100_000,
        limit in prop_oneof![100_usize..2000, 8000_usize..80_000],
        frames in 2_usize..6,
        recycling in any::<bool>(),
    ) {
        let memory_counter = Arc::new(MemoryCounter::default());
        let mark = HighWaterMark::bytes(64 << 20);
        let send_queue = if recycling { SendQueue::recycling(mark) } else { SendQueue::with_memory_counter(mark, memory_counter.clone()) };
        for (number, (len, frames)) in sizes.iter().enumerate() {
            send_queue.try_push(&message(number as u32, *len, *frames)).unwrap();
        }
        let before = numbers(&write(&send_queue, written, false));
        let fits = limits(limit, frames);
        let expected: Vec<u32> = (before.len()..sizes.len()).map(|number| number as u32).filter(|number| {
            let (len, frames) = sizes[*number as usize];
            let message = message(*number, len, frames);
            fits.allow(encoded_len(&message), message.len())
        }).collect();
        let gone = send_queue.limit(fits);
        prop_assert_eq!(gone.len() + expected.len() + before.len(), sizes.len());
        let left: usize = expected.iter().map(|number| {
            let (len, frames) = sizes[*number as usize];
            encoded_len(&message(*number, len, frames))
        }).sum();
        prop_assert_eq!(send_queue.queued(), Amount::new(expected.len(), left));
        if !recycling {
            prop_assert_eq!(memory_counter.bytes(), left);
        }
        prop_assert_eq!(numbers(&write(&send_queue, usize::MAX, false)), expected);
        prop_assert_eq!(send_queue.queued(), Amount::default());
        prop_assert_eq!(memory_counter.bytes(), 0);
    }
}
