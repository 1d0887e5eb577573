//! Limits that the two ends of a connection announce to each other. They are properties of their READY
//! commands whose names start with `X-`.
//!
//! | property | announced by sockets that receive | meaning |
//! |---|---|---|
//! | `X-Max-Message-Size` | messages | maximum size in bytes of one message, with all headers |
//! | `X-Max-Frames` | messages | maximum number of frames of one message |
//! | `X-Max-Subscription-Size` | subscriptions | maximum length in bytes of one prefix |
//! | `X-Max-Subscriptions` | subscriptions | maximum number of subscriptions |
//! | `X-Max-Subscriptions-Size` | subscriptions | maximum length in bytes of all prefixes together |
//!
//! Two more properties, with the value 1, announce that a socket understands an extension of ours. `X-Drain`,
//! announced by publishers, is for the command by which a peer asks them to drain. `X-Dropped`, announced by
//! subscribers, is for the command by which a peer reports how many messages it has dropped for them.
//!
//! Values are decimal numbers in ASCII. RFC 37 reserves such names for extensions, and requires peers to
//! ignore those that they don't know. All properties together stay below 256 bytes, because older versions of
//! libzmq have no room for more in a CURVE handshake.

use super::{Limits, Properties, SocketType};

const MESSAGE_SIZE: &str = "X-Max-Message-Size";
const FRAMES: &str = "X-Max-Frames";
const SUBSCRIPTION_SIZE: &str = "X-Max-Subscription-Size";
const SUBSCRIPTIONS: &str = "X-Max-Subscriptions";
const SUBSCRIPTIONS_SIZE: &str = "X-Max-Subscriptions-Size";

/// Announced, with the value 1, by sockets that understand [`Command::Drain`](super::Command::Drain).
pub(super) const DRAIN_PROPERTY: &str = "X-Drain";
/// Announced, with the value 1, by sockets that understand [`Command::Dropped`](super::Command::Dropped).
pub(super) const DROPPED_PROPERTY: &str = "X-Dropped";

/// The limits that a peer has announced. Other implementations announce none. A value that is not a positive
/// number counts as not announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerLimits {
    /// The maximum size in bytes of one message with all its frames and their headers.
    pub message_size: Option<usize>,
    /// The maximum number of frames of one message.
    pub frames: Option<usize>,
    /// The maximum length in bytes of one subscription's prefix.
    pub subscription_len: Option<usize>,
    /// The maximum number of subscriptions of one peer.
    pub subscriptions: Option<usize>,
    /// The maximum length in bytes of all prefixes that one peer subscribes to.
    pub subscription_bytes: Option<usize>,
}

impl PeerLimits {
    pub(super) fn read(properties: &Properties) -> Self {
        let limit = |name| properties.find(name).and_then(|value| number(value));
        Self {
            message_size: limit(MESSAGE_SIZE),
            frames: limit(FRAMES),
            subscription_len: limit(SUBSCRIPTION_SIZE),
            subscriptions: limit(SUBSCRIPTIONS),
            subscription_bytes: limit(SUBSCRIPTIONS_SIZE),
        }
    }
}

impl Limits {
    /// Adds the limits that a peer of a socket of this type has to know.
    pub(super) fn tell(&self, socket_type: SocketType, properties: &mut Properties) {
        let mut tell = |name, limit: usize| properties.push(name, limit.to_string());
        if socket_type.takes_subscriptions() {
            tell(SUBSCRIPTION_SIZE, self.subscription_len);
            tell(SUBSCRIPTIONS, self.subscriptions);
            tell(SUBSCRIPTIONS_SIZE, self.subscription_bytes);
        } else {
            tell(MESSAGE_SIZE, self.message_size);
            tell(FRAMES, self.frames);
        }
    }
}

/// Parses a limit: decimal digits with a value of at least 1. A number that is too large saturates, which
/// means no limit.
fn number(value: &[u8]) -> Option<usize> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit =
        |number: usize, digit: &u8| number.saturating_mul(10).saturating_add(usize::from(digit - b'0'));
    Some(value.iter().fold(0, digit)).filter(|limit| *limit > 0)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    #[test]
    fn what_is_told_reads_back() {
        let limits =
            Limits { message_size: 1 << 20, frames: 7, subscriptions: usize::MAX, ..Limits::default() };
        let mut properties = Properties::default();
        limits.tell(SocketType::Xsub, &mut properties);
        let expected = PeerLimits { message_size: Some(1 << 20), frames: Some(7), ..PeerLimits::default() };
        assert_eq!(PeerLimits::read(&properties), expected);
        let mut properties = Properties::default();
        limits.tell(SocketType::Xpub, &mut properties);
        let expected = PeerLimits {
            subscription_len: Some(4096),
            subscriptions: Some(usize::MAX),
            subscription_bytes: Some(256 << 20),
            ..PeerLimits::default()
        };
        assert_eq!(PeerLimits::read(&properties), expected);
    }

    #[test]
    fn names_count_whatever_their_case_and_only_numbers_are_limits() {
        let read = |value: &'static str| {
            let mut properties = Properties::default();
            properties.push("x-max-frames", value);
            PeerLimits::read(&properties).frames
        };
        assert_eq!(read("12"), Some(12));
        assert_eq!(read("007"), Some(7));
        assert_eq!(read("99999999999999999999999999"), Some(usize::MAX));
        for malformed in ["", "0", "-1", "+1", " 1", "1 ", "1k", "0x10", "1.5", "\0\0\0\x01", "\u{0661}"] {
            assert_eq!(read(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn old_peers_have_room_for_what_is_told() {
        for socket_type in [SocketType::Sub, SocketType::Xsub, SocketType::Xpub, SocketType::Dealer] {
            let mut properties = Properties::default();
            properties.push("Socket-Type", socket_type.name());
            if socket_type.announces_identity() {
                properties.push("Identity", "123456789");
            }
            let all = usize::MAX;
            let limits = Limits {
                message_size: all,
                frames: all,
                subscription_len: all,
                subscriptions: all,
                subscription_bytes: all,
                ..Limits::default()
            };
            limits.tell(socket_type, &mut properties);
            properties.push(DRAIN_PROPERTY, "1");
            properties.push(DROPPED_PROPERTY, "1");
            let mut bytes = BytesMut::new();
            properties.write(&mut bytes);
            assert!(bytes.len() < 256, "{socket_type}: {} bytes", bytes.len());
        }
    }
}
