//! Subscribes, publishes, receives. Needs a proxy at 127.0.0.1:7771: `cargo run --bin xmsg-proxy`.

use xmsg_core::{Connection, Message, Topic};

#[tokio::main]
async fn main() -> xmsg_core::Result<()> {
    let connection = Connection::new("127.0.0.1:7771".parse()?);
    let topic = Topic::new("report", "sports")?;

    let mut reports = connection.subscribe([topic.clone()]).await?; // back once the proxy has confirmed it
    connection.publish(&Message::of(topic, "3:1")).await?; // waits when the connection is full; never drops

    if let Some(report) = reports.next().await {
        println!("{}", report?.value::<String>()?);
    }
    connection.close(std::time::Duration::from_secs(5)).await; // flushes; returns how many were not sent
    Ok(())
}
