//! Those who wait for something, in the order in which they came.
//!
//! A data structure and nothing else: no lock, no clock, no runtime. Whoever owns a line keeps it behind a
//! lock, decides when the first may go on, and wakes the wakers that come out of the line once that lock is
//! free again. What a waiting future does:
//!
//! 1. It [joins](Line::join) at its first poll, under the lock under which it found that it has to wait; its
//!    [`Place`] is its own.
//! 2. At every poll, under the lock, it looks whether it [is first](Line::is_first) and what it waits for is
//!    there. If not, it [waits](Line::wait) and is pending.
//! 3. When it is done it [leaves](Line::leave), and likewise when it is dropped, from wherever it stands. If
//!    it was the first, whoever is first now is [called](Line::call): it may have missed what was meant for
//!    it.
//!
//! Newcomers join whenever the line is not [empty](Line::is_empty), even if what they want is there: nobody
//! overtakes anybody. It follows that a future that is neither polled nor dropped holds up all who came after
//! it.

use std::collections::VecDeque;
use std::task::Waker;

use smallvec::SmallVec;

/// Room for so many that is kept when nobody waits any more.
const KEPT: usize = 64;
/// Places that were left in the middle and are not worth clearing away.
const LITTER: usize = 32;

/// Whoever waits in this line, first come, first served.
///
/// Everything takes constant time on average, but for [`wait`](Self::wait) and [`leave`](Self::leave) of one
/// that is not at an end, which take the logarithm of the line's length. Memory: at most two entries of 32
/// bytes for each that waits.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// By rising number. Whoever has left from the middle has an entry yet; at either end stands one that
    /// waits.
    entries: VecDeque<Entry>,
    /// Entries of those who have left.
    litter: usize,
    /// The number of the next one to join.
    next: u64,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It is pending, and wants to be woken.
    Waits(Waker),
    /// It has been woken, or has not said yet how to.
    Awake,
    Left,
}

/// A place in a [`Line`]. It has to be [left](Line::leave).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

/// Who is to be woken, first the first in line; once no lock is held, since wakers run code that is not ours.
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

impl Line {
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
    pub(crate) fn join(&mut self) -> Place {
        let number = self.next;
        self.next += 1;
        self.entries.push_back(Entry { number, state: State::Awake });
        Place(number)
    }

    /// Whether nobody stands before this one.
    pub(crate) fn is_first(&self, place: &Place) -> bool {
        self.entries.front().is_some_and(|first| first.number == place.0)
    }

    /// Notes how to wake this one, when it is called.
    pub(crate) fn wait(&mut self, place: &Place, waker: &Waker) {
        let Some(at) = self.find(place) else { return };
        match &mut self.entries[at].state {
            State::Waits(known) => known.clone_from(waker),
            state => *state = State::Waits(waker.clone()),
        }
    }

    /// Gives up this place, which may be anywhere in the line. Returns whether it was the first, so that
    /// another one is now, who has to be [called](Self::call). To leave twice does nothing.
    pub(crate) fn leave(&mut self, place: &Place) -> bool {
        let Some(at) = self.find(place) else { return false };
        self.entries[at].state = State::Left;
        self.litter += 1;
        while self.entries.front().is_some_and(Entry::has_left) {
            self.entries.pop_front();
            self.litter -= 1;
        }
        while self.entries.back().is_some_and(Entry::has_left) {
            self.entries.pop_back();
            self.litter -= 1;
        }
        if self.litter > LITTER + self.entries.len() / 2 {
            self.entries.retain(|entry| !entry.has_left());
            self.litter = 0;
        }
        if self.entries.is_empty() {
            self.entries.shrink_to(KEPT);
        }
        at == 0
    }

    /// The first, if it waits, and with it those who wait on the next places, `at_most` places in all, counting
    /// those that were left but not cleared away yet. Whoever is awake is not called: it will see for itself.
    /// With `at_most` 1 everybody is called by the one before; with more, a few tasks go on in one go.
    pub(crate) fn call(&mut self, at_most: usize) -> Calls {
        if self.entries.front().is_some_and(|first| matches!(first.state, State::Waits(_))) {
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
        if self.is_first(place) {
            return Some(0);
        }
        let at = self.entries.binary_search_by_key(&place.0, |entry| entry.number).ok()?;
        (!self.entries[at].has_left()).then_some(at)
    }
}

impl Entry {
    fn has_left(&self) -> bool {
        matches!(self.state, State::Left)
    }

    fn take_waker(&mut self) -> Option<Waker> {
        match std::mem::replace(&mut self.state, State::Awake) {
            State::Waits(waker) => Some(waker),
            other => {
                self.state = other;
                None
            }
        }
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
