//! DEALER: talks to one peer, in both directions, without taking turns.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::events::SocketEvents;
use crate::hub::Owner;
use crate::link::Link;
use crate::link::outbox::Refused;
use crate::role::Plain;
use crate::{Endpoint, Multipart, SocketOptions};
use crate::{Error, ErrorKind, Result};
use xmsg_zmtp::SocketType;

/// A dealer connected to one peer, most often a [`Router`](super::Router); a [`Stream`](futures::Stream) of what that
/// peer sends. Its identity is [`SocketOptions::identity`]. Dropping it closes it.
#[derive(Debug)]
pub struct Dealer {
    hub: Owner,
    link: Arc<Link>,
}

impl Dealer {
    /// Connects in the background, again whenever the connection is lost.
    #[must_use]
    pub fn connect(endpoint: Endpoint, options: SocketOptions) -> Self {
        let hub = Owner::new(Arc::new(Plain(SocketType::Dealer)), options);
        let link = hub.connect(endpoint);
        Self { hub, link }
    }

    /// Returns when the message was accepted; waits while the connection is at its high-water mark. Messages are
    /// accepted in the order of the calls: that in which the futures were first polled. Dropping the future has the
    /// message accepted whole or not at all. One without frames ([`InvalidMessage`](ErrorKind::InvalidMessage)), or above our
    /// limits or those that the peer has told ([`TooLarge`](ErrorKind::TooLarge)), is refused at once.
    pub async fn send(&self, message: impl Into<Multipart>) -> Result<()> {
        let message = message.into();
        self.link.outbox.push(message.frames()).await.map_err(|refused| match refused {
            Refused::Unfit => self.hub.unfit(&self.link, message.frames()),
            Refused::Full | Refused::Closed => Error::new(ErrorKind::Closed, "the dealer is closed"),
        })
    }

    /// Messages that were accepted and dropped again, because the peer does not take them. Each was told as a
    /// [`MessageDropped`](super::SocketEvent::MessageDropped).
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.hub.dropped()
    }

    /// The next message; `None` once the socket is closed. Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<Multipart> {
        std::future::poll_fn(|cx| self.hub.inbox.poll_next(cx)).await.map(|(_, message)| message)
    }

    /// Why there is no connection, if that is known; `None` while there is one.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.hub.failure()
    }

    /// What happens to the connection from now on.
    #[must_use]
    pub fn events(&self) -> SocketEvents {
        self.hub.events()
    }

    /// Waits until there is a connection. [`Closed`](ErrorKind::Closed) if the dealer is closed before.
    pub async fn connected(&self) -> Result<()> {
        self.hub.connected().await
    }

    /// Sends what was accepted, for at most `linger`. Returns how many messages were not sent.
    pub async fn close(&self, linger: Duration) -> usize {
        self.hub.close(linger).await
    }
}

impl futures::Stream for Dealer {
    type Item = Multipart;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Multipart>> {
        self.hub.inbox.poll_next(cx).map(|next| next.map(|(_, message)| message))
    }
}
