//! The ZeroMQ wire protocol, ZMTP 3.1, 3.0 and 2.0, without any input or output.
//!
//! ```text
//!  bytes from the peer ──► Engine::poll_event ──► Event::Ready · Messages · Subscribe · Cancel
//!  bytes to the peer   ◄── Engine::poll_transmit        ▲
//!  the time            ──► Engine::handle_timeout ──────┘   (Engine::poll_timeout says when)
//! ```
//!
//! The engine opens no socket, starts no task and reads no clock: time is an argument. After every call to
//! `poll_event` or `handle_timeout` the caller writes what `poll_transmit` hands out, in order.
//!
//! **Messages are not taken apart.** A NULL or PLAIN connection carries the same bytes in both directions, so the
//! engine finds the boundaries of whole messages ([`Span`]) and hands on the bytes as they came: forwarding
//! them is as cheap as copying. [`Frames`] takes one message apart for whoever wants its frames.
//!
//! A security [`Mechanism`] takes part in the handshake. One that boxes the traffic leaves a [`curve::Cipher`], which stands between
//! the engine and the wire.
//!
//! RADIO and DISH have no connections: [`datagram`] has their format.
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
mod plain;
mod scan;
mod socket_type;
mod told;

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
pub use plain::{PLAIN_MAX, PlainClient, PlainServer};
pub use scan::{Scanner, Span, Stop};
pub use socket_type::SocketType;
pub use told::PeerLimits;
