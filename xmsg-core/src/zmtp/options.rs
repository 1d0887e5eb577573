//! What the engine is told, and every limit it keeps.

use std::time::Duration;

use bytes::Bytes;

use super::SocketType;

/// Limits on what one peer may send. Each is checked before memory is reserved; whoever exceeds one loses the
/// connection.
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
        }
    }
}
