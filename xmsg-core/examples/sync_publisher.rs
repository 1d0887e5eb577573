//! A service that computes square roots, and a client that sends requests to it. It needs a proxy:
//! `cargo run --bin xmsg-proxy`.

use std::time::Duration;

use xmsg_core::{Actor, ErrorKind, HandlerError, Message};

/// Makes the reply to a request; `None` for a message that requests none. An error is sent to the requester.
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
            // The service failed.
            Err(error) if error.kind() == ErrorKind::Remote => println!("{value}: {error}"),
            Err(error) => return Err(error), // such as `Timeout`: no reply came
        }
    }

    client.drain(Duration::from_secs(5)).await;
    server.drain(Duration::from_secs(5)).await; // requests that were received are answered
    Ok(())
}
