//! Sends numbered messages to a RabbitMQ queue until it is killed, or until it has sent as many as it was
//! asked for and all are delivered. Each is told on standard output once it was accepted, that is, once it is
//! on disk. The tests kill it at random moments, and count what has arrived.
//!
//! ```text
//! cargo run -p xmsg-connect --example courier -- STATE_DIR BROKER_PORT QUEUE FIRST COUNT
//! ```

use std::io::Write;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use xmsg_connect::definition::{ConnectionDefinition, Definitions, OutgoingDefinition, Reconnect, Span};
use xmsg_connect::{Registry, RegistryOptions};
use xmsg_core::{Message, ProxyAddress};

/// Messages that wait for the disk at the same time: one fsync serves them all.
const SIDE_BY_SIDE: usize = 64;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [state_dir, port, queue, first, count] = arguments.as_slice() else {
        return Err("usage: courier STATE_DIR BROKER_PORT QUEUE FIRST COUNT".into());
    };
    let (first, count): (u64, u64) = (first.parse()?, count.parse()?);

    let mut broker = ConnectionDefinition::amqp("broker", format!("amqp://127.0.0.1:{port}"));
    broker.reconnect = Reconnect {
        min: Span::of(Duration::from_millis(20)),
        max: Span::of(Duration::from_millis(500)),
        jitter: true,
    };
    let mut out = OutgoingDefinition::amqp("out", "broker", "");
    out.routing_key = Some(queue.clone());
    let initial = Definitions { connections: vec![broker], outgoing: vec![out], ..Definitions::default() };
    // Nothing is subscribed to: no proxy is needed.
    let proxy = ProxyAddress::new("127.0.0.1", 7771)?;
    let registry =
        Registry::open(RegistryOptions { initial, ..RegistryOptions::new(state_dir, proxy) }).await?;

    // In order: the line of a message comes after those of all before it.
    let mut accepted = stream::iter(first..first + count)
        .map(|number| {
            let registry = registry.clone();
            async move {
                let message = Message::of("courier", number.to_string())?;
                registry.send("out", message).await?;
                Ok::<_, Box<dyn std::error::Error>>(number)
            }
        })
        .buffered(SIDE_BY_SIDE);
    let mut output = std::io::stdout().lock();
    while let Some(number) = accepted.next().await {
        writeln!(output, "accepted {}", number?)?;
        output.flush()?;
    }
    while registry.outgoing("out")?.spool.entries > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    registry.close().await?;
    writeln!(output, "delivered")?;
    Ok(())
}
