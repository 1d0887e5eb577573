//! What happens to the connections of a socket, told to whoever observes it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lock::lock;
use crate::{Error, ErrorKind};

/// Events that wait for a slow observer; older ones are lost to it.
const EVENTS: usize = 64;
/// A peer that can't be reached for the same reason is told again after so long.
const FOLDED: Duration = Duration::from_secs(10);

/// What happened to a socket's connections.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SocketEvent {
    /// The socket is bound, and accepts connections.
    Listening {
        /// To what, with its actual port.
        endpoint: String,
    },
    /// A peer has connected to a bound socket; its handshake begins.
    Accepted {
        /// Its address.
        peer: String,
    },
    /// A peer that has connected to a bound socket was not let in, or has not finished its handshake.
    HandshakeFailed {
        /// Its address.
        peer: String,
        /// Why. [`NotAllowed`](crate::ErrorKind::NotAllowed): its credentials are not good, and it was told so with the status 400 of ZAP.
        /// [`Refused`](crate::ErrorKind::Refused): there is no place for it, or it has closed the connection itself when it was told the type of this
        /// socket, as libzmq does where its own does not fit.
        error: Error,
    },
    /// A connection is there, handshake done. When it is one that had been lost, the subscriptions of the socket are on their way over
    /// it: the gap that [`Disconnected`](Self::Disconnected) began ends as soon as the peer has taken them. A publisher begins to send
    /// about a second later, or sooner if the connection was away for less, so that subscribers can come back first.
    Connected {
        /// Its other end.
        peer: String,
    },
    /// A connection ended. For a subscription this begins a **gap**: messages that were on their way, and those that are published
    /// from now until shortly after the next [`Connected`](Self::Connected) of the same peer, may be missed, and nobody
    /// counts them. For what is published, nothing is missed: it waits for the next connection. What had been written
    /// to the former one may have arrived or not.
    Disconnected {
        /// Its other end.
        peer: String,
        /// Why, with a kind and what it came from: [`Closed`](crate::ErrorKind::Closed) when either side closed it.
        error: Error,
    },
    /// A message that had been accepted was dropped, because its peer does not take it. What is behind it goes on.
    MessageDropped {
        /// The peer.
        peer: String,
        /// The first frame of the message, its topic; of a long one, the first 255 bytes.
        topic: Bytes,
        /// Bytes on the wire, with all frames and their headers.
        size: usize,
        /// Why.
        reason: String,
    },
    /// This socket has dropped messages for a peer that does not take them in time, as its [policy](crate::SocketOptions::overflow) says. Told at
    /// once for the first, then at most once a second, and when the connection ends.
    PeerTooSlow {
        /// The peer.
        peer: String,
        /// Messages that were dropped since the last such event of this connection.
        messages: u64,
        /// Messages that were dropped over this connection in all.
        total: u64,
    },
    /// The peer, a proxy, has dropped messages that this socket had subscribed to. Our proxy tells so at once for the first, and then
    /// at most every 100 ms, up to the last one; proxies of other implementations never do. It travels ahead of what waits in the proxy,
    /// but behind what is on its way: a subscriber that takes nothing hears of it when it reads on.
    DroppedByPeer {
        /// The peer.
        peer: String,
        /// Why.
        reason: DropReason,
        /// Messages that were dropped for this reason since the last such event of this peer.
        messages: u64,
        /// Messages that the peer has dropped for this reason in all, over all connections of this socket to it.
        total: u64,
    },
    /// A subscription was not made, because the peer has told that it does not take it: nothing comes from there for it. Of a peer that has connected
    /// to this socket, only the first one is told.
    SubscriptionRefused {
        /// The peer.
        peer: String,
        /// What was to be subscribed to.
        prefix: Bytes,
        /// Why.
        reason: String,
    },
    /// A connection could not be made; it will be tried again after the pause. Sockets tell it for each attempt; connections and actors, which
    /// have many, for each peer once, again when the kind of the error changes, and every 10 s.
    ConnectFailed {
        /// Its other end.
        peer: String,
        /// Why, with what it came from. Its kind is the cause: [`Refused`](crate::ErrorKind::Refused) when nobody listens there,
        /// [`UnknownHost`](crate::ErrorKind::UnknownHost), [`WrongPort`](crate::ErrorKind::WrongPort) when something else listens there,
        /// [`NotAllowed`](crate::ErrorKind::NotAllowed) when the other side does not want us,
        /// [`NoResources`](crate::ErrorKind::NoResources) when the system has no descriptor left,
        /// [`Timeout`](crate::ErrorKind::Timeout) when nothing answers, …
        error: Error,
        /// Until the next attempt.
        pause: Duration,
    },
}

/// Why a proxy has dropped messages for a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// The subscriber did not take them in time, and by the policy of the proxy messages are dropped then.
    TooSlow,
    /// They are above the limits of the subscriber, which it has told.
    TooLarge,
}

/// Where events are told: by a socket, or by all that belong to a connection or an actor. Clones share it.
#[derive(Clone, Debug)]
pub struct EventChannel {
    sender: broadcast::Sender<SocketEvent>,
    ended: CancellationToken,
    /// Why a peer could not be connected to, and when that was told last.
    failures: Arc<Mutex<HashMap<String, (ErrorKind, Instant)>>>,
}

impl Default for EventChannel {
    fn default() -> Self {
        Self::new()
    }
}

impl EventChannel {
    /// A channel that nobody observes yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            sender: broadcast::channel(EVENTS).0,
            ended: CancellationToken::new(),
            failures: Arc::default(),
        }
    }

    /// The events from now on.
    #[must_use]
    pub fn observe(&self) -> SocketEvents {
        SocketEvents { receiver: self.sender.subscribe(), ended: self.ended.clone() }
    }

    /// Tells what happened; nobody has to listen.
    pub fn tell(&self, event: SocketEvent) {
        let _ = self.sender.send(event);
    }

    /// The same for what one of many sockets tells: that a peer can't be reached is not told for each attempt of each of them.
    pub fn tell_folded(&self, event: SocketEvent) {
        let is_news = {
            let mut failures = lock(&self.failures);
            match &event {
                SocketEvent::ConnectFailed { peer, error, .. } => {
                    let (kind, now) = (error.kind(), Instant::now());
                    let is_news = failures
                        .get(peer)
                        .is_none_or(|(told, at)| *told != kind || now.duration_since(*at) >= FOLDED);
                    if is_news {
                        if failures.len() >= EVENTS {
                            failures.clear();
                        }
                        failures.insert(peer.clone(), (kind, now));
                    }
                    is_news
                }
                SocketEvent::Connected { peer } => {
                    failures.remove(peer);
                    true
                }
                _ => true,
            }
        };
        if is_news {
            self.tell(event);
        }
    }

    /// Ends the streams of those who observe it.
    pub fn end(&self) {
        self.ended.cancel();
    }
}

/// The [`SocketEvent`]s of one socket, connection or actor from now on. Whoever falls more than 64 events behind misses the oldest.
#[derive(Debug)]
pub struct SocketEvents {
    receiver: broadcast::Receiver<SocketEvent>,
    ended: CancellationToken,
}

impl SocketEvents {
    /// The next event; `None` when what is observed was closed, or is gone, and all that happened until then was told.
    pub async fn next(&mut self) -> Option<SocketEvent> {
        loop {
            let next = tokio::select! {
                biased;
                next = self.receiver.recv() => next,
                () = self.ended.cancelled() => return None,
            };
            match next {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
