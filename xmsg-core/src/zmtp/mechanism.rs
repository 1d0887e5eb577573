//! Security mechanisms: what is said between greeting and traffic.

use std::fmt::Debug;

use super::{Command, Properties, Violation};

/// One side of a security handshake, as a pure state machine.
///
/// The engine sends what [`poll_command`](Self::poll_command) returns, hands every command of the peer to
/// [`handle_command`](Self::handle_command), and goes over to traffic once both
/// [`peer_properties`](Self::peer_properties) is there and nothing is left to send. Traffic of every mechanism
/// so far is in clear text; one that boxes it (CURVE) adds that step between the engine and the wire.
pub trait Mechanism: Debug + Send {
    /// The name in the greeting: at most 20 bytes of upper-case ASCII.
    fn name(&self) -> &'static str;

    /// Whether this side is the server of the handshake.
    fn as_server(&self) -> bool {
        false
    }

    /// The next command to send, if it is our turn. `ours` are the properties to announce.
    fn poll_command(&mut self, ours: &Properties) -> Option<Command>;

    /// Takes the peer's next command.
    fn handle_command(&mut self, command: Command) -> Result<(), Violation>;

    /// What the peer announced, once its side of the handshake is complete.
    fn peer_properties(&self) -> Option<&Properties>;
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

    fn poll_command(&mut self, ours: &Properties) -> Option<Command> {
        (!std::mem::replace(&mut self.sent, true)).then(|| Command::Ready(ours.clone()))
    }

    fn handle_command(&mut self, command: Command) -> Result<(), Violation> {
        match command {
            Command::Ready(properties) => {
                self.peer = Some(properties);
                Ok(())
            }
            Command::Error(reason) => Err(Violation::RefusedByPeer(reason)),
            _ => Err(Violation::Malformed("NULL handshake: READY expected")),
        }
    }

    fn peer_properties(&self) -> Option<&Properties> {
        self.peer.as_ref()
    }
}
