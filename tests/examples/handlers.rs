//! Measures how fast messages are delivered to a loop around `next` and to handlers. Publisher, proxy and
//! subscriber are in one process and use the loopback interface. Messages have 100 bytes of data. The ways
//! are measured in turn, and the median of the rounds is printed for each.
//!
//! ```sh
//! cargo run --release -p xmsg-tests --example handlers -- [messages] [rounds]
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use xmsg_core::{Actor, Connection, Message};
use xmsg_proxy::{Policy, Proxy};

const PATIENCE: Duration = Duration::from_secs(60);
const DATA: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Next,
    Handler(usize),
}

const WAYS: [Way; 3] = [Way::Next, Way::Handler(1), Way::Handler(8)];

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let number = |place, default| std::env::args().nth(place).map_or(Ok(default), |text| text.parse());
    let (messages, rounds): (u64, u64) = (number(1, 1_000_000)?, number(2, 5)?);
    let mut rates = [const { Vec::new() }; WAYS.len()];
    for _ in 0..rounds {
        for (way, rates) in WAYS.into_iter().zip(&mut rates) {
            rates.push(deliver(way, messages).await?);
        }
    }
    for (way, mut rates) in WAYS.into_iter().zip(rates) {
        rates.sort_by(f64::total_cmp);
        let name = match way {
            Way::Next => "next".to_owned(),
            Way::Handler(concurrency) => format!("subscribe_with, concurrency {concurrency}"),
        };
        println!("{name:<32} {:>10.0} messages/s", rates[rates.len() / 2]);
    }
    Ok(())
}

/// Returns messages per second, from the first publish to the last delivery.
async fn deliver(way: Way, messages: u64) -> Result<f64, Box<dyn std::error::Error>> {
    let proxy = Proxy::bind("127.0.0.1:0").slow_subscriber(Policy::BLOCK).start().await?;
    let publisher = Connection::new(proxy.address().clone())?;
    publisher.connect().await?;
    let actor = Actor::builder("measure").proxy(proxy.address()).build()?;
    let publishing = async move {
        let message = Message::of("bench:subject:type01", vec![7_u8; DATA])?;
        for _ in 0..messages {
            publisher.publish(&message).await?;
        }
        publisher.flush(PATIENCE).await?;
        Ok::<_, xmsg_core::Error>(publisher)
    };
    let (started, took) = match way {
        Way::Next => {
            let mut subscription = actor.subscribe("bench").await?;
            let receiving = tokio::spawn(async move {
                let mut bytes = 0;
                for _ in 0..messages {
                    let message = subscription.next().await.expect("it is open").expect("three frames");
                    bytes += message.data().len();
                }
                bytes
            });
            let started = Instant::now();
            let publishing = tokio::spawn(publishing);
            assert_eq!(receiving.await?, messages as usize * DATA);
            let took = started.elapsed();
            publishing.await??;
            (started, took)
        }
        Way::Handler(concurrency) => {
            let (count, bytes, done) = (AtomicU64::new(0), AtomicU64::new(0), Arc::new(Notify::new()));
            let handler = {
                let (shared, done) = (Arc::new((count, bytes)), done.clone());
                move |message: Message| {
                    let (shared, done) = (shared.clone(), done.clone());
                    async move {
                        let (count, bytes) = &*shared;
                        bytes.fetch_add(message.data().len() as u64, Ordering::Relaxed);
                        if count.fetch_add(1, Ordering::Relaxed) + 1 == messages {
                            assert_eq!(bytes.load(Ordering::Relaxed), messages * DATA as u64);
                            done.notify_one();
                        }
                    }
                }
            };
            let _handle = actor.subscribe_with("bench", concurrency, handler).await?;
            let started = Instant::now();
            let publishing = tokio::spawn(publishing);
            done.notified().await;
            let took = started.elapsed();
            publishing.await??;
            (started, took)
        }
    };
    assert!(started.elapsed() >= took);
    actor.close(PATIENCE).await;
    proxy.stop(PATIENCE).await;
    Ok(messages as f64 / took.as_secs_f64())
}
