//! DEALER: exchanges messages with one or more peers, in both directions, without a fixed order of sending
//! and receiving.

use std::sync::Arc;

use xmsg_zmtp::SocketType;

use crate::balance::{Balanced, Balancer};
use crate::hub::Owner;
use crate::methods::{
    balanced_methods, conflating_methods, endpoint_methods, receiving_methods, stream_of_messages,
};
use crate::options::{Conflates, HasIdentity, Receives, Sends};
use crate::{Endpoint, SocketOptions};

/// A socket that sends each message to one of its peers, in round robin, and receives from all of them (RFC
/// 28). It is a [`Stream`](futures::Stream) of what they send. Its peers are [`Router`](crate::Router), REP
/// and DEALER sockets, which know it by [`SocketOptions::identity`]. Clones share the socket, so that one
/// task may send and another receive; dropping the last one closes it.
///
/// When a connection ends, the messages that wait for its peer go to the others. If the socket connects to
/// just one endpoint, messages wait in its queue until the connection is re-established.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
/// use xmsg_zmq::{Dealer, SocketOptions};
/// let one = Dealer::new(SocketOptions::default());
/// let endpoint = one.bind(&"tcp://127.0.0.1:0".parse()?).await?;
/// let other = Dealer::connecting_to(endpoint, SocketOptions::default());
/// other.send(["ping"]).await?;
/// assert_eq!(one.recv().await.unwrap().frames(), ["ping"]);
/// one.send(["pong"]).await?;
/// assert_eq!(other.recv().await.unwrap().frames(), ["pong"]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Dealer {
    hub: Arc<Owner>,
    balancer: Arc<Balancer>,
}

impl Sends for Dealer {}

impl Receives for Dealer {}

impl HasIdentity for Dealer {}

impl Conflates for Dealer {}

impl Dealer {
    /// Creates a socket without connections.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        let (role, balancer) = Balanced::new(SocketType::Dealer);
        Self { hub: Arc::new(Owner::new(role, options.into_settings())), balancer }
    }

    /// Creates a socket that connects to this endpoint in the background, and reconnects whenever the
    /// connection is lost.
    #[must_use]
    pub fn connecting_to(endpoint: Endpoint, options: SocketOptions<Self>) -> Self {
        let dealer = Self::new(options);
        dealer.connect(endpoint);
        dealer
    }

    endpoint_methods!();
    balanced_methods!();

    receiving_methods!();
    conflating_methods!();
}

stream_of_messages!(Dealer);
