//! The way of messages into the switch: they are matched, coalesced into runs, and queued for their
//! subscribers.
//!
//! | word | messages |
//! |---|---|
//! | batch | what one read from the publisher has brought |
//! | part | up to [`PART_MAX`] messages of a batch, which are passed on together |
//! | run | consecutive messages of a part for the same subscribers under the same rule |

mod cache;

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use xmsg_zmq::link::buffer::Slab;
use xmsg_zmq::link::send_queue::{SlabCharge, URGENT_MAX};
use xmsg_zmq::link::session::{Batch, Ended, Handler};
use xmsg_zmtp::{Command, Frames, Span, Version};

pub(super) use cache::Caches;
use cache::{Cache, SetId, Slot, SlotId, TargetSet};

use super::connected_peers::ConnectedPeers;
use super::delivery::{Delivery, RoutedPart, Run};
use super::publisher::ConnectedPublisher;
use super::requests::RequestRates;
use super::subscriber::ConnectedSubscriber;
use super::table::Table;
use super::upstream;
use super::watch::{Sampler, Watch};
use crate::config::Config;
use crate::policy::{Policies, Policy, RuleId};

/// Publishers of messages that are shorter than this on average, in bytes, do not wait for a subscriber to
/// catch up: being woken costs them more than short queues save. Measured: 0.13 instead of 0.09 µs for a
/// message of 100 bytes.
const CATCH_UP_FROM: usize = 512;
/// The largest number of messages that are passed on together.
const PART_MAX: usize = 4 << 10;
/// The approximate number of members of target sets, and of runs for them, that are made for one part. It is
/// twice of what the table looks up together (`LOOK_UP_MAX` in `table/mod.rs`), so that what was found is
/// used.
const LOAD_MAX: usize = 128 << 10;
/// The work of queuing messages for one subscriber, in the units of [`FAIR_SHARE_WORK`].
const DELIVERY_WORK: usize = 32;
/// The work, in subscribers that are found for topics, after which other tasks get the processor.
const FAIR_SHARE_WORK: usize = 32 << 10;
/// The interval at which a waiting publisher is pinged, so that its heartbeats do not time out.
const BLOCKED_PING: Duration = Duration::from_secs(1);

/// What the task of a publisher's connection does with the messages that it reads.
#[derive(Debug)]
pub(super) struct Ingress {
    publisher: Arc<ConnectedPublisher>,
    table: Arc<Table>,
    delivery: Delivery,
    asking: RequestRates,
    /// The control requests of the present part.
    requests: Vec<Run>,
    cache: Cache,
    /// The slots for which the present part has messages.
    touched: Vec<SlotId>,
    sampler: Sampler,
    /// The charge for the slab that the last part with slices lay in.
    slab_charge: Option<(u64, Weak<SlabCharge>)>,
    /// The runs of the present part for subscribers that have no room, each with its slot.
    waiting: Vec<(SlotId, Vec<Run>)>,
    /// The number of messages of the present part that nobody subscribed to.
    unmatched: u64,
    /// Whether the present part was counted as received. What is not delivered of it when the connection
    /// ends is lost, and [counted](Self::drop).
    is_received: bool,
}

impl Ingress {
    pub(super) fn new(
        publisher: &Arc<ConnectedPublisher>,
        table: &Arc<Table>,
        connected_peers: &Arc<ConnectedPeers>,
        asking: RequestRates,
        caches: &Arc<Caches>,
        watch: &Arc<Watch>,
        config: &Config,
    ) -> Self {
        Self {
            publisher: publisher.clone(),
            table: table.clone(),
            delivery: Delivery {
                memory: config.memory.clone(),
                connected_peers: connected_peers.clone(),
                ceiling: config.queue_ceiling,
            },
            asking,
            requests: Vec::new(),
            cache: Cache::new(table, caches, publisher),
            touched: Vec::new(),
            sampler: Sampler::new(watch, publisher.id),
            slab_charge: None,
            waiting: Vec::new(),
            unmatched: 0,
            is_received: false,
        }
    }

    /// Finds the subscribers of messages, for as many messages as make a part. Returns their number.
    async fn match_part(&mut self, wire: &[u8], spans: &[Span]) -> usize {
        self.cache.refresh(&self.table, &self.publisher);
        let mut run = Run { first: 0, end: 0, rule: RuleId::default() };
        let mut last: Option<(&[u8], SetId)> = None;
        let mut end = spans.len();
        for (number, span) in spans.iter().enumerate() {
            let topic = self.cache.topic(wire, span);
            match last {
                Some((known, _)) if known == topic => {}
                _ if self.cache.load > LOAD_MAX && number > 0 => {
                    end = number;
                    break;
                }
                _ => {
                    if self.cache.work > FAIR_SHARE_WORK {
                        self.cache.work = 0;
                        tokio::task::yield_now().await;
                    }
                    let set = self.cache.target_set_of(wire, &spans[number..], &self.table);
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
            run.end = end;
            self.assign(set, run, topic);
        }
        end
    }

    /// Adds a run for a target set. `topic` is that of the last message in the run.
    fn assign(&mut self, set: SetId, run: Run, topic: &[u8]) {
        if set == SetId::DENIED {
            self.publisher.authorization.deny(&self.publisher.peer, "publish", topic, run.count() as u64);
            return;
        }
        let TargetSet { slots, rule, is_control, is_unmatched } = &self.cache.sets[set.0];
        let run = Run { rule: *rule, ..run };
        if *is_control {
            self.requests.push(run);
        } else if *is_unmatched {
            self.unmatched += run.count() as u64;
        }
        self.cache.work += slots.len();
        self.cache.load += slots.len();
        for &slot in slots {
            let runs = &mut self.cache.slots[slot.0].runs;
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

    /// Passes the runs for watchers to them.
    fn show(&mut self, wire: &Bytes, spans: &[Span]) {
        let Self { touched, cache, .. } = self;
        if !cache.is_watched {
            return;
        }
        touched.retain(|slot| {
            let Slot { subscriber, runs } = &mut cache.slots[slot.0];
            let Some(observer) = &subscriber.observer else { return true };
            observer.pass(wire, spans, runs);
            runs.clear();
            let runs = std::mem::take(runs);
            cache.keep_runs(*slot, runs);
            false
        });
    }

    /// Waits until the subscribers have taken what is left for them.
    async fn wait_for_all(&mut self, part: &RoutedPart<'_>) {
        let Self { publisher, table, delivery, cache, waiting, .. } = self;
        let wait = Wait { publisher, table, delivery, part };
        let (slots, policies) = (&cache.slots, &cache.policies);
        // The waits run at the same time: together they hold this publisher up no longer than one may.
        let waits = waiting
            .iter_mut()
            .map(|(slot, runs)| wait.until_taken(&slots[slot.0].subscriber, runs, policies.clone()));
        futures::future::join_all(waits).await;
        for (slot, runs) in waiting.drain(..) {
            cache.keep_runs(slot, runs);
        }
    }

    /// Returns the number of messages of the present part that subscribers have yet to get. A message counts
    /// once for each subscriber.
    fn undelivered(&self) -> u64 {
        let waiting = self.waiting.iter().map(|(_, runs)| runs);
        waiting.chain(self.cache.slots.iter().map(|slot| &slot.runs)).map(|runs| count(runs)).sum()
    }

    /// Passes the control requests of the part on. A peer that asks too fast waits.
    async fn ask(&mut self, wire: &Bytes, spans: &[Span]) {
        let mut wait = Duration::ZERO;
        for run in self.requests.drain(..) {
            for span in &spans[run.first..run.end] {
                let frames = Frames::of(wire.slice(span.start..span.end));
                wait = wait.max(self.asking.ask(&self.publisher, frames).await);
            }
        }
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Returns the charge for this slab, if slices of it are still queued.
    fn slab_charge(&self, serial: u64) -> OnceLock<Arc<SlabCharge>> {
        match &self.slab_charge {
            Some((known, slab_charge)) if *known == serial => {
                slab_charge.upgrade().map_or_else(OnceLock::new, OnceLock::from)
            }
            _ => OnceLock::new(),
        }
    }
}

/// The connection may end at any point where a part waits.
impl Drop for Ingress {
    fn drop(&mut self) {
        if self.is_received {
            self.delivery.connected_peers.lose(self.undelivered());
        }
    }
}

fn count(runs: &[Run]) -> u64 {
    runs.iter().map(|run| run.count() as u64).sum()
}

/// A publisher with a part that waits for subscribers.
#[derive(Clone, Copy)]
struct Wait<'a> {
    publisher: &'a ConnectedPublisher,
    table: &'a Table,
    delivery: &'a Delivery,
    part: &'a RoutedPart<'a>,
}

impl Wait<'_> {
    /// Waits until the subscriber has taken what is left for it.
    async fn until_taken(
        self,
        subscriber: &ConnectedSubscriber,
        left: &mut Vec<Run>,
        mut policies: Arc<Policies>,
    ) {
        let Self { part, delivery, .. } = self;
        let mut held = delivery.connected_peers.hold(count(left));
        subscriber.count_wait();
        while !left.is_empty() {
            subscriber.note_slow();
            let since = Instant::now();
            let rule = policies.rule(left[0].rule);
            let room =
                subscriber.send_queue.wait_for_room(|queue| delivery.is_full(queue, rule, left[0], part));
            let longest = match rule.policy {
                Policy::Block { longest } => longest,
                _ => None,
            };
            let pause = longest.map_or(BLOCKED_PING, |longest| longest.min(BLOCKED_PING));
            let has_room = tokio::time::timeout(pause, room).await.is_ok();
            subscriber.disconnect_if_stalled(rule.policy, has_room);
            if !has_room {
                if self.publisher.version >= Version::V3_1 {
                    let mut ping = BytesMut::new();
                    Command::Ping { ttl: Duration::ZERO, context: Bytes::new() }.write(&mut ping);
                    // A publisher that does not even read this little does not need the ping.
                    let _ = self.publisher.send_queue.push_urgent(&ping, URGENT_MAX);
                }
                subscriber.log_slowness();
            }
            subscriber.count_waited(since.elapsed());
            let present = self.table.routes().policies().clone();
            if !Arc::ptr_eq(&present, &policies) {
                policies = present;
                *left = part.divide(left, &policies);
            }
            delivery.deliver(subscriber, left, part, &policies);
            held.set(count(left));
        }
    }
}

impl Handler for Ingress {
    async fn messages(&mut self, batch: Batch<'_>) -> Result<(), Ended> {
        let Batch { wire, spans, slab } = batch;
        let Some(arrival) = &self.publisher.arrival else {
            self.pass_all(&wire, spans, slab).await;
            return Ok(());
        };
        // These are the other messages of an upstream, in their order.
        let is_of_one_hop =
            |span: &Span| upstream::is_of_one_hop(self.cache.topic(&wire, span), &wire[span.start..span.end]);
        let left_out = spans.iter().filter(|span| is_of_one_hop(span)).count();
        if left_out == 0 {
            self.pass_all(&wire, spans, slab).await;
            return Ok(());
        }
        arrival.control.fetch_add(left_out as u64, Ordering::Relaxed);
        let parts: Vec<&[Span]> = spans.split(is_of_one_hop).filter(|part| !part.is_empty()).collect();
        for part in parts {
            self.pass_all(&wire, part, slab).await;
        }
        Ok(())
    }

    async fn subscription(&mut self, _: bool, _: Bytes) -> Result<(), Ended> {
        // The engine of an XSUB hands out messages only.
        Ok(())
    }
}

impl Ingress {
    /// Passes messages on, each to its subscribers.
    async fn pass_all(&mut self, wire: &Bytes, spans: &[Span], slab: Slab) {
        // Many short messages for subscribers in turn would need memory for each of them.
        let mut left = spans;
        while !left.is_empty() {
            let passed = self.pass_part(wire, &left[..left.len().min(PART_MAX)], slab).await;
            left = &left[passed..];
        }
    }

    /// Passes the messages on to their subscribers that make the next part: all of these, or the first ones.
    /// Returns their number.
    async fn pass_part(&mut self, wire: &Bytes, spans: &[Span], slab: Slab) -> usize {
        let spans = &spans[..self.match_part(wire, spans).await];
        let (Some(first), Some(last)) = (spans.first(), spans.last()) else { return 0 };
        let len = last.end - first.start;
        self.cache.count_messages_on_their_way();
        self.sampler.sample(wire, spans);
        // Watchers see this part before it can wait: they get it whole, and what is lost is not theirs.
        self.show(wire, spans);
        let requests = self.requests.iter().map(|run| run.count()).sum::<usize>();
        if requests < spans.len() {
            self.publisher.received.add(spans.len() - requests, len);
        }
        self.is_received = true;
        if self.unmatched > 0 {
            self.delivery
                .connected_peers
                .unmatched
                .fetch_add(std::mem::take(&mut self.unmatched), Ordering::Relaxed);
        }
        if requests > 0 {
            self.ask(wire, spans).await;
        }
        let part = RoutedPart::new(wire, spans, slab.size, self.slab_charge(slab.serial));
        let mut touched = std::mem::take(&mut self.touched);
        let are_long = len >= CATCH_UP_FROM * spans.len();
        let mut behind = Vec::new();
        for slot in touched.drain(..) {
            let mut runs = std::mem::take(&mut self.cache.slots[slot.0].runs);
            let subscriber = &self.cache.slots[slot.0].subscriber;
            let is_behind = self.delivery.deliver(subscriber, &mut runs, &part, &self.cache.policies);
            self.cache.work += DELIVERY_WORK;
            if runs.is_empty() {
                self.cache.keep_runs(slot, runs);
                if is_behind && are_long {
                    behind.push(slot);
                }
            } else {
                self.waiting.push((slot, runs));
            }
            if self.cache.work > FAIR_SHARE_WORK {
                self.cache.work = 0;
                tokio::task::yield_now().await;
            }
        }
        self.touched = touched;
        if !self.waiting.is_empty() {
            self.wait_for_all(&part).await;
        }
        self.is_received = false;
        if !behind.is_empty() {
            let since = Instant::now();
            // The deliveries run at the same time: together they take no longer than one.
            let slots = &self.cache.slots;
            let waits = behind.into_iter().map(|slot| async move {
                let subscriber = &slots[slot.0].subscriber;
                if subscriber.send_queue.catch_up().await {
                    subscriber.count_wait();
                    subscriber.count_waited(since.elapsed());
                }
            });
            futures::future::join_all(waits).await;
        }
        if let Some(slab_charge) = part.slab_charge.get() {
            self.slab_charge = Some((slab.serial, Arc::downgrade(slab_charge)));
        }
        self.cache.finish_part();
        spans.len()
    }
}
