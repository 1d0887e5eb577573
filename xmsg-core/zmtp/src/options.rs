//! What the engine is told, and every limit it keeps.

use std::time::Duration;

use bytes::Bytes;

use super::{Limited, PeerLimits, SocketType, Violation};

/// Limits on what one peer may send. Each is checked before memory is reserved; whoever exceeds one loses the
/// connection. Peers of ZMTP 3 are told the first two, or those of subscriptions, in the handshake: see
/// [`PeerLimits`](super::PeerLimits).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one message with all its frames and their headers. Default 64 MiB.
    pub message_size: usize,
    /// Frames of one message. Default 1024.
    pub frames: usize,
    /// Bytes of one command, and of the property list of a handshake. Default 64 KiB.
    pub command_size: usize,
    /// Bytes of one subscription's prefix. Default 4096.
    pub subscription_len: usize,
    /// Subscriptions of one peer. Default 1,000,000.
    pub subscriptions: usize,
    /// Bytes of all prefixes that one peer subscribes to. Default 256 MiB.
    pub subscription_bytes: usize,
    /// How long the handshake may take, from the first byte of the connection. Default 10 s.
    pub handshake_timeout: Duration,
}

impl Limits {
    /// What is wrong with a peer that has so many subscriptions, with so many bytes.
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

/// How large one message may be.
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
    /// Bytes on the wire, with all frames and their headers: see [`encoded_len`](super::encoded_len).
    pub size: usize,
    /// Frames.
    pub frames: usize,
}

impl MessageLimits {
    /// Whether a message of so many bytes on the wire, in so many frames, may go. One without frames may not.
    #[inline]
    #[must_use]
    pub fn allow(self, size: usize, frames: usize) -> bool {
        // No frame at all wraps round to more than any limit.
        size <= self.size && frames.wrapping_sub(1) < self.frames
    }

    /// These, and those of this peer: the smaller ones.
    #[must_use]
    pub fn within(self, peer: &PeerLimits) -> Self {
        Self {
            size: peer.message_size.map_or(self.size, |size| size.min(self.size)),
            frames: peer.frames.map_or(self.frames, |frames| frames.min(self.frames)),
        }
    }

    /// Whether everything that these allow is allowed by `other`.
    #[must_use]
    pub fn are_within(self, other: Self) -> bool {
        self.size <= other.size && self.frames <= other.frames
    }
}

impl Default for MessageLimits {
    /// Any size, any number of frames.
    fn default() -> Self {
        Self { size: usize::MAX, frames: usize::MAX }
    }
}

impl From<&Limits> for MessageLimits {
    fn from(limits: &Limits) -> Self {
        Self { size: limits.message_size, frames: limits.frames }
    }
}

/// What one end of a connection is.
#[derive(Clone, Debug)]
pub struct Options {
    /// The type of our socket.
    pub socket_type: SocketType,
    /// Our identity, announced by DEALER, REQ and ROUTER sockets. At most 255 bytes; empty: none.
    pub identity: Bytes,
    /// Send a PING when nothing was heard for this long. `None` or no time at all: never. Peers below ZMTP 3.1 get none.
    pub heartbeat_interval: Option<Duration>,
    /// End the connection when nothing was heard for this long although a PING was sent.
    pub heartbeat_timeout: Duration,
    /// What the peer may send.
    pub limits: Limits,
    /// Whether what subscribers send to an XPUB socket, besides subscriptions, is wanted: as
    /// [`FromSubscriber`](super::Event::FromSubscriber). Default no.
    pub messages_from_subscribers: bool,
}

impl Options {
    /// Options with the documented defaults for a socket of this type; no heartbeats.
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
