//! Hashes of all prefixes of a topic, computed in one pass over it.
//!
//! A prefix is a polynomial whose coefficients are words of seven bytes. Its hash is the value of the
//! polynomial at a secret point, modulo a prime (universal hashing by Carter and Wegman). Two prefixes of at
//! most *w* words have equal values at no more than *w* of the 2⁶¹ points. So nobody who does not know the
//! point can choose prefixes that collide.

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;

/// 2⁶¹ − 1, a prime for which the remainder is computed with additions.
const PRIME: u64 = (1 << 61) - 1;
/// An odd number with an irregular bit pattern, from the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bytes of a coefficient: the most for which every coefficient is less than the prime.
const WORD: usize = 7;

/// A hash of 32 bits, which is never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hash(NonZeroU32);

impl Hash {
    pub(super) fn new(hash: u32) -> Option<Self> {
        NonZeroU32::new(hash).map(Self)
    }

    /// Returns the hash of a value modulo the prime. With some factors, one multiplication would give similar
    /// values similar hashes, so there are two.
    #[inline]
    fn spread(value: u64, key: Key) -> Self {
        Self::of(fold(fold(value, key.factor), SPREAD))
    }

    /// Takes the upper half of a number.
    pub(super) fn of(spread: u64) -> Self {
        Self(NonZeroU32::new((spread >> 32) as u32).unwrap_or(NonZeroU32::MIN))
    }

    pub(super) fn get(self) -> u32 {
        self.0.get()
    }
}

/// The secrets of a table, without which nobody can choose prefixes that collide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    point: u64,
    /// A factor that spreads the value over all bits.
    factor: u64,
}

impl Key {
    /// Returns a new random key.
    pub(super) fn random() -> Self {
        let random = RandomState::new();
        Self { point: random.hash_one(0) % PRIME, factor: random.hash_one(1) | 1 }
    }
}

/// A hasher for longer and longer prefixes of one topic.
#[derive(Clone, Copy, Debug)]
pub(super) struct PrefixHasher<'a> {
    key: Key,
    /// The rest of the topic behind the words that `value` includes.
    rest: &'a [u8],
    words: usize,
    /// The value starts with 1, so that leading zeros change the hash.
    value: u64,
}

impl<'a> PrefixHasher<'a> {
    pub(super) fn new(key: Key, topic: &'a [u8]) -> Self {
        Self { key, rest: topic, words: 0, value: 1 }
    }

    /// Returns the hash of the first `len` bytes. The topic must have that many bytes, and `len` must not be
    /// smaller than in the call before.
    #[inline]
    pub(super) fn hash(&mut self, len: usize) -> Hash {
        while len - self.words * WORD >= WORD {
            self.value = self.with(word(self.rest, WORD));
            self.rest = &self.rest[WORD..];
            self.words += 1;
        }
        let tail = len - self.words * WORD;
        // A bit behind the last byte makes trailing zeros change the hash, too.
        let value = self.with(word(self.rest, tail) | 1 << (8 * tail));
        Hash::spread(value, self.key)
    }

    /// Returns the value with one more coefficient.
    #[inline]
    fn with(&self, word: u64) -> u64 {
        let product = u128::from(self.value) * u128::from(self.key.point) + u128::from(word);
        let sum = (product as u64 & PRIME) + (product >> 61) as u64;
        if sum < PRIME { sum } else { sum - PRIME }
    }
}

/// Combines both halves of the product with an exclusive or.
#[inline]
fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    (product ^ (product >> 64)) as u64
}

/// Returns the first `len` bytes, at most seven, as a number.
#[inline]
fn word(bytes: &[u8], len: usize) -> u64 {
    if let Some(eight) = bytes.first_chunk::<8>() {
        return u64::from_le_bytes(*eight) & ((1 << (8 * len)) - 1);
    }
    bytes[..len].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Computes a hash directly from its definition.
    fn plain(key: Key, prefix: &[u8]) -> Hash {
        let mut words: Vec<&[u8]> = prefix.chunks(WORD).collect();
        if prefix.len().is_multiple_of(WORD) {
            words.push(b"");
        }
        let last = words.len() - 1;
        let value = words.iter().enumerate().fold(1_u128, |value, (number, word)| {
            let mark = if number == last { 1 << (8 * word.len()) } else { 0 };
            let coefficient =
                mark + word.iter().rev().fold(0_u128, |word, byte| word << 8 | u128::from(*byte));
            (value * u128::from(key.point) + coefficient) % u128::from(PRIME)
        });
        Hash::spread(value as u64, key)
    }

    #[test]
    fn prefixes_hash_as_if_they_were_alone() {
        let topic: Vec<u8> = (0..100).map(|number| 255 - number).collect();
        for step in 1..20 {
            let key = Key::random();
            let mut hasher = PrefixHasher::new(key, &topic);
            for len in (0..=topic.len()).step_by(step) {
                let hash = hasher.hash(len);
                assert_eq!(hash, plain(key, &topic[..len]));
                assert_eq!(
                    hash,
                    PrefixHasher::new(key, &topic[..len]).hash(len),
                    "what is behind it plays no part"
                );
            }
        }
        let highest = Key { point: PRIME - 1, factor: u64::MAX };
        assert_eq!(PrefixHasher::new(highest, &topic).hash(100), plain(highest, &topic));
    }

    #[test]
    fn zeros_in_front_and_behind_make_a_difference() {
        let key = Key::random();
        let zeros = [0; 100];
        let hashes: HashSet<u32> =
            (0..=100).map(|len| PrefixHasher::new(key, &zeros).hash(len).get()).collect();
        assert_eq!(hashes.len(), 101);
    }

    #[test]
    fn alike_prefixes_are_spread() {
        for (key, stem) in
            (0..30).flat_map(|_| ["", "det:", "detector:channel:"].map(|stem| (Key::random(), stem)))
        {
            let places: HashSet<u32> = (0..4096)
                .map(|number| format!("{stem}{number:04}"))
                .map(|prefix| PrefixHasher::new(key, prefix.as_bytes()).hash(prefix.len()).get() & 0xfff)
                .collect();
            // Pure chance would fill 63 % of the places.
            assert!((2200..3400).contains(&places.len()), "{} of 4096 places after {stem:?}", places.len());
        }
    }
}
