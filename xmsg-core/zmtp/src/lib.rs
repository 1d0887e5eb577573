//! The ZeroMQ wire protocol, ZMTP 3.1, 3.0 and 2.0, without any input or output (sans I/O).
//!
//! ```text
//!  bytes from the peer ──► Engine::poll_event ──► Event::Ready · Messages · Subscribe · Cancel
//!  bytes to the peer   ◄── Engine::poll_transmit        ▲
//!  the time            ──► Engine::handle_timeout ──────┘   (Engine::poll_timeout says when)
//! ```
//!
//! The engine opens no socket, starts no task and reads no clock: time is an argument. After every call to
//! `poll_event` or `handle_timeout`, the caller writes what `poll_transmit` returns, in order.
//!
//! **Messages are not decoded.** A NULL or PLAIN connection carries messages in the same form in both
//! directions. So the engine finds the boundaries of whole messages ([`Span`]), and returns the bytes as they
//! arrived: forwarding them is as cheap as copying. [`Frames`] splits one message into its frames.
//!
//! A security [`Mechanism`] takes part in the handshake. If it encrypts the traffic, it provides a
//! [`curve::Cipher`], which is used between the engine and the wire.
//!
//! RADIO and DISH have no connections. Their format is in [`datagram`].
//!
//! Sources: ZeroMQ RFC 37 (ZMTP 3.1), 23 (3.0), 15 (2.0), 29 (publish-subscribe), 24 (PLAIN),
//! 26 (CURVE), 48 (radio-dish).

mod command;
pub mod curve;
pub mod datagram;
mod engine;
mod error;
mod frame;
mod greeting;
mod later;
mod mechanism;
mod options;
mod peer_limits;
mod plain;
mod scan;
mod socket_type;

pub use command::{Command, DroppedCounts, Properties};
pub use engine::{Engine, Event, IDENTITY_MAX, Peer, Version};
pub use error::{Blame, Limited, Violation};
pub use frame::{
    Frames, Header, encode_frame, encode_frame_header, encode_message, encoded_len, walk_message,
    whole_messages_within,
};
pub use greeting::{GREETING_LEN, Greeting};
pub use later::later;
pub use mechanism::{Credentials, Mechanism, Null, Principal};
pub use options::{Limits, MessageLimits, Options};
pub use peer_limits::PeerLimits;
pub use plain::{PLAIN_MAX, PlainClient, PlainServer};
pub use scan::{Scanner, Span, Stop};
pub use socket_type::SocketType;
