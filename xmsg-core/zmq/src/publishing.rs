//! What the peers of a socket want, as they say: the role of PUB, and what XPUB has in common with it.

use bytes::Bytes;
use xmsg_zmtp::{Limits, SocketType};

use crate::link::Link;
use crate::link::session::Ended;
use crate::role::Role;

/// Subscriptions of the peer that a connecting publisher keeps. A proxy may have millions: past this, or with one above the limit of
/// prefixes, the publisher takes it that everything is wanted.
const WANTED_MAX: usize = 100_000;

/// PUB keeps what each of its peers wants.
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

/// Takes note of what a peer wants, or wants no more. Returns whether that changes anything.
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
    if link.connecting && (state.wanted.len() >= WANTED_MAX || len > limits.subscription_len) {
        state.wants_more = true;
        return Ok(false);
    }
    if state.wanted.len() >= limits.subscriptions || state.wanted_bytes + len > limits.subscription_bytes {
        return Err(limits.too_many(state.wanted.len() + 1, state.wanted_bytes + len).into());
    }
    let is_new = state.wanted.insert(prefix.clone());
    if is_new {
        state.wanted_bytes += len;
    }
    Ok(is_new)
}
