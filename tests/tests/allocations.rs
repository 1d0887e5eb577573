//! What a small message costs in allocations, all the way from publisher to subscriber: next to none.
//!
//! Everything runs on one thread, so that the count of that thread is the count of the whole path.

use allocation_counter::measure;
use bytes::Bytes;
use xmsg_core::{Actor, Message, Topic};
use xmsg_tests::{PATIENCE, connect, patient, proxy};

/// Messages that are counted, after as many that are not: by then buffers have their size.
const MESSAGES: u64 = 50_000;
/// Allocations for a message, at most: a read, a write and a batch are paid for by the hundreds of messages in them.
const PER_MESSAGE: f64 = 0.02;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// 100 bytes of data, and metadata of 20 that nobody has at hand.
fn message(topic: &Topic) -> Message {
    let (meta, data) = (Bytes::from(vec![b'm'; 20]), Bytes::from(vec![b'd'; 100]));
    Message::from_frames(topic.clone().into_bytes(), meta, data)
}

/// Runs `work` twice and counts the allocations of the second time.
fn count(name: &str, mut work: impl FnMut()) {
    work();
    let allocations = measure(&mut work).count_total;
    let per_message = allocations as f64 / MESSAGES as f64;
    println!("{name}: {allocations} allocations for {MESSAGES} messages");
    assert!(per_message <= PER_MESSAGE, "{name}: {per_message} allocations for a message");
}

#[test]
fn a_small_message_costs_no_allocation_from_publisher_to_subscriber() {
    let runtime = runtime();
    let (proxy, connection, actor) = runtime.block_on(async {
        let proxy = proxy().start().await.unwrap();
        let connection = connect(&proxy);
        let actor = Actor::builder("counter").proxy(proxy.address().clone()).options(patient());
        let actor = actor.build().unwrap();
        (proxy, connection, actor)
    });
    let topic = Topic::with_types("count", "allocations", "here").unwrap();
    let message = message(&topic);

    let mut subscription = runtime.block_on(connection.subscribe([topic.clone()])).unwrap();
    count("one by one", || {
        runtime.block_on(async {
            let publishing = async {
                for _ in 0..MESSAGES {
                    connection.publish(&message).await.unwrap();
                }
            };
            let receiving = async {
                for _ in 0..MESSAGES {
                    let received = subscription.next().await.unwrap().unwrap();
                    assert_eq!(received.size(), message.size());
                }
            };
            tokio::join!(publishing, receiving);
        });
    });
    count("in batches", || {
        runtime.block_on(async {
            let publishing = async {
                for _ in 0..MESSAGES {
                    actor.publish(&message).await.unwrap();
                }
            };
            let receiving = async {
                let mut left = MESSAGES;
                while left > 0 {
                    for received in &subscription.next_batch().await.unwrap() {
                        assert_eq!(received.unwrap().size(), message.size());
                        left -= 1;
                    }
                }
            };
            tokio::join!(publishing, receiving);
        });
    });
    runtime.block_on(async {
        drop(subscription);
        assert!(actor.close(PATIENCE).await.is_nothing());
        assert!(connection.close(PATIENCE).await.is_nothing());
        proxy.stop(PATIENCE).await;
    });
}
