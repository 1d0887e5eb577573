//! What handles ask of the thread of a spool, until it comes to it.
//!
//! Everything here is bounded: see the constants. The lock is held for moments only, never while something is
//! written or awaited.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::change::ChangeCall;
use super::record::{Entry, cost_of_body};
use super::{Fsync, OnFull, SpoolError, SpoolErrorKind, SpoolOptions, SpoolStatus};
use xmsg_zmq::lock::lock;

/// Entries whose appends may wait, for the disk or for room. One more fails with [`SpoolErrorKind::Full`].
pub const APPENDS_WAITING_MAX: usize = 65_536;
/// Bytes that these may have together: of each its body and the overhead. An append always finds a place when
/// no other one waits.
pub const APPENDS_WAITING_MAX_BYTES: u64 = 64 << 20;
/// Entries that may be confirmed without their removal being on disk. [`Spool::remove`](super::Spool::remove)
/// waits for less.
pub const REMOVALS_WAITING_MAX: usize = 65_536;
/// Calls of [`Spool::next_after`](super::Spool::next_after) that may wait for entries. Others wait for their
/// turn.
pub const READS_WAITING_MAX: usize = 16;
/// Calls about dead letters, and others that are rare, at a time. Others wait for their turn.
pub const CHANGES_WAITING_MAX: usize = 64;
/// Entries that are written together, and bytes of them.
pub const GROUP_MAX: usize = 1024;
/// Bytes of entries that are written together, unless the first one alone has more.
pub const GROUP_MAX_BYTES: u64 = 4 << 20;

/// How long removals wait for something else to be written with.
const REMOVALS_LINGER: Duration = Duration::from_millis(20);
/// How long a group waits for those who were in the last one: they come back as soon as they are told that it
/// is written.
const GATHER: Duration = Duration::from_millis(1);

pub(super) type Reply<T> = oneshot::Sender<Result<T, SpoolError>>;

/// What handles and the thread share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The directory.
    pub dir: PathBuf,
    work: Mutex<Work>,
    wake: Condvar,
    pub removals: Arc<Semaphore>,
    pub reads: Arc<Semaphore>,
    pub changes: Arc<Semaphore>,
    /// `true` once the thread has ended and the directory is free.
    pub ended: watch::Sender<bool>,
}

#[derive(Debug)]
struct Work {
    /// By the order of the calls.
    appends: BTreeMap<u64, Append>,
    /// What they are charged together.
    appends_cost: u64,
    /// How many entries they are together.
    appends_entries: usize,
    /// A group that is being gathered is written then at the latest.
    gather_until: Option<Instant>,
    next_ticket: u64,
    removals: Vec<Removal>,
    removals_due: Option<Instant>,
    reads: VecDeque<Read>,
    changes: VecDeque<ChangeCall>,
    options: SpoolOptions,
    has_new_options: bool,
    is_closing: bool,
    status: SpoolStatus,
    /// The thread sleeps until so many entries wait, so that each of a group does not wake it.
    wanted: usize,
}

/// An append that waits: of one entry or several, which are written together.
#[derive(Debug)]
pub(super) struct Append {
    pub bodies: Vec<Bytes>,
    /// Told the sequence of the first one. The others follow.
    pub reply: Reply<u64>,
}

impl Append {
    pub(super) fn cost(&self) -> u64 {
        self.bodies.iter().map(|body| cost_of_body(body.len())).sum()
    }
}

/// Entries that were delivered.
#[derive(Debug)]
pub(super) struct Removal {
    pub sequences: Vec<u64>,
    pub room: OwnedSemaphorePermit,
}

/// Somebody who wants entries.
#[derive(Debug)]
pub(super) struct Read {
    pub after: u64,
    pub max_entries: usize,
    pub max_bytes: usize,
    pub reply: Reply<Vec<Entry>>,
    /// Given back by being dropped.
    pub _turn: OwnedSemaphorePermit,
}

/// What the thread does next.
#[derive(Debug)]
pub(super) struct Job {
    /// A group, in order, that fits into the spool.
    pub appends: Vec<Append>,
    /// Appends that cannot be accepted any more, with why.
    pub refused: Vec<(Append, SpoolError)>,
    pub removals: Vec<Removal>,
    /// How long these removals may wait for something to be written with.
    pub removals_due: Option<Instant>,
    pub reads: VecDeque<Read>,
    pub changes: VecDeque<ChangeCall>,
    pub options: SpoolOptions,
    /// An append waits for room, so that removals should not linger.
    pub is_blocked: bool,
    /// No call can come any more, and none waits.
    pub is_last: bool,
}

/// What the thread knows and the queue has to know when it waits for work.
#[derive(Debug, Default)]
pub(super) struct Wait {
    /// The thread has something to do at this moment, in any case.
    pub until: Option<Instant>,
    /// The thread has removals that are not on disk.
    pub has_removals: bool,
    /// Entries of the group before.
    pub last_group: usize,
}

impl Shared {
    pub(super) fn new(dir: PathBuf, options: SpoolOptions, status: SpoolStatus) -> Self {
        Self {
            dir,
            work: Mutex::new(Work {
                appends: BTreeMap::new(),
                appends_cost: 0,
                appends_entries: 0,
                gather_until: None,
                next_ticket: 0,
                removals: Vec::new(),
                removals_due: None,
                reads: VecDeque::new(),
                changes: VecDeque::new(),
                options,
                has_new_options: false,
                is_closing: false,
                status,
                wanted: 1,
            }),
            wake: Condvar::new(),
            removals: Arc::new(Semaphore::new(REMOVALS_WAITING_MAX)),
            reads: Arc::new(Semaphore::new(READS_WAITING_MAX)),
            changes: Arc::new(Semaphore::new(CHANGES_WAITING_MAX)),
            ended: watch::Sender::new(false),
        }
    }

    /// Puts an append into the line, and returns its place there.
    pub(super) fn append(&self, append: Append) -> Result<u64, SpoolError> {
        let (cost, entries) = (append.cost(), append.bodies.len());
        let mut work = self.lock();
        work.check_open(self)?;
        if let Some(error) = work.refusal(self, &append, work.appends_cost) {
            work.status.refused += entries as u64;
            return Err(error);
        }
        let is_crowded = work.appends_entries + entries > APPENDS_WAITING_MAX
            || work.appends_cost + cost > APPENDS_WAITING_MAX_BYTES;
        if is_crowded && !work.appends.is_empty() {
            work.status.refused += entries as u64;
            return Err(SpoolError::new(
                SpoolErrorKind::Full,
                format!(
                    "{} entries wait already to be appended to the spool {}",
                    work.appends_entries,
                    self.dir.display()
                ),
            ));
        }
        let ticket = work.next_ticket;
        work.next_ticket += 1;
        work.appends_cost += cost;
        work.appends_entries += entries;
        work.appends.insert(ticket, append);
        let is_wanted = work.appends_entries >= work.wanted;
        drop(work);
        if is_wanted {
            self.wake.notify_one();
        }
        Ok(ticket)
    }

    /// Takes an append out of the line, if it is still there.
    pub(super) fn leave(&self, ticket: u64) {
        let mut work = self.lock();
        let left = work.take_append(ticket);
        drop(work);
        if left.is_some() {
            // Whoever is first now may find room where this one did not.
            self.wake.notify_one();
        }
    }

    pub(super) fn remove(&self, removal: Removal) -> Result<(), SpoolError> {
        let mut work = self.lock();
        work.check_open(self)?;
        work.status.unsynced_removals += removal.sequences.len() as u64;
        let is_first = work.removals.is_empty();
        work.removals.push(removal);
        if is_first {
            work.removals_due = Some(Instant::now() + REMOVALS_LINGER);
            drop(work);
            self.wake.notify_one();
        }
        Ok(())
    }

    pub(super) fn read(&self, read: Read) -> Result<(), SpoolError> {
        let mut work = self.lock();
        work.check_open(self)?;
        work.reads.push_back(read);
        drop(work);
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn change(&self, call: ChangeCall) -> Result<(), SpoolError> {
        let mut work = self.lock();
        work.check_open(self)?;
        work.changes.push_back(call);
        drop(work);
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn set_options(&self, options: SpoolOptions) {
        let mut work = self.lock();
        work.options = options;
        work.has_new_options = true;
        drop(work);
        self.wake.notify_one();
    }

    pub(super) fn options(&self) -> SpoolOptions {
        self.lock().options.clone()
    }

    pub(super) fn close(&self) {
        self.lock().is_closing = true;
        self.wake.notify_one();
    }

    pub(super) fn status(&self) -> SpoolStatus {
        let work = self.lock();
        SpoolStatus { waiting: work.appends_entries as u64, ..work.status.clone() }
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut SpoolStatus)) {
        change(&mut self.lock().status);
    }

    /// Waits for something to do. To be called by the thread of the spool only.
    pub(super) fn next_job(&self, wait: &Wait) -> Job {
        let mut work = self.lock();
        loop {
            let now = Instant::now();
            let is_due = |moment: Option<Instant>| moment.is_some_and(|moment| moment <= now);
            let first = work.first_append(self);
            let has_removals = wait.has_removals || !work.removals.is_empty();
            let mut until = [wait.until, work.removals_due].into_iter().flatten().min();
            work.wanted = 1;
            let mut is_gathered = false;
            if first == First::Fits {
                work.wanted = wait.last_group.clamp(1, GROUP_MAX);
                let gather_until = *work.gather_until.get_or_insert(now + GATHER);
                is_gathered = work.appends_entries >= work.wanted
                    || gather_until <= now
                    || work.options.fsync == Fsync::Always;
                until = Some(until.map_or(gather_until, |until| until.min(gather_until)));
            }
            let has_to_write = is_gathered
                || work.is_closing
                || work.has_new_options
                || !work.changes.is_empty()
                || is_due(wait.until)
                || is_due(work.removals_due)
                || (first == First::HasToWait && has_removals);
            if has_to_write || !work.reads.is_empty() {
                // A reader is served at once, and does not make a group smaller.
                return work.take_job(self, has_to_write);
            }
            work = match until {
                Some(until) => {
                    let result = self.wake.wait_timeout(work, until.saturating_duration_since(now));
                    result.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wake.wait(work).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// The thread has ended, for whatever reason: whoever still waits is told that the spool is closed.
    pub(super) fn abandon(&self) {
        let mut work = self.lock();
        work.is_closing = true;
        let left = (
            std::mem::take(&mut work.appends),
            std::mem::take(&mut work.reads),
            std::mem::take(&mut work.changes),
        );
        work.appends_cost = 0;
        work.appends_entries = 0;
        work.removals.clear();
        drop(work);
        drop(left);
        self.removals.close();
        self.reads.close();
        self.changes.close();
        self.ended.send_replace(true);
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        // Nothing that is done under the lock leaves it half done if it panics.
        lock(&self.work)
    }
}

/// What there is to say of the append that is first in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    /// There is none.
    None,
    /// It can be written, or refused.
    Fits,
    /// The spool is full.
    HasToWait,
}

impl Work {
    fn check_open(&self, shared: &Shared) -> Result<(), SpoolError> {
        if self.is_closing { Err(SpoolError::closed(&shared.dir)) } else { Ok(()) }
    }

    /// Why this is not accepted, when entries that are charged `before` come before it.
    fn refusal(&self, shared: &Shared, append: &Append, before: u64) -> Option<SpoolError> {
        let (options, cost) = (&self.options, append.cost());
        if let Some(body) = append.bodies.iter().find(|body| body.len() > options.max_entry_bytes) {
            let (dir, len, max) = (shared.dir.display(), body.len(), options.max_entry_bytes);
            let text = format!(
                "an entry of {len} bytes is too large for the spool {dir}: {max} at most (max_message_size)"
            );
            return Some(SpoolError::new(SpoolErrorKind::TooLarge, text));
        }
        if cost > options.max_bytes {
            let (dir, max) = (shared.dir.display(), options.max_bytes);
            let text = format!(
                "what is charged {cost} bytes never fits into the spool {dir}: {max} at most (max_bytes)"
            );
            return Some(SpoolError::new(SpoolErrorKind::TooLarge, text));
        }
        let is_full =
            options.on_full == OnFull::Reject && self.status.bytes + before + cost > options.max_bytes;
        is_full.then(|| {
            let (dir, max) = (shared.dir.display(), options.max_bytes);
            SpoolError::new(
                SpoolErrorKind::Full,
                format!(
                    "the spool {dir} is full: {} of {max} bytes, in {} entries",
                    self.status.bytes, self.status.entries
                ),
            )
        })
    }

    fn first_append(&self, shared: &Shared) -> First {
        let Some((_, first)) = self.appends.first_key_value() else { return First::None };
        let fits = self.status.bytes + first.cost() <= self.options.max_bytes;
        if fits || self.refusal(shared, first, 0).is_some() { First::Fits } else { First::HasToWait }
    }

    fn take_append(&mut self, ticket: u64) -> Option<Append> {
        let append = self.appends.remove(&ticket)?;
        self.appends_cost -= append.cost();
        self.appends_entries -= append.bodies.len();
        Some(append)
    }

    fn take_job(&mut self, shared: &Shared, has_to_write: bool) -> Job {
        let (mut appends, mut refused): (Vec<Append>, Vec<_>) = (Vec::new(), Vec::new());
        let (mut group, mut group_cost, mut is_blocked) = (0, 0, false);
        let group_max = if self.options.fsync == Fsync::Always { 1 } else { GROUP_MAX };
        while has_to_write && let Some((&ticket, first)) = self.appends.first_key_value() {
            let (entries, cost) = (first.bodies.len(), first.cost());
            let refusal = self.refusal(shared, first, group_cost);
            if refusal.is_none() {
                is_blocked = self.status.bytes + group_cost + cost > self.options.max_bytes;
                let is_too_much = group + entries > group_max || group_cost + cost > GROUP_MAX_BYTES;
                if is_blocked || (is_too_much && !appends.is_empty()) {
                    break;
                }
                group += entries;
                group_cost += cost;
            }
            let Some(append) = self.take_append(ticket) else { break };
            match refusal {
                Some(error) => {
                    self.status.refused += append.bodies.len() as u64;
                    refused.push((append, error));
                }
                None => appends.push(append),
            }
        }
        if has_to_write {
            self.gather_until = None;
            self.has_new_options = false;
        }
        let is_idle = appends.is_empty() && refused.is_empty();
        let is_last = self.is_closing && is_idle;
        if is_last {
            // What waits for room waits in vain: nothing is removed any more.
            while let Some((&ticket, _)) = self.appends.first_key_value() {
                let Some(append) = self.take_append(ticket) else { break };
                refused.push((append, SpoolError::closed(&shared.dir)));
            }
        }
        Job {
            appends,
            refused,
            removals_due: self.removals_due.take(),
            removals: std::mem::take(&mut self.removals),
            reads: std::mem::take(&mut self.reads),
            changes: std::mem::take(&mut self.changes),
            options: self.options.clone(),
            is_blocked,
            is_last,
        }
    }
}
