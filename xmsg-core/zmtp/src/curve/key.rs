//! Keys of CURVE, and their text form: Z85 (RFC 32), 40 characters.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The length of a key in bytes.
pub const KEY_LEN: usize = 32;
/// The length of a key in Z85, in characters.
const TEXT_LEN: usize = 40;

/// The public half of a key pair.
///
/// ```
/// use xmsg_zmtp::curve::{KeyPair, PublicKey};
/// let keys = KeyPair::generate()?;
/// let text = keys.public().to_string();
/// assert_eq!(text.len(), 40);
/// assert_eq!(text.parse::<PublicKey>()?, *keys.public());
/// # Ok::<(), xmsg_zmtp::curve::KeyError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_LEN]);

impl PublicKey {
    /// Creates a key from its bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes of the key.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&z85::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*decode(text, "public key")?))
    }
}

/// The secret half of a key pair. It is wiped when dropped, and `Debug` never shows it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SecretKey([u8; KEY_LEN]);

impl SecretKey {
    /// Creates a key from its bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes of the key.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Returns the text form of the key, which has to be kept as secret as the key.
    #[must_use]
    pub fn expose_text(&self) -> Zeroizing<String> {
        Zeroizing::new(z85::encode(self.0))
    }

    /// Returns the public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let secret = x25519_dalek::StaticSecret::from(self.0);
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

impl PartialEq for SecretKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretKey {}

impl FromStr for SecretKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*decode(text, "secret key")?))
    }
}

/// A secret key and its public half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    public: PublicKey,
    secret: SecretKey,
}

impl KeyPair {
    /// Generates new keys from the randomness of the operating system.
    ///
    /// # Errors
    ///
    /// The system has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let mut secret = Zeroizing::new([0; KEY_LEN]);
        getrandom::fill(&mut *secret).map_err(|error| KeyError {
            what: "the system has no randomness for a key".to_owned(),
            source: Some(error),
        })?;
        Ok(SecretKey::from_bytes(*secret).into())
    }

    /// Returns the public half.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Returns the secret half.
    #[must_use]
    pub fn secret(&self) -> &SecretKey {
        &self.secret
    }
}

impl From<SecretKey> for KeyPair {
    fn from(secret: SecretKey) -> Self {
        Self { public: secret.public(), secret }
    }
}

/// Why there is no key: a text is not a key, or the system has no randomness. In the second case, the source
/// is the error of the system.
#[derive(Clone, Debug)]
pub struct KeyError {
    what: String,
    source: Option<getrandom::Error>,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Error for KeyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|error| error as _)
    }
}

/// Decodes the text form of a key. The text is never part of the error, because it may be a secret.
fn decode(text: &str, what: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let text = text.trim();
    let wrong = |why: &str| KeyError {
        what: format!("not a {what}: {why}; a key has 40 characters, in Z85"),
        source: None,
    };
    if text.len() != TEXT_LEN {
        return Err(wrong(&format!("{} characters", text.len())));
    }
    let bytes = Zeroizing::new(z85::decode(text).map_err(|_| wrong("not in Z85"))?);
    let mut key = Zeroizing::new([0; KEY_LEN]);
    if bytes.len() != KEY_LEN {
        return Err(wrong("not 32 bytes"));
    }
    key.copy_from_slice(&bytes);
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These are the test keys of RFC 26, which the manual pages of libzmq use.
    #[test]
    fn golden_key_pair() {
        let secret: SecretKey = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs".parse().unwrap();
        assert_eq!(secret.public().to_string(), "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID");
        assert_eq!(&**secret.expose_text(), "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs");
    }

    #[test]
    fn a_wrong_key_is_told_without_being_shown() {
        for text in ["", "sesame, open", "\"D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%c", "ääääääääääääääääääää"]
        {
            let error = text.parse::<SecretKey>().unwrap_err().to_string();
            assert!(error.contains("40 characters"), "{error}");
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let keys = KeyPair::from(SecretKey::from_bytes([7; 32]));
        assert!(!format!("{keys:?}").contains(keys.secret().expose_text().as_str()));
        assert!(format!("{keys:?}").contains("SecretKey(…)"));
    }
}
