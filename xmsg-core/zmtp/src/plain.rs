//! PLAIN: authentication by a name and a password in clear text (RFC 24). Use it only on networks where
//! nobody can listen.

use bytes::{BufMut, Bytes, BytesMut};
use zeroize::Zeroizing;

use super::command::{named, put_short, take_short};
use super::{Command, Credentials, Mechanism, Properties, Version, Violation};

const HELLO: &[u8] = b"HELLO";
const WELCOME: &[u8] = b"WELCOME";
const INITIATE: &[u8] = b"INITIATE";
/// What libzmq sends for ERROR with PLAIN since version 4.3.0, and expects. In C, `"\x05ERROR"` begins with
/// one character, 0x5E.
const LIBZMQ_ERROR: &[u8] = b"^RROR";
/// The maximum length in bytes of a name and of a password.
pub const PLAIN_MAX: usize = 255;

/// The client side of PLAIN.
pub struct PlainClient {
    hello: Option<Bytes>,
    welcomed: bool,
    initiated: bool,
    peer: Option<Properties>,
}

impl std::fmt::Debug for PlainClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlainClient").field("welcomed", &self.welcomed).finish_non_exhaustive()
    }
}

impl PlainClient {
    /// Creates a client with this name and password. Of each, at most 255 bytes are sent.
    #[must_use]
    pub fn new(user: &[u8], password: &[u8]) -> Self {
        let mut hello = BytesMut::new();
        put_short(&mut hello, HELLO);
        put_short(&mut hello, &user[..user.len().min(PLAIN_MAX)]);
        put_short(&mut hello, &password[..password.len().min(PLAIN_MAX)]);
        Self { hello: Some(hello.freeze()), welcomed: false, initiated: false, peer: None }
    }
}

impl Mechanism for PlainClient {
    fn name(&self) -> &'static str {
        "PLAIN"
    }

    fn poll_command(&mut self, ours: &Properties) -> Option<Bytes> {
        if let Some(hello) = self.hello.take() {
            return Some(hello);
        }
        (self.welcomed && !std::mem::replace(&mut self.initiated, true)).then(|| {
            let mut body = BytesMut::new();
            put_short(&mut body, INITIATE);
            ours.write(&mut body);
            body.freeze()
        })
    }

    fn handle_command(&mut self, body: Bytes) -> Result<(), Violation> {
        if !self.welcomed && named(&body, WELCOME).is_some() {
            self.welcomed = true;
            return Ok(());
        }
        if let Some(reason) = body.strip_prefix(LIBZMQ_ERROR) {
            let reason =
                take_short(&mut body.slice_ref(reason)).ok_or(Violation::Malformed("ERROR command"))?;
            return Err(Violation::RefusedByPeer(String::from_utf8_lossy(&reason).into_owned()));
        }
        match Command::read(body)? {
            Command::Error(reason) => Err(Violation::RefusedByPeer(reason)),
            Command::Ready(properties) if self.initiated => {
                self.peer = Some(properties);
                Ok(())
            }
            _ => Err(Violation::Malformed("PLAIN handshake: WELCOME or READY expected")),
        }
    }

    fn closed_by_peer(&self) -> Option<Violation> {
        (self.hello.is_none() && !self.welcomed)
            .then_some(Violation::ClosedByPeer("it was shown name and password: does it let anybody in?"))
    }

    fn take_properties(&mut self) -> Option<Properties> {
        self.peer.take()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Hello,
    AwaitingVerdict,
    Admitted,
    Welcomed,
    Initiated,
    Done,
}

/// The server side of PLAIN.
#[derive(Debug)]
pub struct PlainServer {
    step: Step,
    credentials: Option<Credentials>,
    peer: Option<Properties>,
}

impl Default for PlainServer {
    fn default() -> Self {
        Self { step: Step::Hello, credentials: None, peer: None }
    }
}

impl Mechanism for PlainServer {
    fn name(&self) -> &'static str {
        "PLAIN"
    }

    fn as_server(&self) -> bool {
        true
    }

    fn poll_command(&mut self, ours: &Properties) -> Option<Bytes> {
        let mut body = BytesMut::new();
        match self.step {
            Step::Admitted => {
                self.step = Step::Welcomed;
                put_short(&mut body, WELCOME);
            }
            Step::Initiated => {
                self.step = Step::Done;
                body.put_slice(&Command::Ready(ours.clone()).body());
            }
            _ => return None,
        }
        Some(body.freeze())
    }

    fn handle_command(&mut self, body: Bytes) -> Result<(), Violation> {
        const MALFORMED: Violation = Violation::Malformed("PLAIN handshake");
        match self.step {
            Step::Hello => {
                let mut rest = named(&body, HELLO).ok_or(MALFORMED)?;
                let user = take_short(&mut rest).ok_or(MALFORMED)?;
                let password = take_short(&mut rest).filter(|_| rest.is_empty()).ok_or(MALFORMED)?;
                let password = Zeroizing::new(password.to_vec());
                self.credentials = Some(Credentials::Password { user, password });
                self.step = Step::AwaitingVerdict;
                Ok(())
            }
            Step::Welcomed => {
                let rest = named(&body, INITIATE).ok_or(MALFORMED)?;
                self.peer = Some(Properties::read(rest)?);
                self.step = Step::Initiated;
                Ok(())
            }
            _ => Err(MALFORMED),
        }
    }

    fn credentials(&mut self) -> Option<Credentials> {
        self.credentials.take()
    }

    fn error(&self, version: Version, reason: &str) -> Bytes {
        if version < Version::V3_1 {
            return Command::Error(reason.to_owned()).body();
        }
        // A peer that speaks ZMTP 3.1 is libzmq, or our own client, which understands both forms.
        let mut body = BytesMut::from(LIBZMQ_ERROR);
        put_short(&mut body, reason.as_bytes());
        body.freeze()
    }

    fn admit(&mut self) {
        if self.step == Step::AwaitingVerdict {
            self.step = Step::Admitted;
        }
    }

    fn take_properties(&mut self) -> Option<Properties> {
        self.peer.take_if(|_| self.step == Step::Done)
    }
}
