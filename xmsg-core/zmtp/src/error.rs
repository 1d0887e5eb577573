//! What a peer can do wrong, and whose fault it is.

use std::fmt;

use super::Principal;

/// Whose fault it is that a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The peer broke a rule of the protocol, or one of our limits.
    PeerMisbehaved,
    /// The peer keeps the rules, but speaks a version, mechanism or socket type that does not fit ours.
    PeerIncompatible,
    /// Nothing was heard for too long.
    Silence,
}

/// What a peer may send only so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limited {
    /// Bytes of a message.
    Message,
    /// Frames of a message.
    Frames,
    /// Bytes of a frame in a box of CURVE.
    Box,
    /// Bytes of a command.
    Command,
    /// Bytes of a command of the handshake.
    Handshake,
    /// Bytes of an identity.
    Identity,
    /// Properties in the handshake.
    Properties,
    /// Bytes of one subscription's prefix.
    Subscription,
    /// Subscriptions of one peer.
    Subscriptions,
    /// Bytes of all prefixes that one peer subscribes to.
    SubscriptionBytes,
}

impl Limited {
    /// What has too much of which unit.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Message => ("a message", "bytes"),
            Self::Frames => ("a message", "frames"),
            Self::Box => ("a CURVE message", "bytes"),
            Self::Command => ("a command", "bytes"),
            Self::Handshake => ("a command of the handshake", "bytes"),
            Self::Identity => ("an identity", "bytes"),
            Self::Properties => ("the handshake", "properties"),
            Self::Subscription => ("a subscription", "bytes"),
            Self::Subscriptions => ("a peer", "subscriptions"),
            Self::SubscriptionBytes => ("all subscriptions of a peer", "bytes"),
        }
    }
}

/// The reason for which the engine ends a connection. It ends that connection and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// The first bytes are no ZMTP signature.
    NotZmtp,
    /// ZMTP 1.0, which has no version announcement (ZeroMQ 2.x).
    VersionTooOld,
    /// The peer's security mechanism is not ours.
    MechanismMismatch {
        /// What the peer announced.
        theirs: String,
        /// What we speak.
        ours: &'static str,
    },
    /// A socket type that cannot talk to ours.
    SocketTypeMismatch {
        /// What the peer announced.
        theirs: String,
        /// What we are.
        ours: &'static str,
    },
    /// A greeting, command or property list that does not parse.
    Malformed(&'static str),
    /// Reserved flag bits, or COMMAND together with MORE.
    InvalidFlags(u8),
    /// A message, command or property above its limit.
    TooLarge {
        /// What was too large.
        what: Limited,
        /// The size that was announced or reached, bytes or frames.
        size: u64,
        /// The limit, in the same unit.
        limit: u64,
    },
    /// The peer sent an ERROR command with this reason.
    RefusedByPeer(String),
    /// The peer closed the connection during the handshake without a word, when this had happened.
    ClosedByPeer(&'static str),
    /// What the peer sent was not made with the keys that it should have.
    NotAuthentic(&'static str),
    /// The credentials of this peer were not accepted.
    NotAdmitted(Option<Principal>),
    /// The handshake was not finished in time.
    HandshakeTimeout,
    /// The peer did not answer a heartbeat in time.
    HeartbeatTimeout,
}

impl Violation {
    /// Whose fault it is.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::VersionTooOld
            | Self::MechanismMismatch { .. }
            | Self::SocketTypeMismatch { .. }
            | Self::NotAdmitted(_)
            | Self::RefusedByPeer(_)
            | Self::ClosedByPeer(_) => Blame::PeerIncompatible,
            Self::HandshakeTimeout | Self::HeartbeatTimeout => Blame::Silence,
            _ => Blame::PeerMisbehaved,
        }
    }
}

impl Violation {
    /// Whether the two sides do not trust one another: another mechanism, other keys, credentials that are not good.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::RefusedByPeer(_)
                | Self::ClosedByPeer(_)
                | Self::MechanismMismatch { .. }
                | Self::NotAuthentic(_)
                | Self::NotAdmitted(_)
        )
    }

    /// Whether the peer is something else than what was expected: no ZeroMQ socket, or one of a type that does not fit ours.
    #[must_use]
    pub fn is_wrong_socket(&self) -> bool {
        matches!(self, Self::NotZmtp | Self::SocketTypeMismatch { .. })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotZmtp => f.write_str("the peer does not speak ZMTP: no signature in its first bytes"),
            Self::VersionTooOld => f.write_str(
                "the peer speaks ZMTP 1.0 (ZeroMQ 2.x), which is not supported: update it to 3.2 or later",
            ),
            Self::MechanismMismatch { theirs, ours } => {
                write!(f, "the peer wants security mechanism {theirs:?}, this port speaks {ours}")
            }
            Self::SocketTypeMismatch { theirs, ours } => {
                write!(f, "a {theirs:?} socket cannot talk to this {ours} socket")
            }
            Self::Malformed(what) => write!(f, "malformed {what}"),
            Self::InvalidFlags(flags) => write!(f, "invalid frame flags {flags:#04x}"),
            Self::TooLarge { what, size, limit } => {
                let (what, unit) = what.words();
                write!(f, "{what} with {size} {unit}: the limit is {limit}")
            }
            Self::RefusedByPeer(reason) => match reason.as_str() {
                // The status codes of ZAP (RFC 27), as servers of libzmq and ours send them.
                "300" => f.write_str("the peer lets nobody in for now (ZAP status 300)"),
                "400" => f.write_str("the peer does not accept these credentials (ZAP status 400)"),
                "500" => f.write_str("the peer failed to check the credentials (ZAP status 500)"),
                _ => write!(f, "the peer refused the connection: {reason:?}"),
            },
            Self::ClosedByPeer(when) => write!(f, "the peer closed the connection when {when}"),
            Self::NotAuthentic(what) => f.write_str(what),
            Self::NotAdmitted(Some(who @ Principal::User(_))) => {
                write!(f, "not let in: {who} is unknown, or the password is wrong")
            }
            Self::NotAdmitted(Some(who)) => write!(f, "not let in: {who} is unknown"),
            Self::NotAdmitted(None) => f.write_str("not let in"),
            Self::HandshakeTimeout => f.write_str("the peer did not finish the handshake in time"),
            Self::HeartbeatTimeout => {
                f.write_str("nothing was heard from the peer within the heartbeat time-out")
            }
        }
    }
}

impl std::error::Error for Violation {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_and_a_wrong_socket_are_two_things() {
        let found = Violation::SocketTypeMismatch { theirs: "SUB".into(), ours: "XSUB" };
        assert!(found.is_wrong_socket() && !found.is_refusal());
        for refused in [Violation::RefusedByPeer("400".into()), Violation::ClosedByPeer("it got this")] {
            assert!(refused.is_refusal() && !refused.is_wrong_socket());
        }
    }

    #[test]
    fn a_status_code_is_put_into_words() {
        let words = Violation::RefusedByPeer("400".into()).to_string();
        assert_eq!(words, "the peer does not accept these credentials (ZAP status 400)");
        let words = Violation::RefusedByPeer("no".into()).to_string();
        assert_eq!(words, "the peer refused the connection: \"no\"");
    }
}
