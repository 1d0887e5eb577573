//! Tests of bursts of messages through a proxy with default options: all of them arrive, or are counted.

use std::time::Duration;

use bytes::Bytes;
use xmsg_proxy::Proxy;
use xmsg_tests::{start_tracing, within};
use xmsg_zmq::{Endpoint, Publisher, SocketOptions, Subscriber};

const LINGER: Duration = Duration::from_secs(60);

/// Publishes numbers, closes at once, and returns how many arrived, in order.
async fn burst(count: u32) -> u64 {
    start_tracing();
    let proxy = Proxy::bind("127.0.0.1:0").start().await.unwrap();
    let endpoint = |text: String| text.parse::<Endpoint>().unwrap();
    let mut subscriber = Subscriber::new(SocketOptions::default());
    subscriber.subscribe("burst").unwrap();
    subscriber.connect(endpoint(proxy.address().subscribe_endpoint()));
    let publisher = Publisher::new(SocketOptions::default());
    publisher.connect(endpoint(proxy.address().publish_endpoint()));
    within("the subscription", publisher.wait_for_subscriber(b"burst")).await.unwrap();
    let sending = tokio::spawn(async move {
        for number in 0..count {
            let frames = [Bytes::from_static(b"burst"), Bytes::copy_from_slice(&number.to_be_bytes())];
            publisher.publish(frames).await.unwrap();
        }
        assert_eq!(publisher.close(LINGER).await, 0, "all of it was written");
    });
    let (mut arrived, mut last) = (0, None);
    while last.is_none_or(|last| last + 1 < count) {
        let message = within("a message", subscriber.recv()).await.unwrap();
        let number = u32::from_be_bytes(message.frames()[1][..].try_into().unwrap());
        assert!(last.is_none_or(|last| last < number), "in order");
        (arrived, last) = (arrived + 1, Some(number));
    }
    within("the publisher", sending).await.unwrap();
    let dropped = proxy.totals().dropped.messages;
    assert_eq!(arrived + dropped, u64::from(count), "what was dropped is counted");
    arrived
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_thousand_messages_and_a_close_lose_nothing() {
    assert_eq!(burst(50_000).await, 50_000);
}

/// These are five megabytes, far below the high-water mark of a queue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_half_a_million_loses_nothing() {
    assert_eq!(burst(500_000).await, 500_000);
}
