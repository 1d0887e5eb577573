//! Limits the number of connections, so that no peer can lock out the others by opening many connections and
//! sending nothing.

// Longer than 500 lines: one state under one lock: the places, and the permits and claims that release them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::link::pause::PeerLeft;
use crate::link::session::now;
use crate::link::source::network;
use crate::link::throttle::Throttle;
use crate::lock::lock;
use crate::memory_budget::{CONNECTION, Claim, MemoryBudget, NoRoom};
use crate::security::{Authenticator, Credentials, Verdict};

/// Limits for connections. A connection above one of them is closed at once; the peer may try again later.
///
/// At the limit of connections, room for a new one is made as follows. First, a connection is ended whose
/// peer [has left](Place). If there is none, and one address has more than half of all places, a connection
/// of that address is ended for a new connection from another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// The maximum number of connections, including those in the handshake. Default 100,000.
    pub connections: usize,
    /// The maximum number of handshakes in progress. Default 4096. At this number, an address without a
    /// handshake in progress may still begin one, up to twice this number in all.
    pub handshakes: usize,
    /// The maximum number of handshakes in progress with one address or, for IPv6, with one network of 64
    /// bits. Default 256.
    pub handshakes_per_address: usize,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self { connections: 100_000, handshakes: 4096, handshakes_per_address: 256 }
    }
}

/// The maximum number of credentials of one address that wait for authentication. More are rejected as busy.
const WAITING_PER_ADDRESS: usize = 16;
/// A connection that was idle for this time is ended before others of its address.
const IDLE: Duration = Duration::from_secs(1);
/// The number of youngest connections of an address that are searched for an idle one.
const LOOKED_AT: usize = 256;

/// Counts connections and applies the limits. Clones share the counts: one instance is meant for all ports of
/// a service.
#[derive(Clone, Debug, Default)]
pub struct Admission(Arc<Inner>);

#[derive(Debug, Default)]
pub(crate) struct Inner {
    limits: AdmissionLimits,
    counts: Mutex<Counts>,
    refused: AtomicU64,
    evicted: AtomicU64,
    log: Throttle,
    way_log: Throttle,
    memory: MemoryBudget,
}

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    handshakes: usize,
    addresses: HashMap<IpAddr, Address>,
    /// The places of peers that have left, in the order in which they left.
    left: BTreeMap<u64, Arc<Place>>,
    departures: u64,
    arrivals: u64,
    /// The connections that were chosen to be ended for others, and whose tasks have not ended yet.
    giving_way: usize,
    /// The address with the most connections, as of its own last arrival. An address with more than half of
    /// all places is always this one.
    largest: Option<IpAddr>,
}

/// The connections of one address.
#[derive(Debug, Default)]
struct Address {
    turn: AuthenticationQueue,
    /// Connections in the handshake, in the order of arrival, each with its start and the token that ends it.
    handshaking: BTreeMap<u64, (Instant, CancellationToken)>,
    /// Connections after the handshake, in the order of arrival.
    established: BTreeMap<u64, Established>,
}

impl Address {
    fn connections(&self) -> usize {
        self.handshaking.len() + self.established.len()
    }

    /// Ends one connection of this address: the oldest handshake that has lasted for at least [`IDLE`], or
    /// else the most recent idle connection, or, if busy ones may be ended, too, the most recent handshake or
    /// the most recent connection.
    fn evict(&mut self, spares_busy: bool) -> bool {
        let now = now();
        let is_long = |since: &Instant| now.saturating_duration_since(*since) >= IDLE;
        let mut youngest = self.established.iter().rev().take(LOOKED_AT);
        let idle = youngest.find(|(_, one)| one.activity.idle_for(now) >= IDLE).map(|(number, _)| *number);
        let first = self.handshaking.first_entry().filter(|first| is_long(&first.get().0));
        let gives_way = if let Some(first) = first {
            Some(first.remove().1)
        } else if let Some(idle) = idle {
            self.established.remove(&idle).map(|one| one.gives_way)
        } else if spares_busy {
            None
        } else if let Some((_, (_, gives_way))) = self.handshaking.pop_last() {
            Some(gives_way)
        } else {
            self.established.pop_last().map(|(_, one)| one.gives_way)
        };
        gives_way.is_some_and(|gives_way| {
            gives_way.cancel();
            true
        })
    }
}

/// A connection after its handshake.
#[derive(Debug)]
struct Established {
    gives_way: CancellationToken,
    activity: Arc<Activity>,
}

/// Records when something was last sent or received over a connection.
#[derive(Debug)]
pub struct Activity {
    since: Instant,
    /// The time of the last activity in milliseconds after `since`.
    last: AtomicU64,
    /// Whether something that was received waits to be handled.
    waits: AtomicBool,
}

/// As long as this lives, something that was received over a connection waits to be handled.
#[derive(Debug)]
pub(crate) struct HeldUp<'a>(&'a Activity);

impl Drop for HeldUp<'_> {
    fn drop(&mut self) {
        self.0.note(now());
        self.0.waits.store(false, Ordering::Relaxed);
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self { since: now(), last: AtomicU64::new(0), waits: AtomicBool::new(false) }
    }
}

impl Activity {
    /// Notes that something was sent or received at this time.
    pub(crate) fn note(&self, at: Instant) {
        self.last.store(self.millis(at), Ordering::Relaxed);
    }

    /// Notes that something that was received is not handled yet. Nothing more is read meanwhile, which is
    /// not the fault of the peer.
    pub(crate) fn held_up(&self) -> HeldUp<'_> {
        self.waits.store(true, Ordering::Relaxed);
        HeldUp(self)
    }

    fn idle_for(&self, now: Instant) -> Duration {
        if self.waits.load(Ordering::Relaxed) {
            return Duration::ZERO;
        }
        Duration::from_millis(self.millis(now).saturating_sub(self.last.load(Ordering::Relaxed)))
    }

    fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.since).as_millis() as u64
    }
}

/// Admits one authentication at a time for one address.
#[derive(Clone, Debug)]
struct AuthenticationQueue {
    now: Arc<Semaphore>,
    /// Has a permit for each authentication that may wait, and for the one in progress.
    queue: Arc<Semaphore>,
}

impl Default for AuthenticationQueue {
    fn default() -> Self {
        Self { now: Arc::new(Semaphore::new(1)), queue: Arc::new(Semaphore::new(WAITING_PER_ADDRESS + 1)) }
    }
}

/// Who makes room for a connection for which no descriptor is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoomForDescriptor {
    /// Nobody does.
    Nobody,
    /// A connection that has left, or that is being ended already, does.
    GivenAway,
    /// An idle connection of this address, which has more than half of all, was ended.
    Evicted(IpAddr),
}

impl Counts {
    /// Ends the connection of the peer that left first. Its place is free as soon as its task has run; until
    /// then, there may be one connection more than the limit. Returns `false` if there is none.
    fn give_away_a_place(&mut self) -> bool {
        let Some((_, place)) = self.left.pop_first() else { return false };
        // This happens under the lock of the counts, so that whoever sees the connection end sees this, too.
        let _ = place.given_away.set(());
        place.end.cancel();
        true
    }

    /// Ends a connection of the address that has more than half of `places`, if there is such an address and
    /// the new connection is not from there. The place is free as soon as the task of that connection has
    /// run. Returns the address.
    fn make_room_from_largest(&mut self, newcomer: Option<IpAddr>, places: usize) -> Option<IpAddr> {
        let largest = self.largest.filter(|largest| Some(*largest) != newcomer)?;
        let own = self.addresses.get_mut(&largest)?;
        let has_most = own.connections() > places / 2;
        let evicted = (has_most && own.evict(false)).then_some(largest);
        self.giving_way += usize::from(evicted.is_some());
        evicted
    }

    /// Ends a connection for one that can't be accepted, because the process has no descriptor left. Where
    /// that one comes from is not known before it is accepted. So it may be from the address with more than
    /// half of all connections itself, and of these only one that is idle is ended.
    fn make_room_for_descriptor(&mut self) -> RoomForDescriptor {
        // The descriptor of a connection that gives way is free as soon as its task has run: no other has to.
        if self.giving_way > 0 || self.give_away_a_place() {
            return RoomForDescriptor::GivenAway;
        }
        let connections = self.connections;
        let largest = self.largest.filter(|address| {
            let own = self.addresses.get_mut(address);
            own.is_some_and(|own| own.connections() > connections / 2 && own.evict(true))
        });
        let Some(largest) = largest else { return RoomForDescriptor::Nobody };
        self.giving_way += 1;
        RoomForDescriptor::Evicted(largest)
    }

    /// Counts a new connection from this address, which is in its handshake. Returns its number.
    fn begin_handshake(&mut self, address: IpAddr, gives_way: CancellationToken) -> u64 {
        self.arrivals += 1;
        let count = |address| self.addresses.get(address).map_or(0, Address::connections);
        let most = self.largest.as_ref().map_or(0, count);
        let own = self.addresses.entry(address).or_default();
        own.handshaking.insert(self.arrivals, (now(), gives_way));
        if own.connections() > most {
            self.largest = Some(address);
        }
        self.arrivals
    }

    /// Returns the address of a connection and the number of the connection, if it has both.
    fn own(&mut self, address: Option<IpAddr>, number: Option<u64>) -> Option<(&mut Address, u64)> {
        Some((self.addresses.get_mut(&address?)?, number?))
    }

    /// Removes an address without connections.
    fn forget_unused(&mut self, address: IpAddr) {
        let is_unused = |own: &Address| own.connections() == 0;
        if self.addresses.get(&address).is_some_and(is_unused) {
            self.addresses.remove(&address);
        }
    }
}

impl Inner {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        lock(&self.counts)
    }

    /// Makes room for a new connection to this service, or to another one with the same memory budget. The
    /// other one must not hold its own lock, because it may be asked to make room, too.
    pub(crate) fn make_room_from_largest(&self, newcomer: Option<IpAddr>, places: usize) -> Option<IpAddr> {
        self.counts().make_room_from_largest(newcomer, places)
    }

    /// Counts and logs that a connection of this address was ended for a new one.
    fn note_crowding(&self, address: IpAddr, newcomer: &str) {
        self.evicted.fetch_add(1, Ordering::Relaxed);
        if let Some(unlogged) = self.way_log.pass("connections that were ended to make room") {
            tracing::warn!(
                %address,
                newcomer,
                unlogged,
                "the limit of connections or of descriptors is reached, and this address has more than half of all: its youngest idle connection is ended for a new one. \
                 Raise the limit of connections, of descriptors or of memory (--memory-limit), or find out why it has so many"
            );
        }
    }
}

impl Admission {
    /// Creates an admission with these limits.
    #[must_use]
    pub fn new(limits: AdmissionLimits) -> Self {
        Self(Arc::new(Inner { limits, ..Inner::default() }))
    }

    /// Creates an admission with these limits that admits no more connections than this budget has memory
    /// for.
    #[must_use]
    pub fn with_memory(limits: AdmissionLimits, memory: MemoryBudget) -> Self {
        let inner = Arc::new(Inner { limits, memory, ..Inner::default() });
        inner.memory.share_places(Arc::downgrade(&inner));
        Self(inner)
    }

    /// Admits a new connection, or returns `None` if there are too many. It then has to be closed. `address`
    /// is the peer's if it connects over a network; `peer` is its name in the log.
    #[must_use]
    pub fn admit(&self, address: Option<IpAddr>, peer: &str) -> Option<Permit> {
        let inner = &self.0;
        let limits = &inner.limits;
        let address = address.map(network);
        let mut counts = inner.counts();
        let own = address.and_then(|address| counts.addresses.get(&address));
        let own = own.map_or(0, |own| own.handshaking.len());
        let handshakes = if own == 0 { limits.handshakes.saturating_mul(2) } else { limits.handshakes };
        let mut evicted = None;
        let above = if own >= limits.handshakes_per_address {
            Some("too many handshakes with this address are under way")
        } else if counts.handshakes >= handshakes {
            Some("too many handshakes are under way")
        } else if counts.connections >= limits.connections && !counts.give_away_a_place() {
            evicted = counts.make_room_from_largest(address, limits.connections);
            evicted.is_none().then_some("too many connections")
        } else {
            None
        };
        let reason = if let Some(reason) = above {
            reason
        } else {
            let mut memory = inner.memory.claim_fixed(CONNECTION);
            // The memory of a peer that has left is free soon, so the new peer may try again.
            if memory.as_ref().err() == Some(&NoRoom::UsedUp)
                && evicted.is_none()
                && !counts.give_away_a_place()
            {
                let places = inner.memory.places(CONNECTION);
                evicted = counts.make_room_from_largest(address, places);
                if evicted.is_none() {
                    drop(counts);
                    evicted = inner
                        .memory
                        .make_room_from_largest(&|service| service.make_room_from_largest(address, places));
                    counts = inner.counts();
                }
            }
            if memory.is_err() && evicted.is_some() {
                memory = Ok(inner.memory.claim_fixed_instead(CONNECTION));
            }
            if let Ok(memory) = memory {
                counts.connections += 1;
                counts.handshakes += 1;
                let gives_way = CancellationToken::new();
                let number = address.map(|address| counts.begin_handshake(address, gives_way.clone()));
                let own = address.and_then(|address| counts.addresses.get(&address));
                let turn = own.map(|own| own.turn.clone());
                drop(counts);
                if let Some(crowded) = evicted {
                    inner.note_crowding(crowded, peer);
                }
                return Some(Permit {
                    inner: inner.clone(),
                    address,
                    turn,
                    handshaking: true,
                    number,
                    gives_way,
                    activity: Arc::default(),
                    place: None,
                    _memory: memory,
                });
            }
            "no memory is left for one more (see --memory-limit)"
        };
        drop(counts);
        inner.refused.fetch_add(1, Ordering::Relaxed);
        if let Some(unlogged) = inner.log.pass("connections that were refused") {
            tracing::warn!(peer, reason, unlogged, "connection refused");
        }
        None
    }

    /// Ends a connection for a new one that the process has no descriptor for: the connection of the peer
    /// that left first or, if there is none, an idle one of the address that has more than half of all
    /// connections. Returns `false` if there is no such connection.
    #[must_use]
    pub fn make_room(&self) -> bool {
        let room = self.0.counts().make_room_for_descriptor();
        if let RoomForDescriptor::Evicted(crowded) = room {
            self.0.note_crowding(crowded, "one for which no descriptor is left");
        }
        room != RoomForDescriptor::Nobody
    }

    /// Returns the number of connections that were ended for new ones because their address had more than
    /// half of all.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.0.evicted.load(Ordering::Relaxed)
    }

    /// Returns the number of connections that were refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }
}

/// The permit of an admitted connection. Dropping it makes room for another one.
#[derive(Debug)]
pub struct Permit {
    inner: Arc<Inner>,
    address: Option<IpAddr>,
    turn: Option<AuthenticationQueue>,
    handshaking: bool,
    /// The number among connections that have an address.
    number: Option<u64>,
    gives_way: CancellationToken,
    activity: Arc<Activity>,
    place: Option<Arc<Place>>,
    _memory: Claim,
}

/// The place of a connection whose peer may leave before all that it sent has been passed on. As long as
/// there are free places, the connection is kept, so that nothing it sent is lost. When there are none, the
/// connection whose peer left first is ended for a new one.
#[derive(Debug)]
pub struct Place {
    inner: Weak<Inner>,
    end: CancellationToken,
    /// The number among the peers that left, and the time of leaving.
    left: OnceLock<(u64, Instant)>,
    given_away: OnceLock<()>,
}

impl Place {
    /// The place of a connection that we have made ourselves, which `end` ends. It counts nowhere, and nobody
    /// else gets it.
    #[must_use]
    pub fn of_our_own(end: CancellationToken) -> Arc<Self> {
        Arc::new(Self { inner: Weak::new(), end, left: OnceLock::new(), given_away: OnceLock::new() })
    }

    /// Returns how long ago the peer left, or `None` if it is still connected as far as is known.
    #[must_use]
    pub fn left_for(&self) -> Option<Duration> {
        self.left.get().map(|(_, since)| now().saturating_duration_since(*since))
    }

    /// Returns whether the connection was ended for a new one.
    #[must_use]
    pub fn is_given_away(&self) -> bool {
        self.given_away.get().is_some()
    }
}

impl Permit {
    /// Returns the place of this connection, which `end` ends. It is meant for
    /// [`Session::with_departure`](crate::link::session::Session::with_departure).
    pub fn place(&mut self, end: CancellationToken) -> Arc<Place> {
        let (left, given_away) = (OnceLock::new(), OnceLock::new());
        let place = Arc::new(Place { inner: Arc::downgrade(&self.inner), end, left, given_away });
        self.place = Some(place.clone());
        place
    }

    /// Notes that the handshake is over.
    pub fn established(&mut self) {
        if std::mem::take(&mut self.handshaking) {
            let mut counts = self.inner.counts();
            counts.handshakes -= 1;
            // A connection that was already chosen to be ended is no longer listed.
            if let Some((own, number)) = counts.own(self.address, self.number)
                && let Some((_, gives_way)) = own.handshaking.remove(&number)
            {
                own.established.insert(number, Established { gives_way, activity: self.activity.clone() });
            }
        }
    }

    /// Returns the token that ends the connection when its address has most connections and others need a
    /// place.
    #[must_use]
    pub fn gives_way(&self) -> CancellationToken {
        self.gives_way.clone()
    }

    /// Returns the record of when something was last sent or received over the connection. It is meant for
    /// [`Session::with_activity`](crate::link::session::Session::with_activity).
    #[must_use]
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Returns an authenticator that authenticates one connection of each address at a time. Checking a
    /// password is slow on purpose, and other addresses must not wait behind all that one address can send.
    /// Credentials that are [recognized](Authenticator::recognizes) don't wait, and the number of those that
    /// do is limited.
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

/// Records that the peer of this place has left. Of the peers that have left, the first is ended first.
#[derive(Debug)]
pub struct Leaving(pub Arc<Place>);

impl PeerLeft for Leaving {
    fn left(&self) {
        let Some(inner) = self.0.inner.upgrade() else { return };
        let mut counts = inner.counts();
        counts.departures += 1;
        let number = counts.departures;
        if self.0.left.set((number, now())).is_ok() {
            counts.left.insert(number, self.0.clone());
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.inner.counts();
        counts.connections -= 1;
        counts.giving_way -= usize::from(self.gives_way.is_cancelled());
        if let Some((number, _)) = self.place.as_ref().and_then(|place| place.left.get()) {
            counts.left.remove(number);
        }
        if self.handshaking {
            counts.handshakes -= 1;
        }
        let Some(address) = self.address else { return };
        if let Some((own, number)) = counts.own(self.address, self.number) {
            own.handshaking.remove(&number);
            own.established.remove(&number);
        }
        counts.forget_unused(address);
    }
}

#[derive(Debug)]
struct InTurn {
    authenticator: Arc<dyn Authenticator>,
    turn: AuthenticationQueue,
    address: Option<IpAddr>,
}

impl Authenticator for InTurn {
    fn authenticate(&self, credentials: Credentials, _: Option<IpAddr>) -> BoxFuture<'_, Verdict> {
        Box::pin(async move {
            if self.authenticator.recognizes(&credentials) {
                return self.authenticator.authenticate(credentials, self.address).await;
            }
            let Ok(_place) = self.turn.queue.try_acquire() else { return Verdict::Busy };
            // The semaphore is never closed.
            let Ok(_turn) = self.turn.now.acquire().await else { return Verdict::Busy };
            self.authenticator.authenticate(credentials, self.address).await
        })
    }

    fn recognizes(&self, credentials: &Credentials) -> bool {
        self.authenticator.recognizes(credentials)
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
