//! Untrusted peers: what one of them sends, subscribes to or fails to do must not affect any other peer.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it has failed")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use common::{PATIENCE, anywhere, until, within};
use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmq::{
    Dealer, Device, Endpoint, ErrorKind, HasIdentity, Multipart, Publisher, Pull, Push, Reason, Router,
    SocketEvent, SocketOptions, Subscriber, Violations, XPub, XSub,
};
use xmsg_zmtp::{Engine, Event, Limits, Options, SocketType};

fn options<S>() -> SocketOptions<S> {
    SocketOptions::default().reconnect_min(Duration::from_millis(10))
}

fn limited<S>(limits: Limits) -> SocketOptions<S> {
    options().limits(limits)
}

fn identified<S: HasIdentity>(identity: &'static str) -> SocketOptions<S> {
    options().identity(Bytes::from_static(identity.as_bytes()))
}

/// Creates a forwarder. Returns the device, its frontend, and the endpoints for publishers and for
/// subscribers.
async fn forwarder(options: SocketOptions) -> (Device, XSub, Endpoint, Endpoint) {
    let (frontend, backend) = (XSub::new(options.for_socket()), XPub::new(options.for_socket()));
    let (publishers, subscribers) =
        (frontend.bind(&anywhere()).await.unwrap(), backend.bind(&anywhere()).await.unwrap());
    (Device::start(&frontend, &backend), frontend, publishers, subscribers)
}

fn subscriber(endpoint: &Endpoint, prefixes: impl IntoIterator<Item = String>) -> Subscriber {
    let socket = Subscriber::new(options());
    for prefix in prefixes {
        socket.subscribe(prefix).unwrap();
    }
    socket.connect(endpoint.clone());
    socket
}

/// Publishes to the topic once there is a subscriber, and waits until the subscriber receives it.
async fn reaches(publisher: &Publisher, subscriber: &mut Subscriber, topic: &'static str) {
    within(topic, publisher.wait_for_subscriber(topic.as_bytes())).await.unwrap();
    publisher.publish([topic]).await.unwrap();
    while within(topic, subscriber.recv()).await.unwrap().frames()[0] != topic {}
}

/// Publishes to the topic again and again until the subscriber receives it, which has to be its first
/// message. The subscription may still be on its way.
async fn arrives(publisher: &Publisher, subscriber: &mut Subscriber, topic: &'static str) {
    within("its message", async {
        loop {
            publisher.publish([topic]).await.unwrap();
            if let Some(Some(message)) = subscriber.recv().now_or_never() {
                assert_eq!(message.frames(), [topic]);
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// A PUB may announce to a forwarder that it accepts one subscription. This must affect no other peer.
#[tokio::test]
async fn the_limits_that_one_publisher_tells_bind_nobody_else() {
    let (_device, frontend, publishers, subscribers) = forwarder(options()).await;
    let narrow =
        Publisher::new(limited(Limits { subscriptions: 1, subscription_len: 8, ..Limits::default() }));
    narrow.connect(publishers.clone());
    let good = Publisher::new(options());
    good.connect(publishers);
    until("both publishers", || frontend.peers() == 2).await;
    let mut events = frontend.events();
    let mut wanting = subscriber(&subscribers, ["a:1", "a:2", "a:long enough"].map(String::from));
    for topic in ["a:1", "a:2", "a:long enough"] {
        reaches(&good, &mut wanting, topic).await;
    }
    let refused = within("the event", async {
        loop {
            if let Some(SocketEvent::SubscriptionRefused { prefix, .. }) = events.next().await {
                return prefix;
            }
        }
    });
    assert!(refused.await.starts_with(b"a:"));
    assert!(frontend.refused().is_none(), "it is no reason for a subscription of ours to fail");
}

/// One subscriber may subscribe to as much as the forwarder keeps for all of them together.
#[tokio::test]
async fn what_one_subscriber_wants_keeps_nobody_else_from_subscribing() {
    let few = Limits { subscriptions: 10, ..Limits::default() };
    let frontend = XSub::new(limited(few));
    let backend = XPub::new(options());
    let (publishers, subscribers) =
        (frontend.bind(&anywhere()).await.unwrap(), backend.bind(&anywhere()).await.unwrap());
    let device = Device::start(&frontend, &backend);
    let publisher = Publisher::new(options());
    publisher.connect(publishers);
    let greedy = subscriber(&subscribers, (0..100).map(|number| format!("many:{number}")));
    // From the eleventh on, everything is subscribed to.
    within("more than is kept", publisher.wait_for_subscriber(b"whatever")).await.unwrap();
    let mut late = subscriber(&subscribers, ["b:1".to_owned()]);
    until("the late one", || backend.peers() == 2).await;
    arrives(&publisher, &mut late, "b:1").await;
    // From then on, everything stays subscribed, even if another peer subscribes to everything and leaves.
    let everything = subscriber(&subscribers, [String::new()]);
    until("another one", || backend.peers() == 3).await;
    drop((everything, greedy));
    until("those who have left", || backend.peers() == 1).await;
    publisher.publish(["b:1"]).await.unwrap();
    within("another message", late.recv()).await.unwrap();
    let mut later = subscriber(&subscribers, ["c:1".to_owned()]);
    until("one more", || backend.peers() == 2).await;
    arrives(&publisher, &mut later, "c:1").await;
    assert_eq!(device.stop(PATIENCE).await.backward.dropped, 0);
}

/// What waits for a publisher that does not read is bounded, and the subscriptions are still sent to others.
#[tokio::test]
async fn a_publisher_that_does_not_read_what_is_subscribed_to_is_ended() {
    let frontend = XSub::new(options());
    let Endpoint::Tcp { port, .. } = frontend.bind(&anywhere()).await.unwrap() else { unreachable!() };
    let mut deaf = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut engine = Engine::new(Options::new(SocketType::Pub), std::time::Instant::now());
    within("the handshake", async {
        let mut input = BytesMut::new();
        loop {
            if let Some(bytes) = engine.poll_transmit() {
                deaf.write_all(&bytes).await.unwrap();
            }
            match engine.poll_event(&mut input) {
                Ok(Some(Event::Ready(_))) => return,
                Ok(Some(_)) => {}
                Ok(None) => {
                    if let Some(bytes) = engine.poll_transmit() {
                        deaf.write_all(&bytes).await.unwrap();
                    }
                    assert!(deaf.read_buf(&mut input).await.unwrap() > 0);
                }
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    until("the publisher", || frontend.peers() == 1).await;
    let prefix = Bytes::from(vec![b'x'; 4096]);
    within("its end", async {
        // This is 160 MB. What the system buffers does not count.
        for _ in 0..20_000 {
            frontend.subscribe(prefix.clone()).unwrap();
            frontend.unsubscribe(prefix.clone());
            if frontend.peers() == 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
        until("its end", || frontend.peers() == 0).await;
    })
    .await;
}

/// A proxy sends the subscriptions of all its subscribers, which may be any number. A publisher that has
/// chosen to connect stays connected.
#[tokio::test]
async fn a_publisher_does_not_leave_a_proxy_because_of_what_others_subscribe_to() {
    let proxy = Subscriber::new(options());
    let endpoint = proxy.bind(&anywhere()).await.unwrap();
    let publisher = Publisher::new(options());
    let mut events = publisher.events();
    publisher.connect(endpoint);
    proxy.subscribe("a").unwrap();
    within("what is wanted", publisher.wait_for_subscriber(b"a:1")).await.unwrap();
    assert!(!publisher.has_subscriber(b"whatever"));
    // This is more than the publisher keeps, so it treats everything as subscribed.
    for number in 0..3_000 {
        proxy.subscribe(format!("b:{number:04090}")).unwrap();
    }
    within("everything", publisher.wait_for_subscriber(b"whatever")).await.unwrap();
    assert_eq!(publisher.peers(), 1);
    while let Some(event) = events.next().now_or_never() {
        assert!(!matches!(event, Some(SocketEvent::Disconnected { .. })), "{event:?}");
    }
}

/// A ROUTER knows the server that it connects to by its identity. Other peers may announce the same one.
#[tokio::test]
async fn nobody_takes_the_identity_of_a_peer_that_a_router_connects_to() {
    let server = Dealer::new(identified("server"));
    let to_server = server.bind(&anywhere()).await.unwrap();
    let router = Router::new(options());
    let to_router = router.bind(&anywhere()).await.unwrap();
    router.connect(to_server.clone());
    until("the server", || router.peers() == 1).await;
    let mut events = router.events();
    let impostor = Dealer::new(identified("server"));
    impostor.connect(to_router);
    within("a refusal", async {
        while !matches!(events.next().await, Some(SocketEvent::HandshakeFailed { .. })) {}
    })
    .await;
    router.send(b"server", ["to the server"]).await.unwrap();
    assert_eq!(within("it", server.recv()).await.unwrap().frames(), ["to the server"]);
    impostor.close(Duration::ZERO).await;
    // The server can reconnect as before.
    assert!(server.unbind(&to_server));
    server.close(PATIENCE).await;
    let server = Dealer::new(identified("server"));
    server.bind(&to_server).await.unwrap();
    within("the server again", async {
        while router.send(b"server", ["again"]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!(within("it", server.recv()).await.unwrap().frames(), ["again"]);
}

/// Messages that were accepted for a worker and not sent to it wait for a peer that accepts them, whoever
/// connects first.
#[tokio::test]
async fn a_worker_that_takes_nothing_has_others_lose_nothing() {
    let small = SocketOptions::<Pull>::default()
        .reconnect_min(Duration::from_millis(10))
        .tcp(xmsg_zmq::TcpOptions {
            send_buffer: Some(4 << 10),
            receive_buffer: Some(4 << 10),
            ..Default::default()
        })
        .receive_high_water_mark(64);
    let push = Push::new(small.for_socket());
    let endpoint = push.bind(&anywhere()).await.unwrap();
    let worker = Pull::new(small);
    worker.connect(endpoint.clone());
    until("a worker", || push.peers() == 1).await;
    let message = |number: u32| Multipart::from([number.to_string().into_bytes(), vec![0; 4 << 10]]);
    for number in 0..100 {
        within("room", push.send(message(number))).await.unwrap();
    }
    drop(worker);
    let stranger = Pull::new(limited(Limits { message_size: 16, ..Limits::default() }));
    stranger.connect(endpoint.clone());
    until("only the stranger", || push.moved() > 0 && push.peers() == 1).await;
    let moved = push.moved();
    let again = Pull::new(options());
    again.connect(endpoint);
    for _ in 0..moved {
        within("what the first worker left", again.recv()).await.unwrap();
    }
    assert_eq!(push.dropped(), 0);
    // A new message is refused at once while no peer accepts it, as before.
    drop(again);
    until("only the stranger", || push.peers() == 1).await;
    assert_eq!(push.try_send(message(0)).unwrap_err().kind(), ErrorKind::TooLarge);
}

/// The rule stands for any fault that a peer brings about in code that runs for its connection.
#[tokio::test]
async fn a_panic_over_one_peer_ends_its_connection_and_is_counted() {
    let violations = Violations::default();
    let has_panicked = AtomicBool::new(false);
    let rule = move |_: &str, _: Option<&_>| {
        assert!(has_panicked.swap(true, Ordering::Relaxed), "on purpose");
        true
    };
    let router = Router::new(options().violations(violations.clone()).keeps(rule));
    let endpoint = router.bind(&anywhere()).await.unwrap();
    let dealer = Dealer::new(options());
    dealer.connect(endpoint);
    // It connects again, and is served then. What it sent over the first connection may be lost.
    let arrives = async {
        loop {
            dealer.send(["a message"]).await.unwrap();
            tokio::select! {
                message = router.recv() => return message.unwrap(),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    };
    let (_, message) = within("a message", arrives).await;
    assert_eq!(message.frames(), ["a message"]);
    assert_eq!(violations.counts().of(Reason::Fault), 1);
    assert_eq!(router.connections().len(), 1, "nothing of the first connection is left");
}

/// A peer may subscribe to 256 MiB, so that a few of them would fill any machine.
#[tokio::test]
async fn what_peers_subscribe_to_counts_in_the_memory_budget() {
    let memory = MemoryBudget::new(8 << 20);
    let publisher = Publisher::new(options().memory(memory.clone()));
    let endpoint = publisher.bind(&anywhere()).await.unwrap();
    let mut modest = subscriber(&endpoint, ["greetings".to_owned()]);
    reaches(&publisher, &mut modest, "greetings").await;
    let peer = publisher.connections()[0].peer.clone();
    let greedy = subscriber(&endpoint, (0..8_000).map(|number| format!("{number:02000}")));
    until("the end of the peer that subscribes to most", || memory.ended() > 0).await;
    arrives(&publisher, &mut modest, "greetings").await;
    assert!(publisher.connections().iter().any(|connection| connection.peer == peer));
    drop(greedy);
    until("the memory that it held", || memory.claimed() < 1 << 20).await;
}

/// Whole messages that nobody receives count in the memory budget, too. Of peers that are ended for their
/// memory nothing stays.
#[tokio::test]
async fn whole_messages_that_nobody_receives_keep_to_the_memory_budget() {
    const MIB: usize = 1 << 20;
    let memory = MemoryBudget::new(32 * MIB);
    let puller = Pull::new(options().memory(memory.clone()).receive_high_water_mark(MIB));
    let mut events = puller.events();
    // There are many events, and an observer that falls behind misses some.
    let lost = tokio::spawn(async move {
        loop {
            if let Some(SocketEvent::ReceivedLost { messages, .. }) = events.next().await {
                return messages;
            }
        }
    });
    let endpoint = puller.bind(&anywhere()).await.unwrap();
    let mut pushers = Vec::new();
    for _ in 0..10 {
        let pusher = Push::new(options());
        pusher.connect(endpoint.clone());
        within("the message", pusher.send([vec![b'x'; 6 * MIB]])).await.unwrap();
        pushers.push(pusher);
    }
    assert_eq!(within("a loss", lost).await.unwrap(), 1);
    assert!(memory.ended() > 0 && puller.lost() > 0);
    assert!(memory.used() <= 40 * MIB, "{} bytes", memory.used());
    // Once they are received, there is room for others.
    drop(pushers);
    let honest = Push::new(options());
    honest.connect(endpoint);
    honest.send(["still here"]).await.unwrap();
    let mut received = 0;
    while within("its message", puller.recv()).await.unwrap().frames() != ["still here"] {
        received += 1;
    }
    assert!(received < 10, "{received} messages");
    // What is left of the others comes behind it.
    until("the memory", || {
        while puller.recv().now_or_never().flatten().is_some() {}
        memory.claimed() < MIB
    })
    .await;
}

/// A router that only sends takes little time for what its peers send, and its peers get what it sends.
#[tokio::test(start_paused = true)]
async fn what_is_sent_to_a_router_that_only_sends_is_read_slowly() {
    let endpoint: Endpoint = "inproc://sends-only".parse().unwrap();
    let router = Router::new(options().discard_received(true));
    router.bind(&endpoint).await.unwrap();
    let dealer = Dealer::new(identified("dealer"));
    dealer.connect(endpoint);
    let since = tokio::time::Instant::now();
    let data = Bytes::from(vec![0; 64 << 10]);
    for _ in 0..2_000 {
        dealer.send([data.clone()]).await.unwrap();
    }
    assert!(since.elapsed() > Duration::from_millis(100), "{:?}", since.elapsed());
    router.send(b"dealer", ["answer"]).await.unwrap();
    assert_eq!(within("an answer", dealer.recv()).await.unwrap().frames()[0], "answer");
    assert!(router.recv().now_or_never().is_none(), "nothing is received");
}
