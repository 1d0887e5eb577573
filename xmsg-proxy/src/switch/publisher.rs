//! A connected publisher, and the subscriptions that it is sent.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use xmsg_zmq::HighWaterMark;
use xmsg_zmq::deadline::later;
use xmsg_zmq::link::admission::Place;
use xmsg_zmq::link::send_queue::SendQueue;
use xmsg_zmq::link::session::now;
use xmsg_zmq::link::source::Source;
use xmsg_zmq::lock::lock;
use xmsg_zmq::memory_budget::{Claim, MemoryBudget};
use xmsg_zmtp::Version;

use super::authorization::Authorization;
use super::log_throttles::LogThrottles;
use super::peer_stats::Counter;
use super::token_bucket::TokenBucket;
use super::upstream::Arrival;

/// The number of bytes of changed subscriptions that may wait to be written to a publisher. One that lets
/// more pile up is disconnected.
const UPSTREAM_MAX: usize = 64 << 20;
/// The approximate number of bytes that the queue needs for each entry. The bytes of the subscriptions are
/// shared.
const ENTRY: usize = 128;
/// The steps in bytes in which these entries count in the memory budget.
const BACKLOG_STEP: usize = 64 << 10;
/// A publisher is behind when more bytes than this wait for it: what it is sent next must not wait for long.
const BACKLOG: usize = 128 << 10;
/// The number of bytes that a publisher that is behind has to read in each [`PATIENCE`]; otherwise others no
/// longer wait for it.
const PACE: u64 = 4 << 20;
/// The time in which a publisher that is behind has to read [`PACE`] bytes.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// The number of subscribers in a second that are sent the confirmations that one connection asks for. A
/// request that goes to more makes the connection wait for its next confirmation.
const RECIPIENTS_PER_SECOND: f64 = 20_000.0;
/// Others do not wait again for a publisher that held them up before this many times as long have passed.
const REST: u32 = 10;

/// A connected publisher.
#[derive(Debug)]
pub(super) struct ConnectedPublisher {
    pub(super) id: u32,
    pub(super) peer: Box<str>,
    pub(super) source: Source,
    pub(super) version: Version,
    /// The subscriptions on their way to it.
    pub(super) send_queue: Arc<SendQueue>,
    /// The bytes of subscriptions that it was sent when it connected. The limit of what may wait is higher by
    /// as much.
    initial_bytes: Arc<AtomicUsize>,
    pub(super) since: Instant,
    pub(super) received: Counter,
    /// The limit of subscribers that are sent confirmations on its request.
    pub(super) recipients: Mutex<TokenBucket>,
    reading: Mutex<Reading>,
    /// Cancelled to disconnect the publisher: it does not read, its place was given away, or the switch
    /// stops.
    pub(super) disconnected: CancellationToken,
    /// Cancelled to end the connection because the publisher holds too much memory.
    pub(super) outsized: CancellationToken,
    claim: Mutex<Option<Claim>>,
    pub(super) authorization: Authorization,
    /// Records that it has left.
    pub(super) place: Arc<Place>,
    log_throttles: Arc<LogThrottles>,
    /// Whether its socket passes on what others publish, such as that of another proxy.
    pub(super) is_forwarder: bool,
    /// The link over which this proxy has connected to it, or `None` if it has connected to this proxy.
    pub(super) arrival: Option<Arrival>,
}

/// The progress of a publisher in reading the subscriptions that it is sent.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    /// The time when it fell behind, and the number of bytes that had been written to it then.
    behind: Option<(Instant, u64)>,
    /// The time until which others do not wait for it, because it held them up. They also do not wait before
    /// it has read everything.
    stalled_until: Option<Instant>,
}

impl ConnectedPublisher {
    /// Creates a publisher that is disconnected when `disconnected` is cancelled.
    pub(super) fn new(
        id: u32,
        peer: &str,
        version: Version,
        authorization: Authorization,
        place: Arc<Place>,
        disconnected: CancellationToken,
    ) -> Self {
        Self {
            id,
            peer: peer.into(),
            source: Source::of(peer),
            version,
            send_queue: Arc::new(SendQueue::new(HighWaterMark::bytes(UPSTREAM_MAX))),
            initial_bytes: Arc::default(),
            since: now(),
            received: Counter::default(),
            recipients: Mutex::new(TokenBucket::new(RECIPIENTS_PER_SECOND)),
            reading: Mutex::default(),
            disconnected,
            outsized: CancellationToken::new(),
            claim: Mutex::default(),
            authorization,
            place,
            log_throttles: Arc::default(),
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
        let send_queue =
            SendQueue::new(HighWaterMark::bytes(UPSTREAM_MAX)).counting_urgent_in(memory.queues().clone());
        Self { send_queue: Arc::new(send_queue), ..self }
    }

    /// Returns the publisher with its lines in the log counted together with those of others.
    pub(super) fn logging(self, log_throttles: &Arc<LogThrottles>) -> Self {
        Self { log_throttles: log_throttles.clone(), ..self }
    }

    /// Sends it a part of all present subscriptions, without a limit.
    pub(super) fn send_snapshot(&self, subscriptions: &Bytes) {
        if !subscriptions.is_empty() && self.send_queue.push_shared(subscriptions, usize::MAX) {
            self.initial_bytes.fetch_add(subscriptions.len() + ENTRY, Ordering::Relaxed);
        }
    }

    /// Sends it changes of subscriptions. A publisher that lets too many pile up is disconnected.
    pub(super) fn send(&self, subscriptions: &Bytes) {
        if !self
            .send_queue
            .push_shared(subscriptions, UPSTREAM_MAX + self.initial_bytes.load(Ordering::Relaxed))
            && !self.disconnected.is_cancelled()
            && !self.send_queue.is_closed()
        {
            self.disconnect_as_not_reading();
        }
    }

    /// Disconnects the publisher because it does not read its subscriptions.
    pub(super) fn disconnect_as_not_reading(&self) {
        if let Some(unlogged) =
            self.log_throttles.disconnected_publishers.pass("publishers that were cut off")
        {
            tracing::warn!(peer = %self.peer, unlogged, "a publisher was disconnected: it does not read the subscriptions that the proxy sends");
        }
        self.disconnected.cancel();
    }

    /// Logs that it, an upstream, does not accept all subscriptions that there are.
    pub(super) fn warn_of_long_prefixes(&self, longest: usize) {
        let takes = self.arrival.as_ref().map_or(usize::MAX, |arrival| arrival.subscription_len);
        if longest > takes
            && let Some(unlogged) =
                self.log_throttles.long_prefixes.pass("upstreams that do not take all subscriptions")
        {
            tracing::warn!(
                address = %self.peer,
                longest,
                takes,
                unlogged,
                "an upstream does not take subscriptions as long as some here: these do not get what is published there. Raise \
                 limits.subscription_bytes there"
            );
        }
    }

    /// Counts what waits for it in the memory budget. Only the entries count, as others hold the bytes, too.
    /// When the connection that holds most is searched, the bytes count in full; but a publisher that has
    /// just connected has had no time to read them.
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
            let (send_queue, initial_bytes, since) =
                (self.send_queue.clone(), self.initial_bytes.clone(), self.since);
            let claim = memory.claim(&self.peer, what, self.outsized.clone());
            claim.weighed_by(move || held_up(&send_queue, &initial_bytes, since))
        };
        let claim = claim.get_or_insert_with(new);
        if claim.bytes() != bytes {
            claim.force(bytes);
        }
    }

    /// Returns the bytes that wait for it and count when the publisher that reads least is searched.
    pub(super) fn held_up(&self) -> usize {
        held_up(&self.send_queue, &self.initial_bytes, self.since)
    }

    /// Returns whether so much waits for it that [`is_behind`](Self::is_behind) has to be checked.
    pub(super) fn may_be_behind(&self) -> bool {
        self.send_queue.queued().bytes as usize > BACKLOG
    }

    /// Returns whether it has yet to read many changes, and reads them fast enough to be waited for.
    pub(super) fn is_behind(&self) -> bool {
        let is_waited_for = !self.send_queue.is_closed() && !self.is_stalled();
        if unread(&self.send_queue, &self.initial_bytes) <= BACKLOG || !is_waited_for {
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
        self.note_stall(PATIENCE);
        false
    }

    /// Returns whether so much waits for it that it would soon be disconnected, although others wait for it.
    pub(super) fn is_far_behind(&self) -> bool {
        !self.is_stalled() && unread(&self.send_queue, &self.initial_bytes) > UPSTREAM_MAX / 2
    }

    /// Notes that it held others up for this time by not reading. Others do not wait for it any more until it
    /// has read everything and some time has passed.
    pub(super) fn note_stall(&self, time: Duration) {
        if let Some(unlogged) =
            self.log_throttles.not_reading.pass("publishers that do not read their subscriptions")
        {
            tracing::info!(peer = %self.peer, unlogged, "a publisher does not read the subscriptions that the proxy sends: others no longer wait for it");
        }
        *lock(&self.reading) = Reading { behind: None, stalled_until: Some(later(now(), time * REST)) };
    }

    /// Returns whether it held others up, so that they do not wait for it.
    pub(super) fn is_stalled(&self) -> bool {
        let mut reading = lock(&self.reading);
        let Some(until) = reading.stalled_until else { return false };
        if now() >= until && self.send_queue.queued().messages == 0 {
            reading.stalled_until = None;
        }
        reading.stalled_until.is_some()
    }
}

/// Returns the bytes that wait for a publisher, or none if it has just connected and had no time to read.
fn held_up(send_queue: &SendQueue, initial_bytes: &AtomicUsize, since: Instant) -> usize {
    if now().saturating_duration_since(since) < PATIENCE {
        unread(send_queue, initial_bytes)
    } else {
        send_queue.queued().bytes as usize
    }
}

/// Returns the approximate bytes of changes that a publisher has yet to read. What it was sent when it
/// connected comes before them, and does not count: the present subscribers did not cause it.
fn unread(send_queue: &SendQueue, initial_bytes: &AtomicUsize) -> usize {
    let first = (initial_bytes.load(Ordering::Relaxed) as u64).saturating_sub(send_queue.written().bytes);
    send_queue.queued().bytes.saturating_sub(first) as usize
}

#[cfg(test)]
impl ConnectedPublisher {
    /// Creates a publisher with this number and address, for tests.
    pub(crate) fn of_test(id: u32, peer: &str) -> Self {
        let disconnected = CancellationToken::new();
        let mut permit = xmsg_zmq::Admission::default().admit(None, peer).expect("there is room");
        let authorization = Authorization::new(&Arc::default(), None);
        Self::new(id, peer, Version::V3_1, authorization, permit.place(disconnected.clone()), disconnected)
    }

    /// Creates a publisher of this protocol version with the rights of a peer without credentials.
    pub(crate) fn of_test_with(
        id: u32,
        authority: &Arc<crate::security::Authority>,
        version: Version,
    ) -> Self {
        let one = Self::of_test(id, "a publisher");
        Self { authorization: Authorization::new(authority, None), version, ..one }
    }
}
