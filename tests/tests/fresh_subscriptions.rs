//! Tests that new subscriptions miss nothing, however busy the proxy is: what is published right after
//! `subscribe` has returned is always received. `a_confirmed_subscription_misses_nothing` in `forwarding.rs`
//! is the same test without load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use xmsg_core::security::{KeyPair, Security};
use xmsg_core::{ConnectOptions, Connection, ErrorKind, Message, Subscription};
use xmsg_proxy::security::{Mechanism, Rights, Rules};
use xmsg_proxy::{Config, Policy, Proxy};
use xmsg_tests::raw::Raw;
use xmsg_tests::{PATIENCE, connect, next, start_tracing, topic, within};
use xmsg_zmq::HighWaterMark;

const LINGER: Duration = Duration::from_secs(60);
const PUBLISHERS: usize = 2;
const SUBSCRIBERS: usize = 2;
const QUEUE: usize = 1 << 20;

/// The load: publishers that send as fast as the proxy accepts messages.
#[derive(Debug, Default)]
struct Load {
    stop: AtomicBool,
    /// The number of times that a publisher had to wait for room.
    waits: AtomicU64,
    /// The number of messages that were received.
    received: AtomicU64,
}

impl Load {
    /// Publishes until `stop` is set, and returns how many messages there were. Their numbers are in their
    /// topics.
    async fn publish(self: Arc<Self>, connection: Arc<Connection>, publisher: usize) -> u64 {
        let data = Bytes::from(vec![7; 16 << 10]);
        let message = |word: &str| {
            Message::with_mime(topic(&format!("load:{publisher}:{word}")), "binary/bytes", data.clone())
        };
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let message = message(&number.to_string());
            match connection.try_publish(&message) {
                Err(error) if error.kind() == ErrorKind::Full => {
                    self.waits.fetch_add(1, Ordering::Relaxed);
                    connection.publish(&message).await.unwrap();
                }
                result => result.unwrap(),
            }
            number += 1;
            tokio::task::consume_budget().await;
        }
        connection.publish(&message("end")).await.unwrap();
        number
    }

    /// Receives without a gap until every publisher has sent its last message.
    async fn receive_all(self: Arc<Self>, mut messages: Subscription) -> Vec<u64> {
        let mut expected = vec![0; PUBLISHERS];
        let mut ended = 0;
        while ended < PUBLISHERS {
            let message = next(&mut messages).await;
            let name = message.topic().to_str().unwrap();
            let (publisher, word) = name["load:".len()..].split_once(':').unwrap();
            let due: &mut u64 = &mut expected[publisher.parse::<usize>().unwrap()];
            if word == "end" {
                ended += 1;
            } else {
                assert_eq!(word, due.to_string());
                *due += 1;
                self.received.fetch_add(1, Ordering::Relaxed);
            }
        }
        expected
    }

    /// Receives whatever comes, until the subscription ends.
    async fn receive_some(self: Arc<Self>, mut messages: Subscription) {
        while messages.next().await.is_some() {
            self.received.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn publishers(load: &Arc<Load>, proxy: &Proxy) -> (Vec<Arc<Connection>>, Vec<JoinHandle<u64>>) {
    let setup = ConnectOptions::new().high_water_mark(QUEUE).connection_timeout(PATIENCE);
    let mut connections = Vec::new();
    let mut tasks = Vec::new();
    for publisher in 0..PUBLISHERS {
        let connection = Arc::new(Connection::with_options(proxy.address().clone(), setup.clone()).unwrap());
        connection.connect().await.unwrap();
        tasks.push(tokio::spawn(load.clone().publish(connection.clone(), publisher)));
        connections.push(connection);
    }
    (connections, tasks)
}

/// Makes `rounds` subscriptions one after another, and expects the message that is published right after
/// each. `pressure` returns a count that increases while the proxy has more to do than it can.
async fn nothing_is_missed(
    rounds: usize,
    proxy: &Proxy,
    load: &Load,
    loaded: &[Arc<Connection>],
    pressure: impl Fn() -> u64,
) {
    let idle = connect(proxy);
    idle.connect().await.unwrap();
    within("pressure", async {
        while pressure() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let before = (pressure(), load.received.load(Ordering::Relaxed));
    for round in 0..rounds {
        let name = topic(&format!("fresh:{round}:"));
        let mut messages = connect(proxy).subscribe([name.clone()]).await.unwrap();
        // The publisher is one that has nothing else to do, or one of the load with a full queue.
        let publisher = if round % 4 == 0 { &*loaded[round / 4 % PUBLISHERS] } else { &idle };
        publisher.publish(&Message::of(name, "fresh").unwrap()).await.unwrap();
        assert_eq!(next(&mut messages).await.value::<String>().unwrap(), "fresh");
    }
    // There was pressure and load all the time.
    let after = (pressure(), load.received.load(Ordering::Relaxed));
    assert!(after.0 > before.0 + 100 && after.1 > before.1 + rounds as u64, "{before:?} {after:?}");
    load.stop.store(true, Ordering::Relaxed);
}

async fn proxy(policy: Policy) -> Proxy {
    start_tracing();
    let config = Config { policy, high_water_mark: HighWaterMark::bytes(QUEUE), ..Config::default() };
    Proxy::bind("127.0.0.1:0").config(config).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmed_subscription_misses_nothing_while_publishers_wait_for_slow_subscribers() {
    let proxy = proxy(Policy::BLOCK).await;
    let load = Arc::new(Load::default());
    let mut receiving = Vec::new();
    for _ in 0..SUBSCRIBERS {
        let messages = connect(&proxy).subscribe([topic("load:")]).await.unwrap();
        receiving.push(tokio::spawn(load.clone().receive_all(messages)));
    }
    let (connections, sending) = publishers(&load, &proxy).await;
    nothing_is_missed(1000, &proxy, &load, &connections, || load.waits.load(Ordering::Relaxed)).await;

    let mut sent = Vec::new();
    for task in sending {
        sent.push(within("a publisher", task).await.unwrap());
    }
    for task in receiving {
        assert_eq!(within("a subscriber", task).await.unwrap(), sent);
    }
    assert_eq!(proxy.totals().dropped.messages, 0);
    for connection in connections {
        assert!(within("close", connection.close(LINGER)).await.is_nothing());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmed_subscription_misses_nothing_while_the_proxy_drops_for_slow_subscribers() {
    let proxy = proxy(Policy::DropNewest).await;
    let load = Arc::new(Load::default());
    // This subscriber reads nothing at all.
    let mut stalled = Raw::handshake(proxy.address().subscribe_port(), "SUB").await;
    stalled.send_message(&[b"\x01load:"]).await;
    let messages = connect(&proxy).subscribe([topic("load:")]).await.unwrap();
    let receiving = tokio::spawn(load.clone().receive_some(messages));
    let (connections, sending) = publishers(&load, &proxy).await;
    nothing_is_missed(300, &proxy, &load, &connections, || proxy.totals().dropped.messages).await;

    for task in sending {
        within("a publisher", task).await.unwrap();
    }
    for connection in connections {
        assert!(within("close", connection.close(LINGER)).await.is_nothing());
    }
    receiving.abort();
}

/// All topics are confirmed within time limits that are meant for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_to_very_many_topics_is_confirmed() {
    const TOPICS: i32 = 30_000;
    let proxy = Proxy::bind("127.0.0.1:0").start().await.unwrap();
    let (subscriber, publisher) = (connect(&proxy), connect(&proxy));
    let topics: Vec<String> = (0..TOPICS).map(|number| format!("many:{number:05}")).collect();
    let mut messages = within("the subscription", subscriber.subscribe(topics)).await.unwrap();
    assert!(proxy.subscriptions() >= TOPICS as usize);
    // The topic that is confirmed last is not the last one in the table.
    for number in [0, TOPICS / 2, TOPICS - 1] {
        let topic = topic(&format!("many:{number:05}"));
        publisher.publish(&Message::of(topic.clone(), number).unwrap()).await.unwrap();
        assert_eq!(next(&mut messages).await.topic(), &topic);
    }
}

/// If one of many topics is never confirmed because it is not allowed, the error names it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topic_that_is_not_confirmed_is_named() {
    let server = KeyPair::generate().unwrap();
    let rights = Rights { subscribe: vec!["many:".into()], ..Rights::all() };
    let rules = Rules { other_keys: Some(Arc::new(rights)), ..Rules::default() };
    let proxy = Proxy::bind("127.0.0.1:0").security(Mechanism::Curve(server.clone()), rules);
    let proxy = proxy.start().await.unwrap();
    let setup = ConnectOptions::new()
        .connection_timeout(PATIENCE)
        .subscription_timeout(Duration::from_secs(5))
        .security(Security::anonymous(*server.public()).unwrap());
    let connection = Connection::with_options(proxy.address().clone(), setup).unwrap();
    let topics = (0..1000).map(|number| format!("many:{number}")).chain(["others".to_owned()]);
    let error = within("the answer", connection.subscribe(topics.collect::<Vec<_>>())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().contains("others"), "{error}");
}
