//! Async publish/subscribe messaging that speaks xMsg and ZeroMQ.

#![warn(missing_docs)]

pub mod actor;
pub mod address;
pub mod batch;
#[cfg(feature = "blocking")]
pub mod blocking;
pub mod connection;
pub mod control;
pub mod data;
pub mod deadline;
pub mod error;
pub mod id;
pub mod message;
pub mod meta;
pub mod options;
pub mod pool;
pub mod prefixes;
pub mod registrar;
pub mod registration;
mod request;
pub mod security;
mod shared_attempt;
pub mod socket;
mod subscription;
pub mod topic;
mod unfinished;
pub mod zmtp;

/// Crates whose types stand in signatures of this one.
#[doc(no_inline)]
pub use {bytes, futures, zeroize};

pub use actor::{Actor, ActorBuilder, HandlerError, IntoReply, SubscriptionHandle};
pub use address::{ProxyAddress, RegistrarAddress};
pub use batch::{MessageRef, Messages};
pub use connection::Connection;
#[cfg(feature = "serde")]
pub use data::Json;
pub use data::{Data, FromData, IntoData};
pub use error::{Error, ErrorKind, Result};
pub use id::{ActorId, ConnectionId};
pub use message::Message;
pub use meta::Meta;
pub use options::ConnectOptions;
pub use pool::{Pool, PooledConnection};
pub use registrar::Registrar;
pub use registration::{OwnerType, Query, Registration};
pub use security::Security;
pub use subscription::Subscription;
pub use topic::{IntoTopic, IntoTopics, Topic};
pub use unfinished::Unfinished;

/// The code of the guide, as tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guide.md")]
struct Guide;

/// The code of the page on security, too.
#[cfg(doctest)]
#[doc = include_str!("../../docs/security.md")]
struct SecurityPage;
