//! SUB: receives what its subscriptions match.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use super::hub::{Owner, SocketEvents};
use super::{Endpoint, Multipart, SocketOptions};
use crate::Result;
use crate::zmtp::SocketType;

/// A subscribing socket; a [`Stream`](futures::Stream) of messages. Dropping it closes it.
///
/// Subscriptions are prefixes of bytes of the first frame, and are counted: one taken twice has to be given back
/// twice. A receiver that is too slow makes its peers wait; what happens then is their choice.
#[derive(Debug)]
pub struct Subscriber {
    hub: Owner,
    /// What is left of the batch that was taken last.
    batch: Bytes,
}

impl Subscriber {
    /// A subscriber without connections or subscriptions.
    #[must_use]
    pub fn new(options: SocketOptions) -> Self {
        Self { hub: Owner::new(SocketType::Sub, options), batch: Bytes::new() }
    }

    /// Connects in the background, again whenever the connection is lost, and subscribes again then.
    pub fn connect(&self, endpoint: Endpoint) {
        self.hub.connect(endpoint);
    }

    /// Lets publishers connect. Returns the endpoint with its actual port.
    pub async fn bind(&self, endpoint: &Endpoint) -> Result<Endpoint> {
        self.hub.bind(endpoint).await
    }

    /// Asks for messages whose first frame starts with `prefix`; the empty prefix asks for all.
    pub fn subscribe(&self, prefix: impl Into<Bytes>) {
        self.hub.subscribe(&prefix.into(), true);
    }

    /// Takes a subscription back. What is on its way still arrives.
    pub fn unsubscribe(&self, prefix: impl Into<Bytes>) {
        self.hub.subscribe(&prefix.into(), false);
    }

    /// The next message; `None` once the socket is closed and everything received was taken. Dropping the
    /// future loses nothing.
    pub async fn recv(&mut self) -> Option<Multipart> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// [`recv`](Self::recv) for hand-written futures.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Multipart>> {
        loop {
            if let Some(message) = Multipart::take(&mut self.batch) {
                return Poll::Ready(Some(message));
            }
            match self.poll_recv_batch(cx) {
                Poll::Ready(Some(batch)) => self.batch = batch,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The next messages that came in together, one or more, as they were on the wire: for [`Frames`](crate::zmtp::Frames), or to be passed
    /// on as they are. `None` once the socket is closed and everything received was taken. Dropping the future loses nothing.
    pub async fn recv_batch(&mut self) -> Option<Bytes> {
        std::future::poll_fn(|cx| self.poll_recv_batch(cx)).await
    }

    /// [`recv_batch`](Self::recv_batch) for hand-written futures.
    pub fn poll_recv_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        // Taken also if it is empty: a slab is used again when nobody holds a part of it.
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() {
            return Poll::Ready(Some(batch));
        }
        drop(batch);
        self.hub.inbox.poll_batch(cx).map(|batch| batch.map(|(wire, _)| wire))
    }

    /// The same, and how much memory a slice of them keeps alive, at most.
    pub(crate) fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Bytes, usize)>> {
        if self.batch.is_empty() {
            // A slab is used again when nobody holds a part of it.
            self.batch = Bytes::new();
            return self.hub.inbox.poll_batch(cx);
        }
        Poll::Ready(Some((std::mem::take(&mut self.batch), usize::MAX)))
    }

    /// Waits until there is a connection, and the subscriptions are on their way.
    pub async fn connected(&self) {
        self.hub.connected().await;
    }

    /// What happens to the connections from now on.
    #[must_use]
    pub fn events(&self) -> SocketEvents {
        self.hub.events()
    }

    /// Ends every connection.
    pub async fn close(&self) {
        self.hub.close(Duration::ZERO).await;
    }
}

impl futures::Stream for Subscriber {
    type Item = Multipart;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Multipart>> {
        self.poll_recv(cx)
    }
}
