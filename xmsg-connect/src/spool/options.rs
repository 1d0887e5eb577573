//! The options of a spool.

use std::time::Duration;

/// The limits of a spool, and how it writes. The values are checked where they are read from the
/// configuration.
///
/// ```
/// use std::time::Duration;
/// use xmsg_connect::spool::{OnFull, SpoolOptions};
///
/// let mut options = SpoolOptions::default();
/// options.max_bytes = 256 << 20;
/// options.max_age = Some(Duration::from_secs(24 * 60 * 60));
/// options.on_full = OnFull::Reject;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpoolOptions {
    /// Bytes that the entries may take: of each its body, and
    /// [`ENTRY_OVERHEAD_BYTES`](super::ENTRY_OVERHEAD_BYTES). The file on disk is larger: about 1.35 times as
    /// large with bodies of 1 KiB. Default: 1 GiB.
    pub max_bytes: u64,
    /// An entry that has waited for so long becomes a dead letter. Default: `None`, which keeps it for ever.
    pub max_age: Option<Duration>,
    /// What becomes of an append that finds no room. Default: [`OnFull::Block`].
    pub on_full: OnFull,
    /// How many entries share one write to the disk. Default: [`Fsync::Batch`].
    pub fsync: Fsync,
    /// Bytes that the body of one entry may have. Default: 64 MiB.
    pub max_entry_bytes: usize,
    /// Bytes that dead letters may take: of each its body, its reason, and
    /// [`ENTRY_OVERHEAD_BYTES`](super::ENTRY_OVERHEAD_BYTES). Beyond that the oldest dead letters are
    /// dropped, which is logged and counted in
    /// [`SpoolStatus::dead_dropped`](super::SpoolStatus::dead_dropped). Default: 256 MiB.
    pub max_dead_bytes: u64,
}

impl Default for SpoolOptions {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 30,
            max_age: None,
            on_full: OnFull::Block,
            fsync: Fsync::Batch,
            max_entry_bytes: 64 << 20,
            max_dead_bytes: 256 << 20,
        }
    }
}

/// What becomes of an append that finds the spool full. Nothing that was accepted is ever dropped to make
/// room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// It waits for room, first come, first served.
    Block,
    /// It fails with [`SpoolErrorKind::Full`](super::SpoolErrorKind::Full).
    Reject,
}

/// How many entries share one write to the disk. Either way an append returns once its entry is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Each entry is written and synced alone.
    Always,
    /// All entries that wait are written and synced together (group commit).
    Batch,
}
