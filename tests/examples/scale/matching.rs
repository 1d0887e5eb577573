//! The cost of finding the subscribers of a topic, in the table alone and in the proxy, and the memory of
//! subscriptions.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use xmsg_proxy::prefixes::PrefixTable;

use crate::SUBSCRIBERS;
use crate::plot::Line;
use crate::traffic::{Traffic, encoded};

pub(crate) const COUNTS: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// The number of topics of most messages, when not all topics are used.
const HOT: usize = 3_000;
const LOOKUPS: usize = 2_000_000;
/// The number of topics that are looked up together.
const TOGETHER: usize = 64;
const MESSAGES: usize = 4_000_000;

/// A function that returns this many prefixes.
type Shape = fn(usize) -> Vec<String>;

/// The shapes of prefixes: all with 20 bytes, or three names of many lengths.
const SHAPES: [(&str, Shape); 2] = [("one length", channels), ("many lengths", names)];

/// Returns prefixes such as `det:7:channel000123`, all of one length.
fn channels(count: usize) -> Vec<String> {
    (0..count).map(channel).collect()
}

fn channel(number: usize) -> String {
    format!("det:{}:channel{:06}", number % SUBSCRIBERS, number / SUBSCRIBERS)
}

/// Returns prefixes `domain:subject:type:` of 20 × 2,000 × 2,000 names with three to eleven letters.
fn names(count: usize) -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut name = || -> String { (0..random.usize(3..12)).map(|_| random.lowercase()).collect() };
    let names: Vec<String> = (0..2_000).map(|_| name()).collect();
    let mut random = fastrand::Rng::with_seed(8);
    let mut prefixes = std::collections::HashSet::new();
    while prefixes.len() < count {
        let [domain, subject, kind] = [20, 2_000, 2_000].map(|names| random.usize(..names));
        prefixes.insert(format!("{}:{}:{}:", names[domain], names[subject], names[kind]));
    }
    let mut prefixes: Vec<String> = prefixes.into_iter().collect();
    prefixes.sort();
    random.shuffle(&mut prefixes);
    prefixes
}

/// Returns a topic for each prefix, in an order that no cache can predict.
fn topics(prefixes: &[String]) -> Vec<String> {
    let count = prefixes.len();
    (0..count).map(|number| format!("{}:value", prefixes[number * 611_953 % count])).collect()
}

/// Returns the time for each lookup in ns.
fn time(mut some: impl FnMut() -> usize) -> f64 {
    let (mut found, started) = (0, Instant::now());
    while found < LOOKUPS {
        found += black_box(some());
    }
    started.elapsed().as_nanos() as f64 / found as f64
}

/// Measures the table alone: one topic after another and several together, with all topics and with a few
/// thousand.
pub(crate) fn alone() -> Vec<Line> {
    random_access();
    let mut lines = Vec::new();
    for (shape, prefixes) in SHAPES {
        let ways = [
            "all topics, one by one",
            "all topics, together",
            "3,000 topics, one by one",
            "3,000 topics, together",
        ];
        let mut own = ways.map(|way| Line { name: format!("{shape}; {way}"), points: Vec::new() });
        for count in COUNTS {
            let prefixes = prefixes(count);
            let mut table = PrefixTable::new();
            for (number, prefix) in prefixes.iter().enumerate() {
                table.insert(prefix.as_bytes(), (number % SUBSCRIBERS) as u32);
            }
            let topics = topics(&prefixes);
            let all: Vec<&[u8]> = topics.iter().map(String::as_bytes).collect();
            let few = &all[..HOT.min(count)];
            let times = [&all[..], few].map(|topics| {
                let one = time(|| {
                    let mut found = 0;
                    for topic in topics {
                        table.find(topic, |keys| found += keys.len());
                    }
                    found
                });
                let together = time(|| {
                    let mut found = 0;
                    for some in topics.chunks(TOGETHER) {
                        table.find_each(some, |_, keys| found += keys.len());
                    }
                    found
                });
                [one, together]
            });
            println!("match among {count} subscriptions, {shape}:");
            for (line, time) in own.iter_mut().zip(times.concat()) {
                println!("  {:60} {time:4.0} ns", line.name);
                line.points.push((count as f64, time));
            }
        }
        lines.extend(own);
    }
    lines
}

/// Prints how long this machine takes to read from a random place in 64 MiB if the place depends on the read
/// before.
fn random_access() {
    const LINES: usize = 1 << 20;
    let mut order: Vec<usize> = (0..LINES).collect();
    fastrand::Rng::with_seed(1).shuffle(&mut order);
    let mut lines = vec![[0_usize; 8]; LINES];
    for at in 0..LINES {
        lines[order[at]][0] = order[(at + 1) % LINES];
    }
    let (mut at, started) = (0, Instant::now());
    for _ in 0..LINES {
        at = lines[at][0];
    }
    let each = started.elapsed().as_nanos() as f64 / LINES as f64;
    assert_eq!(black_box(at), 0, "it came around");
    println!("one miss of all caches: {each:.0} ns");
}

/// Measures a proxy with different numbers of subscriptions: the memory of a subscription in bytes, and the
/// cost of a message in ns.
pub(crate) async fn in_the_proxy() -> (Line, Vec<Line>) {
    let mut memory = Line { name: "resident memory for a subscription".into(), points: Vec::new() };
    let mut own = ["messages of all topics", "messages of 3,000 topics"]
        .map(|name| Line { name: name.into(), points: Vec::new() });
    for count in COUNTS {
        let mut traffic = Traffic::new().await;
        traffic.settle().await;
        let (before, started) = (traffic.proxy.resident(), Instant::now());
        for number in 0..SUBSCRIBERS {
            traffic.subscriber((number..count).step_by(SUBSCRIBERS).map(channel)).await;
        }
        traffic.settle().await;
        let seconds = started.elapsed().as_secs_f64();
        let bytes = (traffic.proxy.resident() - before) as f64 / count as f64;
        println!(
            "{count} subscriptions of {SUBSCRIBERS} peers: {bytes:.0} bytes each, made within {seconds:.2} s"
        );
        memory.points.push((count as f64, bytes));
        traffic.publishers(1).await;
        let topics = topics(&channels(count));
        for (line, topics) in own.iter_mut().zip([&topics[..], &topics[..HOT.min(count)]]) {
            let wire: Vec<u8> = topics.iter().flat_map(|topic| encoded(topic)).collect();
            let size = wire.len() / topics.len();
            let cost = traffic.run(&Arc::new(wire), size, MESSAGES, 1).await;
            println!("  {}: {:.0}/s, {:.0} ns of processor time each", line.name, cost.rate, cost.processor);
            line.points.push((count as f64, cost.processor));
        }
    }
    (memory, own.into())
}
