//! What makes a socket type what it is. The rest is the same for all of them, and is the [hub's](crate::hub): transports, handshakes,
//! admission, reconnecting, queues.

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
use crate::subscriptions::NotTaken;

/// What one socket type does with its connections. Each call is short, and none waits.
pub(crate) trait Role: fmt::Debug + Send + Sync {
    /// The type that peers are told.
    fn socket_type(&self) -> SocketType;

    /// Whether a socket that is closed waits until what it has accepted is written.
    fn lingers(&self) -> bool {
        true
    }

    /// Whether there may be a place for one more peer; if not, why. Asked before the handshake: whoever is refused after it has perhaps sent something.
    fn has_place(&self) -> Result<(), &'static str> {
        Ok(())
    }

    /// A peer has gone through the handshake. Returns its place in the socket, or why there is none: then the connection ends.
    fn join<'a>(&'a self, link: &Arc<Link>, peer: &Peer) -> Result<Seat<'a>, &'static str> {
        let _ = link;
        Ok(Seat::of(peer))
    }

    /// Has the link [established](Link::establish), and says to the peer what it has to know first. Returns the prefixes that it does not take.
    fn establish(&self, link: &Link, version: Version, limits: PeerLimits) -> Vec<(Bytes, NotTaken)> {
        // What was meant for an earlier connection.
        link.outbox.clear_urgent();
        link.establish(version, limits, None);
        Vec::new()
    }

    /// Whether messages are received. What comes to a socket that only sends is thrown away (RFC 30).
    fn receives(&self) -> bool {
        true
    }

    /// Whether a message of this topic is wanted, for a socket whose peers may send it others.
    fn wants(&self, topic: &[u8]) -> bool {
        let _ = topic;
        true
    }

    /// What chooses the peer for each message, where each goes to one of them.
    fn balancer(&self) -> Option<&Arc<Balancer>> {
        None
    }

    /// The peer has subscribed to a prefix, or has taken that back. Only sockets whose type [takes
    /// subscriptions](SocketType::takes_subscriptions) get these. Returns whether the socket's user is told.
    fn subscription(&self, link: &Link, subscribe: bool, prefix: Bytes) -> Result<bool, Ended> {
        let _ = (link, subscribe, prefix);
        Ok(false)
    }

    /// The connection has ended. Returns the prefixes that the socket's user is told the peer subscribes to no more.
    fn leave(&self, link: &Link) -> Vec<Bytes> {
        let _ = link;
        Vec::new()
    }
}

/// The place of a peer in a socket, as long as it is connected.
#[derive(Debug)]
pub(crate) struct Seat<'a> {
    /// What the socket knows it by.
    pub(crate) identity: Bytes,
    /// What is given back when the peer has gone.
    _guard: Option<Guard<'a>>,
}

/// Something that a peer has as long as it is connected.
#[derive(Debug)]
#[allow(dead_code, reason = "it is kept to be dropped")]
enum Guard<'a> {
    /// A name by which others find it.
    Route(Route<'a>),
    /// One of a number of places.
    Place(SemaphorePermit<'a>),
}

impl<'a> Seat<'a> {
    /// Of a peer that is known by what it calls itself.
    pub(crate) fn of(peer: &Peer) -> Self {
        // RFC 23: of others it means nothing. A copy: it must not keep alive all that came with it.
        let identity = if peer.socket_type.announces_identity() { &peer.identity[..] } else { &[] };
        Self { identity: Bytes::copy_from_slice(identity), _guard: None }
    }

    /// Of a peer that is found by its identity.
    pub(crate) fn found_by(route: Route<'a>, identity: Bytes) -> Self {
        Self { identity, _guard: Some(Guard::Route(route)) }
    }

    /// Of a peer that takes one of a number of places.
    pub(crate) fn at(place: SemaphorePermit<'a>, peer: &Peer) -> Self {
        Self { _guard: Some(Guard::Place(place)), ..Self::of(peer) }
    }
}

/// The role of REP, and of REQ for the peers that connect to it: each connection has a name of its own, whatever the peer calls itself.
#[derive(Debug)]
pub(crate) struct Named {
    socket_type: SocketType,
    routes: Routes,
    /// Connections that we have made.
    made: AtomicU64,
}

impl Named {
    pub(crate) fn new(socket_type: SocketType) -> Self {
        Self { socket_type, routes: Routes::default(), made: AtomicU64::new(0) }
    }

    /// The connection of this name.
    pub(crate) fn find(&self, name: &Bytes) -> Option<Arc<Link>> {
        self.routes.get(&(None, name.clone()))
    }
}

impl Role for Named {
    fn socket_type(&self) -> SocketType {
        self.socket_type
    }

    fn lingers(&self) -> bool {
        // Whoever has asked is not waited for any more.
        self.socket_type != SocketType::Req
    }

    fn join<'a>(&'a self, link: &Arc<Link>, peer: &Peer) -> Result<Seat<'a>, &'static str> {
        link.state().principal.clone_from(&peer.principal);
        let name = if link.connecting {
            // One for each connection: a reply is for the one that its request came over, and not for the next one to the same endpoint. It is
            // longer than those of accepted links, so that none is the same.
            let number = self.made.fetch_add(1, Ordering::Relaxed);
            [&[0], &number.to_be_bytes()[..]].concat().into()
        } else {
            link.name()
        };
        let route = self.routes.take_over((None, name.clone()), link).ok_or("it has a place already")?;
        Ok(Seat::found_by(route, name))
    }
}

/// The role of PULL, and of REQ where it connects, which have nothing more to say once they are closed: nobody waits for the answer to what a REQ socket has asked, and
/// a PULL socket that went on reading would throw away what others could have.
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
