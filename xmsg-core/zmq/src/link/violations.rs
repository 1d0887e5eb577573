//! Peers that break a rule or a limit: their connections are ended, or what they sent is passed over; that is counted by reason, and logged.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::link::session::Ended;
use crate::link::throttle::Throttle;
use xmsg_zmtp::{Limited, Violation};

/// Lines in the log for one reason, at most …
const LINES: usize = 3;
/// … in this time.
const INTERVAL: Duration = Duration::from_secs(10);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// Why we ended a connection, or passed a request over: a closed set, with short names for logs and metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// All of them.
            pub const ALL: [Self; [$($text),*].len()] = [$(Self::$name),*];

            /// The name, as it stands in logs and metrics.
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
    /// A message, or a frame of one, above the limit.
    MessageTooLarge => "message_too_large",
    /// A message of too many frames.
    TooManyFrames => "too_many_frames",
    /// A subscription to a prefix that is too long.
    SubscriptionTooLong => "subscription_too_long",
    /// Too many subscriptions, or too many bytes of prefixes.
    TooManySubscriptions => "too_many_subscriptions",
    /// A command, an identity, or properties above a limit.
    CommandTooLarge => "command_too_large",
    /// Bytes that are no ZMTP at all.
    NotZmtp => "not_zmtp",
    /// A version of ZMTP that is too old.
    VersionTooOld => "version_too_old",
    /// Bytes that are not as ZMTP wants them.
    Malformed => "malformed",
    /// Another security mechanism.
    Mechanism => "mechanism",
    /// A socket of a type that does not fit.
    SocketType => "socket_type",
    /// Something that was not made with the right keys.
    NotAuthentic => "not_authentic",
    /// Credentials that were not accepted.
    NotAdmitted => "not_admitted",
    /// A handshake that took too long.
    HandshakeTimeout => "handshake_timeout",
    /// No answer to a heartbeat.
    HeartbeatTimeout => "heartbeat_timeout",
    /// Questions whose answers the peer does not read.
    Unread => "unread",
    /// A request with longer addresses of devices than any devices would make them. It was passed over, and the connection stays.
    EnvelopeTooLong => "envelope_too_long",
}

impl Reason {
    /// The reason for which we ended a connection; `None`: it was not the peer that broke a rule.
    #[must_use]
    pub fn of(ended: &Ended) -> Option<Self> {
        let violation = match ended {
            Ended::Violation(violation) => violation,
            Ended::Unread => return Some(Self::Unread),
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
                // The others limit what commands say.
                _ => Self::CommandTooLarge,
            },
            Violation::NotAuthentic(_) => Self::NotAuthentic,
            Violation::NotAdmitted(_) => Self::NotAdmitted,
            Violation::HandshakeTimeout => Self::HandshakeTimeout,
            Violation::HeartbeatTimeout => Self::HeartbeatTimeout,
            // It was the peer that ended it.
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

/// How many connections were ended, and requests passed over, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViolationCounts([u64; Reason::ALL.len()]);

impl ViolationCounts {
    /// For this reason.
    #[must_use]
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// For each reason, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.into_iter().zip(self.0)
    }

    /// All together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// Counts the connections to bound sockets that were ended, and requests that were passed over, because their peer broke a rule, and writes
/// them into the log: three lines for each reason in ten seconds, with the number of those that were left out. Clones share the counts: one is meant for all ports of a service.
#[derive(Clone, Debug, Default)]
pub struct Violations(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    slots: [Slot; Reason::ALL.len()],
    ports: OnceLock<ProxyPorts>,
}

/// The ports of a proxy: whoever came to another one than it wanted is told in the log which one that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyPorts {
    /// For publishers.
    pub publishers: u16,
    /// For subscribers.
    pub subscribers: u16,
    /// For control sockets.
    pub control: u16,
}

impl ProxyPorts {
    /// The port that sockets of this type are for, in words.
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
    /// The ports of the proxy that this is for. They are told once.
    pub fn know_ports(&self, ports: ProxyPorts) {
        // They do not change.
        let _ = self.0.ports.set(ports);
    }

    /// What [`know_ports`](Self::know_ports) has told.
    #[must_use]
    pub fn ports(&self) -> Option<ProxyPorts> {
        self.0.ports.get().copied()
    }

    /// Notes why the connection with this peer ended; `port` says which of ours it came to. Returns the reason, if a rule was broken.
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
            // Whoever fell silent did nothing wrong.
            if reason == Reason::HeartbeatTimeout {
                tracing::info!(peer, %port, reason = name, unlogged, "connection ended: {ended}");
            } else {
                tracing::warn!(peer, %port, reason = name, limit, wanted, unlogged, "connection ended: {ended}");
            }
        }
        Some(reason)
    }

    /// Notes that a request of this peer was passed over, because the addresses in front of it are longer than the limit.
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

    /// How many there were.
    #[must_use]
    pub fn counts(&self) -> ViolationCounts {
        ViolationCounts(std::array::from_fn(|index| self.0.slots[index].count.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (Ended::ByPeer, None),
            (Ended::ByUs("closed"), None),
            (Violation::RefusedByPeer("no".into()).into(), None),
        ] {
            assert_eq!(violations.clone().note("a test", "PULL", &ended), reason, "{ended:?}");
        }
        let counts = violations.counts();
        assert_eq!((counts.of(Reason::MessageTooLarge), counts.of(Reason::Unread)), (2, 1));
        assert_eq!((counts.total(), counts.iter().filter(|(_, count)| *count > 0).count()), (5, 4));
    }
}
