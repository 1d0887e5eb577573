//! The queues of calls that handles make, from which the thread of the spool takes them.
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

/// How many entries may wait to be appended, for the disk or for room. One more fails with
/// [`SpoolErrorKind::Full`].
pub const APPENDS_WAITING_MAX: usize = 65_536;
/// How many bytes these may have together: of each its body and the overhead. An append is always taken when
/// no other one waits.
pub const APPENDS_WAITING_MAX_BYTES: u64 = 64 << 20;
/// How many entries may be removed without their removal being on disk.
/// [`Spool::remove`](super::Spool::remove) waits until they are fewer.
pub const REMOVALS_WAITING_MAX: usize = 65_536;
/// How many calls of [`Spool::next_after`](super::Spool::next_after) may wait for entries. Others wait for
/// their turn.
pub const READS_WAITING_MAX: usize = 16;
/// How many calls about dead letters, and others that are rare, may wait. Others wait for their turn.
pub const CHANGES_WAITING_MAX: usize = 64;
/// How many entries are written together.
pub const GROUP_MAX: usize = 1024;
/// How many bytes of entries are written together, unless the first one alone has more.
pub const GROUP_MAX_BYTES: u64 = 4 << 20;

/// How long removals wait for something else to be written with.
const REMOVALS_LINGER: Duration = Duration::from_millis(20);
/// How long a group waits for those who were in the last one: they come back as soon as they are told that it
/// is written.
const GATHER_MAX: Duration = Duration::from_millis(1);

pub(super) type Reply<T> = oneshot::Sender<Result<T, SpoolError>>;

/// The state that handles and the thread share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The directory.
    pub dir: PathBuf,
    queues: Mutex<Queues>,
    wake: Condvar,
    pub removals: Arc<Semaphore>,
    pub reads: Arc<Semaphore>,
    pub changes: Arc<Semaphore>,
    /// `true` once the thread has ended and the directory is free.
    pub ended: watch::Sender<bool>,
}

#[derive(Debug)]
struct Queues {
    /// Appends that wait, by the order of the calls.
    appends: BTreeMap<u64, Append>,
    /// The bytes that these appends are charged together.
    appends_cost: u64,
    /// The number of entries in these appends.
    appends_entries: usize,
    /// When a group that is being gathered is written at the latest.
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
    /// The number of entries at which the thread is woken, so that each entry of a group does not wake it.
    wake_threshold: usize,
}

/// An append that waits: of one entry or several, which are written together.
#[derive(Debug)]
pub(super) struct Append {
    pub bodies: Vec<Bytes>,
    /// Where the sequence of the first entry is sent. The others follow.
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
    pub permits: OwnedSemaphorePermit,
}

/// A call that waits for entries.
#[derive(Debug)]
pub(super) struct Read {
    pub after: u64,
    pub max_entries: usize,
    pub max_bytes: usize,
    pub reply: Reply<Vec<Entry>>,
    /// The permit of the call, which is given back when it is dropped.
    pub _permit: OwnedSemaphorePermit,
}

/// The work that the thread does next.
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
    /// Whether an append waits for room, so that removals should not linger.
    pub is_blocked: bool,
    /// Whether no call can come any more, and none waits.
    pub is_last: bool,
}

/// The state of the thread that the queue has to know while the thread waits for work.
#[derive(Debug, Default)]
pub(super) struct Wait {
    /// When the thread has something to do in any case.
    pub until: Option<Instant>,
    /// Whether the thread has removals that are not on disk.
    pub has_removals: bool,
    /// The number of entries in the group before.
    pub last_group: usize,
}

impl Shared {
    pub(super) fn new(dir: PathBuf, options: SpoolOptions, status: SpoolStatus) -> Self {
        Self {
            dir,
            queues: Mutex::new(Queues {
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
                wake_threshold: 1,
            }),
            wake: Condvar::new(),
            removals: Arc::new(Semaphore::new(REMOVALS_WAITING_MAX)),
            reads: Arc::new(Semaphore::new(READS_WAITING_MAX)),
            changes: Arc::new(Semaphore::new(CHANGES_WAITING_MAX)),
            ended: watch::Sender::new(false),
        }
    }

    /// Puts an append into the queue, and returns its ticket.
    pub(super) fn append(&self, append: Append) -> Result<u64, SpoolError> {
        let (cost, entries) = (append.cost(), append.bodies.len());
        let mut queues = self.lock();
        queues.check_open(self)?;
        if let Some(error) = queues.refusal(self, &append, queues.appends_cost) {
            queues.status.refused += entries as u64;
            return Err(error);
        }
        let is_crowded = queues.appends_entries + entries > APPENDS_WAITING_MAX
            || queues.appends_cost + cost > APPENDS_WAITING_MAX_BYTES;
        if is_crowded && !queues.appends.is_empty() {
            queues.status.refused += entries as u64;
            return Err(SpoolError::new(
                SpoolErrorKind::Full,
                format!(
                    "{} entries wait already to be appended to the spool {}",
                    queues.appends_entries,
                    self.dir.display()
                ),
            ));
        }
        let ticket = queues.next_ticket;
        queues.next_ticket += 1;
        queues.appends_cost += cost;
        queues.appends_entries += entries;
        queues.appends.insert(ticket, append);
        let is_enough = queues.appends_entries >= queues.wake_threshold;
        drop(queues);
        if is_enough {
            self.wake.notify_one();
        }
        Ok(ticket)
    }

    /// Takes an append out of the queue, if it still waits.
    pub(super) fn cancel_append(&self, ticket: u64) {
        let mut queues = self.lock();
        let left = queues.take_append(ticket);
        drop(queues);
        if left.is_some() {
            // Whoever is first now may find room where this one did not.
            self.wake.notify_one();
        }
    }

    pub(super) fn remove(&self, removal: Removal) -> Result<(), SpoolError> {
        let mut queues = self.lock();
        queues.check_open(self)?;
        queues.status.unsynced_removals += removal.sequences.len() as u64;
        let is_first = queues.removals.is_empty();
        queues.removals.push(removal);
        if is_first {
            queues.removals_due = Some(Instant::now() + REMOVALS_LINGER);
            drop(queues);
            self.wake.notify_one();
        }
        Ok(())
    }

    pub(super) fn read(&self, read: Read) -> Result<(), SpoolError> {
        let mut queues = self.lock();
        queues.check_open(self)?;
        queues.reads.push_back(read);
        drop(queues);
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn change(&self, call: ChangeCall) -> Result<(), SpoolError> {
        let mut queues = self.lock();
        queues.check_open(self)?;
        queues.changes.push_back(call);
        drop(queues);
        self.wake.notify_one();
        Ok(())
    }

    pub(super) fn set_options(&self, options: SpoolOptions) {
        let mut queues = self.lock();
        queues.options = options;
        queues.has_new_options = true;
        drop(queues);
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
        let queues = self.lock();
        SpoolStatus { waiting: queues.appends_entries as u64, ..queues.status.clone() }
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut SpoolStatus)) {
        change(&mut self.lock().status);
    }

    /// Waits for something to do. Only the thread of the spool calls this.
    pub(super) fn next_job(&self, wait: &Wait) -> Job {
        let mut queues = self.lock();
        loop {
            let now = Instant::now();
            let is_due = |moment: Option<Instant>| moment.is_some_and(|moment| moment <= now);
            let first = queues.first_append(self);
            let has_removals = wait.has_removals || !queues.removals.is_empty();
            let mut until = [wait.until, queues.removals_due].into_iter().flatten().min();
            queues.wake_threshold = 1;
            let mut is_gathered = false;
            if first == NextAppend::Fits {
                queues.wake_threshold = wait.last_group.clamp(1, GROUP_MAX);
                let gather_until = *queues.gather_until.get_or_insert(now + GATHER_MAX);
                is_gathered = queues.appends_entries >= queues.wake_threshold
                    || gather_until <= now
                    || queues.options.fsync == Fsync::Always;
                until = Some(until.map_or(gather_until, |until| until.min(gather_until)));
            }
            let has_to_write = is_gathered
                || queues.is_closing
                || queues.has_new_options
                || !queues.changes.is_empty()
                || is_due(wait.until)
                || is_due(queues.removals_due)
                || (first == NextAppend::HasToWait && has_removals);
            if has_to_write || !queues.reads.is_empty() {
                // A reader is served at once, and does not make a group smaller.
                return queues.take_job(self, has_to_write);
            }
            queues = match until {
                Some(until) => {
                    let result = self.wake.wait_timeout(queues, until.saturating_duration_since(now));
                    result.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wake.wait(queues).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Fails all calls that wait, because the thread has ended. Whoever waits is told that the spool is
    /// closed.
    pub(super) fn fail_all(&self) {
        let mut queues = self.lock();
        queues.is_closing = true;
        let left = (
            std::mem::take(&mut queues.appends),
            std::mem::take(&mut queues.reads),
            std::mem::take(&mut queues.changes),
        );
        queues.appends_cost = 0;
        queues.appends_entries = 0;
        queues.removals.clear();
        drop(queues);
        drop(left);
        self.removals.close();
        self.reads.close();
        self.changes.close();
        self.ended.send_replace(true);
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        // Nothing that is done under the lock leaves it half done if it panics.
        lock(&self.queues)
    }
}

/// The state of the append that is first in line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextAppend {
    /// There is none.
    None,
    /// It can be written, or refused.
    Fits,
    /// The spool is full.
    HasToWait,
}

impl Queues {
    fn check_open(&self, shared: &Shared) -> Result<(), SpoolError> {
        if self.is_closing { Err(SpoolError::closed(&shared.dir)) } else { Ok(()) }
    }

    /// Returns why an append is not accepted, when entries that are charged `before` come before it.
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

    fn first_append(&self, shared: &Shared) -> NextAppend {
        let Some((_, first)) = self.appends.first_key_value() else { return NextAppend::None };
        let fits = self.status.bytes + first.cost() <= self.options.max_bytes;
        if fits || self.refusal(shared, first, 0).is_some() {
            NextAppend::Fits
        } else {
            NextAppend::HasToWait
        }
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
