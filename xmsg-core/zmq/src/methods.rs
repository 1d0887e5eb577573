//! Methods that most sockets have, written once: macros that stand in their `impl` blocks.

/// Binding and connecting, and what is known of the connections, for a socket with a field `hub`.
macro_rules! endpoint_methods {
    () => {
        /// Lets peers connect. Returns the endpoint with its actual port. A socket may be bound to many.
        pub async fn bind(&self, endpoint: &$crate::Endpoint) -> $crate::Result<$crate::Endpoint> {
            self.hub.bind(endpoint).await
        }

        /// Lets peers connect to a listener that is bound already. Returns its endpoint.
        #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
        pub fn listen(&self, listener: $crate::link::transport::Listener) -> $crate::Endpoint {
            self.hub.listen(listener)
        }

        /// What happens to the connections from now on.
        #[must_use]
        pub fn events(&self) -> $crate::SocketEvents {
            self.hub.events()
        }

        /// What went over each connection, in numbers.
        #[must_use]
        pub fn connections(&self) -> Vec<$crate::ConnectionStatistics> {
            self.hub.connections()
        }

        /// Connects in the background, again whenever the connection is lost. A socket may connect to many endpoints, and be bound as well.
        pub fn connect(&self, endpoint: $crate::Endpoint) {
            self.hub.connect(endpoint);
        }

        /// Ends the connection to this endpoint, and makes it no more. Returns whether the socket connects to it.
        #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
        pub fn disconnect(&self, endpoint: &$crate::Endpoint) -> bool {
            self.hub.disconnect(endpoint)
        }

        /// Lets no more peers connect to this endpoint, with its actual port, which is free when this returns; connections stay. Returns
        /// whether the socket was bound to it.
        #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
        pub fn unbind(&self, endpoint: &$crate::Endpoint) -> bool {
            self.hub.unbind_from(endpoint)
        }

        /// Waits until there is a connection. [`Closed`](crate::ErrorKind::Closed) if the socket is closed before.
        pub async fn connected(&self) -> $crate::Result<()> {
            self.hub.connected().await
        }

        /// How many peers are connected at this moment.
        #[must_use]
        pub fn peers(&self) -> usize {
            self.hub.links().iter().filter(|link| link.is_connected()).count()
        }

        /// Why there is no connection to a peer that the socket connects to, if that is known; `None` while there is one.
        #[must_use]
        pub fn failure(&self) -> Option<$crate::Error> {
            self.hub.failure()
        }
    };
}

/// Sending to one peer after another, for a socket with the fields `hub` and `balancer`.
macro_rules! balanced_methods {
    () => {
        /// Returns when the message was accepted for one peer; waits while none is connected that has room. Messages are accepted in the order
        /// of the calls: that in which the futures were first polled. Dropping the future has the message accepted whole or not at all.
        ///
        /// One without frames ([`InvalidMessage`](crate::ErrorKind::InvalidMessage)), or above our limits or those of every peer
        /// ([`TooLarge`](crate::ErrorKind::TooLarge)), is refused at once.
        pub async fn send(&self, message: impl Into<$crate::Multipart>) -> $crate::Result<()> {
            self.balancer.send(&self.hub, message.into().frames()).await
        }

        /// The same without waiting: [`Full`](crate::ErrorKind::Full) when no peer has room, or others wait for it.
        pub fn try_send(&self, message: impl Into<$crate::Multipart>) -> $crate::Result<()> {
            self.balancer.try_send(&self.hub, message.into().frames())
        }

        /// Messages that were accepted for a peer whose connection ended before they were sent, and went to others.
        #[must_use]
        pub fn moved(&self) -> u64 {
            self.balancer.moved()
        }

        /// Messages that were accepted and dropped again, because no peer takes them. Each was told as a
        /// [`MessageDropped`](crate::SocketEvent::MessageDropped).
        #[must_use]
        pub fn dropped(&self) -> u64 {
            self.hub.dropped()
        }

        /// Waits until every message that was accepted has been written to a peer; [`Timeout`](crate::ErrorKind::Timeout), with their number, if some
        /// are left after `limit`. Written is not received: what was written to a peer that vanishes may be lost with it.
        pub async fn flush(&self, limit: std::time::Duration) -> $crate::Result<()> {
            self.balancer.flush(&self.hub, limit).await
        }

        /// Takes no more messages and sends what was accepted, for at most `linger`. Returns how many messages were not sent.
        pub async fn close(&self, linger: std::time::Duration) -> usize {
            self.hub.close(linger).await
        }
    };
}

/// What is known of subscribers, for a socket that publishes, with a field `hub`.
macro_rules! subscriber_methods {
    () => {
        /// Waits until some peer wants messages with this topic. [`Closed`](crate::ErrorKind::Closed) if the socket is closed before.
        pub async fn wait_for_subscriber(&self, topic: &[u8]) -> $crate::Result<()> {
            self.hub.wait_until(|| self.has_subscriber(topic)).await
        }

        /// Whether some peer wants messages with this topic.
        #[must_use]
        pub fn has_subscriber(&self, topic: &[u8]) -> bool {
            self.hub.links().iter().any(|link| link.wants(topic))
        }
    };
}

/// What becomes of messages that a socket sends to many, for one with a field `hub`.
macro_rules! fan_out_methods {
    () => {
        /// Messages that were not sent to a peer. It does not take them in time, which was told as
        /// [`PeerTooSlow`](crate::SocketEvent::PeerTooSlow), or does not take such messages, which was told as
        /// [`MessageDropped`](crate::SocketEvent::MessageDropped). Each peer counts.
        #[must_use]
        pub fn dropped(&self) -> u64 {
            self.hub.dropped()
        }

        /// Takes no more messages and sends what was accepted, for at most `linger`. Returns how many messages were not sent.
        pub async fn close(&self, linger: std::time::Duration) -> usize {
            self.hub.close(linger).await
        }
    };
}

/// Receiving one message after another, for a socket with a field `hub`.
macro_rules! receiving_methods {
    () => {
        /// The next message; `None` once the socket is closed and everything received was taken. Dropping the future loses nothing.
        pub async fn recv(&self) -> Option<$crate::Multipart> {
            self.hub.recv().await
        }

        /// The next message if there is one already. [`Closed`](crate::ErrorKind::Closed) once the socket is closed and everything received was taken.
        pub fn try_recv(&self) -> $crate::Result<Option<$crate::Multipart>> {
            self.hub.try_recv()
        }

        /// Waits for a message, and then takes all that are there, at most so many. They are appended to `messages`; returns how many there were: none
        /// once the socket is closed and everything received was taken, or if none were asked for. Dropping the future loses nothing.
        pub async fn recv_many(&self, messages: &mut Vec<$crate::Multipart>, most: usize) -> usize {
            self.hub.recv_many(messages, most).await
        }
    };
}

/// Receiving only the last message of each peer, if the socket is to, for one with a field `hub`.
macro_rules! conflating_methods {
    () => {
        /// Messages that newer ones of the same peer have replaced before they were received
        /// ([`conflate`](crate::SocketOptions::conflate)).
        #[must_use]
        pub fn conflated(&self) -> u64 {
            self.hub.inbox.conflated()
        }
    };
}

/// The same as a stream, for a socket of this type.
macro_rules! stream_of_messages {
    ($socket:ty) => {
        impl futures::Stream for $socket {
            type Item = $crate::Multipart;

            fn poll_next(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<$crate::Multipart>> {
                self.hub.poll_recv(cx)
            }
        }
    };
}

pub(crate) use {
    balanced_methods, conflating_methods, endpoint_methods, fan_out_methods, receiving_methods,
    stream_of_messages, subscriber_methods,
};
