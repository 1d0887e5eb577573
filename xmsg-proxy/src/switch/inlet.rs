//! Where messages come in: matched, coalesced into runs, and queued for their subscribers.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use xmsg_core::socket::outbox::{Lease, Ledger, OutboxGuard, URGENT_MAX};
use xmsg_core::socket::session::{Batch, Ended, Handler};
use xmsg_core::socket::{Amount, HighWaterMark};
use xmsg_core::zmtp::{Command, Span, Version};

use super::peers::{Gate, Publisher, Subscriber};
use super::table::Table;
use crate::config::{Config, Policy};
use crate::security::Rights;

/// Topics whose subscribers an inlet remembers, at most; then it starts over.
const TOPICS: usize = 16 << 10;
/// Bytes of these topics, at most.
const TOPIC_BYTES: usize = 4 << 20;
/// Members of all target sets that an inlet remembers, at most.
const MEMBERS: usize = 1 << 20;
/// Runs below this many bytes are copied: cheaper than a slice, and a few bytes do not keep a slab alive.
const COPY_BELOW: usize = 1 << 10;
/// … and those below this share of their slab, for the same reason.
const SLAB_SHARE: usize = 16;
/// Marks of fewer slabs than this are kept to the byte, by copying.
const EXACT_BELOW_SLABS: usize = 16;
/// A subscriber may always hold this much of the ceiling.
const SHARE_MIN: usize = 64 << 10;
/// Answers to control requests that wait for a subscriber, bytes: half of what it may be owed, so that others can't use that up by
/// asking.
const ANSWERS_MAX: usize = URGENT_MAX / 2;
/// How often a publisher that is made to wait hears from us, so that its heartbeats do not give us up.
const BLOCKED_PING: Duration = Duration::from_secs(1);

/// Consecutive messages of a batch for the same subscribers, by number: `first` up to, not including, `end`.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: usize,
    end: usize,
}

/// A subscriber as this inlet knows it, with what the present batch has for it.
#[derive(Debug)]
struct Slot {
    subscriber: Arc<Subscriber>,
    runs: Vec<Run>,
}

/// What was looked up in the table, good for one epoch.
#[derive(Debug, Default)]
struct Cache {
    epoch: Option<u64>,
    /// No subscription is longer: of a topic, no more than this matters.
    longest_prefix: usize,
    /// Topic → number of a target set.
    topics: HashMap<Box<[u8]>, usize>,
    /// Target sets: slots. Equal sets have one number, so that comparing them is comparing numbers.
    sets: Vec<Box<[usize]>>,
    set_numbers: HashMap<Box<[u32]>, usize>,
    slots: Vec<Slot>,
    slot_numbers: HashMap<u32, usize>,
    found: Vec<u32>,
    topic_bytes: usize,
    members: usize,
    /// What the publisher may send; `None`: everything.
    rights: Option<Arc<Rights>>,
}

/// The number of the set of topics that the publisher may not send.
const DENIED: usize = usize::MAX;

impl Cache {
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
        self.longest_prefix = table.routes().longest_prefix();
        // Nothing, if it is not to be here any more.
        let rights = publisher.grant.rights().unwrap_or_default();
        self.rights = (!rights.publishes_all()).then_some(rights);
        if let Some(rights) = &self.rights {
            self.longest_prefix = self.longest_prefix.max(rights.longest_publish());
        }
        self.epoch = Some(epoch);
    }

    /// The number of the set of subscribers of this topic.
    fn set(&mut self, topic: &[u8], table: &Table) -> usize {
        if let Some(set) = self.topics.get(topic) {
            return *set;
        }
        let allowed = self.rights.as_ref().is_none_or(|rights| rights.may_publish(topic));
        let routes = table.routes();
        routes.find(topic, &mut self.found);
        let set = if !allowed {
            DENIED
        } else if let Some(set) = self.set_numbers.get(&self.found[..]) {
            *set
        } else {
            let slots = self.found.iter().filter_map(|id| {
                if let Some(slot) = self.slot_numbers.get(id) {
                    return Some(*slot);
                }
                let subscriber = routes.subscriber(*id)?.clone();
                self.slots.push(Slot { subscriber, runs: Vec::new() });
                self.slot_numbers.insert(*id, self.slots.len() - 1);
                Some(self.slots.len() - 1)
            });
            self.sets.push(slots.collect());
            self.members += self.found.len();
            self.set_numbers.insert(self.found.as_slice().into(), self.sets.len() - 1);
            self.sets.len() - 1
        };
        self.topics.insert(topic.into(), set);
        self.topic_bytes += topic.len();
        set
    }
}

/// The inside end of a publisher's connection.
#[derive(Debug)]
pub(super) struct Inlet {
    publisher: Arc<Publisher>,
    table: Arc<Table>,
    ledger: Arc<Ledger>,
    gate: Arc<Gate>,
    ceiling: usize,
    /// Messages go ahead of what is queued.
    priority: bool,
    cache: Cache,
    /// Slots that the present batch has something for.
    touched: Vec<usize>,
    /// The slab that the last batch with slices lay in.
    lease: Option<(u64, Weak<Lease>)>,
}

/// One batch, ready to be cut.
struct Cut<'a> {
    wire: &'a Bytes,
    spans: &'a [Span],
    /// Made when the first slice is queued.
    lease: OnceLock<Arc<Lease>>,
    slab_size: usize,
}

impl Cut<'_> {
    fn start(&self, run: Run) -> usize {
        self.spans[run.first].start
    }

    fn len(&self, run: Run) -> usize {
        self.spans[run.end - 1].end - self.start(run)
    }

    /// How many messages of the run fit into this room.
    fn fitting(&self, run: Run, room: Amount) -> usize {
        let start = self.start(run);
        let by_bytes =
            self.spans[run.first..run.end].partition_point(|span| (span.end - start) as u64 <= room.bytes);
        by_bytes.min(usize::try_from(room.messages).unwrap_or(usize::MAX))
    }
}

impl Inlet {
    pub(super) fn new(
        publisher: &Arc<Publisher>,
        table: &Arc<Table>,
        ledger: &Arc<Ledger>,
        gate: &Arc<Gate>,
        config: &Config,
    ) -> Self {
        Self {
            publisher: publisher.clone(),
            table: table.clone(),
            ledger: ledger.clone(),
            gate: gate.clone(),
            ceiling: config.queue_ceiling,
            priority: false,
            cache: Cache::default(),
            touched: Vec::new(),
            lease: None,
        }
    }

    /// Makes its messages go ahead of all others.
    pub(super) fn with_priority(self) -> Self {
        Self { priority: true, ..self }
    }

    fn match_batch(&mut self, wire: &[u8], spans: &[Span]) {
        self.cache.refresh(&self.table, &self.publisher);
        let longest = self.cache.longest_prefix;
        let mut run = Run { first: 0, end: 0 };
        let mut last: Option<(&[u8], usize)> = None;
        for (number, span) in spans.iter().enumerate() {
            let topic = span.first(wire);
            let topic = &topic[..topic.len().min(longest)];
            match last {
                Some((known, _)) if known == topic => {}
                _ => {
                    let set = self.cache.set(topic, &self.table);
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
            let count = (run.end - run.first) as u64;
            self.publisher.grant.deny(&self.publisher.peer, "publish", topic, count);
            return;
        }
        let slots = &self.cache.sets[set];
        if slots.is_empty() {
            self.gate.unmatched.fetch_add((run.end - run.first) as u64, Ordering::Relaxed);
        }
        for &slot in slots {
            let runs = &mut self.cache.slots[slot].runs;
            match runs.last_mut() {
                None => {
                    self.touched.push(slot);
                    runs.push(run);
                }
                Some(last) if last.end == run.first => last.end = run.end,
                Some(_) => runs.push(run),
            }
        }
    }

    /// How much more this subscriber takes.
    fn room(&self, queue: &OutboxGuard<'_>, mark: HighWaterMark) -> Amount {
        let room = queue.room(mark);
        if self.ledger.bytes() > self.ceiling {
            let share = (self.ceiling / self.gate.subscriber_count().max(1)).max(SHARE_MIN);
            if queue.queued().bytes as usize > share {
                return Amount::default();
            }
        }
        // A message above the mark may go when nothing else is queued.
        if queue.queued().messages == 0 { Amount { bytes: u64::MAX, ..room } } else { room }
    }

    /// Queues the slot's runs, as far as there is room; with `block`, says whether something is left.
    fn deliver(&self, slot: &Slot, left: &mut Vec<Run>, cut: &Cut<'_>) {
        let subscriber = &slot.subscriber;
        let (mut dropped, mut dropped_bytes) = (0, 0);
        let mut queue = subscriber.outbox.lock();
        let mut done = 0;
        while let Some(&run) = left.get(done) {
            done += 1;
            if queue.is_closed() {
                // It is leaving: there is nobody to deliver to.
                continue;
            }
            let room = self.room(&queue, subscriber.outbox.mark());
            let (count, len) = (run.end - run.first, cut.len(run));
            if count as u64 <= room.messages && len as u64 <= room.bytes {
                self.push(&mut queue, subscriber.outbox.mark(), run, cut);
                continue;
            }
            let mut fitting = cut.fitting(run, room);
            if fitting == 0 && queue.queued().messages == 0 {
                fitting = 1;
            }
            let rest = Run { first: run.first + fitting, ..run };
            if fitting > 0 {
                self.push(&mut queue, subscriber.outbox.mark(), Run { end: rest.first, ..run }, cut);
            }
            if rest.first == rest.end {
                continue;
            }
            match subscriber.policy {
                Policy::DropNewest => {
                    dropped += rest.end - rest.first;
                    dropped_bytes += cut.len(rest);
                }
                Policy::Block => {
                    queue.wait_for_room();
                    done -= 1;
                    left[done] = rest;
                    break;
                }
            }
        }
        left.drain(..done);
        drop(queue);
        if dropped > 0 {
            subscriber.count_dropped(dropped, dropped_bytes);
        }
    }

    fn push(&self, queue: &mut OutboxGuard<'_>, mark: HighWaterMark, run: Run, cut: &Cut<'_>) {
        let (start, len, count) = (cut.start(run), cut.len(run), run.end - run.first);
        let range = start..start + len;
        let small = len < COPY_BELOW || len < cut.slab_size / SLAB_SHARE;
        let exact = mark.bytes < EXACT_BELOW_SLABS * cut.slab_size && len < cut.slab_size / 2;
        if small || exact {
            queue.push_copy(&cut.wire[range], count);
        } else {
            let lease = cut.lease.get_or_init(|| Lease::new(&self.ledger, cut.slab_size));
            queue.push_slice(cut.wire.slice(range), count, lease);
        }
    }

    /// Waits until the subscriber has taken what is left for it.
    async fn wait(&self, slot: &Slot, left: &mut Vec<Run>, cut: &Cut<'_>) {
        while !left.is_empty() {
            let room = slot.subscriber.outbox.wait_for_room(|queue| {
                let first = Run { end: left[0].first + 1, ..left[0] };
                cut.fitting(first, self.room(queue, slot.subscriber.outbox.mark())) == 0
                    && queue.queued().messages > 0
            });
            if tokio::time::timeout(BLOCKED_PING, room).await.is_err()
                && self.publisher.version >= Version::V3_1
            {
                let mut ping = BytesMut::new();
                Command::Ping { ttl: Duration::ZERO, context: Bytes::new() }.write(&mut ping);
                // If it does not even read this much, it will not miss it.
                let _ = self.publisher.outbox.push_urgent(&ping, URGENT_MAX);
            }
            self.deliver(slot, left, cut);
        }
    }

    fn deliver_ahead(&mut self, wire: &Bytes, spans: &[Span]) {
        for slot in self.touched.drain(..) {
            let slot = &mut self.cache.slots[slot];
            for run in slot.runs.drain(..) {
                let range = spans[run.first].start..spans[run.end - 1].end;
                if !slot.subscriber.outbox.push_urgent(&wire[range.clone()], ANSWERS_MAX) {
                    slot.subscriber.count_dropped(run.end - run.first, range.len());
                }
            }
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
        self.publisher.received.add(spans.len(), wire.len());
        self.match_batch(&wire, spans);
        if self.priority {
            self.deliver_ahead(&wire, spans);
            return Ok(());
        }
        let cut = Cut { wire: &wire, spans, lease: self.lease(slab.serial), slab_size: slab.size };
        let mut touched = std::mem::take(&mut self.touched);
        let mut waiting = Vec::new();
        for slot in touched.drain(..) {
            let mut runs = std::mem::take(&mut self.cache.slots[slot].runs);
            self.deliver(&self.cache.slots[slot], &mut runs, &cut);
            if runs.is_empty() {
                // The allocation serves the next batch.
                self.cache.slots[slot].runs = runs;
            } else {
                waiting.push((slot, runs));
            }
        }
        self.touched = touched;
        for (slot, mut runs) in waiting {
            self.wait(&self.cache.slots[slot], &mut runs, &cut).await;
        }
        if let Some(lease) = cut.lease.get() {
            self.lease = Some((slab.serial, Arc::downgrade(lease)));
        }
        Ok(())
    }

    async fn subscription(&mut self, _: bool, _: Bytes) -> Result<(), Ended> {
        // The engine of an XSUB hands out messages only.
        Ok(())
    }
}
