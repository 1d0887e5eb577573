//! One connected publisher, and what it is told of subscriptions.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use xmsg_zmq::HighWaterMark;
use xmsg_zmq::deadline::later;
use xmsg_zmq::link::admission::Place;
use xmsg_zmq::link::memory::{Claim, MemoryBudget};
use xmsg_zmq::link::send_queue::SendQueue;
use xmsg_zmq::link::session::now;
use xmsg_zmq::link::source::Source;
use xmsg_zmq::lock::lock;
use xmsg_zmtp::Version;

use super::bucket::Bucket;
use super::peers::{Counter, Grant, Lines};
use super::upstream::Arrival;

/// Changes of subscriptions that wait to be written to a publisher, bytes; one that lets more pile up is cut
/// off.
const UPSTREAM_MAX: usize = 64 << 20;
/// What the queue needs for each entry, bytes, about. The text of what it is told is shared.
const ENTRY: usize = 128;
/// Steps in which these entries count in the memory budget, bytes.
const BACKLOG_STEP: usize = 64 << 10;
/// Bytes that may wait for a publisher before it is behind: what it is told next is not to wait for long.
const BACKLOG: usize = 128 << 10;
/// Bytes that a publisher that is behind has to read in each [`PATIENCE`] to be waited for.
const PACE: u64 = 4 << 20;
/// The time in which a publisher that is behind has to read [`PACE`] bytes.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Subscribers that are told in a second what one connection asked for. What goes to more makes it wait for
/// its next confirmation.
const RECIPIENTS_PER_SECOND: f64 = 20_000.0;
/// One that held others up is not waited for again before so many times as long have passed.
const REST: u32 = 10;

/// A connected publisher.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) id: u32,
    pub(super) peer: Box<str>,
    pub(super) source: Source,
    pub(super) version: Version,
    /// Subscriptions on their way to it.
    pub(super) send_queue: Arc<SendQueue>,
    /// Bytes of them that it was told when it came. So many more than otherwise may wait.
    told: Arc<AtomicUsize>,
    pub(super) since: Instant,
    pub(super) received: Counter,
    /// Subscribers that may be told what it asks for.
    pub(super) recipients: Mutex<Bucket>,
    reading: Mutex<Reading>,
    /// Ends its connection.
    pub(super) cut: CancellationToken,
    /// Ends its connection because it holds too much memory.
    pub(super) outsized: CancellationToken,
    claim: Mutex<Option<Claim>>,
    pub(super) grant: Grant,
    /// Where it is noted that it has left.
    pub(super) place: Arc<Place>,
    lines: Arc<Lines>,
    /// Its socket is one that passes on what others publish, such as that of another proxy.
    pub(super) is_forwarder: bool,
    /// `None`: it has connected to us.
    pub(super) arrival: Option<Arrival>,
}

/// Whether it reads what it is told.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    /// Since when it is behind, and how many bytes had been written to it then.
    behind: Option<(Instant, u64)>,
    /// It held others up: it is not waited for until it has read everything, nor before that.
    stalled_until: Option<Instant>,
}

impl Publisher {
    /// One that `cut` ends.
    pub(super) fn new(
        id: u32,
        peer: &str,
        version: Version,
        grant: Grant,
        place: Arc<Place>,
        cut: CancellationToken,
    ) -> Self {
        Self {
            id,
            peer: peer.into(),
            source: Source::of(peer),
            version,
            send_queue: Arc::new(SendQueue::new(HighWaterMark::bytes(UPSTREAM_MAX))),
            told: Arc::default(),
            since: now(),
            received: Counter::default(),
            recipients: Mutex::new(Bucket::new(RECIPIENTS_PER_SECOND)),
            reading: Mutex::default(),
            cut,
            outsized: CancellationToken::new(),
            claim: Mutex::default(),
            grant,
            place,
            lines: Arc::default(),
            is_forwarder: false,
            arrival: None,
        }
    }

    /// Returns the publisher with the note whether it passes on what others publish.
    pub(super) fn forwarding(self, is_forwarder: bool) -> Self {
        Self { is_forwarder, ..self }
    }

    /// Returns the publisher with the note that we have connected to it.
    pub(super) fn arriving(self, arrival: Arrival) -> Self {
        Self { arrival: Some(arrival), ..self }
    }

    /// Returns the publisher with its unread answers counted in this budget.
    pub(super) fn counting(self, memory: &MemoryBudget) -> Self {
        let send_queue = SendQueue::new(HighWaterMark::bytes(UPSTREAM_MAX)).owing(memory.queues().clone());
        Self { send_queue: Arc::new(send_queue), ..self }
    }

    /// Returns the publisher with its lines in the log counted together with those of others.
    pub(super) fn logging(self, lines: &Arc<Lines>) -> Self {
        Self { lines: lines.clone(), ..self }
    }

    /// Sends it a part of all subscriptions there are, however many.
    pub(super) fn welcome(&self, subscriptions: &Bytes) {
        if !subscriptions.is_empty() && self.send_queue.push_shared(subscriptions, usize::MAX) {
            self.told.fetch_add(subscriptions.len() + ENTRY, Ordering::Relaxed);
        }
    }

    /// Sends it changes of subscriptions. One that lets too many pile up is cut off.
    pub(super) fn send(&self, subscriptions: &Bytes) {
        if !self.send_queue.push_shared(subscriptions, UPSTREAM_MAX + self.told.load(Ordering::Relaxed))
            && !self.cut.is_cancelled()
            && !self.send_queue.is_closed()
        {
            self.cut_off();
        }
    }

    /// Ends its connection, because it does not read its subscriptions.
    pub(super) fn cut_off(&self) {
        if let Some(unlogged) = self.lines.cut_off_deaf.pass("publishers that were cut off") {
            tracing::warn!(peer = %self.peer, unlogged, "a publisher was disconnected: it does not read the subscriptions that the proxy sends");
        }
        self.cut.cancel();
    }

    /// Has what waits for it count in the memory budget: its entries, as others hold the text, too. When
    /// whoever holds most is to be found, the text counts in full; but one that has just come has had no time
    /// to read what it was told.
    pub(super) fn count_backlog(&self, memory: &MemoryBudget) {
        let queued = self.send_queue.queued();
        let bytes = queued.messages as usize * ENTRY;
        let bytes = if bytes < BACKLOG_STEP { 0 } else { bytes.next_multiple_of(BACKLOG_STEP) };
        let mut claim = lock(&self.claim);
        if queued.bytes < BACKLOG_STEP as u64 && claim.is_none() {
            return;
        }
        let new = || {
            let what = "subscriptions that it does not read";
            let (send_queue, told, since) = (self.send_queue.clone(), self.told.clone(), self.since);
            let claim = memory.claim(&self.peer, what, self.outsized.clone());
            claim.weighed_by(move || held_up(&send_queue, &told, since))
        };
        let claim = claim.get_or_insert_with(new);
        if claim.bytes() != bytes {
            claim.force(bytes);
        }
    }

    /// What waits for it and counts when whoever reads least is to be found.
    pub(super) fn held_up(&self) -> usize {
        held_up(&self.send_queue, &self.told, self.since)
    }

    /// Whether so much waits for it that it has to be watched whether it [is behind](Self::is_behind).
    pub(super) fn may_be_behind(&self) -> bool {
        self.send_queue.queued().bytes as usize > BACKLOG
    }

    /// Whether it has yet to read much of what has changed, and reads it fast enough to be waited for.
    pub(super) fn is_behind(&self) -> bool {
        let is_waited_for = !self.send_queue.is_closed() && !self.is_stalled();
        if unread(&self.send_queue, &self.told) <= BACKLOG || !is_waited_for {
            lock(&self.reading).behind = None;
            return false;
        }
        let written = self.send_queue.written().bytes;
        let mut reading = lock(&self.reading);
        let (since, before) = *reading.behind.get_or_insert((now(), written));
        if now().saturating_duration_since(since) < PATIENCE {
            return true;
        }
        if written - before >= PACE {
            reading.behind = Some((now(), written));
            return true;
        }
        drop(reading);
        self.holds_up(PATIENCE);
        false
    }

    /// Whether so much waits for it that it would soon be cut off, although it is waited for.
    pub(super) fn is_far_behind(&self) -> bool {
        !self.is_stalled() && unread(&self.send_queue, &self.told) > UPSTREAM_MAX / 2
    }

    /// Notes that it held others up for so long by not reading: it is not waited for any more, until it has
    /// read everything, and some time has passed.
    pub(super) fn holds_up(&self, time: Duration) {
        if let Some(unlogged) = self.lines.deaf.pass("publishers that do not read their subscriptions") {
            tracing::info!(peer = %self.peer, unlogged, "a publisher does not read the subscriptions that the proxy sends: others no longer wait for it");
        }
        *lock(&self.reading) = Reading { behind: None, stalled_until: Some(later(now(), time * REST)) };
    }

    /// Whether it held others up, and is not to be waited for.
    pub(super) fn is_stalled(&self) -> bool {
        let mut reading = lock(&self.reading);
        let Some(until) = reading.stalled_until else { return false };
        if now() >= until && self.send_queue.queued().messages == 0 {
            reading.stalled_until = None;
        }
        reading.stalled_until.is_some()
    }
}

/// What waits for a publisher, bytes; but one that has just come has had no time to read what it was told.
fn held_up(send_queue: &SendQueue, told: &AtomicUsize, since: Instant) -> usize {
    if now().saturating_duration_since(since) < PATIENCE {
        unread(send_queue, told)
    } else {
        send_queue.queued().bytes as usize
    }
}

/// Bytes of changes that a publisher has yet to read, about. It may have yet to read, before them, what it
/// was told when it came: that is nobody's doing who subscribes now.
fn unread(send_queue: &SendQueue, told: &AtomicUsize) -> usize {
    let first = (told.load(Ordering::Relaxed) as u64).saturating_sub(send_queue.written().bytes);
    send_queue.queued().bytes.saturating_sub(first) as usize
}

#[cfg(test)]
impl Publisher {
    /// One with this number and address, for a test.
    pub(crate) fn of_test(id: u32, peer: &str) -> Self {
        let cut = CancellationToken::new();
        let mut permit = xmsg_zmq::Admission::default().admit(None, peer).expect("there is room");
        let grant = Grant::new(&Arc::default(), None);
        Self::new(id, peer, Version::V3_1, grant, permit.place(cut.clone()), cut)
    }

    /// One of this version with the rights of whoever has no credentials.
    pub(crate) fn of_test_with(
        id: u32,
        authority: &Arc<crate::security::Authority>,
        version: Version,
    ) -> Self {
        let one = Self::of_test(id, "a publisher");
        Self { grant: Grant::new(authority, None), version, ..one }
    }
}
