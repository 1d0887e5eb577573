//! PUB: sends every message to every subscriber.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::hub::{Link, Owner, SocketEvents};
use super::outbox::{self, Begun, Frame, Refused, Sending};
use super::{Amount, Endpoint, Multipart, SocketOptions};
use crate::zmtp::SocketType;
use crate::{Error, ErrorKind, Result};

/// A publishing socket. Clones share it; the last one to go closes it.
///
/// To a peer that it *connects* to (a proxy) it sends everything, also while the connection is being made anew: what
/// was accepted waits. A peer that connects to a *bound* publisher gets what it subscribed to.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_core::Result<()> {
/// use xmsg_core::socket::{Publisher, SocketOptions, Subscriber};
/// let publisher = Publisher::new(SocketOptions::default());
/// let endpoint = publisher.bind(&"tcp://127.0.0.1:0".parse()?).await?;
/// let mut subscriber = Subscriber::new(SocketOptions::default());
/// subscriber.subscribe("greet");
/// subscriber.connect(endpoint);
/// publisher.wait_for_subscriber(b"greet").await;
/// publisher.publish(["greeting", "hello"]).await?;
/// assert_eq!(subscriber.recv().await.unwrap().frames()[1], "hello");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Publisher {
    hub: Arc<Owner>,
}

/// What is left to be done for the links at which a message has to wait, or its sender has to.
#[derive(Debug, Default)]
struct Unfinished(SmallVec<[Sending<Arc<Link>>; 1]>);

impl Unfinished {
    /// Waits until every link has the message.
    async fn finish(&mut self) -> Result<()> {
        // The message has its place at each of them already.
        for sending in &mut self.0 {
            let connecting = sending.target().connecting;
            sending.finish().await.or_else(|refused| accepted_elsewhere(connecting, refused))?;
        }
        Ok(())
    }
}

impl Publisher {
    /// A publisher without connections.
    #[must_use]
    pub fn new(options: SocketOptions) -> Self {
        Self { hub: Arc::new(Owner::new(SocketType::Pub, options)) }
    }

    /// Connects in the background, again whenever the connection is lost.
    pub fn connect(&self, endpoint: Endpoint) {
        self.hub.connect(endpoint);
    }

    /// Lets subscribers connect. Returns the endpoint with its actual port.
    pub async fn bind(&self, endpoint: &Endpoint) -> Result<Endpoint> {
        self.hub.bind(endpoint).await
    }

    /// Returns when every connection has accepted the message; waits while one is at its high-water mark.
    /// Messages are accepted in the order of the calls, by every connection in the same one: that in which
    /// the futures were first polled. Dropping the future withdraws the message from those connections that
    /// have not accepted it yet; the others have it whole.
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
        unfinished.finish().await
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
            let len = crate::zmtp::encoded_len(frames);
            if targets().any(|link| link.outbox.lock().is_full(len)) {
                return Err(full());
            }
        }
        for link in targets() {
            let pushed = link.outbox.try_push(frames);
            pushed.or_else(|refused| accepted_elsewhere(link.connecting, refused))?;
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
                begun?.finish().await?;
                Ok(publisher)
            }
        })
    }

    /// Waits until some peer wants messages with this topic.
    pub async fn wait_for_subscriber(&self, topic: &[u8]) {
        loop {
            let mut changed = std::pin::pin!(self.hub.changed.notified());
            changed.as_mut().enable();
            if self.has_subscriber(topic) {
                return;
            }
            changed.await;
        }
    }

    /// Whether some peer wants messages with this topic.
    #[must_use]
    pub fn has_subscriber(&self, topic: &[u8]) -> bool {
        self.hub.links().iter().any(|link| link.wants(topic))
    }

    /// Whether there is a connection at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.hub.is_connected()
    }

    /// Messages and bytes that were accepted and are not yet written.
    #[must_use]
    pub fn queued(&self) -> Amount {
        self.hub.links().iter().fold(Amount::default(), |sum, link| sum + link.outbox.queued())
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

    /// The topic of the message, if it can be sent at all: a peer would cut the connection for a message that is too large, and again
    /// after every reconnection.
    fn check<'a>(&self, frames: &'a [impl Frame]) -> Result<&'a [u8]> {
        let Some(topic) = frames.first() else {
            return Err(Error::new(ErrorKind::InvalidMessage, "a message needs at least one frame"));
        };
        let (len, limits) = (crate::zmtp::encoded_len(frames), &self.hub.options.limits);
        if len > limits.message_size || frames.len() > limits.frames {
            let what = format!(
                "a message of {len} bytes in {} frames is above the limit of {} bytes and {} frames: split it",
                frames.len(),
                limits.message_size,
                limits.frames
            );
            return Err(Error::new(ErrorKind::InvalidMessage, what));
        }
        Ok(topic.as_ref())
    }

    /// Whether a message of this topic goes to this link.
    fn goes_to(&self, link: &Link, topic: &[u8]) -> bool {
        link.connecting && !self.hub.options.filter || link.wants(topic)
    }

    /// Publishes over the only link, as nearly always there is just one and it has room; `None` if it is otherwise.
    fn publish_now(&self, topic: &[u8], frames: &[impl Frame]) -> Option<Result<()>> {
        let links = self.hub.links();
        let [link] = &links[..] else { return None };
        if !self.goes_to(link, topic) {
            return Some(Ok(()));
        }
        let done = link.outbox.push_now(frames)?;
        Some(done.or_else(|refused| accepted_elsewhere(link.connecting, refused)))
    }

    /// Publishes as far as that can be done at once. The message then has its place among others at every
    /// link.
    fn begin(&self, topic: &[u8], frames: &[impl Frame]) -> Result<Unfinished> {
        // Declared before the lock, so that it is dropped after it: dropping it may wake others.
        let mut unfinished = Unfinished::default();
        // All links under one lock: two messages are to have the same order at each of them.
        let links = self.hub.links();
        for link in links.iter().filter(|link| self.goes_to(link, topic)) {
            match outbox::begin(link, frames) {
                Begun::Done(done) => {
                    done.or_else(|refused| accepted_elsewhere(link.connecting, refused))?;
                }
                Begun::Open(sending) => unfinished.0.push(sending),
            }
        }
        Ok(unfinished)
    }
}

/// A connection that ended since its link was chosen is no subscriber any more; that is no failure of the others.
fn accepted_elsewhere(connecting: bool, refused: Refused) -> Result<()> {
    match refused {
        Refused::Full => Err(full()),
        Refused::Closed if connecting => Err(Error::new(ErrorKind::Closed, "the publisher is closed")),
        Refused::Closed => Ok(()),
    }
}

fn full() -> Error {
    Error::new(ErrorKind::Full, "a connection is at its high-water mark: wait with `publish`, or send less")
}
