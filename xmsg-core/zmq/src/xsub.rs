//! XSUB: receives what it subscribes to, and sends messages to its publishers.

use std::sync::Arc;

use bytes::Bytes;
use xmsg_zmtp::SocketType;

use crate::fan_out::{FanOut, Recipients};
use crate::hub::Owner;
use crate::methods::{endpoint_methods, fan_out_methods, receiving_methods, stream_of_messages};
use crate::options::{FansOut, Receives, Sends};
use crate::subscriptions::Subscribing;
use crate::{Error, Multipart, Result, SocketOptions};

/// A subscribing socket that can also send (RFC 29). Its messages go to all its [`XPub`](crate::XPub) peers;
/// PUB peers ignore them. It is a [`Stream`](futures::Stream) of what it receives. Clones share the socket;
/// dropping the last one closes it.
///
/// A subscription is a prefix of the first frame. Subscriptions are counted: what was subscribed to twice has
/// to be cancelled twice. A message of one frame that begins with a byte 0 or 1 means a subscription on the
/// wire, so it can't be sent.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
/// use xmsg_zmq::{FromSubscriber, SocketOptions, XPub, XSub};
/// let publisher = XPub::new(SocketOptions::default());
/// let endpoint = publisher.bind(&"tcp://127.0.0.1:0".parse()?).await?;
/// let subscriber = XSub::new(SocketOptions::default());
/// subscriber.connect(endpoint);
/// subscriber.send(["more, please"]).await?;
/// let Some(FromSubscriber::Message { message, .. }) = publisher.recv().await else { panic!("a message") };
/// assert_eq!(message.frames(), ["more, please"]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct XSub {
    hub: Arc<Owner>,
    role: Arc<Subscribing>,
}

impl Sends for XSub {}

impl Receives for XSub {}

impl FansOut for XSub {}

impl XSub {
    /// Creates a socket without connections or subscriptions.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        let options = options.into_settings();
        let role = Subscribing::new(SocketType::Xsub, &options);
        Self { hub: Arc::new(Owner::new(role.clone(), options)), role }
    }

    endpoint_methods!();
    fan_out_methods!();

    /// Subscribes to messages whose first frame starts with `prefix`, as
    /// [`Subscriber::subscribe`](crate::Subscriber::subscribe) does.
    ///
    /// # Errors
    ///
    /// The same as for [`Subscriber::subscribe`](crate::Subscriber::subscribe).
    pub fn subscribe(&self, prefix: impl Into<Bytes>) -> Result<()> {
        self.role.subscribe(&self.hub, &prefix.into(), true)
    }

    /// Cancels a subscription. Messages that are on their way still arrive.
    pub fn unsubscribe(&self, prefix: impl Into<Bytes>) {
        // Fewer subscriptions cannot exceed a limit.
        let _ = self.role.subscribe(&self.hub, &prefix.into(), false);
    }

    /// Subscribes for other sockets, or cancels that.
    pub(crate) fn subscribe_for_others(&self, prefix: &Bytes, subscribe: bool) -> Result<()> {
        self.role.subscribe_for_others(&self.hub, prefix, subscribe)
    }

    /// Returns why a connected peer does not accept one of the subscriptions, if that is so.
    #[must_use]
    pub fn refused(&self) -> Option<Error> {
        Subscribing::refused(&self.hub)
    }

    /// Sends a message to all peers. Returns when every peer's queue has accepted or, by its [overflow
    /// policy](SocketOptions::overflow), dropped it. By default, it waits while a peer that the socket
    /// connects to is at its high-water mark. Messages are accepted in the order of the calls. Dropping the
    /// future withdraws the message from those queues that have not accepted it yet.
    ///
    /// # Errors
    ///
    /// [`InvalidMessage`](crate::ErrorKind::InvalidMessage) if the message has no frames, or would be taken
    /// for a subscription; [`TooLarge`](crate::ErrorKind::TooLarge) if it exceeds our limits, or those of a
    /// peer that we connect to.
    pub async fn send(&self, message: impl Into<Multipart>) -> Result<()> {
        let message = message.into();
        Self::check(&message)?;
        self.fan_out().send(message.frames()).await
    }

    /// Sends a message to all peers without waiting.
    ///
    /// # Errors
    ///
    /// [`Full`](crate::ErrorKind::Full) when it would have to wait for a peer; otherwise as for
    /// [`send`](Self::send).
    pub fn try_send(&self, message: impl Into<Multipart>) -> Result<()> {
        let message = message.into();
        Self::check(&message)?;
        self.fan_out().try_send(message.frames())
    }

    fn check(message: &Multipart) -> Result<()> {
        match message.frames() {
            [frame] if matches!(frame.first(), Some(0 | 1)) => Err(Error::new(
                crate::ErrorKind::InvalidMessage,
                "a message of one frame that begins with a byte 0 or 1 means a subscription: subscribe, or add a frame",
            )),
            _ => Ok(()),
        }
    }

    receiving_methods!();

    fn fan_out(&self) -> FanOut<'_> {
        FanOut { hub: &self.hub, audience: Recipients::All }
    }
}

stream_of_messages!(XSub);
