//! Batches of changes on their way to the disk, and what happens while the disk does not accept them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use xmsg_core::{Error, ErrorKind, Result};
use xmsg_zmq::deadline::Deadline;

use super::{Batch, Service};
use crate::registrar::journal::Journal;

/// The shortest and the longest pause after a failed attempt to write. The pause is ten times as long as the
/// attempt.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// The state in which the disk does not accept changes.
#[derive(Debug)]
pub(super) struct WriteFailure {
    pub(super) status: String,
    pub(super) retry: Deadline,
}

/// The result of an attempt to write.
#[derive(Debug)]
pub(super) struct Written {
    journal: Journal,
    /// The encoded entries of the batch.
    entries: Vec<u8>,
    result: Result<()>,
    took: Duration,
}

impl Service {
    /// Writes the batch, unless another one is being written. Without a batch, it may probe the disk.
    pub(super) fn write(&mut self) {
        if !self.applying.changes.is_empty() || self.waits_for_compaction() {
            return;
        }
        let Some(mut journal) = self.journal.take() else { return };
        let (has_changes, in_trouble) = (!self.gathering.changes.is_empty(), self.write_failure.is_some());
        // A broken journal is replaced with the first change.
        let next = if has_changes || in_trouble || self.compaction.is_some() {
            self.next_files(&journal)
        } else {
            None
        };
        let is_idle = next.is_none() && (journal.is_broken() || !(has_changes || in_trouble));
        if is_idle {
            self.journal = Some(journal);
            return;
        }
        let mut batch = std::mem::take(&mut self.gathering);
        batch.position = journal.position();
        let mut entries = std::mem::take(&mut batch.entries);
        let commit = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let result = match next {
                Some(files) => journal.switch(files, &mut entries),
                None if entries.is_empty() => journal.probe(),
                None => journal.append(&mut entries),
            };
            Written { journal, entries, result, took: started.elapsed() }
        });
        self.writing = Some((commit, batch));
        self.make_room();
    }

    /// Applies the changes of a batch that is on the disk, or refuses those of one that failed.
    pub(super) fn on_written(&mut self, done: Result<Written, JoinError>) {
        let Some((_, mut batch)) = self.writing.take() else { return };
        let (result, took) = match done {
            Ok(Written { journal, entries, result, took }) => {
                self.journal = Some(journal);
                batch.entries = entries;
                (result, took)
            }
            Err(error) => {
                let lost = Error::new(ErrorKind::Io, "the journal was lost").with_source(error);
                (Err(lost), Duration::ZERO)
            }
        };
        match result {
            Ok(()) => {
                if self.write_failure.take().is_some() {
                    // The state is set before it is logged, so that readers of the log see the new state.
                    self.counters.is_unwritable.store(false, Ordering::Relaxed);
                    tracing::info!("changes are stored again");
                }
                self.applying = Batch { entries: Vec::new(), ..batch };
            }
            Err(error) => {
                if let Some(batch) = self.requeue(batch) {
                    let status = self.failed(&error, took);
                    self.refuse_batch(batch, &status);
                }
            }
        }
        self.end_failed_compaction();
        if self.journal.is_none() {
            // Nothing can be stored any more.
            self.stop.cancel();
            tracing::error!("the registrar ends: its journal can't be used any more");
            return;
        }
        self.apply_some();
        self.make_room();
    }

    /// Refuses the changes of a failed batch, and those that collected meanwhile, which would fail, too.
    pub(super) fn refuse_batch(&mut self, batch: Batch, status: &str) {
        let gathered = std::mem::take(&mut self.gathering).changes;
        for (path, action, change) in batch.changes.into_iter().chain(gathered) {
            change.give_up(&mut self.store);
            self.answer(&path, self.reply(action, Err(status.to_owned())));
            self.change_is_done(path.peer());
        }
    }

    /// Records that changes can't be written. Returns the status for the clients that sent them.
    pub(super) fn failed(&mut self, error: &Error, took: Duration) -> String {
        self.counters.write_failures.fetch_add(1, Ordering::Relaxed);
        self.counters.is_unwritable.store(true, Ordering::Relaxed);
        let reason = error.with_causes().to_string();
        let pause = (took * 10).clamp(RETRY_MIN, RETRY_MAX);
        if let Some(unlogged) = self.write_log.pass("changes that could not be stored") {
            tracing::error!(
                reason,
                retry_s = pause.as_secs_f64(),
                unlogged,
                "changes can't be stored, and are refused"
            );
        }
        let status = format!("not stored: {reason}; it is tried again, ask again later");
        self.write_failure = Some(WriteFailure { status: status.clone(), retry: Deadline::after(pause) });
        status
    }
}

/// Waits for the end of the current commit, or for ever if there is none.
pub(super) async fn committed(
    writing: Option<&mut (JoinHandle<Written>, Batch)>,
) -> Result<Written, JoinError> {
    match writing {
        Some((commit, _)) => commit.await,
        None => std::future::pending().await,
    }
}
