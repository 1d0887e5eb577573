//! Three actors in a row: a source of numbers, one that doubles them, a sink that prints them.
//! Needs a proxy: `cargo run --bin xmsg-proxy`.

use std::time::Duration;

use xmsg_core::{Actor, Message, Result};

const COUNT: i32 = 5;

/// What a handler returns is published, wherever its topic says.
fn twice(number: &Message) -> Result<Message> {
    Message::of("pipeline:doubled", 2 * number.value::<i32>()?)
}

#[tokio::main]
async fn main() -> Result<()> {
    // From the end to the beginning: whoever publishes finds its subscriber there.
    let sink = Actor::connect("sink").await?;
    let mut results = sink.subscribe("pipeline:doubled").await?;

    let double = Actor::connect("double").await?;
    let handler = |number: Message| async move { twice(&number) };
    double.subscribe_with("pipeline:numbers", 1, handler).await?; // one at a time, in order

    let source = Actor::connect("source").await?;
    for number in 1..=COUNT {
        source.publish(&Message::of("pipeline:numbers", number)?).await?;
        println!("source: {number}");
    }

    for _ in 0..COUNT {
        let Some(result) = results.next().await else { break };
        println!("sink: {}", result?.value::<i32>()?);
    }

    for actor in [source, double, sink] {
        let unsent = actor.close(Duration::from_secs(5)).await;
        println!("{}: closed, {unsent} not sent", actor.name());
    }
    Ok(())
}
