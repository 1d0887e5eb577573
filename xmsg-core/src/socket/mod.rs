//! ZeroMQ sockets on the [wire engine](crate::zmtp), driven by tokio.
//!
//! | socket | sends | receives | binds | connects |
//! |---|---|---|---|---|
//! | [`Publisher`] | to every subscriber | subscriptions | yes | yes |
//! | [`Subscriber`] | subscriptions | what matches them | yes | yes |
//! | [`Dealer`] | to its peer | from its peer | – | yes |
//! | [`Router`] | to a peer by identity | from every peer | yes | – |
//! | [`Requester`] | a request | its reply | – | yes |
//! | [`Replier`] | replies | requests, from every peer | yes | – |
//!
//! A connecting socket reconnects for ever, with growing pauses, resubscribes, and then sends what it had accepted.
//! Sending waits when a connection is full: nothing is dropped silently. Every queue has a bound, named in
//! [`SocketOptions`].
//!
//! Sockets that bind and connect are one kind of thing inside: a hub with one *link* for every connection, each
//! link with its [outbox](outbox::Outbox) and the task that owns it.

pub mod admission;
pub mod buffer;
mod dealer;
mod encoded;
mod endpoint;
mod events;
mod hold;
mod hub;
mod inbox;
pub(crate) mod line;
mod link;
mod link_handler;
pub mod memory;
mod multipart;
mod options;
pub mod outbox;
pub mod pause;
mod publisher;
mod reconnect;
mod refusal;
mod reply;
mod request;
mod router;
mod routes;
pub mod session;
pub mod source;
mod subscriber;
pub mod throttle;
pub mod transport;
pub mod vanished;
pub mod violations;

pub use admission::{Admission, AdmissionLimits};
pub use dealer::Dealer;
pub use encoded::EncodedFrames;
pub use endpoint::Endpoint;
pub(crate) use events::EventChannel;
pub use events::{DropReason, SocketEvent, SocketEvents};
pub(crate) use hub::SHARE_MAX;
pub use multipart::Multipart;
pub use options::{IdentityScope, SocketOptions, TcpOptions};
pub(crate) use outbox::Repeated;
pub use outbox::{Amount, HighWaterMark};
pub use publisher::Publisher;
pub use reply::{Replier, ReturnPath};
pub use request::Requester;
pub(crate) use request::Unanswered;
pub use router::Router;
pub use subscriber::Subscriber;
pub(crate) use subscriber::Unreceived;
pub use violations::{ProxyPorts, Reason, ViolationCounts, Violations};
