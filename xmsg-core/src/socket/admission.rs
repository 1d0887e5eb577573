//! How many connections are let in, so that nobody locks out the others by opening many and saying nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use tokio::sync::Semaphore;

use super::memory::{CONNECTION, Claim, MemoryBudget};
use super::source::network;
use super::throttle::Throttle;
use crate::security::{Authenticator, Credentials, Verdict};

/// The limits. A connection above one of them is closed at once; its owner may try again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Connections, those in the handshake included. Default 100,000.
    pub connections: usize,
    /// Handshakes under way. Default 4096. At this number an address that has none under way may still begin one: twice the
    /// number is the bound.
    pub handshakes: usize,
    /// Handshakes under way with one address (IPv6: with one network of 64 bits). Default 256.
    pub handshakes_per_address: usize,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self { connections: 100_000, handshakes: 4096, handshakes_per_address: 256 }
    }
}

/// Credentials of one address that wait to be judged. More are not.
const WAITING_PER_ADDRESS: usize = 16;

/// Counts connections by the limits. Clones share the counts: one is meant for all ports of a service.
#[derive(Clone, Debug, Default)]
pub struct Admission(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    limits: AdmissionLimits,
    counts: Mutex<Counts>,
    refused: AtomicU64,
    log: Throttle,
    memory: MemoryBudget,
}

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    handshakes: usize,
    addresses: HashMap<IpAddr, Address>,
}

/// An address with handshakes under way.
#[derive(Debug)]
struct Address {
    handshakes: usize,
    turn: Turn,
}

/// Whose credentials are judged next, of one address.
#[derive(Clone, Debug)]
struct Turn {
    now: Arc<Semaphore>,
    /// A permit for each that may wait, and the one that is judged.
    queue: Arc<Semaphore>,
}

impl Default for Turn {
    fn default() -> Self {
        Self { now: Arc::new(Semaphore::new(1)), queue: Arc::new(Semaphore::new(WAITING_PER_ADDRESS + 1)) }
    }
}

impl Counts {
    fn end_handshake(&mut self, address: Option<IpAddr>) {
        self.handshakes -= 1;
        if let Some(address) = address
            && let Some(own) = self.addresses.get_mut(&address)
        {
            own.handshakes -= 1;
            if own.handshakes == 0 {
                self.addresses.remove(&address);
            }
        }
    }
}

impl Inner {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admission {
    /// With these limits.
    #[must_use]
    pub fn new(limits: AdmissionLimits) -> Self {
        Self(Arc::new(Inner { limits, ..Inner::default() }))
    }

    /// With these limits, and no more connections than this budget has memory for.
    #[must_use]
    pub fn with_memory(limits: AdmissionLimits, memory: MemoryBudget) -> Self {
        Self(Arc::new(Inner { limits, memory, ..Inner::default() }))
    }

    /// Lets a new connection in; `None`: there are too many, and it is to be closed. `address` is where it comes from, if it comes
    /// over a network; `peer` names it in the log.
    #[must_use]
    pub fn admit(&self, address: Option<IpAddr>, peer: &str) -> Option<Permit> {
        let inner = &self.0;
        let limits = &inner.limits;
        let address = address.map(network);
        let mut counts = inner.counts();
        let own = address.and_then(|address| counts.addresses.get(&address)).map_or(0, |own| own.handshakes);
        let handshakes = if own == 0 { limits.handshakes.saturating_mul(2) } else { limits.handshakes };
        let above = if own >= limits.handshakes_per_address {
            Some("too many handshakes with this address are under way")
        } else if counts.handshakes >= handshakes {
            Some("too many handshakes are under way")
        } else if counts.connections >= limits.connections {
            Some("too many connections")
        } else {
            None
        };
        let reason = match above {
            Some(reason) => reason,
            None => match inner.memory.claim_fixed(CONNECTION) {
                None => "no memory is left for one more (see --memory-limit)",
                Some(memory) => {
                    counts.connections += 1;
                    counts.handshakes += 1;
                    let turn = address.map(|address| {
                        let new = || Address { handshakes: 0, turn: Turn::default() };
                        let own = counts.addresses.entry(address).or_insert_with(new);
                        own.handshakes += 1;
                        own.turn.clone()
                    });
                    let inner = inner.clone();
                    return Some(Permit { inner, address, turn, handshaking: true, _memory: memory });
                }
            },
        };
        drop(counts);
        inner.refused.fetch_add(1, Ordering::Relaxed);
        if let Some(unlogged) = inner.log.pass() {
            tracing::warn!(peer, reason, unlogged, "connection refused");
        }
        None
    }

    /// Connections that were not let in.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }
}

/// A connection's place; dropping it makes room for another one.
#[derive(Debug)]
pub struct Permit {
    inner: Arc<Inner>,
    address: Option<IpAddr>,
    turn: Option<Turn>,
    handshaking: bool,
    _memory: Claim,
}

impl Permit {
    /// Notes that the handshake is over.
    pub fn established(&mut self) {
        if std::mem::take(&mut self.handshaking) {
            self.inner.counts().end_handshake(self.address);
        }
    }

    /// Judges the credentials of one connection of an address at a time: checking a password takes long on purpose, and others
    /// are not to wait behind all that one address can send. Those that are [recognized](Authenticator::recognizes) don't wait; and of those that
    /// do, there are only so many.
    #[must_use]
    pub fn in_turn(&self, authenticator: Option<Arc<dyn Authenticator>>) -> Option<Arc<dyn Authenticator>> {
        match (authenticator, &self.turn) {
            (Some(authenticator), Some(turn)) => {
                Some(Arc::new(InTurn { authenticator, turn: turn.clone(), address: self.address }))
            }
            (authenticator, _) => authenticator,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.inner.counts();
        counts.connections -= 1;
        if self.handshaking {
            counts.end_handshake(self.address);
        }
    }
}

#[derive(Debug)]
struct InTurn {
    authenticator: Arc<dyn Authenticator>,
    turn: Turn,
    address: Option<IpAddr>,
}

impl Authenticator for InTurn {
    fn authenticate(&self, credentials: Credentials, _: Option<IpAddr>) -> BoxFuture<'_, Verdict> {
        Box::pin(async move {
            if self.authenticator.recognizes(&credentials) {
                return self.authenticator.authenticate(credentials, self.address).await;
            }
            let Ok(_place) = self.turn.queue.try_acquire() else { return Verdict::Busy };
            // It is never closed.
            let Ok(_turn) = self.turn.now.acquire().await else { return Verdict::Busy };
            self.authenticator.authenticate(credentials, self.address).await
        })
    }

    fn recognizes(&self, credentials: &Credentials) -> bool {
        self.authenticator.recognizes(credentials)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission() -> Admission {
        Admission::new(AdmissionLimits { connections: 8, handshakes: 4, handshakes_per_address: 3 })
    }

    fn from(admission: &Admission, address: &str) -> Option<Permit> {
        admission.admit(Some(address.parse().unwrap()), "a test")
    }

    #[test]
    fn one_address_cannot_take_all_places_in_the_handshake() {
        let admission = admission();
        let mut own: Vec<_> = (0..3).map(|_| from(&admission, "10.0.0.1").unwrap()).collect();
        assert!(from(&admission, "10.0.0.1").is_none(), "its share is used up");
        assert!(from(&admission, "::ffff:10.0.0.1").is_none(), "by whatever name");
        let other = from(&admission, "10.0.0.2").unwrap();
        assert!(from(&admission, "10.0.0.2").is_none(), "there are four");
        let third = from(&admission, "10.0.0.3").unwrap();
        assert_eq!(admission.refused(), 3);

        own[0].established();
        drop((other, third));
        let again = from(&admission, "10.0.0.1").unwrap();
        assert!(from(&admission, "10.0.0.1").is_none());
        drop((own, again));
        let counts = admission.0.counts();
        assert_eq!((counts.connections, counts.handshakes, counts.addresses.len()), (0, 0, 0));
    }

    #[test]
    fn connections_are_limited_after_the_handshake_too() {
        let admission = admission();
        let permits: Vec<_> = (0..8)
            .map(|_| {
                let mut permit = from(&admission, "10.0.0.1").unwrap();
                permit.established();
                permit
            })
            .collect();
        assert!(from(&admission, "10.0.0.2").is_none());
        drop(permits);
        assert!(from(&admission, "10.0.0.2").is_some());
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_none_is_nobody() {
        let admission = admission();
        let _own: Vec<_> = (1..4).map(|host| from(&admission, &format!("fd00::{host}")).unwrap()).collect();
        assert!(from(&admission, "fd00::4").is_none());
        assert!(from(&admission, "fd00:0:0:1::4").is_some());
        assert!(admission.admit(None, "a pipe").is_some());
    }

    #[derive(Debug)]
    struct Never;
    impl Authenticator for Never {
        fn authenticate(&self, _: Credentials, _: Option<IpAddr>) -> BoxFuture<'_, Verdict> {
            Box::pin(std::future::pending())
        }
    }

    /// Lets in those at one address, and recognizes one user.
    #[derive(Debug)]
    struct At(&'static str);
    impl Authenticator for At {
        fn authenticate(&self, _: Credentials, from: Option<IpAddr>) -> BoxFuture<'_, Verdict> {
            let admitted = from.is_some_and(|from| from.to_string() == self.0);
            Box::pin(std::future::ready(admitted.into()))
        }

        fn recognizes(&self, credentials: &Credentials) -> bool {
            matches!(credentials, Credentials::Password { user, .. } if user == "known")
        }
    }

    fn credentials(user: &'static str) -> Credentials {
        Credentials::Password { user: user.into(), password: Vec::new().into() }
    }

    #[tokio::test]
    async fn credentials_of_one_address_are_judged_in_turn() {
        let admission = admission();
        let [first, second, other] =
            ["10.0.0.1", "10.0.0.1", "10.0.0.2"].map(|address| from(&admission, address).unwrap());
        let slow = first.in_turn(Some(Arc::new(Never))).unwrap();
        let mut slow = slow.authenticate(credentials("u"), None);
        assert!(futures::poll!(&mut slow).is_pending());
        let authenticator = second.in_turn(Some(Arc::new(At("10.0.0.1")))).unwrap();
        let mut waiting = authenticator.authenticate(credentials("u"), None);
        assert!(futures::poll!(&mut waiting).is_pending(), "it waits for the one before it");
        let known = authenticator.authenticate(credentials("known"), None).await;
        assert_eq!(known, Verdict::Admitted, "one that is recognized does not");
        let other = other.in_turn(Some(Arc::new(At("10.0.0.2")))).unwrap();
        assert_eq!(other.authenticate(credentials("u"), None).await, Verdict::Admitted);
        drop(slow);
        assert_eq!(waiting.await, Verdict::Admitted);
    }

    #[tokio::test]
    async fn only_so_many_of_one_address_wait_to_be_judged() {
        let admission = admission();
        let permit = from(&admission, "10.0.0.1").unwrap();
        let authenticator = permit.in_turn(Some(Arc::new(Never))).unwrap();
        let mut waiting: Vec<_> =
            (0..=WAITING_PER_ADDRESS).map(|_| authenticator.authenticate(credentials("u"), None)).collect();
        for one in &mut waiting {
            assert!(futures::poll!(one).is_pending());
        }
        assert_eq!(authenticator.authenticate(credentials("u"), None).await, Verdict::Busy);
        waiting.pop();
        assert!(futures::poll!(&mut authenticator.authenticate(credentials("u"), None)).is_pending());
    }
}
