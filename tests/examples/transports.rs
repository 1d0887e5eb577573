//! Measures the transports `tcp://`, `ipc://` and `inproc://`: messages per second, and the time of a request
//! with its reply. Both ends are in one process, each on a thread of its own.
//!
//! ```sh
//! cargo run --release -p xmsg-tests --example transports
//! ```

use std::time::{Duration, Instant};

use bytes::Bytes;
use xmsg_core::Result;
use xmsg_zmq::{Endpoint, Publisher, Replier, Requester, SocketOptions, Subscriber};

/// The number of rounds, of which the median is printed.
const ROUNDS: usize = 5;
/// The data of a round in bytes. `MESSAGES_MAX` limits the number of messages.
const VOLUME: usize = 1 << 30;
const MESSAGES_MAX: usize = 2_000_000;
const SIZES: [usize; 4] = [100, 1024, 64 << 10, 1 << 20];
/// The number of requests in a round, which are sent one at a time.
const REQUESTS: usize = 20_000;

fn main() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder for sockets");
    let ipc = format!("ipc://{}/socket", folder.path().display());
    println!("| transport | data | messages/s | MB/s |");
    println!("|---|---:|---:|---:|");
    for size in SIZES {
        for endpoint in ["tcp://127.0.0.1:0", &ipc, "inproc://transports"] {
            let endpoint: Endpoint = endpoint.parse()?;
            let rate = median((0..ROUNDS).map(|_| throughput(&endpoint, size)).collect::<Result<_>>()?);
            println!("| {} | {size} | {rate:.0} | {:.0} |", scheme(&endpoint), rate * size as f64 / 1e6);
        }
    }
    println!("\n| transport | request and reply, 50 % | 99 % |");
    println!("|---|---:|---:|");
    for endpoint in ["tcp://127.0.0.1:0", &ipc, "inproc://transports"] {
        let endpoint: Endpoint = endpoint.parse()?;
        let [half, most] = round_trips(&endpoint)?;
        println!("| {} | {:.1} µs | {:.1} µs |", scheme(&endpoint), half * 1e6, most * 1e6);
    }
    Ok(())
}

fn scheme(endpoint: &Endpoint) -> String {
    let text = endpoint.to_string();
    text.split("://").next().unwrap_or_default().to_owned()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Returns messages per second, from the first received message to the last.
fn throughput(endpoint: &Endpoint, size: usize) -> Result<f64> {
    let count = (VOLUME / size).min(MESSAGES_MAX);
    let runtime = runtime();
    let publisher = Publisher::new(SocketOptions::default());
    let endpoint = runtime.block_on(publisher.bind(endpoint))?;
    let receiving = std::thread::spawn(move || {
        self::runtime().block_on(async {
            let mut subscriber = Subscriber::new(SocketOptions::default());
            subscriber.subscribe("bench").unwrap();
            subscriber.connect(endpoint);
            subscriber.recv().await;
            let started = Instant::now();
            for _ in 1..count {
                subscriber.recv().await;
            }
            started.elapsed()
        })
    });
    runtime.block_on(async {
        publisher.wait_for_subscriber(b"bench").await.unwrap();
        let frames = ["bench:subject:type01".into(), vec![b'm'; 20], vec![b'd'; size]].map(Bytes::from);
        for _ in 0..count {
            publisher.publish_frames(&frames).await?;
        }
        publisher.close(Duration::from_secs(60)).await;
        Ok::<_, xmsg_core::Error>(())
    })?;
    let took = receiving.join().expect("the subscriber does not panic");
    Ok((count - 1) as f64 / took.as_secs_f64())
}

/// Returns the median and the 99th percentile of the time of a request, in seconds.
fn round_trips(endpoint: &Endpoint) -> Result<[f64; 2]> {
    let server = runtime();
    let replier = Replier::new(SocketOptions::default());
    let endpoint = server.block_on(replier.bind(endpoint))?;
    let answering = std::thread::spawn(move || {
        server.block_on(async {
            for _ in 0..REQUESTS {
                let Some((path, request)) = replier.recv().await else { return };
                if replier.try_reply(&path, request).is_err() {
                    return;
                }
            }
            replier.close(Duration::from_secs(10)).await;
        });
    });
    let mut took: Vec<f64> = runtime().block_on(async {
        let requester = Requester::connecting_to(endpoint, SocketOptions::default());
        let mut took = Vec::with_capacity(REQUESTS);
        for _ in 0..REQUESTS {
            let started = Instant::now();
            requester.request([Bytes::from_static(&[b'd'; 100])], Duration::from_secs(10)).await?;
            took.push(started.elapsed().as_secs_f64());
        }
        Ok::<_, xmsg_core::Error>(took)
    })?;
    answering.join().expect("the replier does not panic");
    took.sort_by(f64::total_cmp);
    Ok([took[took.len() / 2], took[took.len() * 99 / 100]])
}
