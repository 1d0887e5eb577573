//! Peers that violate a rule or a limit. Their connections are ended, or their requests are ignored. Each
//! case is counted by reason and logged.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::link::session::Ended;
use crate::link::throttle::Throttle;
use xmsg_zmtp::{Limited, Violation};

/// The maximum number of log lines for one reason within [`INTERVAL`].
const LINES: usize = 3;
/// The time to which [`LINES`] applies.
const INTERVAL: Duration = Duration::from_secs(10);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// Why we ended a connection or ignored a request. It is a closed set, with short names for logs and
        /// metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// All reasons.
            pub const ALL: [Self; [$($text),*].len()] = [$(Self::$name),*];

            /// The name of the reason in logs and metrics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

reasons! {
    /// A message, or a frame of one, was larger than the limit.
    MessageTooLarge => "message_too_large",
    /// A message had too many frames.
    TooManyFrames => "too_many_frames",
    /// A peer subscribed to a prefix that is too long.
    SubscriptionTooLong => "subscription_too_long",
    /// A peer had too many subscriptions, or too many bytes of prefixes.
    TooManySubscriptions => "too_many_subscriptions",
    /// A command, an identity, or properties were larger than a limit.
    CommandTooLarge => "command_too_large",
    /// What arrived was not ZMTP at all.
    NotZmtp => "not_zmtp",
    /// The peer's version of ZMTP was too old.
    VersionTooOld => "version_too_old",
    /// What arrived violated the syntax of ZMTP.
    Malformed => "malformed",
    /// The peer used another security mechanism.
    Mechanism => "mechanism",
    /// The type of the peer's socket did not match ours.
    SocketType => "socket_type",
    /// Something was not made with the right keys.
    NotAuthentic => "not_authentic",
    /// The peer's credentials were not accepted.
    NotAdmitted => "not_admitted",
    /// The handshake took too long.
    HandshakeTimeout => "handshake_timeout",
    /// The peer did not answer a heartbeat.
    HeartbeatTimeout => "heartbeat_timeout",
    /// The peer made us send answers and did not read them.
    Unread => "unread",
    /// The addresses of devices in front of a request were longer than the limit. The request was ignored,
    /// and the connection stays.
    EnvelopeTooLong => "envelope_too_long",
    /// The connection was ended by a fault of this program. The peer may have broken no rule.
    Fault => "fault",
}

impl Reason {
    /// The reason for which we ended a connection, or `None` if the peer broke no rule.
    #[must_use]
    pub fn of(ended: &Ended) -> Option<Self> {
        let violation = match ended {
            Ended::Violation(violation) => violation,
            Ended::Unread => return Some(Self::Unread),
            Ended::Fault(_) => return Some(Self::Fault),
            _ => return None,
        };
        Some(match violation {
            Violation::NotZmtp => Self::NotZmtp,
            Violation::VersionTooOld => Self::VersionTooOld,
            Violation::MechanismMismatch { .. } => Self::Mechanism,
            Violation::SocketTypeMismatch { .. } => Self::SocketType,
            Violation::TooLarge { what, .. } => match what {
                Limited::Message | Limited::Box => Self::MessageTooLarge,
                Limited::Frames => Self::TooManyFrames,
                Limited::Subscription => Self::SubscriptionTooLong,
                Limited::Subscriptions | Limited::SubscriptionBytes => Self::TooManySubscriptions,
                // The other limits are those of commands.
                _ => Self::CommandTooLarge,
            },
            Violation::NotAuthentic(_) => Self::NotAuthentic,
            Violation::NotAdmitted(_) => Self::NotAdmitted,
            Violation::HandshakeTimeout => Self::HandshakeTimeout,
            Violation::HeartbeatTimeout => Self::HeartbeatTimeout,
            // It was the peer that ended the connection.
            Violation::RefusedByPeer(_) | Violation::ClosedByPeer(_) => return None,
            _ => Self::Malformed,
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How many connections were ended and requests ignored, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViolationCounts([u64; Reason::ALL.len()]);

impl ViolationCounts {
    /// The count for this reason.
    #[must_use]
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// The count for each reason, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.into_iter().zip(self.0)
    }

    /// The sum of all counts.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// Counts and logs violations by the peers of bound sockets, for which a connection was ended or a request
/// ignored. At most three lines are logged for each reason in ten seconds, with the number of those that were
/// suppressed. Clones share the counts: one instance is meant for all ports of a service.
#[derive(Clone, Debug, Default)]
pub struct Violations(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    slots: [Slot; Reason::ALL.len()],
    ports: OnceLock<ProxyPorts>,
}

/// The ports of a proxy. When a peer connects to the wrong one, the log says which port it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyPorts {
    /// The port for publishers.
    pub publishers: u16,
    /// The port for subscribers.
    pub subscribers: u16,
    /// The port for control sockets.
    pub control: u16,
}

impl ProxyPorts {
    /// Describes the port that sockets of this type have to connect to.
    fn wanted_by(self, socket_type: &str) -> Option<String> {
        let (whom, port) = match socket_type {
            "PUB" | "XPUB" => ("publishers", self.publishers),
            "SUB" | "XSUB" => ("subscribers", self.subscribers),
            "DEALER" => ("control", self.control),
            _ => return None,
        };
        Some(format!("{port} ({whom})"))
    }
}

#[derive(Debug)]
struct Slot {
    count: AtomicU64,
    log: Throttle,
}

impl Default for Slot {
    fn default() -> Self {
        Self { count: AtomicU64::new(0), log: Throttle::new(LINES, INTERVAL) }
    }
}

impl Violations {
    /// Sets the ports of the proxy whose connections are counted. Only the first call has an effect.
    pub fn know_ports(&self, ports: ProxyPorts) {
        // The ports of a proxy do not change, so a second call changes nothing.
        let _ = self.0.ports.set(ports);
    }

    /// The ports that [`know_ports`](Self::know_ports) has set.
    #[must_use]
    pub fn ports(&self) -> Option<ProxyPorts> {
        self.0.ports.get().copied()
    }

    /// Counts the end of the connection with this peer if it broke a rule, and returns the reason. `port` is
    /// the port, or the kind of socket, that the peer connected to.
    pub fn note(&self, peer: &str, port: impl fmt::Display, ended: &Ended) -> Option<Reason> {
        let reason = Reason::of(ended)?;
        let slot = &self.0.slots[reason as usize];
        slot.count.fetch_add(1, Ordering::Relaxed);
        if let Some(unlogged) = slot.log.pass("connections that were ended") {
            let name = reason.name();
            let limit = match ended {
                Ended::Violation(Violation::TooLarge { limit, .. }) => Some(*limit),
                _ => None,
            };
            let wanted = match ended {
                Ended::Violation(Violation::SocketTypeMismatch { theirs, .. }) => {
                    self.0.ports.get().and_then(|ports| ports.wanted_by(theirs))
                }
                _ => None,
            };
            if reason == Reason::Fault {
                tracing::error!(peer, %port, reason = name, unlogged, "connection ended: {ended}");
            // A peer that fell silent did nothing wrong.
            } else if reason == Reason::HeartbeatTimeout {
                tracing::info!(peer, %port, reason = name, unlogged, "connection ended: {ended}");
            } else {
                tracing::warn!(peer, %port, reason = name, limit, wanted, unlogged, "connection ended: {ended}");
            }
        }
        Some(reason)
    }

    /// Counts a request of this peer that was ignored because the addresses in front of it, of `size` bytes,
    /// are longer than `limit`.
    pub fn note_long_envelope(&self, peer: &str, port: impl fmt::Display, size: usize, limit: usize) {
        let reason = Reason::EnvelopeTooLong;
        let slot = &self.0.slots[reason as usize];
        slot.count.fetch_add(1, Ordering::Relaxed);
        if let Some(unlogged) = slot.log.pass("requests that were passed over") {
            let name = reason.name();
            tracing::warn!(
                peer,
                %port,
                reason = name,
                size,
                limit,
                unlogged,
                "request passed over: the addresses in front of it are too long"
            );
        }
    }

    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> ViolationCounts {
        ViolationCounts(std::array::from_fn(|index| self.0.slots[index].count.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault;

    #[test]
    fn names_are_short_and_differ() {
        let mut names = Reason::ALL.map(Reason::name).to_vec();
        assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "counts are kept in this order");
        }
    }

    #[test]
    fn what_a_peer_does_wrong_is_counted_by_reason() {
        let violations = Violations::default();
        let too_large = |what| Ended::Violation(Violation::TooLarge { what, size: 2, limit: 1 });
        for (ended, reason) in [
            (too_large(Limited::Message), Some(Reason::MessageTooLarge)),
            (too_large(Limited::Box), Some(Reason::MessageTooLarge)),
            (too_large(Limited::Frames), Some(Reason::TooManyFrames)),
            (too_large(Limited::SubscriptionBytes), Some(Reason::TooManySubscriptions)),
            (Ended::Unread, Some(Reason::Unread)),
            (Ended::Fault(Fault::of(&"on purpose")), Some(Reason::Fault)),
            (Ended::ByPeer, None),
            (Ended::ByUs("closed"), None),
            (Violation::RefusedByPeer("no".into()).into(), None),
        ] {
            assert_eq!(violations.clone().note("a test", "PULL", &ended), reason, "{ended:?}");
        }
        let counts = violations.counts();
        assert_eq!((counts.of(Reason::MessageTooLarge), counts.of(Reason::Unread)), (2, 1));
        assert_eq!((counts.total(), counts.iter().filter(|(_, count)| *count > 0).count()), (6, 5));
    }
}
