//! Tests of the reports about dropped messages. A subscriber learns soon, and up to the last message, how
//! many messages the proxy has dropped for it. No other client gets these reports.

use std::time::{Duration, Instant};

use xmsg_core::{Actor, ConnectOptions, Connection, Message};
use xmsg_proxy::{Config, Policy, Proxy};
use xmsg_tests::raw::{Raw, ping};
use xmsg_tests::{PATIENCE, connect, patient, start_tracing, within};
use xmsg_zmq::{DropReason, HighWaterMark, SocketEvent, SocketEvents, TcpOptions};
use xmsg_zmtp::Limits;

const MARK: usize = 64 << 10;
const DATA_LEN: usize = 4 << 10;

async fn proxy(policy: Policy) -> Proxy {
    start_tracing();
    let tcp = TcpOptions { send_buffer: Some(16 << 10), ..TcpOptions::default() };
    let config = Config { policy, high_water_mark: HighWaterMark::bytes(MARK), tcp, ..Config::default() };
    Proxy::bind("127.0.0.1:0").config(config).start().await.unwrap()
}

/// Returns options for a subscriber with very small queues.
fn tight() -> ConnectOptions {
    patient().before_connect(|socket, _| {
        let tcp = TcpOptions { receive_buffer: Some(16 << 10), ..TcpOptions::default() };
        socket.receive_high_water_mark(16 << 10).tcp(tcp)
    })
}

/// Waits for an event that reports drops. Returns how many messages were dropped since the last report, and
/// in total.
async fn dropped(events: &mut SocketEvents) -> (u64, u64) {
    within("an event", async {
        loop {
            let event = events.next().await.expect("the socket is there");
            if let SocketEvent::DroppedByPeer { reason, messages, total, .. } = event {
                assert_eq!(reason, DropReason::TooSlow);
                return (messages, total);
            }
        }
    })
    .await
}

/// Publishes these numbers, and waits until the proxy has confirmed them.
async fn publish(publisher: &Connection, topic: &str, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let mut data = vec![0; DATA_LEN];
        data[..8].copy_from_slice(&number.to_be_bytes());
        publisher.publish(&Message::of(topic, data).unwrap()).await.unwrap();
    }
    publisher.flush(PATIENCE).await.unwrap();
}

/// Reads until the last message, which is published when there is room again. Returns how many messages came
/// before it.
async fn read_all(subscription: &mut xmsg_core::Subscription) -> u64 {
    let mut received = 0;
    loop {
        let message = within("a message", subscription.next()).await.unwrap().unwrap();
        if message.topic().as_bytes() == b"t:end" {
            return received;
        }
        received += 1;
    }
}

/// The received messages and the reported drops are together all published messages, under each policy that
/// drops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_received_and_what_is_told_are_all_that_was_published() {
    const MESSAGES: u64 = 3000;
    for policy in [Policy::DropNewest, Policy::DropOldest, Policy::Conflate] {
        let proxy = proxy(policy).await;
        let subscriber = Connection::with_options(proxy.address().clone(), tight()).unwrap();
        let mut subscription = subscriber.subscribe("t").await.unwrap();
        let (mut events, mut of_connection) = (subscription.events(), subscriber.events());
        let publisher = connect(&proxy);
        publish(&publisher, "t", 0..MESSAGES).await;
        let reading = async {
            let received = read_all(&mut subscription).await;
            (received, subscription)
        };
        let reading = tokio::spawn(reading);
        // The drops are reported as soon as the subscriber reads again.
        let (news, mut total) = dropped(&mut events).await;
        assert_eq!(news, total, "{policy:?}");
        assert_eq!(dropped(&mut of_connection).await, (news, total), "the connection tells of it, too");
        let mut sum = news;
        let lost = || proxy.subscribers().iter().map(|subscriber| subscriber.dropped.messages).sum::<u64>();
        within("room", async {
            while proxy.subscribers().iter().any(|subscriber| subscriber.queued.messages > 0) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        publisher.publish(&Message::of("t:end", 0).unwrap()).await.unwrap();
        let (received, _subscription) = within("the end", reading).await.unwrap();
        while total < lost() {
            let (news, all) = dropped(&mut events).await;
            assert!(all > total, "{policy:?}: a count that does not grow");
            (sum, total) = (sum + news, all);
        }
        assert_eq!(sum, total, "{policy:?}");
        assert_eq!(received + total, MESSAGES, "{policy:?}");
    }
}

/// The first drop is reported at once, and the last is always reported. Between them there is at most one
/// report every 100 ms.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_drops_are_told_now_and_then() {
    let proxy = proxy(Policy::DropNewest).await;
    let actor = Actor::builder("slow").proxy(proxy.address()).options(tight()).build().unwrap();
    let handle = actor
        .subscribe_with("t", 1, |_| async { tokio::time::sleep(Duration::from_millis(1)).await })
        .await
        .unwrap();
    let (mut events, mut of_actor) = (handle.events().unwrap(), actor.events());
    let publisher = connect(&proxy);
    let (started, mut number) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_millis(500) {
        publish(&publisher, "t", number..number + 100).await;
        number += 100;
    }
    let lost = || proxy.subscribers().iter().map(|subscriber| subscriber.dropped.messages).sum::<u64>();
    assert!(lost() > 0);
    let (mut count, mut total) = (0, 0);
    while total < lost() {
        total = dropped(&mut events).await.1;
        count += 1;
    }
    // However loaded the machine is, there are no more events than the interval allows, plus one at the
    // beginning.
    let most = started.elapsed().as_millis() / 100 + 1;
    assert!(count <= most, "{count} events in {:?}", started.elapsed());
    let (_, first) = dropped(&mut of_actor).await;
    assert!(first <= total);
}

/// A subscriber with a limit of the message size is informed of a message beyond it, with the reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_above_the_limit_of_a_subscriber_are_told_with_the_reason() {
    let proxy = proxy(Policy::DropNewest).await;
    let options = patient()
        .before_connect(|socket, _| socket.limits(Limits { message_size: 1000, ..Limits::default() }));
    let subscriber = Connection::with_options(proxy.address().clone(), options).unwrap();
    let subscription = subscriber.subscribe("t").await.unwrap();
    let mut events = subscription.events();
    publish(&connect(&proxy), "t", 0..1).await;
    within("the event", async {
        loop {
            let event = events.next().await.expect("the socket is there");
            if let SocketEvent::DroppedByPeer { reason, messages, total, .. } = event {
                assert_eq!((reason, messages, total), (DropReason::TooLarge, 1, 1));
                return;
            }
        }
    })
    .await;
}

/// A subscriber that has not announced support for these reports gets only messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_subscriber_gets_nothing_new() {
    let proxy = proxy(Policy::DropNewest).await;
    let mut foreign = Raw::handshake(proxy.address().subscribe_port(), "SUB").await;
    foreign.send_message(&[b"\x01t"]).await;
    let publisher = connect(&proxy);
    within("its subscription", publisher.wait_for_subscriber(&xmsg_tests::topic("t"))).await.unwrap();
    let lost = || proxy.subscribers().iter().map(|subscriber| subscriber.dropped.messages).sum::<u64>();
    let mut count = 0;
    while lost() == 0 {
        publish(&publisher, "t", count..count + 100).await;
        count += 100;
    }
    foreign.send(&ping()).await;
    let mut received = 0;
    loop {
        let (flags, body) = foreign.next_frame().await.expect("the connection goes on");
        if flags & 4 != 0 {
            assert!(body.starts_with(b"\x04PONG"), "{body:?}");
        } else if flags & 1 == 0 {
            received += 1;
        }
        if received + lost() == count {
            return;
        }
    }
}

/// A lost connection and the next one mark the two ends of a gap. Counts continue over both connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_told_by_its_two_ends() {
    let first = proxy(Policy::BLOCK).await;
    let address = first.address().clone();
    let subscriber = connect(&first);
    let subscription = subscriber.subscribe("t").await.unwrap();
    let mut events = subscription.events();
    first.stop(PATIENCE).await;
    let SocketEvent::Disconnected { peer: lost, .. } = within("the loss", events.next()).await.unwrap()
    else {
        panic!("not the loss of the connection");
    };
    let _second = within("its ports", async {
        loop {
            match Proxy::bind(address.to_string()).start().await {
                Ok(proxy) => return proxy,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await;
    within("its return", async {
        loop {
            if let SocketEvent::Connected { peer } = events.next().await.unwrap() {
                assert_eq!(peer, lost);
                return;
            }
        }
    })
    .await;
}
