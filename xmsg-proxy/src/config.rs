//! The options of a proxy.

use std::sync::Arc;
use std::time::Duration;

use xmsg_zmq::fault::CriticalTasks;
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmq::{Admission, AdmissionLimits, HighWaterMark, TcpOptions};
use xmsg_zmtp::Limits;

use crate::default_memory_limit;
use crate::policy::{Policy, TopicPolicy};
use crate::security::{Authority, Mechanism};
use crate::upstream::Upstream;

/// Which messages the proxy asks publishers to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PublishersSend {
    /// Messages to which somebody has subscribed. This saves bandwidth.
    #[default]
    Subscribed,
    /// All messages. A new subscription need not reach the publishers first, so that no message is missed.
    All,
}

impl PublishersSend {
    /// Returns the name in a settings file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Subscribed => "subscribed",
            Self::All => "all",
        }
    }
}

impl std::str::FromStr for PublishersSend {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Subscribed, Self::All]
            .into_iter()
            .find(|all| all.name() == name)
            .ok_or_else(|| format!("{name:?} is not what publishers can send: subscribed or all"))
    }
}

impl std::fmt::Display for PublishersSend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The options and limits of the data plane.
#[derive(Clone, Debug)]
pub struct Config {
    /// What happens when a subscriber's queue reaches its high-water mark. Default: [`Policy::DropNewest`].
    pub policy: Policy,
    /// What happens instead for messages whose topic starts with one of these prefixes. Default: none.
    pub policies: Vec<TopicPolicy>,
    /// The high-water mark of the queue of one subscriber. Default: 256 MiB, with any number of messages.
    pub high_water_mark: HighWaterMark,
    /// The most bytes in all queues together. Above half of it, a subscriber with more than an equal share of
    /// the other half is treated as if it were at its high-water mark, but each subscriber may always have 64
    /// KiB. The limit is never more than what the memory budget has left beside other uses. Default: 1 GiB.
    pub queue_ceiling: usize,
    /// The memory budget of all peers together: messages that have been received in part, queues,
    /// subscriptions and connections. Near its limit, the peer that holds most is disconnected first, and new
    /// connections are refused. Default: [`default_memory_limit::default_limit`].
    pub memory: MemoryBudget,
    /// Which messages the proxy asks publishers to send. Default: [`PublishersSend::Subscribed`].
    pub publishers_send: PublishersSend,
    /// Other proxies to whose subscribers' ports this one connects. Default: none.
    pub upstreams: Vec<Upstream>,
    /// The largest number of connections to all three ports. A connection beyond it is closed at once.
    /// Default: 100,000.
    pub connections: usize,
    /// The largest number of connections whose handshake is in progress. A connection beyond it is closed at
    /// once. Default: 4096.
    pub handshakes: usize,
    /// The largest number of connections from one address whose handshake is in progress. A connection beyond
    /// it is closed at once. Default: 256.
    pub handshakes_per_address: usize,
    /// The time without received data after which the proxy checks whether a peer is alive. It checks
    /// publishers and control sockets with heartbeats (ZMTP 3.1), and the hosts of all peers with TCP
    /// keepalive. Default: 30 s. With `None` there are no heartbeats, and keepalive is as `tcp` says.
    pub heartbeat_interval: Option<Duration>,
    /// How long a peer has to answer a heartbeat. Default: 30 s.
    pub heartbeat_timeout: Duration,
    /// The security mechanism of all three ports. Default: NULL, that is, no security.
    pub security: Mechanism,
    /// Who may connect, and with which rights. By default everybody may do everything, on ports without
    /// security.
    pub authority: Arc<Authority>,
    /// Limits for what one peer may send.
    pub limits: Limits,
    /// Options of the TCP transport.
    pub tcp: TcpOptions,
    /// Who is told when a task panics that the proxy can't go on without. Default: nobody else; a proxy of
    /// its own [tells](crate::Proxy::failed) it.
    pub critical: CriticalTasks,
}

impl Config {
    /// Returns the TCP options of accepted connections. Keepalive detects that the host of an idle peer is
    /// gone as soon as heartbeats would.
    pub(crate) fn accepted_tcp(&self) -> TcpOptions {
        let mut tcp = self.tcp.clone();
        if let (Some(keepalive), Some(interval)) = (&mut tcp.keepalive, self.heartbeat_interval) {
            *keepalive = interval.min(*keepalive);
            tcp.keepalive_timeout = self.heartbeat_timeout.min(tcp.keepalive_timeout);
        }
        tcp
    }
}

impl Default for Config {
    fn default() -> Self {
        let admission = AdmissionLimits::default();
        Self {
            policy: Policy::default(),
            policies: Vec::new(),
            high_water_mark: HighWaterMark::bytes(256 << 20),
            queue_ceiling: 1 << 30,
            memory: MemoryBudget::new(default_memory_limit::default_limit()),
            publishers_send: PublishersSend::default(),
            upstreams: Vec::new(),
            connections: admission.connections,
            handshakes: admission.handshakes,
            handshakes_per_address: admission.handshakes_per_address,
            heartbeat_interval: Some(Duration::from_secs(30)),
            heartbeat_timeout: Duration::from_secs(30),
            security: Mechanism::default(),
            authority: Arc::default(),
            limits: Limits::default(),
            tcp: TcpOptions::default(),
            critical: CriticalTasks::default(),
        }
    }
}

impl Config {
    /// Returns the limits and counts of connections for a proxy with these options.
    pub(crate) fn admission(&self) -> Admission {
        let Self { connections, handshakes, handshakes_per_address, .. } = *self;
        let limits = AdmissionLimits { connections, handshakes, handshakes_per_address };
        Admission::with_memory(limits, self.memory.clone())
    }
}
