//! CURVE: mutual authentication and encryption (RFC 26), in the form that libzmq speaks.
//!
//! ```text
//!  client (long-term C, transient C')             server (long-term S, transient S')
//!  HELLO     C', a box from C' to S         ─►
//!                                           ◄─    WELCOME   a box from S to C': S', cookie
//!  INITIATE  cookie, a box from C' to S':   ─►
//!            C, vouch from C to S', properties
//!                                           ◄─    READY     a box from S' to C': properties
//! ```
//!
//! Transient keys live as long as the connection. An attacker who later steals a long-term key can't read
//! what was recorded.

// | file | answers |
// |---|---|
// | `cipher.rs` | How are frames sealed and opened once there is a connection? |
// | `nacl.rs` | What is a box of CURVE, and how is it made and opened? |
// | `salsa20.rs` | How is the key stream computed, for several blocks at a time? |
// | `poly1305.rs` | How is a tag computed? |
// | `key.rs` | How are keys made, read and written as text? |

#![allow(clippy::inline_always, reason = "code for AVX2 is what is inlined into a function for it")]

mod cipher;
mod key;
mod nacl;
mod poly1305;
mod salsa20;

use bytes::{Buf, BufMut, Bytes, BytesMut};
pub use cipher::{Cipher, LONG_FRAME, Opener, Sealer};
pub use key::{KEY_LEN, KeyError, KeyPair, PublicKey, SecretKey};
use nacl::{BoxKey, NONCE_LEN, TAG_LEN};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::command::{named, put_short};
use super::{Command, Credentials, Mechanism, Properties, Violation};

const HELLO: &[u8] = b"HELLO";
const WELCOME: &[u8] = b"WELCOME";
const INITIATE: &[u8] = b"INITIATE";
const READY: &[u8] = b"READY";
/// Version 1.0, and the padding that makes a HELLO longer than its answer, so that a server cannot be used to
/// amplify traffic.
const HELLO_VERSION: [u8; 2] = [1, 0];
const HELLO_PADDING: usize = 72;
/// The content of the box of a HELLO.
const HELLO_PROOF: [u8; 64] = [0; 64];
const COOKIE_LEN: usize = 96;
const LONG_NONCE_LEN: usize = 16;
const VOUCH_LEN: usize = 2 * KEY_LEN + TAG_LEN;

/// Random values for one handshake. They must be unpredictable and never used twice.
#[derive(Clone)]
pub struct Entropy {
    /// The transient secret key.
    pub transient: SecretKey,
    /// The nonce of the vouch (client) or of the WELCOME (server).
    pub nonce: [u8; LONG_NONCE_LEN],
    /// The server's cookie, which binds an INITIATE to the WELCOME before it.
    pub cookie: Zeroizing<[u8; COOKIE_LEN]>,
}

impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entropy(…)")
    }
}

fn nonce<const P: usize>(prefix: &[u8; P], rest: &[u8]) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[..P].copy_from_slice(prefix);
    nonce[P..].copy_from_slice(rest);
    nonce
}

fn cipher(session: &BoxKey, as_server: bool, sent: u64, heard: u64) -> Cipher {
    let client = session.stream(b"CurveZMQMESSAGEC");
    let server = session.stream(b"CurveZMQMESSAGES");
    let (ours, theirs) = if as_server { (server, client) } else { (client, server) };
    Cipher { sealer: Sealer::new(ours, sent), opener: Opener::new(theirs, heard) }
}

/// Takes `N` bytes off the front.
fn take<const N: usize>(bytes: &mut Bytes) -> Option<[u8; N]> {
    let taken = *bytes.first_chunk::<N>()?;
    bytes.advance(N);
    Some(taken)
}

/// Returns the violation for a body that is either an ERROR command or not expected here.
fn unexpected(body: Bytes, expected: &'static str) -> Violation {
    match Command::read(body) {
        Ok(Command::Error(reason)) => Violation::RefusedByPeer(reason),
        _ => Violation::Malformed(expected),
    }
}

enum ClientStep {
    Start,
    AwaitWelcome,
    /// The INITIATE is to be sent. The fields are the server's transient key and the cookie.
    Welcomed(PublicKey, [u8; COOKIE_LEN]),
    AwaitReady(BoxKey),
    Done(Option<Cipher>, Properties),
    /// Set temporarily between two steps.
    Transition,
}

/// The client side of CURVE.
pub struct CurveClient {
    keys: KeyPair,
    server: PublicKey,
    entropy: Entropy,
    hello: Option<BoxKey>,
    step: ClientStep,
}

impl std::fmt::Debug for CurveClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CurveClient")
            .field("keys", &self.keys)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl CurveClient {
    /// Creates a client with these long-term keys, which accepts the server with the given key and no other.
    #[must_use]
    pub fn new(keys: KeyPair, server: PublicKey, entropy: Entropy) -> Self {
        Self { keys, server, entropy, hello: None, step: ClientStep::Start }
    }

    fn hello(&mut self) -> Option<Bytes> {
        let key = BoxKey::between(&self.entropy.transient, &self.server)?;
        let mut body = BytesMut::new();
        put_short(&mut body, HELLO);
        body.put_slice(&HELLO_VERSION);
        body.put_bytes(0, HELLO_PADDING);
        body.put_slice(self.entropy.transient.public().as_bytes());
        let counter = 1_u64.to_be_bytes();
        body.put_slice(&counter);
        body.put_slice(&key.seal(&nonce(b"CurveZMQHELLO---", &counter), &HELLO_PROOF));
        self.hello = Some(key);
        Some(body.freeze())
    }

    fn welcome(&mut self, body: Bytes) -> Result<(), Violation> {
        const MALFORMED: Violation = Violation::Malformed("CURVE WELCOME");
        let Some(mut rest) = named(&body, WELCOME) else {
            return Err(unexpected(body, "CURVE handshake: WELCOME expected"));
        };
        let long_nonce: [u8; LONG_NONCE_LEN] = take(&mut rest).ok_or(MALFORMED)?;
        let key = self.hello.take().ok_or(MALFORMED)?;
        let plain = key
            .open(&nonce(b"WELCOME-", &long_nonce), &rest)
            .ok_or(Violation::NotAuthentic("the CURVE WELCOME does not open: the server has another key"))?;
        let (transient, cookie) = plain.split_first_chunk::<KEY_LEN>().ok_or(MALFORMED)?;
        let cookie = cookie.try_into().map_err(|_| MALFORMED)?;
        self.step = ClientStep::Welcomed(PublicKey::from_bytes(*transient), cookie);
        Ok(())
    }

    fn initiate(
        &mut self,
        transient: PublicKey,
        cookie: &[u8; COOKIE_LEN],
        ours: &Properties,
    ) -> Option<Bytes> {
        let session = BoxKey::between(&self.entropy.transient, &transient)?;
        let mut vouched = [0; 2 * KEY_LEN];
        vouched[..KEY_LEN].copy_from_slice(self.entropy.transient.public().as_bytes());
        vouched[KEY_LEN..].copy_from_slice(self.server.as_bytes());
        let vouch = BoxKey::between(self.keys.secret(), &transient)?
            .seal(&nonce(b"VOUCH---", &self.entropy.nonce), &vouched);
        let mut plain = BytesMut::new();
        plain.put_slice(self.keys.public().as_bytes());
        plain.put_slice(&self.entropy.nonce);
        plain.put_slice(&vouch);
        ours.write(&mut plain);
        let mut body = BytesMut::new();
        put_short(&mut body, INITIATE);
        body.put_slice(cookie);
        let counter = 2_u64.to_be_bytes();
        body.put_slice(&counter);
        body.put_slice(&session.seal(&nonce(b"CurveZMQINITIATE", &counter), &plain));
        self.step = ClientStep::AwaitReady(session);
        Some(body.freeze())
    }

    fn ready(&mut self, session: &BoxKey, body: Bytes) -> Result<(), Violation> {
        const MALFORMED: Violation = Violation::Malformed("CURVE READY");
        let Some(mut rest) = named(&body, READY) else {
            return Err(unexpected(body, "CURVE handshake: READY expected"));
        };
        let counter: [u8; 8] = take(&mut rest).ok_or(MALFORMED)?;
        let plain = session
            .open(&nonce(b"CurveZMQREADY---", &counter), &rest)
            .ok_or(Violation::NotAuthentic("the CURVE READY does not open"))?;
        let properties = Properties::read(Bytes::copy_from_slice(&plain))?;
        let cipher = cipher(session, false, 2, u64::from_be_bytes(counter));
        self.step = ClientStep::Done(Some(cipher), properties);
        Ok(())
    }
}

impl Mechanism for CurveClient {
    fn name(&self) -> &'static str {
        "CURVE"
    }

    fn poll_command(&mut self, ours: &Properties) -> Option<Bytes> {
        match std::mem::replace(&mut self.step, ClientStep::Transition) {
            ClientStep::Start => {
                self.step = ClientStep::AwaitWelcome;
                self.hello()
            }
            ClientStep::Welcomed(transient, cookie) => self.initiate(transient, &cookie, ours),
            other => {
                self.step = other;
                None
            }
        }
    }

    fn handle_command(&mut self, body: Bytes) -> Result<(), Violation> {
        match std::mem::replace(&mut self.step, ClientStep::Transition) {
            ClientStep::AwaitWelcome => self.welcome(body),
            ClientStep::AwaitReady(session) => self.ready(&session, body),
            _ => Err(Violation::Malformed("CURVE handshake: out of turn, or a key that shares nothing")),
        }
    }

    fn closed_by_peer(&self) -> Option<Violation> {
        match self.step {
            ClientStep::AwaitWelcome => Some(Violation::ClosedByPeer(
                "it got the CURVE HELLO: it has another key than the server key that is set here",
            )),
            ClientStep::AwaitReady(_) => {
                Some(Violation::ClosedByPeer("it was shown our CURVE key: does it let anybody in?"))
            }
            _ => None,
        }
    }

    fn take_properties(&mut self) -> Option<Properties> {
        match &mut self.step {
            ClientStep::Done(_, properties) => Some(std::mem::take(properties)),
            _ => None,
        }
    }

    fn take_cipher(&mut self) -> Option<Cipher> {
        match &mut self.step {
            ClientStep::Done(cipher, _) => cipher.take(),
            _ => None,
        }
    }
}

enum ServerStep {
    AwaitHello,
    /// The WELCOME is to be sent. The fields are the client's transient key, the key of the box, and the
    /// nonce counter of the HELLO.
    Greeted(PublicKey, BoxKey, u64),
    AwaitInitiate(PublicKey, u64),
    Initiated(Initiated),
    Admitted(Initiated),
    Done(Option<Cipher>, Properties),
    /// Set temporarily between two steps.
    Transition,
}

struct Initiated {
    session: BoxKey,
    heard: u64,
    properties: Properties,
}

/// The server side of CURVE.
pub struct CurveServer {
    keys: KeyPair,
    entropy: Entropy,
    credentials: Option<Credentials>,
    step: ServerStep,
}

impl std::fmt::Debug for CurveServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CurveServer").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl CurveServer {
    /// Creates a server with these long-term keys.
    #[must_use]
    pub fn new(keys: KeyPair, entropy: Entropy) -> Self {
        Self { keys, entropy, credentials: None, step: ServerStep::AwaitHello }
    }

    fn hello(&mut self, body: Bytes) -> Result<(), Violation> {
        const MALFORMED: Violation = Violation::Malformed("CURVE HELLO");
        let Some(mut rest) = named(&body, HELLO) else {
            return Err(unexpected(body, "CURVE handshake: HELLO expected"));
        };
        let version: [u8; 2] = take(&mut rest).ok_or(MALFORMED)?;
        if version != HELLO_VERSION {
            return Err(MALFORMED);
        }
        take::<HELLO_PADDING>(&mut rest).ok_or(MALFORMED)?;
        let client = PublicKey::from_bytes(take(&mut rest).ok_or(MALFORMED)?);
        let counter: [u8; 8] = take(&mut rest).ok_or(MALFORMED)?;
        let key = BoxKey::between(self.keys.secret(), &client).ok_or(MALFORMED)?;
        let proof = key.open(&nonce(b"CurveZMQHELLO---", &counter), &rest);
        if proof.is_none_or(|proof| proof.as_slice() != HELLO_PROOF) {
            return Err(Violation::NotAuthentic(
                "the CURVE HELLO does not open: the client expects another server key",
            ));
        }
        self.step = ServerStep::Greeted(client, key, u64::from_be_bytes(counter));
        Ok(())
    }

    fn welcome(&self, key: &BoxKey) -> Bytes {
        let mut plain = Zeroizing::new([0; KEY_LEN + COOKIE_LEN]);
        plain[..KEY_LEN].copy_from_slice(self.entropy.transient.public().as_bytes());
        plain[KEY_LEN..].copy_from_slice(&*self.entropy.cookie);
        let mut body = BytesMut::new();
        put_short(&mut body, WELCOME);
        body.put_slice(&self.entropy.nonce);
        body.put_slice(&key.seal(&nonce(b"WELCOME-", &self.entropy.nonce), &*plain));
        body.freeze()
    }

    fn initiate(&mut self, client: PublicKey, heard: u64, body: Bytes) -> Result<(), Violation> {
        const MALFORMED: Violation = Violation::Malformed("CURVE INITIATE");
        let Some(mut rest) = named(&body, INITIATE) else {
            return Err(unexpected(body, "CURVE handshake: INITIATE expected"));
        };
        let cookie: [u8; COOKIE_LEN] = take(&mut rest).ok_or(MALFORMED)?;
        if !bool::from(cookie.ct_eq(&*self.entropy.cookie)) {
            return Err(Violation::NotAuthentic("the cookie in the CURVE INITIATE is not ours"));
        }
        let counter: [u8; 8] = take(&mut rest).ok_or(MALFORMED)?;
        let session = BoxKey::between(&self.entropy.transient, &client).ok_or(MALFORMED)?;
        let plain = session
            .open(&nonce(b"CurveZMQINITIATE", &counter), &rest)
            .ok_or(Violation::NotAuthentic("the CURVE INITIATE does not open"))?;
        let mut plain = Bytes::copy_from_slice(&plain);
        let long_term = PublicKey::from_bytes(take(&mut plain).ok_or(MALFORMED)?);
        let vouch_nonce: [u8; LONG_NONCE_LEN] = take(&mut plain).ok_or(MALFORMED)?;
        let vouch: [u8; VOUCH_LEN] = take(&mut plain).ok_or(MALFORMED)?;
        let vouched = BoxKey::between(&self.entropy.transient, &long_term)
            .and_then(|key| key.open(&nonce(b"VOUCH---", &vouch_nonce), &vouch))
            .ok_or(Violation::NotAuthentic("the vouch in the CURVE INITIATE does not open"))?;
        let expected = [*client.as_bytes(), *self.keys.public().as_bytes()].concat();
        let heard_now = u64::from_be_bytes(counter);
        if !bool::from(vouched.ct_eq(&expected)) || heard_now <= heard {
            return Err(Violation::NotAuthentic("the vouch in the CURVE INITIATE is for another connection"));
        }
        let properties = Properties::read(plain)?;
        self.credentials = Some(Credentials::Key(long_term));
        self.step = ServerStep::Initiated(Initiated { session, heard: heard_now, properties });
        Ok(())
    }

    fn ready(&mut self, peer: Initiated, ours: &Properties) -> Bytes {
        let counter = 1_u64.to_be_bytes();
        let mut plain = BytesMut::new();
        ours.write(&mut plain);
        let mut body = BytesMut::new();
        put_short(&mut body, READY);
        body.put_slice(&counter);
        body.put_slice(&peer.session.seal(&nonce(b"CurveZMQREADY---", &counter), &plain));
        let cipher = cipher(&peer.session, true, 1, peer.heard);
        self.step = ServerStep::Done(Some(cipher), peer.properties);
        body.freeze()
    }
}

impl Mechanism for CurveServer {
    fn name(&self) -> &'static str {
        "CURVE"
    }

    fn as_server(&self) -> bool {
        true
    }

    fn poll_command(&mut self, ours: &Properties) -> Option<Bytes> {
        match std::mem::replace(&mut self.step, ServerStep::Transition) {
            ServerStep::Greeted(client, key, heard) => {
                let welcome = self.welcome(&key);
                self.step = ServerStep::AwaitInitiate(client, heard);
                Some(welcome)
            }
            ServerStep::Admitted(peer) => Some(self.ready(peer, ours)),
            other => {
                self.step = other;
                None
            }
        }
    }

    fn handle_command(&mut self, body: Bytes) -> Result<(), Violation> {
        match std::mem::replace(&mut self.step, ServerStep::Transition) {
            ServerStep::AwaitHello => self.hello(body),
            ServerStep::AwaitInitiate(client, heard) => self.initiate(client, heard, body),
            _ => Err(Violation::Malformed("CURVE handshake: out of turn")),
        }
    }

    fn credentials(&mut self) -> Option<Credentials> {
        self.credentials.take()
    }

    fn admit(&mut self) {
        self.step = match std::mem::replace(&mut self.step, ServerStep::Transition) {
            ServerStep::Initiated(peer) => ServerStep::Admitted(peer),
            other => other,
        };
    }

    fn take_properties(&mut self) -> Option<Properties> {
        match &mut self.step {
            ServerStep::Done(_, properties) => Some(std::mem::take(properties)),
            _ => None,
        }
    }

    fn take_cipher(&mut self) -> Option<Cipher> {
        match &mut self.step {
            ServerStep::Done(cipher, _) => cipher.take(),
            _ => None,
        }
    }
}

#[cfg(test)]
#[path = "../security_tests.rs"]
mod tests;
