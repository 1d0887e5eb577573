//! The queue through broken connections: nothing is lost or duplicated, and every bound is kept.

use std::io;
use std::task::Poll;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::backpressure::{CATCH_UP, SOFT_LIMIT};
use super::*;
use crate::memory_budget::{MemoryBudget, PeerClaim};
use xmsg_zmtp::curve::{Opener, Sealer};
use xmsg_zmtp::{Frames, encode_message};

pub(super) fn message(number: u32, len: usize) -> [Bytes; 2] {
    let mut data = number.to_be_bytes().to_vec();
    data.resize(len.max(4), number as u8);
    [Bytes::from_static(b"topic"), data.into()]
}

/// A stream that accepts `limit` bytes, at most `piece` at a time, and then fails.
pub(super) struct Brittle {
    pub(super) limit: usize,
    pub(super) piece: usize,
    pub(super) taken: Vec<u8>,
}

impl AsyncWrite for Brittle {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let len = bytes.len().min(this.piece).min(this.limit - this.taken.len());
        if len == 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        this.taken.extend_from_slice(&bytes[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: std::pin::Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Returns the numbers of the whole messages in these bytes.
pub(super) fn numbers(bytes: &[u8]) -> Vec<u32> {
    let mut wire = Bytes::copy_from_slice(bytes);
    let mut numbers = Vec::new();
    loop {
        let frames: Vec<_> = Frames::of(wire.clone()).take(2).collect();
        let [topic, data] = &frames[..] else { return numbers };
        numbers.push(u32::from_be_bytes(data[..4].try_into().unwrap()));
        let _ = wire.split_to(encoded_len(&[topic, data]));
    }
}

/// Returns both ends of one encrypted direction.
fn cipher_pair() -> (Option<Sealer>, Option<Opener>) {
    let [client, server] = crate::link::test_ciphers::connected();
    (Some(client.sealer), Some(server.opener))
}

/// Decrypts these bytes as a peer would.
fn opened(opener: Option<Opener>, bytes: Vec<u8>) -> Vec<u8> {
    let Some(mut opener) = opener else { return bytes };
    let (mut boxed, mut plain) = (BytesMut::from(&bytes[..]), BytesMut::new());
    while opener.open(&mut boxed, &mut plain).unwrap() {}
    plain.to_vec()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn a_full_queue_says_so_and_room_wakes_whoever_waits() {
    block_on(async {
        let send_queue = Arc::new(SendQueue::new(HighWaterMark::bytes(100)));
        let mut accepted = 0;
        while send_queue.try_push(&message(accepted, 20)).is_ok() {
            accepted += 1;
        }
        assert_eq!(accepted, 3, "29 bytes each");
        let waiting = tokio::spawn({
            let send_queue = send_queue.clone();
            async move { send_queue.push(&message(3, 20)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let mut stream = Brittle { limit: 1000, piece: 7, taken: vec![] };
        let mut writer = Writer::new(&send_queue);
        let write = writer.run(&mut stream);
        let ((), result) = tokio::join!(
            async {
                assert_eq!(waiting.await.unwrap(), Ok(()));
                send_queue.close();
            },
            write
        );
        result.unwrap();
        assert_eq!(numbers(&stream.taken), [0, 1, 2, 3]);
    });
}

/// Pushes messages of length `len` until `enough` returns `true`.
async fn push_until(send_queue: &SendQueue, len: usize, enough: impl Fn() -> bool) -> u64 {
    let mut pushed = 0;
    while !enough() {
        send_queue.push(&message(0, len)).await.unwrap();
        pushed += 1;
    }
    pushed
}

#[tokio::test(start_paused = true)]
async fn whoever_sends_runs_ahead_of_the_writer_by_little() {
    for len in [100, 10_000, 1 << 20, 4 << 20] {
        let send_queue = SendQueue::recycling(HighWaterMark::bytes(64 << 20));
        // The other end reads as slowly as a writer may encounter.
        let (mut write, mut read) = tokio::io::duplex(64 << 10);
        let mut writer = Writer::new(&send_queue);
        let sending = async {
            let pushed = push_until(&send_queue, len, || {
                let most = SOFT_LIMIT.max(2 * len) + len + TURN + 100;
                assert!(send_queue.queued().bytes <= most as u64, "{len}: {:?}", send_queue.queued());
                send_queue.written().bytes > 16 << 20
            });
            let pushed = pushed.await;
            send_queue.close();
            pushed
        };
        let mut sink = tokio::io::sink();
        let reading = tokio::io::copy(&mut read, &mut sink);
        let writing = async {
            writer.run(&mut write).await.unwrap();
            drop(write);
        };
        let (pushed, (), read) = tokio::join!(sending, writing, reading);
        assert_eq!(send_queue.written(), Amount { messages: pushed, bytes: read.unwrap() });
    }
}

#[tokio::test(start_paused = true)]
async fn while_nobody_writes_a_queue_fills_to_its_mark_after_one_pause() {
    let send_queue = SendQueue::recycling(HighWaterMark::bytes(64 << 20));
    let fill = async || {
        let begun = tokio::time::Instant::now();
        push_until(&send_queue, 100_000, || send_queue.queued().bytes > 63 << 20).await;
        begun.elapsed()
    };
    let once = CATCH_UP..2 * CATCH_UP;
    assert!(once.contains(&fill().await));
    // Once the writer has caught up, senders wait for it again.
    let mut stream = Brittle { limit: 62 << 20, piece: 1 << 20, taken: vec![] };
    Writer::new(&send_queue).run(&mut stream).await.unwrap_err();
    assert!(once.contains(&fill().await));
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_the_writer_go_on_in_their_order_and_not_all_at_once() {
    let send_queue = Arc::new(SendQueue::new(HighWaterMark::bytes(64 << 20)));
    let piece = [Bytes::from(vec![0; 1 << 20])];
    while !send_queue.lock().is_far_ahead() {
        send_queue.try_push(&piece).unwrap();
    }
    let order = Arc::new(Mutex::new(Vec::new()));
    let wait = |number: usize| {
        let (send_queue, order, piece) = (send_queue.clone(), order.clone(), piece.clone());
        tokio::spawn(async move {
            send_queue.catch_up().await;
            order.lock().unwrap().push(number);
            for _ in 0..3 {
                send_queue.try_push(&piece).unwrap();
            }
        })
    };
    let waiting: Vec<_> = (0..6).map(wait).collect();
    tokio::task::yield_now().await;
    assert!(order.lock().unwrap().is_empty());
    waiting[2].abort();
    let (mut write, mut read) = tokio::io::duplex(1 << 20);
    let mut writer = Writer::new(&send_queue);
    let reading = async {
        let mut sink = tokio::io::sink();
        let mut most = 0;
        for _ in 0..64 {
            let mut some = (&mut read).take(256 << 10);
            tokio::io::copy(&mut some, &mut sink).await.unwrap();
            tokio::task::yield_now().await;
            most = most.max(send_queue.queued().bytes);
        }
        most
    };
    let most = tokio::select! {
        _ = writer.run(&mut write) => panic!("it was not closed"),
        most = reading => most,
    };
    assert_eq!(*order.lock().unwrap(), [0, 1, 3, 4, 5]);
    assert!(most < 12 << 20, "{most}: all at once would be 20 MiB");
}

#[tokio::test(start_paused = true)]
async fn those_who_give_up_waiting_for_the_writer_leave_nothing_behind() {
    let send_queue = SendQueue::new(HighWaterMark::bytes(64 << 20));
    while !send_queue.lock().is_far_ahead() {
        send_queue.try_push(&message(0, 1 << 20)).unwrap();
    }
    for _ in 0..1000 {
        let mut waiting = std::pin::pin!(send_queue.catch_up());
        assert!(futures::poll!(&mut waiting).is_pending());
    }
    assert!(!send_queue.state().pace.is_waited_for());
    let begun = tokio::time::Instant::now();
    assert!(send_queue.catch_up().await);
    assert!((CATCH_UP..2 * CATCH_UP).contains(&begun.elapsed()));
    assert!(!send_queue.catch_up().await, "not again at once");
}

#[tokio::test(start_paused = true)]
async fn a_closed_queue_has_nobody_wait_for_its_writer() {
    let send_queue = Arc::new(SendQueue::new(HighWaterMark::bytes(64 << 20)));
    while !send_queue.lock().is_far_ahead() {
        send_queue.try_push(&message(0, 1 << 20)).unwrap();
    }
    let mut waiting = std::pin::pin!(send_queue.catch_up());
    assert!(futures::poll!(&mut waiting).is_pending());
    let begun = tokio::time::Instant::now();
    send_queue.close();
    waiting.await;
    send_queue.catch_up().await;
    assert!(begun.elapsed().is_zero());
}

#[test]
fn a_message_above_the_mark_goes_alone() {
    let send_queue = SendQueue::new(HighWaterMark::bytes(100));
    assert_eq!(send_queue.try_push(&message(0, 5000)), Ok(()));
    assert_eq!(send_queue.try_push(&message(1, 1)), Err(Refused::Full));
}

#[test]
fn marks_in_messages_are_kept() {
    let send_queue = SendQueue::new(HighWaterMark { bytes: 1 << 20, messages: 2 });
    assert_eq!(send_queue.try_push(&message(0, 1)), Ok(()));
    assert_eq!(send_queue.try_push(&message(1, 1)), Ok(()));
    assert_eq!(send_queue.try_push(&message(2, 1)), Err(Refused::Full));
}

#[test]
fn a_closed_queue_refuses() {
    let send_queue = SendQueue::new(HighWaterMark::bytes(100));
    send_queue.close();
    assert_eq!(send_queue.try_push(&message(0, 1)), Err(Refused::Closed));
    assert_eq!(block_on(send_queue.push(&message(0, 1))), Err(Refused::Closed));
}

#[test]
fn slices_of_one_slab_are_charged_once_and_leave_the_memory_counter() {
    let memory_counter = Arc::new(MemoryCounter::default());
    let send_queue = SendQueue::with_memory_counter(HighWaterMark::bytes(1 << 20), memory_counter.clone());
    let slab_charge = SlabCharge::new(&memory_counter, 4096);
    let mut wire = BytesMut::new();
    encode_message(&mut wire, &message(0, 1000));
    let wire = wire.freeze();
    for _ in 0..3 {
        send_queue.lock().push_slice(wire.clone(), 1, &slab_charge);
    }
    assert_eq!(send_queue.queued(), Amount::new(3, 4096));
    drop(slab_charge);
    assert_eq!(memory_counter.bytes(), 4096);
    send_queue.lock().push_copy(&wire, 1);
    assert_eq!(memory_counter.bytes(), 4096 + wire.len());
    send_queue.close();
    let mut stream = Brittle { limit: 1 << 20, piece: 1000, taken: vec![] };
    block_on(Writer::new(&send_queue).run(&mut stream)).unwrap();
    assert_eq!((send_queue.queued(), memory_counter.bytes()), (Amount::default(), 0));
}

/// What was written leaves no entry in the memory counter, however it was queued.
#[test]
fn shared_bytes_leave_the_memory_counter_when_they_are_written() {
    let memory_counter = Arc::new(MemoryCounter::default());
    let send_queue = SendQueue::with_memory_counter(HighWaterMark::bytes(1 << 20), memory_counter.clone());
    let shared = Bytes::from_static(b"shared");
    for piece in [1, 4, 1000] {
        for _ in 0..10 {
            assert!(send_queue.push_shared(&shared, 1 << 20));
        }
        assert!(send_queue.queued().bytes as usize > 10 * shared.len() && memory_counter.bytes() > 0);
        let mut stream = Brittle { limit: 1 << 20, piece, taken: vec![] };
        let mut writer = Writer::new(&send_queue);
        let written = async {
            tokio::select! { biased; _ = writer.run(&mut stream) => {}, () = send_queue.flushed() => {} }
        };
        block_on(written);
        assert_eq!((send_queue.queued(), memory_counter.bytes()), (Amount::default(), 0));
    }
}

#[test]
fn urgent_bytes_go_first_but_never_into_a_message() {
    let send_queue = SendQueue::new(HighWaterMark::bytes(1 << 20));
    send_queue.try_push(&message(1, 10)).unwrap();
    assert!(send_queue.push_urgent(b"\x04\x05\x04PONG", 100));
    assert!(!send_queue.push_urgent(&[0; 100], 100), "bounded");
    send_queue.close();
    let mut stream = Brittle { limit: 1000, piece: 3, taken: vec![] };
    block_on(Writer::new(&send_queue).run(&mut stream)).unwrap();
    assert!(stream.taken.starts_with(b"\x04\x05\x04PONG\x01\x05topic"));
}

#[test]
fn urgent_bytes_are_sealed_too() {
    let send_queue = SendQueue::new(HighWaterMark::bytes(1 << 20));
    send_queue.try_push(&message(1, 10)).unwrap();
    assert!(send_queue.push_urgent(b"\x04\x05\x04PONG\x04\x05\x04PONG", 100));
    send_queue.close();
    let mut stream = Brittle { limit: 1000, piece: 3, taken: vec![] };
    let (sealer, opener) = cipher_pair();
    block_on(Writer::new(&send_queue).sealed(sealer).run(&mut stream)).unwrap();
    assert!(!stream.taken.windows(4).any(|bytes| bytes == b"PONG"));
    let plain = opened(opener, stream.taken);
    assert!(plain.starts_with(b"\x04\x05\x04PONG\x04\x05\x04PONG\x01\x05topic"));
}

/// A long message of short frames is encoded in one piece of memory, which must be released when it is
/// written.
#[test]
fn the_memory_of_a_long_message_of_short_frames_goes_with_it() {
    let send_queue = SendQueue::new(HighWaterMark::bytes(64 << 20));
    let frames: Vec<Bytes> = (0..500_u32).map(|number| vec![number as u8; 4000].into()).collect();
    send_queue.try_push(&frames).unwrap();
    {
        let state = send_queue.state();
        let chunk = &state.chunks.back().expect("it was flushed").bytes;
        assert!(chunk.is_unique(), "nothing else holds its memory");
    }
    send_queue.try_push(&message(1, 10)).unwrap();
    assert_eq!(send_queue.clear().messages, 2);
}

/// The box around a long message is as long as the message. It counts until it is written, and its memory is
/// not kept.
#[tokio::test]
async fn long_boxes_count_for_as_long_as_they_are_there() {
    const LEN: usize = 4 << 20;
    let budget = MemoryBudget::new(10 << 20);
    let send_queue = SendQueue::new(HighWaterMark::bytes(64 << 20));
    for number in 0..2 {
        send_queue.try_push(&message(number, LEN)).unwrap();
    }
    let (sealer, _) = cipher_pair();
    let claim = PeerClaim::new(&budget, "a subscriber", "boxes");
    let mut writer = Writer::new(&send_queue).sealed(sealer).claiming(Some(claim));
    let mut stuck = Brittle { limit: LEN / 2, piece: 1 << 20, taken: vec![] };
    writer.run(&mut stuck).await.unwrap_err();
    assert!((LEN..2 * LEN).contains(&budget.claimed()), "{}", budget.claimed());
    send_queue.close();
    let mut rest = Brittle { limit: usize::MAX, piece: 1 << 20, taken: vec![] };
    writer.run(&mut rest).await.unwrap();
    assert_eq!(budget.claimed(), 0);

    // Without room for it, the connection ends before there is a box.
    let send_queue = SendQueue::new(HighWaterMark::bytes(64 << 20));
    send_queue.try_push(&message(0, 12 << 20)).unwrap();
    let (sealer, _) = cipher_pair();
    let claim = PeerClaim::new(&budget, "a subscriber", "boxes");
    let mut writer = Writer::new(&send_queue).sealed(sealer).claiming(Some(claim));
    let error = writer.run(&mut rest).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
}

/// Thousands of subscribers that were busy once must not keep memory that is not counted.
#[tokio::test]
async fn a_queue_without_messages_keeps_little_memory() {
    for sealed in [false, true] {
        let send_queue = SendQueue::new(HighWaterMark::bytes(1 << 20));
        let sealer = if sealed { cipher_pair().0 } else { None };
        let mut writer = Writer::new(&send_queue).sealed(sealer);
        let mut stream = tokio::io::sink();
        let mut writing = Box::pin(writer.run(&mut stream));
        for number in 0..500 {
            send_queue.try_push(&message(number, 100)).unwrap();
        }
        assert!(send_queue.state().tail.capacity() > KEPT);
        assert!(futures::poll!(&mut writing).is_pending());
        assert_eq!(send_queue.queued(), Amount::default());
        assert_eq!(send_queue.state().tail.capacity(), 0, "much is given up");
        send_queue.try_push(&message(0, 100)).unwrap();
        assert!(futures::poll!(&mut writing).is_pending());
        assert!(send_queue.state().tail.capacity() <= KEPT);
        drop(writing);
    }
}

/// Answers that a peer causes and does not read are memory like any other.
#[tokio::test]
async fn urgent_bytes_count_until_they_are_written_or_dropped() {
    for sealed in [false, true] {
        let budget = MemoryBudget::default();
        let memory_counter = budget.queues();
        let send_queue =
            SendQueue::with_memory_counter(HighWaterMark::bytes(1 << 20), memory_counter.clone());
        let push = |times: usize| {
            for _ in 0..times {
                assert!(send_queue.push_urgent(b"\x04\x05\x04PONG", URGENT_MAX));
            }
        };
        push(5_000);
        assert!(
            (35_000..=URGENT_MAX * 2).contains(&memory_counter.bytes()),
            "{} bytes",
            memory_counter.bytes()
        );
        send_queue.clear_urgent();
        assert_eq!(memory_counter.bytes(), 0, "it is forgotten");

        let sealer = if sealed { cipher_pair().0 } else { None };
        let mut writer = Writer::new(&send_queue).sealed(sealer);
        push(5_000);
        let (mut stuck, _far) = tokio::io::duplex(100);
        assert!(futures::poll!(std::pin::pin!(writer.run(&mut stuck))).is_pending());
        drop(writer);
        assert_eq!(memory_counter.bytes(), 0, "the connection has ended");

        let sealer = if sealed { cipher_pair().0 } else { None };
        let mut writer = Writer::new(&send_queue).sealed(sealer);
        push(5_000);
        let (mut near, mut far) = tokio::io::duplex(100);
        let mut writing = Box::pin(writer.run(&mut near));
        assert!(futures::poll!(&mut writing).is_pending());
        assert!(memory_counter.bytes() >= 35_000, "it is being written: {} bytes", memory_counter.bytes());
        push(5_000);
        assert!(memory_counter.bytes() >= 70_000, "and more waits: {} bytes", memory_counter.bytes());
        let mut sink = tokio::io::sink();
        let reading = tokio::io::copy(&mut far, &mut sink);
        let all_read = async {
            while memory_counter.bytes() > 0 {
                tokio::task::yield_now().await;
            }
        };
        let all_read = tokio::time::timeout(std::time::Duration::from_secs(60), all_read);
        tokio::select! {
            _ = &mut writing => panic!("the queue is open"),
            _ = reading => panic!("the stream is open"),
            result = all_read => result.expect("it was written, and counts no more"),
        }
        drop(writing);
        drop(writer);
        push(10);
        drop(send_queue);
        assert_eq!(memory_counter.bytes(), 0);
    }
}

#[test]
fn urgent_bytes_wait_for_the_end_of_a_message_and_no_longer() {
    block_on(async {
        let send_queue = SendQueue::new(HighWaterMark::bytes(100 << 20));
        for number in 0..1000 {
            send_queue.try_push(&message(number, 20_000)).unwrap();
        }
        let mut stream = Brittle { limit: 30_000, piece: 7_000, taken: vec![] };
        {
            // A part is written up to the middle of a message; the writer has taken the rest.
            let mut writer = Writer::new(&send_queue);
            let mut half = Brittle { limit: 23_456, piece: 23_456, taken: vec![] };
            writer.run(&mut half).await.unwrap_err();
            send_queue.push_urgent(b"\x04\x05\x04PONG", 100);
            writer.urgent_waits = true;
            stream.limit = 200_000;
            writer.run(&mut stream).await.unwrap_err();
        }
        let at = stream.taken.windows(7).position(|bytes| bytes == b"\x04\x05\x04PONG").unwrap();
        assert!(
            at < 40_100,
            "after {at} bytes: at the end of the message that was begun, or of the one after it"
        );
    });
}

#[test]
fn a_message_of_many_large_frames_is_written_whole() {
    let send_queue = SendQueue::new(HighWaterMark::bytes(100 << 20));
    let frames = vec![Bytes::from(vec![7; 1 << 20]); 5];
    for _ in 0..3 {
        send_queue.try_push(&frames).unwrap();
    }
    send_queue.close();
    let mut stream = Brittle { limit: usize::MAX, piece: 300_000, taken: vec![] };
    block_on(Writer::new(&send_queue).run(&mut stream)).unwrap();
    assert_eq!(stream.taken.len(), 3 * encoded_len(&frames));
    assert_eq!(send_queue.queued(), Amount::default());
}

#[test]
fn whoever_waits_for_the_queue_to_be_flushed_is_told() {
    block_on(async {
        let send_queue = SendQueue::new(HighWaterMark::bytes(100 << 20));
        let shared = Bytes::from_static(b"\x04\x05\x04PONG");
        assert!(send_queue.push_shared(&shared, 10));
        assert!(!send_queue.push_shared(&shared, 10), "bounded");
        let mut flushed = std::pin::pin!(send_queue.flushed());
        assert!(futures::poll!(&mut flushed).is_pending());
        let mut stream = Brittle { limit: 1000, piece: 3, taken: vec![] };
        let mut writer = Writer::new(&send_queue);
        let mut run = std::pin::pin!(writer.run(&mut stream));
        assert!(futures::poll!(&mut run).is_pending());
        flushed.await;
    });
}

#[test]
fn a_held_queue_writes_urgent_bytes_only() {
    let send_queue = SendQueue::new(HighWaterMark::bytes(1 << 20));
    send_queue.try_push(&message(1, 10)).unwrap();
    send_queue.push_urgent(b"\x04\x05\x04PONG", 100);
    send_queue.hold(true);
    let mut stream = Brittle { limit: 1000, piece: 100, taken: vec![] };
    block_on(async {
        let mut writer = Writer::new(&send_queue);
        let run = writer.run(&mut stream);
        let mut run = std::pin::pin!(run);
        assert!(futures::poll!(&mut run).is_pending());
        send_queue.hold(false);
        send_queue.close();
        run.await.unwrap();
    });
    assert_eq!(numbers(&stream.taken[7..]), [1]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Through any number of broken connections, every message arrives whole, exactly once and in order, and
    /// the totals are right.
    #[test]
    fn nothing_is_lost_or_doubled_by_broken_connections(
        lens in prop::collection::vec(prop_oneof![4 => 4_usize..200, 1 => 8000_usize..20_000, 1 => 1_000_000_usize..1_400_000], 1..30),
        breaks in prop::collection::vec((0_usize..3_000_000, 1_usize..90_000), 0..8),
        copied in any::<bool>(),
        sealed in any::<bool>(),
    ) {
        let memory_counter = Arc::new(MemoryCounter::default());
        let send_queue = SendQueue::with_memory_counter(HighWaterMark::bytes(1 << 30), memory_counter.clone());
        for (number, len) in lens.iter().enumerate() {
            let frames = message(number as u32, *len);
            if copied && number % 2 == 0 {
                let mut wire = BytesMut::new();
                encode_message(&mut wire, &frames);
                send_queue.lock().push_copy(&wire, 1);
            } else {
                send_queue.try_push(&frames).unwrap();
            }
        }
        send_queue.close();
        let mut arrived = Vec::new();
        for (limit, piece) in breaks.into_iter().chain([(usize::MAX, 1 << 20)]) {
            let mut stream = Brittle { limit, piece, taken: vec![] };
            let (sealer, opener) = if sealed { cipher_pair() } else { (None, None) };
            let ended = block_on(Writer::new(&send_queue).sealed(sealer).run(&mut stream));
            arrived.extend(numbers(&opened(opener, stream.taken)));
            prop_assert_eq!(send_queue.queued().messages as usize, lens.len() - arrived.len());
            if ended.is_ok() {
                break;
            }
        }
        prop_assert_eq!(arrived, (0..lens.len() as u32).collect::<Vec<_>>());
        prop_assert_eq!(send_queue.queued(), Amount::default());
        prop_assert_eq!(send_queue.written().messages as usize, lens.len());
        prop_assert_eq!(memory_counter.bytes(), 0);
    }
}
