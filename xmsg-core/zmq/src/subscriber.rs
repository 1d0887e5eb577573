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

/// A subscribing socket. It is a [`Stream`](futures::Stream) of messages. Dropping it closes it.
///
/// A subscription is a prefix of the first frame. Subscriptions are counted: what was subscribed to twice has
/// to be cancelled twice. If the receiver is too slow, its peers have to wait, or drop messages by their own
/// policy.
#[derive(Debug)]
pub struct Subscriber {
    hub: Owner,
    role: Arc<Subscribing>,
    /// The rest of the batch that was taken last.
    batch: Bytes,
}

impl Receives for Subscriber {}

impl Conflates for Subscriber {}

impl Subscriber {
    /// Creates a subscriber without connections or subscriptions.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        let options = options.into_settings();
        let role = Subscribing::new(SocketType::Sub, &options);
        Self { hub: Owner::new(role.clone(), options), role, batch: Bytes::new() }
    }

    /// Creates a subscriber whose events are also sent to `parent`.
    pub fn with_parent(options: SocketOptions<Self>, parent: EventChannel) -> Self {
        let options = options.into_settings();
        let role = Subscribing::new(SocketType::Sub, &options);
        Self { hub: Owner::with_parent(role.clone(), options, parent), role, batch: Bytes::new() }
    }

    endpoint_methods!();
    conflating_methods!();

    /// Subscribes to messages whose first frame starts with `prefix`; the empty prefix matches all messages.
    ///
    /// # Errors
    ///
    /// [`TooLarge`](crate::ErrorKind::TooLarge) if the prefix is too long, or there are too many
    /// subscriptions: for this socket ([`SocketOptions::limits`]), or for a peer that the socket connects to,
    /// as that has announced. If a peer that connects later does not accept the subscription, that is
    /// reported as an [event](Self::events).
    pub fn subscribe(&self, prefix: impl Into<Bytes>) -> Result<()> {
        self.role.subscribe(&self.hub, &prefix.into(), true)
    }

    /// Subscribes like [`subscribe`](Self::subscribe) to a prefix that is sent to new peers after all others.
    /// So a peer that has received it has received the others, too.
    ///
    /// # Errors
    ///
    /// The same as for [`subscribe`](Self::subscribe).
    pub fn subscribe_last(&self, prefix: impl Into<Bytes>) -> Result<()> {
        self.role.subscribe_last(&self.hub, &prefix.into())
    }

    /// Returns why a connected peer does not accept one of the subscriptions, if that is so.
    #[must_use]
    pub fn refused(&self) -> Option<Error> {
        Subscribing::refused(&self.hub)
    }

    /// Cancels a subscription. Messages that are on their way still arrive.
    pub fn unsubscribe(&self, prefix: impl Into<Bytes>) {
        // Fewer subscriptions cannot exceed a limit.
        let _ = self.role.subscribe(&self.hub, &prefix.into(), false);
    }

    /// Receives the next message. Returns `None` once the socket is closed and everything received was taken.
    /// Cancel safe.
    pub async fn recv(&mut self) -> Option<Multipart> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Polls for the next message, for hand-written futures. See [`recv`](Self::recv).
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

    /// Receives the next messages that arrived together, one or more, in their encoding. Read them with
    /// [`Frames`](xmsg_zmtp::Frames), or forward them as they are. Returns `None` once the socket is closed
    /// and everything received was taken. Cancel safe.
    pub async fn recv_batch(&mut self) -> Option<Bytes> {
        std::future::poll_fn(|cx| self.poll_recv_batch(cx)).await
    }

    /// Polls for the next batch, for hand-written futures. See [`recv_batch`](Self::recv_batch).
    pub fn poll_recv_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        // The batch is taken even if it is empty, because a slab is reused when no part of it is referenced.
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() {
            return Poll::Ready(Some(batch));
        }
        drop(batch);
        self.hub.receive_queue.poll_batch(cx).map(|batch| batch.map(|(wire, _)| wire))
    }

    /// Polls for the next batch, like [`poll_recv_batch`](Self::poll_recv_batch). Also returns how much
    /// memory in bytes a slice of the batch keeps alive at most.
    pub fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Bytes, usize)>> {
        if self.batch.is_empty() {
            // A slab is reused when no part of it is referenced.
            self.batch = Bytes::new();
            return self.hub.receive_queue.poll_batch(cx);
        }
        // The rest of a batch that was begun: how much memory its slab has is not known any more.
        Poll::Ready(Some((std::mem::take(&mut self.batch), usize::MAX)))
    }

    /// Returns whether there is a connection at the moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.hub.is_connected()
    }

    /// Ends every connection, in the background. What was received can still be taken.
    pub fn stop(&self) {
        self.hub.abort();
    }

    /// Puts batches that were taken back to the front, in order.
    pub fn put_back(&self, batches: impl DoubleEndedIterator<Item = Bytes>) {
        self.hub.receive_queue.put_back(batches);
    }

    /// Returns a view of what waits to be received. It does not keep the socket open.
    pub fn unreceived(&self) -> Unreceived {
        Unreceived(Arc::downgrade(&self.hub))
    }

    /// Closes the socket and ends every connection.
    pub async fn close(&self) {
        self.hub.close(Duration::ZERO).await;
    }
}

/// A view of the messages that wait in a subscriber to be received.
#[derive(Clone, Debug)]
pub struct Unreceived(Weak<Hub>);

impl Unreceived {
    /// Returns whole messages in their encoding, or none when the socket is gone.
    #[must_use]
    pub fn batches(&self) -> Vec<Bytes> {
        self.0.upgrade().map(|hub| hub.receive_queue.waiting()).unwrap_or_default()
    }

    /// Stops receiving.
    pub fn stop(&self) {
        if let Some(hub) = self.0.upgrade() {
            hub.abort();
        }
    }

    /// Returns whether the socket still exists.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Returns a stream of events about the connections of the socket from now on, or `None` when it is gone.
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
