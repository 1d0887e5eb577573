//! XPUB: publishes messages, and receives the subscriptions of its subscribers.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use bytes::Bytes;
use xmsg_zmtp::{Peer, PeerLimits, SocketType, Version};

use crate::fan_out::{FanOut, Recipients};
use crate::hub::Owner;
use crate::link::Link;
use crate::link::routes::Routes;
use crate::link::send_queue::Frame;
use crate::link::session::Ended;
use crate::lock::lock;
use crate::methods::{endpoint_methods, fan_out_methods, subscriber_methods};
use crate::options::{FansOut, Receives, Sends};
use crate::publishing::{Bounds, note_wanted};
use crate::role::{PeerSlot, Role};
use crate::subscriptions::SubscriptionLimitExceeded;
use crate::{Error, ErrorKind, Multipart, Result, SocketOptions};

/// The options that only an [`XPub`] has.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct XPubSettings {
    /// See [`SocketOptions::notices`].
    pub notices: Notices,
    /// See [`SocketOptions::manual`].
    pub manual: bool,
    /// See [`SocketOptions::welcome`].
    pub welcome: Option<Multipart>,
}

/// Options that only XPUB has.
impl SocketOptions<XPub> {
    /// Sets which subscriptions the user of the socket is notified of. Default: those that change the set of
    /// all subscribed prefixes.
    #[must_use]
    pub fn notices(self, notices: Notices) -> Self {
        self.with(|settings| settings.xpub.notices = notices)
    }

    /// Sets whether a subscription becomes active only when the user [accepts it](XPub::take_subscription).
    /// The user is then notified of every one (`ZMQ_XPUB_MANUAL`). Default `false`.
    #[must_use]
    pub fn manual(self, manual: bool) -> Self {
        self.with(|settings| settings.xpub.manual = manual)
    }

    /// Sets a message that is sent to every new peer first, whatever the peer has subscribed to. It is
    /// delivered if the peer has subscribed to its topic (`ZMQ_XPUB_WELCOME_MSG`). Default: none.
    #[must_use]
    pub fn welcome(self, message: impl Into<Multipart>) -> Self {
        let message = message.into();
        self.with(|settings| settings.xpub.welcome = Some(message))
    }
}

/// Which subscriptions the user of an [`XPub`] is notified of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notices {
    /// The first subscription to a prefix, and the end of the last one. These change the set of all
    /// subscribed prefixes.
    #[default]
    Changes,
    /// Every subscription, and the end of the last one to a prefix (`ZMQ_XPUB_VERBOSE`).
    Subscriptions,
    /// Every subscription, and the end of every one (`ZMQ_XPUB_VERBOSER`).
    All,
}

/// Identifies a peer of an [`XPub`] while it is connected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerId(Bytes);

/// What an [`XPub`] receives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FromSubscriber {
    /// A peer has subscribed to a prefix.
    Subscribed {
        /// The peer that subscribed.
        peer: PeerId,
        /// The prefix of the topics.
        prefix: Bytes,
    },
    /// A subscription has ended, because it was cancelled or the peer is gone.
    Unsubscribed {
        /// The peer that had subscribed.
        peer: PeerId,
        /// The prefix of the topics.
        prefix: Bytes,
    },
    /// An XSUB socket has sent a message upstream.
    Message {
        /// The sender.
        peer: PeerId,
        /// The message.
        message: Multipart,
    },
}

/// A publishing socket that receives the subscriptions of its peers (RFC 29), and messages that XSUB peers
/// send. It is a [`Stream`](futures::Stream) of these. Together with an [`XSub`](crate::XSub) it forms a
/// forwarder. Clones share the socket; dropping the last one closes it.
///
/// The user of this socket has to receive: if what peers send is not received, they have to wait.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> xmsg_zmq::Result<()> {
/// use xmsg_zmq::{FromSubscriber, SocketOptions, Subscriber, XPub};
/// let publisher = XPub::new(SocketOptions::default());
/// let endpoint = publisher.bind(&"tcp://127.0.0.1:0".parse()?).await?;
/// let mut subscriber = Subscriber::new(SocketOptions::default());
/// subscriber.connect(endpoint);
/// subscriber.subscribe("weather")?;
/// let Some(FromSubscriber::Subscribed { prefix, .. }) = publisher.recv().await else { panic!("a subscription") };
/// assert_eq!(prefix, "weather");
/// publisher.publish(["weather:news", "sun"]).await?; // somebody wants it now
/// assert_eq!(subscriber.recv().await.unwrap().frames()[1], "sun");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct XPub {
    hub: Arc<Owner>,
    role: Arc<XPubRole>,
}

/// The role of XPUB, which keeps the subscriptions of its peers and notifies the user of the socket.
#[derive(Debug)]
struct XPubRole {
    bounds: Bounds,
    settings: XPubSettings,
    /// The links of peers by their routing identities.
    routes: Routes,
    /// How many peers have subscribed to each prefix.
    wanted: Mutex<HashMap<Bytes, usize>>,
}

impl XPubRole {
    fn wanted(&self) -> MutexGuard<'_, HashMap<Bytes, usize>> {
        lock(&self.wanted)
    }

    /// Notes a subscription of a peer or its end. Returns whether it is the first to this prefix, or was the
    /// last.
    fn note(&self, link: &Link, subscribe: bool, prefix: &Bytes) -> Result<bool, Ended> {
        if !note_wanted(&self.bounds, link, subscribe, prefix)? {
            return Ok(false);
        }
        Ok(self.count(subscribe, prefix))
    }

    fn count(&self, subscribe: bool, prefix: &Bytes) -> bool {
        let mut wanted = self.wanted();
        if subscribe {
            let count = wanted.entry(prefix.clone()).or_default();
            *count += 1;
            return *count == 1;
        }
        let Some(count) = wanted.get_mut(prefix) else { return false };
        *count -= 1;
        let was_last = *count == 0;
        if was_last {
            wanted.remove(prefix);
        }
        was_last
    }
}

impl Role for XPubRole {
    fn socket_type(&self) -> SocketType {
        SocketType::Xpub
    }

    fn join<'a>(&'a self, link: &Arc<Link>, _: &Peer) -> Result<PeerSlot<'a>, &'static str> {
        let name = link.name();
        let route = self.routes.take_over((None, name.clone()), link).ok_or("it has a place already")?;
        Ok(PeerSlot::found_by(route, name))
    }

    fn establish(
        &self,
        link: &Link,
        version: Version,
        limits: PeerLimits,
    ) -> Vec<(Bytes, SubscriptionLimitExceeded)> {
        link.send_queue.clear_urgent();
        link.establish(version, limits);
        if let Some(welcome) = &self.settings.welcome {
            // A new connection has room. A peer that does not accept this message does not get it.
            let _ = link.send_queue.try_push(welcome.frames());
        }
        Vec::new()
    }

    fn subscription(&self, link: &Link, subscribe: bool, prefix: Bytes) -> Result<bool, Ended> {
        if self.settings.manual {
            return Ok(true);
        }
        let is_change = self.note(link, subscribe, &prefix)?;
        Ok(match self.settings.notices {
            Notices::Changes => is_change,
            Notices::Subscriptions => subscribe || is_change,
            Notices::All => true,
        })
    }

    fn leave(&self, link: &Link) -> Vec<Bytes> {
        let prefixes: Vec<Bytes> = link.state().wanted.iter().cloned().collect();
        let is_reported = |prefix: &Bytes| self.count(false, prefix) || self.settings.notices == Notices::All;
        prefixes.into_iter().filter(is_reported).collect()
    }
}

impl Sends for XPub {}

impl Receives for XPub {}

impl FansOut for XPub {}

impl XPub {
    /// Creates a socket without connections.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        let settings = options.into_settings();
        let role = Arc::new(XPubRole {
            bounds: Bounds::of(&settings),
            settings: settings.xpub.clone(),
            routes: Routes::default(),
            wanted: Mutex::default(),
        });
        Self { hub: Arc::new(Owner::new(role.clone(), settings)), role }
    }

    endpoint_methods!();
    subscriber_methods!();
    fan_out_methods!();

    /// Sends a message to its subscribers, as [`Publisher::publish`](crate::Publisher::publish) does.
    ///
    /// # Errors
    ///
    /// The same as for [`Publisher::publish`](crate::Publisher::publish).
    pub async fn publish(&self, message: impl Into<Multipart>) -> Result<()> {
        self.fan_out().send(message.into().frames()).await
    }

    /// Sends a message like [`publish`](Self::publish), with frames that the caller keeps.
    ///
    /// # Errors
    ///
    /// The same as for [`publish`](Self::publish).
    pub async fn publish_frames(&self, frames: &[impl Frame]) -> Result<()> {
        self.fan_out().send(frames).await
    }

    /// Sends a message like [`publish`](Self::publish), but without waiting.
    ///
    /// # Errors
    ///
    /// [`Full`](ErrorKind::Full) when it would have to wait for a peer; otherwise as for
    /// [`publish`](Self::publish).
    pub fn try_publish(&self, message: impl Into<Multipart>) -> Result<()> {
        self.fan_out().try_send(message.into().frames())
    }

    /// Receives the next subscription, end of a subscription, or message. Returns `None` once the socket is
    /// closed and everything was taken. Cancel safe.
    pub async fn recv(&self) -> Option<FromSubscriber> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Receives what [`recv`](Self::recv) does, in the form of messages as they are on the wire.
    pub(crate) async fn recv_raw(&self) -> Option<Multipart> {
        self.hub.recv().await
    }

    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Option<FromSubscriber>> {
        self.hub.receive_queue.poll_next(cx).map(|next| {
            next.map(|(peer, message)| {
                let peer = PeerId(peer);
                match message.frames() {
                    [frame] if frame.first() == Some(&1) => {
                        FromSubscriber::Subscribed { peer, prefix: frame.slice(1..) }
                    }
                    [frame] if frame.first() == Some(&0) => {
                        FromSubscriber::Unsubscribed { peer, prefix: frame.slice(1..) }
                    }
                    _ => FromSubscriber::Message { peer, message },
                }
            })
        })
    }

    /// Activates a subscription of a peer, if subscriptions are [manual](SocketOptions::manual): the one that
    /// the peer asked for, or any other.
    ///
    /// # Errors
    ///
    /// [`Refused`](ErrorKind::Refused) if the peer is gone, [`TooLarge`](ErrorKind::TooLarge) if it has too
    /// many subscriptions, or if [no memory](SocketOptions::memory) is left and it holds most of it.
    pub fn take_subscription(&self, peer: &PeerId, prefix: impl Into<Bytes>) -> Result<()> {
        self.change(peer, true, &prefix.into())
    }

    /// Ends a subscription that [`take_subscription`](Self::take_subscription) activated.
    ///
    /// # Errors
    ///
    /// [`Refused`](ErrorKind::Refused) if the peer is gone.
    pub fn end_subscription(&self, peer: &PeerId, prefix: impl Into<Bytes>) -> Result<()> {
        self.change(peer, false, &prefix.into())
    }

    fn change(&self, peer: &PeerId, subscribe: bool, prefix: &Bytes) -> Result<()> {
        let Some(link) = self.role.routes.get(&(None, peer.0.clone())) else {
            return Err(Error::new(ErrorKind::Refused, "the peer is gone"));
        };
        let noted = self.role.note(&link, subscribe, prefix);
        noted.map_err(|ended| Error::new(ErrorKind::TooLarge, ended.to_string()))?;
        self.hub.changed.notify_waiters();
        Ok(())
    }

    fn fan_out(&self) -> FanOut<'_> {
        FanOut { hub: &self.hub, audience: Recipients::Subscribers }
    }
}

impl futures::Stream for XPub {
    type Item = FromSubscriber;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<FromSubscriber>> {
        self.poll_recv(cx)
    }
}
