//! The task that owns the store: it answers queries at once, and applies a change once it is on the disk.
//!
//! While one batch of changes is being synced, the next batch collects, so that many clients share one sync.
//! A change takes effect only when it is on the disk: if it could not be written, no client ever sees it.
//! Everything that takes long is done in slices, so that other requests get their turn in between: queries
//! with long answers, changes that are on the disk, and changes of many registrations. While a change or a
//! query of a peer is in progress, later requests of the same peer wait, so that every peer gets its replies
//! in order and sees its own changes.
//!
//! | file | answers |
//! |---|---|
//! | `writing.rs` | Which changes are on their way to the disk, and what if it takes none? |
//! | `change.rs` | How is a change carried out bit by bit? |
//! | `slow.rs` | Which changes wait for a slow one? |
//! | `waiting.rs` | Which requests wait, and who is next? |
//! | `answering.rs` | How is a long answer built? |
//! | `browsing.rs` | Which registrations does the operator see? |
//! | `round_robin.rs` | Whose turn is it? |
//! | `compaction.rs` | When is a snapshot written, and what goes into it? |

// Longer than 500 lines: one loop with its state. Each kind of work is in a module beside it.

mod answering;
mod browsing;
mod change;
mod compaction;
mod round_robin;
mod slow;
mod waiting;
mod writing;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use xmsg_core::registration::{Action, Argument, OwnerType, Refusal, Reply, Request};
use xmsg_core::{Error, ErrorKind, Result};
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::link::source::Source;
use xmsg_zmq::link::throttle::Throttle;
use xmsg_zmq::memory_budget::MemoryBudget;
use xmsg_zmq::{EncodedFrames, Replier, ReturnPath, Violations};

use self::answering::Answering;
use self::browsing::Browsing;
pub(super) use self::browsing::Question;
pub use self::browsing::{Listed, Page, Query};
use self::change::{Change, records};
use self::compaction::{Compaction, SnapshotFeed};
use self::round_robin::RoundRobin;
use self::slow::PendingChanges;
use self::waiting::Pending;
use self::writing::{WriteFailure, Written, committed};
use super::journal::Journal;
use super::store::{Refused, Reserved, Search, Store};
use crate::security::{Authority, Rights};

/// The longest frame of a request, in bytes. It is so small that a reply is queued in one piece.
const DATA_MAX: usize = 4 << 10;
/// The most changes in the batch that waits for the disk. Further changes wait in their peers' queues.
const BATCH_REQUESTS: usize = 4096;
/// The largest size of the batch that waits for the disk, in bytes.
const BATCH_BYTES: usize = 4 << 20;
/// The longest reply, in bytes. A query with a longer answer is refused: the client has to narrow it down.
const REPLY_MAX: usize = 256 << 20;
/// The longest reply with its other frames and the addresses of devices on the way back, in bytes.
pub(super) const REPLY_SIZE: usize = REPLY_MAX + (64 << 10);
/// The largest number of frames of one reply. A registration takes a frame of at least a few bytes.
pub(super) const REPLY_FRAMES: usize = 1 << 24;
/// The most bytes of all replies that wait or are being built. Beyond it, long answers are refused.
const REPLIES_MAX: usize = 512 << 20;
/// The length from which an answer counts as long, in bytes.
const LONG_REPLY: usize = 1 << 20;
/// The length up to which an answer is always sent, in bytes.
const SHORT_REPLY: usize = 4 << 10;
/// A growing answer is compared with all waiting bytes whenever it has grown by this many bytes.
const RECOUNT: usize = 16 << 20;
/// The largest number of requests that are handled before other tasks get their turn.
const TURN: u32 = 64;
/// Topics and registrations that are looked at in one slice. This takes some tenths of a millisecond.
const SLICE: usize = 512;

/// The counters behind [`Counts`](super::Counts).
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) publishers: AtomicU64,
    pub(super) subscribers: AtomicU64,
    pub(super) memory: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) full: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) write_failures: AtomicU64,
    /// True while changes can't be written, and are therefore refused.
    pub(super) is_unwritable: AtomicBool,
    pub(super) violations: Violations,
}

/// What a request asks the service to do.
#[derive(Debug)]
enum Operation {
    /// The request can't be served, and this is the reply.
    Refuse(Reply),
    Change(Action, Change),
    Query(Request),
}

/// Changes that are waiting for the disk or are being written to it.
#[derive(Debug, Default)]
struct Batch {
    entries: Vec<u8>,
    changes: VecDeque<(ReturnPath, Action, Change)>,
    /// The position of the journal before the changes of this batch.
    position: u64,
}

#[derive(Debug)]
pub(super) struct Service {
    sender: Bytes,
    replier: Replier,
    /// Decides who may register.
    authority: Arc<Authority>,
    requires_principal: bool,
    store: Store,
    durable: bool,
    /// The journal, or `None` while the blocking thread writes to it.
    journal: Option<Journal>,
    gathering: Batch,
    writing: Option<(JoinHandle<Written>, Batch)>,
    /// Changes that are on the disk, but not applied to the store yet. No batch is written before they are.
    applying: Batch,
    /// Slow changes on the disk, and those that have to wait for them. The next batch does not wait.
    slow: PendingChanges,
    compaction: Option<Compaction>,
    feed: Option<SnapshotFeed>,
    write_failure: Option<WriteFailure>,
    write_log: Throttle,
    expiry_log: Throttle,
    answering: RoundRobin<Answering>,
    /// Questions of whoever runs the registrar, and those that are being answered.
    questions: mpsc::Receiver<Question>,
    browsing: VecDeque<Browsing>,
    /// Bytes of the answers being built. `queued_bytes` is the last count of bytes waiting to be written.
    answer_bytes: usize,
    queued_bytes: usize,
    memory: MemoryBudget,
    pending: HashMap<Bytes, Pending>,
    /// The number of requests that wait in `pending`. `waiting_bytes` is the memory that they take.
    waiting: usize,
    waiting_bytes: usize,
    /// Peers that continue with their waiting requests, one request per turn.
    resuming: VecDeque<Bytes>,
    /// Peers that continue with their waiting requests once there is room for changes.
    without_room: Vec<Bytes>,
    counters: Arc<Counters>,
    started: Instant,
    stop: CancellationToken,
    is_stopping: bool,
}

impl Service {
    pub(super) fn new(
        sender: Bytes,
        replier: Replier,
        store: Store,
        journal: Option<Journal>,
        counters: Arc<Counters>,
        stop: CancellationToken,
    ) -> Self {
        let service = Self {
            sender,
            replier,
            authority: Arc::default(),
            requires_principal: false,
            store,
            durable: journal.is_some(),
            journal,
            gathering: Batch::default(),
            writing: None,
            applying: Batch::default(),
            slow: PendingChanges::default(),
            compaction: None,
            feed: None,
            write_failure: None,
            write_log: Throttle::default(),
            expiry_log: Throttle::default(),
            answering: RoundRobin::default(),
            questions: mpsc::channel(1).1,
            browsing: VecDeque::new(),
            answer_bytes: 0,
            queued_bytes: 0,
            memory: MemoryBudget::default(),
            pending: HashMap::new(),
            waiting: 0,
            waiting_bytes: 0,
            resuming: VecDeque::new(),
            without_room: Vec::new(),
            counters,
            started: Instant::now(),
            stop,
            is_stopping: false,
        };
        // Registrations from the snapshot are counted from the start.
        service.count();
        service
    }

    /// Applies the rules of `authority`. `requires_principal` says whether all peers have authenticated.
    pub(super) fn with_authority(self, authority: Arc<Authority>, requires_principal: bool) -> Self {
        Self { authority, requires_principal, ..self }
    }

    /// Refuses long answers for which this budget has no room.
    pub(super) fn with_memory(self, memory: MemoryBudget) -> Self {
        Self { memory, ..self }
    }

    /// Answers these questions of whoever runs the registrar.
    pub(super) fn with_questions(self, questions: mpsc::Receiver<Question>) -> Self {
        Self { questions, ..self }
    }

    /// Runs until `stop` is cancelled, and writes all remaining changes before it returns.
    pub(super) async fn run(mut self) {
        // The token is cancelled however this task ends.
        let _ended = self.stop.clone().drop_guard();
        let mut turn = 0;
        loop {
            let expiry = self.store.next_expiry().map(|due| Deadline::since(self.started, due));
            let may_write =
                self.writing.is_none() && self.applying.changes.is_empty() && !self.waits_for_compaction();
            let retry =
                self.write_failure.as_ref().filter(|_| may_write).map(|write_failure| write_failure.retry);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                done = Compaction::done(self.compaction.as_mut()) => self.on_draft_done(done),
                done = committed(self.writing.as_mut()) => self.on_written(done),
                () = sleep_until(retry) => self.write(),
                request = self.replier.recv() => {
                    let Some((path, request)) = request else { break };
                    self.handle(path, &request);
                    turn += 1;
                    if turn < TURN {
                        continue;
                    }
                }
                Some(question) = self.questions.recv() => self.browsing.push_back(question.into()),
                () = sleep_until(expiry) => {}
                () = SnapshotFeed::room(self.feed.as_ref()), if !self.has_slices() => {}
                () = std::future::ready(()), if self.has_slices() => {}
            }
            // A slice of long work follows every turn of short requests, and then other tasks run.
            turn = 0;
            self.run_slices();
            tokio::task::yield_now().await;
        }
        self.is_stopping = true;
        loop {
            while !(self.applying.changes.is_empty() && self.slow.is_empty()) {
                self.apply_some();
            }
            if self.writing.is_none() {
                self.end_compaction().await;
            }
            if self.writing.is_none() {
                debug_assert!(self.gathering.changes.is_empty(), "each change has its answer");
                break;
            }
            let done = committed(self.writing.as_mut()).await;
            self.on_written(done);
        }
        self.give_up("the registrar is being stopped");
    }

    /// Returns whether there is work to do in slices.
    fn has_slices(&self) -> bool {
        !(self.answering.is_empty()
            && self.browsing.is_empty()
            && self.applying.changes.is_empty()
            && self.slow.is_empty()
            && !self.feed.as_ref().is_some_and(SnapshotFeed::has_room)
            && self.resuming.is_empty())
    }

    /// Does one slice of each kind of long work.
    fn run_slices(&mut self) {
        self.expire();
        self.apply_some();
        self.collect_some();
        self.resume_some();
        self.answer_slice();
        self.browse_slice();
    }

    fn expire(&mut self) {
        let now = self.started.elapsed();
        if self.store.next_expiry().is_none_or(|due| due > now) {
            return;
        }
        let expired = self.store.expire_some(now, SLICE);
        if let Some(unlogged) = self.expiry_log.pass("registrations that expired") {
            tracing::info!(expired, unlogged, "registrations were not renewed in time");
        }
        self.counters.expired.fetch_add(expired as u64, Ordering::Relaxed);
        self.count();
    }

    /// Decodes a request. The returned task keeps no frame that is longer than [`DATA_MAX`].
    fn read(&self, frames: &[Bytes], may_change: bool) -> Operation {
        let long = frames.iter().map(Bytes::len).max().unwrap_or_default() > DATA_MAX;
        if long && let [name, sender, _] = frames {
            // A frame that is too long is not decoded. The reply may still state the action.
            let short = [name.clone(), sender.slice(..sender.len().min(DATA_MAX)), Bytes::new()];
            let mut reply = match Request::read(&short, &self.sender) {
                Ok(request) => request.reply(&self.sender, Ok(Vec::new())),
                Err(reply) => reply,
            };
            let status = format!("the request is too long: no frame may have more than {DATA_MAX} bytes");
            reply.outcome = Err(Refusal(status));
            return Operation::Refuse(reply);
        }
        let request = match Request::read(frames, &self.sender) {
            Ok(request) => request,
            Err(reply) => return Operation::Refuse(reply),
        };
        if is_change(request.action) && !may_change {
            let status = "not allowed: you may ask, but not register or remove".to_owned();
            return Operation::Refuse(request.reply(&self.sender, Err(Refusal(status))));
        }
        match (request.action, request.argument) {
            (Action::Register(owner), Argument::Registration(registration)) => {
                Operation::Change(request.action, Change::Register(owner, registration, Reserved::default()))
            }
            (Action::Remove(owner), Argument::Registration(registration)) => {
                Operation::Change(request.action, Change::Remove(owner, registration))
            }
            (Action::RemoveAll, Argument::Host(host)) => {
                Operation::Change(request.action, Change::RemoveHost(host))
            }
            (action, argument) => {
                // A frame is part of a larger buffer, which a waiting request must not keep alive.
                let argument = match argument {
                    Argument::Unread(_) => Argument::Unread(Bytes::new()),
                    other => other,
                };
                Operation::Query(Request { action, sender: Bytes::new(), argument })
            }
        }
    }

    /// Returns what the peer of this path may do. Without security, these are the rights of peers without
    /// credentials. Returns `None` if the peer has disconnected or is no longer allowed to be connected.
    fn rights(&self, path: &ReturnPath) -> Option<Arc<Rights>> {
        let principal = self.replier.principal(path);
        if self.requires_principal && principal.is_none() {
            return None;
        }
        self.authority.rights(principal.as_ref())
    }

    fn start(&mut self, path: ReturnPath, task: Operation) {
        match task {
            Operation::Refuse(reply) => self.answer(&path, reply),
            Operation::Change(action, change) => self.change(path, action, change),
            Operation::Query(request) => self.query(path, &request),
        }
    }

    fn refuse(&self, path: &ReturnPath, task: Operation, status: &str) {
        let reply = match task {
            Operation::Refuse(reply) => reply,
            Operation::Change(action, _) | Operation::Query(Request { action, .. }) => {
                self.reply(action, Err(status.to_owned()))
            }
        };
        self.answer(path, reply);
    }

    fn reply(&self, action: Action, outcome: Result<Vec<Bytes>, String>) -> Reply {
        let outcome = outcome.map_err(Refusal);
        Reply { action: Bytes::from_static(action.name().as_bytes()), sender: self.sender.clone(), outcome }
    }

    fn change(&mut self, path: ReturnPath, action: Action, mut change: Change) {
        let now = self.started.elapsed();
        let is_first = self.pending.get(path.peer()).is_none_or(|pending| pending.changes == 0);
        let done = match &change {
            // A change that may take long is done in slices, and changes behind it wait.
            Change::RemoveHost(_) if !self.durable => None,
            change
                if !self.durable
                    && self.applying.changes.is_empty()
                    && !self.slow.precedes(&path, change) =>
            {
                Some(change.apply(&mut self.store, now))
            }
            _ if !self.durable => None,
            // There is nothing to remove, not even an expired registration that is still in the files.
            change if !self.store.has_ttl() && self.is_at_rest() && change.removes_nothing(&self.store) => {
                Some(change.apply(&mut self.store, now))
            }
            // A registration on the disk is only renewed, unless the peer's earlier changes are in progress.
            Change::Register(owner, registration, _) if is_first => {
                match self.store.renew(*owner, registration, now) {
                    Ok(false) => None,
                    renewed => Some(renewed.map(drop)),
                }
            }
            _ => None,
        };
        let refused = match (done, &self.write_failure) {
            (Some(outcome), _) => return self.answer_change(&path, action, outcome),
            (None, Some(write_failure)) => Some(write_failure.status.clone()),
            (None, None) => match change.check(&mut self.store) {
                Ok(()) => None,
                Err(refused) => return self.answer_change(&path, action, Err(refused)),
            },
        };
        if let Some(status) = refused {
            return self.answer(&path, self.reply(action, Err(status)));
        }
        self.pending.entry(path.peer().clone()).or_default().changes += 1;
        if !self.durable {
            self.applying.changes.push_back((path, action, change));
            return;
        }
        // It is written even if nothing matches: an expired registration is still in the files.
        change.entry().write(&mut self.gathering.entries);
        self.gathering.changes.push_back((path, action, change));
        self.write();
    }

    /// Returns whether no change is in progress and the files contain exactly what is in the store.
    fn is_at_rest(&self) -> bool {
        self.writing.is_none()
            && self.write_failure.is_none()
            && self.journal.as_ref().is_some_and(|journal| !journal.is_broken())
            && self.gathering.changes.is_empty()
            && self.applying.changes.is_empty()
            && self.slow.is_empty()
    }

    /// Answers a change with its outcome.
    fn answer_change(&mut self, path: &ReturnPath, action: Action, outcome: Result<(), Refused>) {
        if let Err(Refused::Full(_) | Refused::Memory(_)) = outcome {
            self.counters.full.fetch_add(1, Ordering::Relaxed);
        }
        self.count();
        let outcome = outcome.map(|()| Vec::new()).map_err(|refused| refused.to_string());
        self.answer(path, self.reply(action, outcome));
    }

    fn query(&mut self, path: ReturnPath, request: &Request) {
        let action = request.action;
        let mut search = match self.search(request) {
            Ok(search) => search,
            Err(status) => return self.answer(&path, self.reply(action, Err(status))),
        };
        let mut frames = Vec::new();
        let is_whole = self.store.advance(&mut search, SLICE, |frame| frames.push(frame.clone()));
        let reply = self.reply(action, Ok(frames));
        if is_whole {
            return self.answer(&path, reply);
        }
        let mut frames = EncodedFrames::default();
        reply.into_frames().into_iter().for_each(|frame| frames.push(frame));
        self.answer_bytes += frames.encoded_len();
        self.pending.entry(path.peer().clone()).or_default().is_answering = true;
        // A peer that disconnected meanwhile is detected with the next slice.
        let source = self.replier.source(&path).unwrap_or_else(|| Source::of(""));
        self.answering.push(source, Answering { path, action, search, reply: frames, recount: LONG_REPLY });
    }

    fn search(&self, request: &Request) -> Result<Search, String> {
        let say = |refused: Refused| refused.to_string();
        match (request.action, &request.argument) {
            (Action::Find(owner), Argument::Registration(query)) => {
                self.store.search_find(owner, query).map_err(say)
            }
            (Action::Exact(owner), Argument::Registration(query)) => {
                self.store.search_exact(owner, query).map_err(say)
            }
            (Action::Filter(owner), Argument::Registration(query)) => {
                Ok(self.store.search_filter(owner, query))
            }
            (Action::All(owner), _) => {
                let bytes = self.store.frame_bytes(owner) + 9 * self.store.count(owner);
                if bytes > REPLY_MAX {
                    return Err(too_long(self.store.count(owner), bytes));
                }
                Ok(self.store.search_all(owner))
            }
            // `Request::read` gives every action the matching kind of argument.
            _ => Err("the request does not fit its action".to_owned()),
        }
    }

    fn answer(&self, path: &ReturnPath, reply: Reply) {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        if let Err(status) = &reply.outcome {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(action = %reply.action.escape_ascii(), %status, "refused");
        }
        let action = Action::from_name(&reply.action);
        let found = reply.outcome.as_ref().map_or(0, Vec::len);
        let sent = self.replier.try_reply(path, reply.into_frames());
        self.on_sent(path, action, found, sent);
    }

    fn on_sent(&self, path: &ReturnPath, action: Option<Action>, found: usize, mut sent: Result<()>) {
        if let Err(error) = &sent
            && error.kind() == ErrorKind::TooLarge
            && let Some(action) = action
        {
            // The client must not wait in vain.
            let outcome = Err(format!("too many: {found} registrations, and {error}; ask for less"));
            sent = self.replier.try_reply(path, self.reply(action, outcome).into_frames());
        }
        if let Err(error) = sent {
            tracing::debug!(%error, "a reply was not sent");
        }
    }

    /// Applies some of the changes on the disk: first slow ones, then others. Then writes the next batch.
    fn apply_some(&mut self) {
        let (now, mut work) = (self.started.elapsed(), SLICE / 2);
        while work > 0
            && let Some(((path, action, change), position)) = self.slow.pop()
        {
            match change.apply_some(&mut self.store, now, &mut work) {
                None => {
                    self.slow.put_back((path, action, change), position);
                    self.count();
                }
                Some(outcome) => self.on_applied(&path, action, outcome),
            }
        }
        work += SLICE / 2;
        while work > 0
            && let Some((path, action, change)) = self.applying.changes.pop_front()
        {
            if change.takes_long() || self.slow.precedes(&path, &change) {
                self.slow.push((path, action, change), self.applying.position);
                continue;
            }
            if let Some(outcome) = change.apply_some(&mut self.store, now, &mut work) {
                self.on_applied(&path, action, outcome);
            }
        }
        if !self.applying.changes.is_empty() {
            return;
        }
        if self.write_failure.is_none() {
            self.write();
        }
        self.make_room();
    }

    fn on_applied(&mut self, path: &ReturnPath, action: Action, outcome: Result<(), Refused>) {
        self.answer_change(path, action, outcome);
        self.change_is_done(path.peer());
    }

    fn change_is_done(&mut self, peer: &Bytes) {
        let Some(pending) = self.pending.get_mut(peer) else { return };
        pending.changes -= 1;
        if pending.changes == 0 {
            self.resume(peer);
        }
    }

    fn count(&self) {
        for (counter, owner) in [
            (&self.counters.publishers, OwnerType::Publisher),
            (&self.counters.subscribers, OwnerType::Subscriber),
        ] {
            counter.store(self.store.count(owner) as u64, Ordering::Relaxed);
        }
        self.counters.memory.store(self.store.memory() as u64, Ordering::Relaxed);
    }

    /// Returns the reply to a request at once, without a peer.
    pub(super) fn reply_to(&mut self, frames: &[Bytes]) -> Reply {
        match self.read(frames, true) {
            Operation::Refuse(reply) => reply,
            Operation::Change(action, change) => {
                let outcome = change.apply(&mut self.store, self.started.elapsed());
                self.reply(action, outcome.map(|()| Vec::new()).map_err(|refused| refused.to_string()))
            }
            Operation::Query(request) => {
                let mut frames = Vec::new();
                let found = self.search(&request).map(|mut search| {
                    while !self.store.advance(&mut search, 1, |frame| frames.push(frame.clone())) {}
                    frames
                });
                self.reply(request.action, found)
            }
        }
    }
}

fn too_long(count: usize, bytes: usize) -> String {
    format!(
        "too many: {count} registrations with {bytes} bytes, and a reply may have {REPLY_MAX}; ask for less"
    )
}

fn is_change(action: Action) -> bool {
    matches!(action, Action::Register(_) | Action::Remove(_) | Action::RemoveAll)
}

/// Writes a snapshot of the store.
pub(super) async fn compact(mut journal: Journal, store: &Store) -> Result<Journal> {
    let records = records(store);
    let work = tokio::task::spawn_blocking(move || journal.compact(&records, &mut []).map(|()| journal));
    work.await
        .map_err(|error| Error::new(ErrorKind::Io, "the snapshot was not written").with_source(error))?
}

async fn sleep_until(time: Option<Deadline>) {
    match time {
        Some(time) => time.passed().await,
        None => std::future::pending::<()>().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_change() {
        for owner in OwnerType::ALL {
            assert!(is_change(Action::Register(owner)) && is_change(Action::Remove(owner)));
            assert!(!is_change(Action::Find(owner)) && !is_change(Action::All(owner)));
        }
        assert!(is_change(Action::RemoveAll));
    }
}
