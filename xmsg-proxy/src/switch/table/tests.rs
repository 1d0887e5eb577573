//! Subscribers that make changes faster than they can be made, or told.

use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use xmsg_zmq::HighWaterMark;
use xmsg_zmq::link::send_queue::{SendQueue, Writer};

use super::*;
use crate::policy::{Policy, Rule};
use crate::switch::authorization::Authorization;

/// A table, its task, and nobody yet.
struct Scene {
    table: Arc<Table>,
    memory: MemoryBudget,
    limits: Limits,
    task: JoinHandle<()>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scene {
    fn new() -> Self {
        Self::with_memory(MemoryBudget::default())
    }

    fn with_memory(memory: MemoryBudget) -> Self {
        let rule = Rule { policy: Policy::BLOCK, mark: HighWaterMark::bytes(1 << 20) };
        let (table, mut task) =
            Table::new(PublishersSend::Subscribed, Policies::new(rule, &[]), memory.clone());
        let task = tokio::spawn(async move { task.run().await });
        Self { table, memory, limits: Limits::default(), task }
    }

    /// A publisher, and the end of its connection that it may read from. What it does not read waits.
    async fn publisher(&self, id: u32) -> (Arc<ConnectedPublisher>, DuplexStream) {
        let publisher = Arc::new(ConnectedPublisher::of_test(id, "a publisher"));
        let (mut near, far) = duplex(64 << 10);
        let own = publisher.clone();
        tokio::spawn(async move { Writer::new(&own.send_queue).run(&mut near).await });
        self.table.change(Change::PublisherJoined(publisher.clone())).await;
        (publisher, far)
    }
}

fn subscriber(id: u32) -> Arc<ConnectedSubscriber> {
    let send_queue = SendQueue::new(HighWaterMark::bytes(1 << 20));
    Arc::new(ConnectedSubscriber::new(
        id,
        "a subscriber",
        send_queue,
        Authorization::new(&Arc::default(), None),
    ))
}

/// Reads so many bytes in a second, until it is aborted.
fn read_at(mut far: DuplexStream, rate: f64) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut buffer = vec![0; 100 << 10];
        loop {
            let read = far.read(&mut buffer).await.expect("a pipe in memory");
            tokio::time::sleep(Duration::from_secs_f64(read as f64 / rate)).await;
        }
    })
}

/// Subscribes to long prefixes and takes that back, so many times; returns how many bytes that were.
async fn toggle(scene: &Scene, subscriber: &Arc<ConnectedSubscriber>, times: usize) -> usize {
    let mut handler = SubscriberHandler::new(&scene.table, subscriber, &scene.limits);
    let prefixes: Vec<Bytes> = (0..100).map(|number| format!("{number:04000}").into()).collect();
    for number in 0..times {
        let prefix = prefixes[number / 2 % prefixes.len()].clone();
        handler.subscription(number % 2 == 0, prefix).await.expect("it is within the limits");
    }
    times * 4000
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_changes_goes_as_fast_as_the_slowest_publisher_that_reads() {
    let scene = Scene::new();
    let (publisher, far) = scene.publisher(1).await;
    // 10 MB in a second.
    let reading = read_at(far, 10e6);
    let since = tokio::time::Instant::now();
    let bytes = toggle(&scene, &subscriber(1), 40_000).await;
    let waits = publisher.send_queue.queued().bytes;
    assert!(waits < 1 << 20, "{waits} bytes wait for it");
    assert!(!publisher.disconnected.is_cancelled() && !publisher.is_stalled());
    let rate = bytes as f64 / since.elapsed().as_secs_f64();
    assert!((5e6..12e6).contains(&rate), "{rate} bytes in a second");
    reading.abort();
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_does_not_read_holds_a_flood_up_for_a_second_and_others_not_at_all() {
    let scene = Scene::new();
    let (publisher, _far) = scene.publisher(1).await;
    let since = tokio::time::Instant::now();
    let (flooding, other) = (subscriber(1), subscriber(2));
    let flood = async {
        toggle(&scene, &flooding, 1_000).await;
        since.elapsed()
    };
    let few = async {
        let mut handler = SubscriberHandler::new(&scene.table, &other, &scene.limits);
        for number in 0..100 {
            handler.subscription(true, format!("few:{number}").into()).await.unwrap();
            scene.table.synchronize().await;
        }
        since.elapsed()
    };
    let (flood, few) = tokio::join!(flood, few);
    assert!((1_000..1_500).contains(&flood.as_millis()), "{flood:?}");
    assert!(few.is_zero(), "{few:?}");
    assert!(publisher.is_stalled());
}

/// Long prefixes cost what all publishers together are sent for them, however fast these read.
#[tokio::test(start_paused = true)]
async fn a_flood_of_changes_pays_for_the_bytes_that_all_publishers_are_sent() {
    let scene = Scene::new();
    let mut readers = Vec::new();
    for id in 1..=40 {
        readers.push(read_at(scene.publisher(id).await.1, 1e12));
    }
    let since = tokio::time::Instant::now();
    let (flooding, other) = (subscriber(1), subscriber(2));
    let flood = async {
        let bytes = toggle(&scene, &flooding, 1_500).await;
        (bytes * readers.len(), since.elapsed())
    };
    let few = async {
        let mut handler = SubscriberHandler::new(&scene.table, &other, &scene.limits);
        for number in 0..100 {
            handler.subscription(true, format!("few:{number}").into()).await.unwrap();
            scene.table.synchronize().await;
        }
        since.elapsed()
    };
    let ((bytes, flood), few) = tokio::join!(flood, few);
    // What the first second brings is there from the beginning.
    let rate = (bytes as f64 - 67e6) / flood.as_secs_f64();
    assert!((40e6..80e6).contains(&rate), "{rate} bytes in a second");
    assert!(few < Duration::from_millis(100), "{few:?}");
    readers.iter().for_each(JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn a_proxy_passes_on_all_its_tokens_at_once_and_whoever_makes_more_up_is_slowed_down() {
    let scene = Scene::new();
    let subscriber = subscriber(1);
    let mut handler = SubscriberHandler::new(&scene.table, &subscriber, &scene.limits);
    let since = tokio::time::Instant::now();
    let token = |number: u32| Token { proxy: 1, link: number, connection: 0 }.topic();
    for number in 0..1_024 {
        handler.subscription(true, token(number)).await.unwrap();
    }
    assert!(since.elapsed() < Duration::from_millis(100), "{:?}", since.elapsed());
    for number in 0..2_048 {
        handler.subscription(number % 2 == 0, token(5_000 + number / 2)).await.unwrap();
    }
    assert!(since.elapsed() > Duration::from_millis(1_800), "{:?}", since.elapsed());
}

/// It has much to read that it was told when it came, and reads that fast enough to be waited for: that is
/// nothing to wait for.
#[tokio::test(start_paused = true)]
async fn a_publisher_that_joins_holds_nobody_up_by_reading_slowly() {
    let scene = Scene::new();
    let many = subscriber(1);
    let mut handler = SubscriberHandler::new(&scene.table, &many, &scene.limits);
    for number in 0..5_000 {
        handler.subscription(true, format!("{number:04000}").into()).await.unwrap();
    }
    let (publisher, far) = scene.publisher(1).await;
    scene.table.synchronize().await;
    let reading = read_at(far, 5e6);
    let since = tokio::time::Instant::now();
    let other = subscriber(2);
    let mut handler = SubscriberHandler::new(&scene.table, &other, &scene.limits);
    for number in 0..1_000 {
        handler
            .subscription(true, format!("a topic of an innocent, one of many: {number}").into())
            .await
            .unwrap();
    }
    scene.table.synchronize().await;
    assert!(since.elapsed() < Duration::from_millis(100), "{:?}", since.elapsed());
    assert!(publisher.send_queue.queued().bytes > 10 << 20, "it has yet to read much");
    reading.abort();
}

/// One that reads now and then, to hold others up again and again, does so for a small part of the time.
#[tokio::test(start_paused = true)]
async fn a_publisher_that_held_others_up_is_not_waited_for_again_at_once() {
    let scene = Scene::new();
    let (publisher, mut far) = scene.publisher(1).await;
    toggle(&scene, &subscriber(1), 1_000).await;
    assert!(publisher.is_stalled());
    let mut buffer = vec![0; 1 << 20];
    while publisher.send_queue.queued().messages > 0 {
        assert!(far.read(&mut buffer).await.unwrap() > 0);
    }
    assert!(publisher.is_stalled(), "although it has read everything");
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(!publisher.is_stalled());
}

#[tokio::test(start_paused = true)]
async fn what_publishers_are_told_counts_once_however_many_they_are() {
    const PUBLISHERS: u32 = 50;
    let scene = Scene::new();
    let many = subscriber(1);
    // So that it takes a while to tell those who join.
    let mut handler = SubscriberHandler::new(&scene.table, &many, &scene.limits);
    for number in 0..20_000 {
        handler.subscription(true, format!("{number:07}").into()).await.unwrap();
    }
    let before = scene.memory.used();
    let mut not_reading = Vec::new();
    for id in 0..PUBLISHERS {
        not_reading.push(scene.publisher(id).await);
    }
    let bytes = toggle(&scene, &subscriber(2), 1_000).await;
    scene.table.synchronize().await;
    let waits: u64 = not_reading.iter().map(|(publisher, _)| publisher.send_queue.queued().bytes).sum();
    assert!(waits > u64::from(PUBLISHERS) * bytes as u64 * 9 / 10, "{waits} bytes wait for all of them");
    let held = scene.memory.used() - before;
    assert!((bytes..2 * bytes).contains(&held), "{held} bytes are held of {bytes}");
    drop(not_reading);
}

/// When memory runs short, what somebody held who has left is given back soon, but no publisher that reads is
/// cut off for it.
#[tokio::test(start_paused = true)]
async fn what_a_large_subscriber_leaves_behind_cuts_no_publisher_off_that_reads() {
    let scene = Scene::with_memory(MemoryBudget::new(100 << 20));
    let (publisher, far) = scene.publisher(1).await;
    let reading = read_at(far, 20e6);
    let large = subscriber(1);
    let mut handler = SubscriberHandler::new(&scene.table, &large, &scene.limits);
    for number in 0..22_000 {
        handler.subscription(true, format!("{number:04000}").into()).await.unwrap();
    }
    assert!(!scene.memory.has_room(12 << 20), "memory is short: {} bytes are held", scene.memory.used());
    scene.table.change(Change::SubscriberGone(1)).await;
    while scene.table.subscriptions() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(
            !publisher.disconnected.is_cancelled(),
            "{} bytes wait for it",
            publisher.send_queue.queued().bytes
        );
    }
    reading.abort();
}

/// A short prefix that covers 62 long ones makes much work of little that is sent. Some leave just so much
/// unread that others, who have just been told everything, have more that waits for them.
#[tokio::test(start_paused = true)]
async fn whoever_holds_what_is_out_of_date_is_cut_off_and_not_whoever_has_just_come() {
    let scene = Scene::new();
    let subscriber = subscriber(1);
    let change = async |subscribe: bool, numbers: &[usize]| {
        let mut handler = SubscriberHandler::new(&scene.table, &subscriber, &scene.limits);
        for number in numbers {
            handler.subscription(subscribe, format!("{number:04000}").into()).await.unwrap();
        }
        scene.table.synchronize().await;
    };
    // Three parts of 4 MB.
    change(true, &(0..3_072).collect::<Vec<_>>()).await;
    let mut sneaks = Vec::new();
    for id in 1..=6 {
        let (publisher, mut far) = scene.publisher(id).await;
        let mut buffer = vec![0; 64 << 10];
        scene.table.synchronize().await;
        while publisher.send_queue.queued().bytes > 5 << 20 {
            assert!(far.read(&mut buffer).await.unwrap() > 0);
        }
        // All of it is out of date.
        let some = [10, 1_500, 3_000];
        change(false, &some).await;
        change(true, &some).await;
        sneaks.push((publisher, far));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let innocents = [scene.publisher(11).await, scene.publisher(12).await];
    scene.table.synchronize().await;
    let is_joined = || innocents.iter().all(|(one, _)| one.send_queue.queued().bytes > 12_000_000);
    while !is_joined() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(innocents.iter().all(|(publisher, _)| !publisher.disconnected.is_cancelled()));
    assert!(sneaks.iter().any(|(publisher, _)| publisher.disconnected.is_cancelled()));
}

#[tokio::test(start_paused = true)]
async fn whoever_makes_much_work_is_slowed_down() {
    let scene = Scene::new();
    let subscriber = subscriber(1);
    let mut handler = SubscriberHandler::new(&scene.table, &subscriber, &scene.limits);
    let since = tokio::time::Instant::now();
    for number in 0..62 {
        handler.subscription(true, format!("{number:04000}").into()).await.unwrap();
    }
    assert!(since.elapsed().is_zero(), "that is no work");
    let mut moved = 0;
    for number in 0..4_000 {
        handler.subscription(number % 2 == 0, Bytes::from_static(b"0")).await.unwrap();
        scene.table.synchronize().await;
        moved += subscriber.table_work.load(Ordering::Relaxed);
    }
    assert!(moved > 0);
    assert!(since.elapsed() > Duration::from_secs(2), "{:?}", since.elapsed());
}
