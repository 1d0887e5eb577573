//! The settings of the proxy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use xmsg_core::address::DEFAULT_REGISTRAR_PORT;
use xmsg_zmq::fault::CriticalTasks;
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmq::{HighWaterMark, TcpOptions};

use super::values::resolve;
use super::{
    Admin, COUNT_MAX, ConnectSection, Count, Host, Log, MIB_MAX, Named, ProxyPort, Seconds, Settings,
    SettingsError, UpstreamSection, admin_at, upstream,
};
use crate::config::{Config, PublishersSend};
use crate::default_memory_limit;
use crate::policy::{Policy, TopicPolicy};
use crate::security::{Mechanism, settings as security};
use crate::upstream::Upstream;

/// The default port of the HTTP server. It follows the four that the proxy and its data may use.
const ADMIN_PORT: u16 = 7775;

/// The settings of `xmsg-proxy`. The names and defaults are those of `docs/xmsg-proxy.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxySettings {
    /// The interface to listen on.
    pub host: Host,
    /// The publisher port.
    pub port: ProxyPort,
    /// The number of threads that move messages, or 0 for one for each core.
    pub threads: Count<0, 1024>,
    /// The time for which delivery goes on after SIGINT or SIGTERM.
    pub linger_s: Seconds,
    /// The policy at a subscriber's high-water mark.
    pub slow_subscriber: Named<Policy>,
    /// The policies at a subscriber's high-water mark for topics that start with a prefix.
    #[serde(rename = "policy", skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicySection>,
    /// The memory of the queue of one subscriber.
    pub high_water_mark_mib: Count<1, MIB_MAX>,
    /// The number of messages in the queue of one subscriber, or 0 for any number.
    pub high_water_mark_messages: Count<0, COUNT_MAX>,
    /// The memory of the queues of all subscribers together.
    pub queue_ceiling_mib: Count<1, MIB_MAX>,
    /// The memory for all that peers send and ask for, or 0 for half of what the process can have.
    pub memory_limit_mib: Count<0, MIB_MAX>,
    /// The size of the largest message.
    pub max_message_size_mib: Count<1, 1024>,
    /// The messages that publishers are asked to send.
    pub publishers_send: Named<PublishersSend>,
    /// The other proxies that this one connects to.
    #[serde(rename = "upstream", deserialize_with = "upstream::list", skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<UpstreamSection>,
    /// The other limits.
    pub limits: LimitSettings,
    /// The checks of silent peers.
    pub heartbeat: Heartbeat,
    /// The options of TCP connections.
    pub tcp: Tcp,
    /// The registrar in the same process.
    pub registrar: RegistrarSection,
    /// Outgoing connections and channels in the same process.
    pub connect: ConnectSection,
    /// The settings of security and of rights.
    pub security: security::Settings,
    /// The HTTP server.
    #[serde(deserialize_with = "admin_at::<_, ADMIN_PORT, true>")]
    pub admin: Admin,
    /// The log.
    pub log: Log,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            host: Host::default(),
            port: ProxyPort::default(),
            threads: Count::of::<1>(),
            linger_s: Seconds::of(5),
            slow_subscriber: Named::default(),
            policies: Vec::new(),
            high_water_mark_mib: Count::of::<256>(),
            high_water_mark_messages: Count::of::<0>(),
            queue_ceiling_mib: Count::of::<1024>(),
            memory_limit_mib: Count::of::<0>(),
            max_message_size_mib: Count::of::<64>(),
            publishers_send: Named::default(),
            upstreams: Vec::new(),
            limits: LimitSettings::default(),
            heartbeat: Heartbeat::default(),
            tcp: Tcp::default(),
            registrar: RegistrarSection::default(),
            connect: ConnectSection::default(),
            security: security::Settings::default(),
            admin: Admin::at(ADMIN_PORT, true),
            log: Log::default(),
        }
    }
}

/// `[[policy]]`: the policy at a subscriber's high-water mark for messages whose topic starts with a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySection {
    /// The prefix of the topics.
    pub prefix: String,
    /// The policy.
    pub slow_subscriber: Named<Policy>,
    /// The high-water mark, if it differs from that of other topics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_water_mark_mib: Option<Count<1, MIB_MAX>>,
}

impl From<&TopicPolicy> for PolicySection {
    fn from(policy: &TopicPolicy) -> Self {
        Self {
            // A command line is text.
            prefix: String::from_utf8_lossy(&policy.prefix).into_owned(),
            slow_subscriber: Named(policy.policy),
            high_water_mark_mib: None,
        }
    }
}

impl PolicySection {
    fn policy(&self) -> TopicPolicy {
        TopicPolicy {
            high_water_mark: self.high_water_mark_mib.map(|mark| HighWaterMark::bytes(mark.mib())),
            ..TopicPolicy::new(self.prefix.as_bytes(), self.slow_subscriber.0)
        }
    }
}

/// `[limits]`: how much one peer may send, and how many peers there may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitSettings {
    /// The number of frames of a message.
    pub message_frames: Count<1, 1_000_000>,
    /// The size of a command of the protocol.
    pub command_kib: Count<1, 1024>,
    /// The bytes of the prefix of a subscription.
    pub subscription_bytes: Count<1, 65_536>,
    /// The number of subscriptions of a peer.
    pub subscriptions: Count<1, 1_000_000_000>,
    /// The time that a handshake may take.
    pub handshake_timeout_s: Seconds,
    /// The size of all prefixes that a peer subscribes to.
    pub subscriptions_mib: Count<1, MIB_MAX>,
    /// The number of connections at a time.
    pub connections: Count<1, 1_000_000_000>,
    /// The number of handshakes in progress at a time.
    pub handshakes: Count<1, 1_000_000>,
    /// The number of handshakes in progress with one address at a time.
    pub handshakes_per_address: Count<1, 1_000_000>,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            message_frames: Count::of::<1024>(),
            command_kib: Count::of::<64>(),
            subscription_bytes: Count::of::<4096>(),
            subscriptions: Count::of::<1_000_000>(),
            handshake_timeout_s: Seconds::of(10),
            subscriptions_mib: Count::of::<256>(),
            connections: Count::of::<100_000>(),
            handshakes: Count::of::<4096>(),
            handshakes_per_address: Count::of::<256>(),
        }
    }
}

/// `[heartbeat]`: the checks of silent publishers and control sockets, and of the hosts of subscribers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Heartbeat {
    /// The time of silence before a check, or 0 for no checks.
    pub interval_s: Seconds,
    /// The time that a peer has to answer.
    pub timeout_s: Seconds,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { interval_s: Seconds::of(30), timeout_s: Seconds::of(30) }
    }
}

/// `[tcp]`: the options of TCP connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tcp {
    /// The time of silence before the host is checked, or 0 for no checks.
    pub keepalive_s: Seconds,
    /// The send buffer of the kernel, or 0 if the system decides.
    pub send_buffer_kib: Count<0, 1_048_576>,
    /// The receive buffer of the kernel, or 0 if the system decides.
    pub receive_buffer_kib: Count<0, 1_048_576>,
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            keepalive_s: Seconds::of(60),
            send_buffer_kib: Count::of::<0>(),
            receive_buffer_kib: Count::of::<0>(),
        }
    }
}

/// `[registrar]`: a registrar in the same process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrarSection {
    /// Whether there is a registrar.
    pub enabled: bool,
    /// Its port on the same host, or 0 for any free one.
    pub port: u16,
    /// The file of the registrations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<PathBuf>,
    /// The largest number of registrations.
    pub max_registrations: Count<1, 4_294_967_295>,
    /// The memory for all registrations.
    pub max_registration_memory_mib: Count<1, MIB_MAX>,
}

impl Default for RegistrarSection {
    fn default() -> Self {
        Self {
            enabled: false,
            port: DEFAULT_REGISTRAR_PORT,
            snapshot: None,
            max_registrations: Count::of::<4_000_000>(),
            max_registration_memory_mib: Count::of::<2048>(),
        }
    }
}

impl Settings for ProxySettings {
    const RELOADABLE: &'static [&'static str] = &[
        "admin.token_file",
        "admin.viewer_may_watch",
        "admin.viewer_token_file",
        "linger_s",
        "log.filter",
        "policy",
        "security.client",
        "security.password_file",
        "slow_subscriber",
        "upstream",
    ];

    fn resolve(&mut self, folder: &Path) {
        resolve(&mut self.admin.token_file, folder);
        resolve(&mut self.admin.viewer_token_file, folder);
        resolve(&mut self.security.key_file, folder);
        resolve(&mut self.security.password_file, folder);
        resolve(&mut self.registrar.snapshot, folder);
        self.connect.resolve(folder);
        self.upstreams.iter_mut().for_each(|upstream| upstream.resolve(folder));
    }

    fn check(&self) -> Result<(), SettingsError> {
        if self.registrar.snapshot.is_some() && !self.registrar.enabled {
            return Err(SettingsError::new(
                "registrar.snapshot (--registrar-snapshot) has a file but there is no registrar: enable it \
                 (registrar.enabled, --registrar), or take the file out",
            ));
        }
        self.connect.check(self.security.mechanism)?;
        UpstreamSection::check(&self.upstreams)?;
        self.admin.check()?;
        self.log.targets().map(drop)
    }

    #[cfg(feature = "connect")]
    fn check_files(&self) -> Result<(), SettingsError> {
        self.connect.check_files()
    }

    fn upstreams(&self) -> Result<Vec<Upstream>, SettingsError> {
        self.upstreams.iter().map(UpstreamSection::upstream).collect()
    }

    fn log(&self) -> &Log {
        &self.log
    }

    fn admin(&self) -> &Admin {
        &self.admin
    }

    fn security(&self) -> &security::Settings {
        &self.security
    }

    fn linger(&self) -> Duration {
        self.linger_s.get()
    }

    fn snapshot(&self) -> Option<&Path> {
        self.registrar.snapshot.as_deref()
    }
}

impl ProxySettings {
    /// Returns the options of the proxy without its security: see [`Reloadable`](super::Reloadable).
    #[must_use]
    pub fn config(&self) -> Config {
        Config {
            policy: self.slow_subscriber.0,
            policies: self.policies.iter().map(PolicySection::policy).collect(),
            high_water_mark: HighWaterMark {
                bytes: self.high_water_mark_mib.mib(),
                messages: match self.high_water_mark_messages.get() {
                    0 => usize::MAX,
                    count => count,
                },
            },
            queue_ceiling: self.queue_ceiling_mib.mib(),
            critical: CriticalTasks::default(),
            memory: MemoryBudget::new(match self.memory_limit_mib.mib() {
                0 => default_memory_limit::default_limit(),
                limit => limit,
            }),
            publishers_send: self.publishers_send.0,
            connections: self.limits.connections.get(),
            handshakes: self.limits.handshakes.get(),
            handshakes_per_address: self.limits.handshakes_per_address.get(),
            heartbeat_interval: self.heartbeat.interval_s.unless_zero(),
            heartbeat_timeout: self.heartbeat.timeout_s.get(),
            limits: xmsg_zmtp::Limits {
                message_size: self.max_message_size_mib.mib(),
                frames: self.limits.message_frames.get(),
                command_size: self.limits.command_kib.kib(),
                subscription_len: self.limits.subscription_bytes.get(),
                subscriptions: self.limits.subscriptions.get(),
                subscription_bytes: self.limits.subscriptions_mib.mib(),
                handshake_timeout: self.limits.handshake_timeout_s.get(),
            },
            tcp: TcpOptions {
                keepalive: self.tcp.keepalive_s.unless_zero(),
                send_buffer: buffer(self.tcp.send_buffer_kib),
                receive_buffer: buffer(self.tcp.receive_buffer_kib),
                ..TcpOptions::default()
            },
            // The caller has read the files of the security, and adds it.
            security: Mechanism::default(),
            authority: Arc::default(),
            upstreams: Vec::new(),
        }
    }
}

fn buffer(kib: Count<0, 1_048_576>) -> Option<usize> {
    (kib.get() > 0).then(|| kib.kib())
}
