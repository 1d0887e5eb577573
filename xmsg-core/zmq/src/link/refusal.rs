//! Errors for a message or a subscription that exceeds a limit, in the same words for all sockets.

use crate::link::send_queue::Frame;
use crate::{Error, ErrorKind};
use xmsg_zmtp::{Limited, MessageLimits, encoded_len};

/// Whose limit was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitOwner<'a> {
    /// The limit is that of our socket.
    Local,
    /// The limit is that of the peer with this name, which announced it.
    Peer(&'a str),
}

/// The error for a message that exceeds `limits`. These are `ours`, or those of `peer` where they are
/// smaller.
pub(crate) fn exceeds_limits(
    frames: &[impl Frame],
    limits: MessageLimits,
    ours: MessageLimits,
    peer: &str,
) -> Error {
    if frames.is_empty() {
        return Error::new(ErrorKind::InvalidMessage, "a message needs at least one frame");
    }
    exceeds_size(encoded_len(frames), frames.len(), limits, ours, peer)
}

/// The error for a message of which only the size and the number of frames are known. See [`exceeds_limits`].
pub(crate) fn exceeds_size(
    size: usize,
    frames: usize,
    limits: MessageLimits,
    ours: MessageLimits,
    peer: &str,
) -> Error {
    let (what, limit, own) = if size > limits.size {
        (format!("{size} bytes"), format!("{} bytes", limits.size), limits.size == ours.size)
    } else {
        (format!("{frames} frames"), format!("{} frames", limits.frames), limits.frames == ours.frames)
    };
    let (whose, option) = match (own, size > limits.size) {
        (true, true) => (LimitOwner::Local, "ConnectOptions::max_message_size, or SocketOptions::limits"),
        (true, false) => (LimitOwner::Local, "SocketOptions::limits"),
        (false, true) => (LimitOwner::Peer(peer), "of xmsg-proxy: --max-message-size"),
        (false, false) => (LimitOwner::Peer(peer), "of xmsg-proxy: limits.message_frames"),
    };
    too_large(&format!("a message of {what}"), &limit, whose, option)
}

/// The error for a subscription that exceeds the limit on its length, on the length of all prefixes together,
/// or on the number of subscriptions.
pub(crate) fn subscription_exceeds_limits(
    what: Limited,
    size: usize,
    limit: usize,
    whose: LimitOwner<'_>,
) -> Error {
    let (what, limit) = match what {
        Limited::Subscription => {
            (format!("a subscription to a prefix of {size} bytes"), format!("{limit} bytes"))
        }
        Limited::SubscriptionBytes => (
            format!("a subscription with which prefixes have {size} bytes"),
            format!("{limit} bytes for the prefixes of all subscriptions together"),
        ),
        _ => (format!("subscription number {size}"), format!("{limit} subscriptions")),
    };
    let option = match whose {
        LimitOwner::Local => "SocketOptions::limits",
        LimitOwner::Peer(_) => "of xmsg-proxy: the section limits of its settings",
    };
    too_large(&what, &limit, whose, option)
}

fn too_large(what: &str, limit: &str, whose: LimitOwner<'_>, option: &str) -> Error {
    let whose = match whose {
        LimitOwner::Local => "of this socket".to_owned(),
        LimitOwner::Peer(peer) => format!("that {peer} has told"),
    };
    let text = format!("{what} is above the limit of {limit} {whose} ({option})");
    Error::new(ErrorKind::TooLarge, text)
}
