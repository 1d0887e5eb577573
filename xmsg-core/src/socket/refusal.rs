//! Why a message or a subscription is refused: said in one way by all sockets.

use super::outbox::Frame;
use crate::zmtp::{Limited, MessageLimits, encoded_len};
use crate::{Error, ErrorKind};

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// That of the socket.
    Ours,
    /// That of the peer, which told it.
    Theirs,
}

/// The error for a message that is above these limits: `ours`, or those of the peer, if they are smaller.
pub(crate) fn unfit(frames: &[impl Frame], limits: MessageLimits, ours: MessageLimits) -> Error {
    if frames.is_empty() {
        return Error::new(ErrorKind::InvalidMessage, "a message needs at least one frame");
    }
    unfit_size(encoded_len(frames), frames.len(), limits, ours)
}

/// The same for a message of which only the size is known.
pub(crate) fn unfit_size(size: usize, frames: usize, limits: MessageLimits, ours: MessageLimits) -> Error {
    let (what, limit, own) = if size > limits.size {
        (format!("{size} bytes"), format!("{} bytes", limits.size), limits.size == ours.size)
    } else {
        (format!("{frames} frames"), format!("{} frames", limits.frames), limits.frames == ours.frames)
    };
    let whose = if own { Whose::Ours } else { Whose::Theirs };
    Error::new(ErrorKind::TooLarge, above(&format!("a message of {what}"), &limit, whose))
}

/// The error for a subscription that is above a limit.
pub(crate) fn unfit_subscription(what: Limited, limit: usize, whose: Whose) -> Error {
    let what_limit = match what {
        Limited::Subscription => ("a subscription to a longer prefix", format!("{limit} bytes")),
        Limited::SubscriptionBytes => {
            ("a subscription", format!("{limit} bytes for the prefixes of all subscriptions together"))
        }
        _ => ("a subscription", format!("{limit} subscriptions")),
    };
    Error::new(ErrorKind::TooLarge, above(what_limit.0, &what_limit.1, whose))
}

fn above(what: &str, limit: &str, whose: Whose) -> String {
    match whose {
        Whose::Ours => format!("{what} is above the limit of {limit} of this socket"),
        Whose::Theirs => format!("{what} is above the limit of {limit} that the other side has told"),
    }
}
