//! Where messages come in: matched, coalesced into runs, and queued for their subscribers.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use xmsg_core::socket::buffer::Slab;
use xmsg_core::socket::outbox::{Lease, URGENT_MAX};
use xmsg_core::socket::session::{Batch, Ended, Handler};
use xmsg_core::zmtp::{Command, Frames, Span, Version};

use super::delivery::{Cut, Delivery, Run};
use super::peers::{Gate, Subscriber};
use super::publisher::Publisher;
use super::requests::Asking;
use super::table::{Routes, Table};
use crate::CONTROL_TOPIC;
use crate::config::Config;
use crate::policy::{Policies, Policy};
use crate::security::Rights;

/// Topics whose subscribers an inlet remembers, at most; then it starts over.
const TOPICS: usize = 16 << 10;
/// Bytes of these topics, at most.
const TOPIC_BYTES: usize = 4 << 20;
/// Members of all target sets that an inlet remembers, at most.
const MEMBERS: usize = 1 << 20;
/// Publishers of shorter messages, on average, bytes, are not made to wait for a subscriber to catch up: being woken costs them more than
/// short queues save. Measured: 0.13 instead of 0.09 µs for a message of 100 bytes.
const CATCH_UP_FROM: usize = 512;
/// Messages among which topics are looked up together.
const AHEAD: usize = 64;
/// Messages that are passed on together, at most.
const PART: usize = 4 << 10;
/// Runs for one subscriber that the memory is kept for from one batch to the next.
const RUNS_KEPT: usize = 64;
/// What queuing something for one subscriber counts for in the [`FAIR_SHARE`].
const DELIVERY: usize = 32;
/// Subscribers of topics that are looked up, and of messages that are given to them, before others get the processor.
const FAIR_SHARE: usize = 32 << 10;
/// How often a publisher that is made to wait hears from us, so that its heartbeats do not give us up.
const BLOCKED_PING: Duration = Duration::from_secs(1);

/// A subscriber as this inlet knows it, with what the present batch has for it.
#[derive(Debug)]
struct Slot {
    subscriber: Arc<Subscriber>,
    runs: Vec<Run>,
}

/// Who gets a message, and what happens if it can't be queued.
#[derive(Debug)]
struct TargetSet {
    slots: Box<[usize]>,
    /// Number of the rule.
    rule: u32,
    /// Messages with these topics ask the proxy for something.
    is_control: bool,
}

/// What was looked up in the table, good for one epoch.
#[derive(Debug)]
struct Cache {
    epoch: Option<u64>,
    policies: Arc<Policies>,
    /// No subscription is longer, and no prefix with a policy of its own: of a topic, no more than this matters.
    longest_prefix: usize,
    /// Topic → number of a target set.
    topics: HashMap<Box<[u8]>, usize>,
    /// Equal sets under the same rule have one number, so that comparing them is comparing numbers.
    sets: Vec<TargetSet>,
    /// … by their subscribers and, last, the rule and whether they are for control requests.
    set_numbers: HashMap<Box<[u32]>, usize>,
    slots: Vec<Slot>,
    slot_numbers: HashMap<u32, usize>,
    found: Vec<u32>,
    topic_bytes: usize,
    members: usize,
    /// What the publisher may send; `None`: everything.
    rights: Option<Arc<Rights>>,
    /// Subscribers that were found, and given something, since others last had the processor.
    work: usize,
}

/// The number of the set of topics that the publisher may not send.
const DENIED: usize = usize::MAX;

impl Cache {
    fn new(table: &Table) -> Self {
        Self {
            epoch: None,
            policies: table.routes().policies().clone(),
            longest_prefix: 0,
            topics: HashMap::new(),
            sets: Vec::new(),
            set_numbers: HashMap::new(),
            slots: Vec::new(),
            slot_numbers: HashMap::new(),
            found: Vec::new(),
            topic_bytes: 0,
            members: 0,
            rights: None,
            work: 0,
        }
    }

    fn refresh(&mut self, table: &Table, publisher: &Publisher) {
        let epoch = table.epoch();
        let small = self.topics.len() < TOPICS && self.topic_bytes < TOPIC_BYTES && self.members < MEMBERS;
        if self.epoch == Some(epoch) && small {
            return;
        }
        (self.topic_bytes, self.members) = (0, 0);
        self.topics.clear();
        self.sets.clear();
        self.set_numbers.clear();
        self.slots.clear();
        self.slot_numbers.clear();
        let routes = table.routes();
        self.policies = routes.policies().clone();
        self.longest_prefix =
            routes.longest_prefix().max(self.policies.longest_prefix()).max(CONTROL_TOPIC.len());
        // Nothing, if it is not to be here any more.
        let rights = publisher.grant.rights().unwrap_or_default();
        self.rights = (!rights.publishes_all()).then_some(rights);
        if let Some(rights) = &self.rights {
            self.longest_prefix = self.longest_prefix.max(rights.longest_publish());
        }
        self.epoch = Some(epoch);
    }

    /// What matters of the topic of this message.
    fn topic<'a>(&self, wire: &'a [u8], span: &Span) -> &'a [u8] {
        let topic = span.first(wire);
        &topic[..topic.len().min(self.longest_prefix)]
    }

    /// The number of the set of subscribers of the first message's topic. If it is not known, it is looked up together with others that
    /// come next, which costs little more.
    fn set(&mut self, wire: &[u8], spans: &[Span], table: &Table) -> usize {
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
        // It is there now.
        self.topics.get(topic).copied().unwrap_or(DENIED)
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
            let set = if self.rights.as_ref().is_none_or(|rights| rights.may_publish(topic)) {
                self.target_set(
                    own.iter().map(|(_, subscriber)| *subscriber),
                    self.policies.of(topic),
                    topic.starts_with(CONTROL_TOPIC),
                    routes,
                )
            } else {
                DENIED
            };
            self.topics.insert((*topic).into(), set);
            self.topic_bytes += topic.len();
        }
    }

    /// The number of this set.
    fn target_set(
        &mut self,
        members: impl Iterator<Item = u32>,
        rule: u32,
        is_control: bool,
        routes: &Routes,
    ) -> usize {
        self.found.clear();
        self.found.extend(members);
        let members = self.found.len();
        self.found.extend([rule, u32::from(is_control)]);
        if let Some(set) = self.set_numbers.get(&self.found[..]) {
            return *set;
        }
        let slots = self.found[..members].iter().filter_map(|id| {
            if let Some(slot) = self.slot_numbers.get(id) {
                return Some(*slot);
            }
            let subscriber = routes.subscriber(*id)?.clone();
            self.slots.push(Slot { subscriber, runs: Vec::new() });
            self.slot_numbers.insert(*id, self.slots.len() - 1);
            Some(self.slots.len() - 1)
        });
        let slots = slots.collect();
        self.sets.push(TargetSet { slots, rule, is_control });
        self.members += members;
        self.set_numbers.insert(self.found.as_slice().into(), self.sets.len() - 1);
        self.sets.len() - 1
    }
}

/// The inside end of a publisher's connection.
#[derive(Debug)]
pub(super) struct Inlet {
    publisher: Arc<Publisher>,
    table: Arc<Table>,
    delivery: Delivery,
    asking: Asking,
    /// Control requests of the present batch.
    requests: Vec<Run>,
    cache: Cache,
    /// Slots that the present batch has something for.
    touched: Vec<usize>,
    /// The slab that the last batch with slices lay in.
    lease: Option<(u64, Weak<Lease>)>,
}

impl Inlet {
    pub(super) fn new(
        publisher: &Arc<Publisher>,
        table: &Arc<Table>,
        gate: &Arc<Gate>,
        asking: Asking,
        config: &Config,
    ) -> Self {
        Self {
            publisher: publisher.clone(),
            table: table.clone(),
            delivery: Delivery {
                memory: config.memory.clone(),
                gate: gate.clone(),
                ceiling: config.queue_ceiling,
            },
            asking,
            requests: Vec::new(),
            cache: Cache::new(table),
            touched: Vec::new(),
            lease: None,
        }
    }

    async fn match_batch(&mut self, wire: &[u8], spans: &[Span]) {
        self.cache.refresh(&self.table, &self.publisher);
        let mut run = Run { first: 0, end: 0, rule: 0 };
        let mut last: Option<(&[u8], usize)> = None;
        for (number, span) in spans.iter().enumerate() {
            let topic = self.cache.topic(wire, span);
            match last {
                Some((known, _)) if known == topic => {}
                _ => {
                    if self.cache.work > FAIR_SHARE {
                        self.cache.work = 0;
                        tokio::task::yield_now().await;
                    }
                    let set = self.cache.set(wire, &spans[number..], &self.table);
                    if let Some((topic, before)) = last.filter(|(_, before)| *before != set) {
                        run.end = number;
                        self.assign(before, run, topic);
                        run.first = number;
                    }
                    last = Some((topic, set));
                }
            }
        }
        if let Some((topic, set)) = last {
            run.end = spans.len();
            self.assign(set, run, topic);
        }
    }

    /// `topic` is that of the run's last message.
    fn assign(&mut self, set: usize, run: Run, topic: &[u8]) {
        if set == DENIED {
            self.publisher.grant.deny(&self.publisher.peer, "publish", topic, run.count() as u64);
            return;
        }
        let TargetSet { slots, rule, is_control } = &self.cache.sets[set];
        let run = Run { rule: *rule, ..run };
        if *is_control {
            self.requests.push(run);
        } else if slots.is_empty() {
            self.delivery.gate.unmatched.fetch_add(run.count() as u64, Ordering::Relaxed);
        }
        self.cache.work += slots.len();
        for &slot in slots {
            let runs = &mut self.cache.slots[slot].runs;
            match runs.last_mut() {
                None => {
                    self.touched.push(slot);
                    runs.push(run);
                }
                Some(last) if last.end == run.first && last.rule == run.rule => last.end = run.end,
                Some(_) => runs.push(run),
            }
        }
    }

    /// Waits until the subscriber has taken what is left for it.
    async fn wait(&self, subscriber: &Subscriber, left: &mut Vec<Run>, cut: &Cut<'_>) {
        let mut policies = self.cache.policies.clone();
        subscriber.count_wait();
        while !left.is_empty() {
            let since = Instant::now();
            let rule = policies.rule(left[0].rule);
            let room =
                subscriber.outbox.wait_for_room(|queue| self.delivery.is_full(queue, rule, left[0], cut));
            let longest = match rule.policy {
                Policy::Block { longest } => longest,
                _ => None,
            };
            let pause = longest.map_or(BLOCKED_PING, |longest| longest.min(BLOCKED_PING));
            let has_room = tokio::time::timeout(pause, room).await.is_ok();
            if longest.is_some_and(|longest| subscriber.has_stalled(longest)) && !has_room {
                subscriber.cut_off(&rule.policy.to_string());
            }
            if !has_room {
                if self.publisher.version >= Version::V3_1 {
                    let mut ping = BytesMut::new();
                    Command::Ping { ttl: Duration::ZERO, context: Bytes::new() }.write(&mut ping);
                    // If it does not even read this much, it will not miss it.
                    let _ = self.publisher.outbox.push_urgent(&ping, URGENT_MAX);
                }
                subscriber.log_slowness();
            }
            subscriber.count_waited(since.elapsed());
            let present = self.table.routes().policies().clone();
            if !Arc::ptr_eq(&present, &policies) {
                policies = present;
                *left = cut.divide(left, &policies);
            }
            self.delivery.deliver(subscriber, left, cut, &policies);
        }
    }

    /// Passes the control requests of the batch on. Whoever asks too fast waits.
    async fn ask(&mut self, wire: &Bytes, spans: &[Span]) {
        let mut wait = Duration::ZERO;
        for run in self.requests.drain(..) {
            for span in &spans[run.first..run.end] {
                let frames = Frames::of(wire.slice(span.start..span.end));
                wait = wait.max(self.asking.ask(&self.publisher, frames));
            }
        }
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// The entry of this slab in the ledger, if slices of it are still queued.
    fn lease(&self, serial: u64) -> OnceLock<Arc<Lease>> {
        match &self.lease {
            Some((known, lease)) if *known == serial => {
                lease.upgrade().map_or_else(OnceLock::new, OnceLock::from)
            }
            _ => OnceLock::new(),
        }
    }
}

impl Handler for Inlet {
    async fn messages(&mut self, batch: Batch<'_>) -> Result<(), Ended> {
        let Batch { wire, spans, slab } = batch;
        // Many short messages for subscribers in turn would need memory for each of them.
        for part in spans.chunks(PART) {
            self.pass_on(&wire, part, slab).await;
        }
        Ok(())
    }

    async fn subscription(&mut self, _: bool, _: Bytes) -> Result<(), Ended> {
        // The engine of an XSUB hands out messages only.
        Ok(())
    }
}

impl Inlet {
    /// Passes these messages on, each to its subscribers.
    async fn pass_on(&mut self, wire: &Bytes, spans: &[Span], slab: Slab) {
        let (Some(first), Some(last)) = (spans.first(), spans.last()) else { return };
        let len = last.end - first.start;
        self.match_batch(wire, spans).await;
        let requests = self.requests.iter().map(|run| run.count()).sum::<usize>();
        if requests < spans.len() {
            self.publisher.received.add(spans.len() - requests, len);
        }
        if requests > 0 {
            self.ask(wire, spans).await;
        }
        let cut = Cut { wire, spans, lease: self.lease(slab.serial), slab_size: slab.size };
        let mut touched = std::mem::take(&mut self.touched);
        let are_long = len >= CATCH_UP_FROM * spans.len();
        let (mut waiting, mut behind) = (Vec::new(), Vec::new());
        for slot in touched.drain(..) {
            let mut runs = std::mem::take(&mut self.cache.slots[slot].runs);
            let subscriber = &self.cache.slots[slot].subscriber;
            let is_behind = self.delivery.deliver(subscriber, &mut runs, &cut, &self.cache.policies);
            self.cache.work += DELIVERY;
            if runs.is_empty() {
                // The allocation serves the next batch, if it is not one for a batch out of the ordinary.
                if runs.capacity() <= RUNS_KEPT {
                    self.cache.slots[slot].runs = runs;
                }
                if is_behind && are_long {
                    behind.push(slot);
                }
            } else {
                waiting.push((slot, runs));
            }
            if self.cache.work > FAIR_SHARE {
                self.cache.work = 0;
                tokio::task::yield_now().await;
            }
        }
        self.touched = touched;
        if !waiting.is_empty() {
            // All at the same time: together they hold this publisher up no longer than one may.
            let (inlet, cut) = (&*self, &cut);
            let waits = waiting
                .iter_mut()
                .map(|(slot, runs)| inlet.wait(&inlet.cache.slots[*slot].subscriber, runs, cut));
            futures::future::join_all(waits).await;
        }
        if !behind.is_empty() {
            let since = Instant::now();
            // All at the same time: together they take no longer than one.
            let slots = &self.cache.slots;
            let waits = behind.into_iter().map(|slot| async move {
                let subscriber = &slots[slot].subscriber;
                if subscriber.outbox.catch_up().await {
                    subscriber.count_wait();
                    subscriber.count_waited(since.elapsed());
                }
            });
            futures::future::join_all(waits).await;
        }
        if let Some(lease) = cut.lease.get() {
            self.lease = Some((slab.serial, Arc::downgrade(lease)));
        }
    }
}
