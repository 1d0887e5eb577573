//! ROUTER: exchanges messages with many peers, and addresses each by its identity.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::hub::Owner;
use crate::link::Link;
use crate::link::routes::{RouteKey, Routes};
use crate::link::send_queue::Refused;
use crate::methods::endpoint_methods;
use crate::options::{HasIdentity, KnowsPeers, Receives, Sends};
use crate::role::{PeerSlot, Role};
use crate::security::Principal;
use crate::{Error, ErrorKind, Result};
use crate::{Multipart, SocketOptions};
use xmsg_zmtp::{Peer, SocketType};

/// The options that only a [`Router`] has.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RouterSettings {
    /// See [`SocketOptions::identity_scope`].
    pub identity_scope: IdentityScope,
    /// See [`SocketOptions::handover`].
    pub handover: bool,
    /// See [`SocketOptions::mandatory`].
    pub mandatory: bool,
    /// See [`SocketOptions::discard_received`].
    pub discard_received: bool,
}

impl Default for RouterSettings {
    fn default() -> Self {
        Self {
            identity_scope: IdentityScope::default(),
            handover: true,
            mandatory: true,
            discard_received: false,
        }
    }
}

/// The scope in which an identity is unique among the peers of a [`Router`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityScope {
    /// The identity is unique among all peers of the socket. A peer cannot take over the identity of another
    /// one that is authenticated as a different principal.
    #[default]
    Socket,
    /// The identity is unique among the peers with the same authenticated principal. No peer can take an
    /// identity away from other principals, not even before they connect. Such a peer is reached with
    /// [`Router::try_send_to`].
    Principal,
}

/// Options that only ROUTER has.
impl SocketOptions<Router> {
    /// Sets the scope in which the identities of peers are unique. Default: among all peers.
    #[must_use]
    pub fn identity_scope(self, scope: IdentityScope) -> Self {
        self.with(|settings| settings.router.identity_scope = scope)
    }

    /// Sets whether a peer that announces the identity of another one takes it over (`ZMQ_ROUTER_HANDOVER`).
    /// The older connection is then ended: its peer may have lost it unnoticed. If not, the new peer is
    /// rejected. Default `true`.
    #[must_use]
    pub fn handover(self, handover: bool) -> Self {
        self.with(|settings| settings.router.handover = handover)
    }

    /// Sets whether sending a message to an identity that no peer has is an error (`ZMQ_ROUTER_MANDATORY`).
    /// If not, the message is dropped and [counted](Router::dropped). Default `true`.
    #[must_use]
    pub fn mandatory(self, mandatory: bool) -> Self {
        self.with(|settings| settings.router.mandatory = mandatory)
    }

    /// Sets whether messages of peers are discarded, for a router that only sends. They are read slowly, so
    /// that they take little time, and [`Router::recv`] returns none. Default `false`.
    ///
    /// ```
    /// use xmsg_zmq::{Router, SocketOptions};
    ///
    /// let options = SocketOptions::<Router>::default().discard_received(true);
    /// assert!(options.settings().router.discard_received);
    /// ```
    #[must_use]
    pub fn discard_received(self, discard: bool) -> Self {
        self.with(|settings| settings.router.discard_received = discard)
    }
}

/// A socket that sends each message to the peer with a given identity, and receives from all peers (RFC 28).
/// A peer that announces the identity of another one takes it over, and the older connection ends, unless
/// [`SocketOptions::handover`] says otherwise. Clones share the socket; dropping the last one closes it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
/// use xmsg_zmq::{Dealer, Router, SocketOptions};
/// let router = Router::new(SocketOptions::default());
/// let endpoint = router.bind(&"tcp://127.0.0.1:0".parse()?).await?;
/// let dealer = Dealer::connecting_to(endpoint, SocketOptions::default().identity("me"));
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
    role: Arc<Routing>,
}

/// The role of ROUTER, which finds its peers by the identities that they announce.
#[derive(Debug)]
struct Routing {
    routes: Routes,
    settings: RouterSettings,
}

impl Routing {
    fn key(&self, identity: &[u8], principal: Option<&Principal>) -> RouteKey {
        let principal = match self.settings.identity_scope {
            IdentityScope::Socket => None,
            IdentityScope::Principal => principal.cloned(),
        };
        (principal, Bytes::copy_from_slice(identity))
    }

    fn find(&self, identity: &[u8], principal: Option<&Principal>) -> Option<Arc<Link>> {
        self.routes.get(&self.key(identity, principal))
    }
}

impl Role for Routing {
    fn socket_type(&self) -> SocketType {
        SocketType::Router
    }

    fn receives(&self) -> bool {
        !self.settings.discard_received
    }

    fn join<'a>(&'a self, link: &Arc<Link>, peer: &Peer) -> Result<PeerSlot<'a>, &'static str> {
        // A peer without an identity gets one from us, which starts with a zero byte (RFC 28). No peer may
        // choose such an identity, or it could take over that of another peer.
        let identity = match peer.identity.first() {
            None | Some(0) => link.name(),
            // It is copied, so that it does not keep everything in memory that arrived with it.
            Some(_) => Bytes::copy_from_slice(&peer.identity),
        };
        link.state().principal.clone_from(&peer.principal);
        let key = self.key(&identity, peer.principal.as_ref());
        let route = if self.settings.handover {
            self.routes.take_over(key, link)
        } else {
            self.routes.take(key, link)
        };
        let route = route.ok_or("somebody else has its identity")?;
        Ok(PeerSlot::found_by(route, identity))
    }
}

impl Sends for Router {}

impl Receives for Router {}

impl KnowsPeers for Router {}

impl HasIdentity for Router {}

impl Router {
    /// Creates a router without connections.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        let settings = options.into_settings();
        let role = Arc::new(Routing { routes: Routes::default(), settings: settings.router.clone() });
        Self { hub: Arc::new(Owner::new(role.clone(), settings)), role }
    }

    endpoint_methods!();

    /// Stops accepting connections at all endpoints. They are free when this returns; existing connections
    /// stay.
    pub fn unbind_all(&self) {
        self.hub.unbind();
    }

    /// Sends a message to the peer with this identity without waiting.
    ///
    /// # Errors
    ///
    /// - [`Refused`](ErrorKind::Refused): no peer has that identity.
    /// - [`Full`](ErrorKind::Full): the send queue of the peer is full.
    /// - [`TooLarge`](ErrorKind::TooLarge): the message exceeds our limits, or those that the peer has
    ///   announced.
    /// - [`InvalidMessage`](ErrorKind::InvalidMessage): the message has no frames.
    pub fn try_send(&self, identity: &[u8], message: impl Into<Multipart>) -> Result<()> {
        self.try_send_to(identity, None, message)
    }

    /// Sends a message without waiting, like [`try_send`](Self::try_send), to the peer with this identity. If
    /// the scope of identities is [the principal](super::IdentityScope::Principal), the peer must also have
    /// this authenticated principal.
    pub fn try_send_to(
        &self,
        identity: &[u8],
        principal: Option<&Principal>,
        message: impl Into<Multipart>,
    ) -> Result<()> {
        let message = message.into();
        let Some(link) = self.role.find(identity, principal) else { return self.nobody(identity, &message) };
        let sent = link.send_queue.try_push(message.frames());
        sent.map_err(|refused| self.refused(identity, &link, &message, refused))
    }

    /// Handles a message for an identity that no peer has.
    fn nobody(&self, identity: &[u8], message: &Multipart) -> Result<()> {
        let what = format!("no peer has the identity \"{}\"", identity.escape_ascii());
        let error = Error::new(ErrorKind::Refused, what);
        if self.role.settings.mandatory {
            return Err(error);
        }
        self.hub.drop_unsent(message.frames(), &error);
        Ok(())
    }

    /// Returns the number of messages for identities that no peer had, if those are
    /// [dropped](SocketOptions::mandatory). Each was reported as a
    /// [`MessageDropped`](crate::SocketEvent::MessageDropped).
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.hub.dropped()
    }

    fn refused(&self, identity: &[u8], link: &Link, message: &Multipart, refused: Refused) -> Error {
        let shown = identity.escape_ascii();
        match refused {
            Refused::ExceedsLimits => self.hub.exceeds_limits(link, message.frames()),
            Refused::Full => {
                Error::new(ErrorKind::Full, format!("the peer \"{shown}\" is at its high-water mark"))
            }
            Refused::Closed => Error::new(ErrorKind::Closed, format!("the peer \"{shown}\" is gone")),
        }
    }

    /// Sends a message to the peer with this identity, and waits while its queue is at the high-water mark.
    ///
    /// Cancel safe: if the future is dropped, the message was accepted whole or not at all.
    ///
    /// # Errors
    ///
    /// The same as for [`try_send`](Self::try_send), except [`Full`](ErrorKind::Full).
    pub async fn send(&self, identity: &[u8], message: impl Into<Multipart>) -> Result<()> {
        let message = message.into();
        let Some(link) = self.role.find(identity, None) else { return self.nobody(identity, &message) };
        let sent = link.send_queue.push(message.frames()).await;
        sent.map_err(|refused| self.refused(identity, &link, &message, refused))
    }

    /// Returns whether a peer with this identity is connected. If the scope of identities is the principal,
    /// the peer must also have this authenticated principal. This takes one look-up.
    #[must_use]
    pub fn is_connected(&self, identity: &[u8], principal: Option<&Principal>) -> bool {
        self.role.find(identity, principal).is_some()
    }

    /// Ends the connections of peers that the rule in [`SocketOptions::keeps`] does not allow any more. It
    /// ends a few at a time, so that other connections are not delayed. All of them are ending when this
    /// returns.
    pub async fn recheck(&self) {
        self.hub.recheck().await;
    }

    /// Receives the next message and the identity of its sender. Returns `None` once the socket is closed.
    /// Cancel safe.
    pub async fn recv(&self) -> Option<(Bytes, Multipart)> {
        std::future::poll_fn(|cx| self.hub.receive_queue.poll_next(cx)).await
    }

    /// Accepts no more messages, and sends what was accepted for at most `linger`. Returns how many messages
    /// were not sent.
    pub async fn close(&self, linger: Duration) -> usize {
        self.hub.close(linger).await
    }
}
