//! PUB: sends every message to every subscriber.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::events::{EventChannel, SocketEvents};
use crate::hub::Owner;
use crate::link::Link;
use crate::link::outbox::{self, Again, Begun, Frame, Refused, Sending};
use crate::link::refusal::unfit;
use crate::link::session::Ended;
use crate::role::Role;
use crate::{Amount, Endpoint, Multipart, SocketOptions};
use crate::{Error, ErrorKind, Result};
use xmsg_zmtp::{Limits, SocketType};

/// A publishing socket. Clones share it; the last one to go closes it.
///
/// To a peer that it *connects* to (a proxy) it sends everything, also while the connection is being made anew: what
/// was accepted waits. A peer that connects to a *bound* publisher gets what it subscribed to.
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

/// Subscriptions of the peer that a connecting publisher keeps. A proxy may have millions: past this, or with one above the limit of
/// prefixes, the publisher takes it that everything is wanted.
const WANTED_MAX: usize = 100_000;

/// PUB keeps what each of its peers wants.
#[derive(Debug)]
struct Publishing {
    limits: Limits,
}

impl Publishing {
    fn role(options: &SocketOptions) -> Arc<dyn Role> {
        Arc::new(Self { limits: options.limits.clone() })
    }
}

impl Role for Publishing {
    fn socket_type(&self) -> SocketType {
        SocketType::Pub
    }

    fn subscription(&self, link: &Link, subscribe: bool, prefix: Bytes) -> Result<(), Ended> {
        let mut state = link.state();
        if subscribe {
            let limits = &self.limits;
            let len = prefix.len();
            if link.connecting && (state.wanted.len() >= WANTED_MAX || len > limits.subscription_len) {
                state.wants_more = true;
            } else if state.wanted.len() >= limits.subscriptions
                || state.wanted_bytes + len > limits.subscription_bytes
            {
                return Err(limits.too_many(state.wanted.len() + 1, state.wanted_bytes + len).into());
            } else if state.wanted.insert(prefix) {
                state.wanted_bytes += len;
            }
        } else if state.wanted.remove(&prefix) {
            state.wanted_bytes -= prefix.len();
        }
        Ok(())
    }
}

/// What is left to be done for the links at which a message has to wait, or its sender has to.
#[derive(Debug, Default)]
struct Unfinished(SmallVec<[Sending<Arc<Link>>; 1]>);

impl Unfinished {
    /// Waits until every link has the message, and whoever sends may go on.
    async fn finish(&mut self, publisher: &Publisher, frames: &[impl Frame]) -> Result<()> {
        // The message has its place at each of them already.
        for sending in &mut self.0 {
            let done = sending.finish().await;
            done.or_else(|refused| publisher.accepted_elsewhere(&sending.target(), refused, frames))?;
        }
        Ok(())
    }
}

impl Publisher {
    /// A publisher without connections.
    #[must_use]
    pub fn new(options: SocketOptions) -> Self {
        Self { hub: Arc::new(Owner::new(Publishing::role(&options), options)) }
    }

    /// A publisher whose events are told to this channel, too.
    pub fn with_parent(options: SocketOptions, parent: EventChannel) -> Self {
        Self { hub: Arc::new(Owner::with_parent(Publishing::role(&options), options, parent)) }
    }

    /// Connects in the background, again whenever the connection is lost.
    pub fn connect(&self, endpoint: Endpoint) {
        self.hub.connect(endpoint);
    }

    /// Lets subscribers connect. Returns the endpoint with its actual port.
    pub async fn bind(&self, endpoint: &Endpoint) -> Result<Endpoint> {
        self.hub.bind(endpoint).await
    }

    /// Returns when every connection has accepted the message; waits while one is at its high-water mark. Messages
    /// are accepted in the order of the calls, by every connection in the same one: that in which the
    /// futures were first polled. Dropping the future withdraws the message from those connections that have not
    /// accepted it yet; the others have it whole.
    ///
    /// A message without frames ([`InvalidMessage`](ErrorKind::InvalidMessage)), or above our limits or those that a peer that we
    /// connect to has told ([`TooLarge`](ErrorKind::TooLarge)), is refused at once. A peer that has connected to us and takes less
    /// does not get it, which is [counted](Self::dropped) and told as an [event](Self::events).
    pub async fn publish(&self, message: impl Into<Multipart>) -> Result<()> {
        self.publish_frames(message.into().frames()).await
    }

    /// The same with frames that the caller keeps: short ones are copied where they are to be sent from.
    pub async fn publish_frames(&self, frames: &[impl Frame]) -> Result<()> {
        let topic = self.check(frames)?;
        if let Some(done) = self.publish_now(topic, frames) {
            return done;
        }
        let mut unfinished = self.begin(topic, frames)?;
        unfinished.finish(self, frames).await
    }

    /// The same without waiting: an error of kind [`Full`](ErrorKind::Full) when a connection has no room, or
    /// others wait for it, and then none of them got the message.
    pub fn try_publish(&self, message: impl Into<Multipart>) -> Result<()> {
        self.try_publish_frames(message.into().frames())
    }

    /// The same with frames that the caller keeps.
    pub fn try_publish_frames(&self, frames: &[impl Frame]) -> Result<()> {
        let topic = self.check(frames)?;
        // Nobody else takes the room while this is locked.
        let links = self.hub.links();
        let targets = || links.iter().filter(|link| self.goes_to(link, topic));
        if links.len() > 1 {
            self.all_take(targets(), frames)?;
            let len = xmsg_zmtp::encoded_len(frames);
            if targets().any(|link| link.outbox.lock().is_full(len)) {
                return Err(full());
            }
        }
        for link in targets() {
            let pushed = link.outbox.try_push(frames);
            pushed.or_else(|refused| self.accepted_elsewhere(link, refused, frames))?;
        }
        Ok(())
    }

    /// Publishes without the pause that whoever publishes much makes now and then: once the message was accepted, nothing more
    /// is waited for, so that dropping the future tells whether it was.
    pub async fn publish_promptly(&self, message: impl Into<Multipart>) -> Result<()> {
        let message = message.into();
        let frames = message.frames();
        let mut begun = self.begin(self.check(frames)?, frames)?;
        begun.0.retain(|sending| sending.waits());
        begun.finish(self, frames).await
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
        self.check(frames)?;
        for link in self.hub.links().iter() {
            let pushed = link.outbox.push_past_mark(frames);
            pushed.or_else(|refused| self.accepted_elsewhere(link, refused, frames))?;
        }
        Ok(())
    }

    /// The same as a [`Sink`](futures::Sink): sending waits while a connection is at its high-water mark. Flushing waits for the last
    /// message to be accepted; [`close`](Self::close) for all of them to be written.
    pub fn sink(&self) -> impl futures::Sink<Multipart, Error = Error> + Send + use<> {
        futures::sink::unfold(self.clone(), |publisher, message: Multipart| {
            // Now, and not when the sink is polled the next time: another call may come before that.
            let frames = message.frames();
            let begun = publisher.check(frames).and_then(|topic| publisher.begin(topic, frames));
            async move {
                begun?.finish(&publisher, message.frames()).await?;
                Ok(publisher)
            }
        })
    }

    /// Waits until some peer wants messages with this topic. [`Closed`](ErrorKind::Closed) if the publisher is closed before.
    pub async fn wait_for_subscriber(&self, topic: &[u8]) -> Result<()> {
        self.hub.wait_until(|| self.has_subscriber(topic)).await
    }

    /// Whether some peer wants messages with this topic.
    #[must_use]
    pub fn has_subscriber(&self, topic: &[u8]) -> bool {
        self.hub.links().iter().any(|link| link.wants(topic))
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

    /// Why there is no connection, if that is known; `None` while there is one.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.hub.failure()
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

    /// What happens to the connections from now on.
    #[must_use]
    pub fn events(&self) -> SocketEvents {
        self.hub.events()
    }

    /// Takes no more messages and sends what was accepted, for at most `linger`. Returns how many messages were not
    /// sent.
    pub async fn close(&self, linger: Duration) -> usize {
        self.hub.close(linger).await
    }

    /// Messages that were accepted and dropped again, because a peer does not take them. Each was told as a
    /// [`MessageDropped`](super::SocketEvent::MessageDropped).
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.hub.dropped()
    }

    /// The topic of the message, if it can be sent at all, whoever the peer is.
    fn check<'a>(&self, frames: &'a [impl Frame]) -> Result<&'a [u8]> {
        let limits = self.hub.options.send_limits();
        match frames.first() {
            Some(topic) if limits.allow(xmsg_zmtp::encoded_len(frames), frames.len()) => Ok(topic.as_ref()),
            _ => Err(unfit(frames, limits, limits, "")),
        }
    }

    /// Whether a message of this topic goes to this link.
    fn goes_to(&self, link: &Link, topic: &[u8]) -> bool {
        link.connecting && !self.hub.options.filter || link.wants(topic)
    }

    /// Fails if the message is above the limit of a peer that we connect to: then none of them is to get it.
    fn all_take<'a>(
        &self,
        mut links: impl Iterator<Item = &'a Arc<Link>>,
        frames: &[impl Frame],
    ) -> Result<()> {
        let size = xmsg_zmtp::encoded_len(frames);
        let takes = |link: &Link| !link.connecting || link.outbox.limits().allow(size, frames.len());
        match links.find(|link| !takes(link)) {
            Some(link) => Err(self.hub.unfit(link, frames)),
            None => Ok(()),
        }
    }

    /// Publishes over the only link, as nearly always there is just one and it has room; `None` if it is otherwise.
    fn publish_now(&self, topic: &[u8], frames: &[impl Frame]) -> Option<Result<()>> {
        let links = self.hub.links();
        let [link] = &links[..] else { return None };
        if !self.goes_to(link, topic) {
            return Some(Ok(()));
        }
        let done = link.outbox.push_now(frames)?;
        Some(done.or_else(|refused| self.accepted_elsewhere(link, refused, frames)))
    }

    /// Publishes as far as that can be done at once. The message then has its place among others at every
    /// link.
    fn begin(&self, topic: &[u8], frames: &[impl Frame]) -> Result<Unfinished> {
        // Declared before the lock, so that it is dropped after it: dropping it may wake others.
        let mut unfinished = Unfinished::default();
        // All links under one lock: two messages are to have the same order at each of them.
        let links = self.hub.links();
        if links.len() > 1 {
            self.all_take(links.iter().filter(|link| self.goes_to(link, topic)), frames)?;
        }
        for link in links.iter().filter(|link| self.goes_to(link, topic)) {
            match outbox::begin(link, frames) {
                Begun::Done(done) => {
                    done.or_else(|refused| self.accepted_elsewhere(link, refused, frames))?;
                }
                Begun::Open(sending) => unfinished.0.push(sending),
            }
        }
        Ok(unfinished)
    }

    /// A connection that ended since its link was chosen is no subscriber any more, and one that connected to us may not take all
    /// messages; that is no failure of the others.
    fn accepted_elsewhere(&self, link: &Link, refused: Refused, frames: &[impl Frame]) -> Result<()> {
        match refused {
            Refused::Full => Err(full()),
            Refused::Unfit if link.connecting => Err(self.hub.unfit(link, frames)),
            Refused::Unfit => {
                self.hub.drop_for(link, frames);
                Ok(())
            }
            Refused::Closed if link.connecting => Err(Error::new(
                ErrorKind::Closed,
                "the publisher is closed, or the runtime that it connected in has ended",
            )),
            Refused::Closed => Ok(()),
        }
    }
}

fn full() -> Error {
    Error::new(ErrorKind::Full, "a connection is at its high-water mark: wait with `publish`, or send less")
}
