//! PULL: takes what PUSH peers send, from all of them in turn.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use xmsg_zmtp::SocketType;

use crate::hub::Owner;
use crate::methods::endpoint_methods;
use crate::role::Plain;
use crate::{Multipart, SocketOptions};

/// A socket that receives from its [`Push`](crate::Push) peers (RFC 30); a [`Stream`](futures::Stream) of messages. Dropping it closes it.
///
/// Those peers of which something waits have their turns. A receiver that is too slow makes its peers wait; nothing is dropped.
#[derive(Debug)]
pub struct Pull {
    hub: Owner,
}

impl Pull {
    /// A socket without connections.
    #[must_use]
    pub fn new(options: SocketOptions) -> Self {
        Self { hub: Owner::new(Arc::new(Plain(SocketType::Pull)), options) }
    }

    endpoint_methods!();

    /// The next message; `None` once the socket is closed and everything received was taken. Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<Multipart> {
        std::future::poll_fn(|cx| self.hub.inbox.poll_next(cx)).await.map(|(_, message)| message)
    }

    /// Ends every connection.
    pub async fn close(&self) {
        self.hub.close(Duration::ZERO).await;
    }
}

impl futures::Stream for Pull {
    type Item = Multipart;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Multipart>> {
        self.hub.inbox.poll_next(cx).map(|next| next.map(|(_, message)| message))
    }
}
