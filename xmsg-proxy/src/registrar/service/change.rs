//! Changes of the store, and the collection of its content for a snapshot. Both are done bit by bit, so that
//! other work gets its turn.

use std::collections::VecDeque;
use std::time::Duration;

use xmsg_core::registration::{OwnerType, Registration};

use crate::registrar::journal::{Entry, Records};
use crate::registrar::store::{Refused, Reserved, Search, Store};

/// A change that a request asks for.
#[derive(Debug)]
pub(super) enum Change {
    /// A registration. After the check, room is reserved for it.
    Register(OwnerType, Registration, Reserved),
    Remove(OwnerType, Registration),
    RemoveHost(String),
}

impl Change {
    pub(super) fn entry(&self) -> Entry {
        match self {
            Self::Register(owner, registration, _) => Entry::Register(*owner, registration.encode()),
            Self::Remove(owner, registration) => Entry::Remove(*owner, registration.encode()),
            Self::RemoveHost(host) => Entry::RemoveHost(host.clone().into()),
        }
    }

    /// Returns whether the change may affect many registrations.
    pub(super) fn takes_long(&self) -> bool {
        matches!(self, Self::RemoveHost(_))
    }

    /// Returns the host whose registrations the change affects.
    pub(super) fn host(&self) -> &str {
        match self {
            Self::Register(_, registration, _) | Self::Remove(_, registration) => &registration.host,
            Self::RemoveHost(host) => host,
        }
    }

    /// Applies a change that was checked. It does at least a little, stops when `run_slices` is used up, and
    /// subtracts from `run_slices` what it did. Returns `None` if there is more to do.
    pub(super) fn apply_some(
        &self,
        store: &mut Store,
        now: Duration,
        work: &mut usize,
    ) -> Option<Result<(), Refused>> {
        if let Self::RemoveHost(host) = self {
            let max = (*work).max(1);
            let count = store.remove_some_of_host(host, max);
            *work = work.saturating_sub(1 + count);
            return (count < max).then_some(Ok(()));
        }
        *work = work.saturating_sub(1);
        // Room was reserved for it. A change that is on the disk must not be refused: it would be there again
        // after a restart.
        Some(match self {
            Self::Register(owner, registration, reserved) => {
                store.admit(*owner, registration, *reserved, now).map(drop)
            }
            other => other.apply(store, now),
        })
    }

    /// Applies the change at once and completely, if there is room for it.
    pub(super) fn apply(&self, store: &mut Store, now: Duration) -> Result<(), Refused> {
        match self {
            Self::Register(owner, registration, _) => store.register(*owner, registration, now).map(drop),
            Self::Remove(owner, registration) => store.remove(*owner, registration).map(drop),
            Self::RemoveHost(host) => {
                store.remove_host(host);
                Ok(())
            }
        }
    }

    /// Checks whether the change can be applied. If so, room is reserved for it until it is applied or [given
    /// up](Self::give_up).
    pub(super) fn check(&mut self, store: &mut Store) -> Result<(), Refused> {
        match self {
            Self::Register(owner, registration, reserved) => {
                *reserved = store.reserve(*owner, registration)?;
                Ok(())
            }
            Self::Remove(_, registration) => Store::check_topic(registration),
            Self::RemoveHost(_) => Ok(()),
        }
    }

    /// Releases the room that is reserved for the change.
    pub(super) fn give_up(&self, store: &mut Store) {
        if let Self::Register(owner, registration, reserved) = self {
            store.release(*owner, registration, *reserved);
        }
    }

    /// Returns whether the change would remove nothing.
    pub(super) fn removes_nothing(&self, store: &Store) -> bool {
        match self {
            Self::Register(..) => false,
            Self::Remove(owner, registration) => !store.has(*owner, registration),
            Self::RemoveHost(host) => !store.has_of_host(host),
        }
    }
}

/// The collection of all registrations for a snapshot.
#[derive(Debug)]
pub(super) struct Collecting {
    searches: VecDeque<(OwnerType, Search)>,
}

impl Collecting {
    pub(super) fn new(store: &Store) -> Self {
        Self { searches: OwnerType::ALL.map(|owner| (owner, store.search_all(owner))).into() }
    }

    /// Returns the next registrations, or `None` after the last ones. Registrations that are added or removed
    /// meanwhile may or may not be among them.
    pub(super) fn next(&mut self, store: &Store, max: usize) -> Option<Records> {
        let (owner, search) = self.searches.front_mut()?;
        let (owner, mut frames) = (*owner, Vec::new());
        if store.advance(search, max, |frame| frames.push(frame.clone())) {
            self.searches.pop_front();
        }
        Some((owner, frames))
    }
}

pub(super) fn records(store: &Store) -> Vec<Records> {
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
        let mut all = Collecting::new(&store);
        let mut collected = OwnerType::ALL.map(|owner| (owner, Vec::new()));
        while let Some((owner, frames)) = all.next(&store, 7) {
            assert!(frames.len() <= 7);
            let (_, of_owner) = collected.iter_mut().find(|(of, _)| *of == owner).expect("one of them");
            of_owner.extend(frames);
        }
        assert_eq!(collected.to_vec(), records(&store));
        let change = Change::RemoveHost("h".to_owned());
        let left: Vec<_> = (0..3)
            .map(|_| {
                let mut work = SLICE;
                let outcome = change.apply_some(&mut store, Duration::ZERO, &mut work);
                (outcome, work)
            })
            .collect();
        assert_eq!(left, [(None, 0), (None, 0), (Some(Ok(())), SLICE - 1 - (1_200 - 2 * SLICE))]);
        assert!(store.is_empty());
    }
}
