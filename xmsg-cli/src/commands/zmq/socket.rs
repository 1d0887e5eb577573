//! One socket of any type, with the operations that the commands need.

use std::time::Duration;

use super::endpoints::Identified;
use bytes::Bytes;
use xmsg_zmq::{
    Dealer, Endpoint, Error, ErrorKind, FromSubscriber, Multipart, Notices, Pair, Publisher, Pull, Push,
    Result, Router, SocketEvents, SocketOptions, Subscriber, XPub, XSub,
};
use xmsg_zmtp::SocketType;

use crate::exit::Usage;

/// A socket of one of the types that these commands support.
#[derive(Debug)]
pub(crate) enum Socket {
    Push(Push),
    Pull(Pull),
    Pub(Publisher),
    Sub(Box<Subscriber>),
    XPub(XPub),
    XSub(XSub),
    Pair(Pair),
    Dealer(Dealer),
    Router(Router),
}

/// What a socket has received.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message. From a ROUTER, it begins with the identity of its sender.
    Message(Multipart),
    /// A subscription to this prefix.
    Subscribed(Bytes),
    /// The end of a subscription to this prefix.
    Unsubscribed(Bytes),
}

/// Returns whether a socket of this type sends messages only to peers that have subscribed to them.
pub(super) fn publishes(kind: SocketType) -> bool {
    kind.takes_subscriptions()
}

/// Evaluates the same expression for whichever socket it is.
macro_rules! with_socket {
    ($socket:expr, $it:ident => $does:expr) => {
        match $socket {
            Socket::Push($it) => $does,
            Socket::Pull($it) => $does,
            Socket::Pub($it) => $does,
            Socket::Sub($it) => $does,
            Socket::XPub($it) => $does,
            Socket::XSub($it) => $does,
            Socket::Pair($it) => $does,
            Socket::Dealer($it) => $does,
            Socket::Router($it) => $does,
        }
    };
}

impl Socket {
    /// The types that `xmsg zmq send` supports.
    pub(super) const SENDING: [SocketType; 6] = [
        SocketType::Push,
        SocketType::Pub,
        SocketType::Xpub,
        SocketType::Xsub,
        SocketType::Pair,
        SocketType::Dealer,
    ];

    /// The types that `xmsg zmq recv` supports.
    pub(super) const RECEIVING: [SocketType; 7] = [
        SocketType::Pull,
        SocketType::Sub,
        SocketType::Xsub,
        SocketType::Xpub,
        SocketType::Pair,
        SocketType::Dealer,
        SocketType::Router,
    ];

    /// Makes a socket of this type for sending.
    pub(super) fn to_send(kind: SocketType, options: &SocketOptions<Identified>) -> Result<Self, Usage> {
        check_identity(kind, options)?;
        Ok(match kind {
            SocketType::Push => Self::Push(Push::new(options.for_socket())),
            SocketType::Pub => Self::Pub(Publisher::new(options.for_socket())),
            SocketType::Xpub => Self::XPub(XPub::new(options.for_socket())),
            SocketType::Xsub => Self::XSub(XSub::new(options.for_socket())),
            SocketType::Pair => Self::Pair(Pair::new(options.for_socket())),
            SocketType::Dealer => Self::Dealer(Dealer::new(options.for_socket())),
            SocketType::Pull | SocketType::Sub => {
                let what =
                    format!("{kind} only receives: use `xmsg zmq recv {kind}`, or send with another type");
                return Err(Usage(what));
            }
            SocketType::Router => {
                let what = "ROUTER sends to peers that have made themselves known, by their identities: answer them with `xmsg \
                            zmq rep`, or send with DEALER";
                return Err(Usage(what.to_owned()));
            }
            SocketType::Req => return Err(Usage("REQ waits for a reply: use `xmsg zmq req`".to_owned())),
            SocketType::Rep => return Err(Usage("REP answers: use `xmsg zmq rep`".to_owned())),
        })
    }

    /// Makes a socket of this type for receiving. If it is a type that subscribes, it subscribes to these
    /// prefixes.
    pub(super) fn to_receive(
        kind: SocketType,
        topics: &[Bytes],
        options: &SocketOptions<Identified>,
    ) -> anyhow::Result<Self> {
        check_identity(kind, options)?;
        if !topics.is_empty() && !matches!(kind, SocketType::Sub | SocketType::Xsub) {
            let what = format!("--topic is for SUB and XSUB: {kind} gets whatever its peers send");
            return Err(Usage(what).into());
        }
        let everything = [Bytes::new()];
        let topics = if topics.is_empty() { &everything[..] } else { topics };
        Ok(match kind {
            SocketType::Pull => Self::Pull(Pull::new(options.for_socket())),
            SocketType::Sub => {
                let socket = Subscriber::new(options.for_socket());
                topics.iter().try_for_each(|topic| socket.subscribe(topic.clone()))?;
                Self::Sub(Box::new(socket))
            }
            SocketType::Xsub => {
                let socket = XSub::new(options.for_socket());
                topics.iter().try_for_each(|topic| socket.subscribe(topic.clone()))?;
                Self::XSub(socket)
            }
            SocketType::Xpub => Self::XPub(XPub::new(options.for_socket().notices(Notices::All))),
            SocketType::Pair => Self::Pair(Pair::new(options.for_socket())),
            SocketType::Dealer => Self::Dealer(Dealer::new(options.for_socket())),
            SocketType::Router => Self::Router(Router::new(options.for_socket())),
            SocketType::Push | SocketType::Pub => {
                let what =
                    format!("{kind} only sends: use `xmsg zmq send {kind}`, or receive with another type");
                return Err(Usage(what).into());
            }
            SocketType::Req => return Err(Usage("REQ asks first: use `xmsg zmq req`".to_owned()).into()),
            SocketType::Rep => {
                let what = "REP answers what it receives: use `xmsg zmq rep`";
                return Err(Usage(what.to_owned()).into());
            }
        })
    }

    pub(super) async fn bind(&self, endpoint: &Endpoint) -> Result<Endpoint> {
        with_socket!(self, socket => socket.bind(endpoint).await)
    }

    pub(super) fn connect(&self, endpoint: Endpoint) {
        with_socket!(self, socket => socket.connect(endpoint));
    }

    /// Returns why there is no connection to a peer that it connects to, if that is known.
    pub(super) fn failure(&self) -> Option<Error> {
        with_socket!(self, socket => socket.failure())
    }

    pub(super) async fn connected(&self) -> Result<()> {
        with_socket!(self, socket => socket.connected().await)
    }

    pub(super) fn events(&self) -> SocketEvents {
        with_socket!(self, socket => socket.events())
    }

    pub(super) async fn send(&self, message: Multipart) -> Result<()> {
        match self {
            Self::Push(socket) => socket.send(message).await,
            Self::Pub(socket) => socket.publish(message).await,
            Self::XPub(socket) => socket.publish(message).await,
            Self::XSub(socket) => socket.send(message).await,
            Self::Pair(socket) => socket.send(message).await,
            Self::Dealer(socket) => socket.send(message).await,
            Self::Pull(_) | Self::Sub(_) | Self::Router(_) => {
                Err(Error::new(ErrorKind::InvalidMessage, "this socket does not send"))
            }
        }
    }

    /// Receives the next item; `None` once the socket is closed, or if it never receives. Dropping the future
    /// loses nothing.
    pub(super) async fn recv(&mut self) -> Option<Received> {
        match self {
            Self::Push(_) | Self::Pub(_) => None,
            Self::Pull(socket) => socket.recv().await.map(Received::Message),
            Self::Sub(socket) => socket.recv().await.map(Received::Message),
            Self::XSub(socket) => socket.recv().await.map(Received::Message),
            Self::Pair(socket) => socket.recv().await.map(Received::Message),
            Self::Dealer(socket) => socket.recv().await.map(Received::Message),
            Self::Router(socket) => {
                let (identity, message) = socket.recv().await?;
                let framed = std::iter::once(identity).chain(message.frames().iter().cloned());
                Some(Received::Message(framed.collect()))
            }
            Self::XPub(socket) => Some(match socket.recv().await? {
                FromSubscriber::Subscribed { prefix, .. } => Received::Subscribed(prefix),
                FromSubscriber::Unsubscribed { prefix, .. } => Received::Unsubscribed(prefix),
                FromSubscriber::Message { message, .. } => Received::Message(message),
                _ => Received::Message(Multipart::default()),
            }),
        }
    }

    /// Receives and discards what an XPUB receives, which would otherwise delay its peers. It never returns.
    pub(super) async fn drain(&self) {
        if let Self::XPub(socket) = self {
            while socket.recv().await.is_some() {}
        }
        std::future::pending::<()>().await;
    }

    /// Waits until somebody has subscribed to messages with this topic. Sockets that do not publish return at
    /// once.
    pub(super) async fn subscribed(&self, topic: &[u8]) -> Result<()> {
        match self {
            Self::Pub(socket) => socket.wait_for_subscriber(topic).await,
            Self::XPub(socket) => socket.wait_for_subscriber(topic).await,
            _ => Ok(()),
        }
    }

    /// Returns whether somebody has subscribed to messages with this topic.
    pub(super) fn has_subscriber(&self, topic: &[u8]) -> bool {
        match self {
            Self::Pub(socket) => socket.has_subscriber(topic),
            Self::XPub(socket) => socket.has_subscriber(topic),
            _ => true,
        }
    }

    /// Returns the number of messages that were accepted and dropped again.
    pub(super) fn dropped(&self) -> u64 {
        match self {
            Self::Push(socket) => socket.dropped(),
            Self::Pub(socket) => socket.dropped(),
            Self::XPub(socket) => socket.dropped(),
            Self::XSub(socket) => socket.dropped(),
            Self::Pair(socket) => socket.dropped(),
            Self::Dealer(socket) => socket.dropped(),
            Self::Pull(_) | Self::Sub(_) | Self::Router(_) => 0,
        }
    }

    /// Sends accepted messages for at most `linger`. Returns the number of messages that were not sent.
    pub(super) async fn close(&self, linger: Duration) -> usize {
        match self {
            Self::Push(socket) => socket.close(linger).await,
            Self::Pub(socket) => socket.close(linger).await,
            Self::XPub(socket) => socket.close(linger).await,
            Self::XSub(socket) => socket.close(linger).await,
            Self::Pair(socket) => socket.close(linger).await,
            Self::Dealer(socket) => socket.close(linger).await,
            Self::Router(socket) => socket.close(linger).await,
            Self::Pull(socket) => {
                socket.close().await;
                0
            }
            Self::Sub(socket) => {
                socket.close().await;
                0
            }
        }
    }
}

/// Checks that a socket of this type has an identity, if one was given.
fn check_identity(kind: SocketType, options: &SocketOptions<Identified>) -> Result<(), Usage> {
    if options.settings().identity.is_empty() || kind.announces_identity() {
        return Ok(());
    }
    Err(Usage(format!("--identity: {kind} has none, only DEALER, ROUTER and REQ have: leave it out")))
}
