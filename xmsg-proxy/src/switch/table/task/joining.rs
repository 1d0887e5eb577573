//! Publishers come, are told all that is wanted, and go.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::super::scope::Scope;
use super::super::snapshot::Snapshot;
use super::{Audience, Before, Joining, Notified, Publisher, PublishersSend, TableTask, form};
use crate::CONTROL_TOPIC;

/// Parts of a snapshot that are made for a publisher in one slice.
const PARTS: usize = 2;
/// Parts that are made already, and only sent.
const PARTS_SENT: usize = 64;
/// Bytes of parts that are out of date which publishers may hold in any case; above it, as much as is up to
/// date.
const OUTDATED_MIN: usize = 16 << 20;

impl TableTask {
    /// Tells a new publisher everything that is wanted, the control topic last: a control request from it
    /// proves that it knows all the rest.
    pub(super) fn welcome(&mut self, publisher: Arc<Publisher>) {
        let audience = self.join(&publisher);
        self.jobs.joining.push_back(Joining {
            told: Notified { publisher, audience },
            next: 0,
            before: Before::Nothing,
        });
        // Little is told at once.
        self.welcome_some();
    }

    pub(super) fn welcome_some(&mut self) {
        let Some(mut joining) = self.jobs.joining.pop_front() else { return };
        self.news.seal();
        let Joining { told: Notified { publisher, audience }, next, before } = &mut joining;
        let Some(Audience { snapshot, .. }) = self.audiences.get_mut(audience) else { return };
        let is_link = publisher.arrival.is_some();
        let is_all = self.publishers_send == PublishersSend::All && !is_link;
        if *next == 0 {
            publisher.welcome(&snapshot.first(is_all));
        }
        let routes = self.table.routes();
        let parts = if is_all { 0 } else { Snapshot::len(&routes.prefixes) };
        let (mut made, mut sent) = (0, 0);
        while *next < parts && made < PARTS && sent < PARTS_SENT {
            let part = if let Before::Scope(before) = before {
                made += 1;
                self.memory.counted(snapshot.part_instead(&routes.prefixes, *next, before.as_ref()))
            } else {
                made += usize::from(!snapshot.is_encoded(*next));
                snapshot.part(&routes.prefixes, *next)
            };
            sent += 1;
            publisher.welcome(&part);
            *next += 1;
        }
        let is_told = *next >= parts;
        if is_told && let Before::Scope(before) = before {
            publisher.welcome(&snapshot.last_instead(&routes.prefixes, before.as_ref(), is_all));
        }
        let longest = routes.longest_prefix();
        drop(routes);
        publisher.count_backlog(&self.memory);
        if is_told {
            if is_link {
                warn_of_long_prefixes(publisher, longest);
            } else {
                let mut control = BytesMut::new();
                form(publisher.version).write_subscription(
                    &mut control,
                    true,
                    &Bytes::from_static(CONTROL_TOPIC),
                );
                publisher.welcome(&control.freeze());
            }
            self.backlog.note(publisher);
            self.publishers.insert(publisher.id, joining.told);
        } else {
            self.jobs.joining.push_back(joining);
        }
        self.answer();
        self.bound_outdated();
    }

    /// Cuts publishers off that hold much which is out of date by not reading it. Those that have just come
    /// have had no time to read.
    pub(super) fn bound_outdated(&mut self) {
        let is_too_much = |snapshot: &Snapshot| snapshot.outdated() > OUTDATED_MIN.max(snapshot.present());
        for (number, _) in self.audiences.iter().filter(|(_, audience)| is_too_much(&audience.snapshot)) {
            let theirs = self.publishers.values().filter(|told| told.audience == *number);
            let slowest =
                theirs.map(|told| &told.publisher).filter(|publisher| !publisher.cut.is_cancelled());
            if let Some(publisher) = slowest.max_by_key(|publisher| publisher.held_up()) {
                publisher.cut_off();
                return;
            }
        }
    }

    /// A publisher has gone.
    pub(super) fn farewell(&mut self, id: u32) {
        self.backlog.publishers.remove(&id);
        let joining = self.jobs.joining.iter().position(|joining| joining.told.publisher.id == id);
        let joining = joining.and_then(|place| self.jobs.joining.remove(place)).map(|joining| joining.told);
        // One that is told anew stands in both.
        if let Some(told) = self.publishers.remove(&id).or(joining) {
            self.leave(told.audience);
        }
        // Somebody may have waited until it was told.
        self.answer();
    }

    /// The audience of a publisher, which is one of it from now on.
    pub(super) fn join(&mut self, publisher: &Publisher) -> u32 {
        let (version, scope) = (form(publisher.version), Scope::of(publisher.grant.rights().as_deref()));
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

/// Says in the log that an upstream does not take all subscriptions there are.
fn warn_of_long_prefixes(publisher: &Publisher, longest: usize) {
    let takes = publisher.arrival.as_ref().map_or(usize::MAX, |arrival| arrival.subscription_len);
    if longest > takes {
        tracing::warn!(
            address = %publisher.peer,
            longest,
            takes,
            "an upstream does not take subscriptions as long as some here: these do not get what is published there. Raise \
             limits.subscription_bytes there"
        );
    }
}
