//! Tests that count allocations. A small message needs almost none on its way from publisher to subscriber. A
//! message that is kept holds little more memory than its own. The registrar counts the memory that
//! registrations take.
//!
//! Everything runs on one thread, so that the count of that thread is the count of the whole path.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use bytes::Bytes;
use tokio::sync::Notify;
use xmsg_core::registration::{OwnerType, Registration};
use xmsg_core::{Actor, Message, ProxyAddress, Result, Subscription, Topic};
use xmsg_proxy::registrar::store::Store;
use xmsg_tests::{PATIENCE, connect, patient, proxy};

/// The number of counted messages. As many uncounted messages come first, so that buffers have grown to their
/// final size.
const MESSAGES: u64 = 50_000;
/// The most allocations per message. The hundreds of messages in a read, a write or a batch share its
/// allocations.
const PER_MESSAGE: f64 = 0.02;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Returns a message with 100 bytes of data and 20 bytes of metadata, without a cached form.
fn message(topic: &Topic) -> Message {
    let (meta, data) = (Bytes::from(vec![b'm'; 20]), Bytes::from(vec![b'd'; 100]));
    Message::from_frames(topic.clone().into_bytes(), meta, data)
}

/// Runs `work` twice, and counts the allocations of the second run.
fn count(name: &str, work: impl FnMut()) {
    count_to(PER_MESSAGE, name, work);
}

/// Does the same with another limit of allocations for a message.
fn count_to(most: f64, name: &str, mut work: impl FnMut()) {
    work();
    let allocations = measure(&mut work).count_total;
    let per_message = allocations as f64 / MESSAGES as f64;
    println!("{name}: {allocations} allocations for {MESSAGES} messages");
    assert!(per_message <= most, "{name}: {per_message} allocations for a message");
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

/// Handlers that run side by side are tasks that continue from message to message.
#[test]
fn a_small_message_costs_handlers_side_by_side_no_allocation() {
    let runtime = runtime();
    let (done, all) = (Arc::<AtomicU64>::default(), Arc::<Notify>::default());
    let handler = {
        let (done, all) = (done.clone(), all.clone());
        move |_| {
            let number = done.fetch_add(1, Ordering::Relaxed) + 1;
            if number.is_multiple_of(MESSAGES) {
                all.notify_one();
            }
            async {}
        }
    };
    let (proxy, actor, handle) = runtime.block_on(async {
        let proxy = proxy().start().await.unwrap();
        let actor = Actor::builder("counter").proxy(proxy.address()).options(patient()).build().unwrap();
        let handle = actor.subscribe_with("count", 4, handler).await.unwrap();
        (proxy, actor, handle)
    });
    let message = message(&Topic::wrap("count"));
    // Each batch begins up to four tasks. A batch has the fewer messages the slower these are.
    count_to(0.1, "side by side", || {
        runtime.block_on(async {
            for _ in 0..MESSAGES {
                actor.publish(&message).await.unwrap();
            }
            all.notified().await;
        });
    });
    runtime.block_on(async {
        assert!(handle.drain(PATIENCE).await.is_nothing());
        assert!(actor.close(PATIENCE).await.is_nothing());
        proxy.stop(PATIENCE).await;
    });
}

/// One message in this many is kept. The others that arrived with it are dropped.
const KEEP_EVERY: usize = 500;
/// The number of messages that are kept.
const KEPT: usize = 1_000;
/// The bytes that a kept message may hold, according to the documentation of `next`.
const HOLD_EACH: usize = 1 << 10;
/// The additional bytes that all kept messages of a subscription may hold. These are 2 MiB, and the slab of
/// one read, which has 128 KiB.
const HOLD_MORE: usize = (2 << 20) + (128 << 10);
/// The bytes that queues on the way use now and did not use before.
const ON_THE_WAY: usize = 512 << 10;

/// Returns how much more memory is in use after some messages were kept, in bytes. Some messages are received
/// before that, so that buffers have grown to their final size.
fn memory_of_kept(
    subscription: &mut Subscription,
    runtime: &tokio::runtime::Runtime,
    publish: impl AsyncFn(),
) -> usize {
    let mut receive = |kept: &mut Vec<Message>, count: usize| {
        runtime.block_on(async {
            let receiving = async {
                for number in 0..count {
                    let message = subscription.next().await.unwrap().unwrap();
                    if number % KEEP_EVERY == 0 && kept.len() < kept.capacity() {
                        kept.push(message);
                    }
                }
            };
            let publishing = async {
                for _ in 0..count {
                    publish().await;
                }
            };
            tokio::join!(publishing, receiving);
        });
    };
    let mut kept = Vec::with_capacity(KEPT);
    receive(&mut Vec::new(), 10 * KEEP_EVERY);
    let held = measure(|| receive(&mut kept, KEPT * KEEP_EVERY)).bytes_current;
    assert_eq!(kept.len(), KEPT);
    usize::try_from(held).unwrap_or_default()
}

/// Messages of 28 bytes, of which one in five hundred is kept. They don't keep the slabs alive in which they
/// arrived.
#[test]
fn kept_messages_hold_little_more_than_themselves() {
    let runtime = runtime();
    let (proxy, connection) = runtime.block_on(async {
        let proxy = proxy().start().await.unwrap();
        let connection = connect(&proxy);
        (proxy, connection)
    });
    let message = Message::from_frames("keep:it".into(), "some metadata".into(), "28 bytes".into());
    assert_eq!(message.size(), 28);
    let mut subscription = runtime.block_on(connection.subscribe("keep")).unwrap();
    let held =
        memory_of_kept(&mut subscription, &runtime, async || connection.publish(&message).await.unwrap());
    println!("{KEPT} messages of {} bytes hold {held} bytes", message.size());
    assert!(held <= KEPT * HOLD_EACH + HOLD_MORE + ON_THE_WAY, "{held} bytes");
    runtime.block_on(async {
        drop(subscription);
        connection.close(PATIENCE).await;
        proxy.stop(PATIENCE).await;
    });
}

/// Messages of a batch that are kept can be given memory of their own, all together or one by one.
#[test]
fn messages_of_a_batch_can_be_detached() {
    let message = message(&Topic::wrap("a:b"));
    let mut wire = bytes::BytesMut::new();
    for _ in 0..1000 {
        xmsg_zmtp::encode_message(&mut wire, &message.clone().into_frames());
    }
    let batch = || xmsg_core::Messages::of(Bytes::copy_from_slice(&wire));
    let mut kept: Vec<Message> = Vec::with_capacity(1000);
    let all = measure(|| kept.extend(batch().detached().map(Result::unwrap).step_by(10))).bytes_current;
    kept.clear();
    let one_by_one = measure(|| {
        kept.extend(batch().iter().step_by(10).map(|message| message.unwrap().to_message().detach()));
    });
    // The limit includes a few words of reference counts for each message.
    for held in [all, one_by_one.bytes_current] {
        assert!(held <= 100 * (i64::try_from(message.size()).unwrap() + 64), "{held} bytes");
    }
    assert!(kept.iter().all(|kept| kept.data() == message.data()));
}

/// The number of registrations of each shape.
const REGISTERED: usize = 6_000;

/// Returns a registration with these values, which distinguish it from others.
fn registration(name: &str, host: &str, parts: [&str; 3], port: u16) -> Registration {
    let topic = Topic::with_types(parts[0], parts[1], parts[2]).unwrap();
    let proxy = ProxyAddress::new(host, 7771).unwrap();
    let mut registration = Registration::new(OwnerType::Publisher, name, &topic, &proxy);
    registration.port = port.into();
    registration
}

/// The shape of registrations: its name, and a function that returns the registration with a number.
type Shape = (&'static str, fn(usize) -> Registration);

const SHAPES: [Shape; 15] = [
    ("everything of its own", |number| {
        let own = format!("{number:x}");
        registration("", &own, [&own, &own, &own], 1)
    }),
    ("everything of its own, long", |number| {
        let own = format!("{number:x}{}", "x".repeat(300));
        registration(&own, &own[..60], [&own, &own, &own], 1)
    }),
    ("a topic of its own", |number| registration("n", "h", ["d", "s", &format!("{number:x}")], 1)),
    ("a subject of its own", |number| registration("n", "h", ["d", &format!("{number:x}"), "t"], 1)),
    ("a domain of its own", |number| registration("n", "h", [&format!("{number:x}"), "s", "t"], 1)),
    ("a host of its own", |number| registration("n", &format!("h{number:x}"), ["d", "s", "t"], 1)),
    ("a name of its own", |number| registration(&format!("{number:x}"), "h", ["d", "s", "t"], 1)),
    ("host and topic of its own", |number| {
        registration("n", &format!("h{number:x}"), ["d", "s", &format!("{number:x}")], 1)
    }),
    ("a port of its own", |number| {
        registration(&format!("{:x}", number / 200), "h", ["d", "s", "t"], (number % 200) as u16 + 1)
    }),
    ("two ports of a name", |number| {
        registration(&format!("{:x}", number / 2), "h", ["d", "s", "t"], (number % 2) as u16 + 1)
    }),
    ("two names of a topic", |number| {
        registration(&format!("{:x}", number % 2), "h", ["d", "s", &format!("{:x}", number / 2)], 1)
    }),
    ("nine names of a topic", |number| {
        registration(&format!("{:x}", number % 9), "h", ["d", "s", &format!("{:x}", number / 9)], 1)
    }),
    ("twelve names of a topic", |number| {
        registration(&format!("{:x}", number % 12), "h", ["d", "s", &format!("{:x}", number / 12)], 1)
    }),
    ("nine topics of a host", |number| {
        registration("n", &format!("h{:x}", number / 9), ["d", "s", &format!("{number:x}")], 1)
    }),
    ("three topics of a subject", |number| {
        registration("n", "h", ["d", &format!("{:x}", number / 3), &format!("t{:x}", number % 3)], 1)
    }),
];

/// Returns the bytes in use. An allocator takes more than it is asked for: 8 bytes, and padding to the next
/// multiple of 16.
fn in_use(info: &AllocationInfo) -> i64 {
    info.bytes_current + 16 * info.count_current
}

#[test]
fn the_registrar_counts_what_registrations_take_whatever_their_shape() {
    for (shape, make) in SHAPES {
        for (ttl, is_scattered) in [(None, false), (None, true), (Some(Duration::from_secs(60)), true)] {
            let mut store = Store::new(usize::MAX, ttl);
            // With an odd factor, every number is visited once.
            let number = |step: usize| if is_scattered { step * 7_919 % REGISTERED } else { step };
            let filled = measure(|| {
                for step in 0..REGISTERED {
                    let registration = make(number(step));
                    assert_eq!(store.register(OwnerType::Publisher, &registration, Duration::ZERO), Ok(true));
                }
                // After a query, each frame has a reference count.
                assert_eq!(store.all(OwnerType::Publisher).len(), REGISTERED);
            });
            let whole = (store.memory(), in_use(&filled));
            let emptied = measure(|| {
                for step in (0..REGISTERED).filter(|step| step % 3 > 0) {
                    let gone = make(number(step));
                    // This removes all ports of a name.
                    store.remove(OwnerType::Publisher, &gone).unwrap();
                }
            });
            let rest = (store.memory(), in_use(&filled) + in_use(&emptied));
            for (when, (counted, used)) in [("all", whole), ("the rest", rest)] {
                let (each, ratio) = (used as f64 / REGISTERED as f64, counted as f64 / used as f64);
                println!(
                    "{shape}, {ttl:?}, scattered {is_scattered}, {when}: {each:.0} bytes, counted {ratio:.2}"
                );
                let is_little = used < 128 << 10;
                assert!(is_little || (0.85..=1.25).contains(&ratio), "{shape}, {when}: counted {ratio}");
            }
        }
    }
}
