//! Access to the HTTP server: who may ask what, the tokens, and the sessions that browsers get for them.
//!
//! | who asks | may look | may change |
//! |---|---|---|
//! | with the operator's token, or a session made with it | yes | yes |
//! | with the viewer's token, or a session made with it | yes, at messages only if the settings say so | no |
//! | with neither, on the loopback, if no token was named | yes, at messages that all may subscribe to | no |
//! | with neither, elsewhere | no | no |
//!
//! A session is a cookie that no script can read and that no other site can have sent. Whoever changes
//! something with it also has to send a header that only a page of this server can add, so that a page of
//! another site that a browser shows beside ours can do nothing. The header holds a second secret, which the
//! answer to the login brings and which the browser keeps for pages of this host and this port. Browsers send
//! a cookie to all ports of a host, so that another server there may get to know it: the cookie alone changes
//! nothing.
//!
//! A session begins with a token, or with the code of a link (see [`links`](super::links)), which makes an
//! operator.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue, Method, header};
use subtle::ConstantTimeEq;
use xmsg_zmq::deadline::Deadline;
use xmsg_zmq::lock::lock;

use super::links::Links;
use super::token::Token;

/// How many sessions there may be. A further one ends the oldest.
pub(super) const SESSIONS_MAX: usize = 64;
/// How long a session lasts: a shift, and some more.
const SESSION_TIME: Duration = Duration::from_secs(12 * 3600);
/// How many changes a session may make at once, and in a second after that.
const CHANGES_AT_ONCE: f64 = 60.0;
const CHANGES_PER_S: f64 = 20.0;
/// How many sessions may begin at once with the same token, and in a second after that. Each is logged, and
/// may end an older one.
const LOGINS_AT_ONCE: f64 = 128.0;
const LOGINS_PER_S: f64 = 1.0;
/// The number of random bytes of a session's key.
const KEY_LEN: usize = 32;
/// A header that pages of other sites can't add without being asked by the browser whether they may, which is
/// never answered. In a change with a session it holds the second secret of the session.
pub(super) const OWN_HEADER: &str = "x-xmsg-page";

/// The role of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// A viewer may look.
    Viewer,
    /// An operator may look, and change what can be changed.
    Operator,
}

/// The tokens that requests may bring.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    /// The operator's token. Whoever brings it may look, and change what can be changed.
    pub operator: Option<Token>,
    /// The viewer's token. Whoever brings it may look.
    pub viewer: Option<Token>,
    /// Whether everybody on this machine may look without one. It says nothing where others can reach the
    /// server.
    pub open_to_look: bool,
    /// Whether whoever brings the viewer's token may see what is in messages, too. Whoever needs no token
    /// may, as far as everybody on this machine can subscribe.
    pub viewer_may_watch: bool,
}

impl From<Option<Token>> for Tokens {
    /// Requires the token from everybody if there is one, and lets everybody look if there is none.
    fn from(operator: Option<Token>) -> Self {
        Self { open_to_look: operator.is_none(), operator, ..Self::default() }
    }
}

impl Tokens {
    /// Returns the role of whoever brings this token.
    fn role(&self, candidate: &[u8]) -> Option<Role> {
        // Both are compared, so that time does not tell which of them there are.
        let is = |token: &Option<Token>| token.as_ref().is_some_and(|token| token.is(candidate));
        let (operator, viewer) = (is(&self.operator), is(&self.viewer));
        if operator { Some(Role::Operator) } else { viewer.then_some(Role::Viewer) }
    }
}

/// A client that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) role: Role,
    /// The number of the session that was used.
    pub(super) session: Option<u64>,
    /// The generation of the tokens that were in force.
    generation: u64,
}

/// Why a client was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// The request brings neither a token nor a session.
    Nothing,
    /// The token is none of ours.
    WrongToken,
    /// The change may come from a page of another site.
    Foreign,
    /// The session makes more changes in a second than it may.
    TooMany,
}

#[derive(Debug)]
struct Session {
    number: u64,
    key: [u8; KEY_LEN],
    /// The secret that a change has to bring beside the key.
    secret: [u8; KEY_LEN],
    role: Role,
    until: Deadline,
    changes: TokenBucket,
}

impl Session {
    /// Returns whether a request brings the second secret.
    fn has_secret(&self, headers: &HeaderMap) -> bool {
        let brought = headers.get(OWN_HEADER).and_then(|value| unhex(value.to_str().ok()?));
        brought.is_some_and(|secret| self.secret.ct_eq(&secret).into())
    }
}

/// A token bucket: how often something may be done at once, and in a second after that.
#[derive(Debug)]
struct TokenBucket {
    capacity: f64,
    per_s: f64,
    tokens_left: f64,
    refilled: Instant,
}

impl TokenBucket {
    fn new(capacity: f64, per_s: f64) -> Self {
        Self { capacity, per_s, tokens_left: capacity, refilled: Instant::now() }
    }

    /// Takes one token from the bucket, and returns `false` if it is empty.
    fn take(&mut self, now: Instant) -> bool {
        let time = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.tokens_left = (self.tokens_left + time * self.per_s).min(self.capacity);
        self.refilled = now;
        let may = self.tokens_left >= 1.0;
        if may {
            self.tokens_left -= 1.0;
        }
        may
    }
}

/// Why no session has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoginError {
    /// The token, or the code of a link, is none of ours; or the link was used already.
    Wrong,
    /// Too many sessions begin with this token, or operators have all of them.
    TooMany,
}

/// A session that has begun.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) caller: Caller,
    /// The cookie that the browser sends with each request.
    pub(super) cookie: HeaderValue,
    /// The secret that the page sends with each change.
    pub(super) secret: String,
}

/// All sessions, the oldest first.
#[derive(Debug)]
struct Sessions {
    all: VecDeque<Session>,
    next: u64,
    /// The logins of viewers have a limit of their own, so that viewers who log in again and again keep no
    /// operator out.
    viewer_logins: TokenBucket,
    operator_logins: TokenBucket,
}

impl Default for Sessions {
    fn default() -> Self {
        let logins = || TokenBucket::new(LOGINS_AT_ONCE, LOGINS_PER_S);
        Self { all: VecDeque::new(), next: 0, viewer_logins: logins(), operator_logins: logins() }
    }
}

/// The tokens in force, and how often they were replaced.
#[derive(Clone, Debug)]
struct InForce {
    generation: u64,
    tokens: Tokens,
}

/// Tokens and sessions of one server.
#[derive(Debug)]
pub(super) struct Access {
    tokens: RwLock<InForce>,
    sessions: Mutex<Sessions>,
    /// The links. This lock is taken before that of `sessions`.
    links: Mutex<Links>,
    /// The name of the cookie. Browsers do not tell ports apart, so that it has the port in it.
    cookie: String,
}

impl Access {
    pub(super) fn new(tokens: Tokens, port: u16) -> Self {
        Self {
            tokens: RwLock::new(InForce { generation: 0, tokens }),
            sessions: Mutex::default(),
            links: Mutex::default(),
            cookie: format!("xmsg_session_{port}"),
        }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        lock(&self.sessions)
    }

    /// Replaces the tokens, and ends all sessions, since whoever had the former tokens is to show that the
    /// new ones are known.
    pub(super) fn replace(&self, tokens: Tokens) {
        let mut in_force = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        *in_force = InForce { generation: in_force.generation + 1, tokens };
        // Under the same lock: nobody who has shown a former token, or a link that was made while it was in
        // force, begins a session after this.
        lock(&self.links).clear();
        self.sessions().all.clear();
    }

    /// Returns the tokens in force.
    pub(super) fn tokens(&self) -> Tokens {
        self.in_force().tokens.clone()
    }

    fn in_force(&self) -> RwLockReadGuard<'_, InForce> {
        self.tokens.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns who asks, by what the request brings. `Ok(None)` means nobody in particular, where everybody
    /// may look.
    pub(super) fn caller(&self, method: &Method, headers: &HeaderMap) -> Result<Option<Caller>, Denied> {
        let InForce { generation, tokens } = self.in_force().clone();
        let has_tokens = tokens.operator.is_some() || tokens.viewer.is_some();
        if has_tokens && headers.contains_key(header::AUTHORIZATION) {
            let role = bearer(headers).and_then(|token| tokens.role(token)).ok_or(Denied::WrongToken)?;
            return Ok(Some(Caller { role, session: None, generation }));
        }
        if let Some(key) = self.key(headers)
            && let Some(caller) = self.session(&key, method, headers, generation)?
        {
            return Ok(Some(caller));
        }
        if tokens.open_to_look { Ok(None) } else { Err(Denied::Nothing) }
    }

    /// Returns whose session has this key, and `None` if the session has ended.
    fn session(
        &self,
        key: &[u8],
        method: &Method,
        headers: &HeaderMap,
        generation: u64,
    ) -> Result<Option<Caller>, Denied> {
        let mut sessions = self.sessions();
        sessions.all.retain(|session| !session.until.has_passed());
        let Some(session) = sessions.all.iter_mut().find(|session| session.key.ct_eq(key).into()) else {
            return Ok(None);
        };
        let caller = Caller { role: session.role, session: Some(session.number), generation };
        if !method.is_safe() {
            if !is_own_page(headers) || !session.has_secret(headers) {
                return Err(Denied::Foreign);
            }
            if !session.changes.take(Instant::now()) {
                return Err(Denied::TooMany);
            }
        }
        Ok(Some(caller))
    }

    /// Returns whether somebody who was let in would still be let in.
    pub(super) fn still(&self, caller: Option<Caller>) -> bool {
        match caller {
            None => self.tokens().open_to_look,
            Some(Caller { session: Some(number), .. }) => {
                self.sessions().all.iter().any(|one| one.number == number && !one.until.has_passed())
            }
            Some(Caller { generation, .. }) => generation == self.in_force().generation,
        }
    }

    /// Returns whether somebody may see what is in messages, as far as tokens decide.
    pub(super) fn may_watch(&self, caller: Option<Caller>) -> bool {
        let tokens = &self.in_force().tokens;
        caller.map_or(tokens.open_to_look, |caller| caller.role == Role::Operator || tokens.viewer_may_watch)
    }

    /// Makes a link, and returns its code. Whoever opens it first is an operator. Returns `None` if there is
    /// no operator's token, or no randomness.
    pub(super) fn make_link(&self) -> Option<String> {
        let in_force = self.in_force();
        in_force.tokens.operator.as_ref()?;
        lock(&self.links).make()
    }

    /// Returns whether nobody has used this link yet.
    pub(super) fn is_unused(&self, code: &str) -> bool {
        lock(&self.links).is_good(code)
    }

    /// Begins a session with this token.
    pub(super) fn log_in(&self, token: &str, is_encrypted: bool) -> Result<Login, LoginError> {
        let in_force = self.in_force();
        let role = in_force.tokens.role(token.as_bytes()).ok_or(LoginError::Wrong)?;
        self.begin(role, in_force.generation, is_encrypted)
    }

    /// Begins a session with the code of a link, which is used up by it. Where no session can begin now, the
    /// link stays good.
    pub(super) fn follow_link(&self, code: &str, is_encrypted: bool) -> Result<Login, LoginError> {
        let in_force = self.in_force();
        let mut links = lock(&self.links);
        if !links.is_good(code) {
            return Err(LoginError::Wrong);
        }
        let login = self.begin(Role::Operator, in_force.generation, is_encrypted)?;
        links.use_up(code);
        Ok(login)
    }

    fn begin(&self, role: Role, generation: u64, is_encrypted: bool) -> Result<Login, LoginError> {
        let (mut key, mut secret) = ([0; KEY_LEN], [0; KEY_LEN]);
        getrandom::fill(&mut key).map_err(|_| LoginError::TooMany)?;
        getrandom::fill(&mut secret).map_err(|_| LoginError::TooMany)?;
        let mut sessions = self.sessions();
        let logins = match role {
            Role::Viewer => &mut sessions.viewer_logins,
            Role::Operator => &mut sessions.operator_logins,
        };
        if !logins.take(Instant::now()) {
            return Err(LoginError::TooMany);
        }
        sessions.all.retain(|session| !session.until.has_passed());
        while sessions.all.len() >= SESSIONS_MAX {
            // A viewer never ends the session of an operator.
            let viewer = sessions.all.iter().position(|one| one.role == Role::Viewer);
            let oldest = viewer.or((role == Role::Operator).then_some(0)).ok_or(LoginError::TooMany)?;
            sessions.all.remove(oldest);
        }
        sessions.next += 1;
        let number = sessions.next;
        let until = Deadline::after(SESSION_TIME);
        sessions.all.push_back(Session {
            number,
            key,
            secret,
            role,
            until,
            changes: TokenBucket::new(CHANGES_AT_ONCE, CHANGES_PER_S),
        });
        let cookie =
            self.cookie(&hex(&key), SESSION_TIME, is_encrypted).expect("hex digits are a header value");
        let caller = Caller { role, session: Some(number), generation };
        Ok(Login { caller, cookie, secret: hex(&secret) })
    }

    /// Ends the session of a request, and returns the cookie that takes its own away.
    pub(super) fn log_out(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if let Some(key) = self.key(headers) {
            self.sessions().all.retain(|session| !bool::from(session.key.ct_eq(&key)));
        }
        self.cookie("", Duration::ZERO, false)
    }

    fn cookie(&self, value: &str, time: Duration, is_encrypted: bool) -> Option<HeaderValue> {
        let secure = if is_encrypted { "; Secure" } else { "" };
        let (name, seconds) = (&self.cookie, time.as_secs());
        let text = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
        let mut cookie = HeaderValue::from_str(&text).ok()?;
        cookie.set_sensitive(true);
        Some(cookie)
    }

    /// Returns the key in the cookie of a request.
    fn key(&self, headers: &HeaderMap) -> Option<Vec<u8>> {
        let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let (_, key) = pairs.find(|(name, _)| *name == self.cookie)?;
        unhex(key).filter(|key| key.len() == KEY_LEN)
    }
}

/// Returns the token that a request brings.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

/// Returns whether the browser says that a request does not come from a page of this server, whatever else it
/// brings. Other ports of this host are the same site, but not the same origin. Clients that are no browsers
/// say nothing.
pub(super) fn is_from_elsewhere(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site");
    site.is_some_and(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"))
        || has_foreign_origin(headers)
}

/// Whether the request names an origin that is not this server.
fn has_foreign_origin(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    match (text("origin"), text("host")) {
        (None, _) => false,
        (Some(origin), Some(host)) => {
            origin.split_once("://").is_none_or(|(_, authority)| !authority.eq_ignore_ascii_case(host))
        }
        (Some(_), None) => true,
    }
}

/// Returns whether a request comes from a page of this server: it has our own header, and nothing in it says
/// otherwise.
pub(super) fn is_own_page(headers: &HeaderMap) -> bool {
    let is_same_site = headers.get("sec-fetch-site").is_none_or(|site| site.as_bytes() == b"same-origin");
    headers.contains_key(OWN_HEADER) && is_same_site && !has_foreign_origin(headers)
}

/// Returns bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATOR: &str = "operator-0123456789";
    const VIEWER: &str = "viewer-0123456789";

    fn access(open_to_look: bool) -> Access {
        let token = |text| Some(Token::new(text).unwrap());
        let (operator, viewer) = (token(OPERATOR), token(VIEWER));
        Access::new(Tokens { operator, viewer, open_to_look, viewer_may_watch: false }, 7775)
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    /// Returns what a browser sends back of a cookie.
    fn pair(cookie: &HeaderValue) -> String {
        cookie.to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    #[test]
    fn a_token_says_what_one_may_do() {
        let access = access(false);
        let get = |pairs: &[(&'static str, &str)]| access.caller(&Method::GET, &headers(pairs));
        let role = |text: &str| get(&[("authorization", text)]).map(|caller| caller.unwrap().role);
        assert_eq!(role(&format!("Bearer {OPERATOR}")), Ok(Role::Operator));
        assert_eq!(role(&format!("bearer {VIEWER}")), Ok(Role::Viewer));
        for wrong in ["Bearer operator-0123456788", "Bearer ", "Basic x", "x"] {
            assert_eq!(role(wrong), Err(Denied::WrongToken), "{wrong}");
        }
        assert_eq!(get(&[]), Err(Denied::Nothing));
    }

    #[test]
    fn a_session_changes_something_only_from_a_page_of_ours() {
        let access = access(true);
        let Login { caller, cookie, secret } = access.log_in(OPERATOR, false).unwrap();
        assert_eq!(caller.role, Role::Operator);
        let text = cookie.to_str().unwrap();
        assert!(text.ends_with("; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict"), "{text}");
        assert!(cookie.is_sensitive());
        assert!(access.log_in(OPERATOR, true).unwrap().cookie.to_str().unwrap().ends_with("; Secure"));
        let cookie = pair(&cookie);
        let ask = |method: Method, pairs: &[(&'static str, &str)]| {
            let all: Vec<_> = pairs.iter().copied().chain([("cookie", &*cookie)]).collect();
            access.caller(&method, &headers(&all))
        };
        assert_eq!(ask(Method::GET, &[]), Ok(Some(caller)));
        let own = ("x-xmsg-page", &*secret);
        assert_eq!(ask(Method::POST, &[own]), Ok(Some(caller)));
        // Who knows the cookie, such as a server at another port of this host, does not know the secret.
        let another = access.log_in(OPERATOR, false).unwrap().secret;
        for wrong in ["1", "", &another, &secret[2..]] {
            assert_eq!(ask(Method::POST, &[("x-xmsg-page", wrong)]), Err(Denied::Foreign), "{wrong}");
        }
        let host = ("host", "127.0.0.1:7775");
        assert_eq!(ask(Method::POST, &[own, host, ("origin", "http://127.0.0.1:7775")]), Ok(Some(caller)));
        for foreign in [
            &[][..],
            &[host, ("origin", "http://127.0.0.1:7775")],
            &[own, host, ("origin", "http://127.0.0.1:8000")],
            &[own, host, ("origin", "null")],
            &[own, ("origin", "http://127.0.0.1:7775")],
            &[own, host, ("sec-fetch-site", "same-site")],
            &[own, host, ("sec-fetch-site", "cross-site")],
        ] {
            for method in [Method::POST, Method::PUT, Method::DELETE] {
                assert_eq!(ask(method, foreign), Err(Denied::Foreign), "{foreign:?}");
            }
        }
        assert!(access.still(Some(caller)));
        access.log_out(&headers(&[("cookie", &cookie)])).unwrap();
        assert!(!access.still(Some(caller)));
        assert_eq!(ask(Method::POST, &[own]), Ok(None), "everybody may look, as nobody in particular");
    }

    #[test]
    fn a_browser_says_where_a_request_comes_from() {
        let comes = |all: &[(&'static str, &str)]| is_from_elsewhere(&headers(all));
        let host = ("host", "127.0.0.1:7775");
        for site in ["cross-site", "same-site", "", "?"] {
            assert!(comes(&[host, ("sec-fetch-site", site)]), "{site}");
        }
        for origin in ["http://evil.example", "http://127.0.0.1:7776", "null", ""] {
            assert!(comes(&[host, ("origin", origin)]), "{origin}");
        }
        assert!(comes(&[("origin", "http://127.0.0.1:7775")]), "there is no host");
        for own in [&[host][..], &[], &[host, ("origin", "http://127.0.0.1:7775")]] {
            assert!(!comes(own), "{own:?}");
        }
        for site in ["same-origin", "none"] {
            assert!(!comes(&[host, ("sec-fetch-site", site)]), "{site}");
        }
    }

    #[test]
    fn what_is_in_messages_is_for_the_operator_unless_it_is_said_otherwise() {
        let access = access(true);
        let [viewer, operator] = [VIEWER, OPERATOR].map(|token| access.log_in(token, false).unwrap().caller);
        assert!(access.may_watch(None) && access.may_watch(Some(operator)));
        assert!(!access.may_watch(Some(viewer)));
        access.replace(Tokens { viewer_may_watch: true, ..access.tokens() });
        assert!(access.may_watch(Some(viewer)));
    }

    #[test]
    fn sessions_are_few_and_end_with_their_tokens() {
        let access = access(false);
        assert_eq!(access.log_in("operator-0123456788", false).unwrap_err(), LoginError::Wrong);
        let first = access.log_in(VIEWER, false).unwrap().caller;
        let others: Vec<_> =
            (0..SESSIONS_MAX).map(|_| access.log_in(VIEWER, false).unwrap().caller).collect();
        assert!(!access.still(Some(first)), "the oldest gave way");
        assert!(others.iter().all(|one| access.still(Some(*one))));
        access.replace(access.tokens());
        assert!(!others.iter().any(|one| access.still(Some(*one))));
    }

    #[test]
    fn a_link_makes_one_operator_and_ends_with_the_token() {
        let access = access(false);
        let code = access.make_link().unwrap();
        assert_eq!(
            access.follow_link("00112233445566778899aabbccddeeff", false).unwrap_err(),
            LoginError::Wrong
        );
        assert!(access.is_unused(&code));
        assert_eq!(access.follow_link(&code, false).unwrap().caller.role, Role::Operator);
        assert!(!access.is_unused(&code));
        assert_eq!(access.follow_link(&code, false).unwrap_err(), LoginError::Wrong);

        // A link that can't be followed now is not lost.
        while access.log_in(OPERATOR, false).is_ok() {}
        let code = access.make_link().unwrap();
        assert_eq!(access.follow_link(&code, false).unwrap_err(), LoginError::TooMany);
        assert!(access.is_unused(&code));

        access.replace(access.tokens());
        assert!(!access.is_unused(&code));
        access.replace(Tokens { operator: None, ..access.tokens() });
        assert!(access.make_link().is_none(), "nobody may be an operator");
    }

    #[test]
    fn what_was_let_in_by_a_token_ends_with_it() {
        let access = access(false);
        let bearer = headers(&[("authorization", &format!("Bearer {OPERATOR}"))]);
        let caller = access.caller(&Method::GET, &bearer).unwrap();
        assert!(access.still(caller));
        access.replace(access.tokens());
        assert!(!access.still(caller));
    }

    #[test]
    fn viewers_end_no_session_of_an_operator() {
        let access = access(false);
        let first = access.log_in(OPERATOR, false).unwrap().caller;
        for _ in 0..2 * SESSIONS_MAX {
            access.log_in(VIEWER, false).unwrap();
        }
        assert!(access.still(Some(first)));
        for _ in 0..SESSIONS_MAX {
            access.log_in(OPERATOR, false).unwrap();
        }
        assert!(!access.still(Some(first)), "the oldest gave way to operators");
        assert_eq!(access.log_in(VIEWER, false).unwrap_err(), LoginError::TooMany, "all are operators");
    }

    #[test]
    fn a_session_makes_so_many_changes_in_a_second() {
        let access = access(false);
        let Login { cookie, secret, .. } = access.log_in(OPERATOR, false).unwrap();
        let cookie = pair(&cookie);
        let change = || {
            let all = headers(&[("cookie", &cookie), ("x-xmsg-page", &secret)]);
            access.caller(&Method::POST, &all)
        };
        let made = (0..1000).take_while(|_| change().is_ok()).count();
        assert!((60..200).contains(&made), "{made}");
        assert_eq!(change(), Err(Denied::TooMany));
        let look = headers(&[("cookie", &cookie)]);
        assert!(access.caller(&Method::GET, &look).is_ok(), "looking has no limit");
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let access = access(false);
        let cookie = pair(&access.log_in(VIEWER, false).unwrap().cookie);
        for cookies in [format!("a=b; {cookie}; c=d"), format!("xmsg_session_7776=00;{cookie}")] {
            assert!(access.caller(&Method::GET, &headers(&[("cookie", &cookies)])).is_ok(), "{cookies}");
        }
        for cookies in
            ["xmsg_session_7775=", "xmsg_session_7775=zz", "xmsg_session_7775=abcd", "xmsg_session_7775"]
        {
            let caller = access.caller(&Method::GET, &headers(&[("cookie", cookies)]));
            assert_eq!(caller, Err(Denied::Nothing), "{cookies}");
        }
    }

    #[test]
    fn viewers_who_log_in_without_end_are_refused_and_keep_no_operator_out() {
        let access = access(false);
        let begun = (0..1000).take_while(|_| access.log_in(VIEWER, false).is_ok()).count();
        assert!((128..200).contains(&begun), "{begun}");
        assert_eq!(access.log_in(VIEWER, false).unwrap_err(), LoginError::TooMany);
        assert!(access.log_in(OPERATOR, false).is_ok());
    }
}
