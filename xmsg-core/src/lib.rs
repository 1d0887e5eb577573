//! Async publish/subscribe messaging that speaks xMsg and ZeroMQ.
//!
//! An [`Actor`] publishes messages by topic, subscribes to topics, sends requests and answers them. It does
//! so through a proxy: `xmsg-proxy`, or that of any other implementation of xMsg. No message is lost
//! silently: every queue has a limit, publishers wait while it is full, and [`drain`](Actor::drain) returns
//! the counts of what is unfinished.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use xmsg_core::{Actor, Message};
//!
//! #[tokio::main]
//! async fn main() -> xmsg_core::Result<()> {
//!     let actor = Actor::connect("reporter").await?; // addresses from the environment, else localhost
//!     let mut reports = actor.subscribe("report:sports").await?; // back once the proxy has confirmed it
//!     actor.publish(&Message::of("report:sports", "3:1")?).await?; // accepted: in order, never dropped
//!     actor.flush(Duration::from_secs(1)).await?; // the proxy has it
//!     if let Some(report) = reports.next().await {
//!         println!("{}", report?.value::<String>()?);
//!     }
//!     let left = actor.drain(Duration::from_secs(5)).await;
//!     assert!(left.is_nothing(), "{left}");
//!     Ok(())
//! }
//! ```
//!
//! The parts of the library that need no proxy run without one:
//!
//! ```
//! use xmsg_core::{Message, Topic};
//!
//! let message = Message::of("weather:oslo:temperature", 4.5)?.with_header("station", "17")?;
//! assert!(Topic::new("weather", "oslo")?.is_parent(message.topic())); // a subscription is a prefix
//! assert_eq!(message.value::<f64>()?, 4.5);
//! # Ok::<(), xmsg_core::Error>(())
//! ```
//!
//! | to | use |
//! |---|---|
//! | publish, subscribe, serve requests, send requests | [`Actor`], [`ActorBuilder`]; [`Subscription`], [`SubscriptionHandle`] |
//! | make and read messages | [`Message`], [`Topic`], [`Meta`]; values: [`IntoData`], [`FromData`], [`Data`]; batches: [`Messages`] |
//! | handle errors, events and unfinished work | [`Error`], [`ErrorKind`], [`SocketEvents`], [`Unfinished`] |
//! | configure connections | [`ConnectOptions`], [`Security`] |
//! | use a connection without an actor | [`Connection`], [`Pool`] |
//! | find publishers and subscribers | [`Registrar`], [`Query`], [`Registration`] |
//! | write a program without an async runtime | the module `blocking`, with the feature of that name |
//! | use ZeroMQ sockets without xMsg | the package [`xmsg_zmq`]: [`Publisher`](xmsg_zmq::Publisher), [`Subscriber`](xmsg_zmq::Subscriber), [`Requester`](xmsg_zmq::Requester), … |
//! | speak ZMTP without I/O | the package [`xmsg_zmtp`] |
//!
//! The feature `serde` adds JSON: `Message::of_json`, `Message::json`, `Json`. The feature `zeromq` converts
//! messages to and from those of the `zeromq` crate. The feature `otel` makes spans, and carries traces of
//! OpenTelemetry in headers. The guide is `docs/guide.md`.

// | file | answers |
// |---|---|
// | `actor/` | What can an actor do? |
// | `blocking.rs` | How is all this used without an async runtime? |
// | `connection/mod.rs` | What can a connection to one proxy do? |
// | `connection/opening.rs` | How is the publishing socket opened, and checked with the proxy? |
// | `connection/confirmation.rs` | What is known to have arrived at the proxy? |
// | `pool.rs` | Which connections are kept, and used again? |
// | `options.rs` | What can be chosen for a connection: by the program, by the environment, by default? |
// | `security.rs` | Which keys and passwords does the environment name? |
// | `address.rs` | Where is a proxy, or a registrar? |
// | `subscription.rs` | How are messages received, and how is a subscription drained? |
// | `durable/mod.rs` | How does a durable subscription get what was published while it was away? |
// | `durable/protocol.rs` | What do a durable subscription and its server say to each other? |
// | `request.rs` | Which requests wait for their answers? |
// | `topic.rs` | What is a topic, and which prefixes does it have? |
// | `message.rs` | What is in a message, and how is it answered? Its frames are found in `batch.rs`. |
// | `batch.rs` | Where are the frames of each message in what was received together? |
// | `meta.rs` | What is in the metadata, and what are its bytes? |
// | `meta/headers.rs` | How are headers kept in the metadata? |
// | `data.rs` | What is in the data, and what are its bytes? |
// | `data/values.rs` | How do Rust values become data, and data values? |
// | `data/json.rs` | How does JSON become data? |
// | `id.rs` | Who is this: how are connection IDs, actor IDs and reply topics made? |
// | `control.rs` | What are control requests, and their answers? |
// | `registration.rs` | What is a registration, and what is asked of a registrar? |
// | `registrar.rs` | How does a program register, and find others? |
// | `unfinished.rs` | What is left when something is closed? |
// | `shared_attempt.rs` | How do callers share one attempt to make something? |
// | `otel.rs` | Which spans are made of messages, and how do traces travel? |
// | `zeromq_messages.rs` | How do messages become those of the `zeromq` crate? |
// | `duration.rs` | How are durations read from text? |
// | `text.rs` | How is text of others escaped before people see it, and where is it cut? |

#![warn(missing_docs)]

pub mod actor;
pub mod address;
pub mod batch;
#[cfg(feature = "blocking")]
pub mod blocking;
pub mod connection;
pub mod control;
pub mod data;
pub mod durable;
#[doc(hidden)]
pub mod duration;
pub mod id;
pub mod message;
pub mod meta;
pub mod options;
#[cfg(feature = "otel")]
pub mod otel;
pub mod pool;
pub mod registrar;
pub mod registration;
mod request;
pub mod security;
mod shared_attempt;
mod subscription;
pub mod text;
pub mod topic;
mod unfinished;
#[cfg(feature = "zeromq")]
mod zeromq_messages;

/// Crates whose types appear in the public signatures of this crate.
#[doc(no_inline)]
pub use {bytes, futures, xmsg_zmq, zeroize};

#[cfg(feature = "otel")]
#[doc(no_inline)]
pub use ::tracing;
pub use actor::{Actor, ActorBuilder, HandlerError, IntoReply, SubscriptionHandle};
pub use address::{ProxyAddress, RegistrarAddress};
pub use batch::{MessageRef, Messages};
pub use connection::Connection;
#[cfg(feature = "serde")]
pub use data::Json;
pub use data::{Data, FromData, IntoData};
pub use id::{ActorId, ConnectionId};
pub use message::Message;
pub use meta::Meta;
pub use options::{ConnectOptions, ConnectionSocket, Delivery};
pub use pool::{Pool, PooledConnection};
pub use registrar::Registrar;
pub use registration::{OwnerType, Query, Registration};
pub use security::Security;
pub use subscription::Subscription;
pub use topic::{IntoTopic, IntoTopics, Topic};
pub use unfinished::Unfinished;
pub use xmsg_zmq::{DropReason, Error, ErrorKind, Result, SocketEvent, SocketEvents, SocketOptions};
