//! The options of the engine, and all limits that it enforces.

use std::time::Duration;

use bytes::Bytes;

use super::{Limited, PeerLimits, SocketType, Violation};

/// Limits on what one peer may send. Each is checked before memory is reserved. If a peer exceeds one, its
/// connection is ended. To peers of ZMTP 3, the handshake announces either the first two or those of
/// subscriptions: see [`PeerLimits`](super::PeerLimits).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The maximum size in bytes of one message with all its frames and their headers. Default 64 MiB.
    pub message_size: usize,
    /// The maximum number of frames of one message. Default 1024.
    pub frames: usize,
    /// The maximum size in bytes of one command, and of the property list of a handshake. Default 64 KiB.
    pub command_size: usize,
    /// The maximum length in bytes of one subscription's prefix. Default 4096.
    pub subscription_len: usize,
    /// The maximum number of subscriptions of one peer. Default 1,000,000.
    pub subscriptions: usize,
    /// The maximum length in bytes of all prefixes that one peer subscribes to. Default 256 MiB.
    pub subscription_bytes: usize,
    /// How long the handshake may take, from the beginning of the connection. Default 10 s.
    pub handshake_timeout: Duration,
}

impl Limits {
    /// Returns the violation of a peer with too many subscriptions, or too many bytes of prefixes.
    #[must_use]
    pub fn too_many(&self, subscriptions: usize, bytes: usize) -> Violation {
        let (what, size, limit) = if subscriptions > self.subscriptions {
            (Limited::Subscriptions, subscriptions, self.subscriptions)
        } else {
            (Limited::SubscriptionBytes, bytes, self.subscription_bytes)
        };
        Violation::TooLarge { what, size: size as u64, limit: limit as u64 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_size: 64 << 20,
            frames: 1024,
            command_size: 64 << 10,
            subscription_len: 4096,
            subscriptions: 1_000_000,
            subscription_bytes: 256 << 20,
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

/// Limits for one message.
///
/// ```
/// use xmsg_zmtp::MessageLimits;
/// let limits = MessageLimits { size: 1000, frames: 3 };
/// assert!(limits.allow(1000, 3));
/// assert!(!limits.allow(1001, 3) && !limits.allow(1000, 4));
/// assert!(!MessageLimits::default().allow(0, 0), "a message has one frame at least");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageLimits {
    /// The maximum size in bytes on the wire, with all frames and their headers: see
    /// [`encoded_len`](super::encoded_len).
    pub size: usize,
    /// The maximum number of frames.
    pub frames: usize,
}

impl MessageLimits {
    /// Returns whether a message of `size` bytes on the wire, with `frames` frames, is allowed. A message
    /// without frames is not.
    #[inline]
    #[must_use]
    pub fn allow(self, size: usize, frames: usize) -> bool {
        // Without frames, the subtraction wraps around to a number above any limit.
        size <= self.size && frames.wrapping_sub(1) < self.frames
    }

    /// Returns the smaller of these limits and those of this peer.
    #[must_use]
    pub fn within(self, peer: &PeerLimits) -> Self {
        Self {
            size: peer.message_size.map_or(self.size, |size| size.min(self.size)),
            frames: peer.frames.map_or(self.frames, |frames| frames.min(self.frames)),
        }
    }

    /// Returns whether `other` allows everything that these limits allow.
    #[must_use]
    pub fn are_within(self, other: Self) -> bool {
        self.size <= other.size && self.frames <= other.frames
    }
}

impl Default for MessageLimits {
    /// Any size and any number of frames.
    fn default() -> Self {
        Self { size: usize::MAX, frames: usize::MAX }
    }
}

impl From<&Limits> for MessageLimits {
    fn from(limits: &Limits) -> Self {
        Self { size: limits.message_size, frames: limits.frames }
    }
}

/// Options of one end of a connection.
#[derive(Clone, Debug)]
pub struct Options {
    /// The type of our socket.
    pub socket_type: SocketType,
    /// Our identity, which DEALER, REQ and ROUTER sockets announce. At most 255 bytes; an empty one means
    /// none.
    pub identity: Bytes,
    /// Send a PING when nothing was received for this time. `None` or zero means never. Peers below ZMTP 3.1
    /// get no PING.
    pub heartbeat_interval: Option<Duration>,
    /// End the connection when nothing was received for this time after a PING was sent.
    pub heartbeat_timeout: Duration,
    /// Limits on what the peer may send.
    pub limits: Limits,
    /// Whether an XPUB socket wants messages that subscribers send besides subscriptions. They are returned
    /// as [`FromSubscriber`](super::Event::FromSubscriber). Default `false`.
    pub messages_from_subscribers: bool,
}

impl Options {
    /// Creates options with the documented defaults for a socket of this type, without heartbeats.
    #[must_use]
    pub fn new(socket_type: SocketType) -> Self {
        Self {
            socket_type,
            identity: Bytes::new(),
            heartbeat_interval: None,
            heartbeat_timeout: Duration::from_secs(30),
            limits: Limits::default(),
            messages_from_subscribers: false,
        }
    }
}
