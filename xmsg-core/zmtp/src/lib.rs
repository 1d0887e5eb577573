//! The ZeroMQ wire protocol, ZMTP 3.1, 3.0 and 2.0, without any input or output (sans I/O).
//!
//! ```text
//!  bytes from the peer ──► Engine::poll_event ──► Event::Ready · Messages · Subscribe · Cancel
//!  bytes to the peer   ◄── Engine::poll_transmit        ▲
//!  the time            ──► Engine::handle_timeout ──────┘   (Engine::poll_timeout says when)
//! ```
//!
//! Two engines that exchange a message, with buffers in place of a network:
//!
//! ```
//! use std::time::Instant;
//!
//! use bytes::BytesMut;
//! use xmsg_zmtp::{Engine, Event, Options, SocketType, encode_message};
//!
//! let mut push = Engine::new(Options::new(SocketType::Push), Instant::now());
//! let mut pull = Engine::new(Options::new(SocketType::Pull), Instant::now());
//! let (mut to_push, mut to_pull) = (BytesMut::new(), BytesMut::new());
//! loop {
//!     while let Some(bytes) = push.poll_transmit() {
//!         to_pull.extend_from_slice(&bytes);
//!     }
//!     while let Some(bytes) = pull.poll_transmit() {
//!         to_push.extend_from_slice(&bytes);
//!     }
//!     if let Some(Event::Ready(peer)) = push.poll_event(&mut to_push)? {
//!         assert_eq!(peer.socket_type, SocketType::Pull);
//!         encode_message(&mut to_pull, &["hello", "world"]); // the handshake is complete
//!     }
//!     if let Some(Event::Messages(bytes)) = pull.poll_event(&mut to_pull)? {
//!         assert_eq!(bytes, &b"\x01\x05hello\x00\x05world"[..]); // as they were on the wire
//!         assert_eq!(pull.spans().len(), 1); // one message
//!         break;
//!     }
//! }
//! # Ok::<(), xmsg_zmtp::Violation>(())
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
//! | to | use |
//! |---|---|
//! | drive one end of a connection | [`Engine`], [`Options`], [`Event`], [`Peer`] |
//! | refuse what breaks the protocol or a limit | [`Violation`], [`Limits`], [`MessageLimits`], [`PeerLimits`] |
//! | write and read messages | [`encode_message`], [`encode_frame`], [`Frames`], [`Header`], [`Span`], [`Scanner`] |
//! | write and read commands | [`Command`], [`Properties`], [`Greeting`] |
//! | secure a connection | [`Mechanism`], [`Null`], [`PlainClient`], [`PlainServer`], [`curve`]; [`Credentials`], [`Principal`] |
//! | send and receive datagrams | [`datagram`] |
//!
//! Sources: ZeroMQ RFC 37 (ZMTP 3.1), 23 (3.0), 15 (2.0), 29 (publish-subscribe), 24 (PLAIN),
//! 26 (CURVE), 48 (radio-dish).

// | file | answers |
// |---|---|
// | `engine.rs` | What follows which bytes, in greeting, handshake and traffic? |
// | `greeting.rs` | Which version and which mechanism does the peer have? |
// | `mechanism.rs` | What has a security mechanism to do? What are credentials, and what do they prove? |
// | `plain.rs` | How does a login with name and password go (PLAIN)? |
// | `curve/` | How does the handshake of CURVE go, and when is a vouch accepted? |
// | `socket_type.rs` | Which types of sockets go together? |
// | `peer_limits.rs` | Which limits do the two ends of a connection announce? |
// | `command.rs` | Which commands are there, and what are their bytes? |
// | `scan.rs` | Where in a stream does each message end? |
// | `frame.rs` | What are the bytes of a frame? Where in a message is each frame? |
// | `options.rs` | What can be chosen for an engine, and which limits does it enforce? |
// | `error.rs` | What can a peer do wrong, and whose fault is it? |
// | `datagram.rs` | What is in a datagram of RADIO and DISH? |
// | `later.rs` | When is a time that may be too long for the clock? |

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
pub use engine::{Engine, Event, HANDLED_MAX, IDENTITY_MAX, Peer, Version};
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
