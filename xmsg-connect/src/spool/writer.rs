//! The thread of a spool: it alone touches the files.
//!
//! It takes what handles ask for, job by job: it serves those who read, then does everything that writes in
//! one transaction, then tells those who wait. A failure of the operating system fails what was asked, and
//! the store is opened again; a damaged file is rebuilt.

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

use self::failure::explain;
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

/// Entries that become dead letters for their age in one transaction.
const EXPIRED_AT_ONCE: usize = 1024;
/// Removals in one transaction.
const REMOVED_AT_ONCE: usize = 65_536;
/// The same on a disk that is full, where less space is needed at a time.
const REMOVED_AT_ONCE_WHEN_FULL: usize = 256;
/// How long removals wait after the disk refused them.
const RETRY: Duration = Duration::from_secs(1);
/// What has to leave a spool on a full disk, before appends go into its place.
const ROOM_AFTER_FULL: u64 = 2 * RESERVE_BYTES as u64;
/// The longest time until the age of entries is looked at again: the clock may be set.
const AGE_LOOK_MAX: Duration = Duration::from_secs(60);
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
    /// `None`: it could not be opened after a failure. Whatever comes next tries again.
    store: Option<Store>,
    reserve: Reserve,
    /// Entries that are delivered, and in the file still.
    confirmed: BTreeSet<u64>,
    confirmed_room: Vec<OwnedSemaphorePermit>,
    confirmed_due: Option<Instant>,
    /// Those who wait for entries.
    readers: Vec<Read>,
    last_group: usize,
    oldest_ms: Option<u64>,
    max_age: Option<Duration>,
    /// The disk is full, and so much was inside when that was noticed.
    full_at: Option<u64>,
    /// Writing failed the last time. Removals are tried again at this moment.
    retry_at: Option<Instant>,
    compact_due: Option<Instant>,
    /// The size of the file after it was compacted.
    compacted_bytes: u64,
    /// Held as long as the files are in use.
    lock: Option<LockedFile>,
}

impl Writer {
    /// Opens the store, and starts the thread.
    pub(super) fn start(
        dir: &Path,
        lock: LockedFile,
        options: SpoolOptions,
    ) -> Result<Arc<Shared>, SpoolError> {
        let (store, rebuilt) = salvage::open(dir).map_err(|error| explain(dir, "open the spool", error))?;
        let status = SpoolStatus { rebuilt: rebuilt.times, lost: rebuilt.lost, ..SpoolStatus::default() };
        let mut writer = Self {
            store: Some(store),
            reserve: Reserve::of(dir),
            confirmed: BTreeSet::new(),
            confirmed_room: Vec::new(),
            confirmed_due: None,
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
        writer.publish(|_| {});
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
            let has_removals = !self.confirmed.is_empty() && self.retry_at.is_none();
            let job = self.shared.next_job(&Wait { until, has_removals, last_group: self.last_group });
            let is_last = job.is_last;
            self.work(job);
            if is_last {
                break;
            }
        }
    }

    fn work(&mut self, job: Job) {
        self.max_age = job.options.max_age;
        for (append, error) in job.refused {
            let _ = append.reply.send(Err(error));
        }
        for removal in job.removals {
            self.confirmed.extend(&removal.sequences);
            self.confirmed_room.push(removal.room);
        }
        self.confirmed_due = [self.confirmed_due, job.removals_due].into_iter().flatten().min();
        self.readers.extend(job.reads);
        self.readers.retain(|read| !read.reply.is_closed());
        if !self.age_due().is_some_and(is_over) {
            self.serve_readers();
        }
        let has_others = !job.appends.is_empty() || !job.changes.is_empty() || job.is_last;
        if !has_others && self.compact_due.is_some_and(is_over) {
            self.compact();
        }
        if has_others
            || self.age_due().is_some_and(is_over)
            || self.removals_due().is_some_and(is_over)
            || (job.is_blocked && self.retry_at.is_none() && !self.confirmed.is_empty())
        {
            // Whoever is concerned has been told how it went.
            let _ = self.write(job.appends, job.changes.into(), &job.options);
            self.serve_readers();
        }
        if job.is_last {
            // Entries whose removal fails are delivered again, as after a crash.
            let _ = self.write_removals(&job.options);
        }
    }

    /// Everything of a job that writes, in one transaction.
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
            self.fail(std::mem::take(&mut appends), &error);
        }
        let (mut changes, others): (Vec<_>, Vec<_>) =
            calls.into_iter().partition(|call| call.change.is_small());
        let at_once = if self.full_at.is_some() { REMOVED_AT_ONCE_WHEN_FULL } else { REMOVED_AT_ONCE };
        let removals: Vec<u64> = self.confirmed.iter().copied().take(at_once).collect();
        let (now_ms, dir) = (millis(SystemTime::now()), self.shared.dir.clone());
        let age_ms = options.max_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let expired_before = if self.age_due().is_some_and(is_over) {
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
                written.sequences.push(tables.ledger.next);
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
                    self.written(&written, &removals);
                }
                for (append, sequence) in appends.into_iter().zip(written.sequences) {
                    let _ = append.reply.send(Ok(sequence));
                }
                Ok(())
            }
            Err(error) => {
                self.fail(appends, &error);
                Err(error)
            }
        };
        for call in changes {
            if matches!(call.change, Change::Sync { .. }) {
                call.tell(&self.write_removals(options));
            } else {
                call.tell(&committed);
            }
        }
        for call in others {
            self.answer(call);
        }
        committed
    }

    /// Tells those who append why they failed.
    fn fail(&self, appends: Vec<Append>, error: &SpoolError) {
        let entries: usize = appends.iter().map(|append| append.bodies.len()).sum();
        self.shared.update(|status| status.failed += entries as u64);
        for append in appends {
            let _ = append.reply.send(Err(error.clone()));
        }
    }

    /// All removals, in as many transactions as they need.
    fn write_removals(&mut self, options: &SpoolOptions) -> Result<(), SpoolError> {
        while !self.confirmed.is_empty() {
            self.write(Vec::new(), Vec::new(), options)?;
        }
        Ok(())
    }

    /// The books after a transaction.
    fn written(&mut self, written: &Written, removals: &[u64]) {
        for sequence in removals {
            self.confirmed.remove(sequence);
        }
        if self.retry_at.take().is_some() {
            info!(spool = %self.shared.dir.display(), "the spool writes again");
        }
        let mut synced = 0;
        self.confirmed_due = None;
        if self.confirmed.is_empty() {
            synced = self.confirmed_room.drain(..).map(|room| room.num_permits() as u64).sum();
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
        self.publish(|status| {
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
            if self.store.as_ref().is_some_and(|store| store.ledger().next <= read.after.saturating_add(1)) {
                self.readers.push(read);
                continue;
            }
            let confirmed = std::mem::take(&mut self.confirmed);
            let page = self.with_store(|store| {
                store.read(read.after, read.max_entries, read.max_bytes, |sequence| {
                    confirmed.contains(&sequence)
                })
            });
            // What a failed write left behind, with_store may have added meanwhile.
            self.confirmed.extend(confirmed);
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
            self.bury_damaged(&damaged);
        }
    }

    fn bury_damaged(&mut self, sequences: &[u64]) {
        let now_ms = millis(SystemTime::now());
        let max_dead_bytes = self.shared.options().max_dead_bytes;
        let result = self.with_store(|store| {
            store.change(|tables| {
                for &sequence in sequences {
                    tables.bury(sequence, DeadCause::Damaged, DAMAGED, now_ms)?;
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
            self.written(&written, &[]);
        }
    }

    /// Calls that are not part of the common transaction.
    fn answer(&mut self, mut call: ChangeCall) {
        match &mut call.change {
            Change::Purge { answer } => {
                let purged = self.with_store(|store| {
                    let ledger = store.ledger();
                    store.purge()?;
                    Ok(Purged { entries: ledger.entries, bytes: ledger.bytes })
                });
                if purged.is_ok() {
                    self.publish(|status| status.commits += 1);
                }
                answer.set(purged);
            }
            Change::Dead { after, limit, answer } => {
                answer.set(self.with_store(|store| store.dead(*after, *limit, DEAD_PAGE_MAX_BYTES)));
            }
            _ => {}
        }
        call.tell(&Ok(()));
    }

    /// Tells handles what is in the store.
    fn publish(&mut self, change: impl FnOnce(&mut SpoolStatus)) {
        let Some(store) = &mut self.store else { return self.shared.update(change) };
        let oldest_ms = store.oldest_ms();
        let mut missing = 0;
        if matches!(oldest_ms, Ok(None)) && store.ledger().entries > 0 {
            // Without this, entries that damage made vanish would take up room for ever.
            missing = store.change(|tables| Ok(tables.miss_all())).unwrap_or(0);
        }
        // A failure here is one of reading, and shows where somebody wants to read.
        let oldest_ms = oldest_ms.unwrap_or_default();
        self.oldest_ms = oldest_ms;
        let (ledger, file_bytes) = (store.ledger(), store.file_bytes());
        let content = ledger.bytes + ledger.dead_bytes;
        let is_hollow = file_bytes >= COMPACT_MIN_BYTES.max(2 * self.compacted_bytes);
        let is_worth_it = is_hollow && content <= COMPACT_CONTENT_MAX_BYTES;
        self.compact_due = is_worth_it.then(|| Instant::now() + COMPACT_IDLE);
        self.shared.update(|status| {
            status.entries = ledger.entries;
            status.bytes = ledger.bytes;
            status.oldest_accepted_at = oldest_ms.map(time);
            status.newest_sequence = ledger.next.saturating_sub(1);
            status.dead_entries = ledger.dead_entries;
            status.dead_bytes = ledger.dead_bytes;
            status.file_bytes = file_bytes;
            status.lost += missing;
            change(status);
        });
    }

    /// When to look at the age of entries, which may be now.
    fn age_due(&self) -> Option<Instant> {
        let (oldest_ms, max_age) = (self.oldest_ms?, self.max_age?);
        let age = SystemTime::now().duration_since(time(oldest_ms)).unwrap_or_default();
        let due = later(Instant::now(), max_age.saturating_sub(age).min(AGE_LOOK_MAX));
        Some(self.retry_at.map_or(due, |retry_at| retry_at.max(due)))
    }

    /// When removals are written, if nothing else is before that.
    fn removals_due(&self) -> Option<Instant> {
        if self.confirmed.is_empty() {
            return None;
        }
        self.retry_at.or(self.confirmed_due).or_else(|| Some(Instant::now()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            store.discard();
        }
        // The directory is free before anybody is told that it is.
        self.lock = None;
        self.shared.abandon();
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

/// What a transaction did.
#[derive(Debug, Default)]
struct Written {
    /// The first one of each append, in order.
    sequences: Vec<u64>,
    /// Entries of all appends.
    accepted: u64,
    expired: u64,
    damaged: u64,
    dead_dropped: u64,
}

fn is_over(moment: Instant) -> bool {
    moment <= Instant::now()
}
