//! Security mechanisms, which exchange commands between the greeting and the traffic.

use std::fmt;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::curve::{Cipher, PublicKey};
use super::{Command, Properties, Version, Violation};

/// One side of a security handshake, as a pure state machine.
///
/// The engine sends what [`poll_command`](Self::poll_command) returns, and passes every command of the peer
/// to [`handle_command`](Self::handle_command). If a server then has [`credentials`](Self::credentials), the
/// engine waits until they were authenticated. Traffic begins once [`take_properties`](Self::take_properties)
/// returns some and nothing is left to send.
pub trait Mechanism: fmt::Debug + Send {
    /// Returns the name in the greeting: at most 20 bytes of upper-case ASCII.
    fn name(&self) -> &'static str;

    /// Returns whether this side is the server of the handshake.
    fn as_server(&self) -> bool {
        false
    }

    /// Returns the body of the next command to send, if there is one. `ours` are the properties to announce.
    fn poll_command(&mut self, ours: &Properties) -> Option<Bytes>;

    /// Handles the body of the next command of the peer.
    ///
    /// # Errors
    ///
    /// The command is invalid, or refuses the connection.
    fn handle_command(&mut self, body: Bytes) -> Result<(), Violation>;

    /// Returns the credentials that the peer has just sent. They are returned once. The handshake does not
    /// continue before [`admit`](Self::admit).
    fn credentials(&mut self) -> Option<Credentials> {
        None
    }

    /// Returns the body of the command that tells the peer that it is rejected.
    fn error(&self, version: Version, reason: &str) -> Bytes {
        let _ = version;
        Command::Error(reason.to_owned()).body()
    }

    /// Notes that the peer is admitted.
    fn admit(&mut self) {}

    /// Returns what the peer announced, once its side of the handshake is complete. The properties are
    /// returned once, so that they are not kept in memory for as long as the connection lasts.
    fn take_properties(&mut self) -> Option<Properties>;

    /// Returns what it means if the peer has closed the connection at this point of the handshake. Servers
    /// send no error when they find wrong keys, so a client learns nothing else.
    fn closed_by_peer(&self) -> Option<Violation> {
        None
    }

    /// Returns the cipher that encrypts the traffic, once the handshake is complete. `None` means clear text.
    fn take_cipher(&mut self) -> Option<Cipher> {
        None
    }
}

/// The credentials that a peer presents.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credentials {
    /// The name and the password of PLAIN, as they were received.
    Password {
        /// The name of the user.
        user: Bytes,
        /// The password. It is wiped when dropped.
        password: Zeroizing<Vec<u8>>,
    },
    /// The client's long-term key of CURVE. The client has proved that it holds the secret key.
    Key(PublicKey),
}

impl Credentials {
    /// Returns the identity of the peer if these credentials are accepted.
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

/// The authenticated identity of a peer.
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

/// NULL: no authentication and no confidentiality. Each side sends READY (RFC 37).
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
