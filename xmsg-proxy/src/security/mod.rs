//! Access control: who may connect, and what connected peers may do.
//!
//! The [`Authority`] holds the [`Rules`]. Sockets ask it whether credentials are valid. The switch and the
//! registrar ask it what their holder may do. Rules can be replaced at run time.

// | file | answers |
// |---|---|
// | `settings.rs` | What may stand in the `[security]` section? |
// | `passwords.rs` | What is in a password file, and does this password match? |
// | `logins.rs` | Which login is checked next while somebody guesses passwords? |

mod logins;
mod passwords;
#[cfg(feature = "daemon")]
pub mod settings;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use argon2::Block;
use bytes::Bytes;
use futures::future::BoxFuture;
pub use logins::LoginCounts;
use logins::{Checks, Counters, Failures, Proofs};
pub use passwords::{Passwords, hash_password};
use xmsg_core::control::asked_after;
use xmsg_zmq::link::throttle::Throttle;
use xmsg_zmq::lock::lock;
use xmsg_zmq::security::{Authenticator, Credentials, KeyPair, Principal, PublicKey, Security, Verdict};
use zeroize::Zeroizing;

use crate::CONTROL_TOPIC;

/// The largest memory that is kept for the next check, in blocks of 1 KiB. A hash with the usual parameters
/// takes somewhat less.
const MEMORY_KEPT_MAX: usize = 64 << 10;

/// The rights of a peer. Topics are given by prefixes, and the empty prefix stands for all topics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Prefixes of the topics that the peer may publish. Control requests may always be published.
    pub publish: Vec<Bytes>,
    /// Prefixes that the peer's subscriptions must start with.
    pub subscribe: Vec<Bytes>,
    /// Whether the peer may add and remove registrations in the registrar. Every peer that may connect may
    /// send queries.
    pub register: bool,
    /// Whether the peer may see who is connected to the proxy and what flows through it: topics, rates,
    /// queues and drops. Peers without credentials may do so only from the proxy's own machine.
    pub inspect: bool,
}

impl Rights {
    /// Returns the rights to do everything.
    #[must_use]
    pub fn all() -> Self {
        Self { publish: vec![Bytes::new()], subscribe: vec![Bytes::new()], register: true, inspect: true }
    }

    /// Returns whether the peer may publish this topic. Every peer may send control requests.
    #[must_use]
    pub fn may_publish(&self, topic: &[u8]) -> bool {
        self.reaches_subscribers(topic) || topic.starts_with(CONTROL_TOPIC)
    }

    /// Returns whether messages of the peer with this topic are delivered to subscribers. Control requests
    /// from peers that have no right to publish this topic go only to the proxy. Otherwise such peers could
    /// send any content to those who subscribe to everything.
    #[must_use]
    pub fn reaches_subscribers(&self, topic: &[u8]) -> bool {
        starts_with_any(topic, &self.publish)
    }

    /// Returns whether the peer may subscribe to this prefix. A client uses a private topic to ask whether a
    /// subscription is active. That topic is allowed if the subscription is, because the answer says that the
    /// subscription is active.
    #[must_use]
    pub fn may_subscribe(&self, prefix: &[u8]) -> bool {
        starts_with_any(prefix, &self.subscribe)
            || asked_after(prefix).is_some_and(|topic| starts_with_any(topic, &self.subscribe))
    }

    /// Returns whether the peer may publish all topics.
    #[must_use]
    pub fn publishes_all(&self) -> bool {
        self.publish.iter().any(Bytes::is_empty)
    }

    /// Returns how many bytes of a topic matter for [`may_publish`](Self::may_publish) at most.
    #[must_use]
    pub fn longest_publish(&self) -> usize {
        let longest = self.publish.iter().map(Bytes::len).max().unwrap_or_default();
        longest.max(CONTROL_TOPIC.len())
    }
}

fn starts_with_any(topic: &[u8], prefixes: &[Bytes]) -> bool {
    prefixes.iter().any(|prefix| topic.starts_with(prefix))
}

/// Rules that say who may connect, and with which rights. The default lets nobody connect. Rules for one
/// [`Mechanism`] let nobody connect through another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The rights of peers without credentials, on ports without security. By default they may not connect.
    /// See [`open`](Self::open).
    pub anonymous: Option<Arc<Rights>>,
    /// The rights of CURVE clients by their public keys.
    pub keys: HashMap<PublicKey, Arc<Rights>>,
    /// The rights of all other CURVE clients. By default they may not connect.
    pub other_keys: Option<Arc<Rights>>,
    /// The rights of PLAIN users by their names. Each user also needs a password.
    pub users: HashMap<String, Arc<Rights>>,
    /// The rights of all other PLAIN users with a password. By default they may not connect.
    pub other_users: Option<Arc<Rights>>,
    /// The passwords of the PLAIN users.
    pub passwords: Passwords,
}

impl Rules {
    /// Returns rules that allow everybody to do everything on ports without security ([`Mechanism::Null`]).
    #[must_use]
    pub fn open() -> Self {
        Self { anonymous: Some(Arc::new(Rights::all())), ..Self::default() }
    }

    fn rights(&self, principal: Option<&Principal>) -> Option<&Arc<Rights>> {
        match principal {
            None => self.anonymous.as_ref(),
            Some(Principal::Key(key)) => self.keys.get(key).or(self.other_keys.as_ref()),
            Some(Principal::User(name)) => {
                self.users.get(name).or(self.other_users.as_ref()).filter(|_| self.passwords.knows(name))
            }
            Some(_) => None,
        }
    }

    /// Returns whether a user of this name may connect with the right password.
    fn may_log_in(&self, user: &[u8]) -> bool {
        let name = String::from_utf8_lossy(user).into_owned();
        self.rights(Some(&Principal::User(name))).is_some()
    }
}

/// A pool of memory from finished checks. Without it, every thread that does a check would keep memory of its
/// own.
#[derive(Default)]
struct Memory(Mutex<Vec<Vec<Block>>>);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The content was computed from passwords, and must not be shown.
        f.write_str("Memory(…)")
    }
}

impl Memory {
    fn pool(&self) -> MutexGuard<'_, Vec<Vec<Block>>> {
        lock(&self.0)
    }
}

/// The rules that are in effect.
#[derive(Debug)]
pub struct Authority {
    rules: RwLock<Arc<Rules>>,
    generation: AtomicU64,
    checks: Checks,
    logins: Arc<Logins>,
    postponed: Throttle,
    no_longer_admitted: Throttle,
    /// Limits log lines about actions for which peers have no right.
    pub(crate) denials: Throttle,
}

/// The state of logins with passwords, which is shared with the threads that check them.
#[derive(Debug)]
struct Logins {
    proofs: Proofs,
    failures: Failures,
    counters: Counters,
    memory: Memory,
}

impl Logins {
    /// Checks a password on a blocking thread and records the result, because the caller may no longer wait
    /// for it.
    fn check(&self, rules: &Rules, user: &[u8], password: &[u8], from: Option<IpAddr>) -> bool {
        let mut memory = self.memory.pool().pop().unwrap_or_default();
        // The slow part comes first, so that an unknown name takes as long as a wrong password.
        let is_right = rules.passwords.verify(user, password, &mut memory);
        if memory.len() <= MEMORY_KEPT_MAX {
            self.memory.pool().push(memory);
        }
        let who = self.failures.hash(user);
        let line = rules.passwords.line(user).filter(|_| is_right && rules.may_log_in(user));
        if let Some(line) = line {
            self.proofs.remember(self.proofs.of(user, password, line), Instant::now());
            self.failures.clear(from, who);
            self.counters.admitted.fetch_add(1, Ordering::Relaxed);
        } else {
            self.failures.note(from, who, Instant::now());
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
        }
        line.is_some()
    }

    /// Returns whether this login succeeded recently.
    fn recognizes(&self, rules: &Rules, user: &[u8], password: &[u8]) -> bool {
        let line = rules.passwords.line(user).filter(|_| rules.may_log_in(user));
        line.is_some_and(|line| self.proofs.contains(&self.proofs.of(user, password, line), Instant::now()))
    }
}

/// The default has [open](Rules::open) rules.
impl Default for Authority {
    fn default() -> Self {
        Self::new(Rules::open())
    }
}

impl Authority {
    /// Creates an authority with these rules.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            rules: RwLock::new(Arc::new(rules)),
            generation: AtomicU64::new(0),
            checks: Checks::new(),
            logins: Arc::new(Logins {
                proofs: Proofs::new(),
                failures: Failures::default(),
                counters: Counters::default(),
                memory: Memory::default(),
            }),
            postponed: Throttle::default(),
            no_longer_admitted: Throttle::default(),
            denials: Throttle::default(),
        }
    }

    /// Replaces the rules. The [`generation`](Self::generation) increases, which tells holders of old rights
    /// to ask again.
    pub fn replace(&self, rules: Rules) {
        let is_other = rules.passwords != self.rules().passwords;
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        if is_other {
            self.logins.proofs.forget_all();
        }
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Returns a number that increases with every change of the rules.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Returns the rights of a peer, or `None` if it may not connect or may not stay connected.
    #[must_use]
    pub fn rights(&self, principal: Option<&Principal>) -> Option<Arc<Rights>> {
        self.rules().rights(principal).cloned()
    }

    /// Returns whether this peer may stay connected under the current rules. If not, the caller has to end
    /// the connection. This is logged.
    pub(crate) fn still_admits(&self, peer: &str, principal: Option<&Principal>) -> bool {
        let may = self.rights(principal).is_some();
        if !may && let Some(unlogged) = self.no_longer_admitted.pass("clients that are no longer allowed") {
            let principal = principal.map(ToString::to_string);
            tracing::warn!(%peer, principal, unlogged, "no longer allowed: disconnected");
        }
        may
    }

    /// Returns [`still_admits`](Self::still_admits) as a function for the
    /// [`keeps`](xmsg_zmq::SocketOptions::keeps) option of a socket.
    pub(crate) fn rule(
        self: &Arc<Self>,
    ) -> impl Fn(&str, Option<&Principal>) -> bool + Send + Sync + 'static + use<> {
        let authority = self.clone();
        move |peer, principal| authority.still_admits(peer, principal)
    }

    fn rules(&self) -> Arc<Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the outcomes of logins with a password so far.
    #[must_use]
    pub fn logins(&self) -> LoginCounts {
        self.logins.counters.counts()
    }

    async fn authenticate_peer(&self, credentials: Credentials, from: Option<IpAddr>) -> Verdict {
        let principal = credentials.principal();
        let verdict = match credentials {
            Credentials::Key(_) => self.rules().rights(Some(&principal)).is_some().into(),
            Credentials::Password { user, password } => self.log_in(user, password, from).await,
            _ => Verdict::Refused,
        };
        let address = from.map(tracing::field::display);
        match verdict {
            Verdict::Admitted => tracing::debug!(%principal, address, "let in"),
            // The port logs this, with the reason why it ends the connection.
            Verdict::Refused => {}
            Verdict::Busy => {
                if let Some(unlogged) = self.postponed.pass("logins that were put off") {
                    tracing::warn!(
                        %principal,
                        address,
                        unlogged,
                        "a login was delayed: too many from this address have failed, or wait to be checked"
                    );
                }
            }
        }
        verdict
    }

    async fn log_in(&self, user: Bytes, password: Zeroizing<Vec<u8>>, from: Option<IpAddr>) -> Verdict {
        let (rules, logins) = (self.rules(), self.logins.clone());
        let counters = &self.logins.counters;
        if logins.recognizes(&rules, &user, &password) {
            counters.recognized.fetch_add(1, Ordering::Relaxed);
            return Verdict::Admitted;
        }
        let (who, now) = (logins.failures.hash(&user), Instant::now());
        if !logins.failures.pause(from, who, now).is_zero() {
            counters.too_soon.fetch_add(1, Ordering::Relaxed);
            return Verdict::Busy;
        }
        let is_suspect = logins.failures.has_failed(from, who, now);
        let Some(permit) = self.checks.acquire(who, is_suspect).await else {
            counters.too_many.fetch_add(1, Ordering::Relaxed);
            return Verdict::Busy;
        };
        let task = tokio::task::spawn_blocking(move || {
            // The check continues even if the connection no longer waits for it.
            let _permit = permit;
            logins.check(&rules, &user, &password, from)
        });
        task.await.unwrap_or(false).into()
    }
}

impl Authenticator for Authority {
    fn authenticate(&self, credentials: Credentials, from: Option<IpAddr>) -> BoxFuture<'_, Verdict> {
        Box::pin(self.authenticate_peer(credentials, from))
    }

    fn recognizes(&self, credentials: &Credentials) -> bool {
        match credentials {
            Credentials::Password { user, password } => self.logins.recognizes(&self.rules(), user, password),
            other => self.rules().rights(Some(&other.principal())).is_some(),
        }
    }
}

/// The security mechanism of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mechanism {
    /// No security.
    #[default]
    Null,
    /// Names and passwords, sent in clear text.
    Plain,
    /// Keys, with encryption. The variant contains the keys of this server.
    Curve(KeyPair),
}

impl Mechanism {
    /// Returns whether peers authenticate in the same way with both. The server's own keys make no
    /// difference, because rules refer to the clients' keys.
    #[must_use]
    pub fn has_rules_of(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// Returns the name of the mechanism, as it is on the wire.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Null => "NULL",
            Self::Plain => "PLAIN",
            Self::Curve(_) => "CURVE",
        }
    }

    /// Returns the security option for a socket that clients connect to.
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
        Rights { publish: prefixes(publish), subscribe: prefixes(subscribe), register: false, inspect: false }
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
        assert_eq!(authority.authenticate(Credentials::Key(key), None).await, Verdict::Refused);
        let keys = HashMap::from([(key, Arc::new(rights(&["a"], &[])))]);
        authority.replace(Rules { keys, ..Rules::default() });
        assert_eq!(authority.authenticate(Credentials::Key(key), None).await, Verdict::Admitted);
        let found = authority.rights(Some(&Principal::Key(key))).unwrap();
        assert!(found.may_publish(b"a") && !found.may_publish(b"b"));
        assert_eq!(authority.generation(), 1);
        authority.replace(Rules::default());
        assert!(authority.rights(Some(&Principal::Key(key))).is_none());
    }

    #[test]
    fn rules_say_nothing_about_peers_that_prove_themselves_in_another_way() {
        let key = Principal::Key(*KeyPair::generate().unwrap().public());
        let user = Principal::User("alice".into());
        let (everything, open) = (Some(Arc::new(Rights::all())), Rules::open());
        let keys = Rules { other_keys: everything.clone(), ..Rules::default() };
        let users = Rules { other_users: everything, ..users() };
        for (rules, [anonymous, by_key, by_password]) in [
            (Rules::default(), [false; 3]),
            (open, [true, false, false]),
            (keys, [false, true, false]),
            (users, [false, false, true]),
        ] {
            let found = [None, Some(&key), Some(&user)].map(|peer| rules.rights(peer).is_some());
            assert_eq!(found, [anonymous, by_key, by_password], "{rules:?}");
        }
    }

    fn users() -> Rules {
        let line = format!("alice:{}\n", *hash_password("sesame").unwrap());
        let passwords = Passwords::parse(&line).unwrap();
        Rules { passwords, other_users: Some(Arc::new(Rights::all())), ..Rules::default() }
    }

    fn credentials(user: &'static str, password: &str) -> Credentials {
        Credentials::Password { user: user.into(), password: password.as_bytes().to_vec().into() }
    }

    const ADDRESS: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    async fn try_in(authority: &Authority, user: &'static str, password: &str) -> Verdict {
        authority.authenticate(credentials(user, password), ADDRESS).await
    }

    #[tokio::test]
    async fn users_need_their_password() {
        let authority = Authority::new(users());
        assert_eq!(try_in(&authority, "alice", "sesame").await, Verdict::Admitted);
        assert_eq!(try_in(&authority, "alice", "sesam").await, Verdict::Refused);
        assert_eq!(try_in(&authority, "bob", "sesame").await, Verdict::Refused);
        assert!(authority.rights(Some(&Principal::User("bob".into()))).is_none());
        let counts = LoginCounts { admitted: 1, refused: 2, ..LoginCounts::default() };
        assert_eq!(authority.logins(), counts);
    }

    #[tokio::test]
    async fn a_good_login_is_recognized_until_the_passwords_change() {
        let rules = users();
        let authority = Authority::new(rules.clone());
        assert!(!authority.recognizes(&credentials("alice", "sesame")));
        for _ in 0..3 {
            assert_eq!(try_in(&authority, "alice", "sesame").await, Verdict::Admitted);
        }
        assert_eq!((authority.logins().admitted, authority.logins().recognized), (1, 2));
        assert!(!authority.recognizes(&credentials("alice", "sesam")));
        // The passwords are the same, but the rights differ. Nobody has to log in again, but some may not
        // connect any more.
        authority.replace(Rules { other_users: None, ..rules.clone() });
        assert!(!authority.recognizes(&credentials("alice", "sesame")));
        authority.replace(rules);
        assert!(authority.recognizes(&credentials("alice", "sesame")));
        // The password is the same, but its hash has another salt.
        authority.replace(users());
        assert!(!authority.recognizes(&credentials("alice", "sesame")));
    }

    /// Many addresses guess, and use all the checks that they may use at a time.
    #[tokio::test]
    async fn guessing_slows_down_whoever_guesses_and_nobody_else() {
        let authority = Arc::new(Authority::new(users()));
        for _ in 0..3 {
            assert_eq!(try_in(&authority, "alice", "wrong").await, Verdict::Refused);
        }
        assert_eq!(try_in(&authority, "alice", "wrong").await, Verdict::Busy, "it has to wait");
        assert_eq!(authority.logins().too_soon, 1);
        let mut guesses = tokio::task::JoinSet::new();
        for number in 0..100_u8 {
            let authority = authority.clone();
            let from = Some(IpAddr::from([10, 0, 0, number]));
            authority.logins.failures.note(from, authority.logins.failures.hash(b"alice"), Instant::now());
            guesses.spawn(async move {
                loop {
                    authority.authenticate(credentials("alice", "guess"), from).await;
                    tokio::task::yield_now().await;
                }
            });
        }
        while authority.logins().too_many == 0 {
            tokio::task::yield_now().await;
        }
        let before = authority.logins().refused;
        let elsewhere = Some(IpAddr::from([10, 1, 0, 1]));
        let verdict = authority.authenticate(credentials("alice", "sesame"), elsewhere).await;
        assert_eq!(verdict, Verdict::Admitted);
        let meanwhile = authority.logins().refused - before;
        assert!(meanwhile < 10, "it waited for {meanwhile} others");
        let checked = authority.logins();
        let again = authority.authenticate(credentials("alice", "sesame"), ADDRESS).await;
        assert_eq!(again, Verdict::Admitted, "also from where somebody guesses");
        assert_eq!(authority.logins().admitted, checked.admitted);
        guesses.shutdown().await;
    }
}
