//! Fixed work on fixed inputs, done once. `tests/bench/instructions` runs it under callgrind, which counts
//! the instructions within `measured`. It prints how many messages or topics that were.
//!
//! ```sh
//! cargo run --release -p xmsg-tests --example fixed_work -- scan
//! ```

use std::hint::black_box;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use xmsg_core::{Message, Messages, Meta, Topic};
use xmsg_proxy::prefixes::PrefixTable;
use xmsg_zmq::HighWaterMark;
use xmsg_zmq::link::send_queue::{MemoryCounter, SendQueue, SlabCharge};
use xmsg_zmtp::{Engine, Event, Limits, Options, Scanner, SocketType, encode_message};

/// The number of messages or topics of a workload.
const COUNT: usize = 10_000;
/// The bytes of one read.
const READ: usize = 64 << 10;

const WORK: [(&str, fn()); 11] = [
    ("publish", publish),
    ("encode", encode),
    ("scan", scan),
    ("codec", codec),
    ("decode", decode),
    ("detach", detach),
    ("lend", lend),
    ("metadata", metadata),
    ("forward", forward),
    ("match 1k", || find(1000)),
    ("match 100k", || find(100_000)),
];

fn main() {
    let name = std::env::args().nth(1);
    match WORK.iter().find(|(known, _)| name.as_deref() == Some(known)) {
        Some((_, work)) => work(),
        None => {
            for (name, _) in WORK {
                println!("{name}");
            }
        }
    }
}

/// Runs the work whose instructions are counted.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

/// Returns a message with a topic and metadata of 20 bytes each, and 100 bytes of data.
fn message() -> Message {
    let frame = |byte, len| Bytes::from(vec![byte; len]);
    Message::from_frames(Bytes::from_static(b"bench:subject:type01"), frame(b'm', 20), frame(b'd', 100))
}

/// Returns [`COUNT`] encoded messages.
fn wire() -> BytesMut {
    let mut wire = BytesMut::new();
    let frames = message().into_frames();
    for _ in 0..COUNT {
        encode_message(&mut wire, &frames);
    }
    wire
}

/// Encodes messages into the queue of a connection.
fn publish() {
    let send_queue = SendQueue::recycling(HighWaterMark::bytes(usize::MAX));
    let frames = message().into_frames();
    measured(|| {
        for _ in 0..COUNT {
            send_queue.try_push(black_box(&frames)).expect("there is room");
        }
    });
    println!("{COUNT}");
}

/// Encodes messages into a buffer.
fn encode() {
    let mut out = BytesMut::with_capacity(wire().len());
    let frames = message().into_frames();
    measured(|| {
        for _ in 0..COUNT {
            encode_message(&mut out, black_box(&frames));
        }
    });
    println!("{COUNT}");
}

/// Finds the boundaries of messages, one read at a time.
fn scan() {
    let mut wire = wire();
    let mut scanner = Scanner::new(&Limits::default());
    let mut spans = Vec::with_capacity(COUNT);
    let mut found = 0;
    measured(|| {
        let mut end = READ;
        while !wire.is_empty() {
            spans.clear();
            let read = end.min(wire.len());
            scanner.scan(&wire[..read], &mut spans).expect("nothing is wrong with them");
            found += spans.len();
            let whole = spans.last().map_or(0, |span| span.end);
            let _ = wire.split_to(whole);
            end = READ;
        }
    });
    println!("{found}");
}

/// Runs the engine of a proxy, from bytes to batches of messages.
fn codec() {
    let [mut publisher, mut proxy] = [SocketType::Pub, SocketType::Xsub]
        .map(|kind| Engine::new(Options::new(kind), std::time::Instant::now()));
    let (mut to_proxy, mut to_publisher, mut ready) = (BytesMut::new(), BytesMut::new(), 0);
    while ready < 2 {
        while let Some(bytes) = publisher.poll_transmit() {
            to_proxy.extend_from_slice(&bytes);
        }
        while let Some(bytes) = proxy.poll_transmit() {
            to_publisher.extend_from_slice(&bytes);
        }
        let events = [publisher.poll_event(&mut to_publisher), proxy.poll_event(&mut to_proxy)];
        ready += events.iter().filter(|event| matches!(event, Ok(Some(Event::Ready(_))))).count();
    }
    let wire = wire().freeze();
    let mut found = 0;
    measured(|| {
        let mut input = BytesMut::with_capacity(2 * READ);
        for read in wire.chunks(READ) {
            input.extend_from_slice(read);
            while let Some(event) = proxy.poll_event(&mut input).expect("nothing is wrong with them") {
                found += proxy.spans().len();
                black_box(event);
            }
        }
    });
    println!("{found}");
}

/// Decodes messages that share the memory of the batch.
fn decode() {
    let messages = Messages::of(wire().freeze());
    let found = measured(|| messages.flatten().map(black_box).count());
    println!("{found}");
}

/// Decodes messages that own their memory.
fn detach() {
    let messages = Messages::of(wire().freeze());
    let found = measured(|| messages.detached().flatten().map(black_box).count());
    println!("{found}");
}

/// Decodes borrowed messages.
fn lend() {
    let messages = Messages::of(wire().freeze());
    let found = measured(|| messages.iter().flatten().map(black_box).count());
    println!("{found}");
}

/// Encodes metadata and decodes it again.
fn metadata() {
    let mut meta = Meta::new("text/string");
    (meta.author, meta.communication_id) = (Some("author".into()), Some(7));
    measured(|| {
        for _ in 0..COUNT {
            let frame = black_box(&meta).encode();
            black_box(Meta::decode(&frame).expect("it was just encoded"));
        }
    });
    println!("{COUNT}");
}

/// Queues runs of eight messages for a subscriber. Every second run is copied, and the others are slices.
fn forward() {
    let send_queue = SendQueue::new(HighWaterMark::bytes(usize::MAX));
    let slab = wire().freeze();
    let run = slab.len() / COUNT * 8;
    let lease = SlabCharge::new(&Arc::<MemoryCounter>::default(), slab.len());
    measured(|| {
        let mut guard = send_queue.lock();
        for at in (0..slab.len()).step_by(2 * run) {
            guard.push_copy(&slab[at..at + run], 8);
            guard.push_slice(slab.slice(at + run..at + 2 * run), 8, &lease);
        }
    });
    println!("{COUNT}");
}

/// Finds the subscribers of topics in a table with this many subscriptions.
fn find(subscriptions: usize) {
    let mut rng = Rng::with_seed(7);
    let mut table = PrefixTable::new();
    let topics: Vec<Topic> = (0..subscriptions)
        .map(|n| Topic::wrap(format!("domain{}:subject{}:{:06}", rng.u32(..10), rng.u32(..100), n)))
        .collect();
    for (number, topic) in topics.iter().enumerate() {
        table.insert(topic.as_bytes(), number as u32);
    }
    let asked: Vec<&[u8]> = (0..COUNT).map(|_| topics[rng.usize(..subscriptions)].as_bytes()).collect();
    let mut found = 0;
    measured(|| {
        for topic in &asked {
            table.find(topic, |keys| found += keys.len());
        }
    });
    assert_eq!(found, COUNT);
    println!("{COUNT}");
}
