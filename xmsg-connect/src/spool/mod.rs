//! The spool: messages that an outgoing connection has accepted and not delivered yet, on disk, in order.
//!
//! An entry that was [appended](Spool::append) is on disk, and stays there until it is
//! [removed](Spool::remove) because it was delivered, or becomes a [dead letter](Spool::dead_letter) because
//! it cannot be. A process that is killed at any moment loses nothing that it acknowledged. What was removed
//! may come back after that, so that delivery is *at least once*.
//!
//! Each spool has a directory:
//!
//! | file | what it is |
//! |---|---|
//! | `spool.redb` | the store, with entries and dead letters |
//! | `spool.redb.damaged-N` | a store whose file was damaged, kept aside |
//! | `reserve` | space that is given up when the disk is full, so that entries can still be removed |
//! | `lock` | locked by the process that has the spool open |
//!
//! Each spool has a thread, which alone reads and writes these files: a disk or a file that is slow holds up
//! no other spool, and no task. The thread takes all appends that wait, and writes and syncs them together.
//!
//! ```
//! use bytes::Bytes;
//! use xmsg_connect::spool::{Spool, SpoolOptions};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let spool = Spool::open(dir.path(), SpoolOptions::default())?;
//! spool.append(Bytes::from("first")).await?;
//! spool.append(Bytes::from("second")).await?;
//!
//! // Delivery: whoever delivers remembers how far it is, and removes what arrived.
//! let entries = spool.next_after(0, 100, 1 << 20).await?;
//! assert_eq!(entries[0].body, "first");
//! spool.remove(&[entries[0].sequence]).await?;
//! spool.dead_letter(entries[1].sequence, "no queue is bound to this key").await?;
//! spool.close().await?;
//! # Ok(())
//! # }
//! ```

// | file | answers |
// |---|---|
// | `queue.rs` | What is asked of the thread of a spool, and in which order does it come to it? |
// | `writer.rs` | What does the thread of a spool do? |
// | `writer/failure.rs` | What does it do when the store fails? |
// | `store.rs` | What is in the file, and what must hold between its tables? |
// | `tables.rs` | What may a transaction do? |
// | `record.rs` | What are the bytes of an entry and of a dead letter? |
// | `change.rs` | Which changes and questions are rare, and how are they answered? |
// | `salvage.rs` | What is saved from a damaged file? |
// | `reserve.rs` | How is space kept for removals from a full disk? |
// | `options.rs` | What may be chosen for a spool? |
// | `status.rs` | How full is a spool? |
// | `error.rs` | What failed in a spool? |

mod change;
mod error;
mod options;
mod queue;
mod record;
mod reserve;
mod salvage;
mod status;
mod store;
mod tables;
mod writer;

use std::fmt;
use std::fs::{self, TryLockError};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use self::change::{Change, ChangeCall, DeferredReply};
pub use self::error::{SpoolError, SpoolErrorKind};
pub use self::options::{Fsync, OnFull, SpoolOptions};
pub use self::queue::{
    APPENDS_WAITING_MAX, APPENDS_WAITING_MAX_BYTES, CHANGES_WAITING_MAX, GROUP_MAX, GROUP_MAX_BYTES,
    READS_WAITING_MAX, REMOVALS_WAITING_MAX,
};
use self::queue::{Append, Read, Removal, Shared};
pub use self::record::{DeadCause, DeadLetter, ENTRY_OVERHEAD_BYTES, Entry, REASON_MAX_BYTES};
pub use self::status::SpoolStatus;
use self::writer::Writer;
use xmsg_zmq::lock::LockedFile;

/// How long [`Spool::close`] waits for the disk.
pub const CLOSE_MAX: Duration = Duration::from_secs(30);
/// Bytes of dead letters that [`Spool::dead`] returns at a time, unless the first one alone has more.
pub const DEAD_PAGE_MAX_BYTES: usize = 16 << 20;

/// How many sequences go into the queue together.
const REMOVAL_MAX: usize = 4096;

/// A handle on a spool. Clones are handles on the same one; it is closed by [`close`](Self::close), or when
/// the last handle is dropped.
#[derive(Clone)]
pub struct Spool {
    handles: Arc<Handles>,
}

/// The entries that a [purge](Spool::purge) took out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Purged {
    /// The number of entries.
    pub entries: u64,
    /// Bytes that were charged for them.
    pub bytes: u64,
}

impl Spool {
    /// Opens the spool in this directory, and makes both if they are not there.
    ///
    /// This reads and writes files, and so may take a moment: within an async runtime, call it on a thread
    /// for that. It takes milliseconds, whatever is in the spool and however the last process ended, unless
    /// the file is damaged: then it is rebuilt, which takes about ten seconds for each GiB. See
    /// [`SpoolStatus::rebuilt`].
    ///
    /// # Errors
    ///
    /// [`InUse`](SpoolErrorKind::InUse) if the spool is open already, here or in another process;
    /// [`Io`](SpoolErrorKind::Io) or [`DiskFull`](SpoolErrorKind::DiskFull) if the files cannot be read or
    /// written.
    pub fn open(dir: &Path, options: SpoolOptions) -> Result<Self, SpoolError> {
        fs::create_dir_all(dir)
            .map_err(|error| SpoolError::io("make the directory of the spool", dir, error))?;
        let path = dir.join("lock");
        let lock = match LockedFile::open(&path) {
            Ok(lock) => lock,
            Err(TryLockError::WouldBlock) => {
                let text = format!(
                    "the spool {} is open already: close it there, or choose another directory",
                    dir.display()
                );
                return Err(SpoolError::new(SpoolErrorKind::InUse, text));
            }
            Err(TryLockError::Error(error)) => return Err(SpoolError::io("lock the spool", &path, error)),
        };
        Ok(Self { handles: Arc::new(Handles { shared: Writer::start(dir, lock, options)? }) })
    }

    /// Appends an entry, and returns its sequence once it is on disk.
    ///
    /// Calls are served in order of their first poll. Where the spool is full, they wait for room or fail, as
    /// [`SpoolOptions::on_full`] says.
    ///
    /// It is cancel safe: a future that is dropped while it waits leaves the line, and its entry is not
    /// accepted. If the thread of the spool is writing the entry at that moment, the entry is accepted as a
    /// whole, and nobody learns its sequence.
    ///
    /// # Errors
    ///
    /// [`TooLarge`](SpoolErrorKind::TooLarge), [`Full`](SpoolErrorKind::Full),
    /// [`Closed`](SpoolErrorKind::Closed); [`DiskFull`](SpoolErrorKind::DiskFull) or
    /// [`Io`](SpoolErrorKind::Io) if it could not be written. The entry is not in the spool then, unless the
    /// process dies before it could take out what a failed write left.
    pub async fn append(&self, body: Bytes) -> Result<u64, SpoolError> {
        self.append_all(vec![body]).await
    }

    /// Appends several entries in one piece, and returns their sequences, which follow each other, once all
    /// are on disk.
    ///
    /// This is for who has many messages at hand: it costs less than as many calls of
    /// [`append`](Self::append), and one task reaches large groups with it. They are accepted together or not
    /// at all, also when the call is cancelled, and wait for room together.
    ///
    /// # Errors
    ///
    /// As [`append`](Self::append); [`TooLarge`](SpoolErrorKind::TooLarge), too, if they are more than
    /// [`APPENDS_WAITING_MAX`] entries or are charged more than [`APPENDS_WAITING_MAX_BYTES`] together.
    ///
    /// ```
    /// # use bytes::Bytes;
    /// # use xmsg_connect::spool::{Spool, SpoolOptions};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let spool = Spool::open(dir.path(), SpoolOptions::default())?;
    /// let sequences = spool.append_many(vec![Bytes::from("first"), Bytes::from("second")]).await?;
    /// assert_eq!(sequences, 1..3);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn append_many(&self, bodies: Vec<Bytes>) -> Result<Range<u64>, SpoolError> {
        let entries = bodies.len() as u64;
        if entries == 0 {
            return Ok(0..0);
        }
        let bytes: u64 = bodies.iter().map(|body| body.len() as u64 + ENTRY_OVERHEAD_BYTES).sum();
        if bodies.len() > APPENDS_WAITING_MAX || (bytes > APPENDS_WAITING_MAX_BYTES && entries > 1) {
            self.shared().update(|status| status.refused += entries);
            let dir = self.shared().dir.display();
            let text = format!(
                "{entries} entries of {bytes} bytes are too much at a time for the spool {dir}: append fewer"
            );
            return Err(SpoolError::new(SpoolErrorKind::TooLarge, text));
        }
        let first = self.append_all(bodies).await?;
        Ok(first..first + entries)
    }

    /// Waits until there are entries with sequences above `sequence`, and returns the first of them, in
    /// order: at most `max_entries`, of at most `max_bytes` together, but always at least one.
    ///
    /// They stay in the spool. To replay it from its start, begin with 0.
    ///
    /// A call that comes while a group is being written waits until that is done, some ten milliseconds.
    /// Whoever delivers fast asks for pages of 1,000 entries or more, ahead of need, and not for each entry
    /// that was confirmed.
    ///
    /// It is cancel safe: nothing changes. Up to [`READS_WAITING_MAX`] calls wait for entries; others wait
    /// for their turn.
    pub async fn next_after(
        &self,
        sequence: u64,
        max_entries: usize,
        max_bytes: usize,
    ) -> Result<Vec<Entry>, SpoolError> {
        let permit = self.acquire(&self.shared().reads, 1).await?;
        let (reply, answer) = oneshot::channel();
        self.shared().read(Read { after: sequence, max_entries, max_bytes, reply, _permit: permit })?;
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Takes out entries that were delivered, in any order. Sequences that are not there do no harm.
    ///
    /// This returns at once, unless [`REMOVALS_WAITING_MAX`] removals wait for the disk. They are written
    /// with the next appends, or soon. A process that is killed before that finds the entries again: see
    /// [`sync`](Self::sync). An entry that became too old while it was on its way is taken out of the dead
    /// letters.
    ///
    /// If it is cancelled, a part of the sequences may have been taken.
    pub async fn remove(&self, sequences: &[u64]) -> Result<(), SpoolError> {
        for sequences in sequences.chunks(REMOVAL_MAX) {
            // REMOVAL_MAX is less than 32 bits.
            let permits = self.acquire(&self.shared().removals, sequences.len() as u32).await?;
            self.shared().remove(Removal { sequences: sequences.to_vec(), permits })?;
        }
        Ok(())
    }

    /// Returns once all entries that were removed so far are out of the file, too.
    pub async fn sync(&self) -> Result<(), SpoolError> {
        self.change(|answer| Change::Sync { answer }).await
    }

    /// Makes a dead letter of an entry, and returns once that is on disk. Returns `false` if there is no such
    /// entry.
    ///
    /// Of the reason, [`REASON_MAX_BYTES`] are kept. If the dead letters take more than
    /// [`SpoolOptions::max_dead_bytes`], the oldest are dropped.
    pub async fn dead_letter(&self, sequence: u64, reason: &str) -> Result<bool, SpoolError> {
        // The reason is cut off here already, so that the rest need not wait in the queue.
        let reason: String = reason.chars().take(REASON_MAX_BYTES).collect();
        self.change(|answer| Change::DeadLetter { sequence, reason, answer }).await
    }

    /// Returns the dead letters with sequences above `after`, in order: at most `limit`, of at most
    /// [`DEAD_PAGE_MAX_BYTES`] together, but at least one if there is one.
    pub async fn dead(&self, after: u64, limit: usize) -> Result<Vec<DeadLetter>, SpoolError> {
        self.change(|answer| Change::Dead { after, limit, answer }).await
    }

    /// Puts a dead letter back to the end of the spool, with a new sequence, which this returns. It counts as
    /// accepted now.
    ///
    /// # Errors
    ///
    /// [`NotFound`](SpoolErrorKind::NotFound); [`Full`](SpoolErrorKind::Full), whatever
    /// [`SpoolOptions::on_full`] says; [`Damaged`](SpoolErrorKind::Damaged) if the bytes are not those that
    /// were accepted.
    pub async fn revive(&self, sequence: u64) -> Result<u64, SpoolError> {
        self.change(|answer| Change::Revive { sequence, answer }).await
    }

    /// Drops these dead letters, and returns how many of them there were.
    pub async fn discard_dead(&self, sequences: &[u64]) -> Result<u64, SpoolError> {
        let sequences = Some(sequences.to_vec());
        self.change(|answer| Change::Discard { sequences, answer }).await
    }

    /// Drops all dead letters, and returns how many there were.
    pub async fn discard_all_dead(&self) -> Result<u64, SpoolError> {
        self.change(|answer| Change::Discard { sequences: None, answer }).await
    }

    /// Drops all entries, but not the dead letters, and returns how many there were. It takes about two
    /// seconds for 1,000,000 entries.
    pub async fn purge(&self) -> Result<Purged, SpoolError> {
        self.change(|answer| Change::Purge { answer }).await
    }

    /// Returns what is in the spool, and what has happened to it. This never touches the disk.
    #[must_use]
    pub fn status(&self) -> SpoolStatus {
        self.shared().status()
    }

    /// Returns the options that hold at this moment.
    #[must_use]
    pub fn options(&self) -> SpoolOptions {
        self.shared().options()
    }

    /// Changes the options. Nothing is dropped if a limit becomes lower than what is inside: appends wait or
    /// fail until enough has left. Appends that wait meanwhile follow the new options.
    pub fn set_options(&self, options: SpoolOptions) {
        self.shared().set_options(options);
    }

    /// Closes the spool: later calls, and appends that wait for room, fail with
    /// [`Closed`](SpoolErrorKind::Closed). Once this returns, all that was accepted or confirmed is on disk,
    /// and the directory can be opened again.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](SpoolErrorKind::TimedOut) if the disk does not answer within [`CLOSE_MAX`]. The thread
    /// goes on, and ends when it can.
    pub async fn close(&self) -> Result<(), SpoolError> {
        let shared = self.shared();
        shared.close();
        let mut ended = shared.ended.subscribe();
        // The sender is part of what this handle holds, so that waiting ends with the value only.
        let result = tokio::time::timeout(CLOSE_MAX, ended.wait_for(|ended| *ended)).await.map(|_| ());
        result.map_err(|_| {
            let (dir, seconds) = (shared.dir.display(), CLOSE_MAX.as_secs());
            let text = format!(
                "the spool {dir} was not closed within {seconds} seconds: look whether the disk answers"
            );
            SpoolError::new(SpoolErrorKind::TimedOut, text)
        })
    }

    /// Appends entries together, and returns the sequence of the first one.
    async fn append_all(&self, bodies: Vec<Bytes>) -> Result<u64, SpoolError> {
        let shared = self.shared();
        let (reply, answer) = oneshot::channel();
        let mut guard = AppendGuard { shared, ticket: Some(shared.append(Append { bodies, reply })?) };
        let answer = answer.await;
        guard.ticket = None;
        answer.unwrap_or_else(|_| Err(self.closed()))
    }

    async fn change<T>(&self, change: impl FnOnce(DeferredReply<T>) -> Change) -> Result<T, SpoolError> {
        let permit = self.acquire(&self.shared().changes, 1).await?;
        let (reply, answer) = oneshot::channel();
        self.shared().change(ChangeCall { change: change(DeferredReply::new(reply)), permit })?;
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    async fn acquire(
        &self,
        semaphore: &Arc<Semaphore>,
        permits: u32,
    ) -> Result<OwnedSemaphorePermit, SpoolError> {
        Arc::clone(semaphore).acquire_many_owned(permits).await.map_err(|_| self.closed())
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handles.shared
    }

    fn closed(&self) -> SpoolError {
        SpoolError::closed(&self.shared().dir)
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool").field("dir", &self.shared().dir).finish_non_exhaustive()
    }
}

/// All handles on a spool. When the last one is dropped, the thread writes what it has accepted, and ends.
struct Handles {
    shared: Arc<Shared>,
}

impl Drop for Handles {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// A guard that cancels an append that waits when its future is dropped.
struct AppendGuard<'a> {
    shared: &'a Shared,
    ticket: Option<u64>,
}

impl Drop for AppendGuard<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.shared.cancel_append(ticket);
        }
    }
}
