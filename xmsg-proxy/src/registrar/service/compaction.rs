//! Compaction of the journal: a snapshot of the store and a new journal are written beside the current files,
//! which continue to take changes.

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

/// Registrations that are collected for a snapshot in one turn.
const COLLECTED_MAX: usize = 1024;
/// The largest number of chunks of registrations that wait to be written. At this number, no more are
/// collected. A registration in a waiting chunk stays in memory even if it is removed from the store.
const CHUNKS_MAX: usize = 4;

/// The state of a compaction.
#[derive(Debug)]
pub(super) enum Compaction {
    /// A blocking thread is writing the new files.
    Writing(DraftTask),
    /// Writing failed: the error, and the time that the attempt took.
    Failed(Error, Duration),
    /// The new files lack only the most recent changes.
    Ready(Draft),
}

/// The blocking thread that writes the new files.
#[derive(Debug)]
pub(super) struct DraftTask {
    thread: JoinHandle<(Result<Draft>, Duration)>,
    is_unwanted: Arc<AtomicBool>,
    /// A batch that could not be written waits for the end of this thread, to be written again.
    is_awaited: bool,
}

/// The sender that passes registrations to the blocking thread while it writes a snapshot.
#[derive(Debug)]
pub(super) struct SnapshotFeed {
    collecting: Collecting,
    chunks: mpsc::Sender<Option<Records>>,
}

impl SnapshotFeed {
    /// Returns whether the thread can take more registrations, or has given up.
    pub(super) fn has_room(&self) -> bool {
        self.chunks.capacity() > 0 || self.chunks.is_closed()
    }

    /// Waits until the thread can take more registrations or has given up. Waits for ever if there is no
    /// feed.
    pub(super) async fn room(feed: Option<&Self>) {
        match feed {
            Some(feed) => drop(feed.chunks.reserve().await),
            None => std::future::pending().await,
        }
    }
}

impl DraftTask {
    fn start(mut draft: Draft, work: impl FnOnce(&mut Draft) -> Result<()> + Send + 'static) -> Self {
        let is_unwanted = draft.is_unwanted();
        let thread = tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let result = work(&mut draft).map(|()| draft);
            (result, started.elapsed())
        });
        Self { thread, is_unwanted, is_awaited: false }
    }

    /// Starts to write a snapshot of the registrations that the feed sends.
    fn snapshot(draft: Draft, collecting: Collecting) -> (Self, SnapshotFeed) {
        let (sender, mut chunks) = mpsc::channel(CHUNKS_MAX);
        let mut next = move || match chunks.blocking_recv() {
            Some(chunk) => Ok(chunk),
            None => Err(io::Error::other("it was given up")),
        };
        let task = Self::start(draft, move |draft| draft.write(&mut next));
        (task, SnapshotFeed { collecting, chunks: sender })
    }

    fn give_up(&self) {
        self.is_unwanted.store(true, Ordering::Relaxed);
    }
}

impl Drop for DraftTask {
    fn drop(&mut self) {
        // The thread holds the lock of the files until it ends, so it must end soon after the registrar.
        if !self.thread.is_finished() {
            self.give_up();
        }
    }
}

impl Compaction {
    /// Waits for the result of the blocking thread, or for ever if there is none.
    pub(super) async fn done(compaction: Option<&mut Self>) -> Result<(Result<Draft>, Duration), JoinError> {
        match compaction {
            Some(Self::Writing(task)) => (&mut task.thread).await,
            _ => std::future::pending().await,
        }
    }
}

impl Service {
    /// Returns whether the next batch has to wait for a step of the compaction.
    pub(super) fn waits_for_compaction(&self) -> bool {
        let Some(Compaction::Writing(task)) = &self.compaction else { return false };
        task.is_awaited || self.journal.as_ref().is_some_and(Journal::is_broken)
    }

    /// Returns the new files if they are to replace the current ones. Starts a compaction when it is due.
    pub(super) fn next_files(&mut self, journal: &Journal) -> Option<Draft> {
        // A stopping registrar finishes a compaction only if it needs it to store the last changes.
        let is_needed = journal.is_broken() && !self.gathering.changes.is_empty();
        let may_go_on = is_needed || !self.is_stopping;
        match self.compaction.take() {
            None if may_go_on && journal.wants_compaction() => {
                // The snapshot may lack changes that are on the disk but not yet in the store. The new
                // journal contains them.
                let from = self.slow.oldest().unwrap_or(journal.position());
                let (task, feed) = DraftTask::snapshot(journal.draft(from), Collecting::new(&self.store));
                self.feed = Some(feed);
                self.compaction = Some(Compaction::Writing(task));
                None
            }
            Some(Compaction::Ready(draft)) if may_go_on => {
                let position = journal.position();
                if self.is_stopping || draft.is_caught_up(position) {
                    return Some(draft);
                }
                let task = DraftTask::start(draft, move |draft| draft.copy(position));
                self.compaction = Some(Compaction::Writing(task));
                None
            }
            Some(Compaction::Ready(_)) => None,
            other => {
                self.compaction = other;
                None
            }
        }
    }

    /// Collects some registrations for the snapshot that is being written, if there is room for them.
    pub(super) fn collect_some(&mut self) {
        let Some(feed) = self.feed.as_mut().filter(|feed| feed.has_room()) else { return };
        let next = feed.collecting.next(&self.store, COLLECTED_MAX);
        let is_last = next.is_none();
        // A thread that has given up states the reason in its result.
        if feed.chunks.try_send(next).is_err() || is_last {
            self.feed = None;
        }
    }

    /// Continues with the result of the blocking thread.
    pub(super) fn on_draft_done(&mut self, done: Result<(Result<Draft>, Duration), JoinError>) {
        self.feed = None;
        let (result, took) = done.unwrap_or_else(|error| {
            let lost = Error::new(ErrorKind::Io, "the snapshot was not written").with_source(error);
            (Err(lost), Duration::ZERO)
        });
        self.compaction = Some(match result {
            Ok(draft) => Compaction::Ready(draft),
            Err(error) => Compaction::Failed(error, took),
        });
        self.end_failed_compaction();
        // After a failure, the timer determines the next attempt.
        if self.write_failure.is_none() || self.compaction.is_some() {
            self.write();
        }
    }

    /// Ends a failed compaction as soon as the journal is back from the writing thread.
    pub(super) fn end_failed_compaction(&mut self) {
        let Some(journal) = &mut self.journal else { return };
        match self.compaction.take() {
            Some(Compaction::Failed(error, _)) if !journal.is_broken() => {
                if !self.is_stopping {
                    journal.postpone_compaction(&error);
                }
            }
            Some(Compaction::Failed(..)) if self.is_stopping && self.gathering.changes.is_empty() => {}
            // The journal is broken. Without the snapshot, nothing can be stored.
            Some(Compaction::Failed(error, took)) => {
                let status = self.failed(&error, took);
                self.refuse_batch(Batch::default(), &status);
            }
            other => self.compaction = other,
        }
    }

    /// Puts a batch that could not be written in front of the changes that collected meanwhile, if a
    /// compaction may make room on the disk or repair the journal. Then the batch is written once more.
    /// Returns the batch if it is to be refused.
    pub(super) fn requeue(&mut self, mut batch: Batch) -> Option<Batch> {
        let (Some(journal), Some(compaction), None) =
            (&self.journal, &mut self.compaction, &self.write_failure)
        else {
            return Some(batch);
        };
        if let Compaction::Writing(task) = compaction {
            task.is_awaited = true;
            // The new files may be what fills the disk.
            if !journal.is_broken() {
                task.give_up();
                self.feed = None;
            }
        }
        let gathered = std::mem::take(&mut self.gathering);
        batch.entries.extend(gathered.entries);
        batch.changes.extend(gathered.changes);
        self.gathering = batch;
        None
    }

    /// Ends the compaction of a registrar that stops. A compaction that is needed to store the last changes
    /// is finished. Returns once no thread works on it any more, or once a batch is being written.
    pub(super) async fn end_compaction(&mut self) {
        while self.writing.is_none()
            && let Some(Compaction::Writing(task)) = &self.compaction
        {
            let is_broken = self.journal.as_ref().is_some_and(Journal::is_broken);
            if !is_broken || self.gathering.changes.is_empty() {
                task.give_up();
                self.feed = None;
            }
            while self.feed.is_some() {
                SnapshotFeed::room(self.feed.as_ref()).await;
                self.collect_some();
            }
            let done = Compaction::done(self.compaction.as_mut()).await;
            self.on_draft_done(done);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};

    use proptest::prelude::*;
    use tokio_util::sync::CancellationToken;
    use xmsg_core::registration::{OwnerType, Registration};
    use xmsg_core::{ProxyAddress, RegistrarAddress, Topic};
    use xmsg_zmq::{Replier, SocketOptions};

    use super::*;
    use crate::registrar::Registrar;
    use crate::registrar::journal::Entry;
    use crate::registrar::service::Counters;
    use crate::registrar::service::change::Change;
    use crate::registrar::store::{Reserved, Store};

    #[derive(Clone, Debug)]
    enum Step {
        Register(u8, u8),
        Remove(u8, u8),
        RemoveHost(u8),
        /// Applies the oldest change that is on the disk to the store.
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

    /// Reads the files, as after a crash.
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
        assert_eq!(complaints, crate::registrar::journal::OpenReport::default());
        (journal, store)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The snapshot is collected while the store changes, and some changes are on the disk long before
        /// they are in the store.
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
                            while change.apply_some(&mut store, Duration::ZERO, &mut 2).is_none() {}
                        }
                        continue;
                    }
                    Step::Collect(max) => {
                        if let Some(draft) = written.take() {
                            journal.switch(draft, &mut []).unwrap();
                        }
                        let (mut all, mut records, mut draft) = collecting.take().unwrap_or_else(|| {
                            let from = stored.front().map_or(journal.position(), |(_, position)| *position);
                            (Collecting::new(&store), Vec::new(), journal.draft(from))
                        });
                        if let Some(next) = all.next(&store, max) {
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
                while change.apply_some(&mut store, Duration::ZERO, &mut 2).is_none() {}
            }
            drop((journal, collecting));
            prop_assert_eq!(of(&read(&path).1), of(&store));
        }
    }

    /// The journal is compacted although the next batch is always ready when one is on the disk.
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
        // All changes together are ten times as long.
        assert!(journal < 40 << 10, "{journal} bytes");
        registrar.stop(Duration::from_secs(1)).await;
        let expected = (0..CLIENTS).flat_map(|host| (0..50).map(move |name| registration(4 * name, host)));
        let expected: BTreeSet<_> = expected.map(|registration| registration.encode().to_vec()).collect();
        assert_eq!(of(&read(&path).1), expected);
    }
    fn client(address: RegistrarAddress, timeout: Duration) -> xmsg_core::Registrar {
        let client = xmsg_core::Registrar::builder(address).renewal_interval(None);
        client.registration_timeout(timeout).build().unwrap()
    }

    /// The registrar is stopped at any moment, even during a compaction. Then every acknowledged change is in
    /// the files, and no thread works on them any more.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn stopping_loses_nothing_and_leaves_the_files_to_others() {
        const CLIENTS: u8 = 4;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let mut expected = BTreeSet::new();
        for round in 0..20_usize {
            let registrar = Registrar::bind("127.0.0.1:0").snapshot(&path).start().await.unwrap();
            let clients: Vec<_> = (0..CLIENTS)
                .map(|host| {
                    // A request that arrives after the end gets no answer.
                    let client = client(registrar.address().clone(), Duration::from_millis(300));
                    tokio::spawn(async move {
                        let (mut done, mut in_doubt) = (Vec::new(), None);
                        // No other round has the same descriptions.
                        for number in 0..u8::MAX {
                            let mut one = registration(number, host);
                            one.description = Some(format!("{round} {}", "x".repeat(200)));
                            if client.register(&one).await.is_err() {
                                in_doubt = Some(one.encode().to_vec());
                                break;
                            }
                            done.push(one.encode().to_vec());
                        }
                        (done, in_doubt)
                    })
                })
                .collect();
            // Each round stops later than the one before, so that a compaction is met in all of its states.
            // On a loaded machine, all clients may have given up before that.
            while registrar.counts().requests < 20 * round as u64
                && !clients.iter().all(JoinHandle::is_finished)
            {
                tokio::task::yield_now().await;
            }
            registrar.stop(Duration::from_secs(10)).await;
            let (journal, store) = read(&path);
            drop(journal);
            let found = of(&store);
            for client in clients {
                let (done, in_doubt) = client.await.unwrap();
                expected.extend(done);
                // The answer may have been lost with the connection.
                expected.extend(in_doubt.filter(|one| found.contains(one)));
            }
            assert_eq!(found.symmetric_difference(&expected).count(), 0, "round {round}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_can_not_be_written_is_tried_again_after_a_pause() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r");
        let (journal, store) = read(&path);
        assert!(journal.is_broken(), "there is none");
        let replier = Replier::new(SocketOptions::default());
        let endpoint = replier.bind(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address: RegistrarAddress = endpoint.to_string().trim_start_matches("tcp://").parse().unwrap();
        let (counters, stop) = (Arc::<Counters>::default(), CancellationToken::new());
        let service = Service::new("r".into(), replier, store, Some(journal), counters.clone(), stop.clone());
        let service = tokio::spawn(service.run());
        let client = client(address, Duration::from_secs(60));
        // A directory with the name of the temporary file keeps the registrar from writing new files.
        let obstacle = path.with_extension("tmp");
        std::fs::create_dir(&obstacle).unwrap();
        for number in 0..100 {
            let error = client.register(&registration(number, 0)).await.unwrap_err();
            assert!(error.to_string().contains("not stored"), "{error}");
        }
        let failures = counters.write_failures.load(Ordering::Relaxed);
        assert!((1..10).contains(&failures), "{failures} attempts");
        std::fs::remove_dir(&obstacle).unwrap();
        while client.register(&registration(1, 0)).await.is_err() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        service.await.unwrap();
        assert_eq!(of(&read(&path).1).len(), 1);
    }
}
