//! Registers a publisher, finds it, and removes the registration. It needs a registrar at `XMSG_REGISTRAR`,
//! or at the default 127.0.0.1:8888: `cargo run --bin xmsg-registrar`.

use std::time::Duration;

use xmsg_core::{Actor, OwnerType, Query, Topic};

#[tokio::main]
async fn main() -> xmsg_core::Result<()> {
    let actor = Actor::connect("thermometer").await?;
    let topic = "weather:oslo:temperature";

    actor.register(OwnerType::Publisher, topic, "degrees Celsius").await?;
    println!("registered {} at {}", actor.name(), actor.registrar());

    // Finds the publishers of messages that a subscriber of `weather` would receive.
    let query = Query::topic(OwnerType::Publisher, &Topic::of_domain("weather")?);
    for found in actor.discover(&query).await? {
        let (topic, proxy) = (found.topic()?, format!("{}:{}", found.host, found.port));
        println!("{} publishes {topic} through {proxy}: {}", found.name, found.description());
    }

    println!("publishers in all: {}", actor.discover_all(OwnerType::Publisher).await?.len());

    actor.deregister(OwnerType::Publisher, topic).await?;
    println!("left after that: {}", actor.discover(&query).await?.len());
    actor.drain(Duration::from_secs(1)).await;
    Ok(())
}
