//! ROUTER: talks to many peers, each by its identity.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::events::SocketEvents;
use crate::hub::Owner;
use crate::link::outbox::Refused;
use crate::link::transport::Listener;
use crate::security::Principal;
use crate::{Endpoint, Multipart, SocketOptions};
use crate::{Error, ErrorKind, Result};
use xmsg_zmtp::SocketType;

/// A bound router. A peer that announces the identity of another one takes it over, and the older connection
/// ends (*handover*): its owner may have lost it unnoticed. Clones share the socket; dropping the last closes it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
/// use xmsg_zmq::{Dealer, Router, SocketOptions};
/// let router = Router::new(SocketOptions::default());
/// let endpoint = router.bind(&"tcp://127.0.0.1:0".parse()?).await?;
/// let mut dealer = Dealer::connect(endpoint, SocketOptions { identity: "me".into(), ..Default::default() });
/// dealer.send(["ping"]).await?;
/// let (identity, _) = router.recv().await.unwrap();
/// assert_eq!(identity, "me");
/// router.try_send(&identity, ["pong"])?;
/// assert_eq!(dealer.recv().await.unwrap().frames()[0], "pong");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Router {
    hub: Arc<Owner>,
}

impl Router {
    /// A router that is not bound yet.
    #[must_use]
    pub fn new(options: SocketOptions) -> Self {
        Self { hub: Arc::new(Owner::new(SocketType::Router, options)) }
    }

    /// Lets peers connect. Returns the endpoint with its actual port.
    pub async fn bind(&self, endpoint: &Endpoint) -> Result<Endpoint> {
        self.hub.bind(endpoint).await
    }

    /// Lets peers connect to a listener that is bound already. Returns its endpoint.
    #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn listen(&self, listener: Listener) -> Endpoint {
        self.hub.listen(listener)
    }

    /// Lets no more peers connect. What it was bound to is free when this returns; connections stay.
    pub fn unbind(&self) {
        self.hub.unbind();
    }

    /// Hands the message to the peer of this identity without waiting. An error of kind
    /// [`Refused`](ErrorKind::Refused) says that nobody has that identity, [`Full`](ErrorKind::Full) that this peer
    /// does not read, [`TooLarge`](ErrorKind::TooLarge) that the message is above our limits or those that this peer has told,
    /// [`InvalidMessage`](ErrorKind::InvalidMessage) that it has no frames.
    pub fn try_send(&self, identity: &[u8], message: impl Into<Multipart>) -> Result<()> {
        self.try_send_to(identity, None, message)
    }

    /// The same to the peer that has this identity and, where identities are told apart
    /// [by who has them](super::IdentityScope::Principal), has proved to be this one.
    pub fn try_send_to(
        &self,
        identity: &[u8],
        principal: Option<&Principal>,
        message: impl Into<Multipart>,
    ) -> Result<()> {
        let shown = || identity.escape_ascii();
        let Some(link) = self.hub.route(identity, principal) else {
            return Err(Error::new(ErrorKind::Refused, format!("no peer has the identity \"{}\"", shown())));
        };
        let message = message.into();
        link.outbox.try_push(message.frames()).map_err(|refused| match refused {
            Refused::Unfit => self.hub.unfit(&link, message.frames()),
            Refused::Full => {
                Error::new(ErrorKind::Full, format!("the peer \"{}\" is at its high-water mark", shown()))
            }
            Refused::Closed => Error::new(ErrorKind::Closed, format!("the peer \"{}\" is gone", shown())),
        })
    }

    /// Whether a peer of this identity is connected and, where identities are told apart by who has them, has proved to be this one. It
    /// takes a look-up, and no more.
    #[must_use]
    pub fn is_connected(&self, identity: &[u8], principal: Option<&Principal>) -> bool {
        self.hub.route(identity, principal).is_some()
    }

    /// The next message and the identity of its sender; `None` once the socket is closed.
    /// Dropping the future loses nothing.
    pub async fn recv(&self) -> Option<(Bytes, Multipart)> {
        std::future::poll_fn(|cx| self.hub.inbox.poll_next(cx)).await
    }

    /// What happens to the connections from now on.
    #[must_use]
    pub fn events(&self) -> SocketEvents {
        self.hub.events()
    }

    /// How many peers are connected.
    #[must_use]
    pub fn peers(&self) -> usize {
        self.hub.links().len()
    }

    /// Sends what was accepted, for at most `linger`. Returns how many messages were not sent.
    pub async fn close(&self, linger: Duration) -> usize {
        self.hub.close(linger).await
    }
}
