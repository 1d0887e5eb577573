//! Async publish/subscribe messaging that speaks xMsg and ZeroMQ.

#![warn(missing_docs)]

pub mod actor;
pub mod address;
pub mod batch;
pub mod connection;
pub mod control;
pub mod data;
pub mod error;
pub mod id;
pub mod message;
pub mod meta;
pub mod pool;
pub mod prefixes;
pub mod registrar;
pub mod registration;
mod request;
pub mod security;
pub mod setup;
pub mod socket;
pub mod topic;
pub mod zmtp;

pub use actor::{Actor, ActorBuilder, ActorSubscription, IntoReply, SubscriptionHandle};
pub use address::{ProxyAddress, RegistrarAddress};
pub use batch::{MessageRef, Messages};
pub use connection::{Connection, Subscription};
#[cfg(feature = "serde")]
pub use data::Json;
pub use data::{Data, FromData, IntoData};
pub use error::{Error, ErrorKind, Result};
pub use id::{ActorId, ConnectionId};
pub use message::Message;
pub use meta::Meta;
pub use pool::{Pool, PooledConnection};
pub use registrar::Registrar;
pub use registration::{OwnerType, Query, Registration};
pub use security::Security;
pub use setup::{Setup, SetupBuilder};
pub use topic::{IntoTopic, IntoTopics, Topic};

/// The code of the guide, as tests.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guide.md")]
struct Guide;

/// The code of the page on security, too.
#[cfg(doctest)]
#[doc = include_str!("../../docs/security.md")]
struct SecurityPage;
