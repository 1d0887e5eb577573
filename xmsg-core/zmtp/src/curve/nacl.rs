//! `crypto_box` of `NaCl`, built from X25519, `HSalsa20`, Salsa20 and Poly1305.
//!
//! A box is the tag (16 bytes), then the ciphertext. It is built here because all boxes of a connection's
//! traffic share the first 16 bytes of their nonce and number the rest. So the step from `XSalsa20` to
//! Salsa20 is done once for each connection ([`StreamKey`]) and not for each frame, and the first block of
//! the key stream is computed for several frames at a time.

use std::ops::Range;

use fearless_simd::{Level, Simd, dispatch};
use salsa20::cipher::consts::U10;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::key::{KEY_LEN, PublicKey, SecretKey};
use super::poly1305::{self, Poly1305};
use super::salsa20::{BLOCK_LEN, Salsa20};

/// The number of bytes by which a box is longer than its content.
pub(super) const TAG_LEN: usize = poly1305::TAG_LEN;
/// The length of a nonce in bytes.
pub(super) const NONCE_LEN: usize = 24;
/// The number of bytes that are encrypted at a time. They are still in the processor's first-level cache when
/// the tag is computed.
const PIECE: usize = 8 << 10;
/// The number of bytes that the first block of the key stream encrypts. The bytes before them are the key of
/// the tag.
const FIRST: usize = BLOCK_LEN - poly1305::KEY_LEN;

/// The shared key of two key pairs.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct BoxKey([u8; KEY_LEN]);

impl BoxKey {
    /// Computes the shared key. Returns `None` if the other key is one of those that make every shared secret
    /// the same.
    pub(super) fn between(ours: &SecretKey, theirs: &PublicKey) -> Option<Self> {
        let secret = x25519_dalek::StaticSecret::from(*ours.expose());
        let shared = secret.diffie_hellman(&x25519_dalek::PublicKey::from(*theirs.as_bytes()));
        shared.was_contributory().then(|| Self(hsalsa20(shared.as_bytes(), &[0; 16])))
    }

    /// Encrypts `plain` into a box.
    pub(super) fn seal(&self, nonce: &[u8; NONCE_LEN], plain: &[u8]) -> Vec<u8> {
        let (mut stream, rest) = self.split(nonce);
        let mut boxed = [&[0; TAG_LEN], plain].concat();
        let (tag, body) = boxed.split_at_mut(TAG_LEN);
        let mut making = stream.start(rest);
        for piece in pieces(body.len()) {
            making.encrypt(&mut body[piece]);
        }
        tag.copy_from_slice(&making.tag());
        boxed
    }

    /// Decrypts a box. Returns `None` if it was not made with this key and nonce.
    pub(super) fn open(&self, nonce: &[u8; NONCE_LEN], boxed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (mut stream, rest) = self.split(nonce);
        let (tag, body) = boxed.split_first_chunk::<TAG_LEN>()?;
        let mut plain = Zeroizing::new(body.to_vec());
        let mut making = stream.start(rest);
        for piece in pieces(plain.len()) {
            making.decrypt(&mut plain[piece]);
        }
        making.has_tag(tag).then_some(plain)
    }

    /// Returns the key of all boxes whose nonce starts with `prefix`.
    pub(super) fn stream(&self, prefix: &[u8; 16]) -> StreamKey {
        StreamKey::new(&hsalsa20(&self.0, prefix), Level::new())
    }

    fn split(&self, nonce: &[u8; NONCE_LEN]) -> (StreamKey, u64) {
        let mut prefix = [0; 16];
        prefix.copy_from_slice(&nonce[..16]);
        let mut rest = [0; 8];
        rest.copy_from_slice(&nonce[16..]);
        (self.stream(&prefix), u64::from_be_bytes(rest))
    }
}

/// The key of boxes whose nonces differ only in the last 8 bytes, which are a number.
pub(super) struct StreamKey {
    salsa20: Salsa20,
    /// The instruction set of the processor.
    level: Level,
    /// The first blocks of the key stream for some consecutive nonces.
    ahead: Zeroizing<Vec<[u8; BLOCK_LEN]>>,
    /// The first of these nonces.
    ahead_from: u64,
}

impl StreamKey {
    fn new(key: &[u8; KEY_LEN], level: Level) -> Self {
        Self { salsa20: Salsa20::new(key), level, ahead: Zeroizing::default(), ahead_from: 0 }
    }

    /// Begins a box with this nonce, to be encrypted or decrypted.
    #[inline]
    pub(super) fn start(&mut self, nonce: u64) -> BoxInProgress<'_> {
        if nonce.wrapping_sub(self.ahead_from) >= self.ahead.len() as u64 {
            self.salsa20.first_blocks(self.level, nonce, &mut self.ahead);
            self.ahead_from = nonce;
        }
        // The code above has ensured that there is a block for this nonce.
        let block = &self.ahead[nonce.wrapping_sub(self.ahead_from) as usize];
        let (tag_key, first) = block.split_first_chunk().expect("a block is longer than the key of a tag");
        BoxInProgress {
            salsa20: &self.salsa20,
            level: self.level,
            nonce,
            block: 1,
            first,
            tag: Poly1305::new(tag_key),
        }
    }
}

/// Returns the pieces in which a box is processed. All but the last of them end at the end of a block of the
/// key stream.
pub(super) fn pieces(len: usize) -> impl Iterator<Item = Range<usize>> {
    let end_of_first = (FIRST + PIECE).min(len);
    let others = (end_of_first..len).step_by(PIECE).map(move |start| start..(start + PIECE).min(len));
    std::iter::once(0..end_of_first).chain(others)
}

/// A box that is being encrypted or decrypted, in the order of its [`pieces`].
pub(super) struct BoxInProgress<'a> {
    salsa20: &'a Salsa20,
    level: Level,
    nonce: u64,
    /// The number of the next block of the key stream.
    block: u64,
    /// The unused part of the first block.
    first: &'a [u8],
    tag: Poly1305,
}

impl BoxInProgress<'_> {
    /// Encrypts the next piece in place.
    pub(super) fn encrypt(&mut self, piece: &mut [u8]) {
        dispatch!(self.level, simd => {
            self.apply(simd, piece);
            self.tag.update(simd, piece);
        });
    }

    /// Decrypts the next piece in place. None of it may be used before the tag was verified.
    pub(super) fn decrypt(&mut self, piece: &mut [u8]) {
        dispatch!(self.level, simd => {
            self.tag.update(simd, piece);
            self.apply(simd, piece);
        });
    }

    #[inline(always)]
    fn apply<S: Simd>(&mut self, simd: S, piece: &mut [u8]) {
        let (first, rest) = piece.split_at_mut(self.first.len().min(piece.len()));
        for (byte, key) in first.iter_mut().zip(std::mem::take(&mut self.first)) {
            *byte ^= key;
        }
        self.salsa20.apply(simd, self.nonce, self.block, rest);
        self.block += (rest.len() / BLOCK_LEN) as u64;
    }

    /// Returns the tag of all pieces.
    pub(super) fn tag(self) -> [u8; TAG_LEN] {
        self.tag.tag()
    }

    /// Returns whether this is the tag of all pieces.
    #[must_use]
    pub(super) fn has_tag(self, tag: &[u8; TAG_LEN]) -> bool {
        self.tag().ct_eq(tag).into()
    }
}

fn hsalsa20(key: &[u8; KEY_LEN], input: &[u8; 16]) -> [u8; KEY_LEN] {
    salsa20::hsalsa::<U10>(&(*key).into(), &(*input).into()).into()
}

#[cfg(test)]
mod tests {
    use ::poly1305::universal_hash::KeyInit;
    use ::salsa20::cipher::{KeyIvInit, StreamCipher};
    use proptest::prelude::*;

    use super::super::salsa20::levels;
    use super::*;

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    /// The box was made with libsodium: `crypto_box_easy` of the bytes 0 to 99.
    #[test]
    fn golden_box() {
        let alice =
            SecretKey::from_bytes(bytes("2bd806c97f0e00af1a1fc3328fa763a9269723c8db8fac4f93af71db186d6e90"));
        let bob =
            SecretKey::from_bytes(bytes("81b637d8fcd2c6da6359e6963113a1170de795e4b725b84d1e0b4cfd9ec58ce9"));
        let nonce = bytes("78377b525757b494427f89014f97d79928f3938d14eb51e2");
        let expected = "8b6ac50099733eb2920e8168a815f6cfd0e2299c835e7e621d7254fffe722d669c85f7d5fe7b1959a91cc8c0f75d6a8a\
                        cc07d0b5c36abc3b2e5784ea190f53ca2bc6950b646a3ec8a03451bf477faea43fc7e3bbc3df3cb4f28732cba038d8bd\
                        cfb25d486d26a53615c4e8e908e30b3d272edcab";
        let plain: Vec<u8> = (0..100).collect();
        let boxed = BoxKey::between(&alice, &bob.public()).unwrap().seal(&nonce, &plain);
        assert_eq!(hex::encode(&boxed), expected);
        let opened = BoxKey::between(&bob, &alice.public()).unwrap().open(&nonce, &boxed);
        assert_eq!(*opened.unwrap(), plain);
    }

    /// This is the example of "Cryptography in `NaCl`" (Bernstein, 2009).
    #[test]
    fn box_of_nacl() {
        let key = BoxKey(bytes("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389"));
        let nonce = bytes("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37");
        let plain = "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c6129\
                     6cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde\
                     048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705";
        let expected = "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186a\
                        c0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae\
                        90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74\
                        e355a5";
        let plain = hex::decode(plain).unwrap();
        let boxed = key.seal(&nonce, &plain);
        assert_eq!(hex::encode(&boxed), expected);
        assert_eq!(*key.open(&nonce, &boxed).unwrap(), plain);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Boxes of every length, with nonces that continue, skip and return, are those of the crates
        /// `salsa20` and `poly1305`.
        #[test]
        fn boxes_as_of_the_crates(
            key: [u8; KEY_LEN],
            first in prop_oneof![any::<u64>(), u64::MAX - 5..=u64::MAX],
            boxes in prop::collection::vec((0..40_u64, prop_oneof![0..600_usize, 8000..18_000_usize]), 1..6),
        ) {
            for level in levels() {
                let (mut sealing, mut opening) = (StreamKey::new(&key, level), StreamKey::new(&key, level));
                for &(skipped, len) in &boxes {
                    let nonce = first.wrapping_add(skipped);
                    let plain: Vec<u8> = (0..len).map(|index| (index % 251) as u8).collect();

                    let mut cipher = ::salsa20::Salsa20::new(&key.into(), &nonce.to_be_bytes().into());
                    let (mut tag_key, mut expected) = ([0; KEY_LEN], plain.clone());
                    cipher.apply_keystream(&mut tag_key);
                    cipher.apply_keystream(&mut expected);
                    let tag: [u8; TAG_LEN] =
                        ::poly1305::Poly1305::new(&tag_key.into()).compute_unpadded(&expected).into();

                    let (mut boxed, mut making) = (plain.clone(), sealing.start(nonce));
                    for piece in pieces(len) {
                        making.encrypt(&mut boxed[piece]);
                    }
                    prop_assert!(boxed == expected, "{:?}, {} bytes", level, len);
                    prop_assert_eq!(making.tag(), tag);

                    let mut making = opening.start(nonce);
                    for piece in pieces(len) {
                        making.decrypt(&mut boxed[piece]);
                    }
                    prop_assert!(making.has_tag(&tag));
                    prop_assert!(boxed == plain);
                }
            }
        }
    }

    #[test]
    fn a_changed_box_does_not_open() {
        let (ours, theirs) = (SecretKey::from_bytes([1; 32]), SecretKey::from_bytes([2; 32]));
        let key = BoxKey::between(&ours, &theirs.public()).unwrap();
        let boxed = key.seal(&[3; NONCE_LEN], b"message");
        for index in 0..boxed.len() {
            let mut changed = boxed.clone();
            changed[index] ^= 1;
            assert!(key.open(&[3; NONCE_LEN], &changed).is_none(), "byte {index}");
        }
        assert!(key.open(&[4; NONCE_LEN], &boxed).is_none());
        assert!(key.open(&[3; NONCE_LEN], &boxed[..10]).is_none());
    }

    #[test]
    fn keys_that_share_nothing_are_refused() {
        let ours = SecretKey::from_bytes([1; 32]);
        assert!(BoxKey::between(&ours, &PublicKey::from_bytes([0; 32])).is_none());
        let mut one = [0; 32];
        one[0] = 1;
        assert!(BoxKey::between(&ours, &PublicKey::from_bytes(one)).is_none());
    }
}
