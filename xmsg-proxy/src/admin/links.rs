//! Links that begin a session without the token. Each has a code that is good once.
//!
//! A browser writes the addresses that it opens into its history, and may send it to other devices. A link
//! with the token in it would be good there for as long as the token is; the code of a link that was used is
//! good for nothing.

use std::collections::VecDeque;

use subtle::ConstantTimeEq;

use super::access::{hex, unhex};

/// How many links there may be that were made and not used. A further one takes the place of the oldest.
pub(super) const LINKS_MAX: usize = 8;
/// The number of random bytes of a code.
const CODE_LEN: usize = 16;

/// The codes that are good now, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Links {
    codes: VecDeque<Code>,
}

/// One code. It is compared in constant time, and never shown but to whoever made it.
struct Code([u8; CODE_LEN]);

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Code(…)")
    }
}

impl Links {
    /// Makes a code of hexadecimal digits. Returns `None` if the operating system gives no randomness.
    pub(super) fn make(&mut self) -> Option<String> {
        let mut code = [0; CODE_LEN];
        getrandom::fill(&mut code).ok()?;
        while self.codes.len() >= LINKS_MAX {
            self.codes.pop_front();
        }
        self.codes.push_back(Code(code));
        Some(hex(&code))
    }

    /// Returns whether this code is good. All are compared, so that time does not tell how many there are.
    pub(super) fn is_good(&self, code: &str) -> bool {
        self.position(code).is_some()
    }

    /// Uses this code up.
    pub(super) fn use_up(&mut self, code: &str) {
        if let Some(position) = self.position(code) {
            self.codes.remove(position);
        }
    }

    fn position(&self, code: &str) -> Option<usize> {
        let code = unhex(code)?;
        let mut found = None;
        for (position, one) in self.codes.iter().enumerate() {
            if bool::from(one.0.ct_eq(&code)) {
                found = Some(position);
            }
        }
        found
    }

    /// Makes all codes invalid.
    pub(super) fn clear(&mut self) {
        self.codes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_good_until_it_was_used() {
        let mut links = Links::default();
        let (one, other) = (links.make().unwrap(), links.make().unwrap());
        assert!(one != other && one.len() == 2 * CODE_LEN);
        assert!(links.is_good(&one) && links.is_good(&other));
        links.use_up(&one);
        assert!(!links.is_good(&one) && links.is_good(&other));
        links.use_up("00");
        for wrong in ["", "0", "zz", &other[2..], &one, &format!("{other}00")] {
            assert!(!links.is_good(wrong), "{wrong}");
        }
        assert!(!format!("{links:?}").contains(&other));
        links.clear();
        assert!(!links.is_good(&other));
    }

    #[test]
    fn links_are_few_and_the_oldest_gives_way() {
        let mut links = Links::default();
        let codes: Vec<_> = (0..=LINKS_MAX).map(|_| links.make().unwrap()).collect();
        assert!(!links.is_good(&codes[0]));
        assert!(codes[1..].iter().all(|code| links.is_good(code)));
    }
}
