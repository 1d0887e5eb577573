//! Logins with passwords while somebody guesses passwords. The check of a password is slow on purpose, so
//! good logins must not wait behind bad ones.
//!
//! - A peer that logged in recently is recognized, and its password is not checked again. What is stored is
//!   not the password but a keyed hash of it and of the line in the password file. Each process makes a new
//!   key.
//! - After failures from an address, whether with one name or with many, the pauses before its next attempt
//!   become longer and longer.
//! - Logins from addresses with failures share one check at a time. The second check is reserved for other
//!   logins.
//! - Each queue is bounded. A login that finds the queue full or comes too soon is not decided: its
//!   connection ends, and the peer may try again.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use blake2::Blake2bMac512;
use blake2::digest::{KeyInit, Mac};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use xmsg_zmq::lock::lock;
use zeroize::Zeroizing;

/// The largest number of logins that are remembered. Beyond it, the oldest is forgotten.
const PROOFS_MAX: usize = 10_000;
/// How long a login is remembered.
const PROOF_AGE: Duration = Duration::from_secs(3600);
/// The largest number of remembered failures, counting addresses and pairs of an address and a name. Beyond
/// it, the oldest is forgotten.
const FAILURES_MAX: usize = 16 << 10;
/// How long failures are remembered after the last one.
const FAILURE_AGE: Duration = Duration::from_secs(600);
/// The number of failures of one name at one address that cause no pause.
const FREE_FAILURES_OF_PAIR: u32 = 3;
/// The number of failures of all names at one address that cause no pause.
const FREE_FAILURES_OF_ADDRESS: u32 = 20;
/// The first pause. It doubles with each further failure, up to `PAUSE_MAX`.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The largest number of passwords that are checked at the same time. On purpose, each check takes a thread
/// and much memory.
const CHECKS_MAX: usize = 2;
/// The largest number of logins in each of the two queues. `WAITING_OF_USER_MAX` limits those with the same
/// name in one queue.
const WAITING_MAX: usize = 64;
const WAITING_OF_USER_MAX: usize = 8;

/// Counts of the outcomes of logins with a password.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoginCounts {
    /// Logins that were accepted after their password was checked.
    pub admitted: u64,
    /// Logins that were accepted without a check, because they were recognized.
    pub recognized: u64,
    /// Logins that were refused after the check: the password was wrong, or the user is unknown or not
    /// allowed.
    pub refused: u64,
    /// Logins that were not checked, because they came too soon after failures.
    pub too_soon: u64,
    /// Logins that were not checked, because too many were waiting.
    pub too_many: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) admitted: AtomicU64,
    pub(super) recognized: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) too_soon: AtomicU64,
    pub(super) too_many: AtomicU64,
}

impl Counters {
    pub(super) fn counts(&self) -> LoginCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LoginCounts {
            admitted: read(&self.admitted),
            recognized: read(&self.recognized),
            refused: read(&self.refused),
            too_soon: read(&self.too_soon),
            too_many: read(&self.too_many),
        }
    }
}

/// A keyed hash of a name, a password, and the line that they were checked against.
pub(super) type Proof = [u8; 32];

/// The recent successful logins.
pub(super) struct Proofs {
    key: Zeroizing<[u8; 32]>,
    known: Mutex<Known>,
}

/// The proofs with the time when each was made, the oldest first.
#[derive(Default)]
struct Known {
    made: HashMap<Proof, Instant>,
    order: VecDeque<(Instant, Proof)>,
}

impl std::fmt::Debug for Proofs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proofs(…)")
    }
}

impl Proofs {
    /// Creates an empty set with a new random key.
    ///
    /// # Panics
    ///
    /// If the operating system provides no randomness. To continue without it would be worse.
    pub(super) fn new() -> Self {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key).expect("the operating system gives randomness");
        Self { key, known: Mutex::default() }
    }

    pub(super) fn of(&self, user: &[u8], password: &[u8], line: &str) -> Proof {
        // This hash accepts keys of 32 bytes.
        let mut mac = Blake2bMac512::new_from_slice(&*self.key).expect("the key has a good length");
        for part in [user, password, line.as_bytes()] {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        let found = Zeroizing::new(<[u8; 64]>::from(mac.finalize().into_bytes()));
        found.first_chunk().copied().unwrap_or_default()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    pub(super) fn remember(&self, proof: Proof, now: Instant) {
        let mut known = self.known();
        known.made.insert(proof, now);
        known.order.push_back((now, proof));
        // `order` has one entry for each time that a proof was made, so `made` is bounded, too.
        while let Some((made, oldest)) = known.order.front().copied()
            && (known.order.len() > PROOFS_MAX || now.saturating_duration_since(made) > PROOF_AGE)
        {
            known.order.pop_front();
            if known.made.get(&oldest) == Some(&made) {
                known.made.remove(&oldest);
            }
        }
    }

    pub(super) fn contains(&self, proof: &Proof, now: Instant) -> bool {
        let made = self.known().made.get(proof).copied();
        made.is_some_and(|made| now.saturating_duration_since(made) <= PROOF_AGE)
    }

    pub(super) fn forget_all(&self) {
        *self.known() = Known::default();
    }
}

/// The source of failures: a name at an address, or an address with any names. Names are hashed, so that all
/// of them take equally little memory.
type FailureSource = (Option<IpAddr>, Option<u64>);

#[derive(Clone, Copy, Debug)]
struct Failure {
    count: u32,
    last: Instant,
}

/// The recent failures by their source.
#[derive(Debug, Default)]
pub(super) struct Failures {
    hasher: RandomState,
    known: Mutex<HashMap<FailureSource, Failure>>,
}

impl Failures {
    pub(super) fn hash(&self, user: &[u8]) -> u64 {
        self.hasher.hash_one(user)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<FailureSource, Failure>> {
        lock(&self.known)
    }

    /// Returns the sources that a login counts for. A login without a known address counts only for its name,
    /// because it says nothing about other logins without an address.
    fn keys(from: Option<IpAddr>, user: u64) -> impl Iterator<Item = (FailureSource, u32)> {
        let pair = ((from, Some(user)), FREE_FAILURES_OF_PAIR);
        [Some(pair), from.map(|from| ((Some(from), None), FREE_FAILURES_OF_ADDRESS))].into_iter().flatten()
    }

    /// Returns how long this login has to wait before its next attempt.
    pub(super) fn pause(&self, from: Option<IpAddr>, user: u64, now: Instant) -> Duration {
        let known = self.known();
        let left = Self::keys(from, user).filter_map(|(who, free)| {
            let failure = known.get(&who)?;
            let doubled = failure.count.checked_sub(free)?.min(16);
            let pause = (PAUSE * (1 << doubled)).min(PAUSE_MAX);
            Some(pause.saturating_sub(now.saturating_duration_since(failure.last)))
        });
        left.max().unwrap_or_default()
    }

    /// Returns whether this address, or this name at this address, had a recent failure.
    pub(super) fn has_failed(&self, from: Option<IpAddr>, user: u64, now: Instant) -> bool {
        let known = self.known();
        let is_recent = |failure: &Failure| now.saturating_duration_since(failure.last) <= FAILURE_AGE;
        Self::keys(from, user).any(|(who, _)| known.get(&who).is_some_and(is_recent))
    }

    pub(super) fn note(&self, from: Option<IpAddr>, user: u64, now: Instant) {
        let mut known = self.known();
        for (who, _) in Self::keys(from, user) {
            if !known.contains_key(&who) && known.len() >= FAILURES_MAX {
                known.retain(|_, failure| now.saturating_duration_since(failure.last) <= FAILURE_AGE);
                // Looking at all failures takes a hundredth of the time of the check that has just failed.
                let oldest = known.iter().min_by_key(|(_, failure)| failure.last).map(|(who, _)| *who);
                if let Some(oldest) = oldest.filter(|_| known.len() >= FAILURES_MAX) {
                    known.remove(&oldest);
                }
            }
            let failure = known.entry(who).or_insert(Failure { count: 0, last: now });
            let is_recent = now.saturating_duration_since(failure.last) <= FAILURE_AGE;
            let count = if is_recent { failure.count.saturating_add(1) } else { 1 };
            *failure = Failure { count, last: now };
        }
    }

    /// Removes the failures of this name at this address after a successful login. The failures of other
    /// names at the address remain.
    pub(super) fn clear(&self, from: Option<IpAddr>, user: u64) {
        self.known().remove(&(from, Some(user)));
    }
}

/// The number of logins in one queue, in total and by name.
#[derive(Debug, Default)]
struct Waiting {
    all: usize,
    by_user: HashMap<u64, usize>,
}

/// A place in the queue, which is given back when it is dropped.
struct QueuePlace<'a> {
    waiting: &'a Mutex<Waiting>,
    user: u64,
}

impl<'a> QueuePlace<'a> {
    fn take(waiting: &'a Mutex<Waiting>, user: u64) -> Option<Self> {
        let mut all = lock(waiting);
        let own = all.by_user.get(&user).copied().unwrap_or_default();
        if all.all >= WAITING_MAX || own >= WAITING_OF_USER_MAX {
            return None;
        }
        all.all += 1;
        all.by_user.insert(user, own + 1);
        Some(Self { waiting, user })
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        let mut all = lock(self.waiting);
        all.all -= 1;
        if let Some(own) = all.by_user.get_mut(&self.user) {
            *own -= 1;
            if *own == 0 {
                all.by_user.remove(&self.user);
            }
        }
    }
}

/// The limits for concurrent checks of passwords.
#[derive(Debug)]
pub(super) struct Checks {
    all: Arc<Semaphore>,
    /// Logins with recent failures share one of the checks.
    suspects: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    waiting_suspects: Mutex<Waiting>,
}

/// The permission to check a password. It ends when it is dropped.
pub(super) type CheckPermit = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Checks {
    pub(super) fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(CHECKS_MAX)),
            suspects: Arc::new(Semaphore::new(1)),
            waiting: Mutex::default(),
            waiting_suspects: Mutex::default(),
        }
    }

    /// Waits for permission to check a password. Returns `None` if too many logins are waiting.
    pub(super) async fn acquire(&self, user: u64, is_suspect: bool) -> Option<CheckPermit> {
        let waiting = if is_suspect { &self.waiting_suspects } else { &self.waiting };
        let _place = QueuePlace::take(waiting, user)?;
        // The semaphores are never closed.
        let suspect = if is_suspect { Some(self.suspects.clone().acquire_owned().await.ok()?) } else { None };
        Some((self.all.clone().acquire_owned().await.ok()?, suspect))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    fn later(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[test]
    fn proofs_are_of_one_login_and_one_process_and_end() {
        let (proofs, others) = (Proofs::new(), Proofs::new());
        let proof = proofs.of(b"alice", b"sesame", "line");
        for other in [
            proofs.of(b"alic", b"esesame", "line"),
            proofs.of(b"alice", b"sesame", "another line"),
            proofs.of(b"bob", b"sesame", "line"),
            others.of(b"alice", b"sesame", "line"),
        ] {
            assert_ne!(other, proof);
        }
        let now = Instant::now();
        assert!(!proofs.contains(&proof, now));
        proofs.remember(proof, now);
        assert!(proofs.contains(&proof, now) && !proofs.contains(&proof, later(3700)));
        proofs.remember(proof, later(1000));
        proofs.remember([0; 32], later(3700));
        assert!(proofs.contains(&proof, later(3700)), "it was made anew");
        proofs.forget_all();
        assert!(!proofs.contains(&proof, now));
        for number in 0..2 * PROOFS_MAX as u64 {
            let mut proof = [0; 32];
            proof[..8].copy_from_slice(&number.to_le_bytes());
            proofs.remember(proof, now);
        }
        let known = proofs.known();
        assert_eq!((known.made.len(), known.order.len()), (PROOFS_MAX, PROOFS_MAX));
    }

    #[test]
    fn failures_cost_more_and_more_and_are_forgotten() {
        let failures = Failures::default();
        let now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..14 {
            assert_eq!(failures.has_failed(ADDRESS, 1, now), !pauses.is_empty());
            failures.note(ADDRESS, 1, now);
            pauses.push(failures.pause(ADDRESS, 1, now).as_millis());
        }
        assert_eq!(pauses[..6], [0, 0, 500, 1000, 2000, 4000]);
        assert_eq!(pauses[13], 60_000);
        assert!(failures.pause(ADDRESS, 2, now).is_zero() && failures.pause(None, 1, now).is_zero());
        assert!(failures.pause(ADDRESS, 1, later(61)).is_zero());
        assert!(!failures.has_failed(ADDRESS, 1, later(700)));
        failures.clear(ADDRESS, 1);
        assert!(failures.pause(ADDRESS, 1, now).is_zero());
        // Failures of many names at one address.
        for user in 100..120 {
            failures.note(ADDRESS, user, now);
        }
        assert!(!failures.pause(ADDRESS, 2, now).is_zero());
    }

    #[test]
    fn failures_take_bounded_memory() {
        let failures = Failures::default();
        let now = Instant::now();
        for user in 0..FAILURES_MAX as u64 + 1000 {
            failures.note(None, user, now + Duration::from_millis(user));
        }
        assert_eq!(failures.known().len(), FAILURES_MAX);
        assert!(!failures.has_failed(None, 0, now) && failures.has_failed(None, 1001, now));
    }

    #[tokio::test]
    async fn suspects_leave_room_for_others_and_queues_are_bounded() {
        let checks = Checks::new();
        let suspect = checks.acquire(1, true).await.unwrap();
        let mut waiting: Vec<_> =
            (0..WAITING_OF_USER_MAX).map(|_| Box::pin(checks.acquire(1, true))).collect();
        for one in &mut waiting {
            assert!(futures::poll!(one.as_mut()).is_pending());
        }
        assert!(checks.acquire(1, true).await.is_none(), "too many of one name");
        let mut others: Vec<_> =
            (2..WAITING_MAX as u64).map(|user| Box::pin(checks.acquire(user, true))).collect();
        let mut pending = 0;
        for one in &mut others {
            pending += usize::from(futures::poll!(one.as_mut()).is_pending());
        }
        assert_eq!(pending, WAITING_MAX - WAITING_OF_USER_MAX, "too many of all");
        // Logins without failures do not wait for those with failures.
        for _ in 0..3 {
            drop(checks.acquire(1, false).await.unwrap());
        }
        drop(suspect);
        drop((waiting, others));
        assert_eq!(checks.waiting_suspects.lock().unwrap().all, 0);
    }
}
