//! A service that takes square roots, and a client that asks it. Needs a proxy: `cargo run --bin xmsg-proxy`.

use std::time::Duration;

use xmsg_core::{Actor, Message, Result};

/// The answer to a request; none to a message that asks for none.
fn root(request: &Message) -> Result<Option<Message>> {
    let value: f64 = request.value()?;
    if value >= 0.0 {
        request.reply_with(value.sqrt())
    } else {
        request.error_reply("the number is negative")
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let server = Actor::connect("server").await?;
    let service = server.subscribe_with("math:root", 8, |request| async move { root(&request) }).await?;

    let client = Actor::connect("client").await?;
    for value in [2.0, 9.0, -1.0] {
        let question = Message::of("math:root", value)?;
        let answer = client.request(&question, Duration::from_secs(10)).await?; // an error after ten seconds
        match answer.error_text()? {
            Some(reason) => println!("{value}: {reason}"),
            None => println!("{value}: {}", answer.value::<f64>()?),
        }
    }

    client.close(Duration::from_secs(1)).await;
    service.drain(Duration::from_secs(5)).await; // what was received is answered
    server.close(Duration::from_secs(1)).await;
    Ok(())
}
