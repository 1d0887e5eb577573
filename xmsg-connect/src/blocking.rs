//! Work that waits for the disk.

use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};

/// Runs what waits for the disk on a thread of the runtime for that, where it holds up no task.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|error| Error::new(ErrorKind::Closed, "the runtime has ended").with_source(error))?
}

/// Runs what waits for a disk that may not answer, on a thread of its own: others that wait for theirs find
/// the threads for that free.
pub(crate) async fn run_on_own_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, answer) = oneshot::channel();
    let work = move || {
        // The send fails if nobody waits any more.
        let _ = done.send(work());
    };
    let failed =
        |error: std::io::Error| Error::new(ErrorKind::Storage, "no thread can be started").with_source(error);
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(failed)?;
    answer.await.map_err(|_| Error::new(ErrorKind::Storage, "a fault of this program has ended a thread"))?
}
