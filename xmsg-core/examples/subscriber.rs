//! Prints what is published to `weather`, until Ctrl-C. It needs a proxy: `cargo run --bin xmsg-proxy`.

use xmsg_core::Actor;

#[tokio::main]
async fn main() -> xmsg_core::Result<()> {
    let actor = Actor::connect("display").await?; // the proxy of XMSG_PROXY, else 127.0.0.1:7771

    let mut readings = actor.subscribe("weather").await?; // returns once the proxy has confirmed it
    println!("subscribed to weather; Ctrl-C ends it");

    loop {
        tokio::select! {
            // The messages on their way still arrive, and then `None`.
            _ = tokio::signal::ctrl_c() => readings.drain(),
            reading = readings.next() => match reading {
                None => return Ok(()),
                Some(Err(error)) => println!("{error}"), // not an xMsg message; the next one may be
                Some(Ok(reading)) => match reading.value::<f64>() {
                    Ok(value) => println!("{} {value}", reading.topic()),
                    Err(error) => println!("{} not a number: {error}", reading.topic()),
                },
            },
        }
    }
}
