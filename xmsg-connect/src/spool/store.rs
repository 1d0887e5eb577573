//! The store of one spool: a file of the embedded database `redb`, and what has to hold between its tables.
//!
//! One thread owns it, so there are no locks here. It has three tables: the entries and the dead letters by
//! sequence, and the totals, which say how many there are, so that opening needs no scan. The totals are
//! written in the same transaction as what they count.
//!
//! A transaction saves the state of the database's allocator with it ("quick repair"): a file of 1 GiB then
//! opens within milliseconds after a `kill -9`. Without that, all of the file is read first.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, TableError, WriteTransaction,
};
use xmsg_zmq::fault::catch;

use super::record::{DeadLetter, Entry, decode_dead, decode_entry, time};
use super::tables::{Tables, Totals};

/// Memory that the database may take for pages, of each spool.
pub(super) const CACHE_BYTES: usize = 4 << 20;

pub(super) const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
pub(super) const DEAD: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("dead");
const TOTALS: TableDefinition<'_, u8, &[u8]> = TableDefinition::new("ledger");
const TOTALS_KEY: u8 = 0;

/// Why the store did not do what was asked.
#[derive(Debug)]
pub(super) enum StoreError {
    /// The operating system refused. The store has to be opened again.
    Io(io::Error),
    /// The file is damaged beyond single records. It has to be rebuilt.
    Damaged(String),
    /// Somebody else has the file open.
    InUse,
}

/// Entries in order, as many as were asked for.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub entries: Vec<Entry>,
    /// The sequences of records that are damaged.
    pub damaged: Vec<u64>,
}

/// The open file.
#[derive(Debug)]
pub(super) struct Store {
    database: Database,
    path: PathBuf,
    totals: Totals,
}

impl Store {
    /// Opens the file, or makes it. A new one gives its first entry the sequence `first`.
    pub(super) fn open(path: &Path, first: u64) -> Result<Self, StoreError> {
        catch_damage(|| {
            let is_new = !path.exists();
            let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create(path)?;
            let mut store = Self { database, path: path.to_owned(), totals: Totals::default() };
            if let Some(totals) = stored_totals(&store.database)? {
                // Nothing is written in this case, since the disk may be full.
                store.totals = totals;
            } else {
                store.totals = store.count_all(first)?;
                store.change(|_| Ok(()))?;
            }
            if is_new {
                sync_folder_of(path)?;
            }
            Ok(store)
        })
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// Runs `work` in one transaction, which is on disk when this returns.
    pub(super) fn change<T>(
        &mut self,
        work: impl FnOnce(&mut Tables<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (done, totals) = catch_damage(|| {
            let transaction = self.begin()?;
            let mut tables =
                Tables::new(transaction.open_table(ENTRIES)?, transaction.open_table(DEAD)?, self.totals);
            let done = work(&mut tables)?;
            let totals = tables.totals;
            drop(tables);
            finish(transaction, &totals)?;
            Ok((done, totals))
        })?;
        self.totals = totals;
        Ok(done)
    }

    /// Takes all entries out.
    pub(super) fn purge(&mut self) -> Result<(), StoreError> {
        let totals = Totals { entries: 0, bytes: 0, ..self.totals };
        catch_damage(|| {
            let transaction = self.begin()?;
            transaction.delete_table(ENTRIES)?;
            drop(transaction.open_table(ENTRIES)?);
            finish(transaction, &totals)
        })?;
        self.totals = totals;
        Ok(())
    }

    /// Returns the entries after this sequence, but for those that `skip` knows. There is at least one if
    /// there is any, however large it is.
    pub(super) fn read(
        &self,
        after: u64,
        max_entries: usize,
        max_bytes: usize,
        skip: impl Fn(u64) -> bool,
    ) -> Result<Page, StoreError> {
        catch_damage(|| {
            let mut page = Page::default();
            let Some(from) = after.checked_add(1) else { return Ok(page) };
            let (mut bytes, mut last) = (0, after);
            let transaction = self.database.begin_read()?;
            for record in transaction.open_table(ENTRIES)?.range(from..)? {
                let (key, value) = record?;
                let sequence = key.value();
                in_order(&mut last, sequence)?;
                if skip(sequence) {
                    continue;
                }
                match decode_entry(value.value(), sequence) {
                    Ok(entry) => {
                        if !page.entries.is_empty()
                            && (page.entries.len() >= max_entries || bytes + entry.body.len() > max_bytes)
                        {
                            break;
                        }
                        bytes += entry.body.len();
                        page.entries.push(Entry {
                            sequence,
                            accepted_at: time(entry.accepted_ms),
                            body: bytes::Bytes::copy_from_slice(entry.body),
                        });
                        if page.entries.len() >= max_entries {
                            break;
                        }
                    }
                    Err(_) => page.damaged.push(sequence),
                }
            }
            Ok(page)
        })
    }

    /// Returns when the first entry was accepted. One whose record is damaged counts as new.
    pub(super) fn oldest_ms(&self) -> Result<Option<u64>, StoreError> {
        catch_damage(|| {
            let transaction = self.database.begin_read()?;
            let entries = transaction.open_table(ENTRIES)?;
            Ok(entries.first()?.map(|(key, value)| {
                decode_entry(value.value(), key.value())
                    .map_or(self.totals.newest_ms, |entry| entry.accepted_ms)
            }))
        })
    }

    /// Returns the dead letters after this sequence.
    pub(super) fn dead(
        &self,
        after: u64,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        catch_damage(|| {
            let mut letters = Vec::new();
            let Some(from) = after.checked_add(1) else { return Ok(letters) };
            let (mut bytes, mut last) = (0, after);
            let transaction = self.database.begin_read()?;
            for record in transaction.open_table(DEAD)?.range(from..)?.take(limit) {
                let (key, value) = record?;
                in_order(&mut last, key.value())?;
                bytes += value.value().len();
                if !letters.is_empty() && bytes > max_bytes {
                    break;
                }
                letters.push(decode_dead(value.value(), key.value()));
            }
            Ok(letters)
        })
    }

    /// Closes the file. A database that is damaged may panic while it does so.
    pub(super) fn discard(self) {
        let _ = catch_damage(|| {
            drop(self);
            Ok(())
        });
    }

    /// Returns how many bytes the file takes on the disk. The database makes it longer than it needs, without
    /// filling it.
    pub(super) fn file_bytes(&self) -> u64 {
        #[cfg(unix)]
        let taken = |metadata: fs::Metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        #[cfg(not(unix))]
        let taken = |metadata: fs::Metadata| metadata.len();
        fs::metadata(&self.path).map_or(0, taken)
    }

    /// Gives space in the file that is free back to the file system. That takes about half a second for a
    /// file of 1 GiB that is nearly empty.
    pub(super) fn compact(&mut self) -> Result<(), StoreError> {
        catch_damage(|| Ok(self.database.compact().map(|_| ())?))
    }

    fn begin(&self) -> Result<WriteTransaction, StoreError> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_quick_repair(true);
        Ok(transaction)
    }

    /// Counts what is there. It takes a second and a half for 1,000,000 entries.
    fn count_all(&self, first: u64) -> Result<Totals, StoreError> {
        let mut totals = Totals { next: first, ..Totals::default() };
        let transaction = self.database.begin_read()?;
        match transaction.open_table(ENTRIES) {
            Ok(entries) => {
                for record in entries.range(0..)? {
                    let (key, value) = record?;
                    totals.add_entry(key.value(), value.value());
                }
            }
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(error.into()),
        }
        match transaction.open_table(DEAD) {
            Ok(dead) => {
                for record in dead.range(0..)? {
                    let (key, value) = record?;
                    totals.add_dead(key.value(), value.value());
                }
            }
            Err(TableError::TableDoesNotExist(_)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(totals)
    }
}

/// Returns the totals from the file, and `None` if there are none or they are not to be trusted.
pub(super) fn stored_totals(database: &impl ReadableDatabase) -> Result<Option<Totals>, StoreError> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(TOTALS) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(totals) = table.get(TOTALS_KEY)?.and_then(|value| Totals::decode(value.value())) else {
        return Ok(None);
    };
    let last = transaction.open_table(ENTRIES)?.last()?.map_or(0, |(key, _)| key.value());
    Ok((last < totals.next).then_some(totals))
}

/// Runs `work`, and returns a panic of the database as [`StoreError::Damaged`], since it panics when the file
/// is damaged.
pub(super) fn catch_damage<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch(work).unwrap_or_else(|fault| Err(StoreError::Damaged(format!("the database stopped: {fault}"))))
}

/// Makes a rename, or a new file, in the folder of `path` last over a loss of power.
pub(super) fn sync_folder_of(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

fn in_order(last: &mut u64, sequence: u64) -> Result<(), StoreError> {
    if sequence <= *last {
        return Err(StoreError::Damaged(format!("record {sequence} is listed after record {last}")));
    }
    *last = sequence;
    Ok(())
}

fn finish(transaction: WriteTransaction, totals: &Totals) -> Result<(), StoreError> {
    transaction.open_table(TOTALS)?.insert(TOTALS_KEY, totals.encode().as_slice())?;
    Ok(transaction.commit()?)
}

impl From<redb::Error> for StoreError {
    fn from(error: redb::Error) -> Self {
        use redb::Error;
        match error {
            // What the database says of a file that is none of its own, or ends too early.
            Error::Io(error)
                if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                Self::Damaged(error.to_string())
            }
            Error::Io(error) => Self::Io(error),
            Error::PreviousIo | Error::DatabaseClosed => Self::Io(io::Error::other(error)),
            Error::DatabaseAlreadyOpen => Self::InUse,
            error => Self::Damaged(error.to_string()),
        }
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

macro_rules! from_errors_of_the_database {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                redb::Error::from(error).into()
            }
        }
    )*};
}

from_errors_of_the_database!(
    redb::StorageError,
    TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::DatabaseError,
    redb::CompactionError,
    redb::SetDurabilityError
);
