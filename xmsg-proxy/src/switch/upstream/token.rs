//! The tokens by which a proxy detects that what it subscribes to elsewhere comes from itself.
//!
//! Each link to an upstream subscribes to a *token* first: a topic of its own, to which nobody ever
//! publishes. Proxies pass subscriptions on towards publishers, so in a loop the token comes back to the
//! proxy that made it, as a subscription of one of its own subscribers. This needs nothing but what every
//! ZeroMQ forwarder does.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Mutex;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use xmsg_zmq::lock::lock;

/// The bytes that every token starts with.
const PREFIX: &[u8] = b"xmsg:loop:";
/// The numbers of digits of a proxy, of a link and of a connection, with a colon between them.
const DIGITS: [usize; 3] = [32, 8, 8];
/// The length in bytes of a token.
pub(in crate::switch) const LEN: usize = PREFIX.len() + 32 + 1 + 8 + 1 + 8;

/// The token of one connection of one link of one proxy: `xmsg:loop:PROXY:LINK:CONNECTION`, in 32, 8 and 8
/// hexadecimal digits. Whoever sees a token knows the first number of all links of this proxy, but the others
/// of no other link and of no other connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::switch) struct Token {
    pub(in crate::switch) proxy: u128,
    /// The random number of the link.
    pub(in crate::switch) link: u32,
    /// The random number of the connection. A token of an earlier connection of the link may come back late,
    /// and means nothing then.
    pub(in crate::switch) connection: u32,
}

impl Token {
    /// Reads a prefix that a subscriber subscribes to. Returns `None` if it is no token.
    pub(in crate::switch) fn read(prefix: &[u8]) -> Option<Self> {
        if prefix.len() != LEN {
            return None;
        }
        let mut parts = std::str::from_utf8(prefix.strip_prefix(PREFIX)?).ok()?.split(':');
        let mut number = |digits: usize| {
            let part = parts.next().filter(|part| part.len() == digits)?;
            // A sign is no digit.
            let is_hex = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            is_hex.then(|| u128::from_str_radix(part, 16).ok())?
        };
        let [proxy, link, connection] = DIGITS.map(&mut number);
        Some(Self {
            proxy: proxy?,
            link: u32::try_from(link?).ok()?,
            connection: u32::try_from(connection?).ok()?,
        })
    }

    /// Returns the topic.
    pub(in crate::switch) fn topic(self) -> Bytes {
        self.to_string().into()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { proxy, link, connection } = self;
        write!(f, "xmsg:loop:{proxy:032x}:{link:08x}:{connection:08x}")
    }
}

/// The tokens of this proxy that must not come back.
#[derive(Debug)]
pub(in crate::switch) struct OwnTokens {
    proxy: u128,
    /// The key of the numbers of links and connections.
    key: RandomState,
    awaited: Mutex<BTreeMap<Token, CancellationToken>>,
}

impl Default for OwnTokens {
    fn default() -> Self {
        Self { proxy: Uuid::new_v4().as_u128(), key: RandomState::new(), awaited: Mutex::default() }
    }
}

impl OwnTokens {
    /// Returns the token for a connection. It is awaited as long as the guard lives.
    pub(super) fn await_token(&self, link: u32, connection: u32) -> AwaitedToken<'_> {
        let number = |hash: u64| (hash >> 32) as u32;
        let token = Token {
            proxy: self.proxy,
            link: number(self.key.hash_one(link)),
            connection: number(self.key.hash_one((link, connection))),
        };
        let returned = CancellationToken::new();
        lock(&self.awaited).insert(token, returned.clone());
        AwaitedToken { own_tokens: self, token, returned }
    }

    /// Returns whether this token is of this proxy. If it is the token of a present connection, that is told
    /// to end.
    pub(in crate::switch) fn is_own(&self, token: &Token) -> bool {
        if token.proxy != self.proxy {
            return false;
        }
        if let Some(returned) = lock(&self.awaited).get(token) {
            returned.cancel();
        }
        true
    }
}

/// A token that must not come back as long as this lives.
#[derive(Debug)]
pub(super) struct AwaitedToken<'a> {
    own_tokens: &'a OwnTokens,
    pub(super) token: Token,
    /// Cancelled when the token came back.
    pub(super) returned: CancellationToken,
}

impl Drop for AwaitedToken<'_> {
    fn drop(&mut self) {
        lock(&self.own_tokens.awaited).remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An upstream sees the tokens of its own link. They must not tell those of other links.
    #[test]
    fn a_token_tells_nothing_of_others() {
        let own_tokens = OwnTokens::default();
        let of = |link, connection| own_tokens.await_token(link, connection).token;
        let all = [of(0, 0), of(0, 1), of(1, 0), of(1, 1)];
        assert!(all.iter().all(|token| own_tokens.is_own(token)));
        assert_eq!((all[0].link, all[2].link), (all[1].link, all[3].link), "a link keeps its number");
        assert_ne!(all[0].link, all[2].link);
        let mut connections = all.map(|token| token.connection);
        connections.sort_unstable();
        assert!(connections.windows(2).all(|two| two[1] - two[0] > 1), "{connections:x?}");
        assert_ne!(OwnTokens::default().await_token(0, 0).token.link, all[0].link);
    }

    #[test]
    fn a_token_reads_back_and_nothing_else_is_one() {
        let token = Token { proxy: u128::MAX - 5, link: 7, connection: u32::MAX };
        let topic = token.topic();
        assert_eq!((topic.len(), Token::read(&topic)), (LEN, Some(token)));
        let text = String::from_utf8(topic.to_vec()).unwrap();
        for other in [
            String::new(),
            "xmsg:loop:".to_owned(),
            text[1..].to_owned(),
            format!("{text}0"),
            text.replace("xmsg:loop", "xmsg:LOOP"),
            text.replace('f', "F"),
            text.replace(":00000007", ":+0000007"),
            text.replace(":00000007:", ":0000007::"),
            text.replace(":00000007", ":0000000\u{fc}"),
        ] {
            assert_eq!(Token::read(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn only_the_token_of_a_present_connection_ends_it() {
        let (own_tokens, others) = (OwnTokens::default(), OwnTokens::default());
        let (before, token) = (own_tokens.await_token(1, 1).token, own_tokens.await_token(1, 2));
        assert!(!own_tokens.is_own(&others.await_token(1, 2).token));
        assert!(own_tokens.is_own(&before) && !token.returned.is_cancelled());
        assert!(own_tokens.is_own(&token.token) && token.returned.is_cancelled());
        drop(token);
        assert!(lock(&own_tokens.awaited).is_empty());
    }
}
