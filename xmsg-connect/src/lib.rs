//! Named outgoing connections and channels between xMsg, ZeroMQ sockets and RabbitMQ, with nothing lost.

#![warn(missing_docs)]

mod amqp;
mod channel;
pub mod definition;
mod error;
mod outbound;
mod outgoing;
mod ping;
mod registry;
pub mod routing;
pub mod spool;
mod status;
mod supervise;
mod zmq;

pub use error::{Error, ErrorKind, Result};
pub use outbound::Outbound;
pub use outgoing::Accepted;
pub use registry::{
    ChannelReport, Definition, OnDelete, OutgoingReport, Registry, RegistryOptions, Report, Sort,
};
pub use status::{Counts, DeadMessage, Incident, LinkReport, LinkState, SpoolReport};
