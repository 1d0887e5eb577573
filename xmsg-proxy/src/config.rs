//! What a proxy can be told.

use std::sync::Arc;
use std::time::Duration;

use xmsg_core::socket::{Admission, AdmissionLimits, HighWaterMark, TcpOptions};
use xmsg_core::zmtp::Limits;

use crate::security::{Authority, Mechanism};

/// What happens to a message for a subscriber whose queue is at its high-water mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The message is dropped, for this subscriber, and counted.
    #[default]
    DropNewest,
    /// Publishers of messages that match wait, and so, through TCP, do their senders: nothing is lost.
    Block,
}

impl Policy {
    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::DropNewest => "drop-newest",
            Self::Block => "block",
        }
    }
}

impl std::str::FromStr for Policy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::DropNewest, Self::Block]
            .into_iter()
            .find(|policy| policy.name() == name)
            .ok_or_else(|| format!("unknown policy {name:?}: drop-newest or block"))
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What publishers are told to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Upstream {
    /// What somebody subscribed to: saves bandwidth.
    #[default]
    Subscribed,
    /// Everything: a fresh subscription need not reach the publishers, so no message is missed.
    All,
}

/// Options of the data plane and its limits.
#[derive(Clone, Debug)]
pub struct Config {
    /// What happens at a subscriber's mark. Default: [`Policy::DropNewest`].
    pub policy: Policy,
    /// What may be queued for one subscriber. Default 256 MiB, any number of messages.
    pub high_water_mark: HighWaterMark,
    /// Bytes that all queues together may hold. Above it, subscribers with more than an equal share are treated as if at
    /// their mark, and the others may still fill theirs: twice this is the bound. Default 1 GiB.
    pub queue_ceiling: usize,
    /// What publishers are told to send. Default: [`Upstream::Subscribed`].
    pub upstream: Upstream,
    /// Connections to all three ports. More are closed at once, as with the next two. Default 100,000.
    pub connections: usize,
    /// Connections whose handshake is under way. Default 4096.
    pub handshakes: usize,
    /// … with one address. Default 256.
    pub handshakes_per_address: usize,
    /// Ask after a peer (ZMTP 3.1) that was silent for so long. Default 30 s.
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

impl Default for Config {
    fn default() -> Self {
        let admission = AdmissionLimits::default();
        Self {
            policy: Policy::default(),
            high_water_mark: HighWaterMark::bytes(256 << 20),
            queue_ceiling: 1 << 30,
            upstream: Upstream::default(),
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
        Admission::new(AdmissionLimits { connections, handshakes, handshakes_per_address })
    }
}
