//! Prints what is published to `weather`, until Ctrl-C. Needs a proxy: `cargo run --bin xmsg-proxy`.

use std::time::Duration;

use xmsg_core::Actor;

#[tokio::main]
async fn main() -> xmsg_core::Result<()> {
    let actor = Actor::connect("display").await?; // the proxy of XMSG_PROXY, else 127.0.0.1:7771

    let mut readings = actor.subscribe("weather").await?; // back once the proxy has confirmed it
    println!("subscribed to weather; Ctrl-C ends it");

    loop {
        let reading = tokio::select! {
            reading = readings.next() => reading,
            _ = tokio::signal::ctrl_c() => break,
        };
        match reading {
            Some(Ok(reading)) => match reading.value::<f64>() {
                Ok(value) => println!("{} {value}", reading.topic()),
                Err(error) => println!("{} not a number: {error}", reading.topic()),
            },
            Some(Err(error)) => println!("{error}"), // not a message of xMsg; the next one may be
            None => break,                           // the actor was closed
        }
    }

    drop(readings); // unsubscribes
    actor.close(Duration::from_secs(5)).await;
    Ok(())
}
