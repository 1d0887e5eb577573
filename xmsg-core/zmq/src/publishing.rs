//! Subscriptions of peers: the role of PUB, and what XPUB has in common with it.

use bytes::Bytes;
use xmsg_zmtp::{Limits, SocketType};

use crate::Settings;
use crate::link::Link;
use crate::link::session::Ended;
use crate::lock::lock;
use crate::memory_budget::{Claim, MemoryBudget};
use crate::role::Role;

/// The maximum number of subscriptions of its peer that a connecting publisher keeps. A proxy may have
/// millions. Beyond this, or with a prefix longer than the limit, the publisher treats everything as
/// subscribed, and stays connected.
pub(crate) const WANTED_MAX: usize = 100_000;
/// The maximum length of all these prefixes together, in bytes.
const WANTED_BYTES_MAX: usize = 8 << 20;

/// The memory in bytes that a subscription takes in addition to its prefix: its place and its hash in a set
/// of each peer, its place in the table of XPUB, and the headers of an allocation that is shared.
const SUBSCRIPTION: usize = 232;
/// The step in bytes in which the claim for the subscriptions of a peer changes.
const CLAIM_STEP: usize = 64 << 10;

/// How much may be kept of what peers subscribe to.
#[derive(Debug)]
pub(crate) struct Bounds {
    /// The limits of each peer.
    limits: Limits,
    /// The budget for the subscriptions of all peers that connect to us.
    memory: MemoryBudget,
}

impl Bounds {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self { limits: settings.limits.clone(), memory: settings.memory.clone() }
    }
}

/// The role of PUB, which keeps the subscriptions of each of its peers.
#[derive(Debug)]
pub(crate) struct Publishing {
    pub(crate) bounds: Bounds,
}

impl Role for Publishing {
    fn socket_type(&self) -> SocketType {
        SocketType::Pub
    }

    fn subscription(&self, link: &Link, subscribe: bool, prefix: Bytes) -> Result<bool, Ended> {
        note_wanted(&self.bounds, link, subscribe, &prefix)?;
        Ok(false)
    }
}

/// Notes that a peer has subscribed to a prefix or cancelled that. Returns whether that changes anything.
///
/// # Errors
///
/// A peer that has connected to us has too many subscriptions, or no memory is left and this peer holds most
/// of it.
pub(crate) fn note_wanted(
    bounds: &Bounds,
    link: &Link,
    subscribe: bool,
    prefix: &Bytes,
) -> Result<bool, Ended> {
    let Bounds { limits, memory } = bounds;
    let mut state = link.state();
    let len = prefix.len();
    let is_change = if subscribe {
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
        is_new
    } else {
        let is_known = state.wanted.remove(prefix);
        if is_known {
            state.wanted_bytes -= len;
        }
        is_known
    };
    let bytes = state.wanted_bytes + state.wanted.len() * SUBSCRIPTION;
    drop(state);
    // A peer that we connect to is our own choice, and little is kept for it.
    if is_change && !link.connecting && !count_memory(memory, link, bytes) {
        return Err(Ended::OutOfMemory);
    }
    Ok(is_change)
}

/// Has the subscriptions of a peer count for so many bytes in the budget. If it is used up, the connection
/// that holds most is ended. Returns `false` if it is this one.
fn count_memory(memory: &MemoryBudget, link: &Link, bytes: usize) -> bool {
    let counted = bytes / CLAIM_STEP * CLAIM_STEP;
    let mut claim = lock(&link.wanted_claim);
    if counted == claim.as_ref().map_or(0, Claim::bytes) {
        return true;
    }
    let new = || memory.claim(&link.state().name, "subscriptions", link.stop.clone());
    claim.get_or_insert_with(new).force(counted)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::hub::Owner;

    fn publisher(settings: Settings) -> Owner {
        Owner::new(Arc::new(Publishing { bounds: Bounds::of(&settings) }), settings)
    }

    /// A proxy sends the subscriptions of all its subscribers together, which may be any number. Peers that
    /// connect to us have limits.
    #[tokio::test]
    async fn what_a_proxy_tells_is_never_too_much_to_stay() {
        let limits = Limits { subscriptions: 3, subscription_bytes: 10, ..Limits::default() };
        let settings = Settings { limits, ..Settings::default() };
        let bounds = Bounds::of(&settings);
        let socket = publisher(settings);
        socket.connect("inproc://nobody-listens-here".parse().unwrap());
        let connecting = socket.links()[0].clone();
        let accepted = socket.add_link(false);
        for prefix in ["six of", "twelve"].map(Bytes::from) {
            assert!(note_wanted(&bounds, &connecting, true, &prefix).unwrap());
        }
        note_wanted(&bounds, &accepted, true, &"six of".into()).unwrap();
        note_wanted(&bounds, &accepted, true, &"twelve".into()).unwrap_err();
        for number in 0..3_000 {
            let prefix = Bytes::from(format!("{number:04090}"));
            note_wanted(&bounds, &connecting, true, &prefix).unwrap();
        }
        let state = connecting.state();
        assert!(state.wants_more && state.wanted_bytes <= WANTED_BYTES_MAX && state.wanted.len() > 1_000);
    }

    #[tokio::test]
    async fn whoever_subscribes_to_most_is_ended_when_no_memory_is_left() {
        let memory = MemoryBudget::new(4 << 20);
        let settings = Settings { memory: memory.clone(), ..Settings::default() };
        let bounds = Bounds::of(&settings);
        let socket = publisher(settings);
        let [small, large] = [socket.add_link(false), socket.add_link(false)];
        let subscribe = |link: &Link, number: u32| {
            note_wanted(&bounds, link, true, &Bytes::from(format!("{number:01000}")))
        };
        for number in 0..500 {
            assert!(subscribe(&small, number).unwrap());
        }
        let held = memory.claimed();
        assert!((500 * 1000..=500 * 1300).contains(&held), "{held} bytes");
        let all = (0..5_000).try_for_each(|number| subscribe(&large, number).map(drop));
        assert!(matches!(all, Err(Ended::OutOfMemory)), "{all:?}");
        assert!(large.stop.is_cancelled() && !small.stop.is_cancelled());
        assert_eq!(memory.ended(), 1);
        assert!(memory.claimed() <= (4 << 20) + CLAIM_STEP, "{} bytes", memory.claimed());

        // What is cancelled counts no more.
        let all = memory.claimed();
        for number in 0..500 {
            assert!(note_wanted(&bounds, &small, false, &Bytes::from(format!("{number:01000}"))).unwrap());
        }
        assert_eq!(memory.claimed(), all - held);
    }
}
