//! Tests of each policy with a subscriber that stops reading, and a healthy subscriber beside it that loses
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use xmsg_proxy::{Config, Policy, Proxy, SubscriberStats, TopicPolicy};
use xmsg_tests::raw::{self, Raw};
use xmsg_tests::{start_tracing, within};
use xmsg_zmq::{Endpoint, HighWaterMark, Publisher, SocketOptions, Subscriber, TcpOptions};

const MARK: usize = 512 << 10;
const DATA_LEN: usize = 16 << 10;

/// A subscriber that reads only when the test does.
struct Slow {
    raw: Raw,
    peer: String,
}

impl Slow {
    async fn start(proxy: &Proxy, publisher: &Publisher, prefix: &str) -> Self {
        let mut raw = Raw::handshake(proxy.address().subscribe_port(), "SUB").await;
        let peer = raw.stream.local_addr().unwrap().to_string();
        raw.send_message(&[format!("\x01{prefix}")]).await;
        // The publisher learns of the second subscription when the first is in effect.
        raw.send_message(&[format!("\x01{peer}")]).await;
        within("its subscription", publisher.wait_for_subscriber(peer.as_bytes())).await.unwrap();
        Self { raw, peer }
    }

    fn stats(&self, proxy: &Proxy) -> Option<SubscriberStats> {
        proxy.subscribers().into_iter().find(|stats| stats.peer == self.peer)
    }

    fn present(&self, proxy: &Proxy) -> SubscriberStats {
        self.stats(proxy).expect("it is still connected")
    }

    /// Returns the topics and numbers of everything that was not dropped, once nothing more is published.
    async fn read_all(&mut self, proxy: &Proxy, published: u64) -> Vec<(Bytes, u32)> {
        let mut messages = Vec::new();
        while (messages.len() as u64) < published - self.present(proxy).dropped.messages {
            let (flags, topic) = self.raw.next_frame().await.expect("the connection goes on");
            assert_eq!(flags & 5, 1, "a topic, and more behind it");
            let (flags, data) = self.raw.next_frame().await.expect("whole messages");
            assert_eq!((flags & 5, data.len()), (0, DATA_LEN));
            messages.push((topic, number(&data)));
        }
        assert!(messages.is_sorted_by_key(|(_, number)| *number), "in order");
        messages
    }
}

fn number(data: &[u8]) -> u32 {
    u32::from_be_bytes(data[..4].try_into().unwrap())
}

struct Scene {
    proxy: Proxy,
    publisher: Publisher,
    healthy: Subscriber,
    published: Vec<(Bytes, u32)>,
}

impl Scene {
    async fn start(config: Config) -> Self {
        start_tracing();
        let tcp = TcpOptions { send_buffer: Some(64 << 10), ..TcpOptions::default() };
        let config = Config { tcp, ..config };
        let proxy = Proxy::bind("127.0.0.1:0").config(config).start().await.unwrap();
        let publisher = Publisher::new(SocketOptions::default());
        publisher.connect(Endpoint::tcp("127.0.0.1", proxy.address().publish_port()));
        let healthy = Subscriber::new(SocketOptions::default());
        // The healthy subscriber does not subscribe to everything, so that the publisher is asked for other
        // subscriptions, too.
        for prefix in ["t", "other", "healthy"] {
            healthy.subscribe(prefix).unwrap();
        }
        healthy.connect(Endpoint::tcp("127.0.0.1", proxy.address().subscribe_port()));
        within("the healthy one", publisher.wait_for_subscriber(b"healthy")).await.unwrap();
        Self { proxy, publisher, healthy, published: Vec::new() }
    }

    async fn slow(&self, prefix: &str) -> Slow {
        Slow::start(&self.proxy, &self.publisher, prefix).await
    }

    /// Publishes a message, which the healthy subscriber receives at once.
    async fn publish(&mut self, topic: &str) {
        let number = self.published.len() as u32;
        let (topic, mut data) = (Bytes::copy_from_slice(topic.as_bytes()), vec![0; DATA_LEN]);
        data[..4].copy_from_slice(&number.to_be_bytes());
        self.publisher.publish([topic.clone(), data.into()]).await.unwrap();
        let received = within("a message for the healthy one", self.healthy.recv()).await.unwrap();
        assert_eq!(received.frames()[0], topic);
        assert_eq!(self::number(&received.frames()[1]), number);
        self.published.push((topic, number));
    }

    async fn publish_until(&mut self, topics: &[&str], is_enough: impl Fn(&Proxy) -> bool) {
        while !is_enough(&self.proxy) {
            for topic in topics {
                self.publish(topic).await;
            }
        }
    }
}

fn config(policy: Policy) -> Config {
    Config { policy, high_water_mark: HighWaterMark::bytes(MARK), ..Config::default() }
}

fn newest(messages: &[(Bytes, u32)]) -> BTreeMap<Bytes, u32> {
    messages.iter().cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drop_newest_keeps_what_waits() {
    let mut scene = Scene::start(config(Policy::DropNewest)).await;
    let mut slow = scene.slow("t").await;
    scene.publish_until(&["t"], |proxy| slow.present(proxy).drops.newest.messages >= 100).await;
    let stats = slow.present(&scene.proxy);
    assert_eq!(stats.dropped, stats.drops.newest);
    assert!(stats.queued.bytes <= MARK as u64, "{stats:?}");
    assert_eq!((stats.policy, stats.high_water_mark), (Policy::DropNewest, HighWaterMark::bytes(MARK)));
    let published = scene.published.len() as u64;
    let received = slow.read_all(&scene.proxy, published).await;
    assert_ne!(received.last(), scene.published.last());
    assert_eq!(scene.proxy.totals().drops, stats.drops, "the healthy one lost nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drop_oldest_ends_with_the_newest() {
    let mut scene = Scene::start(config(Policy::DropOldest)).await;
    let mut slow = scene.slow("t").await;
    scene.publish_until(&["t"], |proxy| slow.present(proxy).drops.oldest.messages >= 100).await;
    let stats = slow.present(&scene.proxy);
    assert_eq!(stats.dropped, stats.drops.oldest);
    assert!(stats.queued.bytes <= MARK as u64, "{stats:?}");
    let published = scene.published.len() as u64;
    let received = slow.read_all(&scene.proxy, published).await;
    // At least half of the high-water mark was left for the newest messages.
    let last = MARK / 2 / DATA_LEN;
    assert_eq!(received[received.len() - last..], scene.published[scene.published.len() - last..]);
    assert_eq!(scene.proxy.totals().drops, stats.drops, "the healthy one lost nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflate_begins_long_before_a_large_mark_and_ends_with_the_newest_of_each_topic() {
    let mut scene = Scene::start(Config { policy: Policy::Conflate, ..Config::default() }).await;
    let mut slow = scene.slow("t").await;
    let topics = ["t:a", "t:b", "t:c"];
    scene.publish_until(&topics, |proxy| slow.present(proxy).drops.conflated.messages >= 300).await;
    let stats = slow.present(&scene.proxy);
    assert_eq!(stats.dropped, stats.drops.conflated);
    assert!(stats.queued.bytes <= 2 << 20, "{stats:?}");
    let published = scene.published.len() as u64;
    let received = slow.read_all(&scene.proxy, published).await;
    assert_eq!(newest(&received), newest(&scene.published));
    assert_eq!(scene.proxy.totals().drops, stats.drops, "the healthy one lost nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn block_makes_the_publisher_wait_and_loses_nothing() {
    const MESSAGES: u64 = 2000;
    let mut scene = Scene::start(config(Policy::BLOCK)).await;
    let mut slow = scene.slow("t").await;
    // The healthy subscriber waits, too, but no longer than the slow one makes the publisher wait.
    let publishing = async {
        for _ in 0..MESSAGES {
            scene.publish("t").await;
        }
        scene
    };
    let publishing = tokio::spawn(publishing);
    let mut received = Vec::new();
    while received.len() as u64 != MESSAGES {
        let (flags, data) = slow.raw.next_frame().await.expect("the connection goes on");
        if flags & 5 == 0 {
            received.push(number(&data));
        }
    }
    let scene = within("the publisher", publishing).await.unwrap();
    assert_eq!(received, (0..MESSAGES as u32).collect::<Vec<_>>());
    assert_eq!(scene.proxy.totals().dropped.messages, 0);
}

/// A subscriber that reads nothing makes publishers wait for the longest wait. Then they continue without it,
/// and the others have lost nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn block_waits_no_longer_than_it_is_to() {
    let policy = Policy::Block { longest: Some(Duration::from_millis(300)) };
    let mut scene = Scene::start(config(policy)).await;
    let mut slow = scene.slow("t").await;
    // `publish` waits until the healthy subscriber has received the message.
    within("the end of the slow one", scene.publish_until(&["t"], |proxy| proxy.totals().disconnected == 1))
        .await;
    slow.raw.closed().await;
    for _ in 0..10 {
        scene.publish("t").await;
    }
    let totals = scene.proxy.totals();
    assert_eq!((totals.dropped.messages, totals.disconnected), (0, 1), "{totals:?}");
    assert!(totals.undelivered > 0 && totals.waits > 0, "{totals:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disconnect_cuts_the_slow_one_off_and_counts_what_it_leaves() {
    let mut scene = Scene::start(config(Policy::Disconnect)).await;
    let mut slow = scene.slow("t").await;
    scene.publish_until(&["t"], |proxy| proxy.totals().disconnected == 1).await;
    assert!(slow.stats(&scene.proxy).is_none());
    let totals = scene.proxy.totals();
    assert!(totals.undelivered > 0, "{totals:?}");
    assert_eq!(totals.drops.newest.messages, 1, "the one that did not fit: {totals:?}");
    slow.raw.closed().await;
    // The healthy subscriber stays connected.
    scene.publish("t").await;
    assert_eq!(scene.proxy.totals().disconnected, 1);

    // The slow subscriber may connect again.
    let again = scene.slow("t").await;
    scene.publish("t").await;
    assert_eq!(again.present(&scene.proxy).dropped.messages, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_prefix_of_the_topic_decides() {
    let policies = vec![
        TopicPolicy::new("t:old", Policy::DropOldest),
        TopicPolicy::new("t", Policy::Disconnect),
        TopicPolicy::new("t:level:", Policy::Conflate),
    ];
    let mut scene = Scene::start(Config { policies, ..config(Policy::DropNewest) }).await;
    let old = scene.slow("t:o").await;
    let level = scene.slow("t:lev").await;
    let other = scene.slow("other").await;
    let cut_off = scene.slow("t:x").await;
    let topics = ["t:older", "t:level:1", "t:level:2", "other", "t:x"];
    let is_enough = |proxy: &Proxy| {
        old.present(proxy).drops.oldest.messages >= 20
            && level.present(proxy).drops.conflated.messages >= 20
            && other.present(proxy).drops.newest.messages >= 20
            && cut_off.stats(proxy).is_none()
    };
    scene.publish_until(&topics, is_enough).await;
    for slow in [&old, &level, &other] {
        let stats = slow.present(&scene.proxy);
        let kinds = [stats.drops.oldest, stats.drops.conflated, stats.drops.newest];
        assert_eq!(kinds.iter().filter(|amount| amount.messages > 0).count(), 1, "{stats:?}");
    }
    assert_eq!(scene.proxy.totals().disconnected, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_of_one_subscriber_keep_to_their_own_policies() {
    let policies = vec![TopicPolicy::new("t:level", Policy::Conflate)];
    let mut scene = Scene::start(Config { policies, ..config(Policy::DropNewest) }).await;
    let mut slow = scene.slow("t").await;
    let is_enough = |proxy: &Proxy| {
        let drops = slow.present(proxy).drops;
        drops.newest.messages >= 50 && drops.conflated.messages >= 50
    };
    scene.publish_until(&["t:level", "t:log"], is_enough).await;
    let stats = slow.present(&scene.proxy);
    assert!(stats.queued.bytes <= MARK as u64, "{stats:?}");
    let published = scene.published.len() as u64;
    let received = slow.read_all(&scene.proxy, published).await;
    let drops = slow.present(&scene.proxy).drops;
    let logged = received.iter().filter(|(topic, _)| topic == "t:log").count() as u64;
    let published = scene.published.iter().filter(|(topic, _)| topic == "t:log").count() as u64;
    // Some of the newest messages may be levels: if only log messages wait, nothing can be dropped for them.
    assert!(logged >= published - drops.newest.messages, "none was dropped that had been queued");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_are_replaced_without_dropping_anyone() {
    let mut scene = Scene::start(config(Policy::BLOCK)).await;
    let mut slow = scene.slow("").await;
    // The publisher waits for the slow subscriber. The healthy one is not subscribed to these messages.
    let stuck = async {
        while slow.present(&scene.proxy).waits == 0 {
            scene.publisher.publish([Bytes::from_static(b"stuck"), vec![0; DATA_LEN].into()]).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    within("the publisher to be stuck", stuck).await;
    assert_eq!(slow.present(&scene.proxy).dropped.messages, 0);

    within("the change", scene.proxy.set_policies(Policy::DropNewest, &[])).await;
    // This message comes after everything that the proxy had not read.
    scene.publish("t").await;
    scene.publish_until(&["t"], |proxy| slow.present(proxy).drops.newest.messages >= 20).await;
    assert!(slow.present(&scene.proxy).waited > Duration::ZERO);

    within(
        "the change",
        scene.proxy.set_policies(Policy::BLOCK, &[TopicPolicy::new("t", Policy::DropOldest)]),
    )
    .await;
    let newest = slow.present(&scene.proxy).drops.newest;
    // Messages that were queued before may not be dropped. Newer ones find no room until something was read,
    // so this reads something.
    let is_enough = |stats: &SubscriberStats| stats.drops.oldest.messages >= 20;
    while !is_enough(&slow.present(&scene.proxy)) {
        if slow.present(&scene.proxy).drops.newest.messages > newest.messages + 20 {
            slow.raw.next_frame().await.expect("the connection goes on");
        }
        scene.publish("t").await;
    }
    assert_eq!(slow.present(&scene.proxy).policy, Policy::BLOCK);
    assert_eq!(scene.proxy.totals().disconnected, 0);
    assert_eq!(scene.proxy.subscribers().len(), 2);
}

/// A message that was read is delivered or counted, whatever ends first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_publisher_that_waits_has_in_its_hands_is_counted_when_its_connection_ends() {
    start_tracing();
    let config = Config {
        policy: Policy::Block { longest: None },
        high_water_mark: HighWaterMark::bytes(MARK),
        tcp: TcpOptions { send_buffer: Some(64 << 10), ..TcpOptions::default() },
        ..Config::default()
    };
    let proxy = xmsg_tests::proxy().config(config).start().await.unwrap();
    let mut slow = Raw::handshake(proxy.address().subscribe_port(), "SUB").await;
    slow.send_message(&[b"\x01data"]).await;
    let until = async |what: &str, is_so: &dyn Fn() -> bool| {
        within(what, async {
            while !is_so() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    until("the subscription", &|| proxy.subscribers().iter().any(|stats| stats.subscriptions > 0)).await;
    let mut publisher = Raw::handshake(proxy.address().publish_port(), "PUB").await;
    let message = raw::message(&[&b"data"[..], &[7; 600]]);
    let publishing = tokio::spawn(async move {
        // This continues until the connection ends.
        while publisher.try_send(&message.repeat(20)).await {}
    });
    until("messages are held", &|| proxy.totals().held > 0).await;
    let adds_up = || {
        let totals = proxy.totals();
        let queued: u64 = proxy.subscribers().iter().map(|stats| stats.queued.messages).sum();
        let found =
            totals.delivered.messages + totals.dropped.messages + totals.undelivered + totals.unmatched;
        totals.received.messages == found + queued + totals.held
    };
    until("all is somewhere while it waits", &adds_up).await;

    let monitor = proxy.monitor();
    assert!(monitor.end_connection(proxy.publishers()[0].id, "a test").is_some());
    publishing.await.unwrap();
    until("it has gone", &|| proxy.publishers().is_empty() && proxy.totals().held == 0).await;
    assert!(proxy.totals().undelivered > 0);
    until("what it held is counted", &adds_up).await;
    drop(slow);
    until("the subscriber has gone", &|| proxy.subscribers().is_empty()).await;
    until("what was queued is counted", &adds_up).await;
}

/// Publishers close their connections while a slow subscriber blocks what they sent. They keep their places,
/// so that nothing is lost, until new clients find no free place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_that_left_keep_their_places_until_newcomers_need_them() {
    const PLACES: usize = 40;
    // One place is for the subscriber.
    const LEFT: usize = PLACES - 1;
    start_tracing();
    let config = Config {
        policy: Policy::Block { longest: None },
        high_water_mark: HighWaterMark::bytes(MARK),
        connections: PLACES,
        tcp: TcpOptions { send_buffer: Some(64 << 10), ..TcpOptions::default() },
        ..Config::default()
    };
    let proxy = xmsg_tests::proxy().config(config).start().await.unwrap();
    let (publish_port, subscribe_port) = (proxy.address().publish_port(), proxy.address().subscribe_port());
    let mut slow = Raw::handshake(subscribe_port, "SUB").await;
    slow.send_message(&[b"\x01data"]).await;
    within("the subscription", async {
        while proxy.subscribers().iter().map(|stats| stats.subscriptions).sum::<usize>() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    // One message that the kernels do not accept completely fills the queue. Later messages wait.
    let message = |number: u32| {
        let data = [&number.to_be_bytes()[..], &[7; DATA_LEN - 4]].concat();
        raw::message(&[&b"data"[..], &data])
    };
    let giant = raw::message(&[&b"data"[..], &vec![7; 16 << 20]]);
    let mut left = vec![Raw::handshake(publish_port, "PUB").await];
    left[0].send(&giant).await;
    within("the mark", async {
        while proxy.subscribers()[0].queued.bytes < giant.len() as u64 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    left[0].send(&message(0)).await;
    left[0].stream.shutdown().await.unwrap();
    let waiting = |publishers: usize| {
        let proxy = &proxy;
        async move {
            while proxy.publishers().iter().filter(|stats| stats.left_for.is_some()).count() < publishers {
                tokio::task::yield_now().await;
            }
        }
    };
    within("that it left is noticed", waiting(1)).await;
    for number in 1..LEFT {
        let mut publisher = Raw::handshake(publish_port, "PUB").await;
        publisher.send(&message(number as u32)).await;
        publisher.stream.shutdown().await.unwrap();
        left.push(publisher);
        within("that it left is noticed", waiting(number + 1)).await;
    }
    assert_eq!(proxy.publishers().len(), LEFT, "they are there until newcomers come");
    assert_eq!(proxy.totals().crowded_out, 0);

    // A new pair can connect at once.
    let (publisher, subscriber) = (xmsg_tests::connect(&proxy), xmsg_tests::connect(&proxy));
    let mut messages = within("a place", subscriber.subscribe(["other"])).await.unwrap();
    within("a place", publisher.publish(&xmsg_core::Message::of("other", 7).unwrap())).await.unwrap();
    assert_eq!(xmsg_tests::next(&mut messages).await.value::<i32>().unwrap(), 7);
    let gone = proxy.totals().crowded_out;
    assert!((2..=10).contains(&gone), "{gone} of them made room");
    let kept: Vec<_> = proxy.publishers().into_iter().filter(|stats| stats.left_for.is_some()).collect();
    assert_eq!(kept.len() as u64, LEFT as u64 - gone);
    let youngest: Vec<_> =
        left[gone as usize..].iter().map(|raw| raw.stream.local_addr().unwrap().to_string()).collect();
    assert_eq!(
        kept.into_iter().map(|stats| stats.peer).collect::<Vec<_>>(),
        youngest,
        "the oldest went first"
    );

    // The messages of the other publishers arrive.
    slow.skip(giant.len()).await;
    let mut missing: BTreeSet<u32> = (gone as u32..LEFT as u32).collect();
    while !missing.is_empty() {
        let frames = slow.next_message(u64::MAX).await.expect("the connection goes on");
        missing.remove(&number(&frames[1]));
    }
    within("the end of those that left", async {
        while proxy.publishers().iter().any(|stats| stats.left_for.is_some()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
