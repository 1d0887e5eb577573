//! Subscribes to a topic, publishes a message and receives it. It needs a proxy:
//! `cargo run --bin xmsg-proxy`.

use std::time::Duration;

use xmsg_core::{Actor, Message};

#[tokio::main]
async fn main() -> xmsg_core::Result<()> {
    let actor = Actor::connect("reporter").await?; // addresses from the environment, else localhost
    let mut reports = actor.subscribe("report:sports").await?; // back once the proxy has confirmed it
    actor.publish(&Message::of("report:sports", "3:1")?).await?; // accepted: in order, never dropped
    actor.flush(Duration::from_secs(1)).await?; // the proxy has it

    if let Some(report) = reports.next().await {
        println!("{}", report?.value::<String>()?);
    }
    let left = actor.drain(Duration::from_secs(5)).await; // a graceful end
    assert!(left.is_nothing(), "{left}");
    Ok(())
}
