//! The list in which a table keeps its prefixes, each in one place for as long as it is there.

/// The number of entries in a chunk.
const CHUNK: usize = 1024;

/// A list of values with fixed places. Chunks never move. Only the first chunk is moved while it grows to its
/// full size.
#[derive(Debug)]
pub(super) struct Arena<T> {
    chunks: Vec<Vec<T>>,
    pub(super) free: Vec<u32>,
}

impl<T: Default> Arena<T> {
    pub(super) fn new() -> Self {
        Self { chunks: Vec::new(), free: Vec::new() }
    }

    /// Returns the number of places, with those that are free.
    pub(super) fn places(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    pub(super) fn get(&self, place: u32) -> &T {
        &self.chunks[place as usize / CHUNK][place as usize % CHUNK]
    }

    pub(super) fn get_mut(&mut self, place: u32) -> Option<&mut T> {
        self.chunks.get_mut(place as usize / CHUNK)?.get_mut(place as usize % CHUNK)
    }

    /// Adds a value, and returns its place.
    pub(super) fn add(&mut self, value: T) -> u32 {
        if let Some(place) = self.free.pop() {
            self.chunks[place as usize / CHUNK][place as usize % CHUNK] = value;
            return place;
        }
        let place = self.places();
        if place.is_multiple_of(CHUNK) {
            self.chunks.push(if place == 0 { Vec::new() } else { Vec::with_capacity(CHUNK) });
        }
        self.chunks[place / CHUNK].push(value);
        place as u32
    }

    /// Removes the value at an existing place, and returns it.
    pub(super) fn remove(&mut self, place: u32) -> T {
        self.free.push(place);
        std::mem::take(&mut self.chunks[place as usize / CHUNK][place as usize % CHUNK])
    }
}
