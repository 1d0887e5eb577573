//! What a proxy can be told.

use std::time::Duration;

use xmsg_core::socket::{HighWaterMark, TcpOptions};
use xmsg_core::zmtp::Limits;

use crate::policy::{Policy, TopicPolicy};

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What happens at a subscriber's mark. Default: [`Policy::DropNewest`].
    pub policy: Policy,
    /// … for messages whose topic starts with one of these prefixes. Default: none.
    pub policies: Vec<TopicPolicy>,
    /// What may be queued for one subscriber. Default 256 MiB, any number of messages.
    pub high_water_mark: HighWaterMark,
    /// Bytes that all queues together may hold. Above it, subscribers with more than an equal share are treated as if at
    /// their mark, and the others may still fill theirs: twice this is the bound. Default 1 GiB.
    pub queue_ceiling: usize,
    /// What publishers are told to send. Default: [`Upstream::Subscribed`].
    pub upstream: Upstream,
    /// Connections per port whose handshake is under way; more wait to be accepted. Default 4096.
    pub handshakes: usize,
    /// Ask after a peer (ZMTP 3.1) that was silent for so long. Default 30 s.
    pub heartbeat_interval: Option<Duration>,
    /// How long it has to answer. Default 30 s.
    pub heartbeat_timeout: Duration,
    /// What one peer may send.
    pub limits: Limits,
    /// Options of the transport.
    pub tcp: TcpOptions,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            policies: Vec::new(),
            high_water_mark: HighWaterMark::bytes(256 << 20),
            queue_ceiling: 1 << 30,
            upstream: Upstream::default(),
            handshakes: 4096,
            heartbeat_interval: Some(Duration::from_secs(30)),
            heartbeat_timeout: Duration::from_secs(30),
            limits: Limits::default(),
            tcp: TcpOptions::default(),
        }
    }
}
