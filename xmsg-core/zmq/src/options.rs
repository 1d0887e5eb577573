//! The options of sockets.

// Longer than 500 lines: one list of options, each with its documentation and default.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::fault::CriticalTasks;
use crate::link::admission::Admission;
use crate::link::send_queue::HighWaterMark;
#[cfg(feature = "socks")]
use crate::link::socks::SocksProxy;
use crate::link::violations::Violations;
use crate::memory_budget::MemoryBudget;
use crate::request::RequestSettings;
use crate::router::RouterSettings;
use crate::security::Security;
use crate::xpub::XPubSettings;
use crate::{Error, ErrorKind, Result};
use xmsg_zmtp::{IDENTITY_MAX, Limits, MessageLimits, Principal, SocketType};

/// Options of the TCP connections beneath a socket. `TCP_NODELAY` is always on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    /// The time after which a silent peer is probed (`SO_KEEPALIVE`), so that one that vanished is noticed.
    /// `None` means never. Default 60 s.
    pub keepalive: Option<Duration>,
    /// How long the peer may take to answer; it is probed three times. Default 60 s. The kernel counts whole
    /// seconds, so the minimum is 3 s.
    pub keepalive_timeout: Duration,
    /// The size of the kernel's send buffer in bytes, or of an `inproc://` pipe in each direction, at least 4
    /// KiB. `None` means that the system decides, or 1 MiB for a pipe.
    pub send_buffer: Option<usize>,
    /// The size of the kernel's receive buffer in bytes. `None` means that the system decides.
    pub receive_buffer: Option<usize>,
    /// Closes a connection at once, with a reset (`SO_LINGER` with a timeout of zero). This leaves no port in
    /// `TIME_WAIT`, and loses what is not sent by then. It is meant for a peer that has answered all that
    /// matters. Default `false`.
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

/// Sockets that send messages: all except SUB, PULL and REQ. REQ sends one at a time.
pub trait Sends {}

/// Sockets that receive messages: all except PUB and PUSH.
pub trait Receives {}

/// Sockets that may have an identity by which a ROUTER knows them: DEALER, REQ and ROUTER.
pub trait HasIdentity {}

/// Sockets that send each message to many peers: PUB, XPUB and XSUB.
pub trait FansOut {}

/// Sockets that know the authenticated identities of their peers and may end their connections: ROUTER and
/// REP.
pub trait KnowsPeers {}

/// Sockets that can keep only the last message of each peer: SUB, PULL and DEALER.
pub trait Conflates {}

/// Stands for a socket of any type in [`SocketOptions`]. These then have only the options that all types
/// have.
#[derive(Clone, Copy, Debug)]
pub struct AnySocket(());

/// Options of a socket of type `S`. All have documented defaults, so change only what you need. A type has
/// only the options that apply to it, as the traits [`Sends`], [`Receives`], [`HasIdentity`], [`FansOut`],
/// [`KnowsPeers`] and [`Conflates`] say; other options do not compile.
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
    /// Returns the defaults of the options that sockets of all types have.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }
}

impl<S> SocketOptions<S> {
    /// Returns the same options for a socket of another type. Options that only one type has can be set
    /// afterwards.
    #[must_use]
    pub fn for_socket<T>(&self) -> SocketOptions<T> {
        self.settings.clone().into()
    }

    /// Returns the values of the options.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn into_settings(self) -> Settings {
        self.settings
    }

    /// Returns the options with one setting changed.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Sets the security mechanism. The default is NULL, which means no security.
    #[must_use]
    pub fn security(self, security: Security) -> Self {
        self.with(|settings| settings.security = security)
    }

    /// Sets limits for what a peer may send: sizes of messages, numbers of frames and subscriptions, and
    /// more.
    #[must_use]
    pub fn limits(self, limits: Limits) -> Self {
        self.with(|settings| settings.limits = limits)
    }

    /// Sets how long one attempt to connect may take, including the handshake. A name is looked up for each
    /// attempt. If it has several addresses, they are tried one after another; each gets an equal share of
    /// this time, and so does the handshake. Default 10 s.
    #[must_use]
    pub fn connect_timeout(self, time: Duration) -> Self {
        self.with(|settings| settings.connect_timeout = time)
    }

    /// Sets the first pause before a reconnection attempt, which is at least 1 ms. The pause doubles with
    /// each attempt. Default 100 ms.
    #[must_use]
    pub fn reconnect_min(self, pause: Duration) -> Self {
        self.with(|settings| settings.reconnect_min = pause)
    }

    /// Sets the longest pause before a reconnection attempt. It is at least
    /// [`reconnect_min`](Self::reconnect_min). A publisher that has reconnected holds its messages back for
    /// as long as the connection was lost, and at most for this time, so that subscribers can come back
    /// first. Default 1 s.
    #[must_use]
    pub fn reconnect_max(self, pause: Duration) -> Self {
        self.with(|settings| settings.reconnect_max = pause)
    }

    /// Sets the time of silence after which a peer is sent a heartbeat (PING of ZMTP 3.1). `None`, or zero,
    /// means never. Default: never.
    #[must_use]
    pub fn heartbeat_interval(self, time: impl Into<Option<Duration>>) -> Self {
        let time = time.into();
        self.with(|settings| settings.heartbeat_interval = time)
    }

    /// Sets how long the peer may take to answer a heartbeat. Default 30 s.
    #[must_use]
    pub fn heartbeat_timeout(self, time: Duration) -> Self {
        self.with(|settings| settings.heartbeat_timeout = time)
    }

    /// Sets the memory budget of a bound socket. It covers the connections, what they have received in part,
    /// their send queues, and their subscriptions. Clones of the options share it. Default: no limit.
    #[must_use]
    pub fn memory(self, memory: MemoryBudget) -> Self {
        self.with(|settings| settings.memory = memory)
    }

    /// Sets how many connections a bound socket admits. Clones of the options share the counts. For the
    /// default, see [`AdmissionLimits`](super::AdmissionLimits).
    #[must_use]
    pub fn admission(self, admission: Admission) -> Self {
        self.with(|settings| settings.admission = admission)
    }

    /// Sets the counter of connections to a bound socket that were ended because the peer broke a rule.
    /// Clones of the options share it.
    #[must_use]
    pub fn violations(self, violations: Violations) -> Self {
        self.with(|settings| settings.violations = violations)
    }

    /// Sets who is told when a task panics that the socket can't go on without: accepting connections, or
    /// keeping one that it makes. Clones of the options share it. By default, a panic is only logged.
    #[must_use]
    pub fn critical(self, critical: CriticalTasks) -> Self {
        self.with(|settings| settings.critical = critical)
    }

    /// Sets the options of the transport.
    #[must_use]
    pub fn tcp(self, tcp: TcpOptions) -> Self {
        self.with(|settings| settings.tcp = tcp)
    }

    /// Makes TCP connections through a SOCKS5 proxy (`ZMQ_SOCKS_PROXY`), which resolves the names. Default:
    /// none.
    #[cfg(feature = "socks")]
    #[must_use]
    pub fn socks_proxy(self, proxy: SocksProxy) -> Self {
        self.with(|settings| settings.socks_proxy = Some(proxy))
    }

    /// Sets the largest message that is sent. A message that exceeds this, or the limits that the peer has
    /// announced, is refused at once. Default: as large as [`limits`](Self::limits) allow a peer to send.
    #[must_use]
    pub fn send_limits(self, limits: MessageLimits) -> Self {
        self.with(|settings| settings.send_limits = Some(limits))
    }
}

impl<S: Sends> SocketOptions<S> {
    /// Sets how much is queued for one connection until it is written. Above it, a sender waits, or messages
    /// are dropped ([`overflow`](Self::overflow)). A single message is always accepted. Default 64 MiB, any
    /// number of messages.
    #[must_use]
    pub fn send_high_water_mark(self, mark: HighWaterMark) -> Self {
        self.with(|settings| settings.send_high_water_mark = mark)
    }

    /// Sets how long a dropped socket tries to send what it has accepted. Default 5 s.
    #[must_use]
    pub fn linger(self, time: Duration) -> Self {
        self.with(|settings| settings.linger = time)
    }
}

impl<S: Receives> SocketOptions<S> {
    /// Sets how many bytes of memory may be held by messages that wait to be received. Above it, nothing more
    /// is read from the peers. Default 16 MiB.
    #[must_use]
    pub fn receive_high_water_mark(self, bytes: usize) -> Self {
        self.with(|settings| settings.receive_high_water_mark = bytes)
    }
}

impl<S: HasIdentity> SocketOptions<S> {
    /// Sets the identity that the socket announces: at most 255 bytes, of which the first is not zero. Any
    /// other identity makes [`bind`](crate::Dealer::bind) and all connections fail. Default: none.
    #[must_use]
    pub fn identity(self, identity: impl Into<Bytes>) -> Self {
        let identity = identity.into();
        self.with(|settings| settings.identity = identity)
    }

    /// Sends every new peer a message of one empty frame first (`ZMQ_PROBE_ROUTER`). A ROUTER thus learns
    /// which peers are connected before they have anything to send. Default `false`.
    #[must_use]
    pub fn probe_router(self, probe: bool) -> Self {
        self.with(|settings| settings.probe_router = probe)
    }
}

impl<S: FansOut> SocketOptions<S> {
    /// Sets what happens to a message for a peer whose send queue is at its high-water mark. Dropped messages
    /// are counted and reported as an [event](super::SocketEvent::PeerTooSlow).
    #[must_use]
    pub fn overflow(self, overflow: Overflow) -> Self {
        self.with(|settings| settings.overflow = overflow)
    }
}

impl<S: KnowsPeers> SocketOptions<S> {
    /// Sets a rule for which peers that connect to the socket may stay. It is called after the handshake,
    /// with the address of the peer and its authenticated principal. When the result of the rule may have
    /// changed, [`recheck`](crate::Router::recheck) applies it to connected peers. Default: all that the
    /// [security](Self::security) admits.
    #[must_use]
    pub fn keeps(self, rule: impl Fn(&str, Option<&Principal>) -> bool + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.keeps = Some(PeerRule(Arc::new(rule))))
    }
}

impl<S: Conflates> SocketOptions<S> {
    /// Keeps only the last message of each peer that was not received yet (`ZMQ_CONFLATE`), for states that
    /// replace each other. Replaced messages are counted. A peer without an identity that reconnects counts
    /// as another peer. Default `false`.
    #[must_use]
    pub fn conflate(self, conflate: bool) -> Self {
        self.with(|settings| settings.conflate = conflate)
    }
}

impl SocketOptions<crate::Publisher> {
    /// Sends a peer that the socket connects to only what that peer has subscribed to. Default `false`: an
    /// xMsg proxy filters better, and a new subscription need not reach every publisher first. It is meant
    /// for links with little bandwidth.
    #[must_use]
    pub fn filter(self, filter: bool) -> Self {
        self.with(|settings| settings.filter = filter)
    }
}

/// The values of the options of a socket, which [`SocketOptions`] contain, for reading.
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
    /// See [`SocketOptions::send_limits`]. `None` means as large as `limits` allow a peer to send.
    pub send_limits: Option<MessageLimits>,
    /// See [`SocketOptions::memory`].
    pub memory: MemoryBudget,
    /// See [`SocketOptions::admission`].
    pub admission: Admission,
    /// See [`SocketOptions::violations`].
    pub violations: Violations,
    /// See [`SocketOptions::critical`].
    pub critical: CriticalTasks,
    /// See [`SocketOptions::tcp`].
    pub tcp: TcpOptions,
    /// See [`SocketOptions::socks_proxy`].
    #[cfg(feature = "socks")]
    pub socks_proxy: Option<SocksProxy>,
    /// See [`SocketOptions::keeps`].
    pub keeps: Option<PeerRule>,
    /// The options that only ROUTER has.
    pub router: RouterSettings,
    /// The options that only REQ has.
    pub request: RequestSettings,
    /// The options that only XPUB has.
    pub xpub: XPubSettings,
}

/// A rule for which peers may stay connected.
#[derive(Clone)]
pub struct PeerRule(Arc<Keeps>);

type Keeps = dyn Fn(&str, Option<&Principal>) -> bool + Send + Sync;

impl PeerRule {
    /// Returns whether the peer with this address and this authenticated principal may stay.
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
    /// For a peer that has connected to the socket, the message is dropped, so that a slow subscriber does
    /// not stop the others. This is what ZeroMQ does. For a peer that the socket connects to, which most
    /// often is a proxy, the sender waits.
    #[default]
    Usual,
    /// The sender waits.
    Wait,
    /// The message is dropped.
    DropNewest,
    /// The oldest messages are dropped. With a high-water mark of one message, only the last one is queued
    /// (`ZMQ_CONFLATE`).
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
            critical: CriticalTasks::default(),
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
    /// The largest message that is sent to a peer that has announced no limits.
    pub(crate) fn send_limits(&self) -> MessageLimits {
        self.send_limits.unwrap_or_else(|| MessageLimits::from(&self.limits))
    }

    /// Checks whether the identity may be announced.
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

    /// The options for the engine of one connection.
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
