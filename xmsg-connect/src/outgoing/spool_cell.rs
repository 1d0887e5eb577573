//! The spool of an outgoing connection, which may not be open yet, or cannot be opened: then this one
//! connection is at fault, and all others go on.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::files::create_anew;
use xmsg_zmq::lock::lock;

use super::{OutgoingPlan, storage};
use crate::blocking::run_on_own_thread;
use crate::definition::Reconnect;
use crate::error::{Error, ErrorKind, Result};
use crate::spool::{Spool, SpoolOptions, SpoolStatus};
use crate::status::{LinkState, Status};
use crate::supervise::{Backoff, Plan};

/// How long a send waits for a spool that is being opened.
const OPENED_WITHIN: Duration = Duration::from_secs(5);
/// The file in the folder of a spool which says that all of it is to be deleted.
const TOMBSTONE: &str = "purge";

/// A cell that holds a spool once it is open.
#[derive(Debug)]
pub(crate) struct SpoolCell {
    path: PathBuf,
    options: Mutex<SpoolOptions>,
    spool: OnceLock<Spool>,
    /// Why it could not be opened last; `None` while that is tried, and after it has succeeded.
    failure: watch::Sender<Option<Error>>,
    /// Cancelled after the first attempt to open it, which has succeeded or failed.
    attempted: CancellationToken,
}

impl SpoolCell {
    pub(super) fn new(path: PathBuf, options: SpoolOptions) -> Self {
        Self {
            path,
            options: Mutex::new(options),
            spool: OnceLock::new(),
            failure: watch::Sender::new(None),
            attempted: CancellationToken::new(),
        }
    }

    /// Returns the spool, or why it can't be used.
    pub(crate) fn get(&self) -> Result<&Spool> {
        self.spool.get().ok_or_else(|| match self.failure.borrow().clone() {
            Some(error) => error,
            None => Error::new(
                ErrorKind::Storage,
                format!("the spool {} is still being opened", self.path.display()),
            ),
        })
    }

    /// Returns the spool, and waits for a moment while it is being opened.
    pub(super) async fn get_or_wait(&self) -> Result<&Spool> {
        if self.spool.get().is_none() {
            self.wait_for_attempt(OPENED_WITHIN).await;
        }
        self.get()
    }

    /// Waits until it is open, however long that takes.
    pub(super) async fn wait_until_open(&self) {
        let mut failures = self.failure.subscribe();
        while self.spool.get().is_none() {
            // The sender is here, so that it can't have gone.
            let _ = failures.changed().await;
        }
    }

    /// Waits until it is open or could not be opened, for at most this time.
    pub(crate) async fn wait_for_attempt(&self, limit: Duration) {
        let _ = Deadline::after(limit).limit(self.attempted.cancelled()).await;
    }

    /// Returns what is in it. Nothing is known while it is not open.
    pub(crate) fn status(&self) -> SpoolStatus {
        self.spool.get().map(Spool::status).unwrap_or_default()
    }

    /// Returns why it can't be used, if it can't.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.get().err()
    }

    pub(super) fn set_options(&self, options: SpoolOptions) {
        *lock(&self.options) = options.clone();
        if let Some(spool) = self.spool.get() {
            spool.set_options(options);
        }
    }

    pub(super) async fn close(&self) -> Result<()> {
        match self.spool.get() {
            Some(spool) => spool.close().await.map_err(storage),
            None => Ok(()),
        }
    }

    /// Opens it, and tries that again after pauses and whenever the plan changes. Returns false when there
    /// are no plans any more. `folder_free` says when whoever had the folder before has left it.
    pub(super) async fn open(
        &self,
        status: &Status,
        plans: &mut watch::Receiver<Plan<OutgoingPlan>>,
        folder_free: Option<CancellationToken>,
    ) -> bool {
        if let Some(folder_free) = folder_free {
            tokio::select! {
                () = folder_free.cancelled() => {}
                () = plans_ended(plans) => return false,
            }
        }
        let mut backoff = Backoff::default();
        loop {
            plans.mark_unchanged();
            let options = lock(&self.options).clone();
            let opened = tokio::select! {
                opened = open_on_a_thread(self.path.clone(), options) => opened,
                () = plans_ended(plans) => return false,
            };
            match opened {
                Ok(spool) => {
                    // The options may have changed meanwhile.
                    spool.set_options(lock(&self.options).clone());
                    let _ = self.spool.set(spool);
                    self.failure.send_replace(None);
                    self.attempted.cancel();
                    return true;
                }
                Err(error) => {
                    status.fail(LinkState::Faulted, error.with_causes());
                    self.failure.send_replace(Some(error));
                    self.attempted.cancel();
                }
            }
            let pause = Deadline::after(backoff.next(Reconnect::default()));
            tokio::select! {
                () = pause.passed() => {}
                changed = plans.changed() => if changed.is_err() { return false },
            }
        }
    }
}

/// Returns once there are no plans any more. What else changes is seen later.
async fn plans_ended(plans: &watch::Receiver<Plan<OutgoingPlan>>) {
    let mut plans = plans.clone();
    while plans.changed().await.is_ok() {}
}

/// Opens a spool on a thread of its own: a disk that does not answer holds up that thread, and nobody else.
/// It is closed again if nobody waits any more.
async fn open_on_a_thread(path: PathBuf, options: SpoolOptions) -> Result<Spool> {
    let work = move || {
        // The entry of this spool exists, so a deletion was cut short before it counted.
        match std::fs::remove_file(path.join(TOMBSTONE)) {
            Err(error) if !is_absent(&error) => Err(spool_error(&path, error)),
            _ => Spool::open(&path, options).map_err(storage),
        }
    };
    run_on_own_thread("opening a spool", work).await
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

fn spool_error(path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Storage, format!("the spool {} can't be used", path.display())).with_source(error)
}

/// Writes a file that says that all of this folder is to be deleted, also by whoever finds it after a crash.
pub(crate) fn write_tombstone(path: &Path) -> Result<()> {
    let write = || {
        create_anew(&path.join(TOMBSTONE))?.sync_all()?;
        std::fs::File::open(path)?.sync_all()
    };
    match write() {
        // A path that is no folder is moved away as it is.
        Err(error) if is_absent(&error) => Ok(()),
        written => written.map_err(|error| spool_error(path, error)),
    }
}

/// Removes the file that [`write_tombstone`] has written.
pub(crate) fn remove_tombstone(path: &Path) {
    let _ = std::fs::remove_file(path.join(TOMBSTONE));
}

/// Returns whether a file says that all of this folder is to be deleted.
pub(crate) fn has_tombstone(path: &Path) -> bool {
    path.join(TOMBSTONE).exists()
}
