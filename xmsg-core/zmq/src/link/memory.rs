//! A bound for the memory that all peers of a process together can fill.
//!
//! What peers send and ask for is *claimed*: messages that have come in part, queues, subscriptions, connections. Near the limit
//! nobody gets more before whoever holds most has lost it: of the address whose connections hold most together, the one with the largest
//! claim ends. So no number of peers makes the process run out of memory, and those that take little go on.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, TryLockError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::link::admission::Inner as Admitting;
use crate::link::outbox::{Ledger, Outbox};
use crate::link::source::Source;
use crate::link::throttle::Throttle;
use crate::lock::lock;

/// What a connection needs, bytes, about: its task, its entries, and its buffers as long as little comes in.
pub const CONNECTION: usize = 32 << 10;
/// Memory for the buffers of a connection that counts as a part of it, bytes.
const UNCLAIMED: usize = 16 << 10;
/// The step in which what is more counts, bytes.
const CLAIM_STEP: usize = 64 << 10;
/// Answers of which nobody asks who does not read them, bytes for each connection.
const LITTLE: usize = 4 << 10;
/// The same for connections in the handshake: there may be many of them, and none holds more than a few steps.
const HANDSHAKE_STEP: usize = 16 << 10;
/// How soon to look again whether a connection that was ended has given its memory back …
const PACE: Duration = Duration::from_millis(2);
/// … and so much later for each that waits: many times what a look takes, however many they are.
const PACE_OF_EACH: Duration = Duration::from_micros(5);
/// How long to wait for that.
const PATIENCE: Duration = Duration::from_secs(1);
/// How soon to look again for whoever holds most …
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// … or so many times of what that took, if that is longer: each holder is looked at, and there may be a hundred thousand.
const LOOK_REST: u32 = 10;
/// After so long, a claim that wants more than twice of what others hold on average waits no longer: at that time there are many of its
/// kind, and those who want little are to get it.
const PATIENCE_OF_LARGE: Duration = Duration::from_millis(20);
/// How long somebody who was ended is expected to give back what it holds. Then the next one is ended, too.
const GRACE: Duration = Duration::from_millis(300);

/// What a holder counts for at this moment, bytes.
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

/// The number of claims of nobody who can be ended.
const NOBODY: u64 = u64::MAX;

/// A bound for memory, shared by its clones. [`default`](Self::default) has no limit.
#[derive(Clone, Debug)]
pub struct MemoryBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    /// All queues.
    queues: Arc<Ledger>,
    claimed: AtomicUsize,
    /// … for which nobody is ended.
    fixed: AtomicUsize,
    /// Those that can be ended.
    holders: Mutex<Holders>,
    next: AtomicU64,
    /// From when on it may be looked for whoever holds most.
    look_from: Mutex<Option<Instant>>,
    /// Claims that wait.
    waiting: AtomicUsize,
    /// Services whose connections have their places in it.
    services: Mutex<Vec<Weak<Admitting>>>,
    /// Connections that were ended for their memory.
    ended: AtomicU64,
    log: Throttle,
}

#[derive(Debug, Default)]
struct Holders {
    by_id: HashMap<u64, Holder>,
    /// What all of them hold.
    bytes: usize,
}

#[derive(Debug)]
struct Holder {
    name: Arc<str>,
    source: Source,
    what: &'static str,
    bytes: usize,
    /// What counts instead, if it changes by itself.
    weight: Option<Weight>,
    end: CancellationToken,
    /// When it was ended for what it holds.
    ended: Option<Instant>,
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self::new(usize::MAX)
    }
}

/// Why there is no room for a claim that nobody is ended for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Such claims together take all that they may.
    UsedUp,
    /// The memory is used for other things.
    NoMemory,
}

impl MemoryBudget {
    /// At most so many bytes.
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

    /// The limit, bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// What is held, bytes.
    #[must_use]
    pub fn used(&self) -> usize {
        self.claimed() + self.0.queues.bytes()
    }

    /// What is held beside the queues.
    #[must_use]
    pub fn claimed(&self) -> usize {
        self.0.claimed.load(Ordering::Relaxed)
    }

    /// Connections that were ended because they held most when there was no more.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.0.ended.load(Ordering::Relaxed)
    }

    /// Where queues enter what they hold.
    #[must_use]
    pub fn queues(&self) -> &Arc<Ledger> {
        &self.0.queues
    }

    /// Whether there is room for so much more.
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        self.used().saturating_add(bytes) <= self.0.limit
    }

    /// Whether there is room for so much more, which is not claimed. If there is none, whoever holds most is ended.
    #[must_use]
    pub fn makes_room(&self, bytes: usize) -> bool {
        let has_room = self.has_room(bytes);
        if !has_room {
            self.end_largest(NOBODY, 0);
        }
        has_room
    }

    /// What holders hold on average, bytes.
    fn average(&self) -> usize {
        let holders = self.0.holders();
        holders.bytes / holders.by_id.len().max(1)
    }

    /// A claim of nothing yet, of a connection that `end` ends. `name` and `what` say in the log whose, and for what. If `name` is an address
    /// with a port, the claims of that address count together when whoever holds most is to be found.
    #[must_use]
    pub fn claim(&self, name: &str, what: &'static str, end: CancellationToken) -> Claim {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let name = Arc::from(name);
        let holder =
            Some(Holder { source: Source::of(&name), name, what, bytes: 0, weight: None, end, ended: None });
        Claim { budget: self.clone(), id, bytes: 0, fixed: 0, holder }
    }

    /// A claim of nothing yet, of nobody who can be ended.
    #[must_use]
    pub fn claim_shared(&self) -> Claim {
        Claim { budget: self.clone(), id: NOBODY, bytes: 0, fixed: 0, holder: None }
    }

    /// The same bytes, which count until the last of their clones is gone: once, however many hold them.
    #[must_use]
    pub fn counted(&self, bytes: Bytes) -> Bytes {
        let mut claim = self.claim_shared();
        claim.force(bytes.len());
        Bytes::from_owner(Counted { bytes, _claim: claim })
    }

    /// A claim for which no other connection is ended, or why there is no room for it. All such claims together take at most half
    /// of the limit, so that memory is left for messages, however many connections there are.
    pub(crate) fn claim_fixed(&self, bytes: usize) -> Result<Claim, NoRoom> {
        let mut claim = self.claim_shared();
        claim.fix(bytes, self.0.limit / 2)?;
        Ok(claim)
    }

    /// How many claims of this size there may be for which nobody is ended.
    pub(crate) fn places(&self, bytes: usize) -> usize {
        self.0.limit / 2 / bytes
    }

    /// Has a service make room for newcomers to others with the same memory.
    pub(crate) fn share_places(&self, service: Weak<Admitting>) {
        let mut services = self.0.services();
        services.retain(|service| service.strong_count() > 0);
        services.push(service);
    }

    /// Has the first service make room for a newcomer that can.
    pub(crate) fn crowd_out(&self, ask: &dyn Fn(&Admitting) -> Option<IpAddr>) -> Option<IpAddr> {
        let services: Vec<_> = self.0.services().iter().filter_map(Weak::upgrade).collect();
        services.iter().find_map(|service| ask(service))
    }

    /// The same claim in place of one that is just being given back: there may be one more for a moment.
    pub(crate) fn claim_fixed_instead(&self, bytes: usize) -> Claim {
        let mut claim = self.claim_shared();
        self.0.fixed.fetch_add(bytes, Ordering::Relaxed);
        claim.fixed = bytes;
        claim.count(bytes);
        claim
    }

    /// Ends whoever holds most, unless somebody who was ended has yet to give back. The claim `own` wants more, and holds `wanted` then.
    /// Returns `false` if it is that one.
    fn end_largest(&self, own: u64, wanted: usize) -> bool {
        let now = Instant::now();
        // Others who wait look, too: once for all of them is enough.
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

/// Bytes with the claim that they count by.
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

/// A claim that waits, as long as it does.
struct Waiting {
    budget: MemoryBudget,
}

impl Waiting {
    fn new(budget: &MemoryBudget) -> Self {
        budget.0.waiting.fetch_add(1, Ordering::Relaxed);
        Self { budget: budget.clone() }
    }

    /// How soon to look again.
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

/// Memory that somebody holds. Dropping it gives it back.
pub struct Claim {
    budget: MemoryBudget,
    id: u64,
    bytes: usize,
    /// What of it counts among claims for which nobody is ended.
    fixed: usize,
    /// Until it is entered among the others.
    holder: Option<Holder>,
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Claim {
    /// What it holds, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds so much from now on. If that is more and there is no room, whoever holds most is ended, and this waits until there is room.
    /// `false`: it is this one, or nobody gives anything back.
    pub async fn set(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 || self.budget.has_room(more) {
            self.enter(bytes);
            return true;
        }
        // While it waits it may be found, too.
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
                self.enter(bytes);
                return true;
            }
        }
        self.give_up(bytes);
        false
    }

    /// Nobody gave anything back in time: the connection ends.
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

    /// Holds so much from now on, for which nobody is ended. An error says that there is no room, or that all such claims together would be above
    /// `most` bytes; it holds what it held. What others claim or give back at the same time makes no difference to the reason.
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

    /// Holds so much from now on, whether there is room or not. If there is none, whoever holds most is ended: `false` if it is this one.
    pub fn force(&mut self, bytes: usize) -> bool {
        self.force_as(bytes, bytes)
    }

    /// The same for somebody who counts for `weight` bytes when the largest is sought: of what it holds, others hold a part, too.
    pub fn force_as(&mut self, bytes: usize, weight: usize) -> bool {
        let is_more = bytes > self.bytes;
        self.count(bytes);
        self.weigh(weight);
        !is_more || self.budget.has_room(0) || self.budget.end_largest(self.id, weight)
    }

    fn enter(&mut self, bytes: usize) {
        self.count(bytes);
        self.weigh(bytes);
    }

    /// Has it count for what `weight` returns, whenever the largest is sought, from now on: it may change by itself. `weight` must not use
    /// the budget.
    #[must_use]
    pub fn weighed_by(mut self, weight: impl Fn() -> usize + Send + Sync + 'static) -> Self {
        if let Some(holder) = &mut self.holder {
            holder.weight = Some(Weight(Box::new(weight)));
        }
        self.weigh(self.bytes);
        self
    }

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
                // What it is weighed by may be the last that keeps a queue.
                drop(holder);
            }
        }
    }
}

/// Answers that a peer does not read, for whoever looks for the one that holds most: they count in the ledger of the queues.
#[derive(Debug)]
pub struct Owed {
    budget: MemoryBudget,
    name: Arc<str>,
    end: CancellationToken,
    claim: OnceLock<Claim>,
}

impl Owed {
    /// Of the peer with this name in the log, whose connection `end` ends.
    #[must_use]
    pub fn new(budget: &MemoryBudget, name: &str, end: CancellationToken) -> Self {
        Self { budget: budget.clone(), name: name.into(), end, claim: OnceLock::new() }
    }

    /// Notes that one more was queued. If there is no room for it, whoever holds most is ended. Nothing may be locked.
    pub fn note(&self, outbox: &Outbox) {
        if self.claim.get().is_none() {
            let owed = outbox.owed();
            if owed.load(Ordering::Relaxed) > LITTLE {
                let weight = move || owed.load(Ordering::Relaxed);
                let new = || self.budget.claim(&self.name, "answers that it does not read", self.end.clone());
                self.claim.get_or_init(|| new().weighed_by(weight));
            }
        }
        let _ = self.budget.makes_room(0);
    }

    /// What says that somebody else needs the memory, if it holds any to speak of.
    pub(crate) fn end(&self) -> Option<&CancellationToken> {
        self.claim.get().is_some().then_some(&self.end)
    }
}

/// What the buffers of one connection count for, if they hold more than little.
#[derive(Debug)]
pub(crate) struct PeerClaim {
    claim: Claim,
    /// … and answers that it does not read. Apart, so that the futures of connections stay small.
    owed: Option<Box<Owed>>,
    /// Somebody else needs it.
    pub(crate) end: CancellationToken,
}

impl PeerClaim {
    /// Nothing yet. `name` is the peer's in the log.
    pub(crate) fn new(budget: &MemoryBudget, name: &str, what: &'static str) -> Self {
        let end = CancellationToken::new();
        Self { claim: budget.claim(name, what, end.clone()), owed: None, end }
    }

    /// The same, with answers that the peer does not read.
    pub(crate) fn with_answers(self, name: &str) -> Self {
        let owed = Owed::new(&self.claim.budget, name, self.end.clone());
        Self { owed: Some(Box::new(owed)), ..self }
    }

    /// Notes that an answer was queued.
    pub(crate) fn note_answer(&self, outbox: &Outbox) {
        if let Some(owed) = &self.owed {
            owed.note(outbox);
        }
    }

    /// Sees to it that the buffers may hold what the next read needs. `false`: they may not.
    #[inline]
    pub(crate) async fn allow(&mut self, needed: usize) -> bool {
        let needed = Self::counted(needed);
        if needed == self.claim.bytes() {
            return true;
        }
        tokio::select! {
            biased;
            () = self.end.cancelled() => false,
            is_allowed = self.claim.set(needed) => is_allowed,
        }
    }

    /// What says that somebody else needs it, if it is any.
    pub(crate) fn end(&self) -> Option<&CancellationToken> {
        (self.claim.bytes() > 0).then_some(&self.end).or(self.owed.as_ref().and_then(|owed| owed.end()))
    }

    /// The buffers hold less.
    pub(crate) fn give_back(&mut self, needed: usize) {
        let needed = Self::counted(needed);
        if needed < self.claim.bytes() {
            self.claim.force(needed);
        }
    }

    fn counted(needed: usize) -> usize {
        if needed <= UNCLAIMED { 0 } else { needed.next_multiple_of(CLAIM_STEP) }
    }
}

/// What a connection holds in its handshake beyond what every connection counts for. Nobody has shown yet who the peer is, so nobody is ended
/// for it: it is the newcomer that is sent away.
#[derive(Debug)]
pub(crate) struct HandshakeClaim(Claim);

impl HandshakeClaim {
    /// Nothing yet.
    pub(crate) fn new(budget: &MemoryBudget) -> Self {
        Self(budget.claim_shared())
    }

    /// Sees to it that the buffer may hold so much. `false`: it may not. Such claims stop growing when a quarter of the limit is taken by what
    /// nobody is ended for: the next one who connects, and says little, still gets in.
    pub(crate) fn allow(&mut self, held: usize) -> bool {
        // What was taken out of the buffer to be read, or judged, is there a second time.
        let needed = if held <= UNCLAIMED { 0 } else { (2 * held).next_multiple_of(HANDSHAKE_STEP) };
        needed == self.0.bytes || self.0.fix(needed, self.0.budget.limit() / 4).is_ok()
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
