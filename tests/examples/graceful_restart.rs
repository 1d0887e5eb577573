//! A service that can be replaced without losing a request. Run it with `cargo run -p xmsg-tests --example
//! graceful_restart [NAME]` while a proxy runs.
//!
//! On SIGTERM the service drains: it answers every received request before it ends. Start its successor
//! first, and send the signal when the successor is *ready*, so that there is always a service that receives
//! requests. For a moment both services answer, and the client takes the first answer. So it must do no harm
//! if a request is carried out twice. With only one process, requests in the gap are not received: they time
//! out, and the client repeats them.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use xmsg_core::{Actor, Message};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "service".into());
    let mut terminate = signal(SignalKind::terminate())?; // from here on, SIGTERM does not kill the process
    let actor = Actor::connect(&name).await?;
    let received = Arc::new(AtomicU64::new(0));
    let handler = {
        let received = received.clone();
        move |request: Message| {
            received.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await; // stands for real work
                request.reply() // the reply contains the data of the request
            }
        }
    };
    actor.subscribe_with("work", 8, handler).await?;
    println!("{name} is ready"); // the proxy has confirmed the subscription, so the predecessor may end

    terminate.recv().await;
    let left = actor.drain(Duration::from_secs(30)).await;
    println!("{name} received {} requests; {left}", received.load(Ordering::Relaxed));
    if left.is_nothing() { Ok(()) } else { Err(left.to_string().into()) }
}
