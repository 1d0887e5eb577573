//! The secret that whoever asks the HTTP server has to know.

use std::path::Path;

use subtle::ConstantTimeEq;
use xmsg_core::{Error, ErrorKind};
use xmsg_zmq::security::read_secret;

use super::access::hex;

/// The shortest token in bytes. A shorter one could be guessed.
const LEN_MIN: usize = 16;
/// The longest token in bytes. A longer one would not fit into a header.
const LEN_MAX: usize = 1024;

/// The number of random bytes of a token that is made. Nobody guesses 128 bits, and the token fits into a
/// line of a terminal.
const RANDOM: usize = 16;

/// A bearer token. It is never shown, and compared in constant time.
#[derive(Clone)]
pub struct Token(Box<[u8]>);

impl Token {
    /// Takes a token of 16 to 1024 visible ASCII characters. The error says what is wrong, without showing
    /// it.
    pub fn new(text: &str) -> xmsg_core::Result<Self> {
        let text = text.as_bytes();
        if !(LEN_MIN..=LEN_MAX).contains(&text.len()) || !text.iter().all(u8::is_ascii_graphic) {
            let what = format!("a token has {LEN_MIN} to {LEN_MAX} visible ASCII characters, without spaces");
            return Err(Error::new(ErrorKind::InvalidOption, what));
        }
        Ok(Self(text.into()))
    }

    /// Reads a token from the first line of a file that nobody else may read.
    pub fn read(path: &Path) -> xmsg_core::Result<Self> {
        let text = read_secret(path)?;
        Self::new(text.lines().next().unwrap_or_default().trim()).map_err(|error| {
            let what = format!(
                "the token file {} can't be used: {error}; make one with: head -c 32 /dev/urandom | base64",
                path.display()
            );
            Error::new(ErrorKind::InvalidOption, what)
        })
    }

    /// Makes a token that nobody can guess: 16 random bytes as hexadecimal digits.
    ///
    /// ```
    /// use xmsg_proxy::admin::Token;
    /// assert_ne!(Token::random()?, Token::random()?);
    /// # Ok::<(), xmsg_core::Error>(())
    /// ```
    pub fn random() -> xmsg_core::Result<Self> {
        let mut bytes = [0; RANDOM];
        getrandom::fill(&mut bytes).map_err(|error| {
            Error::new(ErrorKind::Io, "the operating system gives no randomness for a token")
                .with_source(error)
        })?;
        Self::new(&hex(&bytes))
    }

    /// Returns the token itself, for whoever is to know it. It belongs into no log.
    #[must_use]
    pub fn reveal(&self) -> &str {
        // It was made of ASCII.
        str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Returns whether the candidate is the token. How long that takes tells at most whether the length is
    /// right.
    pub(super) fn is(&self, candidate: &[u8]) -> bool {
        self.0.ct_eq(candidate).into()
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.is(&other.0)
    }
}

impl Eq for Token {}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn tokens_are_long_enough_and_not_shown() {
        let token = Token::new("0123456789abcdef").unwrap();
        assert!(token.is(b"0123456789abcdef"));
        assert!(!token.is(b"0123456789abcdeF") && !token.is(b"0123456789abcde") && !token.is(b""));
        assert!(!format!("{token:?}").contains("0123"));
        for bad in ["", "0123456789abcde", "0123456789 abcdef", "0123456789äbcdef", &"x".repeat(1025)] {
            let error = Token::new(bad).unwrap_err();
            assert!(bad.is_empty() || !error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn one_that_is_made_is_new_each_time_and_can_be_shown_to_who_asks() {
        let (one, other) = (Token::random().unwrap(), Token::random().unwrap());
        assert!(one != other && one.reveal().len() == 32, "{}", one.reveal());
        assert_eq!(Token::new(one.reveal()).unwrap(), one);
    }

    #[test]
    fn a_file_holds_one_in_its_first_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "0123456789abcdef \r\nsecond line").unwrap();
        assert!(Token::read(file.path()).unwrap().is(b"0123456789abcdef"));
        std::fs::write(&file, "\n0123456789abcdef").unwrap();
        assert!(Token::read(file.path()).unwrap_err().to_string().contains("16 to 1024"));
        std::fs::write(&file, "0123456789abcdef").unwrap();
        for mode in [0o640, 0o604, 0o620] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            let error = Token::read(file.path()).unwrap_err().to_string();
            assert!(error.contains("chmod 600") && !error.contains("0123"), "{error}");
        }
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o400)).unwrap();
        Token::read(file.path()).unwrap();
        assert!(
            Token::read(Path::new("/does/not/exist")).unwrap_err().to_string().contains("/does/not/exist")
        );
    }
}
