//! The subscriptions of one subscriber.
//!
//! The cost of a topic is that of its subscribers, however many prefixes each of them has. So of prefixes
//! that start with one another, such as `a`, `aa` and `aaa`, only the shortest is in the table with the
//! subscriber's number (it is *active*): it finds the subscriber for all topics of the others, too. These are
//! *covered*, and the table merely holds their text. No two active prefixes of a subscriber start the same
//! topic.
//!
//! A subscription can cover many others, and cancelling it can make as many active. Such work is done in
//! steps, so that other subscribers get their turn. In between, more prefixes than necessary are active,
//! never fewer: a look-up may find a subscriber twice for a while, and never misses it.

use std::collections::{BTreeMap, BTreeSet};

use crate::prefixes::{PrefixId, PrefixTable};
use xmsg_zmq::memory_budget::Claim;

use super::sorted::Sorted;

/// The subscriptions of one subscriber.
#[derive(Debug, Default)]
pub(super) struct OwnPrefixes {
    /// The prefixes in the table with the subscriber's number.
    active: Sorted,
    /// The prefixes that the table holds only, because an active one starts them.
    covered: Sorted,
    /// The active prefixes that were cancelled, and stay until what they cover is active.
    going: BTreeSet<PrefixId>,
    /// The active prefixes with work left, each with the place to continue from, if it is begun. One that is
    /// going goes once what it covers is active; any other one covers the active prefixes that it starts.
    work: BTreeMap<Box<[u8]>, Option<Box<[u8]>>>,
    /// Whether that work is queued.
    pub(super) is_queued: bool,
    /// The claim for the memory of the subscriptions.
    pub(super) claim: Option<Claim>,
    /// The bytes that were claimed last.
    pub(super) weight: usize,
}

/// Whether all work for a prefix is done, or where it is to continue.
#[derive(Debug)]
enum Progress {
    Done,
    Continue(Option<Box<[u8]>>),
}

/// The changes that a subscription made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subscribed {
    /// Whether the subscriber did not have it before.
    pub(super) is_new: bool,
    /// The number of the prefix, if nobody had it before.
    pub(super) first: Option<PrefixId>,
    /// Whether topics may find another set of subscribers than before.
    pub(super) differs: bool,
}

/// The number and the text of a prefix that nobody wants any more.
pub(super) type RemovedPrefix = (PrefixId, Vec<u8>);

/// The prefix table, and the number by which it knows this subscriber.
pub(super) struct TableAccess<'a> {
    pub(super) table: &'a mut PrefixTable<u32>,
    pub(super) number: u32,
}

impl OwnPrefixes {
    /// Returns whether there is work left for [`step`](Self::step).
    pub(super) fn has_work(&self) -> bool {
        !self.work.is_empty()
    }

    /// Adds a subscription.
    pub(super) fn subscribe(&mut self, access: &mut TableAccess<'_>, prefix: &[u8]) -> Subscribed {
        let known = access.table.id(prefix);
        let unchanged = Subscribed { is_new: false, first: None, differs: false };
        if let Some(id) = known {
            if access.table.contains(id, access.number) {
                if self.going.remove(&id) {
                    // The prefixes that it covered may be active by now.
                    self.work.insert(prefix.into(), None);
                    return Subscribed { is_new: true, ..unchanged };
                }
                return unchanged;
            }
            if self.is_covered(access.table, id) {
                return unchanged;
            }
        }
        if self.cover_of(access.table, prefix).is_some() {
            let held = access.table.hold(prefix);
            self.covered.insert(access.table, held.prefix);
            return Subscribed { is_new: true, first: held.is_first.then_some(held.prefix), differs: false };
        }
        let inserted = access.table.insert(prefix, access.number);
        self.active.insert(access.table, inserted.prefix);
        self.cover(access, prefix);
        Subscribed { is_new: true, first: inserted.is_first.then_some(inserted.prefix), differs: true }
    }

    /// Cancels a subscription. Returns `false` if there was none. A prefix that nobody wants any more is
    /// added to `gone`.
    pub(super) fn cancel(
        &mut self,
        access: &mut TableAccess<'_>,
        prefix: &[u8],
        gone: &mut Vec<RemovedPrefix>,
    ) -> bool {
        let Some(id) = access.table.id(prefix) else { return false };
        if !access.table.contains(id, access.number) {
            let is_covered = self.covered.remove(access.table, prefix);
            if is_covered {
                gone.extend(access.release(id));
            }
            return is_covered;
        }
        if self.going.contains(&id) {
            return false;
        }
        if self.covers_some(access.table, prefix) {
            self.going.insert(id);
            self.work.insert(prefix.into(), None);
        } else {
            self.work.remove(prefix);
            self.active.remove(access.table, prefix);
            gone.extend(access.remove(id));
        }
        true
    }

    /// Does a part of the work that is left: as much as `left` allows, from which the [cost] of every prefix
    /// is taken that becomes active or covered. Adds the prefixes that nobody wants any more to `gone`.
    /// Returns whether topics may find another set of subscribers than before, because a prefix that was
    /// going has gone.
    pub(super) fn step(
        &mut self,
        access: &mut TableAccess<'_>,
        left: &mut usize,
        gone: &mut Vec<RemovedPrefix>,
    ) -> bool {
        let going = self.going.len();
        while *left > 0
            && let Some((prefix, next)) = self.work.pop_first()
        {
            match self.finish_prefix(access, &prefix, next.as_deref(), left, gone) {
                Progress::Done => *left = left.saturating_sub(1),
                Progress::Continue(next) => drop(self.work.insert(prefix, next)),
            }
        }
        self.going.len() < going
    }

    /// Does the work that is left for this prefix.
    fn finish_prefix(
        &mut self,
        access: &mut TableAccess<'_>,
        prefix: &[u8],
        next: Option<&[u8]>,
        left: &mut usize,
        gone: &mut Vec<RemovedPrefix>,
    ) -> Progress {
        match access.table.id(prefix) {
            Some(id) if self.going.contains(&id) => {
                match self.uncover_slice(access, id, prefix, next.unwrap_or(prefix), left, gone) {
                    None => Progress::Done,
                    next => Progress::Continue(next),
                }
            }
            Some(_) if !self.cover_slice(access, prefix, left, gone) => Progress::Continue(None),
            _ => Progress::Done,
        }
    }

    /// Removes at most `most` subscriptions of a subscriber that has left. Returns whether there are more.
    pub(super) fn forget(
        &mut self,
        access: &mut TableAccess<'_>,
        most: usize,
        gone: &mut Vec<RemovedPrefix>,
    ) -> bool {
        for _ in 0..most {
            if let Some(id) = self.active.pop() {
                gone.extend(access.remove(id));
            } else if let Some(id) = self.covered.pop() {
                gone.extend(access.release(id));
            } else {
                return false;
            }
        }
        true
    }

    /// Returns the first subscription after this prefix in the order of their text, or the first of all if
    /// the prefix is `None`.
    pub(super) fn next(&self, table: &PrefixTable<u32>, behind: Option<&[u8]>) -> Option<PrefixId> {
        let next = |sorted: &Sorted| match behind {
            None => sorted.from(table, b""),
            Some(prefix) => sorted.after(table, prefix),
        };
        let both = [next(&self.active), next(&self.covered)];
        both.into_iter().flatten().min_by(|one, other| table.prefix(*one).cmp(table.prefix(*other)))
    }

    fn is_covered(&self, table: &PrefixTable<u32>, id: PrefixId) -> bool {
        self.covered.from(table, table.prefix(id)) == Some(id)
    }

    /// Returns the active prefix that starts this one, if there is one and it stays.
    fn cover_of(&self, table: &PrefixTable<u32>, prefix: &[u8]) -> Option<PrefixId> {
        // No two active prefixes start the same topic: any prefix between it and this one would be started by
        // it, too.
        let before = self.active.before(table, prefix)?;
        (prefix.starts_with(table.prefix(before)) && !self.going.contains(&before)).then_some(before)
    }

    fn covers_some(&self, table: &PrefixTable<u32>, prefix: &[u8]) -> bool {
        self.covered.after(table, prefix).is_some_and(|id| table.prefix(id).starts_with(prefix))
    }

    /// Covers the prefixes that this active one starts: at once or, if they are many, in steps.
    fn cover(&mut self, access: &mut TableAccess<'_>, prefix: &[u8]) {
        if self
            .active
            .after(access.table, prefix)
            .is_some_and(|id| access.table.prefix(id).starts_with(prefix))
        {
            self.work.insert(prefix.into(), None);
        }
    }

    /// Covers some of the prefixes that this one starts. Returns whether all are covered.
    fn cover_slice(
        &mut self,
        access: &mut TableAccess<'_>,
        prefix: &[u8],
        left: &mut usize,
        gone: &mut Vec<RemovedPrefix>,
    ) -> bool {
        while let Some(id) = self.active.after(access.table, prefix) {
            let text = access.table.prefix(id);
            if !text.starts_with(prefix) {
                break;
            }
            if *left == 0 {
                return false;
            }
            *left = left.saturating_sub(cost(text));
            let text = text.to_vec();
            self.active.remove(access.table, &text);
            self.work.remove(&text[..]);
            if !self.going.remove(&id) {
                access.table.hold(&text);
                self.covered.insert(access.table, id);
            }
            gone.extend(access.remove(id));
        }
        true
    }

    /// Makes the prefixes active that this one covers, and then removes it, as it is going. Returns where to
    /// continue if that is not done.
    fn uncover_slice(
        &mut self,
        access: &mut TableAccess<'_>,
        going: PrefixId,
        prefix: &[u8],
        next: &[u8],
        left: &mut usize,
        gone: &mut Vec<RemovedPrefix>,
    ) -> Option<Box<[u8]>> {
        let mut next = self.covered.from(access.table, next);
        while let Some(id) = next {
            let text: Box<[u8]> = access.table.prefix(id).into();
            if !text.starts_with(prefix) {
                break;
            }
            if *left == 0 {
                return Some(text);
            }
            *left = left.saturating_sub(cost(&text));
            if self.cover_of(access.table, &text).is_none() {
                self.covered.remove(access.table, &text);
                access.table.insert(&text, access.number);
                gone.extend(access.release(id));
                self.active.insert(access.table, id);
                self.cover(access, &text);
            }
            // The prefixes that it starts stay covered.
            next = self.covered.after_all_of(access.table, &text);
        }
        self.going.remove(&going);
        self.active.remove(access.table, prefix);
        gone.extend(access.remove(going));
        None
    }
}

/// Returns the cost of making a prefix active or covered. It is higher if the prefix is long.
fn cost(prefix: &[u8]) -> usize {
    1 + prefix.len() / 64
}

impl TableAccess<'_> {
    fn remove(&mut self, id: PrefixId) -> Option<RemovedPrefix> {
        self.table.remove(id, self.number).map(|prefix| (id, prefix))
    }

    fn release(&mut self, id: PrefixId) -> Option<RemovedPrefix> {
        self.table.release(id).map(|prefix| (id, prefix))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The subscribers that a topic finds; one that it finds several times comes several times.
    fn found(table: &PrefixTable<u32>, topic: &str) -> Vec<u32> {
        let mut found = Vec::new();
        table.find(topic.as_bytes(), |subscribers| found.extend_from_slice(subscribers));
        found.sort_unstable();
        found
    }

    fn wanted(model: &[BTreeSet<String>], topic: &str) -> Vec<u32> {
        let wants = |number: &u32| model[*number as usize].iter().any(|prefix| topic.starts_with(prefix));
        (0..model.len() as u32).filter(wants).collect()
    }

    #[test]
    fn a_subscriber_is_found_once_for_prefixes_that_lie_in_one_another() {
        for downwards in [false, true] {
            let (mut table, mut own, mut gone) = (PrefixTable::new(), OwnPrefixes::default(), Vec::new());
            let mut lengths: Vec<usize> = (1..=1_000).collect();
            if downwards {
                lengths.reverse();
            }
            let topic = "a".repeat(2_000);
            for len in &lengths {
                let mut access = TableAccess { table: &mut table, number: 7 };
                assert!(own.subscribe(&mut access, &topic.as_bytes()[..*len]).is_new);
                own.step(&mut access, &mut 64, &mut gone);
                assert_eq!(found(&table, &topic), [7]);
            }
            assert_eq!(table.len(), 1_000);
            for len in &lengths {
                let mut access = TableAccess { table: &mut table, number: 7 };
                assert!(own.cancel(&mut access, &topic.as_bytes()[..*len], &mut gone));
                own.step(&mut access, &mut 64, &mut gone);
            }
            assert!(found(&table, &topic).is_empty() && table.is_empty() && gone.len() == 1_000);
        }
    }

    #[test]
    fn much_that_changes_its_side_does_so_in_steps() {
        let (mut table, mut own, mut gone) = (PrefixTable::new(), OwnPrefixes::default(), Vec::new());
        let mut access = TableAccess { table: &mut table, number: 7 };
        for number in 0..1_000 {
            own.subscribe(&mut access, format!("{number:03}").as_bytes());
        }
        let steps = |own: &mut OwnPrefixes, access: &mut TableAccess<'_>, gone: &mut Vec<RemovedPrefix>| {
            let mut steps = 0;
            while own.has_work() {
                own.step(access, &mut 10, gone);
                steps += 1;
                assert_eq!(found(access.table, "123")[0], 7);
            }
            steps
        };
        own.subscribe(&mut access, b"");
        assert!((100..110).contains(&steps(&mut own, &mut access, &mut gone)));
        assert_eq!(found(access.table, "123"), [7]);
        assert!(own.cancel(&mut access, b"", &mut gone));
        assert!(!own.cancel(&mut access, b"", &mut gone), "a second time changes nothing");
        assert!((100..110).contains(&steps(&mut own, &mut access, &mut gone)));
        assert_eq!(gone.len(), 1);
        assert_eq!(found(access.table, "123"), [7]);
        assert!(found(access.table, "x").is_empty());
    }

    /// However often it changes its mind before anything is done.
    #[test]
    fn what_is_left_to_do_is_bounded_by_the_prefixes() {
        let (mut table, mut own, mut gone) = (PrefixTable::new(), OwnPrefixes::default(), Vec::new());
        let mut access = TableAccess { table: &mut table, number: 7 };
        let long = "p".repeat(100);
        own.subscribe(&mut access, long.as_bytes());
        own.subscribe(&mut access, b"p");
        own.step(&mut access, &mut 1_000, &mut gone);
        for _ in 0..1_000 {
            assert!(own.cancel(&mut access, b"p", &mut gone));
            assert!(own.subscribe(&mut access, b"p").is_new);
            for len in 2..100 {
                own.subscribe(&mut access, &long.as_bytes()[..len]);
                own.cancel(&mut access, &long.as_bytes()[..len], &mut gone);
            }
            assert!(own.work.len() <= access.table.len(), "{} of {}", own.work.len(), access.table.len());
        }
        own.step(&mut access, &mut 100_000, &mut gone);
        assert!(!own.has_work());
        assert_eq!((found(&table, &long), found(&table, "pq")), (vec![7], vec![7]));
    }

    #[test]
    fn long_prefixes_take_more_of_a_step() {
        let (mut table, mut own, mut gone) = (PrefixTable::new(), OwnPrefixes::default(), Vec::new());
        let mut access = TableAccess { table: &mut table, number: 7 };
        let long = "x".repeat(4_000);
        for number in 0..100 {
            own.subscribe(&mut access, format!("{number:02}{long}").as_bytes());
        }
        own.subscribe(&mut access, b"");
        let mut steps = 0;
        while own.has_work() {
            own.step(&mut access, &mut 100, &mut gone);
            steps += 1;
        }
        assert!((50..=102).contains(&steps), "{steps} steps of two at most");
    }

    /// Somebody else may hold the prefix, too, so that it stays in the table: topics find another set of
    /// subscribers all the same.
    #[test]
    fn it_is_told_when_a_prefix_has_gone_for_one_of_two() {
        let (mut table, mut owns, mut gone) =
            (PrefixTable::new(), [OwnPrefixes::default(), OwnPrefixes::default()], Vec::new());
        for (number, own) in owns.iter_mut().enumerate() {
            let mut access = TableAccess { table: &mut table, number: number as u32 };
            own.subscribe(&mut access, b"p");
            for other in 0..100 {
                own.subscribe(&mut access, format!("p{other:02}").as_bytes());
            }
        }
        let mut access = TableAccess { table: &mut table, number: 0 };
        assert!(owns[0].cancel(&mut access, b"p", &mut gone));
        assert!(!owns[0].step(&mut access, &mut 10, &mut gone), "it stays until what it covers is active");
        assert!(owns[0].step(&mut access, &mut 1_000, &mut gone));
        assert!(gone.is_empty());
        assert_eq!(found(&table, "p?"), [1]);
    }

    proptest! {
        /// Whatever is subscribed to, taken back and done in steps: everybody is found who wants a topic,
        /// and, when all is done, nobody else and nobody twice. First and last are told once each.
        #[test]
        fn nobody_is_missed(
            changes in prop::collection::vec((0_u32..3, any::<bool>(), "[ab]{0,4}", 0_usize..3), 0..80),
            topics in prop::collection::vec("[ab]{0,6}", 1..8),
        ) {
            let mut table = PrefixTable::new();
            let mut owns: [OwnPrefixes; 3] = Default::default();
            let mut model: [BTreeSet<String>; 3] = Default::default();
            let mut listed = BTreeSet::new();
            for (number, subscribe, prefix, steps) in changes {
                let own = &mut owns[number as usize];
                let mut access = TableAccess { table: &mut table, number };
                let mut gone = Vec::new();
                if subscribe {
                    let subscribed = own.subscribe(&mut access, prefix.as_bytes());
                    prop_assert_eq!(subscribed.is_new, model[number as usize].insert(prefix.clone()));
                    if subscribed.first.is_some() {
                        prop_assert!(listed.insert(prefix.into_bytes()));
                    }
                } else {
                    let was_there = own.cancel(&mut access, prefix.as_bytes(), &mut gone);
                    prop_assert_eq!(was_there, model[number as usize].remove(&prefix));
                }
                own.step(&mut access, &mut steps.clone(), &mut gone);
                for (_, prefix) in gone {
                    prop_assert!(listed.remove(&prefix));
                }
                for topic in &topics {
                    let found = found(&table, topic);
                    prop_assert!(wanted(&model, topic).iter().all(|number| found.contains(number)));
                }
            }
            let mut gone = Vec::new();
            for (number, own) in owns.iter_mut().enumerate() {
                while own.has_work() {
                    own.step(&mut TableAccess { table: &mut table, number: number as u32 }, &mut 1, &mut gone);
                }
            }
            for (_, prefix) in gone.drain(..) {
                prop_assert!(listed.remove(&prefix));
            }
            for topic in &topics {
                prop_assert_eq!(found(&table, topic), wanted(&model, topic));
            }
            prop_assert_eq!(table.len(), model.iter().map(BTreeSet::len).sum::<usize>());
            let all: BTreeSet<Vec<u8>> = model.iter().flatten().map(|prefix| prefix.clone().into_bytes()).collect();
            prop_assert_eq!(&listed, &all);
            for (number, own) in owns.iter_mut().enumerate() {
                let mut listed = BTreeSet::new();
                let mut last: Option<Vec<u8>> = None;
                while let Some(id) = own.next(&table, last.as_deref()) {
                    last = Some(table.prefix(id).to_vec());
                    listed.insert(String::from_utf8(table.prefix(id).to_vec()).unwrap());
                }
                prop_assert_eq!(&listed, &model[number]);
                while own.forget(&mut TableAccess { table: &mut table, number: number as u32 }, 2, &mut gone) {}
            }
            prop_assert!(table.is_empty());
            prop_assert_eq!(gone.into_iter().map(|(_, prefix)| prefix).collect::<BTreeSet<_>>(), all);
        }
    }
}
