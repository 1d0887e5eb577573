//! Who is let in, and what they may do there.
//!
//! The [`Authority`] holds the [`Rules`]: sockets ask it whether credentials are good, the switch and the registrar what their
//! holder may do. Rules can be replaced while everything runs.

mod passwords;
#[cfg(feature = "daemon")]
pub mod settings;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use argon2::Block;
use bytes::Bytes;
use futures::future::BoxFuture;
pub use passwords::{Passwords, hash_password};
use tokio::sync::Semaphore;
use xmsg_core::security::{Authenticator, Credentials, KeyPair, Principal, PublicKey, Security};

use xmsg_core::control::asked_after;

use crate::CONTROL_TOPIC;

/// Passwords that are checked at the same time: each check takes a thread, and memory on purpose.
const PASSWORD_CHECKS: usize = 2;

/// Memory that is kept for the next check, blocks of 1 KiB: what a hash with the usual parameters takes, and some more.
const MEMORY_KEPT: usize = 64 << 10;

/// What somebody may do. Topics are given by prefixes; the empty one stands for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Prefixes of the topics that it may publish. Control requests may always be published.
    pub publish: Vec<Bytes>,
    /// Prefixes that its subscriptions must start with.
    pub subscribe: Vec<Bytes>,
    /// Whether it may register with the registrar, and take away registrations. Asking is free to all who are let in.
    pub register: bool,
}

impl Rights {
    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        Self { publish: vec![Bytes::new()], subscribe: vec![Bytes::new()], register: true }
    }

    /// Whether it may publish this topic.
    #[must_use]
    pub fn may_publish(&self, topic: &[u8]) -> bool {
        starts_with_any(topic, &self.publish) || topic.starts_with(CONTROL_TOPIC)
    }

    /// Whether it may subscribe to this prefix. The private topic that a client asks after goes with the one for which it stands: its
    /// answer says that that one is live.
    #[must_use]
    pub fn may_subscribe(&self, prefix: &[u8]) -> bool {
        starts_with_any(prefix, &self.subscribe)
            || asked_after(prefix).is_some_and(|topic| starts_with_any(topic, &self.subscribe))
    }

    /// Whether all topics may be published.
    #[must_use]
    pub fn publishes_all(&self) -> bool {
        self.publish.iter().any(Bytes::is_empty)
    }

    /// Of a topic, no more bytes than this matter for [`may_publish`](Self::may_publish).
    #[must_use]
    pub fn longest_publish(&self) -> usize {
        let longest = self.publish.iter().map(Bytes::len).max().unwrap_or_default();
        longest.max(CONTROL_TOPIC.len())
    }
}

fn starts_with_any(topic: &[u8], prefixes: &[Bytes]) -> bool {
    prefixes.iter().any(|prefix| topic.starts_with(prefix))
}

/// Who is let in, with which rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whoever comes without credentials, to ports without security. Default: everything.
    pub anonymous: Arc<Rights>,
    /// CURVE clients by their key.
    pub keys: HashMap<PublicKey, Arc<Rights>>,
    /// Every other key. Default: not let in.
    pub other_keys: Option<Arc<Rights>>,
    /// PLAIN users by their name; they need a password, too.
    pub users: HashMap<String, Arc<Rights>>,
    /// Every other user with a password. Default: not let in.
    pub other_users: Option<Arc<Rights>>,
    /// The users' passwords.
    pub passwords: Passwords,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            anonymous: Arc::new(Rights::all()),
            keys: HashMap::new(),
            other_keys: None,
            users: HashMap::new(),
            other_users: None,
            passwords: Passwords::default(),
        }
    }
}

impl Rules {
    fn rights(&self, principal: Option<&Principal>) -> Option<&Arc<Rights>> {
        match principal {
            None => Some(&self.anonymous),
            Some(Principal::Key(key)) => self.keys.get(key).or(self.other_keys.as_ref()),
            Some(Principal::User(name)) => {
                self.users.get(name).or(self.other_users.as_ref()).filter(|_| self.passwords.knows(name))
            }
            Some(_) => None,
        }
    }
}

/// Memory of checks that are done. Allocating it anew in whichever thread does the next one would leave a piece in every thread.
#[derive(Default)]
struct Memory(Mutex<Vec<Vec<Block>>>);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What is in it was made from passwords.
        f.write_str("Memory(…)")
    }
}

impl Memory {
    fn pool(&self) -> MutexGuard<'_, Vec<Vec<Block>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rules in force.
#[derive(Debug)]
pub struct Authority {
    rules: RwLock<Arc<Rules>>,
    generation: AtomicU64,
    checks: Arc<Semaphore>,
    memory: Arc<Memory>,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new(Rules::default())
    }
}

impl Authority {
    /// With these rules.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            rules: RwLock::new(Arc::new(rules)),
            generation: AtomicU64::new(0),
            checks: Arc::new(Semaphore::new(PASSWORD_CHECKS)),
            memory: Arc::default(),
        }
    }

    /// Puts other rules in force. Whoever holds rights of the old ones is to ask again: [`generation`](Self::generation) grows.
    pub fn replace(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Grows with every change of the rules.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What this peer may do; `None`: it is not to be here (any more).
    #[must_use]
    pub fn rights(&self, principal: Option<&Principal>) -> Option<Arc<Rights>> {
        self.rules().rights(principal).cloned()
    }

    fn rules(&self) -> Arc<Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn judge(&self, credentials: Credentials) -> bool {
        let principal = credentials.principal();
        let rules = self.rules();
        let known = match credentials {
            Credentials::Key(_) => rules.rights(Some(&principal)).is_some(),
            Credentials::Password { user, password } => {
                // It is never closed.
                let Ok(permit) = self.checks.clone().acquire_owned().await else { return false };
                let spare = self.memory.clone();
                let task = tokio::task::spawn_blocking(move || {
                    // It goes on even if the peer is not waited for any more.
                    let _permit = permit;
                    let mut memory = spare.pool().pop().unwrap_or_default();
                    // The slow part comes first, so that an unknown name takes as long as a wrong password.
                    let right = rules.passwords.verify(&user, &password, &mut memory);
                    if memory.len() <= MEMORY_KEPT {
                        spare.pool().push(memory);
                    }
                    right
                        && rules
                            .rights(Some(&Principal::User(String::from_utf8_lossy(&user).into())))
                            .is_some()
                });
                task.await.unwrap_or(false)
            }
            _ => false,
        };
        if known {
            tracing::debug!(%principal, "let in");
        }
        known
    }
}

impl Authenticator for Authority {
    fn authenticate(&self, credentials: Credentials) -> BoxFuture<'_, bool> {
        Box::pin(self.judge(credentials))
    }
}

/// How the ports are secured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mechanism {
    /// Not at all.
    #[default]
    Null,
    /// Names and passwords, in clear text.
    Plain,
    /// Keys; everything is encrypted. These are ours.
    Curve(KeyPair),
}

impl Mechanism {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Null => "NULL",
            Self::Plain => "PLAIN",
            Self::Curve(_) => "CURVE",
        }
    }

    /// The option of a socket that clients connect to.
    #[must_use]
    pub fn security(&self, authority: &Arc<Authority>) -> Security {
        match self {
            Self::Null => Security::Null,
            Self::Plain => Security::PlainServer(authority.clone()),
            Self::Curve(keys) => {
                Security::CurveServer { keys: keys.clone(), authenticator: authority.clone() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(publish: &[&'static str], subscribe: &[&'static str]) -> Rights {
        let prefixes =
            |list: &[&'static str]| list.iter().map(|prefix| Bytes::from_static(prefix.as_bytes())).collect();
        Rights { publish: prefixes(publish), subscribe: prefixes(subscribe), register: false }
    }

    #[test]
    fn rights_are_prefixes() {
        let rights = rights(&["daq:"], &["daq:", "ret:"]);
        assert!(rights.may_publish(b"daq:a"));
        assert!(!rights.may_publish(b"daq"), "shorter than what is allowed");
        assert!(rights.may_publish(b"xmsg:control:con"), "or nobody could check a connection");
        assert!(
            rights.may_subscribe(b"ret:1")
                && !rights.may_subscribe(b"")
                && !rights.may_subscribe(b"xmsg:control")
                && !rights.may_subscribe(b"xmsg:sub:")
                && !rights.may_subscribe(b"xmsg:sub:12")
                && !rights.may_subscribe(b"xmsg:sub:12:b")
                && rights.may_subscribe(b"xmsg:sub:12:ret:1")
        );
        assert!(Rights::all().may_subscribe(b"") && Rights::all().publishes_all());
    }

    #[tokio::test]
    async fn keys_come_and_go() {
        let key = *KeyPair::generate().unwrap().public();
        let authority = Authority::default();
        assert!(!authority.authenticate(Credentials::Key(key)).await);
        let keys = HashMap::from([(key, Arc::new(rights(&["a"], &[])))]);
        authority.replace(Rules { keys, ..Rules::default() });
        assert!(authority.authenticate(Credentials::Key(key)).await);
        let found = authority.rights(Some(&Principal::Key(key))).unwrap();
        assert!(found.may_publish(b"a") && !found.may_publish(b"b"));
        assert_eq!(authority.generation(), 1);
        authority.replace(Rules::default());
        assert!(authority.rights(Some(&Principal::Key(key))).is_none());
    }

    #[tokio::test]
    async fn users_need_their_password() {
        let line = format!("alice:{}\n", *hash_password("sesame").unwrap());
        let passwords = Passwords::parse(&line).unwrap();
        let rules = Rules { passwords, other_users: Some(Arc::new(Rights::all())), ..Rules::default() };
        let authority = Authority::new(rules);
        let try_in = |user: &'static str, password: &str| {
            let password = password.as_bytes().to_vec().into();
            authority
                .authenticate(Credentials::Password { user: Bytes::from_static(user.as_bytes()), password })
        };
        assert!(try_in("alice", "sesame").await);
        assert!(!try_in("alice", "sesam").await);
        assert!(!try_in("bob", "sesame").await);
        assert!(authority.rights(Some(&Principal::User("bob".into()))).is_none());
    }
}
