//! XPUB: publishes, and sees what its subscribers subscribe to.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use bytes::Bytes;
use xmsg_zmtp::{Limits, Peer, PeerLimits, SocketType, Version};

use crate::fan_out::{Audience, FanOut};
use crate::hub::Owner;
use crate::link::Link;
use crate::link::outbox::Frame;
use crate::link::routes::Routes;
use crate::link::session::Ended;
use crate::lock::lock;
use crate::methods::{endpoint_methods, fan_out_methods, subscriber_methods};
use crate::options::{FansOut, Receives, Sends};
use crate::publishing::note_wanted;
use crate::role::{Role, Seat};
use crate::subscriptions::NotTaken;
use crate::{Error, ErrorKind, Multipart, Result, SocketOptions};

/// What is set on an [`XPub`] alone.
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

/// What only XPUB has.
impl SocketOptions<XPub> {
    /// What the socket's user is told of subscriptions. Default: what changes the whole of what is wanted.
    #[must_use]
    pub fn notices(self, notices: Notices) -> Self {
        self.with(|settings| settings.xpub.notices = notices)
    }

    /// Has a subscription count only once it is [taken](XPub::take_subscription); the user is told of every one then
    /// (`ZMQ_XPUB_MANUAL`). Default no.
    #[must_use]
    pub fn manual(self, manual: bool) -> Self {
        self.with(|settings| settings.xpub.manual = manual)
    }

    /// What every new peer is sent first, whatever it subscribed to. It arrives if the peer has subscribed to its topic
    /// (`ZMQ_XPUB_WELCOME_MSG`). Default: nothing.
    #[must_use]
    pub fn welcome(self, message: impl Into<Multipart>) -> Self {
        let message = message.into();
        self.with(|settings| settings.xpub.welcome = Some(message))
    }
}

/// Which subscriptions the user of an [`XPub`] is told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notices {
    /// The first subscription to a prefix, and the end of the last one: what changes the whole of what is wanted.
    #[default]
    Changes,
    /// Every subscription, and the end of the last one of a prefix (`ZMQ_XPUB_VERBOSE`).
    Subscriptions,
    /// Every subscription, and every end of one (`ZMQ_XPUB_VERBOSER`).
    All,
}

/// A peer of an [`XPub`], as long as it is connected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerId(Bytes);

/// What an [`XPub`] receives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FromSubscriber {
    /// A subscription.
    Subscribed {
        /// Who wants it.
        peer: PeerId,
        /// The beginning of the topics that are wanted.
        prefix: Bytes,
    },
    /// The end of a subscription, because it was taken back or its peer has gone.
    Unsubscribed {
        /// Who wanted it.
        peer: PeerId,
        /// The beginning of the topics.
        prefix: Bytes,
    },
    /// A message that an XSUB socket has sent in the other direction.
    Message {
        /// Who sent it.
        peer: PeerId,
        /// What it is.
        message: Multipart,
    },
}

/// A publishing socket that sees the subscriptions of its peers (RFC 29), and receives what XSUB peers send; a
/// [`Stream`](futures::Stream) of these. With an [`XSub`](crate::XSub) it makes a forwarder. Clones share it; the last one to go closes it.
///
/// What is not received makes the peers wait that say it: whoever uses this socket receives.
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
    role: Arc<Announcing>,
}

/// XPUB keeps what its peers want, and has its user told.
#[derive(Debug)]
struct Announcing {
    limits: Limits,
    settings: XPubSettings,
    /// Peers by the names that they have here.
    routes: Routes,
    /// How many peers want a prefix.
    wanted: Mutex<HashMap<Bytes, usize>>,
}

impl Announcing {
    fn wanted(&self) -> MutexGuard<'_, HashMap<Bytes, usize>> {
        lock(&self.wanted)
    }

    /// Takes note of what a peer wants. Returns whether it is the first that does, or was the last.
    fn note(&self, link: &Link, subscribe: bool, prefix: &Bytes) -> Result<bool, Ended> {
        if !note_wanted(&self.limits, link, subscribe, prefix)? {
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

impl Role for Announcing {
    fn socket_type(&self) -> SocketType {
        SocketType::Xpub
    }

    fn join<'a>(&'a self, link: &Arc<Link>, _: &Peer) -> Result<Seat<'a>, &'static str> {
        let name = link.name();
        let route = self.routes.take_over((None, name.clone()), link).ok_or("it has a place already")?;
        Ok(Seat::found_by(route, name))
    }

    fn establish(&self, link: &Link, version: Version, limits: PeerLimits) -> Vec<(Bytes, NotTaken)> {
        link.outbox.clear_urgent();
        link.establish(version, limits, None);
        if let Some(welcome) = &self.settings.welcome {
            // A new connection has room; whoever takes no message like this one goes without.
            let _ = link.outbox.try_push(welcome.frames());
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
        let is_told = |prefix: &Bytes| self.count(false, prefix) || self.settings.notices == Notices::All;
        prefixes.into_iter().filter(is_told).collect()
    }
}

impl Sends for XPub {}

impl Receives for XPub {}

impl FansOut for XPub {}

impl XPub {
    /// A socket without connections.
    #[must_use]
    pub fn new(options: SocketOptions<Self>) -> Self {
        let settings = options.into_settings();
        let role = Arc::new(Announcing {
            limits: settings.limits.clone(),
            settings: settings.xpub.clone(),
            routes: Routes::default(),
            wanted: Mutex::default(),
        });
        Self { hub: Arc::new(Owner::new(role.clone(), settings)), role }
    }

    endpoint_methods!();
    subscriber_methods!();
    fan_out_methods!();

    /// Sends a message to those who subscribed to it, as [`Publisher::publish`](crate::Publisher::publish) does.
    pub async fn publish(&self, message: impl Into<Multipart>) -> Result<()> {
        self.fan_out().send(message.into().frames()).await
    }

    /// The same with frames that the caller keeps.
    pub async fn publish_frames(&self, frames: &[impl Frame]) -> Result<()> {
        self.fan_out().send(frames).await
    }

    /// The same without waiting: [`Full`](ErrorKind::Full) when a peer would have to be waited for.
    pub fn try_publish(&self, message: impl Into<Multipart>) -> Result<()> {
        self.fan_out().try_send(message.into().frames())
    }

    /// The next subscription, or the end of one, or message; `None` once the socket is closed and everything was taken. Dropping the future
    /// loses nothing.
    pub async fn recv(&self) -> Option<FromSubscriber> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The same as the messages that they are on the wire.
    pub(crate) async fn recv_raw(&self) -> Option<Multipart> {
        self.hub.recv().await
    }

    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Option<FromSubscriber>> {
        self.hub.inbox.poll_next(cx).map(|next| {
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

    /// Has a peer get the messages that begin like this, where subscriptions are taken [by hand](SocketOptions::manual): what it subscribed to, or
    /// anything else. [`Refused`](ErrorKind::Refused) says that the peer is gone, [`TooLarge`](ErrorKind::TooLarge) that it has too many.
    pub fn take_subscription(&self, peer: &PeerId, prefix: impl Into<Bytes>) -> Result<()> {
        self.change(peer, true, &prefix.into())
    }

    /// Takes that back.
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
        FanOut { hub: &self.hub, audience: Audience::Subscribers }
    }
}

impl futures::Stream for XPub {
    type Item = FromSubscriber;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<FromSubscriber>> {
        self.poll_recv(cx)
    }
}
