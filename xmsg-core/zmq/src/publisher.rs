//! PUB: sends every message to every subscriber.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use xmsg_zmtp::encoded_len;

use crate::deadline::Deadline;
use crate::events::EventChannel;
use crate::fan_out::{FanOut, Recipients};
use crate::hub::Owner;
use crate::link::Link;
use crate::link::send_queue::{Frame, Redeliver};
use crate::methods::{endpoint_methods, fan_out_methods, subscriber_methods};
use crate::options::{FansOut, Sends};
use crate::publishing::{Bounds, Publishing};
use crate::role::Role;
use crate::{Amount, Multipart, SocketOptions};
use crate::{Error, ErrorKind, Result};

/// A publishing socket. Clones share the socket; dropping the last one closes it.
///
/// It sends everything to a peer that it *connects* to, such as a proxy, unless [`SocketOptions::filter`] is
/// set. What was accepted while the connection is being re-established waits. A peer that connects to a
/// *bound* publisher gets what it subscribed to. If the queue of such a peer is full, messages are dropped
/// for it, so that a slow subscriber does not stop the others, unless [`SocketOptions::overflow`] says
/// otherwise.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
/// use xmsg_zmq::{Publisher, SocketOptions, Subscriber};
/// let publisher = Publisher::new(SocketOptions::default());
/// let endpoint = publisher.bind(&"tcp://127.0.0.1:0".parse()?).await?;
/// let mut subscriber = Subscriber::new(SocketOptions::default());
/// subscriber.subscribe("greet")?;
/// subscriber.connect(endpoint);
/// publisher.wait_for_subscriber(b"greet").await?;
/// publisher.publish(["greeting", "hello"]).await?;
/// assert_eq!(subscriber.recv().await.unwrap().frames()[1], "hello");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Publisher {
    hub: Arc<Owner>,
}

impl Sends for Publisher {}

impl FansOut for Publisher {}

impl Publisher {
    /// Creates a publisher without connections.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        Self { hub: Arc::new(Owner::new(role(&options), options.into_settings())) }
    }

    /// Creates a publisher whose events are also sent to `parent`.
    pub fn with_parent(options: SocketOptions<Self>, parent: EventChannel) -> Self {
        Self { hub: Arc::new(Owner::with_parent(role(&options), options.into_settings(), parent)) }
    }

    endpoint_methods!();
    subscriber_methods!();
    fan_out_methods!();

    /// Publishes a message. Returns when every connection that it is for has accepted it or, by its
    /// [policy](SocketOptions::overflow), dropped it. It waits while a connection whose policy is to wait is
    /// at its high-water mark. Every connection accepts messages in the order of the calls, which is the
    /// order in which the futures were first polled. Dropping the future withdraws the message from those
    /// connections that have not accepted it yet; the others have it whole.
    ///
    /// # Errors
    ///
    /// A message without frames ([`InvalidMessage`](crate::ErrorKind::InvalidMessage)) is refused at once. So
    /// is one that exceeds our limits, or those that a peer that we connect to has announced
    /// ([`TooLarge`](crate::ErrorKind::TooLarge)). A peer that has connected to us and has lower limits does
    /// not get the message, which is [counted](Self::dropped) and reported as an [event](Self::events).
    pub async fn publish(&self, message: impl Into<Multipart>) -> Result<()> {
        self.publish_frames(message.into().frames()).await
    }

    /// Publishes a message like [`publish`](Self::publish), with frames that the caller keeps. Short ones are
    /// copied to the send queues.
    ///
    /// # Errors
    ///
    /// The same as for [`publish`](Self::publish).
    pub async fn publish_frames(&self, frames: &[impl Frame]) -> Result<()> {
        self.fan_out().send(frames).await
    }

    /// Publishes a message without waiting.
    ///
    /// # Errors
    ///
    /// [`Full`](crate::ErrorKind::Full) when a connection for which it would have to wait has no room, or
    /// other messages wait for it. No connection gets the message then. Otherwise the same as for
    /// [`publish`](Self::publish).
    pub fn try_publish(&self, message: impl Into<Multipart>) -> Result<()> {
        self.try_publish_frames(message.into().frames())
    }

    /// Publishes a message like [`try_publish`](Self::try_publish), with frames that the caller keeps.
    ///
    /// # Errors
    ///
    /// The same as for [`try_publish`](Self::try_publish).
    pub fn try_publish_frames(&self, frames: &[impl Frame]) -> Result<()> {
        self.fan_out().try_send(frames)
    }

    /// Publishes a message like [`publish`](Self::publish), without the pause that a busy publisher makes now
    /// and then. Nothing is waited for after the message was accepted, so if the future is dropped while
    /// pending, the message was not accepted by every connection.
    ///
    /// # Errors
    ///
    /// The same as for [`publish`](Self::publish).
    pub async fn publish_promptly(&self, message: impl Into<Multipart>) -> Result<()> {
        let message = message.into();
        let frames = message.frames();
        let fan_out = self.fan_out();
        let begun = fan_out.begin(fan_out.check(frames)?, frames)?;
        begun.only_waiting().finish(fan_out, frames).await
    }

    /// Retains what is written until it [has arrived](Self::arrived). If the connection breaks before, it is
    /// sent again in the form that `again` returns. It has to be called after connecting to the only peer,
    /// and before anything is published. The result is notified when it is time to ask for a confirmation,
    /// which is done with messages that are [published in any case](Self::publish_past_mark). Returns `None`
    /// if the publisher does not connect to a peer.
    pub fn retain(&self, again: Redeliver) -> Option<Arc<Notify>> {
        self.hub.links().first().map(|link| link.send_queue.retain(again))
    }

    /// Returns whether written messages are retained. See [`retain`](Self::retain).
    #[must_use]
    pub fn retains(&self) -> bool {
        self.hub.links().first().is_some_and(|link| link.send_queue.retains())
    }

    /// Notes that messages up to this position among all accepted messages have arrived.
    pub fn arrived(&self, place: u64) {
        for link in self.hub.links().iter() {
            link.send_queue.arrived(place);
        }
    }

    /// Publishes a message without waiting, even if there is no room.
    ///
    /// # Errors
    ///
    /// The same as for [`publish`](Self::publish).
    pub fn publish_past_mark(&self, message: impl Into<Multipart>) -> Result<()> {
        let message = message.into();
        let frames = message.frames();
        let fan_out = self.fan_out();
        fan_out.check(frames)?;
        for link in self.hub.links().iter() {
            let pushed = link.send_queue.push_past_mark(frames);
            pushed.or_else(|refused| fan_out.judge_refusal(link, refused, frames))?;
        }
        Ok(())
    }

    /// Returns a [`Sink`](futures::Sink) that publishes messages. Sending waits while a connection is at its
    /// high-water mark. Flushing waits until the last message is accepted, and [`close`](Self::close) until
    /// all of them are written.
    pub fn sink(&self) -> impl futures::Sink<Multipart, Error = Error> + Send + use<> {
        futures::sink::unfold(self.clone(), |publisher, message: Multipart| {
            // This is done now, and not when the sink is polled next: another call may come before that.
            let frames = message.frames();
            let fan_out = publisher.fan_out();
            let begun = fan_out.check(frames).and_then(|topic| fan_out.begin(topic, frames));
            async move {
                begun?.finish(publisher.fan_out(), message.frames()).await?;
                Ok(publisher)
            }
        })
    }

    /// Returns whether there is a connection at the moment. For about a second after a reconnection, messages
    /// are held back, so that subscribers can come back first ([`SocketOptions::reconnect_max`]).
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.hub.is_connected()
    }

    /// Returns what was accepted and is not yet written. `bytes` is memory.
    #[must_use]
    pub fn queued(&self) -> Amount {
        self.hub.links().iter().fold(Amount::default(), |sum, link| sum + link.send_queue.queued())
    }

    /// Waits until every message that was accepted has been written to all peers that it is for. Written does
    /// not mean received: what was written to a peer that vanishes may be lost with it.
    ///
    /// # Errors
    ///
    /// [`Timeout`](crate::ErrorKind::Timeout), with the number of messages that are left, if not all were
    /// written within `limit`.
    pub async fn flush(&self, limit: Duration) -> Result<()> {
        let written = async {
            while self.queued().messages > 0 {
                let links: Vec<_> = self.hub.links().iter().cloned().collect();
                futures::future::join_all(links.iter().map(|link| link.send_queue.flushed())).await;
            }
        };
        let late = |_| {
            let left = self.queued().messages;
            Error::new(ErrorKind::Timeout, format!("{left} messages were not written within {limit:?}"))
        };
        Deadline::after(limit).limit(written).await.map_err(late)
    }

    /// Returns how many messages a publisher with one connection has accepted since the beginning.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.hub.links().iter().map(|link| link.send_queue.accepted()).sum()
    }

    /// Returns how many of the accepted messages were written or discarded.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.hub.links().iter().map(|link| link.send_queue.gone()).sum()
    }

    /// Returns how many of the accepted messages were written at least once, or discarded. Some of them may
    /// be queued again.
    #[must_use]
    pub fn written_once(&self) -> u64 {
        self.hub.links().iter().map(|link| link.send_queue.written_or_discarded()).sum()
    }

    /// Returns how many messages had been written or discarded when a connection broke last.
    #[must_use]
    pub fn broken_at(&self) -> u64 {
        self.hub.links().iter().map(|link| link.send_queue.broken_at()).sum()
    }

    /// Returns the number of a connection over which such a message would go now: the one that has existed
    /// for longest. A peer that has connected to us and does not accept the message does not count. Numbers
    /// are not used again.
    #[must_use]
    pub fn oldest_recipient(&self, frames: &[impl Frame]) -> Option<u64> {
        let links = self.hub.links();
        links.iter().find(|link| self.would_go_to(link, frames)).map(|link| link.id)
    }

    /// Returns whether such a message would go over the connection with this
    /// [number](Self::oldest_recipient) now.
    #[must_use]
    pub fn is_recipient(&self, number: u64, frames: &[impl Frame]) -> bool {
        let links = self.hub.links();
        find(&links, number).is_some_and(|link| self.would_go_to(link, frames))
    }

    /// Returns whether the connection with this [number](Self::oldest_recipient) is there still.
    #[must_use]
    pub fn has_connection(&self, number: u64) -> bool {
        find(&self.hub.links(), number).is_some_and(|link| link.is_connected())
    }

    /// Ends the connections of subscribers that have connected to us and have not taken all that was accepted
    /// for them, if another subscriber has. What waits for them is dropped. Returns their names.
    #[allow(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn end_laggards(&self) -> Vec<Arc<str>> {
        let links = self.hub.links();
        let connected = links.iter().filter(|link| link.is_connected() && !link.stop.is_cancelled());
        let (lagging, others): (Vec<_>, Vec<_>) =
            connected.partition(|link| link.send_queue.queued().messages > 0);
        if !others.into_iter().any(|link| link.is_subscribed()) {
            return Vec::new();
        }
        let ends = lagging.into_iter().filter(|link| !link.connecting);
        ends.inspect(|link| link.stop.cancel()).map(|link| link.state().name.clone()).collect()
    }

    fn would_go_to(&self, link: &Link, frames: &[impl Frame]) -> bool {
        let Some(topic) = frames.first() else { return false };
        link.is_connected()
            && self.fan_out().goes_to(link, topic.as_ref())
            && link.send_queue.limits().allow(encoded_len(frames), frames.len())
    }

    /// Closes the socket at once, in the background. What was accepted is not sent.
    pub fn abort(&self) {
        self.hub.abort();
    }

    /// Notes that the socket will be closed within this time. At most half of it may pass while messages are
    /// held back.
    pub fn limit_hold(&self, left: Duration) {
        self.hub.limit_hold(left);
    }

    /// Returns for how long messages have been held back after a reconnection, so that subscribers can come
    /// back first. Returns `None` if they are not.
    #[must_use]
    pub fn held_for(&self) -> Option<Duration> {
        self.hub.held_for()
    }

    fn fan_out(&self) -> FanOut<'_> {
        FanOut { hub: &self.hub, audience: Recipients::Subscribers }
    }
}

fn find(links: &[Arc<Link>], number: u64) -> Option<&Arc<Link>> {
    links.binary_search_by_key(&number, |link| link.id).ok().map(|place| &links[place])
}

fn role(options: &SocketOptions<Publisher>) -> Arc<dyn Role> {
    Arc::new(Publishing { bounds: Bounds::of(options.settings()) })
}
