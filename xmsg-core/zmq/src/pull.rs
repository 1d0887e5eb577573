//! PULL: takes what PUSH peers send, from all of them in turn.

use std::sync::Arc;
use std::time::Duration;

use xmsg_zmtp::SocketType;

use crate::hub::Owner;
use crate::methods::{conflating_methods, endpoint_methods, receiving_methods, stream_of_messages};
use crate::options::{Conflates, Receives, SocketOptions};
use crate::role::Plain;

/// A socket that receives from its [`Push`](crate::Push) peers (RFC 30); a [`Stream`](futures::Stream) of messages. Clones share it, so
/// that one task may send and another receive; the last one to go closes it.
///
/// Those peers of which something waits have their turns. A receiver that is too slow makes its peers wait; nothing is dropped.
#[derive(Clone, Debug)]
pub struct Pull {
    hub: Arc<Owner>,
}

impl Receives for Pull {}

impl Conflates for Pull {}

impl Pull {
    /// A socket without connections.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        Self { hub: Arc::new(Owner::new(Arc::new(Plain(SocketType::Pull)), options.into_settings())) }
    }

    endpoint_methods!();

    receiving_methods!();
    conflating_methods!();

    /// Ends every connection.
    pub async fn close(&self) {
        self.hub.close(Duration::ZERO).await;
    }
}

stream_of_messages!(Pull);
