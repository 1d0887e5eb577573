//! Errors for a message or a subscription that exceeds a limit, in the same words for all sockets.

use crate::link::outbox::Frame;
use crate::{Error, ErrorKind};
use xmsg_zmtp::{Limited, MessageLimits, encoded_len};

/// Whose limit was exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose<'a> {
    /// The limit is that of our socket.
    Ours,
    /// The limit is that of the peer with this name, which announced it.
    Theirs(&'a str),
}

/// The error for a message that exceeds `limits`. These are `ours`, or those of `peer` where they are
/// smaller.
pub(crate) fn unfit(frames: &[impl Frame], limits: MessageLimits, ours: MessageLimits, peer: &str) -> Error {
    if frames.is_empty() {
        return Error::new(ErrorKind::InvalidMessage, "a message needs at least one frame");
    }
    unfit_size(encoded_len(frames), frames.len(), limits, ours, peer)
}

/// The error for a message of which only the size and the number of frames are known. See [`unfit`].
pub(crate) fn unfit_size(
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
        (true, true) => (Whose::Ours, "ConnectOptions::max_message_size, or SocketOptions::limits"),
        (true, false) => (Whose::Ours, "SocketOptions::limits"),
        (false, true) => (Whose::Theirs(peer), "of xmsg-proxy: --max-message-size"),
        (false, false) => (Whose::Theirs(peer), "of xmsg-proxy: limits.message_frames"),
    };
    too_large(&format!("a message of {what}"), &limit, whose, option)
}

/// The error for a subscription that exceeds the limit on its length, on the length of all prefixes together,
/// or on the number of subscriptions.
pub(crate) fn unfit_subscription(what: Limited, size: usize, limit: usize, whose: Whose<'_>) -> Error {
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
        Whose::Ours => "SocketOptions::limits",
        Whose::Theirs(_) => "of xmsg-proxy: the section limits of its settings",
    };
    too_large(&what, &limit, whose, option)
}

fn too_large(what: &str, limit: &str, whose: Whose<'_>, option: &str) -> Error {
    let whose = match whose {
        Whose::Ours => "of this socket".to_owned(),
        Whose::Theirs(peer) => format!("that {peer} has told"),
    };
    let text = format!("{what} is above the limit of {limit} {whose} ({option})");
    Error::new(ErrorKind::TooLarge, text)
}
