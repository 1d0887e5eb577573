//! PUB, SUB, XPUB and XSUB sockets connected to each other.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use xmsg_zmq::{
    Endpoint, ErrorKind, FromSubscriber, HighWaterMark, Multipart, Notices, Overflow, Publisher, SocketEvent,
    SocketOptions, Subscriber, XPub, XSub,
};

const PATIENCE: Duration = Duration::from_secs(60);

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("too late: {what}"))
}

fn anywhere() -> Endpoint {
    "tcp://127.0.0.1:0".parse().unwrap()
}

fn options<S>() -> SocketOptions<S> {
    SocketOptions::default().reconnect_min(Duration::from_millis(10))
}

async fn xpub(options: SocketOptions<XPub>) -> (XPub, Endpoint) {
    let socket = XPub::new(options);
    let endpoint = socket.bind(&anywhere()).await.unwrap();
    (socket, endpoint)
}

fn subscriber(endpoint: &Endpoint, prefixes: &[&'static str]) -> Subscriber {
    let subscriber = Subscriber::new(options());
    for prefix in prefixes {
        subscriber.subscribe(*prefix).unwrap();
    }
    subscriber.connect(endpoint.clone());
    subscriber
}

/// Returns the next subscription (`+`), end of a subscription (`-`), or message of any peer.
async fn seen(socket: &XPub) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    match within("what a subscriber says", socket.recv()).await.unwrap() {
        FromSubscriber::Subscribed { prefix, .. } => format!("+{}", text(&prefix)),
        FromSubscriber::Unsubscribed { prefix, .. } => format!("-{}", text(&prefix)),
        FromSubscriber::Message { message, .. } => {
            message.frames().iter().map(text).collect::<Vec<_>>().join(",")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_xpub_is_told_of_what_changes_the_whole_of_what_is_wanted() {
    let (socket, endpoint) = xpub(options()).await;
    let one = subscriber(&endpoint, &["a"]);
    assert_eq!(seen(&socket).await, "+a");
    let other = subscriber(&endpoint, &["a", "b"]);
    assert_eq!(seen(&socket).await, "+b");
    // The other subscriber still wants `a`.
    other.unsubscribe("a");
    one.subscribe("c").unwrap();
    assert_eq!(seen(&socket).await, "+c");
    drop(one);
    let mut ends = [seen(&socket).await, seen(&socket).await];
    ends.sort();
    assert_eq!(ends, ["-a", "-c"], "they end with their connection");
    other.unsubscribe("b");
    assert_eq!(seen(&socket).await, "-b");
    assert!(!socket.has_subscriber(b"a") && !socket.has_subscriber(b"b") && !socket.has_subscriber(b"c"));
}

#[tokio::test]
async fn notices_are_as_many_as_were_asked_for() {
    for (notices, expected) in [
        (Notices::Changes, &["+a", "-a"][..]),
        (Notices::Subscriptions, &["+a", "+a", "-a"]),
        (Notices::All, &["+a", "+a", "-a", "-a"]),
    ] {
        let (socket, endpoint) = xpub(options().notices(notices)).await;
        let (one, other) = (XSub::new(options()), XSub::new(options()));
        for peer in [&one, &other] {
            peer.connect(endpoint.clone());
            peer.subscribe("a").unwrap();
            peer.send(["said", "so"]).await.unwrap();
        }
        let mut all = Vec::new();
        while all.iter().filter(|seen| *seen == "said,so").count() < 2 {
            all.push(seen(&socket).await);
        }
        one.unsubscribe("a");
        one.send(["end"]).await.unwrap();
        while all.last().is_none_or(|last| last != "end") {
            all.push(seen(&socket).await);
        }
        drop(other);
        while all.last().is_none_or(|last| last != "-a")
            || all.iter().filter(|seen| *seen == "-a").count()
                + all.iter().filter(|seen| *seen == "+a").count()
                < expected.len()
        {
            all.push(seen(&socket).await);
        }
        all.retain(|seen| seen.ends_with('a'));
        assert_eq!(all, expected, "{notices:?}");
    }
}

#[tokio::test]
async fn subscriptions_that_are_taken_by_hand_count_once_they_are_taken() {
    let (socket, endpoint) = xpub(options().manual(true)).await;
    let mut wants = subscriber(&endpoint, &["secret", "open"]);
    let mut peer = None;
    for _ in 0..2 {
        let Some(FromSubscriber::Subscribed { peer: from, prefix }) = within("it", socket.recv()).await
        else {
            panic!("a subscription");
        };
        if prefix == "open" {
            socket.take_subscription(&from, prefix).unwrap();
        }
        peer = Some(from);
    }
    socket.publish(["secret", "1"]).await.unwrap();
    socket.publish(["open", "2"]).await.unwrap();
    assert_eq!(within("a message", wants.recv()).await.unwrap(), Multipart::from(["open", "2"]));
    // The user of the socket may subscribe the peer to something else.
    let peer = peer.unwrap();
    socket.end_subscription(&peer, "open").unwrap();
    socket.take_subscription(&peer, "news").unwrap();
    socket.publish(["open", "3"]).await.unwrap();
    socket.publish(["news", "4"]).await.unwrap();
    assert_eq!(within("a message", wants.recv()).await.unwrap(), Multipart::from(["news", "4"]));
    drop(wants);
    assert_eq!(seen(&socket).await, "-news");
    assert_eq!(socket.take_subscription(&peer, "x").unwrap_err().kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn a_welcome_message_comes_first() {
    let welcome = Multipart::from(["welcome", "friend"]);
    let (socket, endpoint) = xpub(options().welcome(welcome)).await;
    let mut subscriber = subscriber(&endpoint, &[""]);
    assert_eq!(seen(&socket).await, "+");
    socket.publish(["news"]).await.unwrap();
    assert_eq!(within("a message", subscriber.recv()).await.unwrap(), Multipart::from(["welcome", "friend"]));
    assert_eq!(within("a message", subscriber.recv()).await.unwrap(), Multipart::from(["news"]));
}

#[tokio::test]
async fn messages_go_upstream_whole_and_in_order() {
    let (socket, endpoint) = xpub(options()).await;
    let upstream = XSub::new(options());
    upstream.connect(endpoint);
    for number in 0..1000 {
        upstream.send([number.to_string(), "\u{1}".into(), String::new()]).await.unwrap();
    }
    for refused in ["\u{0}a", "\u{1}"] {
        assert_eq!(upstream.send([refused]).await.unwrap_err().kind(), ErrorKind::InvalidMessage);
    }
    upstream.subscribe("all").unwrap();
    let mut subscriptions = 0;
    let mut number = 0;
    while number < 1000 || subscriptions == 0 {
        match seen(&socket).await {
            said if said == "+all" => subscriptions += 1,
            said => {
                assert_eq!(said, format!("{number},\u{1},"));
                number += 1;
            }
        }
    }
    assert_eq!(upstream.close(PATIENCE).await, 0);
    assert_eq!(seen(&socket).await, "-all");
}

/// Two sockets form a forwarder, as in the guide of ZeroMQ.
#[tokio::test]
async fn xsub_and_xpub_make_a_forwarder() {
    let (frontend, (backend, for_subscribers)) = (XSub::new(options()), xpub(options()).await);
    let for_publishers = frontend.bind(&anywhere()).await.unwrap();
    let forwarder = tokio::spawn(async move {
        loop {
            tokio::select! {
                message = frontend.recv() => backend.publish(message.unwrap()).await.unwrap(),
                said = backend.recv() => match said.unwrap() {
                    FromSubscriber::Subscribed { prefix, .. } => frontend.subscribe(prefix).unwrap(),
                    FromSubscriber::Unsubscribed { prefix, .. } => frontend.unsubscribe(prefix),
                    _ => {}
                },
            }
        }
    });
    let publisher = Publisher::new(options().filter(true));
    publisher.connect(for_publishers);
    let mut subscriber = subscriber(&for_subscribers, &["b"]);
    within("the subscription at the publisher", publisher.wait_for_subscriber(b"b")).await.unwrap();
    for topic in ["a", "b", "c", "bb"] {
        publisher.publish([topic]).await.unwrap();
    }
    for topic in ["b", "bb"] {
        assert_eq!(within("a message", subscriber.recv()).await.unwrap(), Multipart::from([topic]));
    }
    forwarder.abort();
}

/// A publisher that connects sends everything, whatever its peer has subscribed to.
#[tokio::test]
async fn a_bound_subscriber_receives_what_it_subscribed_to_and_nothing_else() {
    let mut subscriber = Subscriber::new(options());
    subscriber.subscribe("b").unwrap();
    subscriber.subscribe("cc").unwrap();
    let endpoint = subscriber.bind(&anywhere()).await.unwrap();
    let publisher = Publisher::new(options());
    publisher.connect(endpoint);
    for topic in ["a", "b1", "", "c", "cc", "ab", "b2"] {
        publisher.publish([topic, "data"]).await.unwrap();
    }
    for topic in ["b1", "cc", "b2"] {
        assert_eq!(within("a message", subscriber.recv()).await.unwrap(), Multipart::from([topic, "data"]));
    }
    assert_eq!(publisher.close(PATIENCE).await, 0);
    assert!(subscriber.recv().now_or_never().is_none(), "nothing else");
}

/// Creates a publisher and two subscribers, one of which reads nothing.
async fn with_a_stuck_subscriber(
    overflow: Overflow,
    mark: HighWaterMark,
) -> (Publisher, Subscriber, Subscriber) {
    let publisher = Publisher::new(options().overflow(overflow).send_high_water_mark(mark));
    let name = format!("inproc://slow-{}", NAMES.fetch_add(1, Ordering::Relaxed));
    let endpoint = publisher.bind(&name.parse().unwrap()).await.unwrap();
    let small = || options().receive_high_water_mark(1);
    let (stuck, reads) = (Subscriber::new(small()), Subscriber::new(options()));
    for subscriber in [&stuck, &reads] {
        subscriber.subscribe("").unwrap();
        subscriber.connect(endpoint.clone());
    }
    within("both", async {
        while publisher.peers() < 2 {
            tokio::task::yield_now().await;
        }
        publisher.wait_for_subscriber(b"").await.unwrap();
    })
    .await;
    (publisher, stuck, reads)
}

/// Numbers for unique names.
static NAMES: AtomicUsize = AtomicUsize::new(0);

const SIZE: usize = 16 << 10;
const COUNT: u64 = 1000;

fn numbered(number: u64) -> [Bytes; 2] {
    [number.to_string().into(), vec![0; SIZE].into()]
}

fn number_of(message: &Multipart) -> u64 {
    std::str::from_utf8(&message.frames()[0]).unwrap().parse().unwrap()
}

/// Polls `done` repeatedly, but not for ever.
async fn within_turns(done: impl Future<Output = ()>) {
    let turns = async {
        for _ in 0..1_000_000 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = done => {}
        () = turns => panic!("it does not end"),
    }
}

#[tokio::test]
async fn a_slow_subscriber_of_a_bound_publisher_loses_what_does_not_fit_and_stops_nobody() {
    for overflow in [Overflow::Usual, Overflow::DropNewest, Overflow::DropOldest] {
        let (publisher, mut stuck, mut reads) =
            with_a_stuck_subscriber(overflow, HighWaterMark::bytes(16 * SIZE)).await;
        let mut events = publisher.events();
        let reading = tokio::spawn(async move {
            let mut last = None;
            while last != Some(COUNT - 1) {
                let message = within("a message", reads.recv()).await.unwrap();
                let number = number_of(&message);
                assert_eq!(message.frames()[1].len(), SIZE, "no message is torn");
                assert_eq!(number, last.map_or(0, |last| last + 1));
                last = Some(number);
                tokio::task::yield_now().await;
            }
        });
        // The publisher never waits for long: the subscriber that reads has room again and again.
        for number in 0..COUNT {
            within("a publication", publisher.publish(numbered(number))).await.unwrap();
            let has_room = async {
                while publisher.queued().bytes > 24 * SIZE as u64 {
                    tokio::task::yield_now().await;
                }
            };
            within_turns(has_room).await;
        }
        let dropped = publisher.dropped();
        assert!(dropped > COUNT / 2, "{overflow:?}: {dropped}");
        let mut received = Vec::new();
        let reported = async {
            loop {
                match events.next().await {
                    Some(SocketEvent::PeerTooSlow { messages, total, .. }) => return (messages, total),
                    Some(_) => {}
                    None => panic!("it is told"),
                }
            }
        };
        let (messages, total) = within("what was dropped is told", reported).await;
        assert!(messages > 0 && total >= messages);
        // The dropped messages, and those that the slow subscriber now receives, are all messages.
        let closing = tokio::spawn(async move { publisher.close(PATIENCE).await });
        while (received.len() as u64) < COUNT - dropped {
            received.push(number_of(&within("what is left", stuck.recv()).await.unwrap()));
        }
        assert_eq!(within("closing", closing).await.unwrap(), 0);
        assert!(stuck.recv().now_or_never().is_none(), "nothing more");
        assert!(received.is_sorted(), "{received:?}");
        match overflow {
            Overflow::DropOldest => assert_eq!(received.last(), Some(&(COUNT - 1)), "the newest is there"),
            _ => assert!(received.last().is_some_and(|last| *last < COUNT / 2), "the oldest are there"),
        }
        reading.abort();
    }
}

#[tokio::test]
async fn a_publisher_that_waits_for_the_slow_one_waits_if_it_is_told_to() {
    let (publisher, _stuck, _reads) =
        with_a_stuck_subscriber(Overflow::Wait, HighWaterMark::bytes(16 * SIZE)).await;
    let waits = async {
        for number in 0.. {
            if publisher.publish(numbered(number)).now_or_never().is_none() {
                let mut next = Box::pin(publisher.publish(numbered(number)));
                // It waits for room, and does not only yield.
                let turns = async {
                    for _ in 0..100 {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::select! {
                    biased;
                    _ = &mut next => {}
                    () = turns => return,
                }
            }
        }
    };
    within("somebody who waits", waits).await;
    assert_eq!(publisher.dropped(), 0);
    assert_eq!(publisher.try_publish(numbered(0)).unwrap_err().kind(), ErrorKind::Full);
}

/// With a mark of one message, only the last one is queued, like with `ZMQ_CONFLATE`.
#[tokio::test]
async fn with_a_mark_of_one_message_the_last_one_waits() {
    let mark = HighWaterMark { messages: 1, ..HighWaterMark::bytes(64 << 20) };
    let (publisher, mut stuck, _reads) = with_a_stuck_subscriber(Overflow::DropOldest, mark).await;
    for number in 0..COUNT {
        publisher.publish(numbered(number)).await.unwrap();
    }
    let mut received = Vec::new();
    while received.last() != Some(&(COUNT - 1)) {
        received.push(number_of(&within("the last one", stuck.recv()).await.unwrap()));
    }
    assert!(received.len() < COUNT as usize / 2, "{}", received.len());
}

/// Subscriptions are counted: one that was made twice ends when it was cancelled twice (RFC 29).
#[tokio::test]
async fn a_subscription_that_was_made_twice_is_taken_back_twice() {
    let (socket, endpoint) = xpub(options()).await;
    let mut wants = subscriber(&endpoint, &["a", "a"]);
    assert_eq!(seen(&socket).await, "+a");
    wants.unsubscribe("a");
    wants.subscribe("b").unwrap();
    assert_eq!(seen(&socket).await, "+b", "the first is still there");
    socket.publish(["a"]).await.unwrap();
    assert_eq!(within("a message", wants.recv()).await.unwrap(), Multipart::from(["a"]));
    wants.unsubscribe("a");
    assert_eq!(seen(&socket).await, "-a");
}

/// What an XSUB sends goes to all of its publishers (RFC 29).
#[tokio::test]
async fn what_an_xsub_sends_goes_to_every_publisher() {
    let ((one, first), (other, second)) = (xpub(options()).await, xpub(options()).await);
    let upstream = XSub::new(options());
    upstream.connect(first);
    upstream.connect(second);
    upstream.send(["said", "once"]).await.unwrap();
    for socket in [&one, &other] {
        assert_eq!(seen(socket).await, "said,once");
    }
}
