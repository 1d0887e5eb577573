//! The secret that whoever asks the HTTP server has to know.

use std::path::Path;

use subtle::ConstantTimeEq;
use xmsg_core::{Error, ErrorKind};
use xmsg_zmq::security::read_secret;

/// A shorter one could be guessed.
const LEN_MIN: usize = 16;
/// A longer one would not fit into a header.
const LEN_MAX: usize = 1024;

/// A bearer token. It is never shown, and compared in constant time.
#[derive(Clone)]
pub struct Token(Box<[u8]>);

impl Token {
    /// Takes a token of 16 to 1024 visible ASCII characters. The error says what is wrong, without showing it.
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

    /// Whether this is it. How long that takes tells at most whether the length is right.
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
