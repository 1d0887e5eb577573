//! Events about the connections of a socket, and their channel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::broadcast;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::lock::lock;
use crate::{Error, ErrorKind};

/// The number of events that are queued for a slow observer. It misses older ones.
const EVENTS: usize = 64;
/// How long the failure to connect to a peer is not reported again if the reason stays the same.
const FOLDED: Duration = Duration::from_secs(10);

/// What happened to a socket's connections.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SocketEvent {
    /// The socket is bound and accepts connections.
    Listening {
        /// The endpoint with its actual port.
        endpoint: String,
    },
    /// A peer has connected to a bound socket; its handshake begins.
    Accepted {
        /// The address of the peer.
        peer: String,
    },
    /// A peer that has connected to a bound socket was rejected, or has not finished its handshake.
    HandshakeFailed {
        /// The address of the peer.
        peer: String,
        /// The reason. [`NotAllowed`](crate::ErrorKind::NotAllowed) means that its credentials were rejected;
        /// the peer was sent the ZAP status 400. [`Refused`](crate::ErrorKind::Refused) means that there is
        /// no place for it, or that it closed the connection itself when it received the type of this socket.
        /// libzmq does so if its own type does not match.
        error: Error,
    },
    /// A connection is established and its handshake is done. If it replaces a lost connection, the
    /// subscriptions of the socket are sent over it. The gap that [`Disconnected`](Self::Disconnected) began
    /// ends as soon as the peer has processed them. A publisher begins to send about a second later, or
    /// sooner if the connection was lost for less, so that subscribers can come back first.
    Connected {
        /// The other end of the connection.
        peer: String,
    },
    /// A connection ended. For a subscription this begins a **gap**: messages that were on their way may be
    /// missed, and so may those that are published from now until shortly after the next
    /// [`Connected`](Self::Connected) of the same peer. They are not counted. Published messages are not
    /// missed: they wait for the next connection. What had been written to the former one may have arrived or
    /// not.
    Disconnected {
        /// The other end of the connection.
        peer: String,
        /// The reason, with a kind and a source. The kind is [`Closed`](crate::ErrorKind::Closed) when either
        /// side closed the connection.
        error: Error,
    },
    /// A message that had been accepted was dropped, because its peer does not accept it. Messages behind it
    /// are sent.
    MessageDropped {
        /// The name of the peer.
        peer: String,
        /// The first frame of the message, which is its topic, cut to 255 bytes.
        topic: Bytes,
        /// The size on the wire in bytes, with all frames and their headers.
        size: usize,
        /// The reason in words.
        reason: String,
    },
    /// This socket has dropped messages for a peer that does not take them in time, as
    /// [`SocketOptions::overflow`](crate::SocketOptions::overflow) says. The first one is reported at once,
    /// later ones at most once a second, and the rest when the connection ends.
    PeerTooSlow {
        /// The name of the peer.
        peer: String,
        /// The number of messages that were dropped since the last such event of this connection.
        messages: u64,
        /// The number of messages that were dropped over this connection in all.
        total: u64,
    },
    /// A connection was ended while messages that it had received waited for room in the receive queue, and
    /// its [memory budget](crate::SocketOptions::memory) had less than half of its memory left. They are
    /// lost. It happens only to peers that have connected to this socket.
    ReceivedLost {
        /// The name of the peer.
        peer: String,
        /// The number of messages that were lost.
        messages: u64,
        /// The number of messages that this socket has lost so in all.
        total: u64,
    },
    /// The peer, a proxy, has dropped messages that this socket had subscribed to. Our proxy reports the
    /// first one at once, and later ones, up to the last, at most every 100 ms. Proxies of other
    /// implementations never report it. The report is sent ahead of what waits in the proxy, but behind what
    /// is on its way: a subscriber that pauses receives it when it reads on.
    DroppedByPeer {
        /// The name of the peer.
        peer: String,
        /// The reason.
        reason: DropReason,
        /// The number of messages that were dropped for this reason since the last such event of this peer.
        messages: u64,
        /// The number of messages that the peer has dropped for this reason in all, over all connections of
        /// this socket to it.
        total: u64,
    },
    /// A subscription was not made, because the peer has announced limits that it exceeds. This peer will
    /// send nothing for it. For a peer that has connected to this socket, only the first such subscription is
    /// reported.
    SubscriptionRefused {
        /// The name of the peer.
        peer: String,
        /// The prefix of the subscription.
        prefix: Bytes,
        /// The reason in words.
        reason: String,
    },
    /// A connection could not be made; it will be tried again after `pause`. Sockets report each attempt.
    /// Connections and actors, which have many sockets, report each peer once, again when the kind of the
    /// error changes, and every 10 s.
    ConnectFailed {
        /// The other end of the connection.
        peer: String,
        /// The reason, with its source. The kind is the cause, for example:
        /// [`Refused`](crate::ErrorKind::Refused) when nothing listens there,
        /// [`UnknownHost`](crate::ErrorKind::UnknownHost), [`WrongPort`](crate::ErrorKind::WrongPort) when
        /// something else listens there, [`NotAllowed`](crate::ErrorKind::NotAllowed) when the other side
        /// rejects us, [`NoResources`](crate::ErrorKind::NoResources) when the system has no descriptor left,
        /// or [`Timeout`](crate::ErrorKind::Timeout) when nothing answers.
        error: Error,
        /// The time until the next attempt.
        pause: Duration,
    },
}

/// Why a proxy has dropped messages for a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// The subscriber did not take them in time, and the policy of the proxy is to drop messages then.
    TooSlow,
    /// They exceed the limits that the subscriber has announced.
    TooLarge,
}

/// A channel for the events of a socket, or of all sockets of a connection or an actor. Clones share it.
#[derive(Clone, Debug)]
pub struct EventChannel {
    sender: broadcast::Sender<SocketEvent>,
    ended: CancellationToken,
    /// For each peer, why it could not be connected to, and when that was reported last.
    failures: Arc<Mutex<HashMap<String, (ErrorKind, Instant)>>>,
}

impl Default for EventChannel {
    fn default() -> Self {
        Self::new()
    }
}

impl EventChannel {
    /// Creates a channel without observers.
    #[must_use]
    pub fn new() -> Self {
        Self {
            sender: broadcast::channel(EVENTS).0,
            ended: CancellationToken::new(),
            failures: Arc::default(),
        }
    }

    /// Returns a stream of the events from now on.
    #[must_use]
    pub fn observe(&self) -> SocketEvents {
        SocketEvents { receiver: self.sender.subscribe(), ended: self.ended.clone() }
    }

    /// Sends an event to all observers, if there are any.
    pub fn emit(&self, event: SocketEvent) {
        let _ = self.sender.send(event);
    }

    /// Sends an event of one of many sockets, like [`emit`](Self::emit). Repeated failures to connect to one
    /// peer are not reported for each attempt of each socket.
    pub fn emit_deduplicated(&self, event: SocketEvent) {
        let is_to_be_reported = {
            let mut failures = lock(&self.failures);
            match &event {
                SocketEvent::ConnectFailed { peer, error, .. } => {
                    let (kind, now) = (error.kind(), Instant::now());
                    let is_to_be_reported = failures
                        .get(peer)
                        .is_none_or(|(reported, at)| *reported != kind || now.duration_since(*at) >= FOLDED);
                    if is_to_be_reported {
                        if failures.len() >= EVENTS {
                            failures.clear();
                        }
                        failures.insert(peer.clone(), (kind, now));
                    }
                    is_to_be_reported
                }
                SocketEvent::Connected { peer } => {
                    failures.remove(peer);
                    true
                }
                _ => true,
            }
        };
        if is_to_be_reported {
            self.emit(event);
        }
    }

    /// Ends the streams of all observers.
    pub fn end(&self) {
        self.ended.cancel();
    }
}

/// The [`SocketEvent`]s of one socket, connection or actor from now on. An observer that falls more than 64
/// events behind misses the oldest.
#[derive(Debug)]
pub struct SocketEvents {
    receiver: broadcast::Receiver<SocketEvent>,
    ended: CancellationToken,
}

impl SocketEvents {
    /// Returns the next event, or `None` when what is observed was closed or dropped, and all events until
    /// then were returned. Cancel safe.
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
