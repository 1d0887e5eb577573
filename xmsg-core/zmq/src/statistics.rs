//! What goes over each connection of a socket, in numbers.

use std::sync::atomic::Ordering;

use crate::Amount;
use crate::link::Link;

/// What went over one connection, or, to a peer that the socket connects to, over all of them to that endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionStatistics {
    /// The other end: its address, or the endpoint that the socket connects to.
    pub peer: String,
    /// Whether the socket connects to it; if not, it has connected to the socket.
    pub is_connecting: bool,
    /// Whether there is a connection now.
    pub is_connected: bool,
    /// Messages that were read, with the bytes of their frames and headers.
    pub received: Amount,
    /// Messages that were written, and their bytes.
    pub written: Amount,
    /// Messages that wait to be written, and the bytes that they hold.
    pub queued: Amount,
    /// Messages that were dropped because the peer [does not take them in time](crate::SocketOptions::overflow).
    pub dropped: u64,
}

impl ConnectionStatistics {
    pub(crate) fn of(link: &Link) -> Self {
        let received = &link.received;
        Self {
            peer: link.state().name.to_string(),
            is_connecting: link.connecting,
            is_connected: link.is_connected(),
            received: Amount {
                messages: received.messages.load(Ordering::Relaxed),
                bytes: received.bytes.load(Ordering::Relaxed),
            },
            written: link.outbox.written(),
            queued: link.outbox.queued(),
            dropped: link.overflowed.total(),
        }
    }
}
