//! What an outgoing connection takes: memory while 1 GiB goes through it into a queue of RabbitMQ, memory
//! with 1 GiB in its spool, and the time to start again with many messages in the spool. Memory is what the
//! process has resident, at most.
//!
//! ```text
//! cargo run --release -p xmsg-connect --example connect_memory -- [MIB] [BYTES] [ENTRIES]
//! ```
//!
//! Needs Debian's `rabbitmq-server`; it starts a broker of its own, whose queue keeps the last 1000 messages.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use lapin::types::{AMQPValue, FieldTable};
use xmsg_connect::definition::{ByteSize, ConnectionDefinition, OutgoingDefinition};
use xmsg_connect::{Registry, RegistryOptions};
use xmsg_core::{Message, ProxyAddress};
use xmsg_tests::rabbitmq::Broker;

type Failure = Box<dyn std::error::Error>;

const QUEUE: &str = "memory";
/// Bytes of sends that wait for the disk at the same time.
const SIDE_BY_SIDE: usize = 1 << 20;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let [mib, bytes, entries] =
        [(0, 1024), (1, 1024), (2, 1_000_000)].map(|(at, default)| *numbers.get(at).unwrap_or(&default));
    let count = (mib << 20) / bytes;
    let folder = tempfile::tempdir()?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1000));
    let broker = Broker::start().await;
    broker.declare_queue_with(QUEUE, arguments).await;

    let registry = open(&folder.path().join("through")).await?;
    let port = broker.port();
    registry.create(ConnectionDefinition::amqp("broker", format!("amqp://127.0.0.1:{port}"))).await?;
    let mut out = OutgoingDefinition::amqp("out", "broker", "");
    out.routing_key = Some(QUEUE.to_owned());
    registry.create(out).await?;
    registry.send_confirmed("out", message(bytes)?, Duration::from_secs(60)).await?;
    println!("at rest, connected                       {:>8} KiB", resident("VmRSS")?);
    let began = Instant::now();
    send(&registry, bytes, count).await?;
    while registry.outgoing("out")?.spool.entries > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = began.elapsed().as_secs_f64();
    println!("{mib} MiB went through in {took:.1} s, at most  {:>8} KiB", resident("VmHWM")?);
    registry.close().await?;
    drop(broker);

    // A second process would begin with less: what the first part has taken and given back is resident still.
    let kept = folder.path().join("kept");
    fill(&kept, bytes, count).await?;
    println!("{mib} MiB in the spool, at most           {:>8} KiB", resident("VmHWM")?);
    let many = folder.path().join("many");
    fill(&many, 100, entries).await?;
    for (what, state) in [(format!("{mib} MiB"), &kept), (format!("{entries} messages"), &many)] {
        let began = Instant::now();
        let registry = open(state).await?;
        let took = began.elapsed();
        println!(
            "start with {what} in the spool: {took:.1?}, {} entries",
            registry.outgoing("out")?.spool.entries
        );
        registry.close().await?;
    }
    Ok(())
}

/// Leaves so many messages in the spool of a connection that rests.
async fn fill(state: &Path, bytes: usize, count: usize) -> Result<(), Failure> {
    let registry = open(state).await?;
    registry.create(ConnectionDefinition::amqp("broker", "amqp://127.0.0.1:1")).await?;
    let mut out = OutgoingDefinition::amqp("out", "broker", "");
    out.is_active = false;
    out.max_bytes = Some(ByteSize::of(8 << 30));
    registry.create(out).await?;
    send(&registry, bytes, count).await?;
    registry.close().await?;
    Ok(())
}

async fn open(state: &Path) -> Result<Registry, Failure> {
    // Nothing is subscribed to: no proxy is needed.
    let proxy = ProxyAddress::new("127.0.0.1", 7771)?;
    Ok(Registry::open(RegistryOptions::new(state, proxy)).await?)
}

fn message(bytes: usize) -> Result<Message, Failure> {
    let body = Bytes::from(vec![b'x'; bytes]);
    Ok(Message::with_mime("memory".parse()?, "application/octet-stream", body))
}

async fn send(registry: &Registry, bytes: usize, count: usize) -> Result<(), Failure> {
    let message = message(bytes)?;
    let mut left = count;
    while left > 0 {
        let group = left.min((SIDE_BY_SIDE / bytes).clamp(1, 1000));
        for sent in join_all((0..group).map(|_| registry.send("out", message.clone()))).await {
            sent?;
        }
        left -= group;
    }
    Ok(())
}

/// Returns a line of what the system says of this process, in KiB.
fn resident(name: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.ok_or("no such line")?.trim().trim_end_matches(" kB").parse()?)
}
