//! The task that owns the store: takes requests, answers questions at once and changes when they are on the disk.
//!
//! While one batch of changes is being synced, the next one gathers: many clients share one sync. A question of a peer
//! whose change is still under way waits with it, so that every peer gets its replies in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use xmsg_core::deadline::Deadline;
use xmsg_core::registration::{Action, Argument, OwnerType, Reply, Request};
use xmsg_core::socket::{Multipart, Replier, ReturnPath, Violations};
use xmsg_core::{Error, ErrorKind, Result};

use super::journal::{Entry, Journal};
use super::store::{Refused, Store};
use crate::security::Authority;

/// Bytes of a frame of a request that are looked at; more is refused. Small enough for a reply to be queued in one piece.
const DATA_MAX: usize = 4 << 10;
/// Changes that wait for the disk together. At this mark no more requests are taken until the batch before is done.
const BATCH_REQUESTS: usize = 4096;
/// The same in bytes.
const BATCH_BYTES: usize = 4 << 20;
/// Bytes of one reply. A question with a longer answer is refused: it is to be narrowed down.
const REPLY_MAX: usize = 256 << 20;
/// … with its other frames, and the addresses of devices on the way back.
pub(super) const REPLY_SIZE: usize = REPLY_MAX + (64 << 10);
/// Frames of one reply: those of a registration in one of them are a few bytes at least.
pub(super) const REPLY_FRAMES: usize = 1 << 24;
/// Bytes of replies that wait to be written, of all peers. Above it, long answers are refused.
const REPLIES_MAX: u64 = 512 << 20;
/// From so many bytes on an answer counts as long.
const LONG_REPLY: usize = 1 << 20;
/// Requests that are handled before other tasks get their turn.
const TURN: u32 = 64;

/// See [`Counts`](super::Counts).
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) publishers: AtomicU64,
    pub(super) subscribers: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) violations: Violations,
}

/// What a request has done to the store.
#[derive(Debug)]
pub(super) enum Effect {
    /// It only asked.
    None,
    /// What it wanted is so already, although perhaps not yet on the disk.
    Known,
    /// This has to be on the disk before the reply is sent.
    Changed(Entry),
}

/// Changes on their way to the disk, and what is said when they are there.
#[derive(Debug, Default)]
struct Batch {
    entries: Vec<u8>,
    replies: Vec<(ReturnPath, Reply)>,
}

type Commit = JoinHandle<(Journal, Result<()>)>;

#[derive(Debug)]
pub(super) struct Service {
    sender: Bytes,
    replier: Replier,
    /// Who may register; and whether all peers have proved who they are.
    authority: Arc<Authority>,
    named: bool,
    store: Store,
    durable: bool,
    /// `None` while it is with the blocking thread that writes.
    journal: Option<Journal>,
    gathering: Batch,
    writing: Option<(Commit, Batch)>,
    /// Replies of each peer that wait in a batch.
    waiting: HashMap<Bytes, usize>,
    counters: Arc<Counters>,
    started: Instant,
    stop: CancellationToken,
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
            named: false,
            store,
            durable: journal.is_some(),
            journal,
            gathering: Batch::default(),
            writing: None,
            waiting: HashMap::new(),
            counters,
            started: Instant::now(),
            stop,
        };
        // What was read from the snapshot counts from the start.
        service.count();
        service
    }

    /// Lets only those change something who may.
    pub(super) fn with_authority(self, authority: Arc<Authority>, named: bool) -> Self {
        Self { authority, named, ..self }
    }

    /// Works until it is told to stop, and ends with nothing left to write.
    pub(super) async fn run(mut self) {
        // However it ends, the token says so.
        let _ended = self.stop.clone().drop_guard();
        let mut turn = 0;
        loop {
            let room =
                self.gathering.replies.len() < BATCH_REQUESTS && self.gathering.entries.len() < BATCH_BYTES;
            let expiry = self.store.next_expiry().map(|due| Deadline::since(self.started, due));
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                done = committed(self.writing.as_mut()) => self.written(done),
                () = at(expiry) => {
                    let expired = self.store.expire(self.started.elapsed());
                    tracing::info!(expired, "registrations were not renewed in time");
                    self.counters.expired.fetch_add(expired as u64, Ordering::Relaxed);
                    self.count();
                }
                request = self.replier.recv(), if room => {
                    let Some((path, request)) = request else { break };
                    self.handle(path, &request);
                    turn += 1;
                    if turn >= TURN {
                        turn = 0;
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
        while self.writing.is_some() {
            let done = committed(self.writing.as_mut()).await;
            self.written(done);
        }
    }

    fn handle(&mut self, path: ReturnPath, frames: &Multipart) {
        let (reply, effect) = self.reply_to(frames.frames(), self.may_register(&path));
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        if let Err(status) = &reply.outcome {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(action = %reply.action.escape_ascii(), status, "refused");
        }
        let waits = match &effect {
            Effect::None => self.waiting.contains_key(path.peer()),
            Effect::Known => self.journal.as_ref().is_none_or(Journal::wants_compaction),
            Effect::Changed(_) => true,
        };
        if !matches!(effect, Effect::None) {
            self.count();
        }
        if !self.durable || !waits {
            self.send(&path, reply);
            return;
        }
        if let Effect::Changed(entry) = effect {
            entry.write(&mut self.gathering.entries);
        }
        *self.waiting.entry(path.peer().clone()).or_default() += 1;
        self.gathering.replies.push((path, reply));
        self.write();
    }

    /// The reply, and what is to be written before it is sent.
    pub(super) fn reply_to(&mut self, frames: &[Bytes], may_change: bool) -> (Reply, Effect) {
        let long = frames.iter().map(Bytes::len).max().unwrap_or_default() > DATA_MAX;
        if long && let [name, sender, _] = frames {
            // What is known to be too long is not read; the action may still be told.
            let short = [name.clone(), sender.slice(..sender.len().min(DATA_MAX)), Bytes::new()];
            let mut reply = match Request::read(&short, &self.sender) {
                Ok(request) => request.reply(&self.sender, Ok(Vec::new())),
                Err(reply) => reply,
            };
            reply.outcome =
                Err(format!("the request is too long: no frame may have more than {DATA_MAX} bytes"));
            return (reply, Effect::None);
        }
        let request = match Request::read(frames, &self.sender) {
            Ok(request) => request,
            Err(reply) => return (reply, Effect::None),
        };
        if changes(request.action) && !may_change {
            let outcome = Err("not allowed: you may ask, but not register or remove".to_owned());
            return (request.reply(&self.sender, outcome), Effect::None);
        }
        let mut effect = Effect::None;
        let outcome = self.carry_out(&request, &mut effect);
        (request.reply(&self.sender, outcome), effect)
    }

    /// Without security everybody may, as the rules say for those without credentials.
    fn may_register(&self, path: &ReturnPath) -> bool {
        let principal = self.replier.principal(path);
        // Who has gone meanwhile is nobody any more.
        if self.named && principal.is_none() {
            return false;
        }
        self.authority.rights(principal.as_ref()).is_some_and(|rights| rights.register)
    }

    fn carry_out(&mut self, request: &Request, effect: &mut Effect) -> Result<Vec<Bytes>, String> {
        let say = |refused: Refused| refused.to_string();
        match (request.action, &request.argument) {
            (Action::Register(owner), Argument::Registration(registration)) => {
                let new = self.store.register(owner, registration, self.started.elapsed()).map_err(say)?;
                *effect = if new {
                    Effect::Changed(Entry::Register(owner, registration.encode()))
                } else {
                    Effect::Known
                };
                Ok(Vec::new())
            }
            (Action::Remove(owner), Argument::Registration(registration)) => {
                self.store.remove(owner, registration).map_err(say)?;
                // Even if there was nothing to remove: what has expired is still in the files.
                *effect = Effect::Changed(Entry::Remove(owner, registration.encode()));
                Ok(Vec::new())
            }
            (Action::RemoveAll, Argument::Host(host)) => {
                self.store.remove_host(host);
                *effect = Effect::Changed(Entry::RemoveHost(host.clone().into()));
                Ok(Vec::new())
            }
            (Action::Find(owner), Argument::Registration(asked)) => {
                self.fitting(self.store.find(owner, asked).map_err(say)?)
            }
            (Action::Exact(owner), Argument::Registration(asked)) => {
                self.fitting(self.store.exact(owner, asked).map_err(say)?)
            }
            (Action::Filter(owner), Argument::Registration(asked)) => {
                self.fitting(self.store.filter(owner, asked))
            }
            (Action::All(owner), _) => self.fitting(self.store.all(owner)),
            // `Request::read` gives every action its kind of argument.
            _ => Err("the request does not fit its action".to_owned()),
        }
    }

    /// The answer, unless there is no room for it.
    fn fitting(&self, frames: Vec<Bytes>) -> Result<Vec<Bytes>, String> {
        let bytes: usize = frames.iter().map(|frame| frame.len() + 9).sum();
        if bytes > REPLY_MAX {
            return Err(format!(
                "too many: {} registrations with {bytes} bytes, and a reply may have {REPLY_MAX}; ask for less",
                frames.len()
            ));
        }
        if bytes > LONG_REPLY && self.replier.queued_bytes() + bytes as u64 > REPLIES_MAX {
            return Err("too many long replies are still being sent: ask again later".to_owned());
        }
        Ok(frames)
    }

    fn send(&self, path: &ReturnPath, reply: Reply) {
        let (action, sender) = (reply.action.clone(), reply.sender.clone());
        let found = reply.outcome.as_ref().map_or(0, Vec::len);
        let mut sent = self.replier.try_reply(path, reply.into_frames());
        if let Err(error) = &sent
            && error.kind() == ErrorKind::TooLarge
        {
            // Whoever asked is not to wait in vain.
            let outcome = Err(format!("too many: {found} registrations, and {error}; ask for less"));
            sent = self.replier.try_reply(path, Reply { action, sender, outcome }.into_frames());
        }
        if let Err(error) = sent {
            tracing::debug!(%error, "a reply was not sent");
        }
    }

    /// Hands the batch to the disk, unless the one before is still there.
    fn write(&mut self) {
        if self.gathering.replies.is_empty() {
            return;
        }
        let Some(mut journal) = self.journal.take() else { return };
        let mut batch = std::mem::take(&mut self.gathering);
        let entries = std::mem::take(&mut batch.entries);
        let commit = if journal.wants_compaction() {
            // What is in the store is written as a whole, the batch included.
            let records = records(&self.store);
            tokio::task::spawn_blocking(move || {
                let result = journal.compact(&records);
                (journal, result)
            })
        } else {
            tokio::task::spawn_blocking(move || {
                let result = if entries.is_empty() { Ok(()) } else { journal.append(&entries) };
                (journal, result)
            })
        };
        self.writing = Some((commit, batch));
    }

    /// Sends the replies of a batch that is on the disk, or could not be put there.
    fn written(&mut self, done: Result<(Journal, Result<()>), tokio::task::JoinError>) {
        let Some((_, batch)) = self.writing.take() else { return };
        let result = done
            .map_err(|error| Error::new(ErrorKind::Io, "the journal was lost").with_source(error))
            .and_then(|(journal, result)| {
                self.journal = Some(journal);
                result
            });
        let failure = result.err().map(|error| {
            tracing::error!(?error, "changes are not on the disk");
            format!("not stored: {error}")
        });
        for (path, mut reply) in batch.replies {
            if let Some(count) = self.waiting.get_mut(path.peer()) {
                *count -= 1;
                if *count == 0 {
                    self.waiting.remove(path.peer());
                }
            }
            let is_change = Action::from_name(&reply.action).is_some_and(changes);
            if let (Some(failure), true, Ok(_)) = (&failure, is_change, &reply.outcome) {
                reply.outcome = Err(failure.clone());
            }
            self.send(&path, reply);
        }
        if self.journal.is_none() {
            // Nothing can be stored any more: what waits is told so, and so is what comes.
            let lost = std::mem::take(&mut self.gathering);
            self.stop.cancel();
            tracing::error!(unanswered = lost.replies.len(), "the registrar ends: it has lost its journal");
            return;
        }
        self.write();
    }

    fn count(&self) {
        for (counter, owner) in [
            (&self.counters.publishers, OwnerType::Publisher),
            (&self.counters.subscribers, OwnerType::Subscriber),
        ] {
            counter.store(self.store.count(owner) as u64, Ordering::Relaxed);
        }
    }
}

fn changes(action: Action) -> bool {
    matches!(action, Action::Register(_) | Action::Remove(_) | Action::RemoveAll)
}

fn records(store: &Store) -> Vec<(OwnerType, Vec<Bytes>)> {
    OwnerType::ALL.into_iter().map(|owner| (owner, store.all(owner))).collect()
}

/// Writes a snapshot of the store.
pub(super) async fn compact(mut journal: Journal, store: &Store) -> Result<Journal> {
    let records = records(store);
    let work = tokio::task::spawn_blocking(move || journal.compact(&records).map(|()| journal));
    work.await
        .map_err(|error| Error::new(ErrorKind::Io, "the snapshot was not written").with_source(error))?
}

/// The end of the commit that is under way; never, if there is none.
async fn committed(
    writing: Option<&mut (Commit, Batch)>,
) -> Result<(Journal, Result<()>), tokio::task::JoinError> {
    match writing {
        Some((commit, _)) => commit.await,
        None => std::future::pending().await,
    }
}

async fn at(time: Option<Deadline>) {
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
            assert!(changes(Action::Register(owner)) && changes(Action::Remove(owner)));
            assert!(!changes(Action::Find(owner)) && !changes(Action::All(owner)));
        }
        assert!(changes(Action::RemoveAll));
    }
}
