//! How many connections are let in, so that nobody locks out the others by opening many and saying nothing.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::link::memory::{CONNECTION, Claim, MemoryBudget, NoRoom};
use crate::link::pause::Departure;
use crate::link::session::now;
use crate::link::source::network;
use crate::link::throttle::Throttle;
use crate::lock::lock;
use crate::security::{Authenticator, Credentials, Verdict};

/// The limits. A connection above one of them is closed at once; its owner may try again later. At the limit of connections, those
/// whose peers [have left](Place) make room first; then an address that has more than half of all places, for those of others.
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
/// A connection over which nothing went for so long gives way before others of its address do.
const IDLE: Duration = Duration::from_secs(1);
/// So many of the youngest connections of an address are looked at to find one.
const LOOKED_AT: usize = 256;

/// Counts connections by the limits. Clones share the counts: one is meant for all ports of a service.
#[derive(Clone, Debug, Default)]
pub struct Admission(Arc<Inner>);

#[derive(Debug, Default)]
pub(crate) struct Inner {
    limits: AdmissionLimits,
    counts: Mutex<Counts>,
    refused: AtomicU64,
    gave_way: AtomicU64,
    log: Throttle,
    way_log: Throttle,
    memory: MemoryBudget,
}

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    handshakes: usize,
    addresses: HashMap<IpAddr, Address>,
    /// Places of peers that have left, those that left first in front.
    left: BTreeMap<u64, Arc<Place>>,
    departures: u64,
    arrivals: u64,
    /// The address that had most connections when one of its own came last. An address with more than half of all is no other one.
    largest: Option<IpAddr>,
}

/// An address with connections.
#[derive(Debug, Default)]
struct Address {
    turn: Turn,
    /// Connections in their handshake, in the order in which they came, and what ends them.
    greeting: BTreeMap<u64, CancellationToken>,
    /// Connections behind their handshake, in the order in which they came.
    established: BTreeMap<u64, Established>,
}

impl Address {
    fn connections(&self) -> usize {
        self.greeting.len() + self.established.len()
    }

    /// Ends the youngest connection over which nothing goes; if something goes over all of the youngest, the youngest in the handshake, or else
    /// the youngest of all.
    fn give_way(&mut self) -> bool {
        let now = now();
        let mut youngest = self.established.iter().rev().take(LOOKED_AT);
        let idle = youngest.find(|(_, one)| one.activity.idle_for(now) >= IDLE).map(|(number, _)| *number);
        let idle = idle.and_then(|number| self.established.remove(&number)).map(|one| one.gives_way);
        let greeting = idle.or_else(|| self.greeting.pop_last().map(|(_, gives_way)| gives_way));
        let last = greeting.or_else(|| self.established.pop_last().map(|(_, one)| one.gives_way));
        last.is_some_and(|gives_way| {
            gives_way.cancel();
            true
        })
    }
}

/// A connection behind its handshake.
#[derive(Debug)]
struct Established {
    gives_way: CancellationToken,
    activity: Arc<Activity>,
}

/// When something went over a connection last.
#[derive(Debug)]
pub struct Activity {
    since: Instant,
    /// Milliseconds from then on.
    last: AtomicU64,
    /// Something that has come over it waits to be taken.
    waits: AtomicBool,
}

/// As long as it lives, what has come over a connection waits to be taken.
#[derive(Debug)]
pub(crate) struct Waiting<'a>(&'a Activity);

impl Drop for Waiting<'_> {
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
    /// Something went over it at this moment.
    pub(crate) fn note(&self, at: Instant) {
        self.last.store(self.millis(at), Ordering::Relaxed);
    }

    /// Something that has come over it is not taken yet: nothing more is read, and that is not the peer's doing.
    pub(crate) fn waiting(&self) -> Waiting<'_> {
        self.waits.store(true, Ordering::Relaxed);
        Waiting(self)
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
    /// Ends the connection of the peer that left first. Its place is free as soon as its task has had a turn: until then there may be one
    /// connection more than the limit says. `false`: there is none.
    fn give_away_a_place(&mut self) -> bool {
        let Some((_, place)) = self.left.pop_first() else { return false };
        // Under the lock of the counts: whoever sees the connection end sees this, too.
        let _ = place.given_away.set(());
        place.end.cancel();
        true
    }

    /// Ends a connection of the address that has more than half of so many places, if there is such a one and the newcomer is not from there. Its
    /// place is free as soon as its task has had a turn. Returns the address.
    fn crowd_out(&mut self, newcomer: Option<IpAddr>, places: usize) -> Option<IpAddr> {
        let largest = self.largest.filter(|largest| Some(*largest) != newcomer)?;
        let own = self.addresses.get_mut(&largest)?;
        let has_most = own.connections() > places / 2;
        (has_most && own.give_way()).then_some(largest)
    }

    /// A connection has come from this address, and is in its handshake. Returns its number.
    fn greet(&mut self, address: IpAddr, gives_way: CancellationToken) -> u64 {
        self.arrivals += 1;
        let count = |address| self.addresses.get(address).map_or(0, Address::connections);
        let most = self.largest.as_ref().map_or(0, count);
        let own = self.addresses.entry(address).or_default();
        own.greeting.insert(self.arrivals, gives_way);
        if own.connections() > most {
            self.largest = Some(address);
        }
        self.arrivals
    }

    /// What is known of the address of a connection, and the number of that.
    fn own(&mut self, address: Option<IpAddr>, number: Option<u64>) -> Option<(&mut Address, u64)> {
        Some((self.addresses.get_mut(&address?)?, number?))
    }

    /// Forgets an address without connections.
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

    /// Makes room for a newcomer to this service, or to another one with the same memory, which must not hold its own lock: it may be asked the same.
    pub(crate) fn crowd_out(&self, newcomer: Option<IpAddr>, places: usize) -> Option<IpAddr> {
        self.counts().crowd_out(newcomer, places)
    }

    /// A connection of this address was ended for a newcomer.
    fn note_crowding(&self, address: IpAddr, newcomer: &str) {
        self.gave_way.fetch_add(1, Ordering::Relaxed);
        if let Some(unlogged) = self.way_log.pass("connections that were ended to make room") {
            tracing::warn!(
                %address,
                newcomer,
                unlogged,
                "the limit of connections is reached, and this address has more than half of all: its youngest idle connection is ended for a new one. \
                 Raise the limit of connections, of descriptors or of memory (--memory-limit), or find out why it has so many"
            );
        }
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
        let inner = Arc::new(Inner { limits, memory, ..Inner::default() });
        inner.memory.share_places(Arc::downgrade(&inner));
        Self(inner)
    }

    /// Lets a new connection in; `None`: there are too many, and it is to be closed. `address` is where it comes from, if it comes
    /// over a network; `peer` names it in the log.
    #[must_use]
    pub fn admit(&self, address: Option<IpAddr>, peer: &str) -> Option<Permit> {
        let inner = &self.0;
        let limits = &inner.limits;
        let address = address.map(network);
        let mut counts = inner.counts();
        let own = address.and_then(|address| counts.addresses.get(&address));
        let own = own.map_or(0, |own| own.greeting.len());
        let handshakes = if own == 0 { limits.handshakes.saturating_mul(2) } else { limits.handshakes };
        let mut gave_way = None;
        let above = if own >= limits.handshakes_per_address {
            Some("too many handshakes with this address are under way")
        } else if counts.handshakes >= handshakes {
            Some("too many handshakes are under way")
        } else if counts.connections >= limits.connections && !counts.give_away_a_place() {
            gave_way = counts.crowd_out(address, limits.connections);
            gave_way.is_none().then_some("too many connections")
        } else {
            None
        };
        let reason = if let Some(reason) = above {
            reason
        } else {
            let mut memory = inner.memory.claim_fixed(CONNECTION);
            // What whoever has left held is free soon: the newcomer may come again.
            if memory.as_ref().err() == Some(&NoRoom::UsedUp)
                && gave_way.is_none()
                && !counts.give_away_a_place()
            {
                let places = inner.memory.places(CONNECTION);
                gave_way = counts.crowd_out(address, places);
                if gave_way.is_none() {
                    drop(counts);
                    gave_way = inner.memory.crowd_out(&|service| service.crowd_out(address, places));
                    counts = inner.counts();
                }
            }
            if memory.is_err() && gave_way.is_some() {
                memory = Ok(inner.memory.claim_fixed_instead(CONNECTION));
            }
            if let Ok(memory) = memory {
                counts.connections += 1;
                counts.handshakes += 1;
                let gives_way = CancellationToken::new();
                let number = address.map(|address| counts.greet(address, gives_way.clone()));
                let own = address.and_then(|address| counts.addresses.get(&address));
                let turn = own.map(|own| own.turn.clone());
                drop(counts);
                if let Some(crowded) = gave_way {
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

    /// Ends the connection of the peer that left first. `false`: there is none.
    #[must_use]
    pub fn make_room(&self) -> bool {
        self.0.counts().give_away_a_place()
    }

    /// Connections that were ended for newcomers, because their address had more than half of all.
    #[must_use]
    pub fn gave_way(&self) -> u64 {
        self.0.gave_way.load(Ordering::Relaxed)
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
    /// Among those that have an address.
    number: Option<u64>,
    gives_way: CancellationToken,
    activity: Arc<Activity>,
    place: Option<Arc<Place>>,
    _memory: Claim,
}

/// The place of a connection whose peer may leave before all that it sent has been passed on. Such a peer keeps its place as long as
/// there are others: what it sent is not to be lost. When there are none, whoever left first is ended for a newcomer.
#[derive(Debug)]
pub struct Place {
    inner: Weak<Inner>,
    end: CancellationToken,
    /// Its number among those that left, and when it did.
    left: OnceLock<(u64, Instant)>,
    given_away: OnceLock<()>,
}

impl Place {
    /// How long ago the peer left; `None`: it is there, as far as is known.
    #[must_use]
    pub fn left_for(&self) -> Option<Duration> {
        self.left.get().map(|(_, since)| now().saturating_duration_since(*since))
    }

    /// Whether the connection was ended for somebody else.
    #[must_use]
    pub fn is_given_away(&self) -> bool {
        self.given_away.get().is_some()
    }
}

impl Permit {
    /// The place of this connection, which `end` ends, for [`Session::with_departure`](crate::link::session::Session::with_departure).
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
            // Unless it has been told to give way.
            if let Some((own, number)) = counts.own(self.address, self.number)
                && let Some(gives_way) = own.greeting.remove(&number)
            {
                own.established.insert(number, Established { gives_way, activity: self.activity.clone() });
            }
        }
    }

    /// What says that the connection is to end, because its address has most of them and others need a place.
    #[must_use]
    pub fn gives_way(&self) -> CancellationToken {
        self.gives_way.clone()
    }

    /// Where it is to be noted when something goes over the connection, for
    /// [`Session::with_activity`](crate::link::session::Session::with_activity).
    #[must_use]
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
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

/// A peer that leaves is the last one to be ended of those that have left.
#[derive(Debug)]
pub struct Leaving(pub Arc<Place>);

impl Departure for Leaving {
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
        if let Some((number, _)) = self.place.as_ref().and_then(|place| place.left.get()) {
            counts.left.remove(number);
        }
        if self.handshaking {
            counts.handshakes -= 1;
        }
        let Some(address) = self.address else { return };
        if let Some((own, number)) = counts.own(self.address, self.number) {
            own.greeting.remove(&number);
            own.established.remove(&number);
        }
        counts.forget_unused(address);
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
    fn those_in_the_handshake_count_too_and_make_room_for_others() {
        let admission = admission();
        let silent: Vec<_> = (0..2).map(|_| from(&admission, "10.0.0.1").unwrap()).collect();
        let many: Vec<_> = (0..3).map(|_| established(&admission, "10.0.0.1")).collect();
        let few: Vec<_> = (0..3).map(|_| established(&admission, "10.0.0.2")).collect();
        for permit in &many {
            permit.activity.note(now());
        }
        let newcomer = from(&admission, "10.0.0.3").expect("the first address has five of eight places");
        let given_up = |permits: &[Permit]| permits.iter().filter(|one| one.gives_way.is_cancelled()).count();
        assert_eq!([&silent, &many, &few].map(|permits| given_up(permits)), [1, 0, 0]);
        assert!(from(&admission, "10.0.0.4").is_none(), "it has half of them now");
        // Whoever gives way is not established any more.
        let mut silent = silent;
        silent.iter_mut().for_each(Permit::established);
        drop((silent, many, few, newcomer));
        let counts = admission.0.counts();
        assert_eq!((counts.connections, counts.handshakes, counts.addresses.len()), (0, 0, 0));
    }

    #[test]
    fn connections_are_limited_after_the_handshake_too() {
        let admission = admission();
        let permits: Vec<_> = (0..8).map(|number| established(&admission, both(number))).collect();
        assert!(from(&admission, "10.0.0.2").is_none());
        drop(permits);
        assert!(from(&admission, "10.0.0.2").is_some());
    }

    /// One of two addresses: neither has more than half of the connections.
    fn both(number: usize) -> &'static str {
        ["10.0.1.1", "10.0.1.2"][number % 2]
    }

    /// A connection behind its handshake.
    fn established(admission: &Admission, address: &str) -> Permit {
        let mut permit = from(admission, address).expect("there is room");
        permit.established();
        permit
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_with_more_than_half_of_all_makes_room_for_others() {
        let admission = admission();
        let many: Vec<_> = (0..6).map(|_| established(&admission, "10.0.0.1")).collect();
        let few: Vec<_> = (0..2).map(|_| established(&admission, "10.0.0.2")).collect();
        assert!(from(&admission, "10.0.0.1").is_none(), "not for one of its own");
        let given_up = || (0..6).filter(|at| many[*at].gives_way.is_cancelled()).collect::<Vec<_>>();
        assert!(given_up().is_empty());
        let waiting = many[5].activity.waiting();
        tokio::time::advance(IDLE).await;
        many[3].activity.note(now());
        let newcomer = established(&admission, "10.0.0.3");
        assert_eq!(given_up(), [4], "the youngest over which nothing goes, and from which all was taken");
        drop(waiting);
        for permit in &many {
            permit.activity.note(now());
        }
        let pipe = admission.admit(None, "a pipe").expect("it has no address");
        assert_eq!(given_up(), [4, 5], "there is something on all of them");
        assert!(from(&admission, "10.0.0.2").is_none(), "it has no more than half of them any more");
        assert!(few.iter().all(|permit| !permit.gives_way.is_cancelled()));
        assert_eq!((admission.gave_way(), admission.refused()), (2, 2));
        drop((many, few, newcomer, pipe));
        let counts = admission.0.counts();
        assert_eq!((counts.connections, counts.handshakes, counts.addresses.len()), (0, 0, 0));
    }

    #[test]
    fn it_makes_room_in_the_memory_for_connections_too_and_in_no_other() {
        let limits = AdmissionLimits::default();
        let memory = MemoryBudget::new(8 * CONNECTION);
        let admission = Admission::with_memory(limits, memory.clone());
        let mut many: Vec<_> = (0..3).map(|_| established(&admission, "10.0.0.1")).collect();
        let mut queues = memory.claim_shared();
        queues.force(5 * CONNECTION);
        assert!(from(&admission, "10.0.0.2").is_none(), "messages take what is left");
        assert_eq!(admission.gave_way(), 0);
        queues.force(0);
        many.push(established(&admission, "10.0.0.1"));
        let _newcomer = established(&admission, "10.0.0.2");
        assert_eq!((admission.gave_way(), many[3].gives_way.is_cancelled()), (1, true));
        assert!(from(&admission, "10.0.0.1").is_none());
        many.pop();
        assert_eq!(memory.used(), 4 * CONNECTION);

        // So it does for another service with the same memory.
        let other = Admission::with_memory(limits, memory);
        assert!(from(&other, "10.0.0.1").is_none() && !many[2].gives_way.is_cancelled());
        let _newcomer = from(&other, "10.0.0.3").expect("there is room");
        assert!(many[2].gives_way.is_cancelled());
    }

    /// What gives way is given back while others come, which is no reason to refuse one of them.
    #[test]
    fn nobody_is_refused_because_others_come_and_go_at_the_same_moment() {
        let memory = MemoryBudget::new(2 * 64 * CONNECTION);
        let service = || Admission::with_memory(AdmissionLimits::default(), memory.clone());
        let services = [service(), service()];
        let (many, is_over) = (Mutex::new(Vec::<Permit>::new()), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let next = from(&services[0], "10.0.0.1").map(|mut permit| {
                        permit.established();
                        permit
                    });
                    lock(&many).extend(next);
                }
            });
            let newcomers =
                [(&services[0], "10.0.0.2"), (&services[1], "10.0.0.3")].map(|(service, address)| {
                    let many = &many;
                    let come_and_go = move || {
                        let newcomer = from(service, address);
                        // Whoever gives way has its turn.
                        lock(many).retain(|permit| !permit.gives_way.is_cancelled());
                        newcomer.is_none()
                    };
                    scope.spawn(move || (0..20_000).filter(|_| come_and_go()).count())
                });
            let refused: Vec<_> = newcomers.into_iter().map(|newcomer| newcomer.join().unwrap()).collect();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(refused, [0, 0]);
        });
    }

    #[test]
    fn those_that_left_make_room_for_newcomers_in_the_order_in_which_they_left() {
        let admission = admission();
        let mut peers: Vec<_> = (0..8)
            .map(|number| {
                let mut permit = established(&admission, both(number));
                let end = CancellationToken::new();
                let place = permit.place(end.clone());
                (permit, place, end)
            })
            .collect();
        assert!(from(&admission, "10.0.0.2").is_none() && !admission.make_room(), "nobody has left");
        for number in [5, 2, 7] {
            Leaving(peers[number].1.clone()).left();
            Leaving(peers[number].1.clone()).left();
        }
        assert!(peers[5].1.left_for().is_some() && peers[6].1.left_for().is_none());
        drop(peers.remove(5));
        let newcomer = from(&admission, "10.0.0.2").expect("there is room now");
        assert!(peers.iter().all(|(_, place, end)| !place.is_given_away() && !end.is_cancelled()));
        let ended = |peers: &[(Permit, Arc<Place>, CancellationToken)]| -> Vec<usize> {
            (0..peers.len())
                .filter(|at| peers[*at].1.is_given_away() && peers[*at].2.is_cancelled())
                .collect()
        };
        let others = [(); 2].map(|()| from(&admission, "10.0.0.2").expect("somebody makes room"));
        assert_eq!(ended(&peers), [2, 6], "2 left before 7, which is the sixth now");
        assert!(from(&admission, "10.0.0.3").is_none(), "nobody else has left");
        drop((peers, newcomer, others));
        let counts = admission.0.counts();
        assert_eq!((counts.connections, counts.left.len()), (0, 0));
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
