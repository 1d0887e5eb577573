//! What a proxy can be told.

use std::sync::Arc;
use std::time::Duration;

use xmsg_zmq::link::memory::MemoryBudget;
use xmsg_zmq::{Admission, AdmissionLimits, HighWaterMark, TcpOptions};
use xmsg_zmtp::Limits;

use crate::memory;
use crate::policy::{Policy, TopicPolicy};
use crate::security::{Authority, Mechanism};

/// What publishers are told to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PublishersSend {
    /// What somebody subscribed to: saves bandwidth.
    #[default]
    Subscribed,
    /// Everything: a fresh subscription need not reach the publishers, so no message is missed.
    All,
}

impl PublishersSend {
    /// The name in a settings file.
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

/// Options of the data plane and its limits.
#[derive(Clone, Debug)]
pub struct Config {
    /// What happens at a subscriber's mark. Default: [`Policy::DropNewest`].
    pub policy: Policy,
    /// … for messages whose topic starts with one of these prefixes. Default: none.
    pub policies: Vec<TopicPolicy>,
    /// What may be queued for one subscriber. Default 256 MiB, any number of messages.
    pub high_water_mark: HighWaterMark,
    /// Bytes that all queues together may hold. Above half of it, subscribers with more than an equal share of the other half are treated
    /// as if at their mark; 64 KiB each may always hold. Never more than the memory budget has beside what else is held.
    /// Default 1 GiB.
    pub queue_ceiling: usize,
    /// What all peers together may take of the memory: messages that have come in part, queues, subscriptions, connections. Near its
    /// limit, whoever holds most is cut off first, and new connections are not let in. Default: [`memory::default_limit`].
    pub memory: MemoryBudget,
    /// What publishers are told to send. Default: [`PublishersSend::Subscribed`].
    pub publishers_send: PublishersSend,
    /// Connections to all three ports. More are closed at once, as with the next two. Default 100,000.
    pub connections: usize,
    /// Connections whose handshake is under way. Default 4096.
    pub handshakes: usize,
    /// … with one address. Default 256.
    pub handshakes_per_address: usize,
    /// Ask after a peer that was silent for so long: publishers and control sockets with heartbeats (ZMTP 3.1), and the hosts of
    /// all by TCP keepalive. Default 30 s; `None`: no heartbeats, and keepalive as `tcp` says.
    pub heartbeat_interval: Option<Duration>,
    /// How long it has to answer. Default 30 s.
    pub heartbeat_timeout: Duration,
    /// How all three ports are secured. Default: not at all.
    pub security: Mechanism,
    /// Who is let in, and what they may do. Default: everybody everything, on ports without security.
    pub authority: Arc<Authority>,
    /// What one peer may send.
    pub limits: Limits,
    /// Options of the transport.
    pub tcp: TcpOptions,
}

impl Config {
    /// The transport of accepted connections: an idle peer whose host is gone is noticed as soon as heartbeats would notice it.
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
            memory: MemoryBudget::new(memory::default_limit()),
            publishers_send: PublishersSend::default(),
            connections: admission.connections,
            handshakes: admission.handshakes,
            handshakes_per_address: admission.handshakes_per_address,
            heartbeat_interval: Some(Duration::from_secs(30)),
            heartbeat_timeout: Duration::from_secs(30),
            security: Mechanism::default(),
            authority: Arc::default(),
            limits: Limits::default(),
            tcp: TcpOptions::default(),
        }
    }
}

impl Config {
    /// What counts the connections to a proxy with these options.
    pub(crate) fn admission(&self) -> Admission {
        let Self { connections, handshakes, handshakes_per_address, .. } = *self;
        let limits = AdmissionLimits { connections, handshakes, handshakes_per_address };
        Admission::with_memory(limits, self.memory.clone())
    }
}
