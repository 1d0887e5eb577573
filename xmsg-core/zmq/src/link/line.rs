//! Those who wait for something, in the order in which they came.
//!
//! A data structure and nothing else: no lock, no clock, no runtime. Whoever owns a line keeps it behind a
//! lock, and wakes the wakers that come out of it once that lock is free again. A future that has to wait
//! [joins](Line::join) at its first poll, under the lock under which it found that it has to, and gets a
//! [`Place`]. It [leaves](Line::leave) when it is dropped, from wherever it stands. Newcomers join whenever
//! the line is not [empty](Line::is_empty), even if what they want is there: nobody overtakes anybody. What
//! happens between is one of two things:
//!
//! - Those in line are *served*: each has left with the line what it wants, the owner
//!   [takes](Line::take_first) one after another as it can, and a future that [waits](Line::wait) in vain is
//!   done. Nobody depends on others being polled, and so this is the better way where it can be had.
//! - They *go on* by themselves: a future that finds itself [first](Line::is_first), and what it waits for
//!   there, does its work and leaves; whoever is first then is [called](Line::call), since it may have missed
//!   what was meant for it. It follows that a future that is neither polled nor dropped holds up all who came
//!   after it.

use std::collections::VecDeque;
use std::task::Waker;

use smallvec::SmallVec;

/// Room for so many that is kept when nobody waits any more.
const KEPT: usize = 16;
/// Places that were left in the middle and are not worth clearing away.
const LITTER: usize = 32;

/// Whoever waits in this line, first come, first served; each with a `T`.
///
/// Everything takes constant time on average, but for [`wait`](Self::wait) and [`leave`](Self::leave) of one
/// that is not the first, which take the logarithm of the line's length. Memory: at most two entries for each
/// that waits, of 32 bytes beside its `T`.
#[derive(Debug)]
pub(crate) struct Line<T = ()> {
    /// By rising number. Whoever has left from the middle has an entry yet; at either end stands one that
    /// waits.
    entries: VecDeque<Entry<T>>,
    /// Entries of those who have left.
    litter: usize,
    /// The number of the next one to join.
    next: u64,
}

#[derive(Debug)]
struct Entry<T> {
    number: u64,
    /// `None`: it has left.
    guest: Option<Guest<T>>,
}

#[derive(Debug)]
struct Guest<T> {
    wants: T,
    /// `None`: it has been woken, or has not said yet how to.
    waker: Option<Waker>,
}

/// A place in a [`Line`]. Unless it was [taken](Line::take_first), it has to be [left](Line::leave).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

/// Who is to be woken, in the order of the line; once no lock is held, since wakers run code that is not
/// ours.
#[derive(Debug, Default)]
#[must_use = "they are asleep, and nobody else will wake them"]
pub(crate) struct Calls(SmallVec<[Waker; 4]>);

impl Calls {
    /// Wakes them, in their order.
    pub(crate) fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }

    /// Whether there is nobody to be woken.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Extend<Waker> for Calls {
    fn extend<I: IntoIterator<Item = Waker>>(&mut self, wakers: I) {
        self.0.extend(wakers);
    }
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), litter: 0, next: 0 }
    }
}

impl<T> Line<T> {
    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.litter
    }

    /// Takes the place behind all others.
    pub(crate) fn join(&mut self, wants: T) -> Place {
        let number = self.next;
        self.next += 1;
        self.entries.push_back(Entry { number, guest: Some(Guest { wants, waker: None }) });
        Place(number)
    }

    /// Whether this one has its place yet: nobody has taken it, and it has not left.
    #[cfg(test)]
    pub(crate) fn contains(&self, place: &Place) -> bool {
        self.find(place).is_some()
    }

    /// Whether nobody stands before this one.
    #[allow(dead_code, reason = "for those who go on by themselves")]
    pub(crate) fn is_first(&self, place: &Place) -> bool {
        self.entries.front().is_some_and(|first| first.number == place.0)
    }

    /// Notes how to wake this one. Returns `false` when it has no place any more: it was taken.
    pub(crate) fn wait(&mut self, place: &Place, waker: &Waker) -> bool {
        let Some(guest) = self.find(place).and_then(|at| self.entries[at].guest.as_mut()) else {
            return false;
        };
        match &mut guest.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        true
    }

    /// What the first in line wants.
    pub(crate) fn first(&self) -> Option<&T> {
        self.entries.front().and_then(|entry| entry.guest.as_ref()).map(|guest| &guest.wants)
    }

    /// Takes the first out of the line. It has to be woken, if it waits.
    pub(crate) fn take_first(&mut self) -> Option<(T, Option<Waker>)> {
        let Guest { wants, waker } = self.entries.pop_front()?.guest?;
        self.tidy();
        Some((wants, waker))
    }

    /// Takes the first out of the line, which does not get what it wants. Returns the place that it had.
    pub(crate) fn refuse_first(&mut self) -> Option<(Place, Option<Waker>)> {
        let Entry { number, guest } = self.entries.pop_front()?;
        self.tidy();
        Some((Place(number), guest?.waker))
    }

    /// Takes everybody out of the line.
    pub(crate) fn take_all(&mut self) -> Calls {
        self.litter = 0;
        let entries = std::mem::take(&mut self.entries);
        Calls(entries.into_iter().filter_map(|entry| entry.guest?.waker).collect())
    }

    /// Gives up this place, which may be anywhere in the line. Returns whether it was the first, so that
    /// another one is now. Whoever has no place any more leaves none.
    pub(crate) fn leave(&mut self, place: &Place) -> bool {
        let Some(at) = self.find(place) else { return false };
        self.entries[at].guest = None;
        self.litter += 1;
        self.tidy();
        at == 0
    }

    /// The first, if it waits, and with it those who wait on the next places, `at_most` places in all,
    /// counting those that were left but not cleared away yet. Whoever is awake is not called: it will see
    /// for itself. With `at_most` 1 everybody is called by the one before; with more, a few tasks go on in
    /// one go.
    #[allow(dead_code, reason = "for those who go on by themselves")]
    pub(crate) fn call(&mut self, at_most: usize) -> Calls {
        if self
            .entries
            .front()
            .and_then(|entry| entry.guest.as_ref())
            .is_some_and(|first| first.waker.is_some())
        {
            let wakers = self.entries.iter_mut().take(at_most).filter_map(Entry::take_waker);
            Calls(wakers.collect())
        } else {
            Calls::default()
        }
    }

    /// All who wait. They keep their places until they leave.
    pub(crate) fn call_all(&mut self) -> Calls {
        Calls(self.entries.iter_mut().filter_map(Entry::take_waker).collect())
    }

    fn find(&self, place: &Place) -> Option<usize> {
        let first = self.entries.front()?;
        if first.number == place.0 {
            return Some(0);
        }
        let at = self.entries.binary_search_by_key(&place.0, |entry| entry.number).ok()?;
        self.entries[at].guest.is_some().then_some(at)
    }

    /// Clears away what was left.
    fn tidy(&mut self) {
        while self.entries.front().is_some_and(|entry| entry.guest.is_none()) {
            self.entries.pop_front();
            self.litter -= 1;
        }
        while self.entries.back().is_some_and(|entry| entry.guest.is_none()) {
            self.entries.pop_back();
            self.litter -= 1;
        }
        if self.litter > LITTER + self.entries.len() / 2 {
            self.entries.retain(|entry| entry.guest.is_some());
            self.litter = 0;
        }
        if self.entries.is_empty() {
            self.entries.shrink_to(KEPT);
        }
    }
}

impl<T> Entry<T> {
    fn take_waker(&mut self) -> Option<Waker> {
        self.guest.as_mut()?.waker.take()
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
