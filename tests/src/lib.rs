//! The harness of the end-to-end tests, with one helper for each boundary of the system.
//!
//! | file | answers |
//! |---|---|
//! | `process.rs` | How are daemons and commands started as a user starts them? |
//! | `document.rs` | How are the commands of a document run? |
//! | `pages.rs` | Which Rust programs of the documents are run? |
//! | `log.rs` | How does a test read its own log? |
//! | `http.rs` | What does the HTTP server answer? |
//! | `raw.rs` | How is anything written that no well-behaved peer would write? |
//! | `hostile.rs` | Does the traffic of others go on while somebody attacks? |
//! | `relay.rs` | How is a connection stopped or broken between client and proxy? |
//! | `netns.rs` | How do two hosts with a link between them fit into one machine? |
//! | `peer.rs` | How does a peer of another implementation take part? |
//! | `simulation/` | What holds under everything that a network may do? |
//! | `rabbitmq/` | How does a real broker take part? |
//! | `amqp_peer/` | How does a broker take part that misbehaves? |
//! | `bin/limited-proxy.rs` | How is a proxy started with limits for which there are no options? |

#[cfg(feature = "rabbitmq")]
pub mod amqp_peer;
pub mod document;
pub mod hostile;
pub mod http;
pub mod log;
pub mod netns;
#[cfg(doctest)]
mod pages;
pub mod peer;
pub mod process;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
pub mod raw;
pub mod relay;
pub mod simulation;

use std::time::Duration;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use xmsg_core::{ConnectOptions, Connection, Message, Subscription, Topic};
use xmsg_proxy::{Builder, Policy, Proxy};

/// The limit for each step of a test. It is long enough for a heavily loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for the result of `step`.
///
/// # Panics
///
/// If the result does not come within [`PATIENCE`]. The message contains `what`.
pub async fn within<T>(what: &str, step: impl Future<Output = T>) -> T {
    let Ok(value) = tokio::time::timeout(PATIENCE, step).await else {
        panic!("{what}: nothing within {PATIENCE:?}");
    };
    value
}

/// Waits until a condition holds that no event tells of: it is checked again and again.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// Waits until the proxy knows a subscription of this subscriber. The number of all subscriptions says less:
/// others may be taken back at the same time.
pub async fn subscribed(proxy: &Proxy, subscriber: &raw::Raw) {
    let peer = subscriber.stream.local_addr().expect("it is connected").to_string();
    let is_known =
        || proxy.subscribers().iter().any(|one| one.peer.ends_with(&peer) && one.subscriptions > 0);
    until("a subscription", is_known).await;
}

/// Returns a builder for a proxy on free ports of the loopback interface, which drops no messages.
pub fn proxy() -> Builder {
    start_tracing();
    Proxy::bind("127.0.0.1:0").slow_subscriber(Policy::BLOCK)
}

/// Returns a connection to this proxy with longer time limits than the default.
#[must_use]
pub fn connect(proxy: &Proxy) -> Connection {
    Connection::with_options(proxy.address().clone(), patient()).unwrap()
}

/// Returns connection options with time limits for loaded machines.
#[must_use]
pub fn patient() -> ConnectOptions {
    ConnectOptions::new().connection_timeout(PATIENCE).subscription_timeout(PATIENCE)
}

/// Returns a topic with exactly this text.
#[must_use]
pub fn topic(text: &str) -> Topic {
    Topic::wrap(text.to_owned())
}

/// Waits for the next message.
pub async fn next(subscription: &mut Subscription) -> Message {
    let message = within("a message", subscription.next()).await;
    message.expect("the subscription is open").expect("the message has three frames")
}

/// Prints log lines of the tested code, if `RUST_LOG` is set and the test runs with `--nocapture`.
pub fn start_tracing() {
    let wanted = std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned());
    let filter = wanted.parse::<Targets>().expect("RUST_LOG is a list of levels and of modules with levels");
    let lines = tracing_subscriber::fmt::layer().with_test_writer();
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
}
