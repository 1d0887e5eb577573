//! Methods that most sockets have, written once as macros that are used in their `impl` blocks.

/// Methods for binding, connecting, and information about connections, for a socket with a field `hub`.
macro_rules! endpoint_methods {
    () => {
        /// Binds the socket, so that peers can connect. Returns the endpoint with its actual port. A socket
        /// may be bound to many endpoints.
        ///
        /// # Errors
        ///
        /// The endpoint cannot be bound, or the identity of the socket is invalid.
        pub async fn bind(&self, endpoint: &$crate::Endpoint) -> $crate::Result<$crate::Endpoint> {
            self.hub.bind(endpoint).await
        }

        /// Lets peers connect to a listener that is bound already. Returns its endpoint.
        #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
        pub fn listen(&self, listener: $crate::link::transport::Listener) -> $crate::Endpoint {
            self.hub.listen(listener)
        }

        /// Returns a stream of events about the connections from now on.
        #[must_use]
        pub fn events(&self) -> $crate::SocketEvents {
            self.hub.events()
        }

        /// Returns statistics for each connection.
        #[must_use]
        pub fn connections(&self) -> Vec<$crate::ConnectionStatistics> {
            self.hub.connections()
        }

        /// Connects in the background, and reconnects whenever the connection is lost. A socket may connect
        /// to many endpoints, and be bound as well.
        pub fn connect(&self, endpoint: $crate::Endpoint) {
            self.hub.connect(endpoint);
        }

        /// Ends the connection to this endpoint, and does not reconnect. Returns whether the socket was
        /// connecting to it.
        #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
        pub fn disconnect(&self, endpoint: &$crate::Endpoint) -> bool {
            self.hub.disconnect(endpoint)
        }

        /// Stops accepting connections at this endpoint, which is given with its actual port and is free when
        /// this returns. Existing connections stay. Returns whether the socket was bound to it.
        #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
        pub fn unbind(&self, endpoint: &$crate::Endpoint) -> bool {
            self.hub.unbind_from(endpoint)
        }

        /// Returns the number of messages that were received and lost because their connection was ended
        /// while no memory was left for them. See
        /// [`ReceivedLost`](crate::SocketEvent::ReceivedLost).
        #[must_use]
        pub fn lost(&self) -> u64 {
            self.hub.lost()
        }

        /// Waits until there is a connection.
        ///
        /// # Errors
        ///
        /// [`Closed`](crate::ErrorKind::Closed) if the socket is closed before.
        pub async fn connected(&self) -> $crate::Result<()> {
            self.hub.connected().await
        }

        /// Returns the number of peers that are connected at the moment.
        #[must_use]
        pub fn peers(&self) -> usize {
            self.hub.links().iter().filter(|link| link.is_connected()).count()
        }

        /// Returns why there is no connection to a peer that the socket connects to, if that is known, and
        /// `None` while there is one.
        #[must_use]
        pub fn failure(&self) -> Option<$crate::Error> {
            self.hub.failure()
        }
    };
}

/// Methods for sending in round robin, for a socket with the fields `hub` and `balancer`.
macro_rules! balanced_methods {
    () => {
        /// Sends a message to one peer. Returns when it was accepted for a peer; waits while no connected
        /// peer has room. Messages are accepted in the order of the calls, which is the order in which the
        /// futures were first polled.
        ///
        /// Cancel safe: if the future is dropped, the message was accepted whole or not at all.
        ///
        /// # Errors
        ///
        /// A message without frames ([`InvalidMessage`](crate::ErrorKind::InvalidMessage)), or one that
        /// exceeds our limits or those of every peer ([`TooLarge`](crate::ErrorKind::TooLarge)), is refused
        /// at once.
        pub async fn send(&self, message: impl Into<$crate::Multipart>) -> $crate::Result<()> {
            self.balancer.send(&self.hub, message.into().frames()).await
        }

        /// Sends a message to one peer without waiting.
        ///
        /// # Errors
        ///
        /// [`Full`](crate::ErrorKind::Full) when no peer has room, or other messages wait for it; otherwise
        /// as for [`send`](Self::send).
        pub fn try_send(&self, message: impl Into<$crate::Multipart>) -> $crate::Result<()> {
            self.balancer.try_send(&self.hub, message.into().frames())
        }

        /// Returns whether a message is within the limits of this socket. If such a message is
        /// [too large](crate::ErrorKind::TooLarge), it is for the peers that are connected, and another one
        /// may accept it.
        #[must_use]
        pub fn allows(&self, message: &$crate::Multipart) -> bool {
            let frames = message.frames();
            self.hub.options.send_limits().allow(xmsg_zmtp::encoded_len(frames), frames.len())
        }

        /// Returns the number of messages that were accepted for a peer whose connection ended before they
        /// were sent, and that went to others.
        #[must_use]
        pub fn moved(&self) -> u64 {
            self.balancer.moved()
        }

        /// Returns the number of messages that were accepted and then dropped, because no peer accepts them.
        /// Each was reported as a [`MessageDropped`](crate::SocketEvent::MessageDropped).
        #[must_use]
        pub fn dropped(&self) -> u64 {
            self.hub.dropped()
        }

        /// Waits until every message that was accepted has been written to a peer. Written does not mean
        /// received: what was written to a peer that vanishes may be lost with it.
        ///
        /// # Errors
        ///
        /// [`Timeout`](crate::ErrorKind::Timeout), with the number of messages that are left, if not all were
        /// written within `limit`.
        pub async fn flush(&self, limit: std::time::Duration) -> $crate::Result<()> {
            self.balancer.flush(&self.hub, limit).await
        }

        /// Accepts no more messages, and sends what was accepted for at most `linger`. Returns how many
        /// messages were not sent.
        pub async fn close(&self, linger: std::time::Duration) -> usize {
            self.hub.close(linger).await
        }
    };
}

/// Methods about subscribers, for a publishing socket with a field `hub`.
macro_rules! subscriber_methods {
    () => {
        /// Waits until a peer has subscribed to a prefix of this topic.
        ///
        /// # Errors
        ///
        /// [`Closed`](crate::ErrorKind::Closed) if the socket is closed before.
        pub async fn wait_for_subscriber(&self, topic: &[u8]) -> $crate::Result<()> {
            self.hub.wait_until(|| self.has_subscriber(topic)).await
        }

        /// Returns whether a peer has subscribed to a prefix of this topic.
        #[must_use]
        pub fn has_subscriber(&self, topic: &[u8]) -> bool {
            self.hub.links().iter().any(|link| link.wants(topic))
        }
    };
}

/// Methods about messages that a socket sends to many peers, for one with a field `hub`.
macro_rules! fan_out_methods {
    () => {
        /// Returns the number of messages that were not sent to a peer. Either it does not take them in time,
        /// which was reported as [`PeerTooSlow`](crate::SocketEvent::PeerTooSlow), or it does not accept such
        /// messages, which was reported as [`MessageDropped`](crate::SocketEvent::MessageDropped). A message
        /// counts once for each such peer.
        #[must_use]
        pub fn dropped(&self) -> u64 {
            self.hub.dropped()
        }

        /// Accepts no more messages, and sends what was accepted for at most `linger`. Returns how many
        /// messages were not sent.
        pub async fn close(&self, linger: std::time::Duration) -> usize {
            self.hub.close(linger).await
        }
    };
}

/// Methods for receiving messages, for a socket with a field `hub`.
macro_rules! receiving_methods {
    () => {
        /// Receives the next message. Returns `None` once the socket is closed and everything received was
        /// taken. Cancel safe.
        pub async fn recv(&self) -> Option<$crate::Multipart> {
            self.hub.recv().await
        }

        /// Receives the next message if there is one already.
        ///
        /// # Errors
        ///
        /// [`Closed`](crate::ErrorKind::Closed) once the socket is closed and everything received was taken.
        pub fn try_recv(&self) -> $crate::Result<Option<$crate::Multipart>> {
            self.hub.try_recv()
        }

        /// Waits for a message, and then takes all that are there, at most `most`. They are appended to
        /// `messages`. Returns how many there were: 0 once the socket is closed and everything received was
        /// taken, or if `most` is 0. Cancel safe.
        pub async fn recv_many(&self, messages: &mut Vec<$crate::Multipart>, most: usize) -> usize {
            self.hub.recv_many(messages, most).await
        }
    };
}

/// Methods of sockets that can keep only the last message of each peer, for one with a field `hub`.
macro_rules! conflating_methods {
    () => {
        /// Returns the number of messages that were replaced by newer ones of the same peer before they were
        /// received ([`conflate`](crate::SocketOptions::conflate)).
        #[must_use]
        pub fn conflated(&self) -> u64 {
            self.hub.receive_queue.conflated()
        }
    };
}

/// Implements `Stream` of the received messages for a socket of this type.
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
