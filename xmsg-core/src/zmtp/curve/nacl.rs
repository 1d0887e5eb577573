//! `crypto_box` of `NaCl` put together from its parts: X25519, `HSalsa20`, Salsa20, Poly1305.
//!
//! A box is the tag (16 bytes), then the ciphertext. The parts come from well-kept crates; put together here
//! because all boxes of a connection's traffic share the first 16 bytes of their nonce, so that the step from `XSalsa20` to
//! Salsa20 need be done once for each connection ([`StreamKey`]) and not for each frame.

use poly1305::Poly1305;
use poly1305::universal_hash::KeyInit;
use salsa20::Salsa20;
use salsa20::cipher::consts::U10;
use salsa20::cipher::{KeyIvInit, StreamCipher};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::key::{KEY_LEN, PublicKey, SecretKey};

/// Bytes that a box is longer than what is in it.
pub(super) const TAG_LEN: usize = 16;
/// Bytes of a nonce.
pub(super) const NONCE_LEN: usize = 24;

/// What two key pairs share.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct BoxKey([u8; KEY_LEN]);

impl BoxKey {
    /// `None` when the other key is one of those that make every shared secret the same.
    pub(super) fn between(ours: &SecretKey, theirs: &PublicKey) -> Option<Self> {
        let secret = x25519_dalek::StaticSecret::from(*ours.expose());
        let shared = secret.diffie_hellman(&x25519_dalek::PublicKey::from(*theirs.as_bytes()));
        shared.was_contributory().then(|| Self(hsalsa20(shared.as_bytes(), &[0; 16])))
    }

    /// Boxes `plain`.
    pub(super) fn seal(&self, nonce: &[u8; NONCE_LEN], plain: &[u8]) -> Vec<u8> {
        let (stream, rest) = self.split(nonce);
        let mut boxed = vec![0; TAG_LEN + plain.len()];
        let (tag, body) = boxed.split_at_mut(TAG_LEN);
        body.copy_from_slice(plain);
        tag.copy_from_slice(&stream.seal(rest, body));
        boxed
    }

    /// Opens a box; `None` if it was not made with this key and nonce.
    pub(super) fn open(&self, nonce: &[u8; NONCE_LEN], boxed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (stream, rest) = self.split(nonce);
        let (tag, body) = boxed.split_first_chunk::<TAG_LEN>()?;
        let mut plain = Zeroizing::new(body.to_vec());
        stream.open(rest, tag, &mut plain).then_some(plain)
    }

    /// The key of all boxes whose nonce starts with this.
    pub(super) fn stream(&self, prefix: &[u8; 16]) -> StreamKey {
        StreamKey(hsalsa20(&self.0, prefix))
    }

    fn split(&self, nonce: &[u8; NONCE_LEN]) -> (StreamKey, u64) {
        let mut prefix = [0; 16];
        prefix.copy_from_slice(&nonce[..16]);
        let mut rest = [0; 8];
        rest.copy_from_slice(&nonce[16..]);
        (self.stream(&prefix), u64::from_be_bytes(rest))
    }
}

/// The key of boxes that differ in the last 8 bytes of their nonce only.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct StreamKey([u8; KEY_LEN]);

impl StreamKey {
    /// Encrypts in place. Returns the tag.
    pub(super) fn seal(&self, nonce: u64, body: &mut [u8]) -> [u8; TAG_LEN] {
        let (mut cipher, authenticator) = self.start(nonce);
        cipher.apply_keystream(body);
        authenticator.compute_unpadded(body).into()
    }

    /// Checks the tag and then decrypts in place; `false`, and nothing is changed, if the tag is wrong.
    pub(super) fn open(&self, nonce: u64, tag: &[u8; TAG_LEN], body: &mut [u8]) -> bool {
        let (mut cipher, authenticator) = self.start(nonce);
        let expected: [u8; TAG_LEN] = authenticator.compute_unpadded(body).into();
        let genuine: bool = expected.ct_eq(tag).into();
        if genuine {
            cipher.apply_keystream(body);
        }
        genuine
    }

    /// The first 32 bytes of the key stream are the key of the tag.
    fn start(&self, nonce: u64) -> (Salsa20, Poly1305) {
        let mut cipher = Salsa20::new(&self.0.into(), &nonce.to_be_bytes().into());
        let mut key = Zeroizing::new([0; 32]);
        cipher.apply_keystream(&mut *key);
        (cipher, Poly1305::new(&(*key).into()))
    }
}

fn hsalsa20(key: &[u8; KEY_LEN], input: &[u8; 16]) -> [u8; KEY_LEN] {
    salsa20::hsalsa::<U10>(&(*key).into(), &(*input).into()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    /// Made with libsodium: `crypto_box_easy` of the bytes 0 to 99.
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
