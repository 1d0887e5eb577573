//! Poly1305, for many short messages and for long ones, each with a key of its own.
//!
//! A message is a polynomial over the numbers modulo 2¹³⁰ − 5, evaluated at a secret point r. Numbers are in
//! three limbs of 44, 44 and 42 bits, whose products fit into 128 bits. With AVX2 or AVX-512, long messages
//! are processed in four or eight lanes. Each lane takes every fourth or eighth block, at r⁴ or r⁸. Its
//! numbers are in five limbs of 26 bits, whose products fit into the 64 bits of a lane.
//!
//! Where there is AVX2, the crate `poly1305` takes 0.6 to 1.3 µs for each new key, because it prepares for
//! long messages. Here each frame has a new key. A dependent crate cannot select the other implementation of
//! that crate.
//!
//! Nothing here branches on a secret or uses one as an index.

use fearless_simd::prelude::*;
use fearless_simd::{Level, Simd};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The length of a tag in bytes.
pub(super) const TAG_LEN: usize = 16;
/// The length of a key in bytes: the point r, and the number that is added at the end.
pub(super) const KEY_LEN: usize = 32;
const BLOCK_LEN: usize = 16;
/// The maximum number of lanes of a vector.
const LANES_MAX: usize = 8;
/// From this many bytes on, computing powers of r is worth its cost.
const LONG: usize = 512;

const BITS_44: u64 = (1 << 44) - 1;
const BITS_42: u64 = (1 << 42) - 1;
const BITS_26: u64 = (1 << 26) - 1;

/// A number as `x[0] + x[1]·2⁴⁴ + x[2]·2⁸⁸`. Limbs may be one bit longer than 44, 44 and 42 bits.
type Wide = [u64; 3];
/// A number, or one in each lane, as `x[0] + x[1]·2²⁶ + … + x[4]·2¹⁰⁴`.
type Narrow<T> = [T; 5];

/// The state of the computation of one message's tag.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Poly1305 {
    r: Wide,
    /// 20 · r[1] and 20 · r[2]. What is carried out of the top, 2¹³² and up, comes back at the bottom
    /// multiplied by 20.
    r_folded: [u64; 2],
    /// The value of the polynomial so far.
    sum: Wide,
    /// The number that is added at the end.
    end: u128,
}

impl Poly1305 {
    /// Begins a tag with this key, which must be used for one message only.
    pub(super) fn new(key: &[u8; KEY_LEN]) -> Self {
        let key = Zeroizing::new(u128_pair(key));
        let r = split(key[0] & 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff);
        Self { r, r_folded: [20 * r[1], 20 * r[2]], sum: [0; 3], end: key[1] }
    }

    /// Adds `data`. Only the last piece of a message may have a length that is not a multiple of 16.
    #[inline(always)]
    pub(super) fn update<S: Simd>(&mut self, simd: S, data: &[u8]) {
        let data = if data.len() < LONG { data } else { self.update_long(simd.level(), data) };
        let (blocks, rest) = data.as_chunks::<BLOCK_LEN>();
        let mut sum = self.sum;
        for block in blocks {
            sum = self.step(sum, u128::from_le_bytes(*block), 1 << 40);
        }
        if !rest.is_empty() {
            let mut block = [0; BLOCK_LEN];
            block[..rest.len()].copy_from_slice(rest);
            block[rest.len()] = 1;
            sum = self.step(sum, u128::from_le_bytes(block), 0);
        }
        self.sum = sum;
    }

    /// Returns `(sum + block) · r`. `top` is the bit above a whole block, 2¹²⁸.
    #[inline(always)]
    fn step(&self, sum: Wide, block: u128, top: u64) -> Wide {
        let block = split(block);
        self.times_r([sum[0] + block[0], sum[1] + block[1], sum[2] + block[2] + top])
    }

    /// Returns `x · r`. The limbs of `x` have at most 46 bits, those of r 44, and those of `r_folded` 49, so
    /// a sum of three products has at most 97.
    #[inline(always)]
    fn times_r(&self, x: Wide) -> Wide {
        let (r, folded) = (self.r, self.r_folded);
        let low = times(x[0], r[0]) + times(x[1], folded[1]) + times(x[2], folded[0]);
        let middle = times(x[0], r[1]) + times(x[1], r[0]) + times(x[2], folded[1]) + (low >> 44);
        let high = times(x[0], r[2]) + times(x[1], r[1]) + times(x[2], r[0]) + (middle >> 44);
        let low = (low as u64 & BITS_44) + 5 * (high >> 42) as u64;
        [low & BITS_44, (middle as u64 & BITS_44) + (low >> 44), high as u64 & BITS_42]
    }

    /// Processes whole blocks in lanes, if the processor has enough of them. Returns the rest of the data.
    #[inline(always)]
    fn update_long<'a>(&mut self, level: Level, data: &'a [u8]) -> &'a [u8] {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        if let Some(simd) = level.as_avx512() {
            return self.update_lanes(simd, data);
        } else if let Some(simd) = level.as_avx2() {
            return self.update_lanes(simd, data);
        }
        let _ = level;
        data
    }

    /// Processes groups of as many blocks as there are lanes. Lane l takes block l of each group.
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    #[inline(always)]
    fn update_lanes<'a, S: Lanes>(&mut self, simd: S, data: &'a [u8]) -> &'a [u8] {
        let lanes = S::u64s::LEN;
        let mut groups = data.chunks_exact(lanes * BLOCK_LEN);
        let rest = groups.remainder();
        let count = groups.len();
        // At the end, each lane is multiplied by its own power of r: the first one by r⁴ or r⁸, the last one
        // by r.
        let mut power = self.r;
        let mut powers = Zeroizing::new([[0; LANES_MAX]; 5]);
        for lane in (0..lanes).rev() {
            if lane < lanes - 1 {
                power = self.times_r(power);
            }
            for (limbs, limb) in powers.iter_mut().zip(narrow(power)) {
                limbs[lane] = limb;
            }
        }
        let zero = S::u64s::simd_from(simd, 0);
        let (mut step, mut last, mut sum) = ([zero; 5], [zero; 5], [zero; 5]);
        for (index, limb) in narrow(self.sum).into_iter().enumerate() {
            step[index] = S::u64s::simd_from(simd, powers[index][0]);
            last[index] = S::u64s::from_slice(simd, &powers[index][..lanes]);
            sum[index][0] = limb;
        }
        let step_folded = fold::<S>(&step);
        for group in groups.by_ref().take(count.saturating_sub(1)) {
            add_group(simd, &mut sum, group);
            sum = multiply(simd, &sum, &step, &step_folded);
        }
        for group in groups {
            add_group(simd, &mut sum, group);
            sum = multiply(simd, &sum, &last, &fold::<S>(&last));
        }
        let mut total = [0; 5];
        for (total, limbs) in total.iter_mut().zip(&sum) {
            *total = limbs.as_slice().iter().sum();
        }
        self.sum = widen(total);
        rest
    }

    /// Returns the tag.
    pub(super) fn tag(self) -> [u8; TAG_LEN] {
        let [mut low, mut middle, mut high] = self.sum;
        for _ in 0..2 {
            high += middle >> 44;
            middle &= BITS_44;
            low += 5 * (high >> 42);
            high &= BITS_42;
            middle += low >> 44;
            low &= BITS_44;
        }
        high += middle >> 44;
        middle &= BITS_44;
        // The sum is now below 2¹³⁰. If it is 2¹³⁰ − 5 or more, adding 5 carries out of the top, and what
        // remains is the result.
        let low_less = low + 5;
        let middle_less = middle + (low_less >> 44);
        let high_less = high + (middle_less >> 44);
        let keep = (high_less >> 42).wrapping_sub(1);
        let choose = |x: u64, less: u64, bits: u64| u128::from((x & keep) | (less & bits & !keep));
        let sum = choose(low, low_less, BITS_44)
            .wrapping_add(choose(middle, middle_less, BITS_44) << 44)
            .wrapping_add(choose(high, high_less, BITS_42) << 88);
        sum.wrapping_add(self.end).to_le_bytes()
    }
}

fn u128_pair(key: &[u8; KEY_LEN]) -> [u128; 2] {
    let (halves, _) = key.as_chunks::<BLOCK_LEN>();
    [u128::from_le_bytes(halves[0]), u128::from_le_bytes(halves[1])]
}

/// Splits a number into limbs of 44, 44 and 40 bits.
#[inline(always)]
fn split(x: u128) -> Wide {
    [x as u64 & BITS_44, (x >> 44) as u64 & BITS_44, (x >> 88) as u64]
}

#[inline(always)]
fn times(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}

/// Converts three limbs to five.
#[inline(always)]
fn narrow(x: Wide) -> Narrow<u64> {
    let middle = x[1] + (x[0] >> 44);
    let high = x[2] + (middle >> 44);
    let (low, middle) = (x[0] & BITS_44, middle & BITS_44);
    [
        low & BITS_26,
        (low >> 26 | middle << 18) & BITS_26,
        middle >> 8 & BITS_26,
        (middle >> 34 | high << 10) & BITS_26,
        high >> 16,
    ]
}

/// Converts five limbs, of at most 32 bits, to three.
#[inline(always)]
fn widen(x: Narrow<u64>) -> Wide {
    let low = u128::from(x[0]) + (u128::from(x[1]) << 26) + (u128::from(x[2]) << 52);
    let middle = (low >> 44) + (u128::from(x[3]) << 34) + (u128::from(x[4]) << 60);
    let high = (middle >> 44) as u64;
    let low = (low as u64 & BITS_44) + 5 * (high >> 42);
    [low & BITS_44, (middle as u64 & BITS_44) + (low >> 44), high & BITS_42]
}

/// Processors with at least four lanes of 64 bits, and an instruction that multiplies them.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
trait Lanes: Simd {
    /// Returns the products of the lower 32 bits of each lane.
    fn times(self, a: Self::u64s, b: Self::u64s) -> Self::u64s;
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
mod lanes {
    #[cfg(target_arch = "x86")]
    use std::arch::x86::{__m256i, __m512i, _mm256_mul_epu32, _mm512_mul_epu32};
    #[cfg(target_arch = "x86_64")]
    use std::arch::x86_64::{__m256i, __m512i, _mm256_mul_epu32, _mm512_mul_epu32};

    use fearless_simd::prelude::*;
    use fearless_simd::{Avx2, Avx512, kernel};

    kernel!(
        #[inline(always)]
        fn times_avx2(simd: Avx2, a: __m256i, b: __m256i) -> __m256i {
            _mm256_mul_epu32(a, b)
        }
    );

    kernel!(
        #[inline(always)]
        fn times_avx512(simd: Avx512, a: __m512i, b: __m512i) -> __m512i {
            _mm512_mul_epu32(a, b)
        }
    );

    impl super::Lanes for Avx2 {
        #[inline(always)]
        fn times(self, a: Self::u64s, b: Self::u64s) -> Self::u64s {
            times_avx2(self, a.into(), b.into()).simd_into(self)
        }
    }

    impl super::Lanes for Avx512 {
        #[inline(always)]
        fn times(self, a: Self::u64s, b: Self::u64s) -> Self::u64s {
            times_avx512(self, a.into(), b.into()).simd_into(self)
        }
    }
}

/// Adds a block to each lane. The limbs then have at most 28 bits.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
#[inline(always)]
fn add_group<S: Lanes>(simd: S, sum: &mut Narrow<S::u64s>, group: &[u8]) {
    let (first, second) = group.split_at(group.len() / 2);
    let first: S::u64s = S::u8s::from_slice(simd, first).bitcast();
    let second: S::u64s = S::u8s::from_slice(simd, second).bitcast();
    let (low, high) = first.deinterleave(second);
    sum[0] += low & BITS_26;
    sum[1] += (low >> 26) & BITS_26;
    sum[2] += ((low >> 52) | (high << 12)) & BITS_26;
    sum[3] += (high >> 14) & BITS_26;
    sum[4] += (high >> 40) | (1 << 24);
}

/// Multiplies each limb by 5. What is carried out of the top, 2¹³⁰ and up, comes back at the bottom
/// multiplied by 5.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
#[inline(always)]
fn fold<S: Lanes>(x: &Narrow<S::u64s>) -> Narrow<S::u64s> {
    let mut folded = *x;
    for limb in &mut folded {
        *limb += *limb << 2;
    }
    folded
}

/// Multiplies each lane. The limbs of `x` have at most 28 bits, those of `by` 27, and those of `folded` 30,
/// so a sum of five products has at most 61.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
#[inline(always)]
fn multiply<S: Lanes>(
    simd: S,
    x: &Narrow<S::u64s>,
    by: &Narrow<S::u64s>,
    folded: &Narrow<S::u64s>,
) -> Narrow<S::u64s> {
    let mut product = *x;
    for (place, limb) in product.iter_mut().enumerate() {
        *limb = simd.times(x[0], by[place]);
        for index in 1..5 {
            let by = if index <= place { by[place - index] } else { folded[5 + place - index] };
            *limb += simd.times(x[index], by);
        }
    }
    // There are two chains of carries, so that one need not wait for the other.
    for (from, to) in [(0, 1), (3, 4), (1, 2), (4, 0), (2, 3), (0, 1), (3, 4)] {
        let carry = product[from] >> 26;
        product[from] &= BITS_26;
        product[to] += if to == 0 { carry + (carry << 2) } else { carry };
    }
    product
}

#[cfg(test)]
mod tests {
    use fearless_simd::dispatch;
    use poly1305::universal_hash::KeyInit;
    use proptest::prelude::*;

    use super::super::salsa20::levels;
    use super::*;

    fn tag(level: Level, key: &[u8; KEY_LEN], pieces: &[&[u8]]) -> [u8; TAG_LEN] {
        let mut tag = Poly1305::new(key);
        for piece in pieces {
            dispatch!(level, simd => tag.update(simd, piece));
        }
        tag.tag()
    }

    fn theirs(key: &[u8; KEY_LEN], data: &[u8]) -> [u8; TAG_LEN] {
        poly1305::Poly1305::new(key.into()).compute_unpadded(data).into()
    }

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    /// The vectors are those of RFC 8439, section 2.5.2 and appendix A.3, numbers 4 to 11. Their sums come
    /// close to 2¹³⁰ − 5 from both sides.
    #[test]
    fn vectors_of_the_rfc() {
        const ONE: &str = "0100000000000000";
        const FOUR: &str = "0400000000000000";
        const CLOSE: &str = "e33594d7505e43b900000000000000003394d7505e4379cd0100000000000000";
        let jabberwocky = "2754776173206272696c6c69672c20616e642074686520736c6974687920746f7665730a446964206779726520616e\
                           642067696d626c6520696e2074686520776162653a0a416c6c206d696d737920776572652074686520626f726f676f\
                           7665732c0a416e6420746865206d6f6d65207261746873206f757467726162652e";
        let vectors = [
            (
                "85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b".to_string(),
                "43727970746f6772617068696320466f72756d2052657365617263682047726f7570".to_string(),
                "a8061dc1305136c6c22b8baf0c0127a9",
            ),
            (
                "1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0".to_string(),
                jabberwocky.to_string(),
                "4541669a7eaaee61e708dc7cbcc5eb62",
            ),
            (["02", &"00".repeat(31)].concat(), "ff".repeat(16), "03000000000000000000000000000000"),
            (
                ["02", &"00".repeat(15), &"ff".repeat(16)].concat(),
                ["02", &"00".repeat(15)].concat(),
                "03000000000000000000000000000000",
            ),
            (
                ["01", &"00".repeat(31)].concat(),
                [&"ff".repeat(16), "f0", &"ff".repeat(15), "11", &"00".repeat(15)].concat(),
                "05000000000000000000000000000000",
            ),
            (
                ["01", &"00".repeat(31)].concat(),
                [&"ff".repeat(16), "fbfefefefefefefefefefefefefefefe", &"01".repeat(16)].concat(),
                "00000000000000000000000000000000",
            ),
            (
                ["02", &"00".repeat(31)].concat(),
                ["fd", &"ff".repeat(15)].concat(),
                "faffffffffffffffffffffffffffffff",
            ),
            (
                [ONE, FOUR, &"00".repeat(16)].concat(),
                [CLOSE, &"00".repeat(16), ONE, &"00".repeat(8)].concat(),
                "14000000000000005500000000000000",
            ),
            (
                [ONE, FOUR, &"00".repeat(16)].concat(),
                [CLOSE, &"00".repeat(16)].concat(),
                "13000000000000000000000000000000",
            ),
        ];
        for level in levels() {
            for (index, (key, data, expected)) in vectors.iter().enumerate() {
                let tag = tag(level, &bytes(key), &[&hex::decode(data).unwrap()]);
                assert_eq!(hex::encode(tag), *expected, "{level:?}, vector {index}");
            }
        }
    }

    /// The vector is the tag of the box in the example of "Cryptography in `NaCl`".
    #[test]
    fn vector_of_nacl() {
        let key = bytes("eea6a7251c1e72916d11c2cb214d3c252539121d8e234e652d651fa4c8cff880");
        let data = "8e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186ac0dfc17c98dce87b4da7f011ec48c972\
                    71d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da\
                    99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74e355a5";
        let tag = tag(Level::new(), &key, &[&hex::decode(data).unwrap()]);
        assert_eq!(hex::encode(tag), "f3ffc7703f9400e52a7dfb4b3d3305d9");
    }

    /// Every limb becomes as long as possible, in every lane.
    #[test]
    fn largest_numbers_as_the_crate() {
        for (key, byte) in [(0xff, 0xff), (0xff, 0), (0, 0xff), (0xff, 0x80)] {
            let (key, data) = ([key; KEY_LEN], vec![byte; 5000]);
            for len in (0..700).chain([1024, 4096, 5000]) {
                let theirs = theirs(&key, &data[..len]);
                for level in levels() {
                    assert_eq!(tag(level, &key, &[&data[..len]]), theirs, "{level:?}, {len} × {byte}");
                }
            }
        }
    }

    proptest! {
        /// However the message is cut, the tag is that of the crate `poly1305`.
        #[test]
        fn as_the_crate(
            key: [u8; KEY_LEN],
            data in prop::collection::vec(any::<u8>(), 0..3000),
            cuts in prop::collection::vec(0..200_usize, 0..3),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| (cut * BLOCK_LEN).min(data.len() / 16 * 16)).collect();
            cuts.sort_unstable();
            let ends = cuts.iter().copied().chain([data.len()]);
            let mut start = 0;
            let pieces: Vec<&[u8]> = ends.map(|end| &data[std::mem::replace(&mut start, end)..end]).collect();
            let theirs = theirs(&key, &data);
            for level in levels() {
                prop_assert_eq!(tag(level, &key, &pieces), theirs, "{:?}", level);
            }
        }
    }
}
