//! The error of the spool: what failed, where, why, and what can be done about it.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What went wrong with a spool, as a value to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SpoolErrorKind {
    /// There is no room now: the spool is at its limit, or too many appends wait already.
    Full,
    /// The body is larger than a limit allows: it was not accepted, and will not be.
    TooLarge,
    /// The spool was closed.
    Closed,
    /// Another spool, in this process or another one, has the directory open.
    InUse,
    /// There is no entry, or no dead letter, of this sequence.
    NotFound,
    /// The record, or the file, is damaged.
    Damaged,
    /// The disk, or the quota on it, is full. It works again once there is room.
    DiskFull,
    /// It did not end within the time that it has.
    TimedOut,
    /// The operating system refused.
    Io,
}

/// An error of a spool. `Display` says what failed, where, and what can be done about it;
/// [`source`](StdError::source) is what the layer below said. Clones share both.
///
/// ```
/// use xmsg_connect::spool::{Spool, SpoolErrorKind, SpoolOptions};
///
/// let error = Spool::open("/dev/null/spool".as_ref(), SpoolOptions::default()).unwrap_err();
/// assert_eq!(error.kind(), SpoolErrorKind::Io);
/// assert!(error.to_string().contains("/dev/null/spool"));
/// ```
#[derive(Clone)]
pub struct SpoolError {
    kind: SpoolErrorKind,
    context: Arc<str>,
    source: Option<Arc<dyn StdError + Send + Sync + 'static>>,
}

impl SpoolError {
    /// Returns what went wrong, to match on.
    #[must_use]
    pub fn kind(&self) -> SpoolErrorKind {
        self.kind
    }

    pub(super) fn new(kind: SpoolErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into().into(), source: None }
    }

    pub(super) fn with_source(
        mut self,
        source: impl Into<Box<dyn StdError + Send + Sync + 'static>>,
    ) -> Self {
        self.source = Some(source.into().into());
        self
    }

    pub(super) fn closed(path: &Path) -> Self {
        Self::new(SpoolErrorKind::Closed, format!("the spool {} was closed", path.display()))
    }

    /// Makes the error for what the operating system refused, while `doing` something with `path`.
    pub(super) fn io(doing: &str, path: &Path, source: io::Error) -> Self {
        let (kind, advice) = if is_disk_full(&source) {
            (SpoolErrorKind::DiskFull, ": make room on this disk, and it works again")
        } else {
            (SpoolErrorKind::Io, ": check the disk, and who may write there")
        };
        Self::new(kind, format!("cannot {doing} {}{advice}", path.display())).with_source(source)
    }
}

/// Returns whether the cause is that the disk, or the quota on it, is full.
pub(super) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl fmt::Display for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl fmt::Debug for SpoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.context)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl StdError for SpoolError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
