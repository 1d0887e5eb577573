//! The salvage of a spool whose file is damaged: what can be read goes into a new file, and the damaged one
//! is kept aside.
//!
//! A record whose bytes are damaged is not a case for this, since it becomes a dead letter. This is for
//! damage to the pages that hold the records together, which the database reports as an error or as a panic.
//!
//! The new file is complete and on disk before the damaged one is renamed. A process that dies between the
//! two renames leaves the new file under its temporary name, and the next [`open`] goes on from there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use redb::{ReadOnlyTable, ReadableDatabase, TableDefinition};
use tracing::error;

use super::record::millis;
use super::store::{
    CACHE_BYTES, DEAD, ENTRIES, Store, StoreError, catch_damage, stored_totals, sync_folder_of,
};
use super::tables::{Tables, Totals};

/// The name of the file in the directory of a spool.
pub(super) const FILE: &str = "spool.redb";
/// The file that is being made of a damaged one.
const NEW_FILE: &str = "spool.redb.new";
/// How many damaged files are kept. Beyond that the oldest one is removed.
pub(super) const DAMAGED_FILES_MAX: usize = 4;
/// How many records, and bytes of them, are copied in one transaction.
const COPIED_AT_ONCE: usize = 4096;
const COPIED_BYTES: usize = 4 << 20;

/// What a rebuild of a damaged file has done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rebuilt {
    /// Times that a file was rebuilt.
    pub times: u64,
    /// Entries and dead letters that could not be read, as far as the damaged file says how many it had.
    pub lost: u64,
}

/// Opens the store of this directory, and rebuilds it if it has to.
pub(super) fn open(dir: &Path) -> Result<(Store, Rebuilt), StoreError> {
    let (file, new_file) = (dir.join(FILE), dir.join(NEW_FILE));
    if new_file.try_exists()? {
        if file.try_exists()? {
            // The damaged file is still in its place, so the draft need not be complete.
            fs::remove_file(&new_file)?;
        } else {
            fs::rename(&new_file, &file)?;
            sync_folder_of(&file)?;
        }
    }
    // The sequences of a file that was lost must not be given again, and it does not say which they were.
    let is_new = !file.try_exists()? && damaged_files(dir)?.is_empty();
    let first = if is_new { 1 } else { unused_sequence() };
    match Store::open(&file, first) {
        Err(StoreError::Damaged(cause)) => rebuild(dir, &cause),
        opened => Ok((opened?, Rebuilt::default())),
    }
}

/// Makes a new file of what can be read of the damaged one, which nobody has open. The damaged one is kept
/// aside.
pub(super) fn rebuild(dir: &Path, cause: &str) -> Result<(Store, Rebuilt), StoreError> {
    let (file, new_file) = (dir.join(FILE), dir.join(NEW_FILE));
    if new_file.try_exists()? {
        fs::remove_file(&new_file)?;
    }
    let mut store = Store::open(&new_file, unused_sequence())?;
    let now_ms = millis(SystemTime::now());
    // Without the state of its allocator, which only writing needs, a database can still be read.
    let copied = catch_damage(|| Ok(builder().create(&file)?))
        .and_then(|damaged| copy_all(damaged, &mut store, now_ms))
        .or_else(|_| {
            catch_damage(|| Ok(builder().open_read_only(&file)?))
                .and_then(|damaged| copy_all(damaged, &mut store, now_ms))
        });
    // A database that does not open at all has nothing to read: the new file stays empty then.
    let before = match copied {
        Ok(before) => before,
        Err(StoreError::Damaged(_)) => None,
        // The error says nothing of the file, so the file stays where it is.
        Err(error) => return Err(error),
    };
    let totals = store.totals();
    drop(store);
    let lost = before.map(|before| {
        (before.entries + before.dead_entries).saturating_sub(totals.entries + totals.dead_entries)
    });
    let aside = keep_aside(dir, &file)?;
    fs::rename(&new_file, &file)?;
    sync_folder_of(&file)?;
    error!(
        spool = %dir.display(),
        cause,
        kept_aside = %aside.display(),
        entries = totals.entries,
        dead_letters = totals.dead_entries,
        lost = lost.map_or_else(|| "an unknown number".to_owned(), |lost| lost.to_string()),
        "the file of the spool is damaged: what could be read is in a new one, and may be delivered again"
    );
    let rebuilt = Rebuilt { times: 1, lost: lost.unwrap_or(0) };
    Ok((Store::open(&file, unused_sequence())?, rebuilt))
}

/// Returns a sequence that is larger than any given before, without knowing them: the microseconds since
/// 1970. A spool that starts with 1 and takes less than a million entries a second stays below that.
fn unused_sequence() -> u64 {
    millis(SystemTime::now()).saturating_mul(1000)
}

fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Copies what can be read. Returns how much there was, if the file says so.
fn copy_all(from: impl ReadableDatabase, to: &mut Store, now_ms: u64) -> Result<Option<Totals>, StoreError> {
    let before = catch_damage(|| stored_totals(&from)).ok().flatten();
    let copied =
        copy(&from, ENTRIES, to, |tables, sequence, record| tables.restore_entry(sequence, record, now_ms))
            .and_then(|()| {
                #[expect(
                    clippy::redundant_closure_for_method_calls,
                    reason = "the path of the method has one lifetime only"
                )]
                copy(&from, DEAD, to, |tables, sequence, record| tables.restore_dead(sequence, record))
            });
    // A damaged database may panic when it is closed, too.
    let _ = catch_damage(|| {
        drop(from);
        Ok(())
    });
    copied.map(|()| before)
}

/// Copies the records of a table, but for those that cannot be read.
fn copy(
    from: &impl ReadableDatabase,
    table: TableDefinition<'static, u64, &'static [u8]>,
    to: &mut Store,
    mut put: impl FnMut(&mut Tables<'_>, u64, &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let Ok(table) = catch_damage(|| Ok(from.begin_read()?.open_table(table)?)) else { return Ok(()) };
    let mut next = Some(0);
    while next.is_some() {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while let Some(from) = next
            && records.len() < COPIED_AT_ONCE
            && bytes < COPIED_BYTES
        {
            let Some((sequence, record)) = first_readable(&table, from) else {
                next = None;
                break;
            };
            next = sequence.checked_add(1);
            bytes += record.len();
            records.push((sequence, record));
        }
        to.change(|tables| records.iter().try_for_each(|(sequence, record)| put(tables, *sequence, record)))?;
    }
    Ok(())
}

/// Returns the first record from here on that can be read.
fn first_readable(table: &ReadOnlyTable<u64, &'static [u8]>, from: u64) -> Option<(u64, Vec<u8>)> {
    let first = |from: u64| {
        catch_damage(|| {
            let Some(record) = table.range(from..)?.next() else { return Ok(None) };
            let (key, value) = record?;
            if key.value() < from {
                return Err(StoreError::Damaged(format!("record {} is listed after {from}", key.value())));
            }
            Ok(Some((key.value(), value.value().to_vec())))
        })
    };
    if let Ok(found) = first(from) {
        return found;
    }
    // A page that is damaged holds neighbours: what comes after it is found with steps that double, then
    // halve.
    let (mut bad, mut step) = (from, 1_u64);
    let mut good = loop {
        let at = from.checked_add(step)?;
        if first(at).is_ok() {
            break at;
        }
        bad = at;
        step = step.checked_mul(2)?;
    };
    while good - bad > 1 {
        let middle = bad + (good - bad) / 2;
        if first(middle).is_ok() { good = middle } else { bad = middle }
    }
    first(good).ok().flatten()
}

/// Gives the damaged file another name.
fn keep_aside(dir: &Path, file: &Path) -> io::Result<PathBuf> {
    let mut kept = damaged_files(dir)?;
    while kept.len() >= DAMAGED_FILES_MAX {
        let (_, oldest) = kept.remove(0);
        error!(file = %oldest.display(), "removed the oldest damaged file: no more than {DAMAGED_FILES_MAX} are kept");
        fs::remove_file(oldest)?;
    }
    let number = kept.last().map_or(1, |(number, _)| number + 1);
    let aside = dir.join(format!("{FILE}.damaged-{number}"));
    fs::rename(file, &aside)?;
    Ok(aside)
}

/// Returns the damaged files that were kept with their numbers, oldest first.
fn damaged_files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut kept = Vec::new();
    for file in fs::read_dir(dir)? {
        let file = file?;
        let name = file.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_prefix(FILE)?.strip_prefix(".damaged-")?.parse().ok());
        if let Some(number) = number {
            kept.push((number, file.path()));
        }
    }
    kept.sort_unstable();
    Ok(kept)
}
