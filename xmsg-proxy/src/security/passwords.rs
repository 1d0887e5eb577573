//! The password file. It has a line `name:hash` for each user, with Argon2id hashes as `xmsg passwd` writes
//! them.

use std::collections::HashMap;
use std::sync::LazyLock;

use argon2::password_hash::PasswordHasher;
use argon2::password_hash::phc::{Output, PasswordHash};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use xmsg_core::{Error, ErrorKind, Result};
use zeroize::Zeroizing;

/// The most memory that the check of one password may take, in KiB. Without this limit, a bad file could
/// exhaust the machine's memory.
const MEMORY_MAX_KIB: u32 = 1 << 20;

/// Users and the hashes of their passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Passwords(HashMap<String, String>);

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Passwords {
    /// Reads the lines of a password file. Empty lines and lines that start with `#` are ignored.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidOption`] if a line is not valid, its name occurs twice, or its check would take
    /// more than 1 GiB of memory. The error states the number of the line, but not its content.
    pub fn parse(text: &str) -> Result<Self> {
        let mut users = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // An error does not show the line, which contains a hash.
            let wrong = |what: &str| {
                let what = format!("line {}: {what}; write it with `xmsg passwd`", number + 1);
                Error::new(ErrorKind::InvalidOption, what)
            };
            let (name, hash) = line.split_once(':').ok_or_else(|| wrong("not `name:hash`"))?;
            let parsed = PasswordHash::new(hash).map_err(|_| wrong("not a hash"))?;
            let parameters = Params::try_from(&parsed).map_err(|_| wrong("not a hash of Argon2"))?;
            if parameters.m_cost() > MEMORY_MAX_KIB {
                return Err(wrong("checking it would take more than 1 GiB of memory"));
            }
            if name.is_empty() || name.len() > 255 {
                return Err(wrong("a name has 1 to 255 bytes"));
            }
            if users.insert(name.to_owned(), hash.to_owned()).is_some() {
                return Err(wrong("this name has a line already"));
            }
        }
        Ok(Self(users))
    }

    /// Returns whether this user exists.
    #[must_use]
    pub fn knows(&self, user: &str) -> bool {
        self.0.contains_key(user)
    }

    /// Returns the hash against which the user's password is checked.
    pub(super) fn line(&self, user: &[u8]) -> Option<&str> {
        std::str::from_utf8(user).ok().and_then(|user| self.0.get(user)).map(String::as_str)
    }

    /// Returns whether this is the user's password. The check is slow on purpose, even for a user who does
    /// not exist. `memory` grows to what the check needs, and can be used again for the next one.
    pub(super) fn verify(&self, user: &[u8], password: &[u8], memory: &mut Vec<Block>) -> bool {
        static NOBODY: LazyLock<String> =
            LazyLock::new(|| hash_password("nobody").map_or_else(|_| String::new(), |hash| hash.to_string()));
        let known = self.line(user);
        let hash = known.unwrap_or(&NOBODY);
        matches(hash, password, memory).unwrap_or(false) && known.is_some()
    }
}

/// Returns whether this is the hash of the password, or `None` if it is not a valid hash.
fn matches(hash: &str, password: &[u8], memory: &mut Vec<Block>) -> Option<bool> {
    let hash = PasswordHash::new(hash).ok()?;
    let (salt, expected) = (hash.salt.as_ref()?, hash.hash.as_ref()?);
    let algorithm = Algorithm::try_from(hash.algorithm.as_str()).ok()?;
    let version = hash.version.map_or(Ok(Version::default()), Version::try_from).ok()?;
    let params = Params::try_from(&hash).ok()?;
    if memory.len() < params.block_count() {
        memory.resize(params.block_count(), Block::new());
    }
    let mut found = [0; Output::MAX_LENGTH];
    let found = found.get_mut(..expected.len())?;
    Argon2::new(algorithm, version, params)
        .hash_password_into_with_memory(password, salt, found, memory)
        .ok()?;
    // This comparison takes the same time wherever the values differ.
    Some(Output::new(found).ok()? == *expected)
}

/// Returns the hash of a password for its line in the file.
///
/// # Errors
///
/// [`ErrorKind::InvalidOption`] if the password can't be hashed.
pub fn hash_password(password: &str) -> Result<Zeroizing<String>> {
    Argon2::default().hash_password(password.as_bytes()).map(|hash| Zeroizing::new(hash.to_string())).map_err(
        |error| Error::new(ErrorKind::InvalidOption, format!("the password can't be hashed: {error}")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_lines_are_told_by_number_and_not_shown() {
        let good = format!("# users\n\nalice:{}\n", *hash_password("sesame").unwrap());
        assert!(Passwords::parse(&good).unwrap().knows("alice"));
        let double = format!("{good}{}", good.lines().last().unwrap());
        for wrong in ["alice", "alice:sesame", ":$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2g", &double]
        {
            let error = Passwords::parse(wrong).unwrap_err().to_string();
            assert!(error.starts_with("line ") && !error.contains("sesame"), "{error}");
        }
    }

    #[test]
    fn memory_serves_one_check_after_another() {
        let memory = &mut Vec::new();
        let line =
            format!("alice:{}\nbob:{}", *hash_password("sesame").unwrap(), *hash_password("other").unwrap());
        let passwords = Passwords::parse(&line).unwrap();
        for _ in 0..2 {
            assert!(passwords.verify(b"alice", b"sesame", memory));
            assert!(!passwords.verify(b"alice", b"other", memory));
            assert!(passwords.verify(b"bob", b"other", memory));
            assert!(!passwords.verify(b"nobody", b"nobody", memory), "nobody has a password");
        }
        let small = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA";
        assert_eq!(matches(small, b"x", memory), Some(false));
        assert_eq!(matches("$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ", b"x", memory), None, "no hash");
    }

    #[test]
    fn hashes_are_salted() {
        assert_ne!(hash_password("a").unwrap(), hash_password("a").unwrap());
    }
}
