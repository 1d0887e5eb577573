//! Subscriptions of peers: the role of PUB, and what XPUB has in common with it.

use bytes::Bytes;
use xmsg_zmtp::{Limits, SocketType};

use crate::link::Link;
use crate::link::session::Ended;
use crate::role::Role;

/// The maximum number of subscriptions of its peer that a connecting publisher keeps. A proxy may have
/// millions. Beyond this, or with a prefix longer than the limit, the publisher treats everything as
/// subscribed, and stays connected.
pub(crate) const WANTED_MAX: usize = 100_000;
/// The maximum length of all these prefixes together, in bytes.
const WANTED_BYTES_MAX: usize = 8 << 20;

/// The role of PUB, which keeps the subscriptions of each of its peers.
#[derive(Debug)]
pub(crate) struct Publishing {
    pub(crate) limits: Limits,
}

impl Role for Publishing {
    fn socket_type(&self) -> SocketType {
        SocketType::Pub
    }

    fn subscription(&self, link: &Link, subscribe: bool, prefix: Bytes) -> Result<bool, Ended> {
        note_wanted(&self.limits, link, subscribe, &prefix)?;
        Ok(false)
    }
}

/// Notes that a peer has subscribed to a prefix or cancelled that. Returns whether that changes anything.
///
/// # Errors
///
/// A peer that has connected to us has too many subscriptions.
pub(crate) fn note_wanted(
    limits: &Limits,
    link: &Link,
    subscribe: bool,
    prefix: &Bytes,
) -> Result<bool, Ended> {
    let mut state = link.state();
    let len = prefix.len();
    if !subscribe {
        let is_known = state.wanted.remove(prefix);
        if is_known {
            state.wanted_bytes -= len;
        }
        return Ok(is_known);
    }
    if link.connecting {
        let is_too_much = state.wanted.len() >= WANTED_MAX || state.wanted_bytes + len > WANTED_BYTES_MAX;
        if is_too_much || len > limits.subscription_len {
            state.wants_more = true;
            return Ok(false);
        }
    } else if state.wanted.len() >= limits.subscriptions
        || state.wanted_bytes + len > limits.subscription_bytes
    {
        return Err(limits.too_many(state.wanted.len() + 1, state.wanted_bytes + len).into());
    }
    let is_new = state.wanted.insert(prefix.clone());
    if is_new {
        state.wanted_bytes += len;
    }
    Ok(is_new)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Settings;
    use crate::hub::Owner;

    /// A proxy sends the subscriptions of all its subscribers together, which may be any number. Peers that
    /// connect to us have limits.
    #[tokio::test]
    async fn what_a_proxy_tells_is_never_too_much_to_stay() {
        let limits = Limits { subscriptions: 3, subscription_bytes: 10, ..Limits::default() };
        let role = Arc::new(Publishing { limits: limits.clone() });
        let socket = Owner::new(role, Settings::default());
        socket.connect("inproc://nobody-listens-here".parse().unwrap());
        let connecting = socket.links()[0].clone();
        let accepted = socket.add_link(false);
        for prefix in ["six of", "twelve"].map(Bytes::from) {
            assert!(note_wanted(&limits, &connecting, true, &prefix).unwrap());
        }
        note_wanted(&limits, &accepted, true, &"six of".into()).unwrap();
        note_wanted(&limits, &accepted, true, &"twelve".into()).unwrap_err();
        for number in 0..3_000 {
            let prefix = Bytes::from(format!("{number:04090}"));
            note_wanted(&limits, &connecting, true, &prefix).unwrap();
        }
        let state = connecting.state();
        assert!(state.wants_more && state.wanted_bytes <= WANTED_BYTES_MAX && state.wanted.len() > 1_000);
    }
}
