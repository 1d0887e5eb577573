//! The harness of the end-to-end tests: one helper for each boundary.

#[cfg(feature = "rabbitmq")]
pub mod amqp_peer;
pub mod hostile;
pub mod http;
pub mod netns;
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

/// No step of a test takes longer, however loaded the machine is.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The result of `step`, which must come within [`PATIENCE`]; `what` names it when it does not.
pub async fn within<T>(what: &str, step: impl Future<Output = T>) -> T {
    let Ok(value) = tokio::time::timeout(PATIENCE, step).await else {
        panic!("{what}: nothing within {PATIENCE:?}");
    };
    value
}

/// A proxy on free ports of the loopback, which loses nothing.
pub fn proxy() -> Builder {
    start_tracing();
    Proxy::bind("127.0.0.1:0").slow_subscriber(Policy::BLOCK)
}

/// A connection to this proxy, with more patience than its default.
#[must_use]
pub fn connect(proxy: &Proxy) -> Connection {
    Connection::with_options(proxy.address().clone(), patient()).unwrap()
}

/// Options for loaded machines.
#[must_use]
pub fn patient() -> ConnectOptions {
    ConnectOptions::new().connection_timeout(PATIENCE).subscription_timeout(PATIENCE)
}

/// A topic that is taken as it is.
#[must_use]
pub fn topic(text: &str) -> Topic {
    Topic::wrap(text.to_owned())
}

/// The next message.
pub async fn next(subscription: &mut Subscription) -> Message {
    let message = within("a message", subscription.next()).await;
    message.expect("the subscription is open").expect("the message has three frames")
}

/// Log lines of what is tested, with `RUST_LOG` and `--nocapture`.
pub fn start_tracing() {
    let wanted = std::env::var("RUST_LOG").unwrap_or_else(|_| "error".to_owned());
    let filter = wanted.parse::<Targets>().expect("RUST_LOG is a list of levels and of modules with levels");
    let lines = tracing_subscriber::fmt::layer().with_test_writer();
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
}
