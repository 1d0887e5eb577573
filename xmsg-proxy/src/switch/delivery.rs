//! Queues the messages of an ingress for one subscriber, as far as there is room. At the high-water mark, the
//! subscriber's policy decides.
//!
//! | word | meaning |
//! |---|---|
//! | mark | the high-water mark that the rule of the topic sets for one queue |
//! | limit | the mark that applies now: a fair share when all queues together hold much |
//! | room | what the limit leaves in the queue |
//! | ceiling | what all queues together may hold, in bytes |
//! | reserve | the part of the memory budget that is left to queues in any case |

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use xmsg_zmq::link::send_queue::{APART, Keep, SendQueueGuard, SlabCharge};
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmq::{Amount, HighWaterMark};
use xmsg_zmtp::{MessageLimits, Span};

use super::connected_peers::ConnectedPeers;
use super::peer_stats::Drops;
use super::subscriber::ConnectedSubscriber;
use crate::policy::{Policies, Policy, Rule, RuleId};

/// Runs below this number of bytes are copied: that is cheaper than a slice, and a few bytes do not keep a
/// slab alive.
const COPY_BELOW: usize = 1 << 10;
/// Runs below this share of their slab are copied, too, so that they do not keep the slab alive.
const SLAB_SHARE: usize = 16;
/// High-water marks of fewer slabs than this are kept to the byte, by copying.
const EXACT_BELOW_SLABS: usize = 16;
/// The number of bytes above half of the ceiling that may be queued before that is noticed: a part that
/// begins in one slab and ends in the next.
const SLACK: usize = 512 << 10;
/// The number of bytes of the ceiling that a subscriber may always hold.
const CEILING_SHARE_MIN: usize = 64 << 10;
/// The divisor of the memory budget that yields the part for queues, however much is held for other purposes:
/// a peer that fills the rest must not make others lose what waits for them.
const QUEUES_RESERVE: usize = 8;
/// A subscriber lags when this many bytes wait for it: `conflate` begins. Less than that is what a burst
/// leaves for a moment.
const LAG: usize = 1 << 20;
/// A subscriber also lags when this many messages wait for it: `conflate` looks at each of them when it
/// begins, while others wait.
const LAG_MESSAGES: usize = 1 << 16;

/// Consecutive messages of a part for the same subscribers under the same rule, by number: from `first` up
/// to, but not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: usize,
    pub(super) end: usize,
    pub(super) rule: RuleId,
}

impl Run {
    pub(super) fn count(self) -> usize {
        self.end - self.first
    }
}

/// The messages of a part of a batch, which runs are taken from.
#[derive(Debug)]
pub(super) struct RoutedPart<'a> {
    pub(super) wire: &'a Bytes,
    pub(super) spans: &'a [Span],
    /// The charge for the slab. It is made when the first slice is queued.
    pub(super) slab_charge: OnceLock<Arc<SlabCharge>>,
    slab_size: usize,
    /// The bytes of the largest message, and the largest number of frames. They are computed when a
    /// subscriber with limits gets a message.
    largest: OnceLock<(usize, usize)>,
}

impl<'a> RoutedPart<'a> {
    /// Creates a part whose messages lie in a slab of this size. The memory counter counts the slab by
    /// `slab_charge`, if it was charged before.
    pub(super) fn new(
        wire: &'a Bytes,
        spans: &'a [Span],
        slab_size: usize,
        slab_charge: OnceLock<Arc<SlabCharge>>,
    ) -> Self {
        Self { wire, spans, slab_charge, slab_size, largest: OnceLock::new() }
    }

    /// Returns whether each of the messages is within these limits.
    fn is_within(&self, limits: MessageLimits) -> bool {
        let (size, frames) = *self.largest.get_or_init(|| {
            let sizes = self.spans.iter().map(|span| (span.end - span.start, span.frames));
            sizes.fold((0, 1), |most, one| (most.0.max(one.0), most.1.max(one.1)))
        });
        limits.allow(size, frames)
    }

    fn start(&self, run: Run) -> usize {
        self.spans[run.first].start
    }

    fn len(&self, run: Run) -> usize {
        if run.first == run.end { 0 } else { self.spans[run.end - 1].end - self.start(run) }
    }

    fn amount(&self, run: Run) -> Amount {
        Amount::new(run.count(), self.len(run))
    }

    /// Returns the number of messages at the front of the run that fit into this room.
    fn fitting(&self, run: Run, room: Amount) -> usize {
        let start = self.start(run);
        let by_bytes =
            self.spans[run.first..run.end].partition_point(|span| (span.end - start) as u64 <= room.bytes);
        by_bytes.min(usize::try_from(room.messages).unwrap_or(usize::MAX))
    }

    /// Returns the number of messages at the end of the run that fit into this room.
    fn fitting_last(&self, run: Run, room: Amount) -> usize {
        let end = self.start(run) + self.len(run);
        let older =
            self.spans[run.first..run.end].partition_point(|span| (end - span.start) as u64 > room.bytes);
        (run.count() - older).min(usize::try_from(room.messages).unwrap_or(usize::MAX))
    }

    /// Divides these runs so that all messages of a run have the same rule under these policies.
    pub(super) fn divide(&self, runs: &[Run], policies: &Policies) -> Vec<Run> {
        let mut divided: Vec<Run> = Vec::new();
        for first in runs.iter().flat_map(|run| run.first..run.end) {
            let rule = policies.of(self.spans[first].first(self.wire));
            match divided.last_mut() {
                Some(last) if last.end == first && last.rule == rule => last.end += 1,
                _ => divided.push(Run { first, end: first + 1, rule }),
            }
        }
        divided
    }
}

/// The limits and the counters that apply to all subscribers.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) memory: MemoryBudget,
    pub(super) connected_peers: Arc<ConnectedPeers>,
    /// The largest number of bytes in all queues together.
    pub(super) ceiling: usize,
}

impl Delivery {
    /// Returns the high-water mark that applies at present: this one, or less if all queues together hold
    /// much. If other memory leaves queues less than their reserve, the connection that holds most is ended.
    fn mark_within_budget(&self, mark: HighWaterMark) -> HighWaterMark {
        let reserve = self.memory.limit() / QUEUES_RESERVE;
        let mut left = self.memory.limit().saturating_sub(self.memory.claimed());
        if left < reserve {
            // This ends the connection that holds most.
            let _ = self.memory.makes_room(reserve);
            left = reserve;
        }
        let half = self.ceiling.min(left) / 2;
        if self.memory.queues().bytes() > half.saturating_sub(SLACK) {
            let share = (half / self.connected_peers.subscriber_count().max(1)).max(CEILING_SHARE_MIN);
            return HighWaterMark { bytes: mark.bytes.min(share), ..mark };
        }
        mark
    }

    /// Returns whether no message of these runs fits for now.
    pub(super) fn is_full(
        &self,
        queue: &SendQueueGuard<'_>,
        rule: Rule,
        run: Run,
        part: &RoutedPart<'_>,
    ) -> bool {
        let first = Run { end: run.first + 1, ..run };
        let room = queue.room(self.mark_within_budget(rule.mark));
        // A message that is larger than the mark may be queued when nothing else is.
        part.fitting(first, room) == 0 && queue.queued().messages > 0
    }

    /// Queues the runs, as far as there is room. With `block`, it leaves those that have to wait. Returns
    /// whether the publisher should give the subscriber, which must not lose anything, time to catch up.
    pub(super) fn deliver(
        &self,
        subscriber: &ConnectedSubscriber,
        left: &mut Vec<Run>,
        part: &RoutedPart<'_>,
        policies: &Policies,
    ) -> bool {
        if let Some(limits) = subscriber.takes
            && !part.is_within(limits)
        {
            leave_out(subscriber, limits, left, part);
        }
        let mut drops = Drops::default();
        let mut queue = subscriber.send_queue.lock();
        let (mut done, mut too_slow, mut blocks) = (0, false, false);
        while let Some(&run) = left.get(done) {
            done += 1;
            if queue.is_closed() {
                // The subscriber is leaving: nothing can be delivered to it.
                self.connected_peers.lose(run.count() as u64);
                continue;
            }
            let rule = policies.rule(run.rule);
            blocks |= matches!(rule.policy, Policy::Block { .. });
            let mut limit = self.mark_within_budget(rule.mark);
            if queue.keep() != keep_of(rule.policy) {
                // The queue will be charged for the change.
                limit.bytes = limit.bytes.saturating_sub(APART);
            }
            match rule.policy {
                Policy::Conflate => {
                    self.conflate(&mut queue, rule, limit, run, part, &mut drops);
                    continue;
                }
                _ if fits(part.amount(run), queue.room(limit)) => {
                    self.push(&mut queue, rule, limit, run, part);
                    continue;
                }
                Policy::DropOldest => {
                    self.drop_oldest(&mut queue, rule, limit, run, part, &mut drops);
                    continue;
                }
                Policy::DropNewest | Policy::Block { .. } | Policy::Disconnect => {}
            }
            let mut fitting = part.fitting(run, queue.room(limit));
            if fitting == 0 && queue.queued().messages == 0 {
                fitting = 1;
            }
            let rest = Run { first: run.first + fitting, ..run };
            if fitting > 0 {
                self.push(&mut queue, rule, limit, Run { end: rest.first, ..run }, part);
            }
            if rest.first == rest.end {
                continue;
            }
            match rule.policy {
                Policy::Block { .. } => {
                    queue.wait_for_room();
                    done -= 1;
                    left[done] = rest;
                    break;
                }
                Policy::Disconnect => {
                    let others = left[done..].iter().map(|run| part.amount(*run));
                    drops.newest += others.fold(part.amount(rest), |sum, amount| sum + amount);
                    done = left.len();
                    too_slow = true;
                }
                _ => drops.newest += part.amount(rest),
            }
        }
        left.drain(..done);
        let is_behind = blocks && queue.is_far_ahead();
        drop(queue);
        if drops != Drops::default() {
            subscriber.count_dropped(drops);
        }
        if too_slow {
            subscriber.disconnect_at_mark();
        }
        is_behind
    }

    fn drop_oldest(
        &self,
        queue: &mut SendQueueGuard<'_>,
        rule: Rule,
        limit: HighWaterMark,
        run: Run,
        part: &RoutedPart<'_>,
        drops: &mut Drops,
    ) {
        drops.oldest += queue.make_room(part.amount(run), limit);
        let mut fitting = part.fitting_last(run, queue.room(limit));
        if fitting == 0 && queue.queued().messages == 0 {
            fitting = 1;
        }
        let rest = Run { first: run.end - fitting, ..run };
        let gone = part.amount(Run { end: rest.first, ..run });
        if fitting > 0 {
            drops.oldest += gone;
            self.push(queue, rule, limit, rest, part);
        } else {
            // No waiting message may be dropped, or all of them are being written already.
            drops.newest += gone;
        }
    }

    fn conflate(
        &self,
        queue: &mut SendQueueGuard<'_>,
        rule: Rule,
        limit: HighWaterMark,
        run: Run,
        part: &RoutedPart<'_>,
        drops: &mut Drops,
    ) {
        if !queue.is_conflated() {
            let lag =
                HighWaterMark { bytes: limit.bytes.min(LAG), messages: limit.messages.min(LAG_MESSAGES) };
            if fits(part.amount(run), queue.room(lag)) {
                self.push(queue, rule, limit, run, part);
                return;
            }
            drops.conflated += queue.conflate();
        }
        for span in &part.spans[run.first..run.end] {
            let message = &part.wire[span.start..span.end];
            let taken = queue.push_newest(message, limit);
            drops.conflated += taken.outdated;
            drops.oldest += taken.evicted;
            if !taken.accepted {
                drops.newest += Amount::new(1, message.len());
            }
        }
    }

    fn push(
        &self,
        queue: &mut SendQueueGuard<'_>,
        rule: Rule,
        limit: HighWaterMark,
        run: Run,
        part: &RoutedPart<'_>,
    ) {
        let (start, len, count) = (part.start(run), part.len(run), run.count());
        let range = start..start + len;
        let keep = keep_of(rule.policy);
        // Slices that are kept for different times are charged one by one. Copies are charged for their size.
        let alternates = queue.keep() != keep;
        queue.set_keep(keep, rule.mark);
        let small = len < COPY_BELOW || len < part.slab_size / SLAB_SHARE;
        let exact = limit.bytes < EXACT_BELOW_SLABS * part.slab_size && len < part.slab_size / 2;
        if small || exact || alternates {
            queue.push_copy(&part.wire[range], count);
        } else {
            let slab_charge =
                part.slab_charge.get_or_init(|| SlabCharge::new(self.memory.queues(), part.slab_size));
            queue.push_slice(part.wire.slice(range), count, slab_charge);
        }
    }
}

/// Removes the messages from the runs that exceed the limits of the subscriber. It would end the connection
/// for them, and lose what waits for it.
fn leave_out(
    subscriber: &ConnectedSubscriber,
    limits: MessageLimits,
    left: &mut Vec<Run>,
    part: &RoutedPart<'_>,
) {
    let goes = |span: &Span| limits.allow(span.end - span.start, span.frames);
    let (mut gone, mut topic) = (Amount::default(), None);
    let mut fitting: Vec<Run> = Vec::with_capacity(left.len());
    for run in left.iter() {
        let mut first = run.first;
        for number in run.first..run.end {
            let span = &part.spans[number];
            if goes(span) {
                continue;
            }
            gone += Amount::new(1, span.end - span.start);
            topic = Some(span.first(part.wire));
            if first < number {
                fitting.push(Run { first, end: number, ..*run });
            }
            first = number + 1;
        }
        if first < run.end {
            fitting.push(Run { first, ..*run });
        }
    }
    if let Some(topic) = topic {
        *left = fitting;
        subscriber.count_too_large(gone, topic);
    }
}

fn fits(amount: Amount, room: Amount) -> bool {
    amount.messages <= room.messages && amount.bytes <= room.bytes
}

/// Returns for how long messages of this policy are kept while they wait.
fn keep_of(policy: Policy) -> Keep {
    match policy {
        Policy::DropNewest | Policy::Block { .. } | Policy::Disconnect => Keep::Always,
        Policy::DropOldest => Keep::WhileRoom,
        Policy::Conflate => Keep::Newest,
    }
}

#[cfg(test)]
#[path = "delivery_tests.rs"]
mod tests;
