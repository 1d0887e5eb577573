//! How publishers are notified of changes, and how the tasks that wait for that are answered.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use xmsg_zmq::link::session::now;
use xmsg_zmq::memory_budget::MemoryBudget;

use super::super::snapshot::Snapshot;
use super::{
    ConnectedPublisher, Joining, PreviousSnapshot, PublisherEntry, SubscriptionChange, SubscriptionChanges,
    Synchronizing, TableTask, heads, prefix_memory,
};
use crate::config::PublishersSend;

/// The number of publishers that are notified before other work gets its turn.
pub(super) const PUBLISHERS_AT_ONCE: usize = 128;
/// The largest number of bytes of changes that wait for a round. Above it, they are sent at once.
pub(super) const NOTIFICATIONS_MAX: usize = 1 << 20;

impl TableTask {
    /// Answers the tasks that wait for earlier changes, once these are applied and sent.
    pub(super) fn answer(&mut self) {
        let is_told_anew = |joining: &Joining| matches!(joining.before, PreviousSnapshot::Scope(_));
        if self.jobs.waiting.is_empty()
            || !self.jobs.enforcing.is_empty()
            || self.jobs.joining.iter().any(is_told_anew)
        {
            return;
        }
        let mut informed = None;
        let notifications = &self.notifications;
        let publishers = &self.publishers;
        for Synchronizing { answer, .. } in
            self.jobs.waiting.extract_if(.., |one| notifications.is_told(one.round))
        {
            let informed = informed.get_or_insert_with(|| all_of(publishers));
            // The task that asked may have ended.
            let _ = answer.send(informed.clone());
        }
    }

    /// Notifies publishers of changes: at once if they are few, else in the next round.
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
            self.notifications.add(changes);
            self.notify_all();
            return;
        }
        self.notifications.gather(changes, self.publishers.len());
        if self.notifications.bytes() > NOTIFICATIONS_MAX {
            self.notify_all();
        }
        // The new changes may have taken back all others.
        self.answer();
    }

    /// Notifies a few publishers of changes, if it is time for that.
    pub(super) fn notify_slice(&mut self) {
        if !self.notifications.is_being_told()
            && self.notifications.due_in().is_some_and(|time| time.is_zero())
        {
            self.begin_round();
        }
        self.go_on(PUBLISHERS_AT_ONCE);
    }

    /// Notifies all publishers of all changes at once.
    pub(super) fn notify_all(&mut self) {
        self.go_on(usize::MAX);
        if !self.notifications.is_empty() {
            self.begin_round();
            self.go_on(usize::MAX);
        }
    }

    /// Returns whether there are links to upstreams. They subscribe to wanted prefixes only.
    fn has_links(&self) -> bool {
        self.audiences.values().any(|audience| audience.snapshot.is_of_link())
    }

    /// Begins a round. No other round may be in progress.
    fn begin_round(&mut self) {
        let changes = self.notifications.take();
        // The changes are encoded once for each audience, and share the bytes. For a publisher that is
        // joining, a part that is to come may repeat some of them.
        let routes = self.table.routes();
        // Publishers that send everything need not be notified.
        let is_all = self.publishers_send == PublishersSend::All;
        let audiences = self.audiences.iter_mut().filter(|(_, one)| !is_all || one.snapshot.is_of_link());
        let notifications: BTreeMap<u32, Bytes> = audiences
            .map(|(number, audience)| (*number, audience.snapshot.notifications(&changes, &routes.prefixes)))
            .filter(|(_, bytes)| !bytes.is_empty())
            .map(|(number, bytes)| (number, self.memory.counted(bytes)))
            .collect();
        let all: usize = notifications
            .iter()
            .map(|(number, bytes)| bytes.len() * self.audiences.get(number).map_or(0, |one| one.publishers))
            .sum();
        self.notified.take(all as f64, now());
        drop(routes);
        // These are waited for once they have been sent all parts.
        let joining =
            self.jobs.joining.iter().filter(|joining| matches!(joining.before, PreviousSnapshot::Nothing));
        joining.for_each(|joining| send(&notifications, &joining.entry, &self.memory));
        self.notifications.begin(notifications);
    }

    /// Notifies at most `most` publishers in the present round. One that has just joined may be notified of a
    /// change twice. Later changes are in the next round.
    fn go_on(&mut self, most: usize) {
        let Some(round) = self.notifications.round() else { return };
        let mut left = most;
        let from = round.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next =
            if round.bytes.is_empty() { None } else { Some(self.publishers.range((from, Bound::Unbounded))) };
        for (id, entry) in next.into_iter().flatten() {
            if left == 0 {
                return;
            }
            left -= 1;
            send(&round.bytes, entry, &self.memory);
            self.backlog.note(&entry.publisher);
            round.last = Some(*id);
        }
        self.notifications.end(self.publishers.len());
        self.answer();
    }
}

/// Returns the publishers that have been sent all wanted prefixes.
fn all_of(publishers: &BTreeMap<u32, PublisherEntry>) -> Vec<Arc<ConnectedPublisher>> {
    publishers.values().map(|entry| entry.publisher.clone()).collect()
}

/// Sends a publisher the notifications of its audience.
fn send(
    notifications: &BTreeMap<u32, Bytes>,
    PublisherEntry { publisher, audience }: &PublisherEntry,
    memory: &MemoryBudget,
) {
    let Some(bytes) = notifications.get(audience) else { return };
    publisher.send(bytes);
    publisher.count_backlog(memory);
}
