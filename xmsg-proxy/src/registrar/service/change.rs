//! What is to be different in the store, and what goes into a snapshot of it: both are done bit by bit, so that others get their turn.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use xmsg_core::registration::{OwnerType, Registration};

use crate::registrar::journal::Entry;
use crate::registrar::store::{Refused, Search, Store};

/// Registrations that are collected for a snapshot before others get their turn.
const COLLECTED: usize = 4096;

/// What a request wants to be different.
#[derive(Debug)]
pub(super) enum Change {
    Register(OwnerType, Registration),
    Remove(OwnerType, Registration),
    RemoveHost(String),
}

impl Change {
    pub(super) fn entry(&self) -> Entry {
        match self {
            Self::Register(owner, registration) => Entry::Register(*owner, registration.encode()),
            Self::Remove(owner, registration) => Entry::Remove(*owner, registration.encode()),
            Self::RemoveHost(host) => Entry::RemoveHost(host.clone().into()),
        }
    }

    /// Whether it may be about many registrations.
    pub(super) fn takes_long(&self) -> bool {
        matches!(self, Self::RemoveHost(_))
    }

    /// The host whose registrations it is about.
    pub(super) fn host(&self) -> &str {
        match self {
            Self::Register(_, registration) | Self::Remove(_, registration) => &registration.host,
            Self::RemoveHost(host) => host,
        }
    }

    /// Does as much as `work` allows, and takes what was done from it; at least a little. `None`: there is more to do.
    pub(super) fn carry_out_some(
        &self,
        store: &mut Store,
        now: Duration,
        work: &mut usize,
    ) -> Option<Result<(), Refused>> {
        if let Self::RemoveHost(host) = self {
            let most = (*work).max(1);
            let count = store.remove_some_of_host(host, most);
            *work = work.saturating_sub(1 + count);
            return (count < most).then_some(Ok(()));
        }
        *work = work.saturating_sub(1);
        Some(self.carry_out(store, now))
    }

    pub(super) fn carry_out(&self, store: &mut Store, now: Duration) -> Result<(), Refused> {
        match self {
            Self::Register(owner, registration) => store.register(*owner, registration, now).map(drop),
            Self::Remove(owner, registration) => store.remove(*owner, registration).map(drop),
            Self::RemoveHost(host) => {
                store.remove_host(host);
                Ok(())
            }
        }
    }

    /// Whether it would be carried out now.
    pub(super) fn check(&self, store: &Store) -> Result<(), Refused> {
        match self {
            Self::Register(owner, registration) => store.check(*owner, registration),
            Self::Remove(_, registration) => Store::check_topic(registration),
            Self::RemoveHost(_) => Ok(()),
        }
    }
}

/// All registrations, on their way to a snapshot: those of each owner, and what is still to be collected.
#[derive(Debug)]
pub(super) struct Collecting {
    searches: VecDeque<Search>,
    pub(super) records: Vec<(OwnerType, Vec<Bytes>)>,
}

impl Collecting {
    pub(super) fn new(store: &Store) -> Self {
        let records = OwnerType::ALL.map(|owner| (owner, Vec::with_capacity(store.count(owner))));
        let searches = OwnerType::ALL.map(|owner| store.search_all(owner));
        Self { searches: searches.into(), records: records.into() }
    }

    pub(super) fn is_done(&self) -> bool {
        self.searches.is_empty()
    }

    /// Collects some. No change is carried out meanwhile; what expires may be in it or not.
    pub(super) fn advance(&mut self, store: &Store) {
        let place = self.records.len() - self.searches.len();
        let Some(search) = self.searches.front_mut() else { return };
        let (_, frames) = &mut self.records[place];
        if store.advance(search, COLLECTED, |frame| frames.push(frame.clone())) {
            self.searches.pop_front();
        }
    }
}

pub(super) fn records(store: &Store) -> Vec<(OwnerType, Vec<Bytes>)> {
    OwnerType::ALL.into_iter().map(|owner| (owner, store.all(owner))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::SLICE;
    use super::*;

    #[test]
    fn a_change_that_takes_long_is_carried_out_in_slices() {
        let mut store = Store::new(10_000, None);
        let topic = xmsg_core::Topic::new("d", "s").unwrap();
        let proxy = xmsg_core::ProxyAddress::new("h", 7771).unwrap();
        for number in 0..1_200 {
            let owner = OwnerType::Publisher;
            let registration = Registration::new(owner, number.to_string(), &topic, &proxy);
            store.register(owner, &registration, Duration::ZERO).unwrap();
        }
        let records = || {
            let mut all = Collecting::new(&store);
            while !all.is_done() {
                all.advance(&store);
            }
            all.records
        };
        assert_eq!(records(), super::records(&store));
        let change = Change::RemoveHost("h".to_owned());
        let left: Vec<_> = (0..3)
            .map(|_| {
                let mut work = SLICE;
                let outcome = change.carry_out_some(&mut store, Duration::ZERO, &mut work);
                (outcome, work)
            })
            .collect();
        assert_eq!(left, [(None, 0), (None, 0), (Some(Ok(())), SLICE - 1 - (1_200 - 2 * SLICE))]);
        assert!(store.is_empty());
    }
}
