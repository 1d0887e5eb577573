//! Measures how the costs of a proxy grow with the number of idle connections, subscriptions, subscribers and
//! publishers, and how long clients notice a restart. The proxy is a process of its own, from the folder in
//! `XMSG_BIN_DIR`, and the figures are for that process. Run it on an idle machine:
//!
//! ```sh
//! cargo build --release --workspace --bins
//! XMSG_BIN_DIR=$PWD/target/release cargo run --release --package xmsg-tests --example scale -- docs/plots
//! ```
//!
//! Plots are written to the folder that is named, if there is one. After it, the names of parts may follow,
//! to run only these: `alone`, `subscriptions`, `subscribers`, `publishers`, `connections`, `restarts`.

mod matching;
mod plot;
mod process;
mod traffic;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use xmsg_core::{Connection, Message, ProxyAddress};
use xmsg_tests::{patient, topic, within};
use xmsg_zmq::{Endpoint, SocketOptions, Subscriber};

use self::plot::Line;
use self::process::ProxyProcess;
use self::traffic::{Traffic, encoded};

const CONNECTIONS: usize = 10_000;
/// The number of peers that share all subscriptions.
const SUBSCRIBERS: usize = 10;
const RESTARTS: i64 = 5;
/// The number of deliveries while one rate is measured.
const DELIVERED: usize = 20_000_000;
/// The number of descriptors that are reserved for other uses.
const SPARE: usize = 100;

fn subscriber(address: &ProxyAddress) -> Subscriber {
    let socket = Subscriber::new(SocketOptions::default());
    socket.connect(Endpoint::tcp(address.host(), address.subscribe_port()));
    socket
}

async fn connections() {
    let proxy = ProxyProcess::start("0").await;
    let before = proxy.resident();
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS / 100 {
        let some: Vec<_> = (0..100).map(|_| subscriber(&proxy.address)).collect();
        for socket in &some {
            within("a connection", socket.connected()).await.expect("the socket is open");
        }
        held.extend(some);
    }
    let each = (proxy.resident() - before) / CONNECTIONS;
    println!("{CONNECTIONS} idle connections: {each} bytes each");
}

async fn restarts() {
    let ProxyProcess { mut daemon, address } = ProxyProcess::start("0").await;
    let port = address.publish_port().to_string();
    let publisher = Connection::with_options(address.clone(), patient()).unwrap();
    let subscriber = Connection::with_options(address, patient()).unwrap();
    let mut messages = within("the checks", subscriber.subscribe([topic("a")])).await.expect("a proxy");
    within("a connection", publisher.connect()).await.expect("a proxy");
    let mut times = Vec::new();
    for number in 0..RESTARTS {
        daemon.signal("TERM").await;
        daemon.end().await;
        let down = Instant::now();
        daemon = ProxyProcess::start(&port).await.daemon;
        let up = Instant::now();
        publisher.publish(&Message::of("a", number).expect("a topic")).await.expect("it is accepted");
        let message = within("the message", messages.next()).await.expect("open").expect("three frames");
        assert_eq!(message.value::<i64>().expect("a number"), number);
        times.push((up.elapsed(), up - down));
    }
    times.sort();
    let (felt, starting) = times[times.len() / 2];
    println!(
        "restart: {} ms from listening again to the first message through, median of {RESTARTS} (starting takes {} ms)",
        felt.as_millis(),
        starting.as_millis()
    );
}

/// What there is much of: subscribers of one publisher, or publishers to one subscriber.
#[derive(Clone, Copy)]
enum Many {
    Subscribers,
    Publishers,
}

/// Measures the traffic with these numbers of peers: rates and processor time.
async fn many(of: Many, counts: &[usize]) -> [Line; 2] {
    let name = match of {
        Many::Subscribers => "subscribers",
        Many::Publishers => "publishers",
    };
    let mut lines = ["delivered", "processor"].map(|name| Line { name: name.into(), points: Vec::new() });
    for &count in counts {
        if count + SPARE > process::descriptors() {
            println!(
                "{count} {name}: left out, because there are no more than {} descriptors",
                process::descriptors()
            );
            continue;
        }
        let (publishers, subscribers) = match of {
            Many::Subscribers => (1, count),
            Many::Publishers => (count, 1),
        };
        let mut traffic = Traffic::new().await;
        for _ in 0..subscribers {
            traffic.subscriber(["det:7:channel".to_owned()].into_iter()).await;
        }
        traffic.settle().await;
        traffic.publishers(publishers).await;
        let one = encoded("det:7:channel000123");
        let cost = traffic.run(&Arc::new(one.repeat(1_000)), one.len(), DELIVERED / count, subscribers).await;
        let resident = traffic.proxy.resident() >> 20;
        println!(
            "{count} {name}: {:.0} delivered/s, {:.0} ns of processor time each, {resident} MiB resident",
            cost.rate, cost.processor
        );
        for (line, value) in lines.iter_mut().zip([cost.rate, cost.processor]) {
            line.points.push((count as f64, value));
        }
    }
    lines
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = arguments.first().map(PathBuf::from);
    let parts = arguments.get(1..).unwrap_or_default();
    let chosen = |part: &str| parts.is_empty() || parts.iter().any(|chosen| chosen == part);
    let draw = |file: &str, title: &str, axes: [&str; 2], lines: &[Line]| {
        let Some(folder) = &folder else { return };
        std::fs::create_dir_all(folder).expect("a folder for the pictures");
        let file = Path::new(folder).join(file);
        plot::draw(&file, title, axes, lines).expect("a picture");
    };
    if chosen("alone") {
        let lines = matching::alone();
        draw("match.svg", "Finding the subscribers of a topic", ["subscriptions", "ns a topic"], &lines);
    }
    if chosen("subscriptions") {
        let (memory, costs) = matching::in_the_proxy().await;
        draw(
            "subscriptions-memory.svg",
            "Memory of subscriptions",
            ["subscriptions", "bytes each"],
            &[memory],
        );
        let axes = ["subscriptions", "ns of the proxy's processor time a message"];
        draw("subscriptions.svg", "A message among many subscriptions", axes, &costs);
    }
    for (part, of, counts) in [
        ("subscribers", Many::Subscribers, &[1, 10, 100, 1_000, 10_000][..]),
        ("publishers", Many::Publishers, &[1, 10, 100, 1_000]),
    ] {
        if chosen(part) {
            let [rates, processor] = many(of, counts).await;
            draw(
                &format!("{part}-rate.svg"),
                &format!("Messages of 100 bytes and many {part}"),
                [part, "delivered a second"],
                &[rates],
            );
            let axes = [part, "ns of the proxy's processor time a delivery"];
            draw(
                &format!("{part}-processor.svg"),
                &format!("Messages of 100 bytes and many {part}"),
                axes,
                &[processor],
            );
        }
    }
    if chosen("connections") {
        connections().await;
    }
    if chosen("restarts") {
        restarts().await;
    }
}
