//! The changes that a reload of the settings would make, as the daemon finds them out.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Mutex;
use xmsg_zmq::deadline::Deadline;

use crate::settings::{Change, SettingsError};

/// How long a result is used again, so that files are not read more often, however many ask.
const CACHED_FOR: Duration = Duration::from_secs(1);
/// How long reading may take. A file can let whoever reads it wait for as long as it likes.
const READ_TIME: Duration = Duration::from_secs(5);

/// What differs between the settings in force and those that a reload would read.
#[derive(Clone, Debug, Default)]
pub struct PendingChanges {
    /// Whether there is a settings file.
    pub has_file: bool,
    /// Settings that differ.
    pub changes: Vec<Change>,
    /// Settings that are the same, but name files whose content is another one, and whether a reload takes
    /// that over.
    pub contents: Vec<(&'static str, bool)>,
}

type PendingResult = Result<PendingChanges, SettingsError>;

/// Finds out what a reload would change. It reads files, and may take as long as these.
#[derive(Clone)]
pub struct Pending(Arc<dyn Fn() -> PendingResult + Send + Sync>);

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}

impl Pending {
    /// Makes it of a function that finds out the changes. It is called on a thread that may block.
    pub fn new(find: impl Fn() -> Result<PendingChanges, SettingsError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(find))
    }
}

/// A reader that all requests share. It reads one at a time, and not again within a moment.
#[derive(Debug)]
pub(super) struct Reader {
    pending: Pending,
    last: Arc<Mutex<Option<(Instant, PendingResult)>>>,
}

impl Reader {
    pub(super) fn new(pending: Pending) -> Self {
        Self { pending, last: Arc::default() }
    }

    /// Returns what a reload would change, and `None` if the files are still being read.
    pub(super) async fn read(&self, runtime: &Handle) -> Option<PendingResult> {
        let (pending, last) = (self.pending.clone(), self.last.clone());
        let read = async {
            let mut last = last.lock_owned().await;
            if let Some((at, found)) = &*last
                && at.elapsed() < CACHED_FOR
            {
                return Some(found.clone());
            }
            // The lock moves into the thread, so that one thread at most waits for a file, however many ask.
            let reading = runtime.spawn_blocking(move || {
                let found = (pending.0)();
                *last = Some((Instant::now(), found.clone()));
                found
            });
            reading.await.ok()
        };
        Deadline::after(READ_TIME).limit(read).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn who_asks_in_the_same_moment_gets_the_same_answer() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let reader = Reader::new(Pending::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Err(SettingsError::new("a mistake"))
        }));
        let runtime = Handle::current();
        let (one, other) = tokio::join!(reader.read(&runtime), reader.read(&runtime));
        let says = |found: Option<PendingResult>| found.unwrap().unwrap_err().to_string();
        assert_eq!((says(one), says(other)), ("a mistake".to_owned(), "a mistake".to_owned()));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_lets_one_wait_keeps_one_thread_and_nobody_else() {
        let calls = Arc::new(AtomicUsize::new(0));
        let (counted, (go_on, wait)) = (calls.clone(), std::sync::mpsc::channel::<()>());
        let wait = std::sync::Mutex::new(wait);
        let reader = Reader::new(Pending::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            // It goes on when the test has ended.
            let _ = wait.lock().unwrap().recv();
            Ok(PendingChanges::default())
        }));
        // The clock of the test does not move while a thread blocks in the same runtime.
        let elsewhere = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        for _ in 0..3 {
            assert!(reader.read(elsewhere.handle()).await.is_none());
        }
        assert!(calls.load(Ordering::Relaxed) <= 1);
        drop(go_on);
        elsewhere.shutdown_background();
    }
}
