//! Checks that written messages are sent again until they are known to have arrived, in order and before all
//! others.

use futures::FutureExt;
use proptest::prelude::*;

use super::super::tests::{Brittle, message};
use super::super::{Amount, HighWaterMark, UNCOPIED_MIN, Writer};
use super::*;
use xmsg_zmtp::Frames;

/// Messages of two frames are marked; those of one frame are not sent again.
fn again(frames: &RedeliveredFrames) -> Option<RedeliveredFrames> {
    let [_, data] = &frames[..] else { return None };
    Some([Bytes::from_static(b"again"), data.clone()].into_iter().collect())
}

fn send_queue(mark: usize) -> SendQueue {
    let send_queue = SendQueue::recycling(HighWaterMark::bytes(mark));
    send_queue.retain(again);
    send_queue
}

/// Pushes messages with these numbers. Long ones are not copied.
fn push(send_queue: &SendQueue, numbers: std::ops::Range<u32>, len: usize) {
    for number in numbers {
        send_queue.try_push(&message(number, len)).unwrap();
    }
}

/// Writes `limit` bytes before the connection breaks. Returns the numbers of the messages that arrived whole,
/// and whether they were marked.
fn write(send_queue: &SendQueue, limit: usize) -> Vec<(u32, bool)> {
    let mut stream = Brittle { limit, piece: 1000, taken: vec![] };
    let run = Writer::new(send_queue).run(&mut stream).now_or_never();
    assert!(run.is_none_or(|ended| ended.is_err()), "the queue is open");
    send_queue.note_break();
    let (mut wire, mut arrived) = (Bytes::from(stream.taken), Vec::new());
    loop {
        let mut frames = Frames::of(wire.clone());
        let Some(topic) = frames.next() else { return arrived };
        if topic == "request" {
            let _ = wire.split_to(encoded_len(&[topic]));
            continue;
        }
        let Some(data) = frames.next() else { return arrived };
        arrived.push((u32::from_be_bytes(data[..4].try_into().unwrap()), topic == "again"));
        let _ = wire.split_to(encoded_len(&[topic, data]));
    }
}

fn numbered(numbers: std::ops::Range<u32>, again: bool) -> Vec<(u32, bool)> {
    numbers.map(|number| (number, again)).collect()
}

/// A connection may exist, with its writer waiting, before retaining is enabled for the queue.
#[test]
fn a_writer_that_waits_already_keeps_what_it_writes() {
    let send_queue = SendQueue::recycling(HighWaterMark::bytes(1 << 20));
    let mut stream = Brittle { limit: usize::MAX, piece: 1000, taken: vec![] };
    let mut writer = Writer::new(&send_queue);
    assert!(writer.run(&mut stream).now_or_never().is_none(), "there is nothing to write");
    send_queue.retain(again);
    push(&send_queue, 0..10, 10);
    assert!(writer.run(&mut stream).now_or_never().is_none(), "the queue is open");
    assert_eq!(send_queue.gone(), 10);
    drop(writer);
    send_queue.note_break();
    assert_eq!((send_queue.queued().messages, send_queue.gone()), (10, 0));
    assert_eq!(write(&send_queue, usize::MAX), numbered(0..10, true));
}

#[test]
fn what_has_not_arrived_is_written_again_and_before_what_is_new() {
    for len in [10, 2 * UNCOPIED_MIN] {
        let send_queue = send_queue(1 << 20);
        push(&send_queue, 0..10, len);
        assert_eq!(write(&send_queue, usize::MAX), numbered(0..10, false), "{len}");
        assert_eq!((send_queue.queued().messages, send_queue.gone()), (10, 0));
        push(&send_queue, 10..12, len);
        let second = [numbered(0..10, true), numbered(10..12, false)].concat();
        assert_eq!(write(&send_queue, usize::MAX), second, "{len}");
        assert_eq!(write(&send_queue, usize::MAX), numbered(0..12, true), "{len}");
        assert_eq!((send_queue.accepted(), send_queue.broken_at()), (12, 0));
    }
}

/// The confirmation of a peer may be faster than the writer, which notes what it has written once the call
/// that wrote it returns.
#[test]
fn what_is_known_to_have_arrived_before_it_is_noted_as_written_is_not_kept() {
    for len in [10, 2 * UNCOPIED_MIN] {
        let send_queue = send_queue(1 << 20);
        push(&send_queue, 0..10, len);
        send_queue.arrived(6);
        assert_eq!(write(&send_queue, usize::MAX), numbered(0..10, false), "{len}");
        assert_eq!(write(&send_queue, usize::MAX), numbered(6..10, true), "{len}");
        // The messages are being sent once more, and the confirmation is as fast again.
        send_queue.arrived(10);
        assert_eq!(write(&send_queue, usize::MAX), numbered(6..10, true), "{len}");
        push(&send_queue, 10..11, len);
        assert_eq!(write(&send_queue, usize::MAX), numbered(10..11, false), "{len}");
    }
}

#[test]
fn what_has_arrived_is_forgotten_to_the_message() {
    for len in [10, 2 * UNCOPIED_MIN] {
        let send_queue = send_queue(1 << 20);
        push(&send_queue, 0..10, len);
        let mut stream = Brittle { limit: usize::MAX, piece: 1000, taken: vec![] };
        assert!(Writer::new(&send_queue).run(&mut stream).now_or_never().is_none());
        send_queue.arrived(4);
        send_queue.note_break();
        assert_eq!(send_queue.queued().messages, 6);
        let mut stream = Brittle { limit: usize::MAX, piece: 1000, taken: vec![] };
        assert!(Writer::new(&send_queue).run(&mut stream).now_or_never().is_none());
        send_queue.all_arrived();
        send_queue.note_break();
        assert_eq!(
            (send_queue.queued(), send_queue.gone(), send_queue.state().retained_bytes()),
            (Amount::default(), 10, 0)
        );
    }
}

#[test]
fn requests_do_not_come_again_and_stay_counted_as_written() {
    let send_queue = send_queue(1 << 20);
    let request = [Bytes::from_static(b"request")];
    push(&send_queue, 0..2, 10);
    send_queue.push_past_mark(&request).unwrap();
    push(&send_queue, 2..3, 10);
    assert_eq!(write(&send_queue, usize::MAX), numbered(0..3, false));
    assert_eq!((send_queue.accepted(), send_queue.gone(), send_queue.written_or_discarded()), (4, 1, 4));
    send_queue.push_past_mark(&request).unwrap();
    let mut stream = Brittle { limit: usize::MAX, piece: 1000, taken: vec![] };
    assert!(Writer::new(&send_queue).run(&mut stream).now_or_never().is_none());
    assert_eq!((send_queue.accepted(), send_queue.gone()), (5, 5));
    // This is what the answer to the second request confirms.
    send_queue.arrived(4);
    send_queue.note_break();
    assert_eq!(send_queue.queued(), Amount::default());
}

#[test]
fn what_is_kept_counts_for_the_mark_and_requests_find_room() {
    let send_queue = send_queue(1000);
    let due = send_queue.state().retained.as_ref().unwrap().due.clone();
    let mut count = 0;
    while send_queue.try_push(&message(count, 90)).is_ok() {
        count += 1;
    }
    assert_eq!(count, 10);
    let waiting = message(count, 90);
    let mut waiting = Box::pin(send_queue.push(&waiting));
    assert!((&mut waiting).now_or_never().is_none());
    assert!(due.notified().now_or_never().is_none(), "nothing was written");
    let mut stream = Brittle { limit: usize::MAX, piece: 1000, taken: vec![] };
    let mut writer = Writer::new(&send_queue);
    assert!(writer.run(&mut stream).now_or_never().is_none());
    assert_eq!(send_queue.queued().messages, 0);
    assert!((&mut waiting).now_or_never().is_none(), "it is kept");
    assert!(due.notified().now_or_never().is_some(), "it is time to ask");
    send_queue.push_past_mark(&[Bytes::from_static(b"request")]).unwrap();
    assert_eq!(send_queue.queued().messages, 1);
    send_queue.arrived(5);
    assert_eq!(waiting.now_or_never(), Some(Ok(())));
}

proptest! {
    /// Connections break at any byte, with confirmations in between. Every message arrives, in an order that
    /// each connection keeps without a gap, and only messages that were written before are marked.
    #[test]
    fn nothing_is_lost_however_connections_break(
        steps in prop::collection::vec((0_u32..6, prop::sample::select(vec![4_usize, 60, 3000, UNCOPIED_MIN + 1]), 0_usize..60_000, any::<bool>()), 1..20),
    ) {
        let send_queue = send_queue(64 << 20);
        let (mut pushed, mut arrived, mut confirmed) = (0, 0, 0);
        for (count, len, limit, confirms) in steps {
            push(&send_queue, pushed..pushed + count, len);
            pushed += count;
            let came = write(&send_queue, limit);
            prop_assert_eq!(send_queue.accepted(), u64::from(pushed));
            if let Some((first, _)) = came.first() {
                prop_assert_eq!(*first, confirmed, "it goes on where it is not confirmed");
            }
            for ((number, marked), expected) in came.iter().zip(confirmed..) {
                prop_assert_eq!(*number, expected);
                prop_assert!(*marked || expected >= arrived, "{} came before", expected);
            }
            arrived = arrived.max(confirmed + came.len() as u32);
            if confirms {
                // A later connection takes all messages, and they are confirmed before it ends.
                let mut stream = Brittle { limit: usize::MAX, piece: 1000, taken: vec![] };
                prop_assert!(Writer::new(&send_queue).run(&mut stream).now_or_never().is_none());
                send_queue.arrived(u64::from(pushed));
                (confirmed, arrived) = (pushed, pushed);
                prop_assert_eq!(send_queue.state().retained_bytes(), 0);
            }
        }
    }
}
