//! A round-robin queue of work: first by address, and for each address in the order of arrival.

use std::collections::{HashMap, VecDeque};

use xmsg_zmq::link::source::Source;

/// The waiting work of each source.
#[derive(Debug)]
pub(super) struct RoundRobin<T> {
    /// The sources that have waiting work, each once.
    order: VecDeque<Source>,
    work: HashMap<Source, VecDeque<T>>,
}

impl<T> Default for RoundRobin<T> {
    fn default() -> Self {
        Self { order: VecDeque::new(), work: HashMap::new() }
    }
}

impl<T> RoundRobin<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Adds work behind all other work of the same address.
    pub(super) fn push(&mut self, source: Source, work: T) {
        let theirs = self.work.entry(source.clone()).or_default();
        if theirs.is_empty() {
            self.order.push_back(source);
        }
        theirs.push_back(work);
    }

    /// Takes the next work. The remaining work of its source comes after one piece of work of every other
    /// address.
    pub(super) fn pop(&mut self) -> Option<(Source, T)> {
        let source = self.order.pop_front()?;
        let theirs = self.work.get_mut(&source)?;
        let work = theirs.pop_front();
        if theirs.is_empty() {
            self.work.remove(&source);
        } else {
            self.order.push_back(source.clone());
        }
        work.map(|work| (source, work))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_turn_however_many_connections_another_one_has() {
        let mut turns = RoundRobin::default();
        for number in 0..3 {
            turns.push(Source::of("192.0.2.1:1"), number);
        }
        turns.push(Source::of("192.0.2.2:1"), 10);
        let mut done = Vec::new();
        for _ in 0..8 {
            let (source, number) = turns.pop().unwrap();
            done.push(number);
            turns.push(source, number);
        }
        assert_eq!(done, [0, 10, 1, 10, 2, 10, 0, 10]);
        while turns.pop().is_some() {}
        assert!(turns.is_empty() && turns.work.is_empty());
    }
}
