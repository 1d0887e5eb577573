//! A bound on the memory that all peers of a process together can fill.
//!
//! What peers send and request is *claimed*: messages that have arrived in part, queues, subscriptions,
//! connections. Near the limit, no claim grows before memory was released by ending a connection. Of the
//! address whose connections hold most together, the connection with the largest claim is ended. So no number
//! of peers makes the process run out of memory, and peers that use little are not affected.

// Longer than 500 lines: one state under one lock: the budget, its claims, and the choice of the connection
// that is ended.

mod connections;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::link::admission::Inner as Admitting;
use crate::link::send_queue::MemoryCounter;
use crate::link::source::Source;
use crate::link::throttle::Throttle;
use crate::lock::lock;

pub use connections::UnreadAnswers;
pub(crate) use connections::{HandshakeClaim, PeerClaim};

/// The approximate memory in bytes that a connection needs: its task, its entries, and its buffers as long as
/// little arrives.
pub const CONNECTION: usize = 32 << 10;
/// The base interval at which a waiting claim checks whether a connection that was ended has released its
/// memory.
const PACE: Duration = Duration::from_millis(2);
/// What each waiting claim adds to that interval. It is many times what a check takes, however many claims
/// wait.
const PACE_OF_EACH: Duration = Duration::from_micros(5);
/// The maximum time to wait for the release of memory.
const PATIENCE: Duration = Duration::from_secs(1);
/// The minimum time between two searches for the largest claim.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// The pause after a search is at least this many times as long as the search took. Each claim is looked at,
/// and there may be a hundred thousand.
const LOOK_REST: u32 = 10;
/// After this time, a claim that wants more than twice of what others hold on average waits no longer. There
/// are then many large claims, and small ones take precedence.
const PATIENCE_OF_LARGE: Duration = Duration::from_millis(20);
/// The time within which a connection that was ended should release its memory. After that, the next one is
/// ended, too.
const GRACE: Duration = Duration::from_millis(300);

/// Returns what a holder counts for at this moment, in bytes.
struct Weight(Box<dyn Fn() -> usize + Send + Sync>);

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Weight(…)")
    }
}

impl Holder {
    fn weight(&self) -> usize {
        self.weight.as_ref().map_or(self.bytes, |weight| weight.0())
    }
}

/// The ID of claims whose owner cannot be ended.
const NOBODY: u64 = u64::MAX;

/// A limit on memory that its clones share. [`default`](Self::default) has no limit.
#[derive(Clone, Debug)]
pub struct MemoryBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    /// The memory of all queues.
    queues: Arc<MemoryCounter>,
    claimed: AtomicUsize,
    /// The part of `claimed` for which no connection is ended.
    fixed: AtomicUsize,
    /// The claims whose connections can be ended.
    holders: Mutex<Holders>,
    next: AtomicU64,
    /// The time of the next search for the largest claim.
    look_from: Mutex<Option<Instant>>,
    /// The number of claims that wait.
    waiting: AtomicUsize,
    /// Services whose connections are claimed in this budget.
    services: Mutex<Vec<Weak<Admitting>>>,
    /// The number of connections that were ended because of their memory.
    ended: AtomicU64,
    log: Throttle,
}

#[derive(Debug, Default)]
struct Holders {
    by_id: HashMap<u64, Holder>,
    /// The sum of what all holders hold, in bytes.
    bytes: usize,
}

#[derive(Debug)]
struct Holder {
    name: Arc<str>,
    source: Source,
    what: &'static str,
    bytes: usize,
    /// Counts instead of `bytes`, if the size changes without a call.
    weight: Option<Weight>,
    end: CancellationToken,
    /// When the connection was ended because of its memory.
    ended: Option<Instant>,
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

/// Why there is no room for a claim for which no connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// All claims of this kind together have reached their limit.
    UsedUp,
    /// The memory is used for other things.
    NoMemory,
}

impl MemoryBudget {
    /// Creates a budget of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner {
            limit,
            queues: Arc::default(),
            claimed: AtomicUsize::new(0),
            fixed: AtomicUsize::new(0),
            holders: Mutex::default(),
            next: AtomicU64::new(0),
            look_from: Mutex::default(),
            waiting: AtomicUsize::new(0),
            services: Mutex::default(),
            ended: AtomicU64::new(0),
            log: Throttle::default(),
        }))
    }

    /// Returns the limit in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// Returns the memory in use, in bytes.
    #[must_use]
    pub fn used(&self) -> usize {
        self.claimed() + self.0.queues.bytes()
    }

    /// Returns the memory in use except that of queues, in bytes.
    #[must_use]
    pub fn claimed(&self) -> usize {
        self.0.claimed.load(Ordering::Relaxed)
    }

    /// Returns the number of connections that were ended because they held most when no memory was left.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.0.ended.load(Ordering::Relaxed)
    }

    /// Returns the memory counter in which queues count what they hold.
    #[must_use]
    pub fn queues(&self) -> &Arc<MemoryCounter> {
        &self.0.queues
    }

    /// Returns whether there is room for `bytes` more.
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        self.used().saturating_add(bytes) <= self.0.limit
    }

    /// Returns whether `bytes` more would leave half of the memory free.
    pub(crate) fn is_half_free(&self, bytes: usize) -> bool {
        self.used().saturating_add(bytes) <= self.0.limit / 2
    }

    /// Returns whether there is room for `bytes` more, without claiming it. If there is none, the connection
    /// that holds most is ended.
    #[must_use]
    pub fn makes_room(&self, bytes: usize) -> bool {
        let has_room = self.has_room(bytes);
        if !has_room {
            self.end_largest(NOBODY, 0);
        }
        has_room
    }

    /// The average size of a claim in bytes.
    fn average(&self) -> usize {
        let holders = self.0.holders();
        holders.bytes / holders.by_id.len().max(1)
    }

    /// Creates an empty claim for a connection that `end` ends. `name` and `what` say in the log whose claim
    /// it is and for what. If `name` is an address with a port, the claims of that address count together in
    /// the search for the largest one.
    #[must_use]
    pub fn claim(&self, name: &str, what: &'static str, end: CancellationToken) -> Claim {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let name = Arc::from(name);
        let holder =
            Some(Holder { source: Source::of(&name), name, what, bytes: 0, weight: None, end, ended: None });
        Claim { budget: self.clone(), id, bytes: 0, fixed: 0, holder }
    }

    /// Creates an empty claim whose owner cannot be ended.
    #[must_use]
    pub fn claim_shared(&self) -> Claim {
        Claim { budget: self.clone(), id: NOBODY, bytes: 0, fixed: 0, holder: None }
    }

    /// Returns the same bytes, which are claimed until the last of their clones is dropped. They are claimed
    /// once, however many clones there are.
    #[must_use]
    pub fn counted(&self, bytes: Bytes) -> Bytes {
        let mut claim = self.claim_shared();
        claim.force(bytes.len());
        Bytes::from_owner(Counted { bytes, _claim: claim })
    }

    /// Creates a claim for which no connection is ended, or returns why there is no room for it. All such
    /// claims together take at most half of the limit, so that memory is left for messages however many
    /// connections there are.
    pub(crate) fn claim_fixed(&self, bytes: usize) -> Result<Claim, NoRoom> {
        let mut claim = self.claim_shared();
        claim.fix(bytes, self.0.limit / 2)?;
        Ok(claim)
    }

    /// The maximum number of claims of this size for which no connection is ended.
    pub(crate) fn places(&self, bytes: usize) -> usize {
        self.0.limit / 2 / bytes
    }

    /// Registers a service that can make room for new connections to other services with the same budget.
    pub(crate) fn share_places(&self, service: Weak<Admitting>) {
        let mut services = self.0.services();
        services.retain(|service| service.strong_count() > 0);
        services.push(service);
    }

    /// Asks the services in turn to end a connection for a new one. Returns the address of the connection
    /// that the first of them ended.
    pub(crate) fn make_room_from_largest(
        &self,
        ask: &dyn Fn(&Admitting) -> Option<IpAddr>,
    ) -> Option<IpAddr> {
        let services: Vec<_> = self.0.services().iter().filter_map(Weak::upgrade).collect();
        services.iter().find_map(|service| ask(service))
    }

    /// Creates a claim in place of an equal one that is just being released. For a moment there may be one
    /// more than the limit allows.
    pub(crate) fn claim_fixed_instead(&self, bytes: usize) -> Claim {
        let mut claim = self.claim_shared();
        self.0.fixed.fetch_add(bytes, Ordering::Relaxed);
        claim.fixed = bytes;
        claim.count(bytes);
        claim
    }

    /// Ends the connection that holds most, unless one that was ended has not released its memory yet. The
    /// claim `own` wants more, and counts as `wanted` bytes. Returns `false` if it is the one that was ended.
    fn end_largest(&self, own: u64, wanted: usize) -> bool {
        let now = Instant::now();
        // Other waiting claims search, too, and one search at a time is enough.
        let mut look_from = match self.0.look_from.try_lock() {
            Ok(look_from) => look_from,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return true,
        };
        if look_from.is_some_and(|from| now < from) {
            return true;
        }
        let is_other = self.end_largest_at(now, own, wanted);
        let done = Instant::now();
        *look_from = Some(done + LOOK_EVERY.max(done.saturating_duration_since(now) * LOOK_REST));
        is_other
    }

    fn end_largest_at(&self, now: Instant, own: u64, wanted: usize) -> bool {
        let holders = &mut self.0.holders().by_id;
        let is_leaving = |holder: &Holder| {
            holder.end.is_cancelled()
                && holder.ended.is_none_or(|at| now.saturating_duration_since(at) < GRACE)
        };
        let leaving = holders.values().filter(|holder| is_leaving(holder)).map(Holder::weight).sum::<usize>();
        if self.used().saturating_sub(leaving) <= self.0.limit && leaving > 0 {
            return true;
        }
        let held = |id: u64, holder: &Holder| if id == own { wanted } else { holder.weight() };
        let mut sources: HashMap<&Source, usize> = HashMap::new();
        for (id, holder) in holders.iter().filter(|(_, holder)| !holder.end.is_cancelled()) {
            *sources.entry(&holder.source).or_default() += held(*id, holder);
        }
        let most = sources.into_iter().max_by_key(|(_, bytes)| *bytes);
        let Some(source) = most.map(|(source, _)| source.clone()) else { return true };
        let there = holders.iter_mut().filter(|(_, holder)| !holder.end.is_cancelled());
        let theirs = there.filter(|(_, holder)| holder.source == source);
        let Some((id, largest)) = theirs.max_by_key(|(id, holder)| held(**id, holder)) else { return true };
        let is_own = *id == own;
        largest.end.cancel();
        largest.ended = Some(now);
        self.0.ended.fetch_add(1, Ordering::Relaxed);
        let Some(unlogged) = self.0.log.pass("connections that were ended for their memory") else {
            return !is_own;
        };
        tracing::warn!(
            peer = %largest.name,
            what = largest.what,
            bytes = largest.weight(),
            used = self.used(),
            limit = self.0.limit,
            unlogged,
            "no memory is left: the connection that holds most is ended. Raise --memory-limit, or lower what a peer may take"
        );
        !is_own
    }
}

/// Bytes together with the claim for them.
struct Counted {
    bytes: Bytes,
    _claim: Claim,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Inner {
    fn services(&self) -> MutexGuard<'_, Vec<Weak<Admitting>>> {
        lock(&self.services)
    }

    fn holders(&self) -> MutexGuard<'_, Holders> {
        lock(&self.holders)
    }
}

/// Counts as a waiting claim as long as it lives.
struct Waiting {
    budget: MemoryBudget,
}

impl Waiting {
    fn new(budget: &MemoryBudget) -> Self {
        budget.0.waiting.fetch_add(1, Ordering::Relaxed);
        Self { budget: budget.clone() }
    }

    /// The time until the next check.
    fn pace(&self) -> Duration {
        let waiting = self.budget.0.waiting.load(Ordering::Relaxed);
        let of_all = PACE_OF_EACH.saturating_mul(u32::try_from(waiting).unwrap_or(u32::MAX));
        (PACE + of_all).min(PATIENCE / 4)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.budget.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Claimed memory. Dropping it releases the memory.
pub struct Claim {
    budget: MemoryBudget,
    id: u64,
    bytes: usize,
    /// The part of `bytes` for which no connection is ended.
    fixed: usize,
    /// Set until the claim is entered among the others.
    holder: Option<Holder>,
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Claim {
    /// Returns the size of the claim in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the size of the claim to `bytes`. If that is more and there is no room, the connection that
    /// holds most is ended, and this waits for room. Returns `false` if it is this connection, or if no
    /// memory was released in time.
    pub async fn set(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 || self.budget.has_room(more) {
            self.resize(bytes);
            return true;
        }
        // While this claim waits, a search may select it, too.
        self.weigh(self.bytes);
        let waiting = Waiting::new(&self.budget);
        let since = Instant::now();
        let mut is_judged_at = Some(since + PATIENCE_OF_LARGE);
        loop {
            if !waiting.budget.end_largest(self.id, bytes) {
                return false;
            }
            let now = Instant::now();
            let is_judged = is_judged_at.take_if(|at| now >= *at).is_some();
            let is_too_large = is_judged && bytes > 2 * waiting.budget.average();
            if is_too_large || now >= since + PATIENCE {
                break;
            }
            tokio::time::sleep(waiting.pace()).await;
            if waiting.budget.has_room(more) {
                self.resize(bytes);
                return true;
            }
        }
        self.give_up(bytes);
        false
    }

    /// Counts and logs that no memory was released in time, so that this connection ends.
    fn give_up(&self, wanted: usize) {
        let inner = &self.budget.0;
        inner.ended.fetch_add(1, Ordering::Relaxed);
        let Some(unlogged) = inner.log.pass("connections that were given no memory") else { return };
        let name = inner.holders().by_id.get(&self.id).map(|holder| holder.name.clone());
        tracing::warn!(
            peer = name.as_deref(),
            wanted,
            used = self.budget.used(),
            limit = inner.limit,
            unlogged,
            "no memory is left, and none was given back in time: the connection is ended. Raise --memory-limit, or lower what a peer may take"
        );
    }

    /// Changes the size of the claim to `bytes`, and ends no connection for it. On an error the claim keeps
    /// its size. `NoMemory` says that there is no room; `UsedUp` says that all such claims together would
    /// exceed `most` bytes. Concurrent changes of other claims don't affect the reason.
    fn fix(&mut self, bytes: usize, most: usize) -> Result<(), NoRoom> {
        let fixed = &self.budget.0.fixed;
        match bytes.checked_sub(self.fixed) {
            Some(0) => {}
            Some(more) => {
                let with_more = |all: usize| all.checked_add(more).filter(|all| *all <= most);
                if !self.budget.has_room(more) {
                    let is_used_up = with_more(fixed.load(Ordering::Relaxed)).is_none();
                    return Err(if is_used_up { NoRoom::UsedUp } else { NoRoom::NoMemory });
                }
                let claimed = fixed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_more);
                claimed.map_err(|_| NoRoom::UsedUp)?;
            }
            None => {
                fixed.fetch_sub(self.fixed - bytes, Ordering::Relaxed);
            }
        }
        self.fixed = bytes;
        self.count(bytes);
        Ok(())
    }

    /// Changes the size of the claim to `bytes` even if there is no room. If there is none, the connection
    /// that holds most is ended. Returns `false` if it is this connection.
    pub fn force(&mut self, bytes: usize) -> bool {
        self.force_as(bytes, bytes)
    }

    /// Changes the size of the claim to `bytes` even if there is no room, like [`force`](Self::force), but
    /// lets it count as `weight` bytes in the search for the largest one: others hold a part of the memory,
    /// too.
    pub fn force_as(&mut self, bytes: usize, weight: usize) -> bool {
        let is_more = bytes > self.bytes;
        self.count(bytes);
        self.weigh(weight);
        !is_more || self.budget.has_room(0) || self.budget.end_largest(self.id, weight)
    }

    /// Changes the size of the claim to `bytes` for memory that another claim counts until now. It ends no
    /// connection, and takes no lock.
    #[inline]
    pub(crate) fn transfer(&mut self, bytes: usize) {
        debug_assert_eq!(self.id, NOBODY, "the holder of a claim has to be found by its size");
        self.count(bytes);
    }

    /// Makes the claim this large, in the sum of all claims and in the search for the largest one.
    fn resize(&mut self, bytes: usize) {
        self.count(bytes);
        self.weigh(bytes);
    }

    /// Has the claim count for what `weight` returns, in bytes, in each search for the largest one. The value
    /// may change at any time. `weight` must not use the budget.
    #[must_use]
    pub fn weighed_by(mut self, weight: impl Fn() -> usize + Send + Sync + 'static) -> Self {
        if let Some(holder) = &mut self.holder {
            holder.weight = Some(Weight(Box::new(weight)));
        }
        self.weigh(self.bytes);
        self
    }

    /// Sets the bytes for which the claim counts in the search for the largest one.
    fn weigh(&mut self, bytes: usize) {
        if self.id == NOBODY {
            return;
        }
        let mut holders = self.budget.0.holders();
        let Holders { by_id, bytes: all } = &mut *holders;
        match (self.holder.take(), by_id.get_mut(&self.id)) {
            (Some(holder), _) => {
                *all += bytes;
                by_id.insert(self.id, Holder { bytes, ..holder });
            }
            (None, Some(holder)) => {
                *all = *all - holder.bytes + bytes;
                holder.bytes = bytes;
            }
            (None, None) => {}
        }
    }

    /// Sets the bytes for which the claim counts in the sum of all claims.
    fn count(&mut self, bytes: usize) {
        let claimed = &self.budget.0.claimed;
        if bytes >= self.bytes {
            claimed.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            claimed.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.count(0);
        self.budget.0.fixed.fetch_sub(self.fixed, Ordering::Relaxed);
        if self.id != NOBODY {
            let mut holders = self.budget.0.holders();
            if let Some(holder) = holders.by_id.remove(&self.id) {
                holders.bytes -= holder.bytes;
                drop(holders);
                // `weight` may hold the last reference to a queue.
                drop(holder);
            }
        }
    }
}

#[cfg(test)]
#[path = "memory_budget_tests.rs"]
mod tests;
