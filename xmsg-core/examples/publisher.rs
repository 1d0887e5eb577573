//! Publishes a reading every half second, ten in all. It needs a proxy: `cargo run --bin xmsg-proxy`.

use std::time::Duration;

use xmsg_core::{Actor, Message};

#[tokio::main]
async fn main() -> xmsg_core::Result<()> {
    let actor = Actor::connect("thermometer").await?; // the proxy of XMSG_PROXY, else 127.0.0.1:7771
    let topic = "weather:oslo:temperature";

    for reading in 1..=10 {
        let temperature = 4.0 + f64::from(reading) / 10.0;
        actor.publish(&Message::of(topic, temperature)?).await?; // returns when the message is accepted
        println!("published {topic} {temperature}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    // Prints how many messages the proxy has not confirmed.
    println!("{}", actor.drain(Duration::from_secs(5)).await);
    Ok(())
}
