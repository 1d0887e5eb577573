//! PULL: receives what PUSH peers send, in round robin.

use std::sync::Arc;
use std::time::Duration;

use xmsg_zmtp::SocketType;

use crate::hub::Owner;
use crate::methods::{conflating_methods, endpoint_methods, receiving_methods, stream_of_messages};
use crate::options::{Conflates, Receives, SocketOptions};
use crate::role::Plain;

/// A socket that receives from its [`Push`](crate::Push) peers (RFC 30). It is a [`Stream`](futures::Stream)
/// of messages. Clones share the socket, so that several tasks may receive; dropping the last one closes it.
///
/// Peers that have sent something are served in round robin. If the receiver is too slow, its peers wait;
/// nothing is dropped unless [`conflate`](SocketOptions::conflate) is set.
#[derive(Clone, Debug)]
pub struct Pull {
    hub: Arc<Owner>,
}

impl Receives for Pull {}

impl Conflates for Pull {}

impl Pull {
    /// Creates a socket without connections.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        Self { hub: Arc::new(Owner::new(Arc::new(Plain(SocketType::Pull)), options.into_settings())) }
    }

    endpoint_methods!();

    receiving_methods!();
    conflating_methods!();

    /// Closes the socket and ends every connection.
    pub async fn close(&self) {
        self.hub.close(Duration::ZERO).await;
    }
}

stream_of_messages!(Pull);
