//! Security mechanisms: what is said between greeting and traffic.

use std::fmt;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::curve::{Cipher, PublicKey};
use super::{Command, Properties, Version, Violation};

/// One side of a security handshake, as a pure state machine.
///
/// The engine sends what [`poll_command`](Self::poll_command) returns and hands every command of the peer to
/// [`handle_command`](Self::handle_command). A server that now has [`credentials`](Self::credentials) waits until they
/// were judged. Traffic begins once [`take_properties`](Self::take_properties) has some and nothing is left to send.
pub trait Mechanism: fmt::Debug + Send {
    /// The name in the greeting: at most 20 bytes of upper-case ASCII.
    fn name(&self) -> &'static str;

    /// Whether this side is the server of the handshake.
    fn as_server(&self) -> bool {
        false
    }

    /// The body of the next command to send, if it is our turn. `ours` are the properties to announce.
    fn poll_command(&mut self, ours: &Properties) -> Option<Bytes>;

    /// Takes the body of the peer's next command.
    fn handle_command(&mut self, body: Bytes) -> Result<(), Violation>;

    /// What the peer has just shown to be let in. It is handed out once; nothing goes on before
    /// [`admit`](Self::admit).
    fn credentials(&mut self) -> Option<Credentials> {
        None
    }

    /// The body of the command that tells the peer that it is not let in.
    fn error(&self, version: Version, reason: &str) -> Bytes {
        let _ = version;
        Command::Error(reason.to_owned()).body()
    }

    /// The peer is let in.
    fn admit(&mut self) {}

    /// What the peer announced, once its side of the handshake is complete. They are handed out once: nothing of them stays here for
    /// as long as the connection lasts.
    fn take_properties(&mut self) -> Option<Properties>;

    /// What it means that the peer has closed the connection at this point of the handshake. Servers say nothing when they find other
    /// keys than theirs, so that is all that a client learns.
    fn closed_by_peer(&self) -> Option<Violation> {
        None
    }

    /// What boxes the traffic, once the handshake is complete; `None`: it goes in clear text.
    fn take_cipher(&mut self) -> Option<Cipher> {
        None
    }
}

/// What a peer shows to be let in.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credentials {
    /// PLAIN: a name and a password, as they came.
    Password {
        /// Who it says it is.
        user: Bytes,
        /// The proof. Wiped when dropped.
        password: Zeroizing<Vec<u8>>,
    },
    /// CURVE: the client's long-term key. That it holds the secret half has been proved.
    Key(PublicKey),
}

impl Credentials {
    /// Who it is, if it is let in.
    #[must_use]
    pub fn principal(&self) -> Principal {
        match self {
            Self::Password { user, .. } => Principal::User(String::from_utf8_lossy(user).into_owned()),
            Self::Key(key) => Principal::Key(*key),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials of {}", self.principal())
    }
}

/// Who a peer has proved to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Principal {
    /// The name of a PLAIN user.
    User(String),
    /// The key of a CURVE client.
    Key(PublicKey),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "user {name:?}"),
            Self::Key(key) => write!(f, "key {key}"),
        }
    }
}

/// NULL: no authentication, no confidentiality. Each side sends READY (RFC 37).
#[derive(Debug, Default)]
pub struct Null {
    sent: bool,
    peer: Option<Properties>,
}

impl Mechanism for Null {
    fn name(&self) -> &'static str {
        "NULL"
    }

    fn poll_command(&mut self, ours: &Properties) -> Option<Bytes> {
        (!std::mem::replace(&mut self.sent, true)).then(|| Command::Ready(ours.clone()).body())
    }

    fn handle_command(&mut self, body: Bytes) -> Result<(), Violation> {
        match Command::read(body)? {
            Command::Ready(properties) => {
                self.peer = Some(properties);
                Ok(())
            }
            Command::Error(reason) => Err(Violation::RefusedByPeer(reason)),
            _ => Err(Violation::Malformed("NULL handshake: READY expected")),
        }
    }

    fn take_properties(&mut self) -> Option<Properties> {
        self.peer.take()
    }
}
