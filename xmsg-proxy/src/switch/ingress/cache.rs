//! The part of the table that an ingress remembers: which subscribers get which topic.
//!
//! Whatever publishers send, all caches together keep to a limit. While there is room, each ingress remembers
//! what it needs. When there is none, it remembers no more than its share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashMap;
use xmsg_zmq::memory_budget::{Claim, MemoryBudget};
use xmsg_zmtp::Span;

use crate::CONTROL_TOPIC;
use crate::policy::{Policies, RuleId};
use crate::security::Rights;
use crate::switch::delivery::Run;
use crate::switch::publisher::ConnectedPublisher;
use crate::switch::subscriber::ConnectedSubscriber;
use crate::switch::table::{Routes, Table};

/// The largest number of bytes that one ingress remembers.
const MAX: usize = 16 << 20;
/// The number of bytes that each ingress may remember in any case. They count as a part of its connection.
const MIN: usize = 8 << 10;
/// The steps in bytes in which a cache counts in the memory budget.
const STEP: usize = 16 << 10;
/// The divisor of the memory budget that yields the part for the caches of all ingresses.
const PART_OF_BUDGET: usize = 16;
/// The approximate numbers of bytes of a topic beside its text, of a set beside its members, of a member, and
/// of a subscriber.
const TOPIC: usize = 64;
const SET: usize = 128;
const MEMBER: usize = 12;
const SLOT: usize = 256;
/// The number of messages among which topics are looked up together.
const AHEAD: usize = 64;
/// The number of runs for one subscriber whose memory is kept from one part to the next.
const RUNS_KEPT: usize = 8;

/// The sizes of the caches of all ingresses together.
#[derive(Debug)]
pub(in crate::switch) struct Caches {
    memory: MemoryBudget,
    limit: usize,
    ingresses: AtomicUsize,
    bytes: AtomicUsize,
}

impl Caches {
    pub(in crate::switch) fn new(memory: &MemoryBudget) -> Self {
        Self {
            memory: memory.clone(),
            limit: memory.limit() / PART_OF_BUDGET,
            ingresses: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
        }
    }

    /// Returns the number of bytes that an ingress may remember now.
    fn allowed(&self) -> usize {
        if self.bytes.load(Ordering::Relaxed) <= self.limit {
            return MAX;
        }
        (self.limit / self.ingresses.load(Ordering::Relaxed).max(1)).clamp(MIN, MAX)
    }
}

/// The share of one ingress in all caches.
#[derive(Debug)]
struct CacheShare {
    caches: Arc<Caches>,
    claim: Claim,
    /// The bytes that count among all caches.
    cached: usize,
}

impl CacheShare {
    fn new(caches: &Arc<Caches>, publisher: &ConnectedPublisher) -> Self {
        caches.ingresses.fetch_add(1, Ordering::Relaxed);
        let what = "topics that it sends, and messages on their way";
        let claim = caches.memory.claim(&publisher.peer, what, publisher.outsized.clone());
        Self { caches: caches.clone(), claim, cached: 0 }
    }

    /// Sets the bytes that the ingress remembers, and those that it needs for messages on their way.
    fn set(&mut self, cached: usize, on_their_way: usize) {
        let counted = |bytes: usize| if bytes <= MIN { 0 } else { bytes.next_multiple_of(STEP) };
        let cached = counted(cached);
        let bytes = cached + counted(on_their_way);
        if cached != self.cached {
            self.caches.bytes.fetch_add(cached, Ordering::Relaxed);
            self.caches.bytes.fetch_sub(self.cached, Ordering::Relaxed);
            self.cached = cached;
        }
        if bytes != self.claim.bytes() {
            self.claim.force(bytes);
        }
    }
}

impl Drop for CacheShare {
    fn drop(&mut self) {
        self.caches.ingresses.fetch_sub(1, Ordering::Relaxed);
        self.caches.bytes.fetch_sub(self.cached, Ordering::Relaxed);
    }
}

/// The place of a slot in [`Cache::slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotId(pub(super) usize);

/// The place of a target set in [`Cache::sets`], or [`DENIED`](Self::DENIED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetId(pub(super) usize);

impl SetId {
    /// Stands for topics that the publisher may not send. There is no such set.
    pub(super) const DENIED: Self = Self(usize::MAX);
}

/// A subscriber as this ingress knows it, with the runs of the present part for it.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) subscriber: Arc<ConnectedSubscriber>,
    pub(super) runs: Vec<Run>,
}

/// The subscribers of a message, and the rule that applies if it can't be queued.
#[derive(Debug)]
pub(super) struct TargetSet {
    pub(super) slots: Box<[SlotId]>,
    pub(super) rule: RuleId,
    /// Whether messages with these topics are control requests to the proxy.
    pub(super) is_control: bool,
    /// Whether nobody subscribed to them but watchers, if anybody did.
    pub(super) is_unmatched: bool,
}

/// The results of look-ups in the table. They hold for one epoch.
#[derive(Debug)]
pub(super) struct Cache {
    epoch: Option<u64>,
    pub(super) policies: Arc<Policies>,
    /// No subscription is longer, and no prefix with a policy of its own: only this many bytes of a topic
    /// matter.
    longest_prefix: usize,
    /// The target set of each topic.
    topics: HashMap<Box<[u8]>, SetId>,
    /// Equal sets under the same rule are one set, so that comparing sets is comparing their places.
    pub(super) sets: Vec<TargetSet>,
    /// The sets by their keys: the numbers of their subscribers, then that of the rule, and at last 1 for
    /// control requests and 0 for others.
    set_ids: HashMap<Box<[u32]>, SetId>,
    pub(super) slots: Vec<Slot>,
    /// Whether there is a watcher among the slots.
    pub(super) is_watched: bool,
    /// The slots by the numbers of their subscribers.
    slot_ids: HashMap<u32, SlotId>,
    /// The key of the set that is searched. It is kept for its memory.
    key: Vec<u32>,
    /// The approximate number of bytes that all of this takes.
    bytes: usize,
    share: CacheShare,
    /// The rights of the publisher, or `None` if it may publish everything.
    rights: Option<Arc<Rights>>,
    /// The number of subscribers that were found since other tasks last had the processor, plus what giving
    /// them messages counts for.
    pub(super) work: usize,
    /// The number of members of the sets that were made for the present part, and of runs for them.
    pub(super) load: usize,
}

impl Cache {
    pub(super) fn new(table: &Table, caches: &Arc<Caches>, publisher: &ConnectedPublisher) -> Self {
        Self {
            epoch: None,
            policies: table.routes().policies().clone(),
            longest_prefix: CONTROL_TOPIC.len(),
            topics: HashMap::new(),
            sets: Vec::new(),
            set_ids: HashMap::new(),
            slots: Vec::new(),
            is_watched: false,
            slot_ids: HashMap::new(),
            key: Vec::new(),
            bytes: 0,
            share: CacheShare::new(caches, publisher),
            rights: None,
            work: 0,
            load: 0,
        }
    }

    /// Forgets everything that may no longer hold.
    pub(super) fn refresh(&mut self, table: &Table, publisher: &ConnectedPublisher) {
        self.load = 0;
        let epoch = table.epoch();
        if self.epoch == Some(epoch) {
            return;
        }
        self.clear();
        let routes = table.routes();
        self.policies = routes.policies().clone();
        self.longest_prefix =
            routes.longest_prefix().max(self.policies.longest_prefix()).max(CONTROL_TOPIC.len());
        // It has no rights if the rules no longer admit it.
        let rights = publisher.authorization.rights().unwrap_or_default();
        self.rights = (!rights.publishes_all()).then_some(rights);
        if let Some(rights) = &self.rights {
            self.longest_prefix = self.longest_prefix.max(rights.longest_publish());
        }
        self.epoch = Some(epoch);
    }

    fn clear(&mut self) {
        if self.bytes > STEP {
            // A new map releases the memory of the old one, too.
            self.topics = HashMap::new();
            self.sets = Vec::new();
            self.set_ids = HashMap::new();
            self.slots = Vec::new();
            self.slot_ids = HashMap::new();
        } else {
            self.topics.clear();
            self.sets.clear();
            self.set_ids.clear();
            self.slots.clear();
            self.slot_ids.clear();
        }
        self.is_watched = false;
        self.bytes = 0;
    }

    /// Counts the memory of the messages that are matched until all of them are queued. `load` has members of
    /// sets and runs, and each counts like a run, which is the larger of the two.
    pub(super) fn count_messages_on_their_way(&mut self) {
        self.share.set(self.bytes, self.load * size_of::<Run>());
    }

    /// Ends a part whose messages are queued, and keeps what may be kept. Until then, no set and no slot is
    /// removed, so that their places stay good.
    pub(super) fn finish_part(&mut self) {
        if self.bytes > MIN && self.bytes > self.share.caches.allowed() {
            self.clear();
        }
        self.share.set(self.bytes, 0);
    }

    /// Keeps the allocation for the next part, unless it is unusually large.
    pub(super) fn keep_runs(&mut self, slot: SlotId, runs: Vec<Run>) {
        if runs.capacity() <= RUNS_KEPT {
            self.slots[slot.0].runs = runs;
        }
    }

    /// Returns the part of the topic of this message that matters.
    pub(super) fn topic<'a>(&self, wire: &'a [u8], span: &Span) -> &'a [u8] {
        let topic = span.first(wire);
        &topic[..topic.len().min(self.longest_prefix)]
    }

    /// Returns the target set of the first message's topic. If it is not known, it is looked up together with
    /// those of the next messages, which costs little more.
    pub(super) fn target_set_of(&mut self, wire: &[u8], spans: &[Span], table: &Table) -> SetId {
        let topic = self.topic(wire, &spans[0]);
        if let Some(set) = self.topics.get(topic) {
            return *set;
        }
        let routes = table.routes();
        let mut unknown = Vec::new();
        for span in &spans[..spans.len().min(routes.together(AHEAD))] {
            let topic = self.topic(wire, span);
            if unknown.last() != Some(&topic) && !self.topics.contains_key(topic) {
                unknown.push(topic);
            }
        }
        self.look_up(&unknown, &routes);
        // The look-up has added each of these topics.
        self.topics.get(topic).copied().unwrap_or(SetId::DENIED)
    }

    fn look_up(&mut self, topics: &[&[u8]], routes: &Routes) {
        let found = routes.find_each(topics);
        self.work += found.len();
        let mut found = &found[..];
        for (number, topic) in topics.iter().enumerate() {
            let members = found.iter().take_while(|(topic, _)| *topic == number).count();
            let (own, others) = found.split_at(members);
            found = others;
            if self.topics.contains_key(*topic) {
                continue;
            }
            let rights = self.rights.as_ref();
            let set = if rights.is_none_or(|rights| rights.may_publish(topic)) {
                let reaches = rights.is_none_or(|rights| rights.reaches_subscribers(topic));
                let own = if reaches { own } else { &own[..0] };
                self.target_set_with(
                    own.iter().map(|(_, subscriber)| *subscriber),
                    self.policies.of(topic),
                    topic.starts_with(CONTROL_TOPIC),
                    routes,
                )
            } else {
                SetId::DENIED
            };
            self.topics.insert((*topic).into(), set);
            self.bytes += TOPIC + topic.len();
        }
    }

    /// Returns the set with these subscribers, which is made if it is new.
    fn target_set_with(
        &mut self,
        members: impl Iterator<Item = u32>,
        rule: RuleId,
        is_control: bool,
        routes: &Routes,
    ) -> SetId {
        self.key.clear();
        self.key.extend(members);
        let members = self.key.len();
        self.key.extend([rule.number(), u32::from(is_control)]);
        if let Some(set) = self.set_ids.get(&self.key[..]) {
            return *set;
        }
        let slots = self.key[..members].iter().filter_map(|id| {
            if let Some(slot) = self.slot_ids.get(id) {
                return Some(*slot);
            }
            let subscriber = routes.subscriber(*id)?.clone();
            self.is_watched |= subscriber.observer.is_some();
            let slot = SlotId(self.slots.len());
            self.slots.push(Slot { subscriber, runs: Vec::new() });
            self.bytes += SLOT;
            self.slot_ids.insert(*id, slot);
            Some(slot)
        });
        let slots: Box<[SlotId]> = slots.collect();
        let is_unmatched = slots.iter().all(|slot| self.slots[slot.0].subscriber.observer.is_some());
        let set = SetId(self.sets.len());
        self.sets.push(TargetSet { slots, rule, is_control, is_unmatched });
        self.bytes += SET + MEMBER * members;
        self.load += members;
        self.set_ids.insert(self.key.as_slice().into(), set);
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ingresses_together_keep_to_a_bound_and_each_to_its_share() {
        let memory = MemoryBudget::new(16 << 20);
        let caches = Arc::new(Caches::new(&memory));
        let ingress = |id: u32| CacheShare::new(&caches, &ConnectedPublisher::of_test(id, "192.0.2.1:1"));
        let mut idle = ingress(1);
        idle.set(MIN, 0);
        assert_eq!((caches.allowed(), memory.used()), (MAX, 0), "little is a part of the connection");
        idle.set(1 << 20, 0);
        assert_eq!(caches.allowed(), MAX);
        let mut busy: Vec<_> = (2..=9).map(ingress).collect();
        for share in &mut busy {
            let wanted = (2 << 20).min(caches.allowed());
            share.set(wanted, 0);
        }
        // One was let in before the limit was reached, and took more than there was.
        assert!(memory.used() <= (1 << 20) + (2 << 20) + 7 * (128 << 10), "{}", memory.used());
        drop(busy);
        assert_eq!(memory.used(), 1 << 20);
        idle.set(0, 1 << 20);
        assert_eq!((caches.bytes.load(Ordering::Relaxed), memory.used()), (0, 1 << 20));
        drop(idle);
        assert_eq!((caches.ingresses.load(Ordering::Relaxed), memory.used()), (0, 0));
    }
}
