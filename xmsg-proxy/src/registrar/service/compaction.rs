//! How the journal is kept short: a snapshot of the store and a new journal are written beside the old one, which goes on taking changes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use xmsg_core::{Error, ErrorKind, Result};

use super::change::Collecting;
use super::{Batch, Service};
use crate::registrar::journal::{Draft, Journal, Records};

/// Registrations that are collected for a snapshot before others get their turn.
const COLLECTED: usize = 1024;
/// Times so many that wait to be written. What is removed meanwhile stays in memory until then.
const CHUNKS: usize = 4;

/// The next files, in the making.
#[derive(Debug)]
pub(super) enum Compaction {
    /// A blocking thread is at work on them.
    Writing(Work),
    /// They could not be written, after so long.
    Failed(Error, Duration),
    /// All but the last changes is written.
    Ready(Draft),
}

/// What a blocking thread does for the next files, and how long it took.
#[derive(Debug)]
pub(super) struct Work {
    thread: JoinHandle<(Result<Draft>, Duration)>,
    is_unwanted: Arc<AtomicBool>,
}

/// Registrations that are collected for a snapshot while it is being written.
#[derive(Debug)]
pub(super) struct Supply {
    collecting: Collecting,
    chunks: mpsc::Sender<Option<Records>>,
}

impl Supply {
    /// Whether the thread can be given more, or has given up.
    pub(super) fn has_room(&self) -> bool {
        self.chunks.capacity() > 0 || self.chunks.is_closed()
    }

    /// Returns once the thread can be given more, or has given up; never, if there is nothing for it.
    pub(super) async fn room(supply: Option<&Self>) {
        match supply {
            Some(supply) => drop(supply.chunks.reserve().await),
            None => std::future::pending().await,
        }
    }
}

impl Work {
    fn on(mut draft: Draft, work: impl FnOnce(&mut Draft) -> Result<()> + Send + 'static) -> Self {
        let is_unwanted = draft.is_unwanted();
        let thread = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let result = work(&mut draft).map(|()| draft);
            (result, started.elapsed())
        });
        Self { thread, is_unwanted }
    }

    /// Writes a snapshot of what is collected meanwhile.
    fn snapshot(draft: Draft, collecting: Collecting) -> (Self, Supply) {
        let (sender, mut chunks) = mpsc::channel(CHUNKS);
        let mut next = move || match chunks.blocking_recv() {
            Some(chunk) => Ok(chunk),
            None => Err(io::Error::other("it was given up")),
        };
        let work = Self::on(draft, move |draft| draft.write(&mut next));
        (work, Supply { collecting, chunks: sender })
    }
}

impl Compaction {
    /// The end of the work of the blocking thread; never, if there is none.
    pub(super) async fn done(compaction: Option<&mut Self>) -> Result<(Result<Draft>, Duration), JoinError> {
        match compaction {
            Some(Self::Writing(work)) => (&mut work.thread).await,
            _ => std::future::pending().await,
        }
    }
}

impl Service {
    /// Whether the next batch has to wait for the files that are in the making.
    pub(super) fn waits_for_compaction(&self) -> bool {
        let is_broken = self.journal.as_ref().is_some_and(Journal::is_broken);
        matches!(self.compaction, Some(Compaction::Writing(_))) && (self.writes_again || is_broken)
    }

    /// The next files, if they are to take the place of those that are there now. Begins to write them when it is time for that.
    pub(super) fn next_files(&mut self, journal: &Journal) -> Option<Draft> {
        match self.compaction.take() {
            None if journal.wants_compaction() => {
                // What is on the disk and not yet in the store may be missed by the snapshot.
                let from = self.slow.oldest().unwrap_or(journal.position());
                let (work, supply) = Work::snapshot(journal.draft(from), Collecting::new(&self.store));
                self.supply = Some(supply);
                self.compaction = Some(Compaction::Writing(work));
                None
            }
            Some(Compaction::Ready(draft)) => {
                let position = journal.position();
                if draft.is_near(position) {
                    return Some(draft);
                }
                let work = Work::on(draft, move |draft| draft.copy(position));
                self.compaction = Some(Compaction::Writing(work));
                None
            }
            other => {
                self.compaction = other;
                None
            }
        }
    }

    /// Collects some of all registrations for the snapshot that is being written, if there is room for them.
    pub(super) fn collect_some(&mut self) {
        let Some(supply) = self.supply.as_mut().filter(|supply| supply.has_room()) else { return };
        let next = supply.collecting.next(&self.store, COLLECTED);
        let is_last = next.is_none();
        // If the thread has given up, its end says why.
        if supply.chunks.try_send(next).is_err() || is_last {
            self.supply = None;
        }
    }

    /// Goes on when a blocking thread has done its work on the next files.
    pub(super) fn drafted(&mut self, done: Result<(Result<Draft>, Duration), JoinError>) {
        self.writes_again = false;
        self.supply = None;
        let (result, took) = done.unwrap_or_else(|error| {
            let lost = Error::new(ErrorKind::Io, "the snapshot was not written").with_source(error);
            (Err(lost), Duration::ZERO)
        });
        self.compaction = Some(match result {
            Ok(draft) => Compaction::Ready(draft),
            Err(error) => Compaction::Failed(error, took),
        });
        self.draft_failed();
        self.write();
    }

    /// If the next files could not be written, goes on without them, as soon as the journal is here.
    pub(super) fn draft_failed(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        match self.compaction.take() {
            Some(Compaction::Failed(error, _)) if !journal.is_broken() => journal.put_off(&error),
            // Without the snapshot, nothing can be stored.
            Some(Compaction::Failed(error, took)) => {
                let status = self.failed(&error, took);
                self.refuse_batch(Batch::default(), &status);
            }
            other => self.compaction = other,
        }
    }

    /// Whether a batch that could not be written is to be tried again before it is refused: the snapshot that is in the making may have taken
    /// the room, and can be given up, or it makes a broken journal whole. Then the batch is the next one again.
    pub(super) fn tries_again(&mut self, mut batch: Batch) -> Option<Batch> {
        let (Some(journal), Some(Compaction::Writing(work)), None) =
            (&self.journal, &self.compaction, &self.trouble)
        else {
            return Some(batch);
        };
        if !journal.is_broken() {
            work.is_unwanted.store(true, Ordering::Relaxed);
            self.supply = None;
        }
        self.writes_again = true;
        let gathered = std::mem::take(&mut self.gathering);
        batch.entries.extend(gathered.entries);
        batch.changes.extend(gathered.changes);
        self.gathering = batch;
        None
    }

    /// Gives up the files that are in the making, unless they are needed to write what has gathered. Returns once no thread is at work on them.
    pub(super) async fn end_compaction(&mut self) {
        let is_broken = self.journal.as_ref().is_some_and(Journal::is_broken);
        let is_needed = is_broken && !self.gathering.changes.is_empty();
        if let Some(Compaction::Writing(work)) = &self.compaction {
            if !is_needed {
                work.is_unwanted.store(true, Ordering::Relaxed);
                self.supply = None;
            }
            while self.supply.is_some() {
                Supply::room(self.supply.as_ref()).await;
                self.collect_some();
            }
            let done = Compaction::done(self.compaction.as_mut()).await;
            return self.drafted(done);
        }
        self.compaction = None;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};

    use proptest::prelude::*;
    use xmsg_core::registration::{OwnerType, Registration};
    use xmsg_core::{ProxyAddress, Topic};

    use super::*;
    use crate::registrar::Registrar;
    use crate::registrar::journal::Entry;
    use crate::registrar::service::change::Change;
    use crate::registrar::store::{Reserved, Store};

    #[derive(Clone, Debug)]
    enum Step {
        Register(u8, u8),
        Remove(u8, u8),
        RemoveHost(u8),
        /// The oldest change that is on the disk gets into the store.
        CarryOut,
        Collect(usize),
        Copy,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let (name, host) = (0..24_u8, 0..3_u8);
        let step = prop_oneof![
            4 => (name.clone(), host.clone()).prop_map(|(name, host)| Step::Register(name, host)),
            2 => (name, host.clone()).prop_map(|(name, host)| Step::Remove(name, host)),
            1 => host.prop_map(Step::RemoveHost),
            8 => Just(Step::CarryOut),
            3 => (1..9_usize).prop_map(Step::Collect),
            1 => Just(Step::Copy),
        ];
        prop::collection::vec(step, 0..200)
    }

    fn registration(name: u8, host: u8) -> Registration {
        let topic = Topic::new(format!("d{}", name % 4), "s").unwrap();
        let proxy = ProxyAddress::new(format!("h{host}"), 7771).unwrap();
        Registration::new(OwnerType::Publisher, name.to_string(), &topic, &proxy)
    }

    fn of(store: &Store) -> BTreeSet<Vec<u8>> {
        store.all(OwnerType::Publisher).iter().map(|frame| frame.to_vec()).collect()
    }

    /// What is in the files, read as after a crash.
    fn read(path: &std::path::Path) -> (Journal, Store) {
        let mut store = Store::new(usize::MAX, None);
        let (journal, complaints) = Journal::open(path, |entry| match entry {
            Entry::Register(owner, frame) => {
                let _ = store
                    .admit(owner, &Registration::decode(&frame).unwrap(), Reserved::default(), Duration::ZERO)
                    .unwrap();
            }
            Entry::Remove(owner, frame) => {
                let _ = store.remove(owner, &Registration::decode(&frame).unwrap()).unwrap();
            }
            Entry::RemoveHost(host) => {
                let _ = store.remove_host(str::from_utf8(&host).unwrap());
            }
        })
        .unwrap();
        assert_eq!(complaints, crate::registrar::journal::Complaints::default());
        (journal, store)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The snapshot is collected while the store changes, and some changes are on the disk long before they are in the store.
        #[test]
        fn nothing_is_lost_or_comes_back_whatever_changes_while_the_snapshot_is_collected(steps in steps()) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("r");
            let (mut journal, mut store) = read(&path);
            journal.compact(&[], &mut []).unwrap();
            let mut stored: VecDeque<(Change, u64)> = VecDeque::new();
            let mut collecting: Option<(Collecting, Vec<Records>, Draft)> = None;
            let mut written: Option<Draft> = None;
            for step in steps {
                let owner = OwnerType::Publisher;
                let change = match step {
                    Step::Register(name, host) => Change::Register(owner, registration(name, host), Reserved::default()),
                    Step::Remove(name, host) => Change::Remove(owner, registration(name, host)),
                    Step::RemoveHost(host) => Change::RemoveHost(format!("h{host}")),
                    Step::CarryOut => {
                        if let Some((change, _)) = stored.pop_front() {
                            while change.carry_out_some(&mut store, Duration::ZERO, &mut 2).is_none() {}
                        }
                        continue;
                    }
                    Step::Collect(most) => {
                        if let Some(draft) = written.take() {
                            journal.switch(draft, &mut []).unwrap();
                        }
                        let (mut all, mut records, mut draft) = collecting.take().unwrap_or_else(|| {
                            let from = stored.front().map_or(journal.position(), |(_, position)| *position);
                            (Collecting::new(&store), Vec::new(), journal.draft(from))
                        });
                        if let Some(next) = all.next(&store, most) {
                            records.push(next);
                            collecting = Some((all, records, draft));
                        } else {
                            let mut records = records.into_iter();
                            draft.write(|| Ok(records.next())).unwrap();
                            written = Some(draft);
                        }
                        continue;
                    }
                    Step::Copy => {
                        if let Some(draft) = &mut written {
                            draft.copy(journal.position()).unwrap();
                        }
                        continue;
                    }
                };
                let position = journal.position();
                let mut batch = Vec::new();
                change.entry().write(&mut batch);
                journal.append(&mut batch).unwrap();
                stored.push_back((change, position));
            }
            if let Some(draft) = written {
                journal.switch(draft, &mut []).unwrap();
            }
            for (change, _) in stored {
                while change.carry_out_some(&mut store, Duration::ZERO, &mut 2).is_none() {}
            }
            drop((journal, collecting));
            prop_assert_eq!(of(&read(&path).1), of(&store));
        }
    }
    /// Whenever a batch is on the disk, the next one is there already.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_journal_is_shortened_while_changes_come_without_a_pause() {
        const CLIENTS: u8 = 8;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let registrar = Registrar::bind("127.0.0.1:0").snapshot(&path).start().await.unwrap();
        let clients = (0..CLIENTS).map(|host| {
            let address = registrar.address().clone();
            tokio::spawn(async move {
                let client = xmsg_core::Registrar::builder(address).renewal_interval(None).build().unwrap();
                for number in 0..400_u16 {
                    let name = (number % 200) as u8;
                    client.register(&registration(name, host)).await.unwrap();
                    if !name.is_multiple_of(4) {
                        client.deregister(&registration(name, host)).await.unwrap();
                    }
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
        let journal = std::fs::metadata(path.with_extension("journal")).unwrap().len();
        // All of them together are ten times as long.
        assert!(journal < 40 << 10, "{journal} bytes");
        registrar.stop(Duration::from_secs(1)).await;
        let expected = (0..CLIENTS).flat_map(|host| (0..50).map(move |name| registration(4 * name, host)));
        let expected: BTreeSet<_> = expected.map(|registration| registration.encode().to_vec()).collect();
        assert_eq!(of(&read(&path).1), expected);
    }
}
