//! Salsa20, which computes as many blocks at a time as the processor has lanes.
//!
//! Each lane of a vector holds a word of another block, so the rounds need no shuffles. Only the finished
//! blocks are put into order. The crate `salsa20` computes one block after the other, at 1.4 ns per byte.
//! This module takes 0.67 ns with SSE2, which every x86-64 has, 0.33 ns with AVX2, and 0.19 ns with AVX-512.
//! The instruction set is detected at run time.
//!
//! Nothing here branches on a secret or uses one as an index.

use fearless_simd::prelude::*;
use fearless_simd::{Level, Simd, dispatch, u32x4};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::key::KEY_LEN;

/// The length of a block in bytes.
pub(super) const BLOCK_LEN: usize = 64;
/// "expand 32-byte k", which is on the diagonal of a block before the rounds.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// A key, as the words of a block before the rounds. The words of the nonce and of the block number are still
/// zero.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Salsa20([u32; 16]);

impl Salsa20 {
    pub(super) fn new(key: &[u8; KEY_LEN]) -> Self {
        let mut words = [0; 16];
        for (word, constant) in words.iter_mut().step_by(5).zip(CONSTANTS) {
            *word = constant;
        }
        let (low, high) = key.as_chunks::<4>().0.split_at(4);
        for index in 0..4 {
            words[1 + index] = u32::from_le_bytes(low[index]);
            words[11 + index] = u32::from_le_bytes(high[index]);
        }
        Self(words)
    }

    /// Fills `blocks` with the first block of the key stream for this nonce and for the following ones. There
    /// are as many blocks as are computed at a time.
    pub(super) fn first_blocks(&self, level: Level, nonce: u64, blocks: &mut Vec<[u8; BLOCK_LEN]>) {
        dispatch!(level, simd => self.first_blocks_with(simd, nonce, blocks));
    }

    #[inline(always)]
    fn first_blocks_with<S: Simd>(&self, simd: S, nonce: u64, blocks: &mut Vec<[u8; BLOCK_LEN]>) {
        blocks.resize(S::u32s::LEN, [0; BLOCK_LEN]);
        blocks.fill([0; BLOCK_LEN]);
        let stream = self.blocks::<S, S::u32s>(simd, |lane| (nonce.wrapping_add(lane), 0));
        xor(simd, &stream, blocks.as_flattened_mut());
    }

    /// XORs the key stream of this nonce, beginning at block number `block`, into `data`.
    #[inline(always)]
    pub(super) fn apply<S: Simd>(&self, simd: S, nonce: u64, mut block: u64, data: &mut [u8]) {
        let lanes = S::u32s::LEN;
        let mut chunks = data.chunks_exact_mut(lanes * BLOCK_LEN);
        for chunk in &mut chunks {
            xor(simd, &self.blocks::<S, S::u32s>(simd, |lane| (nonce, block.wrapping_add(lane))), chunk);
            block = block.wrapping_add(lanes as u64);
        }
        let rest = chunks.into_remainder();
        // Four lanes take less time than eight or sixteen.
        if rest.len() > 4 * BLOCK_LEN {
            xor(simd, &self.blocks::<S, S::u32s>(simd, |lane| (nonce, block.wrapping_add(lane))), rest);
        } else if !rest.is_empty() {
            xor(simd, &self.blocks::<S, u32x4<S>>(simd, |lane| (nonce, block.wrapping_add(lane))), rest);
        }
    }

    /// Computes the blocks, one behind the other, for the nonces and block numbers that `position` returns
    /// for each lane.
    #[inline(always)]
    fn blocks<S: Simd, V: SimdInt<S, Element = u32>>(
        &self,
        simd: S,
        position: impl Fn(u64) -> (u64, u64),
    ) -> [V; 16] {
        let mut input = [V::simd_from(simd, 0); 16];
        for (input, word) in input.iter_mut().zip(self.0) {
            *input = V::simd_from(simd, word);
        }
        // The nonce is a big-endian number, and the words of the cipher are little-endian.
        input[6] = V::from_fn(simd, |lane| ((position(lane as u64).0 >> 32) as u32).swap_bytes());
        input[7] = V::from_fn(simd, |lane| (position(lane as u64).0 as u32).swap_bytes());
        input[8] = V::from_fn(simd, |lane| position(lane as u64).1 as u32);
        input[9] = V::from_fn(simd, |lane| (position(lane as u64).1 >> 32) as u32);
        let mut words = input;
        for _ in 0..10 {
            for [a, b, c, d] in [[0, 4, 8, 12], [5, 9, 13, 1], [10, 14, 2, 6], [15, 3, 7, 11]] {
                quarter_round(&mut words, a, b, c, d);
            }
            for [a, b, c, d] in [[0, 1, 2, 3], [5, 6, 7, 4], [10, 11, 8, 9], [15, 12, 13, 14]] {
                quarter_round(&mut words, a, b, c, d);
            }
        }
        for (word, input) in words.iter_mut().zip(input) {
            *word += input;
        }
        // Word w of the block in lane l is at index w · lanes + l, and belongs at l · 16 + w. Each
        // interleaving of the first half with the second half, like a perfect shuffle of cards, rotates the
        // binary digits of an index by one.
        for _ in 0..4 {
            let deck = words;
            for index in 0..8 {
                (words[2 * index], words[2 * index + 1]) = deck[index].interleave(deck[index + 8]);
            }
        }
        words
    }
}

#[inline(always)]
fn quarter_round<S: Simd, V: SimdInt<S, Element = u32>>(
    words: &mut [V; 16],
    a: usize,
    b: usize,
    c: usize,
    d: usize,
) {
    words[b] ^= rotate(words[a] + words[d], 7);
    words[c] ^= rotate(words[b] + words[a], 9);
    words[d] ^= rotate(words[c] + words[b], 13);
    words[a] ^= rotate(words[d] + words[c], 18);
}

#[inline(always)]
fn rotate<S: Simd, V: SimdInt<S, Element = u32>>(word: V, by: u32) -> V {
    (word << by) | (word >> (32 - by))
}

/// XORs a key stream into `data`, which may be shorter.
#[inline(always)]
fn xor<S: Simd, V: SimdInt<S, Element = u32>>(simd: S, stream: &[V; 16], data: &mut [u8]) {
    for (words, data) in stream.iter().zip(data.chunks_mut(4 * V::LEN)) {
        let words = little_endian(*words);
        if data.len() == 4 * V::LEN {
            let sum = V::from_bytes(V::ByteVector::from_slice(simd, data)) ^ words;
            sum.to_bytes().store_slice(data);
        } else {
            for (byte, key) in data.iter_mut().zip(words.to_bytes().as_slice()) {
                *byte ^= key;
            }
        }
    }
}

/// Converts words so that their bytes in memory are in the order of the cipher.
#[inline(always)]
fn little_endian<S: Simd, V: SimdInt<S, Element = u32>>(words: V) -> V {
    if cfg!(target_endian = "little") {
        words
    } else {
        (words << 24) | ((words & 0xff00) << 8) | ((words >> 8) & 0xff00) | (words >> 24)
    }
}

/// Returns all instruction sets that this processor supports.
#[cfg(test)]
pub(super) fn levels() -> Vec<Level> {
    let best = Level::new();
    let mut levels = vec![best];
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        levels.extend(best.as_sse2().map(Simd::level));
        levels.extend(best.as_sse4_2().map(Simd::level));
        levels.extend(best.as_avx2().map(Simd::level));
    }
    levels
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use salsa20::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};

    use super::*;

    fn stream(level: Level, key: &Salsa20, nonce: u64, block: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        dispatch!(level, simd => key.apply(simd, nonce, block, &mut data));
        data
    }

    fn theirs(key: &[u8; KEY_LEN], nonce: u64, block: u64, len: usize) -> Vec<u8> {
        let mut cipher = salsa20::Salsa20::new(key.into(), &nonce.to_be_bytes().into());
        cipher.seek(block * BLOCK_LEN as u64);
        let mut data = vec![0; len];
        cipher.apply_keystream(&mut data);
        data
    }

    /// The vector is ECRYPT, Salsa20/20 with keys of 256 bits, set 6, vector 0.
    #[test]
    fn ecrypt_vector() {
        let key = hex::decode("0053a6f94c9ff24598eb3e91e4378add3083d6297ccf2275c81b6ec11467ba0d").unwrap();
        let key = Salsa20::new(&key.try_into().unwrap());
        let parts = [
            (
                0,
                "f5fad53f79f9df58c4aea0d0ed9a9601f278112ca7180d565b420a48019670ea\
                 f24ce493a86263f677b46ace1924773d2bb25571e1aa8593758fc382b1280b71",
            ),
            (
                65472,
                "b70c50139c63332ef6e77ac54338a4079b82bec9f9a403dfea821b83f7860791\
                     650ef1b2489d0590b1de772eeda4e3bcd60fa7ce9cd623d9d2fd5758b8653e70",
            ),
            (
                65536,
                "81582c65d7562b80aec2f1a673a9d01c9f892a23d4919f6ab47b9154e08e699b\
                     4117d7c666477b60f8391481682f5d95d96623dbc489d88daa6956b9f0646b6e",
            ),
            (
                131_008,
                "a13ffa1208f8bf50900886faab40fd10e8caa306e63df39536a1564fb760b242\
                       a9d6a4628cdc878762834e27a541da2a5e3b3445989c76f611e0fec6d91acacc",
            ),
        ];
        for level in levels() {
            let stream = stream(level, &key, 0x0d74_db42_a910_77de, 0, 131_072);
            for (at, expected) in parts {
                assert_eq!(hex::encode(&stream[at..at + BLOCK_LEN]), expected, "{level:?}, byte {at}");
            }
        }
    }

    proptest! {
        /// For every length and first block, the key stream is that of the crate `salsa20`.
        #[test]
        fn as_the_crate(
            key: [u8; KEY_LEN],
            nonce: u64,
            block in prop_oneof![0..20_u64, (1_u64 << 32) - 20..(1 << 32) + 20],
            len in 0..3000_usize,
        ) {
            let ours = Salsa20::new(&key);
            let theirs = theirs(&key, nonce, block, len);
            for level in levels() {
                prop_assert_eq!(&stream(level, &ours, nonce, block, len), &theirs, "{:?}", level);
            }
        }

        /// The first blocks of consecutive nonces are those of the crate `salsa20`, too.
        #[test]
        fn first_blocks_as_the_crate(
            key: [u8; KEY_LEN],
            nonce in prop_oneof![any::<u64>(), u64::MAX - 20..=u64::MAX],
        ) {
            for level in levels() {
                let mut blocks = vec![[7; BLOCK_LEN]; 3];
                Salsa20::new(&key).first_blocks(level, nonce, &mut blocks);
                prop_assert!(blocks.len() >= 4);
                for (index, block) in blocks.iter().enumerate() {
                    let nonce = nonce.wrapping_add(index as u64);
                    prop_assert_eq!(&theirs(&key, nonce, 0, BLOCK_LEN), block, "{:?}, {}", level, index);
                }
            }
        }
    }
}
