//! Prints what is published to `weather`, until Ctrl-C. Needs a proxy: `cargo run --bin xmsg-proxy`.

use xmsg_core::Actor;

#[tokio::main]
async fn main() -> xmsg_core::Result<()> {
    let actor = Actor::connect("display").await?; // the proxy of XMSG_PROXY, else 127.0.0.1:7771

    let mut readings = actor.subscribe("weather").await?; // back once the proxy has confirmed it
    println!("subscribed to weather; Ctrl-C ends it");

    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => readings.drain(), // what is on its way still comes, then `None`
            reading = readings.next() => match reading {
                None => return Ok(()),
                Some(Err(error)) => println!("{error}"), // not a message of xMsg; the next one may be
                Some(Ok(reading)) => match reading.value::<f64>() {
                    Ok(value) => println!("{} {value}", reading.topic()),
                    Err(error) => println!("{} not a number: {error}", reading.topic()),
                },
            },
        }
    }
}
