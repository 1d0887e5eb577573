//! The handling of failures of the store: the thread says why, and opens the file again or rebuilds it.

use std::path::Path;
use std::time::{Duration, Instant};

use tracing::warn;
use xmsg_zmq::deadline::later;

use super::{RETRY, ROOM_AFTER_FULL, Writer};
use crate::spool::error::is_disk_full;
use crate::spool::queue::Append;
use crate::spool::store::{Store, StoreError};
use crate::spool::{APPENDS_WAITING_MAX, SpoolError, SpoolErrorKind, salvage};

impl Writer {
    /// Checks that there may be room for these appends on the disk, after there was none.
    pub(super) fn check_disk(&mut self, appends: &[Append]) -> Result<(), SpoolError> {
        let Err(error) = self.reserve.hold() else {
            self.full_at = None;
            return Ok(());
        };
        let inside = self.store.as_ref().map_or(0, |store| store.totals().bytes + store.totals().dead_bytes);
        let full_at = *self.full_at.get_or_insert(inside);
        let cost: u64 = appends.iter().map(Append::cost).sum();
        if inside + cost + ROOM_AFTER_FULL <= full_at {
            // What has left the spool is free space in its file.
            return Ok(());
        }
        let error = SpoolError::io("keep space for removals in", &self.shared.dir, error);
        self.record_failure(&error);
        Err(error)
    }

    /// Gives free space in the file back to the disk.
    pub(super) fn compact(&mut self) {
        self.compact_due = None;
        let result = self.with_store(Store::compact);
        self.compacted_bytes = self.store.as_ref().map_or(0, Store::file_bytes);
        if result.is_ok() {
            self.update_status(|_| {});
        }
    }

    /// Runs `work` with the store. If that fails, the store is opened again or rebuilt, and after the latter
    /// `work` is run once more.
    pub(super) fn with_store<T>(
        &mut self,
        mut work: impl FnMut(&mut Store) -> Result<T, StoreError>,
    ) -> Result<T, SpoolError> {
        let mut is_second = false;
        loop {
            let mut store = match self.store.take() {
                Some(store) => store,
                None => self.reopen()?,
            };
            let totals = store.totals();
            let error = match work(&mut store) {
                Ok(done) => {
                    self.store = Some(store);
                    return Ok(done);
                }
                Err(error) => error,
            };
            store.discard();
            let cause = match error {
                StoreError::Damaged(cause) if !is_second => cause,
                error => {
                    if matches!(&error, StoreError::Io(error) if is_disk_full(error)) {
                        self.full_at.get_or_insert(totals.bytes + totals.dead_bytes);
                        self.reserve.give_up();
                    }
                    let error = spool_error(&self.shared.dir, "use the spool", error);
                    self.record_failure(&error);
                    if let Ok(store) = self.reopen() {
                        // Whoever appended these is told that they are not there.
                        let left =
                            totals.next..store.totals().next.min(totals.next + APPENDS_WAITING_MAX as u64);
                        self.pending_removals.extend(left);
                        self.store = Some(store);
                    }
                    return Err(error);
                }
            };
            is_second = true;
            match salvage::rebuild(&self.shared.dir, &cause) {
                Ok((store, rebuilt)) => {
                    self.store = Some(store);
                    let text = format!(
                        "the file of the spool {} was damaged: it is kept aside, and a new one has what could be read",
                        self.shared.dir.display()
                    );
                    let error = SpoolError::new(SpoolErrorKind::Damaged, text).with_source(cause);
                    self.update_status(|status| {
                        status.rebuilt += rebuilt.times;
                        status.lost += rebuilt.lost;
                        status.last_error = Some(error);
                    });
                }
                Err(error) => {
                    let error = spool_error(&self.shared.dir, "rebuild the spool", error);
                    self.record_failure(&error);
                    return Err(error);
                }
            }
        }
    }

    /// Opens the store after a failure.
    fn reopen(&mut self) -> Result<Store, SpoolError> {
        match salvage::open(&self.shared.dir) {
            Ok((store, rebuilt)) => {
                self.shared.update(|status| {
                    status.rebuilt += rebuilt.times;
                    status.lost += rebuilt.lost;
                });
                Ok(store)
            }
            Err(error) => {
                let error = spool_error(&self.shared.dir, "open the spool again", error);
                self.record_failure(&error);
                Err(error)
            }
        }
    }

    /// Updates the state of the thread after a failure.
    fn record_failure(&mut self, error: &SpoolError) {
        // With the reserve given up, removals are worth a try at once; after that, now and then.
        let wait = if self.retry_at.is_some() { RETRY } else { Duration::ZERO };
        if self.retry_at.is_none() {
            warn!(spool = %self.shared.dir.display(), error = ?error, "the spool cannot be written: appends fail");
        }
        self.retry_at = Some(later(Instant::now(), wait));
        self.shared.update(|status| status.last_error = Some(error.clone()));
    }
}

/// Makes an error of the spool from one of the store.
pub(super) fn spool_error(dir: &Path, doing: &str, error: StoreError) -> SpoolError {
    match error {
        StoreError::Io(error) => SpoolError::io(doing, dir, error),
        StoreError::Damaged(cause) => {
            let text = format!(
                "cannot {doing} {}: the file is damaged, and so is what was read of it",
                dir.display()
            );
            SpoolError::new(SpoolErrorKind::Damaged, text).with_source(cause)
        }
        StoreError::InUse => {
            let text =
                format!("cannot {doing} {}: another process uses the file: close it there", dir.display());
            SpoolError::new(SpoolErrorKind::InUse, text)
        }
    }
}
