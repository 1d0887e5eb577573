//! The status of a spool at a moment.

use std::time::SystemTime;

use super::SpoolError;

/// What is in a spool, and what happened to it since it was opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SpoolStatus {
    /// The number of entries.
    pub entries: u64,
    /// Bytes that are charged for them: their bodies, and
    /// [`ENTRY_OVERHEAD_BYTES`](super::ENTRY_OVERHEAD_BYTES) for each.
    pub bytes: u64,
    /// When the oldest of them was accepted.
    pub oldest_accepted_at: Option<SystemTime>,
    /// The sequence of the latest entry, inside or not; 0 before the first one.
    pub newest_sequence: u64,
    /// The number of dead letters.
    pub dead_entries: u64,
    /// Bytes that are charged for them.
    pub dead_bytes: u64,
    /// Bytes that the store's file takes on the disk, with what is free in it and will be used again.
    pub file_bytes: u64,
    /// Entries that wait for the disk, or for room, to be appended.
    pub waiting: u64,
    /// Entries that were confirmed and whose removal is not on disk yet.
    pub unsynced_removals: u64,
    /// Entries that were accepted since it was opened.
    pub accepted: u64,
    /// Commits to the disk since it was opened. Many entries share one.
    pub commits: u64,
    /// Entries that became dead letters because they were too old.
    pub expired: u64,
    /// Entries whose bytes were found damaged. They became dead letters, too.
    pub damaged: u64,
    /// Times that the store's file was damaged as a whole: it was kept aside, and what could be read went
    /// into a new one.
    pub rebuilt: u64,
    /// Entries and dead letters that could not be read then, or that were counted and are not there. A file
    /// that cannot be opened at all does not say how many it had: those are missing here.
    pub lost: u64,
    /// Dead letters that were dropped because there was no room for them.
    pub dead_dropped: u64,
    /// Entries that were refused: because the spool was full, or they were too large.
    pub refused: u64,
    /// Entries that were not accepted because writing to the disk failed.
    pub failed: u64,
    /// What failed last, even if it has worked since.
    pub last_error: Option<SpoolError>,
}
