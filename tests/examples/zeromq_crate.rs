//! A program that uses the sockets of the `zeromq` crate and speaks xMsg through a proxy.
//!
//! It subscribes to temperatures in Celsius, and publishes them in Fahrenheit.
//!
//! ```text
//! cargo run -p xmsg-tests --example zeromq_crate -- 127.0.0.1:7771
//! xmsg sub fahrenheit: &
//! xmsg pub celsius:oslo 4.5 --mime binary/double
//! ```

use xmsg_core::{Message, ProxyAddress};
use zeromq::{PubSocket, Socket, SocketRecv, SocketSend, SubSocket};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proxy: ProxyAddress = std::env::args().nth(1).as_deref().unwrap_or("127.0.0.1:7771").parse()?;
    let (mut subscriber, mut publisher) = (SubSocket::new(), PubSocket::new());
    publisher.connect(&proxy.publish_endpoint()).await?;
    subscriber.connect(&proxy.subscribe_endpoint()).await?;
    subscriber.subscribe("celsius:").await?;
    println!("at work at {proxy}");

    loop {
        // The conversions between the types of messages come from the feature `zeromq` of xmsg-core.
        let message = Message::try_from(subscriber.recv().await?)?;
        let topic = message.topic().to_string().replacen("celsius", "fahrenheit", 1);
        match message.value::<f64>() {
            Ok(celsius) => publisher.send(Message::of(topic, celsius * 9.0 / 5.0 + 32.0)?.into()).await?,
            Err(error) => eprintln!("zeromq_crate: {}: {error}", message.topic()),
        }
    }
}
