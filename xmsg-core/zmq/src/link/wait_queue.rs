//! A FIFO queue of waiters.
//!
//! It is a data structure and nothing else: it has no lock, no clock, and no runtime. The owner of a line
//! keeps it behind a lock, and wakes the wakers that the line returns once that lock is free again. A future
//! that has to wait [joins](WaitQueue::join) at its first poll, under the lock under which it found that it
//! has to, and gets a [`Place`]. It [leaves](WaitQueue::leave) when it is dropped, wherever it stands. New
//! waiters join whenever the line is not [empty](WaitQueue::is_empty), even if what they want is available:
//! no waiter overtakes another.
//!
//! There are two ways to use a line:
//!
//! - The owner *serves* the waiters. Each leaves with the line what it wants, and the owner
//!   [takes](WaitQueue::take_first) one after another as it can. A future is done when
//!   [`wait`](WaitQueue::wait) returns `false`. No waiter depends on another one being polled, so this way is
//!   better where it is possible.
//! - The waiters *proceed* by themselves. A future that finds itself [first](WaitQueue::is_first), and finds
//!   what it waits for, does its work and leaves. The next one is then [called](WaitQueue::call), since it
//!   may have missed a wake-up. So a future that is neither polled nor dropped blocks all those behind it.

use std::collections::VecDeque;
use std::task::Waker;

use smallvec::SmallVec;

/// The capacity that is kept when the line is empty.
const KEPT: usize = 16;
/// How many entries of waiters that have left the middle of the line may remain before they are removed.
const LITTER: usize = 32;

/// Waiters in FIFO order, each with a `T`.
///
/// All operations take constant time on average, except [`wait`](Self::wait) and [`leave`](Self::leave) of a
/// waiter that is not the first, which take the logarithm of the line's length. Memory: at most two entries
/// for each waiter, of 32 bytes plus a `T`.
#[derive(Debug)]
pub(crate) struct WaitQueue<T = ()> {
    /// The entries, by rising number. A waiter that has left the middle of the line still has an entry. The
    /// first and the last entry always belong to waiters that are present.
    entries: VecDeque<Entry<T>>,
    /// The number of entries whose waiters have left.
    litter: usize,
    /// The number of the next waiter to join.
    next: u64,
}

#[derive(Debug)]
struct Entry<T> {
    number: u64,
    /// `None` if the waiter has left.
    guest: Option<Waiter<T>>,
}

#[derive(Debug)]
struct Waiter<T> {
    wants: T,
    /// `None` if the waiter was woken, or has not passed its waker yet.
    waker: Option<Waker>,
}

/// A place in a [`WaitQueue`]. Unless it was [taken](WaitQueue::take_first), it has to be
/// [left](WaitQueue::leave).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

/// Wakers to be woken, in the order of the line. Wake them while no lock is held, since they run foreign
/// code.
#[derive(Debug, Default)]
#[must_use = "they are asleep, and nobody else will wake them"]
pub(crate) struct Wakers(SmallVec<[Waker; 4]>);

impl Wakers {
    /// Wakes all of them, in order.
    pub(crate) fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }

    /// Whether there is no waker.
    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Extend<Waker> for Wakers {
    fn extend<I: IntoIterator<Item = Waker>>(&mut self, wakers: I) {
        self.0.extend(wakers);
    }
}

impl<T> Default for WaitQueue<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), litter: 0, next: 0 }
    }
}

impl<T> WaitQueue<T> {
    /// Whether there is no waiter.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number of waiters.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.litter
    }

    /// Adds a waiter at the end of the line.
    pub(crate) fn join(&mut self, wants: T) -> Place {
        let number = self.next;
        self.next += 1;
        self.entries.push_back(Entry { number, guest: Some(Waiter { wants, waker: None }) });
        Place(number)
    }

    /// Whether this waiter is still in the line: it was not taken and has not left.
    #[cfg(test)]
    pub(crate) fn contains(&self, place: &Place) -> bool {
        self.find(place).is_some()
    }

    /// Whether this waiter is the first.
    #[allow(dead_code, reason = "for those who go on by themselves")]
    pub(crate) fn is_first(&self, place: &Place) -> bool {
        self.entries.front().is_some_and(|first| first.number == place.0)
    }

    /// Stores the waker of this waiter. Returns `false` if the waiter is not in the line any more because it
    /// was taken.
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

    /// What the first waiter wants.
    pub(crate) fn first(&self) -> Option<&T> {
        self.entries.front().and_then(|entry| entry.guest.as_ref()).map(|guest| &guest.wants)
    }

    /// Takes the first waiter out of the line. The caller has to wake the waker, if there is one.
    pub(crate) fn take_first(&mut self) -> Option<(T, Option<Waker>)> {
        let Waiter { wants, waker } = self.entries.pop_front()?.guest?;
        self.tidy();
        Some((wants, waker))
    }

    /// Takes the first waiter, which does not get what it wants, out of the line. Returns its place and its
    /// waker.
    pub(crate) fn refuse_first(&mut self) -> Option<(Place, Option<Waker>)> {
        let Entry { number, guest } = self.entries.pop_front()?;
        self.tidy();
        Some((Place(number), guest?.waker))
    }

    /// Takes all waiters out of the line.
    pub(crate) fn take_all(&mut self) -> Wakers {
        self.litter = 0;
        let entries = std::mem::take(&mut self.entries);
        Wakers(entries.into_iter().filter_map(|entry| entry.guest?.waker).collect())
    }

    /// Gives up this place, which may be anywhere in the line. Returns whether it was the first, so that
    /// another waiter is first now. It does nothing if the waiter is not in the line any more.
    pub(crate) fn leave(&mut self, place: &Place) -> bool {
        let Some(at) = self.find(place) else { return false };
        self.entries[at].guest = None;
        self.litter += 1;
        self.tidy();
        at == 0
    }

    /// Returns the waker of the first waiter and those of the waiters behind it, if the first has one. It
    /// looks at `at_most` entries, including those of waiters that have left but were not removed yet. A
    /// waiter without a waker is awake and will check for itself. With `at_most` 1, each waiter is called by
    /// the one before it; with more, several tasks are woken at once.
    #[allow(dead_code, reason = "for those who go on by themselves")]
    pub(crate) fn call(&mut self, at_most: usize) -> Wakers {
        if self
            .entries
            .front()
            .and_then(|entry| entry.guest.as_ref())
            .is_some_and(|first| first.waker.is_some())
        {
            let wakers = self.entries.iter_mut().take(at_most).filter_map(Entry::take_waker);
            Wakers(wakers.collect())
        } else {
            Wakers::default()
        }
    }

    /// Returns the wakers of all waiters. They keep their places until they leave.
    pub(crate) fn call_all(&mut self) -> Wakers {
        Wakers(self.entries.iter_mut().filter_map(Entry::take_waker).collect())
    }

    fn find(&self, place: &Place) -> Option<usize> {
        let first = self.entries.front()?;
        if first.number == place.0 {
            return Some(0);
        }
        let at = self.entries.binary_search_by_key(&place.0, |entry| entry.number).ok()?;
        self.entries[at].guest.is_some().then_some(at)
    }

    /// Removes entries whose waiters have left.
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
#[path = "wait_queue_tests.rs"]
mod tests;
