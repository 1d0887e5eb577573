//! What can be set on a socket.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::link::admission::Admission;
use crate::link::memory::MemoryBudget;
use crate::link::outbox::HighWaterMark;
#[cfg(feature = "socks")]
use crate::link::socks::SocksProxy;
use crate::link::violations::Violations;
use crate::request::RequestSettings;
use crate::router::RouterSettings;
use crate::security::Security;
use crate::xpub::XPubSettings;
use crate::{Error, ErrorKind, Result};
use xmsg_zmtp::{IDENTITY_MAX, Limits, MessageLimits, Principal, SocketType};

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

/// Sockets that send messages: all but SUB, PULL and REQ, of which the last sends one at a time.
pub trait Sends {}

/// Sockets that receive messages: all but PUB and PUSH.
pub trait Receives {}

/// Sockets that may have an identity, by which a ROUTER knows them: DEALER, REQ and ROUTER.
pub trait HasIdentity {}

/// Sockets that send each message to many peers: PUB, XPUB and XSUB.
pub trait FansOut {}

/// Sockets that know who their peers have proved to be, and may end their connections: ROUTER and REP.
pub trait KnowsPeers {}

/// Sockets for which only the last message may count: SUB, PULL and DEALER.
pub trait Conflates {}

/// Stands for a socket of any type in [`SocketOptions`], which are then those that all of them have.
#[derive(Clone, Copy, Debug)]
pub struct AnySocket(());

/// Options of a socket of type `S`. All have documented defaults: change what you need. A type has only the options that mean something to it, as
/// the traits [`Sends`], [`Receives`], [`HasIdentity`], [`FansOut`], [`KnowsPeers`] and [`Conflates`] say; others do not compile.
///
/// ```
/// use std::time::Duration;
/// use xmsg_zmq::{Dealer, HighWaterMark, SocketOptions};
/// let dealer = Dealer::new(
///     SocketOptions::default()
///         .identity("scale-7")
///         .send_high_water_mark(HighWaterMark::messages(1000))
///         .heartbeat_interval(Duration::from_secs(5)),
/// );
/// ```
///
/// A SUB socket has no identity:
///
/// ```compile_fail,E0599
/// use xmsg_zmq::{SocketOptions, Subscriber};
/// let subscriber = Subscriber::new(SocketOptions::default().identity("scale-7"));
/// ```
///
/// Sockets of several types may have options in common:
///
/// ```
/// use std::time::Duration;
/// use xmsg_zmq::{Pull, Push, SocketOptions};
/// let common = SocketOptions::any().connect_timeout(Duration::from_secs(3));
/// let ventilator = Push::new(common.for_socket().linger(Duration::from_secs(30)));
/// let sink = Pull::new(common.for_socket());
/// ```
pub struct SocketOptions<S = AnySocket> {
    settings: Settings,
    socket: PhantomData<fn() -> S>,
}

impl<S> Clone for SocketOptions<S> {
    fn clone(&self) -> Self {
        self.settings.clone().into()
    }
}

impl<S> fmt::Debug for SocketOptions<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

impl<S> Default for SocketOptions<S> {
    fn default() -> Self {
        Settings::default().into()
    }
}

impl<S> From<Settings> for SocketOptions<S> {
    fn from(settings: Settings) -> Self {
        Self { settings, socket: PhantomData }
    }
}

impl SocketOptions {
    /// The defaults of what sockets of all types have.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }
}

impl<S> SocketOptions<S> {
    /// The same for a socket of another type. Set what only one of the types has afterwards.
    #[must_use]
    pub fn for_socket<T>(&self) -> SocketOptions<T> {
        self.settings.clone().into()
    }

    /// What is set.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn into_settings(self) -> Settings {
        self.settings
    }

    /// The same with one setting changed.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// The security mechanism. Default: none.
    #[must_use]
    pub fn security(self, security: Security) -> Self {
        self.with(|settings| settings.security = security)
    }

    /// What a peer may send: sizes of messages, and numbers of their frames, of subscriptions and more.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        self.with(|settings| settings.limits = limits)
    }

    /// How long one attempt to connect may take, with its handshake. A name is looked up for each attempt; when it has several
    /// addresses, they are tried in turn, each for an equal share of this time; the handshake has a share, too. Default 10 s.
    #[must_use]
    pub fn connect_timeout(self, time: Duration) -> Self {
        self.with(|settings| settings.connect_timeout = time)
    }

    /// The first pause before a connection is tried again; it doubles each time. At least 1 ms. Default 100 ms.
    #[must_use]
    pub fn reconnect_min(self, pause: Duration) -> Self {
        self.with(|settings| settings.reconnect_min = pause)
    }

    /// The longest such pause; that of [`reconnect_min`](Self::reconnect_min), if that is longer. A publisher whose connection is back holds its
    /// messages for as long as it was away, and for this time at most, so that subscribers can come back first. Default 1 s.
    #[must_use]
    pub fn reconnect_max(self, pause: Duration) -> Self {
        self.with(|settings| settings.reconnect_max = pause)
    }

    /// Asks after a peer (ZMTP 3.1) that was silent for so long; `None`, or no time at all: never. Default: never.
    #[must_use]
    pub fn heartbeat_interval(self, time: impl Into<Option<Duration>>) -> Self {
        let time = time.into();
        self.with(|settings| settings.heartbeat_interval = time)
    }

    /// How long the peer has to answer then. Default 30 s.
    #[must_use]
    pub fn heartbeat_timeout(self, time: Duration) -> Self {
        self.with(|settings| settings.heartbeat_timeout = time)
    }

    /// What the messages that come in over a bound socket's connections may take of the memory until they are whole. Clones of the options share
    /// it. Default: no limit.
    #[must_use]
    pub fn memory(self, memory: MemoryBudget) -> Self {
        self.with(|settings| settings.memory = memory)
    }

    /// How many connections a bound socket lets in. Clones of the options share it. Default: see
    /// [`AdmissionLimits`](super::AdmissionLimits).
    #[must_use]
    pub fn admission(self, admission: Admission) -> Self {
        self.with(|settings| settings.admission = admission)
    }

    /// What counts the connections of a bound socket that were ended because the peer broke a rule. Clones of the options share it.
    #[must_use]
    pub fn violations(self, violations: Violations) -> Self {
        self.with(|settings| settings.violations = violations)
    }

    /// Options of the transport.
    #[must_use]
    pub fn tcp(self, tcp: TcpOptions) -> Self {
        self.with(|settings| settings.tcp = tcp)
    }

    /// Makes TCP connections through a SOCKS5 proxy (`ZMQ_SOCKS_PROXY`), which looks up the names. Default: none.
    #[cfg(feature = "socks")]
    #[must_use]
    pub fn socks_proxy(self, proxy: SocksProxy) -> Self {
        self.with(|settings| settings.socks_proxy = Some(proxy))
    }

    /// The largest message that is sent. One above this, or above what the peer has told that it takes, is refused at once. Default: as
    /// large as [`limits`](Self::limits) let a peer send.
    #[must_use]
    pub fn send_limits(self, limits: MessageLimits) -> Self {
        self.with(|settings| settings.send_limits = Some(limits))
    }
}

impl<S: Sends> SocketOptions<S> {
    /// How much is held for one connection until it is written. Above it a sender waits, or messages are dropped
    /// ([`overflow`](Self::overflow)). Default 64 MiB, any number of messages. A single message may always go.
    #[must_use]
    pub fn send_high_water_mark(self, mark: HighWaterMark) -> Self {
        self.with(|settings| settings.send_high_water_mark = mark)
    }

    /// How long a dropped socket goes on trying to send what it accepted. Default 5 s.
    #[must_use]
    pub fn linger(self, time: Duration) -> Self {
        self.with(|settings| settings.linger = time)
    }
}

impl<S: Receives> SocketOptions<S> {
    /// Bytes of memory that are held until what lies in it is received. Above it nothing more is read from the peers. Default 16 MiB.
    #[must_use]
    pub fn receive_high_water_mark(self, bytes: usize) -> Self {
        self.with(|settings| settings.receive_high_water_mark = bytes)
    }
}

impl<S: HasIdentity> SocketOptions<S> {
    /// The identity that the socket announces: at most 255 bytes, of which the first is not zero. Any other one is an error of
    /// [`bind`](crate::Dealer::bind), and of connections. Default: none.
    #[must_use]
    pub fn identity(self, identity: impl Into<Bytes>) -> Self {
        let identity = identity.into();
        self.with(|settings| settings.identity = identity)
    }

    /// Sends every new peer a message of one empty frame first (`ZMQ_PROBE_ROUTER`): a ROUTER so learns who is there before that one has
    /// anything to say. Default no.
    #[must_use]
    pub fn probe_router(self, probe: bool) -> Self {
        self.with(|settings| settings.probe_router = probe)
    }
}

impl<S: FansOut> SocketOptions<S> {
    /// What becomes of a message for a peer whose send queue is at its high-water mark. What is dropped is counted, and
    /// told as an [event](super::SocketEvent::PeerTooSlow).
    #[must_use]
    pub fn overflow(self, overflow: Overflow) -> Self {
        self.with(|settings| settings.overflow = overflow)
    }
}

impl<S: KnowsPeers> SocketOptions<S> {
    /// A rule of which peers that connect to the socket may be there, which is asked once they have: it is told the peer's address and who it has
    /// proved to be. When something has changed that the rule knows of, [`recheck`](crate::Router::recheck) applies it to those who are there.
    /// Default: all that the [security](Self::security) lets in.
    #[must_use]
    pub fn keeps(self, rule: impl Fn(&str, Option<&Principal>) -> bool + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.keeps = Some(PeerRule(Arc::new(rule))))
    }
}

impl<S: Conflates> SocketOptions<S> {
    /// Keeps of each peer only the last message that was not received yet (`ZMQ_CONFLATE`), for states that replace each other. The older ones are
    /// counted. A peer without an identity that connects again is another one. Default no.
    #[must_use]
    pub fn conflate(self, conflate: bool) -> Self {
        self.with(|settings| settings.conflate = conflate)
    }
}

impl SocketOptions<crate::Publisher> {
    /// Sends a peer that the socket connects to only what that subscribed to. Default no: an xMsg proxy filters better, and a fresh
    /// subscription need not reach every publisher first. Meant for thin links.
    #[must_use]
    pub fn filter(self, filter: bool) -> Self {
        self.with(|settings| settings.filter = filter)
    }
}

/// What is set on a socket: what [`SocketOptions`] hold, to be looked at.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// See [`SocketOptions::identity`].
    pub identity: Bytes,
    /// See [`SocketOptions::probe_router`].
    pub probe_router: bool,
    /// See [`SocketOptions::send_high_water_mark`].
    pub send_high_water_mark: HighWaterMark,
    /// See [`SocketOptions::receive_high_water_mark`].
    pub receive_high_water_mark: usize,
    /// See [`SocketOptions::conflate`].
    pub conflate: bool,
    /// See [`SocketOptions::linger`].
    pub linger: Duration,
    /// See [`SocketOptions::connect_timeout`].
    pub connect_timeout: Duration,
    /// See [`SocketOptions::reconnect_min`].
    pub reconnect_min: Duration,
    /// See [`SocketOptions::reconnect_max`].
    pub reconnect_max: Duration,
    /// See [`SocketOptions::heartbeat_interval`].
    pub heartbeat_interval: Option<Duration>,
    /// See [`SocketOptions::heartbeat_timeout`].
    pub heartbeat_timeout: Duration,
    /// See [`SocketOptions::filter`].
    pub filter: bool,
    /// See [`SocketOptions::overflow`].
    pub overflow: Overflow,
    /// See [`SocketOptions::security`].
    pub security: Security,
    /// See [`SocketOptions::limits`].
    pub limits: Limits,
    /// See [`SocketOptions::send_limits`]. `None`: as large as `limits` let a peer send.
    pub send_limits: Option<MessageLimits>,
    /// See [`SocketOptions::memory`].
    pub memory: MemoryBudget,
    /// See [`SocketOptions::admission`].
    pub admission: Admission,
    /// See [`SocketOptions::violations`].
    pub violations: Violations,
    /// See [`SocketOptions::tcp`].
    pub tcp: TcpOptions,
    /// See [`SocketOptions::socks_proxy`].
    #[cfg(feature = "socks")]
    pub socks_proxy: Option<SocksProxy>,
    /// See [`SocketOptions::keeps`].
    pub keeps: Option<PeerRule>,
    /// What only ROUTER has.
    pub router: RouterSettings,
    /// What only REQ has.
    pub request: RequestSettings,
    /// What only XPUB has.
    pub xpub: XPubSettings,
}

/// A rule of which peers may be there.
#[derive(Clone)]
pub struct PeerRule(Arc<Keeps>);

type Keeps = dyn Fn(&str, Option<&Principal>) -> bool + Send + Sync;

impl PeerRule {
    /// Whether the peer of this address, which has proved to be this one, may be there.
    #[must_use]
    pub fn keeps(&self, peer: &str, principal: Option<&Principal>) -> bool {
        (self.0)(peer, principal)
    }
}

impl fmt::Debug for PeerRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerRule(…)")
    }
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

impl Default for Settings {
    fn default() -> Self {
        Self {
            identity: Bytes::new(),
            probe_router: false,
            memory: MemoryBudget::default(),
            send_high_water_mark: HighWaterMark::bytes(64 << 20),
            receive_high_water_mark: 16 << 20,
            conflate: false,
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
            #[cfg(feature = "socks")]
            socks_proxy: None,
            keeps: None,
            router: RouterSettings::default(),
            request: RequestSettings::default(),
            xpub: XPubSettings::default(),
        }
    }
}

impl Settings {
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
