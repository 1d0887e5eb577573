//! What much of something costs a proxy: idle connections, subscriptions; and how long a restart is felt. The proxy is a process of its
//! own, from the folder in `XMSG_BIN_DIR`; figures are of that process. Started so, on an idle machine:
//!
//! ```sh
//! cargo build --release --workspace --bins
//! XMSG_BIN_DIR=$PWD/target/release cargo run --release --package xmsg-tests --example scale
//! ```

use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use xmsg_core::socket::{Endpoint, SocketOptions, Subscriber};
use xmsg_core::trie::Trie;
use xmsg_core::{Connection, Message, ProxyAddress};
use xmsg_tests::process::Daemon;
use xmsg_tests::{patient, topic, within};

const CONNECTIONS: usize = 10_000;
const SUBSCRIPTIONS: usize = 1_000_000;
/// Subscribers that share them.
const SUBSCRIBERS: usize = 10;
const RESTARTS: i64 = 5;
const LOOKUPS: usize = 2_000_000;

async fn start(port: &str) -> (Daemon, ProxyAddress) {
    let folder = PathBuf::from(std::env::var_os("XMSG_BIN_DIR").expect("XMSG_BIN_DIR is set"));
    let mut daemon = Daemon::start(folder.join("xmsg-proxy"), &["--port", port]);
    let line = daemon.line().await;
    let address = line.split_whitespace().nth(3).expect("an address").trim_end_matches(':');
    (daemon, address.parse().expect("an address"))
}

/// Resident memory of the process, bytes.
fn resident(daemon: &Daemon) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux");
    let kib: usize = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
    kib * 1024
}

fn subscriber(address: &ProxyAddress) -> Subscriber {
    let socket = Subscriber::new(SocketOptions::default());
    socket.connect(Endpoint::tcp(address.host(), address.subscribe_port()));
    socket
}

async fn connections() {
    let (daemon, address) = start("0").await;
    let before = resident(&daemon);
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS / 100 {
        let some: Vec<_> = (0..100).map(|_| subscriber(&address)).collect();
        for socket in &some {
            within("a connection", socket.connected()).await;
        }
        held.extend(some);
    }
    let each = (resident(&daemon) - before) / CONNECTIONS;
    println!("{CONNECTIONS} idle connections: {each} bytes each");
}

async fn subscriptions() {
    let (daemon, address) = start("0").await;
    let connection = Connection::with_setup(address.clone(), patient());
    let before = resident(&daemon);
    let started = Instant::now();
    let mut held = Vec::new();
    for number in 0..SUBSCRIBERS {
        let socket = subscriber(&address);
        for prefix in 0..SUBSCRIPTIONS / SUBSCRIBERS {
            socket.subscribe(format!("det:{number}:channel{prefix:06}"));
        }
        held.push(socket);
    }
    // A confirmation comes when what had arrived before is in the table; more may still be on its way.
    for socket in &held {
        within("a connection", socket.connected()).await;
    }
    loop {
        let _last = within("the checks", connection.subscribe([topic("last")])).await.expect("a proxy");
        let subscriptions = resident(&daemon);
        tokio::time::sleep(Duration::from_millis(500)).await;
        if resident(&daemon) == subscriptions {
            break;
        }
    }
    let each = (resident(&daemon) - before) / SUBSCRIPTIONS;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{SUBSCRIPTIONS} subscriptions of {SUBSCRIBERS} peers: {each} bytes each, made within {seconds:.1} s"
    );
}

fn matching() {
    for count in [1_000, SUBSCRIPTIONS] {
        let mut trie = Trie::new();
        let prefix =
            |number: usize| format!("det:{}:channel{:06}", number % SUBSCRIBERS, number / SUBSCRIBERS);
        for number in 0..count {
            trie.insert(prefix(number).as_bytes(), (number % SUBSCRIBERS) as u32);
        }
        // Every subscription in turn, in an order that no cache foresees, with something behind it.
        let topics: Vec<String> =
            (0..count).map(|number| prefix(number * 611_953 % count) + ":value").collect();
        let (mut found, started) = (0, Instant::now());
        for lookup in 0..LOOKUPS {
            trie.find(topics[lookup % count].as_bytes(), |keys| found += keys.len());
        }
        let each = started.elapsed().as_nanos() as f64 / LOOKUPS as f64;
        assert_eq!(black_box(found), LOOKUPS);
        println!("match among {count} subscriptions: {each:.0} ns");
    }
}

async fn restarts() {
    let (mut daemon, address) = start("0").await;
    let port = address.publish_port().to_string();
    let publisher = Connection::with_setup(address.clone(), patient());
    let subscriber = Connection::with_setup(address, patient());
    let mut messages = within("the checks", subscriber.subscribe([topic("a")])).await.expect("a proxy");
    within("a connection", publisher.connect()).await.expect("a proxy");
    let mut times = Vec::new();
    for number in 0..RESTARTS {
        daemon.signal("TERM").await;
        daemon.end().await;
        let down = Instant::now();
        daemon = start(&port).await.0;
        let up = Instant::now();
        publisher.publish(&Message::of(topic("a"), number)).await.expect("it is accepted");
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

#[tokio::main]
async fn main() {
    matching();
    connections().await;
    subscriptions().await;
    restarts().await;
}
