//! PUSH: distributes messages among workers.

use std::sync::Arc;

use xmsg_zmtp::SocketType;

use crate::balance::{Balanced, Balancer};
use crate::hub::Owner;
use crate::methods::{balanced_methods, endpoint_methods};
use crate::options::{Sends, SocketOptions};

/// A socket that sends each message to one of its [`Pull`](crate::Pull) peers, in round robin (RFC 30).
/// Clones share the socket; dropping the last one closes it.
///
/// When a connection ends, the messages that wait for its peer go to the others. What was written to that
/// peer before may be lost with it: ZeroMQ has no acknowledgements.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
/// use std::time::Duration;
/// use xmsg_zmq::{Pull, Push, SocketOptions};
/// let ventilator = Push::new(SocketOptions::default());
/// let endpoint = ventilator.bind(&"tcp://127.0.0.1:0".parse()?).await?;
/// let worker = Pull::new(SocketOptions::default());
/// worker.connect(endpoint);
/// ventilator.send(["task 1"]).await?; // waits until somebody is there
/// assert_eq!(worker.recv().await.unwrap().frames(), ["task 1"]);
/// ventilator.flush(Duration::from_secs(1)).await?; // it has been written
/// assert_eq!(ventilator.close(Duration::from_secs(1)).await, 0, "nothing is left");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Push {
    hub: Arc<Owner>,
    balancer: Arc<Balancer>,
}

impl Sends for Push {}

impl Push {
    /// Creates a socket without connections.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        let (role, balancer) = Balanced::new(SocketType::Push);
        Self { hub: Arc::new(Owner::new(role, options.into_settings())), balancer }
    }

    endpoint_methods!();
    balanced_methods!();
}
