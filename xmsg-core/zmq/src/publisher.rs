//! PUB: sends every message to every subscriber.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::deadline::Deadline;
use crate::events::EventChannel;
use crate::fan_out::{Audience, FanOut};
use crate::hub::Owner;
use crate::link::outbox::{Again, Frame};
use crate::methods::{endpoint_methods, fan_out_methods, subscriber_methods};
use crate::options::{FansOut, Sends};
use crate::publishing::Publishing;
use crate::role::Role;
use crate::{Amount, Multipart, SocketOptions};
use crate::{Error, ErrorKind, Result};

/// A publishing socket. Clones share it; the last one to go closes it.
///
/// To a peer that it *connects* to (a proxy) it sends everything, also while the connection is being made anew: what
/// was accepted waits. A peer that connects to a *bound* publisher gets what it subscribed to; where its queue is full, messages are dropped for
/// it, so that a slow subscriber stops nobody, unless [`SocketOptions::overflow`] says otherwise.
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
    /// A publisher without connections.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        Self { hub: Arc::new(Owner::new(role(&options), options.into_settings())) }
    }

    /// A publisher whose events are told to this channel, too.
    pub fn with_parent(options: SocketOptions<Self>, parent: EventChannel) -> Self {
        Self { hub: Arc::new(Owner::with_parent(role(&options), options.into_settings(), parent)) }
    }

    endpoint_methods!();
    subscriber_methods!();
    fan_out_methods!();

    /// Returns when every connection has accepted the message; waits while one that is waited for is at its high-water mark. Messages
    /// are accepted in the order of the calls, by every connection in the same one: that in which the
    /// futures were first polled. Dropping the future withdraws the message from those connections that have not
    /// accepted it yet; the others have it whole.
    ///
    /// A message without frames ([`InvalidMessage`](crate::ErrorKind::InvalidMessage)), or above our limits or those that a peer that we
    /// connect to has told ([`TooLarge`](crate::ErrorKind::TooLarge)), is refused at once. A peer that has connected to us and takes less
    /// does not get it, which is [counted](Self::dropped) and told as an [event](Self::events).
    pub async fn publish(&self, message: impl Into<Multipart>) -> Result<()> {
        self.publish_frames(message.into().frames()).await
    }

    /// The same with frames that the caller keeps: short ones are copied where they are to be sent from.
    pub async fn publish_frames(&self, frames: &[impl Frame]) -> Result<()> {
        self.fan_out().send(frames).await
    }

    /// The same without waiting: an error of kind [`Full`](crate::ErrorKind::Full) when a connection that is waited for has no room, or
    /// others wait for it, and then none of them got the message.
    pub fn try_publish(&self, message: impl Into<Multipart>) -> Result<()> {
        self.try_publish_frames(message.into().frames())
    }

    /// The same with frames that the caller keeps.
    pub fn try_publish_frames(&self, frames: &[impl Frame]) -> Result<()> {
        self.fan_out().try_send(frames)
    }

    /// Publishes without the pause that whoever publishes much makes now and then: once the message was accepted, nothing more
    /// is waited for, so that dropping the future tells whether it was.
    pub async fn publish_promptly(&self, message: impl Into<Multipart>) -> Result<()> {
        let message = message.into();
        let frames = message.frames();
        let fan_out = self.fan_out();
        let begun = fan_out.begin(fan_out.check(frames)?, frames)?;
        begun.only_waiting().finish(fan_out, frames).await
    }

    /// Keeps what is written until it [has arrived](Self::arrived), and sends it again, as `again` says, when the connection breaks before. To
    /// be called after connecting to the only peer, and before anything is published. Returns what tells that it is time to ask whether it has
    /// arrived, which is done with messages that are [published in any case](Self::publish_past_mark).
    pub fn retain(&self, again: Again) -> Option<Arc<Notify>> {
        self.hub.links().first().map(|link| link.outbox.retain(again))
    }

    /// Whether it does so.
    #[must_use]
    pub fn retains(&self) -> bool {
        self.hub.links().first().is_some_and(|link| link.outbox.retains())
    }

    /// Takes note that messages up to this place among all that were accepted have arrived.
    pub fn arrived(&self, place: u64) {
        for link in self.hub.links().iter() {
            link.outbox.arrived(place);
        }
    }

    /// Publishes a message that waits for nothing, also when there is no room.
    pub fn publish_past_mark(&self, message: impl Into<Multipart>) -> Result<()> {
        let message = message.into();
        let frames = message.frames();
        let fan_out = self.fan_out();
        fan_out.check(frames)?;
        for link in self.hub.links().iter() {
            let pushed = link.outbox.push_past_mark(frames);
            pushed.or_else(|refused| fan_out.accepted_elsewhere(link, refused, frames))?;
        }
        Ok(())
    }

    /// The same as a [`Sink`](futures::Sink): sending waits while a connection is at its high-water mark. Flushing waits for the last
    /// message to be accepted; [`close`](Self::close) for all of them to be written.
    pub fn sink(&self) -> impl futures::Sink<Multipart, Error = Error> + Send + use<> {
        futures::sink::unfold(self.clone(), |publisher, message: Multipart| {
            // Now, and not when the sink is polled the next time: another call may come before that.
            let frames = message.frames();
            let fan_out = publisher.fan_out();
            let begun = fan_out.check(frames).and_then(|topic| fan_out.begin(topic, frames));
            async move {
                begun?.finish(publisher.fan_out(), message.frames()).await?;
                Ok(publisher)
            }
        })
    }

    /// Whether there is a connection at this moment. For about a second after a reconnection messages are held back over it, so that
    /// subscribers can come back first ([`SocketOptions::reconnect_max`]).
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.hub.is_connected()
    }

    /// Messages and bytes that were accepted and are not yet written.
    #[must_use]
    pub fn queued(&self) -> Amount {
        self.hub.links().iter().fold(Amount::default(), |sum, link| sum + link.outbox.queued())
    }

    /// Waits until every message that was accepted has been written to all who want it; [`Timeout`](crate::ErrorKind::Timeout), with their number,
    /// if some are left after `limit`. Written is not received: what was written to a peer that vanishes may be lost with it.
    pub async fn flush(&self, limit: Duration) -> Result<()> {
        let written = async {
            while self.queued().messages > 0 {
                let links: Vec<_> = self.hub.links().iter().cloned().collect();
                futures::future::join_all(links.iter().map(|link| link.outbox.flushed())).await;
            }
        };
        let late = |_| {
            let left = self.queued().messages;
            Error::new(ErrorKind::Timeout, format!("{left} messages were not written within {limit:?}"))
        };
        Deadline::after(limit).limit(written).await.map_err(late)
    }

    /// Messages that were accepted since the beginning, by a publisher with one connection.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.hub.links().iter().map(|link| link.outbox.accepted()).sum()
    }

    /// Messages of them that were written, or given up.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.hub.links().iter().map(|link| link.outbox.gone()).sum()
    }

    /// Messages of them that were written, or given up, at least once: some may be on their way again.
    #[must_use]
    pub fn written_once(&self) -> u64 {
        self.hub.links().iter().map(|link| link.outbox.gone_once()).sum()
    }

    /// How many messages had been written when the last connection that broke did so.
    #[must_use]
    pub fn broken_at(&self) -> u64 {
        self.hub.links().iter().map(|link| link.outbox.broken_at()).sum()
    }

    /// Ends at once, in the background: what was accepted is not sent.
    pub fn abort(&self) {
        self.hub.abort();
    }

    /// It will be closed within this time: not more than half of it goes by while messages are held back.
    pub fn limit_hold(&self, left: Duration) {
        self.hub.limit_hold(left);
    }

    /// For how long messages have been held back after a reconnection, so that subscribers can come back first, if they are.
    #[must_use]
    pub fn held_for(&self) -> Option<Duration> {
        self.hub.held_for()
    }

    fn fan_out(&self) -> FanOut<'_> {
        FanOut { hub: &self.hub, audience: Audience::Subscribers }
    }
}

fn role(options: &SocketOptions<Publisher>) -> Arc<dyn Role> {
    Arc::new(Publishing { limits: options.settings().limits.clone() })
}
