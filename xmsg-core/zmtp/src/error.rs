//! What a peer can do wrong, and whose fault it is.

use std::fmt;

use super::Principal;

/// Whose fault the end of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The peer violated the protocol, or one of our limits.
    PeerMisbehaved,
    /// The peer keeps the rules, but its version, mechanism or socket type does not match ours, or one side
    /// rejects the other.
    PeerIncompatible,
    /// Nothing was received for too long.
    Silence,
}

/// The quantities that are limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limited {
    /// The size of a message in bytes.
    Message,
    /// The number of frames of a message.
    Frames,
    /// The size in bytes of a frame in a CURVE box.
    Box,
    /// The size of a command in bytes.
    Command,
    /// The size in bytes of a command of the handshake.
    Handshake,
    /// The length of an identity in bytes.
    Identity,
    /// The number of properties in the handshake.
    Properties,
    /// The length in bytes of one subscription's prefix.
    Subscription,
    /// The number of subscriptions of one peer.
    Subscriptions,
    /// The length in bytes of all prefixes that one peer subscribes to.
    SubscriptionBytes,
}

impl Limited {
    /// Returns in words what is too large, and the unit.
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

/// Why the engine ends a connection. It affects that connection and no other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// The first bytes are not a ZMTP signature.
    NotZmtp,
    /// The peer speaks ZMTP 1.0, which has no version announcement (ZeroMQ 2.x).
    VersionTooOld,
    /// The security mechanism of the peer is not ours.
    MechanismMismatch {
        /// The mechanism that the peer announced.
        theirs: String,
        /// Our mechanism.
        ours: &'static str,
    },
    /// The socket type of the peer is not compatible with ours.
    SocketTypeMismatch {
        /// The type that the peer announced.
        theirs: String,
        /// Our type.
        ours: &'static str,
    },
    /// A greeting, command or property list cannot be decoded.
    Malformed(&'static str),
    /// Reserved flag bits are set, or COMMAND together with MORE.
    InvalidFlags(u8),
    /// A message, a command, or something else exceeds its limit.
    TooLarge {
        /// What was too large.
        what: Limited,
        /// The size that was announced or reached, in the unit of `what`.
        size: u64,
        /// The limit, in the same unit.
        limit: u64,
    },
    /// The peer sent an ERROR command with this reason.
    RefusedByPeer(String),
    /// The peer closed the connection during the handshake without an error. The text says what had happened
    /// before.
    ClosedByPeer(&'static str),
    /// What the peer sent was not made with the right keys.
    NotAuthentic(&'static str),
    /// The credentials of this peer were rejected.
    NotAdmitted(Option<Principal>),
    /// The handshake was not finished in time.
    HandshakeTimeout,
    /// The peer did not answer a heartbeat in time.
    HeartbeatTimeout,
}

impl Violation {
    /// Returns whose fault it is.
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
    /// Returns whether one side rejects the other because of its mechanism, keys or credentials.
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

    /// Returns whether the peer is not what was expected: it is not a ZeroMQ socket, or its type is not
    /// compatible with ours.
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
                // These are the status codes of ZAP (RFC 27), which servers of libzmq and ours send.
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
