//! A service that takes square roots, and a client that asks it. Needs a proxy: `cargo run --bin xmsg-proxy`.

use std::time::Duration;

use xmsg_core::{Actor, ErrorKind, HandlerError, Message};

/// The answer to a request; none to a message that asks for none. An error goes back to whoever asked.
fn root(request: &Message) -> Result<Option<Message>, HandlerError> {
    let value: f64 = request.value()?;
    if value < 0.0 {
        return Err("the number is negative".into());
    }
    Ok(request.reply_with(value.sqrt())?)
}

#[tokio::main]
async fn main() -> xmsg_core::Result<()> {
    let server = Actor::connect("server").await?;
    server.subscribe_with("math:root", 8, |request| async move { root(&request) }).await?;

    let client = Actor::connect("client").await?;
    for value in [2.0, 9.0, -1.0] {
        match client.request(&Message::of("math:root", value)?, Duration::from_secs(10)).await {
            Ok(answer) => println!("{value}: {}", answer.value::<f64>()?),
            Err(error) if error.kind() == ErrorKind::Remote => println!("{value}: {error}"), // it failed, and says why
            Err(error) => return Err(error), // `Timeout`: nobody answered
        }
    }

    client.drain(Duration::from_secs(5)).await;
    server.drain(Duration::from_secs(5)).await; // what was received is answered
    Ok(())
}
