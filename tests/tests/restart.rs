//! Tests of a proxy that stops and starts again, while its clients continue.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use xmsg_core::{Actor, Connection, ErrorKind, Message, ProxyAddress};
use xmsg_proxy::{Policy, Proxy};
use xmsg_tests::relay::Relay;
use xmsg_tests::{PATIENCE, connect, next, patient, proxy, topic, within};
use xmsg_zmq::{Endpoint, Publisher, SocketEvent, SocketOptions, Subscriber};

const LINGER: Duration = Duration::from_secs(30);

/// Starts a new proxy at the address of an old one.
async fn at(address: &ProxyAddress) -> Proxy {
    Proxy::bind(address.to_string()).slow_subscriber(Policy::BLOCK).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_go_on_within_a_second_of_a_restart() {
    let proxy = proxy().start().await.unwrap();
    let address = proxy.address().clone();
    let publisher = connect(&proxy);
    let mut messages = connect(&proxy).subscribe([topic("data")]).await.unwrap();
    publisher.publish(&Message::of(topic("data"), 1).unwrap()).await.unwrap();
    next(&mut messages).await;
    proxy.stop(LINGER).await;

    let proxy = at(&address).await;
    let restarted = Instant::now();
    publisher.publish(&Message::of(topic("data"), 2).unwrap()).await.unwrap();
    assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), 2);
    let pause = restarted.elapsed();
    assert!(pause < Duration::from_secs(1), "they went on after {pause:?}");
    drop(proxy);
}

/// Under `block`, a graceful restart loses nothing, even during traffic from several publishers to several
/// subscribers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_restart_loses_nothing() {
    const PUBLISHERS: i64 = 3;
    const RESTARTS: usize = 3;
    let proxy = proxy().start().await.unwrap();
    let address = proxy.address().clone();
    let mut receiving = Vec::new();
    for _ in 0..3 {
        let mut messages = connect(&proxy).subscribe([topic("data"), topic("end")]).await.unwrap();
        receiving.push(tokio::spawn(async move {
            let mut expected = [0; PUBLISHERS as usize];
            let mut open = PUBLISHERS;
            while open > 0 {
                let message = next(&mut messages).await;
                let [publisher, number] = message.value::<Vec<i64>>().unwrap()[..] else {
                    panic!("two numbers")
                };
                let expected = &mut expected[usize::try_from(publisher).unwrap()];
                assert_eq!(number, *expected, "of publisher {publisher}");
                *expected += 1;
                open -= i64::from(message.topic().as_bytes() == b"end");
            }
            expected.iter().sum::<i64>()
        }));
    }
    let restarting = Arc::new(AtomicBool::new(true));
    let mut sending = Vec::new();
    for publisher in 0..PUBLISHERS {
        let (connection, restarting) = (connect(&proxy), restarting.clone());
        sending.push(tokio::spawn(async move {
            let mut number = 0;
            while restarting.load(Ordering::Relaxed) {
                // Bursts are as fast as possible, with pauses that let the other tasks run.
                for _ in 0..500 {
                    connection
                        .publish(&Message::of(topic("data"), vec![publisher, number]).unwrap())
                        .await
                        .unwrap();
                    number += 1;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            connection.publish(&Message::of(topic("end"), vec![publisher, number]).unwrap()).await.unwrap();
            assert!(connection.close(LINGER).await.is_nothing());
            number + 1
        }));
    }
    let mut proxy = proxy;
    for _ in 0..RESTARTS {
        // This is in the middle of the traffic: a part of it has arrived, and the rest is still to come.
        within("traffic", async {
            while proxy.totals().received.messages < 5_000 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        let totals = proxy.stop(LINGER).await;
        assert_eq!((totals.dropped.messages, totals.undelivered), (0, 0));
        proxy = at(&address).await;
    }
    restarting.store(false, Ordering::Relaxed);
    let mut sent = 0;
    for task in sending {
        sent += within("a publisher", task).await.unwrap();
    }
    for task in receiving {
        assert_eq!(within("a subscriber", task).await.unwrap(), sent);
    }
}

/// A client that waits in vain gets an error with the reason, and a client that ends in this time loses
/// nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_held_back_are_no_riddle() {
    // The longer the proxy was away, the longer messages are held back.
    const AWAY: Duration = Duration::from_secs(4);
    let proxy = proxy().start().await.unwrap();
    let address = proxy.address().clone();
    let options = patient().before_connect(|socket, _| socket.reconnect_max(PATIENCE));
    let actor = Actor::builder("held").proxy(&address).options(options).build().unwrap();
    let mut messages = connect(&proxy).subscribe([topic("data")]).await.unwrap();
    let _answering = actor
        .subscribe_with("ask", 1, |request: Message| async move { request.reply_with(1_u8) })
        .await
        .unwrap();
    actor.request(&Message::of("ask", 1).unwrap(), PATIENCE).await.unwrap();
    let mut events = actor.events();
    proxy.stop(LINGER).await;
    tokio::time::sleep(AWAY).await;
    actor.publish(&Message::of("data", 7).unwrap()).await.unwrap();
    let _proxy = at(&address).await;
    let port = format!(":{}", address.publish_port());
    within("the reconnection", async {
        loop {
            match events.next().await.unwrap() {
                SocketEvent::Connected { peer } if peer.ends_with(&port) => return,
                _ => {}
            }
        }
    })
    .await;
    let short = Duration::from_millis(50);
    let flushed = actor.flush(short).await.unwrap_err();
    let asked = actor.request(&Message::of("ask", 1).unwrap(), short).await.unwrap_err();
    for error in [flushed, asked] {
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.to_string().contains("held back for"), "{error}");
    }
    let left = actor.drain(AWAY * 9 / 10).await;
    assert!(left.is_nothing(), "{left}");
    assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_while_the_proxy_is_away_arrives_later() {
    let proxy = proxy().start().await.unwrap();
    let address = proxy.address().clone();
    let publisher = connect(&proxy);
    let mut messages = connect(&proxy).subscribe([topic("data")]).await.unwrap();
    publisher.connect().await.unwrap();
    publisher.wait_for_subscriber(&topic("data")).await.unwrap();
    proxy.stop(LINGER).await;
    for number in 0..1000 {
        publisher.publish(&Message::of(topic("data"), number).unwrap()).await.unwrap();
    }
    assert_eq!(publisher.queued().messages, 1000);
    let proxy = at(&address).await;
    for number in 0..1000 {
        assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), number);
    }
    assert!(publisher.close(LINGER).await.is_nothing());
    drop(proxy);
}

/// The library knows that the proxy is gone, and reports it for every call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_a_proxy_that_is_gone_is_told_so() {
    let proxy = proxy().start().await.unwrap();
    let soon = Duration::from_millis(300);
    let actor = Actor::builder("left").proxy(proxy.address()).options(patient()).build().unwrap();
    let answering = |request: Message| async move { request.reply() };
    actor.subscribe_with("a", 1, answering).await.unwrap();
    actor.request(&Message::of("a", 1).unwrap(), PATIENCE).await.unwrap();
    let options = patient().subscription_timeout(soon);
    let connection = Connection::with_options(proxy.address(), options).unwrap();
    connection.connect().await.unwrap();
    drop(proxy);
    within("the loss", async {
        while actor.is_connected() || connection.is_connected() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let message = Message::of("a", 2).unwrap();
    actor.publish(&message).await.unwrap();
    let flushed = actor.flush(soon).await.unwrap_err();
    let asked = actor.request(&message, soon).await.unwrap_err();
    let subscribed = connection.subscribe("b").await.unwrap_err();
    for error in [flushed, asked, subscribed] {
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        assert!(error.to_string().contains("there is no connection"), "{error}");
        assert!(error.with_causes().to_string().contains("nobody listens"), "{error:?}");
    }
}

/// A proxy that is connected and does not answer is reported differently from one that has vanished.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_proxy_that_is_connected_times_out() {
    let proxy = proxy().start().await.unwrap();
    let relay = Relay::start(proxy.address()).await;
    let (short, soon) = (Duration::from_millis(300), Duration::from_secs(2));
    let options = patient().heartbeat_interval(soon).heartbeat_timeout(soon);
    let actor = Actor::builder("left").proxy(relay.address()).options(options).build().unwrap();
    let message = Message::of("a", 1).unwrap();
    let answering = |request: Message| async move { request.reply() };
    actor.subscribe_with("a", 1, answering).await.unwrap();
    actor.request(&message, PATIENCE).await.unwrap();
    relay.swallow();
    let failures = async || {
        actor.publish(&message).await.unwrap();
        (actor.flush(short).await.unwrap_err(), actor.request(&message, short).await.unwrap_err())
    };
    let (flushed, asked) = failures().await;
    assert_eq!((flushed.kind(), asked.kind()), (ErrorKind::Timeout, ErrorKind::Timeout));
    assert!(actor.is_connected(), "the heartbeats were too fast");
    within("the loss", async {
        while actor.is_connected() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let (flushed, asked) = failures().await;
    for error in [flushed, asked] {
        assert_eq!(error.kind(), ErrorKind::NotConnected, "{error:?}");
        assert!(error.source().is_some(), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_without_a_proxy_says_how_much_was_not_sent() {
    let proxy = proxy().start().await.unwrap();
    let publisher = connect(&proxy);
    publisher.connect().await.unwrap();
    let mut events = publisher.events();
    proxy.stop(LINGER).await;
    within("the end of the connection", events.next()).await;
    for number in 0..10 {
        publisher.publish(&Message::of(topic("data"), number).unwrap()).await.unwrap();
    }
    assert_eq!(publisher.close(Duration::from_millis(300)).await.unsent, 10);
    let error = publisher.publish(&Message::of(topic("data"), 1).unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_sockets_and_pipes_in_memory_carry_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let ipc = Endpoint::Ipc(folder.path().join("xmsg.sock"));
    for endpoint in [ipc, Endpoint::Inproc("carry".into())] {
        let mut subscriber = Subscriber::new(SocketOptions::default());
        subscriber.subscribe("").unwrap();
        let endpoint = subscriber.bind(&endpoint).await.unwrap();
        let publisher = Publisher::new(SocketOptions::default());
        publisher.connect(endpoint.clone());
        within("the subscription", publisher.wait_for_subscriber(b"")).await.unwrap();
        for number in 0..5000_u32 {
            publisher.publish([number.to_be_bytes().to_vec(), vec![7; 1000]]).await.unwrap();
        }
        for number in 0..5000_u32 {
            let message = within("a message", subscriber.recv()).await.unwrap();
            assert_eq!(message.frames()[0], number.to_be_bytes().to_vec(), "{endpoint}");
        }
        assert_eq!(publisher.close(LINGER).await, 0);
        subscriber.close().await;
        // The endpoint is free again, and a leftover socket file is replaced.
        let again = Subscriber::new(SocketOptions::default());
        within("a second bind", again.bind(&endpoint)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_at_its_mark_makes_the_publisher_wait() {
    // Nothing is read at the other end, because the listener never accepts.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::tcp("127.0.0.1", listener.local_addr().unwrap().port());
    let mark = xmsg_zmq::HighWaterMark::bytes(10_000);
    let publisher = Publisher::new(SocketOptions::default().send_high_water_mark(mark));
    publisher.connect(endpoint);
    let mut accepted = 0;
    let full = loop {
        match publisher.try_publish([vec![0; 1000]]) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), ErrorKind::Full);
    assert_eq!(accepted, 9, "1009 bytes each");
    let waiting = tokio::time::timeout(Duration::from_millis(50), publisher.publish([vec![0; 1000]])).await;
    assert!(waiting.is_err(), "it waits");
    assert_eq!(publisher.close(Duration::ZERO).await, 9, "the one that waited was not accepted");
}
