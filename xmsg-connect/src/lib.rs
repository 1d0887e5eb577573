//! Named outgoing connections and channels between xMsg, ZeroMQ sockets and RabbitMQ, with nothing lost.
//!
//! A [`Registry`] keeps what is declared at work: [outgoing connections](definition::OutgoingDefinition),
//! which take messages out of xMsg, and [channels](definition::ChannelDefinition), which bring them in. What
//! goes out is in a [spool] on disk before it counts as accepted, and stays there until the other side has
//! it.
//!
//! ```
//! use std::time::Duration;
//! use xmsg_connect::definition::{OutgoingDefinition, SendingSocket};
//! use xmsg_connect::{Registry, RegistryOptions};
//! use xmsg_core::{Message, ProxyAddress};
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let state_dir = folder.path();
//! let proxy: ProxyAddress = "127.0.0.1".parse()?; // nothing is subscribed to below, so it need not be there
//! let registry = Registry::open(RegistryOptions::new(state_dir, proxy)).await?;
//! registry.create(OutgoingDefinition::zmq("feed", SendingSocket::Push, "tcp://127.0.0.1:5557")).await?;
//!
//! // Nobody listens there yet: the message waits on disk.
//! registry.send("feed", Message::of("feed:new", "hello")?).await?;
//! assert_eq!(registry.outgoing("feed")?.spool.entries, 1);
//! registry.close().await?;
//! # Ok(()) }
//! ```
//!
//! | to | there is |
//! |---|---|
//! | declare | [`definition`]: connections to brokers, outgoing connections, channels, the spool, as types and as TOML |
//! | run and change them | [`Registry`], [`RegistryOptions`], [`Definition`], [`OnDelete`] |
//! | send by name | [`Registry::send`], [`Registry::send_confirmed`], [`Outbound`] |
//! | see how they are | [`Report`], [`LinkReport`], [`LinkState`], [`Counts`], [`SpoolReport`], [`DeadMessage`] |
//! | keep anything on disk until it is delivered | [`spool`] |
//!
//! The promises, and all that may be declared: `docs/connect.md`.

// | file | answers |
// |---|---|
// | `definition/` | What may be declared? |
// | `registry/` | What is declared, and how is it changed while it is at work? |
// | `supervise.rs` | When does a session begin again that has ended? |
// | `outgoing/` | How do messages get from the proxy, or from `send`, to the peer? |
// | `outbound.rs` | What are the bytes of a message in the spool? |
// | `routing.rs` | Which routing key does a message get? |
// | `spool/` | What was accepted and not delivered yet? |
// | `channel/` | How do messages come in? |
// | `amqp/` | How is a broker reached, and what is a message of AMQP? |
// | `zmq.rs` | Which options do the ZeroMQ sockets get, and why is nobody connected? |
// | `federation/` | How do proxies share messages over a broker? |
// | `durable/` | How are durable subscriptions served? |
// | `receive_memory.rs` | How much may be received that is neither on disk nor at the other side? |
// | `ping.rs` | Can a peer be reached? |
// | `status.rs` | How is one outgoing connection or channel? |
// | `blocking.rs` | Where does work run that waits for the disk? |
// | `sleeping.rs` | How does a task sleep until a time that may not be known? |
// | `error.rs` | What failed, and what is to be done? |

#![warn(missing_docs)]

mod amqp;
mod blocking;
mod channel;
pub mod definition;
mod durable;
mod error;
mod federation;
mod outbound;
mod outgoing;
mod ping;
mod receive_memory;
mod registry;
pub mod routing;
mod sleeping;
pub mod spool;
mod status;
mod supervise;
mod zmq;

pub use error::{Error, ErrorKind, Result};
pub use outbound::Outbound;
pub use outgoing::Accepted;
pub use registry::{
    ChannelReport, Definition, DurableReport, FederationReport, OnDelete, OutgoingReport, Registry,
    RegistryOptions, Report, Sort,
};
pub use status::{Counts, DeadMessage, Incident, LinkReport, LinkState, SpoolReport};

/// Crates whose types stand in signatures of this one.
#[doc(no_inline)]
pub use {bytes, xmsg_core};
