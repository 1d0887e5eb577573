//! Publishers are told what has changed, and those who wait for that are answered.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use xmsg_zmq::link::memory::MemoryBudget;

use super::super::snapshot::Snapshot;
use super::{
    Before, Joining, Notified, Publisher, SubscriptionChange, SubscriptionChanges, Synchronizing, TableTask,
    heads, prefix_memory,
};
use crate::config::PublishersSend;

/// Publishers that are told something before others have their turn.
pub(super) const NOTIFIED_AT_ONCE: usize = 128;
/// News that waits to be told, bytes, at most: then it is told at once.
pub(super) const NEWS_MAX: usize = 1 << 20;

impl TableTask {
    /// Answers those who wait until all is as the changes before say, once it is.
    pub(super) fn answer(&mut self) {
        let is_told_anew = |joining: &Joining| matches!(joining.before, Before::Scope(_));
        if self.jobs.waiting.is_empty()
            || !self.jobs.enforcing.is_empty()
            || self.jobs.joining.iter().any(is_told_anew)
        {
            return;
        }
        let mut told = None;
        let news = &self.news;
        let publishers = &self.publishers;
        for Synchronizing { answer, .. } in self.jobs.waiting.extract_if(.., |one| news.is_told(one.round)) {
            let told = told.get_or_insert_with(|| all_of(publishers));
            // Whoever asked may have gone.
            let _ = answer.send(told.clone());
        }
    }

    /// Has publishers told what has changed: at once if they are few, else in the next round.
    pub(super) fn notify(&mut self, changes: SubscriptionChanges) {
        if changes.is_empty() {
            return;
        }
        let mut held = self.prefixes.bytes();
        for SubscriptionChange { subscribe, prefix, id } in &changes {
            let part = Snapshot::part_of(*id);
            self.audiences.values_mut().for_each(|audience| audience.snapshot.outdate(part));
            let bytes = prefix_memory(1, prefix.len(), heads(prefix.len()));
            held = if *subscribe { held + bytes } else { held.saturating_sub(bytes) };
        }
        self.prefixes.force(held);
        if self.publishers_send == PublishersSend::All && !self.has_links() {
            return;
        }
        if self.publishers.len() <= self.few {
            self.news.add(changes);
            self.notify_all();
            return;
        }
        self.news.gather(changes, self.publishers.len());
        if self.news.bytes() > NEWS_MAX {
            self.notify_all();
        }
        // Perhaps all of it was taken back.
        self.answer();
    }

    /// Tells a few publishers what has changed, if its time has come.
    pub(super) fn notify_some(&mut self) {
        if !self.news.is_being_told() && self.news.due_in().is_some_and(|time| time.is_zero()) {
            self.begin_round();
        }
        self.go_on(NOTIFIED_AT_ONCE);
    }

    /// Tells all publishers all that has changed, at once.
    pub(super) fn notify_all(&mut self) {
        self.go_on(usize::MAX);
        if !self.news.is_empty() {
            self.begin_round();
            self.go_on(usize::MAX);
        }
    }

    /// Whether there are links to upstreams: those are asked for what somebody wants, and for nothing else.
    fn has_links(&self) -> bool {
        self.audiences.values().any(|audience| audience.snapshot.is_of_link())
    }

    /// Begins to tell what has changed. No other round is being told.
    fn begin_round(&mut self) {
        let changes = self.news.take();
        // Encoded once for each audience; the bytes are shared. To those that are joining, a part that is to
        // come may say some of it again.
        let routes = self.table.routes();
        // Whoever is told to send everything has nothing to learn.
        let is_all = self.publishers_send == PublishersSend::All;
        let audiences = self.audiences.iter_mut().filter(|(_, one)| !is_all || one.snapshot.is_of_link());
        let news: BTreeMap<u32, Bytes> = audiences
            .map(|(number, audience)| (*number, audience.snapshot.news(&changes, &routes.prefixes)))
            .filter(|(_, bytes)| !bytes.is_empty())
            .map(|(number, bytes)| (number, self.memory.counted(bytes)))
            .collect();
        drop(routes);
        // These are waited for once they have been told all that there is.
        let joining = self.jobs.joining.iter().filter(|joining| matches!(joining.before, Before::Nothing));
        joining.for_each(|joining| send(&news, &joining.told, &self.memory));
        self.news.begin(news);
    }

    /// Tells so many publishers of the present round. One that has just come may hear it twice: what has
    /// changed since is told in the next one.
    fn go_on(&mut self, most: usize) {
        let Some(round) = self.news.round() else { return };
        let mut left = most;
        let from = round.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next =
            if round.bytes.is_empty() { None } else { Some(self.publishers.range((from, Bound::Unbounded))) };
        for (id, told) in next.into_iter().flatten() {
            if left == 0 {
                return;
            }
            left -= 1;
            send(&round.bytes, told, &self.memory);
            self.backlog.note(&told.publisher);
            round.last = Some(*id);
        }
        self.news.end(self.publishers.len());
        self.answer();
    }
}

/// The publishers that have been told everything.
fn all_of(publishers: &BTreeMap<u32, Notified>) -> Vec<Arc<Publisher>> {
    publishers.values().map(|told| told.publisher.clone()).collect()
}

/// Tells a publisher what its audience is told.
fn send(news: &BTreeMap<u32, Bytes>, Notified { publisher, audience }: &Notified, memory: &MemoryBudget) {
    let Some(bytes) = news.get(audience) else { return };
    publisher.send(bytes);
    publisher.count_backlog(memory);
}
