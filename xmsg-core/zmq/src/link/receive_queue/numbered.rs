//! A table whose entries have a number and a name.

use std::collections::HashMap;

/// Things by number, and their numbers by name. The numbers of removed things are reused.
#[derive(Debug)]
pub(super) struct Numbered<N, T> {
    pub(super) numbers: HashMap<N, usize>,
    pub(super) things: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<N, T> Default for Numbered<N, T> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), things: Vec::new(), free: Vec::new() }
    }
}

impl<N: std::hash::Hash + Eq, T> Numbered<N, T> {
    pub(super) fn add(&mut self, name: N, thing: T) -> usize {
        let number = self.free.pop().unwrap_or_else(|| {
            self.things.push(None);
            self.things.len() - 1
        });
        self.things[number] = Some(thing);
        self.numbers.insert(name, number);
        number
    }

    pub(super) fn get_mut(&mut self, number: usize) -> Option<&mut T> {
        self.things.get_mut(number).and_then(Option::as_mut)
    }

    pub(super) fn remove(&mut self, name: &N) {
        if let Some(number) = self.numbers.remove(name) {
            self.things[number] = None;
            self.free.push(number);
        }
    }
}
