//! How many files and connections a process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of open descriptors of this process as far as its user may, and returns it. The usual
/// limit, 1024, is soon used up.
///
/// ```
/// assert!(xmsg_proxy::descriptors::raise_limit() >= 3); // the standard streams
/// ```
#[must_use]
pub fn raise_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(error) => {
            tracing::info!(%error, "the limit of open file descriptors was not raised");
            limit.current
        }
    };
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}
