//! How changed rules are applied to the subscriptions in the table, and to publishers that are notified of
//! them.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::scope::Scope;
use super::{Enforcing, Joining, PreviousSnapshot, PublisherEntry, SLICE, SubscriptionChanges, TableTask};

impl TableTask {
    /// Checks the rights of all subscribers again, and makes ingresses refresh those of their publishers.
    /// Publishers with other rights than before are sent the prefixes that concern them now.
    pub(super) fn enforce(&mut self) {
        self.enforce_on_forwarders();
        // The changes so far concern the topics that they could publish before.
        self.notify_all();
        // They are kept by number: a publisher that is already being sent the snapshot again is in both
        // lists, with the same audience.
        let mut others = BTreeMap::new();
        let joining = self.jobs.joining.iter().map(|joining| &joining.entry);
        for PublisherEntry { publisher, audience } in self.publishers.values().chain(joining) {
            let scope = self.audiences.get(audience).and_then(|audience| audience.snapshot.scope());
            if Scope::of(publisher.authorization.rights().as_deref()).as_ref() != scope {
                others.insert(publisher.id, (publisher.clone(), *audience, scope.cloned()));
            }
        }
        self.jobs.joining.retain(|joining| !others.contains_key(&joining.entry.publisher.id));
        for (publisher, before, scope) in others.into_values() {
            let audience = self.join(&publisher);
            self.leave(before);
            let entry = self.publishers.get_mut(&publisher.id);
            let before =
                if entry.is_some() { PreviousSnapshot::Scope(scope) } else { PreviousSnapshot::Nothing };
            if let Some(entry) = entry {
                entry.audience = audience;
            }
            self.jobs.joining.push_back(Joining {
                entry: PublisherEntry { publisher, audience },
                next: 0,
                before,
            });
        }
        let subscribers: Vec<_> = {
            let routes = self.table.routes_mut();
            self.table.advance();
            routes.subscribers.values().cloned().collect()
        };
        for subscriber in subscribers {
            if !subscriber.authorization.rights().unwrap_or_default().may_subscribe(b"") {
                self.jobs.enforcing.push_back(Enforcing { subscriber, checked: None });
            }
        }
    }

    /// Removes subscriptions that are no longer allowed.
    pub(super) fn enforce_slice(&mut self) {
        let Some(Enforcing { subscriber, mut checked }) = self.jobs.enforcing.pop_front() else { return };
        let rights = subscriber.authorization.rights();
        let (is_let_in, rights) = (rights.is_some(), rights.unwrap_or_default());
        let mut net_changes = SubscriptionChanges::new();
        let mut is_left = true;
        {
            let table = self.table.clone();
            let mut routes = table.routes_mut();
            let (mut differs, mut left) = (false, SLICE);
            for _ in 0..SLICE {
                let own = self.own.get(&subscriber.id);
                let Some(id) = own.and_then(|own| own.next(&routes.prefixes, checked.as_deref())) else {
                    is_left = false;
                    break;
                };
                let prefix = Bytes::copy_from_slice(routes.prefixes.prefix(id));
                if !rights.may_subscribe(&prefix) {
                    // A peer that is no longer admitted at all is being disconnected, and the log says so.
                    if is_let_in {
                        subscriber.authorization.deny(&subscriber.peer, "subscribe", &prefix, 1);
                    }
                    differs |= self.cancel(&mut routes, &subscriber, &prefix, &mut net_changes);
                    differs |= self.sort(&mut routes, &subscriber, &mut left, &mut net_changes);
                }
                checked = Some(prefix.into());
            }
            if differs {
                table.advance();
            }
        }
        if is_left {
            self.jobs.enforcing.push_back(Enforcing { subscriber, checked });
        }
        self.notify(net_changes);
        self.answer();
    }
}
