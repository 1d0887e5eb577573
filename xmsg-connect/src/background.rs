//! Work that waits for the disk.

use crate::error::{Error, ErrorKind, Result};

/// Runs what waits for the disk, where it holds up nobody.
pub(crate) async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|error| Error::new(ErrorKind::Closed, "the runtime has ended").with_source(error))?
}
