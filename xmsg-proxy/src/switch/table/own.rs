//! What one subscriber subscribed to.
//!
//! A topic costs what its subscribers cost, however many prefixes each of them names. So of prefixes that lie
//! in one another, such as `a`, `aa` and `aaa`, only the shortest stands in the table with the subscriber's
//! number (it is *active*): it finds the subscriber for all topics of the others, too, which are *covered*
//! and merely held. Of the active prefixes of a subscriber, no two start the same topic.
//!
//! A subscription can cover many others, and taking it back can make as many active. Such work is done in
//! steps, so that others get their turn. In between, more prefixes than necessary are active, never fewer:
//! whoever looks a topic up may find a subscriber twice for a while, and never misses it.

use std::collections::{BTreeMap, BTreeSet};

use crate::prefixes::{PrefixId, PrefixTable};
use xmsg_zmq::link::memory::Claim;

use super::sorted::Sorted;

/// The subscriptions of one subscriber.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// In the table with the subscriber's number.
    active: Sorted,
    /// Held in the table: an active one starts it.
    covered: Sorted,
    /// Active ones that were taken back, and stay until what they cover is active.
    going: BTreeSet<PrefixId>,
    /// Active prefixes with something left to do, each with the place to go on from, if it is begun. One that
    /// is going goes once what it covers is active; any other one covers the active prefixes that it starts.
    work: BTreeMap<Box<[u8]>, Option<Box<[u8]>>>,
    /// Somebody is going to do that work.
    pub(super) is_queued: bool,
    /// What they count for, until they are forgotten.
    pub(super) claim: Option<Claim>,
    /// What they counted for last, when whoever holds most was to be found, bytes.
    pub(super) weight: usize,
}

/// Whether all was done that there was to do for a prefix, or where to go on.
#[derive(Debug)]
enum Done {
    Yes,
    Until(Option<Box<[u8]>>),
}

/// What a subscription changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subscribed {
    /// The subscriber did not have it before.
    pub(super) is_new: bool,
    /// Nobody had it before: where it is now.
    pub(super) first: Option<PrefixId>,
    /// Topics may find another set of subscribers than before.
    pub(super) differs: bool,
}

/// A prefix that nobody wants any more, and where it was.
pub(super) type Gone = (PrefixId, Vec<u8>);

/// The table, and the number by which it knows this subscriber.
pub(super) struct Seat<'a> {
    pub(super) table: &'a mut PrefixTable<u32>,
    pub(super) number: u32,
}

impl Own {
    /// Whether there is work left for [`step`](Self::step).
    pub(super) fn has_work(&self) -> bool {
        !self.work.is_empty()
    }

    /// Adds a subscription.
    pub(super) fn subscribe(&mut self, seat: &mut Seat<'_>, prefix: &[u8]) -> Subscribed {
        let known = seat.table.id(prefix);
        let unchanged = Subscribed { is_new: false, first: None, differs: false };
        if let Some(id) = known {
            if seat.table.contains(id, seat.number) {
                if self.going.remove(&id) {
                    // What it covered may be active by now.
                    self.work.insert(prefix.into(), None);
                    return Subscribed { is_new: true, ..unchanged };
                }
                return unchanged;
            }
            if self.is_covered(seat.table, id) {
                return unchanged;
            }
        }
        if self.cover_of(seat.table, prefix).is_some() {
            let held = seat.table.hold(prefix);
            self.covered.insert(seat.table, held.prefix);
            return Subscribed { is_new: true, first: held.is_first.then_some(held.prefix), differs: false };
        }
        let inserted = seat.table.insert(prefix, seat.number);
        self.active.insert(seat.table, inserted.prefix);
        self.cover(seat, prefix);
        Subscribed { is_new: true, first: inserted.is_first.then_some(inserted.prefix), differs: true }
    }

    /// Takes a subscription back. `false`: there was none. It is added to `gone` if nobody wants it any more.
    pub(super) fn cancel(&mut self, seat: &mut Seat<'_>, prefix: &[u8], gone: &mut Vec<Gone>) -> bool {
        let Some(id) = seat.table.id(prefix) else { return false };
        if !seat.table.contains(id, seat.number) {
            let is_covered = self.covered.remove(seat.table, prefix);
            if is_covered {
                gone.extend(seat.release(id));
            }
            return is_covered;
        }
        if self.going.contains(&id) {
            return false;
        }
        if self.covers_some(seat.table, prefix) {
            self.going.insert(id);
            self.work.insert(prefix.into(), None);
        } else {
            self.work.remove(prefix);
            self.active.remove(seat.table, prefix);
            gone.extend(seat.remove(id));
        }
        true
    }

    /// Does a part of what is left to do: as much as `left` allows, which is charged the [cost] of every
    /// prefix that changes its side. Adds those that nobody wants any more to `gone`. Returns whether topics
    /// may find another set of subscribers than before: a prefix that was going has gone.
    pub(super) fn step(&mut self, seat: &mut Seat<'_>, left: &mut usize, gone: &mut Vec<Gone>) -> bool {
        let going = self.going.len();
        while *left > 0
            && let Some((prefix, next)) = self.work.pop_first()
        {
            match self.work_off(seat, &prefix, next.as_deref(), left, gone) {
                Done::Yes => *left = left.saturating_sub(1),
                Done::Until(next) => drop(self.work.insert(prefix, next)),
            }
        }
        self.going.len() < going
    }

    /// Does what is left to do for this prefix.
    fn work_off(
        &mut self,
        seat: &mut Seat<'_>,
        prefix: &[u8],
        next: Option<&[u8]>,
        left: &mut usize,
        gone: &mut Vec<Gone>,
    ) -> Done {
        match seat.table.id(prefix) {
            Some(id) if self.going.contains(&id) => {
                match self.uncover_some(seat, id, prefix, next.unwrap_or(prefix), left, gone) {
                    None => Done::Yes,
                    next => Done::Until(next),
                }
            }
            Some(_) if !self.cover_some(seat, prefix, left, gone) => Done::Until(None),
            _ => Done::Yes,
        }
    }

    /// Takes back at most so many subscriptions of a subscriber that has left. Returns whether there are
    /// more.
    pub(super) fn forget(&mut self, seat: &mut Seat<'_>, most: usize, gone: &mut Vec<Gone>) -> bool {
        for _ in 0..most {
            if let Some(id) = self.active.pop() {
                gone.extend(seat.remove(id));
            } else if let Some(id) = self.covered.pop() {
                gone.extend(seat.release(id));
            } else {
                return false;
            }
        }
        true
    }

    /// The first subscription behind this one, in the order of their text; `None` as prefix: the first of
    /// all.
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

    /// The active prefix that starts this one, if there is one and it stays.
    fn cover_of(&self, table: &PrefixTable<u32>, prefix: &[u8]) -> Option<PrefixId> {
        // No two active ones start the same topic: whatever lies between it and this prefix would be started
        // by it, too.
        let before = self.active.before(table, prefix)?;
        (prefix.starts_with(table.prefix(before)) && !self.going.contains(&before)).then_some(before)
    }

    fn covers_some(&self, table: &PrefixTable<u32>, prefix: &[u8]) -> bool {
        self.covered.after(table, prefix).is_some_and(|id| table.prefix(id).starts_with(prefix))
    }

    /// Covers what this active prefix starts, now or, if it is much, in steps.
    fn cover(&mut self, seat: &mut Seat<'_>, prefix: &[u8]) {
        if self.active.after(seat.table, prefix).is_some_and(|id| seat.table.prefix(id).starts_with(prefix)) {
            self.work.insert(prefix.into(), None);
        }
    }

    /// Returns whether it is done.
    fn cover_some(
        &mut self,
        seat: &mut Seat<'_>,
        prefix: &[u8],
        left: &mut usize,
        gone: &mut Vec<Gone>,
    ) -> bool {
        while let Some(id) = self.active.after(seat.table, prefix) {
            let text = seat.table.prefix(id);
            if !text.starts_with(prefix) {
                break;
            }
            if *left == 0 {
                return false;
            }
            *left = left.saturating_sub(cost(text));
            let text = text.to_vec();
            self.active.remove(seat.table, &text);
            self.work.remove(&text[..]);
            if !self.going.remove(&id) {
                seat.table.hold(&text);
                self.covered.insert(seat.table, id);
            }
            gone.extend(seat.remove(id));
        }
        true
    }

    /// Makes what this prefix covers active, and then takes it away, as it is going. Returns where to go on,
    /// if it is not done.
    fn uncover_some(
        &mut self,
        seat: &mut Seat<'_>,
        going: PrefixId,
        prefix: &[u8],
        next: &[u8],
        left: &mut usize,
        gone: &mut Vec<Gone>,
    ) -> Option<Box<[u8]>> {
        let mut next = self.covered.from(seat.table, next);
        while let Some(id) = next {
            let text: Box<[u8]> = seat.table.prefix(id).into();
            if !text.starts_with(prefix) {
                break;
            }
            if *left == 0 {
                return Some(text);
            }
            *left = left.saturating_sub(cost(&text));
            if self.cover_of(seat.table, &text).is_none() {
                self.covered.remove(seat.table, &text);
                seat.table.insert(&text, seat.number);
                gone.extend(seat.release(id));
                self.active.insert(seat.table, id);
                self.cover(seat, &text);
            }
            // What it starts stays covered.
            next = self.covered.after_all_of(seat.table, &text);
        }
        self.going.remove(&going);
        self.active.remove(seat.table, prefix);
        gone.extend(seat.remove(going));
        None
    }
}

/// What it costs to have a prefix change its side: more if it is long.
fn cost(prefix: &[u8]) -> usize {
    1 + prefix.len() / 64
}

impl Seat<'_> {
    fn remove(&mut self, id: PrefixId) -> Option<Gone> {
        self.table.remove(id, self.number).map(|prefix| (id, prefix))
    }

    fn release(&mut self, id: PrefixId) -> Option<Gone> {
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
            let (mut table, mut own, mut gone) = (PrefixTable::new(), Own::default(), Vec::new());
            let mut lengths: Vec<usize> = (1..=1_000).collect();
            if downwards {
                lengths.reverse();
            }
            let topic = "a".repeat(2_000);
            for len in &lengths {
                let mut seat = Seat { table: &mut table, number: 7 };
                assert!(own.subscribe(&mut seat, &topic.as_bytes()[..*len]).is_new);
                own.step(&mut seat, &mut 64, &mut gone);
                assert_eq!(found(&table, &topic), [7]);
            }
            assert_eq!(table.len(), 1_000);
            for len in &lengths {
                let mut seat = Seat { table: &mut table, number: 7 };
                assert!(own.cancel(&mut seat, &topic.as_bytes()[..*len], &mut gone));
                own.step(&mut seat, &mut 64, &mut gone);
            }
            assert!(found(&table, &topic).is_empty() && table.is_empty() && gone.len() == 1_000);
        }
    }

    #[test]
    fn much_that_changes_its_side_does_so_in_steps() {
        let (mut table, mut own, mut gone) = (PrefixTable::new(), Own::default(), Vec::new());
        let mut seat = Seat { table: &mut table, number: 7 };
        for number in 0..1_000 {
            own.subscribe(&mut seat, format!("{number:03}").as_bytes());
        }
        let steps = |own: &mut Own, seat: &mut Seat<'_>, gone: &mut Vec<Gone>| {
            let mut steps = 0;
            while own.has_work() {
                own.step(seat, &mut 10, gone);
                steps += 1;
                assert_eq!(found(seat.table, "123")[0], 7);
            }
            steps
        };
        own.subscribe(&mut seat, b"");
        assert!((100..110).contains(&steps(&mut own, &mut seat, &mut gone)));
        assert_eq!(found(seat.table, "123"), [7]);
        assert!(own.cancel(&mut seat, b"", &mut gone));
        assert!(!own.cancel(&mut seat, b"", &mut gone), "a second time changes nothing");
        assert!((100..110).contains(&steps(&mut own, &mut seat, &mut gone)));
        assert_eq!(gone.len(), 1);
        assert_eq!(found(seat.table, "123"), [7]);
        assert!(found(seat.table, "x").is_empty());
    }

    /// However often it changes its mind before anything is done.
    #[test]
    fn what_is_left_to_do_is_bounded_by_the_prefixes() {
        let (mut table, mut own, mut gone) = (PrefixTable::new(), Own::default(), Vec::new());
        let mut seat = Seat { table: &mut table, number: 7 };
        let long = "p".repeat(100);
        own.subscribe(&mut seat, long.as_bytes());
        own.subscribe(&mut seat, b"p");
        own.step(&mut seat, &mut 1_000, &mut gone);
        for _ in 0..1_000 {
            assert!(own.cancel(&mut seat, b"p", &mut gone));
            assert!(own.subscribe(&mut seat, b"p").is_new);
            for len in 2..100 {
                own.subscribe(&mut seat, &long.as_bytes()[..len]);
                own.cancel(&mut seat, &long.as_bytes()[..len], &mut gone);
            }
            assert!(own.work.len() <= seat.table.len(), "{} of {}", own.work.len(), seat.table.len());
        }
        own.step(&mut seat, &mut 100_000, &mut gone);
        assert!(!own.has_work());
        assert_eq!((found(&table, &long), found(&table, "pq")), (vec![7], vec![7]));
    }

    #[test]
    fn long_prefixes_take_more_of_a_step() {
        let (mut table, mut own, mut gone) = (PrefixTable::new(), Own::default(), Vec::new());
        let mut seat = Seat { table: &mut table, number: 7 };
        let long = "x".repeat(4_000);
        for number in 0..100 {
            own.subscribe(&mut seat, format!("{number:02}{long}").as_bytes());
        }
        own.subscribe(&mut seat, b"");
        let mut steps = 0;
        while own.has_work() {
            own.step(&mut seat, &mut 100, &mut gone);
            steps += 1;
        }
        assert!((50..=102).contains(&steps), "{steps} steps of two at most");
    }

    /// Somebody else may hold the prefix, too, so that it stays in the table: topics find another set of
    /// subscribers all the same.
    #[test]
    fn it_is_told_when_a_prefix_has_gone_for_one_of_two() {
        let (mut table, mut owns, mut gone) =
            (PrefixTable::new(), [Own::default(), Own::default()], Vec::new());
        for (number, own) in owns.iter_mut().enumerate() {
            let mut seat = Seat { table: &mut table, number: number as u32 };
            own.subscribe(&mut seat, b"p");
            for other in 0..100 {
                own.subscribe(&mut seat, format!("p{other:02}").as_bytes());
            }
        }
        let mut seat = Seat { table: &mut table, number: 0 };
        assert!(owns[0].cancel(&mut seat, b"p", &mut gone));
        assert!(!owns[0].step(&mut seat, &mut 10, &mut gone), "it stays until what it covers is active");
        assert!(owns[0].step(&mut seat, &mut 1_000, &mut gone));
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
            let mut owns: [Own; 3] = Default::default();
            let mut model: [BTreeSet<String>; 3] = Default::default();
            let mut told = BTreeSet::new();
            for (number, subscribe, prefix, steps) in changes {
                let own = &mut owns[number as usize];
                let mut seat = Seat { table: &mut table, number };
                let mut gone = Vec::new();
                if subscribe {
                    let subscribed = own.subscribe(&mut seat, prefix.as_bytes());
                    prop_assert_eq!(subscribed.is_new, model[number as usize].insert(prefix.clone()));
                    if subscribed.first.is_some() {
                        prop_assert!(told.insert(prefix.into_bytes()));
                    }
                } else {
                    let was_there = own.cancel(&mut seat, prefix.as_bytes(), &mut gone);
                    prop_assert_eq!(was_there, model[number as usize].remove(&prefix));
                }
                own.step(&mut seat, &mut steps.clone(), &mut gone);
                for (_, prefix) in gone {
                    prop_assert!(told.remove(&prefix));
                }
                for topic in &topics {
                    let found = found(&table, topic);
                    prop_assert!(wanted(&model, topic).iter().all(|number| found.contains(number)));
                }
            }
            let mut gone = Vec::new();
            for (number, own) in owns.iter_mut().enumerate() {
                while own.has_work() {
                    own.step(&mut Seat { table: &mut table, number: number as u32 }, &mut 1, &mut gone);
                }
            }
            for (_, prefix) in gone.drain(..) {
                prop_assert!(told.remove(&prefix));
            }
            for topic in &topics {
                prop_assert_eq!(found(&table, topic), wanted(&model, topic));
            }
            prop_assert_eq!(table.len(), model.iter().map(BTreeSet::len).sum::<usize>());
            let all: BTreeSet<Vec<u8>> = model.iter().flatten().map(|prefix| prefix.clone().into_bytes()).collect();
            prop_assert_eq!(&told, &all);
            for (number, own) in owns.iter_mut().enumerate() {
                let mut listed = BTreeSet::new();
                let mut last: Option<Vec<u8>> = None;
                while let Some(id) = own.next(&table, last.as_deref()) {
                    last = Some(table.prefix(id).to_vec());
                    listed.insert(String::from_utf8(table.prefix(id).to_vec()).unwrap());
                }
                prop_assert_eq!(&listed, &model[number]);
                while own.forget(&mut Seat { table: &mut table, number: number as u32 }, 2, &mut gone) {}
            }
            prop_assert!(table.is_empty());
            prop_assert_eq!(gone.into_iter().map(|(_, prefix)| prefix).collect::<BTreeSet<_>>(), all);
        }
    }
}
