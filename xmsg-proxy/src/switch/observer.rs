//! Watchers: subscribers to which nothing is queued. They count messages, and see some of them.
//!
//! An observer is an entry of the table like any subscriber. So publishers and upstreams are told what it
//! wants, and told when it leaves; ingresses find it where they find the others, by the same look-ups, in the
//! same cache and as the same runs; and topics that nobody watches cost nothing. A table of watched prefixes
//! beside that of subscriptions would have to be looked up for each topic, too, and would need an account of
//! its own of what publishers were told.
//!
//! Only the delivery differs. An ingress passes each run to the observer before anything of its part can
//! wait. The observer counts all messages, and copies some, as many as a second and a small queue have room
//! for: it keeps no slab alive, and nobody waits for whoever watches. It is no connection: it is not in the
//! lists of subscribers, and no figure of the traffic changes because somebody watches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use xmsg_core::{Error, ErrorKind, Result};
use xmsg_zmq::deadline::later;
use xmsg_zmq::link::send_queue::SendQueue;
use xmsg_zmq::link::session::now;
use xmsg_zmq::lock::lock;
use xmsg_zmq::memory_budget::Claim;
use xmsg_zmtp::{Frames, Span};

use super::Switch;
use super::authorization::Authorization;
use super::delivery::Run;
use super::subscriber::ConnectedSubscriber;
use super::table::Change;
use super::upstream::Token;
use crate::security::{Mechanism, Rights};

/// The largest number of bytes of a message's data that are copied.
const DATA_MAX: usize = 16 << 10;
/// The largest number of bytes of topic and metadata together. A message with more is left out.
const REST_MAX: usize = 16 << 10;
/// The number of bytes that are copied in a second.
const BYTES_PER_S: usize = 1 << 20;
/// The number of messages that wait for whoever watches. Beyond, messages are left out.
const WAITING: usize = 64;
/// The number of bytes of these messages. Beyond, messages are left out.
const WAITING_BYTES: usize = 256 << 10;
/// What a watcher counts for in the memory budget, in bytes: what waits, and as much again for the text that
/// is made of it.
const CLAIMED: usize = 2 * WAITING_BYTES;
/// The name of an observer in log lines.
const NAME: &str = "a watcher of messages";

/// Who watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watcher {
    /// Somebody who may see all messages, whatever the rules say of peers.
    Trusted,
    /// Anybody who can reach the proxy: the rules for peers without credentials apply.
    Anybody,
}

/// The beginning of a message that has passed.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) topic: Bytes,
    /// The metadata. It is empty if the message has two frames.
    pub(crate) meta: Bytes,
    /// The data, or its beginning.
    pub(crate) data: Bytes,
    /// The length of the whole data in bytes.
    pub(crate) length: usize,
    /// When it passed.
    pub(crate) time: SystemTime,
}

/// The frames of a message that is shown, where they were read.
#[derive(Debug)]
struct Parts {
    topic: Bytes,
    meta: Bytes,
    data: Bytes,
}

impl Parts {
    /// Returns the frames of a message, or `None` if it is not one of xMsg or of a plain publisher, or if its
    /// topic and its metadata are too long: others choose their lengths.
    fn of(message: Bytes, frames: usize) -> Option<Self> {
        let mut parts = Frames::of(message);
        let (topic, meta, data) = match frames {
            2 => (parts.next()?, Bytes::new(), parts.next()?),
            3 => (parts.next()?, parts.next()?, parts.next()?),
            _ => return None,
        };
        (topic.len() + meta.len() <= REST_MAX).then_some(Self { topic, meta, data })
    }

    fn shown(&self) -> &[u8] {
        &self.data[..self.data.len().min(DATA_MAX)]
    }

    /// Returns the number of bytes that are shown.
    fn bytes(&self) -> usize {
        self.topic.len() + self.meta.len() + self.shown().len()
    }

    /// Copies what is shown. A slice would keep the slab alive for as long as it waits.
    fn copy(&self) -> Sample {
        Sample {
            topic: Bytes::copy_from_slice(&self.topic),
            meta: Bytes::copy_from_slice(&self.meta),
            data: Bytes::copy_from_slice(self.shown()),
            length: self.data.len(),
            time: SystemTime::now(),
        }
    }
}

/// How much may still be shown.
#[derive(Debug)]
struct Allowance {
    /// The number of messages in a second.
    rate: u32,
    /// What is left of this second, and its end.
    messages: u32,
    bytes: usize,
    until: Instant,
    /// The bytes that wait for whoever watches.
    waiting: usize,
}

impl Allowance {
    fn new(rate: u32, now: Instant) -> Self {
        Self { rate, messages: 0, bytes: 0, until: now, waiting: 0 }
    }

    /// Takes the room for a message of this many bytes. Returns `false` if there is none.
    fn take(&mut self, bytes: usize, now: Instant) -> bool {
        if now >= self.until {
            (self.messages, self.bytes) = (self.rate, BYTES_PER_S);
            self.until = later(now, Duration::from_secs(1));
        }
        let may = self.messages > 0 && self.bytes >= bytes && self.waiting + bytes <= WAITING_BYTES;
        if may {
            self.messages -= 1;
            self.bytes -= bytes;
            self.waiting += bytes;
        }
        may
    }
}

/// The inner end of a watcher, where ingresses pass messages.
#[derive(Debug)]
pub(super) struct Observer {
    /// The number of messages that have passed.
    messages: AtomicU64,
    /// The number of those that are shown.
    shown: AtomicU64,
    /// It is locked for moments only, in which nothing is copied.
    allowance: Mutex<Allowance>,
    samples: mpsc::Sender<Sample>,
}

impl Observer {
    /// Creates one that shows `rate` messages in a second, and the receiver of these.
    fn new(rate: u32) -> (Self, mpsc::Receiver<Sample>) {
        let (samples, receiver) = mpsc::channel(WAITING);
        let allowance = Mutex::new(Allowance::new(rate, now()));
        (Self { messages: AtomicU64::new(0), shown: AtomicU64::new(0), allowance, samples }, receiver)
    }

    /// Counts the messages of these runs, and shows those for which there is room. It never waits. The first
    /// message without room ends the search, so that a busy topic costs little more than its count.
    pub(super) fn pass(&self, wire: &Bytes, spans: &[Span], runs: &[Run]) {
        let passed = runs.iter().map(|run| run.count() as u64).sum();
        self.messages.fetch_add(passed, Ordering::Relaxed);
        let spans = runs.iter().flat_map(|run| &spans[run.first..run.end]);
        for span in spans.filter(|span| span.first_len <= REST_MAX) {
            let Ok(place) = self.samples.try_reserve() else { return };
            let Some(parts) = Parts::of(wire.slice(span.start..span.end), span.frames) else { continue };
            if !lock(&self.allowance).take(parts.bytes(), now()) {
                return;
            }
            self.shown.fetch_add(1, Ordering::Release);
            place.send(parts.copy());
        }
    }

    /// Notes that a message has been taken out of the queue.
    fn taken(&self, sample: &Sample) {
        lock(&self.allowance).waiting -= sample.topic.len() + sample.meta.len() + sample.data.len();
    }
}

/// The messages of one prefix as they pass, for whoever watches. Dropping it ends the subscription.
#[derive(Debug)]
pub(crate) struct Observation {
    subscriber: Arc<ConnectedSubscriber>,
    samples: mpsc::Receiver<Sample>,
    /// Cancelled when the switch stops.
    ended: CancellationToken,
    _leaves: DropGuard,
    _claim: Claim,
}

impl Observation {
    /// Returns the next message that is shown, or `None` when the switch has stopped.
    pub(crate) async fn next(&mut self) -> Option<Sample> {
        let sample = tokio::select! {
            biased;
            () = self.ended.cancelled() => return None,
            // A long prefix counts in the memory budget, and no connection held more.
            () = self.subscriber.outsized.cancelled() => return None,
            sample = self.samples.recv() => sample?,
        };
        if let Some(observer) = &self.subscriber.observer {
            observer.taken(&sample);
        }
        Some(sample)
    }

    /// Returns the number of messages that have passed, and of those among them that are not shown.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let Some(observer) = &self.subscriber.observer else { return (0, 0) };
        // What is shown was counted before, and so is not more.
        let shown = observer.shown.load(Ordering::Acquire);
        let messages = observer.messages.load(Ordering::Relaxed);
        (messages, messages.saturating_sub(shown))
    }
}

impl Switch {
    /// Returns the rights of whoever has no credentials, or `None` if the proxy asks for some.
    pub(crate) fn rights_of_anybody(&self) -> Option<Arc<Rights>> {
        let config = &self.inner.config;
        matches!(config.security, Mechanism::Null).then(|| config.authority.rights(None)).flatten()
    }

    /// Watches the messages whose topics begin with `prefix`, and shows `rate` of them in a second. What is
    /// published after this returns is counted.
    ///
    /// # Errors
    ///
    /// [`NotAllowed`](ErrorKind::NotAllowed), [`InvalidTopic`](ErrorKind::InvalidTopic) if the prefix is no
    /// prefix of a topic, [`TooLarge`](ErrorKind::TooLarge) if it is longer than a subscription may be, and
    /// [`Full`](ErrorKind::Full) if there is no memory for it.
    pub(crate) async fn observe(&self, prefix: Bytes, rate: u32, watcher: Watcher) -> Result<Observation> {
        let inner = &self.inner;
        let config = &inner.config;
        let most = config.limits.subscription_len;
        if prefix.len() > most {
            let what = format!("topics begin with {most} bytes at most where somebody subscribes to them");
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        if Token::read(&prefix).is_some() {
            let what = "no message has such a topic: proxies find loops of upstreams by it";
            return Err(Error::new(ErrorKind::InvalidTopic, what));
        }
        let authorization = match watcher {
            Watcher::Trusted => Authorization::fixed(&config.authority, Rights::all()),
            Watcher::Anybody => {
                let may = self.rights_of_anybody().is_some_and(|rights| rights.may_subscribe(&prefix));
                if !may {
                    let what = "whoever brings no credentials may not subscribe to this";
                    return Err(Error::new(ErrorKind::NotAllowed, what));
                }
                // If the rules change, the table applies the new ones.
                Authorization::new(&config.authority, None)
            }
        };
        if !config.memory.has_room(CLAIMED) {
            let what = "no memory is left for what is shown: try again later, or raise --memory-limit";
            return Err(Error::new(ErrorKind::Full, what));
        }
        let mut claim = config.memory.claim_shared();
        claim.force(CLAIMED);
        let (observer, samples) = Observer::new(rate);
        let queue = SendQueue::with_memory_counter(config.high_water_mark, config.memory.queues().clone());
        let mut subscriber = ConnectedSubscriber::new(self.id(), NAME, queue, authorization);
        subscriber.observer = Some(observer);
        let subscriber = Arc::new(subscriber);
        let ended = inner.stop.child_token();
        let leaves = ended.clone().drop_guard();
        let (left, table, id) = (ended.clone(), inner.table.clone(), subscriber.id);
        // It is a task of the switch, and runs where the switch does: the runtime of whoever watches may end
        // first. It is there before there is a subscription that it ends.
        let leave = async move {
            left.cancelled().await;
            table.change(Change::SubscriberGone(id)).await;
        };
        inner.tasks.spawn_on(leave, &inner.runtime);
        inner.table.change(Change::Subscribe(subscriber.clone(), prefix)).await;
        self.synchronize().await;
        Ok(Observation { subscriber, samples, ended, _leaves: leaves, _claim: claim })
    }
}

#[cfg(test)]
#[path = "observer_tests.rs"]
mod tests;
