//! The program that the tests with network namespaces start inside them: a proxy, a publisher or a
//! subscriber.
//!
//! ```text
//! station proxy HOST:PORT INTERVAL TIMEOUT
//! station sub   HOST:PORT INTERVAL TIMEOUT [BYTES]
//! station pub   HOST:PORT INTERVAL TIMEOUT
//! ```
//!
//! The proxy prints `listening`, and then what it logs. The subscriber prints `subscribed`, and then a line
//! with the number of each message. The publisher publishes for each line `COUNT BYTES` on standard input,
//! and prints `published` and the total number of messages.
//!
//! Publisher and subscriber also print `connected` and `disconnected REASON`. `INTERVAL` and `TIMEOUT` are
//! those of heartbeats, in milliseconds, and `-` stands for the default. `BYTES` is the limit of what the
//! subscriber holds before it is read.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use xmsg_core::{ConnectOptions, Connection, Message};
use xmsg_proxy::{Config, Policy, Proxy};
use xmsg_tests::{PATIENCE, topic};
use xmsg_zmq::{SocketEvent, SocketEvents};

const TOPIC: &str = "data";
const LINGER: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [role, address, interval, timeout, rest @ ..] = &arguments[..] else { panic!("see the source") };
    let heartbeats = (interval != "-").then(|| (millis(interval), millis(timeout)));
    match role.as_str() {
        "proxy" => proxy(address, heartbeats).await,
        "pub" => {
            publish(Connection::with_options(address, setup(heartbeats)).unwrap()).await;
        }
        "sub" => {
            let mut setup = setup(heartbeats);
            if let Some(bytes) = rest.first() {
                let bytes = bytes.parse().unwrap();
                setup = setup.before_subscribe(move |socket, _| socket.receive_high_water_mark(bytes));
            }
            subscribe(&Connection::with_options(address, setup).unwrap()).await;
        }
        other => panic!("{other}?"),
    }
}

fn millis(text: &str) -> Duration {
    Duration::from_millis(text.parse().unwrap())
}

fn setup(heartbeats: Option<(Duration, Duration)>) -> ConnectOptions {
    let setup = ConnectOptions::new().connection_timeout(PATIENCE).subscription_timeout(PATIENCE);
    match heartbeats {
        None => setup,
        Some((interval, timeout)) => setup.heartbeat_interval(interval).heartbeat_timeout(timeout),
    }
}

async fn proxy(address: &str, heartbeats: Option<(Duration, Duration)>) {
    let filter = Targets::new().with_target("xmsg_proxy", LevelFilter::DEBUG);
    tracing_subscriber::registry()
        .with(filter)
        .with(tracing_subscriber::fmt::layer().with_ansi(false))
        .init();
    let mut config = Config { policy: Policy::BLOCK, ..Config::default() };
    if let Some((interval, timeout)) = heartbeats {
        (config.heartbeat_interval, config.heartbeat_timeout) = (Some(interval), timeout);
    }
    let proxy = Proxy::bind(address).config(config).start().await.unwrap();
    println!("listening {}", proxy.address());
    std::future::pending::<()>().await;
}

async fn publish(connection: Connection) {
    tokio::spawn(report(connection.events()));
    println!("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut number = 0_i32;
    while let Some(line) = lines.next_line().await.unwrap() {
        let (count, bytes) = line.split_once(' ').unwrap();
        let (count, bytes): (i32, usize) = (count.parse().unwrap(), bytes.parse().unwrap());
        for _ in 0..count {
            connection.publish(&Message::of(TOPIC, vec![number; bytes / 4]).unwrap()).await.unwrap();
            number += 1;
        }
        println!("published {number}");
    }
    println!("closed, {} not sent", connection.close(LINGER).await);
}

async fn subscribe(connection: &Connection) {
    let mut messages = connection.subscribe([topic(TOPIC)]).await.unwrap();
    tokio::spawn(report(messages.events()));
    println!("subscribed");
    while let Some(message) = messages.next().await {
        println!("{}", message.unwrap().value::<Vec<i32>>().unwrap()[0]);
    }
}

async fn report(mut events: SocketEvents) {
    while let Some(event) = events.next().await {
        match event {
            SocketEvent::Connected { .. } => println!("connected"),
            SocketEvent::Disconnected { error, .. } => println!("disconnected {error:?}"),
            SocketEvent::ConnectFailed { error, .. } => println!("failed {error:?}"),
            _ => {}
        }
    }
}
