//! The status of one outgoing connection or channel while it runs: its state, the reason for it, and numbers.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use tokio::sync::watch;
use xmsg_core::Message;
use xmsg_zmq::lock::lock;

use crate::error::Error;
use crate::outbound::Stored;
use crate::spool::{DeadLetter, SpoolStatus};

/// The state of a link at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LinkState {
    /// Its definition says that it is not at work.
    Inactive,
    /// It is lazy, and has nothing to send: it connects when there is.
    Idle,
    /// It connects.
    Connecting,
    /// It is at work.
    Connected,
    /// The broker takes nothing for now, such as for want of memory; what is sent waits in the spool.
    Blocked,
    /// It has lost its peer, or could not reach it, and tries again after a pause.
    Disconnected,
    /// The peer is there and refuses: a wrong password, a missing exchange. It tries again after a pause, in
    /// case that somebody mends it.
    Faulted,
    /// It has ended.
    Ended,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inactive => "inactive",
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Blocked => "blocked",
            Self::Disconnected => "disconnected",
            Self::Faulted => "faulted",
            Self::Ended => "ended",
        })
    }
}

/// Something that went wrong, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Incident {
    /// When, in UTC.
    #[serde(serialize_with = "as_rfc3339")]
    pub at: SystemTime,
    /// What, in words.
    pub what: String,
}

fn as_rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    match Timestamp::try_from(*time) {
        Ok(time) => serializer.collect_str(&format_args!("{time:.3}")),
        Err(_) => serializer.serialize_none(),
    }
}

#[allow(clippy::ref_option, reason = "serde gives the field as it is")]
fn as_optional_rfc3339<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => as_rfc3339(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// How many incidents are remembered of one link. Older ones are in the log.
const INCIDENTS_MAX: usize = 10;
/// How many lines one link logs in [`LOG_WINDOW`]. The rest is counted.
const LINES_MAX: u32 = 10;
const LOG_WINDOW: Duration = Duration::from_secs(10);

/// What was counted since the link was started. What does not concern its kind stays 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Counts {
    /// Messages that were taken in: into the spool of an outgoing connection, or from the peer of a channel.
    pub accepted: u64,
    /// Messages that are where they belong: confirmed by the broker, written to the ZeroMQ peer, or taken by
    /// the target.
    pub delivered: u64,
    /// Times that a message was tried again: after a return or a negative confirmation, or since the target
    /// of a channel did not take it.
    pub repeated: u64,
    /// Messages that the broker returned, because no queue is bound for them; each time counts.
    pub returned: u64,
    /// Negative confirmations of the broker.
    pub refused_by_peer: u64,
    /// Messages that went to the dead letters, or that a channel rejected.
    pub dead: u64,
    /// Sends that were refused: the spool is full, or the link is not active.
    pub refused: u64,
    /// Messages that were lost on their way from the proxy to the spool: the proxy dropped them, because they
    /// were not taken in time, or the disk took nothing while the connection ended.
    pub lost_before: u64,
    /// Messages that a DEALER received, which nobody waits for.
    pub ignored: u64,
    /// Messages of a federation that were passed over, because they have been where they would go: those that
    /// were taken in and came back from the proxy, our own that came back from the broker, and those with a
    /// topic that is not taken in.
    pub passed_over: u64,
    /// Messages of a federation that the broker had for us once more, and that were recognized by their
    /// identifiers.
    pub duplicates: u64,
    /// Messages that waited because they are too large for all peers that have connected to a PUSH or DEALER,
    /// and messages that were not sent to a subscriber of a PUB because they are too large for it.
    pub too_large_for_peer: u64,
    /// Connections of subscribers of a PUB that were ended, since they did not take their messages while
    /// others waited.
    pub peers_ended: u64,
    /// Connections that were made.
    pub connections: u64,
}

macro_rules! counters {
    ($($name:ident),+ $(,)?) => {
        /// [`Counts`] that are being counted.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)+
        }

        impl Counters {
            pub(crate) fn read(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }
    };
}

counters!(
    accepted,
    delivered,
    repeated,
    returned,
    refused_by_peer,
    dead,
    refused,
    lost_before,
    ignored,
    passed_over,
    duplicates,
    too_large_for_peer,
    peers_ended,
    connections,
);

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// A limit of log lines: how many were logged lately, and how many were left out.
#[derive(Debug, Default)]
struct LogLimit {
    since: Option<Instant>,
    logged: u32,
    left_out: u64,
}

impl LogLimit {
    /// Returns how many lines were left out before this one, if it may be logged now.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= LOG_WINDOW) {
            (self.since, self.logged) = (Some(now), 0);
        }
        if self.logged == LINES_MAX {
            self.left_out += 1;
            return None;
        }
        self.logged += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// The status of one link, shared by its tasks and by those who read it.
#[derive(Debug)]
pub(crate) struct Status {
    /// The name of the link in the log, such as `outgoing "CRM1"`.
    label: Mutex<String>,
    state: watch::Sender<(LinkState, SystemTime)>,
    reason: Mutex<Option<Incident>>,
    incidents: Mutex<VecDeque<Incident>>,
    peer: Mutex<Option<String>>,
    log_limit: Mutex<LogLimit>,
    pub(crate) in_flight: AtomicU64,
    pub(crate) counters: Counters,
}

impl Status {
    pub(crate) fn new(label: String) -> Self {
        Self {
            label: Mutex::new(label),
            state: watch::Sender::new((LinkState::Inactive, SystemTime::now())),
            reason: Mutex::new(None),
            incidents: Mutex::new(VecDeque::new()),
            peer: Mutex::new(None),
            log_limit: Mutex::new(LogLimit::default()),
            in_flight: AtomicU64::new(0),
            counters: Counters::default(),
        }
    }

    pub(crate) fn label(&self) -> String {
        lock(&self.label).clone()
    }

    pub(crate) fn rename(&self, label: String) {
        *lock(&self.label) = label;
    }

    pub(crate) fn state(&self) -> LinkState {
        self.state.borrow().0
    }

    #[cfg(test)]
    pub(crate) fn watch(&self) -> watch::Receiver<(LinkState, SystemTime)> {
        self.state.subscribe()
    }

    /// Sets a state in which nothing is wrong. Nothing changes if it is the state already.
    pub(crate) fn set(&self, state: LinkState) {
        if matches!(state, LinkState::Connected | LinkState::Inactive | LinkState::Idle) {
            *lock(&self.reason) = None;
        }
        self.change(state);
    }

    /// Sets where the link is connected to.
    pub(crate) fn set_peer(&self, peer: Option<String>) {
        *lock(&self.peer) = peer;
    }

    /// Sets a state in which something is wrong, and why. Both are logged, as [`note`](Self::note) does it,
    /// when they are new.
    pub(crate) fn fail(&self, state: LinkState, what: String) {
        let is_new_reason =
            lock(&self.reason).as_ref().is_none_or(|reason| reason.what != what) || self.state() != state;
        if is_new_reason {
            self.log(&format!("{state}: {what}"));
        }
        let incident = self.remember(what);
        *lock(&self.reason) = Some(incident);
        self.change(state);
    }

    /// Notes that something went wrong that does not change the state. It is logged, unless there were many
    /// such lines just before. The next line says how many were left out.
    pub(crate) fn note(&self, what: String) {
        self.log(&what);
        self.remember(what);
    }

    fn log(&self, what: &str) {
        let Some(left_out) = lock(&self.log_limit).admit(Instant::now()) else { return };
        let label = self.label();
        if left_out == 0 {
            tracing::warn!("{label}: {what}");
        } else {
            tracing::warn!("{label}: {what} ({left_out} lines before this one were left out)");
        }
    }

    fn remember(&self, what: String) -> Incident {
        let incident = Incident { at: SystemTime::now(), what };
        let mut incidents = lock(&self.incidents);
        if incidents.back().is_some_and(|last| last.what == incident.what) {
            incidents.pop_back();
        }
        if incidents.len() == INCIDENTS_MAX {
            incidents.pop_front();
        }
        incidents.push_back(incident.clone());
        incident
    }

    fn change(&self, state: LinkState) {
        self.state.send_if_modified(|(current, since)| {
            let is_new = *current != state;
            if is_new {
                (*current, *since) = (state, SystemTime::now());
            }
            is_new
        });
    }

    pub(crate) fn report(&self) -> LinkReport {
        let (state, since) = *self.state.borrow();
        LinkReport {
            state,
            since,
            reason: lock(&self.reason).clone(),
            peer: lock(&self.peer).clone(),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            counts: self.counters.read(),
            incidents: lock(&self.incidents).iter().cloned().collect(),
        }
    }
}

/// What is known of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LinkReport {
    /// What it does.
    pub state: LinkState,
    /// Since when, in UTC.
    #[serde(serialize_with = "as_rfc3339")]
    pub since: SystemTime,
    /// Why, if something is wrong.
    pub reason: Option<Incident>,
    /// Where it is connected to.
    pub peer: Option<String>,
    /// Messages that are on their way to the peer and not confirmed yet.
    pub in_flight: u64,
    /// Numbers since it was started.
    pub counts: Counts,
    /// What went wrong last, oldest first.
    pub incidents: Vec<Incident>,
}

/// What is known of the spool of an outgoing connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SpoolReport {
    /// Messages that wait, or are on their way.
    pub entries: u64,
    /// Bytes that they are charged.
    pub bytes: u64,
    /// When the oldest was accepted, in UTC.
    #[serde(serialize_with = "as_optional_rfc3339")]
    pub oldest: Option<SystemTime>,
    /// Messages that wait for the disk, or for room.
    pub waiting: u64,
    /// Dead letters.
    pub dead_entries: u64,
    /// Bytes that they are charged.
    pub dead_bytes: u64,
    /// Dead letters that were dropped for want of room since it was opened.
    pub dead_dropped: u64,
    /// Messages that became dead letters because they were too old, since it was opened.
    pub expired: u64,
    /// Messages whose bytes on disk were found damaged, since it was opened. They are dead letters now.
    pub damaged: u64,
    /// Messages that could not be read from a damaged file, since it was opened.
    pub lost: u64,
    /// Messages that the disk did not take, since it was opened.
    pub failed: u64,
    /// Bytes that its file takes on the disk.
    pub file_bytes: u64,
    /// What the disk refused last.
    pub last_error: Option<String>,
}

impl SpoolReport {
    /// Makes the report of a spool. `failure` says why it can't be used at all, if it can't.
    pub(crate) fn of(status: &SpoolStatus, failure: Option<&Error>) -> Self {
        Self {
            entries: status.entries,
            bytes: status.bytes,
            oldest: status.oldest_accepted_at,
            waiting: status.waiting,
            dead_entries: status.dead_entries,
            dead_bytes: status.dead_bytes,
            dead_dropped: status.dead_dropped,
            expired: status.expired,
            damaged: status.damaged,
            lost: status.lost,
            failed: status.failed,
            file_bytes: status.file_bytes,
            last_error: failure
                .map(Error::with_causes)
                .or_else(|| status.last_error.as_ref().map(ToString::to_string)),
        }
    }
}

/// A message that was not delivered.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DeadMessage {
    /// Its place, by which it is revived or discarded.
    pub sequence: u64,
    /// When it was accepted, in UTC.
    #[serde(serialize_with = "as_rfc3339")]
    pub accepted_at: SystemTime,
    /// When it was given up, in UTC.
    #[serde(serialize_with = "as_rfc3339")]
    pub dead_since: SystemTime,
    /// Why, in words.
    pub reason: String,
    /// Its identifier; `None` if its bytes can't be read.
    pub id: Option<String>,
    /// Its topic, with U+FFFD for what is not UTF-8.
    pub topic: Option<String>,
    /// The mime type of its data.
    pub mime_type: Option<String>,
    /// Bytes of its data.
    pub size: u64,
    /// Headers of its metadata, and those that it was sent with: of one that came from a queue of dead
    /// letters, `x-death` tells what has become of it there, as JSON.
    pub headers: BTreeMap<String, String>,
    /// The message itself.
    #[serde(skip)]
    pub message: Option<Message>,
}

impl DeadMessage {
    pub(crate) fn of(letter: DeadLetter) -> Self {
        let stored = Stored::decode(letter.body.clone()).ok();
        let message = stored.as_ref().map(|stored| stored.outbound.message.clone());
        let mut headers = BTreeMap::new();
        if let Some(meta) = message.as_ref().and_then(|message| message.meta().ok()) {
            headers.extend(meta.headers.iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        let sent_with = stored.iter().flat_map(|stored| &stored.outbound.headers);
        headers.extend(sent_with.map(|(name, value)| (name.clone(), value.to_string())));
        Self {
            sequence: letter.sequence,
            accepted_at: letter.accepted_at,
            dead_since: letter.dead_since,
            reason: letter.reason,
            id: stored.map(|stored| stored.id.to_string()),
            topic: message
                .as_ref()
                .map(|message| String::from_utf8_lossy(message.topic().as_bytes()).into_owned()),
            mime_type: message.as_ref().and_then(|message| message.mime_type().ok().map(str::to_owned)),
            size: message.as_ref().map_or(letter.body.len(), |message| message.data().len()) as u64,
            headers,
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_bound_are_left_out_and_counted() {
        let (mut log_limit, start) = (LogLimit::default(), Instant::now());
        let admitted: Vec<_> = (0..25).map(|_| log_limit.admit(start)).collect();
        assert_eq!(admitted.iter().filter(|line| line.is_some()).count(), 10);
        assert_eq!(log_limit.admit(start + LOG_WINDOW), Some(15));
        assert_eq!(log_limit.admit(start + LOG_WINDOW), Some(0));
    }

    #[test]
    fn the_last_incidents_are_remembered_and_repeated_ones_once() {
        let status = Status::new("outgoing \"x\"".into());
        for number in [1, 2, 2, 2, 3] {
            status.note(format!("incident {number}"));
        }
        assert_eq!(status.report().incidents.len(), 3);
        for number in 0..20 {
            status.note(format!("incident {number}"));
        }
        let incidents = status.report().incidents;
        assert_eq!((incidents.len(), incidents[9].what.as_str()), (10, "incident 19"));
        status.fail(LinkState::Faulted, "no such exchange".into());
        assert_eq!(status.report().reason.unwrap().what, "no such exchange");
        status.set(LinkState::Connected);
        assert_eq!((status.state(), status.report().reason), (LinkState::Connected, None));
    }
}
