//! Tests from the test suites of the other implementations about publishing and subscribing: Java
//! `SubscriptionsTest` and `PublishersTest`, C++ `subscription_test`.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use xmsg_core::{Actor, Message, Topic};
use xmsg_proxy::Proxy;
use xmsg_tests::{PATIENCE, patient, proxy, topic, within};

const LINGER: Duration = Duration::from_secs(30);

fn actor(name: &str, proxy: &Proxy) -> Actor {
    Actor::builder(name).proxy(proxy.address().clone()).options(patient()).build().unwrap()
}

/// Counts and adds up received numbers, and notifies when all have arrived.
#[derive(Debug, Default)]
struct Tally {
    count: AtomicI32,
    sum: AtomicI64,
    complete: Notify,
}

impl Tally {
    fn add(&self, value: i32, of: i32) {
        self.sum.fetch_add(value.into(), Ordering::Relaxed);
        if self.count.fetch_add(1, Ordering::AcqRel) + 1 == of {
            self.complete.notify_one();
        }
    }
}

/// Checks that the numbers from 0 to `count` from several simultaneous publishers all reach one handler.
async fn all_arrive(publishers: i32, count: i32, concurrency: usize) {
    let proxy = proxy().start().await.unwrap();
    let subscriber = actor("subscriber", &proxy);
    let tally = Arc::new(Tally::default());
    let handle = subscriber
        .subscribe_with([topic("numbers")], concurrency, {
            let tally = tally.clone();
            move |message: Message| {
                tally.add(message.value().unwrap(), count);
                async {}
            }
        })
        .await
        .unwrap();
    let each = count / publishers;
    let mut tasks = Vec::new();
    for publisher in 0..publishers {
        let actor = actor("publisher", &proxy);
        tasks.push(tokio::spawn(async move {
            let topic = Topic::new("numbers", publisher.to_string()).unwrap();
            for number in publisher * each..(publisher + 1) * each {
                actor.publish(&Message::of(topic.clone(), number).unwrap()).await.unwrap();
            }
            assert!(actor.close(LINGER).await.is_nothing());
        }));
    }
    for task in tasks {
        within("a publisher", task).await.unwrap();
    }
    within("all messages", tally.complete.notified()).await;
    within("the end of the subscription", handle.close(PATIENCE)).await;
    assert_eq!(tally.count.load(Ordering::Acquire), count);
    assert_eq!(tally.sum.load(Ordering::Relaxed), i64::from(count) * i64::from(count - 1) / 2);
}

/// Corresponds to Java `SubscriptionsTest.suscribeReceivesAllMessages`, C++ `SuscribeReceivesAllMessages`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_receives_all_messages_of_one_publisher() {
    all_arrive(1, 10_000, 1).await;
}

/// Corresponds to Java `PublishersTest.suscribeReceivesAllMessages`, with the same number of publishers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_receives_all_messages_of_eight_publishers() {
    all_arrive(8, 20_000, 4).await;
}

/// Corresponds to Java `SubscriptionsTest.multiTopicSubscriptionReceivesAllMessages`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_to_several_topics_receives_all_messages_of_both_in_order() {
    let proxy = proxy().start().await.unwrap();
    let (subscriber, publisher) = (actor("subscriber", &proxy), actor("publisher", &proxy));
    let topics = [topic("odd"), topic("even")];
    let mut messages = subscriber.subscribe(topics.clone()).await.unwrap();
    let sending = tokio::spawn(async move {
        for number in 0..10_000 {
            let topic_of = &topics[usize::from(number % 2 == 0)];
            publisher.publish(&Message::of(topic_of.clone(), number).unwrap()).await.unwrap();
            publisher.publish(&Message::of(topic("neither"), number).unwrap()).await.unwrap();
        }
        assert!(publisher.close(LINGER).await.is_nothing());
    });
    for number in 0..10_000 {
        let message = within("a message", messages.next()).await.unwrap().unwrap();
        assert_eq!(*message.topic(), if number % 2 == 0 { "even" } else { "odd" });
        assert_eq!(message.value::<i32>().unwrap(), number);
    }
    within("the publisher", sending).await.unwrap();
}

/// Corresponds to Java `SubscriptionsTest.unsuscribeStopsThread`, C++ `UnsubscribeStopsThread`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_unsubscribing_no_handler_runs() {
    let proxy = proxy().start().await.unwrap();
    let actor = actor("both", &proxy);
    let handled = Arc::new(AtomicUsize::new(0));
    let handle = actor
        .subscribe_with([topic("a")], 1, {
            let handled = handled.clone();
            move |_| {
                handled.fetch_add(1, Ordering::SeqCst);
                async {}
            }
        })
        .await
        .unwrap();
    actor.publish(&Message::of(topic("a"), 1).unwrap()).await.unwrap();
    within("the first message", async {
        while handled.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within("the end of the subscription", handle.close(PATIENCE)).await;
    // The handler is dropped with its task, so nothing can call it any more.
    assert_eq!(Arc::strong_count(&handled), 1);
    // The topics can be subscribed to again.
    let mut again = actor.subscribe([topic("a")]).await.unwrap();
    actor.publish(&Message::of(topic("a"), 2).unwrap()).await.unwrap();
    let message = within("the second message", again.next()).await.unwrap().unwrap();
    assert_eq!((message.value::<i32>().unwrap(), handled.load(Ordering::SeqCst)), (2, 1));
}
