//! Tests that messages arrive in the order of the calls that sent them, whichever calls wait, come later or
//! are cancelled meanwhile.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures::future::{BoxFuture, MaybeDone, maybe_done};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, SinkExt, StreamExt, poll};
use xmsg_core::{ConnectOptions, Connection, ErrorKind, Message, Subscription};
use xmsg_proxy::Proxy;
use xmsg_tests::{PATIENCE, connect, next, proxy, topic, within};
use xmsg_zmq::link::transport::{Listener, Stream};
use xmsg_zmq::{
    Dealer, Endpoint, HighWaterMark, Overflow, Publisher, Router, SocketOptions, Subscriber, TcpOptions,
};

/// The number of pairs of calls that are tried, so that a fault that occurs only sometimes is found.
const PAIRS: usize = 500;
/// A high-water mark that is reached soon.
const MARK: usize = 16 << 10;
const LINGER: Duration = Duration::from_secs(60);

/// Returns a message of about 1 KiB with this number.
fn message(number: i32) -> Message {
    Message::of("order", vec![number; 256]).unwrap()
}

/// Returns a connection that is full soon, or one with the default high-water mark, and a subscription to
/// what it publishes.
async fn connected(proxy: &Proxy, mark: Option<usize>) -> (Connection, Subscription) {
    let publisher = match mark {
        None => connect(proxy),
        Some(mark) => {
            let options = ConnectOptions::new()
                .connection_timeout(PATIENCE)
                .before_connect(move |socket, _| socket.send_high_water_mark(HighWaterMark::bytes(mark)));
            Connection::with_options(proxy.address(), options).unwrap()
        }
    };
    let received = connect(proxy).subscribe([topic("order")]).await.unwrap();
    publisher.connect().await.unwrap();
    within("the subscriber", publisher.wait_for_subscriber(&topic("order"))).await.unwrap();
    (publisher, received)
}

/// Returns the numbers of the next `count` messages.
async fn numbers(received: &mut Subscription, count: i32) -> Vec<i32> {
    let mut numbers = Vec::new();
    for _ in 0..count {
        numbers.push(next(received).await.value::<Vec<i32>>().unwrap()[0]);
    }
    numbers
}

fn both_runtimes(test: impl AsyncFn()) {
    let mut current = tokio::runtime::Builder::new_current_thread();
    let mut multi = tokio::runtime::Builder::new_multi_thread();
    for builder in [&mut current, multi.worker_threads(2)] {
        builder.enable_all().build().unwrap().block_on(test());
    }
}

/// A call that has been made: its future was polled once, and may be done.
type Call<'a, T> = Pin<Box<MaybeDone<BoxFuture<'a, T>>>>;

async fn call<'a, T>(future: impl Future<Output = T> + Send + 'a) -> Call<'a, T> {
    let mut call = Box::pin(maybe_done(future.boxed()));
    let _ = poll!(&mut call);
    call
}

async fn outcome<T>(mut call: Call<'_, T>) -> T {
    call.as_mut().await;
    call.as_mut().take_output().expect("nobody has taken it")
}

/// Publishes until there is no room. Returns how many messages were accepted.
fn fill(publisher: &Connection) -> i32 {
    let mut count = 0;
    while publisher.try_publish(&message(count)).is_ok() {
        count += 1;
    }
    count
}

#[test]
fn two_publishes_that_wait_at_the_same_time_keep_the_order_of_the_calls() {
    both_runtimes(async || {
        let proxy = proxy().start().await.unwrap();
        let (publisher, mut received) = connected(&proxy, Some(MARK)).await;
        for pair in 0..PAIRS {
            let count = fill(&publisher);
            let messages = [message(count), message(count + 1)];
            let first = call(publisher.publish(&messages[0])).await;
            let second = call(publisher.publish(&messages[1])).await;
            // A call that is polled first when there is room must not have an advantage.
            let (a, b) = if pair % 2 == 0 { (first, second) } else { (second, first) };
            outcome(a).await.unwrap();
            outcome(b).await.unwrap();
            assert!(numbers(&mut received, count + 2).await.into_iter().eq(0..count + 2));
        }
    });
}

#[test]
fn a_publish_that_finds_room_does_not_overtake_one_that_waits() {
    both_runtimes(async || {
        let proxy = proxy().start().await.unwrap();
        let (publisher, mut received) = connected(&proxy, Some(MARK)).await;
        for _ in 0..PAIRS {
            let count = fill(&publisher);
            let messages = [message(count), message(count + 1)];
            let first = call(publisher.publish(&messages[0])).await;
            while publisher.queued().bytes > MARK as u64 / 2 {
                tokio::task::yield_now().await;
            }
            publisher.publish(&messages[1]).await.unwrap();
            outcome(first).await.unwrap();
            assert!(numbers(&mut received, count + 2).await.into_iter().eq(0..count + 2));
        }
    });
}

#[test]
fn futures_that_one_task_polls_together_publish_in_their_order() {
    const COUNT: i32 = 5000;
    both_runtimes(async || {
        let proxy = proxy().start().await.unwrap();
        // One high-water mark is the default, and with the other one nearly all calls have to wait.
        for mark in [None, Some(MARK)] {
            let (publisher, mut received) = connected(&proxy, mark).await;
            let messages: Vec<Message> = (0..COUNT).map(message).collect();
            let all = || messages.iter().map(|message| publisher.publish(message));

            let sending = futures::future::join_all(all());
            let (sent, arrived) = futures::join!(sending, numbers(&mut received, COUNT));
            assert!(sent.iter().all(Result::is_ok));
            assert!(arrived.into_iter().eq(0..COUNT), "join_all, mark {mark:?}");

            let sending = all().collect::<FuturesUnordered<_>>().collect::<Vec<_>>();
            let (sent, arrived) = futures::join!(sending, numbers(&mut received, COUNT));
            assert!(sent.iter().all(Result::is_ok));
            assert!(arrived.into_iter().eq(0..COUNT), "FuturesUnordered, mark {mark:?}");
        }
    });
}

#[test]
fn whoever_gives_up_disturbs_nobody_who_waits() {
    const WAITING: i32 = 10;
    both_runtimes(async || {
        let proxy = proxy().start().await.unwrap();
        let (publisher, mut received) = connected(&proxy, Some(MARK)).await;
        let mut rng = Rng::with_seed(11);
        for _ in 0..PAIRS / 5 {
            let count = fill(&publisher);
            let messages: Vec<Message> = (count..=count + WAITING).map(message).collect();
            let (last, messages) = messages.split_last().unwrap();
            let mut calls = Vec::new();
            for message in messages {
                calls.push(call(publisher.publish(message)).await);
            }
            let mut certain: BTreeSet<i32> = (0..count).chain([count + WAITING]).collect();
            let mut kept = Vec::new();
            for (number, call) in (count..).zip(calls) {
                if rng.bool() {
                    certain.insert(number);
                    kept.push(call);
                }
            }
            rng.shuffle(&mut kept);
            for call in kept {
                outcome(call).await.unwrap();
            }
            publisher.publish(last).await.unwrap();
            let mut arrived = Vec::new();
            while arrived.last() != Some(&(count + WAITING)) {
                arrived.extend(numbers(&mut received, 1).await);
            }
            assert!(arrived.is_sorted_by(|a, b| a < b), "{arrived:?}");
            assert!(certain.is_subset(&arrived.into_iter().collect()));
        }
    });
}

/// Connects the publisher to a proxy that does not read, so that only the queue accepts messages.
async fn stalled(publisher: &Publisher) -> (Listener, Stream) {
    static NAMES: AtomicUsize = AtomicUsize::new(0);
    let name = format!("order-{}", NAMES.fetch_add(1, Ordering::Relaxed));
    let mut listener = Listener::bind(&Endpoint::Inproc(name.clone()), TcpOptions::default()).await.unwrap();
    publisher.connect(Endpoint::Inproc(name));
    let (stream, _) = listener.accept().await;
    (listener, stream)
}

#[tokio::test]
async fn while_somebody_waits_a_try_finds_no_room() {
    let mark = HighWaterMark::bytes(1000);
    let publisher = Publisher::new(SocketOptions::default().send_high_water_mark(mark));
    let _proxy = stalled(&publisher).await;
    publisher.try_publish([vec![0; 600]]).unwrap();
    let long = call(publisher.publish([vec![1; 600]])).await;
    let full = publisher.try_publish([vec![2; 10]]).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Full);
    drop(long);
    publisher.try_publish([vec![2; 10]]).unwrap();
}

#[tokio::test]
async fn a_publish_that_waits_ends_with_its_publisher() {
    let mark = HighWaterMark::bytes(1000);
    let publisher = Publisher::new(SocketOptions::default().send_high_water_mark(mark));
    let _proxy = stalled(&publisher).await;
    publisher.try_publish([vec![0; 600]]).unwrap();
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let publisher = publisher.clone();
            tokio::spawn(async move { publisher.publish([vec![1; 600]]).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(publisher.close(Duration::ZERO).await, 1);
    for waiting in waiting {
        let refused = within("the end", waiting).await.unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Closed);
    }
}

/// A message that was fed to a sink has its place, although the sink was not flushed.
#[tokio::test]
async fn what_is_fed_to_a_sink_comes_before_what_is_published_later() {
    let mut receiver = Subscriber::new(SocketOptions::default());
    let endpoint = receiver.bind(&Endpoint::tcp("127.0.0.1", 0)).await.unwrap();
    receiver.subscribe("").unwrap();
    let mark = HighWaterMark { bytes: 1 << 20, messages: 3 };
    let publisher = Publisher::new(SocketOptions::default().send_high_water_mark(mark));
    publisher.connect(endpoint);
    let mut sink = Box::pin(publisher.sink());
    for number in 0..100_u8 {
        if number % 2 == 0 {
            within("the sink", sink.feed([vec![number]].into())).await.unwrap();
        } else {
            within("publish", publisher.publish([vec![number]])).await.unwrap();
        }
    }
    within("the sink", sink.close()).await.unwrap();
    for number in 0..100_u8 {
        assert_eq!(within("a message", receiver.recv()).await.unwrap().frames()[0], [number][..]);
    }
}

/// A bound publisher has several slow and fast subscribers, and several tasks publish and cancel calls. All
/// subscribers get the same messages in the same order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_connection_of_a_publisher_gets_the_same_order() {
    const SUBSCRIBERS: usize = 4;
    const TASKS: u32 = 8;
    const EACH: u32 = 500;
    let mark = HighWaterMark::bytes(MARK);
    let options = SocketOptions::default().overflow(Overflow::Wait).send_high_water_mark(mark);
    let publisher = Publisher::new(options);
    let endpoint = publisher.bind(&Endpoint::tcp("127.0.0.1", 0)).await.unwrap();
    let mut receiving = Vec::new();
    for subscriber in 0..SUBSCRIBERS {
        let options = SocketOptions::default().receive_high_water_mark(MARK);
        let mut socket = Subscriber::new(options);
        socket.subscribe(format!("here {subscriber}")).unwrap();
        socket.subscribe("all").unwrap();
        socket.connect(endpoint.clone());
        within("the subscription", publisher.wait_for_subscriber(format!("here {subscriber}").as_bytes()))
            .await
            .unwrap();
        receiving.push(tokio::spawn(async move {
            let mut received = Vec::new();
            loop {
                let message = within("a message", socket.recv()).await.unwrap();
                let data = &message.frames()[1];
                if data.is_empty() {
                    return received;
                }
                received.push(u32::from_be_bytes(data[..4].try_into().unwrap()));
                if subscriber == 0 && received.len() % 64 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }));
    }
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let publisher = publisher.clone();
            tokio::spawn(async move {
                for number in 0..EACH {
                    let mut data = (task << 16 | number).to_be_bytes().to_vec();
                    data.resize(4 + (number as usize * 7) % 2000, 0);
                    publisher.publish([Bytes::from_static(b"all"), data.into()]).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        within("a publisher", task).await.unwrap();
    }
    publisher.publish(["all", ""]).await.unwrap();
    let mut all = Vec::new();
    for receiving in receiving {
        all.push(within("a subscriber", receiving).await.unwrap());
    }
    assert_eq!(all[0].len(), (TASKS * EACH) as usize);
    for task in 0..TASKS {
        let of_this = all[0].iter().filter(|number| **number >> 16 == task).map(|number| number & 0xffff);
        assert!(of_this.eq(0..EACH));
    }
    for other in &all[1..] {
        assert!(*other == all[0], "two subscribers got what two tasks sent in different orders");
    }
    assert_eq!(publisher.close(LINGER).await, 0);
}

/// No connection gets the message if one of them had no room for it, even if others publish at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_try_is_refused_by_all_connections_or_none() {
    const TASKS: u32 = 4;
    let mark = HighWaterMark { bytes: 1 << 20, messages: 10 };
    for _ in 0..PAIRS / 5 {
        let publisher = Publisher::new(SocketOptions::default().send_high_water_mark(mark));
        let _proxies = [stalled(&publisher).await, stalled(&publisher).await, stalled(&publisher).await];
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                let publisher = publisher.clone();
                tokio::spawn(async move { (0..5).filter(|_| publisher.try_publish(["x"]).is_ok()).count() })
            })
            .collect();
        let mut accepted = 0;
        for task in tasks {
            accepted += task.await.unwrap();
        }
        assert_eq!((accepted, publisher.queued().messages), (10, 30));
    }
}

/// Messages of a dealer wait for its router.
#[tokio::test]
async fn what_a_dealer_sends_comes_in_the_order_of_the_calls() {
    let router = Router::new(SocketOptions::default());
    let endpoint = router.bind(&Endpoint::tcp("127.0.0.1", 0)).await.unwrap();
    let mark = HighWaterMark { bytes: 1 << 20, messages: 2 };
    let dealer = Dealer::connecting_to(endpoint, SocketOptions::default().send_high_water_mark(mark));
    for _ in 0..PAIRS {
        let mut calls = Vec::new();
        for number in 0..6_u8 {
            calls.push(call(dealer.send([vec![number]])).await);
        }
        calls.reverse();
        for call in calls {
            within("the dealer", outcome(call)).await.unwrap();
        }
        for number in 0..6_u8 {
            let (_, message) = within("a message", router.recv()).await.unwrap();
            assert_eq!(message.frames()[0], [number][..]);
        }
    }
}
