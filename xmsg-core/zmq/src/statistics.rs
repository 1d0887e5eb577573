//! Statistics for each connection of a socket.

use std::sync::atomic::Ordering;

use crate::Amount;
use crate::link::Link;

/// Statistics of one connection or, for a peer that the socket connects to, of all connections to that
/// endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionStatistics {
    /// The address of the peer, or the endpoint that the socket connects to.
    pub peer: String,
    /// Whether the socket connects to the peer. If not, the peer has connected to the socket.
    pub is_connecting: bool,
    /// Whether there is a connection now.
    pub is_connected: bool,
    /// Messages that were read. `bytes` includes the headers of frames.
    pub received: Amount,
    /// Messages that were written, and the bytes that were written.
    pub written: Amount,
    /// Messages that wait to be written, and the bytes of memory that they hold.
    pub queued: Amount,
    /// The number of messages that were dropped because the peer [does not take them in
    /// time](crate::SocketOptions::overflow).
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
            written: link.send_queue.written(),
            queued: link.send_queue.queued(),
            dropped: link.overflowed.total(),
        }
    }
}
