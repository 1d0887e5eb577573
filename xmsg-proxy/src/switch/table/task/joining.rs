//! How publishers join the table, are sent all wanted prefixes, and leave.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::super::scope::Scope;
use super::super::snapshot::Snapshot;
use super::{
    Audience, ConnectedPublisher, Joining, PreviousSnapshot, PublisherEntry, PublishersSend, TableTask, form,
};
use crate::CONTROL_TOPIC;

/// The number of parts of a snapshot that are encoded for a publisher in one slice.
const PARTS: usize = 2;
/// The number of parts that are encoded already, and sent in one slice.
const PARTS_SENT: usize = 64;
/// The bytes of outdated parts that publishers may hold in any case. More of them are allowed as long as
/// there are no more than up-to-date ones.
const OUTDATED_MIN: usize = 16 << 20;

impl TableTask {
    /// Sends a new publisher all wanted prefixes, the control topic last: a control request from it proves
    /// that it knows all others.
    pub(super) fn publisher_joined(&mut self, publisher: Arc<ConnectedPublisher>) {
        let audience = self.join(&publisher);
        self.jobs.joining.push_back(Joining {
            entry: PublisherEntry { publisher, audience },
            next: 0,
            before: PreviousSnapshot::Nothing,
        });
        // Few prefixes are sent at once.
        self.join_slice();
    }

    pub(super) fn join_slice(&mut self) {
        let Some(mut joining) = self.jobs.joining.pop_front() else { return };
        self.notifications.seal();
        let Joining { entry: PublisherEntry { publisher, audience }, next, before } = &mut joining;
        let Some(Audience { snapshot, .. }) = self.audiences.get_mut(audience) else { return };
        let is_link = publisher.arrival.is_some();
        let is_all = self.publishers_send == PublishersSend::All && !is_link;
        if *next == 0 {
            publisher.send_snapshot(&snapshot.first(is_all));
        }
        let routes = self.table.routes();
        let parts = if is_all { 0 } else { Snapshot::len(&routes.prefixes) };
        let (mut made, mut sent) = (0, 0);
        while *next < parts && made < PARTS && sent < PARTS_SENT {
            let part = if let PreviousSnapshot::Scope(before) = before {
                made += 1;
                self.memory.counted(snapshot.part_instead(&routes.prefixes, *next, before.as_ref()))
            } else {
                made += usize::from(!snapshot.is_encoded(*next));
                snapshot.part(&routes.prefixes, *next)
            };
            sent += 1;
            publisher.send_snapshot(&part);
            *next += 1;
        }
        let is_told = *next >= parts;
        if is_told && let PreviousSnapshot::Scope(before) = before {
            publisher.send_snapshot(&snapshot.last_instead(&routes.prefixes, before.as_ref(), is_all));
        }
        let longest = routes.longest_prefix();
        drop(routes);
        publisher.count_backlog(&self.memory);
        if is_told {
            if is_link {
                publisher.warn_of_long_prefixes(longest);
            } else {
                let mut control = BytesMut::new();
                form(publisher.version).write_subscription(
                    &mut control,
                    true,
                    &Bytes::from_static(CONTROL_TOPIC),
                );
                publisher.send_snapshot(&control.freeze());
            }
            self.backlog.note(publisher);
            self.publishers.insert(publisher.id, joining.entry);
        } else {
            self.jobs.joining.push_back(joining);
        }
        self.answer();
        self.bound_outdated();
    }

    /// Disconnects publishers that hold many outdated parts by not reading them. Those that have just
    /// connected have had no time to read.
    pub(super) fn bound_outdated(&mut self) {
        let is_too_much = |snapshot: &Snapshot| snapshot.outdated() > OUTDATED_MIN.max(snapshot.present());
        for (number, _) in self.audiences.iter().filter(|(_, audience)| is_too_much(&audience.snapshot)) {
            let theirs = self.publishers.values().filter(|entry| entry.audience == *number);
            let slowest = theirs
                .map(|entry| &entry.publisher)
                .filter(|publisher| !publisher.disconnected.is_cancelled());
            if let Some(publisher) = slowest.max_by_key(|publisher| publisher.held_up()) {
                publisher.disconnect_as_not_reading();
                return;
            }
        }
    }

    /// Removes a publisher that has left.
    pub(super) fn publisher_left(&mut self, id: u32) {
        self.backlog.publishers.remove(&id);
        let joining = self.jobs.joining.iter().position(|joining| joining.entry.publisher.id == id);
        let joining = joining.and_then(|place| self.jobs.joining.remove(place)).map(|joining| joining.entry);
        // A publisher that is being sent the snapshot again is in both.
        if let Some(entry) = self.publishers.remove(&id).or(joining) {
            self.leave(entry.audience);
        }
        // A task may have waited until it was sent the snapshot.
        self.answer();
    }

    /// Adds a publisher to its audience, and returns the number of that.
    pub(super) fn join(&mut self, publisher: &ConnectedPublisher) -> u32 {
        let (version, scope) =
            (form(publisher.version), Scope::of(publisher.authorization.rights().as_deref()));
        let link = publisher.arrival.as_ref().map(|arrival| arrival.subscription_len);
        let known =
            self.audiences.iter_mut().find(|(_, one)| one.snapshot.is_of(version, scope.as_ref(), link));
        if let Some((number, audience)) = known {
            audience.publishers += 1;
            return *number;
        }
        let snapshot = Snapshot::new(version, scope, link, &self.table.routes().prefixes, &self.memory);
        self.next_audience += 1;
        self.audiences.insert(self.next_audience, Audience { snapshot, publishers: 1 });
        self.next_audience
    }

    pub(super) fn leave(&mut self, number: u32) {
        if let Some(audience) = self.audiences.get_mut(&number) {
            audience.publishers -= 1;
            if audience.publishers == 0 {
                self.audiences.remove(&number);
            }
        }
    }
}
