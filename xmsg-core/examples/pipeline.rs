//! A pipeline of three stages: a source of numbers, a stage that doubles them, and a sink that prints them.
//! The stages end from the first to the last, and lose nothing. It needs a proxy:
//! `cargo run --bin xmsg-proxy`.

use std::time::Duration;

use xmsg_core::{Actor, Message, Result};

const LIMIT: Duration = Duration::from_secs(5);

/// Makes the message that the handler returns, which is published to its topic.
fn twice(number: &Message) -> Result<Message> {
    Message::of("pipeline:doubled", 2 * number.value::<i32>()?)
}

#[tokio::main]
async fn main() -> Result<()> {
    // The stages start from the last to the first, so that each publisher finds its subscriber ready.
    let sink = Actor::connect("sink").await?;
    let mut results = sink.subscribe("pipeline:doubled").await?;

    let double = Actor::connect("double").await?;
    let handler = |number: Message| async move { twice(&number) };
    double.subscribe_with("pipeline:numbers", 1, handler).await?; // one at a time, in order

    let source = Actor::connect("source").await?;
    for number in 1..=5 {
        source.publish(&Message::of("pipeline:numbers", number)?).await?;
        println!("source: {number}");
    }

    println!("source: {}", source.drain(LIMIT).await); // the proxy has all numbers
    // All numbers are doubled, and the proxy has the results.
    println!("double: {}", double.drain(LIMIT).await);
    results.drain(); // the results that are on their way, and then the end
    while let Some(result) = results.next().await {
        println!("sink: {}", result?.value::<i32>()?);
    }
    println!("sink: {}", sink.drain(LIMIT).await);
    Ok(())
}
