//! The thread of a spool, which alone touches the files.
//!
//! It takes the calls of handles job by job: it serves those who read, then writes everything in one
//! transaction, and then answers those who wait. After a failure of the operating system, the calls fail and
//! the store is opened again. A damaged file is rebuilt.

mod failure;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::OwnedSemaphorePermit;
use tracing::{error, info, warn};
use xmsg_zmq::deadline::later;

use self::failure::spool_error;
use xmsg_zmq::fault::catch;
use xmsg_zmq::lock::LockedFile;

use super::change::{Change, ChangeCall};
use super::queue::{Append, Job, Read, Shared, Wait};
use super::record::{DAMAGED, DeadCause, millis, time};
use super::reserve::{RESERVE_BYTES, Reserve};
use super::salvage;
use super::store::Store;
use super::tables::Tables;
use super::{DEAD_PAGE_MAX_BYTES, Purged, SpoolError, SpoolOptions, SpoolStatus};

/// How many entries become dead letters for their age in one transaction.
const EXPIRED_AT_ONCE: usize = 1024;
/// How many removals are made in one transaction.
const REMOVED_AT_ONCE: usize = 65_536;
/// How many removals are made in one transaction on a disk that is full, where less space is needed at a
/// time.
const REMOVED_AT_ONCE_WHEN_FULL: usize = 256;
/// How long removals wait after the disk refused them.
const RETRY: Duration = Duration::from_secs(1);
/// How many bytes have to leave a spool on a full disk before appends take their place.
const ROOM_AFTER_FULL: u64 = 2 * RESERVE_BYTES as u64;
/// The longest time until the age of entries is checked again, since the clock may be set.
const AGE_CHECK_MAX: Duration = Duration::from_secs(60);
/// A file is compacted if it has at least so many bytes, holds at most so many, and nothing has been written
/// for so long.
const COMPACT_MIN_BYTES: u64 = if cfg!(test) { 4 << 20 } else { 64 << 20 };
const COMPACT_CONTENT_MAX_BYTES: u64 = 2 << 20;
const COMPACT_IDLE: Duration = Duration::from_secs(1);
/// The stack of the thread. The database does not go deep.
const STACK_BYTES: usize = 1 << 20;

/// The state of the thread.
pub(super) struct Writer {
    shared: Arc<Shared>,
    /// The store, or `None` if it could not be opened after a failure. The next job tries again.
    store: Option<Store>,
    reserve: Reserve,
    /// Entries that were delivered, and are still in the file.
    pending_removals: BTreeSet<u64>,
    removal_permits: Vec<OwnedSemaphorePermit>,
    pending_removals_due: Option<Instant>,
    /// Calls that wait for entries.
    readers: Vec<Read>,
    last_group: usize,
    oldest_ms: Option<u64>,
    max_age: Option<Duration>,
    /// The bytes in the spool when it was noticed that the disk is full; `None` while it is not.
    full_at: Option<u64>,
    /// When removals are tried again after writing failed the last time.
    retry_at: Option<Instant>,
    compact_due: Option<Instant>,
    /// The size of the file after it was compacted.
    compacted_bytes: u64,
    /// The lock of the directory, held as long as the files are in use.
    lock: Option<LockedFile>,
}

impl Writer {
    /// Opens the store, and starts the thread.
    pub(super) fn start(
        dir: &Path,
        lock: LockedFile,
        options: SpoolOptions,
    ) -> Result<Arc<Shared>, SpoolError> {
        let (store, rebuilt) =
            salvage::open(dir).map_err(|error| spool_error(dir, "open the spool", error))?;
        let status = SpoolStatus { rebuilt: rebuilt.times, lost: rebuilt.lost, ..SpoolStatus::default() };
        let mut writer = Self {
            store: Some(store),
            reserve: Reserve::of(dir),
            pending_removals: BTreeSet::new(),
            removal_permits: Vec::new(),
            pending_removals_due: None,
            readers: Vec::new(),
            last_group: 0,
            oldest_ms: None,
            max_age: options.max_age,
            full_at: None,
            retry_at: None,
            compact_due: None,
            compacted_bytes: 0,
            shared: Arc::new(Shared::new(dir.to_owned(), options, status)),
            lock: Some(lock),
        };
        // If the disk has no room for it now, it is tried again when entries are written.
        let _ = writer.reserve.hold();
        writer.update_status(|_| {});
        let shared = Arc::clone(&writer.shared);
        let name = format!("spool {}", dir.file_name().unwrap_or_default().display());
        let thread = thread::Builder::new().name(name.clone()).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || {
            // The writer is dropped by its panic: whoever waits is told that the spool is closed.
            if let Err(fault) = catch(|| writer.run()) {
                error!(
                    thread = name,
                    "a fault of this program has closed a spool, which takes nothing more until the next start; what it \
                     has stays: {fault}"
                );
            }
        });
        thread.map_err(|error| SpoolError::io("start the thread of the spool", dir, error))?;
        Ok(shared)
    }

    fn run(mut self) {
        loop {
            let until = [self.removals_due(), self.age_due(), self.compact_due].into_iter().flatten().min();
            let has_removals = !self.pending_removals.is_empty() && self.retry_at.is_none();
            let job = self.shared.next_job(&Wait { until, has_removals, last_group: self.last_group });
            let is_last = job.is_last;
            self.run_job(job);
            if is_last {
                break;
            }
        }
    }

    fn run_job(&mut self, job: Job) {
        self.max_age = job.options.max_age;
        for (append, error) in job.refused {
            let _ = append.reply.send(Err(error));
        }
        for removal in job.removals {
            self.pending_removals.extend(&removal.sequences);
            self.removal_permits.push(removal.permits);
        }
        self.pending_removals_due = [self.pending_removals_due, job.removals_due].into_iter().flatten().min();
        self.readers.extend(job.reads);
        self.readers.retain(|read| !read.reply.is_closed());
        if !self.age_due().is_some_and(has_passed) {
            self.serve_readers();
        }
        let has_others = !job.appends.is_empty() || !job.changes.is_empty() || job.is_last;
        if !has_others && self.compact_due.is_some_and(has_passed) {
            self.compact();
        }
        if has_others
            || self.age_due().is_some_and(has_passed)
            || self.removals_due().is_some_and(has_passed)
            || (job.is_blocked && self.retry_at.is_none() && !self.pending_removals.is_empty())
        {
            // Those who wait have been answered already.
            let _ = self.write(job.appends, job.changes.into(), &job.options);
            self.serve_readers();
        }
        if job.is_last {
            // Entries whose removal fails are delivered again, as after a crash.
            let _ = self.write_removals(&job.options);
        }
    }

    /// Writes everything of a job in one transaction.
    fn write(
        &mut self,
        mut appends: Vec<Append>,
        calls: Vec<ChangeCall>,
        options: &SpoolOptions,
    ) -> Result<(), SpoolError> {
        if !appends.is_empty() && self.retry_at.is_some() {
            // On a disk that is full, appends must not make removals fail, time after time. Whatever comes of
            // it, appends are tried.
            let _ = self.write_removals(options);
        }
        if !appends.is_empty()
            && let Err(error) = self.check_disk(&appends)
        {
            self.reject_appends(std::mem::take(&mut appends), &error);
        }
        let (mut changes, others): (Vec<_>, Vec<_>) =
            calls.into_iter().partition(|call| call.change.shares_transaction());
        let at_once = if self.full_at.is_some() { REMOVED_AT_ONCE_WHEN_FULL } else { REMOVED_AT_ONCE };
        let removals: Vec<u64> = self.pending_removals.iter().copied().take(at_once).collect();
        let (now_ms, dir) = (millis(SystemTime::now()), self.shared.dir.clone());
        let age_ms = options.max_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let expired_before = if self.age_due().is_some_and(has_passed) {
            age_ms.map(|age| now_ms.saturating_sub(age).saturating_add(1))
        } else {
            None
        };
        let is_needed =
            !appends.is_empty() || !changes.is_empty() || !removals.is_empty() || expired_before.is_some();
        let mut transaction = |tables: &mut Tables<'_>| {
            removals.iter().try_for_each(|&sequence| tables.remove(sequence))?;
            changes.iter_mut().try_for_each(|call| call.change.apply(tables, options, now_ms, &dir))?;
            let expired = match expired_before {
                Some(before) => tables.expire(before, EXPIRED_AT_ONCE, now_ms)?,
                None => 0,
            };
            let mut written = Written { expired, ..Written::default() };
            for append in &appends {
                written.sequences.push(tables.totals.next);
                written.accepted += append.bodies.len() as u64;
                for body in &append.bodies {
                    tables.append(body, now_ms)?;
                }
            }
            tables.trim_dead(options.max_dead_bytes)?;
            Ok(Written { damaged: tables.damaged, dead_dropped: tables.dead_dropped, ..written })
        };
        let result = if is_needed {
            self.with_store(|store| store.change(&mut transaction))
        } else {
            Ok(Written::default())
        };
        let committed = match result {
            Ok(written) => {
                if is_needed {
                    self.record_commit(&written, &removals);
                }
                for (append, sequence) in appends.into_iter().zip(written.sequences) {
                    let _ = append.reply.send(Ok(sequence));
                }
                Ok(())
            }
            Err(error) => {
                self.reject_appends(appends, &error);
                Err(error)
            }
        };
        for call in changes {
            if matches!(call.change, Change::Sync { .. }) {
                call.send_answer(&self.write_removals(options));
            } else {
                call.send_answer(&committed);
            }
        }
        for call in others {
            self.run_alone(call);
        }
        committed
    }

    /// Answers appends with why they failed.
    fn reject_appends(&self, appends: Vec<Append>, error: &SpoolError) {
        let entries: usize = appends.iter().map(|append| append.bodies.len()).sum();
        self.shared.update(|status| status.failed += entries as u64);
        for append in appends {
            let _ = append.reply.send(Err(error.clone()));
        }
    }

    /// Writes all removals, in as many transactions as they need.
    fn write_removals(&mut self, options: &SpoolOptions) -> Result<(), SpoolError> {
        while !self.pending_removals.is_empty() {
            self.write(Vec::new(), Vec::new(), options)?;
        }
        Ok(())
    }

    /// Updates the state of the thread after a transaction.
    fn record_commit(&mut self, written: &Written, removals: &[u64]) {
        for sequence in removals {
            self.pending_removals.remove(sequence);
        }
        if self.retry_at.take().is_some() {
            info!(spool = %self.shared.dir.display(), "the spool writes again");
        }
        let mut synced = 0;
        self.pending_removals_due = None;
        if self.pending_removals.is_empty() {
            synced = self.removal_permits.drain(..).map(|permits| permits.num_permits() as u64).sum();
        }
        if written.accepted > 0 {
            self.last_group = written.accepted as usize;
        }
        if written.damaged + written.dead_dropped > 0 {
            warn!(
                spool = %self.shared.dir.display(),
                damaged = written.damaged,
                dead_dropped = written.dead_dropped,
                "entries were damaged, or dead letters dropped for want of room"
            );
        }
        self.update_status(|status| {
            status.commits += 1;
            status.accepted += written.accepted;
            status.expired += written.expired;
            status.damaged += written.damaged;
            status.dead_dropped += written.dead_dropped;
            status.unsynced_removals = status.unsynced_removals.saturating_sub(synced);
        });
    }

    fn serve_readers(&mut self) {
        let mut damaged = Vec::new();
        for read in std::mem::take(&mut self.readers) {
            if self.store.as_ref().is_some_and(|store| store.totals().next <= read.after.saturating_add(1)) {
                self.readers.push(read);
                continue;
            }
            let pending_removals = std::mem::take(&mut self.pending_removals);
            let page = self.with_store(|store| {
                store.read(read.after, read.max_entries, read.max_bytes, |sequence| {
                    pending_removals.contains(&sequence)
                })
            });
            // What a failed write left behind, `with_store` may have added meanwhile.
            self.pending_removals.extend(pending_removals);
            match page {
                Ok(page) => {
                    damaged.extend(page.damaged);
                    if page.entries.is_empty() {
                        self.readers.push(read);
                    } else {
                        let _ = read.reply.send(Ok(page.entries));
                    }
                }
                Err(error) => {
                    let _ = read.reply.send(Err(error));
                }
            }
        }
        if !damaged.is_empty() {
            self.dead_letter_damaged(&damaged);
        }
    }

    fn dead_letter_damaged(&mut self, sequences: &[u64]) {
        let now_ms = millis(SystemTime::now());
        let max_dead_bytes = self.shared.options().max_dead_bytes;
        let result = self.with_store(|store| {
            store.change(|tables| {
                for &sequence in sequences {
                    tables.dead_letter(sequence, DeadCause::Damaged, DAMAGED, now_ms)?;
                }
                tables.trim_dead(max_dead_bytes)?;
                Ok(Written {
                    damaged: tables.damaged,
                    dead_dropped: tables.dead_dropped,
                    ..Written::default()
                })
            })
        });
        if let Ok(written) = result {
            self.record_commit(&written, &[]);
        }
    }

    /// Runs a call that does not share a transaction with others.
    fn run_alone(&mut self, mut call: ChangeCall) {
        match &mut call.change {
            Change::Purge { answer } => {
                let purged = self.with_store(|store| {
                    let totals = store.totals();
                    store.purge()?;
                    Ok(Purged { entries: totals.entries, bytes: totals.bytes })
                });
                if purged.is_ok() {
                    self.update_status(|status| status.commits += 1);
                }
                answer.set(purged);
            }
            Change::Dead { after, limit, answer } => {
                answer.set(self.with_store(|store| store.dead(*after, *limit, DEAD_PAGE_MAX_BYTES)));
            }
            _ => {}
        }
        call.send_answer(&Ok(()));
    }

    /// Updates the status that handles see.
    fn update_status(&mut self, change: impl FnOnce(&mut SpoolStatus)) {
        let Some(store) = &mut self.store else { return self.shared.update(change) };
        let oldest_ms = store.oldest_ms();
        let mut missing = 0;
        if matches!(oldest_ms, Ok(None)) && store.totals().entries > 0 {
            // Without this, entries that damage made vanish would take up room for ever.
            missing = store.change(|tables| Ok(tables.clear_entry_totals())).unwrap_or(0);
        }
        // A failure here is one of reading, and shows where somebody wants to read.
        let oldest_ms = oldest_ms.unwrap_or_default();
        self.oldest_ms = oldest_ms;
        let (totals, file_bytes) = (store.totals(), store.file_bytes());
        let content = totals.bytes + totals.dead_bytes;
        let is_hollow = file_bytes >= COMPACT_MIN_BYTES.max(2 * self.compacted_bytes);
        let is_worth_it = is_hollow && content <= COMPACT_CONTENT_MAX_BYTES;
        self.compact_due = is_worth_it.then(|| Instant::now() + COMPACT_IDLE);
        self.shared.update(|status| {
            status.entries = totals.entries;
            status.bytes = totals.bytes;
            status.oldest_accepted_at = oldest_ms.map(time);
            status.newest_sequence = totals.next.saturating_sub(1);
            status.dead_entries = totals.dead_entries;
            status.dead_bytes = totals.dead_bytes;
            status.file_bytes = file_bytes;
            status.lost += missing;
            change(status);
        });
    }

    /// Returns when to check the age of entries, which may be now.
    fn age_due(&self) -> Option<Instant> {
        let (oldest_ms, max_age) = (self.oldest_ms?, self.max_age?);
        let age = SystemTime::now().duration_since(time(oldest_ms)).unwrap_or_default();
        let due = later(Instant::now(), max_age.saturating_sub(age).min(AGE_CHECK_MAX));
        Some(self.retry_at.map_or(due, |retry_at| retry_at.max(due)))
    }

    /// Returns when removals are written, if nothing else is before that.
    fn removals_due(&self) -> Option<Instant> {
        if self.pending_removals.is_empty() {
            return None;
        }
        self.retry_at.or(self.pending_removals_due).or_else(|| Some(Instant::now()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            store.discard();
        }
        // The directory is free before anybody is told that it is.
        self.lock = None;
        self.shared.fail_all();
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

/// The result of a transaction.
#[derive(Debug, Default)]
struct Written {
    /// The sequence of the first entry of each append, in order.
    sequences: Vec<u64>,
    /// The number of entries of all appends.
    accepted: u64,
    expired: u64,
    damaged: u64,
    dead_dropped: u64,
}

fn has_passed(moment: Instant) -> bool {
    moment <= Instant::now()
}
