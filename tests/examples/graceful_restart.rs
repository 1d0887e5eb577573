//! A service that is replaced without losing a request: `cargo run -p xmsg-tests --example graceful_restart [NAME]`; needs a proxy.
//!
//! On SIGTERM it drains: every request that was received is answered before it ends. Start its successor first, and send the signal when
//! that is *ready*: then there is always somebody to receive one. For a moment both answer; the client takes the first answer, and
//! requests should be such that it does no harm when two carry them out. With one process alone, what is asked in the gap is not received:
//! the request times out, and the client repeats it.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use xmsg_core::{Actor, Message};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "service".into());
    let mut terminate = signal(SignalKind::terminate())?; // from here on it does not kill the process
    let actor = Actor::connect(&name).await?;
    let received = Arc::new(AtomicU64::new(0));
    let handler = {
        let received = received.clone();
        move |request: Message| {
            received.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await; // stands for work
                request.reply() // the data of the request
            }
        }
    };
    actor.subscribe_with("work", 8, handler).await?;
    println!("{name} is ready"); // the proxy has confirmed it: now the predecessor may go

    terminate.recv().await;
    let left = actor.drain(Duration::from_secs(30)).await;
    println!("{name} received {} requests; {left}", received.load(Ordering::Relaxed));
    if left.is_nothing() { Ok(()) } else { Err(left.to_string().into()) }
}
