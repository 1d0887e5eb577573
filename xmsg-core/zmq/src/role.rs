//! What is specific to a socket type. Everything else is the same for all types and belongs to the
//! [hub](crate::hub): transports, handshakes, admission, reconnecting, and queues.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::SemaphorePermit;
use xmsg_zmtp::{Peer, PeerLimits, SocketType, Version};

use crate::balance::Balancer;
use crate::link::Link;
use crate::link::routes::{Route, Routes};
use crate::link::session::Ended;
use crate::subscriptions::SubscriptionLimitExceeded;

/// What one socket type does with its connections. Each call is short, and none blocks.
pub(crate) trait Role: fmt::Debug + Send + Sync {
    /// The socket type that is sent to peers.
    fn socket_type(&self) -> SocketType;

    /// Whether a socket that is closed waits until what it has accepted is written.
    fn lingers(&self) -> bool {
        true
    }

    /// Checks before the handshake whether one more peer may be accepted; an error says why not. A peer that
    /// is refused only after the handshake may already have sent something.
    fn has_place(&self) -> Result<(), &'static str> {
        Ok(())
    }

    /// Called after the handshake with a peer. Returns its place in the socket, or why there is none; the
    /// connection then ends.
    fn join<'a>(&'a self, link: &Arc<Link>, peer: &Peer) -> Result<PeerSlot<'a>, &'static str> {
        let _ = link;
        Ok(PeerSlot::of(peer))
    }

    /// Has the link [established](Link::establish), and sends what the peer needs to know first. Returns the
    /// prefixes that the peer does not accept.
    fn establish(
        &self,
        link: &Link,
        version: Version,
        limits: PeerLimits,
    ) -> Vec<(Bytes, SubscriptionLimitExceeded)> {
        // These bytes were meant for an earlier connection.
        link.send_queue.clear_urgent();
        link.establish(version, limits);
        Vec::new()
    }

    /// Whether messages are received. What arrives at a socket that only sends is dropped (RFC 30).
    fn receives(&self) -> bool {
        true
    }

    /// Whether the socket wants messages with this topic, if its peers may send it others.
    fn wants(&self, topic: &[u8]) -> bool {
        let _ = topic;
        true
    }

    /// What chooses a peer for each message, if each message goes to one of them.
    fn balancer(&self) -> Option<&Arc<Balancer>> {
        None
    }

    /// Called when the peer has subscribed to a prefix or cancelled that. Only sockets whose type [takes
    /// subscriptions](SocketType::takes_subscriptions) get these calls. Returns whether the user of the
    /// socket is notified.
    ///
    /// # Errors
    ///
    /// The peer has exceeded a limit.
    fn subscription(&self, link: &Link, subscribe: bool, prefix: Bytes) -> Result<bool, Ended> {
        let _ = (link, subscribe, prefix);
        Ok(false)
    }

    /// Called when the connection has ended. Returns the prefixes for which the user of the socket is
    /// notified that the peer is no longer subscribed.
    fn leave(&self, link: &Link) -> Vec<Bytes> {
        let _ = link;
        Vec::new()
    }
}

/// The place of a peer in a socket while it is connected.
#[derive(Debug)]
pub(crate) struct PeerSlot<'a> {
    /// The identity by which the socket knows the peer.
    pub(crate) identity: Bytes,
    /// Released when the peer is gone.
    _guard: Option<Guard<'a>>,
}

/// A resource that a peer holds while it is connected.
#[derive(Debug)]
#[allow(dead_code, reason = "it is kept to be dropped")]
enum Guard<'a> {
    /// A routing identity by which the peer is found.
    Route(Route<'a>),
    /// One of a limited number of places.
    Place(SemaphorePermit<'a>),
}

impl<'a> PeerSlot<'a> {
    /// The place of a peer that is known by the identity that it announces.
    pub(crate) fn of(peer: &Peer) -> Self {
        // For other types the identity has no meaning (RFC 23). It is copied, so that it does not keep
        // everything in memory that arrived with it.
        let identity = if peer.socket_type.announces_identity() { &peer.identity[..] } else { &[] };
        Self { identity: Bytes::copy_from_slice(identity), _guard: None }
    }

    /// The place of a peer that is found by its routing identity.
    pub(crate) fn found_by(route: Route<'a>, identity: Bytes) -> Self {
        Self { identity, _guard: Some(Guard::Route(route)) }
    }

    /// The place of a peer that takes one of a limited number of places.
    pub(crate) fn at(place: SemaphorePermit<'a>, peer: &Peer) -> Self {
        Self { _guard: Some(Guard::Place(place)), ..Self::of(peer) }
    }
}

/// The role of REP, and of REQ for peers that connect to it. Each connection has a routing identity of its
/// own, whatever identity the peer announces.
#[derive(Debug)]
pub(crate) struct RoutedRole {
    socket_type: SocketType,
    routes: Routes,
    /// The number of connections that we have made.
    made: AtomicU64,
}

impl RoutedRole {
    pub(crate) fn new(socket_type: SocketType) -> Self {
        Self { socket_type, routes: Routes::default(), made: AtomicU64::new(0) }
    }

    /// Returns the connection with this routing identity.
    pub(crate) fn find(&self, name: &Bytes) -> Option<Arc<Link>> {
        self.routes.get(&(None, name.clone()))
    }
}

impl Role for RoutedRole {
    fn socket_type(&self) -> SocketType {
        self.socket_type
    }

    fn lingers(&self) -> bool {
        // Peers that have sent a request are not waited for any more.
        self.socket_type != SocketType::Req
    }

    fn join<'a>(&'a self, link: &Arc<Link>, peer: &Peer) -> Result<PeerSlot<'a>, &'static str> {
        link.state().principal.clone_from(&peer.principal);
        let name = if link.connecting {
            // Each connection gets its own identity: a reply is for the connection over which its request
            // arrived, and not for the next one to the same endpoint. It is longer than those of accepted
            // links, so that they never collide.
            let number = self.made.fetch_add(1, Ordering::Relaxed);
            [&[0], &number.to_be_bytes()[..]].concat().into()
        } else {
            link.name()
        };
        let route = self.routes.take_over((None, name.clone()), link).ok_or("it has a place already")?;
        Ok(PeerSlot::found_by(route, name))
    }
}

/// The role of PULL, and of REQ where it connects. They have nothing to send once they are closed. No caller
/// waits for the reply to a REQ socket any more. A PULL socket that went on reading would drop messages that
/// other workers could have.
#[derive(Debug)]
pub(crate) struct Plain(pub(crate) SocketType);

impl Role for Plain {
    fn socket_type(&self) -> SocketType {
        self.0
    }

    fn lingers(&self) -> bool {
        false
    }
}
