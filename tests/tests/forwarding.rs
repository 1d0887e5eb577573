//! Tests of forwarding: what arrives at the publisher port leaves at the subscriber port, to the right
//! subscribers, complete, and in order.

use std::time::Duration;

use bytes::Bytes;
use xmsg_core::{Message, Topic};
use xmsg_proxy::PublishersSend;
use xmsg_tests::{connect, next, proxy, topic, within};
use xmsg_zmq::{Endpoint, Publisher, SocketOptions, Subscriber};

const LINGER: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_receives_every_topic_that_starts_with_it() {
    let proxy = proxy().start().await.unwrap();
    let (subscriber, publisher) = (connect(&proxy), connect(&proxy));
    let mut messages = subscriber.subscribe([topic("A:B")]).await.unwrap();
    for name in ["A", "A:B", "A:B:L", "B:A:B", "A:BC", "A:C"] {
        publisher.publish(&Message::of(topic(name), name).unwrap()).await.unwrap();
    }
    publisher.publish(&Message::of(topic("A:B:end"), "end").unwrap()).await.unwrap();
    for expected in ["A:B", "A:B:L", "A:BC", "A:B:end"] {
        assert_eq!(next(&mut messages).await.topic().as_bytes(), expected.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_comes_after_unsubscribing_but_other_subscriptions_stay() {
    let proxy = proxy().start().await.unwrap();
    let publisher = connect(&proxy);
    let mut socket = Subscriber::new(SocketOptions::default());
    socket.subscribe("a").unwrap();
    socket.subscribe("b").unwrap();
    socket.connect(proxy.address().subscribe_endpoint().parse().unwrap());
    for name in ["a", "b"] {
        publisher.wait_for_subscriber(&topic(name)).await.unwrap();
    }
    socket.unsubscribe("a");
    // The proxy informs publishers once the cancellation is in effect.
    within("the cancellation", async {
        while proxy.subscriptions() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    publisher.publish(&Message::of(topic("a"), "gone").unwrap()).await.unwrap();
    publisher.publish(&Message::of(topic("b"), "kept").unwrap()).await.unwrap();
    let received = within("b", socket.recv()).await.unwrap();
    assert_eq!(received.frames()[0], "b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_publishers_and_subscribers_keep_the_order_of_each_publisher() {
    const PUBLISHERS: u64 = 8;
    const SUBSCRIBERS: usize = 8;
    const MESSAGES: u64 = 5_000;
    let proxy = proxy().start().await.unwrap();
    let mut receiving = Vec::new();
    for _ in 0..SUBSCRIBERS {
        let mut messages = connect(&proxy).subscribe([topic("order:")]).await.unwrap();
        receiving.push(tokio::spawn(async move {
            let mut expected = [0; PUBLISHERS as usize];
            for _ in 0..PUBLISHERS * MESSAGES {
                let message = next(&mut messages).await;
                let value = message.value::<i64>().unwrap().cast_unsigned();
                let (publisher, number) = (value / MESSAGES, value % MESSAGES);
                assert_eq!(number, expected[publisher as usize], "publisher {publisher}");
                expected[publisher as usize] += 1;
            }
        }));
    }
    let mut sending = Vec::new();
    for publisher in 0..PUBLISHERS {
        let connection = connect(&proxy);
        sending.push(tokio::spawn(async move {
            for number in 0..MESSAGES {
                let value = (publisher * MESSAGES + number).cast_signed();
                let message = Message::of(topic(&format!("order:{}", number % 3)), value).unwrap();
                connection.publish(&message).await.unwrap();
            }
            assert!(connection.close(LINGER).await.is_nothing());
        }));
    }
    for task in sending.into_iter().chain(receiving) {
        within("a task", task).await.unwrap();
    }
    let totals = proxy.stop(LINGER).await;
    assert_eq!(totals.dropped.messages, 0);
    assert_eq!(totals.undelivered, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_arrive_whole_between_small_ones() {
    const LARGE: usize = 16 << 20;
    let proxy = proxy().start().await.unwrap();
    let (subscriber, publisher) = (connect(&proxy), connect(&proxy));
    let mut messages = subscriber.subscribe([topic("size")]).await.unwrap();
    let large: Bytes = (0..LARGE).map(|i| (i * 7 % 251) as u8).collect::<Vec<_>>().into();
    for data in [Bytes::from_static(b"before"), large.clone(), Bytes::from_static(b"after"), large] {
        publisher.publish(&Message::with_mime(topic("size"), "binary/bytes", data.clone())).await.unwrap();
        assert!(next(&mut messages).await.data() == &data, "{} bytes differ", data.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_may_be_empty_and_topics_binary() {
    let proxy = proxy().start().await.unwrap();
    let mut socket = Subscriber::new(SocketOptions::default());
    socket.subscribe(&b"\x00\xff"[..]).unwrap();
    socket.subscribe("").unwrap();
    socket.connect(proxy.address().subscribe_endpoint().parse().unwrap());
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(proxy.address().publish_endpoint().parse().unwrap());
    within("the subscription", publisher.wait_for_subscriber(b"\x00\xff")).await.unwrap();
    for message in [
        vec![Bytes::new(), Bytes::new(), Bytes::new()],
        vec![Bytes::from_static(b"\x00\xff\x00"), Bytes::new(), Bytes::from_static(b"\x01\x00")],
        vec![Bytes::new()],
        vec![Bytes::from_static(&[0xff; 300]); 7],
    ] {
        publisher.publish(message.clone()).await.unwrap();
        assert_eq!(within("a message", socket.recv()).await.unwrap().frames(), message);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_subscribers_with_twenty_topics_each_get_just_theirs() {
    const SUBSCRIBERS: usize = 200;
    const TOPICS: usize = 20;
    let proxy = proxy().start().await.unwrap();
    let mut receiving = Vec::new();
    for subscriber in 0..SUBSCRIBERS {
        let connection = connect(&proxy);
        let topics: Vec<Topic> = (0..TOPICS).map(|t| topic(&format!("s{}:t{t}:", subscriber % 40))).collect();
        receiving.push(tokio::spawn(async move {
            let mut messages = connection.subscribe(topics).await.unwrap();
            move || async move {
                for t in 0..TOPICS {
                    let expected = format!("s{}:t{t}:x", subscriber % 40);
                    assert_eq!(next(&mut messages).await.topic().as_bytes(), expected.as_bytes());
                }
            }
        }));
    }
    let mut subscribed = Vec::new();
    for task in receiving {
        subscribed.push(within("a subscription", task).await.unwrap());
    }
    // Each subscriber has 20 subscriptions after the temporary ones for the confirmation are removed.
    within("what was asked after is taken back", async {
        while proxy.subscriptions() != SUBSCRIBERS * TOPICS {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let publisher = connect(&proxy);
    for t in 0..TOPICS {
        for group in 0..40 {
            publisher.publish(&Message::of(topic(&format!("s{group}:t{t}:x")), 1).unwrap()).await.unwrap();
        }
    }
    let checks: Vec<_> = subscribed.into_iter().map(|check| tokio::spawn(check())).collect();
    for check in checks {
        within("a subscriber", check).await.unwrap();
    }
}

/// There is no slow-joiner problem: what is published right after `subscribe` has returned is never missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmed_subscription_misses_nothing() {
    let proxy = proxy().start().await.unwrap();
    let publisher = connect(&proxy);
    publisher.connect().await.unwrap();
    for round in 0..1000 {
        let subscriber = connect(&proxy);
        let name = topic(&format!("fresh:{round}"));
        let mut messages = subscriber.subscribe([name.clone()]).await.unwrap();
        publisher.publish(&Message::of(name, round).unwrap()).await.unwrap();
        assert_eq!(next(&mut messages).await.value::<i32>().unwrap(), round);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_are_told_what_is_wanted_and_no_longer() {
    let proxy = proxy().start().await.unwrap();
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(proxy.address().publish_endpoint().parse().unwrap());
    within("control", publisher.wait_for_subscriber(b"xmsg:control")).await.unwrap();
    assert!(!publisher.has_subscriber(b"news"));
    let messages = connect(&proxy).subscribe([topic("news")]).await.unwrap();
    // Confirmed means that every publisher was sent the subscription, but it may not have read it yet.
    within("the subscription", publisher.wait_for_subscriber(b"news:today")).await.unwrap();
    drop(messages);
    within("the end of the subscription", async {
        while publisher.has_subscriber(b"news") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_send_all_asks_publishers_for_everything() {
    let proxy = proxy().publishers_send(PublishersSend::All).start().await.unwrap();
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(proxy.address().publish_endpoint().parse().unwrap());
    within("a subscription to everything", publisher.wait_for_subscriber(b"whatever")).await.unwrap();
    let mut messages = connect(&proxy).subscribe([topic("y")]).await.unwrap();
    publisher.publish(["y", "meta", "data"]).await.unwrap();
    assert_eq!(next(&mut messages).await.data(), "data");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_above_the_limit_is_refused_before_it_is_accepted() {
    let proxy = proxy().start().await.unwrap();
    let publisher = connect(&proxy);
    publisher.connect().await.unwrap();
    // A request of the connection check may have been answered before it was counted as written.
    within("the check to be written", async {
        while publisher.queued().messages > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let message = Message::with_mime(topic("big"), "binary/bytes", vec![0; 64 << 20]);
    let error = publisher.publish(&message).await.unwrap_err();
    assert_eq!(error.kind(), xmsg_core::ErrorKind::TooLarge);
    assert_eq!(publisher.queued().messages, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_to_nobody_says_where_nobody_is() {
    // The port is free after the proxy has stopped.
    let proxy = proxy().start().await.unwrap();
    let address = proxy.address().clone();
    proxy.stop(LINGER).await;
    let connection = xmsg_core::Connection::new(address.clone()).unwrap();
    let error = connection.publish(&Message::of(topic("a"), 1).unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), xmsg_core::ErrorKind::Refused);
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

/// A proxy may have more subscriptions than a publisher stores.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_need_not_keep_all_subscriptions_of_its_proxy() {
    const MANY: usize = 120_000;
    let proxy = proxy().start().await.unwrap();
    let socket = Subscriber::new(SocketOptions::default());
    for number in 0..MANY {
        socket.subscribe(format!("many:{number}")).unwrap();
    }
    socket.connect(Endpoint::tcp("127.0.0.1", proxy.address().subscribe_port()));
    let connection = connect(&proxy);
    let mut messages = within("the checks", connection.subscribe([topic("a")])).await.unwrap();
    let mut events = connection.events();
    // When the publisher assumes that everything is wanted, it has received more subscriptions than it
    // stores.
    within("the subscriptions", connection.wait_for_subscriber(&topic("nobody"))).await.unwrap();
    connection.publish(&Message::of(topic("a"), 1).unwrap()).await.unwrap();
    next(&mut messages).await;
    assert!(futures::FutureExt::now_or_never(events.next()).is_none(), "it stayed connected");
}
