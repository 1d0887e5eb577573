//! Three stages: a source of numbers, one that doubles them, a sink that prints them. Ended from the first to the last, they lose
//! nothing. Needs a proxy: `cargo run --bin xmsg-proxy`.

use std::time::Duration;

use xmsg_core::{Actor, Message, Result};

const LIMIT: Duration = Duration::from_secs(5);

/// What a handler returns is published, wherever its topic says.
fn twice(number: &Message) -> Result<Message> {
    Message::of("pipeline:doubled", 2 * number.value::<i32>()?)
}

#[tokio::main]
async fn main() -> Result<()> {
    // From the last to the first: whoever publishes finds its subscriber there.
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
    println!("double: {}", double.drain(LIMIT).await); // all of them are doubled, and the proxy has the results
    results.drain(); // the results that are on their way, and then the end
    while let Some(result) = results.next().await {
        println!("sink: {}", result?.value::<i32>()?);
    }
    println!("sink: {}", sink.drain(LIMIT).await);
    Ok(())
}
