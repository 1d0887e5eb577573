//! SUB: receives what its subscriptions match.

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use crate::events::{EventChannel, SocketEvents};
use crate::hub::{Hub, Owner};
use crate::methods::{conflating_methods, endpoint_methods};
use crate::options::{Conflates, Receives};
use crate::subscriptions::Subscribing;
use crate::{Error, Result};
use crate::{Multipart, SocketOptions};
use xmsg_zmtp::SocketType;

/// A subscribing socket; a [`Stream`](futures::Stream) of messages. Dropping it closes it.
///
/// Subscriptions are prefixes of bytes of the first frame, and are counted: one taken twice has to be given back
/// twice. A receiver that is too slow makes its peers wait; what happens then is their choice.
#[derive(Debug)]
pub struct Subscriber {
    hub: Owner,
    role: Arc<Subscribing>,
    /// What is left of the batch that was taken last.
    batch: Bytes,
}

impl Receives for Subscriber {}

impl Conflates for Subscriber {}

impl Subscriber {
    /// A subscriber without connections or subscriptions.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        let options = options.into_settings();
        let role = Subscribing::new(SocketType::Sub, &options);
        Self { hub: Owner::new(role.clone(), options), role, batch: Bytes::new() }
    }

    /// A subscriber whose events are told to this channel, too.
    pub fn with_parent(options: SocketOptions<Self>, parent: EventChannel) -> Self {
        let options = options.into_settings();
        let role = Subscribing::new(SocketType::Sub, &options);
        Self { hub: Owner::with_parent(role.clone(), options, parent), role, batch: Bytes::new() }
    }

    endpoint_methods!();
    conflating_methods!();

    /// Asks for messages whose first frame starts with `prefix`; the empty prefix asks for all. An error of kind
    /// [`TooLarge`](crate::ErrorKind::TooLarge) says that the prefix is too long, or that there are too many: for this socket
    /// ([`SocketOptions::limits`]), or for a peer, as it has told. Of a peer that connects later, that is told as an
    /// [event](Self::events).
    pub fn subscribe(&self, prefix: impl Into<Bytes>) -> Result<()> {
        self.role.subscribe(&self.hub, &prefix.into(), true)
    }

    /// The same, and whoever connects later is told of it after all others: a peer that knows it knows those.
    pub fn subscribe_last(&self, prefix: impl Into<Bytes>) -> Result<()> {
        self.role.subscribe_last(&self.hub, &prefix.into())
    }

    /// Why a peer that is connected does not take one of the subscriptions, if that is so.
    #[must_use]
    pub fn refused(&self) -> Option<Error> {
        Subscribing::refused(&self.hub)
    }

    /// Takes a subscription back. What is on its way still arrives.
    pub fn unsubscribe(&self, prefix: impl Into<Bytes>) {
        // Less is never too much.
        let _ = self.role.subscribe(&self.hub, &prefix.into(), false);
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

    /// The next messages that came in together, one or more, as they were on the wire: for [`Frames`](xmsg_zmtp::Frames), or to be passed
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
    pub fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Bytes, usize)>> {
        if self.batch.is_empty() {
            // A slab is used again when nobody holds a part of it.
            self.batch = Bytes::new();
            return self.hub.inbox.poll_batch(cx);
        }
        Poll::Ready(Some((std::mem::take(&mut self.batch), usize::MAX)))
    }

    /// Whether there is a connection at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.hub.is_connected()
    }

    /// Ends every connection, in the background. What was received can still be taken.
    pub fn stop(&self) {
        self.hub.abort();
    }

    /// Puts batches that were taken back to the front, in their order.
    pub fn put_back(&self, batches: impl DoubleEndedIterator<Item = Bytes>) {
        self.hub.inbox.put_back(batches);
    }

    /// A view of what waits to be received, for as long as the socket exists.
    pub fn unreceived(&self) -> Unreceived {
        Unreceived(Arc::downgrade(&self.hub))
    }

    /// Ends every connection.
    pub async fn close(&self) {
        self.hub.close(Duration::ZERO).await;
    }
}

/// A view of what waits in a subscriber to be received.
#[derive(Clone, Debug)]
pub struct Unreceived(Weak<Hub>);

impl Unreceived {
    /// Whole messages, as they were on the wire; none when the socket is gone.
    #[must_use]
    pub fn batches(&self) -> Vec<Bytes> {
        self.0.upgrade().map(|hub| hub.inbox.waiting()).unwrap_or_default()
    }

    /// Has the socket receive nothing more.
    pub fn stop(&self) {
        if let Some(hub) = self.0.upgrade() {
            hub.abort();
        }
    }

    /// Whether the socket is still there.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// What happens to the connections of the socket from now on; `None` when it is gone.
    #[must_use]
    pub fn events(&self) -> Option<SocketEvents> {
        self.0.upgrade().map(|hub| hub.events())
    }
}

impl futures::Stream for Subscriber {
    type Item = Multipart;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Multipart>> {
        self.poll_recv(cx)
    }
}
