//! What can be set on a socket.

use std::time::Duration;

use bytes::Bytes;

use crate::link::admission::Admission;
use crate::link::memory::MemoryBudget;
use crate::link::outbox::HighWaterMark;
use crate::link::violations::Violations;
use crate::security::Security;
use crate::{Error, ErrorKind, Result};
use xmsg_zmtp::{IDENTITY_MAX, Limits, MessageLimits, SocketType};

/// Options of the TCP connections beneath a socket. `TCP_NODELAY` is always on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    /// Ask after a silent peer from this time on (`SO_KEEPALIVE`), so that one that vanished is noticed.
    /// Default 60 s; `None`: never.
    pub keepalive: Option<Duration>,
    /// How long it has to answer then; it is asked three times. Default 60 s. The kernel counts whole seconds, so 3 s is the
    /// least.
    pub keepalive_timeout: Duration,
    /// Bytes of the kernel's send buffer, or what an `inproc://` pipe holds in each direction, at least 4 KiB; `None`: the system decides, 1 MiB for a pipe.
    pub send_buffer: Option<usize>,
    /// Bytes of the kernel's receive buffer; `None`: the system decides.
    pub receive_buffer: Option<usize>,
    /// Closes a connection at once, with a reset (`SO_LINGER` of no time): it leaves no port in `TIME_WAIT` behind, and what is not sent by then is
    /// lost. For a peer that has answered all that matters. Default no.
    pub reset_on_close: bool,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            keepalive: Some(Duration::from_secs(60)),
            keepalive_timeout: Duration::from_secs(60),
            send_buffer: None,
            receive_buffer: None,
            reset_on_close: false,
        }
    }
}

/// Options of a socket. All have documented defaults: change what you need.
///
/// ```
/// use std::time::Duration;
/// use xmsg_zmq::SocketOptions;
/// let options = SocketOptions { heartbeat_interval: Some(Duration::from_secs(5)), ..SocketOptions::default() };
/// ```
#[derive(Clone, Debug)]
pub struct SocketOptions {
    /// The identity that DEALER, REQ and ROUTER sockets announce: at most 255 bytes, of which the first is not zero. Any other one is an error of
    /// [`bind`](crate::Dealer::bind), and of connections. Default: none.
    pub identity: Bytes,
    /// Among whom identities of a ROUTER's peers are told apart. Default: among all.
    pub identity_scope: IdentityScope,
    /// How much is held for one connection until it is written. Above it a sender waits, or messages are dropped ([`overflow`](Self::overflow)). Default 64 MiB, any
    /// number of messages. A single message may always go.
    pub send_high_water_mark: HighWaterMark,
    /// Bytes of memory that are held until what lies in it is received. Above it nothing more is read from the peers. Default 16 MiB.
    pub receive_high_water_mark: usize,
    /// How long a dropped socket goes on trying to send what it accepted. Default 5 s.
    pub linger: Duration,
    /// How long one attempt to connect may take, with its handshake. A name is looked up for each attempt; when it has several
    /// addresses, they are tried in turn, each for an equal share of this time; the handshake has a share, too. Default 10 s.
    pub connect_timeout: Duration,
    /// The first pause before a connection is tried again; it doubles each time. At least 1 ms. Default 100 ms.
    pub reconnect_min: Duration,
    /// The longest such pause; `reconnect_min`, if that is longer. A publisher whose connection is back holds its messages for as long
    /// as it was away, and for this time at most, so that subscribers can come back first. Default 1 s.
    pub reconnect_max: Duration,
    /// Ask after a peer (ZMTP 3.1) that was silent for so long; `None` or no time at all: never. Default: never.
    pub heartbeat_interval: Option<Duration>,
    /// How long it has to answer then. Default 30 s.
    pub heartbeat_timeout: Duration,
    /// A publisher sends a connected peer only what it subscribed to. Default no: an xMsg proxy filters better, and a fresh
    /// subscription need not reach every publisher first. Meant for thin links.
    pub filter: bool,
    /// What PUB, XPUB and XSUB sockets do with a message for a peer whose send queue is at its high-water mark. What is dropped is counted, and
    /// told as an [event](super::SocketEvent::PeerTooSlow).
    pub overflow: Overflow,
    /// The security mechanism. Default: none.
    pub security: Security,
    /// What a peer may send.
    pub limits: Limits,
    /// The largest message that is sent. One above this, or above what the peer has told that it takes, is refused at once. Default
    /// (`None`): as large as `limits` lets a peer send.
    pub send_limits: Option<MessageLimits>,
    /// What the messages that come in over a bound socket's connections may take of the memory until they are whole. Clones of the options share
    /// it. Default: no limit.
    pub memory: MemoryBudget,
    /// How many connections a bound socket lets in. Clones of the options share it. Default: see
    /// [`AdmissionLimits`](super::AdmissionLimits).
    pub admission: Admission,
    /// What counts the connections of a bound socket that were ended because the peer broke a rule. Clones of the options share it.
    pub violations: Violations,
    /// Options of the transport.
    pub tcp: TcpOptions,
}

/// What happens to a message for a subscriber whose send queue is at its high-water mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overflow {
    /// As ZeroMQ has it for peers that have connected to the socket: the message is dropped for this one, so that a slow subscriber stops
    /// nobody. A peer that the socket connects to, most often a proxy, is waited for.
    #[default]
    Usual,
    /// Whoever sends waits.
    Wait,
    /// The message is dropped.
    DropNewest,
    /// Those that have waited longest are dropped. With a high-water mark of one message only the last one waits (`ZMQ_CONFLATE`).
    DropOldest,
}

/// Among whom an identity names one peer of a ROUTER.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityScope {
    /// Among all peers of the socket. Whoever has proved to be somebody else than the holder of an identity can't have it.
    #[default]
    Socket,
    /// Among the peers that have proved to be the same: nobody can take an identity away from others, not even before they come.
    /// Such a peer is reached with [`Router::try_send_to`](super::Router::try_send_to).
    Principal,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            identity: Bytes::new(),
            identity_scope: IdentityScope::default(),
            memory: MemoryBudget::default(),
            send_high_water_mark: HighWaterMark::bytes(64 << 20),
            receive_high_water_mark: 16 << 20,
            linger: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(10),
            reconnect_min: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(1),
            heartbeat_interval: None,
            heartbeat_timeout: Duration::from_secs(30),
            filter: false,
            overflow: Overflow::default(),
            security: Security::Null,
            limits: Limits::default(),
            send_limits: None,
            admission: Admission::default(),
            violations: Violations::default(),
            tcp: TcpOptions::default(),
        }
    }
}

impl SocketOptions {
    /// The largest message that is sent to a peer that has told no limits.
    pub(crate) fn send_limits(&self) -> MessageLimits {
        self.send_limits.unwrap_or_else(|| MessageLimits::from(&self.limits))
    }

    /// Whether the identity is one that may be announced.
    pub(crate) fn check_identity(&self) -> Result<()> {
        let what = match self.identity.first() {
            Some(0) => "it begins with a zero byte, as only names that a ROUTER gives do",
            _ if self.identity.len() > IDENTITY_MAX => "it is longer than 255 bytes",
            _ => return Ok(()),
        };
        let shown = self.identity[..self.identity.len().min(32)].escape_ascii();
        Err(Error::new(
            ErrorKind::InvalidOption,
            format!("the identity \"{shown}\" can't be announced: {what}"),
        ))
    }

    /// What the engine of one connection is told.
    pub(crate) fn engine(&self, socket_type: SocketType) -> xmsg_zmtp::Options {
        xmsg_zmtp::Options {
            identity: self.identity.clone(),
            heartbeat_interval: self.heartbeat_interval,
            heartbeat_timeout: self.heartbeat_timeout,
            limits: self.limits.clone(),
            messages_from_subscribers: socket_type == SocketType::Xpub,
            ..xmsg_zmtp::Options::new(socket_type)
        }
    }
}
