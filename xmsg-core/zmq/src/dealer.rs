//! DEALER: talks to one or more peers, in both directions, without taking turns.

use std::sync::Arc;

use xmsg_zmtp::SocketType;

use crate::balance::{Balanced, Balancer};
use crate::hub::Owner;
use crate::methods::{
    balanced_methods, conflating_methods, endpoint_methods, receiving_methods, stream_of_messages,
};
use crate::options::{Conflates, HasIdentity, Receives, Sends};
use crate::{Endpoint, SocketOptions};

/// A socket that sends each message to one of its peers, in turn, and receives from all of them (RFC 28); a [`Stream`](futures::Stream) of what
/// they send. Its peers are [`Router`](crate::Router), REP and DEALER sockets; they know it by [`SocketOptions::identity`]. Clones share
/// it, so that one task may send and another receive; the last one to go closes it.
///
/// What a peer has not been sent when its connection ends goes to the others. If there is just one endpoint that it connects to, messages wait
/// in its queue while the connection is made anew.
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
    /// A socket without connections.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        let (role, balancer) = Balanced::new(SocketType::Dealer);
        Self { hub: Arc::new(Owner::new(role, options.into_settings())), balancer }
    }

    /// A socket that connects to this endpoint, in the background, and again whenever the connection is lost.
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
