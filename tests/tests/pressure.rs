//! Tests under too much load, with slow peers, or at bad moments: all guarantees still hold.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use xmsg_core::{ConnectOptions, Connection, Message};
use xmsg_proxy::{Config, Policy, Proxy};
use xmsg_tests::raw::{self, Raw};
use xmsg_tests::{connect, next, patient, proxy, topic, within};
use xmsg_zmq::link::session::{self, Session};
use xmsg_zmq::link::transport::Listener;
use xmsg_zmq::{Endpoint, HighWaterMark, Overflow, Publisher, SocketOptions, TcpOptions};
use xmsg_zmtp::{Engine, Options, SocketType};

const LINGER: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_subscriber_that_leaves_lets_a_bound_publisher_go_on() {
    let mark = HighWaterMark::bytes(64 << 10);
    let options = SocketOptions::default().overflow(Overflow::Wait).send_high_water_mark(mark);
    let publisher = Publisher::new(options);
    let endpoint = publisher.bind(&Endpoint::tcp("127.0.0.1", 0)).await.unwrap();
    let Endpoint::Tcp { port, .. } = endpoint else { panic!("it is TCP") };
    let mut stalled = Raw::handshake(port, "SUB").await;
    stalled.send_message(&[b"\x01"]).await;
    within("the subscription", publisher.wait_for_subscriber(b"x")).await.unwrap();
    let message = [Bytes::from_static(b"x"), Bytes::from(vec![0; 16 << 10])];
    while publisher.try_publish(message.clone()).is_ok() {
        tokio::task::yield_now().await;
    }
    let mut waiting = std::pin::pin!(publisher.publish(message));
    assert!(futures::poll!(&mut waiting).is_pending());
    stalled.reset();
    within("the publisher", waiting).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_pauses_for_longer_than_the_heartbeats_loses_nothing_under_block() {
    const MESSAGES: i32 = 400;
    const HEARTBEAT: Duration = Duration::from_millis(100);
    let config = Config {
        policy: Policy::BLOCK,
        heartbeat_interval: Some(HEARTBEAT),
        heartbeat_timeout: HEARTBEAT,
        ..Config::default()
    };
    let proxy = proxy().config(config).start().await.unwrap();
    let setup = ConnectOptions::new().before_subscribe(|socket, _| socket.receive_high_water_mark(64 << 10));
    let subscriber = Connection::with_options(proxy.address().clone(), setup).unwrap();
    let mut messages = subscriber.subscribe([topic("data")]).await.unwrap();
    let publisher = connect(&proxy);
    for number in 0..MESSAGES {
        publisher.publish(&Message::of(topic("data"), vec![number; 8 << 10]).unwrap()).await.unwrap();
    }
    // This test is about the pause.
    tokio::time::sleep(HEARTBEAT * 10).await;
    for number in 0..MESSAGES {
        assert_eq!(next(&mut messages).await.value::<Vec<i32>>().unwrap()[0], number);
    }
}

/// What the kernel holds when `close` is called arrives, although the proxy is blocked and sends commands
/// meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_a_publisher_waits_until_a_blocked_proxy_has_read_everything() {
    let tcp =
        TcpOptions { send_buffer: Some(64 << 10), receive_buffer: Some(128 << 10), ..TcpOptions::default() };
    let config = Config {
        policy: Policy::BLOCK,
        high_water_mark: HighWaterMark::bytes(256 << 10),
        tcp,
        ..Config::default()
    };
    let proxy = proxy().config(config).start().await.unwrap();
    let mut slow = Raw::handshake(proxy.address().subscribe_port(), "SUB").await;
    slow.send_message(&[b"\x01data"]).await;
    let publisher = connect(&proxy);
    publisher.wait_for_subscriber(&topic("data")).await.unwrap();
    // The publisher sends as much as the proxy and the kernels accept.
    let mut sent = 0_i32;
    while publisher.queued().messages < 32 {
        publisher.publish(&Message::of(topic("data"), vec![sent; 1 << 10]).unwrap()).await.unwrap();
        sent += 1;
        tokio::task::yield_now().await;
    }
    let closing = tokio::spawn(async move { publisher.close(LINGER).await });
    // The blocked proxy sends heartbeats every second.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let mut received = 0;
    while received < sent {
        let (flags, body) = slow.next_frame().await.expect("all of them");
        if flags & 5 == 0 && body.len() > 1000 {
            received += 1;
        }
    }
    assert!(within("close", closing).await.unwrap().is_nothing());
}

/// A connection that has sent everything can't send heartbeats any more, so these must not end what is in
/// progress. Simulation found this defect.
#[tokio::test(start_paused = true)]
async fn a_publisher_that_is_closing_gives_the_proxy_all_its_linger() {
    const HEARTBEAT: Duration = Duration::from_secs(1);
    let endpoint = Endpoint::Inproc("closing".into());
    let mut listener = Listener::bind(&endpoint, TcpOptions::default()).await.unwrap();
    let publisher =
        Publisher::new(SocketOptions::default().heartbeat_interval(HEARTBEAT).heartbeat_timeout(HEARTBEAT));
    publisher.connect(endpoint);
    let (stream, _) = listener.accept().await;
    let mut proxy = Session::new(stream, Engine::new(Options::new(SocketType::Xsub), session::now()));
    proxy.handshake().await.unwrap();
    publisher.publish(["data"]).await.unwrap();
    let closing = tokio::spawn(async move { publisher.close(LINGER).await });
    // The proxy is blocked: it reads and sends nothing. Only this sleep advances the clock of the test.
    tokio::time::sleep(HEARTBEAT * 10).await;
    assert!(!closing.is_finished(), "it gave up");
    drop(proxy);
    assert_eq!(closing.await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_queues_together_keep_to_the_ceiling() {
    all_queues_keep_to_the_ceiling_under(Policy::DropNewest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_queues_together_keep_to_the_ceiling_when_the_oldest_go() {
    all_queues_keep_to_the_ceiling_under(Policy::DropOldest).await;
}

async fn all_queues_keep_to_the_ceiling_under(policy: Policy) {
    const CEILING: usize = 16 << 20;
    const SUBSCRIBERS: usize = 12;
    let config = Config {
        policy,
        high_water_mark: HighWaterMark::bytes(8 << 20),
        queue_ceiling: CEILING,
        ..Config::default()
    };
    let memory = config.memory.clone();
    let proxy = Proxy::bind("127.0.0.1:0").config(config).start().await.unwrap();
    let mut stalled = Vec::new();
    for number in 0..SUBSCRIBERS {
        let mut subscriber = Raw::handshake(proxy.address().subscribe_port(), "SUB").await;
        subscriber.send_message(&[format!("\x01t{number:02}")]).await;
        stalled.push(subscriber);
    }
    for number in 0..SUBSCRIBERS {
        let (publisher, name) = (connect(&proxy), topic(&format!("t{number:02}")));
        publisher.wait_for_subscriber(&name).await.unwrap();
        for _ in 0..4000 {
            publisher.publish(&Message::of(name.clone(), vec![7_i32; 1 << 10]).unwrap()).await.unwrap();
        }
        assert!(publisher.close(LINGER).await.is_nothing());
    }
    let held = memory.queues().bytes();
    assert!((CEILING / 3..=CEILING).contains(&held), "{} KiB", held >> 10);
    assert!(proxy.totals().dropped.messages > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_control_requests_keeps_nobody_out() {
    let proxy = proxy().start().await.unwrap();
    let mut flood = Raw::handshake(proxy.address().publish_port(), "PUB").await;
    let requests = raw::message(&[&b"xmsg:control:sub"[..], b"sub", b"x"]).repeat(50_000);
    // The requests are read as fast as one connection may send them, and this continues while others connect.
    let flood = tokio::spawn(async move {
        for _ in 0..10 {
            flood.send(&requests).await;
        }
    });
    let innocent = Connection::with_options(proxy.address().clone(), patient()).unwrap();
    within("an innocent connection", innocent.connect()).await.unwrap();
    within("its subscription", innocent.subscribe([topic("innocent")])).await.unwrap();
    assert!(!flood.is_finished());
    flood.abort();
}

/// A proxy restarts twice in quick succession, the first time without the subscriptions. The publisher still
/// waits for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_short_break_does_not_make_a_publisher_forget_its_subscribers() {
    async fn accept(listener: &TcpListener, subscriptions: &[&str]) -> TcpStream {
        let (mut stream, _) = within("the publisher", listener.accept()).await.unwrap();
        stream.write_all(&raw::greeting(3, 1)).await.unwrap();
        stream.write_all(&raw::ready("XSUB", b"")).await.unwrap();
        for prefix in subscriptions {
            stream.write_all(&raw::message(&[format!("\x01{prefix}")])).await.unwrap();
        }
        stream
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(Endpoint::tcp("127.0.0.1", listener.local_addr().unwrap().port()));
    let first = accept(&listener, &["data", "xmsg:control"]).await;
    within("the subscription", publisher.wait_for_subscriber(b"data")).await.unwrap();
    drop(first);
    let second = accept(&listener, &["xmsg:control"]).await;
    within("the second connection", publisher.wait_for_subscriber(b"xmsg:control")).await.unwrap();
    drop(second);
    publisher.publish(["data", "precious"]).await.unwrap();
    let connected = std::time::Instant::now();
    let mut third = accept(&listener, &[]).await;
    let mut received = Vec::new();
    while !received.windows(8).any(|bytes| bytes == b"precious") {
        assert!(within("the message", third.read_buf(&mut received)).await.unwrap() > 0);
    }
    assert!(connected.elapsed() >= Duration::from_millis(100), "it waited for subscribers to come back");
}
