//! What a watcher is shown, and that everything is counted.

use xmsg_zmtp::encode_message;

use super::*;
use crate::config::Config;

/// The bytes and the places of messages with these frames.
fn wire(messages: &[&[&[u8]]]) -> (Bytes, Vec<Span>) {
    let (mut wire, mut spans) = (bytes::BytesMut::new(), Vec::new());
    for frames in messages {
        let start = wire.len();
        encode_message(&mut wire, frames);
        let first_len = frames[0].len();
        let first_start = start + if first_len > 255 { 9 } else { 2 };
        spans.push(Span { start, end: wire.len(), first_start, first_len, frames: frames.len() });
    }
    (wire.freeze(), spans)
}

fn run(first: usize, end: usize) -> Run {
    Run { first, end, rule: crate::policy::RuleId::default() }
}

fn counts(observer: &Observer) -> (u64, u64) {
    (observer.messages.load(Ordering::Relaxed), observer.shown.load(Ordering::Relaxed))
}

#[test]
fn it_is_shown_what_was_delivered_to_it_and_no_slab_is_kept() {
    let (observer, mut samples) = Observer::new(10);
    let long = vec![7; DATA_MAX + 1];
    let (wire, spans) =
        wire(&[&[b"a", b"m", b"1"], &[b"b", b"", b"2"], &[b"a", b"3"], &[b"a", b"", &long], &[b"a"]]);
    observer.pass(&wire, &spans, &[run(0, 1), run(2, 5)]);
    let mut shown = Vec::new();
    while let Ok(sample) = samples.try_recv() {
        observer.taken(&sample);
        let Sample { topic, meta, data, length, .. } = sample;
        shown.push((topic, meta, data, length));
    }
    let bytes = Bytes::copy_from_slice;
    assert_eq!(
        shown,
        [
            (bytes(b"a"), bytes(b"m"), bytes(b"1"), 1),
            // A plain publisher sends no metadata.
            (bytes(b"a"), Bytes::new(), bytes(b"3"), 1),
            (bytes(b"a"), Bytes::new(), bytes(&long[..DATA_MAX]), DATA_MAX + 1),
        ]
    );
    // What is no message of xMsg is left out.
    assert_eq!(counts(&observer), (4, 3));
    assert_eq!(lock(&observer.allowance).waiting, 0);
    assert!(wire.is_unique(), "nothing that is shown lies in what was read");
}

/// Each frame may be as long as the proxy lets messages be.
#[test]
fn messages_with_long_topics_or_metadata_are_left_out_and_others_are_not() {
    let (observer, mut samples) = Observer::new(10);
    let (half, rest) = (vec![1; REST_MAX / 2], vec![1; REST_MAX / 2 + 1]);
    let whole = vec![1; REST_MAX + 1];
    let (wire, spans) =
        wire(&[&[&whole, b"", b"1"], &[&half, &rest, b"2"], &[&half, &half, b"3"], &[b"a", b"", b"4"]]);
    observer.pass(&wire, &spans, &[run(0, 4)]);
    let shown: Vec<_> = std::iter::from_fn(|| samples.try_recv().ok()).map(|sample| sample.data).collect();
    assert_eq!(shown, ["3", "4"]);
    assert_eq!(counts(&observer), (4, 2));
}

#[test]
fn a_second_has_room_for_so_much() {
    let start = now();
    let mut allowance = Allowance::new(3, start);
    assert!(allowance.take(10, start) && allowance.take(0, start) && allowance.take(1, start));
    assert!(!allowance.take(0, start), "three were asked for");
    let next = later(start, Duration::from_secs(1));
    assert!(allowance.take(1, next));

    let mut allowance = Allowance::new(1000, start);
    let mut take = |bytes: usize, now: Instant| {
        let may = allowance.take(bytes, now);
        // It is read at once.
        allowance.waiting = 0;
        may
    };
    for _ in 0..BYTES_PER_S / (16 << 10) {
        assert!(take(16 << 10, start));
    }
    assert!(!take(1, start), "so many bytes are shown in a second");
    assert!(take(1, next));

    // Whoever does not read is shown no more than waits.
    let mut allowance = Allowance::new(1000, start);
    assert!(allowance.take(WAITING_BYTES - 1, start) && !allowance.take(2, start));
    assert!(allowance.take(1, start) && !allowance.take(1, next));
}

/// A part holds 4096 messages, and whoever watches reads none of them.
#[test]
fn whoever_does_not_read_makes_nobody_wait_and_everything_is_counted() {
    let (observer, samples) = Observer::new(1000);
    let short: &[&[u8]] = &[b"a", b"", b"x"];
    let (wire, spans) = wire(&vec![short; 4096]);
    for _ in 0..3 {
        observer.pass(&wire, &spans, &[run(0, 4096)]);
    }
    assert_eq!(counts(&observer), (3 * 4096, WAITING as u64));
    // Whoever has left is passed nothing, for as long as an ingress remembers it.
    drop(samples);
    observer.pass(&wire, &spans, &[run(0, 4096)]);
    assert_eq!(counts(&observer), (4 * 4096, WAITING as u64));
}

#[tokio::test]
async fn a_watcher_is_in_the_table_and_in_no_list_and_leaves_nothing_behind() {
    let switch = Switch::start(Config::default());
    let memory = switch.memory().used();
    let watching = switch.observe(Bytes::from_static(b"a"), 1, Watcher::Anybody).await.unwrap();
    let mut prefixes = Vec::new();
    switch.prefixes(|prefix, subscribers| prefixes.push((prefix, subscribers)));
    assert_eq!((prefixes, switch.subscribers().len()), (vec![(b"a".to_vec(), 1)], 0));
    assert!(switch.memory().used() >= memory + CLAIMED);
    assert_eq!(watching.counts(), (0, 0));
    assert_eq!(switch.confirm(b"a", None), 0, "it asked for no confirmation, and nobody reads its queue");
    drop(watching);
    // Changes are applied in their order.
    xmsg_tests::until("the end of the subscription", || switch.subscriptions() == 0).await;
    assert!(switch.memory().used() < memory + CLAIMED);

    let mut watching = switch.observe(Bytes::new(), 1, Watcher::Trusted).await.unwrap();
    switch.stop(Duration::ZERO).await;
    assert!(watching.next().await.is_none());
}

#[tokio::test]
async fn what_is_no_prefix_of_a_topic_is_refused() {
    let switch = Switch::start(Config::default());
    let most = Config::default().limits.subscription_len;
    let kind = async |prefix: Vec<u8>| {
        switch.observe(prefix.into(), 1, Watcher::Trusted).await.map(drop).map_err(|error| error.kind())
    };
    assert_eq!(kind(vec![b'a'; most]).await, Ok(()));
    assert_eq!(kind(vec![b'a'; most + 1]).await, Err(ErrorKind::TooLarge));
    let token = Token { proxy: 1, link: 2, connection: 3 }.topic().to_vec();
    assert_eq!(kind(token).await, Err(ErrorKind::InvalidTopic));
    switch.abort();
}

/// Nobody is disconnected so that somebody can watch.
#[tokio::test]
async fn there_is_no_watching_without_memory() {
    let memory = xmsg_zmq::memory_budget::MemoryBudget::new(CLAIMED + CLAIMED / 2);
    let switch = Switch::start(Config { memory, ..Config::default() });
    let watch = || switch.observe(Bytes::new(), 1, Watcher::Trusted);
    let first = watch().await.unwrap();
    assert_eq!(watch().await.map(drop).map_err(|error| error.kind()), Err(ErrorKind::Full));
    drop(first);
    drop(watch().await.unwrap());
    switch.abort();
}
