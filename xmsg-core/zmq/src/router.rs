//! ROUTER: talks to many peers, each by its identity.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::hub::Owner;
use crate::link::Link;
use crate::link::outbox::Refused;
use crate::link::routes::{RouteKey, Routes};
use crate::methods::endpoint_methods;
use crate::options::{HasIdentity, KnowsPeers, Receives, Sends};
use crate::role::{Role, Seat};
use crate::security::Principal;
use crate::{Error, ErrorKind, Result};
use crate::{Multipart, SocketOptions};
use xmsg_zmtp::{Peer, SocketType};

/// What is set on a [`Router`] alone.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RouterSettings {
    /// See [`SocketOptions::identity_scope`].
    pub identity_scope: IdentityScope,
    /// See [`SocketOptions::handover`].
    pub handover: bool,
    /// See [`SocketOptions::mandatory`].
    pub mandatory: bool,
}

impl Default for RouterSettings {
    fn default() -> Self {
        Self { identity_scope: IdentityScope::default(), handover: true, mandatory: true }
    }
}

/// Among whom an identity names one peer of a [`Router`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityScope {
    /// Among all peers of the socket. Whoever has proved to be somebody else than the holder of an identity can't have it.
    #[default]
    Socket,
    /// Among the peers that have proved to be the same: nobody can take an identity away from others, not even before they come.
    /// Such a peer is reached with [`Router::try_send_to`].
    Principal,
}

/// What only ROUTER has.
impl SocketOptions<Router> {
    /// Among whom identities of peers are told apart. Default: among all.
    #[must_use]
    pub fn identity_scope(self, scope: IdentityScope) -> Self {
        self.with(|settings| settings.router.identity_scope = scope)
    }

    /// Whether a peer that announces the identity of another one takes it over, and the older connection ends: its owner may have lost it
    /// unnoticed (`ZMQ_ROUTER_HANDOVER`). If not, the newcomer is not let in. Default yes.
    #[must_use]
    pub fn handover(self, handover: bool) -> Self {
        self.with(|settings| settings.router.handover = handover)
    }

    /// Whether a message for an identity that nobody has is an error of whoever sends it (`ZMQ_ROUTER_MANDATORY`). If not, it is dropped and
    /// [counted](Router::dropped). Default yes.
    #[must_use]
    pub fn mandatory(self, mandatory: bool) -> Self {
        self.with(|settings| settings.router.mandatory = mandatory)
    }
}

/// A router. A peer that announces the identity of another one takes it over, and the older connection
/// ends, unless [`SocketOptions::handover`] says otherwise. Clones share the socket; dropping the last closes it.
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

/// ROUTER finds its peers by the identities that they announce.
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

    fn join<'a>(&'a self, link: &Arc<Link>, peer: &Peer) -> Result<Seat<'a>, &'static str> {
        // RFC 28: a peer without an identity gets a name of ours, which starts with a zero byte; nobody may choose one that does, or it could
        // take over somebody else's.
        let identity = match peer.identity.first() {
            None | Some(0) => link.name(),
            // A copy: it must not keep alive all that came with it.
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
        Ok(Seat::found_by(route, identity))
    }
}

impl Sends for Router {}

impl Receives for Router {}

impl KnowsPeers for Router {}

impl HasIdentity for Router {}

impl Router {
    /// A router without connections.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        let settings = options.into_settings();
        let role = Arc::new(Routing { routes: Routes::default(), settings: settings.router.clone() });
        Self { hub: Arc::new(Owner::new(role.clone(), settings)), role }
    }

    endpoint_methods!();

    /// Lets no more peers connect, to any endpoint. What it was bound to is free when this returns; connections stay.
    pub fn unbind_all(&self) {
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
        let message = message.into();
        let Some(link) = self.role.find(identity, principal) else { return self.nobody(identity, &message) };
        let sent = link.outbox.try_push(message.frames());
        sent.map_err(|refused| self.refused(identity, &link, &message, refused))
    }

    /// What becomes of a message for an identity that nobody has.
    fn nobody(&self, identity: &[u8], message: &Multipart) -> Result<()> {
        let what = format!("no peer has the identity \"{}\"", identity.escape_ascii());
        let error = Error::new(ErrorKind::Refused, what);
        if self.role.settings.mandatory {
            return Err(error);
        }
        self.hub.drop_unsent(message.frames(), &error);
        Ok(())
    }

    /// Messages for identities that nobody had, if those are [dropped](SocketOptions::mandatory). Each was told as a
    /// [`MessageDropped`](crate::SocketEvent::MessageDropped).
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.hub.dropped()
    }

    fn refused(&self, identity: &[u8], link: &Link, message: &Multipart, refused: Refused) -> Error {
        let shown = identity.escape_ascii();
        match refused {
            Refused::Unfit => self.hub.unfit(link, message.frames()),
            Refused::Full => {
                Error::new(ErrorKind::Full, format!("the peer \"{shown}\" is at its high-water mark"))
            }
            Refused::Closed => Error::new(ErrorKind::Closed, format!("the peer \"{shown}\" is gone")),
        }
    }

    /// Sends the message to the peer of this identity, and waits while its queue is at the high-water mark. Dropping the future has it sent whole or not at
    /// all. Errors as [`try_send`](Self::try_send), but for [`Full`](ErrorKind::Full).
    pub async fn send(&self, identity: &[u8], message: impl Into<Multipart>) -> Result<()> {
        let message = message.into();
        let Some(link) = self.role.find(identity, None) else { return self.nobody(identity, &message) };
        let sent = link.outbox.push(message.frames()).await;
        sent.map_err(|refused| self.refused(identity, &link, &message, refused))
    }

    /// Whether a peer of this identity is connected and, where identities are told apart by who has them, has proved to be this one. It
    /// takes a look-up, and no more.
    #[must_use]
    pub fn is_connected(&self, identity: &[u8], principal: Option<&Principal>) -> bool {
        self.role.find(identity, principal).is_some()
    }

    /// Ends the connections of peers that the rule in [`SocketOptions::keeps`] does not keep any more: some at a time, so that others are not
    /// held up. All have been told to end when this returns.
    pub async fn recheck(&self) {
        self.hub.recheck().await;
    }

    /// The next message and the identity of its sender; `None` once the socket is closed.
    /// Dropping the future loses nothing.
    pub async fn recv(&self) -> Option<(Bytes, Multipart)> {
        std::future::poll_fn(|cx| self.hub.inbox.poll_next(cx)).await
    }

    /// Sends what was accepted, for at most `linger`. Returns how many messages were not sent.
    pub async fn close(&self, linger: Duration) -> usize {
        self.hub.close(linger).await
    }
}
