//! Tests of limits: what exceeds a limit is refused at once, with the name of the limit, and harms nothing
//! that follows.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use xmsg_core::security::{AllowKeys, KeyPair, Security};
use xmsg_core::{Actor, Connection, ErrorKind, HandlerError, Message, ProxyAddress};
use xmsg_proxy::registrar::Registrar;
use xmsg_proxy::{Policy, Proxy};
use xmsg_tests::peer::Peer;
use xmsg_tests::raw::{self, Raw};
use xmsg_tests::{PATIENCE, connect, next, patient, proxy, topic, within};
use xmsg_zmq::link::transport::{Listener, Stream};
use xmsg_zmq::{
    Dealer, Endpoint, HighWaterMark, Multipart, Publisher, Reason, Replier, Requester, Router, SocketEvent,
    SocketEvents, SocketOptions, Subscriber, TcpOptions,
};
use xmsg_zmtp::{Limits, MessageLimits, encoded_len};

const MIB: usize = 1 << 20;
const LINGER: Duration = Duration::from_secs(30);

fn limited(message_size: usize) -> Limits {
    Limits { message_size, ..Limits::default() }
}

fn taking<S>(limits: Limits) -> SocketOptions<S> {
    SocketOptions::default().limits(limits)
}

fn of_size(name: &str, bytes: usize) -> Message {
    Message::with_mime(topic(name), "binary/bytes", vec![7; bytes])
}

/// Waits until a message is dropped, and returns its topic and size.
async fn next_dropped(events: &mut SocketEvents) -> (Bytes, usize) {
    within("a message to be dropped", async {
        loop {
            let event = events.next().await.expect("the socket is open");
            if let SocketEvent::MessageDropped { topic, size, .. } = event {
                return (topic, size);
            }
        }
    })
    .await
}

async fn is_connected(events: &mut SocketEvents) {
    within("a connection", async {
        while !matches!(events.next().await, Some(SocketEvent::Connected { .. })) {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_above_the_limit_of_the_proxy_is_refused_and_the_rest_arrives() {
    const GOOD: i32 = 200;
    let proxy = proxy().limits(limited(MIB)).start().await.unwrap();
    let mut messages = connect(&proxy).subscribe([topic("q")]).await.unwrap();
    let publisher = connect(&proxy);
    publisher.connect().await.unwrap();
    for (number, size) in (0..GOOD).zip([8 * MIB, 2 * MIB, MIB].into_iter().cycle()) {
        let error = publisher.publish(&of_size("q:poison", size)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
        let (limit, address) = (format!("limit of {MIB} bytes"), proxy.address().publish_endpoint());
        for part in [&limit, &address, "--max-message-size"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        assert_eq!(
            publisher.try_publish(&of_size("q:poison", size)).unwrap_err().kind(),
            ErrorKind::TooLarge
        );
        publisher.publish(&Message::of(topic("q"), number).unwrap()).await.unwrap();
    }
    // This is the largest message that the proxy accepts.
    let overhead = encoded_len(&of_size("q:large", MIB).into_frames()) - MIB;
    publisher.publish(&of_size("q:large", MIB - overhead)).await.unwrap();
    for number in 0..GOOD {
        assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), number);
    }
    assert_eq!(next(&mut messages).await.topic().as_bytes(), b"q:large");
    assert_eq!((publisher.dropped(), proxy.totals().violations.total()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_more_frames_than_the_proxy_takes_is_refused() {
    let proxy = proxy().limits(Limits { frames: 5, ..Limits::default() }).start().await.unwrap();
    let mut messages = connect(&proxy).subscribe([topic("f")]).await.unwrap();
    let publisher = Publisher::new(SocketOptions::default());
    let mut events = publisher.events();
    publisher.connect(proxy.address().publish_endpoint().parse().unwrap());
    is_connected(&mut events).await;
    let frames = |count: usize| Multipart::from(vec![Bytes::from_static(b"f"); count]);
    let error = publisher.publish(frames(6)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("limit of 5 frames"), "{error}");
    publisher.publish(frames(3)).await.unwrap();
    assert_eq!(next(&mut messages).await.topic().as_bytes(), b"f");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_comes_back_with_a_smaller_limit_does_not_stop_what_waits() {
    let proxy = proxy().start().await.unwrap();
    let address = proxy.address().clone();
    let publisher = connect(&proxy);
    let mut messages = connect(&proxy).subscribe([topic("q")]).await.unwrap();
    publisher.publish(&Message::of(topic("q"), 0).unwrap()).await.unwrap();
    next(&mut messages).await;
    proxy.stop(LINGER).await;
    let mut events = publisher.events();
    // Too large messages are between and behind others, and next to each other.
    for (name, size) in
        [("q:a", 10), ("q:big", 2 * MIB), ("q:bigger", 3 * MIB), ("q:b", 10), ("q:big", 2 * MIB), ("q:c", 10)]
    {
        publisher.publish(&of_size(name, size)).await.unwrap();
    }

    let builder = Proxy::bind(address.to_string()).slow_subscriber(Policy::BLOCK);
    let proxy = builder.limits(limited(MIB)).start().await.unwrap();
    for (name, size) in [("q:big", 2), ("q:bigger", 3), ("q:big", 2)] {
        let (topic, bytes) = next_dropped(&mut events).await;
        assert_eq!((&topic[..], bytes / MIB), (name.as_bytes(), size));
    }
    for name in ["q:a", "q:b", "q:c"] {
        assert_eq!(next(&mut messages).await.topic().as_bytes(), name.as_bytes());
    }
    assert_eq!(publisher.dropped(), 3);
    assert_eq!(proxy.totals().violations.total(), 0, "it stayed connected");
    // The limit is known now, and stays known when the proxy has gone again.
    proxy.stop(LINGER).await;
    assert_eq!(publisher.publish(&of_size("q", 2 * MIB)).await.unwrap_err().kind(), ErrorKind::TooLarge);
}

/// The error says whose limit it is, what exceeds it, and how it is raised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_of_our_own_is_named_with_its_option() {
    let proxy = proxy().start().await.unwrap();
    let connection = Connection::with_options(proxy.address(), patient().max_message_size(1000)).unwrap();
    let error = connection.publish(&of_size("a", 2000)).await.unwrap_err();
    assert!(error.to_string().contains("ConnectOptions::max_message_size"), "{error}");
    let error = connection.subscribe("t".repeat(4097)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert!(error.to_string().contains("4097 bytes is above the limit of 4096 bytes"), "{error}");
}

/// A reply that is too large fails the request. So does an error text that is too long to be sent in full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asked_learns_that_the_reply_was_too_large() {
    let proxy = proxy().limits(limited(MIB)).start().await.unwrap();
    let actor = || Actor::builder("large").proxy(proxy.address()).options(patient()).build().unwrap();
    let (service, client) = (actor(), actor());
    let handle = service
        .subscribe_with("large", 1, |request: Message| async move {
            if request.value::<bool>()? {
                return Err("no ".repeat(MIB).into());
            }
            Ok::<_, HandlerError>(request.reply_with(vec![0_u8; 3 * MIB])?)
        })
        .await
        .unwrap();
    for (fails, why) in [(false, "is above the limit of 1048576 bytes"), (true, "no no no")] {
        let error = client.request(&Message::of("large", fails).unwrap(), PATIENCE).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Remote);
        assert!(error.to_string().contains(why), "{}", &error.to_string()[..100]);
    }
    assert_eq!(handle.failed(), 2);
    assert!(service.drain(PATIENCE).await.is_nothing());
}

/// Emulates a foreign proxy that accepts frames of at most `most` bytes, over one connection after another.
/// It passes on complete messages of the publisher.
async fn foreign(listener: TcpListener, most: u64, taken: tokio::sync::mpsc::Sender<Vec<Bytes>>) {
    loop {
        let mut peer = Raw::accept(&listener, "XSUB").await;
        peer.send(&raw::message(&[b"\x01"])).await;
        while let Some(frames) = peer.next_message(most).await {
            if taken.send(frames).await.is_err() {
                return;
            }
        }
    }
}

async fn listener() -> (TcpListener, Endpoint) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, Endpoint::tcp("127.0.0.1", port))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_a_foreign_proxy_does_not_take_is_dropped_the_second_time() {
    let (listener, endpoint) = listener().await;
    let (taken, mut messages) = tokio::sync::mpsc::channel(16);
    let foreign = tokio::spawn(foreign(listener, MIB as u64, taken));
    let publisher = Publisher::new(SocketOptions::default());
    let mut events = publisher.events();
    publisher.connect(endpoint);
    // This is more than the system buffers without its being read.
    for (name, size) in [("a", 10), ("poison", 40 * MIB), ("b", 10), ("c", MIB / 2)] {
        within("room", publisher.publish([Bytes::from(name), vec![7; size].into()])).await.unwrap();
    }
    let (topic, size) = next_dropped(&mut events).await;
    assert_eq!((&topic[..], size / MIB), (&b"poison"[..], 40));
    for name in ["a", "b", "c"] {
        let frames = within("what is behind it", messages.recv()).await.unwrap();
        assert_eq!(frames[0], name);
    }
    assert_eq!((publisher.dropped(), publisher.close(PATIENCE).await), (1, 0));
    foreign.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_end_in_different_messages_drop_nothing() {
    // This is more of a message than the system buffers while the one before it is being read.
    const LEN: usize = 48 * MIB;
    let (listener, endpoint) = listener().await;
    let publisher =
        Publisher::new(SocketOptions::default().send_high_water_mark(HighWaterMark::bytes(4 * LEN)));
    publisher.connect(endpoint);
    for number in 0..3_u8 {
        within("room", publisher.publish([vec![number; LEN]])).await.unwrap();
    }
    // Each connection receives one message, and ends in the next one, so never twice in the same message.
    let first = Raw::accept(&listener, "XSUB").await;
    drop(first);
    for number in 0..3_u8 {
        let mut peer = Raw::accept(&listener, "XSUB").await;
        let frames = peer.next_message(u64::MAX).await.expect("it was cut off once only");
        assert!(frames[0].len() == LEN && frames[0][0] == number);
    }
    assert_eq!(publisher.dropped(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libzmqs_limit_of_a_message_does_not_stop_what_is_behind_it() {
    let mut foreign = Peer::python("old_proxy.py", &["--max-message-size", "1000000"]);
    let port: u16 = foreign.expect("listening").await[0].parse().unwrap();
    let address = ProxyAddress::new("127.0.0.1", port).unwrap();
    let connection = || Connection::with_options(address.clone(), patient()).unwrap();
    let (publisher, subscriber) = (connection(), connection());
    let mut messages = within("a subscription", subscriber.subscribe([topic("q")])).await.unwrap();
    let mut events = publisher.events();
    publisher.publish(&of_size("q:poison", 60 * MIB)).await.unwrap();
    let (dropped, _) = next_dropped(&mut events).await;
    assert_eq!(dropped, "q:poison");
    // libzmq publishes to nobody until it has received the subscriptions again, so the first messages may be
    // lost.
    let sending = async {
        for number in 0_i32.. {
            publisher.publish(&Message::of(topic("q"), number).unwrap()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = sending => {}
        message = next(&mut messages) => assert_eq!(message.topic().as_bytes(), b"q"),
    }
    assert_eq!(publisher.dropped(), 1);
    foreign.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_socket_refuses_what_is_above_its_own_limits_and_goes_on() {
    let router = Router::new(taking(limited(MIB)));
    let endpoint = router.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let dealer = Dealer::connecting_to(endpoint, taking(limited(MIB)).identity("me"));
    let publisher = Publisher::new(taking(limited(MIB)));
    let large = || Multipart::from([vec![0_u8; MIB]]);
    let many = || Multipart::from(vec![Bytes::new(); 1025]);
    let none = || Multipart::from(Vec::new());

    dealer.send(["hello"]).await.unwrap();
    let (me, _) = within("the dealer", router.recv()).await.unwrap();
    let (replier, requester) = pair(taking(limited(MIB)), taking(limited(MIB))).await;
    let request = requester.request(["hello"], PATIENCE);
    let (path, _) = {
        let answer = async {
            let (path, request) = within("a request", replier.recv()).await.unwrap();
            replier.try_reply(&path, ["hello"]).unwrap();
            (path, request)
        };
        let (reply, found) = futures::join!(request, answer);
        assert_eq!(reply.unwrap().frames(), ["hello"]);
        found
    };
    let mut sink = Box::pin(publisher.sink());
    for (message, kind, limit) in [
        (large(), ErrorKind::TooLarge, "1048576 bytes"),
        (many(), ErrorKind::TooLarge, "1024 frames"),
        (none(), ErrorKind::InvalidMessage, "at least one frame"),
    ] {
        let errors = [
            dealer.send(message.clone()).await.unwrap_err(),
            router.try_send(&me, message.clone()).unwrap_err(),
            publisher.publish(message.clone()).await.unwrap_err(),
            publisher.try_publish(message.clone()).unwrap_err(),
            requester.request(message.clone(), PATIENCE).await.unwrap_err(),
            replier.try_reply(&path, message.clone()).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(limit), "{error}");
        }
    }
    let error = futures::SinkExt::send(&mut sink, large()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);

    // All sockets continue to work.
    dealer.send(["on"]).await.unwrap();
    assert_eq!(within("the dealer", router.recv()).await.unwrap().1.frames(), ["on"]);
    router.try_send(&me, ["on"]).unwrap();
    assert_eq!(within("the router", dealer.recv()).await.unwrap().frames(), ["on"]);
    let answer = async {
        let (path, request) = within("a request", replier.recv()).await.unwrap();
        replier.try_reply(&path, request).unwrap();
    };
    let (reply, ()) = futures::join!(requester.request(["on"], PATIENCE), answer);
    assert_eq!(reply.unwrap().frames(), ["on"]);
    publisher.publish(["on"]).await.unwrap();
}

async fn pair(
    replying: SocketOptions<Replier>,
    requesting: SocketOptions<Requester>,
) -> (Replier, Requester) {
    let replier = Replier::new(replying);
    let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    (replier, Requester::connecting_to(endpoint, requesting))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dealer_and_a_router_refuse_what_the_other_one_does_not_take() {
    let router = Router::new(taking(limited(MIB)));
    let endpoint = router.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let options = taking(limited(MIB / 2)).identity("me");
    let large = options.send_limits(MessageLimits::from(&Limits::default()));
    let dealer = Dealer::connecting_to(endpoint, large);
    within("the router", dealer.connected()).await.unwrap();
    let message = |size: usize| Multipart::from([vec![0_u8; size]]);
    let error = dealer.send(message(MIB)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::TooLarge && error.to_string().contains("1048576"), "{error}");
    dealer.send(message(MIB / 2 + 9)).await.unwrap();
    let (me, _) = within("the dealer", router.recv()).await.unwrap();
    let error = router.try_send(&me, message(MIB / 2)).unwrap_err();
    assert!(error.kind() == ErrorKind::TooLarge && error.to_string().contains("524288"), "{error}");
    router.try_send(&me, message(MIB / 2 - 9)).unwrap();
    assert_eq!(within("the router", dealer.recv()).await.unwrap().frames()[0].len(), MIB / 2 - 9);
    assert_eq!(dealer.dropped(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_too_large_is_not_sent_and_the_next_one_is() {
    let (replier, requester) = pair(taking(limited(MIB)), SocketOptions::default()).await;
    let too_large = async || {
        let error =
            within("a refusal", requester.request([vec![0_u8; 2 * MIB]], PATIENCE)).await.unwrap_err();
        assert!(error.kind() == ErrorKind::TooLarge && error.to_string().contains("1048576"), "{error}");
    };
    let small = async || {
        let answer = async {
            let (path, request) = within("a request", replier.recv()).await.unwrap();
            assert_eq!(request.frames(), ["small"], "the large one never came");
            replier.try_reply(&path, request).unwrap();
            path
        };
        let (reply, path) = futures::join!(requester.request(["small"], PATIENCE), answer);
        assert_eq!(reply.unwrap().frames(), ["small"]);
        path.peer().clone()
    };
    // The limit is announced when the request is already waiting.
    too_large().await;
    let connection = small().await;
    too_large().await;
    assert_eq!(small().await, connection, "nothing was the matter with the connection");
    // A request that is cancelled also ends its connection. The limit that was announced before still
    // applies.
    assert!(requester.request(["lost"], Duration::from_millis(300)).await.is_err());
    within("the lost request", replier.recv()).await.unwrap();
    too_large().await;
    assert_ne!(small().await, connection);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_too_large_is_refused_and_another_one_can_be_given() {
    let (replier, requester) = pair(SocketOptions::default(), taking(limited(MIB))).await;
    let request = requester.request(["how much?"], PATIENCE);
    let answer = async {
        let (path, _) = within("a request", replier.recv()).await.unwrap();
        let error = replier.try_reply(&path, [vec![0_u8; 2 * MIB]]).unwrap_err();
        assert!(error.kind() == ErrorKind::TooLarge && error.to_string().contains("1048576"), "{error}");
        replier.try_reply(&path, ["too much"]).unwrap();
    };
    let (reply, ()) = futures::join!(request, answer);
    assert_eq!(reply.unwrap().frames(), ["too much"]);
    assert!(futures::FutureExt::now_or_never(replier.recv()).is_none(), "it was asked once");
}

/// Reads requests, and counts connections and complete requests, until the task is ended.
async fn foreign_replier(
    listener: TcpListener,
    most: u64,
    reply: Vec<u8>,
    requests: tokio::sync::watch::Sender<(u32, u32)>,
) {
    loop {
        let mut peer = Raw::accept(&listener, "REP").await;
        requests.send_modify(|(connections, _)| *connections += 1);
        while peer.next_message(most).await.is_some() {
            requests.send_modify(|(_, requests)| *requests += 1);
            if !peer.try_send(&reply).await {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_answer_that_is_too_large_does_not_have_the_request_repeated() {
    let (listener, endpoint) = listener().await;
    let (requests, seen) = tokio::sync::watch::channel((0, 0));
    let reply = raw::message(&[&b""[..], &vec![0; 2 * MIB]]);
    let foreign = tokio::spawn(foreign_replier(listener, u64::MAX, reply, requests));
    let requester = Requester::connecting_to(endpoint, taking(limited(MIB)));
    let error = within("the answer", requester.request(["carried out once"], PATIENCE)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::TooLarge && error.to_string().contains("1048576"), "{error}");
    assert_eq!(*seen.borrow(), (1, 1));
    foreign.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_peer_that_ends_the_connection_twice_in_a_request_is_not_sent_it_again() {
    let (listener, endpoint) = listener().await;
    let (requests, seen) = tokio::sync::watch::channel((0, 0));
    let reply = raw::message(&[&b""[..], b"done"]);
    let foreign = tokio::spawn(foreign_replier(listener, 1000, reply, requests));
    let requester = Requester::connecting_to(endpoint, SocketOptions::default());
    let large = requester.request([vec![0_u8; 40 * MIB]], PATIENCE);
    let error = within("the second time", large).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert_eq!(*seen.borrow(), (2, 0));
    let reply = within("the next request", requester.request(["small"], PATIENCE)).await.unwrap();
    assert_eq!(reply.frames(), ["done"]);
    foreign.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_takes_less_does_not_hinder_the_others() {
    let publisher = Publisher::new(SocketOptions::default());
    let endpoint = publisher.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let mut events = publisher.events();
    let subscriber = |limits| {
        let subscriber = Subscriber::new(taking(limits));
        subscriber.subscribe("").unwrap();
        subscriber.connect(endpoint.clone());
        subscriber
    };
    let mut small = subscriber(limited(MIB));
    within("a subscription", publisher.wait_for_subscriber(b"")).await.unwrap();
    let large = || Multipart::from([Bytes::from_static(b"large"), vec![0; 2 * MIB].into()]);
    // This subscriber is the only one.
    publisher.publish(large()).await.unwrap();
    assert_eq!(next_dropped(&mut events).await.0, "large");
    let mut all = subscriber(Limits::default());
    within("another subscription", async {
        // There is no notification of the second subscription, so this sends messages until one arrives.
        loop {
            publisher.try_publish(["probe"]).unwrap();
            if tokio::time::timeout(Duration::from_millis(10), all.recv()).await.is_ok() {
                return;
            }
        }
    })
    .await;
    publisher.publish(large()).await.unwrap();
    publisher.try_publish(large()).unwrap();
    publisher.publish(["end"]).await.unwrap();
    let mut seen = [0; 2];
    for (subscriber, seen) in [&mut small, &mut all].into_iter().zip(&mut seen) {
        loop {
            let message = within("a message", subscriber.recv()).await.unwrap();
            *seen += u32::from(message.frames()[0] == "large");
            if message.frames()[0] == "end" {
                break;
            }
        }
    }
    assert_eq!((seen, publisher.dropped()), ([0, 2], 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_of_the_proxy_that_takes_less_is_sent_the_rest() {
    let proxy = proxy().start().await.unwrap();
    let subscriber = |limits| {
        let subscriber = Subscriber::new(taking(limits));
        subscriber.subscribe("q").unwrap();
        subscriber.connect(proxy.address().subscribe_endpoint().parse().unwrap());
        subscriber
    };
    let mut small = subscriber(Limits { frames: 4, ..limited(MIB) });
    let mut large = subscriber(Limits::default());
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(proxy.address().publish_endpoint().parse().unwrap());
    within("both subscriptions", async {
        while proxy.subscriptions() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        publisher.wait_for_subscriber(b"q").await.unwrap();
    })
    .await;
    for number in 0..30_u8 {
        let name = Bytes::from(format!("q:{number}"));
        let message = match number % 3 {
            0 => vec![name, vec![number; 2 * MIB].into()],
            1 => vec![name; 5],
            _ => vec![name, vec![number; MIB - 100].into()],
        };
        publisher.publish(message).await.unwrap();
    }
    for number in 0..30 {
        let message = within("a message", large.recv()).await.unwrap();
        assert_eq!(message.frames()[0], format!("q:{number}"));
    }
    for number in (2..30).step_by(3) {
        let message = within("what it takes", small.recv()).await.unwrap();
        assert_eq!(message.frames()[0], format!("q:{number}"));
    }
    let totals = proxy.totals();
    assert_eq!((totals.drops.too_large.messages, totals.dropped.messages), (20, 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_above_a_limit_are_refused_and_the_others_stay() {
    let limits = Limits { subscription_len: 100, subscriptions: 3, ..Limits::default() };
    let proxy = proxy().limits(limits).start().await.unwrap();
    let connection = connect(&proxy);
    let error = connection.subscribe([topic(&"x".repeat(5000))]).await.unwrap_err();
    assert!(error.kind() == ErrorKind::TooLarge && error.to_string().contains("4096 bytes"), "{error}");
    let error = within("a refusal", connection.subscribe([topic(&"x".repeat(101))])).await.unwrap_err();
    assert!(error.kind() == ErrorKind::TooLarge && error.to_string().contains("100 bytes"), "{error}");
    within("one that fits", connection.subscribe([topic(&"x".repeat(100))])).await.unwrap();

    let mut subscriber = Subscriber::new(SocketOptions::default());
    let mut events = subscriber.events();
    for prefix in ["a", "b"] {
        subscriber.subscribe(prefix).unwrap();
    }
    // This happens before the limit of the proxy is known.
    subscriber.subscribe("y".repeat(101)).unwrap();
    subscriber.connect(proxy.address().subscribe_endpoint().parse().unwrap());
    let refused = within("a refusal", async {
        loop {
            if let Some(SocketEvent::SubscriptionRefused { prefix, .. }) = events.next().await {
                return prefix;
            }
        }
    });
    assert_eq!(refused.await, "y".repeat(101));
    assert_eq!(subscriber.subscribe("z".repeat(200)).unwrap_err().kind(), ErrorKind::TooLarge);
    let error = subscriber.subscribe("c").unwrap_err();
    assert!(error.to_string().contains("limit of 3 subscriptions"), "{error}");
    subscriber.subscribe("a").unwrap();
    subscriber.unsubscribe("y".repeat(101));
    subscriber.subscribe("c").unwrap();
    within("the subscription", connection.wait_for_subscriber(&topic("b"))).await.unwrap();
    connection.publish(&Message::of(topic("b"), 1).unwrap()).await.unwrap();
    assert_eq!(within("a message", subscriber.recv()).await.unwrap().frames()[0], "b");
    assert_eq!(proxy.totals().violations.total(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_was_held_back_is_sent_when_another_is_cancelled() {
    let limits = Limits { subscriptions: 2, ..Limits::default() };
    let proxy = proxy().limits(limits).start().await.unwrap();
    let connection = connect(&proxy);
    let mut subscriber = Subscriber::new(SocketOptions::default());
    let mut events = subscriber.events();
    // This happens before the limit of the proxy is known: "c" and "d" are held back.
    for prefix in ["a", "b", "c", "d"] {
        subscriber.subscribe(prefix).unwrap();
    }
    subscriber.connect(proxy.address().subscribe_endpoint().parse().unwrap());
    within("two refusals", async {
        for held_back in ["c", "d"] {
            loop {
                if let Some(SocketEvent::SubscriptionRefused { prefix, .. }) = events.next().await {
                    assert_eq!(prefix, held_back);
                    break;
                }
            }
        }
    })
    .await;
    subscriber.unsubscribe("c");
    subscriber.unsubscribe("a");
    within("the subscription", connection.wait_for_subscriber(&topic("d"))).await.unwrap();
    connection.publish(&Message::of(topic("d"), 1).unwrap()).await.unwrap();
    assert_eq!(within("a message", subscriber.recv()).await.unwrap().frames()[0], "d");
    // There is room again only for as many as the proxy accepts.
    assert_eq!(subscriber.subscribe("e").unwrap_err().kind(), ErrorKind::TooLarge);
    subscriber.unsubscribe("b");
    subscriber.subscribe("e").unwrap();
    within("the subscription", connection.wait_for_subscriber(&topic("e"))).await.unwrap();
    assert_eq!(proxy.totals().violations.total(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_end_for_a_violation_are_counted_by_reason_on_every_port() {
    let limits = Limits { subscription_len: 100, subscriptions: 5, frames: 4, ..limited(MIB) };
    let proxy = proxy().limits(limits).start().await.unwrap();
    let address = proxy.address();
    let registrar = Registrar::bind("127.0.0.1:0").start().await.unwrap();
    let subscription = |len: usize| raw::message(&[[&[1][..], &vec![b'x'; len]].concat()]);
    let many: Vec<u8> = (0..6).flat_map(|number| raw::message(&[[1, number]])).collect();
    let announced = |len: u64| [&[2][..], &len.to_be_bytes()].concat();
    let five = raw::message(&[""; 5]);
    let ports = [
        (address.publish_port(), "PUB", announced(2 << 20), Reason::MessageTooLarge),
        (address.publish_port(), "PUB", five.clone(), Reason::TooManyFrames),
        (address.publish_port(), "PUB", vec![0x80, 0], Reason::Malformed),
        (address.publish_port(), "STREAM", Vec::new(), Reason::SocketType),
        (address.subscribe_port(), "SUB", subscription(101), Reason::SubscriptionTooLong),
        (address.subscribe_port(), "SUB", many, Reason::TooManySubscriptions),
        (address.subscribe_port(), "SUB", vec![6, 0, 0, 0, 0, 0, 1, 0, 1], Reason::CommandTooLarge),
        (address.control_port(), "DEALER", announced(65 << 10), Reason::MessageTooLarge),
        (address.control_port(), "DEALER", five, Reason::TooManyFrames),
        (registrar.address().port(), "REQ", announced(17 << 20), Reason::MessageTooLarge),
        (registrar.address().port(), "REQ", raw::message(&vec![""; 1025]), Reason::TooManyFrames),
    ];
    for (port, socket_type, attack, reason) in ports {
        let count = || {
            let at_proxy = proxy.totals().violations.of(reason);
            if port == registrar.address().port() {
                registrar.counts().violations.of(reason)
            } else {
                at_proxy
            }
        };
        let before = count();
        let mut attacker = Raw::connect(port).await;
        attacker.send(&[&raw::greeting(3, 1)[..], &raw::ready(socket_type, b""), &attack].concat()).await;
        attacker.closed().await;
        within("the violation to be counted", async {
            while count() == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert_eq!(count(), before + 1, "{reason}");
    }
    let mut nonsense = Raw::connect(address.publish_port()).await;
    nonsense.send(b"GET / HTTP/1.1\r\n\r\n").await;
    nonsense.closed().await;
    let totals = proxy.stop(LINGER).await;
    assert_eq!(totals.violations.of(Reason::NotZmtp), 1);
    assert_eq!(totals.violations.total(), 10, "{:?}", totals.violations);
    assert_eq!(registrar.counts().violations.total(), 2);
    registrar.stop(LINGER).await;
}

/// An answer of the registrar may be longer than the client accepts. The client gets an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registrar_says_when_an_answer_is_longer_than_the_client_takes() {
    use xmsg_core::registration::{OwnerType, Registration};
    let registrar = Registrar::bind("127.0.0.1:0").start().await.unwrap();
    let client = |limits: Limits| {
        let builder = xmsg_core::Registrar::builder(registrar.address().clone());
        builder
            .socket(|socket| socket.limits(limits))
            .registration_timeout(PATIENCE)
            .discovery_timeout(PATIENCE)
            .build()
            .unwrap()
    };
    let all = client(Limits::default());
    for number in 0..100 {
        let name = format!("actor:{number}");
        let record = Registration::new(
            OwnerType::Publisher,
            name,
            &topic(&format!("t:{number}")),
            &ProxyAddress::default(),
        );
        all.register(&record).await.unwrap();
    }
    let error = client(limited(1000)).all(OwnerType::Publisher).await.unwrap_err();
    assert!(
        error.to_string().contains("100 registrations") && error.to_string().contains("1000 bytes"),
        "{error}"
    );
    assert_eq!(all.all(OwnerType::Publisher).await.unwrap().len(), 100);
    registrar.stop(LINGER).await;
}

/// A peer that receives a long message slowly is alive, although it can't answer a heartbeat before the end
/// of the message.
#[tokio::test(start_paused = true)]
async fn heartbeats_do_not_end_a_connection_in_the_middle_of_a_long_message() {
    for encrypted in [false, true] {
        let security = if encrypted { curve() } else { (Security::Null, Security::Null) };
        let endpoint = Endpoint::Inproc(format!("a-long-message-{encrypted}"));
        let mut slow = Listener::bind(&endpoint, TcpOptions::default()).await.unwrap();
        let behind = Endpoint::Inproc(format!("behind-a-long-message-{encrypted}"));
        let router = Router::new(SocketOptions::default().security(security.0));
        router.bind(&behind).await.unwrap();
        let dealer = Dealer::connecting_to(
            endpoint,
            SocketOptions::default()
                .heartbeat_interval(Duration::from_millis(100))
                .heartbeat_timeout(Duration::from_millis(200))
                .security(security.1)
                .tcp(TcpOptions { send_buffer: Some(4096), ..TcpOptions::default() }),
        );
        let mut events = dealer.events();
        dealer.send([vec![7; MIB]]).await.unwrap();
        let (mut from, _) = slow.accept().await;
        // At 400 kB per second this takes about 2.6 s, and nothing comes back.
        tokio::spawn(async move {
            let mut to = Stream::connect(&behind, &TcpOptions::default(), PATIENCE).await.unwrap();
            let ((mut from_read, mut from_write), (mut to_read, mut to_write)) = (from.split(), to.split());
            let up = async {
                let mut piece = vec![0; 4096];
                loop {
                    let len = from_read.read(&mut piece).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    if len == 0 || to_write.write_all(&piece[..len]).await.is_err() {
                        return;
                    }
                }
            };
            futures::join!(up, async { drop(tokio::io::copy(&mut to_read, &mut from_write).await) });
        });
        let (_, message) = within("the long message", router.recv()).await.unwrap();
        assert_eq!(message.frames()[0].len(), MIB);
        let mut seen = Vec::new();
        while let Some(Some(event)) = futures::FutureExt::now_or_never(events.next()) {
            seen.push(event);
        }
        assert!(matches!(&seen[..], [SocketEvent::Connected { .. }]), "{seen:?}");
    }
}

/// Returns the security of a server and of its client.
fn curve() -> (Security, Security) {
    let (server, client) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (public, allowed) = (*server.public(), AllowKeys::new([*client.public()]));
    let client = Security::CurveClient { keys: client, server: public };
    (Security::CurveServer { keys: server, authenticator: Arc::new(allowed) }, client)
}
